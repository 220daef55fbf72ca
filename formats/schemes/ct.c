/* compressed-tensors (vLLM's llm-compressor). A matrix of N rows (outputs) and K columns (inputs), b bits, G groups:
 *
 *   pack-quantized   P.weight_packed     I32 [N, ceil(K b / 32)]   signed codes + 2^(b-1), packed along the inputs
 *                    P.weight_scale      F16 [N, G]
 *                    P.weight_shape      I64 [2] = N, K
 *                    P.weight_zero_point I32 [ceil(N b / 32), G]   asymmetric only, + 2^(b-1), packed along the outputs
 *                    P.weight_g_idx      I32 [K]                   reading, actorder "group" only
 *   int-quantized    P.weight            I8  [N, K]
 *                    P.weight_scale      F16 [N, 1] or [1]
 *                    P.weight_zero_point I8                        reading, asymmetric only
 *                    P.input_scale       F16 [1]                   inputs in a fixed range only: x = scale * (q - zero)
 *                    P.input_zero_point  I8 [1]                    where ranges are asymmetric
 *
 * w = scale * (q - zero). Packing is dense (words.h); releases before 0.18 put 32 / b codes in a word and wasted the
 * rest, which is the same for 2, 4 and 8 bits and can be told by the width for the others. Only 4 and 8 bits are
 * written: nothing else is read everywhere.
 *
 * Read from compressors/pack_quantized and naive_quantized; checked against the library's own functions by
 * tests/data/make_schemes.py. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "formats/json.h"
#include "formats/schemes/scheme.h"
#include "formats/schemes/words.h"
#include "types/affine.h"

enum { PACKED, WEIGHT, SCALE, SHAPE, ZERO, GROUP_OF, INPUT_SCALE, INPUT_ZERO };
static const char *const suffixes[] = {".weight_packed",
                                       ".weight",
                                       ".weight_scale",
                                       ".weight_shape",
                                       ".weight_zero_point",
                                       ".weight_g_idx",
                                       ".input_scale",
                                       ".input_zero_point",
                                       NULL};
_Static_assert(sizeof suffixes / sizeof *suffixes - 1 <= SCHEME_MAX_MEMBERS, "members of a matrix");

/* llmq_scheme_matrix.layout */
enum { LAYOUT_DENSE, LAYOUT_LANES, LAYOUT_INT8 };

extern const llmq_scheme scheme_ct;

/* ---- writing ---- */

static const llmq_type_info *grid(const llmq_scheme_spec *spec) {
    return type_affine(spec->bits, spec->act_quant ? -1 : spec->group, spec->sym);
}

static int64_t count_groups(const llmq_scheme_spec *spec, int64_t cols) {
    return spec->group < 0 || spec->act_quant ? 1 : (cols + spec->group - 1) / spec->group;
}

static llmq_status check(const llmq_scheme_spec *spec, const char *name, int64_t rows, int64_t cols, llmq_err *err) {
    (void)rows;
    if (spec->bits != 8 && (spec->bits != 4 || spec->act_quant))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: compressed-tensors of %d bits are not read by other engines; use 4 or 8 (activations "
                         "too: 8)",
                         name, spec->bits);
    if (spec->act_quant && !spec->sym)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: compressed-tensors with 8-bit activations need symmetric weights", name);
    if (spec->act_quant || spec->group < 0 || cols % spec->group == 0) return LLMQ_OK;
    char fits[64] = "";
    for (int64_t g = 128; g >= 32; g /= 2)
        if (cols % g == 0) snprintf(fits + strlen(fits), sizeof fits - strlen(fits), "%lld, ", (long long)g);
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "%s: groups of %lld do not divide its rows of %lld weights, which compressed-tensors needs; "
                     "groups that fit: %s-1 (the whole row)",
                     name, (long long)spec->group, (long long)cols, fits);
}

