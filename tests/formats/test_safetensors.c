/* Hugging Face folders: files of the safetensors library, and headers that lie. */
#include "support.h"

static void assert_folder(const char *path) {
    static const struct { const char *name; llmq_type type; int n_dims; int64_t cols, rows; } tensors[] = {
        {"model.embed_tokens.weight", LLMQ_TYPE_BF16, 2, 8, 12},
        {"model.norm.weight", LLMQ_TYPE_F32, 1, 8, 1},
        {"model.layers.0.mlp.down_proj.weight", LLMQ_TYPE_F16, 2, 16, 8},
        {"model.layers.0.input_layernorm.weight", LLMQ_TYPE_BF16, 1, 8, 1},
    };
    llmq_source *src = open_ok(path);
    assert_string_equal(src->format->name, "huggingface");
    assert_int_equal(src->naming, NAMING_HF);
    assert_string_equal(meta_get_str(src->meta, "general.architecture"), "llama");
    assert_int_equal(src->n_tensors, 4);
    for (int k = 0; k < 4; k++) {
        const llmq_tensor *t = source_find(src, tensors[k].name);
        assert_non_null(t);
        assert_int_equal(t->type, tensors[k].type);
        assert_int_equal(t->n_dims, tensors[k].n_dims);
        assert_int_equal(t->dims[0], tensors[k].cols);
        assert_int_equal(t->dims[1], tensors[k].rows);
        assert_pattern(t, k, 0);
    }
    for (size_t i = 1; i < src->n_tensors && src->n_maps == 1; i++) assert_true(src->tensors[i].data > src->tensors[i - 1].data);
    char side[4096];
    assert_true(source_side_file(src, "config.json", side, sizeof side));
    source_close(src);
}

static void test_folders(void **state) {
    (void)state;
    assert_folder(DATA "single");
    assert_folder(DATA "single/");
    assert_folder(DATA "single/model.safetensors");
    assert_folder(DATA "sharded");
    assert_folder(DATA "sharded/model.safetensors.index.json");
    llmq_source *src = open_ok(DATA "sharded/model-00002-of-00002.safetensors");
    assert_int_equal(src->n_tensors, 2);
    source_close(src);
}

/* A fresh folder with config.json. */
#define DIR LLMQ_TEST_TMP "/hf"
static void new_folder(void) {
    static const char *names[] = {"model.safetensors", "model.safetensors.index.json", "a.safetensors", "b.safetensors", "pytorch_model.bin"};
    mkdir(DIR, 0777);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[512];
        snprintf(path, sizeof path, DIR "/%s", names[i]);
        unlink(path);
    }
    copy_file(DATA "single/config.json", DIR "/config.json");
}

static void write_header(const char *name, const char *json, size_t data_bytes) {
    static uint8_t buf[4096];
    char path[512];
    uint64_t n = strlen(json);
    memset(buf, 0, sizeof buf);
    memcpy(buf, &n, 8);
    memcpy(buf + 8, json, n);
    snprintf(path, sizeof path, DIR "/%s", name);
    write_file(path, buf, 8 + n + data_bytes);
}

/* Opening the folder fails; the message names `file` in it. */
static void folder_fails(const char *file, llmq_status status, const char *part) {
    llmq_source *src;
    llmq_err err = {0};
    llmq_status got = source_open(DIR, &src, &err);
    if (got != status || !strstr(err.msg, part) || !strstr(err.msg, file))
        fail_msg("status %d, \"%s\"; expected %d, \"%s\" and %s", got, err.msg, status, part, file);
}

#define T(name, dtype, shape, a, b) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #a "," #b "]}"

