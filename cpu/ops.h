/* What the files of the small ops, attention and linear algebra share. The C versions double as fallbacks for shapes
 * that a vector version does not take. */
#ifndef LLMQ_CPU_OPS_H
#define LLMQ_CPU_OPS_H

#include "cpu/cpu.h"

void ops_embed_c(const llmq_worker *w, const llmq_tensor *table, const int32_t *tokens, int64_t n_tok, float *y);
size_t ops_kv_bytes_c(int kv_type, int64_t n_ctx, int n_head_kv, int head_dim);
/* k and v [head_dim] of one head at one position. */
void kv_head_store_c(const llmq_kv *kv, int head, int64_t pos, const float *k, const float *v);

size_t attention_scratch_c(const llmq_attn *a, int n_workers);
void attention_c(const llmq_worker *w, const llmq_attn *a, const float *q, int64_t ldq, const llmq_kv *kv, float *out,
                 void *scratch);
void attention_rows_c(const llmq_worker *w, const llmq_attn *a, const llmq_attn_row *rows, int64_t n_rows,
                      const float *q, int64_t ldq, float *out, void *scratch);
size_t attention_rows_scratch_c(const llmq_attn *a, int64_t n_rows, int n_workers);

void linalg_gram_c(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, bool allow_q8, double *sums,
                   float *gram, void *scratch);
void gram_q8_avx512(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, double *sums, float *gram,
                    void *scratch);
size_t gram_q8_scratch_avx512(int64_t n_tok, int64_t cols);
/* Of n tile rows: does this worker do tile (i, j)? A tile below the diagonal counts 2, one on it 1, so that i*i + 2*j
 * of n*n come before it. */
static inline bool gram_tile_mine(const llmq_worker *w, int64_t n, int64_t i, int64_t j) {
    return (i * i + 2 * j) * w->n / (n * n) == w->id;
}

void linalg_gemm_sub_c(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                       float *c, int64_t ldc);
#if defined(__x86_64__)
void linalg_gemm_sub_avx2(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                          float *c, int64_t ldc);
void linalg_gemm_sub_avx512(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                            float *c, int64_t ldc);
#elif defined(__aarch64__)
void linalg_gemm_sub_neon(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                          float *c, int64_t ldc);
#endif
llmq_status linalg_cholesky_c(int64_t n, float *a, int64_t lda, llmq_team *team, llmq_err *err);
llmq_status linalg_cholesky_error(int64_t n, int64_t column, llmq_err *err);

#if defined(__x86_64__)
void attention_fill_avx2(llmq_backend_ops *ops);
void attention_fill_avx512(llmq_backend_ops *ops);
void attention_fill_avx512bf16(llmq_backend_ops *ops);
void attention_fill_amx(llmq_backend_ops *ops);
void linalg_fill_avx2(llmq_backend_ops *ops);
void linalg_fill_avx512(llmq_backend_ops *ops);
#elif defined(__aarch64__)
void attention_fill_neon(llmq_backend_ops *ops);
void linalg_fill_neon(llmq_backend_ops *ops);
#endif

#endif
