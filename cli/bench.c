/* llmq bench: speed in the sense of llama-bench. pp: one prompt of n tokens; tg: n tokens one after the other, in one
 * sequence or in several at once; both after `depth` tokens that are in the cache already. With a text, tg goes on with
 * it by greedy sampling, with and without speculation. A warm-up run goes before the timed repetitions. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"

enum { MAX_REPEATS = 1000 };

typedef struct bench_opts {
    cli_ints prompt, gen, depth, batch;
    int64_t repeats;
    int kv_type, format, lookup;
    const char *plot, *file, *draft;
} bench_opts;

static const opt_def bench_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_INTS("--n-prompt", "-p", "N,...", bench_opts, prompt, 0, 1 << 24, "prompt lengths (default 512; 0: none)"),
    OPT_ROW_INTS("--n-gen", "-n", "N,...", bench_opts, gen, 0, 1 << 24,
                 "numbers of generated tokens (default 128; 0: none)"),
    OPT_ROW_INTS("--depth", "-d", "N,...", bench_opts, depth, 0, 1 << 24,
                 "tokens in the cache before each test (default 0)"),
    OPT_ROW_INTS("--batch", NULL, "N,...", bench_opts, batch, 1, LLMQ_BATCH_MAX,
                 "sequences that generate at once (default 1)"),
    OPT_ROW_INT("--repetitions", "-r", "N", bench_opts, repeats, 1, MAX_REPEATS,
                "timed repetitions of each test (default 5)"),
    OPT_ROW_ENUM("--kv-type", NULL, bench_opts, kv_type, "f16|q8_0|f32", "storage of the KV cache (default f16)"),
    OPT_ROW_FLAG("--md", NULL, bench_opts, format, BENCH_MD, "a Markdown table (the default)"),
    OPT_ROW_FLAG("--json", NULL, bench_opts, format, BENCH_JSON, "a JSON list with llama-bench's field names"),
    OPT_ROW_FLAG("--csv", NULL, bench_opts, format, BENCH_CSV, "comma-separated values"),
    OPT_ROW_TEXT("--plot", NULL, "F.svg", bench_opts, plot,
                 "also draw the speeds as an SVG file: curves over prompt length, depth and sequences where these take "
                 "several values"),
    OPT_ROW_TEXT(
        "--file", "-f", "TEXT", bench_opts, file,
        "a text that -n continues by greedy sampling (depth: its tokens; its last ones where the text is longer than "
        "the model's context)"),
    OPT_ROW_FLAG("--lookup", NULL, bench_opts, lookup, 1,
                 "with -f: once more with guesses from the text itself, and compare the tokens"),
    OPT_ROW_TEXT("--draft", NULL, "MODEL", bench_opts, draft,
                 "with -f: once more with guesses by a small model of the same vocabulary, and compare the tokens"),
    OPT_ROW_END,
};

typedef struct bench {
    bench_results out;
    llmq_model *model, *draft;
    llmq_batch *batch;
    llmq_session **sessions; /* [most sequences] of the batch */
    int32_t *tokens;         /* [n_tokens] arbitrary ids */
    int64_t n_tokens;
    int32_t *row;  /* [most sequences] a token for each */
    int32_t *text; /* [n_text] ids of the text to go on with */
    size_t n_text;
    int32_t *plain, *generated; /* [longest n_gen] what follows the text: without guesses, and in the test at work */
    int64_t n_plain;            /* of plain that are known */
    cli_progress progress;
    double units_done, units; /* tokens, all tests */
} bench;

/* ---- measuring */

static llmq_status check_interrupt(llmq_err *err) {
    return cli_interrupted() ? cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted") : LLMQ_OK;
}

/* Tokens t of all sequences: they are arbitrary, and not the same. */
static llmq_status step_batch(bench *b, const bench_test *t, int64_t i, llmq_err *err) {
    for (int64_t s = 0; s < t->n_batch; s++) b->row[s] = b->tokens[(i + 7 * s) % b->n_tokens];
    return llmq_batch_append(b->batch, b->sessions, b->row, (size_t)t->n_batch, err);
}

/* Continues the text; the first token costs no pass of its own, and the last one is not run. */
static llmq_status step_text(bench *b, const bench_test *t, llmq_err *err) {
    for (int64_t i = 0; i <= t->n_gen; i++) {
        llmq_status status = llmq_session_next(b->sessions[0], &b->generated[i], err);
        if (!status) status = check_interrupt(err);
        if (status) return status;
    }
    return LLMQ_OK;
}