static void test_header_lies(void **state) {
    (void)state;
    static const struct { const char *json; size_t data_bytes; llmq_status status; const char *says; } cases[] = {
        {"{" T("a", "F32", "[2]", 0, 8) "}", 8, LLMQ_OK, ""},
        {"{" T("b", "F32", "[1,2]", 8, 16) "," T("a", "F16", "[4]", 0, 8) "}   ", 16, LLMQ_OK, ""},
        {"{" T("scalar", "F32", "[]", 0, 4) "}", 4, LLMQ_OK, ""},
        {"{\"__metadata__\":{\"format\":\"pt\"}," T("a", "F16", "[1]", 0, 2) "}", 2, LLMQ_OK, ""},
        {"{}", 0, LLMQ_OK, ""},
        {"{}", 1, LLMQ_E_FORMAT, "tensors end at byte 0 of 1"},
        {" {}", 0, LLMQ_E_FORMAT, "does not begin with {"},
        {"", 0, LLMQ_E_FORMAT, "does not begin with {"},
        {"{", 0, LLMQ_E_FORMAT, "not valid JSON"},
        {"{" T("a", "F32", "[2]", 0, 8) "}", 9, LLMQ_E_FORMAT, "tensors end at byte 8 of 9"},
        {"{" T("a", "F32", "[2]", 0, 8) "}", 7, LLMQ_E_FORMAT, "beyond the end"},
        {"{" T("a", "F32", "[2]", 4, 12) "}", 12, LLMQ_E_FORMAT, "a hole"},
        {"{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 12, 20) "}", 20, LLMQ_E_FORMAT, "tensor b: a hole"},
        {"{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, LLMQ_E_FORMAT, "tensor b: an overlap"},
        {"{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 0, 8) "}", 8, LLMQ_E_FORMAT, "an overlap"},
        {"{" T("a", "F32", "[2]", 0, 8) "," T("a", "F32", "[2]", 8, 16) "}", 16, LLMQ_E_FORMAT, "duplicate"},
        {"{" T("a", "F32", "[2]", 8, 0) "}", 8, LLMQ_E_FORMAT, "rising"},
        {"{" T("a", "F32", "[2]", -8, 0) "}", 8, LLMQ_E_FORMAT, "rising"},
        {"{" T("a", "F32", "[3]", 0, 8) "}", 8, LLMQ_E_FORMAT, "8 bytes of data where dtype and shape need 12"},
        {"{" T("a", "F32", "[0]", 0, 0) "}", 0, LLMQ_E_FORMAT, "must be at least 1"},
        {"{" T("a", "F32", "[-2]", 0, 8) "}", 8, LLMQ_E_FORMAT, "must be at least 1"},
        {"{" T("a", "F32", "[4611686018427387904,4]", 0, 0) "}", 0, LLMQ_E_FORMAT, "overflows"},
        {"{" T("a", "F32", "[99999999999999999999]", 0, 0) "}", 0, LLMQ_E_FORMAT, "no number"},
        {"{" T("a", "F32", "[2.0]", 0, 8) "}", 8, LLMQ_E_FORMAT, "no number"},
        {"{" T("a", "F32", "2", 0, 8) "}", 8, LLMQ_E_FORMAT, "has no shape"},
        {"{" T("a", "F32", "[1,1,1,1,1]", 0, 4) "}", 4, LLMQ_E_UNSUPPORTED, "5 dimensions"},
        {"{" T("a", "I32", "[2]", 0, 8) "}", 8, LLMQ_E_UNSUPPORTED, "tensor a has dtype I32"},
        {"{" T("a", "F8_E4M3", "[8]", 0, 8) "}", 8, LLMQ_E_UNSUPPORTED, "tensor a has dtype F8_E4M3"},
        {"{" T("bell\\u0007", "F32", "[2]", 0, 8) "}", 8, LLMQ_E_FORMAT, "control characters"},
        {"{" T("", "F32", "[2]", 0, 8) "}", 8, LLMQ_E_FORMAT, "without a name"},
        {"{\"a\":[]}", 0, LLMQ_E_FORMAT, "not an object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LLMQ_E_FORMAT, "no dtype"},
        {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LLMQ_E_FORMAT, "dtype must be a string"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, LLMQ_E_FORMAT, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, LLMQ_E_FORMAT, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]}}", 4, LLMQ_E_FORMAT, "data_offsets"},
    };
    new_folder();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_header("model.safetensors", cases[i].json, cases[i].data_bytes);
        if (cases[i].status == LLMQ_OK) source_close(open_ok(DIR));
        else folder_fails("model.safetensors", cases[i].status, cases[i].says);
    }
    uint64_t n = 100000001;
    write_file(DIR "/model.safetensors", &n, 8);
    folder_fails("model.safetensors", LLMQ_E_FORMAT, "100000000 are allowed");
    n = UINT64_MAX;
    write_file(DIR "/model.safetensors", &n, 8);
    folder_fails("model.safetensors", LLMQ_E_FORMAT, "are allowed");
    n = 9;
    write_file(DIR "/model.safetensors", &n, 8);
    folder_fails("model.safetensors", LLMQ_E_FORMAT, "ends inside its header");
    write_file(DIR "/model.safetensors", &n, 0);
    folder_fails("model.safetensors", LLMQ_E_FORMAT, "0 bytes are no safetensors file");
}

