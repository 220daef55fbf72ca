/* convert --emit: a quantized model to a folder of an integer scheme, without quantizing it again. That works where its
 * blocks are groups of such a grid: Q4_0 and Q8_0 whose scales are positive (or can be made so: a block of negative
 * scale that does not use its lowest level is the same as one of positive scale with all signs turned). Groups are as
 * long as blocks of the same scale follow each other. */
#include <stdio.h>

#include "engine/jobs.h"
#include "engine/outputs.h"
#include "types/affine.h"

typedef struct regroup {
    const llmq_export *ex;
    const char *emit;
    llmq_type type; /* of all matrices inside the layers */
    int64_t group;  /* 32, 64, 128: the longest that all of them have */
} regroup;

static bool is_inside(const llmq_export *ex, size_t i) {
    return ex->entries[i].matrix && ex->entries[i].layer >= 0;
}

/* A block as a group of positive scale; false if it has none. */
static bool block_get(const llmq_type_info *type, const uint8_t *block, float *scale, uint8_t *codes) {
    llmq_grid grid;
    type->unpack(block, &grid, codes);
    *scale = grid.scale[0];
    if (*scale >= 0) return true;
    for (int i = 0; i < type->block_len; i++)
        if (codes[i] == 0) return false;
    for (int i = 0; i < type->block_len; i++) codes[i] = (uint8_t)(type->n_levels - codes[i]);
    *scale = -*scale;
    return true;
}

static llmq_status inexact(const regroup *g, const char *name, const char *why, llmq_err *err) {
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "%s: %s, which --emit %s cannot hold exactly; llmq quantize --emit makes such a model, best from "
                     "full precision",
                     name, why, g->emit);
}

static llmq_status check_types(regroup *g, llmq_err *err) {
    g->type = LLMQ_TYPE_NONE;
    for (size_t i = 0; i < g->ex->n; i++) {
        if (!is_inside(g->ex, i)) continue;
        const llmq_tensor *src = g->ex->entries[i].src;
        if (src->type != LLMQ_TYPE_Q4_0 && src->type != LLMQ_TYPE_Q8_0) {
            char why[64];
            snprintf(why, sizeof why, "it is %s", llmq_type_name(src->type));
            return inexact(g, src->name, why, err);
        }
        if (g->type != LLMQ_TYPE_NONE && g->type != src->type)
            return inexact(g, src->name, "matrices inside the layers are of different types", err);
        if (!source_exact(g->ex->model->source, src))
            return inexact(g, src->name, "its zero points or scales were rounded on reading", err);
        g->type = src->type;
    }
    return LLMQ_OK;
}

/* Makes group shorter until blocks of a group have one scale in this matrix. */
static llmq_status measure(regroup *g, size_t index, llmq_err *err) {
    const llmq_tensor *src = g->ex->entries[index].src;
    const llmq_type_info *type = type_info(src->type);
    int64_t cols = tensor_cols(src), n_blocks = cols / type->block_len;
    const uint8_t *block = src->data;
    uint8_t codes[TYPE_MAX_BLOCK];
    while (cols % g->group) g->group /= 2;
    for (int64_t r = 0; r < tensor_rows(src); r++) {
        float first = 0;
        for (int64_t b = 0; b < n_blocks; b++, block += type->block_bytes) {
            float scale = 0;
            if (!block_get(type, block, &scale, codes))
                return inexact(g, src->name, "it has blocks of negative scale that use their lowest level", err);
            while (b * type->block_len % g->group && scale != first) g->group /= 2;
            if (b * type->block_len % g->group == 0) first = scale;
        }
    }
    return LLMQ_OK;
}

static void fill(const regroup *g, size_t index, llmq_quantized *q) {
    const llmq_tensor *src = g->ex->entries[index].src;
    const llmq_type_info *type = type_info(src->type);
    const uint8_t *block = src->data;
    int64_t n_groups = q->cols / g->group;
    for (int64_t at = 0; at < q->rows * q->cols; at += type->block_len, block += type->block_bytes) {
        float scale;
        (void)block_get(type, block, &scale, q->codes + at); /* asked before */
        affine_grid_set(&q->grids[at / q->cols * n_groups + at % q->cols / g->group], scale, 0);
    }
}

static llmq_status put(const regroup *g, size_t index, llmq_outputs *outputs, llmq_team *team, llmq_err *err) {
    const llmq_tensor *src = g->ex->entries[index].src;
    llmq_source *source = g->ex->model->source;
    llmq_quantized *q = NULL;
    const llmq_type_info *grid = type_affine(type_info(g->type)->bits, g->group, true);
    LLMQ_TRY(source_load(source, src, false, err));
    LLMQ_TRY(quantized_create(grid, tensor_rows(src), tensor_cols(src), &q, err));
    fill(g, index, q);
    llmq_status status = outputs_put(outputs, index, q, team, err);
    quantized_destroy(q);
    source_release(source, src);
    return status;
}

static llmq_status write_all(const regroup *g, llmq_outputs *outputs, llmq_team *team,
                             const llmq_convert_params *params, llmq_convert_result *result, llmq_err *err) {
    for (size_t i = 0; i < g->ex->n; i++) {
        bool exact = true;
        if (params->progress &&
            !params->progress(params->user, (double)i, (double)g->ex->n, g->ex->tensors[i].name, -1))
            return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
        if (is_inside(g->ex, i))
            LLMQ_TRY(put(g, i, outputs, team, err));
        else
            LLMQ_TRY(outputs_put_plain(outputs, i, NULL, team, &exact, NULL, NULL, err));
        *(exact ? &result->n_exact : &result->n_inexact) += 1;
    }
    return LLMQ_OK;
}

llmq_status convert_to_folders(const llmq_export *ex, const char *out, const llmq_convert_params *params,
                               llmq_team *team, llmq_convert_result *result, llmq_err *err) {
    llmq_outputs *outputs = NULL;
    llmq_source *source = ex->model->source;
    regroup g = {.ex = ex, .emit = params->emit, .group = 128};
    LLMQ_TRY(outputs_check_emit(params->emit, err));
    llmq_outputs_spec spec = {
        .emit = params->emit, .out = out, .shard_bytes = params->shard_bytes, .force = params->force};
    if (params->type || outputs_emits(&spec, "gguf") || outputs_emits(&spec, "bnb"))
        return llmq_fail(err, LLMQ_E_ARG,
                         "convert --emit makes gptq, awq and ct of a quantized model; for GGUF files give --emit gguf "
                         "or --type alone, for bnb see llmq quantize");
    LLMQ_TRY(outputs_check_path(&spec, source, params->force, err));
    LLMQ_TRY(check_types(&g, err));
    for (size_t i = 0; i < ex->n; i++) {
        if (!is_inside(ex, i)) continue;
        LLMQ_TRY(source_load(source, ex->entries[i].src, false, err));
        LLMQ_TRY(measure(&g, i, err));
        source_release(source, ex->entries[i].src);
    }
    if (g.type == LLMQ_TYPE_NONE) return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: has no layers", source->path);
    spec.integer = (llmq_scheme_spec){.bits = type_info(g.type)->bits, .group = g.group, .sym = true};
    LLMQ_TRY(outputs_check(&spec, ex, err));
    LLMQ_TRY(outputs_open(&spec, ex, &outputs, err));
    llmq_status status = write_all(&g, outputs, team, params, result, err);
    if (status == LLMQ_OK) return outputs_finish(outputs, &result->out_bytes, err);
    outputs_abort(outputs, false);
    return status;
}
