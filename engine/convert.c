/* convert: any container to GGUF, without quantization unless a type is asked for; to a Hugging Face folder of plain
 * floats; or to one of a quantized scheme (convert_hf.c). */
#include <stdio.h>
#include <string.h>

#include "engine/jobs.h"
#include "engine/outputs.h"
#include "quant/policy.h"

llmq_status job_check_output(const llmq_source *source, const char *out, const char *option, bool force,
                             llmq_err *err) {
    char tmp[4096]; /* what out_open empties before anything else */
    if ((size_t)snprintf(tmp, sizeof tmp, "%s.tmp", out) >= sizeof tmp)
        return llmq_fail(err, LLMQ_E_ARG, "%s: the path is too long", option);
    if (source_has_file(source, tmp))
        return llmq_fail(err, LLMQ_E_ARG, "%s: its work file %s belongs to the source; give another name with %s", out,
                         path_base(tmp), option);
    if (file_is_dir(out))
        return llmq_fail(err, LLMQ_E_EXISTS, "%s is a folder; give the name of a file with %s", out, option);
    if (source_has_file(source, out))
        return llmq_fail(err, LLMQ_E_ARG, "%s belongs to the source itself; give another name with %s", out, option);
    LLMQ_TRY(file_check_place(out, err));
    if (file_exists(out) && !force)
        return llmq_fail(err, LLMQ_E_EXISTS,
                         "%s is there already; give --force to overwrite it, or another name with %s", out, option);
    return LLMQ_OK;
}

static llmq_status choose_types(llmq_export *ex, llmq_type type, llmq_err *err) {
    for (size_t i = 0; type != LLMQ_TYPE_NONE && i < ex->n; i++) {
        llmq_policy_choice choice;
        if (!ex->entries[i].matrix) continue;
        policy_fit_type(type, ex->entries[i].src->type, tensor_cols(&ex->tensors[i]), &choice);
        if (choice.fallback) llmq_log(LLMQ_LOG_WARN, "%s: %s", ex->tensors[i].name, choice.note);
        LLMQ_TRY(export_set_type(ex, i, choice.type, err));
    }
    return export_seal(ex, err);
}

typedef struct convert_progress {
    const llmq_convert_params *params;
    double done, total, size, start; /* bytes; size: of the tensor under way */
    const char *what;
} convert_progress;

static bool tick(void *user, double share) {
    convert_progress *p = user;
    p->done += share * p->size;
    if (!p->params->progress) return true;
    double seconds = time_seconds() - p->start;
    return p->params->progress(p->params->user, p->done, p->total, p->what,
                               p->done > 0 ? seconds * (p->total / p->done - 1) : -1);
}

static llmq_status write_all(const llmq_export *ex, llmq_outputs *outputs, llmq_team *team,
                             const llmq_convert_params *params, llmq_convert_result *result, llmq_err *err) {
    convert_progress progress = {.params = params, .start = time_seconds()};
    for (size_t i = 0; i < ex->n; i++) progress.total += (double)ex->tensors[i].bytes;
    for (size_t i = 0; i < ex->n; i++) {
        bool exact;
        progress.size = (double)ex->tensors[i].bytes;
        progress.what = ex->tensors[i].name;
        LLMQ_TRY(outputs_put_plain(outputs, i, NULL, team, &exact, tick, &progress, err));
        *(exact ? &result->n_exact : &result->n_inexact) += 1;
    }
    return LLMQ_OK;
}

static bool is_float(llmq_type type) {
    return type == LLMQ_TYPE_F32 || type == LLMQ_TYPE_F16 || type == LLMQ_TYPE_BF16;
}

/* --emit hf: the type asked for; else that of most of the source's weights, or BF16 where they are quantized. */
static llmq_status plan_folder(const llmq_model *model, llmq_type type, llmq_outputs_spec *spec, llmq_err *err) {
    if (type != LLMQ_TYPE_NONE && !is_float(type))
        return llmq_fail(err, LLMQ_E_ARG, "--emit hf: the type is f32, f16 or bf16, not %s", llmq_type_name(type));
    bool quantized = model->source->quant != NULL || !is_float(model->info.main_type);
    spec->plain = type != LLMQ_TYPE_NONE ? type : quantized ? LLMQ_TYPE_BF16 : model->info.main_type;
    return outputs_check_path(spec, model->source, spec->force, err);
}

llmq_status job_convert(const char *path, const char *out, const llmq_convert_params *params,
                        llmq_convert_result *result, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_model *model = NULL;
    llmq_export *ex = NULL;
    llmq_team *team = NULL;
    llmq_outputs *outputs = NULL;
    llmq_outputs_spec spec = {.out = out, .force = params->force};
    llmq_type type = params->type ? llmq_type_from_name(params->type) : LLMQ_TYPE_NONE;
    llmq_model_params open = {.tokenizer = params->tokenizer, .n_threads = params->n_threads, .no_weights = true};
    *result = (llmq_convert_result){0};
    if (params->type && (!type_info(type) || !type_can_encode(type_info(type))))
        return llmq_fail(err, LLMQ_E_ARG,
                         "--type %s: not a storage type that llmq writes (f32, f16, bf16, q8_0, q4_0, ...)",
                         params->type);
    LLMQ_TRY_GOTO(team_create(params->n_threads, &team, err));
    LLMQ_TRY_GOTO(model_open(path, &open, &model, err));
    bool plain = params->emit && !strcmp(params->emit, "hf");
    bool folders = params->emit && strcmp(params->emit, "gguf") != 0 && !plain;
    if (plain) spec.emit = "hf", spec.shard_bytes = params->shard_bytes;
    if (plain)
        LLMQ_TRY_GOTO(plan_folder(model, type, &spec, err));
    else if (!folders)
        LLMQ_TRY_GOTO(job_check_output(model->source, out, "-o", params->force, err));
    LLMQ_TRY_GOTO(export_create(model, &ex, err));
    if (folders) {
        status = convert_to_folders(ex, out, params, team, result, err);
        goto done;
    }
    if (!plain) LLMQ_TRY_GOTO(choose_types(ex, type, err));
    LLMQ_TRY_GOTO(outputs_open(&spec, ex, &outputs, err));
    LLMQ_TRY_GOTO(write_all(ex, outputs, team, params, result, err));
    if (model->source->quant)
        snprintf(result->quantization, sizeof result->quantization, "%s", model->source->quant->text);
    status = outputs_finish(outputs, &result->out_bytes, err);
    outputs = NULL;
done:
    outputs_abort(outputs, false);
    export_destroy(ex);
    model_close(model);
    team_destroy(team);
    return status;
}