static void test_unaligned_data(void **state) {
    (void)state;
    static const char json[] = "{" T("a", "F32", "[2]", 2, 10) "," T("h", "F16", "[1]", 0, 2) "} "; /* data begins at an odd byte */
    static uint8_t buf[256];
    uint64_t n = strlen(json);
    n += n % 2 ? 0 : 1;
    new_folder();
    memset(buf, ' ', sizeof buf);
    memcpy(buf, &n, 8);
    memcpy(buf + 8, json, strlen(json));
    float values[2] = {1.5f, -3};
    memcpy(buf + 8 + n + 2, values, sizeof values);
    write_file(DIR "/model.safetensors", buf, 8 + n + 10);
    llmq_source *src = open_ok(DIR);
    const llmq_tensor *t = source_find(src, "a");
    assert_int_equal((uintptr_t)t->data % 2, 1);
    float *x = tensor_values(t);
    assert_true(x[0] == 1.5f && x[1] == -3);
    mem_free(x);
    source_close(src);
}

static void write_text(const char *path, const char *s) { write_file(path, s, strlen(s)); }

static void test_shards(void **state) {
    (void)state;
    const char *index = DIR "/model.safetensors.index.json", *one = "{" T("a", "F32", "[1]", 0, 4) "}", *two = "{" T("b", "F32", "[1]", 0, 4) "}";
    new_folder();
    write_header("a.safetensors", one, 4);
    write_header("b.safetensors", two, 4);
    llmq_source *src = open_ok(DIR); /* whatever *.safetensors is there, in the order of names */
    assert_int_equal(src->n_tensors, 2);
    assert_string_equal(src->tensors[0].name, "a");
    source_close(src);
    write_text(index, "{\"weight_map\":{\"b\":\"b.safetensors\",\"a\":\"a.safetensors\"}}");
    src = open_ok(DIR);
    assert_int_equal(src->n_maps, 2);
    source_close(src);
    write_text(index, "{\"weight_map\":{\"b\":\"b.safetensors\"}}");
    src = open_ok(DIR);
    assert_int_equal(src->n_tensors, 1);
    source_close(src);
    static const struct { const char *text; llmq_status status; const char *says, *file; } cases[] = {
        {"{\"weight_map\":{\"b\":\"b.safetensors\",\"c\":\"a.safetensors\"}}", LLMQ_E_FORMAT, "tensor c should be in a.safetensors", "index.json"},
        {"{\"weight_map\":{\"b\":\"c.safetensors\"}}", LLMQ_E_IO, "cannot open", "c.safetensors"},
        {"{\"weight_map\":{\"b\":\"../hf/b.safetensors\"}}", LLMQ_E_FORMAT, "weight_map must name", "index.json"},
        {"{\"weight_map\":{\"b\":\"config.json\"}}", LLMQ_E_FORMAT, "weight_map must name", "index.json"},
        {"{\"weight_map\":{\"b\":7}}", LLMQ_E_FORMAT, "weight_map must name", "index.json"},
        {"{\"weight_map\":{}}", LLMQ_E_FORMAT, "no weight_map", "index.json"},
        {"{\"weight_map\":{\"b\":\"b.safetensors\",\"b\":\"a.safetensors\"}}", LLMQ_E_FORMAT, "duplicate", "index.json"},
        {"[]", LLMQ_E_FORMAT, "not an object", "index.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(index, cases[i].text);
        folder_fails(cases[i].file, cases[i].status, cases[i].says);
    }
    write_header("b.safetensors", one, 4); /* the same tensor in both */
    unlink(index);
    folder_fails("hf", LLMQ_E_FORMAT, "tensor a occurs twice");
    new_folder();
    write_text(DIR "/pytorch_model.bin", "x");
    folder_fails("hf", LLMQ_E_FORMAT, "no *.safetensors files");
    unlink(DIR "/config.json");
    folder_fails("config.json", LLMQ_E_IO, "is missing");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folders), cmocka_unit_test(test_header_lies), cmocka_unit_test(test_unaligned_data), cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
