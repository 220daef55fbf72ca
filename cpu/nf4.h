/* Products of NF4 and FP4, whose levels are fractions that 8 bits would change by up to 0.4 % of a block's scale: they
 * become integers of 16 bits (act16.h). FP4's, multiples of 1/192, stay exact; NF4's change by at most 1.3e-4 of
 * themselves, a quarter of what rounding a weight to F16 may do, and no other LEVEL16_ONE that is a multiple of 192 and
 * leaves room for ACT16_MAX does better.
 *
 * Weights (LAYOUT_NF4): a tile is 16 rows x all columns, of one block after the other. */
#ifndef LLMQ_CPU_NF4_H
#define LLMQ_CPU_NF4_H

#include <math.h>

#include "cpu/act16.h"
#include "cpu/fetch.h"
#include "cpu/layout.h"
#include "types/blocks.h"
#include "types/type.h"

static inline bool is_nf4(llmq_type type) {
    return type == LLMQ_TYPE_NF4 || type == LLMQ_TYPE_FP4;
}

/* ---- weights */

typedef struct nf4_tile_block {
    uint32_t code[QK_NF4 / 8][16]; /* word (j, r) is word j of row r's block_nf4 */
    float scale[16];
} nf4_tile_block;

/* What a worker needs some time after group g (of 32 columns, two a block) of this block. */
INLINE void nf4_fetch(const nf4_tile_block *block, int64_t g) {
    const int64_t half = sizeof *block / 2;
    fetch_ahead((const char *)block + g % 2 * half, half);
}

static inline int64_t nf4_tile_bytes(int64_t cols) {
    return cols / QK_NF4 * (int64_t)sizeof(nf4_tile_block);
}
/* The tile of rows r .. r+16. */
static inline const nf4_tile_block *nf4_tile(const llmq_weight *w, int64_t r) {
    return (const nf4_tile_block *)w->packed + r / 16 * (w->cols / QK_NF4);
}

/* By code, those that a type does not have 0. */
static inline void nf4_levels(llmq_type type, float level[16]) {
    const llmq_type_info *info = type_info(type);
    for (int i = 0; i < 16; i++) level[i] = i < info->n_levels ? info->levels[i] : 0.0f;
}
static inline void nf4_levels16(llmq_type type, int16_t level[16]) {
    float exact[16];
    nf4_levels(type, exact);
    for (int i = 0; i < 16; i++) level[i] = (int16_t)lrintf(exact[i] * LEVEL16_ONE);
}

/* ---- kernels; few tokens: up to ACT_FEW (avx512), MATMUL_ALIKE (avx2, neon) */

void nf4_fill_avx2(const llmq_worker *worker, llmq_acts *a);
void nf4_fill_neon(const llmq_worker *worker, llmq_acts *a);
void nf4_fill_avx512(const llmq_worker *worker, llmq_acts *a);
void nf4_few_avx2(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void nf4_few_neon(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void nf4_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
/* Columns k .. k+n of rows r .. r+16 as floats (n, 16). */
void nf4_panel_avx2(const llmq_weight *w, int64_t r, int64_t k, int64_t n, float *panel);
void nf4_panel_neon(const llmq_weight *w, int64_t r, int64_t k, int64_t n, float *panel);

#endif
