/* The list of schemes, and what their readers share. */
#include "formats/schemes/scheme.h"

#include <string.h>

#include "core/half.h"

#define SCHEME(name) extern const llmq_scheme scheme_##name;
#include "formats/schemes/schemes.def"
#undef SCHEME

static const llmq_scheme *const schemes[] = {
#define SCHEME(name) &scheme_##name,
#include "formats/schemes/schemes.def"
#undef SCHEME
};

const llmq_scheme *scheme_at(size_t index) {
    return index < sizeof schemes / sizeof *schemes ? schemes[index] : NULL;
}

const llmq_scheme *scheme_find(const char *name) {
    for (size_t i = 0; scheme_at(i); i++)
        if (!strcmp(scheme_at(i)->name, name)) return scheme_at(i);
    return NULL;
}

const llmq_scheme *scheme_for_config(const char *quant_method) {
    for (size_t i = 0; scheme_at(i); i++)
        if (!strcmp(scheme_at(i)->quant_method, quant_method)) return scheme_at(i);
    return NULL;
}

static bool is_float_type(llmq_type type) {
    return type == LLMQ_TYPE_F16 || type == LLMQ_TYPE_BF16 || type == LLMQ_TYPE_F32;
}

llmq_status scheme_need(const llmq_scheme_matrix *m, const llmq_scheme *scheme, int i, llmq_type type, int64_t rows,
                        int64_t cols, llmq_err *err) {
    const llmq_tensor *t = m->members[i];
    int n_dims = cols < 0 ? 1 : 2;
    const char *suffix = scheme->suffixes[i];
    if (!t)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: the matrix has no %s: an incomplete download? get it again",
                         m->file, m->name, suffix);
    if (type == MEMBER_FLOAT ? !is_float_type(t->type) : t->type != type)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: its %s has a dtype that %s does not store there", m->file,
                         m->name, suffix, scheme->quant_method);
    int64_t got_cols = n_dims == 2 ? t->dims[0] : -1, got_rows = n_dims == 2 ? t->dims[1] : t->dims[0];
    if (t->n_dims != n_dims || (rows && got_rows != rows) || (cols > 0 && got_cols != cols))
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: %s: the shape of its %s does not fit the matrix or the quantization_config: the file is "
                         "damaged or its config.json is of another model",
                         m->file, m->name, suffix);
    return LLMQ_OK;
}

void scheme_floats(const llmq_tensor *t, int64_t at, int64_t n, float *out) {
    const uint8_t *p = (const uint8_t *)t->data + at * (t->type == LLMQ_TYPE_F32 ? 4 : 2);
    if (t->type == LLMQ_TYPE_F32) {
        memcpy(out, p, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = t->type == LLMQ_TYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
    }
}
