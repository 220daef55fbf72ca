/* Switching takes a few nanoseconds on x86-64, where swapcontext() would spend its time in system calls that save the
 * signal mask; other machines use it all the same. Under ASan each switch is announced. */
#include "cuda/emu/fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

static fiber *running;
static void (*start_entry)();

#ifdef EMU_ASAN
static const void *scheduler_stack;
static size_t scheduler_bytes;
static constexpr size_t stack_size = 256 << 10;

static void leave_to(void **save, const void *stack, size_t bytes) {
    __sanitizer_start_switch_fiber(save, stack, bytes);
}
static void arrived(void *save, const void **from, size_t *bytes) {
    __sanitizer_finish_switch_fiber(save, from, bytes);
}
static void forget_frames(const fiber &f) {
    __asan_unpoison_memory_region(f.stack, f.stack_bytes);
}
#else
static const void *scheduler_stack;
static size_t scheduler_bytes;
static constexpr size_t stack_size = 64 << 10;

static void leave_to(void **, const void *, size_t) {}
static void arrived(void *, const void **, size_t *) {}
static void forget_frames(const fiber &) {}
#endif

/* ---- the switch itself */

#if defined(__x86_64__)
extern "C" void emu_switch(void **save, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl emu_switch\n"
        ".type emu_switch, @function\n"
        "emu_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emu_switch, . - emu_switch\n");

static void *scheduler;

static void switch_to_fiber(fiber &f) {
    emu_switch(&scheduler, f.context);
}
static void switch_to_scheduler(fiber &f) {
    emu_switch(&f.context, scheduler);
}

static void begin() {
    arrived(nullptr, &scheduler_stack, &scheduler_bytes);
    start_entry();
    abort();
}

static void prepare(fiber &f) {
    auto *top = reinterpret_cast<uint64_t *>(static_cast<char *>(f.stack) + f.stack_bytes);
    *--top = 0; /* nothing to return to; also leaves the stack as a call would */
    *--top = reinterpret_cast<uint64_t>(begin);
    for (int saved = 0; saved < 6; saved++) *--top = 0;
    f.context = top;
}
static void discard(fiber &) {}
#else
static ucontext_t scheduler;

static void switch_to_fiber(fiber &f) {
    swapcontext(&scheduler, static_cast<ucontext_t *>(f.context));
}
static void switch_to_scheduler(fiber &f) {
    swapcontext(static_cast<ucontext_t *>(f.context), &scheduler);
}

static void begin() {
    arrived(nullptr, &scheduler_stack, &scheduler_bytes);
    start_entry();
    abort();
}

static void prepare(fiber &f) {
    if (!f.context) f.context = new ucontext_t;
    auto *context = static_cast<ucontext_t *>(f.context);
    getcontext(context);
    context->uc_stack.ss_sp = f.stack;
    context->uc_stack.ss_size = f.stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, begin, 0);
}
static void discard(fiber &f) {
    delete static_cast<ucontext_t *>(f.context);
}
#endif

/* ---- fibers */

/* Below each stack lies a page that nobody may touch: a kernel that needs more stack dies there. */
void fiber_create(fiber &f) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void *map = mmap(nullptr, stack_size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map, page, PROT_NONE) != 0) {
        perror("emulator: no memory for the stacks of a block");
        abort();
    }
    f = {nullptr, static_cast<char *>(map) + page, stack_size};
}

void fiber_destroy(fiber &f) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    discard(f);
    munmap(static_cast<char *>(f.stack) - page, f.stack_bytes + page);
    f = {};
}

void fiber_start(fiber &f, void (*entry)()) {
    start_entry = entry;
    forget_frames(f); /* of a thread that was abandoned in the middle */
    prepare(f);
}

void fiber_resume(fiber &f) {
    void *save = nullptr;
    running = &f;
    leave_to(&save, f.stack, f.stack_bytes);
    switch_to_fiber(f);
    arrived(save, nullptr, nullptr);
}

void fiber_yield(bool last) {
    void *save = nullptr;
    leave_to(last ? nullptr : &save, scheduler_stack, scheduler_bytes);
    switch_to_scheduler(*running);
    arrived(save, &scheduler_stack, &scheduler_bytes);
}

} // namespace emu
