/* From a Gram matrix to the triangle of error feedback, and errors measured under it.
 *
 * Rounding W (rows, n) to What should make tr(E H E') small, E = W - What, row by row: |e R|^2 with H = R R'. With R
 * upper triangular, component k of e R is R_kk (e_k + sum_{j<k} e_j R_jk / R_kk): the best that can be done for column
 * k after the columns before it are fixed is to round w_k + sum_{j<k} e_j A_jk, A = R diag(R)^-1. No inverse of H is
 * needed. R comes from an ordinary Cholesky factorization of H with its indices reversed: L L' = J H J (J reverses), so
 * R = J L J. */
#include "quant/hessian.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "quant/methods/methods.h"

#define TILE 64
#define DEAD_WEIGHT                                                                                                    \
    0.001f /* of an input that was always zero, relative to the mean: its code should be the nearest                   \
            */

/* ---- order of the columns ---- */

typedef struct column_rank {
    float block_diag, diag;
    int32_t block, index;
} column_rank;

static int by_descending_diag(const void *pa, const void *pb) {
    const column_rank *a = pa, *b = pb;
    if (a->block_diag != b->block_diag) return a->block_diag < b->block_diag ? 1 : -1;
    if (a->block != b->block) return a->block < b->block ? -1 : 1;
    if (a->diag != b->diag) return a->diag < b->diag ? 1 : -1;
    return a->index < b->index ? -1 : 1;
}

static llmq_status order_columns(const llmq_quant_problem *p, llmq_feedback *f, llmq_err *err) {
    for (int64_t k = 0; k < f->n; k++) f->perm[k] = (int32_t)k;
    if (p->solver.order == ORDER_NONE || !f->usable_diag) return LLMQ_OK;
    column_rank *ranks = mem_alloc((size_t)f->n, sizeof *ranks);
    if (!ranks) return mem_error(err, (size_t)f->n * sizeof *ranks, "the order of columns");
    int64_t len = p->solver.order == ORDER_GROUP ? p->type->block_len : f->n;
    for (int64_t begin = 0, end; begin < f->n; begin = end) {
        float largest = 0;
        end = f->n - begin < len ? f->n : begin + len;
        for (int64_t k = begin; k < end; k++) largest = f->diag[k] > largest ? f->diag[k] : largest;
        for (int64_t k = begin; k < end; k++)
            ranks[k] = (column_rank){largest, f->diag[k], (int32_t)(begin / len), (int32_t)k};
    }
    qsort(ranks, (size_t)f->n, sizeof *ranks, by_descending_diag);
    for (int64_t k = 0; k < f->n; k++) f->perm[k] = ranks[k].index;
    mem_free(ranks);
    return LLMQ_OK;
}

/* ---- the factor ---- */

typedef struct gather_job {
    const llmq_feedback *f;
    const float *gram;
    float inv_tokens, damping; /* damping: what is added to each diagonal element */
    const float *pivots;       /* [n], second pass */
} gather_job;

/* The lower triangle of J (P H P' + damping) J into at. */
static void gather_worker(const llmq_worker *worker, void *arg) {
    const gather_job *job = arg;
    const llmq_feedback *f = job->f;
    int64_t n = f->n;
    for (int64_t i = worker->id; i < n; i += worker->n) {
        int64_t pi = f->perm[n - 1 - i];
        float *row = f->at + i * n;
        for (int64_t j = 0; j < i; j++) {
            int64_t pj = f->perm[n - 1 - j];
            row[j] = job->gram[pi > pj ? pi * n + pj : pj * n + pi] * job->inv_tokens;
        }
        row[i] = (f->diag[pi] > 0 ? f->diag[pi] : 1.0f) + job->damping; /* a dead column: H_kk = 1, alone */
    }
}

/* L to A': A'[k][j] = L[n-1-j][n-1-k] / L[n-1-k][n-1-k], a reflection of the lower triangle at its anti-diagonal, so it
 * is done in place: (r, c) changes places with (n-1-c, n-1-r). Each pair is met once, by the worker of the tile of its
 * upper left half. */