static int members(const llmq_scheme_spec *spec, int64_t rows, int64_t cols,
                   llmq_scheme_member out[SCHEME_MAX_MEMBERS]) {
    int64_t groups = count_groups(spec, cols), words = words_for(cols, spec->bits),
            zero_words = words_for(rows, spec->bits);
    if (spec->act_quant)
        out[0] = (llmq_scheme_member){suffixes[WEIGHT], "I8", 2, {rows, cols}, rows * cols};
    else
        out[0] = (llmq_scheme_member){suffixes[PACKED], "I32", 2, {rows, words}, rows * words * 4};
    out[1] = (llmq_scheme_member){suffixes[SCALE], "F16", 2, {rows, groups}, rows * groups * 2};
    if (spec->act_quant) {
        int n = 2;
        if (spec->input.scale > 0) out[n++] = (llmq_scheme_member){suffixes[INPUT_SCALE], "F16", 1, {1}, 2};
        if (spec->input.scale > 0 && spec->act_zero)
            out[n++] = (llmq_scheme_member){suffixes[INPUT_ZERO], "I8", 1, {1}, 1};
        return n;
    }
    out[2] = (llmq_scheme_member){suffixes[SHAPE], "I64", 1, {2}, 16};
    if (spec->sym) return 3;
    out[3] = (llmq_scheme_member){suffixes[ZERO], "I32", 2, {zero_words, groups}, zero_words * groups * 4};
    return 4;
}

static void split_codes(const llmq_quantized *q, int bits, void *packed) {
    int64_t row_words = words_for(q->cols, bits);
    for (int64_t r = 0; r < q->rows; r++)
        for (int64_t k = 0; k < q->cols; k += 32) {
            int n = q->cols - k < 32 ? (int)(q->cols - k) : 32;
            uint32_t w[9];
            words_pack(q->codes + r * q->cols + k, bits, n, w);
            for (int64_t i = 0; i < words_for(n, bits); i++) word_set(packed, r * row_words + k * bits / 32 + i, w[i]);
        }
}

/* Zeros and codes are both stored as what they are above the lowest signed number, which is what llmq counts from. */
static void split_zeros(const llmq_quantized *q, int bits, int64_t groups, void *zeros) {
    for (int64_t g = 0; g < groups; g++)
        for (int64_t r = 0; r < q->rows; r += 32) {
            int n = q->rows - r < 32 ? (int)(q->rows - r) : 32;
            uint8_t z[32];
            uint32_t w[9];
            for (int i = 0; i < n; i++) z[i] = q->grids[(r + i) * groups + g].mn[0];
            words_pack(z, bits, n, w);
            for (int64_t i = 0; i < words_for(n, bits); i++) word_set(zeros, (r * bits / 32 + i) * groups + g, w[i]);
        }
}

static llmq_status split(const llmq_scheme_spec *spec, const llmq_quantized *q, void *const *data, llmq_err *err) {
    int64_t groups = count_groups(spec, q->cols), shape[2] = {q->rows, q->cols};
    if (q->type != grid(spec))
        return llmq_fail(err, LLMQ_E_ARG, "ct: a matrix on the grid %s was given to be written", q->type->name);
    for (int64_t i = 0; i < q->rows * groups; i++) {
        uint16_t h = f32_to_f16(q->grids[i].scale[0]);
        memcpy((uint8_t *)data[1] + 2 * i, &h, 2);
    }
    if (spec->act_quant) {
        for (int64_t i = 0; i < q->rows * q->cols; i++) ((uint8_t *)data[0])[i] = q->codes[i] ^ 0x80;
        uint16_t scale = f32_to_f16(spec->input.scale);
        if (spec->input.scale > 0) memcpy(data[2], &scale, 2);
        if (spec->input.scale > 0 && spec->act_zero) *(int8_t *)data[3] = (int8_t)spec->input.zero;
        return LLMQ_OK;
    }
    split_codes(q, spec->bits, data[0]);
    memcpy(data[2], shape, sizeof shape);
    if (!spec->sym) split_zeros(q, spec->bits, groups, data[3]);
    return LLMQ_OK;
}

