/* bitsandbytes: NF4 and FP4 (read and written), LLM.int8 (read). Sources: bitsandbytes/functional.py (QuantState),
 * nn/modules.py, csrc/cpu_ops.cpp; transformers' BitsAndBytesConfig.
 *
 * Four bits: the weights of the matrix as one row, two a byte, the first in the high nibble; a block's scale ("absmax")
 * is the k-th F32 of .weight.absmax, or with double quantization its k-th byte (types/nf4.h). .weight.quant_state.* is
 * a JSON text as bytes, with the block and the shape. A loader asserts that there is no other key. Eight bits:
 * value = code * SCB[row] / 127. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/json.h"
#include "formats/schemes/scheme.h"
#include "types/nf4.h"

/* The JSON text, filled up with spaces: the directory of a file is known before the numbers in the text are. */
#define STATE_BYTES 256
#define STATE_MAX 65536
#define MAX_DIM (INT64_C(1) << 40)

enum { WEIGHT, ABSMAX, QUANT_MAP, STATE_NF4, STATE_FP4, NESTED_ABSMAX, NESTED_MAP, SCB, WEIGHT_FORMAT };
static const char *const suffixes[] = {".weight",
                                       ".weight.absmax",
                                       ".weight.quant_map",
                                       ".weight.quant_state.bitsandbytes__nf4",
                                       ".weight.quant_state.bitsandbytes__fp4",
                                       ".weight.nested_absmax",
                                       ".weight.nested_quant_map",
                                       ".SCB",
                                       ".weight_format",
                                       NULL};
/* The members that are written, in order. */
enum { OUT_WEIGHT, OUT_ABSMAX, OUT_MAP, OUT_STATE, OUT_NESTED_ABSMAX, OUT_NESTED_MAP, OUT_MEMBERS };

extern const llmq_scheme scheme_bnb;

static int64_t blocks_of(int64_t weights, int64_t block) {
    return (weights + block - 1) / block;
}

/* ---- writing ---- */

static const llmq_type_info *grid(const llmq_scheme_spec *spec) {
    return spec->bits == 4 ? nf4_grid(spec->fp4, spec->group, spec->double_quant) : NULL;
}

static llmq_status check(const llmq_scheme_spec *spec, const char *name, int64_t rows, int64_t cols, llmq_err *err) {
    (void)rows;
    (void)cols;
    if (spec->bits == 4 && spec->group >= NF4_BLOCK && nf4_grid(spec->fp4, spec->group, false)) return LLMQ_OK;
    if (spec->bits != 4)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: bnb is written with 4 bits, not %d; use --bits 4", name,
                         spec->bits);
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "%s: bitsandbytes has blocks of 64, 128, 256, 512, 1024, 2048 or 4096 weights, not %lld; use "
                     "--group 64",
                     name, (long long)spec->group);
}

static llmq_scheme_member vector_of(int i, const char *dtype, int64_t n, int64_t size) {
    return (llmq_scheme_member){suffixes[i], dtype, 1, {n, 1}, n * size};
}

static int members(const llmq_scheme_spec *spec, int64_t rows, int64_t cols,
                   llmq_scheme_member out[SCHEME_MAX_MEMBERS]) {
    int64_t n = rows * cols, n_blocks = blocks_of(n, spec->group);
    bool nested = spec->double_quant;
    out[OUT_WEIGHT] = (llmq_scheme_member){suffixes[WEIGHT], "U8", 2, {(n + 1) / 2, 1}, (n + 1) / 2};
    out[OUT_ABSMAX] = vector_of(ABSMAX, nested ? "U8" : "F32", n_blocks, nested ? 1 : 4);
    out[OUT_MAP] = vector_of(QUANT_MAP, "F32", 16, 4);
    out[OUT_STATE] = vector_of(spec->fp4 ? STATE_FP4 : STATE_NF4, "U8", STATE_BYTES, 1);
    if (!nested) return OUT_NESTED_ABSMAX;
    out[OUT_NESTED_ABSMAX] = vector_of(NESTED_ABSMAX, "F32", nf4_nested_blocks(n_blocks), 4);
    out[OUT_NESTED_MAP] = vector_of(NESTED_MAP, "F32", NF4_MAP, 4);
    return OUT_MEMBERS;
}

