/* llama2.c's tokenizer.bin: ids as llama2.c's own greedy algorithm gives them, here written down in its plainest form.
 */
#include "tests/tokenizer/meta_text.h"

#include <unistd.h>

typedef struct plain_vocab {
    char *piece[512];
    size_t len[512];
    float score[512];
} plain_vocab;

static void read_plain(plain_vocab *v) {
    size_t len, pos = 4;
    char *data = data_read("stories260K/tok512.bin", &len);
    for (int i = 0; i < 512; i++) {
        int32_t n;
        memcpy(&v->score[i], data + pos, 4);
        memcpy(&n, data + pos + 4, 4);
        v->piece[i] = calloc(1, (size_t)n + 1);
        memcpy(v->piece[i], data + pos + 8, (size_t)n);
        v->len[i] = (size_t)n;
        pos += 8 + (size_t)n;
    }
    assert_int_equal(pos, len);
    free(data);
}

static int lookup(const plain_vocab *v, const char *s, size_t len) {
    for (int i = 0; i < 512; i++)
        if (v->len[i] == len && !memcmp(v->piece[i], s, len)) return i;
    return -1;
}

/* A space if there is text; characters or their bytes; then again and again the best pair. */
static size_t encode_plainly(const plain_vocab *v, const char *text, int32_t *ids) {
    size_t n = 0;
    if (*text) ids[n++] = lookup(v, " ", 1);
    while (*text) {
        size_t c = 1;
        while (c < 4 && ((uint8_t)text[c] & 0xc0) == 0x80) c++;
        int id = lookup(v, text, c);
        if (id >= 0) ids[n++] = id;
        for (size_t i = 0; id < 0 && i < c; i++) ids[n++] = (uint8_t)text[i] + 3;
        text += c;
    }
    for (;;) {
        float best = -1e10f;
        size_t at = n;
        int merged = -1;
        for (size_t i = 0; i + 1 < n; i++) {
            char both[256];
            size_t a = v->len[ids[i]], b = v->len[ids[i + 1]];
            memcpy(both, v->piece[ids[i]], a);
            memcpy(both + a, v->piece[ids[i + 1]], b);
            int id = lookup(v, both, a + b);
            if (id >= 0 && v->score[id] > best) best = v->score[id], at = i, merged = id;
        }
        if (at == n) return n;
        ids[at] = merged;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static llmq_tokenizer *open_tok512(llmq_meta *meta) {
    llmq_tokenizer *tok = NULL;
    assert_int_equal(tokenizer_read_bin(LLMQ_TEST_DATA "/stories260K/tok512.bin", 512, meta, NULL), LLMQ_OK);
    assert_int_equal(tokenizer_create(meta, &tok, NULL), LLMQ_OK);
    return tok;
}

static void test_same_ids(void **state) {
    (void)state;
    static const char *const texts[] = {"Once upon a time",
                                        "",
                                        " ",
                                        "a",
                                        "  two spaces",
                                        "One day, Lily met a Shoggoth.\nHe said: \"Hi!\"",
                                        "caf\xc3\xa9 \xe2\x82\xac 5",
                                        "\xf0\x9f\x99\x82\t\t!",
                                        "the the the thethethe",
                                        "zzzzzzzzzzzz qqqq",
                                        "There was a little girl named Lily. She loved to play outside in the park."};
    static const int32_t once[] = {403, 407, 261, 378};
    plain_vocab v;
    int32_t expected[512], *ids;
    size_t n;
    read_plain(&v);
    llmq_meta *meta = meta_create();
    llmq_tokenizer *tok = open_tok512(meta);
    for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
        size_t n_expected = encode_plainly(&v, texts[t], expected);
        assert_int_equal(tokenizer_encode(tok, texts[t], strlen(texts[t]), 0, &ids, &n, NULL), LLMQ_OK);
        for (size_t i = 0; i < n && i < n_expected; i++)
            if (ids[i] != expected[i]) fail_msg("'%s': token %zu is %d, not %d", texts[t], i, ids[i], expected[i]);
        assert_int_equal(n, n_expected);
        if (!t) assert_memory_equal(ids, once, sizeof once);
        mem_free(ids);
    }
    for (int i = 0; i < 512; i++) free(v.piece[i]);
    tokenizer_destroy(tok);
    meta_destroy(meta);
}

static void test_settings(void **state) {
    (void)state;
    llmq_meta *meta = meta_create();
    llmq_tokenizer *tok = open_tok512(meta);
    int32_t *ids;
    size_t n, len;
    char *text;
    assert_int_equal(tokenizer_bos(tok), 1);
    assert_true(tokenizer_adds_bos(tok));
    assert_true(tokenizer_is_end(tok, 1) && tokenizer_is_end(tok, 2) && !tokenizer_is_end(tok, 3));
    assert_int_equal(tokenizer_encode(tok, "Once upon a time", 16, LLMQ_TOK_BOS, &ids, &n, NULL), LLMQ_OK);
    assert_int_equal(n, 5);
    assert_int_equal(ids[0], 1);
    assert_int_equal(tokenizer_decode(tok, ids, n, 0, &text, &len, NULL), LLMQ_OK);
    assert_string_equal(text, "Once upon a time");
    mem_free(text);
    mem_free(ids);
    assert_int_equal(tokenizer_encode(tok, "<s>a</s>", 8, LLMQ_TOK_SPECIAL, &ids, &n, NULL), LLMQ_OK);
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[n - 1], 2);
    mem_free(ids);
    tokenizer_destroy(tok);
    meta_destroy(meta);
}