static json_t *weights_config(const llmq_scheme_spec *spec) {
    bool whole = spec->group < 0 || spec->act_quant;
    return json_pack("{s:i, s:s, s:b, s:s, s:o, s:b, s:n, s:s, s:{}, s:n}", "num_bits", spec->bits, "type", "int",
                     "symmetric", spec->sym, "strategy", whole ? "channel" : "group", "group_size",
                     whole ? json_null() : json_integer(spec->group), "dynamic", 0, "actorder", "observer", "minmax",
                     "observer_kwargs", "block_structure");
}

static json_t *inputs_config(const llmq_scheme_spec *spec, bool fixed) {
    if (!spec->act_quant) return json_null();
    return json_pack("{s:i, s:s, s:b, s:s, s:n, s:b, s:n, s:o, s:{}, s:n}", "num_bits", 8, "type", "int", "symmetric",
                     !fixed || !spec->act_zero, "strategy", fixed ? "tensor" : "token", "group_size", "dynamic", !fixed,
                     "actorder", "observer", fixed ? json_string("minmax") : json_null(), "observer_kwargs",
                     "block_structure");
}

static json_t *group_config(const llmq_scheme_spec *spec, json_t *targets, bool fixed) {
    return json_pack("{s:o, s:o, s:o, s:n}", "targets", targets, "weights", weights_config(spec), "input_activations",
                     inputs_config(spec, fixed), "output_activations");
}

/* All matrices in one group, but those by name whose inputs are in no fixed range. */
static json_t *groups_config(const llmq_scheme_spec *spec) {
    json_t *groups = json_object(), *names = json_array();
    json_object_set_new(groups, "group_0", group_config(spec, json_pack("[s]", "Linear"), spec->act_static));
    for (size_t i = 0; i < spec->n_token_names; i++) json_array_append_new(names, json_string(spec->token_names[i]));
    if (spec->n_token_names)
        json_object_set_new(groups, "group_1", group_config(spec, names, false));
    else
        json_decref(names);
    return groups;
}

/* Its reader refuses keys that it does not know: nothing of llmq's own can be added. */
static json_t *config(const llmq_scheme_spec *spec) {
    return json_pack("{s:s, s:s, s:s, s:[s], s:n, s:n, s:o}", "quant_method", "compressed-tensors", "format",
                     spec->act_quant ? "int-quantized" : "pack-quantized", "quantization_status", "compressed",
                     "ignore", "lm_head", "kv_cache_scheme", "global_compression_ratio", "config_groups",
                     groups_config(spec));
}

/* ---- reading ---- */

static bool word_is(const json_t *object, const char *key, const char *word) {
    const json_t *j = json_get(object, key);
    return json_is_string(j) && !strcmp(json_string_value(j), word);
}

/* Inputs of 8 bits: symmetric with a scale for each token, or in a fixed range. */
static bool inputs_are_int8(const json_t *inputs, bool *fixed) {
    const json_t *bits = json_get(inputs, "num_bits"), *dynamic = json_get(inputs, "dynamic");
    if (!json_is_integer(bits) || json_integer_value(bits) != 8) return false;
    if (json_get(inputs, "type") && !word_is(inputs, "type", "int")) return false;
    *fixed = !json_is_true(dynamic);
    if (*fixed) return word_is(inputs, "strategy", "tensor") && (!dynamic || json_is_false(dynamic));
    return word_is(inputs, "strategy", "token") && !json_is_false(json_get(inputs, "symmetric"));
}

