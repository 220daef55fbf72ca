/* What the kernels of the interleaved quantized layouts with registers of 256 bits or less (matmul_256.h,
 * matmul_neon.h) share ahead of them. Files that include it define TILE and AT_ONCE first, and code_vec, a register of
 * codes; matmul_drive.h has what comes after them. */
#ifndef LLMQ_CPU_MATMUL_PARTS_H
#define LLMQ_CPU_MATMUL_PARTS_H

#include <string.h>

#include "cpu/cpu.h"
#include "cpu/fetch.h"
#include "cpu/inline.h"
#include "cpu/layout.h"
#include "types/type.h"

#define PANEL_ROWS 16
#define PANEL_COLS 768   /* a panel stays in the L1 cache, with the activations of a register tile */
#define PASS_ROWS 120    /* of activations: those of a panel's columns stay in the L2 cache, and the sums of */
#define PASS_TILES 8     /* so many tiles of weights with them */
#define FEW MATMUL_ALIKE /* up to so many tokens without a panel */

INLINE int log2_of(int zero) {
    return zero == 4 ? 2 : zero == 8 ? 3 : zero == 16 ? 4 : zero == 32 ? 5 : 7;
}

/* What the inputs of one token of the block sum up to, of part i of a group. */
INLINE float part_dsum(int group, const act_group *ag, int i) {
    return group == 32 ? ag->dsum : ag->d * (float)ag->sum[i];
}

#endif
