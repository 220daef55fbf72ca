/* Hugging Face weight schemes in memory: split and read back, the layouts' hand vectors, the same codes in every scheme. */
#include "support.h"

#include <jansson.h>

#include "core/half.h"
#include "formats/schemes/scheme.h"
#include "types/affine.h"
#include "types/blocks.h"

static uint64_t seed = 11;

static uint32_t random_u32(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

/* A random matrix on the scheme's grid: any code, any F16 scale, any zero. */
static llmq_quantized *random_matrix(const llmq_type_info *t, int64_t rows, int64_t cols) {
    llmq_quantized *q;
    assert_int_equal(quantized_create(t, rows, cols, &q, NULL), LLMQ_OK);
    for (int64_t i = 0; i < rows * cols; i++) q->codes[i] = (uint8_t)(random_u32() % (uint32_t)t->n_levels);
    for (int64_t i = 0; i < rows * type_blocks(t, cols); i++)
        affine_grid_set(&q->grids[i], (float)(1 + random_u32() % 1000) / 4096, t->levels[0] < 0 ? 0 : (int)(random_u32() % (uint32_t)t->n_levels));
    return q;
}

/* What a folder would hold of a matrix. */
typedef struct stored {
    llmq_scheme_member members[SCHEME_MAX_MEMBERS];
    llmq_tensor tensors[SCHEME_MAX_MEMBERS];
    void *data[SCHEME_MAX_MEMBERS];
    int n;
} stored;

static llmq_type type_of(const char *dtype) {
    static const struct { const char *name; llmq_type type; } names[] = {
        {"I8", MEMBER_I8}, {"I32", MEMBER_I32}, {"I64", MEMBER_I64}, {"U8", MEMBER_U8}, {"F16", LLMQ_TYPE_F16}, {"F32", LLMQ_TYPE_F32}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].name, dtype)) return names[i].type;
    fail_msg("dtype %s", dtype);
    return LLMQ_TYPE_NONE;
}

