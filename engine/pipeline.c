/* quantize: plan -> layer by layer: run, accumulate, solve, pack, write -> commit.
 *
 * A layer's matrices are solved in the order of the forward pass. Those that read the same input share one Gram matrix,
 * and every later input comes from weights that are quantized already, so errors that earlier layers made are seen and
 * partly made good by later ones. Memory holds the tokens' hidden states, one Gram matrix with its factor, and one
 * matrix in f32. */
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "engine/int8_ranges.h"
#include "engine/pipeline.h"
#include "engine/quant_report.h"
#include "report/report.h"

/* ---- progress ---- */

#define FORECAST_SHARE 0.1 /* of the work that the forecast counts for, against the pace so far */

/* The pace so far is the time that the work done took over the time that it should have taken. */
bool pipeline_advance(pipeline *p, double cost) {
    p->done += cost;
    if (!p->params->progress) return true;
    double took = time_seconds() - p->begun, expected = 1e-9 * (p->done - p->skipped),
           rest = 1e-9 * (p->total - p->done), prior = FORECAST_SHARE * 1e-9 * (p->total - p->skipped);
    double left = rest > 0 ? rest * (took + prior) / (expected + prior) : 0;
    return p->params->progress(p->params->user, p->done < p->total ? p->done : p->total, p->total, p->what, left);
}

/* What is to do from now on. */
static void expect(pipeline *p, double cost) {
    if (p->total == 0) p->begun = time_seconds();
    p->total = p->done + cost;
}

bool pipeline_tick(void *user, const llmq_calib_work *done) {
    pipeline *p = user;
    return pipeline_advance(p, forecast_pass(p->costs.pass, done));
}

bool pipeline_tick_dense(void *user, const llmq_calib_work *done) {
    pipeline *p = user;
    return pipeline_advance(p, forecast_pass(p->costs.dense_pass, done));
}

typedef struct write_tick {
    pipeline *p;
    size_t index;
} write_tick;

static bool tick_write(void *user, double share) {
    write_tick *t = user;
    return pipeline_advance(t->p, share * t->p->costs.tensor[t->index]);
}

/* The time since the last call went to this stage. */
static void end_stage(pipeline *p, llmq_quant_stage stage) {
    double now = time_seconds();
    p->result->stage_seconds[stage] += now - p->mark;
    p->mark = now;
}

/* ---- one matrix ---- */

typedef struct matrix_job {
    const llmq_export *ex;
    size_t index;
    const llmq_tensor *src;
    float *w; /* (rows, cols) in the source's order of rows */
    llmq_quantized *q;
    uint8_t *ready;       /* rows of what q means in the source's order: */
    llmq_type ready_type; /* blocks of q's levels, or bf16 */
    int64_t ready_bytes;  /* of a row */
    float *scratch;       /* (workers, cols) */
} matrix_job;

