/* AWQ, version "gemm": 4-bit weights in groups of a row, with a zero point for each group. Sources: AutoAWQ
 * awq/modules/linear/gemm.py (WQLinear_GEMM.from_linear), awq/utils/packing_utils.py; vLLM's reader of the same.
 *
 * Everything is transposed: qweight I32 [K, N/8], qzeros I32 [K/g, N/8], scales F16 [K/g, N]. Nibble i of word c is
 * output row 8 c + order[i]. value = (code - zero) * scale. Readers want zero points to be there, so a symmetric matrix
 * has 8 for all of them. What AWQ does to activations is in the op before the matrix and not stored. */
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "formats/json.h"
#include "formats/schemes/scheme.h"
#include "formats/schemes/words.h"
#include "types/affine.h"

#define LANES 8 /* rows in a word */

enum { QWEIGHT, QZEROS, SCALES };
static const char *const suffixes[] = {".qweight", ".qzeros", ".scales", NULL};

extern const llmq_scheme scheme_awq;

static const int order[LANES] = {0, 2, 4, 6, 1, 3, 5, 7};

static int64_t group_cols(const llmq_scheme_spec *spec, int64_t cols) {
    return spec->group < 0 ? cols : spec->group;
}

static const llmq_type_info *grid(const llmq_scheme_spec *spec) {
    return spec->bits == 4 ? type_affine(4, spec->group, spec->sym) : NULL;
}

/* "32, 64, -1": the groups that divide rows of cols. */
static void fitting_groups(int64_t cols, char *text, size_t cap) {
    static const int groups[] = {128, 64, 32};
    size_t at = 0;
    for (int i = 0; i < 3; i++)
        if (cols % groups[i] == 0 && at < cap) at += (size_t)snprintf(text + at, cap - at, "%d, ", groups[i]);
    if (at < cap) snprintf(text + at, cap - at, "-1");
}

static llmq_status check(const llmq_scheme_spec *spec, const char *name, int64_t rows, int64_t cols, llmq_err *err) {
    char fit[32];
    if (spec->bits != 4)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: awq has 4 bits and no others, not %d; use --bits 4", name,
                         spec->bits);
    if (rows % LANES != 0)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: awq stores rows by eights and cannot hold %lld of them; use --emit gptq", name,
                         (long long)rows);
    if (grid(spec) && cols % group_cols(spec, cols) == 0) return LLMQ_OK;
    fitting_groups(cols, fit, sizeof fit);
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "%s: awq cannot hold rows of %lld weights in groups of %lld; groups that fit: --group %s", name,
                     (long long)cols, (long long)spec->group, fit);
}

static llmq_scheme_member table(int i, const char *dtype, int64_t rows, int64_t cols, int64_t size) {
    return (llmq_scheme_member){suffixes[i], dtype, 2, {rows, cols}, rows * cols * size};
}

static int members(const llmq_scheme_spec *spec, int64_t rows, int64_t cols,
                   llmq_scheme_member out[SCHEME_MAX_MEMBERS]) {
    int64_t n_groups = cols / group_cols(spec, cols);
    out[QWEIGHT] = table(QWEIGHT, "I32", cols, rows / LANES, 4);
    out[QZEROS] = table(QZEROS, "I32", n_groups, rows / LANES, 4);
    out[SCALES] = table(SCALES, "F16", n_groups, rows, 2);
    return 3;
}

/* ---- words of eight rows ---- */

static uint32_t word_pack(const uint8_t *codes, int64_t stride) {
    uint32_t word = 0;
    for (int i = 0; i < LANES; i++) word |= (uint32_t)(codes[order[i] * stride] & 15) << 4 * i;
    return word;
}

static llmq_status split(const llmq_scheme_spec *spec, const llmq_quantized *q, void *const *data, llmq_err *err) {
    int64_t n_groups = q->cols / group_cols(spec, q->cols), n_words = q->rows / LANES;
    if (q->type != grid(spec) || q->rows % LANES || q->cols % group_cols(spec, q->cols))
        return llmq_fail(err, LLMQ_E_ARG, "awq: a matrix of %s cannot be stored in groups of %lld", q->type->name,
                         (long long)spec->group);
    for (int64_t c = 0; c < n_words; c++) {
        const uint8_t *codes = q->codes + c * LANES * q->cols;
        const llmq_grid *grids = q->grids + c * LANES * n_groups;
        for (int64_t k = 0; k < q->cols; k++) word_set(data[QWEIGHT], k * n_words + c, word_pack(codes + k, q->cols));
        for (int64_t g = 0; g < n_groups; g++) {
            uint8_t zeros[LANES];
            for (int r = 0; r < LANES; r++) {
                uint16_t scale = f32_to_f16(grids[r * n_groups + g].scale[0]);
                zeros[r] = spec->sym ? 8 : grids[r * n_groups + g].mn[0];
                memcpy((uint8_t *)data[SCALES] + (size_t)(g * q->rows + c * LANES + r) * sizeof scale, &scale,
                       sizeof scale);
            }
            word_set(data[QZEROS], g * n_words + c, word_pack(zeros, 1));
        }
    }
    return LLMQ_OK;
}

