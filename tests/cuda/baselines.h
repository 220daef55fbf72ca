#ifndef LLMQ_TESTS_CUDA_BASELINES_H
#define LLMQ_TESTS_CUDA_BASELINES_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads x once; out [256 * n_blocks] gets the XOR of what each thread read. */
void probe_read(gpu_stream *stream, const void *x, size_t bytes, int n_blocks, uint32_t *out);

/* y (rows) = w x, rows of Q4_0 blocks as in a file, x (cols): without any of the care that cuda/matvec.cu takes. */
void naive_product(gpu_stream *stream, const void *w, int64_t rows, int64_t cols, const float *x, float *y);

#ifdef __cplusplus
}
#endif

#endif
