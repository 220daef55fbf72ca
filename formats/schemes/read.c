/* From members of any scheme to tensors of a storage type.
 *
 * A matrix of integer codes is scale * (code - zero). Where groups are made of whole blocks of 32 columns and codes
 * less zeros fit the signed levels of Q4_0, Q5_0 or Q8_0, the values are exactly those of such blocks with the scale as
 * d: symmetric 2 to 4 bits become Q4_0, asymmetric 4 bits Q5_0 (their differences go from -15 to 15) or, where every
 * -scale * zero happens to be an F16 number, Q4_1. NF4 and FP4 become blocks of 64 with the scale of the file's block
 * that they lie in. What no block type can hold (act-order, groups that cut a block) becomes F16, rounded; F32 where
 * F16 would overflow. Scales that F16 does not hold are rounded too, provided that the largest change is small beside
 * the matrix's largest scale. What was rounded is counted. */
#include "formats/schemes/read.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "formats/json.h"
#include "formats/schemes/scheme.h"
#include "formats/source.h"
#include "types/blocks.h"

#define CONFIG_MAX_BYTES ((size_t)16 << 20)
#define SLAB 64 /* rows made at a time */
#define F16_OVERFLOW 65520.0f

typedef struct matrix {
    llmq_scheme_matrix m;
    void *bytes; /* untouched zeros until it is made */
    size_t n_bytes;
    bool made, kept, rounded;
} matrix;

typedef struct owned {
    const llmq_scheme *scheme;
    llmq_scheme_spec spec;
    llmq_tensor *originals; /* as the files have them */
    size_t n_originals;
    matrix *matrices;
    size_t n_matrices;
    matrix **of_tensor; /* [src->n_tensors]; NULL: stored plainly */
    llmq_source_quant quant;
} owned;

/* ---- the configuration ---- */

/* The object, borrowed from root; NULL: nothing is quantized. */
static const json_t *find_config(const json_t *root) {
    const json_t *quant = json_get(root, "quantization_config");
    return quant ? quant : json_get(root, "compression_config"); /* compressed-tensors' own, older */
}

static llmq_status choose_scheme(const json_t *quant, const char *file, owned *o, llmq_err *err) {
    const char *method = NULL;
    char known[128] = "";
    LLMQ_TRY(json_get_str(quant, "quant_method", file, &method, err));
    if (!method)
        method = json_get(quant, "bits") ? "gptq" : json_get(quant, "config_groups") ? "compressed-tensors" : "?";
    o->scheme = scheme_for_config(method);
    for (size_t i = 0; scheme_at(i); i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                 scheme_at(i)->quant_method);
    if (!o->scheme)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: quant_method \"%.40s\"; llmq reads %s and unquantized folders", file,
                         method, known);
    return o->scheme->read_config(quant, file, &o->spec, err);
}

/* src->owned stays NULL where nothing is quantized. */
llmq_status schemes_begin(llmq_source *src, const char *dir, llmq_err *err) {
    static const char *const names[] = {"config.json", "quantize_config.json"};
    llmq_status status = LLMQ_OK;
    json_t *root = NULL;
    owned *o = NULL;
    for (int i = 0; i < 2 && !o; i++) {
        char path[SOURCE_MAX_PATH];
        if (!path_join(path, sizeof path, dir, names[i]) || !file_exists(path)) continue;
        json_decref(root);
        root = NULL;
        LLMQ_TRY_GOTO(json_read_object(path, CONFIG_MAX_BYTES, &root, err));
        const json_t *quant = i ? root : find_config(root); /* the second file is AutoGPTQ's: all of it is the object */
        if (!quant || (i && !json_get(root, "bits"))) continue;
        if (!json_is_object(quant))
            LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_FORMAT, "%s: quantization_config is not an object", path));
        o = mem_zalloc(1, sizeof *o);
        if (!o) LLMQ_TRY_GOTO(mem_error(err, sizeof *o, src->path));
        LLMQ_TRY_GOTO(choose_scheme(quant, path, o, err));
    }
    src->owned = o;
    o = NULL;
done:
    json_decref(root);
    mem_free(o);
    return status;
}

/* ---- finding matrices ---- */

static bool is_member_type(llmq_type type) {
    return source_member_bytes(type) > 0;
}

