/* The schemes bnb and awq against what bitsandbytes and AutoAWQ wrote and read (tests/data/make_schemes_bnb_awq.py),
 * round trips, and members that lie. */
#include "support.h"

#include "formats/json.h"
#include "formats/schemes/scheme.h"
#include "types/affine.h"
#include "types/nf4.h"

/* ---- golden records ---- */

typedef struct golden {
    char *data;
    size_t len;
} golden;

static int load_golden(golden *g, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/schemes/%s", LLMQ_TEST_DATA, name);
    return file_read(path, 1 << 20, &g->data, &g->len, NULL) == LLMQ_OK ? 0 : -1;
}

/* The bytes of a record; NULL if there is none. */
static const void *record_find(const golden *g, const char *prefix, const char *suffix, uint32_t *bytes_out) {
    char want[128];
    snprintf(want, sizeof want, "%s%s", prefix, suffix);
    for (size_t at = 0; at + 8 <= g->len;) {
        uint32_t name_len, bytes;
        memcpy(&name_len, g->data + at, 4);
        memcpy(&bytes, g->data + at + 4 + name_len, 4);
        if (name_len == strlen(want) && !memcmp(g->data + at + 4, want, name_len)) {
            *bytes_out = bytes;
            return g->data + at + 8 + name_len;
        }
        at += 8 + name_len + bytes;
    }
    return NULL;
}

/* make_schemes_bnb_awq.py's weights. */
static float *make_weights(int64_t n, uint64_t seed) {
    float *w = mem_alloc((size_t)n, sizeof *w);
    assert_non_null(w);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        double u = (double)(seed >> 40) / 16777216.0 - 0.5;
        w[i] = (float)(0.5 * u * u * u + 0.01 * u);
    }
    return w;
}

/* ---- members in memory ---- */

typedef struct stored {
    const llmq_scheme *scheme;
    llmq_scheme_matrix m;
    llmq_tensor tensors[SCHEME_MAX_MEMBERS]; /* by suffixes */
    void *data[SCHEME_MAX_MEMBERS];
} stored;

static llmq_type type_of(const char *dtype) {
    return !strcmp(dtype, "I8")    ? MEMBER_I8
           : !strcmp(dtype, "I32") ? MEMBER_I32
           : !strcmp(dtype, "U8")  ? MEMBER_U8
           : !strcmp(dtype, "F16") ? LLMQ_TYPE_F16
                                   : LLMQ_TYPE_F32;
}

static void stored_init(stored *s, const char *scheme, llmq_scheme_spec spec) {
    *s = (stored){.scheme = scheme_find(scheme)};
    s->m = (llmq_scheme_matrix){.file = "FILE", .name = "P.weight", .spec = spec};
}

/* A member of so many elements, its bytes copied (exactly, so that the sanitizer sees a byte too many). */
static void stored_add(stored *s, const char *suffix, llmq_type type, int n_dims, int64_t rows, int64_t cols,
                       const void *data, size_t bytes) {
    for (int k = 0; s->scheme->suffixes[k]; k++) {
        if (strcmp(s->scheme->suffixes[k], suffix)) continue;
        s->data[k] = malloc(bytes);
        assert_non_null(s->data[k]);
        memcpy(s->data[k], data, bytes);
        s->tensors[k] = (llmq_tensor){.type = type, .n_dims = n_dims, .dims = {1, 1, 1, 1}, .bytes = (int64_t)bytes};
        s->tensors[k].dims[0] = n_dims == 2 ? cols : rows;
        if (n_dims == 2) s->tensors[k].dims[1] = rows;
        s->tensors[k].data = s->data[k];
        s->m.members[k] = &s->tensors[k];
        return;
    }
    fail_msg("no member %s", suffix);
}

static void stored_clear(stored *s) {
    for (int k = 0; k < SCHEME_MAX_MEMBERS; k++) free(s->data[k]);
}

static int member(const stored *s, const char *suffix) {
    for (int k = 0; s->scheme->suffixes[k]; k++)
        if (!strcmp(s->scheme->suffixes[k], suffix)) return k;
    fail_msg("no member %s", suffix);
    return -1;
}

