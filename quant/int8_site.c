#include "quant/int8_site.h"

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "types/blocks.h"

struct int8_trial {
    const int8_problem *p;
    int64_t rows;       /* of all matrices together */
    float *y, *got;     /* (n_tok, rows) outputs as they should be, of a trial */
    float *x;           /* (n_tok, cols) scaled inputs */
    void *q;            /* the same as integers */
    block_q8_0 *blocks; /* (rows, cols / 32) */
    const float *s;     /* while scaling */
};

static llmq_tensor rows_tensor(const int8_trial *t, llmq_type type, const void *data) {
    int64_t cols = t->p->site.cols;
    return (llmq_tensor){.name = "sampled rows",
                         .type = type,
                         .n_dims = 2,
                         .dims = {cols, t->rows, 1, 1},
                         .bytes = t->rows * type_row_bytes(type, cols),
                         .data = data};
}

/* ---- products */

typedef struct product {
    const int8_trial *t;
    const llmq_weight *w;
    llmq_acts a;
    float *y;
} product;

static void product_worker(const llmq_worker *worker, void *arg) {
    product *p = arg;
    const llmq_backend_ops *ops = p->t->p->site.ops;
    ops->acts_fill(worker, &p->a, p->w->act);
    worker_barrier(worker);
    ops->matmul(worker, p->w, &p->a, p->y, p->t->rows);
}

static void multiply(const int8_trial *t, const llmq_weight *w, const float *x, float *y) {
    product p = {.t = t,
                 .w = w,
                 .a = {.n_tok = t->p->n_tok, .cols = t->p->site.cols, .x = x, .int8 = t->q, .range = w->range},
                 .y = y};
    team_run(t->p->site.team, product_worker, &p);
}

/* The outputs of the rows as they are. */
static llmq_status make_outputs(int8_trial *t, llmq_err *err) {
    const llmq_site_problem *site = &t->p->site;
    llmq_weight w;
    float *rows = mem_alloc((size_t)(t->rows * site->cols), sizeof *rows), *at = rows;
    if (!rows) return mem_error(err, (size_t)(t->rows * site->cols) * sizeof *rows, "a trial of ranges");
    for (int i = 0; i < site->n_matrices; i++) {
        int64_t n = site->matrices[i].n_rows * site->cols;
        memcpy(at, site->matrices[i].w, (size_t)n * sizeof *at);
        at += n;
    }
    llmq_tensor view = rows_tensor(t, LLMQ_TYPE_F32, rows);
    llmq_status status = site->ops->weight_prepare(&w, &view, 0, site->team, err);
    if (status == LLMQ_OK) {
        multiply(t, &w, t->p->x, t->y);
        site->ops->weight_release(&w);
    }
    mem_free(rows);
    return status;
}

llmq_status int8_trial_create(const int8_problem *p, int8_trial **out, llmq_err *err) {
    const llmq_site_problem *site = &p->site;
    int8_trial *t = mem_zalloc(1, sizeof *t);
    if (!t) return mem_error(err, sizeof *t, "a trial of ranges");
    t->p = p;
    for (int i = 0; i < site->n_matrices; i++) t->rows += site->matrices[i].n_rows;
    t->y = mem_alloc((size_t)(p->n_tok * t->rows), sizeof *t->y);
    t->got = mem_alloc((size_t)(p->n_tok * t->rows), sizeof *t->got);
    t->x = mem_alloc((size_t)(p->n_tok * site->cols), sizeof *t->x);
    t->q = mem_alloc(site->ops->acts_bytes(ACT_INT8, p->n_tok, site->cols), 1);
    t->blocks = mem_alloc((size_t)(t->rows * site->cols / QK), sizeof *t->blocks);
    llmq_status status = LLMQ_OK;
    if (!t->y || !t->got || !t->x || !t->q || !t->blocks)
        status = mem_error(err, (size_t)(p->n_tok * t->rows) * sizeof *t->y, "a trial of ranges");
    if (status == LLMQ_OK) status = make_outputs(t, err);
    if (status == LLMQ_OK)
        *out = t;
    else
        int8_trial_destroy(t);
    return status;
}

void int8_trial_destroy(int8_trial *t) {
    if (!t) return;
    mem_free(t->y);
    mem_free(t->got);
    mem_free(t->x);
    mem_free(t->q);
    mem_free(t->blocks);
    mem_free(t);
}

/* ---- scales */

static float scale_at(const int8_trial *t, int64_t c) {
    const int32_t *channel = t->p->site.channel;
    return t->s ? t->s[channel ? channel[c] : c] : 1.0f;
}

