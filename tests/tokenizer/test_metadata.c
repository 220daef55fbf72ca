/* Tokenizers from metadata as a damaged or odd GGUF file may have it. */
#include "tests/tokenizer/meta_text.h"

/* A byte-level tokenizer of the letters a b c with merges ab, abc. */
static llmq_meta *small_bpe(void) {
    static const llmq_str tokens[] = {{"a", 1}, {"b", 1}, {"c", 1}, {"ab", 2}, {"abc", 3}, {"<e>", 3}, {"<eot>", 5}};
    static const llmq_str merges[] = {{"a b", 3}, {"ab c", 4}, {"c c", 3}, {"b", 1}, {"", 0}, {" a", 2}};
    static const int32_t types[] = {1, 1, 1, 1, 1, 3, 4};
    llmq_meta *meta = meta_create();
    meta_set_str(meta, "tokenizer.ggml.model", "gpt2", NULL);
    meta_set_str(meta, "tokenizer.ggml.pre", "gpt-2", NULL);
    meta_set_strs(meta, "tokenizer.ggml.tokens", tokens, 7, NULL);
    meta_set_array(meta, "tokenizer.ggml.token_type", META_I32, types, 7, NULL);
    meta_set_strs(meta, "tokenizer.ggml.merges", merges, 6, NULL);
    return meta;
}

/* Pieces of SentencePiece; 'x' and 'z' are no tokens, but parts of one. */
static llmq_meta *small_spm(void) {
    static const llmq_str tokens[] = {{"<unk>", 5},
                                      {"<s>", 3},
                                      {"</s>", 4},
                                      {"\xe2\x96\x81", 3},
                                      {"a", 1},
                                      {"xz", 2},
                                      {"\xe2\x96\x81"
                                       "a",
                                       4},
                                      {"aa", 2},
                                      {"axz", 3}};
    static const int32_t types[] = {2, 3, 3, 1, 1, 1, 1, 1, 1};
    static const float scores[] = {0, 0, 0, -9, -9, -3, -2, -1, -4};
    llmq_meta *meta = meta_create();
    meta_set_str(meta, "tokenizer.ggml.model", "llama", NULL);
    meta_set_strs(meta, "tokenizer.ggml.tokens", tokens, 9, NULL);
    meta_set_array(meta, "tokenizer.ggml.token_type", META_I32, types, 9, NULL);
    meta_set_array(meta, "tokenizer.ggml.scores", META_F32, scores, 9, NULL);
    return meta;
}

static void check_encode(llmq_meta *meta, const char *text, int flags, const int32_t *expected, size_t n_expected) {
    llmq_tokenizer *tok = NULL;
    llmq_err err = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    if (tokenizer_create(meta, &tok, &err)) fail_msg("%s", err.msg);
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), flags, &ids, &n, NULL), LLMQ_OK);
    assert_int_equal(n, n_expected);
    if (n) assert_memory_equal(ids, expected, n * sizeof *ids);
    mem_free(ids);
    tokenizer_destroy(tok);
    meta_destroy(meta);
}

static void test_small_bpe(void **state) {
    (void)state;
    check_encode(small_bpe(), "abcab", 0, (int32_t[]){4, 3}, 2);
    check_encode(small_bpe(), "acb?c", 0, (int32_t[]){0, 2, 1, 2}, 4);   /* '?' is no token */
    check_encode(small_bpe(), "a<e>b<eot>", 0, (int32_t[]){0, 1, 6}, 3); /* "<e>" has no bytes in this vocabulary */
    check_encode(small_bpe(), "a<e>b<eot>", LLMQ_TOK_SPECIAL, (int32_t[]){0, 5, 1, 6}, 4);
}