/* A golden case as a file would hold it. */
static void stored_load(stored *s, const golden *g, const char *name, const char *scheme, llmq_scheme_spec spec,
                        int64_t rows, int64_t cols) {
    llmq_scheme_member info[SCHEME_MAX_MEMBERS];
    stored_init(s, scheme, spec);
    int n = s->scheme->members(&spec, rows, cols, info);
    for (int i = 0; i < n; i++) {
        uint32_t bytes = 0;
        const char *suffix = info[i].suffix;
        const void *data = strstr(suffix, "nested_quant_map") ? record_find(g, "map", "", &bytes)
                                                              : record_find(g, name, suffix, &bytes);
        if (!data) fail_msg("%s%s is not in the goldens", name, suffix);
        bool text = strstr(suffix, "quant_state") != NULL;
        if (!text) assert_int_equal(bytes, info[i].bytes);
        stored_add(s, suffix, type_of(info[i].dtype), info[i].n_dims, text ? bytes : info[i].dims[0], info[i].dims[1],
                   data, bytes);
    }
}

/* What the writer makes of q. */
static void stored_split(stored *s, const char *scheme, llmq_scheme_spec spec, const llmq_quantized *q) {
    llmq_scheme_member info[SCHEME_MAX_MEMBERS];
    void *data[SCHEME_MAX_MEMBERS];
    llmq_err err = {0};
    stored_init(s, scheme, spec);
    if (s->scheme->check(&spec, "P", q->rows, q->cols, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    int n = s->scheme->members(&spec, q->rows, q->cols, info);
    for (int i = 0; i < n; i++) {
        data[i] = malloc((size_t)info[i].bytes);
        memset(data[i], 0xa5, (size_t)info[i].bytes);
    }
    if (s->scheme->split(&spec, q, data, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (int i = 0; i < n; i++) {
        stored_add(s, info[i].suffix, type_of(info[i].dtype), info[i].n_dims, info[i].dims[0], info[i].dims[1], data[i],
                   (size_t)info[i].bytes);
        free(data[i]);
    }
}

static void open_matrix(stored *s, int64_t rows, int64_t cols) {
    llmq_err err = {0};
    if (s->scheme->open(&s->m, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(s->m.rows, rows);
    assert_int_equal(s->m.cols, cols);
    assert_null(s->m.group_of);
}

static void refused(stored *s, llmq_status status, const char *part) {
    llmq_err err = {0};
    llmq_status got = s->scheme->open(&s->m, &err);
    if (got == LLMQ_OK) fail_msg("opened; expected: %s", part);
    if (got != status || !strstr(err.msg, part) || !strstr(err.msg, "P.weight"))
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, err.msg, status, part);
}

/* All values, read by slabs of `step` rows. */
static float *values_of(const stored *s, int64_t step) {
    const llmq_scheme_matrix *m = &s->m;
    float *x = mem_alloc((size_t)(m->rows * m->cols), sizeof *x), *scale;
    int16_t *zero;
    uint8_t *codes = mem_alloc((size_t)(step * m->cols), 1);
    size_t n_groups = (size_t)(m->flat ? m->n_groups : step * m->n_groups);
    scale = mem_alloc(n_groups, sizeof *scale);
    zero = mem_alloc(n_groups, sizeof *zero);
    for (int64_t row = 0; row < m->rows; row += step) {
        int64_t n = m->rows - row < step ? m->rows - row : step;
        s->scheme->scales(m, row, n, scale, zero);
        s->scheme->codes(m, row, n, codes);
        for (int64_t i = 0; i < n * m->cols; i++) {
            int64_t g = m->flat ? (row * m->cols + i) / m->group - row * m->cols / m->group
                                : i / m->cols * m->n_groups + i % m->cols / m->group;
            float level = m->levels ? m->levels[codes[i]] : (float)(codes[i] - zero[g]);
            if (m->levels) assert_int_equal(zero[g], 0);
            x[row * m->cols + i] = scale[g] * level;
        }
    }
    mem_free(scale);
    mem_free(zero);
    mem_free(codes);
    return x;
}

/* The first and the last values are those of the record, bit for bit (-0 is 0). */
static void assert_values(const stored *s, int64_t step, const golden *g, const char *name) {
    uint32_t bytes;
    const char *want = record_find(g, name, ".values", &bytes);
    float *x = values_of(s, step);
    int64_t n = bytes / 8;
    assert_non_null(want);
    for (int64_t i = 0; i < 2 * n; i++) {
        float expected, got = x[i < n ? i : s->m.rows * s->m.cols - 2 * n + i];
        memcpy(&expected, want + 4 * i, 4);
        if (got != expected) fail_msg("%s: value %d is %.9g, not %.9g", name, (int)i, (double)got, (double)expected);
    }
    mem_free(x);
}

/* What is read is what q means. */
static void assert_means(stored *s, int64_t step, const llmq_quantized *q) {
    float *row = mem_alloc((size_t)q->cols, sizeof *row);
    open_matrix(s, q->rows, q->cols);
    float *x = values_of(s, step);
    for (int64_t r = 0; r < q->rows; r++) {
        quantized_row_to_f32(q, r, row);
        for (int64_t c = 0; c < q->cols; c++) assert_true(x[r * q->cols + c] == row[c]);
    }
    mem_free(row);
    mem_free(x);
}

/* ---- bnb ---- */

static const struct {
    const char *name;
    int64_t rows, cols, block;
    bool fp4, nested;
} bnb_cases[] = {
    {"nf4", 6, 192, 64, false, false},        {"nf4-nested", 26, 640, 64, false, true},
    {"fp4", 4, 192, 64, true, false},         {"fp4-nested", 4, 256, 64, true, true},
    {"nf4-across", 7, 100, 64, false, false}, {"nf4-across-nested", 9, 100, 64, false, true},
    {"nf4-128", 3, 256, 128, false, false},   {"nf4-4096", 1, 4096, 4096, false, false},
};
#define BNB_CASES (sizeof bnb_cases / sizeof *bnb_cases)

static llmq_scheme_spec bnb_spec(size_t i) {
    return (llmq_scheme_spec){.bits = 4,
                              .group = bnb_cases[i].block,
                              .sym = true,
                              .double_quant = bnb_cases[i].nested,
                              .fp4 = bnb_cases[i].fp4};
}

static void bnb_reads_bitsandbytes(void **state) {
    golden g;
    (void)state;
    assert_int_equal(load_golden(&g, "bnb.bin"), 0);
    for (size_t i = 0; i < BNB_CASES; i++) {
        stored s;
        stored_load(&s, &g, bnb_cases[i].name, "bnb", bnb_spec(i), bnb_cases[i].rows, bnb_cases[i].cols);
        open_matrix(&s, bnb_cases[i].rows, bnb_cases[i].cols);
        assert_true(s.m.flat && s.m.group == bnb_cases[i].block);
        assert_values(&s, 64, &g, bnb_cases[i].name);
        stored_clear(&s);
    }
    mem_free(g.data);
}

/* Codes as type_codes chooses them for the largest magnitudes, written, are bitsandbytes' own bytes. */
static void bnb_writes_as_bitsandbytes(void **state) {
    golden g;
    (void)state;
    assert_int_equal(load_golden(&g, "bnb.bin"), 0);
    for (size_t i = 0; i < BNB_CASES; i++) {
        stored ours, theirs;
        llmq_quantized *q;
        int64_t rows = bnb_cases[i].rows, cols = bnb_cases[i].cols, n = rows * cols, block = bnb_cases[i].block;
        llmq_scheme_spec spec = bnb_spec(i);
        float *w = make_weights(n, 11);
        assert_int_equal(quantized_create(scheme_find("bnb")->grid(&spec), rows, cols, &q, NULL), LLMQ_OK);
        memset(q->grids, 0, (size_t)quantized_grids(q) * sizeof *q->grids);
        for (int64_t at = 0; at < n; at += block) {
            int64_t len = n - at < block ? n - at : block;
            llmq_grid *grid = &q->grids[at / block];
            for (int64_t k = 0; k < len; k++) grid->scale[0] = fmaxf(grid->scale[0], fabsf(w[at + k]));
            type_codes(q->type, grid, w + at, len, q->codes + at);
        }
        if (bnb_cases[i].nested) q->type->settle(q); /* after the codes, as bitsandbytes does */
        stored_load(&theirs, &g, bnb_cases[i].name, "bnb", spec, rows, cols);
        stored_split(&ours, "bnb", spec, q);
        for (int k = 0; ours.m.members[k]; k++) {
            uint8_t *a = ours.data[k], *b = theirs.data[k];
            for (int64_t j = 0; j < theirs.tensors[k].bytes && k == 0 && spec.fp4; j++) /* -0 is written as 0 */
                b[j] = (uint8_t)((b[j] >> 4 == 8 ? 0 : b[j] & 0xf0) | ((b[j] & 15) == 8 ? 0 : b[j] & 15));
            if (k == member(&ours, ".weight.absmax") && bnb_cases[i].nested) break; /* the next test */
            if (strstr(ours.scheme->suffixes[k], "quant_state")) break;
            assert_int_equal(ours.tensors[k].bytes, theirs.tensors[k].bytes);
            for (int64_t j = 0; j < ours.tensors[k].bytes; j++)
                if (a[j] != b[j]) fail_msg("%s%s: byte %d", bnb_cases[i].name, ours.scheme->suffixes[k], (int)j);
        }
        assert_means(&ours, 64, q);
        quantized_destroy(q);
        stored_clear(&ours);
        stored_clear(&theirs);
        mem_free(w);
    }
    mem_free(g.data);
}

static void nested_scales_are_bitsandbytes(void **state) {
    golden g;
    uint32_t bytes;
    float map[NF4_MAP], theirs[2];
    llmq_quantized *q;
    (void)state;
    assert_int_equal(load_golden(&g, "bnb.bin"), 0);
    nf4_nested_map(map);
    const void *want = record_find(&g, "map", "", &bytes);
    assert_non_null(want);
    assert_int_equal(bytes, sizeof map);
    assert_memory_equal(map, want, sizeof map);
    /* Settling the largest magnitudes gives bitsandbytes' own bytes, but for ties and the order of its sum. */
    float *w = make_weights(26 * 640, 11);
    assert_int_equal(quantized_create(nf4_grid(false, 64, true), 26, 640, &q, NULL), LLMQ_OK);
    memset(q->grids, 0, 260 * sizeof *q->grids);
    for (int i = 0; i < 260 * 64; i++) q->grids[i / 64].scale[0] = fmaxf(q->grids[i / 64].scale[0], fabsf(w[i]));
    q->type->settle(q);
    const uint8_t *codes = record_find(&g, "nf4-nested", ".weight.absmax", &bytes);
    int differ = 0;
    for (int i = 0; i < 260; i++) {
        assert_true(abs(q->nested->codes[i] - codes[i]) <= 1);
        differ += q->nested->codes[i] != codes[i];
    }
    assert_in_range(differ, 0, 3);
    memcpy(theirs, record_find(&g, "nf4-nested", ".weight.nested_absmax", &bytes), sizeof theirs);
    for (int i = 0; i < 2; i++) assert_true(fabsf(q->nested->absmax[i] - theirs[i]) < 1e-6f);
    quantized_destroy(q);
    mem_free(w);
    mem_free(g.data);
}

static void set_state(stored *s, const char *text) {
    int k = member(s, ".weight.quant_state.bitsandbytes__nf4");
    free(s->data[k]);
    s->data[k] = NULL;
    stored_add(s, s->scheme->suffixes[k], MEMBER_U8, 1, (int64_t)strlen(text), 1, text, strlen(text));
}

static void bnb_members_that_lie(void **state) {
    golden g;
    stored s;
    (void)state;
    assert_int_equal(load_golden(&g, "bnb.bin"), 0);
    stored_load(&s, &g, "nf4-nested", "bnb", bnb_spec(1), 26, 640);
    static const struct {
        const char *text, *part;
        llmq_status status;
    } states[] = {
        {"", "quant_state", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\"", "JSON", LLMQ_E_FORMAT},
        {"[1]", "object", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"nested_blocksize\": 256}", "shape", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26]}", "shape", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, 0]}", "shape", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, -640]}", "shape", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, \"x\"]}", "shape", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [4611686018427387904, 640]}", "shape", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [1099511627776, 1099511627776]}", "shape",
         LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, 642]}", ".weight", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"fp4\", \"blocksize\": 64, \"shape\": [26, 640]}", "quant_type", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 0, \"shape\": [26, 640]}", "blocksize", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"shape\": [26, 640]}", "blocksize", LLMQ_E_UNSUPPORTED},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 65, \"shape\": [26, 640]}", "blocksize", LLMQ_E_UNSUPPORTED},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 8192, \"shape\": [26, 640]}", "blocksize", LLMQ_E_UNSUPPORTED},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 1e300, \"shape\": [26, 640]}", "blocksize", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 32, \"shape\": [26, 640], \"nested_blocksize\": 256}", "absmax",
         LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, 640]}", "absmax", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, 640], \"nested_blocksize\": 0}",
         "nested_blocksize", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, 640], \"nested_blocksize\": 64}",
         "nested_absmax", LLMQ_E_FORMAT},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [26, 640], \"nested_blocksize\": 256, "
         "\"nested_offset\": 1e39}",
         "nested_offset", LLMQ_E_FORMAT},
    };
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        set_state(&s, states[i].text);
        refused(&s, states[i].status, states[i].part);
    }
    stored_clear(&s);
    stored_load(&s, &g, "nf4-nested", "bnb", bnb_spec(1), 26, 640);
    for (int k = 0; k < 8; k++) { /* absent, of another size, of another dtype */
        const char *suffix = k == 3 ? "quant_state" : s.scheme->suffixes[k];
        llmq_tensor keep = s.tensors[k];
        if (!s.m.members[k]) continue;
        s.m.members[k] = NULL;
        refused(&s, LLMQ_E_FORMAT, suffix);
        s.m.members[k] = &s.tensors[k];
        s.tensors[k].type = LLMQ_TYPE_F16;
        refused(&s, LLMQ_E_FORMAT, suffix);
        s.tensors[k] = keep;
        if (k == 3) continue;
        s.tensors[k].dims[keep.n_dims - 1] -= 1;
        refused(&s, LLMQ_E_FORMAT, suffix);
        s.tensors[k].dims[keep.n_dims - 1] += 2;
        refused(&s, LLMQ_E_FORMAT, suffix);
        s.tensors[k] = keep;
    }
    open_matrix(&s, 26, 640);
    ((float *)s.data[member(&s, ".weight.quant_map")])[3] = 0.5f;
    refused(&s, LLMQ_E_UNSUPPORTED, "quant_map");
    stored_clear(&s);
    mem_free(g.data);
}

