/* The plan of a quantization job: types, sizes, costs and the name of the result. */
#define _XOPEN_SOURCE 700
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"

/* The parts of a layer by the names that GGUF has for them. */
static const char *const role_names[ROLE_COUNT] = {[ROLE_TOKEN_EMBD] = "token_embd",
                                                   [ROLE_OUTPUT_NORM] = "output_norm",
                                                   [ROLE_OUTPUT] = "output",
                                                   [ROLE_ROPE_FREQS] = "rope_freqs",
                                                   [ROLE_ATTN_NORM] = "attn_norm",
                                                   [ROLE_Q] = "attn_q",
                                                   [ROLE_K] = "attn_k",
                                                   [ROLE_V] = "attn_v",
                                                   [ROLE_O] = "attn_output",
                                                   [ROLE_Q_BIAS] = "attn_q.bias",
                                                   [ROLE_K_BIAS] = "attn_k.bias",
                                                   [ROLE_V_BIAS] = "attn_v.bias",
                                                   [ROLE_O_BIAS] = "attn_out.bias",
                                                   [ROLE_Q_NORM] = "attn_q_norm",
                                                   [ROLE_K_NORM] = "attn_k_norm",
                                                   [ROLE_FFN_NORM] = "ffn_norm",
                                                   [ROLE_GATE] = "ffn_gate",
                                                   [ROLE_UP] = "ffn_up",
                                                   [ROLE_DOWN] = "ffn_down"};
static const char *const site_names[SITE_COUNT] = {
    [SITE_QKV] = "qkv", [SITE_O] = "o", [SITE_GATE_UP] = "gate_up", [SITE_DOWN] = "down"};

bool pipeline_is_quantized(llmq_type type) {
    return !type_is_float(type_info(type));
}

bool pipeline_is_solved(const pipeline *p, size_t i) {
    const llmq_export_entry *entry = &p->ex->entries[i];
    if (outputs_have_folder(&p->spec)) return entry->matrix && entry->layer >= 0;
    if (p->params->int8 && entry->matrix && entry->layer >= 0) return pipeline_is_quantized(p->ex->tensors[i].type);
    return entry->matrix && entry->layer >= 0 && pipeline_is_quantized(p->ex->tensors[i].type) &&
           p->ex->tensors[i].type != entry->src->type;
}

llmq_type pipeline_pass_type(const pipeline *p, const llmq_type_info *grid) {
    if (!p->solver.q8) return LLMQ_TYPE_BF16;
    if (!grid->ragged) return grid->id;
    return p->params->int8 ? LLMQ_TYPE_Q8_0 : LLMQ_TYPE_BF16; /* grids of folders have no kernels of their own */
}

bool pipeline_needs_text(const pipeline *p) {
    return pipeline_calibrates(p) || pipeline_has_target(p) || p->params->tune || pipeline_finds_ranges(p);
}

bool pipeline_calibrates(const pipeline *p) {
    return p->method->needs_gram || p->params->awq;
}

static llmq_status choose_type(const pipeline *p, llmq_type *out, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    const llmq_hparams *hp = &p->model->hp;
    if (pipeline_has_target(p) && (outputs_count(&p->spec) != 1 || !outputs_emits(&p->spec, "gguf")))
        return llmq_fail(err, LLMQ_E_ARG, "--target-bpw and --target-size choose among GGUF's types: leave out --emit");
    if (pipeline_has_target(p) &&
        (params->type || params->bits || (params->target_bpw > 0 && params->target_bytes > 0)))
        return llmq_fail(err, LLMQ_E_ARG,
                         "--target-bpw and --target-size choose the types themselves: one of the two, without --type "
                         "and --bits; --keep and --policy fix single tensors");
    if (outputs_have_integer(&p->spec) || !outputs_emits(&p->spec, "gguf")) return pipeline_folder_type(p, out, err);
    if (!params->type) {
        const int64_t cols[] = {hp->n_embd, hp->n_head * hp->head_dim, hp->n_ff};
        return policy_default_type(params->bits, cols, sizeof cols / sizeof *cols, out, err);
    }
    *out = llmq_type_from_name(params->type);
    const llmq_type_info *info = type_info(*out);
    if (!info || !type_can_encode(info) || type_is_float(info))
        return llmq_fail(err, LLMQ_E_ARG,
                         "--type %s: not a type that llmq quantizes to (q4_0, q4_1, iq4_nl, q4_k, q6_k, q8_0, ...)",
                         params->type);
    if (params->bits && params->bits != info->bits)
        return llmq_fail(err, LLMQ_E_ARG, "--bits %d and --type %s do not agree: the type has %d bits; leave one out",
                         params->bits, params->type, info->bits);
    return LLMQ_OK;
}