static llmq_status step(bench *b, const bench_test *t, llmq_err *err) {
    if (t->text) return step_text(b, t, err);
    if (t->n_prompt) return llmq_session_append(b->sessions[0], b->tokens, (size_t)t->n_prompt, err);
    for (int64_t i = 0; i < t->n_gen; i++) {
        llmq_status status = step_batch(b, t, i, err);
        if (!status) status = check_interrupt(err);
        if (status) return status;
    }
    return LLMQ_OK;
}

/* The caches as a repetition finds them. Sequences after the first take their tokens from it. */
static llmq_status rewind_caches(bench *b, const bench_test *t, llmq_err *err) {
    if (t->text) return llmq_session_sync(b->sessions[0], b->text, b->n_text, err);
    for (int64_t s = 0; s < t->n_batch; s++) {
        llmq_session *session = b->sessions[s];
        llmq_session_truncate(session, t->n_depth);
        if (llmq_session_n_past(session) == t->n_depth) continue;
        llmq_status status = llmq_session_sync(session, b->tokens, (size_t)t->n_depth, err);
        if (status) return status;
    }
    return LLMQ_OK;
}

static llmq_status set_guessing(bench *b, const bench_test *t, llmq_err *err) {
    if (!t->text) return LLMQ_OK;
    llmq_speculation_params params = {.lookup = t->guess == BY_LOOKUP || t->guess == BY_BOTH,
                                      .draft = t->guess == BY_DRAFT || t->guess == BY_BOTH ? b->draft : NULL};
    return llmq_session_set_speculation(b->sessions[0], &params, err);
}

/* Guesses must not change a token. */
static llmq_status compare_tokens(bench *b, const bench_test *t, llmq_err *err) {
    if (!t->text) return LLMQ_OK;
    for (int64_t i = 0; t->guess && i <= t->n_gen && i < b->n_plain; i++)
        if (b->generated[i] != b->plain[i])
            return cli_set_err(
                err, LLMQ_E_NUMERIC,
                "token %lld is %d with guesses and %d without: this is a fault of llmq, please report it", (long long)i,
                (int)b->generated[i], (int)b->plain[i]);
    if (t->guess || t->n_gen < b->n_plain) return LLMQ_OK;
    memcpy(b->plain, b->generated, (size_t)(t->n_gen + 1) * sizeof *b->plain);
    b->n_plain = t->n_gen + 1;
    return LLMQ_OK;
}

static llmq_status progress(bench *b, const bench_test *t, double tokens, llmq_err *err) {
    char what[48];
    snprintf(what, sizeof what, "%s%lld", t->n_prompt ? "pp" : "tg", (long long)bench_tokens(t));
    b->units_done += tokens;
    if (cli_progress_update(&b->progress, b->units_done, b->units, what, -1)) return LLMQ_OK;
    return cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted");
}

static void summarize(bench_test *t, int64_t repeats) {
    double n = (double)repeats, tokens = (double)bench_tokens(t), ns = 0, ts = 0, ns2 = 0, ts2 = 0;
    for (int64_t i = 0; i < repeats; i++) {
        ns += t->samples[i] * 1e9 / n;
        ts += tokens / t->samples[i] / n;
    }
    for (int64_t i = 0; i < repeats; i++) {
        double dn = t->samples[i] * 1e9 - ns, dt = tokens / t->samples[i] - ts;
        ns2 += dn * dn;
        ts2 += dt * dt;
    }
    t->avg_ns = ns;
    t->avg_ts = ts;
    t->stddev_ns = repeats > 1 ? sqrt(ns2 / (n - 1)) : 0;
    t->stddev_ts = repeats > 1 ? sqrt(ts2 / (n - 1)) : 0;
}