static void decode_worker(const llmq_worker *w, void *arg) {
    const matrix_job *job = arg;
    int64_t cols = tensor_cols(job->src), row_bytes = type_row_bytes(job->src->type, cols), begin, end;
    worker_range(w, tensor_rows(job->src), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        type_to_f32(job->src->type, (const uint8_t *)job->src->data + r * row_bytes, job->w + r * cols, cols);
}

/* The matrix as it is to be quantized. */
static llmq_status decode_matrix(const pipeline *p, matrix_job *job, llmq_err *err) {
    LLMQ_TRY(source_load(p->model->source, job->src, false, err));
    team_run(p->team, decode_worker, job);
    if (p->transform)
        scales_apply(p->model, transform_scales(p->transform), p->ex->entries[job->index].role, tensor_rows(job->src),
                     tensor_cols(job->src), job->w);
    return LLMQ_OK;
}

/* q as the forward pass reads it. */
static void ready_worker(const llmq_worker *w, void *arg) {
    const matrix_job *job = arg;
    int64_t cols = job->q->cols, begin, end;
    worker_range(w, job->q->rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        uint8_t *to = job->ready + r * job->ready_bytes;
        if (!job->scratch) {
            quantized_pack_row_as(job->q, r, type_info(job->ready_type), to);
            continue;
        }
        float *row = job->scratch + w->id * cols;
        quantized_row_to_f32(job->q, r, row);
        for (int64_t c = 0; c < cols; c++) ((uint16_t *)(void *)to)[c] = f32_to_bf16(row[c]);
    }
}

/* Packed blocks are multiplied by the kernels that inference uses, faster than bf16. */
static llmq_status keep_for_pass(pipeline *p, matrix_job *job, llmq_err *err) {
    llmq_role role = p->ex->entries[job->index].role;
    llmq_type type = job->ready_type = pipeline_pass_type(p, job->q->type);
    job->ready_bytes = type_row_bytes(type, job->q->cols);
    size_t bytes = (size_t)(job->q->rows * job->ready_bytes);
    if (type == LLMQ_TYPE_BF16) {
        job->scratch = mem_alloc((size_t)team_size(p->team) * (size_t)job->q->cols, sizeof *job->scratch);
        if (!job->scratch) return mem_error(err, bytes, p->ex->tensors[job->index].name);
    }
    job->ready = p->ready_data[role] = mem_alloc(bytes, 1);
    p->ready_type[role] = type;
    if (!job->ready) return mem_error(err, bytes, p->ex->tensors[job->index].name);
    team_run(p->team, ready_worker, job);
    return LLMQ_OK;
}

/* On the grid of job->q. Grids after the first one are for other outputs of the run: the report is of the first. */
static llmq_status run_method(pipeline *p, matrix_job *job, int64_t n_tokens, bool first, llmq_err *err) {
    const llmq_tensor *t = &p->ex->tensors[job->index];
    llmq_quant_row *row = &p->result->rows[job->index];
    llmq_quant_report report;
    llmq_quant_problem problem = {.name = t->name,
                                  .w = job->w,
                                  .rows = tensor_rows(t),
                                  .cols = tensor_cols(t),
                                  .gram = p->gram,
                                  .n_tokens = n_tokens,
                                  .type = job->q->type,
                                  .weighted = p->params->awq,
                                  .solver = p->solver,
                                  .damp = p->params->damp,
                                  .ops = p->model->ops,
                                  .team = p->team,
                                  .device = p->device};
    const llmq_method *method = p->method;
    if (quantized_crosses_rows(problem.type,
                               problem.cols)) { /* one row: its columns are not the inputs that the Gram matrix is of */
        if (method->needs_gram) method = method_find("rtn");
        problem.rows = 1;
        problem.cols = tensor_numel(t);
        problem.gram = NULL;
        problem.weighted = false;
    }
    LLMQ_TRY(method->solve(&problem, job->q, &report, err));
    mem_note_peak();
    if (!first) return LLMQ_OK;
    if (method != p->method) {
        report.fell_back = true;
        snprintf(report.note, sizeof report.note, "plain rounding: blocks of %d run over the ends of rows of %lld",
                 problem.type->block_len, (long long)tensor_cols(t));
    }
    row->error = report.error;
    row->rtn_error = report.rtn_error;
    row->n_tokens = n_tokens;
    if (report.note[0]) memcpy(row->note, report.note, sizeof row->note);
    if (!report.fell_back) return LLMQ_OK;
    row->method = "rtn";
    p->result->n_fallback += !row->fallback;
    row->fallback = true;
    llmq_log(LLMQ_LOG_WARN, "%s: %s", t->name, report.note);
    return LLMQ_OK;
}

/* On the k-th grid of the matrix; the first is what the forward pass goes on with. */
static llmq_status solve_on_grid(pipeline *p, matrix_job *job, const llmq_type_info *grid, size_t k, int64_t n_tokens,
                                 bool keep_ready, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(quantized_create(grid, tensor_rows(job->src), tensor_cols(job->src), &job->q, err));
    LLMQ_TRY_GOTO(run_method(p, job, n_tokens, k == 0, err));
    end_stage(p, LLMQ_STAGE_SOLVE);
    if (!outputs_grid(&p->spec, p->ex, job->index, k + 1)) { /* the last */
        mem_free(job->w);
        job->w = NULL;
    }
    LLMQ_TRY_GOTO(outputs_put(p->outputs, job->index, job->q, p->team, err));
    if (k == 0 && keep_ready) LLMQ_TRY_GOTO(keep_for_pass(p, job, err));
    end_stage(p, LLMQ_STAGE_WRITE);
done:
    mem_free(job->scratch);
    job->scratch = NULL;
    quantized_destroy(job->q);
    job->q = NULL;
    return status;
}

static llmq_status solve_matrix(pipeline *p, size_t index, int64_t n_tokens, bool keep_ready, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_type_info *grid;
    matrix_job job = {.ex = p->ex, .index = index, .src = p->ex->entries[index].src};
    size_t cells = (size_t)tensor_numel(job.src);
    job.w = mem_alloc(cells, sizeof *job.w);
    if (!job.w) return mem_error(err, cells * sizeof *job.w, p->ex->tensors[index].name);
    LLMQ_TRY_GOTO(decode_matrix(p, &job, err));
    for (size_t k = 0; (grid = outputs_grid(&p->spec, p->ex, index, k)) != NULL; k++)
        LLMQ_TRY_GOTO(solve_on_grid(p, &job, grid, k, n_tokens, keep_ready, err));
    if (!pipeline_advance(p, p->costs.tensor[index])) LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped"));
done:
    mem_free(job.w);
    return status;
}

/* values: in place of the source's, or NULL. */
static llmq_status write_plain(pipeline *p, size_t index, const float *values, llmq_err *err) {
    bool exact;
    write_tick tick = {p, index};
    snprintf(p->what, sizeof p->what, "%.60s", p->ex->tensors[index].name);
    return outputs_put_plain(p->outputs, index, values, p->team, &exact, tick_write, &tick, err);
}

/* A matrix that stays float but is scaled, for the file and for the forward pass. */
static llmq_status copy_scaled(pipeline *p, size_t index, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_export_entry *entry = &p->ex->entries[index];
    size_t cells = (size_t)tensor_numel(entry->src);
    matrix_job job = {.ex = p->ex, .index = index, .src = entry->src, .w = mem_alloc(cells, sizeof *job.w)};
    uint16_t *bf16 = p->ready_data[entry->role] = mem_alloc(cells, sizeof *bf16);
    p->ready_type[entry->role] = LLMQ_TYPE_BF16;
    if (!job.w || !bf16) LLMQ_TRY_GOTO(mem_error(err, cells * sizeof *job.w, entry->src->name));
    LLMQ_TRY_GOTO(decode_matrix(p, &job, err));
    for (size_t i = 0; i < cells; i++) bf16[i] = f32_to_bf16(job.w[i]);
    LLMQ_TRY_GOTO(write_plain(p, index, job.w, err));
done:
    mem_free(job.w);
    return status;
}

static llmq_status copy_tensor(pipeline *p, size_t index, llmq_err *err) {
    const llmq_export_entry *entry = &p->ex->entries[index];
    if (!p->transform || entry->layer < 0) return write_plain(p, index, NULL, err);
    if (!entry->matrix) return write_plain(p, index, transform_vector(p->transform, entry->role), err);
    return scales_touch(p->model, transform_scales(p->transform), entry->role) ? copy_scaled(p, index, err)
                                                                               : write_plain(p, index, NULL, err);
}

/* ---- layers ---- */

static void release_ready(pipeline *p) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (p->ready[role].rows) p->model->ops->weight_release(&p->ready[role]);
        memset(&p->ready[role], 0, sizeof p->ready[role]);
        mem_free(p->ready_data[role]);
        p->ready_data[role] = NULL;
    }
}

