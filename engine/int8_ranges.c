#include "engine/int8_ranges.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/site.h"
#include "quant/int8_site.h"

#define RANGE_TOKENS 16384            /* at least, as far as there are so many; more, */
#define RANGE_BYTES ((size_t)1 << 30) /* up to all, as long as what a run keeps of them takes no more */
#define OBSERVED_SLABS 64             /* of tokens that observers of shapes look at; all count for channels and ends */
#define EVEN_TOKENS 384               /* of a trial, */
#define LARGEST_TOKENS 16             /* and those with the largest numbers */
#define SAMPLE_ROWS 128               /* of each matrix */
#define TRIALS_SMOOTH 33 /* about, of scales; in fixed ranges five of each, and as many with a scale for each token */
#define TRIALS_RANGE 23
#define SLAB 64 /* tokens made floats at a time */

/* Above this error a site is a candidate for being kept, if a scale for each token is at least so much better. */
#define KEEP_ERROR 0.0001
#define KEEP_GAIN 2.0

static const char *const site_names[SITE_COUNT] = {
    [SITE_QKV] = "qkv", [SITE_O] = "o", [SITE_GATE_UP] = "gate_up", [SITE_DOWN] = "down"};

/* ---- the result */

llmq_status int8_ranges_create(size_t n_layer, int8_ranges **out, llmq_err *err) {
    int8_ranges *r = *out = mem_zalloc(1, sizeof *r);
    if (!r) return mem_error(err, sizeof *r, "ranges of inputs");
    r->n_layer = n_layer;
    r->inputs = mem_zalloc(n_layer * SITE_COUNT, sizeof *r->inputs);
    r->range = mem_zalloc(n_layer * SITE_COUNT, sizeof *r->range);
    r->scales = mem_zalloc(n_layer, sizeof *r->scales);
    r->token = mem_zalloc(n_layer, sizeof *r->token);
    if (!r->inputs || !r->range || !r->scales || !r->token)
        return mem_error(err, n_layer * SITE_COUNT * sizeof *r->inputs, "ranges of inputs");
    for (size_t i = 0; i < n_layer * SITE_COUNT; i++)
        r->inputs[i] = (llmq_quant_input){
            .layer = (int)(i / SITE_COUNT), .site = site_names[i % SITE_COUNT], .kept = true, .error = -1};
    return LLMQ_OK;
}

void int8_ranges_destroy(int8_ranges *r) {
    if (!r) return;
    for (size_t l = 0; r->scales && r->token && l < r->n_layer; l++)
        for (int site = 0; site < SITE_COUNT; site++) mem_free(r->scales[l].s[site]), mem_free(r->token[l].s[site]);
    mem_free(r->inputs);
    mem_free(r->range);
    mem_free(r->scales);
    mem_free(r->token);
    mem_free(r);
}

/* ---- a site's inputs */

typedef struct finder {
    const int8_ranges_job *job;
    int8_ranges *r;
    llmq_calib part; /* evenly spaced windows of the calibration's */
    llmq_calib_run *run;
    llmq_weight ready[ROLE_COUNT];
    int8_channels *channels; /* of the site */
    llmq_site_id site;
    int64_t n_tok, cols;
    float *largest;     /* [tokens] magnitude; < 0: left out */
    float *cut, *rms;   /* [widest] where each input is best cut off; its root mean square */
    float *x, *weight;  /* (sampled tokens, cols) and of their errors */
    float *slab;        /* (SLAB, cols) */
    float *slab_weight; /* [SLAB] */
    const uint8_t *bad; /* [tokens] */
} finder;

static bool adds_to_stream(llmq_site_id site) {
    return site == SITE_O || site == SITE_DOWN;
}

/* What an error of the token's outputs counts: what is added to the residual stream is measured by that, as the norms
 * behind it do; a norm's own output as it is. */
