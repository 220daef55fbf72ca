/* Tokenizers made from a text: merges worked out by hand, ids that come back as the same bytes, refusals. */
#include "tests/tokenizer/meta_text.h"

#include <jansson.h>

#include "tokenizer/hf.h"
#include "tokenizer/internal.h"

#define N_FIXED 257 /* <|endoftext|> and the bytes */

static llmq_meta *train(const char *text, size_t len, int64_t n_vocab) {
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    if (tokenizer_train(text, len, n_vocab, meta, &err)) fail_msg("%s", err.msg);
    return meta;
}

static llmq_tokenizer *open_tokenizer(const llmq_meta *meta) {
    llmq_tokenizer *tok = NULL;
    llmq_err err = {0};
    if (tokenizer_create(meta, &tok, &err)) fail_msg("%s", err.msg);
    return tok;
}

static size_t n_strs(const llmq_meta *meta, const char *key) {
    const llmq_meta_value *v = meta_find(meta, key);
    assert_true(v && v->type == META_ARRAY && v->arr.type == META_STR);
    return v->arr.n;
}

static const llmq_str *strs(const llmq_meta *meta, const char *key) {
    return meta_find(meta, key)->arr.data;
}

/* The merges of a text, each "left right", in one line between '|'. */
static void check_merges(const char *text, int64_t n_vocab, const char *expected) {
    char line[2048] = "";
    llmq_meta *meta = train(text, strlen(text), n_vocab);
    const llmq_str *merges = strs(meta, "tokenizer.ggml.merges");
    for (size_t i = 0; i < n_strs(meta, "tokenizer.ggml.merges"); i++) {
        if (i) strcat(line, "|");
        strcat(line, merges[i].s);
    }
    if (strcmp(line, expected)) fail_msg("'%s': merges '%s', not '%s'", text, line, expected);
    meta_destroy(meta);
}

static void test_by_hand(void **state) {
    (void)state;
    /* ab 3, bc 2: ab; then (ab)c 2. */
    check_merges("abc,abc,ab", 500, "a b|ab c");
    check_merges("abc,abc,ab", 258, "a b");
    check_merges("abc,abc,ab", N_FIXED, "");
    /* Equal counts: the lower left id, then the lower right one. Ids are in the order of the characters. */
    check_merges("ba.bc.ba.bc.ac.ac", 500, "a c|b a|b c");
    /* A space is U+0120 of the byte alphabet and comes after the letters; each word of two letters occurs twice. */
    check_merges("xy xy xy", 500, "x y|\xc4\xa0 xy");
    /* Nothing occurs twice; and what does, but in no common piece. */
    check_merges("abcdefg", 500, "");
    check_merges("a1a1", 500, "");
    check_merges("a", 500, "");
    /* Runs: pairs overlap when they are counted (aa 3 times in aaaa), and are merged from the left: (aa)(aa),
     * (aa)(aa)a; there (aa)a and (aa)(aa) occur as often, and a has the lower id. */
    check_merges("aaaa", 500, "a a");
    check_merges("aaaa,aaaa", 500, "a a|aa aa");
    check_merges("aaaaa.aaaaa", 500, "a a|aa a|aa aaa");
}

static void test_vocabulary(void **state) {
    (void)state;
    const char text[] = "the cat and the dog and the cat";
    llmq_meta *meta = train(text, strlen(text), 262);
    llmq_tokenizer *tok = open_tokenizer(meta);
    const llmq_str *tokens = strs(meta, "tokenizer.ggml.tokens");
    const int32_t *types = meta_find(meta, "tokenizer.ggml.token_type")->arr.data;
    bool seen[256] = {false};
    assert_int_equal(tokenizer_n_vocab(tok), 262);
    assert_int_equal(n_strs(meta, "tokenizer.ggml.merges"), 262 - N_FIXED);
    assert_string_equal(tokens[0].s, "<|endoftext|>");
    assert_string_equal(tokens[1].s, "!");
    assert_string_equal(tokens[256].s, "\xc5\x83"); /* U+0143, the soft hyphen's */
    for (int32_t i = 0; i < 262; i++) assert_int_equal(types[i], i ? TOKEN_NORMAL : TOKEN_CONTROL);
    for (int32_t i = 1; i < N_FIXED; i++) {
        const char *bytes;
        size_t len;
        tokenizer_token_bytes(tok, i, false, &bytes, &len);
        assert_int_equal(len, 1);
        assert_false(seen[(uint8_t)*bytes]);
        seen[(uint8_t)*bytes] = true;
    }
    assert_int_equal(tokenizer_bos(tok), 0);
    assert_false(tokenizer_adds_bos(tok));
    assert_true(tokenizer_is_end(tok, 0));
    assert_false(tokenizer_is_end(tok, 1));
    tokenizer_destroy(tok);
    meta_destroy(meta);
}

