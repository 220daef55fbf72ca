/* AWQ (activation-aware weight quantization, arXiv 2306.00978). Inputs that are large matter more, so their columns are
 * made larger before rounding: s = x^alpha, or s = x^alpha / w^(1-alpha), x the root mean square of an input and w the
 * mean size of its weights within their blocks. alpha lies on a grid of twentieths; the grid is searched in steps of a
 * fifth first, then around the best.
 *
 * The error of a candidate needs no stored activations: with E = Q(W S) S^-1 - W it is tr(E H E'), H the site's Gram
 * matrix. Where error feedback follows, columns that are rounded later make good what H can explain: with H = R R' as
 * in quant/hessian.c there is left the sum of R_kk^2 E_k^2. One factor serves all candidates, since scaled inputs have
 * S^-1 R; that their order of rounding and their damping would differ a little is not followed. It is measured on the
 * sampled rows. Blocks are fitted with the inputs' importance, as they are when the matrix is rounded: that is AWQ's
 * search for clipping ranges as well, since every fit here searches scales. */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "quant/hessian.h"
#include "quant/transforms/transform.h"

#define ALPHA_STEPS 20
#define COARSE 4

typedef struct awq_job {
    const llmq_site_problem *p;
    int64_t n_rows;    /* of all matrices together */
    float *mag, *size; /* [n_channels] magnitude of inputs, of weights; mag 0: always zero */
    float *s, *best;   /* [n_channels] the candidate, the best one so far */
    float *by_col;     /* [cols] s of each column */
    float *importance; /* [cols] of the scaled weights */
    float *left;       /* [cols] R_kk^2; NULL: no feedback follows */
    double floor;      /* added to every diagonal element of H as importance */
    float *e, *y;      /* (n_rows, cols) errors, scratch */
    double *energy;    /* [n_rows] */
    float *row;        /* (workers, cols) */
    uint8_t *codes;    /* (workers, cols) */
    double *whole;     /* [n_matrices] tr(W H W') */
    bool plain;        /* measure W itself */
} awq_job;

static int64_t channel_of(const llmq_site_problem *p, int64_t col) {
    return p->channel ? p->channel[col] : col;
}

static double diag(const llmq_site_problem *p, int64_t col) {
    return (double)p->gram[col * p->cols + col] / (double)p->n_tokens;
}

/* ---- the error of a candidate ---- */

/* e = Q(w S) S^-1 - w */
static void round_row(const awq_job *job, const llmq_type_info *t, const float *w, float *x, uint8_t *codes, float *e) {
    int64_t cols = job->p->cols;
    for (int64_t c = 0; c < cols; c++) x[c] = w[c] * job->by_col[c];
    for (int64_t b = 0; b < type_blocks(t, cols); b++) {
        int64_t at = b * t->block_len, n = type_block_cols(t, cols, b);
        llmq_grid grid;
        type_fit(t, x + at, job->importance + at, n, &grid);
        type_codes(t, &grid, x + at, n, codes);
        type_values(t, &grid, codes, n, e + at);
    }
    for (int64_t c = 0; c < cols; c++) e[c] = e[c] / job->by_col[c] - w[c];
}

static double energy_left(const awq_job *job, const float *e) {
    double sum = 0;
    for (int64_t c = 0; c < job->p->cols; c++) sum += (double)job->left[c] * e[c] * e[c];
    return sum * (double)job->p->n_tokens;
}

static void error_worker(const llmq_worker *worker, void *arg) {
    const awq_job *job = arg;
    const llmq_site_problem *p = job->p;
    float *x = job->row + worker->id * p->cols;
    uint8_t *codes = job->codes + worker->id * p->cols;
    for (int64_t r0 = worker->id * AWQ_CHUNK; r0 < job->n_rows; r0 += worker->n * AWQ_CHUNK) {
        int64_t m = job->n_rows - r0 < AWQ_CHUNK ? job->n_rows - r0 : AWQ_CHUNK, first = 0;
        for (int i = 0; i < p->n_matrices; first += p->matrices[i++].n_rows) {
            const llmq_site_matrix *matrix = &p->matrices[i];
            int64_t begin = r0 > first ? r0 : first, end = first + matrix->n_rows;
            for (int64_t r = begin; r < end && r < r0 + m; r++) {
                const float *w = matrix->w + (r - first) * p->cols;
                if (job->plain)
                    memcpy(job->e + r * p->cols, w, (size_t)p->cols * sizeof *w);
                else
                    round_row(job, matrix->type, w, x, codes, job->e + r * p->cols);
            }
        }
        if (job->left && !job->plain)
            for (int64_t r = r0; r < r0 + m; r++) job->energy[r] = energy_left(job, job->e + r * p->cols);
        else
            hessian_energy(p->ops, p->cols, p->gram, m, job->e + r0 * p->cols, job->y + r0 * p->cols, job->energy + r0);
    }
}