static float weight_of(const finder *f, int64_t token) {
    if (f->bad[token]) return 0;
    if (!adds_to_stream(f->site)) return 1;
    int64_t n = f->job->model->hp.n_embd;
    const float *h = calib_run_hidden(f->run) + token * n;
    double sum = 0;
    for (int64_t c = 0; c < n; c++) sum += (double)h[c] * (double)h[c];
    return sum > 0 ? (float)(1 / sum) : 0;
}

/* A worker's share of the slab: the rows become floats. Then each row's largest, or its weight. */
static void fill_slab(const llmq_worker *w, finder *f, int64_t first, int64_t n, bool weigh) {
    int64_t begin, end;
    worker_range(w, n, 1, &begin, &end);
    if (end > begin) calib_run_inputs(f->run, f->site, first + begin, end - begin, f->slab + begin * f->cols);
    for (int64_t t = begin; t < end && weigh; t++) f->slab_weight[t] = weight_of(f, first + t);
    for (int64_t t = begin; t < end && !weigh; t++) {
        float largest = 0;
        for (int64_t c = 0; c < f->cols; c++) {
            float x = fabsf(f->slab[t * f->cols + c]);
            largest = x > largest ? x : largest;
        }
        f->largest[first + t] = f->bad[first + t] ? -1 : largest;
    }
}

/* All tokens twice: for the ends of channels, then for their histograms. Workers share the rows of a slab, then its
 * columns. */
static void look_worker(const llmq_worker *w, void *arg) {
    finder *f = arg;
    int64_t begin, end;
    worker_range(w, f->cols, 1, &begin, &end);
    for (int counts = 0; counts < 2; counts++)
        for (int64_t t = 0; t < f->n_tok; t += SLAB) {
            int64_t n = f->n_tok - t < SLAB ? f->n_tok - t : SLAB;
            fill_slab(w, f, t, n, counts);
            worker_barrier(w);
            if (counts)
                int8_channels_count(f->channels, f->slab, f->slab_weight, n, begin, end);
            else
                int8_channels_find_ends(f->channels, f->slab, n, begin, end);
            worker_barrier(w);
        }
}

/* Tokens for trials: evenly spaced, the place within a step going round so that no position of windows is preferred;
 * then those with the largest numbers. Returns how many are evenly spaced. */
static int64_t sample_tokens(const finder *f, int64_t *token, int64_t *n_out) {
    int64_t n = f->n_tok < EVEN_TOKENS ? f->n_tok : EVEN_TOKENS, step = f->n_tok / n;
    for (int64_t i = 0; i < n; i++) token[i] = i * f->n_tok / n + i * 37 % step;
    *n_out = n;
    for (int k = 0; k < LARGEST_TOKENS; k++) {
        int64_t best = -1;
        for (int64_t t = 0; t < f->n_tok; t++) {
            bool taken = false;
            for (int64_t i = n; i < *n_out; i++) taken = taken || token[i] == t;
            if (!taken && f->largest[t] >= 0 && (best < 0 || f->largest[t] > f->largest[best])) best = t;
        }
        if (best >= 0) token[(*n_out)++] = best;
    }
    return n;
}

/* ---- a site */

static void scale_row(const int8_problem *p, const float *s, float *x) {
    for (int64_t c = 0; c < p->site.cols; c++) x[c] /= s[p->site.channel ? p->site.channel[c] : c];
}

/* Ends from what the channels hold, shapes from some slabs. */
static llmq_status observe(finder *f, const int8_problem *p, const float *s, int8_observers *o, llmq_err *err) {
    const float *ends[] = {int8_channels_low(f->channels), int8_channels_high(f->channels)};
    int64_t n_slabs = (f->n_tok + SLAB - 1) / SLAB, n_seen = n_slabs < OBSERVED_SLABS ? n_slabs : OBSERVED_SLABS;
    for (int i = 0; i < 2; i++) {
        memcpy(f->slab, ends[i], (size_t)f->cols * sizeof *f->slab);
        scale_row(p, s, f->slab);
        LLMQ_TRY(int8_observers_add(o, f->slab, f->cols, false, err));
    }
    for (int64_t k = 0; k < n_seen; k++) {
        int64_t t = k * n_slabs / n_seen * SLAB, n = f->n_tok - t < SLAB ? f->n_tok - t : SLAB;
        calib_run_inputs(f->run, f->site, t, n, f->slab);
        for (int64_t i = 0; i < n; i++) scale_row(p, s, f->slab + i * f->cols);
        LLMQ_TRY(int8_observers_add(o, f->slab, n * f->cols, true, err));
    }
    return LLMQ_OK;
}

