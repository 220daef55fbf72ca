/* GPTQ checkpoints (AutoGPTQ, GPTQModel). A matrix of N rows (outputs) and K columns (inputs), b bits, G groups:
 *
 *   P.qweight I32 [K b / 32, N]   codes, packed along the inputs (words.h)
 *   P.qzeros  I32 [G, N b / 32]   zero points, packed along the outputs
 *   P.scales  F16 [G, N]
 *   P.g_idx   I32 [K]             the group of each input
 *
 * w[n, k] = scales[g_idx[k], n] * (q - zero). Version 1 ("gptq") stores zero - 1 modulo 2^b, version 2 ("gptq_v2")
 * zero; a symmetric grid has zero = 2^(b-1). Version 1 cannot tell a zero point of 0 from one of 2^b, so what is
 * asymmetric is written as version 2. g_idx is written although it is the identity: some readers ask for it.
 *
 * Read from GPTQModel (utils/model.py, nn_modules/qlinear) and vLLM; checked against their own packing by
 * tests/data/make_schemes.py. */
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "formats/json.h"
#include "formats/schemes/scheme.h"
#include "formats/schemes/words.h"
#include "types/affine.h"

enum { QWEIGHT, QZEROS, SCALES, G_IDX };
static const char *const suffixes[] = {".qweight", ".qzeros", ".scales", ".g_idx", NULL};

extern const llmq_scheme scheme_gptq;

/* ---- writing ---- */

static const llmq_type_info *grid(const llmq_scheme_spec *spec) {
    return type_affine(spec->bits, spec->group, spec->sym);
}

static bool is_v2(const llmq_scheme_spec *spec) {
    return spec->zero_plus_one || !spec->sym;
}

static int64_t count_groups(const llmq_scheme_spec *spec, int64_t cols) {
    return spec->group < 0 ? 1 : (cols + spec->group - 1) / spec->group;
}

static llmq_status check(const llmq_scheme_spec *spec, const char *name, int64_t rows, int64_t cols, llmq_err *err) {
    int lanes = spec->bits == 3 ? 32 : 32 / spec->bits;
    if (rows % lanes || cols % lanes)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: gptq packs %d codes of %d bits together, which does not divide its %lld x %lld weights; "
                         "keep it at 16 bits, or write gguf",
                         name, lanes, spec->bits, (long long)rows, (long long)cols);
    return LLMQ_OK;
}

static int members(const llmq_scheme_spec *spec, int64_t rows, int64_t cols,
                   llmq_scheme_member out[SCHEME_MAX_MEMBERS]) {
    int64_t groups = count_groups(spec, cols), words = words_for(cols, spec->bits),
            zero_words = words_for(rows, spec->bits);
    out[QWEIGHT] = (llmq_scheme_member){suffixes[QWEIGHT], "I32", 2, {words, rows}, words * rows * 4};
    out[QZEROS] = (llmq_scheme_member){suffixes[QZEROS], "I32", 2, {groups, zero_words}, groups * zero_words * 4};
    out[SCALES] = (llmq_scheme_member){suffixes[SCALES], "F16", 2, {groups, rows}, groups * rows * 2};
    out[G_IDX] = (llmq_scheme_member){suffixes[G_IDX], "I32", 1, {cols}, cols * 4};
    return 4;
}

static void split_codes(const llmq_quantized *q, int bits, void *qweight) {
    for (int64_t k = 0; k < q->cols; k += 32) {
        int n = q->cols - k < 32 ? (int)(q->cols - k) : 32;
        int64_t word = k * bits / 32, n_words = words_for(n, bits);
        for (int64_t r = 0; r < q->rows; r++) {
            uint32_t w[9];
            words_pack(q->codes + r * q->cols + k, bits, n, w);
            for (int64_t i = 0; i < n_words; i++) word_set(qweight, (word + i) * q->rows + r, w[i]);
        }
    }
}

static void split_grids(const llmq_scheme_spec *spec, const llmq_quantized *q, void *qzeros, void *scales) {
    int64_t groups = count_groups(spec, q->cols), row_words = words_for(q->rows, spec->bits);
    uint8_t mask = (uint8_t)((1 << spec->bits) - 1), less = is_v2(spec) ? 0 : 1,
            half = (uint8_t)(1 << (spec->bits - 1));
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t r = 0; r < q->rows; r += 32) {
            int n = q->rows - r < 32 ? (int)(q->rows - r) : 32;
            uint8_t zeros[32];
            uint32_t w[9];
            for (int i = 0; i < n; i++) {
                const llmq_grid *gr = &q->grids[(r + i) * groups + g];
                uint16_t h = f32_to_f16(gr->scale[0]);
                memcpy((uint8_t *)scales + 2 * (g * q->rows + r + i), &h, 2);
                zeros[i] = (uint8_t)(((spec->sym ? half : gr->mn[0]) - less) & mask);
            }
            words_pack(zeros, spec->bits, n, w);
            for (int64_t i = 0; i < words_for(n, spec->bits); i++)
                word_set(qzeros, g * row_words + r * spec->bits / 32 + i, w[i]);
        }
    }
}