static llmq_status measure(bench *b, bench_test *t, llmq_err *err) {
    time_t now = time(NULL);
    struct tm utc;
    strftime(t->when, sizeof t->when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    for (int64_t i = 0; i < t->n_batch; i++) llmq_session_truncate(b->sessions[i], 0);
    llmq_status status = set_guessing(b, t, err);
    bench_test warm = *t;
    if (warm.n_gen > 4) warm.n_gen = 4;
    if (!status) status = rewind_caches(b, t, err);
    if (!status) status = step(b, &warm, err);
    for (int64_t r = 0; !status && r < b->out.repeats; r++) {
        llmq_speculation_stats before, after;
        status = rewind_caches(b, t, err);
        if (status) break;
        llmq_session_get_speculation_stats(b->sessions[0], &before);
        double start = cli_seconds();
        status = step(b, t, err);
        t->samples[r] = fmax(cli_seconds() - start, 1e-9);
        llmq_session_get_speculation_stats(b->sessions[0], &after);
        t->guesses = (llmq_speculation_stats){t->n_gen, after.passes - before.passes, after.guessed - before.guessed,
                                              after.accepted - before.accepted};
        if (!status) status = compare_tokens(b, t, err);
        if (!status) status = progress(b, t, (double)bench_tokens(t), err);
    }
    if (!status) summarize(t, b->out.repeats);
    return status;
}

/* The machine's limits, measured before and after the tests: the better of the two counts. The yardstick reads as many
 * bytes as a token does, so that caches help both alike. */
static void measure_machine(bench *b) {
    double bytes = fmin(fmax((double)b->out.info.bytes_per_token, 16e6), 1e9);
    b->out.bandwidth = fmax(b->out.bandwidth, llmq_read_bandwidth(b->out.threads, (size_t)bytes));
    b->out.product_rate = fmax(b->out.product_rate, llmq_product_rate(b->out.threads));
}

static llmq_status add_test(bench *b, bench_test t, llmq_err *err) {
    if (!bench_tokens(&t)) return LLMQ_OK;
    t.samples = calloc((size_t)b->out.repeats, sizeof *t.samples);
    if (!t.samples) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the samples");
    b->units += (double)(bench_tokens(&t) * b->out.repeats);
    b->out.tests[b->out.n_tests++] = t;
    return LLMQ_OK;
}

/* Generation by lists of sequences and lengths, or after the text: plain first, to compare with. */
static llmq_status plan_generation(bench *b, const bench_opts *o, int64_t depth, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    for (size_t k = 0; !b->text && k < o->batch.n; k++)
        for (size_t i = 0; !status && i < o->gen.n; i++)
            status = add_test(b, (bench_test){.n_gen = o->gen.v[i], .n_depth = depth, .n_batch = o->batch.v[k]}, err);
    for (size_t i = 0; b->text && i < o->gen.n; i++) {
        bench_test t = {.n_gen = o->gen.v[i], .n_depth = (int64_t)b->n_text, .n_batch = 1, .text = true};
        for (int guess = BY_NOTHING; !status && guess <= BY_BOTH; guess++) {
            bool lookup = guess == BY_LOOKUP || guess == BY_BOTH, draft = guess == BY_DRAFT || guess == BY_BOTH;
            t.guess = (bench_guess)guess;
            if ((o->lookup || !lookup) && (b->draft || !draft)) status = add_test(b, t, err);
        }
    }
    return status;
}

static llmq_status plan(bench *b, const bench_opts *o, llmq_err *err) {
    size_t cap = o->depth.n * (o->prompt.n + o->gen.n * (o->batch.n + BY_BOTH + 1));
    b->out.tests = calloc(cap ? cap : 1, sizeof *b->out.tests);
    if (!b->out.tests) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the tests");
    llmq_status status = LLMQ_OK;
    for (size_t d = 0; !status && d < o->depth.n; d++) {
        for (size_t i = 0; !status && i < o->prompt.n; i++)
            status = add_test(b, (bench_test){.n_prompt = o->prompt.v[i], .n_depth = o->depth.v[d], .n_batch = 1}, err);
        if (!status && (d == 0 || !b->text)) status = plan_generation(b, o, o->depth.v[d], err);
    }
    return status;
}

/* The text's tokens; the last ones if the model's context has no room for all and what follows. */
static llmq_status read_text(bench *b, const bench_opts *o, const common_opts *common, llmq_err *err) {
    if (!o->file) return LLMQ_OK;
    char *text = NULL;
    size_t len = 0, n = 0;
    int64_t longest = 0;
    int32_t *ids = NULL;
    llmq_status status = cli_read_file(o->file, &text, &len, err);
    if (!status) status = llmq_encode(b->model, text, len, LLMQ_TOK_BOS, &ids, &n, err);
    free(text);
    if (status) return status;
    for (size_t i = 0; i < o->gen.n; i++) longest = o->gen.v[i] > longest ? o->gen.v[i] : longest;
    int64_t room = b->out.info.n_ctx_train - longest - 1;
    if (n > 0 && (room < 1 || (int64_t)n > room)) {
        size_t keep = room < 1 ? 1 : (size_t)room;
        cli_note("%s: the last %zu of its %zu tokens are used", o->file, keep, n);
        memmove(ids, ids + (n - keep), keep * sizeof *ids);
        n = keep;
    }
    b->text = ids;
    b->n_text = n;
    if (!n) return cli_set_err(err, LLMQ_E_ARG, "%s: it has no tokens to go on from", o->file);
    b->plain = malloc((size_t)(longest + 1) * sizeof *b->plain);
    b->generated = malloc((size_t)(longest + 1) * sizeof *b->generated);
    if (!b->plain || !b->generated) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the generated tokens");
    return o->draft ? cli_open(o->draft, common, &b->draft, err) : LLMQ_OK;
}

static llmq_status fill_tokens(bench *b, int64_t n, llmq_err *err) {
    b->n_tokens = n;
    b->tokens = malloc((size_t)n * sizeof *b->tokens);
    if (!b->tokens) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for %lld tokens", (long long)n);
    uint32_t state = 12345;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        b->tokens[i] = (int32_t)(state % (uint32_t)b->out.info.n_vocab);
    }
    return LLMQ_OK;
}