/* The matrix as the file will mean it, for the forward pass. */
static llmq_status make_ready(pipeline *p, size_t index, llmq_err *err) {
    const llmq_export_entry *entry = &p->ex->entries[index];
    llmq_role role = entry->role;
    llmq_tensor view = *entry->src;
    if (p->ready_data[role]) {
        view.type = p->ready_type[role];
        view.data = p->ready_data[role];
        view.bytes = tensor_rows(&view) * type_row_bytes(view.type, tensor_cols(&view));
    } else {
        LLMQ_TRY(source_load(p->model->source, entry->src, false, err)); /* writing it let it go; until the layer's end */
    }
    llmq_weight *w = &p->ready[role];
    llmq_status status = LLMQ_E_UNSUPPORTED;
    if (p->params->int8 && p->ready_data[role] && view.type == LLMQ_TYPE_Q8_0 && p->model->ops->weight_prepare_int8)
        status = p->model->ops->weight_prepare_int8(w, &view, pipeline_input_range(p, index), p->team, err);
    if (status == LLMQ_E_UNSUPPORTED) status = p->model->ops->weight_prepare(w, &view, PREP_BF16, p->team, err);
    if (status != LLMQ_OK) return status;
    if (w->packed) {
        mem_free(p->ready_data[role]);
        p->ready_data[role] = NULL;
    }
    calib_run_weight(p->run, role, w);
    return LLMQ_OK;
}

