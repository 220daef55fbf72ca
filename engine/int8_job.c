/* INT8 in a quantization job: what may be asked for beside it, the ranges of inputs, and what says so in the outputs.
 */
#include <string.h>

#include "engine/int8_ranges.h"
#include "engine/pipeline.h"

static bool is_static(const pipeline *p) {
    return p->params->int8 == LLMQ_INT8_STATIC;
}

const char *pipeline_int8_name(const pipeline *p) {
    return is_static(p) ? "int8-static" : p->params->int8 == LLMQ_INT8_DYNAMIC ? "int8-dynamic" : NULL;
}

bool pipeline_finds_ranges(const pipeline *p) {
    return is_static(p) || (p->params->int8 && !p->params->no_smooth);
}

llmq_status pipeline_check_int8(const pipeline *p, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    const char *name = pipeline_int8_name(p);
    if (!params->int8) return LLMQ_OK;
    if (outputs_emits(&p->spec, "gptq") || outputs_emits(&p->spec, "awq") || outputs_emits(&p->spec, "bnb"))
        return llmq_fail(err, LLMQ_E_ARG, "--%s: of --emit only gguf and ct hold 8-bit inputs, not %s", name,
                         p->spec.emit);
    if (p->method->emit)
        return llmq_fail(err, LLMQ_E_ARG, "--%s and --%s exclude each other; take --rtn, --gptq or --hqq", name,
                         p->method->name);
    if (params->type && llmq_type_from_name(params->type) != LLMQ_TYPE_Q8_0)
        return llmq_fail(err, LLMQ_E_ARG, "--type %s: --%s is stored as q8_0; leave --type out", params->type, name);
    if (pipeline_has_target(p))
        return llmq_fail(err, LLMQ_E_ARG, "--%s has one size: leave out --target-bpw and --target-size", name);
    if (params->awq && !params->no_smooth)
        return llmq_fail(err, LLMQ_E_ARG, "--%s scales inputs itself (--smooth); leave out --awq, or say --no-smooth",
                         name);
    if (pipeline_finds_ranges(p) && !p->model->ops->weight_prepare_int8)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--%s: this backend has no 8-bit products", name);
    return LLMQ_OK;
}

llmq_status pipeline_check_int8_kept(const pipeline *p, llmq_type type, llmq_err *err) {
    for (size_t i = 0; p->params->int8 && i < p->ex->n; i++) {
        const llmq_tensor *t = &p->ex->tensors[i];
        if (p->ex->entries[i].matrix && p->ex->entries[i].layer >= 0 && t->type != type &&
            pipeline_is_quantized(t->type))
            return llmq_fail(err, LLMQ_E_ARG,
                             "%s is to be %s: --%s keeps a matrix inside the layers only as floats; say f16", t->name,
                             llmq_type_name(t->type), pipeline_int8_name(p));
    }
    return LLMQ_OK;
}

/* Of a plan alone the arrays are as long and all zeros. */
static llmq_status publish(pipeline *p, llmq_err *err) {
    if (!is_static(p)) return meta_set_str(p->ex->meta, FORMAT_INT8_KEY, "dynamic", err);
    p->spec.inputs = p->ranges->range;
    for (size_t i = 0; i < p->ranges->n_layer * SITE_COUNT; i++)
        if (p->ranges->range[i].zero) p->spec.integer.act_zero = true;
    return int8_write(p->ex->meta, p->ranges->range, p->ranges->n_layer * SITE_COUNT, err);
}

llmq_status pipeline_plan_int8(pipeline *p, llmq_err *err) {
    int8_forget(p->ex->meta); /* of a source that was quantized so */
    if (!p->params->int8) return LLMQ_OK;
    if (pipeline_finds_ranges(p)) LLMQ_TRY(int8_ranges_create((size_t)p->model->hp.n_layer, &p->ranges, err));
    return publish(p, err);
}

llmq_act_range pipeline_input_range(const pipeline *p, size_t index) {
    const llmq_export_entry *entry = &p->ex->entries[index];
    if (!p->ranges) return (llmq_act_range){0};
    return p->ranges->range[entry->layer * SITE_COUNT + arch_rule(p->model->arch, entry->role)->site];
}

/* ---- finding them */

static const llmq_type_info *grid_of(void *user, size_t index) {
    const pipeline *p = user;
    return pipeline_is_solved(p, index) ? outputs_grid(&p->spec, p->ex, index, 0) : NULL;
}

static bool tick_search(void *user, double work) {
    return pipeline_advance(user, work);
}

static void note_kept(pipeline *p) {
    for (size_t i = 0; i < p->ex->n; i++) {
        const llmq_export_entry *entry = &p->ex->entries[i];
        llmq_quant_row *row = &p->result->rows[i];
        if (!entry->matrix || entry->layer < 0 || !pipeline_is_solved(p, i)) continue;
        const llmq_quant_input *in =
            &p->ranges->inputs[entry->layer * SITE_COUNT + arch_rule(p->model->arch, entry->role)->site];
        if (in->kept && !row->note[0]) memcpy(row->note, in->note, sizeof row->note);
    }
}

llmq_status pipeline_find_ranges(pipeline *p, llmq_err *err) {
    int8_ranges_job job = {.model = p->model,
                           .ex = p->ex,
                           .calib = &p->calib,
                           .team = p->team,
                           .fixed = is_static(p),
                           .smooth = !p->params->no_smooth,
                           .grid = grid_of,
                           .tick = pipeline_tick_dense,
                           .tick_search = tick_search,
                           .user = p};
    if (!pipeline_finds_ranges(p) || p->params->plan_only) return LLMQ_OK;
    strcpy(p->what, is_static(p) ? "ranges of inputs" : "smoothing");
    LLMQ_TRY(int8_ranges_find(&job, p->ranges, err));
    note_kept(p);
    return publish(p, err);
}

double forecast_ranges(const pipeline *p) {
    double sum = 0;
    if (!pipeline_finds_ranges(p) || p->calib.n_windows <= 0) return 0;
    double n_tok = (double)int8_ranges_tokens(&p->model->hp, &p->calib);
    for (int site = 0; site <= SITE_COUNT; site++) {
        llmq_calib_work work = calib_site_work(&p->model->hp, p->calib.ctx, (llmq_site_id)site, false);
        int64_t rows = 0;
        for (size_t i = 0; i < p->ex->n; i++)
            if (p->ex->entries[i].layer == 0 &&
                arch_rule(p->model->arch, p->ex->entries[i].role)->site == (llmq_site_id)site)
                rows += int8_ranges_rows(tensor_rows(&p->ex->tensors[i]));
        sum += n_tok * forecast_pass(p->costs.dense_pass, &work);
        if (site < SITE_COUNT)
            sum += int8_ranges_work(rows, calib_site_cols(&p->model->hp, (llmq_site_id)site), (int64_t)n_tok,
                                    is_static(p), !p->params->no_smooth, team_size(p->team));
    }
    return sum * (double)p->model->hp.n_layer;
}

size_t pipeline_ranges_bytes(const pipeline *p) {
    if (!pipeline_finds_ranges(p) || p->calib.n_windows <= 0) return 0;
    const llmq_calib part = {.ctx = p->calib.ctx,
                             .n_windows = int8_ranges_tokens(&p->model->hp, &p->calib) / p->calib.ctx};
    llmq_calib_need need = calib_run_need(p->model, &part, 0, team_size(p->team));
    return need.hidden + need.mid + need.bad + need.chunk + int8_ranges_bytes(p->ex, &p->calib);
}
