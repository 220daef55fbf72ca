/* The list of schemes, and what their readers share. */
#include "formats/schemes/scheme.h"

#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "types/affine.h"

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

void scheme_map_codes(const llmq_scheme_matrix *m, const llmq_type_info *type, uint8_t map[256]) {
    for (int code = 0; code < 256; code++) {
        map[code] = (uint8_t)code;
        for (int i = 0; m->levels && code < 1 << m->bits && i < type->n_levels; i++)
            if (type->levels[i] == m->levels[code]) map[code] = (uint8_t)i;
    }
}

/* ---- split's inverse ---- */

static llmq_type member_type(const char *dtype) {
    static const struct {
        const char *name;
        llmq_type type;
    } types[] = {{"I32", MEMBER_I32}, {"I64", MEMBER_I64},    {"I8", MEMBER_I8},
                 {"U8", MEMBER_U8},   {"F16", LLMQ_TYPE_F16}, {"F32", LLMQ_TYPE_F32}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, dtype)) return types[i].type;
    return LLMQ_TYPE_NONE;
}

/* Views of the members as a reader has them, in the order of the scheme's suffixes. */
static void view_members(const llmq_scheme *scheme, llmq_scheme_matrix *m, void *const *data, int64_t rows,
                         int64_t cols, llmq_tensor views[SCHEME_MAX_MEMBERS]) {
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    int n = scheme->members(&m->spec, rows, cols, members);
    for (int i = 0; i < n; i++) {
        views[i] = (llmq_tensor){.type = member_type(members[i].dtype),
                                 .n_dims = members[i].n_dims,
                                 .dims = {1, 1, 1, 1},
                                 .bytes = members[i].bytes,
                                 .data = data[i]};
        for (int d = 0; d < members[i].n_dims; d++) views[i].dims[d] = members[i].dims[members[i].n_dims - 1 - d];
        for (int k = 0; scheme->suffixes[k]; k++)
            if (!strcmp(scheme->suffixes[k], members[i].suffix)) m->members[k] = &views[i];
    }
}

static const llmq_tensor *member_named(const llmq_scheme *scheme, const llmq_scheme_matrix *m, const char *suffix) {
    for (int k = 0; scheme->suffixes[k]; k++)
        if (!strcmp(scheme->suffixes[k], suffix)) return m->members[k];
    return NULL;
}

static void join_grids(const llmq_scheme *scheme, const llmq_scheme_matrix *m, const float *scale, const int16_t *zero,
                       llmq_quantized *q) {
    int64_t n = quantized_grids(q);
    for (int64_t i = 0; i < n; i++) {
        if (type_is_affine(q->type)) {
            affine_grid_set(&q->grids[i], scale[i], m->spec.sym ? 0 : zero[i]);
        } else {
            memset(&q->grids[i], 0, sizeof q->grids[i]);
            q->grids[i].scale[0] = q->grids[i].d = scale[i];
        }
    }
    if (!q->nested) return;
    const llmq_tensor *codes = member_named(scheme, m, ".weight.absmax"),
                      *absmax = member_named(scheme, m, ".weight.nested_absmax");
    memcpy(q->nested->codes, codes->data, (size_t)codes->bytes);
    memcpy(q->nested->absmax, absmax->data, (size_t)absmax->bytes);
    q->nested->offset = m->nested_offset;
}

llmq_status scheme_join(const llmq_scheme *scheme, const llmq_scheme_spec *spec, const char *name, void *const *data,
                        llmq_quantized *q, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_tensor views[SCHEME_MAX_MEMBERS];
    llmq_scheme_matrix m = {.file = name, .name = name, .spec = *spec};
    uint8_t map[256];
    size_t n = (size_t)quantized_grids(q);
    float *scale = mem_alloc(n, sizeof *scale);
    int16_t *zero = mem_zalloc(n, sizeof *zero);
    if (!scale || !zero) LLMQ_TRY_GOTO(mem_error(err, n * sizeof *scale, name));
    view_members(scheme, &m, data, q->rows, q->cols, views);
    LLMQ_TRY_GOTO(scheme->open(&m, err));
    scheme->scales(&m, 0, q->rows, scale, zero);
    scheme->codes(&m, 0, q->rows, q->codes);
    scheme_map_codes(&m, q->type, map);
    for (int64_t i = 0; m.levels && i < q->rows * q->cols; i++) q->codes[i] = map[q->codes[i]];
    join_grids(scheme, &m, scale, zero, q);
done:
    mem_free(m.group_of);
    mem_free(scale);
    mem_free(zero);
    return status;
}