static llmq_status quantize_site(pipeline *p, int layer, llmq_site_id site, size_t first, size_t last, llmq_err *err) {
    bool wanted = false;
    int64_t n_tokens = 0;
    for (size_t i = first; i < last; i++) {
        const llmq_arch_rule *rule = arch_rule(p->model->arch, p->ex->entries[i].role);
        wanted = wanted || (rule->site == site && pipeline_is_solved(p, i));
    }
    snprintf(p->what, sizeof p->what, "layer %d/%d", layer + 1, (int)p->model->hp.n_layer);
    LLMQ_TRY(calib_run_site(p->run, site, wanted ? p->gram : NULL, &n_tokens, err));
    end_stage(p, LLMQ_STAGE_CALIBRATION);
    mem_note_peak();
    for (size_t i = first; i < last; i++) {
        if (arch_rule(p->model->arch, p->ex->entries[i].role)->site != site) continue;
        if (pipeline_is_solved(p, i))
            LLMQ_TRY(solve_matrix(p, i, n_tokens, true, err));
        else
            LLMQ_TRY(copy_tensor(p, i, err));
        LLMQ_TRY(make_ready(p, i, err));
        end_stage(p, LLMQ_STAGE_CALIBRATION);
    }
    return LLMQ_OK;
}

/* Finds the scales of the layer's sites and tells the calibration's passes. */
static llmq_status transform_before(pipeline *p, int layer, size_t first, size_t last, llmq_err *err) {
    llmq_site_report reports[SITE_COUNT];
    snprintf(p->what, sizeof p->what, "layer %d/%d: scales", layer + 1, (int)p->model->hp.n_layer);
    LLMQ_TRY(transform_layer(p->transform, p->run, layer, first, last, p->gram, reports, err));
    for (size_t i = first; i < last; i++) {
        llmq_role role = p->ex->entries[i].role;
        llmq_site_id site = arch_rule(p->model->arch, role)->site;
        const float *changed = transform_vector(p->transform, role);
        if (changed && p->run) calib_run_vector(p->run, role, changed);
        if (!p->ex->entries[i].matrix || !(reports[site].before > 0)) continue;
        p->result->rows[i].awq_alpha = reports[site].alpha;
        p->result->rows[i].awq_ratio = reports[site].after / reports[site].before;
    }
    end_stage(p, LLMQ_STAGE_SOLVE);
    return LLMQ_OK;
}

/* Entries [first, last) are the layer's. */
static llmq_status quantize_layer(pipeline *p, int layer, size_t first, size_t last, llmq_err *err) {
    int64_t n_tokens;
    if (p->run) LLMQ_TRY(calib_run_layer(p->run, layer, err));
    if (p->transform) LLMQ_TRY(transform_before(p, layer, first, last, err));
    for (size_t i = first; i < last; i++)
        if (!p->ex->entries[i].matrix) LLMQ_TRY(copy_tensor(p, i, err));
    if (!p->run) {
        for (size_t i = first; i < last; i++) {
            if (!p->ex->entries[i].matrix) continue;
            if (pipeline_is_solved(p, i))
                LLMQ_TRY(solve_matrix(p, i, 0, false, err));
            else
                LLMQ_TRY(copy_tensor(p, i, err));
        }
        return LLMQ_OK;
    }
    for (int site = 0; site < SITE_COUNT; site++)
        LLMQ_TRY(quantize_site(p, layer, (llmq_site_id)site, first, last, err));
    if (layer + 1 < (int)p->model->hp.n_layer) LLMQ_TRY(calib_run_site(p->run, SITE_COUNT, NULL, &n_tokens, err));
    return LLMQ_OK;
}

static llmq_status quantize_all(pipeline *p, llmq_err *err) {
    for (size_t i = 0; i < p->ex->n; i++)
        if (p->ex->entries[i].layer < 0 && !pipeline_is_there(p, i)) LLMQ_TRY(copy_tensor(p, i, err));
    end_stage(p, LLMQ_STAGE_WRITE);
    for (size_t i = 0, last; i < p->ex->n; i = last) {
        int layer = p->ex->entries[i].layer;
        for (last = i + 1; last < p->ex->n && p->ex->entries[last].layer == layer;) last++;
        if (layer < 0 || pipeline_is_there(p, i)) continue;
        llmq_status status = quantize_layer(p, layer, i, last, err);
        release_ready(p);
        if (status != LLMQ_OK) return status;
        for (size_t k = i; k < last; k++)
            if (p->ex->entries[k].src) source_release(p->model->source, p->ex->entries[k].src);
        LLMQ_TRY(pipeline_layer_done(p, layer, err));
    }
    return LLMQ_OK;
}

/* ---- training what was written ---- */

static const llmq_type_info *first_grid(void *user, size_t index) {
    const pipeline *p = user;
    return pipeline_is_solved(p, index) ? outputs_grid(&p->spec, p->ex, index, 0) : NULL;
}

