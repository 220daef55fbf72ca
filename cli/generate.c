#include "cli/generate.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PREFILL_STEP = 512 }; /* tokens between two looks at Ctrl-C */

const opt_def gen_defs[] = {
    OPT_ROW_HEAD("generation"),
    OPT_ROW_INT(
        "--predict", "-n", "N", gen_opts, n, -1, 1 << 30,
        "most tokens to generate (-1: until the model ends or the context is full; default -1, or 256 where text "
        "is continued without a chat template)"),
    OPT_ROW_INT("--ctx", "-c", "N", gen_opts, ctx, 0, 1 << 30,
                "context in tokens (default: the model's own, at most 4096)"),
    OPT_ROW_REAL("--temp", NULL, "X", gen_opts, temperature, 0, 100,
                 "temperature; 0 takes the most probable token each time (default 0.8)"),
    OPT_ROW_INT("--top-k", NULL, "N", gen_opts, top_k, 0, 1 << 30,
                "sample from the N most probable tokens (0: off; default 40)"),
    OPT_ROW_REAL("--top-p", NULL, "X", gen_opts, top_p, 0, 1,
                 "sample from the tokens that make up this probability (1: off; default 0.95)"),
    OPT_ROW_REAL("--min-p", NULL, "X", gen_opts, min_p, 0, 1,
                 "drop tokens less probable than X times the best (0: off; default 0.05)"),
    OPT_ROW_REAL("--repeat-penalty", NULL, "X", gen_opts, repeat_penalty, 0.01, 10,
                 "divide the logits of the last 64 tokens by X (1: off; the default)"),
    OPT_ROW_INT("--seed", "-s", "N", gen_opts, seed, 0, 9e18,
                "the same seed gives the same text (default: from the clock)"),
    OPT_ROW_ENUM("--kv-type", NULL, gen_opts, kv_type, "f16|q8_0|f32", "storage of the KV cache (default f16)"),
    OPT_ROW_FLAG("--stats", NULL, gen_opts, stats, 1, "print token counts and speed after each answer"),
    OPT_ROW_FLAG(
        "--lookup", NULL, gen_opts, lookup, 1,
        "guess that passages come again and check several tokens at once: the same text, sooner where it repeats "
        "itself or its prompt (code, summaries)"),
    OPT_ROW_TEXT("--draft", NULL, "MODEL", gen_opts, draft,
                 "a small model with the same vocabulary guesses tokens that are then checked together: the same text"),
    OPT_ROW_END,
};

void gen_opts_init(gen_opts *g) {
    llmq_sampler_params s;
    llmq_sampler_params_default(&s);
    *g = (gen_opts){.n = -2,
                    .top_k = s.top_k,
                    .seed = -1,
                    .repeat_last_n = s.repeat_last_n,
                    .temperature = (double)s.temperature,
                    .top_p = (double)s.top_p,
                    .min_p = (double)s.min_p,
                    .repeat_penalty = (double)s.repeat_penalty};
}

static llmq_status speculate(const gen_opts *g, const common_opts *common, gen_engine *e, llmq_err *err) {
    if (!g->lookup && !g->draft) return LLMQ_OK;
    if (g->draft) {
        llmq_status status = cli_open(g->draft, common, &e->draft, err);
        if (status) return status;
    }
    llmq_speculation_params params = {.lookup = g->lookup, .draft = e->draft};
    return llmq_session_set_speculation(e->session, &params, err);
}

llmq_status gen_open(llmq_model *model, const gen_opts *g, const common_opts *common, gen_engine *out, llmq_err *err) {
    *out = (gen_engine){.model = model};
    llmq_session_params params;
    llmq_session_params_default(&params);
    params.n_ctx = g->ctx;
    params.n_threads = (int)common->threads;
    params.kv_type = (llmq_kv_type)g->kv_type; /* the choices are in the order of the enum */
    llmq_status status = llmq_session_create(model, &params, &out->session, err);
    if (status) return status;
    llmq_sampler_params sampler = {
        .temperature = (float)g->temperature,
        .top_k = (int)g->top_k,
        .top_p = (float)g->top_p,
        .min_p = (float)g->min_p,
        .repeat_penalty = (float)g->repeat_penalty,
        .repeat_last_n = (int)g->repeat_last_n,
        .seed = g->seed >= 0 ? (uint64_t)g->seed : (uint64_t)time(NULL) * 2654435761u,
    };
    llmq_session_set_sampler(out->session, &sampler);
    return speculate(g, common, out, err);
}

void gen_close(gen_engine *e) {
    llmq_session_destroy(e->session);
    llmq_model_close(e->draft);
    free(e->ids);
    *e = (gen_engine){0};
}

void gen_result_clear(gen_result *r) {
    free(r->text);
    *r = (gen_result){0};
}

static llmq_status put_text(gen_result *r, const char *text, size_t len, llmq_err *err) {
    if (!len) return LLMQ_OK;
    fwrite(text, 1, len, stdout);
    fflush(stdout);
    char *grown = realloc(r->text, r->len + len + 1);
    if (!grown) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the generated text");
    memcpy(grown + r->len, text, len);
    r->len += len;
    grown[r->len] = '\0';
    r->text = grown;
    return LLMQ_OK;
}

static llmq_status hold(gen_engine *e, const int32_t *ids, size_t n, llmq_err *err) {
    if (n > e->cap - e->n) {
        size_t cap = 2 * e->cap + n;
        int32_t *grown = realloc(e->ids, cap * sizeof *grown);
        if (!grown) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the conversation's tokens");
        e->ids = grown;
        e->cap = cap;
    }
    memcpy(e->ids + e->n, ids, n * sizeof *ids);
    e->n += n;
    return LLMQ_OK;
}