static llmq_status open_sessions(bench *b, const bench_opts *o, llmq_err *err) {
    int64_t longest = 1, depth = 0, most = 1, ctx = 1;
    for (size_t i = 0; i < b->out.n_tests; i++) {
        const bench_test *t = &b->out.tests[i];
        int64_t n = t->n_prompt + t->n_gen, held = t->n_depth + n + t->text;
        longest = n > longest ? n : longest;
        depth = t->n_depth > depth ? t->n_depth : depth;
        most = t->n_batch > most ? t->n_batch : most;
        ctx = held > ctx ? held : ctx;
    }
    llmq_status status = fill_tokens(b, longest > depth ? longest : depth, err);
    if (status) return status;
    b->sessions = malloc((size_t)most * sizeof *b->sessions);
    b->row = malloc((size_t)most * sizeof *b->row);
    if (!b->sessions || !b->row)
        return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for %lld sequences", (long long)most);
    llmq_session_params params;
    llmq_session_params_default(&params);
    params.n_ctx = ctx;
    params.n_threads = b->out.threads;
    params.kv_type = (llmq_kv_type)o->kv_type; /* the choices are in the order of the enum */
    status = llmq_batch_create(b->model, most, &params, &b->batch, err);
    if (status) return status;
    for (int64_t i = 0; i < most; i++) b->sessions[i] = llmq_batch_session(b->batch, i);
    llmq_session_set_sampler(b->sessions[0], &(llmq_sampler_params){.temperature = 0, .repeat_penalty = 1});
    b->out.kv_bytes_per_token = (double)llmq_session_kv_bytes(b->sessions[0]) / (double)params.n_ctx;
    return LLMQ_OK;
}

static llmq_status measure_all(bench *b, const bench_opts *o, const common_opts *common, llmq_err *err) {
    llmq_status status = read_text(b, o, common, err);
    if (!status) status = plan(b, o, err);
    if (!status) status = open_sessions(b, o, err);
    if (!status) measure_machine(b);
    for (size_t i = 0; !status && i < b->out.n_tests; i++) status = measure(b, &b->out.tests[i], err);
    if (!status) measure_machine(b);
    return status;
}

static void clear(bench *b, bench_opts *o) {
    for (size_t i = 0; i < b->out.n_tests; i++) free(b->out.tests[i].samples);
    free(b->out.tests);
    free(b->tokens);
    free(b->sessions);
    free(b->row);
    free(b->plain);
    free(b->generated);
    llmq_free(b->text);
    llmq_batch_destroy(b->batch);
    llmq_model_close(b->draft);
    llmq_model_close(b->model);
    free(o->prompt.v);
    free(o->gen.v);
    free(o->depth.v);
    free(o->batch.v);
}

