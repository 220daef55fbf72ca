/* The emulator as tests see it, from C and C++: in which order threads run, how the tensor cores add, what was found.
 *
 * The first fault ends its launch, and launches do nothing until it has been taken, as a context of the real thing is
 * dead after an illegal access. Not thread-safe: one emulated device a process. */
#ifndef LLMQ_CUDA_EMU_CONTROL_H
#define LLMQ_CUDA_EMU_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What can be wrong with a kernel. */
typedef enum emu_fault {
    EMU_NONE,
    EMU_RACE,          /* two accesses of different threads, one of them a write, with no barrier between them */
    EMU_BOUNDS,        /* outside its buffer, or through a null or freed pointer */
    EMU_MISALIGNED,    /* an address that its size does not divide */
    EMU_UNINITIALIZED, /* a read of bytes that nobody has written */
    EMU_READ_ONLY,     /* a write to an input */
    EMU_MISSING_WAIT,  /* a touch of bytes that a cp.async still owns, or a copy that its thread never waited for */
    EMU_BARRIER,       /* threads of a block at different barriers, or some have left */
    EMU_MASK,          /* caller not in its mask, masks that differ, a lane read outside the mask or gone */
    EMU_DIVERGED,      /* lanes of one mask at different warp operations */
    EMU_DEADLOCK,      /* nobody can run */
    EMU_ARGUMENT,      /* an operand that the instruction forbids */
    EMU_LAUNCH,        /* a launch that the device would refuse */
    EMU_FAULTS
} emu_fault;

typedef struct emu_report {
    emu_fault fault;
    char kernel[96];
    int block[3], thread; /* linear thread of the block; -1: the launch itself */
    char file[96];
    int line;                     /* of the access or call, in the kernel's source */
    int other_thread, other_line; /* the other side of a race, or of a disagreement; -1 where there is none */
    char text[384];               /* all of it in words */
} emu_report;

/* false: these are the real thing's stand-ins (tests/cuda/real_device.c), which do nothing. */
bool emu_here(void);

/* Threads run until they wait for others; this is who runs next. Blocks follow the same order. */
typedef enum emu_order {
    EMU_FORWARD,     /* thread 0 first */
    EMU_BACKWARD,    /* the last one first */
    EMU_INTERLEAVED, /* lane 0 of every warp, then lane 1, ... */
    EMU_SHUFFLED,    /* at random by the seed, and threads lose their turn in the middle of things */
    EMU_ORDERS
} emu_order;
void emu_set_order(emu_order order, uint64_t seed);

/* How a tensor core sums floats (ptx.md 1.3): terms of one group are cut to a multiple of 2^(E - F) and added at once.
 */
typedef enum emu_tensor_core { EMU_GROUPS_OF_8, EMU_GROUPS_OF_16 } emu_tensor_core; /* sm_80..89: F = 24; later: 25 */
void emu_set_tensor_core(emu_tensor_core model);

/* Memory of the device, 0: more than there is; and what of it is allocated. */
void emu_set_memory(size_t bytes);
size_t emu_memory_used(void);

/* Recordings (cuda/device.h) that have been replayed in this process. */
int64_t emu_replays(void);

/* f16 products that cuBLAS's stand-in was asked for in this process; the next one fails for want of memory. */
int64_t emu_products(void);
void emu_fail_product(void);

/* The fault since the last call, if there was one. */
bool emu_take_report(emu_report *out);
const char *emu_fault_name(emu_fault fault);

/* How well the accesses of warps fall together, by source line, from emu_count(true) on. For shared memory passes over
 * the banks, for global memory sectors of 32 bytes; best: what the same accesses need if they lie well. */
typedef struct emu_traffic {
    char file[96];
    int line;
    bool shared, write;
    int64_t accesses, needed, best; /* accesses: of warps */
} emu_traffic;
void emu_count(bool on); /* true: also forgets what was counted */
int emu_traffic_list(emu_traffic *out, int most);

#ifdef __cplusplus
}
#endif

#endif