/* What a site in a fixed range would lose with a scale for each token instead, and its scales then, which are others.
 */
static llmq_status find_token_scales(const int8_problem *p, int8_trial *t, float *s, llmq_quant_input *in,
                                     llmq_err *err) {
    int8_problem own = *p;
    int8_smooth_report smooth;
    own.fixed = false;
    LLMQ_TRY(smooth_scales(&own, t, s, &smooth, err));
    in->token_error = smooth.after;
    in->token_alpha = smooth.alpha;
    return LLMQ_OK;
}

static double largest_of(const float *x, int64_t n) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, x[i]);
    return (double)most;
}

/* With everything about the site at hand. */
static llmq_status find_range(finder *f, const int8_problem *p, bool may_scale, float *s, float *token_s,
                              llmq_quant_input *in, llmq_act_range *range, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    int8_trial *t = NULL;
    int8_observers *o = NULL;
    int8_smooth_report smooth = {0};
    int8_range_report best;
    LLMQ_TRY_GOTO(int8_trial_create(p, &t, err));
    if (f->job->smooth && may_scale)
        LLMQ_TRY_GOTO(smooth_scales(p, t, s, &smooth, err));
    else
        int8_trial_scale(t, NULL), smooth.limit = largest_of(p->cut, p->site.cols);
    LLMQ_TRY_GOTO(int8_trial_error(t, (llmq_act_range){0}, &in->token_error, err));
    in->alpha = smooth.alpha;
    in->plain_error = smooth.alpha > 0 ? smooth.before : in->token_error;
    in->error = in->token_error;
    in->kept = false;
    if (!f->job->fixed) goto done;
    LLMQ_TRY_GOTO(int8_observers_create(&o, err));
    LLMQ_TRY_GOTO(observe(f, p, s, o, err));
    LLMQ_TRY_GOTO(int8_observers_choose(o, t, smooth.limit, &best, err));
    *range = best.range;
    in->min = best.min;
    in->max = best.max;
    in->scale = best.range.scale;
    in->zero = best.range.zero;
    in->observer = best.observer;
    in->error = best.error;
    if (!(smooth.alpha > 0)) in->plain_error = best.error;
    in->kept = !isfinite(best.error) || !best.observer;
    if (in->kept) snprintf(in->note, sizeof in->note, "its outputs could not be measured");
    if (!in->kept && f->job->smooth && may_scale) LLMQ_TRY_GOTO(find_token_scales(p, t, token_s, in, err));
done:
    int8_observers_destroy(o);
    int8_trial_destroy(t);
    return status;
}

static void keep_if(bool wanted, float **to, float **from) {
    if (!wanted) return;
    *to = *from;
    *from = NULL;
}

static llmq_status look(finder *f, int8_problem *p, llmq_err *err) {
    int8_channels_destroy(f->channels);
    f->channels = NULL;
    LLMQ_TRY(int8_channels_create(f->cols, &f->channels, err));
    team_run(f->job->team, look_worker, f);
    p->most = int8_channels_most(f->channels);
    p->cut = f->cut;
    p->rms = f->rms;
    int8_channels_cut(f->channels, f->cut);
    int8_channels_rms(f->channels, f->rms);
    return LLMQ_OK;
}

/* scale: of weights, for the rows that are not sampled. */
static void take_tokens(finder *f, const int64_t *token, int8_problem *p, double scale) {
    for (int64_t i = 0; i < p->n_tok; i++) {
        calib_run_inputs(f->run, f->site, token[i], 1, f->x + i * f->cols);
        f->weight[i] = (float)(scale * (double)weight_of(f, token[i]));
    }
    p->weight = adds_to_stream(f->site) ? f->weight : NULL;
}