static void check_round_trip(const llmq_tokenizer *tok, const char *text, size_t len) {
    int32_t *ids = NULL;
    char *back = NULL;
    size_t n = 0, len_back = 0;
    assert_int_equal(tokenizer_encode(tok, text, len, 0, &ids, &n, NULL), LLMQ_OK);
    for (size_t i = 0; i < n; i++) assert_true(ids[i] > 0 && ids[i] < tokenizer_n_vocab(tok));
    assert_int_equal(tokenizer_decode(tok, ids, n, 0, &back, &len_back, NULL), LLMQ_OK);
    assert_int_equal(len_back, len);
    if (len) assert_memory_equal(back, text, len);
    mem_free(back);
    mem_free(ids);
}

/* Bytes at random, and characters at random, learned from and not. */
static void test_round_trip(void **state) {
    (void)state;
    enum { N = 40000 };
    char *text = malloc(N + 4);
    uint32_t x = 1;
    for (int utf8 = 0; utf8 < 2; utf8++) {
        size_t len = 0;
        while (len < N) {
            x ^= x << 13, x ^= x >> 17, x ^= x << 5;
            uint32_t c = x >> 8;
            if (!utf8)
                text[len++] = (char)(c & 0x100 ? c : 'a' + c % 4); /* NULs, too */
            else
                len += utf8_write(c & 0x100000 ? c % 0xd800 : 0xe0 + c % 8, text + len);
        }
        llmq_meta *meta = train(text, len / 2, 1000);
        llmq_tokenizer *tok = open_tokenizer(meta);
        assert_true(tokenizer_n_vocab(tok) > N_FIXED + 20);
        check_round_trip(tok, text, len);
        for (size_t i = 0; i < 200; i++) check_round_trip(tok, text + i * 97, i);
        tokenizer_destroy(tok);
        meta_destroy(meta);
    }
    free(text);
}

/* ---- the same done plainly: all pairs counted anew for each merge, in texts of letters and commas */

enum { PLAIN_WORDS = 64, PLAIN_LEN = 24, PLAIN_TOKENS = 600 };

typedef struct plain {
    int word[PLAIN_WORDS][PLAIN_LEN], len[PLAIN_WORDS];
    char token[PLAIN_TOKENS][PLAIN_LEN + 1];
    int n_words, n_tokens, n_merges;
    char merges[PLAIN_TOKENS][2 * PLAIN_LEN + 2];
} plain;

static int plain_count(const plain *p, int left, int right) {
    int n = 0;
    for (int w = 0; w < p->n_words; w++)
        for (int i = 0; i + 1 < p->len[w]; i++) n += p->word[w][i] == left && p->word[w][i + 1] == right;
    return n;
}

/* The most frequent pair, of equals the one of lowest ids; false: none occurs twice. */
static bool plain_best(const plain *p, int *left, int *right) {
    int best = 1;
    for (int w = 0; w < p->n_words; w++)
        for (int i = 0; i + 1 < p->len[w]; i++) {
            int a = p->word[w][i], b = p->word[w][i + 1], n = plain_count(p, a, b);
            bool lower = a < *left || (a == *left && b < *right);
            if (n < 2 || n < best || (n == best && !lower)) continue;
            best = n;
            *left = a;
            *right = b;
        }
    return best > 1;
}

static void plain_merge(plain *p, int left, int right) {
    char whole[2 * PLAIN_LEN + 1];
    int id = 0;
    snprintf(whole, sizeof whole, "%s%s", p->token[left], p->token[right]);
    char *line = strcpy(p->merges[p->n_merges++], p->token[left]);
    strcat(strcat(line, " "), p->token[right]);
    while (id < p->n_tokens && strcmp(p->token[id], whole)) id++;
    if (id == p->n_tokens) strcpy(p->token[p->n_tokens++], whole);
    for (int w = 0; w < p->n_words; w++) {
        int n = 0;
        for (int i = 0; i < p->len[w]; i++) {
            bool here = i + 1 < p->len[w] && p->word[w][i] == left && p->word[w][i + 1] == right;
            p->word[w][n++] = here ? id : p->word[w][i];
            i += here;
        }
        p->len[w] = n;
    }
}

static size_t random_words(plain *p, uint32_t *x, char *text) {
    size_t len = 0;
    memset(p, 0, sizeof *p);
    p->n_words = PLAIN_WORDS;
    p->n_tokens = N_FIXED;
    for (int c = '!'; c <= '~'; c++) p->token[c - '!' + 1][0] = (char)c;
    for (int w = 0; w < p->n_words; w++) {
        *x ^= *x << 13, *x ^= *x >> 17, *x ^= *x << 5;
        p->len[w] = 1 + (int)(*x >> 8) % (PLAIN_LEN - 1);
        for (int i = 0; i < p->len[w]; i++) {
            *x ^= *x << 13, *x ^= *x >> 17, *x ^= *x << 5;
            text[len] = (*x >> 8) % 5 ? 'a' : (char)('b' + (*x >> 16) % 2); /* runs of a */
            p->word[w][i] = text[len++] - '!' + 1;
        }
        text[len++] = ',';
    }
    return len;
}

