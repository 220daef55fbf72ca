/* Prose, code and random Unicode in four real vocabularies, against ids of Hugging Face's library; and what must hold
 * for any bytes: decoding gives the text back, streaming never shows half a character. */
#include "tests/tokenizer/meta_text.h"

#include "tokenizer/internal.h"

static const char *const names[] = {"llama-bpe", "qwen2", "smollm2", "llama-spm"};
enum { N_NAMES = 4, QWEN2 = 1, SMOLLM2 = 2, SPM = 3 };
static llmq_tokenizer *toks[N_NAMES];

static int open_all(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i++) toks[i] = meta_text_tokenizer(names[i]);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i++) tokenizer_destroy(toks[i]);
    return 0;
}

static int32_t *encode(const llmq_tokenizer *tok, const char *text, size_t len, int flags, size_t *n) {
    int32_t *ids = NULL;
    assert_int_equal(tokenizer_encode(tok, text, len, flags, &ids, n, NULL), LLMQ_OK);
    return ids;
}

static void test_goldens(void **state) {
    (void)state;
    llmq_meta *goldens = meta_text_open("goldens");
    size_t len, n;
    char *text = data_read("tokenizers/goldens.inp", &len);
    for (int t = 0; t < N_NAMES; t++) {
        const llmq_meta_value *v = meta_find(goldens, names[t]);
        assert_non_null(v);
        int32_t *ids = encode(toks[t], text, len, 0, &n);
        for (size_t i = 0; i < n && i < v->arr.n; i++)
            if (ids[i] != ((const int32_t *)v->arr.data)[i]) fail_msg("%s: token %zu is %d", names[t], i, ids[i]);
        assert_int_equal(n, v->arr.n);
        mem_free(ids);
    }
    free(text);
    meta_destroy(goldens);
}

static uint32_t next_random(uint32_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

/* Bytes with valid characters among them; some special tokens too. */
static size_t random_bytes(uint32_t *seed, char *out, size_t cap) {
    static const char *const chunks[] = {"<|im_end|>", "<|begin_of_text|>",
                                         "</s>",       "\xe2\x96\x81",
                                         " the",       "\xf0\x9f\x99\x82",
                                         "\xf0\x9f",   "\xed\xa0\x80",
                                         "\xc0\xaf",   "\xef\xbb\xbf",
                                         "123",        "'s",
                                         "\r\n",       "  ",
                                         "e\xcc\x81",  "\xff"};
    size_t n = 0, want = next_random(seed) % cap;
    while (n < want) {
        if (next_random(seed) % 3) {
            out[n++] = (char)next_random(seed);
            continue;
        }
        const char *s = chunks[next_random(seed) % 16];
        for (; *s && n < want; s++) out[n++] = *s;
    }
    return n;
}

static void check_round_trip(const llmq_tokenizer *tok, const char *text, size_t len, int flags) {
    size_t n, len_back = 0;
    char *back = NULL;
    int32_t *ids = encode(tok, text, len, flags, &n);
    assert_int_equal(tokenizer_decode(tok, ids, n, LLMQ_TOK_SPECIAL, &back, &len_back, NULL), LLMQ_OK);
    assert_int_equal(len_back, len);
    assert_memory_equal(back, text, len);
    mem_free(back);
    mem_free(ids);
}

static void test_any_bytes_come_back(void **state) {
    (void)state;
    uint32_t seed = 1;
    char text[400];
    for (int round = 0; round < 3000; round++) {
        size_t len = random_bytes(&seed, text, sizeof text);
        check_round_trip(toks[0], text, len, round & LLMQ_TOK_SPECIAL);
    }
    for (int b = 0; b < 256; b++) {
        text[0] = (char)b;
        check_round_trip(toks[0], text, 1, 0);
    }
}

/* U+2581 comes back as a space, qwen2's text is normalized, SmolLM2 lacks a byte: here only that nothing breaks, and
 * that decoded text encodes to itself. */
static void test_any_bytes_are_survived(void **state) {
    (void)state;
    uint32_t seed = 99;
    char text[400];
    for (int round = 0; round < 3000; round++) {
        size_t len = random_bytes(&seed, text, sizeof text), n, n2, len_back = 0;
        const llmq_tokenizer *tok = toks[1 + round % 3];
        char *back = NULL;
        int32_t *ids = encode(tok, text, len, round & 3, &n), *again;
        assert_int_equal(tokenizer_decode(tok, ids, n, round & 2, &back, &len_back, NULL), LLMQ_OK);
        again = encode(tok, back, len_back, round & 3, &n2);
        for (size_t i = 0; i < n; i++) assert_in_range(ids[i], 0, tokenizer_n_vocab(tok) - 1);
        mem_free(again);
        mem_free(back);
        mem_free(ids);
    }
}

/* The stream gives the decoded text with U+FFFD for broken bytes, and each of its pieces is whole characters. */
static void check_stream(const llmq_tokenizer *tok, const int32_t *ids, size_t n, bool is_utf8) {
    char *whole = NULL, *joined = malloc(n * 64 + 16);
    size_t len_whole = 0, at = 0, len;
    const char *s;
    llmq_detok *d = detok_create(tok);
    assert_non_null(d);
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            detok_put(d, ids[i], &s, &len);
        else
            detok_finish(d, &s, &len);
        assert_int_equal(utf8_valid(s, len), len);
        assert_int_equal(strlen(s) <= len, 1);
        if (at + len > n * 64) joined = realloc(joined, (at + len) * 2 + n * 64 + 16);
        memcpy(joined + at, s, len);
        at += len;
    }
    assert_int_equal(tokenizer_decode(tok, ids, n, 0, &whole, &len_whole, NULL), LLMQ_OK);
    if (is_utf8) {
        assert_int_equal(at, len_whole);
        assert_memory_equal(joined, whole, at);
    }
    mem_free(whole);
    free(joined);
    detok_destroy(d);
}

