/* Products of packed weights with any number of tokens: one entry that picks the kernels by the number of tokens.
 *     1 to 8       the decode kernels (cuda/matvec.cu): f16 activations, or 8-bit ones where they are chosen
 *     9 to 256     gemm (cuda/gemm.cu): f16 activations, weights unpacked on the fly, f32 sums
 *     more         weights unpacked to f16, then cuBLAS; gemm where there is no cuBLAS or no memory left for it
 * For C. Pointers are device addresses; sizes are checked by the caller. Calls are queued on the stream in order.
 *
 * How a layer uses it:
 *     cuda_input in = cuda_input_of(source, values, n_tok, cols, acts, forms);       one for each distinct input
 *     LLMQ_TRY(cuda_matmul(stream, &layer->q, &in, q, ldq, &scratch, err));
 *     LLMQ_TRY(cuda_matmul(stream, &layer->k, &in, k, ldk, &scratch, err));    shares what q made of it */
#ifndef LLMQ_CUDA_MATMUL_H
#define LLMQ_CUDA_MATMUL_H

#include "cuda/blas.h"
#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_GEMM_TOKENS 256 /* the most for gemm: with more, unpacking costs less than what cuBLAS gains. UNTUNED */

/* Activations of 1 to 8 tokens. Q8 reads fewer bits and computes less, and costs what rounding to 8 bits does; weights
 * without codes (F16, NF4, FP4) take f16 all the same. */
typedef enum cuda_acts { CUDA_ACTS_F16, CUDA_ACTS_Q8 } cuda_acts;
/* What the environment asks for: LLMQ_CUDA_ACTS=f16|q8. f16 if nothing; anything else is warned of and ignored. */
cuda_acts cuda_acts_chosen(void);

/* One input of matrices, and the forms that they have asked for so far. What it comes from may not change while it is
 * in use; `values` and `forms` may serve one input after another. f16 activations of decode steps are made from the
 * source at once; other forms need its values in f32, which are written when one is first asked for. */
typedef struct cuda_input {
    cuda_source source; /* plain once `values` are there */
    float *values;      /* (n_tok, cols), may be source.x; NULL for a plain source */
    int64_t n_tok, cols;
    cuda_acts acts;
    void *forms; /* cuda_input_bytes, 256-byte aligned */
    bool has_q8, has_f16, has_rows;
} cuda_input;

/* Enough for up to n_tok tokens of up to cols columns. */
size_t cuda_input_bytes(int64_t n_tok, int64_t cols);
cuda_input cuda_input_of(cuda_source source, float *values, int64_t n_tok, int64_t cols, cuda_acts acts, void *forms);

/* What products need besides their operands; one for each stream. */
typedef struct cuda_scratch {
    void *memory; /* 256-byte aligned */
    size_t bytes;
    cuda_blas *blas;  /* NULL: own kernels only */
    bool blas_failed; /* for want of memory: it is not asked again */
} cuda_scratch;

/* Enough for a product of up to n_tok tokens with up to (rows, cols) weights. Rows beyond what 64 MiB of f16 hold are
 * multiplied in slabs. 0: none is needed, memory may be NULL. */
size_t cuda_scratch_bytes(int64_t n_tok, int64_t rows, int64_t cols);

/* y[t * ldy + r] = sum_c w[r][c] * x[t][c] (+ bias[r]); in->cols is w->cols. Fails only where cuBLAS does; launches
 * that fail show at gpu_wait. */
llmq_status cuda_matmul(gpu_stream *stream, const cuda_matrix *w, cuda_input *in, float *y, int64_t ldy,
                        cuda_scratch *scratch, llmq_err *err);

/* The way of many tokens by itself, whatever their number above 8, for benchmarks: scratch has cuBLAS and memory. */
llmq_status cuda_matmul_unpacked(gpu_stream *stream, const cuda_matrix *w, cuda_input *in, float *y, int64_t ldy,
                                 const cuda_scratch *scratch, llmq_err *err);

#ifdef __cplusplus
}
#endif

#endif
