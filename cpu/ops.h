/* What the files of the small ops, attention and linear algebra share. The C versions double as fallbacks for shapes
 * that a vector version does not take. */
#ifndef LLMQ_CPU_OPS_H
#define LLMQ_CPU_OPS_H

#include "cpu/cpu.h"

void ops_embed_c(const llmq_worker *w, const llmq_tensor *table, const int32_t *tokens, int64_t n_tok, float *y);
size_t ops_kv_bytes_c(int kv_type, int64_t n_ctx, int n_head_kv, int head_dim);

size_t attention_scratch_c(const llmq_attn *a, int n_workers);
void attention_c(const llmq_worker *w, const llmq_attn *a, const float *q, int64_t ldq, const llmq_kv *kv, float *out,
                 void *scratch);

void linalg_gram_c(const llmq_worker *w, const llmq_acts *a, bool allow_bf16, float *gram);
void linalg_gemm_sub_c(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                       float *c, int64_t ldc);
llmq_status linalg_cholesky_c(int64_t n, float *a, int64_t lda, llmq_team *team, llmq_err *err);
llmq_status linalg_cholesky_error(int64_t n, int64_t column, llmq_err *err);

#if defined(__x86_64__)
void attention_fill_avx2(llmq_backend_ops *ops);
void attention_fill_avx512(llmq_backend_ops *ops);
void linalg_fill_avx2(llmq_backend_ops *ops);
void linalg_fill_avx512(llmq_backend_ops *ops);
#endif

#endif