/* One value where the option was not given. */
static bool default_list(cli_ints *list, int64_t value) {
    if (list->n) return true;
    list->v = malloc(sizeof *list->v);
    if (!list->v) return false;
    list->v[0] = value;
    list->n = 1;
    return true;
}

static bool only_zeros(const cli_ints *list) {
    for (size_t i = 0; i < list->n; i++)
        if (list->v[i]) return false;
    return list->n > 0;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    bench_opts opts = {.repeats = 5};
    common_opts common = {0};
    const opt_set sets[] = {{bench_defs, &opts}, {common_defs, &common}};
    const char *path;
    bench b = {0};
    llmq_err err = {0};
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc == CLI_GO_ON && (opts.lookup || opts.draft) && !opts.file)
        rc = opt_bad(cmd, "--lookup and --draft need a text to go on with: -f TEXT");
    if (rc == CLI_GO_ON && opts.file && (opts.batch.n || opts.depth.n))
        rc = opt_bad(cmd, "-f TEXT is one sequence that goes on with the text: leave out --batch and --depth");
    if (rc == CLI_GO_ON && (opts.lookup || opts.draft) && only_zeros(&opts.gen))
        rc = opt_bad(cmd, "--lookup and --draft guess what -n generates: -n 0 leaves nothing to guess");
    if (rc == CLI_GO_ON && (opts.prompt.n ? only_zeros(&opts.prompt) : opts.file != NULL) && only_zeros(&opts.gen))
        rc = opt_bad(cmd, "-p 0 -n 0 leave nothing to measure");
    if (rc != CLI_GO_ON) goto done;
    b.out.repeats = opts.repeats;
    b.out.threads = common.threads ? (int)common.threads : llmq_cpu_count();
    b.out.kv_name = opts.kv_type == LLMQ_KV_F32 ? "f32" : opts.kv_type == LLMQ_KV_Q8_0 ? "q8_0" : "f16";
    cli_progress_init(&b.progress, "tokens", common.quiet);
    bool listed = default_list(&opts.prompt, opts.file ? 0 : 512) && default_list(&opts.gen, 128) &&
                  default_list(&opts.depth, 0) && default_list(&opts.batch, 1);
    llmq_status status = listed ? LLMQ_OK : cli_set_err(&err, LLMQ_E_MEMORY, "out of memory");
    if (!status) status = cli_open(path, &common, &b.model, &err);
    if (!status) {
        llmq_model_get_info(b.model, &b.out.info);
        status = measure_all(&b, &opts, &common, &err);
        cli_progress_finish(&b.progress);
    }
    if (!status) rc = bench_print(&b.out, opts.format);
    if (!status && opts.plot) status = bench_draw(&b.out, opts.plot, &err);
    if (status) rc = cli_fail_err(&err);
done:
    clear(&b, &opts);
    return rc;
}

const cli_command cmd_bench = {
    .name = "bench",
    .usage = "MODEL [-p 512] [-n 128] [-r 5] [options]",
    .summary = "speed of prompts and of generation",
    .about =
        "Measures prompt processing (pp512: one prompt of 512 tokens) and generation (tg128: 128 tokens one after "
        "the other) as llama-bench does: a warm-up, then -r timed repetitions, mean and standard deviation. -p, -n, "
        "--depth and --batch take lists. With --batch (tg128 x8) one pass over the weights gives each of several "
        "sequences a token, and speeds count all of them. With -f generation goes on with a text, and --lookup and "
        "--draft measure it once more with guessed tokens; that these change no token is checked. The time that the text "
        "itself takes, as a prompt of either model, is not counted.\n"
        "Beside each speed stands the part of the machine's limit that it comes to, measured in the same run with the "
        "same threads: for generation the read bandwidth (the best of plain and prefetching loops over large and small "
        "pages), used by weights and cache; for prompts the rate of 8-bit multiply-adds, used by the layers' matrices.",
    .examples = "  llmq bench model.gguf\n"
                "  llmq bench model.gguf -p 128,512 -n 64 --depth 0,2048 --batch 1,8 --threads 2 --json\n"
                "  llmq bench model.gguf -p 32,128,512,2048 -n 0 --plot prompts.svg\n"
                "  llmq bench model.gguf -f program.c -n 256 --lookup\n",
    .run = run,
    .gpu = true,
};
