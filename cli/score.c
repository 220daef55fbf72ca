/* llmq score: log-probabilities and logits of given tokens, for tests against other engines. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/json.h"

typedef struct score_opts {
    cli_ints tokens;
    int64_t greedy;
    int json, kv_type;
} score_opts;

static const opt_def score_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_INTS("--tokens", NULL, "IDS", score_opts, tokens, 0, 1 << 30,
                 "token ids: 1,5,7 (llmq tokenize makes them)"),
    OPT_ROW_INT("--greedy", NULL, "N", score_opts, greedy, 0, 1 << 24,
                "continue by the N most probable tokens, one after the other"),
    OPT_ROW_ENUM("--kv-type", NULL, score_opts, kv_type, "f16|q8_0|f32",
                 "storage of the KV cache (default f32: exact scores)"),
    OPT_ROW_FLAG("--json", NULL, score_opts, json, 1, "one JSON document: next_logprobs, last_logits, greedy"),
    OPT_ROW_END,
};

typedef struct score {
    const int32_t *tokens;
    size_t n;
    int64_t n_vocab;
    double *logprobs; /* [n - 1]: of token i + 1 after tokens 0..i */
    float *last;      /* [n_vocab] */
    int32_t *greedy;
    int64_t n_greedy;
} score;

static void take_logits(void *user, size_t pos, const float *logits) {
    score *s = user;
    if (pos + 1 == s->n) {
        memcpy(s->last, logits, (size_t)s->n_vocab * sizeof *logits);
        return;
    }
    double max = logits[0], sum = 0;
    for (int64_t i = 1; i < s->n_vocab; i++) max = logits[i] > max ? logits[i] : max;
    for (int64_t i = 0; i < s->n_vocab; i++) sum += exp((double)logits[i] - max);
    s->logprobs[pos] = (double)logits[s->tokens[pos + 1]] - max - log(sum);
}

static llmq_status continue_greedy(score *s, llmq_session *session, int64_t n, llmq_err *err) {
    for (; s->n_greedy < n; s->n_greedy++) {
        if (cli_interrupted()) return cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted");
        const float *logits = llmq_session_logits(session);
        int32_t best = 0;
        for (int32_t i = 1; i < s->n_vocab; i++)
            if (logits[i] > logits[best]) best = i;
        s->greedy[s->n_greedy] = best;
        if (s->n_greedy + 1 == n) continue; /* nobody asks what comes after the last one */
        llmq_status status = llmq_session_append(session, &best, 1, err);
        if (status) return status;
    }
    return LLMQ_OK;
}

static llmq_status compute(llmq_model *model, const score_opts *opts, const common_opts *common, score *s,
                           llmq_err *err) {
    llmq_session *session = NULL;
    llmq_session_params params;
    llmq_session_params_default(&params);
    params.n_ctx = (int64_t)s->n + opts->greedy;
    params.n_threads = (int)common->threads;
    params.kv_type = (llmq_kv_type)opts->kv_type; /* the choices are in the order of the enum */
    llmq_status status = llmq_session_create(model, &params, &session, err);
    if (!status) status = llmq_session_append_all(session, s->tokens, s->n, 0, take_logits, s, err);
    if (!status) status = continue_greedy(s, session, opts->greedy, err);
    llmq_session_destroy(session);
    return status;
}

static llmq_status prepare(const llmq_model *model, const score_opts *opts, score *s, int32_t *tokens, llmq_err *err) {
    llmq_model_info info;
    llmq_model_get_info(model, &info);
    for (size_t i = 0; i < s->n; i++) {
        if (opts->tokens.v[i] >= info.n_vocab)
            return cli_set_err(err, LLMQ_E_ARG, "--tokens: %lld is outside the vocabulary of %lld tokens",
                               (long long)opts->tokens.v[i], (long long)info.n_vocab);
        tokens[i] = (int32_t)opts->tokens.v[i];
    }
    s->tokens = tokens;
    s->n_vocab = info.n_vocab;
    s->logprobs = calloc(s->n, sizeof *s->logprobs);
    s->last = calloc((size_t)info.n_vocab, sizeof *s->last);
    s->greedy = calloc((size_t)opts->greedy + 1, sizeof *s->greedy);
    return s->logprobs && s->last && s->greedy ? LLMQ_OK
                                               : cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the scores");
}

static int print_json(const score *s) {
    json_t *doc = json_object(), *next = json_array(), *last = json_array(), *greedy = json_array();
    for (size_t i = 0; i + 1 < s->n; i++) json_array_append_new(next, cli_json_real(s->logprobs[i]));
    for (int64_t i = 0; i < s->n_vocab; i++) json_array_append_new(last, cli_json_real((double)s->last[i]));
    for (int64_t i = 0; i < s->n_greedy; i++) json_array_append_new(greedy, json_integer(s->greedy[i]));
    json_object_set_new(doc, "next_logprobs", next);
    json_object_set_new(doc, "last_logits", last);
    json_object_set_new(doc, "greedy", greedy);
    return cli_json_print(doc, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
}

static int print_text(const score *s) {
    double sum = 0;
    for (size_t i = 0; i + 1 < s->n; i++) {
        printf("%6zu  %7d  %10.5f\n", i + 1, s->tokens[i + 1], s->logprobs[i]);
        sum += s->logprobs[i];
    }
    if (s->n > 1)
        printf("mean log-probability %.5f, perplexity %.4f\n", sum / (double)(s->n - 1),
               exp(-sum / (double)(s->n - 1)));
    if (s->n_greedy) printf("greedy");
    for (int64_t i = 0; i < s->n_greedy; i++) printf("%c%d", i ? ',' : ' ', s->greedy[i]);
    if (s->n_greedy) putchar('\n');
    return EXIT_OK;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    score_opts opts = {.kv_type = LLMQ_KV_F32};
    common_opts common = {0};
    const opt_set sets[] = {{score_defs, &opts}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc == CLI_GO_ON && !opts.tokens.n) rc = opt_bad(cmd, "tokens are missing: --tokens 1,5,7");
    if (rc != CLI_GO_ON) return rc;
    llmq_err err = {0};
    llmq_model *model = NULL;
    score s = {.n = opts.tokens.n};
    int32_t *tokens = calloc(s.n, sizeof *tokens);
    llmq_status status = tokens ? LLMQ_OK : cli_set_err(&err, LLMQ_E_MEMORY, "out of memory for the tokens");
    if (!status) status = cli_open(path, &common, &model, &err);
    if (!status) status = prepare(model, &opts, &s, tokens, &err);
    if (!status) status = compute(model, &opts, &common, &s, &err);
    rc = status ? cli_fail_err(&err) : opts.json ? print_json(&s) : print_text(&s);
    free(s.greedy);
    free(s.last);
    free(s.logprobs);
    free(tokens);
    free(opts.tokens.v);
    llmq_model_close(model);
    return rc;
}

const cli_command cmd_score = {
    .name = "score",
    .usage = "MODEL --tokens IDS [--greedy N] [--json]",
    .summary = "log-probabilities of given tokens and a greedy continuation",
    .about =
        "Runs the tokens and prints the log-probability of each one after those before it. With --json also the logits "
        "after the last token and the greedy continuation, for comparisons with other engines.",
    .examples = "  llmq score model.gguf --tokens 1,403,407 --greedy 8 --json\n",
    .run = run,
    .gpu = true,
};
