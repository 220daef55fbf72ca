/* Attention in plain C: all scores of one query, softmax, weighted sum of values. Any head_dim. */
#include "cpu/ops.h"

#include <math.h>

#include "core/mem.h"
#include "cpu/kv.h"

/* One score for every key, a row of scores for each worker. */
static size_t scores_len(const llmq_attn *a) {
    return size_align((size_t)(a->pos + a->n_tok), 16);
}

size_t attention_scratch_c(const llmq_attn *a, int n_workers) {
    return scores_len(a) * sizeof(float) * (size_t)n_workers;
}

static float kv_value(const uint8_t *row, int type, int head_dim, int i) {
    if (type == KV_Q8) return kv_q8_scale(row, head_dim, i / KV_GROUP) * (float)(int8_t)row[i];
    if (type == KV_F32) {
        float x;
        memcpy(&x, row + 4 * i, sizeof x);
        return x;
    }
    uint16_t half;
    memcpy(&half, row + 2 * i, sizeof half);
    return f16_to_f32(half);
}

static void attend_one(const llmq_attn *a, const float *q, const llmq_kv *kv, int head_kv, int64_t pos, float *out,
                       float *scores) {
    int64_t first = a->window > 0 && pos + 1 > a->window ? pos + 1 - a->window : 0;
    int dim = a->head_dim;
    float max = -INFINITY, sum = 0;
    for (int64_t key = first; key <= pos; key++) {
        const uint8_t *row = kv_row(kv->k, kv, head_kv, key);
        float dot = 0;
        for (int i = 0; i < dim; i++) dot += q[i] * kv_value(row, kv->type, dim, i);
        scores[key] = dot * a->scale;
        if (!(scores[key] <= max)) max = scores[key]; /* NaN stays */
    }
    for (int i = 0; i < dim; i++) out[i] = 0;
    for (int64_t key = first; key <= pos; key++) {
        const uint8_t *row = kv_row(kv->v, kv, head_kv, key);
        float p = expf(scores[key] - max);
        sum += p;
        for (int i = 0; i < dim; i++) out[i] += p * kv_value(row, kv->type, dim, i);
    }
    for (int i = 0; i < dim; i++) out[i] /= sum;
}

void attention_c(const llmq_worker *w, const llmq_attn *a, const float *q, int64_t ldq, const llmq_kv *kv, float *out,
                 void *scratch) {
    float *scores = (float *)scratch + scores_len(a) * (size_t)w->id;
    int64_t begin, end;
    int ratio = a->n_head / a->n_head_kv;
    int64_t step = a->k_new ? ratio : 1; /* who stores a KV head is who reads it */
    worker_range(w, a->n_tok * a->n_head, step, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / a->n_head;
        int head = (int)(item % a->n_head), head_kv = head / ratio;
        if (a->k_new && head % ratio == 0)
            kv_head_store_c(kv, head_kv, a->pos, a->k_new + head_kv * a->head_dim, a->v_new + head_kv * a->head_dim);
        attend_one(a, q + t * ldq + head * a->head_dim, kv, head_kv, a->pos + t, out + item * a->head_dim, scores);
    }
}

void attention_rows_c(const llmq_worker *w, const llmq_attn *a, const llmq_attn_row *rows, int64_t n_rows,
                      const float *q, int64_t ldq, float *out, void *scratch) {
    llmq_attn longest = {.n_tok = 1};
    for (int64_t i = 0; i < n_rows; i++) longest.pos = rows[i].pos > longest.pos ? rows[i].pos : longest.pos;
    float *scores = (float *)scratch + scores_len(&longest) * (size_t)w->id;
    int64_t begin, end;
    worker_range(w, n_rows * a->n_head, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        const llmq_attn_row *row = &rows[item / a->n_head];
        int head = (int)(item % a->n_head);
        attend_one(a, q + item / a->n_head * ldq + head * a->head_dim, row->kv, head / (a->n_head / a->n_head_kv),
                   row->pos, out + item * a->head_dim, scores);
    }
}

size_t attention_rows_scratch_c(const llmq_attn *a, int64_t n_rows, int n_workers) {
    (void)n_rows;
    llmq_attn one = *a;
    one.n_tok = 1;
    return attention_scratch_c(&one, n_workers);
}