static stored store(const llmq_scheme *s, const llmq_scheme_spec *spec, const llmq_quantized *q) {
    stored st = {0};
    st.n = s->members(spec, q->rows, q->cols, st.members);
    for (int i = 0; i < st.n; i++) {
        const llmq_scheme_member *m = &st.members[i];
        st.data[i] = malloc((size_t)m->bytes); /* exact, so that the sanitizer sees a byte too many */
        memset(st.data[i], 0xa5, (size_t)m->bytes);
        st.tensors[i] = (llmq_tensor){.type = type_of(m->dtype), .n_dims = m->n_dims, .dims = {m->n_dims == 2 ? m->dims[1] : m->dims[0],
                                      m->n_dims == 2 ? m->dims[0] : 1, 1, 1}, .bytes = m->bytes, .data = st.data[i]};
    }
    llmq_err err = {0};
    if (s->split(spec, q, st.data, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return st;
}

static void drop(stored *st) {
    for (int i = 0; i < st->n; i++) free(st->data[i]);
}

static llmq_scheme_matrix opened(const llmq_scheme *s, const llmq_scheme_spec *spec, const stored *st) {
    llmq_scheme_matrix m = {.file = "FILE", .name = "P.weight", .spec = *spec};
    for (int i = 0; i < st->n; i++)
        for (int k = 0; s->suffixes[k]; k++)
            if (!strcmp(s->suffixes[k], st->members[i].suffix)) m.members[k] = &st->tensors[i];
    llmq_err err = {0};
    if (s->open(&m, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return m;
}

/* Reading by slabs of 5 rows gives the values that went in. */
static void check_read_back(const llmq_scheme *s, const llmq_scheme_spec *spec, const llmq_quantized *q) {
    stored st = store(s, spec, q);
    llmq_scheme_matrix m = opened(s, spec, &st);
    assert_int_equal(m.rows, q->rows);
    assert_int_equal(m.cols, q->cols);
    assert_int_equal(m.bits, spec->bits);
    assert_int_equal(m.n_groups, type_blocks(q->type, q->cols));
    assert_null(m.group_of);
    float *scale = mem_alloc((size_t)(5 * m.n_groups), sizeof *scale), *want = mem_alloc((size_t)q->cols, sizeof *want);
    int16_t *zero = mem_alloc((size_t)(5 * m.n_groups), sizeof *zero);
    uint8_t *codes = mem_alloc((size_t)(5 * q->cols), 1);
    for (int64_t row = 0; row < q->rows; row += 5) {
        int64_t n = q->rows - row < 5 ? q->rows - row : 5;
        s->scales(&m, row, n, scale, zero);
        s->codes(&m, row, n, codes);
        for (int64_t r = 0; r < n; r++) {
            quantized_row_to_f32(q, row + r, want);
            for (int64_t c = 0; c < q->cols; c++) {
                int64_t g = r * m.n_groups + c / m.group;
                assert_true(scale[g] * (float)(codes[r * q->cols + c] - zero[g]) == want[c]);
            }
        }
    }
    mem_free(scale);
    mem_free(zero);
    mem_free(codes);
    mem_free(want);
    drop(&st);
}

/* What quantization_config says is what was asked for. */
static void check_config(const llmq_scheme *s, const llmq_scheme_spec *spec) {
    llmq_scheme_spec back = {0};
    llmq_err err = {0};
    json_t *config = s->config(spec);
    assert_non_null(config);
    assert_string_equal(json_string_value(json_object_get(config, "quant_method")), s->quant_method);
    if (s->read_config(config, "config.json", &back, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    assert_int_equal(back.bits, spec->bits);
    assert_int_equal(back.group, spec->group);
    assert_int_equal(back.sym, spec->sym);
    assert_int_equal(back.act_quant, spec->act_quant);
    assert_int_equal(back.act_static, spec->act_static);
    if (!strcmp(s->name, "gptq")) assert_int_equal(back.zero_plus_one, spec->zero_plus_one || !spec->sym);
    json_decref(config);
}

static void test_round_trip(void **state) {
    (void)state;
    static const int bits[] = {2, 3, 4, 8};
    static const int64_t groups[] = {32, 64, 128, -1}, cols[] = {32, 64, 96, 256, 288};
    int n_ct = 0;
    for (int b = 0; b < 4; b++)
        for (int g = 0; g < 4; g++)
            for (int sym = 0; sym < 2; sym++)
                for (int c = 0; c < 5; c++) {
                    llmq_scheme_spec spec = {.bits = bits[b], .group = groups[g], .sym = sym};
                    const llmq_scheme *gptq = scheme_find("gptq"), *ct = scheme_find("ct");
                    assert_ptr_equal(gptq->grid(&spec), type_affine(bits[b], groups[g], sym));
                    llmq_quantized *q = random_matrix(gptq->grid(&spec), 64, cols[c]);
                    assert_int_equal(gptq->check(&spec, "P", 64, cols[c], NULL), LLMQ_OK);
                    spec.zero_plus_one = !sym;
                    check_read_back(gptq, &spec, q);
                    check_config(gptq, &spec);
                    spec.zero_plus_one = true;
                    check_read_back(gptq, &spec, q);
                    check_config(gptq, &spec);
                    spec.zero_plus_one = false;
                    if (ct->check(&spec, "P", 64, cols[c], NULL) == LLMQ_OK) {
                        check_read_back(ct, &spec, q);
                        check_config(ct, &spec);
                        n_ct++;
                    }
                    quantized_destroy(q);
                }
    assert_int_equal(n_ct, 2 * 2 * (5 + 2 + 1 + 5)); /* two widths, symmetric or not, the rows that the group divides */
    llmq_scheme_spec w8a8 = {.bits = 8, .group = -1, .sym = true, .act_quant = true};
    const llmq_scheme *ct = scheme_find("ct");
    llmq_quantized *q = random_matrix(ct->grid(&w8a8), 7, 33);
    check_read_back(ct, &w8a8, q);
    check_config(ct, &w8a8);
    static const char *const names[] = {"model.layers.3.mlp.down_proj"};
    w8a8.act_static = w8a8.act_zero = true; /* inputs in fixed ranges, but of one matrix */
    w8a8.token_names = names;
    w8a8.n_token_names = 1;
    w8a8.input = (llmq_act_range){0.0625f, -11};
    check_read_back(ct, &w8a8, q);
    check_config(ct, &w8a8);
    quantized_destroy(q);
}

static void test_refusals(void **state) {
    (void)state;
    llmq_err err = {0};
    const llmq_scheme *ct = scheme_find("ct"), *gptq = scheme_find("gptq");
    llmq_scheme_spec spec = {.bits = 4, .group = 128, .sym = true};
    assert_int_equal(ct->check(&spec, "blk.0.attn_q.weight", 576, 576, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "blk.0.attn_q.weight"));
    assert_non_null(strstr(err.msg, "groups that fit: 64, 32, -1 (the whole row)"));
    assert_int_equal(gptq->check(&spec, "P", 576, 576, &err), LLMQ_OK);
    assert_int_equal(gptq->check(&spec, "P", 576, 580, &err), LLMQ_E_UNSUPPORTED);
    assert_int_equal(gptq->check(&spec, "P", 580, 576, &err), LLMQ_E_UNSUPPORTED);
    spec.bits = 3;
    assert_int_equal(ct->check(&spec, "P", 128, 128, &err), LLMQ_E_UNSUPPORTED);
    llmq_quantized *q = random_matrix(type_affine(4, 64, true), 8, 64); /* another grid than the spec's */
    void *data[SCHEME_MAX_MEMBERS] = {0};
    assert_int_equal(ct->split(&spec, q, data, &err), LLMQ_E_ARG);
    assert_int_equal(gptq->split(&spec, q, data, &err), LLMQ_E_ARG);
    quantized_destroy(q);
    assert_null(scheme_find("ggml"));
    assert_null(scheme_for_config("fp8"));
    assert_ptr_equal(scheme_for_config("compressed-tensors"), ct);
}

/* The words that the formats' descriptions give. */
static void test_hand_vectors(void **state) {
    (void)state;
    llmq_scheme_spec spec = {.bits = 4, .group = -1, .sym = true};
    const llmq_scheme *gptq = scheme_find("gptq");
    llmq_quantized *q = random_matrix(gptq->grid(&spec), 8, 8);
    for (int i = 0; i < 64; i++) q->codes[i] = (uint8_t)(i % 8);
    stored st = store(gptq, &spec, q);
    uint32_t word;
    memcpy(&word, st.data[0], 4);
    assert_int_equal(word, 0x76543210u);
    memcpy(&word, st.data[1], 4);
    assert_int_equal(word, 0x77777777u);
    drop(&st);
    spec.zero_plus_one = true;
    st = store(gptq, &spec, q);
    memcpy(&word, st.data[1], 4);
    assert_int_equal(word, 0x88888888u);
    drop(&st);
    quantized_destroy(q);
}

/* Symmetric 4-bit codes are the same bits in GPTQ, compressed-tensors (transposed) and, byte by byte, Q4_0. */
static void test_one_set_of_codes(void **state) {
    (void)state;
    enum { ROWS = 64, COLS = 256, GROUP = 64 };
    llmq_scheme_spec spec = {.bits = 4, .group = GROUP, .sym = true};
    const llmq_scheme *gptq = scheme_find("gptq"), *ct = scheme_find("ct");
    llmq_quantized *q = random_matrix(gptq->grid(&spec), ROWS, COLS);
    stored a = store(gptq, &spec, q), b = store(ct, &spec, q);
    for (int r = 0; r < ROWS; r++) {
        for (int w = 0; w < COLS / 8; w++)
            assert_memory_equal((uint8_t *)a.data[0] + 4 * (w * ROWS + r), (uint8_t *)b.data[0] + 4 * (r * (COLS / 8) + w), 4);
        for (int g = 0; g < COLS / GROUP; g++)
            assert_memory_equal((uint8_t *)a.data[2] + 2 * (g * ROWS + r), (uint8_t *)b.data[1] + 2 * (r * (COLS / GROUP) + g), 2);
    }
    for (int r = 0; r < ROWS; r++)
        for (int k = 0; k < COLS; k += QK) { /* a Q4_0 block from the words of weight_packed */
            const uint8_t *nibbles = (const uint8_t *)b.data[0] + (r * COLS + k) / 2;
            block_q4_0 block;
            float x[QK], want[COLS];
            memcpy(&block.d, (uint8_t *)b.data[1] + 2 * (r * (COLS / GROUP) + k / GROUP), 2);
            for (int j = 0; j < QK / 2; j++) {
                int low = nibbles[j / 2] >> j % 2 * 4 & 15, high = nibbles[QK / 4 + j / 2] >> j % 2 * 4 & 15;
                block.qs[j] = (uint8_t)(low | high << 4);
            }
            type_to_f32(LLMQ_TYPE_Q4_0, &block, x, QK);
            quantized_row_to_f32(q, r, want);
            for (int j = 0; j < QK; j++) assert_true(x[j] == want[k + j]);
        }
    drop(&a);
    drop(&b);
    quantized_destroy(q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_hand_vectors),
        cmocka_unit_test(test_one_set_of_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