static void int8_is_read(void **state) {
    (void)state;
    const int8_t codes[15] = {0, 1, -1, 127, -128, 5, 6, 7, 8, 9, -5, -6, -7, -8, -9};
    const float scb[3] = {1.27f, 0.3f, 2.0f};
    uint8_t format = 0;
    stored s;
    llmq_err err;
    llmq_scheme_spec spec = {.bits = 8, .group = -1, .sym = true};
    stored_init(&s, "bnb", spec);
    stored_add(&s, ".weight", MEMBER_I8, 2, 3, 5, codes, sizeof codes);
    stored_add(&s, ".SCB", LLMQ_TYPE_F32, 1, 3, 1, scb, sizeof scb);
    open_matrix(&s, 3, 5); /* the format may be absent */
    stored_add(&s, ".weight_format", MEMBER_U8, 0, 1, 1, &format, 1);
    open_matrix(&s, 3, 5);
    float *x = values_of(&s, 2);
    for (int i = 0; i < 15; i++) {
        double want = (double)scb[i / 5] * codes[i] / 127;
        assert_true(fabs((double)x[i] - want) <= 1e-6 * fabs(want));
    }
    mem_free(x);
    *(uint8_t *)s.data[member(&s, ".weight_format")] = 1;
    refused(&s, LLMQ_E_UNSUPPORTED, "weight_format");
    *(uint8_t *)s.data[member(&s, ".weight_format")] = 0;
    s.tensors[member(&s, ".SCB")].dims[0] = 2;
    refused(&s, LLMQ_E_FORMAT, ".SCB");
    assert_int_equal(s.scheme->check(&spec, "P", 3, 5, &err), LLMQ_E_UNSUPPORTED);
    stored_clear(&s);
}