static void test_as_done_plainly(void **state) {
    (void)state;
    static plain p;
    static char text[PLAIN_WORDS * (PLAIN_LEN + 1)];
    uint32_t x = 1;
    for (int round = 0; round < 60; round++) {
        int left = 0, right = 0;
        size_t len = random_words(&p, &x, text);
        for (; plain_best(&p, &left, &right); left = right = 0) plain_merge(&p, left, right);
        llmq_meta *meta = train(text, len, PLAIN_TOKENS);
        assert_int_equal(n_strs(meta, "tokenizer.ggml.merges"), p.n_merges);
        assert_int_equal(n_strs(meta, "tokenizer.ggml.tokens"), p.n_tokens);
        for (int i = 0; i < p.n_merges; i++) assert_string_equal(strs(meta, "tokenizer.ggml.merges")[i].s, p.merges[i]);
        for (int i = N_FIXED; i < p.n_tokens; i++)
            assert_string_equal(strs(meta, "tokenizer.ggml.tokens")[i].s, p.token[i]);
        assert_int_equal(p.n_merges, p.n_tokens - N_FIXED); /* no token is made twice */
        meta_destroy(meta);
    }
}

static void check_same(const llmq_meta *a, const llmq_meta *b, const char *key) {
    size_t n = n_strs(a, key);
    assert_int_equal(n, n_strs(b, key));
    for (size_t i = 0; i < n; i++) assert_string_equal(strs(a, key)[i].s, strs(b, key)[i].s);
}

/* The same text gives the same; fewer tokens are the beginning of more. */
static void test_deterministic(void **state) {
    (void)state;
    size_t len = 0;
    char *text = data_read("tokenizers/goldens.inp", &len), *copy = malloc(len + 1);
    memcpy(copy + 1, text, len); /* at another address */
    llmq_meta *a = train(text, len, 400), *b = train(copy + 1, len, 400), *c = train(text, len, 300);
    check_same(a, b, "tokenizer.ggml.tokens");
    check_same(a, b, "tokenizer.ggml.merges");
    assert_int_equal(n_strs(c, "tokenizer.ggml.tokens"), 300);
    for (size_t i = 0; i < 300; i++)
        assert_string_equal(strs(a, "tokenizer.ggml.tokens")[i].s, strs(c, "tokenizer.ggml.tokens")[i].s);
    meta_destroy(c);
    meta_destroy(b);
    meta_destroy(a);
    free(copy);
    free(text);
}

/* Between documents: nothing is learned across it, nor from it. */
static void test_end_of_text(void **state) {
    (void)state;
    check_merges("ab<|endoftext|>ab<|endoftext|>", 500, "a b");
    check_merges("<|endoftext|><|endoftext|>", 500, "");
    check_merges("<|endo<|endo", 258, "< |"); /* not one */
    llmq_meta *meta = train("ab ab", 5, 300);
    llmq_tokenizer *tok = open_tokenizer(meta);
    int32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(tokenizer_encode(tok, "ab<|endoftext|>", 15, LLMQ_TOK_SPECIAL | LLMQ_TOK_BOS, &ids, &n, NULL),
                     LLMQ_OK);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], N_FIXED);
    assert_int_equal(ids[1], 0);
    mem_free(ids);
    tokenizer_destroy(tok);
    meta_destroy(meta);
}

static void count_warnings(void *user, llmq_log_level level, const char *line) {
    if (level == LLMQ_LOG_WARN && strstr(line, "257 tokens")) ++*(int *)user;
}

static void test_bounds(void **state) {
    (void)state;
    static const int64_t bad[] = {INT64_MIN, -1, 0, 1, 256, ((int64_t)1 << 22) + 1, INT64_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        llmq_meta *meta = meta_create();
        llmq_err err = {0};
        assert_int_equal(tokenizer_train("abab", 4, bad[i], meta, &err), LLMQ_E_ARG);
        if (!strstr(err.msg, "257 to 4194304")) fail_msg("the message says: %s", err.msg);
        meta_destroy(meta);
    }
    llmq_meta *meta = meta_create();
    llmq_err err = {0};
    assert_int_equal(tokenizer_train("", 0, 300, meta, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "empty"));
    assert_int_equal(meta_count(meta), 0);
    meta_destroy(meta);
    int warnings = 0;
    llmq_log_set(count_warnings, &warnings);
    meta_destroy(train("a", 1, N_FIXED));
    assert_int_equal(warnings, 0);
    meta = train("a", 1, 4194304);
    assert_int_equal(warnings, 1);
    llmq_log_set(NULL, NULL);
    assert_int_equal(n_strs(meta, "tokenizer.ggml.tokens"), N_FIXED);
    llmq_tokenizer *tok = open_tokenizer(meta);
    check_round_trip(tok, "no merges", 9);
    tokenizer_destroy(tok);
    meta_destroy(meta);
}

