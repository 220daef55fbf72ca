/* cuBLAS, for C. The library is opened by name when it is first asked for (cuda/blas.cu), so that llmq neither needs it
 * to start nor is linked to one version of it. Under the emulator a plain loop takes its place (cuda/emu/blas.cpp). */
#ifndef LLMQ_CUDA_BLAS_H
#define LLMQ_CUDA_BLAS_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_blas cuda_blas; /* a handle of this thread's device; one stream at a time */

/* LLMQ_E_UNSUPPORTED names the library that is not there; callers do without (cuda/matmul.h). */
llmq_status cuda_blas_create(cuda_blas **out, llmq_err *err);
void cuda_blas_destroy(cuda_blas *blas); /* NULL allowed */

/* y (n, ldy) f32 = b (n, k) * a (m, k) transposed: y[j * ldy + i] = sum_c a[i * lda + c] * b[j * ldb + c]. a and b are
 * f16, sums f32. */
llmq_status cuda_blas_gemm_f16(cuda_blas *blas, gpu_stream *stream, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                               int64_t lda, const uint16_t *b, int64_t ldb, float *y, int64_t ldy, llmq_err *err);

#ifdef __cplusplus
}
#endif

#endif
