/* Launchers of cuda/gemm.cu: what cuda/matmul.h puts together. Conventions: cuda/kernels.h. */
#ifndef LLMQ_CUDA_GEMM_H
#define LLMQ_CUDA_GEMM_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Activations of any number of tokens: rows of f16 (tokens, ld), ld = cols up to a multiple of 256, a token's times a
 * power of two (cuda/acts.cuh); then sums (ld / 32, tokens) f32 of every 32 columns; then what brings results back,
 * [tokens] f32. Tokens go up to 16, 32 or a multiple of 64; what is not there is zero. Of every 16 columns the even
 * ones come first, then the odd ones: operand B of mma beside weights whose nibbles become f16 two at a time. */
size_t cuda_acts_rows_bytes(int64_t n_tok, int64_t cols);
int64_t cuda_acts_rows_ld(int64_t cols);
void cuda_acts_rows(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts);

/* y[t * ldy + r] = sum_c w[r][c] * x[t][c] (+ bias[r]) of activations as above, weights unpacked on the fly. parts:
 * cuda_gemm_bytes of scratch; with less of it fewer blocks share the columns. */
size_t cuda_gemm_bytes(int64_t n_tok, int64_t rows, int64_t cols);
void cuda_gemm(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy,
               void *parts, size_t parts_bytes);

/* Weights to f16 rows (rows, cuda_acts_rows_ld), columns in the order of the activations; only tiles that are there are
 * written: up to the next multiple of 64 columns, 128 for groups of 128, 256 for types with blocks of 256. Past the last
 * column they are anything finite. */
void cuda_unpack_rows(gpu_stream *stream, const cuda_matrix *w, uint16_t *out);
/* After a product of unpacked rows with the rows of activations: y (n_tok, ldy) divided by the tokens' powers of two,
 * plus the bias, if there is one. */
void cuda_bring_back(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy);

#ifdef __cplusplus
}
#endif

#endif