/* The site's matrices that will be rounded, and tokens; then its range. */
static llmq_status find_site(finder *f, int layer, size_t first, size_t last, llmq_site_id site, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const int8_ranges_job *job = f->job;
    llmq_quant_input *in = &f->r->inputs[(size_t)layer * SITE_COUNT + (size_t)site];
    llmq_act_range *range = &f->r->range[(size_t)layer * SITE_COUNT + (size_t)site];
    llmq_site_matrix matrices[ROLE_COUNT];
    float *samples[ROLE_COUNT], *s = NULL, *token_s = NULL;
    int32_t *channel = NULL;
    int64_t token[EVEN_TOKENS + LARGEST_TOKENS], rows = 0;
    double all_rows = 0;
    int8_problem p = {.site = {.matrices = matrices, .cols = f->cols, .ops = job->model->ops, .team = job->team},
                      .x = f->x,
                      .fixed = job->fixed};
    for (size_t i = first; i < last; i++) {
        const llmq_tensor *src = job->ex->entries[i].src;
        const llmq_type_info *grid = job->grid(job->user, i);
        if (site_of_role(job->model, job->ex->entries[i].role) != site) continue;
        in->macs += tensor_numel(src);
        if (!grid) continue;
        int k = p.site.n_matrices++;
        int64_t n = int8_ranges_rows(tensor_rows(src));
        LLMQ_TRY_GOTO(site_sample_rows(job->model, src, n, job->team, &samples[k], err));
        matrices[k] = (llmq_site_matrix){.w = samples[k], .n_rows = n, .type = grid};
        rows += n;
        all_rows += (double)tensor_rows(src);
    }
    if (!p.site.n_matrices || f->cols % 32 || f->cols > INT8_MAX_COLS) {
        snprintf(in->note, sizeof in->note, "its matrices are kept as floats");
        goto done;
    }
    LLMQ_TRY_GOTO(look(f, &p, err));
    p.n_even = sample_tokens(f, token, &p.n_tok);
    take_tokens(f, token, &p, all_rows / (double)rows);
    LLMQ_TRY_GOTO(scales_channels(job->model, site, &p.site.n_channels, &channel, err));
    p.site.channel = channel;
    s = mem_alloc((size_t)p.site.n_channels, sizeof *s);
    token_s = mem_alloc((size_t)p.site.n_channels, sizeof *s);
    if (!s || !token_s) LLMQ_TRY_GOTO(mem_error(err, (size_t)p.site.n_channels * sizeof *s, "the scales of a site"));
    for (int64_t k = 0; k < p.site.n_channels; k++) s[k] = 1;
    bool may_scale = site_may_scale(job->ex, first, last, site, job->grid, job->user);
    LLMQ_TRY_GOTO(find_range(f, &p, may_scale, s, token_s, in, range, err));
    keep_if(in->alpha > 0, &f->r->scales[layer].s[site], &s);
    keep_if(in->token_alpha > 0, &f->r->token[layer].s[site], &token_s);
    double work = int8_ranges_work(rows, f->cols, f->n_tok, job->fixed, job->smooth, team_size(job->team));
    if (!job->tick_search(job->user, work)) LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped"));
done:
    for (int i = 0; i < p.site.n_matrices; i++) mem_free(samples[i]);
    mem_free(channel);
    mem_free(s);
    mem_free(token_s);
    return status;
}

/* ---- all of them */

/* The site's inputs are there, and for o and down the stream that their outputs were added to. */
static llmq_status find_after(finder *f, int layer, size_t first, size_t last, llmq_site_id site, llmq_err *err) {
    f->site = site;
    f->cols = calib_site_cols(&f->job->model->hp, site);
    return find_site(f, layer, first, last, site, err);
}