/* ---- awq ---- */

static void awq_is_autoawqs(void **state) {
    static const struct {
        const char *name;
        int64_t rows, cols, group;
    } cases[] = {{"asym", 64, 96, 32}, {"whole", 32, 64, 64}};
    golden g;
    (void)state;
    assert_int_equal(load_golden(&g, "awq.bin"), 0);
    for (size_t i = 0; i < 2; i++) {
        stored s, back;
        llmq_quantized *q;
        int64_t rows = cases[i].rows, cols = cases[i].cols, n_groups = cols / cases[i].group;
        llmq_scheme_spec spec = {.bits = 4, .group = cases[i].group};
        stored_load(&s, &g, cases[i].name, "awq", spec, rows, cols);
        open_matrix(&s, rows, cols);
        assert_values(&s, 5, &g, cases[i].name);
        /* the same matrix written: the same bytes */
        float *scale = mem_alloc((size_t)(rows * n_groups), sizeof *scale);
        int16_t *zero = mem_alloc((size_t)(rows * n_groups), sizeof *zero);
        assert_int_equal(quantized_create(s.scheme->grid(&spec), rows, cols, &q, NULL), LLMQ_OK);
        s.scheme->codes(&s.m, 0, rows, q->codes);
        s.scheme->scales(&s.m, 0, rows, scale, zero);
        for (int64_t k = 0; k < rows * n_groups; k++) affine_grid_set(&q->grids[k], scale[k], zero[k]);
        stored_split(&back, "awq", spec, q);
        for (int k = 0; k < 3; k++) {
            assert_int_equal(back.tensors[k].bytes, s.tensors[k].bytes);
            assert_memory_equal(back.data[k], s.data[k], (size_t)s.tensors[k].bytes);
        }
        assert_means(&back, 7, q);
        mem_free(scale);
        mem_free(zero);
        quantized_destroy(q);
        stored_clear(&back);
        stored_clear(&s);
    }
    mem_free(g.data);
}