static void test_stream_of_text(void **state) {
    (void)state;
    size_t len, n;
    char *text = data_read("tokenizers/goldens.inp", &len);
    for (int t = 0; t < SPM; t++) {
        int32_t *ids = encode(toks[t], text, len, 0, &n);
        check_stream(toks[t], ids, n, true);
        mem_free(ids);
    }
    int32_t *ids = encode(toks[SPM], text, len, LLMQ_TOK_BOS, &n); /* the space is dropped after BOS */
    assert_int_equal(ids[0], 1);
    check_stream(toks[SPM], ids, n, true);
    mem_free(ids);
    free(text);
}

static void test_stream_of_garbage(void **state) {
    (void)state;
    uint32_t seed = 5;
    int32_t ids[64];
    for (int round = 0; round < 2000; round++) {
        const llmq_tokenizer *tok = toks[round % N_NAMES];
        for (size_t i = 0; i < 64; i++) /* single bytes are the ids below 259 in all four */
            ids[i] = (int32_t)(next_random(&seed) % (next_random(&seed) % 4 ? 260 : (uint32_t)tokenizer_n_vocab(tok)));
        check_stream(tok, ids, next_random(&seed) % 64, false);
    }
    const int32_t wild[] = {-1, INT32_MIN, INT32_MAX, 1 << 20};
    check_stream(toks[0], wild, 4, true);
}

/* Bytes of a broken character appear as U+FFFD as soon as it is known that they are broken. */
static void test_stream_replaces(void **state) {
    (void)state;
    const char *s;
    size_t len;
    llmq_detok *d = detok_create(toks[SPM]); /* byte b is id b + 3 */
    detok_put(d, 0xf0 + 3, &s, &len);
    assert_int_equal(len, 0);
    detok_put(d, 0x9f + 3, &s, &len);
    assert_int_equal(len, 0);
    detok_put(d, 'A' + 3, &s, &len);
    assert_string_equal(s, "\xef\xbf\xbd"
                           "A");
    detok_put(d, 0xe0 + 3, &s, &len);
    detok_put(d, 0x80 + 3, &s, &len); /* E0 80 begins nothing, and 80 alone is nothing */
    assert_string_equal(s, "\xef\xbf\xbd\xef\xbf\xbd");
    detok_put(d, 0xc3 + 3, &s, &len);
    detok_finish(d, &s, &len);
    assert_string_equal(s, "\xef\xbf\xbd");
    detok_finish(d, &s, &len);
    assert_int_equal(len, 0);
    detok_destroy(d);
}

