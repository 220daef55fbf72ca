/* Launchers of the CUDA kernels, for C. Pointers are device addresses (gpu_* of cuda/device.h), sizes are checked by
 * the caller, launches are queued on a stream and return at once; a failed launch shows at gpu_wait. Dims vocabulary
 * and conventions of the ops: core/backend.h. */
#ifndef LLMQ_CUDA_KERNELS_H
#define LLMQ_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "core/tensor.h" /* C's own headers say nothing of C++ */
#include "llmq.h"

typedef struct gpu_stream gpu_stream; /* NULL: the default stream */

/* ---- weights: the layout of cuda/layout.h, made on the host */

/* The type that a matrix has on the device, if it is in no groups: its own if cuda/layout.h has it, F16 otherwise. */
llmq_type cuda_packed_type(llmq_type native);
/* How many columns, 128, 64, 32 or 0, are one group in each of these native rows: the same scale and minimum, to
 * the bit, and no more than 16 neighbouring levels. 0 as well for types that have no layouts for it. Of several parts
 * of a matrix the least is that of all. */
int cuda_shared_columns(llmq_type native, int64_t rows, int64_t cols, const void *data);
/* The group (cuda/layout.h) of the smallest layout for rows in which every `shared` columns are one: 32, 64 or 128,
 * which are layouts of the native type; or 0, that of cuda_packed_type, which holds any rows. */
int cuda_group_of(llmq_type native, int64_t shared, int64_t cols);
/* Bytes of a packed matrix; 0 if there is no such layout or cols is no multiple of the type's block. */
size_t cuda_pack_bytes(llmq_type packed_type, int group, int64_t rows, int64_t cols);
/* Native rows (host memory, without gaps, at any address) to packed; group: 0, or what cuda_group_of gives for
 * them. A type with a layout keeps the file's values exactly; others are rounded to f16, and values that are too large
 * for it are LLMQ_E_NUMERIC. */
llmq_status cuda_pack(llmq_type native, int group, int64_t rows, int64_t cols, const void *data, void *packed,
                      llmq_err *err);

typedef struct cuda_matrix {
    llmq_type type; /* packed */
    int group;      /* cuda/layout.h; 0: none */
    int64_t rows, cols;
    const void *packed; /* 256-byte aligned */
    const float *bias;  /* [rows] or NULL */
} cuda_matrix;

/* ---- activations of n_tok <= 8 tokens, x (n_tok, cols) */

size_t cuda_acts_q8_bytes(int n_tok, int64_t cols);
size_t cuda_acts_f16_bytes(int n_tok, int64_t cols);
/* 8 bits, one scale for 32, absmax / 127; no outliers are kept apart as the CPU does (cpu/act_q8.h). Non-finite inputs
 * make their group's scale non-finite. */
void cuda_acts_q8(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts);
/* Where values (n_tok, cols) come from: they are x; or with gain [cols] RMSNorm of x's rows, times gain; or with up
 * (n_tok, cols) SwiGLU, silu(x) * up. */
typedef struct cuda_source {
    const float *x, *gain, *up; /* not both gain and up */
    float eps;                  /* of RMSNorm */
} cuda_source;
/* f16, made while the values are: a token's times a power of two where its largest magnitude would not suit f16
 * (cuda/acts.cuh), which products divide by: finite inputs stay finite. */
void cuda_acts_f16(gpu_stream *stream, const cuda_source *source, int n_tok, int64_t cols, void *acts);

/* y[t * ldy + r] = sum_c w[r][c] * x[t][c] (+ bias[r]), weights unpacked on the fly. q8: 4-bit weights, 8-bit
 * activations (W4A8), sums of 32 exact; f16: W4A16, the only form for F16, NF4 and FP4. */
void cuda_matvec_q8(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy);
void cuda_matvec_f16(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy);

/* ---- the small ops, f32 */

/* y (n_tok, cols): rows of a packed matrix */
void cuda_embed(gpu_stream *stream, const cuda_matrix *table, const int32_t *tokens, int n_tok, float *y);
/* Rows of n floats, stride apart; y may be x. */
void cuda_rms_norm(gpu_stream *stream, const float *x, const float *gain, float eps, float *y, int64_t n_rows,
                   int64_t n, int64_t stride);