static llmq_status read_group(const json_t *group, const char *file, llmq_scheme_spec *spec, llmq_err *err) {
    const json_t *weights = json_get(group, "weights");
    const char *type = "int", *strategy = "group";
    int64_t bits = 8, size = -1;
    bool sym = true;
    if (!weights) return LLMQ_OK; /* activations only */
    LLMQ_TRY(json_get_str(weights, "type", file, &type, err));
    LLMQ_TRY(json_get_str(weights, "strategy", file, &strategy, err));
    LLMQ_TRY(json_get_i64(weights, "num_bits", 1, 64, file, &bits, err));
    LLMQ_TRY(json_get_i64(weights, "group_size", -1, INT32_MAX, file, &size, err));
    LLMQ_TRY(json_get_bool(weights, "symmetric", file, &sym, err));
    if (strcmp(type, "int") || bits > 8)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: weights of type %.20s with %lld bits; llmq reads int of 1 to 8",
                         file, type, (long long)bits);
    if (strcmp(strategy, "group") && strcmp(strategy, "channel") && strcmp(strategy, "tensor"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: strategy \"%.40s\" of weights; llmq reads group, channel and tensor",
                         file, strategy);
    spec->bits = spec->bits == -1 || spec->bits == (int)bits ? (int)bits : 0;
    spec->group = size > 0 ? size : -1;
    spec->sym = spec->sym && sym;
    bool fixed = false;
    spec->act_quant = spec->act_quant && inputs_are_int8(json_get(group, "input_activations"), &fixed);
    spec->act_static = spec->act_static || fixed;
    return LLMQ_OK;
}

static llmq_status read_config(const json_t *config, const char *file, llmq_scheme_spec *spec, llmq_err *err) {
    const json_t *groups = json_get(config, "config_groups"), *transform = json_get(config, "transform_config");
    const char *format = "pack-quantized", *name;
    json_t *group;
    LLMQ_TRY(json_get_str(config, "format", file, &format, err));
    if (strcmp(format, "pack-quantized") && strcmp(format, "int-quantized") && strcmp(format, "mixed-precision"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: format \"%.40s\"; llmq reads pack-quantized and int-quantized", file,
                         format);
    if (transform && json_object_size(json_get(transform, "config_groups")) > 0)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: transform_config: llmq does not rotate inputs at run time", file);
    if (!json_is_object(groups) || json_object_size(groups) == 0)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: quantization_config has no config_groups", file);
    spec->bits = -1;
    spec->sym = true;
    spec->act_quant = !strcmp(format, "int-quantized");
    json_object_foreach((json_t *)(uintptr_t)groups, name, group) LLMQ_TRY(read_group(group, file, spec, err));
    if (spec->bits == -1)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: quantization_config quantizes no weights", file);
    return LLMQ_OK;
}

static llmq_status read_shape(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *t = m->members[SHAPE];
    int64_t shape[2] = {0};
    if (t && t->type == MEMBER_I32 && t->bytes == 8) { /* an older schema's */
        shape[0] = (int32_t)word_at(t->data, 0);
        shape[1] = (int32_t)word_at(t->data, 1);
    } else {
        LLMQ_TRY(scheme_need(m, &scheme_ct, SHAPE, MEMBER_I64, 2, -1, err));
        memcpy(shape, t->data, sizeof shape);
    }
    if (shape[0] != m->members[PACKED]->dims[1] || shape[1] < 1 || shape[1] > m->members[PACKED]->dims[0] * 32)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: weight_shape %lld x %lld does not fit weight_packed: damaged",
                         m->file, m->name, (long long)shape[0], (long long)shape[1]);
    m->rows = shape[0];
    m->cols = shape[1];
    return LLMQ_OK;
}

/* The width tells the bits where the configuration has several, and whether words are packed densely. */
static llmq_status read_width(llmq_scheme_matrix *m, llmq_err *err) {
    int64_t words = m->members[PACKED]->dims[0];
    for (int bits = 1; bits <= 8; bits++) {
        if (m->spec.bits && bits != m->spec.bits) continue;
        int64_t lanes = 32 / bits;
        bool dense = words_for(m->cols, bits) == words;
        if (!dense && (m->cols + lanes - 1) / lanes != words) continue;
        m->bits = bits;
        m->layout = dense ? LAYOUT_DENSE : LAYOUT_LANES;
        if (dense) return LLMQ_OK;
    }
    if (m->bits) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_FORMAT,
                     "%s: %s: weight_packed of %lld words a row does not hold %lld columns of the configuration's bits",
                     m->file, m->name, (long long)words, (long long)m->cols);
}

