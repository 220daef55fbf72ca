/* llmq bench: speed in the sense of llama-bench. pp: one prompt of n tokens; tg: n tokens one after the other; both
 * after `depth` tokens that are in the cache already. A warm-up run goes before the timed repetitions. */
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
    int kv_type, format;
    const char *plot;
} bench_opts;

static const opt_def bench_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_INTS("--n-prompt", "-p", "N,...", bench_opts, prompt, 0, 1 << 24, "prompt lengths (default 512; 0: none)"),
    OPT_ROW_INTS("--n-gen", "-n", "N,...", bench_opts, gen, 0, 1 << 24,
                 "numbers of generated tokens (default 128; 0: none)"),
    OPT_ROW_INTS("--depth", "-d", "N,...", bench_opts, depth, 0, 1 << 24,
                 "tokens in the cache before each test (default 0)"),
    OPT_ROW_INTS("--batch", NULL, "N,...", bench_opts, batch, 1, 1 << 16, "sequences at once: only 1 in this version"),
    OPT_ROW_INT("--repetitions", "-r", "N", bench_opts, repeats, 1, MAX_REPEATS,
                "timed repetitions of each test (default 5)"),
    OPT_ROW_ENUM("--kv-type", NULL, bench_opts, kv_type, "f16|q8_0|f32", "storage of the KV cache (default f16)"),
    OPT_ROW_FLAG("--md", NULL, bench_opts, format, BENCH_MD, "a Markdown table (the default)"),
    OPT_ROW_FLAG("--json", NULL, bench_opts, format, BENCH_JSON, "a JSON list with llama-bench's field names"),
    OPT_ROW_FLAG("--csv", NULL, bench_opts, format, BENCH_CSV, "comma-separated values"),
    OPT_ROW_TEXT(
        "--plot", NULL, "F.svg", bench_opts, plot,
        "also draw the speeds as an SVG file: curves over prompt length and depth where these take several values"),
    OPT_ROW_LATER("--gpu-layers", "there is no GPU backend yet"),
    OPT_ROW_END,
};

typedef struct bench {
    bench_results out;
    llmq_model *model;
    llmq_session *session;
    int32_t *tokens; /* [longest] arbitrary ids */
    cli_progress progress;
    double units_done, units; /* tokens, all tests */
} bench;

/* ---- measuring */

