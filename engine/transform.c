#include "engine/transform.h"

#include <string.h>

#include "engine/site.h"

#define TRANSFORM_TOKENS 8192 /* that scales are found on: they are fewer numbers than weights */
#define SEARCH_STEPS 18       /* candidates tried, about */
#define SAMPLE_ROWS 64        /* of each matrix, that candidates are measured on */

/* ---- scales ---- */

llmq_status scales_channels(const llmq_model *model, llmq_site_id site, int64_t *n_out, int32_t **channel_out,
                            llmq_err *err) {
    const llmq_hparams *hp = &model->hp;
    *n_out = calib_site_cols(hp, site);
    *channel_out = NULL;
    if (!model->arch->folds[site].heads || hp->n_head == hp->n_head_kv) return LLMQ_OK;
    int64_t cols = *n_out, group = hp->n_head / hp->n_head_kv;
    int32_t *channel = mem_alloc((size_t)cols, sizeof *channel);
    if (!channel) return mem_error(err, (size_t)cols * sizeof *channel, "a table of channels");
    for (int64_t c = 0; c < cols; c++)
        channel[c] = (int32_t)(c / hp->head_dim / group * hp->head_dim + c % hp->head_dim);
    *n_out = hp->n_head_kv * hp->head_dim;
    *channel_out = channel;
    return LLMQ_OK;
}

bool scales_touch(const llmq_model *model, const llmq_layer_scales *scales, llmq_role role) {
    llmq_site_id in = site_of_role(model, role), out = arch_fold_site(model->arch, role);
    return (in != SITE_NONE && scales->s[in]) || (out != SITE_NONE && scales->s[out]);
}

static void scale_columns(const llmq_model *model, llmq_site_id site, const float *s, int64_t rows, int64_t cols,
                          float *values) {
    const llmq_hparams *hp = &model->hp;
    int64_t dim = hp->head_dim, group = model->arch->folds[site].heads ? hp->n_head / hp->n_head_kv : 1;
    for (int64_t r = 0; r < rows; r++) {
        float *row = values + r * cols;
        if (group == 1)
            for (int64_t c = 0; c < cols; c++) row[c] *= s[c];
        else
            for (int64_t c = 0; c < cols; c++) row[c] *= s[c / dim / group * dim + c % dim];
    }
}

void scales_apply(const llmq_model *model, const llmq_layer_scales *scales, llmq_role role, int64_t rows, int64_t cols,
                  float *values) {
    llmq_site_id in = site_of_role(model, role), out = arch_fold_site(model->arch, role);
    if (in != SITE_NONE && scales->s[in]) scale_columns(model, in, scales->s[in], rows, cols, values);
    if (out == SITE_NONE || !scales->s[out]) return;
    bool matrix = arch_role_is_matrix(role);
    for (int64_t i = 0; i < rows * cols; i++) values[i] /= scales->s[out][matrix ? i / cols : i];
}

/* ---- the job's ---- */

struct llmq_transform {
    llmq_transform_params params;
    const llmq_layer_scales *given; /* [n_layer] scales that were found before; else NULL, and: */
    llmq_calib part;                /* evenly spaced windows of the calibration's */
    llmq_calib_run *run;            /* of those, one layer at a time */
    llmq_layer_scales scales;
    float *vec[ROLE_COUNT];        /* changed gains and biases */
    llmq_weight ready[ROLE_COUNT]; /* full-precision weights on their way through a pass */
};

int64_t transform_tokens(const llmq_calib *calib) {
    int64_t most = TRANSFORM_TOKENS / calib->ctx > 0 ? TRANSFORM_TOKENS / calib->ctx : 1;
    return (calib->n_windows < most ? calib->n_windows : most) * calib->ctx;
}

int64_t transform_sample_rows(int64_t rows) {
    return rows < SAMPLE_ROWS ? rows : SAMPLE_ROWS;
}

/* Each candidate fits every sampled weight and multiplies its error with half of the Gram matrix; where feedback
 * follows, that is factored once. */
double transform_search_work(int64_t rows, int64_t cols, bool feedback, int n_workers) {
    int64_t share = (rows + AWQ_CHUNK - 1) / AWQ_CHUNK; /* that workers take whole */
    share = (share + n_workers - 1) / n_workers * AWQ_CHUNK;
    double n = (double)cols, factor = feedback ? (8 + n / 6 * WORK_MAC) * n * n / n_workers : 0;
    return SEARCH_STEPS * (double)share * n * (WORK_FIT + n / 2 * WORK_MAC) + factor;
}

