/* Launchers of cuda/gemm.cu: what cuda/matmul.h puts together. Conventions: cuda/kernels.h. */
#ifndef LLMQ_CUDA_GEMM_H
#define LLMQ_CUDA_GEMM_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Activations of any number of tokens as f16 rows (n_tok, ld), ld = cols up to a multiple of 256, zeros from cols on:
 * of every 16 columns the order 0 2 4 .. 14 is that of 0, 2 | 4, 6 | 8, 10 | 12, 14 and then 1, 3 | 5, 7 | .. (column
 * 4t
 * + e at 2t + e / 2 + 8 (e % 2)): operand B of mma beside weights that become f16 two nibbles at a time. Then sums
 * (ld / 32, n_tok up to a multiple of 64) f32 of every 32 columns. Magnitudes from 65520 on become infinite. */
size_t cuda_acts_rows_bytes(int64_t n_tok, int64_t cols);
int64_t cuda_acts_rows_ld(int64_t cols);
void cuda_acts_rows(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts);

/* y[t * ldy + r] = sum_c w[r][c] * x[t][c] (+ bias[r]) of activations as above, weights unpacked on the fly. parts:
 * cuda_gemm_bytes of scratch; with less of it fewer blocks share the columns. */
size_t cuda_gemm_bytes(int64_t n_tok, int64_t rows, int64_t cols);
void cuda_gemm(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy,
               void *parts, size_t parts_bytes);

/* Weights to f16 rows (rows, cuda_acts_rows_ld), columns in the order of the activations; only tiles that are there are
 * written: up to the next multiple of 64 columns, or 256 for types with blocks of 256. */
void cuda_unpack_rows(gpu_stream *stream, const cuda_matrix *w, uint16_t *out);
/* y (n_tok, ldy) += bias */
void cuda_add_bias(gpu_stream *stream, const cuda_matrix *w, int n_tok, float *y, int64_t ldy);

#ifdef __cplusplus
}
#endif

#endif