static llmq_status write_state(const llmq_scheme_spec *spec, const llmq_quantized *q, char *text, llmq_err *err) {
    char nested[128] = "";
    if (q->nested)
        snprintf(nested, sizeof nested,
                 ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %.17g",
                 NF4_NESTED_BLOCK, (double)q->nested->offset);
    int len =
        snprintf(text, STATE_BYTES,
                 "{\"quant_type\": \"%s\", \"blocksize\": %lld, \"dtype\": \"float16\", \"shape\": [%lld, %lld]%s}",
                 spec->fp4 ? "fp4" : "nf4", (long long)spec->group, (long long)q->rows, (long long)q->cols, nested);
    if (len <= 0 || len >= STATE_BYTES) return llmq_fail(err, LLMQ_E_ARG, "bnb: a quant_state of %d bytes", len);
    memset(text + len, ' ', (size_t)(STATE_BYTES - len));
    return LLMQ_OK;
}

static llmq_status split(const llmq_scheme_spec *spec, const llmq_quantized *q, void *const *data, llmq_err *err) {
    int64_t n = q->rows * q->cols, n_blocks = blocks_of(n, spec->group);
    uint8_t *packed = data[OUT_WEIGHT], *absmax = data[OUT_ABSMAX];
    float map[NF4_MAP];
    if (q->type != grid(spec))
        return llmq_fail(err, LLMQ_E_ARG,
                         "bnb: a matrix on the grid %s was given to be written as %s in blocks of %lld", q->type->name,
                         spec->fp4 ? "fp4" : "nf4", (long long)spec->group);
    memset(packed, 0, (size_t)((n + 1) / 2));
    for (int64_t i = 0; i < n; i++) {
        unsigned code = spec->fp4 ? nf4_fp4_codes[q->codes[i]] : q->codes[i];
        packed[i / 2] = (uint8_t)(packed[i / 2] | code << (i % 2 ? 0 : 4));
    }
    memcpy(data[OUT_MAP], nf4_table(spec->fp4), 16 * sizeof(float));
    LLMQ_TRY(write_state(spec, q, data[OUT_STATE], err));
    if (!q->nested) {
        for (int64_t b = 0; b < n_blocks; b++) memcpy(absmax + 4 * b, &q->grids[b].scale[0], 4);
        return LLMQ_OK;
    }
    nf4_nested_map(map);
    memcpy(absmax, q->nested->codes, (size_t)n_blocks);
    memcpy(data[OUT_NESTED_ABSMAX], q->nested->absmax, (size_t)nf4_nested_blocks(n_blocks) * sizeof(float));
    memcpy(data[OUT_NESTED_MAP], map, sizeof map);
    return LLMQ_OK;
}

static json_t *config(const llmq_scheme_spec *spec) {
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:s, s:b, s:s, s:s, s:b, s:b, s:[s], s:f}", "quant_method",
                     "bitsandbytes", "_load_in_4bit", 1, "_load_in_8bit", 0, "load_in_4bit", 1, "load_in_8bit", 0,
                     "bnb_4bit_quant_type", spec->fp4 ? "fp4" : "nf4", "bnb_4bit_use_double_quant",
                     (int)spec->double_quant, "bnb_4bit_compute_dtype", "float16", "bnb_4bit_quant_storage", "uint8",
                     "llm_int8_enable_fp32_cpu_offload", 0, "llm_int8_has_fp16_weight", 0, "llm_int8_skip_modules",
                     "lm_head", "llm_int8_threshold", 6.0);
}

/* ---- reading ---- */