static llmq_status find_layer(finder *f, int layer, size_t first, size_t last, llmq_err *err) {
    int64_t n_tokens;
    LLMQ_TRY(calib_run_layer(f->run, layer, err));
    for (int site = 0; site <= SITE_COUNT; site++) {
        LLMQ_TRY(calib_run_site(f->run, (llmq_site_id)site, NULL, &n_tokens, err));
        site_release(f->job->model, f->ready);
        if (site == SITE_GATE_UP) LLMQ_TRY(find_after(f, layer, first, last, SITE_O, err));
        if (site == SITE_QKV || site == SITE_GATE_UP)
            LLMQ_TRY(find_after(f, layer, first, last, (llmq_site_id)site, err));
        if (site == SITE_COUNT) return find_after(f, layer, first, last, SITE_DOWN, err);
        LLMQ_TRY(site_prepare(f->job->model, layer, (llmq_site_id)site, f->run, f->ready, f->job->team, err));
        mem_note_peak();
    }
    return LLMQ_OK;
}

static void keep(int8_ranges *r, size_t at) {
    llmq_quant_input *in = &r->inputs[at];
    float **s = &r->scales[at / SITE_COUNT].s[at % SITE_COUNT], **token = &r->token[at / SITE_COUNT].s[at % SITE_COUNT];
    in->kept = true;
    snprintf(in->note, sizeof in->note,
             "outliers: an error of %.2g in the best range, %.2g with a scale for each token", in->error,
             in->token_error);
    mem_free(*s);
    *s = *token;
    *token = NULL;
    in->alpha = in->token_alpha;
}

/* The sites that lose most by a fixed range keep a scale for each token, as far as the share of the work that may be
 * kept allows. */
static void choose_kept(int8_ranges *r) {
    double all = 0, kept = 0;
    size_t n = r->n_layer * SITE_COUNT;
    for (size_t i = 0; i < n; i++) {
        all += (double)r->inputs[i].macs;
        kept += r->inputs[i].kept ? (double)r->inputs[i].macs : 0;
    }
    for (;;) {
        size_t worst = n;
        for (size_t i = 0; i < n; i++) {
            const llmq_quant_input *in = &r->inputs[i];
            if (in->kept || in->error < KEEP_ERROR || in->error < KEEP_GAIN * in->token_error ||
                kept + (double)in->macs > INT8_KEPT_SHARE * all)
                continue;
            if (worst == n || in->error - in->token_error > r->inputs[worst].error - r->inputs[worst].token_error)
                worst = i;
        }
        if (worst == n) break;
        keep(r, worst);
        kept += (double)r->inputs[worst].macs;
    }
    for (size_t i = 0; i < n; i++)
        if (r->inputs[i].kept) r->range[i] = (llmq_act_range){0};
}

static int64_t widest(const llmq_hparams *hp) {
    int64_t most = 0;
    for (int site = 0; site < SITE_COUNT; site++) {
        int64_t cols = calib_site_cols(hp, (llmq_site_id)site);
        most = cols > most ? cols : most;
    }
    return most;
}

int64_t int8_ranges_tokens(const llmq_hparams *hp, const llmq_calib *calib) {
    size_t of_token = (size_t)hp->n_embd * sizeof(float) + (size_t)widest(hp) * sizeof(uint16_t);
    int64_t most = (int64_t)(RANGE_BYTES / of_token);
    most = (most > RANGE_TOKENS ? most : RANGE_TOKENS) / calib->ctx;
    most = most > 0 ? most : 1;
    return (calib->n_windows < most ? calib->n_windows : most) * calib->ctx;
}

int64_t int8_ranges_rows(int64_t rows) {
    return rows < SAMPLE_ROWS ? rows : SAMPLE_ROWS;
}

/* Trials round the sampled rows and multiply the sampled tokens by them; every number of all tokens is looked at. */
double int8_ranges_work(int64_t rows, int64_t cols, int64_t n_tok, bool fixed, bool smooth, int n_workers) {
    double cells = (double)rows * (double)cols, seen = (double)n_tok * (double)cols;
    double trials = fixed ? TRIALS_RANGE + (smooth ? 6 * TRIALS_SMOOTH : 0) : 1 + (smooth ? TRIALS_SMOOTH : 0);
    double observed = fixed ? 12.0 * OBSERVED_SLABS * SLAB * (double)cols : 0;
    return (trials * cells * (3.0 + 0.02 * (EVEN_TOKENS + LARGEST_TOKENS)) + 5.0 * seen) / n_workers + observed;
}