static bool tick_tune(void *user, double share, const char *what) {
    pipeline *p = user;
    snprintf(p->what, sizeof p->what, "%.60s", what);
    return pipeline_advance(p, share * p->costs.tune);
}

static void skip_tune(void *user, double share) {
    pipeline *p = user;
    p->done += share * p->costs.tune;
    p->skipped += share * p->costs.tune;
    p->result->planned_seconds -= 1e-9 * share * p->costs.tune;
}

/* Once. */
static void note_calibration(pipeline *p) {
    llmq_quant_result *r = p->result;
    if (!p->run) return;
    double gram = calib_run_spent(p->run).of[CALIB_GRAM];
    r->dropped_tokens = calib_run_dropped(p->run);
    r->stage_seconds[LLMQ_STAGE_GRAM] = gram; /* seen as part of the passes so far */
    r->stage_seconds[LLMQ_STAGE_CALIBRATION] -= gram;
}

void pipeline_drop_calibration(pipeline *p) {
    note_calibration(p);
    transform_destroy(p->transform);
    calib_run_destroy(p->run);
    mem_free(p->gram);
    p->transform = NULL;
    p->run = NULL;
    p->gram = NULL;
}

static bool input_of(void *user, size_t index, llmq_act_range *range) {
    const pipeline *p = user;
    if (!p->params->int8) return false;
    *range = pipeline_input_range(p, index);
    return true;
}

llmq_tune_job pipeline_tune_job(pipeline *p) {
    return (llmq_tune_job){.model = p->model,
                           .ex = p->ex,
                           .outputs = p->outputs,
                           .calib = &p->calib,
                           .team = p->team,
                           .params = p->params,
                           .result = p->result,
                           .grid = first_grid,
                           .input = input_of,
                           .tick = tick_tune,
                           .plan = p->tune_plan,
                           .state = p->resume.tune_state,
                           .streams = p->resume.tune_streams,
                           .restored = p->resume.tuning,
                           .save = pipeline_save_tuning,
                           .skip = skip_tune,
                           .user = p};
}

/* One grid: norms are trained to go with its codes. */
static llmq_status check_tuning(pipeline *p, llmq_err *err) {
    for (size_t i = 0; i < p->ex->n; i++)
        if (pipeline_is_solved(p, i) && outputs_grid(&p->spec, p->ex, i, 1))
            return llmq_fail(
                err, LLMQ_E_UNSUPPORTED,
                "--tune: --emit %s needs several grids, and norms are trained for one; tune each in a run of "
                "its own (gptq, awq, ct and gguf share a grid)",
                p->params->emit);
    LLMQ_TRY(pipeline_plan_tuning(p, err));
    if (p->tune_plan.blocks) llmq_log(LLMQ_LOG_NOTE, "tuning %s", p->result->tune_how);
    return LLMQ_OK;
}

static llmq_status tune_all(pipeline *p, llmq_err *err) {
    mem_note_peak();
    LLMQ_TRY(pipeline_begin_tuning(p, err));
    llmq_tune_job job = pipeline_tune_job(p);
    LLMQ_TRY(p->tuner->run(&job, err));
    end_stage(p, LLMQ_STAGE_TUNE);
    return LLMQ_OK;
}

/* ---- the job ---- */

static bool tick_self(void *user, double n_tokens) {
    pipeline *p = user;
    return pipeline_advance(p, n_tokens * p->costs.self_token);
}

/* How many windows, before their text is there. */
static void count_windows(pipeline *p) {
    const llmq_quant_params *params = p->params;
    if (!pipeline_needs_text(p)) return;
    int64_t ctx = params->calib_ctx;
    if (ctx > p->model->hp.n_ctx_train && p->model->hp.n_ctx_train > 1) {
        ctx = p->model->hp.n_ctx_train;
        llmq_log(LLMQ_LOG_INFO, "calibrating on windows of %lld tokens, the model's context", (long long)ctx);
    }
    p->calib = (llmq_calib){.ctx = ctx, .n_windows = ctx >= 2 ? params->calib_tokens / ctx : 0};
    p->self_tokens = calib_self_tokens(params->calib, params->n_calib, params->calib_tokens);
}

static llmq_status load_calibration(pipeline *p, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    if (!pipeline_needs_text(p)) return LLMQ_OK;
    llmq_calib_self self = {
        .team = p->team, .seed = params->seed, .plan_only = params->plan_only, .tick = tick_self, .user = p};
    if (p->self_tokens > 0) {
        snprintf(p->what, sizeof p->what, "writing %lld tokens of text", (long long)p->self_tokens);
        llmq_log(LLMQ_LOG_INFO, "the model writes %lld tokens of calibration text itself", (long long)p->self_tokens);
    }
    return calib_load(p->model, params->calib, params->n_calib, params->calib_tokens, p->calib.ctx, &self, &p->calib,
                      err);
}