/* Plain rounding after AWQ is what is called AWQ; other methods keep their name. */
static const char *method_label(const pipeline *p) {
    return p->params->awq && !strcmp(p->method->name, "rtn") ? "awq" : p->method->name;
}

llmq_status pipeline_set_type(pipeline *p, size_t i, const llmq_policy_choice *choice, llmq_err *err) {
    llmq_tensor *t = &p->ex->tensors[i];
    llmq_quant_row *row = &p->result->rows[i];
    LLMQ_TRY(export_set_type(p->ex, i, choice->type, err));
    row->to = t->type;
    row->method = pipeline_is_solved(p, i)                                 ? method_label(p)
                  : pipeline_is_quantized(t->type) && t->type != row->from ? "rtn"
                                                                           : "copy";
    row->bytes = t->bytes;
    row->fixed = choice->fixed;
    p->result->n_fallback += choice->fallback - row->fallback;
    row->fallback = choice->fallback;
    memcpy(row->note, choice->note, sizeof row->note);
    return LLMQ_OK;
}

static llmq_status plan_tensor(pipeline *p, const llmq_policy *policy, size_t i, llmq_err *err) {
    const llmq_tensor *t = &p->ex->tensors[i];
    const llmq_export_entry *entry = &p->ex->entries[i];
    llmq_quant_row *row = &p->result->rows[i];
    llmq_policy_choice choice = {.type = t->type};
    if (entry->matrix) policy_choose(policy, t->name, entry->layer >= 0, entry->src->type, tensor_cols(t), &choice);
    if (strlen(t->name) >= sizeof row->name)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: the name is too long for GGUF", t->name);
    strcpy(row->name, t->name);
    row->from = entry->src ? entry->src->type : LLMQ_TYPE_F32;
    row->rows = tensor_rows(t);
    row->cols = tensor_cols(t);
    row->error = row->rtn_error = row->awq_alpha = row->awq_ratio = row->expected_kl = -1;
    row->layer = entry->layer;
    row->role = role_names[entry->role];
    llmq_site_id site = arch_rule(p->model->arch, entry->role)->site;
    row->site = site == SITE_NONE ? NULL : site_names[site];
    return pipeline_set_type(p, i, &choice, err);
}

static void plan_sizes(const pipeline *p, llmq_quant_result *r) {
    int64_t bytes = 0, weights = 0, matrix_bytes = 0, matrix_weights = 0;
    for (size_t i = 0; i < p->ex->n; i++) {
        const llmq_tensor *t = &p->ex->tensors[i];
        bytes += r->rows[i].bytes;
        weights += tensor_numel(t);
        if (!p->ex->entries[i].matrix || p->ex->entries[i].layer < 0) continue;
        matrix_bytes += r->rows[i].bytes;
        matrix_weights += tensor_numel(t);
    }
    r->kv_bytes_per_token = p->model->info.kv_bytes_per_token;
    r->memory_ctx = llmq_memory_ctx(p->model->hp.n_ctx_train);
    r->f32_bytes = weights * 4;
    r->f16_bytes = weights * 2;
    r->in_bytes = p->model->source->file_bytes;
    r->bits_per_weight = 8.0 * (double)bytes / (double)weights;
    r->matrix_bits_per_weight = matrix_weights ? 8.0 * (double)matrix_bytes / (double)matrix_weights : 0;
}

