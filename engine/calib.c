#include "engine/calib.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS ((int64_t)1 << 28)

typedef struct text_source {
    char path[1024]; /* "" for the text that ships with llmq */
    double weight;
    bool self; /* the model writes it */
    int64_t begin, n; /* windows read from it, before they are mixed */
} text_source;

/* A word in the place of a file, with or without a weight; a file of that name is ./self. */
static bool is_word(const char *arg, const char *word) {
    size_t n = strlen(word);
    return !strncmp(arg, word, n) && (!arg[n] || arg[n] == ':');
}

/* FILE or FILE:WEIGHT; a file whose own name ends in ":2" wins. */
static llmq_status parse_file(const char *arg, text_source *out, llmq_err *err) {
    out->weight = 1;
    if ((size_t)snprintf(out->path, sizeof out->path, "%s", arg) >= sizeof out->path)
        return llmq_fail(err, LLMQ_E_ARG, "--calib: the path is too long");
    char *colon = strrchr(out->path, ':');
    bool own = is_word(arg, "default");
    out->self = is_word(arg, "self");
    if (colon && (own || out->self || !file_exists(out->path))) {
        char *end;
        double weight = strtod(colon + 1, &end);
        if (end != colon + 1 && *end == 0) {
            if (!(weight > 0 && weight <= 1e6))
                return llmq_fail(err, LLMQ_E_ARG, "--calib %s: the weight must be positive", arg);
            out->weight = weight;
            *colon = 0;
        }
    }
    if (own) out->path[0] = 0;
    if (own || out->self) return LLMQ_OK;
    if (!file_exists(out->path) || file_is_dir(out->path))
        return llmq_fail(err, LLMQ_E_IO, "--calib %s: no such file", out->path);
    return LLMQ_OK;
}

/* Up to n tokens of the beginning of text. Only as much of it as that takes is encoded: a prefix of a few bytes a
 * token, doubled until it is enough, cut at the end of a line so that the cut does not make tokens of its own. */
static llmq_status encode_prefix(const llmq_tokenizer *tok, const char *text, size_t len, int flags, int64_t n,
                                 int32_t **out, size_t *n_out, llmq_err *err) {
    for (size_t take = (size_t)n * 6 + 4096;; take *= 2) {
        size_t end = take < len ? take : len;
        while (end < len && end > take / 2 && text[end - 1] != '\n') end--;
        LLMQ_TRY(tokenizer_encode(tok, text, end, flags, out, n_out, err));
        if (end == len || *n_out >= (size_t)n) return LLMQ_OK;
        mem_free(*out);
    }
}

/* Windows [begin, begin + n) of calib from text; *made_out: how many it gave. */
static llmq_status cut_windows(const llmq_tokenizer *tok, const char *text, size_t len, int flags, llmq_calib *calib,
                               int64_t begin, int64_t n, int64_t *made_out, llmq_err *err) {
    int32_t *ids = NULL;
    size_t n_ids = 0;
    bool bos = tokenizer_adds_bos(tok) && tokenizer_bos(tok) >= 0;
    int64_t take = calib->ctx - bos;
    LLMQ_TRY(encode_prefix(tok, text, len, flags, n * take, &ids, &n_ids, err));
    int64_t have = (int64_t)n_ids / take;
    *made_out = have < n ? have : n;
    for (int64_t w = 0; w < *made_out; w++) {
        int32_t *dst = calib->tokens + (begin + w) * calib->ctx;
        if (bos) *dst++ = tokenizer_bos(tok);
        memcpy(dst, ids + w * take, (size_t)take * sizeof *dst);
    }
    mem_free(ids);
    return LLMQ_OK;
}

static bool is_chat(const char *path) {
    size_t n = strlen(path);
    return n > 6 && !strcmp(path + n - 6, ".jsonl");
}

static llmq_status read_source(const llmq_model *model, const text_source *source, const llmq_calib_self *self,
                               llmq_calib *calib, int64_t n, llmq_err *err) {
    if (source->self) {
        LLMQ_TRY(calib_self_windows(model, self, calib, calib->n_windows, n, err));
        calib->n_windows += n;
        return LLMQ_OK;
    }
    llmq_map map = {0};
    llmq_status status = LLMQ_OK;
    size_t len;
    int64_t made = 0;
    char *chat = NULL;
    const char *text = calib_default_text(&len),
               *name = source->path[0] ? source->path : "the calibration text that ships with llmq";
    if (source->path[0]) {
        LLMQ_TRY(file_map(source->path, &map, err));
        text = map.data ? (const char *)map.data : "";
        len = map.size;
    }
    if (is_chat(source->path)) {
        LLMQ_TRY_GOTO(calib_chat_text(model, source->path, text, len, &chat, &len, err));
        text = chat;
    }
    LLMQ_TRY_GOTO(
        cut_windows(model->tok, text, len, chat ? LLMQ_TOK_SPECIAL : 0, calib, calib->n_windows, n, &made, err));
    if (made < n)
        llmq_log(LLMQ_LOG_WARN,
                 "%s gives %lld windows of %lld tokens, not the %lld asked for: calibrating on those; more text helps",
                 name, (long long)made, (long long)calib->ctx, (long long)n);
    calib->n_windows += made;
done:
    mem_free(chat);
    file_unmap(&map);
    return status;
}

