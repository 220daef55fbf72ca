/* What --emit and the options of its grids mean for a quantization job.
 *
 * gptq, awq and ct share one integer grid, so that a matrix is solved once for all of them, and a GGUF file beside them
 * holds the same codes and scales. bnb has a grid of its own; so has a GGUF file with no integer scheme beside it. */
#include <stdio.h>
#include <string.h>

#include "engine/pipeline.h"

#define DEFAULT_GROUP 128
#define BNB_BLOCK 64

/* Options that only Hugging Face outputs have. */
static llmq_status check_grid_options(const pipeline *p, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    bool integer = outputs_have_integer(&p->spec);
    if (params->int8 && (params->group || params->asym > 0 || (params->bits && params->bits != 8)))
        return llmq_fail(err, LLMQ_E_ARG, "--%s: it has symmetric 8-bit weights with one scale a row; leave out %s",
                         pipeline_int8_name(p),
                         params->group      ? "--group"
                         : params->asym > 0 ? "--asym"
                                            : "--bits");
    if (!integer && params->group)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--group %d is for --emit gptq, awq and ct; a GGUF type has a block of its own, bnb has %d",
                         params->group, BNB_BLOCK);
    if (!integer && params->asym > 0)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--asym is for --emit gptq, awq and ct; for GGUF choose q4_0 or q4_1 by --type");
    if (!outputs_emits(&p->spec, "bnb") && params->double_quant)
        return llmq_fail(err, LLMQ_E_ARG, "--double-quant is for --emit bnb");
    return LLMQ_OK;
}

llmq_status pipeline_plan_outputs(pipeline *p, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    const char *emit = params->emit ? params->emit : p->method->emit;
    LLMQ_TRY(outputs_check_emit(emit, err));
    int bits = params->bits ? params->bits : 4;
    /* Of four levels it matters whether -2..1 or -1..2 is meant, and gptq stores the zero point in any case. */
    bool asym = params->asym < 0 ? bits == 2 : params->asym > 0;
    llmq_scheme_spec integer = {.bits = bits,
                                .group = params->group ? params->group : DEFAULT_GROUP,
                                .sym = !asym,
                                .zero_plus_one = asym, /* as it is written, so as tuning reads it back */
                                .damp = params->damp > 0 ? params->damp : 0};
    if (params->int8)
        integer = (llmq_scheme_spec){
            .bits = 8, .group = -1, .sym = true, .act_quant = true, .act_static = params->int8 == LLMQ_INT8_STATIC};
    llmq_scheme_spec bnb = {
        .bits = 4, .group = BNB_BLOCK, .sym = true, .double_quant = params->double_quant, .fp4 = p->method->fp4};
    p->spec = (llmq_outputs_spec){.emit = emit,
                                  .out = p->result->out,
                                  .integer = integer,
                                  .bnb = bnb,
                                  .shard_bytes = params->shard_bytes,
                                  .force = params->force};
    if (p->method->emit && strcmp(emit, p->method->emit) != 0)
        return llmq_fail(
            err, LLMQ_E_ARG,
            "--%s is the grid of --emit %s and of nothing else; with --emit %s take --gptq, --rtn or --hqq",
            p->method->name, p->method->emit, emit);
    LLMQ_TRY(pipeline_check_int8(p, err));
    return check_grid_options(p, err);
}

/* The GGUF file's type follows from the grid; --type may say the same. */
static llmq_status integer_type(const pipeline *p, llmq_type *out, llmq_err *err) {
    const llmq_scheme_spec *integer = &p->spec.integer;
    const char *kind = integer->sym ? "symmetric" : "asymmetric", *asked = p->params->type;
    *out = outputs_integer_type(integer);
    if (*out == LLMQ_TYPE_NONE && (asked || outputs_emits(&p->spec, "gguf")))
        return llmq_fail(err, LLMQ_E_ARG,
                         "no GGUF type holds %s groups of %d bits: leave gguf out of --emit, or take another grid",
                         kind, integer->bits);
    if (asked && llmq_type_from_name(asked) != *out)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--type %s: with --emit %s the GGUF file holds the same %s %d-bit grid, which is %s; leave "
                         "--type out, or write the GGUF file in a run of its own",
                         asked, p->spec.emit, kind, integer->bits, llmq_type_name(*out));
    return LLMQ_OK;
}