/* The length of P if t is where a matrix begins, else 0. */
static size_t matrix_prefix(const llmq_scheme *scheme, const llmq_tensor *t) {
    size_t n = strlen(t->name);
    for (int k = 0; k < scheme->n_keys && is_member_type(t->type); k++) {
        size_t len = strlen(scheme->suffixes[k]);
        if (n > len && !strcmp(t->name + n - len, scheme->suffixes[k])) return n - len;
    }
    return 0;
}

/* Members of the matrix P; used[] gets a mark for each. */
static void find_members(const owned *o, const source_index *index, const char *name, size_t prefix, matrix *x,
                         bool *used) {
    for (int k = 0; o->scheme->suffixes[k]; k++) {
        char member[2 * TENSOR_MAX_NAME];
        snprintf(member, sizeof member, "%.*s%s", (int)prefix, name, o->scheme->suffixes[k]);
        size_t i = source_index_find(index, o->originals, o->n_originals, member);
        if (i == o->n_originals) continue;
        x->m.members[k] = &o->originals[i];
        used[i] = true;
    }
}

/* ---- the storage type ---- */

/* What all groups of a matrix have in common. */
typedef struct survey {
    int zero_min, zero_max;
    float scale_max, scale_change; /* largest magnitude; largest change by rounding to F16 */
    bool scales_exact, mins_exact;
} survey;

/* Rows are worked on by slabs; weights of a flat slab's first group that lie before the slab. */
static int64_t slab_rows(const llmq_scheme_matrix *m, int64_t row) {
    return m->rows - row < SLAB ? m->rows - row : SLAB;
}

static int64_t slab_base(const llmq_scheme_matrix *m, int64_t row) {
    return m->flat ? row * m->cols % m->group : 0;
}

static int64_t slab_groups(const llmq_scheme_matrix *m, int64_t row) {
    int64_t rows = slab_rows(m, row);
    return m->flat ? (slab_base(m, row) + rows * m->cols + m->group - 1) / m->group : rows * m->n_groups;
}

static size_t slab_max_groups(const llmq_scheme_matrix *m) {
    int64_t rows = slab_rows(m, 0);
    return (size_t)(m->flat ? rows * m->cols / m->group + 2 : rows * m->n_groups);
}

static void survey_groups(const float *scale, const int16_t *zero, int64_t n, survey *s) {
    for (int64_t i = 0; i < n; i++) {
        float stored = f16_to_f32(f32_to_f16(scale[i])), min = scale[i] * (float)zero[i];
        if (zero[i] < s->zero_min) s->zero_min = zero[i];
        if (zero[i] > s->zero_max) s->zero_max = zero[i];
        s->scale_max = fabsf(scale[i]) > s->scale_max || isnan(scale[i]) ? fabsf(scale[i]) : s->scale_max;
        if (stored != scale[i]) {
            float change = fabsf(stored - scale[i]);
            s->scales_exact = false;
            if (!(change <= s->scale_change)) s->scale_change = change;
        }
        if (s->mins_exact && f16_to_f32(f32_to_f16(min)) != min) s->mins_exact = false;
    }
}

static llmq_status survey_matrix(const llmq_scheme *scheme, const llmq_scheme_matrix *m, survey *s, llmq_err *err) {
    size_t n = slab_max_groups(m);
    float *scale = mem_alloc(n, sizeof *scale);
    int16_t *zero = mem_alloc(n, sizeof *zero);
    llmq_status status = LLMQ_OK;
    *s = (survey){.zero_min = INT16_MAX, .zero_max = INT16_MIN, .scales_exact = true, .mins_exact = true};
    if (!scale || !zero) LLMQ_TRY_GOTO(mem_error(err, n * sizeof *scale, m->name));
    for (int64_t r = 0; r < m->rows; r += SLAB) {
        scheme->scales(m, r, slab_rows(m, r), scale, zero);
        survey_groups(scale, zero, slab_groups(m, r), s);
    }
    if (!isfinite(s->scale_max))
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: a scale is not finite: the file is damaged", m->file, m->name);
done:
    mem_free(scale);
    mem_free(zero);
    return status;
}

/* Do blocks of len weights each lie in one row and one group? */
static bool blocks_fit(const llmq_scheme_matrix *m, int64_t len) {
    if (m->cols % len) return false;
    if (!m->group_of) return (m->n_groups == 1 && !m->flat) || m->group % len == 0;
    for (int64_t k = 0; k < m->cols; k++)
        if (m->group_of[k] != m->group_of[k / len * len]) return false;
    return true;
}

