/* Small ops and KV store in plain C: the oracle of the other ISAs. */
#include "cpu/ops.h"

#include <math.h>

#include "core/mem.h"
#include "cpu/kv.h"
#include "cpu/rows.h"
#include "types/type.h"

void ops_embed_c(const llmq_worker *w, const llmq_tensor *table, const int32_t *tokens, int64_t n_tok, float *y) {
    int64_t cols = tensor_cols(table), row_bytes = table->bytes / tensor_rows(table), begin, end;
    worker_range(w, n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        type_to_f32(table->type, (const uint8_t *)table->data + tokens[t] * row_bytes, y + t * cols, cols);
}

static void rms_norm_c(const llmq_worker *w, const float *x, const float *gain, float eps, float *y, int64_t n_rows,
                       int64_t n, int64_t stride) {
    int64_t begin, end;
    worker_range(w, n_rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *in = x + r * stride;
        float *out = y + r * stride;
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)in[i] * in[i];
        float inv = (float)(1.0 / sqrt(sum / (double)n + eps));
        for (int64_t i = 0; i < n; i++) out[i] = in[i] * inv * gain[i];
    }
}

static void rope_c(const llmq_worker *w, float *x, int64_t n_tok, int64_t ldx, int n_head, int head_dim, int n_rot,
                   const float *cos_sin, bool neox) {
    int64_t begin, end;
    int half = n_rot / 2;
    worker_range(w, n_tok * n_head, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / n_head;
        float *v = x + t * ldx + item % n_head * head_dim;
        const float *cs = cos_sin + t * n_rot; /* (half, 2) */
        for (int i = 0; i < half; i++) {
            float *a = neox ? v + i : v + 2 * i, *b = neox ? v + i + half : v + 2 * i + 1;
            float x0 = *a, x1 = *b;
            *a = x0 * cs[2 * i] - x1 * cs[2 * i + 1];
            *b = x1 * cs[2 * i] + x0 * cs[2 * i + 1];
        }
    }
}

static void add_c(const llmq_worker *w, float *y, const float *x, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i++) y[i] += x[i];
}

static void silu_mul_c(const llmq_worker *w, const float *gate, const float *up, float *y, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

size_t ops_kv_bytes_c(int kv_type, int64_t n_ctx, int n_head_kv, int head_dim) {
    size_t bytes;
    if (!size_mul(kv_row_bytes(kv_type, head_dim), (size_t)n_ctx, &bytes) ||
        !size_mul(bytes, (size_t)n_head_kv, &bytes))
        return SIZE_MAX; /* more than any allocation gives */
    return bytes;
}

/* A non-finite value makes its group's scale NaN, so that it is not lost. */
static void kv_row_store_q8(const float *x, uint8_t *row, int head_dim) {
    for (int g = 0; g < head_dim / KV_GROUP; g++) {
        const float *v = x + g * KV_GROUP;
        float max = 0, poison = 0;
        for (int i = 0; i < KV_GROUP; i++) {
            float a = fabsf(v[i]);
            max = a > max ? a : max;
            poison += v[i] * 0.0f;
        }
        uint16_t half = f32_to_f16(max / 127.0f + poison);
        float scale = f16_to_f32(half), inv = scale > 0 && isfinite(scale) ? 1.0f / scale : 0.0f;
        for (int i = 0; i < KV_GROUP; i++) {
            long code = inv > 0 ? lrintf(v[i] * inv) : 0;
            row[g * KV_GROUP + i] = (uint8_t)(int8_t)(code > 127 ? 127 : code < -127 ? -127 : code);
        }
        memcpy(row + head_dim + 2 * g, &half, sizeof half);
    }
}

static void kv_row_store(int type, const float *x, uint8_t *row, int head_dim) {
    if (type == KV_F32) {
        memcpy(row, x, (size_t)head_dim * sizeof *x);
        return;
    }
    if (type == KV_Q8) {
        kv_row_store_q8(x, row, head_dim);
        return;
    }
    for (int i = 0; i < head_dim; i++) {
        uint16_t half = f32_to_f16(x[i]);
        memcpy(row + 2 * i, &half, sizeof half);
    }
}

void kv_head_store_c(const llmq_kv *kv, int head, int64_t pos, const float *k, const float *v) {
    kv_row_store(kv->type, k, (uint8_t *)kv_row(kv->k, kv, head, pos), kv->head_dim);
    kv_row_store(kv->type, v, (uint8_t *)kv_row(kv->v, kv, head, pos), kv->head_dim);
}

static void kv_store_c(const llmq_worker *w, llmq_kv *kv, const float *k, int64_t ldk, const float *v, int64_t ldv,
                       int64_t pos, int64_t n_tok) {
    int64_t begin, end;
    worker_range(w, n_tok * kv->n_head_kv, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / kv->n_head_kv;
        int head = (int)(item % kv->n_head_kv);
        kv_head_store_c(kv, head, pos + t, k + t * ldk + head * kv->head_dim, v + t * ldv + head * kv->head_dim);
    }
}

static void kv_copy_c(const llmq_worker *w, llmq_kv *to, const llmq_kv *from, int64_t pos, int64_t n) {
    size_t bytes = (size_t)n * kv_row_bytes(to->type, to->head_dim);
    int64_t begin, end;
    worker_range(w, 2 * (int64_t)to->n_head_kv, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int head = (int)(i / 2);
        memcpy((uint8_t *)kv_row(i % 2 ? to->v : to->k, to, head, pos),
               kv_row(i % 2 ? from->v : from->k, from, head, pos), bytes);
    }
}

static size_t gram_scratch_none(int64_t n_tok, int64_t cols) {
    (void)n_tok;
    (void)cols;
    return 0;
}

void cpu_fill_ops_c(llmq_backend_ops *ops) {
    rows_fill(ops);
    ops->embed = ops_embed_c;
    ops->rms_norm = rms_norm_c;
    ops->rope = rope_c;
    ops->add = add_c;
    ops->silu_mul = silu_mul_c;
    ops->kv_bytes = ops_kv_bytes_c;
    ops->kv_store = kv_store_c;
    ops->attn_scratch_bytes = attention_scratch_c;
    ops->attention = attention_c;
    ops->attn_rows_scratch_bytes = attention_rows_scratch_c;
    ops->attention_rows = attention_rows_c;
    ops->kv_copy = kv_copy_c;
    ops->gram_add = linalg_gram_c;
    ops->gram_scratch_bytes = gram_scratch_none;
    ops->gemm_sub = linalg_gemm_sub_c;
    ops->cholesky = linalg_cholesky_c;
}