/* In steps, so that Ctrl-C ends a long prefill; each step holds the whole part that the cache has in common with
 * prompt. */
static llmq_status prefill(gen_engine *e, const int32_t *prompt, size_t n, gen_result *r, llmq_err *err) {
    size_t done = 0;
    while (done < n - 1 && done < e->n && e->ids[done] == prompt[done]) done++;
    e->n = done;
    double start = cli_seconds();
    r->n_prompt = (int64_t)n;
    r->n_reused = (int64_t)done;
    while (done < n && !cli_interrupted()) {
        size_t step = n - done > PREFILL_STEP ? PREFILL_STEP : n - done;
        llmq_status status = llmq_session_sync(e->session, prompt, done + step, err);
        if (!status) status = hold(e, prompt + done, step, err);
        if (status) return status;
        done += step;
    }
    r->prompt_seconds = cli_seconds() - start;
    return LLMQ_OK;
}

static llmq_status generate(gen_engine *e, llmq_stream *stream, int64_t limit, gen_result *r, llmq_err *err) {
    int32_t token = 0;
    for (;;) {
        /* The token before is not run yet: it must fit, and it need not be run if it is the last. */
        gen_stop stop = cli_interrupted()                       ? GEN_INTERRUPTED
                        : limit >= 0 && r->n_generated >= limit ? GEN_LIMIT
                                                                : GEN_END;
        if (stop == GEN_END && r->n_generated && llmq_session_n_past(e->session) >= llmq_session_n_ctx(e->session))
            stop = GEN_CONTEXT;
        if (stop != GEN_END) {
            r->stop = stop;
            return LLMQ_OK;
        }
        int32_t before = token;
        llmq_status status = llmq_session_next(e->session, &token, err);
        if (!status && r->n_generated) status = hold(e, &before, 1, err);
        if (status) return status;
        if (llmq_model_is_end(e->model, token)) {
            r->stop = GEN_END;
            return LLMQ_OK;
        }
        const char *text;
        size_t len;
        llmq_stream_put(stream, token, &text, &len);
        r->n_generated++;
        status = put_text(r, text, len, err);
        if (status) return status;
    }
}

static llmq_speculation_stats guesses_since(const gen_engine *e, const llmq_speculation_stats *before) {
    llmq_speculation_stats s;
    llmq_session_get_speculation_stats(e->session, &s);
    return (llmq_speculation_stats){s.tokens - before->tokens, s.passes - before->passes, s.guessed - before->guessed,
                                    s.accepted - before->accepted};
}

llmq_status gen_run(gen_engine *e, const int32_t *prompt, size_t n, int64_t limit, bool follow_on, gen_result *out,
                    llmq_err *err) {
    *out = (gen_result){0};
    if (!n)
        return cli_set_err(err, LLMQ_E_ARG,
                           "the prompt is empty and the tokenizer adds no BOS: give it at least one token of text");
    if (n > (size_t)llmq_session_n_ctx(e->session))
        return cli_set_err(err, LLMQ_E_CONTEXT,
                           "the prompt has %zu tokens and the context holds %lld: make it larger with --ctx", n,
                           (long long)llmq_session_n_ctx(e->session));
    llmq_stream *stream = NULL;
    const char *text;
    size_t len;
    llmq_status status = llmq_stream_create(e->model, &stream, err);
    if (status) return status;
    if (follow_on)
        for (size_t i = 0; i < n; i++) llmq_stream_put(stream, prompt[i], &text, &len);
    status = prefill(e, prompt, n, out, err);
    if (status) goto done;
    llmq_speculation_stats before;
    llmq_session_get_speculation_stats(e->session, &before);
    double start = cli_seconds();
    status = generate(e, stream, limit, out, err);
    out->seconds = cli_seconds() - start;
    out->guesses = guesses_since(e, &before);
    if (status) goto done;
    llmq_stream_finish(stream, &text, &len);
    status = put_text(out, text, len, err);
done:
    llmq_stream_destroy(stream);
    return status;
}

llmq_status gen_encode_chat(const llmq_model *model, const llmq_message *messages, size_t n, int32_t **ids,
                            size_t *n_ids, bool *recognized_out, llmq_err *err) {
    char *text = NULL;
    bool has_bos = false;
    llmq_status status = llmq_chat_render(model, messages, n, true, &text, recognized_out, &has_bos, err);
    if (status) return status;
    status = llmq_encode(model, text, strlen(text), LLMQ_TOK_SPECIAL | (has_bos ? 0 : LLMQ_TOK_BOS), ids, n_ids, err);
    llmq_free(text);
    return status;
}

void gen_print_stats(const gen_result *r) {
    int64_t fresh = r->n_prompt - r->n_reused;
    cli_note("prompt %lld tokens (%lld from the cache) in %.2f s, %.1f t/s; generated %lld tokens in %.2f s, %.1f t/s",
             (long long)r->n_prompt, (long long)r->n_reused, r->prompt_seconds,
             r->prompt_seconds > 0 ? (double)fresh / r->prompt_seconds : 0, (long long)r->n_generated, r->seconds,
             r->seconds > 0 ? (double)r->n_generated / r->seconds : 0);
    if (r->guesses.passes)
        cli_note("%lld passes; %lld of %lld guessed tokens were right", (long long)r->guesses.passes,
                 (long long)r->guesses.accepted, (long long)r->guesses.guessed);
}