static llmq_type choose_type(const llmq_scheme_matrix *m, const survey *s, bool *rounded) {
    int lo = -s->zero_max, hi = (1 << m->bits) - 1 - s->zero_min;
    float largest = s->scale_max * (m->levels ? 1.0f : (float)(hi > -lo ? hi : -lo));
    if (m->levels && m->type != LLMQ_TYPE_NONE && blocks_fit(m, type_info(m->type)->block_len) &&
        largest < F16_OVERFLOW) { /* otherwise a conversion to GGUF would fail */
        *rounded = false;
        return m->type;
    }
    *rounded = !s->scales_exact;
    if (!m->levels && blocks_fit(m, QK) && s->scale_change <= s->scale_max / 2048 && s->scale_max < F16_OVERFLOW) {
        if (lo >= -8 && hi <= 7) return LLMQ_TYPE_Q4_0;
        if (m->bits <= 4 && s->mins_exact && s->zero_min >= 0) return LLMQ_TYPE_Q4_1;
        if (lo >= -16 && hi <= 15) return LLMQ_TYPE_Q5_0;
        if (lo >= -128 && hi <= 127) return LLMQ_TYPE_Q8_0;
    }
    *rounded = largest < F16_OVERFLOW;
    return *rounded ? LLMQ_TYPE_F16 : LLMQ_TYPE_F32;
}

/* ---- attaching ---- */

static llmq_status open_matrix(owned *o, matrix *x, llmq_tensor *t, llmq_err *err) {
    survey s;
    LLMQ_TRY(o->scheme->open(&x->m, err));
    LLMQ_TRY(survey_matrix(o->scheme, &x->m, &s, err));
    t->type = choose_type(&x->m, &s, &x->rounded);
    t->n_dims = 2;
    t->dims[0] = x->m.cols;
    t->dims[1] = x->m.rows;
    if (x->m.bits <= 4 && !x->m.group_of && !x->m.flat) t->group = x->m.n_groups == 1 ? x->m.cols : x->m.group;
    LLMQ_TRY(source_size_tensor(t, x->m.file, err));
    x->n_bytes = (size_t)t->bytes;
    x->bytes = mem_alloc_lazy(x->n_bytes);
    if (!x->bytes) return mem_error(err, x->n_bytes, t->name);
    t->data = x->bytes;
    return LLMQ_OK;
}

static llmq_status add_matrix(llmq_source *src, owned *o, const source_index *index, const llmq_tensor *key,
                              size_t prefix, bool *used, llmq_err *err) {
    size_t i = src->n_tensors++;
    llmq_tensor *t = &src->tensors[i];
    matrix *x = &o->matrices[o->n_matrices++];
    char name[TENSOR_MAX_NAME + 16];
    *t = (llmq_tensor){.n_dims = 2};
    snprintf(name, sizeof name, "%.*s.weight", (int)prefix, key->name);
    LLMQ_TRY(source_name_tensor(t, name, strlen(name), src->path, err));
    x->m = (llmq_scheme_matrix){.file = src->path, .name = t->name, .spec = o->spec, .type = LLMQ_TYPE_NONE};
    find_members(o, index, key->name, prefix, x, used);
    o->of_tensor[i] = x;
    return open_matrix(o, x, t, err);
}

/* src's tensors anew: those that are stored plainly, and one for each matrix. */
static llmq_status replace_members(llmq_source *src, owned *o, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t n = src->n_tensors, n_keys = 0;
    source_index *index = NULL;
    bool *used = mem_zalloc(n, sizeof *used);
    llmq_tensor *tensors = mem_zalloc(n, sizeof *tensors);
    o->of_tensor = mem_zalloc(n, sizeof *o->of_tensor);
    if (!used || !tensors || !o->of_tensor) {
        mem_free(tensors);
        LLMQ_TRY_GOTO(mem_error(err, n * sizeof *tensors, src->path));
    }
    o->originals = src->tensors;
    o->n_originals = n;
    src->tensors = tensors;
    src->n_tensors = 0;
    LLMQ_TRY_GOTO(source_index_create(o->originals, n, src->path, &index, err));
    for (size_t i = 0; i < n; i++) n_keys += matrix_prefix(o->scheme, &o->originals[i]) > 0;
    o->matrices = mem_zalloc(n_keys, sizeof *o->matrices);
    if (!o->matrices) LLMQ_TRY_GOTO(mem_error(err, n_keys * sizeof *o->matrices, src->path));
    for (size_t i = 0; i < n; i++) {
        size_t prefix = matrix_prefix(o->scheme, &o->originals[i]);
        if (prefix) LLMQ_TRY_GOTO(add_matrix(src, o, index, &o->originals[i], prefix, used, err));
    }
    for (size_t i = 0; i < n; i++)
        if (!used[i]) src->tensors[src->n_tensors++] = o->originals[i];
done:
    source_index_destroy(index);
    mem_free(used);
    return status;
}