static llmq_status alloc_gram(pipeline *p, llmq_err *err) {
    size_t bytes = pipeline_gram_bytes(p);
    p->gram = bytes ? mem_zalloc_huge(bytes, 1) : NULL;
    return bytes && !p->gram ? mem_error(err, bytes, "a Gram matrix") : LLMQ_OK;
}

static bool tick_search(void *user, double work) {
    return pipeline_advance(user, forecast_search(user, work));
}

static llmq_status create_transform(pipeline *p, llmq_err *err) {
    llmq_transform_params params = {.model = p->model,
                                    .ex = p->ex,
                                    .calib = &p->calib,
                                    .memory = p->scales_memory,
                                    .team = p->team,
                                    .grid = first_grid,
                                    .feedback = p->method->needs_gram,
                                    .damp = p->params->damp,
                                    .q8 = p->solver.q8,
                                    .tick = pipeline_tick_dense,
                                    .tick_search = tick_search,
                                    .user = p};
    if (p->ranges) return transform_create_given(&params, p->ranges->scales, &p->transform, err);
    int64_t chunk = p->memory.chunk ? p->memory.chunk : calib_run_chunk(&p->calib, 0), n = transform_tokens(&p->calib);
    params.memory.chunk = chunk < n ? chunk : n;
    params.memory.lender = p->run;
    return transform_create(&params, &p->transform, err);
}

llmq_status pipeline_create_calibration(pipeline *p, llmq_err *err) {
    LLMQ_TRY(alloc_gram(p, err));
    if (pipeline_calibrates(p))
        LLMQ_TRY(calib_run_create_in(&p->memory, p->model, &p->calib, p->team, pipeline_tick, p, &p->run, err));
    if (p->run) calib_run_statistics(p->run, p->method->needs_gram ? p->solver.mean : 0, p->solver.q8);
    if (p->run) calib_run_device(p->run, p->solver.q8 ? p->device : NULL); /* which rounds inputs, to bf16 */
    bool scaled = p->params->awq || (p->ranges && !p->params->no_smooth);
    return scaled ? create_transform(p, err) : LLMQ_OK;
}

/* The extra pass of a job with a target, also for a plan alone. */
static llmq_status choose_types(pipeline *p, llmq_err *err) {
    llmq_log(LLMQ_LOG_INFO, "forecast: %.2f s of %s", 1e-9 * forecast_choice(p),
             llmq_quant_stage_name(LLMQ_STAGE_CHOOSE));
    expect(p, forecast_choice(p) + (p->params->plan_only ? 0 : forecast_layers(p, NULL)));
    LLMQ_TRY(pipeline_choose_types(p, err));
    LLMQ_TRY(probe_tensors(p, err)); /* of other types now */
    end_stage(p, LLMQ_STAGE_CHOOSE);
    return LLMQ_OK;
}

/* What the job will cost, as far as that can be known before the text and the types are. */
static llmq_status measure_costs(pipeline *p, llmq_err *err) {
    bool runs = p->calib.n_windows > 0;
    if (!runs && pipeline_needs_text(p)) return LLMQ_OK; /* loading the text will say why */
    if (runs) LLMQ_TRY(probe_passes(p, err));
    if (runs && p->params->awq) LLMQ_TRY(probe_search(p, err));
    if (pipeline_has_target(p)) LLMQ_TRY(probe_errors(p, err));
    if (p->self_tokens > 0) LLMQ_TRY(probe_self(p, err));
    probe_source(p);
    LLMQ_TRY(probe_tensors(p, err));
    double own = p->params->plan_only ? 0 : forecast_self(p) + forecast_ranges(p);
    expect(p, own + (pipeline_has_target(p) ? forecast_choice(p) : 0) + forecast_layers(p, NULL));
    return LLMQ_OK;
}

/* The whole job: what is done already took its time, and a plan leaves out what does not help it. */
static void set_planned_seconds(pipeline *p) {
    double stages[LLMQ_STAGE_COUNT], rest = forecast_layers(p, stages);
    if (p->params->plan_only) rest += forecast_self(p) + forecast_source(p) + forecast_ranges(p);
    p->result->planned_seconds = time_seconds() - p->start + 1e-9 * (rest + p->costs.tune);
    if (p->params->plan_only) stages[LLMQ_STAGE_CALIBRATION] += forecast_self(p) + forecast_ranges(p);
    stages[LLMQ_STAGE_TUNE] += p->costs.tune;
    for (int s = 0; s < LLMQ_STAGE_COUNT; s++)
        if (stages[s] > 0)
            llmq_log(LLMQ_LOG_INFO, "forecast: %.2f s of %s", 1e-9 * stages[s],
                     llmq_quant_stage_name((llmq_quant_stage)s));
}