llmq_status pipeline_folder_type(const pipeline *p, llmq_type *out, llmq_err *err) {
    const llmq_quant_params *params = p->params;
    bool integer = outputs_have_integer(&p->spec);
    if (outputs_emits(&p->spec, "bnb") && params->bits && params->bits != 4)
        return llmq_fail(err, LLMQ_E_ARG, "--bits %d: bnb has 4 bits; leave bnb out of --emit", params->bits);
    if (integer) LLMQ_TRY(integer_type(p, out, err));
    if (!outputs_emits(&p->spec, "gguf")) {
        if (params->type && !integer) return llmq_fail(err, LLMQ_E_ARG, "--type is for GGUF files; bnb has one grid");
        *out = LLMQ_TYPE_F16;
        return LLMQ_OK;
    }
    return LLMQ_OK;
}

llmq_status pipeline_check_folders(const pipeline *p, llmq_type type, llmq_err *err) {
    if (!outputs_have_folder(&p->spec)) return pipeline_check_int8_kept(p, type, err);
    bool gguf = outputs_emits(&p->spec, "gguf");
    for (size_t i = 0; i < p->ex->n; i++) {
        const llmq_tensor *t = &p->ex->tensors[i];
        const llmq_export_entry *entry = &p->ex->entries[i];
        if (!entry->matrix || t->type == type || (entry->layer < 0 && gguf)) continue;
        if (entry->layer < 0)
            return llmq_fail(
                err, LLMQ_E_ARG,
                "%s is to be %s, but --emit %s keeps what is outside the layers at F16; leave that rule out", t->name,
                llmq_type_name(t->type), p->spec.emit);
        return llmq_fail(err, LLMQ_E_ARG,
                         "%s would be %s in the GGUF file where %s is asked for (%s), but --emit %s needs all matrices "
                         "inside the layers on one grid; write the GGUF file in a run of its own",
                         t->name, llmq_type_name(t->type), llmq_type_name(type),
                         p->result->rows[i].note[0] ? p->result->rows[i].note : "a rule says so", p->spec.emit);
    }
    if (outputs_integer_type(&p->spec.integer) == LLMQ_TYPE_Q4_1 && gguf && outputs_have_integer(&p->spec))
        llmq_log(LLMQ_LOG_INFO,
                 "the GGUF file rounds each group's minimum to F16; codes and scales are those of the folders");
    return outputs_check(&p->spec, p->ex, err);
}

void pipeline_plan_row(const pipeline *p, size_t index, llmq_quant_row *row) {
    const llmq_export_entry *entry = &p->ex->entries[index];
    bool folder = strcmp(outputs_first(&p->spec), "gguf") != 0, inside = entry->matrix && entry->layer >= 0;
    row->to = !folder ? p->ex->tensors[index].type : inside ? LLMQ_TYPE_NONE : LLMQ_TYPE_F16;
    row->to_name = llmq_type_name(row->to);
    if (folder && inside) {
        const llmq_type_info *grid = outputs_grid(&p->spec, p->ex, index, 0);
        row->to_name = grid ? grid->name : "?";
    }
    row->bytes = outputs_tensor_bytes(&p->spec, p->ex, index);
}

llmq_status pipeline_name_outputs(pipeline *p, const char *stem, const char *method, llmq_type type, char *out,
                                  size_t cap, llmq_err *err) {
    const char *type_name = pipeline_has_target(p) ? "mixed" : llmq_type_name(type);
    int n, m = snprintf(p->gguf_name, sizeof p->gguf_name, "%s-%s-%s.gguf", path_base(stem), method, type_name);
    bool gguf = outputs_emits(&p->spec, "gguf"), several = outputs_count(&p->spec) > 1;
    if (p->params->out) {
        n = snprintf(out, cap, "%s", p->params->out); /* "out/" works in out.tmp */
        for (; (several || !gguf) && n > 1 && (size_t)n < cap && out[n - 1] == '/'; n--) out[n - 1] = 0;
    } else if (several)
        n = snprintf(out, cap, "%s-%s", stem, method);
    else
        n = snprintf(out, cap, "%s-%s-%s%s", stem, method, gguf ? type_name : outputs_first(&p->spec),
                     gguf ? ".gguf" : "");
    if ((size_t)n >= cap || (several && (size_t)m >= sizeof p->gguf_name))
        return llmq_fail(err, LLMQ_E_ARG, "the path of the %s is too long; give a shorter name with -o",
                         p->params->out ? "output" : "model");
    p->spec.gguf_name = p->gguf_name;
    const char *first = outputs_first(&p->spec);
    llmq_quant_result *r = p->result;
    r->n_outputs = outputs_count(&p->spec);
    if (!several)
        snprintf(r->main_out, sizeof r->main_out, "%s", out);
    else
        snprintf(r->main_out, sizeof r->main_out, "%s/%s%s%s", out, first, strcmp(first, "gguf") ? "" : "/",
                 strcmp(first, "gguf") ? "" : p->gguf_name);
    return LLMQ_OK;
}