/* Energies of matrix i's rows. */
static double matrix_energy(const awq_job *job, int i) {
    int64_t first = 0;
    double sum = 0;
    for (int k = 0; k < i; k++) first += job->p->matrices[k].n_rows;
    for (int64_t r = first; r < first + job->p->matrices[i].n_rows; r++) sum += job->energy[r];
    return sum;
}

static double measure(awq_job *job) {
    const llmq_site_problem *p = job->p;
    double loss = 0;
    for (int64_t c = 0; c < p->cols; c++) {
        float s = job->s[channel_of(p, c)];
        job->by_col[c] = s;
        job->importance[c] = (float)((diag(p, c) + job->floor) / ((double)s * s));
    }
    team_run(p->team, error_worker, job);
    for (int i = 0; i < p->n_matrices; i++)
        if (job->whole[i] > 0) loss += matrix_energy(job, i) / job->whole[i];
    return loss;
}

/* ---- candidates ---- */

/* Root mean squares of the inputs, and mean sizes of weights as parts of the largest in their block. false: nothing to
 * go by. */
static bool read_magnitudes(awq_job *job) {
    const llmq_site_problem *p = job->p;
    double sum = 0;
    int64_t live = 0;
    if (p->n_tokens <= 0) return false;
    for (int64_t c = 0; c < p->cols; c++) {
        double d = diag(p, c);
        if (!isfinite(d)) return false;
        if (!(d > 0)) continue;
        job->mag[channel_of(p, c)] += (float)d;
        sum += d;
        live++;
    }
    if (!live || !isfinite(sum)) return false;
    job->floor = (p->feedback ? quant_damp(p->damp) : HESSIAN_PLAIN_FLOOR) * sum / (double)live; /* as when they are rounded */
    for (int64_t k = 0; k < p->n_channels; k++) job->mag[k] = sqrtf(job->mag[k]);
    for (int i = 0; i < p->n_matrices; i++) {
        const llmq_type_info *t = p->matrices[i].type;
        for (int64_t r = 0; r < p->matrices[i].n_rows; r++) {
            const float *w = p->matrices[i].w + r * p->cols;
            for (int64_t b = 0; b < type_blocks(t, p->cols); b++) {
                float max = 0;
                int64_t at = b * t->block_len, n = type_block_cols(t, p->cols, b);
                for (int64_t c = at; c < at + n; c++) max = fmaxf(max, fabsf(w[c]));
                if (!(max > 0) || !isfinite(max)) continue;
                for (int64_t c = at; c < at + n; c++) job->size[channel_of(p, c)] += fabsf(w[c]) / max;
            }
        }
    }
    return true;
}

/* Fills s; its geometric mean over live channels is one. */
static void candidate(awq_job *job, int step, bool divided) {
    const llmq_site_problem *p = job->p;
    double alpha = (double)step / ALPHA_STEPS, mean = 0;
    int64_t live = 0;
    for (int64_t k = 0; k < p->n_channels; k++) {
        job->s[k] = 0;
        if (!(job->mag[k] > 0) || (divided && !(job->size[k] > 0))) continue;
        job->s[k] = (float)(alpha * log((double)job->mag[k]));
        if (divided) job->s[k] -= (float)((1 - alpha) * log((double)job->size[k]));
        mean += (double)job->s[k];
        live++;
    }
    mean = live ? mean / (double)live : 0;
    for (int64_t k = 0; k < p->n_channels; k++) {
        bool scaled = job->mag[k] > 0 && (!divided || job->size[k] > 0);
        double s = scaled ? exp((double)job->s[k] - mean) : 1;
        job->s[k] = (float)fmin(fmax(s, 1 / AWQ_SCALE_MAX), AWQ_SCALE_MAX);
    }
}

static void try_candidate(awq_job *job, int step, bool divided, llmq_site_report *report) {
    candidate(job, step, divided);
    double loss = measure(job);
    if (!(loss < report->after)) return;
    report->after = loss;
    report->alpha = (double)step / ALPHA_STEPS;
    report->divided = divided;
    memcpy(job->best, job->s, (size_t)job->p->n_channels * sizeof *job->s);
}