static void describe(owned *o) {
    llmq_source_quant *quant = &o->quant;
    const llmq_scheme_matrix *m = &o->matrices[0].m;
    bool act_order = false, sym = o->spec.sym;
    for (size_t i = 0; i < o->n_matrices; i++) {
        quant->n_rounded += o->matrices[i].rounded;
        act_order |= o->matrices[i].m.group_of != NULL;
    }
    quant->n_matrices = (int64_t)o->n_matrices;
    int n = snprintf(quant->text, sizeof quant->text, "%s, %d bits, ", o->scheme->quant_method, m->bits);
    if (m->n_groups == 1 && !m->flat && o->spec.group < 0)
        n += snprintf(quant->text + n, sizeof quant->text - (size_t)n, "one scale a row");
    else
        n += snprintf(quant->text + n, sizeof quant->text - (size_t)n, "groups of %lld",
                      (long long)(o->spec.group > 0 ? o->spec.group : m->group));
    snprintf(quant->text + n, sizeof quant->text - (size_t)n, "%s%s%s",
             m->levels ? ""
             : sym     ? ", symmetric"
                       : ", asymmetric",
             act_order ? ", act-order" : "", o->spec.act_quant ? ", inputs of 8 bits" : "");
    if (quant->n_rounded)
        snprintf(
            quant->note, sizeof quant->note,
            "%lld of %lld quantized matrices have no exact counterpart among llmq's storage types and were rounded",
            (long long)quant->n_rounded, (long long)quant->n_matrices);
}

/* What is stored plainly must be floats. */
static llmq_status check_leftovers(const llmq_source *src, llmq_err *err) {
    for (size_t i = 0; i < src->n_tensors; i++)
        if (is_member_type(src->tensors[i].type))
            return llmq_fail(
                err, LLMQ_E_UNSUPPORTED,
                "%s: tensor %s holds integers and belongs to no matrix of the quantization_config's method; "
                "is the config.json of another model?",
                src->path, src->tensors[i].name);
    return LLMQ_OK;
}

llmq_status schemes_attach(llmq_source *src, llmq_err *err) {
    owned *o = src->owned;
    if (!o) return LLMQ_OK;
    LLMQ_TRY(replace_members(src, o, err));
    LLMQ_TRY(check_leftovers(src, err));
    if (!o->n_matrices) return LLMQ_OK;
    describe(o);
    src->quant = &o->quant;
    if (!o->spec.act_quant) return LLMQ_OK;
    return meta_set_str(src->meta, FORMAT_INT8_KEY, o->spec.act_static ? "static" : "dynamic", err);
}

void schemes_close(llmq_source *src) {
    owned *o = src->owned;
    if (!o) return;
    for (size_t i = 0; i < o->n_matrices; i++) {
        mem_free(o->matrices[i].m.group_of);
        mem_free_big(o->matrices[i].bytes, o->matrices[i].n_bytes);
    }
    mem_free(o->matrices);
    mem_free(o->of_tensor);
    mem_free(o->originals);
    mem_free(o);
}

/* ---- making the bytes ---- */

typedef struct slab {
    uint8_t map[256]; /* with levels: a code's number among the type's */
    uint8_t *codes;
    float *scale, *values;
    int16_t *zero;
    int64_t base;
} slab;

static int64_t group_at(const llmq_scheme_matrix *m, const slab *s, int64_t r, int64_t k) {
    if (m->flat) return (s->base + r * m->cols + k) / m->group;
    return r * m->n_groups + (m->group_of ? m->group_of[k] : k / m->group);
}