static llmq_status split(const llmq_scheme_spec *spec, const llmq_quantized *q, void *const *data, llmq_err *err) {
    if (q->type != grid(spec))
        return llmq_fail(err, LLMQ_E_ARG, "gptq: a matrix on the grid %s was given to be written", q->type->name);
    split_codes(q, spec->bits, data[QWEIGHT]);
    split_grids(spec, q, data[QZEROS], data[SCALES]);
    for (int64_t k = 0; k < q->cols; k++) word_set(data[G_IDX], k, spec->group < 0 ? 0 : (uint32_t)(k / spec->group));
    return LLMQ_OK;
}

/* desc_act false: the order of rounding leaves no trace, since groups stay where they are (quant/methods/gptq.c). */
static json_t *config(const llmq_scheme_spec *spec) {
    const char *format = is_v2(spec) ? "gptq_v2" : "gptq", *version = llmq_version();
    json_t *meta = json_pack("{s:[o], s:b}", "quantizer",
                             json_sprintf("llmq:%.*s", (int)strcspn(version, " "), version), "static_groups", 1);
    if (meta && spec->damp > 0) json_object_set_new(meta, "damp_percent", json_real(spec->damp));
    return json_pack("{s:s, s:s, s:s, s:i, s:I, s:b, s:b, s:b, s:s, s:o}", "quant_method", "gptq", "format", format,
                     "checkpoint_format", format, "bits", spec->bits, "group_size", (json_int_t)spec->group, "desc_act",
                     0, "sym", spec->sym, "lm_head", 0, "pack_dtype", "int32", "meta", meta);
}

/* ---- reading ---- */

static llmq_status read_config(const json_t *config, const char *file, llmq_scheme_spec *spec, llmq_err *err) {
    const char *format = "gptq", *pack = "int32";
    int64_t bits = 0;
    spec->group = -1;
    spec->sym = true;
    LLMQ_TRY(json_get_i64(config, "bits", 1, 16, file, &bits, err));
    LLMQ_TRY(json_get_i64(config, "group_size", -1, INT32_MAX, file, &spec->group, err));
    LLMQ_TRY(json_get_bool(config, "sym", file, &spec->sym, err));
    LLMQ_TRY(json_get_str(config, "format", file, &format, err));
    LLMQ_TRY(json_get_str(config, "checkpoint_format", file, &format, err));
    LLMQ_TRY(json_get_str(config, "pack_dtype", file, &pack, err));
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: bits %lld; llmq reads gptq of 2, 3, 4 and 8 bits", file,
                         (long long)bits);
    if (strcmp(format, "gptq") && strcmp(format, "gptq_v2"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: quantization_config: checkpoint_format \"%.40s\"; llmq reads gptq and gptq_v2", file,
                         format);
    if (strcmp(pack, "int32"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: quantization_config: pack_dtype \"%.40s\"; llmq reads int32",
                         file, pack);
    if (spec->group == 0) return llmq_fail(err, LLMQ_E_FORMAT, "%s: quantization_config: group_size is 0", file);
    spec->bits = (int)bits;
    spec->zero_plus_one = !strcmp(format, "gptq_v2");
    return LLMQ_OK;
}

/* Groups in the order of the columns, all of one length but for the last? Then m->group; else m->group_of. */
static llmq_status read_groups(llmq_scheme_matrix *m, llmq_err *err) {
    const llmq_tensor *t = m->members[G_IDX];
    int64_t first = 0;
    bool regular = true;
    while (first < m->cols && word_at(t->data, first) == 0) first++;
    for (int64_t k = 0; k < m->cols; k++) {
        uint32_t g = word_at(t->data, k);
        if (g >= (uint64_t)m->n_groups)
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: g_idx names group %d of %lld: the file is damaged", m->file,
                             m->name, (int)(int32_t)g, (long long)m->n_groups);
        regular = regular && first && g == (uint64_t)(k / first);
    }
    if (regular) {
        m->group = first;
        m->n_groups = (m->cols + first - 1) / first;
        return LLMQ_OK;
    }
    m->group_of = mem_alloc((size_t)m->cols, sizeof *m->group_of);
    if (!m->group_of) return mem_error(err, (size_t)m->cols * sizeof *m->group_of, m->name);
    memcpy(m->group_of, t->data, (size_t)m->cols * sizeof *m->group_of);
    m->group = m->spec.group > 0 ? m->spec.group : m->cols;
    return LLMQ_OK;
}