static void search(awq_job *job, llmq_site_report *report) {
    job->plain = true;
    team_run(job->p->team, error_worker, job);
    for (int i = 0; i < job->p->n_matrices; i++) job->whole[i] = matrix_energy(job, i);
    job->plain = false;
    for (int64_t k = 0; k < job->p->n_channels; k++) job->s[k] = 1;
    report->before = report->after = measure(job);
    if (!isfinite(report->before)) return;
    for (int step = COARSE; step <= ALPHA_STEPS; step += COARSE) try_candidate(job, step, false, report);
    for (int step = 0; step < ALPHA_STEPS; step += COARSE) try_candidate(job, step, true, report);
    int centre = (int)lrint(report->alpha * ALPHA_STEPS);
    bool divided = report->divided;
    for (int step = centre - COARSE + 1; step < centre + COARSE; step++)
        if (step != centre && step >= !divided && step <= ALPHA_STEPS) try_candidate(job, step, divided, report);
}

/* The pivots of the factored Hessian; none where it cannot be factored. */
static llmq_status factor_left(awq_job *job, llmq_err *err) {
    const llmq_site_problem *p = job->p;
    llmq_quant_problem factored = {.name = "the search for AWQ's scales",
                                   .cols = p->cols,
                                   .gram = p->gram,
                                   .n_tokens = p->n_tokens,
                                   .solver = {.order = ORDER_STATIC, .pivots = true},
                                   .ops = p->ops,
                                   .team = p->team};
    llmq_feedback f;
    LLMQ_TRY(hessian_factor(&factored, quant_damp(p->damp), &f, err));
    if (!f.failed) {
        for (int64_t c = 0; c < p->cols; c++)
            if (!(f.diag[c] > 0)) f.importance[c] = 0; /* errors of inputs that are always zero harm nobody */
        job->left = f.importance;
        f.importance = NULL;
    }
    hessian_feedback_clear(&f);
    return LLMQ_OK;
}

/* ---- life ---- */

static void job_clear(awq_job *job) {
    void *blocks[] = {job->mag, job->size,   job->s,   job->best,  job->by_col, job->importance, job->e,
                      job->y,   job->energy, job->row, job->codes, job->whole,  job->left};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

static llmq_status job_create(awq_job *job, llmq_err *err) {
    const llmq_site_problem *p = job->p;
    size_t cols = (size_t)p->cols, channels = (size_t)p->n_channels, workers = (size_t)team_size(p->team), cells;
    for (int i = 0; i < p->n_matrices; i++) job->n_rows += p->matrices[i].n_rows;
    if (!size_mul((size_t)job->n_rows, cols, &cells)) return mem_error(err, SIZE_MAX, "the search for AWQ's scales");
    job->mag = mem_zalloc(channels, sizeof *job->mag);
    job->size = mem_zalloc(channels, sizeof *job->size);
    job->s = mem_alloc(channels, sizeof *job->s);
    job->best = mem_alloc(channels, sizeof *job->best);
    job->by_col = mem_alloc(cols, sizeof *job->by_col);
    job->importance = mem_alloc(cols, sizeof *job->importance);
    job->e = mem_alloc(cells, sizeof *job->e);
    job->y = mem_alloc(cells, sizeof *job->y);
    job->energy = mem_alloc((size_t)job->n_rows, sizeof *job->energy);
    job->row = mem_alloc(workers * cols, sizeof *job->row);
    job->codes = mem_alloc(workers * cols, 1);
    job->whole = mem_alloc((size_t)p->n_matrices, sizeof *job->whole);
    if (!job->mag || !job->size || !job->s || !job->best || !job->by_col || !job->importance || !job->e || !job->y ||
        !job->energy || !job->row || !job->codes || !job->whole)
        return mem_error(err, 2 * cells * sizeof(float), "the search for AWQ's scales");
    return LLMQ_OK;
}

llmq_status awq_scales(const llmq_site_problem *p, float *s, llmq_site_report *report, llmq_err *err) {
    awq_job job = {.p = p};
    *report = (llmq_site_report){0};
    for (int64_t k = 0; k < p->n_channels; k++) s[k] = 1;
    llmq_status status = job_create(&job, err);
    if (status == LLMQ_OK && p->feedback && p->n_tokens > 0) status = factor_left(&job, err);
    if (status == LLMQ_OK && job.n_rows > 0 && read_magnitudes(&job)) {
        mem_note_peak();
        search(&job, report);
        if (report->after < report->before) memcpy(s, job.best, (size_t)p->n_channels * sizeof *s);
    }
    job_clear(&job);
    return status;
}