static llmq_status check_tokens(const llmq_model *model, const llmq_calib *calib, llmq_err *err) {
    for (int64_t i = 0; i < calib->n_windows * calib->ctx; i++)
        if (calib->tokens[i] < 0 || calib->tokens[i] >= model->hp.n_vocab)
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: the tokenizer gives id %d, but the model has %lld tokens; give the right tokenizer "
                             "with --tokenizer FILE",
                             model->source->path, calib->tokens[i], (long long)model->hp.n_vocab);
    return LLMQ_OK;
}

/* From the windows of one source after those of another to all of them mixed, each source's spread evenly: so the first
 * windows, on which AWQ looks for scales, and the last ones, which tuning holds out, are of every kind of text. */
static llmq_status mix_sources(const text_source *sources, size_t n_sources, llmq_calib *calib, llmq_err *err) {
    size_t window = (size_t)calib->ctx * sizeof *calib->tokens;
    int64_t *used = mem_zalloc(n_sources, sizeof *used);
    int32_t *mixed = mem_alloc((size_t)calib->n_windows, window);
    if (!used || !mixed) {
        mem_free(used);
        mem_free(mixed);
        return mem_error(err, (size_t)calib->n_windows * window, "calibration tokens");
    }
    for (int64_t w = 0; w < calib->n_windows; w++) {
        size_t next = 0;
        double least = 2;
        for (size_t i = 0; i < n_sources; i++) {
            if (used[i] == sources[i].n) continue;
            double at = ((double)used[i] + 0.5) / (double)sources[i].n; /* where in its source the next one is */
            if (at >= least) continue;
            least = at;
            next = i;
        }
        memcpy(mixed + w * calib->ctx, calib->tokens + (sources[next].begin + used[next]++) * calib->ctx, window);
    }
    mem_free(used);
    mem_free(calib->tokens);
    calib->tokens = mixed;
    return LLMQ_OK;
}

llmq_status calib_load(const llmq_model *model, const char *const *files, size_t n_files, int64_t n_tokens, int64_t ctx,
                       const llmq_calib_self *self, llmq_calib *out, llmq_err *err) {
    const llmq_tokenizer *tok;
    llmq_status status = LLMQ_OK;
    *out = (llmq_calib){.ctx = ctx};
    if (ctx < 2 || n_tokens < ctx || n_tokens > MAX_TOKENS)
        return llmq_fail(
            err, LLMQ_E_ARG,
            "--tokens %lld --calib-ctx %lld: at least one window of at least 2 tokens, at most %lld tokens",
            (long long)n_tokens, (long long)ctx, (long long)MAX_TOKENS);
    LLMQ_TRY(model_tokenizer(model, &tok, err));
    size_t n_sources = n_files ? n_files : 1;
    int64_t n_windows = n_tokens / ctx, planned = 0;
    double weights = 0, before = 0;
    text_source *sources = mem_zalloc(n_sources, sizeof *sources);
    out->tokens = mem_alloc((size_t)(n_windows * ctx), sizeof *out->tokens);
    if (!sources || !out->tokens) {
        status = mem_error(err, (size_t)(n_windows * ctx) * sizeof *out->tokens, "calibration tokens");
        goto done;
    }
    sources[0].weight = 1;
    for (size_t i = 0; i < n_files; i++) {
        LLMQ_TRY_GOTO(parse_file(files[i], &sources[i], err));
        if (sources[i].self && !self)
            LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_UNSUPPORTED, "--calib self: not here; give a text file"));
    }
    for (size_t i = 0; i < n_sources; i++) weights += sources[i].weight;
    for (size_t i = 0; i < n_sources; i++) {
        before += sources[i].weight;
        int64_t until = i + 1 == n_sources ? n_windows : (int64_t)((double)n_windows * before / weights + 0.5);
        sources[i].begin = out->n_windows;
        if (until > planned) LLMQ_TRY_GOTO(read_source(model, &sources[i], self, out, until - planned, err));
        sources[i].n = out->n_windows - sources[i].begin;
        planned = until;
    }
    if (out->n_windows == 0)
        LLMQ_TRY_GOTO(llmq_fail(
            err, LLMQ_E_ARG, "%s: not one window of %lld tokens; give more text with --calib or a smaller --calib-ctx",
            n_files ? files[0] : "calibration", (long long)ctx));
    LLMQ_TRY_GOTO(check_tokens(model, out, err));
    if (n_sources > 1) LLMQ_TRY_GOTO(mix_sources(sources, n_sources, out, err));
done:
    mem_free(sources);
    if (status != LLMQ_OK) calib_clear(out);
    return status;
}

int64_t calib_self_tokens(const char *const *files, size_t n_files, int64_t n_tokens) {
    text_source source;
    double weights = 0, self = 0;
    for (size_t i = 0; i < n_files; i++) {
        if (parse_file(files[i], &source, NULL) != LLMQ_OK) return 0; /* calib_load will say so */
        weights += source.weight;
        if (source.self) self += source.weight;
    }
    return weights > 0 ? (int64_t)((double)n_tokens * self / weights) : 0;
}

void calib_clear(llmq_calib *calib) {
    mem_free(calib->tokens);
    *calib = (llmq_calib){0};
}
