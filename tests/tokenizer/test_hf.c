/* tokenizer.json files of every kind that llmq reads, made and encoded by Hugging Face's library; then what is wrong in
 * them. */
#include "tests/tokenizer/meta_text.h"

#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

static json_t *cases;
static char dir[512], json_path[600];

static int load(void **state) {
    (void)state;
    char command[1024];
    snprintf(command, sizeof command, "xz -dc '%s/tokenizers/hf_cases.json.xz'", LLMQ_TEST_DATA);
    FILE *f = popen(command, "r");
    cases = f ? json_loadf(f, 0, NULL) : NULL;
    snprintf(dir, sizeof dir, "%s/hf-%d", LLMQ_TEST_TMP, (int)getpid());
    snprintf(json_path, sizeof json_path, "%s/tokenizer.json", dir);
    mkdir(LLMQ_TEST_TMP, 0777);
    mkdir(dir, 0777);
    return f && !pclose(f) && json_is_array(cases) ? 0 : -1;
}

static void write_file(const char *name, const char *text, size_t len) {
    char path[700];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static void remove_file(const char *name) {
    char path[700];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static int unload(void **state) {
    (void)state;
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                                        "special_tokens_map.json", "chat_template.jinja"};
    for (size_t i = 0; i < 5; i++) remove_file(files[i]);
    rmdir(dir);
    json_decref(cases);
    return 0;
}

static void write_json(const char *name, const json_t *json) {
    char *text = json_dumps(json, JSON_COMPACT);
    write_file(name, text, strlen(text));
    free(text);
}

static const json_t *case_named(const char *name) {
    json_t *c;
    size_t i;
    json_array_foreach(cases, i, c) if (!strcmp(json_string_value(json_object_get(c, "name")), name)) return c;
    fail_msg("no case %s", name);
    return NULL;
}

/* A copy of a case's tokenizer that may be changed. */
static json_t *tokenizer_of(const char *name) {
    return json_deep_copy(json_object_get(case_named(name), "tokenizer"));
}

static void check_row(const char *name, const llmq_tokenizer *tok, const json_t *row) {
    const json_t *text = json_object_get(row, "text"), *expected = json_object_get(row, "ids");
    const char *decoded = json_string_value(json_object_get(row, "decoded"));
    int32_t *ids = NULL;
    size_t n = 0, len = 0;
    char *back = NULL;
    assert_int_equal(tokenizer_encode(tok, json_string_value(text), json_string_length(text),
                                      LLMQ_TOK_BOS | LLMQ_TOK_SPECIAL, &ids, &n, NULL),
                     LLMQ_OK);
    for (size_t i = 0; i < n && i < json_array_size(expected); i++) {
        json_int_t id = json_integer_value(json_array_get(expected, i));
        if (ids[i] != id)
            fail_msg("%s: '%s': token %zu is %d, not %d", name, json_string_value(text), i, ids[i], (int)id);
    }
    if (n != json_array_size(expected)) fail_msg("%s: '%s': %zu tokens", name, json_string_value(text), n);
    assert_int_equal(tokenizer_decode(tok, ids, n, 0, &back, &len, NULL), LLMQ_OK);
    if (strcmp(back, decoded)) fail_msg("%s: decodes to '%s', not '%s'", name, back, decoded);
    mem_free(back);
    mem_free(ids);
}

static void test_cases(void **state) {
    (void)state;
    json_t *c, *row;
    size_t i, j, n = 0;
    json_array_foreach(cases, i, c) {
        const char *name = json_string_value(json_object_get(c, "name"));
        llmq_meta *meta = meta_create();
        llmq_tokenizer *tok = NULL;
        llmq_err err = {0};
        write_json("tokenizer.json", json_object_get(c, "tokenizer"));
        if (tokenizer_read_json(json_path, 0, meta, &err) || tokenizer_create(meta, &tok, &err))
            fail_msg("%s: %s", name, err.msg);
        const char *pre = strstr(name, "spm") ? "default" : meta_get_str(meta, "tokenizer.ggml.pre");
        if (!strstr(name, "spm") && strncmp(name, pre, strlen(pre))) fail_msg("%s is taken for %s", name, pre);
        json_array_foreach(json_object_get(c, "rows"), j, row) check_row(name, tok, row);
        n += j;
        tokenizer_destroy(tok);
        meta_destroy(meta);
    }
    assert_true(n > 450);
}

/* The tokenizer must be refused with this status, and the message must have this in it. */
static void check_refused(const json_t *tokenizer, llmq_status expected, const char *words) {
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    write_json("tokenizer.json", tokenizer);
    assert_int_equal(tokenizer_read_json(json_path, 0, meta, &err), expected);
    if (!strstr(err.msg, words) || !strstr(err.msg, json_path)) fail_msg("the message says: %s", err.msg);
    meta_destroy(meta);
}

static void set_at(json_t *root, const char *outer, const char *inner, json_t *value) {
    json_object_set_new(inner ? json_object_get(root, outer) : root, inner ? inner : outer, value);
}

static void test_refusals(void **state) {
    (void)state;
    const struct {
        const char *base, *outer, *inner, *value;
        llmq_status status;
        const char *words;
    } rows[] = {
        {"gpt-2", "model", "type", "\"Unigram\"", LLMQ_E_UNSUPPORTED, "Unigram"},
        {"gpt-2", "model", "type", "\"WordPiece\"", LLMQ_E_UNSUPPORTED, "WordPiece"},
        {"gpt-2", "model", NULL, "[]", LLMQ_E_FORMAT, "model"},
        {"gpt-2", "model", "vocab", "[]", LLMQ_E_FORMAT, "model.vocab"},
        {"gpt-2", "model", "vocab", "{\"a\": -1}", LLMQ_E_FORMAT, "id -1"},
        {"gpt-2", "model", "vocab", "{\"a\": 1e9}", LLMQ_E_FORMAT, "id -1"},
        {"gpt-2", "model", "vocab", "{\"a\": 999999999999}", LLMQ_E_FORMAT, "999999999999"},
        {"gpt-2", "model", "merges", "{}", LLMQ_E_FORMAT, "model.merges"},
        {"gpt-2", "model", "merges", "[\"ab\"]", LLMQ_E_FORMAT, "model.merges[0]"},
        {"gpt-2", "model", "merges", "[[\"a\", \"b\"], [\"a\"]]", LLMQ_E_FORMAT, "model.merges[1]"},
        {"gpt-2", "model", "merges", "[7]", LLMQ_E_FORMAT, "model.merges[0]"},
        {"spm-first", "model", "merges", "[7]", LLMQ_E_FORMAT, "model.merges[0]"},
        {"gpt-2", "model", "end_of_word_suffix", "\"</w>\"", LLMQ_E_UNSUPPORTED, "end_of_word_suffix"},
        {"gpt-2", "added_tokens", NULL, "[{\"id\": 5}]", LLMQ_E_FORMAT, "added_tokens[0]"},
        {"gpt-2", "added_tokens", NULL, "[{\"id\": -5, \"content\": \"x\"}]", LLMQ_E_FORMAT, "added_tokens[0]"},
        {"gpt-2", "normalizer", NULL, "{\"type\": \"Lowercase\"}", LLMQ_E_UNSUPPORTED, "Lowercase"},
        {"gpt-2", "pre_tokenizer", NULL, "null", LLMQ_E_UNSUPPORTED, "pre_tokenizer"},
        {"gpt-2", "pre_tokenizer", NULL, "{\"type\": \"Whitespace\"}", LLMQ_E_UNSUPPORTED, "Whitespace"},
        {"gpt-2", "pre_tokenizer", "add_prefix_space", "true", LLMQ_E_UNSUPPORTED, "add_prefix_space"},
        {"llama-bpe", "pre_tokenizer", "pretokenizers",
         "[{\"type\": \"Split\", \"pattern\": {\"Regex\": \"my own (pattern)\"}, \"behavior\": \"Isolated\", "
         "\"invert\": false}, "
         "{\"type\": \"ByteLevel\", \"use_regex\": false}]",
         LLMQ_E_UNSUPPORTED, "my own (pattern)"},
        {"llama-bpe", "pre_tokenizer", "pretokenizers", "[{\"type\": \"Split\", \"pattern\": {\"String\": \" \"}}]",
         LLMQ_E_UNSUPPORTED, "Split"},
        {"spm-prepend", "normalizer", NULL, "null", LLMQ_E_UNSUPPORTED, "normalizer"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *tokenizer = tokenizer_of(rows[i].base), *value = json_loads(rows[i].value, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        set_at(tokenizer, rows[i].outer, rows[i].inner, value);
        check_refused(tokenizer, rows[i].status, rows[i].words);
        json_decref(tokenizer);
    }
}

/* Every file that ends too early is refused, and so is a tokenizer with more tokens than the model. */
static void test_truncated_json(void **state) {
    (void)state;
    llmq_err err = {0};
    char *text = json_dumps(json_object_get(case_named("spm-first"), "tokenizer"), JSON_COMPACT);
    size_t len = strlen(text), step = len / 300;
    for (size_t n = 0; n < len; n += n < len - 50 ? step : 1) {
        llmq_meta *meta = meta_create();
        write_file("tokenizer.json", text, n);
        assert_int_equal(tokenizer_read_json(json_path, 0, meta, &err), LLMQ_E_FORMAT);
        assert_non_null(strstr(err.msg, json_path));
        meta_destroy(meta);
    }
    llmq_meta *meta = meta_create();
    write_file("tokenizer.json", text, len);
    assert_int_equal(tokenizer_read_json(json_path, 100, meta, &err), LLMQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "another model"));
    meta_destroy(meta);
    free(text);
}

/* Bytes changed at random: an error or a tokenizer, never a crash. */
static void test_mutated_json(void **state) {
    (void)state;
    uint32_t x = 1;
    for (int round = 0; round < 300; round++) {
        char *text = json_dumps(json_object_get(json_array_get(cases, round % json_array_size(cases)), "tokenizer"),
                                JSON_COMPACT);
        size_t len = strlen(text), n;
        for (int k = 0; k < 1 + round % 5; k++) {
            x ^= x << 13, x ^= x >> 17, x ^= x << 5;
            size_t at = x % (round % 2 ? len : 3000); /* half of them in the head, where the rules stand */
            text[at < len ? at : 0] = "\"{}[]:,0-9eE.tn \\x"[x >> 8 & 15];
        }
        llmq_meta *meta = meta_create();
        llmq_tokenizer *tok = NULL;
        write_file("tokenizer.json", text, len);
        if (!tokenizer_read_json(json_path, 0, meta, NULL) && !tokenizer_create(meta, &tok, NULL)) {
            int32_t *ids = NULL;
            assert_int_equal(tokenizer_encode(tok, text, 500, 3, &ids, &n, NULL), LLMQ_OK);
            mem_free(ids);
            tokenizer_destroy(tok);
        }
        meta_destroy(meta);
        free(text);
    }
}

static void test_padding_and_rows_beyond(void **state) {
    (void)state;
    json_t *tokenizer = tokenizer_of("qwen2");
    size_t n = json_object_size(json_object_get(json_object_get(tokenizer, "model"), "vocab"));
    int64_t added = (int64_t)json_array_size(json_object_get(tokenizer, "added_tokens"));
    write_json("tokenizer.json", tokenizer);
    llmq_meta *meta = meta_create();
    assert_int_equal(tokenizer_read_json(json_path, (int64_t)n + added + 10, meta, NULL), LLMQ_OK);
    const llmq_str *tokens = meta_find(meta, "tokenizer.ggml.tokens")->arr.data;
    const int32_t *types = meta_find(meta, "tokenizer.ggml.token_type")->arr.data;
    char last[32];
    snprintf(last, sizeof last, "[PAD%zu]", n + (size_t)added + 9);
    assert_string_equal(tokens[n + (size_t)added + 9].s, last);
    assert_int_equal(types[n + (size_t)added + 9], TOKEN_UNUSED);
    assert_int_equal(types[n], TOKEN_CONTROL);
    assert_int_equal(types[n + (size_t)added - 1], TOKEN_USER_DEFINED);
    assert_int_equal(tokenizer_read_json(json_path, (int64_t)n + 1, meta, NULL),
                     LLMQ_OK); /* added tokens without a row are left out */
    assert_int_equal(meta_find(meta, "tokenizer.ggml.tokens")->arr.n, n + 1);
    meta_destroy(meta);
    json_decref(tokenizer);
}

static void test_side_files(void **state) {
    (void)state;
    static const char config[] =
        "{\"model_max_length\": 1000000000000000019884624838656, \"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": "
        "\"</s>\", \"pad_token\": null, \"add_bos_token\": true,"
        "\"add_eos_token\": false, \"chat_template\": [{\"name\": \"default\", \"template\": \"D\"}, {\"name\": "
        "\"tool_use\", \"template\": \"T\"}]}";
    static const char generation[] = "{\"eos_token_id\": [7, 9, \"x\"]}",
                      map[] = "{\"eos_token\": \"<|end|>\", \"unk_token\": \"<|end|>\"}";
    write_json("tokenizer.json", json_object_get(case_named("qwen2"), "tokenizer"));
    write_file("tokenizer_config.json", config, strlen(config));
    write_file("generation_config.json", generation, strlen(generation));
    write_file("special_tokens_map.json", map, strlen(map));
    llmq_meta *meta = meta_create();
    llmq_tokenizer *tok = NULL;
    int64_t bos = -1, eos = -1, unk = -1, eot = -1;
    assert_int_equal(tokenizer_read_hf(dir, 0, meta, NULL), LLMQ_OK);
    assert_string_equal(meta_get_str(meta, "tokenizer.chat_template"), "D");
    assert_string_equal(meta_get_str(meta, "tokenizer.chat_template.tool_use"), "T");
    assert_true(meta_get_i64(meta, "tokenizer.ggml.bos_token_id", &bos) &&
                meta_get_i64(meta, "tokenizer.ggml.eos_token_id", &eos));
    assert_true(meta_get_i64(meta, "tokenizer.ggml.unknown_token_id", &unk) &&
                meta_get_i64(meta, "tokenizer.ggml.eot_token_id", &eot));
    assert_int_equal(eos, bos + 1);
    assert_int_equal(unk, bos + 2);
    assert_int_equal(eot, bos + 2);
    assert_int_equal(tokenizer_create(meta, &tok, NULL), LLMQ_OK);
    assert_true(tokenizer_adds_bos(tok));
    assert_true(tokenizer_is_end(tok, 7) && tokenizer_is_end(tok, 9) && tokenizer_is_end(tok, (int32_t)eos) &&
                tokenizer_is_end(tok, (int32_t)eot));
    assert_false(tokenizer_is_end(tok, 8));
    tokenizer_destroy(tok);
    write_file("chat_template.jinja", "file", 4);
    write_file("generation_config.json", "{\"eos_token_id\": 8}", 19);
    assert_int_equal(tokenizer_read_hf(dir, 0, meta, NULL), LLMQ_OK);
    assert_string_equal(meta_get_str(meta, "tokenizer.chat_template"), "file");
    assert_int_equal(meta_find(meta, "llmq.eos_token_ids")->arr.n, 1);
    meta_destroy(meta);
}

static void test_broken_side_files(void **state) {
    (void)state;
    static const char *const files[] = {"tokenizer_config.json", "generation_config.json", "special_tokens_map.json"};
    write_json("tokenizer.json", json_object_get(case_named("qwen2"), "tokenizer"));
    for (size_t i = 0; i < 3; i++) {
        llmq_meta *meta = meta_create();
        llmq_err err = {0};
        write_file(files[i], "{\"a\": ", 6);
        assert_int_equal(tokenizer_read_hf(dir, 0, meta, &err), LLMQ_E_FORMAT);
        assert_non_null(strstr(err.msg, files[i]));
        write_file(files[i], "{}", 2);
        meta_destroy(meta);
    }
    remove_file("tokenizer.json");
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    assert_int_equal(tokenizer_read_hf(dir, 0, meta, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "tokenizer.json"));
    assert_int_equal(tokenizer_read_json(json_path, 0, meta, &err), LLMQ_E_IO);
    meta_destroy(meta);
}

static void test_out_of_memory(void **state) {
    (void)state;
    static const char *const names[] = {"qwen2", "spm-first"};
    for (int t = 0; t < 2; t++) {
        write_json("tokenizer.json", json_object_get(case_named(names[t]), "tokenizer"));
        llmq_status status = LLMQ_E_MEMORY;
        for (long k = 1; status; k++) {
            llmq_meta *meta = meta_create();
            llmq_tokenizer *tok = NULL;
            mem_fail_after(k);
            status = tokenizer_read_json(json_path, 0, meta, NULL);
            if (!status) status = tokenizer_create(meta, &tok, NULL);
            mem_fail_after(0);
            assert_true(status == LLMQ_OK || status == LLMQ_E_MEMORY);
            tokenizer_destroy(tok);
            meta_destroy(meta);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_truncated_json),
                                       cmocka_unit_test(test_mutated_json),
                                       cmocka_unit_test(test_padding_and_rows_beyond),
                                       cmocka_unit_test(test_side_files),
                                       cmocka_unit_test(test_broken_side_files),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, load, unload);
}