static void mean_errors(llmq_quant_result *r) {
    double error = 0, rtn = 0;
    int64_t n = 0;
    for (size_t i = 0; i < r->n_rows; i++) {
        if (r->rows[i].error < 0) continue;
        error += r->rows[i].error;
        rtn += r->rows[i].rtn_error;
        n++;
    }
    r->mean_error = n ? error / (double)n : -1;
    r->mean_rtn_error = n ? rtn / (double)n : -1;
}

static llmq_status check_params(pipeline *p, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    if (!p->method) {
        char known[128] = "";
        for (size_t i = 0, at = 0; method_at(i) && at < sizeof known; i++)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", method_at(i)->name);
        return llmq_fail(err, LLMQ_E_ARG, "--method %s: llmq knows %s", params->method ? params->method : "(none)",
                         known);
    }
    if (!(params->damp <= 1))
        return llmq_fail(err, LLMQ_E_ARG, "--damp %g: a fraction of the mean diagonal, from 0 to 1", params->damp);
    if (params->tune && !p->tuner) return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--tune: not in this build");
    if (p->device_ops && !p->method->needs_gram)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--device %s: it helps with gptq, and there is nothing to do for %s; leave it out",
                         p->device_ops->name, p->method->name);
    bool act_order = params->act_order < 0 ? p->method->act_order_default : params->act_order > 0;
    return solver_parse(params->solver, act_order, &p->solver, err);
}

/* The reports' files, opened before the work so that a bad path is told at once. */
typedef struct report_files {
    llmq_out *json, *html;
} report_files;

/* A report replaces an older one without asking; the model's own files and OUT it must not touch. */
static llmq_status open_report(const pipeline *p, const char *option, const char *path, llmq_out **report,
                               llmq_err *err) {
    if (!path) return LLMQ_OK;
    LLMQ_TRY(job_check_output(p->model->source, path, option, true, err));
    if (file_is_same(path, p->result->out))
        return llmq_fail(err, LLMQ_E_ARG, "%s %s: that is the model to be written; give another name", option, path);
    return out_open(path, true, 0, report, err);
}

static llmq_status open_reports(const pipeline *p, report_files *reports, llmq_err *err) {
    const char *json = p->params->report_json, *html = p->params->report;
    if (json && html && file_is_same(json, html))
        return llmq_fail(err, LLMQ_E_ARG, "--report %s: --report-json has the same name", html);
    LLMQ_TRY(open_report(p, "--report-json", json, &reports->json, err));
    return open_report(p, "--report", html, &reports->html, err);
}

static llmq_status write_reports(const pipeline *p, const char *path, report_files *reports, llmq_err *err) {
    const llmq_report_facts facts = {.source = path, .params = p->params, .result = p->result, .settings = p->settings};
    llmq_out *json = reports->json, *html = reports->html;
    *reports = (report_files){.html = html};
    if (json) LLMQ_TRY(quant_report_write(path, p->params, p->result, json, err));
    reports->html = NULL;
    return html ? report_html_write(&facts, html, err) : LLMQ_OK;
}