static json_t *config(const llmq_scheme_spec *spec) {
    return json_pack("{s:s, s:i, s:I, s:b, s:s, s:n}", "quant_method", "awq", "bits", 4, "group_size",
                     (json_int_t)spec->group, "zero_point", 1, "version", "gemm", "modules_to_not_convert");
}

/* ---- reading ---- */

static llmq_status read_config(const json_t *config, const char *file, llmq_scheme_spec *spec, llmq_err *err) {
    const char *version = "gemm";
    int64_t bits = 4, group = 128;
    bool zero_point = true;
    LLMQ_TRY(json_get_i64(config, "w_bit", 1, 16, file, &bits, err));
    LLMQ_TRY(json_get_i64(config, "bits", 1, 16, file, &bits, err));
    LLMQ_TRY(json_get_i64(config, "q_group_size", -1, INT32_MAX, file, &group, err));
    LLMQ_TRY(json_get_i64(config, "group_size", -1, INT32_MAX, file, &group, err));
    LLMQ_TRY(json_get_str(config, "version", file, &version, err));
    if (bits != 4)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: quantization_config: bits %lld: llmq reads awq of 4 bits", file,
                         (long long)bits);
    if (strcmp(version, "gemm") && strcmp(version, "GEMM"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: version '%.20s': llmq reads awq's gemm version only", file, version);
    if (group == 0) return llmq_fail(err, LLMQ_E_FORMAT, "%s: quantization_config: group_size is 0", file);
    LLMQ_TRY(json_get_bool(config, "zero_point", file, &zero_point, err));
    spec->bits = 4;
    spec->group = group;
    spec->sym = !zero_point;
    return LLMQ_OK;
}

static llmq_status open_matrix(llmq_scheme_matrix *m, llmq_err *err) {
    LLMQ_TRY(scheme_need(m, &scheme_awq, QWEIGHT, MEMBER_I32, 0, 0, err));
    int64_t n_words = m->members[QWEIGHT]->dims[0];
    m->rows = n_words * LANES; /* the file has four bytes for every eight of them */
    m->cols = m->members[QWEIGHT]->dims[1];
    m->bits = 4;
    m->group = m->cols > 0 ? group_cols(&m->spec, m->cols) : 1;
    if (m->rows < 1 || m->cols < 1 || m->cols % m->group)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: %s: rows of %lld weights in groups of %lld: the file is damaged or its config.json is of "
                         "another model",
                         m->file, m->name, (long long)m->cols, (long long)m->group);
    m->n_groups = m->cols / m->group;
    LLMQ_TRY(scheme_need(m, &scheme_awq, SCALES, MEMBER_FLOAT, m->n_groups, m->rows, err));
    if (!m->members[QZEROS] && m->spec.sym) return LLMQ_OK;
    return scheme_need(m, &scheme_awq, QZEROS, MEMBER_I32, m->n_groups, n_words, err);
}

/* Where the nibble of a row lies in its word: order's inverse. */
static int row_shift(int64_t row) {
    static const int lane[LANES] = {0, 4, 1, 5, 2, 6, 3, 7};
    return 4 * lane[row % LANES];
}

static void scales(const llmq_scheme_matrix *m, int64_t row, int64_t n, float *scale, int16_t *zero) {
    const llmq_tensor *qzeros = m->members[QZEROS];
    for (int64_t g = 0; g < m->n_groups; g++) {
        for (int64_t r = 0; r < n; r++) {
            int64_t at = r * m->n_groups + g, from = g * m->rows + row + r;
            scheme_floats(m->members[SCALES], from, 1, scale + at);
            zero[at] = (int16_t)(qzeros ? word_at(qzeros->data, from / LANES) >> row_shift(from) & 15 : 8);
        }
    }
}

static void codes(const llmq_scheme_matrix *m, int64_t row, int64_t n, uint8_t *out) {
    const void *words = m->members[QWEIGHT]->data;
    for (int64_t k = 0; k < m->cols; k++) {
        for (int64_t r = 0; r < n; r++) {
            int64_t from = k * m->rows + row + r;
            out[r * m->cols + k] = word_at(words, from / LANES) >> row_shift(from) & 15;
        }
    }
}

const llmq_scheme scheme_awq = {
    .name = "awq",
    .quant_method = "awq",
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