/* Without g_idx the configuration's group must give as many groups as there are. */
static llmq_status guess_groups(llmq_scheme_matrix *m, llmq_err *err) {
    m->group = m->spec.group < 0 || m->spec.group > m->cols ? m->cols : m->spec.group;
    if ((m->cols + m->group - 1) / m->group == m->n_groups) return LLMQ_OK;
    if (m->cols % m->n_groups)
        return llmq_fail(
            err, LLMQ_E_FORMAT,
            "%s: %s: %lld groups where group_size %lld makes %lld of its %lld columns: the file is damaged "
            "or its config.json is of another model",
            m->file, m->name, (long long)m->n_groups, (long long)m->spec.group,
            (long long)((m->cols + m->group - 1) / m->group), (long long)m->cols);
    m->group = m->cols / m->n_groups;
    return LLMQ_OK;
}

static llmq_status open_matrix(llmq_scheme_matrix *m, llmq_err *err) {
    LLMQ_TRY(scheme_need(m, &scheme_gptq, QWEIGHT, MEMBER_I32, 0, 0, err));
    const llmq_tensor *qweight = m->members[QWEIGHT], *g_idx = m->members[G_IDX];
    int64_t words = qweight->dims[1];
    m->rows = qweight->dims[0];
    m->bits = m->spec.bits;
    if (g_idx) { /* the shape knows the bits of a matrix that "dynamic" rules treat otherwise */
        LLMQ_TRY(scheme_need(m, &scheme_gptq, G_IDX, MEMBER_I32, 0, -1, err));
        m->cols = g_idx->dims[0];
        m->bits = words * 32 / m->cols <= 8 ? (int)(words * 32 / m->cols) : 0;
    } else {
        m->cols = words * 32 / m->bits;
    }
    if ((m->bits != 2 && m->bits != 3 && m->bits != 4 && m->bits != 8) || m->cols * m->bits != words * 32)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: %s: qweight of %lld rows of words does not hold %lld columns of %d bits: the file is "
                         "damaged or its config.json is of another model",
                         m->file, m->name, (long long)words, (long long)m->cols, m->bits);
    LLMQ_TRY(scheme_need(m, &scheme_gptq, SCALES, MEMBER_FLOAT, 0, m->rows, err));
    m->n_groups = m->members[SCALES]->dims[1];
    if (m->n_groups > m->cols)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s: more groups than columns: the file is damaged", m->file, m->name);
    if (m->members[QZEROS] || !m->spec.sym)
        LLMQ_TRY(scheme_need(m, &scheme_gptq, QZEROS, MEMBER_I32, m->n_groups, words_for(m->rows, m->bits), err));
    return g_idx ? read_groups(m, err) : guess_groups(m, err);
}

/* n zeros of group g from row on. */
static void read_zeros(const llmq_scheme_matrix *m, int64_t g, int64_t row, int64_t n, int16_t *zero, int64_t step) {
    int64_t n_words = words_for(m->rows, m->bits);
    int mask = (1 << m->bits) - 1, more = m->spec.zero_plus_one ? 0 : 1;
    for (int64_t r = row / 32 * 32; r < row + n; r += 32) {
        uint32_t w[9] = {0};
        uint8_t codes[32];
        int64_t first = r * m->bits / 32;
        for (int i = 0; i < m->bits && first + i < n_words; i++)
            w[i] = word_at(m->members[QZEROS]->data, g * n_words + first + i);
        words_unpack(w, m->bits, 32, codes);
        for (int64_t i = r < row ? row : r; i < r + 32 && i < row + n; i++)
            zero[(i - row) * step] = (int16_t)((codes[i - r] + more) & mask);
    }
}

static void scales(const llmq_scheme_matrix *m, int64_t row, int64_t n, float *scale, int16_t *zero) {
    for (int64_t g = 0; g < m->n_groups; g++) {
        for (int64_t r = 0; r < n; r++) {
            scheme_floats(m->members[SCALES], g * m->rows + row + r, 1, scale + r * m->n_groups + g);
            zero[r * m->n_groups + g] = (int16_t)(1 << (m->bits - 1));
        }
        if (m->members[QZEROS]) read_zeros(m, g, row, n, zero + g, m->n_groups);
    }
}

static void codes(const llmq_scheme_matrix *m, int64_t row, int64_t n, uint8_t *out) {
    const void *words = m->members[QWEIGHT]->data;
    for (int64_t k = 0; k < m->cols; k += 32) {
        int len = m->cols - k < 32 ? (int)(m->cols - k) : 32;
        int64_t first = k * m->bits / 32, n_words = words_for(len, m->bits);
        for (int64_t r = 0; r < n; r++) {
            uint8_t *to = out + r * m->cols + k;
            uint32_t w[9] = {0};
            for (int64_t i = 0; i < n_words; i++) w[i] = word_at(words, (first + i) * m->rows + row + r);
            if (m->bits == 4)
                for (int64_t i = 0; i < n_words; i++) word_unpack4(w[i], to + 8 * i);
            else
                words_unpack(w, m->bits, len, to);
        }
    }
}

const llmq_scheme scheme_gptq = {
    .name = "gptq",
    .quant_method = "gptq",
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