static llmq_status run_job(pipeline *p, const char *path, report_files *reports, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    llmq_quant_result *r = p->result;
    llmq_type type;
    llmq_model_params open = {.tokenizer = params->tokenizer, .n_threads = params->n_threads, .no_weights = true};
    LLMQ_TRY(check_params(p, err));
    if (p->device_ops) LLMQ_TRY(p->device_ops->solver->create(&p->device, err));
    if (p->device) llmq_log(LLMQ_LOG_NOTE, "%s: times are forecast as on the CPU alone", p->device->name);
    LLMQ_TRY(team_create(params->n_threads, &p->team, err));
    int64_t before = mem_note_peak();
    LLMQ_TRY(model_open(path, &open, &p->model, err));
    int64_t taken = mem_note_peak() - before;
    p->model_bytes = taken > 0 ? (size_t)taken : 0;
    LLMQ_TRY(pipeline_plan(p, &type, err));
    LLMQ_TRY(pipeline_output_path(p, path, type, r->out, sizeof r->out, err));
    LLMQ_TRY(outputs_check_path(&p->spec, p->model->source, params->force || params->plan_only, err));
    LLMQ_TRY(open_reports(p, reports, err));
    count_windows(p);
    p->base_bytes = (size_t)mem_note_peak();
    LLMQ_TRY(pipeline_budget_before(p, err));
    LLMQ_TRY(measure_costs(p, err));
    end_stage(p, LLMQ_STAGE_OPEN);
    LLMQ_TRY(load_calibration(p, err));
    end_stage(p, LLMQ_STAGE_CALIBRATION);
    r->calib_tokens = p->calib.n_windows * p->calib.ctx;
    if (pipeline_has_target(p)) LLMQ_TRY(choose_types(p, err));
    if (params->tune) LLMQ_TRY(check_tuning(p, err));
    LLMQ_TRY(pipeline_find_ranges(p, err));
    end_stage(p, LLMQ_STAGE_CALIBRATION);
    LLMQ_TRY(pipeline_manifest(p, err));
    LLMQ_TRY(pipeline_sizes(p, err));
    LLMQ_TRY(pipeline_budget(p, err));
    LLMQ_TRY(forecast_tuning(p, err));
    set_planned_seconds(p);
    end_stage(p, LLMQ_STAGE_OPEN);
    if (params->plan_only) return LLMQ_OK;
    if (pipeline_is_quantized(p->model->info.main_type))
        llmq_log(LLMQ_LOG_WARN,
                 "%s is %s already: what that lost cannot come back; a full-precision source gives a better model",
                 path, llmq_type_name(p->model->info.main_type));
    LLMQ_TRY(pipeline_open_journal(p, err));
    LLMQ_TRY(pipeline_take_scratch(p, err));
    expect(p, forecast_layers(p, NULL) + p->costs.tune);
    LLMQ_TRY(pipeline_begin(p, err));
    LLMQ_TRY(quantize_all(p, err));
    if (params->tune) LLMQ_TRY(tune_all(p, err));
    llmq_outputs *outputs = p->outputs;
    p->outputs = NULL;
    LLMQ_TRY(outputs_finish(outputs, &r->out_bytes, err));
    end_stage(p, LLMQ_STAGE_WRITE);
    return LLMQ_OK;
}

llmq_status job_quantize_on(const char *path, const llmq_quant_params *params, const llmq_tuner *tuner,
                            const llmq_device_ops *device, llmq_quant_result *result, llmq_err *err) {
    llmq_weight ready[ROLE_COUNT];
    report_files reports = {0};
    memset(ready, 0, sizeof ready);
    *result = (llmq_quant_result){0};
    pipeline p = {.params = params,
                  .tuner = tuner,
                  .device_ops = device,
                  .result = result,
                  .ready = ready,
                  .start = time_seconds()};
    p.mark = p.start;
    p.method = params->method ? method_find(params->method) : NULL;
    llmq_status status = run_job(&p, path, &reports, err);
    note_calibration(&p);
    mean_errors(result);
    result->seconds = time_seconds() - p.start;
    result->peak_bytes = mem_peak();
    if (p.ranges && !params->plan_only) {
        result->inputs = p.ranges->inputs;
        result->n_inputs = p.ranges->n_layer * SITE_COUNT;
        p.ranges->inputs = NULL;
    }
    if (status == LLMQ_OK) status = write_reports(&p, path, &reports, err);
    out_abort(reports.json);
    out_abort(reports.html);
    transform_destroy(p.transform);
    pipeline_end(&p, status); /* before the run, whose state it may save; its memory may be the journal's */
    calib_run_destroy(p.run);
    mem_free(p.gram);
    mem_free(p.costs.tensor);
    calib_clear(&p.calib);
    export_destroy(p.ex);
    policy_rules_clear(&p.rules);
    int8_ranges_destroy(p.ranges);
    model_close(p.model);
    team_destroy(p.team);
    if (device) device->solver->destroy(p.device);
    if (status != LLMQ_OK) {
        mem_free(result->rows);
        mem_free(result->inputs);
        result->rows = NULL;
        result->inputs = NULL;
        result->n_rows = result->n_inputs = 0;
    }
    return status;
}

llmq_status job_quantize_with(const char *path, const llmq_quant_params *params, const llmq_tuner *tuner,
                              llmq_quant_result *result, llmq_err *err) {
    const llmq_device_ops *device;
    *result = (llmq_quant_result){0};
    LLMQ_TRY(device_select(params->device, &device, err));
    return job_quantize_on(path, params, tuner, device, result, err);
}