/* [N, G], [N] for one group a row, or a single number. */
static llmq_status read_scale_shape(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *t = m->members[SCALE];
    if (!t) return scheme_need(m, &scheme_ct, SCALE, MEMBER_FLOAT, 0, 0, err);
    m->n_groups = 1;
    m->group = m->cols;
    if (t->n_dims == 1 && (t->dims[0] == 1 || t->dims[0] == m->rows))
        return scheme_need(m, &scheme_ct, SCALE, MEMBER_FLOAT, 0, -1, err);
    LLMQ_TRY(scheme_need(m, &scheme_ct, SCALE, MEMBER_FLOAT, tensor_numel(t) == 1 ? 0 : m->rows, 0, err));
    m->n_groups = t->dims[0];
    if (m->n_groups > m->cols)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: more groups than columns: the file is damaged", m->file, m->name);
    if (m->spec.group > 0 && (m->cols + m->spec.group - 1) / m->spec.group == m->n_groups)
        m->group = m->spec.group < m->cols ? m->spec.group : m->cols;
    else if (m->cols % m->n_groups == 0)
        m->group = m->cols / m->n_groups;
    else
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: %lld groups do not divide rows of %lld weights: damaged", m->file,
                         m->name, (long long)m->n_groups, (long long)m->cols);
    return LLMQ_OK;
}

static llmq_status read_zero_shape(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *t = m->members[ZERO];
    if (!t) {
        if (m->spec.sym || m->spec.bits == 0) return LLMQ_OK;
        return scheme_need(m, &scheme_ct, ZERO, MEMBER_I32, 0, 0, err);
    }
    if (m->layout == LAYOUT_INT8 || t->type == MEMBER_I8) { /* as many as scales, one a byte */
        if (t->type == MEMBER_I8 && tensor_numel(t) == tensor_numel(m->members[SCALE])) return LLMQ_OK;
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: weight_zero_point is not I8 of weight_scale's shape: damaged",
                         m->file, m->name);
    }
    int64_t lanes = 32 / m->bits;
    if (tensor_numel(m->members[SCALE]) != m->rows * m->n_groups)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: %s: packed zero points with one scale for all rows", m->file,
                         m->name);
    return scheme_need(m, &scheme_ct, ZERO, MEMBER_I32,
                       m->layout == LAYOUT_DENSE ? words_for(m->rows, m->bits) : (m->rows + lanes - 1) / lanes,
                       m->n_groups, err);
}

/* One number each. Without a scale each token has its own range. */
static llmq_status read_input(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *s = m->members[INPUT_SCALE], *z = m->members[INPUT_ZERO];
    if (!m->spec.act_quant || !s) return LLMQ_OK;
    bool is_float = s->type == LLMQ_TYPE_F16 || s->type == LLMQ_TYPE_BF16 || s->type == LLMQ_TYPE_F32;
    if (!is_float || tensor_numel(s) != 1 || (z && (z->type != MEMBER_I8 || tensor_numel(z) != 1)))
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: %s: its input_scale or input_zero_point is not one number: the file is damaged", m->file,
                         m->name);
    scheme_floats(s, 0, 1, &m->input.scale);
    if (!(m->input.scale > 0) || !isfinite(m->input.scale))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: input_scale is %g, must be positive: the file is damaged",
                         m->file, m->name, (double)m->input.scale);
    if (z) m->input.zero = *(const int8_t *)z->data;
    return LLMQ_OK;
}

static llmq_status read_group_of(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *t = m->members[GROUP_OF];
    if (!t || m->n_groups == 1) return LLMQ_OK;
    LLMQ_TRY(scheme_need(m, &scheme_ct, GROUP_OF, MEMBER_I32, m->cols, -1, err));
    m->group_of = mem_alloc((size_t)m->cols, sizeof *m->group_of);
    if (!m->group_of) return mem_error(err, (size_t)m->cols * sizeof *m->group_of, m->name);
    memcpy(m->group_of, t->data, (size_t)m->cols * sizeof *m->group_of);
    for (int64_t k = 0; k < m->cols; k++)
        if (m->group_of[k] < 0 || m->group_of[k] >= m->n_groups)
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: weight_g_idx names group %d of %lld: the file is damaged",
                             m->file, m->name, (int)m->group_of[k], (long long)m->n_groups);
    return LLMQ_OK;
}