/* Row r of the slab to blocks of t: exactly, or with the scale (and the minimum) rounded to F16. */
static void make_blocks(const llmq_scheme_matrix *m, const llmq_type_info *t, slab *s, int64_t r, uint8_t *dst) {
    uint8_t *codes = s->codes + r * m->cols;
    for (int64_t k = 0; k < m->cols; k += t->block_len, dst += t->block_bytes, codes += t->block_len) {
        int64_t g = group_at(m, s, r, k);
        if (m->levels) {
            llmq_grid grid = {.scale = {s->scale[g]}, .d = s->scale[g]};
            for (int i = 0; i < t->block_len; i++) codes[i] = s->map[codes[i]];
            t->pack(&grid, codes, dst);
            continue;
        }
        float first = t->levels[0], offset = 0;
        int shift = first < 0 ? -(int)first - s->zero[g] : 0;
        if (first == 0) offset = -(s->scale[g] * (float)s->zero[g]);
        for (int i = 0; shift && i < t->block_len; i++) codes[i] = (uint8_t)(codes[i] + shift);
        llmq_grid grid = {.scale = {s->scale[g]}, .offset = {offset}, .d = s->scale[g], .dmin = offset};
        t->pack(&grid, codes, dst);
    }
}

static void make_floats(const llmq_scheme_matrix *m, const llmq_type_info *t, slab *s, int64_t r, uint8_t *dst) {
    const uint8_t *codes = s->codes + r * m->cols;
    for (int64_t k = 0; k < m->cols; k++) {
        int64_t g = group_at(m, s, r, k);
        float level = m->levels ? m->levels[codes[k]] : (float)codes[k];
        s->values[k] = s->scale[g] * (level - (float)s->zero[g]);
    }
    t->from_f32(s->values, dst, m->cols);
}

static llmq_status make_matrix(const llmq_scheme *scheme, matrix *x, const llmq_tensor *t, llmq_err *err) {
    const llmq_scheme_matrix *m = &x->m;
    const llmq_type_info *type = type_info(t->type);
    size_t groups = slab_max_groups(m), n_codes = (size_t)(slab_rows(m, 0) * m->cols);
    int64_t row_bytes = type_row_bytes(t->type, m->cols);
    slab s = {.codes = mem_alloc(n_codes, 1),
              .scale = mem_alloc(groups, sizeof *s.scale),
              .values = mem_alloc((size_t)m->cols, sizeof *s.values),
              .zero = mem_alloc(groups, sizeof *s.zero)};
    llmq_status status = LLMQ_OK;
    if (!s.codes || !s.scale || !s.values || !s.zero) LLMQ_TRY_GOTO(mem_error(err, n_codes, m->name));
    if (m->levels) scheme_map_codes(m, type, s.map);
    for (int64_t row = 0; row < m->rows; row += SLAB) {
        int64_t n = slab_rows(m, row);
        s.base = slab_base(m, row);
        scheme->scales(m, row, n, s.scale, s.zero);
        scheme->codes(m, row, n, s.codes);
        for (int64_t r = 0; r < n; r++) {
            uint8_t *dst = (uint8_t *)x->bytes + (row + r) * row_bytes;
            if (type_is_float(type))
                make_floats(m, type, &s, r, dst);
            else
                make_blocks(m, type, &s, r, dst);
        }
    }
    x->made = true;
done:
    mem_free(s.codes);
    mem_free(s.scale);
    mem_free(s.values);
    mem_free(s.zero);
    return status;
}

static matrix *matrix_of(const llmq_source *src, const llmq_tensor *t) {
    const owned *o = src->owned;
    size_t i = (size_t)(t - src->tensors);
    return o && t >= src->tensors && i < src->n_tensors ? o->of_tensor[i] : NULL;
}

llmq_status schemes_load(llmq_source *src, const llmq_tensor *t, bool keep, llmq_err *err) {
    matrix *x = matrix_of(src, t);
    if (!x) return LLMQ_OK;
    x->kept |= keep;
    return x->made ? LLMQ_OK : make_matrix(((owned *)src->owned)->scheme, x, t, err);
}

void schemes_release(const llmq_source *src, const llmq_tensor *t) {
    matrix *x = matrix_of(src, t);
    if (!x || !x->made || x->kept) return;
    mem_zero_lazy(x->bytes, x->n_bytes);
    x->made = false;
}

bool schemes_exact(const llmq_source *src, const llmq_tensor *t) {
    const matrix *x = matrix_of(src, t);
    return !x || !x->rounded;
}

bool schemes_input(const llmq_source *src, const llmq_tensor *t, llmq_act_range *out) {
    const matrix *x = matrix_of(src, t);
    if (!x || !x->m.spec.act_quant) return false;
    *out = x->m.input;
    return true;
}
