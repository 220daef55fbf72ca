/* Many tokens times weights whose levels are integers of 16 bits (act16.h): a panel of 32 rows is taken apart once, by
 * whoever knows the weights' form, and multiplied by all tokens. */
#ifndef LLMQ_CPU_MANY16_H
#define LLMQ_CPU_MANY16_H

#include "cpu/act16.h"

#define PANEL16_ROWS 32
#define PANEL16_COLS 2048 /* 136 KB with scales, of the L2 cache: as in matmul_avx512.c */

/* 32 rows of weights ready for the register tile; rows r and r + 16 of a pair lie side by side. A weight is
 * scale * level / LEVEL16_ONE. */
typedef struct panel16 {
    _Alignas(64) int16_t level[PANEL16_COLS / 2][2][32]; /* (pairs of columns, halves of the rows, 16 pairs) */
    _Alignas(64) float scale[PANEL16_COLS / 32][PANEL16_ROWS];
} panel16;

/* Columns k .. k+n (whole groups of 32, from a multiple of 64 on; 0 past the last) of rows r .. r+16, of which some may
 * be past the last, into half `half` of the panel. */
typedef void unpack16_fn(const llmq_weight *w, int64_t r, int64_t k, int64_t n, panel16 *out, int half);

/* y of all tokens of a, whose inputs are at q16. */
void many16_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, const void *q16,
                   unpack16_fn *unpack, float *y, int64_t ldy);

#endif