size_t int8_ranges_bytes(const llmq_export *ex, const llmq_calib *calib) {
    const llmq_hparams *hp = &ex->model->hp;
    size_t cols = (size_t)widest(hp), tokens = (size_t)int8_ranges_tokens(hp, calib),
           sampled = EVEN_TOKENS + LARGEST_TOKENS, rows = 3 * SAMPLE_ROWS;
    return tokens * 2 * sizeof(float) + int8_channels_bytes((int64_t)cols) +
           (2 * sampled + SLAB + 2) * cols * sizeof(float) + rows * cols * (2 * sizeof(float) + 3) +
           2 * sampled * rows * sizeof(float) + sampled * cols + ((size_t)12 << 20);
}

static llmq_status create_buffers(finder *f, llmq_err *err) {
    const llmq_calib *calib = f->job->calib;
    size_t cols = (size_t)widest(&f->job->model->hp), ctx = (size_t)calib->ctx, sampled = EVEN_TOKENS + LARGEST_TOKENS;
    f->n_tok = int8_ranges_tokens(&f->job->model->hp, calib);
    f->part = (llmq_calib){.ctx = calib->ctx, .n_windows = f->n_tok / calib->ctx};
    f->part.tokens = mem_alloc((size_t)f->n_tok, sizeof *f->part.tokens);
    f->largest = mem_alloc((size_t)f->n_tok, sizeof *f->largest);
    f->cut = mem_alloc(cols, sizeof *f->cut);
    f->rms = mem_alloc(cols, sizeof *f->rms);
    f->x = mem_alloc(sampled * cols, sizeof *f->x);
    f->weight = mem_alloc(sampled + SLAB, sizeof *f->weight);
    f->slab = mem_alloc(SLAB * cols, sizeof *f->slab);
    if (!f->part.tokens || !f->largest || !f->cut || !f->rms || !f->x || !f->weight || !f->slab)
        return mem_error(err, (sampled + SLAB) * cols * sizeof *f->x, "inputs of the layers");
    f->slab_weight = f->weight + sampled;
    for (int64_t i = 0; i < f->part.n_windows; i++)
        memcpy(f->part.tokens + (size_t)i * ctx,
               calib->tokens + (size_t)(i * calib->n_windows / f->part.n_windows) * ctx, ctx * sizeof *calib->tokens);
    LLMQ_TRY(calib_run_create(f->job->model, &f->part, f->job->team, f->job->tick, f->job->user, &f->run, err));
    void *hidden, *bad;
    size_t hidden_bytes, bad_bytes;
    calib_run_state(f->run, &hidden, &hidden_bytes, &bad, &bad_bytes);
    f->bad = bad;
    return LLMQ_OK;
}

llmq_status int8_ranges_find(const int8_ranges_job *job, int8_ranges *r, llmq_err *err) {
    finder f = {.job = job, .r = r};
    llmq_status status = create_buffers(&f, err);
    for (size_t i = 0, last; i < job->ex->n && status == LLMQ_OK; i = last) {
        int layer = job->ex->entries[i].layer;
        for (last = i + 1; last < job->ex->n && job->ex->entries[last].layer == layer;) last++;
        if (layer < 0) continue;
        status = find_layer(&f, layer, i, last, err);
        for (size_t k = i; k < last; k++)
            if (job->ex->entries[k].src) source_release(job->model->source, job->ex->entries[k].src);
    }
    if (status == LLMQ_OK && job->fixed) choose_kept(r);
    site_release(job->model, f.ready);
    calib_run_destroy(f.run);
    int8_channels_destroy(f.channels);
    void *blocks[] = {f.part.tokens, f.largest, f.cut, f.rms, f.x, f.weight, f.slab};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    return status;
}
