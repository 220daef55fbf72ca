/* Float weights (F32, F16, BF16 rows as stored) of the SIMD backends. */
#ifndef LLMQ_CPU_DENSE_H
#define LLMQ_CPU_DENSE_H

#include "core/backend.h"

void dense_matmul_avx2(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void dense_matmul_neon(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void dense_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void dense_fill_avx512(const llmq_worker *worker, const llmq_acts *a); /* ACT_DENSE */

#endif