static void reflect_worker(const llmq_worker *worker, void *arg) {
    const gather_job *job = arg;
    const llmq_feedback *f = job->f;
    const float *pivots = job->pivots;
    int64_t n = f->n, n_tiles = (n + TILE - 1) / TILE;
    for (int64_t ti = worker->id; ti < n_tiles; ti += worker->n) {
        int64_t r_end = (ti + 1) * TILE < n ? (ti + 1) * TILE : n;
        for (int64_t c0 = 0; c0 <= ti * TILE && c0 + ti * TILE < n; c0 += TILE) {
            for (int64_t r = ti * TILE; r < r_end; r++) {
                for (int64_t c = c0; c < c0 + TILE && c < r && r + c < n; c++) {
                    float *a = &f->at[r * n + c], *b = &f->at[(n - 1 - c) * n + (n - 1 - r)];
                    float at_a = *b / pivots[n - 1 - r], at_b = *a / pivots[c]; /* row k of A' divides by pivot n-1-k */
                    *a = at_a;
                    *b = at_b;
                }
            }
        }
    }
}

static bool all_finite(const float *x, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint32_t)((f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u);
    return bad == 0;
}

static bool pivots_sound(const llmq_feedback *f, float *pivots) {
    for (int64_t i = 0; i < f->n; i++) {
        pivots[i] = f->at[i * f->n + i];
        if (!(pivots[i] > 0) || !isfinite(pivots[i])) return false;
        if (!all_finite(f->at + i * f->n, i)) return false;
    }
    return true;
}

static llmq_status factor_damped(const llmq_quant_problem *p, double mean, llmq_feedback *f, float *pivots,
                                 llmq_err *err) {
    gather_job job = {f, p->gram, 1.0f / (float)p->n_tokens, (float)(f->damp * mean), pivots};
    team_run(p->team, gather_worker, &job);
    llmq_err reason;
    llmq_status status = p->device ? p->device->ops->cholesky(p->device, f->n, f->at, &reason)
                                   : p->ops->cholesky(f->n, f->at, f->n, p->team, &reason);
    if (status == LLMQ_OK && !pivots_sound(f, pivots)) status = LLMQ_E_NUMERIC;
    if (status == LLMQ_OK) team_run(p->team, reflect_worker, &job);
    if (status != LLMQ_OK && status != LLMQ_E_NUMERIC) return llmq_fail(err, status, "%s: %s", p->name, reason.msg);
    f->failed = status != LLMQ_OK;
    return LLMQ_OK;
}

/* The diagonal of H and the mean of its live part. */
static double read_diag(const llmq_quant_problem *p, llmq_feedback *f) {
    double sum = 0;
    bool finite = true;
    for (int64_t k = 0; k < f->n; k++) {
        float d = p->gram[k * f->n + k] / (float)p->n_tokens;
        if (!isfinite(d)) finite = false;
        if (!(d > 0)) {
            d = 0;
            f->dead++;
        }
        f->diag[k] = d;
        sum += d;
    }
    f->usable_diag = finite && f->dead < f->n && isfinite(sum);
    return f->usable_diag ? sum / (double)(f->n - f->dead) : 0;
}

llmq_status hessian_factor(const llmq_quant_problem *p, double damp, llmq_feedback *out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t n = (size_t)p->cols, cells;
    float *pivots = mem_alloc(n, sizeof *pivots);
    *out = (llmq_feedback){.n = p->cols, .failed = true};
    out->perm = mem_alloc(n, sizeof *out->perm);
    out->diag = mem_alloc(n, sizeof *out->diag);
    out->importance = mem_alloc(n, sizeof *out->importance);
    out->at = size_mul(n, n, &cells) ? mem_alloc(cells, sizeof *out->at) : NULL;
    if (!pivots || !out->perm || !out->diag || !out->importance || !out->at) {
        status = mem_error(err, n * n * sizeof(float), "a factored Hessian");
        goto done;
    }
    double mean = read_diag(p, out);
    LLMQ_TRY_GOTO(order_columns(p, out, err));
    if (!out->usable_diag) goto done;
    for (out->damp = damp; out->failed; out->damp = out->damp > 0.001 ? out->damp * 10 : 0.01) {
        if (out->damp > 1) out->damp = 1;
        LLMQ_TRY_GOTO(factor_damped(p, mean, out, pivots, err));
        if (!out->failed || out->damp >= 1) break;
    }
    bool use_pivots = p->solver.pivots && !out->failed;
    for (size_t k = 0; k < n; k++) { /* pivots come in the reverse of the order of rounding */
        float *importance = &out->importance[out->perm[k]];
        *importance = out->diag[out->perm[k]] + (float)(fmax(out->damp, DEAD_WEIGHT) * mean);
        if (use_pivots && out->diag[out->perm[k]] > 0) *importance = pivots[n - 1 - k] * pivots[n - 1 - k];
    }
done:
    mem_free(pivots);
    if (status != LLMQ_OK) hessian_feedback_clear(out);
    return status;
}

