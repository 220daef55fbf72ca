/* Public functions about models: thin wrappers around engine/. */
#include <stdio.h>
#include <string.h>

#include "engine/model.h"

void llmq_model_params_default(llmq_model_params *params) {
    *params = (llmq_model_params){0};
}

llmq_status llmq_device_check(const char *device, llmq_err *err) {
    const llmq_device_ops *ops;
    return device_select(device, &ops, err);
}

llmq_status llmq_model_open(const char *path, const llmq_model_params *params, llmq_model **out, llmq_err *err) {
    return model_open(path, params, out, err);
}

void llmq_model_close(llmq_model *model) {
    model_close(model);
}
void llmq_model_get_info(const llmq_model *model, llmq_model_info *out) {
    *out = model->info;
}
size_t llmq_model_n_tensors(const llmq_model *model) {
    return model->source->n_tensors;
}

llmq_status llmq_model_tensor(const llmq_model *model, size_t index, llmq_tensor_info *out) {
    if (index >= model->source->n_tensors) return LLMQ_E_ARG;
    const llmq_tensor *t = &model->source->tensors[index];
    *out = (llmq_tensor_info){.name = t->name, .type = t->type, .n_dims = t->n_dims, .bytes = t->bytes};
    memcpy(out->dims, t->dims, sizeof out->dims);
    return LLMQ_OK;
}

/* ---- metadata as text ---- */

static const char *const meta_type_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                              "bool", "string", "array", "u64", "i64", "f64"};

static size_t put_element(char *out, size_t cap, const llmq_meta_value *v, size_t i) {
    const uint8_t *p = (const uint8_t *)v->arr.data + i * meta_type_size(v->arr.type);
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        float f32;
        uint64_t u64;
        int64_t i64;
        double f64;
    } x = {0};
    int n;
    if (v->arr.type == META_STR) {
        const llmq_str *s = (const llmq_str *)v->arr.data + i;
        n = snprintf(out, cap, "\"%.*s\"", (int)(s->len < 40 ? s->len : 40), s->s);
        return n < 0 ? 0 : (size_t)n;
    }
    memcpy(&x, p, meta_type_size(v->arr.type));
    switch (v->arr.type) {
    case META_U8:
    case META_BOOL: n = snprintf(out, cap, "%u", x.u8); break;
    case META_I8: n = snprintf(out, cap, "%d", x.i8); break;
    case META_U16: n = snprintf(out, cap, "%u", x.u16); break;
    case META_I16: n = snprintf(out, cap, "%d", x.i16); break;
    case META_U32: n = snprintf(out, cap, "%u", x.u32); break;
    case META_I32: n = snprintf(out, cap, "%d", x.i32); break;
    case META_F32: n = snprintf(out, cap, "%.7g", (double)x.f32); break;
    case META_U64: n = snprintf(out, cap, "%llu", (unsigned long long)x.u64); break;
    case META_I64: n = snprintf(out, cap, "%lld", (long long)x.i64); break;
    default: n = snprintf(out, cap, "%.15g", x.f64); break;
    }
    return n < 0 ? 0 : (size_t)n;
}

enum { SHOWN_ELEMENTS = 6 };

static void render_array(char *out, size_t cap, const llmq_meta_value *v) {
    size_t at = 0;
    const char *type =
        v->arr.type < sizeof meta_type_names / sizeof *meta_type_names ? meta_type_names[v->arr.type] : "?";
    at += (size_t)snprintf(out, cap, "%s[%zu]:", type, v->arr.n);
    for (size_t i = 0; i < v->arr.n && i < SHOWN_ELEMENTS && at + 64 < cap; i++) {
        at += (size_t)snprintf(out + at, cap - at, i ? ", " : " ");
        at += put_element(out + at, cap - at, v, i);
    }
    if (v->arr.n > SHOWN_ELEMENTS && at < cap) snprintf(out + at, cap - at, ", ...");
}

bool llmq_model_meta(const llmq_model *model, size_t index, const char **key_out, const char **value_out) {
    static _Thread_local char text[512]; /* the header promises a value until this thread's next call */
    if (index >= meta_count(model->meta)) return false;
    const llmq_meta_value *v = meta_at(model->meta, index);
    *key_out = v->key;
    *value_out = text;
    switch (v->type) {
    case META_U8:
    case META_U16:
    case META_U32:
    case META_U64: snprintf(text, sizeof text, "%llu", (unsigned long long)v->u); break;
    case META_I8:
    case META_I16:
    case META_I32:
    case META_I64: snprintf(text, sizeof text, "%lld", (long long)v->i); break;
    case META_F32: snprintf(text, sizeof text, "%.7g", v->f); break;
    case META_F64: snprintf(text, sizeof text, "%.15g", v->f); break;
    case META_BOOL: snprintf(text, sizeof text, "%s", v->u ? "true" : "false"); break;
    case META_STR: *value_out = v->str.s; break;
    case META_ARRAY: render_array(text, sizeof text, v); break;
    }
    return true;
}
