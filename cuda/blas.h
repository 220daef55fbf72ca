/* cuBLAS and cuSOLVER, for C. They are opened by name when they are first asked for (cuda/blas.cu), so that llmq
 * neither needs them to start nor is linked to one version of them. Under the emulator a plain loop takes its place
 * (cuda/emu/blas.cpp). */
#ifndef LLMQ_CUDA_BLAS_H
#define LLMQ_CUDA_BLAS_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_blas cuda_blas; /* a handle of this thread's device; one stream at a time */

/* LLMQ_E_UNSUPPORTED names the library that is not there; passes do without (cuda/matmul.h). */
llmq_status cuda_blas_create(cuda_blas **out, llmq_err *err);
void cuda_blas_destroy(cuda_blas *blas);      /* NULL allowed */
int cuda_blas_version(const cuda_blas *blas); /* 10000 * major + 100 * minor + patch; 0: not known */

/* y (n, ldy) f32 = b (n, k) * a (m, k) transposed: y[j * ldy + i] = sum_c a[i * lda + c] * b[j * ldb + c]. a and b are
 * f16, sums f32. */
llmq_status cuda_blas_gemm_f16(cuda_blas *blas, gpu_stream *stream, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                               int64_t lda, const uint16_t *b, int64_t ldb, float *y, int64_t ldy, llmq_err *err);

/* ---- for quantization (cuda/quant.h); f32 in full precision, row-major, as llmq_backend_ops has them */

/* c (m, n; ldc) -= a (m, k; lda) * b (k, n; ldb) */
llmq_status cuda_blas_gemm_sub(cuda_blas *blas, gpu_stream *stream, int64_t m, int64_t n, int64_t k, const float *a,
                               int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, llmq_err *err);
/* gram (cols, cols) f32 = x' x, or with add += x' x, x (n_tok, cols) bf16; both triangles. */
llmq_status cuda_blas_gram(cuda_blas *blas, gpu_stream *stream, const uint16_t *x, int64_t n_tok, int64_t cols,
                           bool add, float *gram, llmq_err *err);
/* In place lower Cholesky of the n x n matrix whose lower triangle is given: A = L L'. LLMQ_E_NUMERIC when it is not
 * positive definite (a is then destroyed). Waits for the stream. The first call opens cuSOLVER. */
llmq_status cuda_blas_cholesky(cuda_blas *blas, gpu_stream *stream, int64_t n, float *a, int64_t lda, llmq_err *err);

#ifdef __cplusplus
}
#endif

#endif
