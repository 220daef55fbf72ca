#ifndef LLMQ_TESTS_CUDA_READ_PROBE_H
#define LLMQ_TESTS_CUDA_READ_PROBE_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads x once; out [256 * n_blocks] gets the XOR of what each thread read. */
void probe_read(gpu_stream *stream, const void *x, size_t bytes, int n_blocks, uint32_t *out);

#ifdef __cplusplus
}
#endif

#endif