static void awq_symmetric_has_zeros_of_eight(void **state) {
    (void)state;
    llmq_scheme_spec spec = {.bits = 4, .group = -1, .sym = true};
    stored s;
    llmq_quantized *q;
    assert_int_equal(quantized_create(scheme_find("awq")->grid(&spec), 8, 24, &q, NULL), LLMQ_OK);
    for (int i = 0; i < 8 * 24; i++) q->codes[i] = (uint8_t)(i % 24 == 0 ? i / 24 : (7 * i) % 16);
    for (int r = 0; r < 8; r++) affine_grid_set(&q->grids[r], 0.25f * (float)(r + 1), 0);
    stored_split(&s, "awq", spec, q);
    uint32_t word;
    memcpy(&word, s.data[0], 4); /* column 0 of rows 0..7 has codes 0..7 */
    assert_int_equal(word, 0x75316420u);
    memcpy(&word, s.data[1], 4);
    assert_int_equal(word, 0x88888888u);
    assert_means(&s, 3, q);
    s.m.members[1] = NULL; /* zero_point false: they may be left out */
    assert_means(&s, 3, q);
    s.m.spec.sym = false;
    refused(&s, LLMQ_E_FORMAT, ".qzeros");
    quantized_destroy(q);
    stored_clear(&s);
}

