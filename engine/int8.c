#include "engine/int8.h"

#include <math.h>
#include <string.h>

static bool range_is_sound(llmq_act_range r) {
    return r.scale >= 0 && isfinite(r.scale) && r.zero >= -128 && r.zero <= 127;
}

/* The metadata's arrays. */
static llmq_status read_arrays(const llmq_model *model, size_t n, llmq_act_range *out, llmq_err *err) {
    const llmq_meta_value *scales = meta_find(model->meta, FORMAT_INT8_SCALES),
                          *zeros = meta_find(model->meta, FORMAT_INT8_ZEROS);
    if (!scales || scales->type != META_ARRAY || scales->arr.type != META_F32 || scales->arr.n != n || !zeros ||
        zeros->type != META_ARRAY || zeros->arr.type != META_I32 || zeros->arr.n != n)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: metadata keys '" FORMAT_INT8_SCALES "' and '" FORMAT_INT8_ZEROS
                         "' must be %zu numbers each, four a layer; quantize the model again",
                         model->source->path, n);
    for (size_t i = 0; i < n; i++) {
        memcpy(&out[i].scale, (const char *)scales->arr.data + i * sizeof(float), sizeof(float));
        memcpy(&out[i].zero, (const char *)zeros->arr.data + i * sizeof(int32_t), sizeof(int32_t));
        if (!range_is_sound(out[i]))
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: metadata key '" FORMAT_INT8_SCALES
                             "' has a range that cannot be (scale %g, zero %d); "
                             "quantize the model again",
                             model->source->path, (double)out[i].scale, (int)out[i].zero);
    }
    return LLMQ_OK;
}

/* Ranges that the container has with each matrix. Those of one input must agree, or its tokens get their own. */
static void collect(const llmq_model *model, size_t n, llmq_act_range *out) {
    bool seen[SITE_COUNT];
    for (size_t i = 0; i < n; i += SITE_COUNT) {
        memset(seen, 0, sizeof seen);
        for (int role = ROLE_ATTN_NORM; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = model->layer_tensors[i / SITE_COUNT].by_role[role];
            llmq_act_range r;
            if (!t || !arch_role_is_matrix((llmq_role)role) || !source_input(model->source, t, &r)) continue;
            llmq_site_id site = arch_rule(model->arch, (llmq_role)role)->site;
            if (seen[site] && memcmp(&r, &out[i + (size_t)site], sizeof r) != 0) r = (llmq_act_range){0};
            out[i + (size_t)site] = r;
            seen[site] = true;
        }
    }
}

llmq_status int8_write(llmq_meta *meta, const llmq_act_range *inputs, size_t n, llmq_err *err) {
    float *scales = mem_alloc(n, sizeof *scales);
    int32_t *zeros = mem_alloc(n, sizeof *zeros);
    llmq_status status = scales && zeros ? LLMQ_OK : mem_error(err, n * sizeof *scales, "ranges of inputs");
    for (size_t i = 0; status == LLMQ_OK && i < n; i++) {
        scales[i] = inputs[i].scale;
        zeros[i] = inputs[i].zero;
    }
    if (status == LLMQ_OK) status = meta_set_str(meta, FORMAT_INT8_KEY, "static", err);
    if (status == LLMQ_OK) status = meta_set_array(meta, FORMAT_INT8_SCALES, META_F32, scales, n, err);
    if (status == LLMQ_OK) status = meta_set_array(meta, FORMAT_INT8_ZEROS, META_I32, zeros, n, err);
    mem_free(scales);
    mem_free(zeros);
    return status;
}

void int8_forget(llmq_meta *meta) {
    meta_remove(meta, FORMAT_INT8_KEY);
    meta_remove(meta, FORMAT_INT8_SCALES);
    meta_remove(meta, FORMAT_INT8_ZEROS);
}

llmq_status int8_read(llmq_model *model, llmq_err *err) {
    const char *kind = meta_get_str(model->meta, FORMAT_INT8_KEY);
    if (!kind) return LLMQ_OK;
    bool fixed = !strcmp(kind, "static");
    if (!fixed && strcmp(kind, "dynamic") != 0)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: metadata key '" FORMAT_INT8_KEY "' is '%.40s'; llmq knows dynamic and static",
                         model->source->path, kind);
    size_t n = (size_t)model->hp.n_layer * SITE_COUNT;
    llmq_act_range *inputs = arena_alloc(model->arena, n * sizeof *inputs, MEM_ALIGN);
    if (!inputs) return mem_error(err, n * sizeof *inputs, "ranges of inputs");
    memset(inputs, 0, n * sizeof *inputs);
    model->int8_inputs = inputs;
    if (!fixed) return LLMQ_OK;
    if (!model->source->format->input) return read_arrays(model, n, inputs, err);
    collect(model, n, inputs);
    return int8_write(model->meta, inputs, n, err);
}

const char *int8_describe(const llmq_model *model) {
    return model->int8_inputs ? meta_get_str(model->meta, FORMAT_INT8_KEY) : NULL;
}

bool int8_runs(const llmq_model *model, const llmq_tensor *t) {
    return model->int8_inputs && t->type == LLMQ_TYPE_Q8_0 && model->ops->weight_prepare_int8;
}

llmq_act_range int8_input(const llmq_model *model, int64_t layer, llmq_role role) {
    return model->int8_inputs[layer * SITE_COUNT + arch_rule(model->arch, role)->site];
}