static llmq_status read_config(const json_t *config, const char *file, llmq_scheme_spec *spec, llmq_err *err) {
    const char *kind = "fp4"; /* transformers' default */
    bool four = false, eight = false, nested = false;
    LLMQ_TRY(json_get_bool(config, "_load_in_4bit", file, &four, err));
    LLMQ_TRY(json_get_bool(config, "load_in_4bit", file, &four, err));
    LLMQ_TRY(json_get_bool(config, "_load_in_8bit", file, &eight, err));
    LLMQ_TRY(json_get_bool(config, "load_in_8bit", file, &eight, err));
    LLMQ_TRY(json_get_bool(config, "bnb_4bit_use_double_quant", file, &nested, err));
    LLMQ_TRY(json_get_str(config, "bnb_4bit_quant_type", file, &kind, err));
    if (four == eight)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: one of load_in_4bit and load_in_8bit must be true", file);
    if (four && strcmp(kind, "nf4") && strcmp(kind, "fp4"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: bnb_4bit_quant_type '%.20s': llmq reads nf4 and fp4", file, kind);
    spec->bits = eight ? 8 : 4;
    spec->group = eight ? -1 : NF4_BLOCK;
    spec->sym = true;
    spec->double_quant = four && nested;
    spec->fp4 = four && !strcmp(kind, "fp4");
    return LLMQ_OK;
}

static llmq_status damaged(const llmq_scheme_matrix *m, llmq_err *err, const char *what) {
    return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: %s: the file is damaged; get it again", m->file, m->name, what);
}

/* More dimensions than two are joined from the left. */
static llmq_status read_shape(llmq_scheme_matrix *m, const json_t *shape, llmq_err *err) {
    size_t n = json_array_size(shape);
    int64_t weights;
    if (n < 2) return damaged(m, err, "quant_state: shape must be a list of two numbers");
    m->rows = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(shape, i);
        m->cols = json_is_integer(v) ? json_integer_value(v) : 0;
        if (m->cols < 1 || m->cols > MAX_DIM) return damaged(m, err, "quant_state: shape is out of range");
        if (i + 1 < n && (!i64_mul(m->rows, m->cols, &m->rows) || m->rows > MAX_DIM))
            return damaged(m, err, "quant_state: shape is out of range");
    }
    if (i64_mul(m->rows, m->cols, &weights) && weights < INT64_MAX / 8) return LLMQ_OK;
    return damaged(m, err, "quant_state: shape is out of range");
}

static llmq_status read_fields(llmq_scheme_matrix *m, const json_t *json, llmq_err *err) {
    const char *type = "";
    double offset = 0;
    LLMQ_TRY(json_get_str(json, "quant_type", m->name, &type, err));
    LLMQ_TRY(json_get_i64(json, "blocksize", 1, MAX_DIM, m->name, &m->group, err));
    LLMQ_TRY(json_get_i64(json, "nested_blocksize", 1, MAX_DIM, m->name, &m->nested_group, err));
    LLMQ_TRY(json_get_f64(json, "nested_offset", -1e30, 1e30, m->name, &offset, err));
    LLMQ_TRY(read_shape(m, json_get(json, "shape"), err));
    m->nested_offset = (float)offset;
    if (strcmp(type, m->members[STATE_NF4] ? "nf4" : "fp4"))
        return damaged(m, err, "quant_state: quant_type is not that of its name");
    if (nf4_grid(false, m->group, false)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "%s: %s: quant_state: blocksize %lld: llmq reads powers of two from 32 to 4096", m->file, m->name,
                     (long long)m->group);
}

static llmq_status read_state(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *t = m->members[STATE_NF4] ? m->members[STATE_NF4] : m->members[STATE_FP4];
    json_t *json = NULL;
    m->group = m->nested_group = 0;
    if (!t || t->type != MEMBER_U8 || t->bytes < 2 || t->bytes > STATE_MAX)
        return damaged(m, err, "it has no quant_state");
    LLMQ_TRY(json_parse_object(t->data, (size_t)t->bytes, m->name, &json, err));
    llmq_status status = read_fields(m, json, err);
    json_decref(json);
    return status;
}

/* quant_map must be the table that llmq knows: a writer that has another means another type. */
static llmq_status check_map(const llmq_scheme_matrix *m, llmq_err *err) {
    float map[16];
    LLMQ_TRY(scheme_need(m, &scheme_bnb, QUANT_MAP, LLMQ_TYPE_F32, 16, -1, err));
    scheme_floats(m->members[QUANT_MAP], 0, 16, map);
    for (int i = 0; i < 16; i++)
        if (!(fabsf(map[i] - m->levels[i]) < 1e-6f))
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: %s: its quant_map is not the table of %s, nor known to llmq",
                             m->file, m->name, m->members[STATE_NF4] ? "nf4" : "fp4");
    return LLMQ_OK;
}