/* Every file that ends early is refused when the number of tokens is known; without it only cuts inside a token show.
 * The file is the first 60 tokens. */
static void test_truncated(void **state) {
    (void)state;
    char path[600];
    size_t len = 4, file_len, whole = 0;
    llmq_err err = {0};
    char *data = data_read("stories260K/tok512.bin", &file_len);
    for (int i = 0; i < 60; i++) {
        int32_t n;
        memcpy(&n, data + len + 4, 4);
        len += 8 + (size_t)n;
    }
    snprintf(path, sizeof path, "%s/tok-%d.bin", LLMQ_TEST_TMP, (int)getpid());
    for (size_t n = 0; n < len; n++) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(data, 1, n, f), n);
        fclose(f);
        llmq_meta *meta = meta_create();
        assert_int_equal(tokenizer_read_bin(path, 60, meta, &err), LLMQ_E_FORMAT);
        assert_non_null(strstr(err.msg, path));
        llmq_status status = tokenizer_read_bin(path, 0, meta, &err);
        assert_true(status == LLMQ_OK || status == LLMQ_E_FORMAT);
        whole += status == LLMQ_OK;
        meta_destroy(meta);
    }
    assert_int_equal(whole, 60 - 3);
    unlink(path);
    free(data);
}

static void test_wrong_model(void **state) {
    (void)state;
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    assert_int_equal(tokenizer_read_bin(LLMQ_TEST_DATA "/stories260K/tok512.bin", 511, meta, &err), LLMQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "another model"));
    assert_int_equal(tokenizer_read_bin(LLMQ_TEST_DATA "/stories260K/tok512.bin", 513, meta, &err), LLMQ_E_FORMAT);
    assert_int_equal(tokenizer_read_bin(LLMQ_TEST_DATA "/stories260K/stories260K.bin", 0, meta, &err), LLMQ_E_FORMAT);
    assert_int_equal(tokenizer_read_bin(LLMQ_TEST_DATA "/stories260K/none.bin", 0, meta, &err), LLMQ_E_IO);
    meta_destroy(meta);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_ids), cmocka_unit_test(test_settings),
                                       cmocka_unit_test(test_truncated), cmocka_unit_test(test_wrong_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