/* Plain rounding to the row's largest weight: the search of the method itself gives a little less error everywhere. */
static void round_row(const int8_trial *t, const float *w, block_q8_0 *blocks) {
    int64_t cols = t->p->site.cols;
    float most = 0;
    for (int64_t c = 0; c < cols; c++) most = fmaxf(most, fabsf(w[c] * scale_at(t, c)));
    uint16_t d = f32_to_f16(most / 127.0f);
    float step = f16_to_f32(d), inverse = step > 0 ? 1.0f / step : 0.0f;
    for (int64_t c = 0; c < cols; c++) {
        float q = rintf(w[c] * scale_at(t, c) * inverse);
        blocks[c / QK].qs[c % QK] = (int8_t)fminf(fmaxf(q, -127.0f), 127.0f);
        blocks[c / QK].d = d;
    }
}

static void scale_worker(const llmq_worker *worker, void *arg) {
    const int8_trial *t = arg;
    const llmq_site_problem *site = &t->p->site;
    int64_t cols = site->cols, first = 0, begin, end;
    worker_range(worker, t->p->n_tok, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < cols; c++) t->x[i * cols + c] = t->p->x[i * cols + c] / scale_at(t, c);
    worker_range(worker, t->rows, 1, &begin, &end);
    for (int i = 0; i < site->n_matrices; first += site->matrices[i++].n_rows)
        for (int64_t r = 0; r < site->matrices[i].n_rows; r++)
            if (first + r >= begin && first + r < end)
                round_row(t, site->matrices[i].w + r * cols, t->blocks + (first + r) * (cols / QK));
}

void int8_trial_scale(int8_trial *t, const float *s) {
    t->s = s;
    team_run(t->p->site.team, scale_worker, t);
    t->s = NULL;
}

/* ---- errors */

/* What the error of all outputs, over their squares, counts beside the tokens' own, if weights are given: it is that of
 * the few tokens with the largest outputs, attention sinks, at which every other token looks. */
#define OUTPUTS_SHARE (1.0 / 32)

/* Of the outputs [row, row + n) of a token: the sums of squares of what they should be and of their error. */
typedef struct squares {
    double y, error;
} squares;

static squares token_squares(const int8_trial *t, int64_t token, int64_t row, int64_t n) {
    const float *y = t->y + token * t->rows + row, *got = t->got + token * t->rows + row;
    squares sum = {0, 0};
    for (int64_t r = 0; r < n; r++) {
        double e = (double)got[r] - (double)y[r];
        sum.y += (double)y[r] * (double)y[r];
        sum.error += e * e;
    }
    return sum;
}

static double relative_error(const int8_trial *t, int64_t row, int64_t n) {
    double all = 0, all_error = 0, even = 0;
    int64_t n_even = 0;
    for (int64_t i = 0; i < t->p->n_tok; i++) {
        squares s = token_squares(t, i, row, n);
        all += s.y;
        all_error += s.error;
        if (i >= t->p->n_even || !(s.y > 0)) continue;
        even += s.error / s.y;
        n_even++;
    }
    return all > 0 && n_even ? even / (double)n_even + all_error / all : 0;
}

static double weighted_error(const int8_trial *t, int64_t row, int64_t n) {
    double even = 0, all = 0, all_error = 0;
    for (int64_t i = 0; i < t->p->n_tok; i++) {
        squares s = token_squares(t, i, row, n);
        if (i < t->p->n_even) even += s.error * (double)t->p->weight[i];
        all += s.y;
        all_error += s.error;
    }
    even = t->p->n_even ? even / (double)t->p->n_even : 0;
    return all > 0 ? even + OUTPUTS_SHARE * all_error / all : even;
}

llmq_status int8_trial_error(int8_trial *t, llmq_act_range range, double *error_out, llmq_err *err) {
    const llmq_site_problem *site = &t->p->site;
    llmq_weight w;
    llmq_tensor view = rows_tensor(t, LLMQ_TYPE_Q8_0, t->blocks);
    int64_t row = 0;
    *error_out = 0;
    LLMQ_TRY(site->ops->weight_prepare_int8(&w, &view, range, site->team, err));
    multiply(t, &w, t->x, t->got);
    site->ops->weight_release(&w);
    for (int i = 0; i < site->n_matrices; row += site->matrices[i++].n_rows) {
        int64_t n = site->matrices[i].n_rows;
        *error_out += (t->p->weight ? weighted_error(t, row, n) : relative_error(t, row, n)) / site->n_matrices;
    }
    return LLMQ_OK;
}

float int8_scale_f16(double scale) {
    float x = f16_to_f32(f32_to_f16((float)scale));
    if ((double)x < scale) x = f16_to_f32((uint16_t)(f32_to_f16((float)scale) + 1));
    return x < 0x1p-14f ? 0x1p-14f : x > 65504.0f ? 65504.0f : x;
}

llmq_act_range int8_range_of(double most) {
    return (llmq_act_range){int8_scale_f16(most / 127.5), 0};
}