typedef struct mirror_job {
    const llmq_quant_problem *p;
    const llmq_feedback *f;
    float ridge, dead; /* added to the diagonal; the diagonal of a dead column */
} mirror_job;

static void mirror_worker(const llmq_worker *worker, void *arg) {
    const mirror_job *job = arg;
    const float *gram = job->p->gram;
    int64_t n = job->f->n, n_tiles = (n + TILE - 1) / TILE;
    for (int64_t t = worker->id; t < n_tiles; t += worker->n) {
        for (int64_t i = t * TILE; i < (t + 1) * TILE && i < n; i++)
            job->f->at[i * n + i] = job->f->diag[i] > 0 ? gram[i * n + i] + job->ridge : job->dead;
        for (int64_t j0 = t * TILE; j0 < n; j0 += TILE)
            for (int64_t i = t * TILE; i < (t + 1) * TILE && i < n; i++)
                for (int64_t j = j0 <= i ? i + 1 : j0; j < j0 + TILE && j < n; j++)
                    job->f->at[i * n + j] = gram[j * n + i];
    }
}

void hessian_mirror(const llmq_quant_problem *p, llmq_feedback *f, double ridge) {
    double sum = 0;
    for (int64_t k = 0; k < f->n; k++) sum += f->diag[k];
    float mean = (float)(sum / (double)(f->n - f->dead) * (double)p->n_tokens);
    mirror_job job = {p, f, (float)ridge * mean, DEAD_WEIGHT * mean};
    team_run(p->team, mirror_worker, &job);
}

void hessian_feedback_clear(llmq_feedback *f) {
    mem_free(f->at);
    mem_free(f->perm);
    mem_free(f->diag);
    mem_free(f->importance);
    *f = (llmq_feedback){.failed = true};
}

bool hessian_importance(const llmq_quant_problem *p, float *importance) {
    if (!p->gram || p->n_tokens <= 0) return false;
    llmq_feedback f = {.n = p->cols, .diag = importance};
    float extra = (float)HESSIAN_PLAIN_FLOOR * (float)read_diag(p, &f);
    for (int64_t k = 0; k < p->cols; k++) importance[k] += extra;
    return f.usable_diag;
}

/* ---- errors ---- */

#define ERROR_CHUNK 32 /* rows measured at a time: fixed, so that sums do not depend on the workers */
#define ERROR_BLOCK 128

typedef struct error_job {
    const llmq_quant_problem *p;
    const llmq_quantized *q;
    int64_t n_rows; /* measured */
    float *x, *y;   /* (3 * n_rows, cols): the weights, the method's errors, plain rounding's; and products with H */
    double *energy; /* [3 * n_rows] */
    llmq_quantized *rtn; /* n_rows rows */
    float *picked;       /* (n_rows, cols) */
} error_job;

static int64_t picked_row(const error_job *job, int64_t i) {
    return i * job->p->rows / job->n_rows;
}

/* From the lower triangle: x_j (G_jj x_j + 2 sum_{i>j} x_i G_ij); y holds minus the sums. */
void hessian_energy(const llmq_backend_ops *ops, int64_t n, const float *gram, int64_t m, const float *x, float *y,
                    double *energy) {
    float below[ERROR_BLOCK * ERROR_BLOCK]; /* a block at the diagonal, zeros from there on */
    memset(y, 0, (size_t)(m * n) * sizeof *y);
    memset(below, 0, sizeof below);
    for (int64_t j0 = 0; j0 < n; j0 += ERROR_BLOCK) {
        int64_t len = n - j0 < ERROR_BLOCK ? n - j0 : ERROR_BLOCK, j1 = j0 + len;
        if (j1 < n) ops->gemm_sub(m, len, n - j1, x + j1, n, gram + j1 * n + j0, n, y + j0, n);
        for (int64_t i = 1; i < len; i++)
            memcpy(below + i * ERROR_BLOCK, gram + (j0 + i) * n + j0, (size_t)i * sizeof *below);
        ops->gemm_sub(m, len, len, x + j0, n, below, ERROR_BLOCK, y + j0, n);
    }
    for (int64_t r = 0; r < m; r++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++)
            sum += (double)x[r * n + j] * ((double)gram[j * n + j] * x[r * n + j] - 2.0 * y[r * n + j]);
        energy[r] = sum;
    }
}

