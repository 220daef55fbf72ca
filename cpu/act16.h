/* Products of integers of 16 bits: weights that 8 bits do not hold (NF4 and FP4, nf4.h; of many tokens also F16's and
 * BF16's rows, dense_avx512.c) with activations rounded to 1/ACT16_MAX of the largest of 32. The sum of 32 products is
 * exact in 32 bits. Where a number is not finite the results are NaN.
 *
 * Activations are kept as those of ACT_Q8 (layout.h): blocks of tokens, which hold for each group of 32 inputs those of
 * each token; the order of inputs inside 8 is the instruction set's. */
#ifndef LLMQ_CPU_ACT16_H
#define LLMQ_CPU_ACT16_H

#include "cpu/layout.h"

#define LEVEL16_ONE 15168 /* the largest weight of a group of its scale */
#define ACT16_MAX 4424
_Static_assert(INT64_C(32) * LEVEL16_ONE * ACT16_MAX <= INT32_MAX, "32 products");

typedef struct act16_block {
    const int16_t *q; /* (groups, n, 32) */
    const float *d;   /* (groups, n): an input is d * LEVEL16_ONE * q */
    int n;
} act16_block;

static inline size_t act16_d_offset(int64_t n_tok, int64_t cols) {
    return (size_t)(n_tok * act_groups(cols)) * 32 * sizeof(int16_t);
}
static inline size_t act16_bytes(int64_t n_tok, int64_t cols) {
    return act16_d_offset(n_tok, cols) + (size_t)(n_tok * act_groups(cols)) * sizeof(float);
}

/* Of those of a at q16 the block that starts at token first (a multiple of act_block_len). */
static inline act16_block act16_block_at(const llmq_acts *a, const void *q16, int64_t first) {
    int64_t len = act_block_len(a->n_tok), groups = act_groups(a->cols), left = a->n_tok - first;
    const char *d = (const char *)q16 + act16_d_offset(a->n_tok, a->cols);
    return (act16_block){(const int16_t *)q16 + first * groups * 32, (const float *)(const void *)d + first * groups,
                         (int)(left < len ? left : len)};
}

/* ACT_DENSE of AVX-512: behind what ACT_BF16 takes of the same buffer, so that rows of F16
 * and of BF16 may meet the same inputs. */
static inline size_t act_dense_offset(int64_t n_tok, int64_t cols) {
    return ((size_t)(n_tok * act_bf16_stride(cols)) * 2 + 63) / 64 * 64;
}
static inline void *act_dense_at(const llmq_acts *a) {
    return (char *)a->bf16 + act_dense_offset(a->n_tok, a->cols);
}

#endif
