/* Vocabularies of Llama 3, Llama 2 and Qwen2 with llama.cpp's own test texts and token ids. */
#include "tests/tokenizer/meta_text.h"

#define SEPARATOR "\n__ggml_vocab_test__\n"

/* The ids of one line of the .out file must be those of [text, text + len). */
static void check_line(const llmq_tokenizer *tok, const char *text, size_t len, char *line) {
    int32_t *ids = NULL;
    size_t n = 0, i = 0;
    assert_int_equal(tokenizer_encode(tok, text, len, 0, &ids, &n, NULL), LLMQ_OK);
    for (char *p = strtok(line, " "); p; p = strtok(NULL, " "), i++)
        if (i >= n || ids[i] != atoi(p))
            fail_msg("'%.*s': token %zu is %d, not %s", (int)len, text, i, i < n ? ids[i] : -1, p);
    if (i != n) fail_msg("'%.*s': %zu tokens, not %zu", (int)len, text, n, i);
    mem_free(ids);
}

static void check_vocabulary(const char *name) {
    char file[64];
    size_t len, out_len, n = 0;
    llmq_tokenizer *tok = meta_text_tokenizer(name);
    snprintf(file, sizeof file, "tokenizers/%s.out", name);
    char *texts = data_read("tokenizers/vectors.inp", &len), *out = data_read(file, &out_len), *p = texts, *line = out;
    for (;; n++) {
        char *end = strstr(p, SEPARATOR), *eol = strchr(line, '\n');
        if (!eol) break;
        *eol = 0;
        check_line(tok, p, end ? (size_t)(end - p) : strlen(p), line);
        line = eol + 1;
        if (!end) break;
        p = end + strlen(SEPARATOR);
    }
    assert_int_equal(n, 46);
    free(texts);
    free(out);
    tokenizer_destroy(tok);
}

static void test_llama_bpe(void **state) {
    (void)state;
    check_vocabulary("llama-bpe");
}
static void test_llama_spm(void **state) {
    (void)state;
    check_vocabulary("llama-spm");
}
static void test_qwen2(void **state) {
    (void)state;
    check_vocabulary("qwen2");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_llama_bpe), cmocka_unit_test(test_llama_spm),
                                       cmocka_unit_test(test_qwen2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