static llmq_status open_int8(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *format = m->members[WEIGHT_FORMAT];
    LLMQ_TRY(scheme_need(m, &scheme_bnb, WEIGHT, MEMBER_I8, 0, 0, err));
    m->rows = m->members[WEIGHT]->dims[1];
    m->cols = m->group = m->members[WEIGHT]->dims[0];
    m->n_groups = 1;
    m->bits = 8;
    if (m->rows < 1 || m->cols < 1) return damaged(m, err, "an empty matrix");
    LLMQ_TRY(scheme_need(m, &scheme_bnb, SCB, LLMQ_TYPE_F32, m->rows, -1, err));
    if (!format || format->bytes < 1 || *(const uint8_t *)format->data == 0) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: %s: weight_format %d: llmq reads rows in their own order (0)",
                     m->file, m->name, *(const uint8_t *)format->data);
}

static llmq_status open_matrix(llmq_scheme_matrix *m, llmq_err *err) {
    if (m->members[SCB]) return open_int8(m, err);
    LLMQ_TRY(read_state(m, err));
    int64_t n = m->rows * m->cols;
    m->bits = 4;
    m->levels = nf4_table(!m->members[STATE_NF4]);
    m->type = m->members[STATE_NF4] ? LLMQ_TYPE_NF4 : LLMQ_TYPE_FP4;
    m->flat = true;
    m->n_groups = blocks_of(n, m->group);
    LLMQ_TRY(check_map(m, err));
    LLMQ_TRY(scheme_need(m, &scheme_bnb, WEIGHT, MEMBER_U8, n / 2 + n % 2, 1, err));
    if (!m->nested_group) return scheme_need(m, &scheme_bnb, ABSMAX, LLMQ_TYPE_F32, m->n_groups, -1, err);
    LLMQ_TRY(scheme_need(m, &scheme_bnb, ABSMAX, MEMBER_U8, m->n_groups, -1, err));
    LLMQ_TRY(
        scheme_need(m, &scheme_bnb, NESTED_ABSMAX, LLMQ_TYPE_F32, blocks_of(m->n_groups, m->nested_group), -1, err));
    return scheme_need(m, &scheme_bnb, NESTED_MAP, LLMQ_TYPE_F32, NF4_MAP, -1, err);
}

static void int8_scales(const llmq_scheme_matrix *m, int64_t row, int64_t n, float *scale, int16_t *zero) {
    scheme_floats(m->members[SCB], row, n, scale);
    for (int64_t r = 0; r < n; r++) {
        scale[r] /= 127.0f;
        zero[r] = 128;
    }
}

static void scales(const llmq_scheme_matrix *m, int64_t row, int64_t n, float *scale, int16_t *zero) {
    if (m->members[SCB]) {
        int8_scales(m, row, n, scale, zero);
        return;
    }
    int64_t first = row * m->cols / m->group, n_groups = blocks_of((row + n) * m->cols, m->group) - first;
    memset(zero, 0, (size_t)n_groups * sizeof *zero);
    if (!m->nested_group) {
        scheme_floats(m->members[ABSMAX], first, n_groups, scale);
        return;
    }
    float map[NF4_MAP], absmax;
    const uint8_t *nested = m->members[ABSMAX]->data;
    scheme_floats(m->members[NESTED_MAP], 0, NF4_MAP, map);
    for (int64_t i = 0; i < n_groups; i++) {
        scheme_floats(m->members[NESTED_ABSMAX], (first + i) / m->nested_group, 1, &absmax);
        scale[i] = map[nested[first + i]] * absmax;
        scale[i] += m->nested_offset;
    }
}

static void codes(const llmq_scheme_matrix *m, int64_t row, int64_t n, uint8_t *out) {
    const uint8_t *bytes = m->members[WEIGHT]->data;
    int64_t at = row * m->cols;
    if (m->members[SCB])
        for (int64_t i = 0; i < n * m->cols; i++) out[i] = bytes[at + i] ^ 128; /* -128..127 to 0..255 */
    else
        for (int64_t i = 0; i < n * m->cols; i++) out[i] = bytes[(at + i) / 2] >> ((at + i) % 2 ? 0 : 4) & 15;
}

const llmq_scheme scheme_bnb = {
    .name = "bnb",
    .quant_method = "bitsandbytes",
    .grid = grid,
    .check = check,
    .members = members,
    .split = split,
    .config = config,
    .suffixes = suffixes,
    .n_keys = 1,
    .read_config = read_config,
    .open = open_matrix,
    .scales = scales,
    .codes = codes,
};
