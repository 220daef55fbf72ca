/* Intel's tile registers: eight of 16 rows of 64 bytes, and products of whole tiles.
 *
 * A product of bf16 takes a tile of activations (16 tokens x 32 columns, as memory has them) and a tile of weights
 * (16 pairs of columns x 16 rows: a word is two columns of one row, as in LAYOUT_BF16) and adds to a tile of sums
 * (16 tokens x 16 rows, f32). Subnormal inputs and results count as 0. One of bytes is the same with four columns in
 * a word: 64 columns a tile, sums of 32 bits.
 *
 * Tiles are state of a thread: an op loads their shape when it begins and lets go of them when it ends, so that the
 * system has nothing to save afterwards. */
#ifndef LLMQ_CPU_AMX_H
#define LLMQ_CPU_AMX_H

#include <immintrin.h>

#include "cpu/inline.h"

#define AMX_SIDE 16  /* tokens, or rows of weights, of a tile */
#define AMX_DEPTH 32 /* columns of a tile of bf16 */
#define AMX_TILE 1024

/* The compiler does not know that tiles are loaded from and stored to memory: this stands between its own accesses and
 * theirs. */
INLINE void amx_fence(void) {
    __asm__ volatile("" : : : "memory");
}

/* All eight tiles whole. */
INLINE void amx_begin(void) {
    _Alignas(64) static const struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}

INLINE void amx_end(void) {
    _tile_release();
}

#endif