/* Options without effect are allowed, but not in silence. */
static void warn_unused(const pipeline *p) {
    const llmq_quant_params *params = p->params;
    for (size_t i = 0; i < p->rules.n; i++) {
        bool used = false;
        for (size_t k = 0; k < p->ex->n && !used; k++)
            used = p->ex->entries[k].matrix && policy_keep_matches(p->rules.rules[i], p->ex->tensors[k].name);
        if (!used)
            llmq_log(LLMQ_LOG_WARN, "%s %s: no matrix has such a name; --plan lists the names",
                     i < p->rules.n_keep ? "--keep" : params->policy, p->rules.rules[i]);
    }
    if (!pipeline_needs_text(p) && params->n_calib)
        llmq_log(LLMQ_LOG_WARN, "--calib changes nothing with --%s", p->method->name);
    if (!p->method->needs_gram && (params->damp >= 0 || params->act_order >= 0))
        llmq_log(LLMQ_LOG_WARN, "--damp and --act-order change nothing with --%s", p->method->name);
}

llmq_status pipeline_plan(pipeline *p, llmq_type *type_out, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    LLMQ_TRY(pipeline_plan_outputs(p, err));
    LLMQ_TRY(choose_type(p, type_out, err));
    LLMQ_TRY(policy_rules_read(params->keep, params->n_keep, params->policy, &p->rules, err));
    llmq_policy policy = {.type = *type_out,
                          .outer = outputs_emits(&p->spec, "gguf") ? LLMQ_TYPE_Q8_0 : LLMQ_TYPE_F16,
                          .keep = p->rules.rules,
                          .n_keep = p->rules.n};
    LLMQ_TRY(policy_check(&policy, err));
    LLMQ_TRY(export_create(p->model, &p->ex, err));
    LLMQ_TRY(pipeline_plan_int8(p, err));
    p->result->rows = mem_zalloc(p->ex->n, sizeof *p->result->rows);
    if (!p->result->rows) return mem_error(err, p->ex->n * sizeof *p->result->rows, "the plan");
    p->result->n_rows = p->ex->n;
    for (size_t i = 0; i < p->ex->n; i++) LLMQ_TRY(plan_tensor(p, &policy, i, err));
    warn_unused(p);
    LLMQ_TRY(export_seal(p->ex, err));
    return pipeline_check_folders(p, *type_out, err);
}

llmq_status pipeline_sizes(pipeline *p, llmq_err *err) {
    for (size_t i = 0; i < p->ex->n; i++) pipeline_plan_row(p, i, &p->result->rows[i]);
    plan_sizes(p, p->result);
    return outputs_plan_bytes(&p->spec, p->ex, &p->result->out_bytes, err);
}

/* The outputs' names beside the file, or beside the folder; "." and trailing slashes are looked through. */
llmq_status pipeline_output_path(pipeline *p, const char *path, llmq_type type, char *out, size_t cap, llmq_err *err) {
    char stem[1024];
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--;
    if (len >= sizeof stem)
        return llmq_fail(err, LLMQ_E_ARG, "the path of the model is too long; give a name for the output with -o");
    memcpy(stem, path, len);
    stem[len] = 0;
    const char *base = path_base(stem);
    if (file_is_dir(stem) && (!strcmp(base, ".") || !strcmp(base, "..") || !strcmp(base, ""))) {
        char *real = realpath(stem, NULL);
        bool fits = real && strlen(real) < sizeof stem;
        if (fits) strcpy(stem, real);
        free(real);
        if ((!fits || !strcmp(stem, "/")) && !p->params->out)
            return llmq_fail(err, LLMQ_E_ARG, "%s: give a name for the output with -o", path);
    }
    char *dot = strrchr(stem, '.');
    if (!file_is_dir(stem) && dot > path_base(stem)) *dot = 0;
    char label[64];
    bool both = p->params->awq && strcmp(method_label(p), "awq") != 0, plain = !strcmp(method_label(p), "rtn");
    const char *int8 = pipeline_int8_name(p);
    snprintf(label, sizeof label, "%s%s%s%s%s", both ? "awq-" : "", int8 && plain ? "" : method_label(p),
             int8 && !plain ? "-" : "", int8 ? int8 : "",
             !p->params->tune        ? ""
             : p->params->tune_codes ? "-qat"
                                     : "-tune");
    return pipeline_name_outputs(p, stem, label, type, out, cap, err);
}