static void awq_refuses_what_does_not_fit(void **state) {
    (void)state;
    const llmq_scheme *awq = scheme_find("awq");
    llmq_scheme_spec spec = {.bits = 4, .group = 128};
    llmq_err err = {0};
    assert_int_equal(awq->check(&spec, "mat", 64, 576, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "--group 64, 32, -1"));
    assert_non_null(strstr(err.msg, "mat"));
    assert_int_equal(awq->check(&spec, "mat", 64, 1536, &err), LLMQ_OK);
    assert_int_equal(awq->check(&spec, "mat", 60, 1536, &err), LLMQ_E_UNSUPPORTED);
    spec.group = -1;
    assert_int_equal(awq->check(&spec, "mat", 64, 100, &err), LLMQ_OK);
    spec.bits = 8;
    assert_int_equal(awq->check(&spec, "mat", 64, 1536, &err), LLMQ_E_UNSUPPORTED);
    spec = (llmq_scheme_spec){.bits = 4, .group = 32};
    golden g;
    stored s;
    assert_int_equal(load_golden(&g, "awq.bin"), 0);
    stored_load(&s, &g, "asym", "awq", spec, 64, 96);
    open_matrix(&s, 64, 96);
    for (int k = 0; k < 3; k++) {
        llmq_tensor keep = s.tensors[k];
        s.m.members[k] = NULL;
        refused(&s, LLMQ_E_FORMAT, s.scheme->suffixes[k]);
        s.m.members[k] = &s.tensors[k];
        s.tensors[k].type = MEMBER_I64;
        refused(&s, LLMQ_E_FORMAT, s.scheme->suffixes[k]);
        s.tensors[k] = keep;
        s.tensors[k].dims[0]++;
        refused(&s, LLMQ_E_FORMAT, k == 0 ? ".scales" : s.scheme->suffixes[k]); /* qweight has the shape */
        s.tensors[k] = keep;
        s.tensors[k].dims[1]--;
        refused(&s, LLMQ_E_FORMAT, k == 0 ? "groups of 32" : s.scheme->suffixes[k]);
        s.tensors[k] = keep;
    }
    s.tensors[0].dims[1] = 0;
    refused(&s, LLMQ_E_FORMAT, "rows of 0");
    stored_clear(&s);
    mem_free(g.data);
}