/* Window of the calibration that is window i of the part. */
static int64_t part_window(const llmq_transform *t, int64_t i) {
    return i * t->params.calib->n_windows / t->part.n_windows;
}

llmq_status transform_create_given(const llmq_transform_params *params, const llmq_layer_scales *layers,
                                   llmq_transform **out, llmq_err *err) {
    llmq_transform *t = *out = mem_zalloc(1, sizeof *t);
    if (!t) return mem_error(err, sizeof *t, "a transform");
    t->params = *params;
    t->given = layers;
    return LLMQ_OK;
}

llmq_status transform_create(const llmq_transform_params *params, llmq_transform **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_calib *calib = params->calib;
    llmq_transform *t = mem_zalloc(1, sizeof *t);
    if (!t) return mem_error(err, sizeof *t, "a transform");
    t->params = *params;
    t->part = (llmq_calib){.ctx = calib->ctx, .n_windows = transform_tokens(calib) / calib->ctx};
    t->part.tokens = mem_alloc((size_t)transform_tokens(calib), sizeof *t->part.tokens);
    if (!t->part.tokens) LLMQ_TRY_GOTO(mem_error(err, (size_t)transform_tokens(calib) * 4, "a transform"));
    for (int64_t i = 0; i < t->part.n_windows; i++)
        memcpy(t->part.tokens + i * calib->ctx, calib->tokens + part_window(t, i) * calib->ctx,
               (size_t)calib->ctx * sizeof *calib->tokens);
    LLMQ_TRY_GOTO(calib_run_create_in(&params->memory, params->model, &t->part, params->team, params->tick,
                                      params->user, &t->run, err));
    calib_run_statistics(t->run, 0, params->q8);
    *out = t;
done:
    if (status != LLMQ_OK) transform_destroy(t);
    return status;
}

static void forget_layer(llmq_transform *t) {
    for (int site = 0; site < SITE_COUNT; site++) {
        mem_free(t->scales.s[site]);
        t->scales.s[site] = NULL;
    }
    for (int role = 0; role < ROLE_COUNT; role++) {
        mem_free(t->vec[role]);
        t->vec[role] = NULL;
    }
}

void transform_destroy(llmq_transform *t) {
    if (!t) return;
    forget_layer(t);
    site_release(t->params.model, t->ready);
    calib_run_destroy(t->run);
    mem_free(t->part.tokens);
    mem_free(t);
}

const llmq_layer_scales *transform_scales(const llmq_transform *t) {
    return &t->scales;
}
const float *transform_vector(const llmq_transform *t, llmq_role role) {
    return t->vec[role];
}

/* ---- a site ---- */

typedef struct layer_range {
    size_t first, last; /* entries of ex */
} layer_range;

static llmq_status find_scales(llmq_transform *t, layer_range range, llmq_site_id site, const float *gram,
                               int64_t n_tokens, llmq_site_report *report, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_transform_params *params = &t->params;
    llmq_site_matrix matrices[ROLE_COUNT];
    float *samples[ROLE_COUNT];
    int32_t *channel = NULL;
    int64_t n_rows = 0;
    llmq_site_problem problem = {.matrices = matrices,
                                 .cols = calib_site_cols(&params->model->hp, site),
                                 .gram = gram,
                                 .n_tokens = n_tokens,
                                 .feedback = params->feedback,
                                 .damp = params->damp,
                                 .ops = params->model->ops,
                                 .team = params->team};
    for (size_t i = range.first; i < range.last; i++) {
        const llmq_tensor *src = params->ex->entries[i].src;
        const llmq_type_info *grid = params->grid(params->user, i);
        if (site_of_role(params->model, params->ex->entries[i].role) != site || !grid) continue;
        int k = problem.n_matrices++;
        int64_t n = transform_sample_rows(tensor_rows(src));
        LLMQ_TRY_GOTO(site_sample_rows(params->model, src, n, params->team, &samples[k], err));
        matrices[k] = (llmq_site_matrix){.w = samples[k], .n_rows = n, .type = grid};
        n_rows += n;
    }
    LLMQ_TRY_GOTO(scales_channels(params->model, site, &problem.n_channels, &channel, err));
    problem.channel = channel;
    t->scales.s[site] = mem_alloc((size_t)problem.n_channels, sizeof(float));
    if (!t->scales.s[site])
        LLMQ_TRY_GOTO(mem_error(err, (size_t)problem.n_channels * sizeof(float), "the scales of a site"));
    LLMQ_TRY_GOTO(awq_scales(&problem, t->scales.s[site], report, err));
    if (!(report->after < report->before)) {
        mem_free(t->scales.s[site]);
        t->scales.s[site] = NULL;
    }
    if (!params->tick_search(params->user,
                             transform_search_work(n_rows, problem.cols, params->feedback, team_size(params->team))))
        LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped"));
done:
    for (int i = 0; i < problem.n_matrices; i++) mem_free(samples[i]);
    mem_free(channel);
    return status;
}

