/* The training ops in plain C: the oracle of the vector versions. */
#include "core/mem.h"
#include "cpu/cpu.h"

#define REAL float
#define GRAD(name) name##_f32
#include "core/grad_plain.h"

static void transpose_c(const llmq_worker *w, const float *x, int64_t rows, int64_t cols, int64_t ldx, float *y,
                        int64_t ldy) {
    int64_t begin, end;
    worker_range(w, cols, 16, &begin, &end);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = begin; c < end; c++) y[c * ldy + r] = x[r * ldx + c];
}

static void rms_norm_back_c(const llmq_worker *w, const float *x, const float *gain, float eps, const float *dy,
                            float *dx, bool add, float *inv, int64_t n_rows, int64_t n) {
    int64_t begin, end;
    worker_range(w, n_rows, 1, &begin, &end);
    norm_rows_back_f32(x + begin * n, gain, eps, dy + begin * n, dx + begin * n, add, inv + begin, end - begin, n);
}

static void rms_gain_back_c(const llmq_worker *w, const float *x, const float *inv, const float *dy, float *dgain,
                            int64_t n_rows, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    gain_cols_back_f32(x, inv, dy, dgain, n_rows, n, begin, end);
}

static void silu_mul_back_c(const llmq_worker *w, float *gate, float *up, const float *dact, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    silu_mul_n_back_f32(gate + begin, up + begin, dact + begin, end - begin);
}

static size_t causal_scratch_c(const llmq_causal *a, int n_workers) {
    return (size_t)n_workers * 2 * (size_t)a->n_tok * sizeof(float);
}

static void causal_c(const llmq_worker *w, const llmq_causal *a, const float *q, const float *k, const float *v,
                     float *out, void *scratch) {
    int64_t ldq = a->n_head * (int64_t)a->head_dim, ldk = a->n_head_kv * (int64_t)a->head_dim, begin, end;
    float *p = (float *)scratch + w->id * 2 * a->n_tok;
    worker_range(w, a->n_windows * a->n_head, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t row = item / a->n_head * a->n_tok, h = item % a->n_head, kv = h / (a->n_head / a->n_head_kv);
        int64_t at = row * ldq + h * a->head_dim, from = row * ldk + kv * a->head_dim;
        causal_head_f32(a, q + at, k + from, v + from, out + at, p);
    }
}

static void causal_back_c(const llmq_worker *w, const llmq_causal *a, const float *q, const float *k, const float *v,
                          const float *dout, float *dq, float *dk, float *dv, void *scratch) {
    int64_t ldq = a->n_head * (int64_t)a->head_dim, ldk = a->n_head_kv * (int64_t)a->head_dim, begin, end;
    int64_t group = a->n_head / a->n_head_kv;
    float *p = (float *)scratch + w->id * 2 * a->n_tok;
    worker_range(w, a->n_windows * a->n_head_kv, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t row = item / a->n_head_kv * a->n_tok, kv = item % a->n_head_kv, from = row * ldk + kv * a->head_dim;
        for (int64_t i = 0; i < a->n_tok; i++)
            for (int d = 0; d < a->head_dim; d++) dk[from + i * ldk + d] = dv[from + i * ldk + d] = 0;
        for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
            int64_t at = row * ldq + h * a->head_dim;
            causal_head_back_f32(a, q + at, k + from, v + from, dout + at, dq + at, dk + from, dv + from, p);
        }
    }
}

static void loss_rows_c(const llmq_worker *w, const llmq_loss *l) {
    int64_t begin, end;
    worker_range(w, l->n, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int32_t label = l->labels ? l->labels[r] : 0;
        double weight = label < 0 ? 0 : l->weight;
        const float *teacher = l->teacher ? l->teacher + r * l->n_vocab : NULL;
        l->loss[r] = loss_row_f32(l->z + r * l->n_vocab, teacher, label < 0 ? 0 : label, l->n_vocab, weight, l->slice,
                                  r, l->n, l->dz);
    }
}

static void adam_c(const llmq_worker *w, const llmq_adam *a, float *x, const float *g, float *m, float *v, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float h = g[i] * a->scale;
        m[i] += (1 - a->beta1) * (h - m[i]);
        v[i] += (1 - a->beta2) * (h * h - v[i]);
        x[i] = x[i] * a->keep - a->rate * m[i] / (sqrtf(v[i] * a->inv) + a->eps);
    }
}

static void code_values_c(const llmq_code_run *c, const float *scale, const float *offset, float *y) {
    for (int64_t k = 0; k < c->n; k++) {
        int64_t g = k / c->group_len;
        y[k] = scale[g] * c->levels[c->codes[k]] + offset[g];
    }
}

static void code_sums_c(const llmq_code_run *c, const float *g, float *sums) {
    for (int64_t at = 0; at < c->n; at += c->group_len, sums += 2) {
        int64_t end = c->n - at < c->group_len ? c->n : at + c->group_len;
        sums[0] = sums[1] = 0;
        for (int64_t k = at; k < end; k++) {
            sums[0] += g[k] * c->levels[c->codes[k]];
            sums[1] += g[k];
        }
    }
}

static size_t outer_scratch_c(int64_t rows, int64_t cols, int64_t n_tok) {
    (void)rows, (void)cols, (void)n_tok;
    return 0;
}

static void outer_c(const llmq_worker *w, const float *dy, int64_t rows, const float *x, int64_t cols, int64_t n_tok,
                    bool add, bool allow_bf16, float *g, void *scratch) {
    int64_t begin, end;
    (void)allow_bf16, (void)scratch;
    worker_range(w, rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) outer_row_f32(dy + r, rows, x, cols, n_tok, add, g + r * cols);
}

void cpu_fill_grad_c(llmq_backend_ops *ops) {
    ops->outer_scratch_bytes = outer_scratch_c;
    ops->outer = outer_c;
    ops->transpose = transpose_c;
    ops->rms_norm_back = rms_norm_back_c;
    ops->rms_gain_back = rms_gain_back_c;
    ops->silu_mul_back = silu_mul_back_c;
    ops->causal_scratch_bytes = causal_scratch_c;
    ops->causal = causal_c;
    ops->causal_back = causal_back_c;
    ops->loss_rows = loss_rows_c;
    ops->adam = adam_c;
    ops->code_values = code_values_c;
    ops->code_sums = code_sums_c;
}