/* ---- config.json ---- */

static llmq_status read_text(const char *scheme, const char *text, llmq_scheme_spec *spec) {
    llmq_err err = {0};
    json_t *json;
    assert_int_equal(json_parse_object(text, strlen(text), "config.json", &json, &err), LLMQ_OK);
    llmq_status status = scheme_find(scheme)->read_config(json, "config.json", spec, &err);
    if (status != LLMQ_OK) assert_non_null(strstr(err.msg, "config.json"));
    json_decref(json);
    return status;
}

static void configs(void **state) {
    (void)state;
    llmq_scheme_spec spec = {0};
    llmq_err err;
    for (int i = 0; i < 6; i++) { /* what is written is read */
        const llmq_scheme *s = scheme_find(i < 4 ? "bnb" : "awq");
        llmq_scheme_spec want = {.bits = 4, .group = i < 4 ? 64 : i == 4 ? 128 : -1};
        if (i < 4) want.sym = true, want.fp4 = i & 1, want.double_quant = i & 2;
        json_t *json = s->config(&want);
        spec = (llmq_scheme_spec){0};
        assert_non_null(json);
        assert_ptr_equal(scheme_for_config(json_string_value(json_object_get(json, "quant_method"))), s);
        assert_int_equal(s->read_config(json, "config.json", &spec, &err), LLMQ_OK);
        assert_true(spec.bits == want.bits && spec.group == want.group && spec.sym == want.sym &&
                    spec.fp4 == want.fp4 && spec.double_quant == want.double_quant);
        json_decref(json);
    }
    assert_int_equal(read_text("bnb", "{\"load_in_8bit\": true}", &spec), LLMQ_OK);
    assert_int_equal(spec.bits, 8);
    assert_int_equal(read_text("bnb", "{\"load_in_4bit\": true}", &spec), LLMQ_OK);
    assert_true(spec.fp4);
    assert_int_equal(read_text("bnb", "{}", &spec), LLMQ_E_UNSUPPORTED);
    assert_int_equal(read_text("bnb", "{\"load_in_4bit\": 1}", &spec), LLMQ_E_FORMAT);
    assert_int_equal(read_text("bnb", "{\"load_in_4bit\": true, \"bnb_4bit_quant_type\": \"af4\"}", &spec),
                     LLMQ_E_UNSUPPORTED);
    assert_int_equal(read_text("awq", "{\"w_bit\": 4, \"q_group_size\": 64}", &spec), LLMQ_OK);
    assert_int_equal(spec.group, 64);
    assert_int_equal(read_text("awq", "{\"bits\": 3}", &spec), LLMQ_E_UNSUPPORTED);
    assert_int_equal(read_text("awq", "{\"bits\": 4, \"version\": \"gemv\"}", &spec), LLMQ_E_UNSUPPORTED);
    assert_int_equal(read_text("awq", "{\"bits\": 4, \"group_size\": 0}", &spec), LLMQ_E_FORMAT);
    assert_int_equal(read_text("awq", "{\"bits\": 4, \"zero_point\": false}", &spec), LLMQ_OK);
    assert_true(spec.sym);
    assert_null(scheme_find("nothing"));
    assert_null(scheme_for_config("nothing"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bnb_reads_bitsandbytes),
        cmocka_unit_test(bnb_writes_as_bitsandbytes),
        cmocka_unit_test(nested_scales_are_bitsandbytes),
        cmocka_unit_test(bnb_members_that_lie),
        cmocka_unit_test(int8_is_read),
        cmocka_unit_test(awq_is_autoawqs),
        cmocka_unit_test(awq_symmetric_has_zeros_of_eight),
        cmocka_unit_test(awq_refuses_what_does_not_fit),
        cmocka_unit_test(configs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