void cuda_add(gpu_stream *stream, float *y, const float *x, int64_t n);
void cuda_silu_mul(gpu_stream *stream, const float *gate, const float *up, float *y, int64_t n); /* y may be gate */

/* ---- sampling: the chain of engine/sampler.c */

#define CUDA_SAMPLE_ROWS 8
#define CUDA_SAMPLE_BYTES(n_rows) (256 + (size_t)(n_rows)*18688)
/* Penalizes the logits of n different tokens, in place. */
void cuda_penalize(gpu_stream *stream, float *logits, const int32_t *tokens, int n, float penalty);
/* A token for each of n_rows <= 8 rows of logits (n_rows, n), n < 2^31, which penalties have changed already. uniform
 * [n_rows]: the random numbers. The first n_rows words of scratch (CUDA_SAMPLE_BYTES) become the tokens, or what
 * core/device.h has in their place. */
typedef struct cuda_draw {
    const llmq_sampler_params *params;
    double uniform;
} cuda_draw;
void cuda_sample(gpu_stream *stream, const float *logits, int64_t n, int n_rows, const cuda_draw *draws, void *scratch);

/* One layer of a sequence's cache. Positions lie in pages, 128 in each; a page has the keys and values of all layers,
 * those of this one k and v bytes behind its beginning: (n_head_kv, 128, head_dim) f16, head_dim a multiple of 8 up to
 * 256. With q8 codes of one byte, head_dim a multiple of 32, and behind all of them (n_head_kv, 128, head_dim / 32) f16
 * scales: the CPU's q8_0. Kernels look up where a page is (device memory: a captured graph stays valid when there are
 * more pages). */
#define CUDA_PAGE_KEYS 128
typedef struct cuda_kv {
    const uint64_t *pages; /* the address of the page of positions 128 i, 128 i + 1, ..; 0: none yet */
    size_t k, v;           /* multiples of 256 */
    int n_head_kv, head_dim;
    bool q8;
} cuda_kv;
/* Of a page's keys, or values, of a layer: a multiple of 256. */
size_t cuda_kv_bytes(const cuda_kv *kv);

/* Rotates q (n_tok, ldq) in place; rotates k, and writes k and v to the cache at *pos.. (device memory, too).
 * cos_sin (n_ctx, n_rot / 2, 2) by position. */
typedef struct cuda_rope {
    int n_head, n_rot;
    bool neox;
    const float *cos_sin;
    const int32_t *pos;
} cuda_rope;
void cuda_rope_store(gpu_stream *stream, const cuda_rope *r, float *q, int64_t ldq, const float *k, int64_t ldk,
                     const float *v, int64_t ldv, int n_tok, const cuda_kv *kv);

/* Attention of n_tok queries at *pos.. over the cache: keys are split, each part gives its maximum, sum and output, a
 * second kernel puts them together. n_keys: at least *pos + n_tok, known to the host, with a word in pages for each
 * 128 of them; window 0: none. */
typedef struct cuda_attn {
    int n_head;
    float scale;
    int64_t window, n_keys;
    const int32_t *pos;
} cuda_attn;
#define CUDA_ATTENTION_KEYS CUDA_PAGE_KEYS /* of a part */
size_t cuda_attention_scratch_bytes(const cuda_attn *a, const cuda_kv *kv, int n_tok);
void cuda_attention(gpu_stream *stream, const cuda_attn *a, const float *q, int64_t ldq, const cuda_kv *kv, int n_tok,
                    float *out, void *scratch);
/* The same with any number of queries, on tensor cores, which take q and the weights of softmax as f16: results are off
 * by about 2^-11 of the values. ldq is even, n_tok times the heads that share one is below 2^24, n_keys is not used.
 * Later tokens' values have no weight, but where they are infinite or NaN, so is what tokens up to 63 positions before
 * them get. */
void cuda_prompt_attention(gpu_stream *stream, const cuda_attn *a, const float *q, int64_t ldq, const cuda_kv *kv,
                           int n_tok, float *out);

#ifdef __cplusplus
}
#endif

#endif