static llmq_status step(bench *b, const bench_test *t, llmq_err *err) {
    llmq_session_truncate(b->session, t->n_depth);
    if (t->n_prompt) return llmq_session_append(b->session, b->tokens, (size_t)t->n_prompt, err);
    for (int64_t i = 0; i < t->n_gen; i++) {
        llmq_status status = llmq_session_append(b->session, b->tokens + i, 1, err);
        if (status) return status;
        if (cli_interrupted()) return cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted");
    }
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
    llmq_session_truncate(b->session, 0);
    llmq_status status = LLMQ_OK;
    if (t->n_depth) status = llmq_session_append(b->session, b->tokens, (size_t)t->n_depth, err);
    if (status) return status;
    bench_test warm = *t;
    if (warm.n_gen > 4) warm.n_gen = 4;
    status = step(b, &warm, err);
    for (int64_t r = 0; !status && r < b->out.repeats; r++) {
        double start = cli_seconds();
        status = step(b, t, err);
        t->samples[r] = fmax(cli_seconds() - start, 1e-9);
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
    b->out.int8_rate = fmax(b->out.int8_rate, llmq_int8_rate(b->out.threads));
}

static llmq_status plan(bench *b, const bench_opts *o, llmq_err *err) {
    size_t cap = o->depth.n * (o->prompt.n + o->gen.n);
    b->out.tests = calloc(cap ? cap : 1, sizeof *b->out.tests);
    if (!b->out.tests) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the tests");
    for (size_t d = 0; d < o->depth.n; d++)
        for (size_t i = 0; i < o->prompt.n + o->gen.n; i++) {
            bench_test t = {.n_depth = o->depth.v[d]};
            if (i < o->prompt.n)
                t.n_prompt = o->prompt.v[i];
            else
                t.n_gen = o->gen.v[i - o->prompt.n];
            if (!bench_tokens(&t)) continue;
            t.samples = calloc((size_t)b->out.repeats, sizeof *t.samples);
            if (!t.samples) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the samples");
            b->units += (double)(bench_tokens(&t) * b->out.repeats);
            b->out.tests[b->out.n_tests++] = t;
        }
    return LLMQ_OK;
}

static llmq_status open_session(bench *b, const bench_opts *o, llmq_err *err) {
    int64_t longest = 1, depth = 0;
    for (size_t i = 0; i < b->out.n_tests; i++) {
        int64_t n = bench_tokens(&b->out.tests[i]);
        longest = n > longest ? n : longest;
        depth = b->out.tests[i].n_depth > depth ? b->out.tests[i].n_depth : depth;
    }
    int64_t n_tokens = longest > depth ? longest : depth;
    b->tokens = malloc((size_t)n_tokens * sizeof *b->tokens);
    if (!b->tokens) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for %lld tokens", (long long)n_tokens);
    uint32_t state = 12345;
    for (int64_t i = 0; i < n_tokens; i++) {
        state = state * 1664525u + 1013904223u;
        b->tokens[i] = (int32_t)(state % (uint32_t)b->out.info.n_vocab);
    }
    llmq_session_params params;
    llmq_session_params_default(&params);
    params.n_ctx = longest + depth;
    params.n_threads = b->out.threads;
    params.kv_type = (llmq_kv_type)o->kv_type; /* the choices are in the order of the enum */
    llmq_status status = llmq_session_create(b->model, &params, &b->session, err);
    if (!status) b->out.kv_bytes_per_token = (double)llmq_session_kv_bytes(b->session) / (double)params.n_ctx;
    return status;
}

static llmq_status measure_all(bench *b, const bench_opts *o, llmq_err *err) {
    llmq_status status = plan(b, o, err);
    if (!status) status = open_session(b, o, err);
    if (!status) measure_machine(b);
    for (size_t i = 0; !status && i < b->out.n_tests; i++) status = measure(b, &b->out.tests[i], err);
    if (!status) measure_machine(b);
    return status;
}

static void clear(bench *b, bench_opts *o) {
    for (size_t i = 0; i < b->out.n_tests; i++) free(b->out.tests[i].samples);
    free(b->out.tests);
    free(b->tokens);
    llmq_session_destroy(b->session);
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
    for (size_t i = 0; rc == CLI_GO_ON && i < opts.batch.n; i++)
        if (opts.batch.v[i] != 1)
            rc = opt_bad(cmd, "--batch %lld: several sequences at once are not in this version",
                         (long long)opts.batch.v[i]);
    if (rc == CLI_GO_ON && only_zeros(&opts.prompt) && only_zeros(&opts.gen))
        rc = opt_bad(cmd, "-p 0 -n 0 leave nothing to measure");
    if (rc != CLI_GO_ON) goto done;
    b.out.repeats = opts.repeats;
    b.out.threads = common.threads ? (int)common.threads : llmq_cpu_count();
    b.out.kv_name = opts.kv_type == LLMQ_KV_F32 ? "f32" : opts.kv_type == LLMQ_KV_Q8_0 ? "q8_0" : "f16";
    cli_progress_init(&b.progress, "tokens", common.quiet);
    llmq_status status = default_list(&opts.prompt, 512) && default_list(&opts.gen, 128) && default_list(&opts.depth, 0)
                             ? LLMQ_OK
                             : cli_set_err(&err, LLMQ_E_MEMORY, "out of memory");
    if (!status) status = cli_open(path, &common, &b.model, &err);
    if (!status) {
        llmq_model_get_info(b.model, &b.out.info);
        status = measure_all(&b, &opts, &err);
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
        "the other) as llama-bench does: a warm-up, then -r timed repetitions, mean and standard deviation. -p, -n "
        "and --depth take lists. Beside each speed stands the part of the machine's limit that it comes to, "
        "measured in the same run with the same threads: for generation the read bandwidth (the best of plain and "
        "prefetching loops over large and small pages), used by weights and cache; for prompts the rate of 8-bit "
        "multiply-adds, used by the layers' matrices.",
    .examples = "  llmq bench model.gguf\n"
                "  llmq bench model.gguf -p 128,512 -n 64 --depth 0,2048 --threads 2 --json\n"
                "  llmq bench model.gguf -p 32,128,512,2048 -n 0 --plot prompts.svg\n",
    .run = run,
};