static void error_worker(const llmq_worker *worker, void *arg) {
    const error_job *job = arg;
    const llmq_quant_problem *p = job->p;
    int64_t n = p->cols, m = job->n_rows, begin, end;
    worker_range(worker, m, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memcpy(job->picked + i * n, p->w + picked_row(job, i) * n, (size_t)n * sizeof(float));
    llmq_quant_problem sample = *p;
    sample.w = job->picked;
    sample.rows = m;
    rtn_rows(&sample, NULL, begin, end, job->rtn);
    for (int64_t i = begin; i < end; i++) {
        const float *w = job->picked + i * n;
        float *x = job->x + i * n, *e = x + m * n, *e_rtn = e + m * n;
        memcpy(x, w, (size_t)n * sizeof *x);
        quantized_row_to_f32(job->q, picked_row(job, i), e);
        quantized_row_to_f32(job->rtn, i, e_rtn);
        for (int64_t k = 0; k < n; k++) {
            e[k] -= w[k];
            e_rtn[k] -= w[k];
        }
    }
    worker_barrier(worker);
    for (int64_t c = worker->id * ERROR_CHUNK; c < 3 * m; c += worker->n * ERROR_CHUNK)
        hessian_energy(p->ops, n, p->gram, 3 * m - c < ERROR_CHUNK ? 3 * m - c : ERROR_CHUNK, job->x + c * n,
                       job->y + c * n, job->energy + c);
}

static double total(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

llmq_status hessian_errors(const llmq_quant_problem *p, const llmq_quantized *q, llmq_quant_report *report,
                           llmq_err *err) {
    report->error = report->rtn_error = -1;
    if (!p->gram) return LLMQ_OK;
    llmq_status status = LLMQ_OK;
    error_job job = {.p = p, .q = q, .n_rows = p->rows < HESSIAN_ERROR_ROWS ? p->rows : HESSIAN_ERROR_ROWS};
    size_t cells = 3 * (size_t)job.n_rows * (size_t)p->cols;
    job.x = mem_alloc(cells, sizeof *job.x);
    job.y = mem_alloc(cells, sizeof *job.y);
    job.energy = mem_zalloc(3 * (size_t)job.n_rows, sizeof *job.energy);
    job.picked = mem_alloc(cells / 3, sizeof *job.picked);
    if (!job.x || !job.y || !job.energy || !job.picked) {
        status = mem_error(err, cells * 2 * sizeof(float), "measuring a layer's error");
        goto done;
    }
    LLMQ_TRY_GOTO(quantized_create(p->type, job.n_rows, p->cols, &job.rtn, err));
    team_run(p->team, error_worker, &job);
    double weights = total(job.energy, job.n_rows);
    double error = total(job.energy + job.n_rows, job.n_rows), rtn = total(job.energy + 2 * job.n_rows, job.n_rows);
    if (isfinite(weights) && isfinite(error) && isfinite(rtn) && weights > 0) {
        report->error = error / weights;
        report->rtn_error = rtn / weights;
    }
done:
    quantized_destroy(job.rtn);
    mem_free(job.picked);
    mem_free(job.energy);
    mem_free(job.y);
    mem_free(job.x);
    return status;
}

typedef struct finite_job {
    const llmq_quant_problem *p;
    atomic_int bad;
} finite_job;

static void finite_worker(const llmq_worker *worker, void *arg) {
    finite_job *job = arg;
    int64_t begin, end;
    worker_range(worker, job->p->rows, 1, &begin, &end);
    if (!all_finite(job->p->w + begin * job->p->cols, (end - begin) * job->p->cols)) atomic_store(&job->bad, 1);
}

llmq_status hessian_check_weights(const llmq_quant_problem *p, llmq_err *err) {
    finite_job job = {.p = p};
    team_run(p->team, finite_worker, &job);
    if (!atomic_load(&job.bad)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_NUMERIC,
                     "%s has weights that are infinite or not a number: the source is damaged; fetch it again",
                     p->name);
}
