/* How long a job takes, told before it does it: so much work of each kind, times what probe.c found it to cost. The
 * progress bar moves by the same costs. All in nanoseconds of the team. */
#include "engine/pipeline.h"

double forecast_pass(const double costs[CALIB_KINDS], const llmq_calib_work *work) {
    double cost = 0;
    for (int k = 0; k < CALIB_KINDS; k++) cost += work->of[k] * costs[k];
    return cost;
}

double forecast_search(const pipeline *p, double work) {
    return work * p->costs.search;
}

double forecast_errors(const pipeline *p, double work) {
    return work * p->costs.errors;
}

/* ---- the layers */

typedef struct layer_range {
    size_t first, last; /* entries */
} layer_range;

static bool reads_site(const pipeline *p, size_t i, llmq_site_id site) {
    return arch_rule(p->model->arch, p->ex->entries[i].role)->site == site;
}

static bool site_is_solved(const pipeline *p, layer_range range, llmq_site_id site) {
    for (size_t i = range.first; i < range.last; i++)
        if (reads_site(p, i, site) && pipeline_is_solved(p, i)) return true;
    return false;
}

/* n_tok tokens on their way to a site. */
static double site_cost(const pipeline *p, layer_range range, llmq_site_id site, int64_t n_tok, const double *costs,
                        double *gram_out) {
    bool gram = site < SITE_COUNT && site_is_solved(p, range, site);
    llmq_calib_work work = calib_site_work(&p->model->hp, p->calib.ctx, site, gram);
    *gram_out = (double)n_tok * work.of[CALIB_GRAM] * costs[CALIB_GRAM];
    return (double)n_tok * forecast_pass(costs, &work);
}

/* The same added to stages, for the passes of the calibration itself. */
static void add_site(const pipeline *p, layer_range range, llmq_site_id site, double *stages) {
    double gram, all = site_cost(p, range, site, p->calib.n_windows * p->calib.ctx, p->costs.pass, &gram);
    stages[LLMQ_STAGE_GRAM] += gram;
    stages[LLMQ_STAGE_CALIBRATION] += all - gram;
}

/* AWQ: some tokens once more, then the search. */
static double scales_cost(const pipeline *p, layer_range range, llmq_site_id site) {
    int64_t rows = 0, cols = calib_site_cols(&p->model->hp, site);
    for (size_t i = range.first; i < range.last; i++)
        if (reads_site(p, i, site) && pipeline_is_solved(p, i))
            rows += transform_sample_rows(tensor_rows(&p->ex->tensors[i]));
    double gram, searching = 0;
    double passing = site_cost(p, range, site, transform_tokens(&p->calib), p->costs.dense_pass, &gram);
    if (rows && p->model->arch->folds[site].into != ROLE_COUNT)
        searching = forecast_search(p, transform_search_work(rows, cols, p->method->needs_gram, team_size(p->team)));
    return passing + searching;
}

static void add_layer(const pipeline *p, int layer, layer_range range, double *stages) {
    for (int site = 0; pipeline_calibrates(p) && site < SITE_COUNT; site++) {
        add_site(p, range, (llmq_site_id)site, stages);
        if (p->params->awq) stages[LLMQ_STAGE_SOLVE] += scales_cost(p, range, (llmq_site_id)site);
    }
    if (pipeline_calibrates(p) && layer + 1 < (int)p->model->hp.n_layer) add_site(p, range, SITE_COUNT, stages);
}

double forecast_layers(const pipeline *p, double stages[LLMQ_STAGE_COUNT]) {
    double sum = 0, unused[LLMQ_STAGE_COUNT];
    if (!stages) stages = unused;
    for (int s = 0; s < LLMQ_STAGE_COUNT; s++) stages[s] = 0;
    for (size_t i = 0; i < p->ex->n; i++)
        stages[pipeline_is_solved(p, i) ? LLMQ_STAGE_SOLVE : LLMQ_STAGE_WRITE] += p->costs.tensor[i];
    for (size_t i = 0, last; i < p->ex->n; i = last) {
        int layer = p->ex->entries[i].layer;
        for (last = i + 1; last < p->ex->n && p->ex->entries[last].layer == layer;) last++;
        if (layer >= 0) add_layer(p, layer, (layer_range){i, last}, stages);
    }
    for (int s = 0; s < LLMQ_STAGE_COUNT; s++) sum += stages[s];
    return sum;
}

/* ---- what comes before them */

double forecast_choice(const pipeline *p) {
    llmq_calib_work work = sensitivity_work(p->model, &p->calib);
    double errors = 0;
    for (size_t i = 0; i < p->ex->n; i++)
        if (p->ex->entries[i].matrix) errors += sensitivity_error_work(p->ex, i);
    return forecast_pass(p->costs.dense_pass, &work) + forecast_errors(p, errors);
}

double forecast_self(const pipeline *p) {
    return p->self_tokens > 0 ? p->costs.self_open + (double)p->self_tokens * p->costs.self_token : 0;
}

double forecast_source(const pipeline *p) {
    return (double)p->model->source->file_bytes * p->costs.source_byte;
}

llmq_status forecast_tuning(pipeline *p, llmq_err *err) {
    llmq_tune_job job = pipeline_tune_job(p);
    p->costs.tune = p->params->tune ? 60e9 * p->params->tune_minutes : 0;
    if (!p->params->tune || p->params->tune_minutes > 0) return LLMQ_OK;
    return p->tuner->cost(&job, p->costs.dense_pass[CALIB_WEIGHTS], &p->costs.tune, err);
}