/* ---- a layer ---- */

/* Either the weights of a site that tokens pass, or samples of its matrices with errors and products as large. */
size_t transform_layer_bytes(const llmq_export *ex, size_t first, size_t last) {
    size_t most = 0;
    for (int site = 0; site < SITE_COUNT; site++) {
        size_t weights = 0, samples = 0;
        for (size_t i = first; i < last; i++) {
            const llmq_tensor *t = &ex->tensors[i];
            if (site_of_role(ex->model, ex->entries[i].role) != (llmq_site_id)site) continue;
            size_t rows = (size_t)transform_sample_rows(tensor_rows(t));
            weights += (size_t)tensor_numel(t) * 2;
            samples += 3 * rows * (size_t)tensor_cols(t) * sizeof(float);
        }
        most = weights > most ? weights : most;
        most = samples > most ? samples : most;
    }
    return most;
}

static llmq_status change_vectors(llmq_transform *t, layer_range range, llmq_err *err) {
    const llmq_transform_params *params = &t->params;
    for (size_t i = range.first; i < range.last; i++) {
        const llmq_export_entry *entry = &params->ex->entries[i];
        if (entry->matrix || !scales_touch(params->model, &t->scales, entry->role)) continue;
        int64_t n = tensor_numel(entry->src);
        float *v = t->vec[entry->role] = mem_alloc((size_t)n, sizeof *v);
        if (!v) return mem_error(err, (size_t)n * sizeof *v, entry->src->name);
        LLMQ_TRY(source_load(params->model->source, entry->src, false, err));
        type_to_f32(entry->src->type, entry->src->data, v, n);
        scales_apply(params->model, &t->scales, entry->role, 1, n, v);
    }
    return LLMQ_OK;
}

static llmq_status take_given(llmq_transform *t, int layer, llmq_err *err) {
    for (int site = 0; site < SITE_COUNT; site++) {
        const float *s = t->given[layer].s[site];
        int64_t n;
        int32_t *channel;
        if (!s) continue;
        LLMQ_TRY(scales_channels(t->params.model, (llmq_site_id)site, &n, &channel, err));
        mem_free(channel);
        t->scales.s[site] = mem_alloc((size_t)n, sizeof *s);
        if (!t->scales.s[site]) return mem_error(err, (size_t)n * sizeof *s, "the scales of a site");
        memcpy(t->scales.s[site], s, (size_t)n * sizeof *s);
    }
    return LLMQ_OK;
}

llmq_status transform_layer(llmq_transform *t, const llmq_calib_run *run, int layer, size_t first, size_t last,
                            float *gram, llmq_site_report *reports, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_transform_params *params = &t->params;
    layer_range range = {first, last};
    forget_layer(t);
    memset(reports, 0, SITE_COUNT * sizeof *reports);
    if (t->given) {
        LLMQ_TRY(take_given(t, layer, err));
        return change_vectors(t, range, err);
    }
    for (int64_t i = 0; i < t->part.n_windows; i++) calib_run_copy_window(t->run, i, run, part_window(t, i));
    LLMQ_TRY(calib_run_layer(t->run, layer, err));
    for (int site = 0; site < SITE_COUNT; site++) {
        int64_t n_tokens;
        bool wanted = site_may_scale(params->ex, first, last, (llmq_site_id)site, params->grid, params->user);
        LLMQ_TRY_GOTO(calib_run_site(t->run, (llmq_site_id)site, wanted ? gram : NULL, &n_tokens, err));
        site_release(params->model, t->ready);
        if (wanted) LLMQ_TRY_GOTO(find_scales(t, range, (llmq_site_id)site, gram, n_tokens, &reports[site], err));
        if (site != SITE_DOWN)
            LLMQ_TRY_GOTO(site_prepare(params->model, layer, (llmq_site_id)site, t->run, t->ready, params->team, err));
        mem_note_peak();
    }
    LLMQ_TRY_GOTO(change_vectors(t, range, err));
done:
    site_release(params->model, t->ready);
    return status;
}
