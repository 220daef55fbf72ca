/* SmoothQuant, with the exponent of each site chosen by what its outputs lose on a sample (quant/int8_site.h). */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "quant/int8_site.h"

#define ALPHA_STEPS 20
#define COARSE 4          /* the grid is searched in so many steps at first, then around the best */
#define SCALE_MAX 10000.0 /* about a geometric mean of one */

typedef struct smooth_job {
    const int8_problem *p;
    int8_trial *t;
    float *x, *w, *s, *best; /* [n_channels] magnitudes of inputs, largest weights, scales */
    double limit;            /* of the scales that were measured last */
} smooth_job;

static int64_t channel_of(const int8_problem *p, int64_t c) {
    return p->site.channel ? p->site.channel[c] : c;
}

static void read_weights(smooth_job *job) {
    const llmq_site_problem *site = &job->p->site;
    for (int64_t c = 0; c < site->cols; c++) {
        int64_t k = channel_of(job->p, c);
        for (int i = 0; i < site->n_matrices; i++)
            for (int64_t r = 0; r < site->matrices[i].n_rows; r++)
                job->w[k] = fmaxf(job->w[k], fabsf(site->matrices[i].w[r * site->cols + c]));
    }
}

static void read_inputs(smooth_job *job, const float *magnitude) {
    memset(job->x, 0, (size_t)job->p->site.n_channels * sizeof *job->x);
    for (int64_t c = 0; c < job->p->site.cols; c++) {
        int64_t k = channel_of(job->p, c);
        job->x[k] = fmaxf(job->x[k], magnitude[c]);
    }
}

static bool is_live(const smooth_job *job, int64_t k) {
    return job->x[k] > 0 && job->w[k] > 0 && isfinite(job->x[k]) && isfinite(job->w[k]);
}

static void candidate(smooth_job *job, double alpha) {
    double mean = 0;
    int64_t n = job->p->site.n_channels, live = 0;
    for (int64_t k = 0; k < n; k++) {
        if (!is_live(job, k)) continue;
        job->s[k] = (float)(alpha * log((double)job->x[k]) - (1 - alpha) * log((double)job->w[k]));
        mean += (double)job->s[k];
        live++;
    }
    mean = live ? mean / (double)live : 0;
    for (int64_t k = 0; k < n; k++)
        job->s[k] = is_live(job, k) ? (float)fmin(fmax(exp((double)job->s[k] - mean), 1 / SCALE_MAX), SCALE_MAX) : 1;
}

static double limit_of(const smooth_job *job, const float *s) {
    const float *cut = job->p->cut ? job->p->cut : job->p->most;
    float most = 0;
    for (int64_t c = 0; c < job->p->site.cols; c++) most = fmaxf(most, cut[c] / (s ? s[channel_of(job->p, c)] : 1));
    return (double)most;
}

/* The least error in symmetric ranges that cut off more or less, or in each token's own, of inputs over s. */
static llmq_status measure(smooth_job *job, const float *s, double *error_out, llmq_err *err) {
    static const double kept[] = {1.5, 1, 0.7, 0.5, 0.3}; /* of those that int8_observers_choose tries */
    *error_out = INFINITY;
    job->limit = limit_of(job, s);
    int8_trial_scale(job->t, s);
    if (!job->p->fixed) return int8_trial_error(job->t, (llmq_act_range){0}, error_out, err);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        double error;
        LLMQ_TRY(int8_trial_error(job->t, int8_range_of(kept[i] * job->limit), &error, err));
        if (error < *error_out) *error_out = error;
    }
    return LLMQ_OK;
}

/* of: the best so far with this kind of magnitude. */
static llmq_status try_alpha(smooth_job *job, int step, int8_smooth_report *of, int8_smooth_report *best,
                             llmq_err *err) {
    double error;
    candidate(job, (double)step / ALPHA_STEPS);
    LLMQ_TRY(measure(job, job->s, &error, err));
    if (!(error < of->after)) return LLMQ_OK;
    of->after = error;
    of->alpha = (double)step / ALPHA_STEPS;
    of->limit = job->limit;
    if (!(error < best->after)) return LLMQ_OK;
    *best = *of;
    memcpy(job->best, job->s, (size_t)job->p->site.n_channels * sizeof *job->s);
    return LLMQ_OK;
}

static llmq_status search(smooth_job *job, int8_smooth_report *best, llmq_err *err) {
    int8_smooth_report of = {.before = best->before, .after = best->before};
    for (int step = COARSE; step < ALPHA_STEPS; step += COARSE) LLMQ_TRY(try_alpha(job, step, &of, best, err));
    if (!(of.alpha > 0)) return LLMQ_OK;
    int centre = (int)lrint(of.alpha * ALPHA_STEPS);
    for (int step = centre - COARSE + 1; step < centre + COARSE; step++)
        if (step != centre && step > 0 && step <= ALPHA_STEPS) LLMQ_TRY(try_alpha(job, step, &of, best, err));
    return LLMQ_OK;
}

/* By each kind of magnitude; the best one's scales are in best. */
static llmq_status search_all(smooth_job *job, int8_smooth_report *report, llmq_err *err) {
    const float *magnitudes[] = {job->p->most, job->p->cut, job->p->rms};
    read_weights(job);
    LLMQ_TRY(measure(job, NULL, &report->before, err));
    report->after = report->before;
    report->limit = job->limit;
    for (size_t i = 0; i < sizeof magnitudes / sizeof *magnitudes; i++) {
        if (!magnitudes[i]) continue;
        read_inputs(job, magnitudes[i]);
        LLMQ_TRY(search(job, report, err));
    }
    return LLMQ_OK;
}

llmq_status smooth_scales(const int8_problem *p, int8_trial *t, float *s, int8_smooth_report *report, llmq_err *err) {
    size_t n = (size_t)p->site.n_channels;
    smooth_job job = {.p = p,
                      .t = t,
                      .x = mem_zalloc(n, sizeof(float)),
                      .w = mem_zalloc(n, sizeof(float)),
                      .s = mem_alloc(n, sizeof(float)),
                      .best = mem_alloc(n, sizeof(float))};
    llmq_status status = LLMQ_OK;
    *report = (int8_smooth_report){0};
    for (size_t k = 0; k < n; k++) s[k] = 1;
    if (!job.x || !job.w || !job.s || !job.best)
        status = mem_error(err, n * sizeof *s, "the search for smoothing");
    else
        status = search_all(&job, report, err);
    if (status == LLMQ_OK && report->alpha > 0) memcpy(s, job.best, n * sizeof *s);
    if (status == LLMQ_OK) int8_trial_scale(t, s);
    mem_free(job.x);
    mem_free(job.w);
    mem_free(job.s);
    mem_free(job.best);
    return status;
}
