/* Folders that the libraries of the formats packed (tests/data/make_schemes.py), opened as models are, and folders that
 * lie about their matrices. */
#include "support.h"

#include "core/half.h"

#define SCHEMES LLMQ_TEST_DATA "/schemes/"
#define ROWS 32

typedef enum order { ORDER_IDENTITY, ORDER_BLOCKS, ORDER_SCATTERED } order;

typedef struct golden {
    const char *folder, *name;
    int k, bits, cols, group;
    bool sym;
    order order;
    llmq_type type; /* what llmq must make of it */
    bool rounded;
} golden;

static const golden goldens[] = {
    {"gptq", "b4", 1, 4, 96, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq", "b2", 2, 2, 64, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq", "b3", 3, 3, 64, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq", "b8", 4, 8, 64, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q8_0, false},
    {"gptq", "row", 5, 4, 64, 64, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq", "ragged", 6, 4, 96, 64, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq", "asym", 7, 4, 64, 32, false, ORDER_IDENTITY, LLMQ_TYPE_Q4_1, false}, /* coarse scales: minimums are F16 numbers */
    {"gptq", "blocks", 8, 4, 64, 32, true, ORDER_BLOCKS, LLMQ_TYPE_Q4_0, false},
    {"gptq", "scattered", 9, 4, 64, 32, true, ORDER_SCATTERED, LLMQ_TYPE_F16, true},
    {"gptq-v2", "b4", 11, 4, 64, 32, false, ORDER_IDENTITY, LLMQ_TYPE_Q5_0, false},
    {"gptq-v2", "b2", 12, 2, 64, 32, false, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq-v2", "b3", 13, 3, 64, 32, false, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"gptq-v2", "b8", 14, 8, 64, 32, false, ORDER_IDENTITY, LLMQ_TYPE_F16, true},
    {"ct", "b4", 21, 4, 96, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"ct", "b8", 22, 8, 64, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q8_0, false},
    {"ct", "b3", 23, 3, 64, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q4_0, false},
    {"ct", "b6", 24, 6, 64, 64, true, ORDER_IDENTITY, LLMQ_TYPE_Q8_0, false},
    {"ct", "b5", 25, 5, 64, 32, true, ORDER_IDENTITY, LLMQ_TYPE_Q5_0, false},
    {"ct-asym", "b4", 31, 4, 64, 32, false, ORDER_IDENTITY, LLMQ_TYPE_Q5_0, false},
    {"ct-asym", "row", 32, 4, 32, 32, false, ORDER_IDENTITY, LLMQ_TYPE_Q5_0, false},
    {"ct-int8", "b8", 41, 8, 64, 64, true, ORDER_IDENTITY, LLMQ_TYPE_Q8_0, false},
};
enum { N_GOLDENS = sizeof goldens / sizeof *goldens };

/* make_schemes.py's formulas. */
static float golden_value(const golden *x, int n, int c) {
    int i = x->order == ORDER_BLOCKS ? (x->cols - 1 - c) / 32 * 32 : x->order == ORDER_SCATTERED ? c * 37 % x->cols : c;
    int g = i / x->group, k = x->k, zero = 1 << (x->bits - 1);
    int code = (37 * n + 101 * c + 7 * n * c + k) % (1 << x->bits);
    float scale = k < 10 || k > 40 ? (float)(1 + (13 * n + 7 * g + k) % 31) / 64 : (float)(513 + 2 * ((131 * n + 71 * g + k) % 512)) / 8192;
    if (!x->sym) zero = 1 + (5 * n + 3 * g + k) % ((1 << x->bits) - 1);
    return scale * (float)(code - zero);
}

static void check_golden(llmq_source *src, const golden *x) {
    char name[64];
    llmq_err err = {0};
    snprintf(name, sizeof name, "%s.weight", x->name);
    const llmq_tensor *t = source_find(src, name);
    assert_non_null(t);
    if (t->type != x->type) fail_msg("%s/%s is %s", x->folder, x->name, llmq_type_name(t->type));
    assert_int_equal(t->dims[0], x->cols);
    assert_int_equal(t->dims[1], ROWS);
    assert_int_equal(source_exact(src, t), !x->rounded);
    assert_int_equal(source_load(src, t, false, &err), LLMQ_OK);
    float *values = tensor_values(t);
    for (int n = 0; n < ROWS; n++)
        for (int c = 0; c < x->cols; c++) {
            float want = golden_value(x, n, c), got = values[n * x->cols + c];
            if (x->rounded) want = f16_to_f32(f32_to_f16(want));
            if (got != want) fail_msg("%s/%s[%d][%d] is %g, not %g", x->folder, x->name, n, c, (double)got, (double)want);
        }
    mem_free(values);
}

static void test_goldens(void **state) {
    (void)state;
    for (int i = 0; i < N_GOLDENS;) {
        char path[512];
        const char *folder = goldens[i].folder;
        int n = 0, rounded = 0;
        snprintf(path, sizeof path, SCHEMES "%s", folder);
        llmq_source *src = open_ok(path);
        for (; i < N_GOLDENS && !strcmp(goldens[i].folder, folder); i++, n++) {
            check_golden(src, &goldens[i]);
            rounded += goldens[i].rounded;
        }
        assert_int_equal(src->n_tensors, n + 1); /* and a norm */
        assert_non_null(src->quant);
        assert_int_equal(src->quant->n_matrices, n);
        assert_int_equal(src->quant->n_rounded, rounded);
        assert_int_equal(src->quant->note[0] != 0, rounded > 0);
        assert_int_equal(source_find(src, "model.norm.weight")->type, LLMQ_TYPE_F32);
        source_close(src);
    }
    llmq_source *src = open_ok(SCHEMES "gptq");
    assert_string_equal(src->quant->text, "gptq, 4 bits, groups of 32, symmetric, act-order");
    source_close(src);
}

/* Bytes are made when asked for, may be let go and made again, and stay where they are kept. */
static void test_on_demand(void **state) {
    (void)state;
    llmq_source *src = open_ok(SCHEMES "gptq");
    const llmq_tensor *a = source_find(src, "b4.weight"), *b = source_find(src, "b8.weight");
    const uint8_t *bytes = a->data;
    size_t n_set = 0;
    for (int64_t i = 0; i < a->bytes; i++) n_set += bytes[i] != 0;
    assert_int_equal(n_set, 0);
    check_golden(src, &goldens[0]);
    source_release(src, a);
    for (int64_t i = 0; i < a->bytes; i++) assert_int_equal(bytes[i], 0);
    check_golden(src, &goldens[0]);
    assert_int_equal(source_load(src, b, true, NULL), LLMQ_OK);
    source_release(src, b);
    n_set = 0;
    for (int64_t i = 0; i < b->bytes; i++) n_set += ((const uint8_t *)b->data)[i] != 0;
    assert_true(n_set > 0);
    assert_int_equal(source_load(src, source_find(src, "model.norm.weight"), false, NULL), LLMQ_OK);
    source_close(src);
}

static void test_out_of_memory(void **state) {
    (void)state;
    for (long n = 1;; n++) {
        llmq_source *src = NULL;
        llmq_err err = {0};
        mem_fail_after(n);
        llmq_status status = source_open(SCHEMES "ct-asym", &src, &err);
        if (status == LLMQ_OK) status = source_load(src, source_find(src, "b4.weight"), false, &err);
        mem_fail_after(0);
        source_close(src);
        if (status == LLMQ_OK) break;
        assert_int_equal(status, LLMQ_E_MEMORY);
        assert_true(n < 1000);
    }
}

/* ---- lies ---- */

#define DIR LLMQ_TEST_TMP "/schemes"
#define CONFIG "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":64,\"num_hidden_layers\":1,\"num_attention_heads\":2," \
               "\"vocab_size\":32,\"quantization_config\":"
#define GPTQ "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"sym\":true}"
#define CT(weights) "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"g\":{\"weights\":" weights "}}}"
#define CT4 CT("{\"num_bits\":4,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":32}")

typedef struct part {
    const char *name, *dtype;
    int n_dims, dims[2]; /* outermost first */
    int value;           /* of every 32-bit word of the data; F16: 0x3c003c00 is ones */
} part;

static void write_folder(const char *quant, const part *parts) {
    static uint8_t file[1 << 17];
    char json[4096] = "{";
    size_t at = 0;
    mkdir(DIR, 0777);
    unlink(DIR "/quantize_config.json");
    uint8_t *data = file + (1 << 16);
    for (int i = 0; parts[i].name; i++) {
        const part *p = &parts[i];
        size_t bytes = (size_t)p->dims[0] * (size_t)(p->n_dims == 2 ? p->dims[1] : 1) *
                       (!strcmp(p->dtype, "I64") ? 8u : p->dtype[1] == '3' ? 4u : p->dtype[1] == '8' ? 1u : 2u);
        for (size_t b = 0; b < bytes; b++) data[at + b] = (uint8_t)(p->value >> 8 * (b % 4));
        if (!strcmp(p->dtype, "I64")) { /* weight_shape: rows in the high half of value, columns in the low */
            int64_t shape[2] = {p->value >> 16, p->value & 0xffff};
            memcpy(data + at, shape, bytes);
        }
        size_t n = strlen(json);
        snprintf(json + n, sizeof json - n, p->n_dims == 2 ? "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}" :
                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%d%.0d],\"data_offsets\":[%zu,%zu]}",
                 i ? "," : "", p->name, p->dtype, p->dims[0], p->n_dims == 2 ? p->dims[1] : 0, at, at + bytes);
        at += bytes;
    }
    strcat(json, "}");
    uint64_t n = strlen(json);
    memcpy(file, &n, 8);
    memcpy(file + 8, json, n);
    memmove(file + 8 + n, data, at);
    write_file(DIR "/model.safetensors", file, 8 + n + at);
    char config[2048];
    snprintf(config, sizeof config, CONFIG "%s}", quant);
    write_file(DIR "/config.json", config, strlen(config));
}

static void lie(int line, const char *quant, const part *parts, llmq_status status, const char *says) {
    llmq_source *src = NULL;
    llmq_err err = {0};
    write_folder(quant, parts);
    llmq_status got = source_open(DIR, &src, &err);
    if (got == LLMQ_OK) /* what opens can be read to its end */
        for (size_t i = 0; i < src->n_tensors; i++) assert_int_equal(source_load(src, &src->tensors[i], false, NULL), LLMQ_OK);
    source_close(src);
    if (got != status || !strstr(err.msg, says)) fail_msg("line %d: status %d, \"%s\"; expected %d, \"%s\"", line, got, err.msg, status, says);
}
#define PARTS(...) (const part[]){__VA_ARGS__, {0}}
#define LIE(quant, status, says, ...) lie(__LINE__, quant, PARTS(__VA_ARGS__), status, says)

#define QW {"P.qweight", "I32", 2, {8, 32}, 0x12345678}
#define QZ {"P.qzeros", "I32", 2, {2, 4}, 0x77777777}
#define SC {"P.scales", "F16", 2, {2, 32}, 0x3c003c00}
#define GI {"P.g_idx", "I32", 1, {64}, 0}

static void test_gptq_lies(void **state) {
    (void)state;
    LIE(GPTQ, LLMQ_OK, "", QW, QZ, SC);
    LIE(GPTQ, LLMQ_OK, "", QW, SC); /* symmetric needs no zeros */
    LIE("{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"sym\":false}", LLMQ_E_FORMAT, "P.weight: the matrix has no .qzeros", QW, SC);
    LIE(GPTQ, LLMQ_E_FORMAT, "has no .scales", QW, QZ);
    LIE(GPTQ, LLMQ_E_FORMAT, ".scales has a dtype", QW, QZ, {"P.scales", "I32", 2, {2, 32}, 1});
    LIE(GPTQ, LLMQ_E_FORMAT, "shape of its .scales", QW, QZ, {"P.scales", "F16", 2, {2, 31}, 0x3c003c00});
    LIE(GPTQ, LLMQ_E_FORMAT, "shape of its .scales", QW, QZ, {"P.scales", "F16", 1, {64}, 0x3c003c00});
    LIE(GPTQ, LLMQ_E_FORMAT, "a scale is not finite", QW, QZ, {"P.scales", "F16", 2, {2, 32}, 0x7c003c00});
    LIE(GPTQ, LLMQ_E_FORMAT, "a scale is not finite", QW, QZ, {"P.scales", "F16", 2, {2, 32}, 0x7e003c00});
    LIE(GPTQ, LLMQ_E_FORMAT, "shape of its .qzeros", QW, {"P.qzeros", "I32", 2, {2, 3}, 0x77777777}, SC);
    LIE(GPTQ, LLMQ_E_FORMAT, "shape of its .qzeros", QW, {"P.qzeros", "I32", 2, {1, 4}, 0x77777777}, SC);
    LIE(GPTQ, LLMQ_E_FORMAT, "shape of its .qweight", {"P.qweight", "I32", 1, {256}, 0}, QZ, SC);
    LIE(GPTQ, LLMQ_E_FORMAT, "does not hold 65 columns of 3 bits", QW, QZ, SC, {"P.g_idx", "I32", 1, {65}, 0});
    LIE(GPTQ, LLMQ_E_FORMAT, "columns of 1 bits", QW, QZ, SC, {"P.g_idx", "I32", 1, {256}, 0});
    LIE(GPTQ, LLMQ_E_FORMAT, "g_idx names group 2 of 2", QW, QZ, SC, {"P.g_idx", "I32", 1, {64}, 2});
    LIE(GPTQ, LLMQ_E_FORMAT, "g_idx names group -1 of 2", QW, QZ, SC, {"P.g_idx", "I32", 1, {64}, -1});
    LIE(GPTQ, LLMQ_E_FORMAT, ".g_idx has a dtype", QW, QZ, SC, {"P.g_idx", "I64", 1, {2}, 0});
    LIE(GPTQ, LLMQ_OK, "", QW, QZ, SC, GI);
    LIE(GPTQ, LLMQ_E_FORMAT, "5 groups where group_size 32 makes 2", QW, {"P.qzeros", "I32", 2, {5, 4}, 0}, {"P.scales", "F16", 2, {5, 32}, 0});
    LIE(GPTQ, LLMQ_E_FORMAT, "more groups than columns", QW, {"P.qzeros", "I32", 2, {65, 4}, 0}, {"P.scales", "F16", 2, {65, 32}, 0});
    LIE(GPTQ, LLMQ_E_UNSUPPORTED, "P.other holds integers", QW, QZ, SC, {"P.other", "I32", 1, {4}, 0});
    LIE(GPTQ, LLMQ_E_UNSUPPORTED, "P.qzeros holds integers", QZ, SC);
    LIE(GPTQ, LLMQ_E_FORMAT, "P.weight", QW, QZ, SC, {"P.weight", "F16", 1, {2}, 0}); /* twice the same */
    LIE(GPTQ, LLMQ_E_UNSUPPORTED, "dtype I16", {"P.qweight", "I16", 1, {2}, 0});
    LIE(GPTQ, LLMQ_OK, "", {"a", "F16", 1, {2}, 0}); /* nothing is quantized after all */
}

static void test_ct_lies(void **state) {
    (void)state;
#define WP {"P.weight_packed", "I32", 2, {32, 8}, 0x12345678}
#define WS {"P.weight_scale", "F16", 2, {32, 2}, 0x3c003c00}
#define SH {"P.weight_shape", "I64", 1, {2}, 32 << 16 | 64}
    LIE(CT4, LLMQ_OK, "", WP, WS, SH);
    LIE(CT4, LLMQ_OK, "", WP, WS, {"P.weight_shape", "I64", 1, {2}, 32 << 16 | 62}); /* half a byte of padding */
    LIE(CT4, LLMQ_E_FORMAT, "has no .weight_shape", WP, WS);
    LIE(CT4, LLMQ_E_FORMAT, "has no .weight_scale", WP, SH);
    LIE(CT4, LLMQ_E_FORMAT, "does not fit weight_packed", WP, WS, {"P.weight_shape", "I64", 1, {2}, 31 << 16 | 64});
    LIE(CT4, LLMQ_E_FORMAT, "does not fit weight_packed", WP, WS, {"P.weight_shape", "I64", 1, {2}, 32 << 16 | 0});
    LIE(CT4, LLMQ_E_FORMAT, "does not hold 65 columns", WP, WS, {"P.weight_shape", "I64", 1, {2}, 32 << 16 | 65});
    LIE(CT4, LLMQ_E_FORMAT, "does not hold 56 columns", WP, WS, {"P.weight_shape", "I64", 1, {2}, 32 << 16 | 56});
    LIE(CT4, LLMQ_E_FORMAT, "3 groups do not divide", WP, {"P.weight_scale", "F16", 2, {32, 3}, 0}, SH);
    LIE(CT4, LLMQ_E_FORMAT, "more groups than columns", WP, {"P.weight_scale", "F16", 2, {32, 65}, 0}, SH);
    LIE(CT4, LLMQ_E_FORMAT, "shape of its .weight_scale", WP, {"P.weight_scale", "F16", 2, {31, 2}, 0}, SH);
    LIE(CT4, LLMQ_E_FORMAT, ".weight_scale has a dtype", WP, {"P.weight_scale", "I32", 2, {32, 2}, 0}, SH);
    LIE(CT4, LLMQ_E_FORMAT, "shape of its .weight_zero_point", WP, WS, SH, {"P.weight_zero_point", "I32", 2, {3, 2}, 0});
    LIE(CT4, LLMQ_OK, "", WP, WS, SH, {"P.weight_zero_point", "I32", 2, {4, 2}, 0x77777777});
    LIE(CT4, LLMQ_E_FORMAT, "is not I8 of weight_scale's shape", WP, WS, SH, {"P.weight_zero_point", "I8", 1, {2}, 0});
    LIE(CT4, LLMQ_E_FORMAT, "weight_g_idx names group 9 of 2", WP, WS, SH, {"P.weight_g_idx", "I32", 1, {64}, 9});
    LIE(CT4, LLMQ_E_FORMAT, "shape of its .weight_g_idx", WP, WS, SH, {"P.weight_g_idx", "I32", 1, {63}, 0});
    LIE(CT4, LLMQ_OK, "", WP, WS, SH, {"P.weight_g_idx", "I32", 1, {64}, 1}, {"P.input_scale", "F16", 1, {1}, 0});
    LIE(CT4, LLMQ_OK, "", WP, {"P.weight_scale", "F16", 1, {1}, 0x3c003c00}, SH); /* strategy "tensor" */
    LIE(CT4, LLMQ_OK, "", {"P.weight", "I8", 2, {32, 64}, 0}, {"P.weight_scale", "F16", 2, {32, 1}, 0x3c003c00});
    LIE(CT4, LLMQ_OK, "", {"P.weight", "I8", 2, {32, 64}, 0}, {"P.weight_scale", "F32", 2, {32, 1}, 0x3c003c00}, {"P.weight_zero_point", "I8", 2, {32, 1}, 1});
    LIE(CT4, LLMQ_E_FORMAT, "is not I8 of weight_scale's shape", {"P.weight", "I8", 2, {32, 64}, 0}, {"P.weight_scale", "F16", 2, {32, 1}, 0},
        {"P.weight_zero_point", "I8", 2, {31, 1}, 1});
    LIE(CT("{\"num_bits\":4,\"type\":\"int\",\"symmetric\":false}"), LLMQ_E_FORMAT, "has no .weight_zero_point", WP, WS, SH);
}

static void test_configs(void **state) {
    (void)state;
    static const struct { const char *quant; llmq_status status; const char *says; } cases[] = {
        {"{\"quant_method\":\"fp8\"}", LLMQ_E_UNSUPPORTED, "quant_method \"fp8\"; llmq reads gptq, compressed-tensors"},
        {"{\"quant_method\":7}", LLMQ_E_FORMAT, "quant_method must be"},
        {"[]", LLMQ_E_FORMAT, "is not an object"},
        {"{}", LLMQ_E_UNSUPPORTED, "quant_method \"?\""},
        {"null", LLMQ_OK, ""},
        {"{\"bits\":4}", LLMQ_OK, ""}, /* an older GPTQ says no more */
        {"{\"quant_method\":\"gptq\"}", LLMQ_E_UNSUPPORTED, "bits 0"},
        {"{\"quant_method\":\"gptq\",\"bits\":5}", LLMQ_E_UNSUPPORTED, "bits 5; llmq reads gptq of 2, 3, 4 and 8"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0}", LLMQ_E_FORMAT, "group_size is 0"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":-2}", LLMQ_E_FORMAT, "group_size must be"},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"checkpoint_format\":\"marlin\"}", LLMQ_E_UNSUPPORTED, "checkpoint_format \"marlin\""},
        {"{\"quant_method\":\"gptq\",\"bits\":4,\"pack_dtype\":\"int64\"}", LLMQ_E_UNSUPPORTED, "pack_dtype \"int64\""},
        {CT("{\"num_bits\":8,\"type\":\"float\"}"), LLMQ_E_UNSUPPORTED, "weights of type float with 8 bits"},
        {CT("{\"num_bits\":16,\"type\":\"int\"}"), LLMQ_E_UNSUPPORTED, "with 16 bits"},
        {CT("{\"num_bits\":4,\"strategy\":\"block\"}"), LLMQ_E_UNSUPPORTED, "strategy \"block\""},
        {CT("null"), LLMQ_E_UNSUPPORTED, "quantizes no weights"},
        {CT("{\"num_bits\":4}"), LLMQ_OK, ""},
        {"{\"quant_method\":\"compressed-tensors\"}", LLMQ_E_FORMAT, "no config_groups"},
        {"{\"quant_method\":\"compressed-tensors\",\"config_groups\":{}}", LLMQ_E_FORMAT, "no config_groups"},
        {"{\"quant_method\":\"compressed-tensors\",\"format\":\"nvfp4-pack-quantized\"}", LLMQ_E_UNSUPPORTED, "format \"nvfp4-pack-quantized\""},
        {"{\"quant_method\":\"compressed-tensors\",\"transform_config\":{\"config_groups\":{\"R1\":{}}}}", LLMQ_E_UNSUPPORTED, "transform_config"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        lie((int)i, cases[i].quant, PARTS({"a", "F16", 1, {2}, 0}), cases[i].status, cases[i].says);
    /* AutoGPTQ's second file speaks where config.json does not. */
    write_folder("null", PARTS(QW, QZ, SC));
    open_fails(DIR, LLMQ_E_UNSUPPORTED, "dtype I32");
    write_file(DIR "/quantize_config.json", "{\"bits\":4,\"group_size\":32,\"sym\":true}", 37);
    llmq_source *src = open_ok(DIR);
    assert_int_equal(src->quant->n_matrices, 1);
    source_close(src);
    unlink(DIR "/quantize_config.json");
}

/* What F16 cannot hold goes to F32, exactly; scales that are no F16 numbers are rounded and counted. */
static void test_odd_scales(void **state) {
    (void)state;
    llmq_source *src;
    write_folder(GPTQ, PARTS(QW, QZ, {"P.scales", "BF16", 2, {2, 32}, 0x7f007f00})); /* 2^127 */
    src = open_ok(DIR);
    assert_int_equal(src->tensors[0].type, LLMQ_TYPE_F32);
    assert_true(source_exact(src, &src->tensors[0]));
    source_close(src);
    write_folder(GPTQ, PARTS(QW, QZ, {"P.scales", "F32", 2, {2, 32}, 0x3dcccccd})); /* 0.1 */
    src = open_ok(DIR);
    assert_int_equal(src->tensors[0].type, LLMQ_TYPE_Q4_0);
    assert_false(source_exact(src, &src->tensors[0]));
    assert_non_null(strstr(src->quant->note, "1 of 1 quantized matrices"));
    source_close(src);
    write_folder(GPTQ, PARTS(QW, QZ, {"P.scales", "F16", 2, {2, 32}, 0})); /* zeros are zeros */
    src = open_ok(DIR);
    assert_int_equal(src->tensors[0].type, LLMQ_TYPE_Q4_0);
    assert_true(source_exact(src, &src->tensors[0]));
    source_close(src);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),   cmocka_unit_test(test_on_demand), cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_gptq_lies), cmocka_unit_test(test_ct_lies),   cmocka_unit_test(test_configs),
        cmocka_unit_test(test_odd_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