static void test_small_spm(void **state) {
    (void)state;
    check_encode(small_spm(), "", LLMQ_TOK_BOS, (int32_t[]){1}, 1);
    check_encode(small_spm(), "aa", 0, (int32_t[]){3, 7}, 2);
    check_encode(small_spm(), "aaa", 0, (int32_t[]){3, 7, 4}, 3); /* of equal pairs the leftmost: not a, aa */
    check_encode(small_spm(), "xz", 0, (int32_t[]){3, 5}, 2);     /* merged from two characters that are no tokens */
    check_encode(small_spm(), "z", 0, (int32_t[]){3, 0}, 2); /* which alone are unknown: there are no byte tokens */
    check_encode(small_spm(),
                 "\xc3\xa9"
                 "a",
                 0, (int32_t[]){3, 0, 4}, 3);
    check_encode(small_spm(), "<s>a", LLMQ_TOK_SPECIAL, (int32_t[]){1, 6}, 2);
    llmq_meta *meta = small_spm();
    meta_set_bool(meta, "tokenizer.ggml.add_space_prefix", false, NULL);
    check_encode(meta, "a a", 0, (int32_t[]){4, 6}, 2);
    meta = small_spm();
    meta_set_bool(meta, "tokenizer.ggml.add_eos_token", true, NULL);
    check_encode(meta, "a", LLMQ_TOK_BOS, (int32_t[]){1, 6, 2}, 3);
}

static void check_refused(llmq_meta *meta, llmq_status expected, const char *words) {
    llmq_tokenizer *tok = NULL;
    llmq_err err = {0};
    assert_int_equal(tokenizer_create(meta, &tok, &err), expected);
    if (!strstr(err.msg, words)) fail_msg("the message says: %s", err.msg);
    meta_destroy(meta);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const models[] = {"none", "t5", "bert", ""};
    for (size_t i = 0; i < 4; i++) {
        llmq_meta *meta = small_bpe();
        meta_set_str(meta, "tokenizer.ggml.model", models[i], NULL);
        check_refused(meta, LLMQ_E_UNSUPPORTED, "tokenizer.ggml.model");
    }
    static const char *const needed[][2] = {{"tokenizer.ggml.model", "absent"},
                                            {"tokenizer.ggml.tokens", "tokenizer.ggml.tokens"},
                                            {"tokenizer.ggml.merges", "tokenizer.ggml.merges"}};
    for (size_t i = 0; i < 3; i++) {
        llmq_meta *meta = small_bpe();
        meta_remove(meta, needed[i][0]);
        check_refused(meta, i ? LLMQ_E_FORMAT : LLMQ_E_UNSUPPORTED, needed[i][1]);
        meta = small_bpe();
        meta_set_u32(meta, needed[i][0], 7, NULL);
        check_refused(meta, i ? LLMQ_E_FORMAT : LLMQ_E_UNSUPPORTED, needed[i][1]);
    }
    llmq_meta *meta = small_bpe();
    meta_set_str(meta, "tokenizer.ggml.pre", "nobody-knows", NULL);
    check_refused(meta, LLMQ_E_UNSUPPORTED, "nobody-knows");
    meta = small_bpe();
    meta_set_array(meta, "tokenizer.ggml.token_type", META_I32, (int32_t[]){1, 1}, 2, NULL);
    check_refused(meta, LLMQ_E_FORMAT, "token_type");
    meta = small_spm();
    meta_set_array(meta, "tokenizer.ggml.scores", META_F32, (float[]){1}, 1, NULL);
    check_refused(meta, LLMQ_E_FORMAT, "scores");
    static const char *const ids[] = {"bos_token_id", "eos_token_id", "unknown_token_id", "eot_token_id",
                                      "eom_token_id"};
    for (size_t i = 0; i < 5; i++) {
        char key[128];
        meta = small_bpe();
        meta_set_u32(meta, meta_key(key, "tokenizer.ggml.%s", ids[i]), 7, NULL);
        check_refused(meta, LLMQ_E_FORMAT, ids[i]);
    }
    tokenizer_destroy(NULL);
}