static llmq_status open_matrix(llmq_scheme_matrix *m, llmq_err *err) {
    if (m->members[PACKED]) {
        LLMQ_TRY(scheme_need(m, &scheme_ct, PACKED, MEMBER_I32, 0, 0, err));
        LLMQ_TRY(read_shape(m, err));
        LLMQ_TRY(read_width(m, err));
    } else {
        LLMQ_TRY(scheme_need(m, &scheme_ct, WEIGHT, MEMBER_I8, 0, 0, err));
        m->rows = m->members[WEIGHT]->dims[1];
        m->cols = m->members[WEIGHT]->dims[0];
        m->bits = 8;
        m->layout = LAYOUT_INT8;
    }
    LLMQ_TRY(read_scale_shape(m, err));
    LLMQ_TRY(read_zero_shape(m, err));
    LLMQ_TRY(read_input(m, err));
    return read_group_of(m, err);
}

/* Code number at of a stream of words that lie `step` apart. */
static uint8_t code_at(const llmq_scheme_matrix *m, const void *words, int64_t first, int64_t step, int64_t at) {
    uint32_t mask = (1u << m->bits) - 1;
    if (m->layout == LAYOUT_LANES) {
        int64_t lanes = 32 / m->bits;
        return (uint8_t)(word_at(words, first + at / lanes * step) >> at % lanes * m->bits & mask);
    }
    int64_t bit = at * m->bits, word = first + bit / 32 * step;
    uint64_t pair = word_at(words, word);
    if (bit % 32 + m->bits > 32) pair |= (uint64_t)word_at(words, word + step) << 32;
    return (uint8_t)((uint32_t)(pair >> bit % 32) & mask);
}

static void scales(const llmq_scheme_matrix *m, int64_t row, int64_t n, float *scale, int16_t *zero) {
    const llmq_tensor *s = m->members[SCALE], *z = m->members[ZERO];
    bool single = tensor_numel(s) == 1;
    for (int64_t i = 0; i < n * m->n_groups; i++) {
        int64_t at = single ? 0 : row * m->n_groups + i;
        scheme_floats(s, at, 1, scale + i);
        zero[i] = (int16_t)(1 << (m->bits - 1));
        if (z && z->type == MEMBER_I8)
            zero[i] = (int16_t)(zero[i] + ((const int8_t *)z->data)[at]);
        else if (z)
            zero[i] = code_at(m, z->data, i % m->n_groups, m->n_groups, row + i / m->n_groups);
    }
}

static void codes(const llmq_scheme_matrix *m, int64_t row, int64_t n, uint8_t *out) {
    if (m->layout == LAYOUT_INT8) {
        const uint8_t *from = (const uint8_t *)m->members[WEIGHT]->data + row * m->cols;
        for (int64_t i = 0; i < n * m->cols; i++) out[i] = from[i] ^ 0x80;
        return;
    }
    const void *words = m->members[PACKED]->data;
    int64_t row_words = m->members[PACKED]->dims[0];
    for (int64_t r = 0; r < n; r++) {
        int64_t first = (row + r) * row_words, k = 0;
        uint8_t *to = out + r * m->cols;
        for (; m->bits == 4 && k + 8 <= m->cols; k += 8) word_unpack4(word_at(words, first + k / 8), to + k);
        for (; k < m->cols; k++) to[k] = code_at(m, words, first, 1, k);
    }
}

const llmq_scheme scheme_ct = {
    .name = "ct",
    .quant_method = "compressed-tensors",
    .grid = grid,
    .check = check,
    .members = members,
    .split = split,
    .config = config,
    .suffixes = suffixes,
    .n_keys = 2,
    .read_config = read_config,
    .open = open_matrix,
    .scales = scales,
    .codes = codes,
};
