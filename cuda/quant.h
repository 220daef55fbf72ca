/* Quantization on the GPU, for C: the column sweep of GPTQ in its LDLQ form (quant/methods/gptq.c is the CPU's).
 * Matrices are (columns, rows): a row of weights is a thread's, and neighbouring threads read neighbouring floats.
 * Pointers are device addresses; conventions of launches: cuda/kernels.h. cuda/solver.c brings the numbers. */
#ifndef LLMQ_CUDA_QUANT_H
#define LLMQ_CUDA_QUANT_H

#include "cuda/blas.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For column k in turn, of every row: u = e[k] - sum_{j<k} at[k*cols + j] * e[j]; code = nearest level of (u - offset)
 * / scale; e[k] = value(code) - w[k]. As llmq_round_block of core/backend.h, with all columns and rows at once. */
typedef struct cuda_sweep {
    int64_t rows, cols;
    const float *at;      /* (cols, cols) below the diagonal: what lies elsewhere is not read */
    float *e;             /* (cols, rows) in: the target values; out: value - w */
    const float *w;       /* (cols, rows) */
    const float *grids;   /* (groups, 3, rows): scale, 1/scale (0 where scale is 0), offset */
    const int32_t *group; /* [cols] the group of each column */
    const float *levels;  /* n_levels, ascending */
    int n_levels;
    bool uniform;   /* levels are consecutive integers */
    uint8_t *codes; /* (cols, rows) */
} cuda_sweep;

/* Errors of earlier columns come in by one product of cuBLAS for each 64 columns. */
llmq_status cuda_quant_sweep(gpu_stream *stream, const cuda_sweep *s, cuda_blas *blas, llmq_err *err);

/* to[k * rows + r] = from[r * cols + perm[k]]: a matrix in the order of its rounding */
void cuda_quant_gather(gpu_stream *stream, const float *from, int64_t rows, int64_t cols, const int32_t *perm,
                       float *to);
/* to[r * cols + perm[k]] = from[k * rows + r] */
void cuda_quant_scatter(gpu_stream *stream, const uint8_t *from, int64_t rows, int64_t cols, const int32_t *perm,
                        uint8_t *to);
/* y[n] = x[n] as bf16: what cuda_blas_gram takes */
void cuda_quant_to_bf16(gpu_stream *stream, const float *x, int64_t n, uint16_t *y);

#ifdef __cplusplus
}
#endif

#endif
