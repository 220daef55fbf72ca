/* A block in execution: its threads, whom they wait for, and what synchronizes them. */
#ifndef LLMQ_CUDA_EMU_BLOCK_H
#define LLMQ_CUDA_EMU_BLOCK_H

#include <deque>
#include <functional>
#include <map>
#include <memory>

#include "cuda/emu/fiber.h"
#include "cuda/emu/memory.h"

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emu {

/* What a warp does together. Operations with the same name combine, others never do. */
struct warp_lanes;
struct warp_op {
    const char *name;
    bool memory;                   /* orders memory among the lanes of the mask */
    bool whole_warp;               /* .aligned: all 32 lanes, none may have left */
    void (*execute)(warp_lanes &); /* once, when all are there */
};

enum class waits_for { nothing, barrier, warp, left };

struct copy {
    buffer *to, *from;
    int64_t to_offset, from_offset;
    unsigned size, filled;
    int group; /* number of commits before it */
    site at;
};

struct thread {
    fiber stack{};
    dim3 index;
    int number = 0;
    waits_for state = waits_for::nothing;
    site at; /* where it waits */
    /* of a barrier */
    int barrier = 0, barrier_threads = 0;
    /* of a warp operation */
    const warp_op *op = nullptr;
    unsigned mask = 0;
    void *operands = nullptr;
    /* the clock of this thread, and how far it has seen those of the others (since the last block barrier) */
    uint16_t clock = 1;
    std::vector<uint16_t> seen;
    bool seen_any = false;
    std::deque<copy> copies;
    int commits = 0;

    int lane() const { return number & 31; }
    int warp() const { return number >> 5; }
};

/* The lanes of one warp operation: operands of lane l, as the caller of warp_meet passed them; NULL outside the mask.
 */
struct warp_lanes {
    unsigned mask; /* without those that have left */
    void *operands[32];
    thread *who[32];
    site at;
    template <class T> T *get(int lane) const { return static_cast<T *>(operands[lane]); }
};

struct block {
    dim3 grid, size, index;
    const char *kernel = "";
    uint32_t run = 0, launch_first_run = 0, epoch = 0;
    int n_threads = 0, n_left = 0;
    int at_barrier[16] = {};                      /* threads that wait at each */
    uint32_t at_op[32] = {};                      /* lanes of each warp that wait at an operation */
    uint32_t gone[32] = {};                       /* lanes of each warp that have left or never were */
    std::vector<std::unique_ptr<thread>> threads; /* kept from block to block; the first n_threads are alive */
    thread *running = nullptr;
    const std::function<void()> *body = nullptr;
    /* shared memory by declaration; the address of the next one */
    std::map<const void *, std::unique_ptr<buffer>> shared;
    uint64_t shared_used = 0, shared_limit = 0;
    std::vector<buffer *> shared_live;
    buffer dynamic;
};

extern block now; /* the one that runs */

/* Runs a launch, at once. */
void launch(const char *kernel, dim3 grid, dim3 threads, size_t dynamic_shared, const std::function<void()> &body);
/* The launch of a kernel is going to need so much dynamic shared memory. Without it, a block has no more than 48 KB. */
void allow_shared(const char *kernel, size_t bytes);

/* Launches that were queued on a stream while it was recorded. */
struct recorded {
    const char *kernel;
    dim3 grid, threads;
    size_t dynamic_shared;
    std::function<void()> body;
};
using launches = std::vector<recorded>;
void queue(const void *stream, const char *kernel, dim3 grid, dim3 threads, size_t dynamic_shared,
           const std::function<void()> &body);
void record_begin(const void *stream);
launches record_end();
const void *recording_on(); /* the stream that is recorded; NULL */

/* The running thread waits for all of `mask` at the same operation. */
void warp_meet(const warp_op &op, unsigned mask, void *operands, site at);
/* ... for `count` threads at barrier `id` (count 0: all of the block). */
void barrier_meet(int id, int count, site at);
/* Lets others run, in orders that do so at random. */
void maybe_yield();

/* One slice of shared memory a declaration: `key` is an address of its own for each. */
buffer *shared_slice(const void *key, const char *name, size_t bytes, size_t align);

/* Ends the launch with a report about the running thread. printf-like and not std::string: what a fiber owned when it
 * is abandoned is never freed. */
struct other_side {
    int thread = -1, line = -1;
};
[[noreturn]] void stop(emu_fault fault, site at, other_side other, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Inside warp_op.execute: blames a lane. The operation has to return at once. */
void fail_lane(const warp_lanes &lanes, int lane, emu_fault fault, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void fail_launch(const char *kernel, const char *text);

uint64_t random_bits();

/* ---- traffic.cpp */
extern bool counting;
void traffic_note(const buffer *b, uint64_t address, unsigned size, bool write, site at);
void traffic_note_rows(const uint64_t *rows, int n_rows, site at); /* of an ldmatrix: 8 rows of 16 bytes a matrix */
void traffic_flush();                                              /* at the end of a block */

} // namespace emu

#endif