/* What is odd but harmless: unknown types, no pre-tokenizer's name, ids of -1, end tokens out of range. */
static void test_tolerated(void **state) {
    (void)state;
    llmq_meta *meta = small_bpe();
    meta_remove(meta, "tokenizer.ggml.pre");
    meta_set_array(meta, "tokenizer.ggml.token_type", META_I32, (int32_t[]){0, -1, 99, 1, 1, 3, 3}, 7, NULL);
    meta_set_u32(meta, "tokenizer.ggml.bos_token_id", UINT32_MAX, NULL);
    meta_set_i32(meta, "tokenizer.ggml.eos_token_id", -1, NULL);
    meta_set_array(meta, "llmq.eos_token_ids", META_I32, (int32_t[]){-7, 99, 3}, 3, NULL);
    meta_set_bool(meta, "tokenizer.ggml.add_bos_token", true, NULL);
    llmq_tokenizer *tok = NULL;
    assert_int_equal(tokenizer_create(meta, &tok, NULL), LLMQ_OK);
    assert_int_equal(tokenizer_bos(tok), -1);
    assert_false(tokenizer_adds_bos(tok));
    assert_true(tokenizer_is_end(tok, 3));
    assert_string_equal(tokenizer_describe(tok), "bpe default");
    tokenizer_destroy(tok);
    check_encode(meta, "abc", LLMQ_TOK_BOS, (int32_t[]){4}, 1);
}

/* The names of GGUF's pre-tokenizers that share a pattern: numbers tell them apart. */
static void test_pre_tokenizer_names(void **state) {
    (void)state;
    static const struct {
        const char *pre;
        size_t n; /* tokens of "1234" where "1234", "123", "4" are tokens besides digits */
    } rows[] = {{"gpt-2", 1},  {"phi-2", 1},     {"olmo", 1},        {"llama-bpe", 2}, {"llama3", 2}, {"dbrx", 2},
                {"glm4", 2},   {"gpt-4o", 2},    {"deepseek-v3", 2}, {"qwen2", 4},     {"qwen35", 4}, {"stablelm2", 4},
                {"smollm", 4}, {"starcoder", 4}, {"command-r", 4},   {"tekken", 4},    {"default", 2}};
    static const llmq_str tokens[] = {{"1", 1}, {"2", 1}, {"3", 1}, {"4", 1}, {"12", 2}, {"123", 3}, {"1234", 4}},
                          merges[] = {{"1 2", 3}, {"12 3", 4}, {"123 4", 5}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        llmq_meta *meta = meta_create();
        llmq_tokenizer *tok = NULL;
        int32_t *ids;
        size_t n;
        meta_set_str(meta, "tokenizer.ggml.model", "gpt2", NULL);
        meta_set_str(meta, "tokenizer.ggml.pre", rows[i].pre, NULL);
        meta_set_strs(meta, "tokenizer.ggml.tokens", tokens, 7, NULL);
        meta_set_strs(meta, "tokenizer.ggml.merges", merges, 3, NULL);
        assert_int_equal(tokenizer_create(meta, &tok, NULL), LLMQ_OK);
        assert_int_equal(tokenizer_encode(tok, "1234", 4, 0, &ids, &n, NULL), LLMQ_OK);
        if (n != rows[i].n) fail_msg("%s: %zu tokens", rows[i].pre, n);
        mem_free(ids);
        tokenizer_destroy(tok);
        meta_destroy(meta);
    }
}

static void test_out_of_memory(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        llmq_meta *meta = t ? small_spm() : small_bpe();
        llmq_status status = LLMQ_E_MEMORY;
        for (long k = 1; status; k++) {
            llmq_tokenizer *tok = NULL;
            mem_fail_after(k);
            status = tokenizer_create(meta, &tok, NULL);
            mem_fail_after(0);
            assert_true(status == LLMQ_OK || status == LLMQ_E_MEMORY);
            tokenizer_destroy(tok);
        }
        meta_destroy(meta);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small_bpe),
                                       cmocka_unit_test(test_small_spm),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_tolerated),
                                       cmocka_unit_test(test_pre_tokenizer_names),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
