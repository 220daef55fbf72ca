/* Threads of a block as fibers: each has a stack and runs until it switches back to whoever resumed it. */
#ifndef LLMQ_CUDA_EMU_FIBER_H
#define LLMQ_CUDA_EMU_FIBER_H

#include <cstddef>

namespace emu {

struct fiber {
    void *context; /* where to go on: a stack pointer (x86-64) or a ucontext */
    void *stack;
    size_t stack_bytes;
};

/* A fiber that will run `entry`, which must never return. Stacks are reused: start again for a new thread. */
void fiber_create(fiber &f);
void fiber_start(fiber &f, void (*entry)());
void fiber_destroy(fiber &f);

/* From the scheduler into f, until f comes back. */
void fiber_resume(fiber &f);
/* From the running fiber back to the scheduler. last: it will never be resumed. */
void fiber_yield(bool last);

} // namespace emu

#endif