/* No token is longer than the reader of merges takes; a run is then many tokens. */
static void test_long_runs(void **state) {
    (void)state;
    enum { N = 100000 };
    static const char *const runs[] = {"-", "\xe4\xbd\xa0", "ab"}; /* bytes that are one and two characters */
    for (size_t k = 0; k < 3; k++) {
        size_t unit = strlen(runs[k]);
        char *text = malloc(N + 3);
        for (size_t i = 0; i < N; i += unit) memcpy(text + i, runs[k], unit);
        llmq_meta *meta = train(text, N, 2000);
        const llmq_str *tokens = strs(meta, "tokenizer.ggml.tokens");
        size_t n = n_strs(meta, "tokenizer.ggml.tokens"), longest = 0;
        for (size_t i = 0; i < n; i++) longest = tokens[i].len > longest ? tokens[i].len : longest;
        assert_true(longest > 128 && longest <= 256);
        llmq_tokenizer *tok = open_tokenizer(meta);
        int32_t *ids = NULL;
        size_t n_ids = 0;
        assert_int_equal(tokenizer_encode(tok, text, N, 0, &ids, &n_ids, NULL), LLMQ_OK);
        assert_true(n_ids < N / 60);
        mem_free(ids);
        check_round_trip(tok, text, N);
        tokenizer_destroy(tok);
        meta_destroy(meta);
        free(text);
    }
}

/* tokenizer.json and its config, read back: the same tokenizer. */
static void test_hugging_face(void **state) {
    (void)state;
    size_t len = 0;
    char *text = data_read("tokenizers/goldens.inp", &len), dir[] = LLMQ_TEST_TMP "/train-XXXXXX", path[1024];
    llmq_meta *meta = train(text, len, 400), *back = meta_create();
    llmq_err err = {0};
    int64_t bos = -1, eos = -1;
    assert_non_null(mkdtemp(dir));
    if (hf_tokenizer_write(dir, meta, &err) || tokenizer_read_hf(dir, 400, back, &err)) fail_msg("%s", err.msg);
    check_same(meta, back, "tokenizer.ggml.tokens");
    check_same(meta, back, "tokenizer.ggml.merges");
    assert_string_equal(meta_get_str(back, "tokenizer.ggml.pre"), meta_get_str(meta, "tokenizer.ggml.pre"));
    assert_memory_equal(meta_find(back, "tokenizer.ggml.token_type")->arr.data,
                        meta_find(meta, "tokenizer.ggml.token_type")->arr.data, 400 * sizeof(int32_t));
    assert_true(meta_get_i64(back, "tokenizer.ggml.bos_token_id", &bos) && bos == 0);
    assert_true(meta_get_i64(back, "tokenizer.ggml.eos_token_id", &eos) && eos == 0);
    llmq_tokenizer *tok = open_tokenizer(back);
    assert_false(tokenizer_adds_bos(tok));
    check_round_trip(tok, text, len);
    tokenizer_destroy(tok);
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(remove(path), 0);
    }
    assert_int_equal(remove(dir), 0);
    meta_destroy(back);
    meta_destroy(meta);
    free(text);
}

static void test_out_of_memory(void **state) {
    (void)state;
    enum { N = 6000 }; /* every array grows */
    char *text = malloc(N);
    uint32_t x = 1;
    for (size_t i = 0; i < N; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        text[i] = "abcdefghij ,"[x >> 8 & 31 ? (x >> 8) % 11 : 11];
    }
    llmq_status status = LLMQ_E_MEMORY;
    for (long k = 1; status; k++) {
        llmq_meta *meta = meta_create();
        llmq_err err = {0};
        mem_fail_after(k);
        status = tokenizer_train(text, N, 900, meta, &err);
        mem_fail_after(0);
        assert_true(status == LLMQ_OK || (status == LLMQ_E_MEMORY && err.msg[0]));
        meta_destroy(meta);
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand),       cmocka_unit_test(test_vocabulary),
                                       cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_as_done_plainly),
                                       cmocka_unit_test(test_deterministic), cmocka_unit_test(test_end_of_text),
                                       cmocka_unit_test(test_bounds),        cmocka_unit_test(test_long_runs),
                                       cmocka_unit_test(test_hugging_face),  cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