static void test_special_tokens(void **state) {
    (void)state;
    static const char text[] = "<|im_start|>user\nHi<|im_end|>";
    size_t n, len;
    const char *bytes;
    const llmq_tokenizer *tok = toks[SMOLLM2];
    int32_t *ids = encode(tok, text, strlen(text), LLMQ_TOK_SPECIAL, &n);
    assert_int_equal(n, 5);
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[4], 2);
    assert_true(tokenizer_is_end(tok, ids[4]));
    assert_false(tokenizer_is_end(tok, ids[0]));
    char *back = NULL;
    assert_int_equal(tokenizer_decode(tok, ids, n, 0, &back, &len, NULL), LLMQ_OK);
    assert_string_equal(back, "user\nHi");
    mem_free(back);
    mem_free(ids);
    ids = encode(tok, text, strlen(text), 0, &n);
    assert_true(n > 10);
    mem_free(ids);
    tokenizer_token_bytes(tok, 2, false, &bytes, &len);
    assert_int_equal(len, 0);
    tokenizer_token_bytes(tok, 2, true, &bytes, &len);
    assert_int_equal(len, strlen("<|im_end|>"));
    assert_string_equal(bytes, "<|im_end|>");
    assert_int_equal(tokenizer_n_vocab(tok), 49152);
    assert_string_equal(tokenizer_describe(tok), "bpe smollm");
    assert_string_equal(tokenizer_describe(toks[SPM]), "spm");
    assert_false(tokenizer_is_end(tok, -1));
    assert_false(tokenizer_is_end(tok, 1 << 20));
}

static void test_bos(void **state) {
    (void)state;
    static const int32_t bos[N_NAMES] = {128000, 151643, 1, 1};
    static const bool adds[N_NAMES] = {true, false, false, true};
    for (int t = 0; t < N_NAMES; t++) {
        size_t n;
        int32_t *ids = encode(toks[t], "", 0, LLMQ_TOK_BOS, &n);
        assert_int_equal(tokenizer_bos(toks[t]), bos[t]);
        assert_int_equal(tokenizer_adds_bos(toks[t]), adds[t]);
        assert_int_equal(n, adds[t]);
        if (n) assert_int_equal(ids[0], bos[t]);
        mem_free(ids);
    }
}

/* A word of n letters must not cost n^2: half a megabyte without a boundary, in both kinds. */
static void test_long_words(void **state) {
    (void)state;
    size_t len = 1 << 19, n, len_back;
    char *text = malloc(len), *back;
    uint32_t seed = 3;
    for (size_t i = 0; i < len; i++) text[i] = (char)('a' + next_random(&seed) % 26);
    for (int t = 0; t < N_NAMES; t++) {
        int32_t *ids = encode(toks[t], text, len, 0, &n);
        assert_int_equal(tokenizer_decode(toks[t], ids, n, 0, &back, &len_back, NULL), LLMQ_OK);
        assert_int_equal(len_back, len);
        assert_memory_equal(back, text, len);
        mem_free(back);
        mem_free(ids);
    }
    free(text);
}

static void test_out_of_memory(void **state) {
    (void)state;
    static const char text[] =
        "A longer text with \xc3\xa9, e\xcc\x81 and 12345 numbers, so that buffers grow more than once.";
    char repeated[50 * sizeof text], *back;
    size_t n, len = 0;
    for (int i = 0; i < 50; i++, len += sizeof text - 1) memcpy(repeated + len, text, sizeof text - 1);
    for (int t = 0; t < N_NAMES; t++) {
        llmq_status status = LLMQ_E_MEMORY;
        for (long k = 1; status; k++) {
            int32_t *ids = NULL;
            mem_fail_after(k);
            status = tokenizer_encode(toks[t], repeated, len, 3, &ids, &n, NULL);
            mem_fail_after(0);
            assert_true(status == LLMQ_OK || status == LLMQ_E_MEMORY);
            assert_true(k < 1000);
            mem_free(ids);
        }
    }
    mem_fail_after(1);
    llmq_status status = tokenizer_decode(toks[0], (int32_t[]){1}, 1, 0, &back, &n, NULL);
    llmq_detok *d = detok_create(toks[0]);
    mem_fail_after(0);
    assert_int_equal(status, LLMQ_E_MEMORY);
    assert_null(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens),
                                       cmocka_unit_test(test_any_bytes_come_back),
                                       cmocka_unit_test(test_any_bytes_are_survived),
                                       cmocka_unit_test(test_stream_of_text),
                                       cmocka_unit_test(test_stream_of_garbage),
                                       cmocka_unit_test(test_stream_replaces),
                                       cmocka_unit_test(test_special_tokens),
                                       cmocka_unit_test(test_bos),
                                       cmocka_unit_test(test_long_words),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, open_all, close_all);
}
