#include "train/corpus.h"

#include <math.h>
#include <string.h>

#include "core/file.h"
#include "llmq.h"
#include "train/random.h"

#define MAX_TEXT ((size_t)4 << 30)

llmq_status corpus_read(const char *const *texts, size_t n_texts, char **out, size_t *len_out, llmq_err *err) {
    char *all = NULL;
    size_t len = 0;
    for (size_t i = 0; i < n_texts; i++) {
        char *one = NULL;
        size_t n = 0;
        llmq_status status = file_read(texts[i], MAX_TEXT, &one, &n, err);
        char *grown = status == LLMQ_OK ? mem_grow(all, len, len + n + 1, 1) : NULL;
        if (!grown) {
            mem_free(one);
            mem_free(all);
            return status == LLMQ_OK ? mem_error(err, len + n, texts[i]) : status;
        }
        all = grown;
        memcpy(all + len, one, n);
        len += n;
        all[len] = 0;
        mem_free(one);
    }
    *out = all;
    *len_out = len;
    return LLMQ_OK;
}

static llmq_status split(corpus *c, size_t n, llmq_err *err) {
    int64_t all = (int64_t)n, least = c->ctx + 1;
    c->n_held = all / CORPUS_HELD_SHARE;
    if (c->n_held > CORPUS_HELD_MAX) c->n_held = CORPUS_HELD_MAX;
    if (c->n_held < least) c->n_held = least;
    c->n = all - c->n_held;
    if (c->n < least)
        return llmq_fail(
            err, LLMQ_E_ARG,
            "the text has %lld tokens; windows of %lld want %lld at least, half of them to be held out: give "
            "more text, or a smaller --ctx",
            (long long)all, (long long)c->ctx, (long long)(2 * least));
    c->n_windows = (c->n - 1) / c->ctx;
    if (c->n_windows > 1) c->n_windows--; /* room to cut an epoch at other places than the one before */
    c->order = mem_alloc((size_t)c->n_windows, sizeof *c->order);
    return c->order ? LLMQ_OK : mem_error(err, (size_t)c->n_windows * sizeof *c->order, "the order of windows");
}

llmq_status corpus_create(corpus *c, const llmq_tokenizer *tok, int64_t n_vocab, const char *text, size_t len,
                          int64_t ctx, uint64_t seed, llmq_err *err) {
    size_t n = 0;
    c->ctx = ctx;
    c->seed = seed;
    c->epoch = -1;
    LLMQ_TRY(tokenizer_encode(tok, text, len, LLMQ_TOK_SPECIAL, &c->tokens, &n, err));
    for (size_t i = 0; i < n; i++)
        if (c->tokens[i] < 0 || c->tokens[i] >= n_vocab)
            return llmq_fail(err, LLMQ_E_FORMAT, "the tokenizer has token %d, the model only %lld", (int)c->tokens[i],
                             (long long)n_vocab);
    return split(c, n, err);
}

void corpus_clear(corpus *c) {
    mem_free(c->tokens);
    mem_free(c->order);
    *c = (corpus){0};
}

static void begin_epoch(corpus *c, int64_t epoch) {
    random_state r = random_begin(c->seed, (uint64_t)epoch);
    int64_t room = c->n - 1 - c->n_windows * c->ctx;
    if (room > c->ctx - 1) room = c->ctx - 1;
    c->shift = (int64_t)(random_next(&r) % (uint64_t)(room + 1));
    for (int64_t i = 0; i < c->n_windows; i++) c->order[i] = (int32_t)i;
    for (int64_t i = c->n_windows - 1; i > 0; i--) {
        int64_t k = (int64_t)(random_next(&r) % (uint64_t)(i + 1));
        int32_t t = c->order[i];
        c->order[i] = c->order[k];
        c->order[k] = t;
    }
    c->epoch = epoch;
}

const int32_t *corpus_window(corpus *c, int64_t i) {
    if (i / c->n_windows != c->epoch) begin_epoch(c, i / c->n_windows);
    return c->tokens + c->shift + c->order[i % c->n_windows] * c->ctx;
}

int64_t corpus_held_windows(const corpus *c) {
    return (c->n_held - 1) / c->ctx;
}

const int32_t *corpus_held_window(const corpus *c, int64_t i) {
    return c->tokens + c->n + i * c->ctx;
}

double corpus_unigram(const corpus *c, int64_t n_vocab) {
    int64_t *counts = mem_alloc((size_t)n_vocab, sizeof *counts);
    double sum = 0, all = log((double)(c->n + n_vocab));
    if (!counts) return -1;
    for (int64_t i = 0; i < n_vocab; i++) counts[i] = 1;
    for (int64_t i = 0; i < c->n; i++) counts[c->tokens[i]]++;
    for (int64_t i = c->n; i < c->n + c->n_held; i++) sum += all - log((double)counts[c->tokens[i]]);
    mem_free(counts);
    return sum / (double)c->n_held;
}
