/* llmq bench: speed in the sense of llama-bench. pp: one prompt of n tokens; tg: n tokens one after the other; both
 * after `depth` tokens that are in the cache already. A warm-up run goes before the timed repetitions. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/json.h"
#include "cli/plot.h"

enum { MAX_REPEATS = 1000 };

typedef struct bench_opts {
    cli_ints prompt, gen, depth, batch;
    int64_t repeats;
    int kv_type, format;
    const char *plot;
} bench_opts;

enum { FORMAT_MD, FORMAT_JSON, FORMAT_CSV };

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
    OPT_ROW_FLAG("--md", NULL, bench_opts, format, FORMAT_MD, "a Markdown table (the default)"),
    OPT_ROW_FLAG("--json", NULL, bench_opts, format, FORMAT_JSON, "a JSON list with llama-bench's field names"),
    OPT_ROW_FLAG("--csv", NULL, bench_opts, format, FORMAT_CSV, "comma-separated values"),
    OPT_ROW_TEXT("--plot", NULL, "F.svg", bench_opts, plot, "also draw the speeds as an SVG file"),
    OPT_ROW_LATER("--gpu-layers", "there is no GPU backend yet"),
    OPT_ROW_END,
};

typedef struct bench_test {
    int64_t n_prompt, n_gen, n_depth;
    double *samples; /* [repeats] seconds */
    double avg_ns, stddev_ns, avg_ts, stddev_ts;
    char when[32];
} bench_test;

typedef struct bench {
    llmq_model *model;
    llmq_model_info info;
    llmq_session *session;
    int32_t *tokens; /* [longest] arbitrary ids */
    int64_t repeats;
    bench_test *tests;
    size_t n_tests;
    int threads;
    const char *kv_name;
    double bandwidth; /* bytes/s read by the same threads over as many bytes as a token reads */
    cli_progress progress;
    double units_done, units; /* tokens, all tests */
} bench;

/* ---- measuring */

static int64_t test_tokens(const bench_test *t) {
    return t->n_prompt + t->n_gen;
}

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
    snprintf(what, sizeof what, "%s%lld", t->n_prompt ? "pp" : "tg", (long long)test_tokens(t));
    b->units_done += tokens;
    if (cli_progress_update(&b->progress, b->units_done, b->units, what, -1)) return LLMQ_OK;
    return cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted");
}

static void summarize(bench_test *t, int64_t repeats) {
    double n = (double)repeats, tokens = (double)test_tokens(t), ns = 0, ts = 0, ns2 = 0, ts2 = 0;
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
    for (int64_t r = 0; !status && r < b->repeats; r++) {
        double start = cli_seconds();
        status = step(b, t, err);
        t->samples[r] = fmax(cli_seconds() - start, 1e-9);
        if (!status) status = progress(b, t, (double)test_tokens(t), err);
    }
    if (!status) summarize(t, b->repeats);
    return status;
}

/* The yardstick reads as many bytes as a token does, so that caches help both alike. */
static double measure_bandwidth(const bench *b) {
    double bytes = (double)b->info.bytes_per_token;
    if (bytes < 16e6) bytes = 16e6;
    if (bytes > 1e9) bytes = 1e9;
    return llmq_read_bandwidth(b->threads, (size_t)bytes);
}

static llmq_status plan(bench *b, const bench_opts *o, llmq_err *err) {
    size_t cap = o->depth.n * (o->prompt.n + o->gen.n);
    b->tests = calloc(cap ? cap : 1, sizeof *b->tests);
    if (!b->tests) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the tests");
    for (size_t d = 0; d < o->depth.n; d++)
        for (size_t i = 0; i < o->prompt.n + o->gen.n; i++) {
            bench_test t = {.n_depth = o->depth.v[d]};
            if (i < o->prompt.n)
                t.n_prompt = o->prompt.v[i];
            else
                t.n_gen = o->gen.v[i - o->prompt.n];
            if (!test_tokens(&t)) continue;
            t.samples = calloc((size_t)b->repeats, sizeof *t.samples);
            if (!t.samples) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the samples");
            b->units += (double)(test_tokens(&t) * b->repeats);
            b->tests[b->n_tests++] = t;
        }
    return LLMQ_OK;
}

static llmq_status open_session(bench *b, const bench_opts *o, llmq_err *err) {
    int64_t longest = 1, depth = 0;
    for (size_t i = 0; i < b->n_tests; i++) {
        int64_t n = test_tokens(&b->tests[i]);
        longest = n > longest ? n : longest;
        depth = b->tests[i].n_depth > depth ? b->tests[i].n_depth : depth;
    }
    int64_t n_tokens = longest > depth ? longest : depth;
    b->tokens = malloc((size_t)n_tokens * sizeof *b->tokens);
    if (!b->tokens) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for %lld tokens", (long long)n_tokens);
    uint32_t state = 12345;
    for (int64_t i = 0; i < n_tokens; i++) {
        state = state * 1664525u + 1013904223u;
        b->tokens[i] = (int32_t)(state % (uint32_t)b->info.n_vocab);
    }
    llmq_session_params params;
    llmq_session_params_default(&params);
    params.n_ctx = longest + depth;
    params.n_threads = b->threads;
    params.kv_type = (llmq_kv_type)o->kv_type; /* the choices are in the order of the enum */
    return llmq_session_create(b->model, &params, &b->session, err);
}

static llmq_status measure_all(bench *b, const bench_opts *o, llmq_err *err) {
    llmq_status status = plan(b, o, err);
    if (!status) status = open_session(b, o, err);
    for (size_t i = 0; !status && i < b->n_tests; i++) status = measure(b, &b->tests[i], err);
    if (!status) b->bandwidth = measure_bandwidth(b);
    return status;
}

/* ---- printing */

static void model_type(const bench *b, char *buf, size_t cap) {
    char size[32];
    double p = (double)b->info.n_params;
    if (p >= 1e9)
        snprintf(size, sizeof size, "%.2fB", p / 1e9);
    else if (p >= 1e6)
        snprintf(size, sizeof size, "%.0fM", p / 1e6);
    else
        snprintf(size, sizeof size, "%.0fK", p / 1e3);
    snprintf(buf, cap, "%s %s %s", b->info.arch, size, llmq_type_name(b->info.main_type));
}

static void test_name(const bench_test *t, char *buf, size_t cap) {
    int n = snprintf(buf, cap, "%s%lld", t->n_prompt ? "pp" : "tg", (long long)test_tokens(t));
    if (t->n_depth) snprintf(buf + n, cap - (size_t)n, " @ d%lld", (long long)t->n_depth);
}

/* Share of the measured read bandwidth that generation used; prompts read a weight for many tokens, so it says nothing
 * there. */
static double bandwidth_share(const bench *b, const bench_test *t) {
    if (!t->n_gen || b->bandwidth <= 0) return NAN;
    return t->avg_ts * (double)b->info.bytes_per_token / b->bandwidth;
}

static int print_md(const bench *b) {
    char type[96], name[48], bytes[32];
    model_type(b, type, sizeof type);
    printf("| model | size | params | backend | threads | kv | test | t/s | of read bandwidth |\n");
    printf("|---|--:|--:|---|--:|---|--:|--:|--:|\n");
    for (size_t i = 0; i < b->n_tests; i++) {
        const bench_test *t = &b->tests[i];
        double share = bandwidth_share(b, t);
        test_name(t, name, sizeof name);
        printf("| %s | %s | %.2f M | cpu %s | %d | %s | %s | %.2f ± %.2f | ", type,
               cli_bytes((double)b->info.weight_bytes, bytes), (double)b->info.n_params / 1e6, llmq_cpu_isa(),
               b->threads, b->kv_name, name, t->avg_ts, t->stddev_ts);
        if (isfinite(share))
            printf("%.0f %% |\n", 100 * share);
        else
            printf("|\n");
    }
    char per_token[32];
    printf("\n%s of weights are read for each generated token; read bandwidth measured in this run: %.2f GB/s.\n",
           cli_bytes((double)b->info.bytes_per_token, per_token), b->bandwidth / 1e9);
    return EXIT_OK;
}

static json_t *row_json(const bench *b, const bench_test *t) {
    char type[96];
    model_type(b, type, sizeof type);
    json_t *row = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:i, s:s, s:s, s:I, s:I, s:I, s:s}", "build_version", llmq_version(),
        "backends", "CPU", "cpu_isa", llmq_cpu_isa(), "model_filename", b->info.path, "model_type", type, "model_arch",
        b->info.arch, "model_size", (json_int_t)b->info.weight_bytes, "model_n_params", (json_int_t)b->info.n_params,
        "n_threads", b->threads, "type_k", b->kv_name, "type_v", b->kv_name, "n_prompt", (json_int_t)t->n_prompt,
        "n_gen", (json_int_t)t->n_gen, "n_depth", (json_int_t)t->n_depth, "test_time", t->when);
    if (!row) return NULL;
    json_t *ns = json_array(), *ts = json_array();
    for (int64_t i = 0; i < b->repeats; i++) {
        json_array_append_new(ns, json_integer((json_int_t)(t->samples[i] * 1e9)));
        json_array_append_new(ts, cli_json_real((double)test_tokens(t) / t->samples[i]));
    }
    json_object_set_new(row, "avg_ns", json_integer((json_int_t)t->avg_ns));
    json_object_set_new(row, "stddev_ns", json_integer((json_int_t)t->stddev_ns));
    json_object_set_new(row, "avg_ts", cli_json_real(t->avg_ts));
    json_object_set_new(row, "stddev_ts", cli_json_real(t->stddev_ts));
    json_object_set_new(row, "samples_ns", ns);
    json_object_set_new(row, "samples_ts", ts);
    json_object_set_new(row, "bytes_per_token", json_integer(b->info.bytes_per_token));
    json_object_set_new(row, "read_bandwidth", cli_json_real(b->bandwidth));
    json_object_set_new(row, "bandwidth_share", cli_json_real(bandwidth_share(b, t)));
    return row;
}

static int print_json(const bench *b) {
    json_t *list = json_array();
    for (size_t i = 0; i < b->n_tests; i++) json_array_append_new(list, row_json(b, &b->tests[i]));
    return cli_json_print(list, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
}

/* A CSV field: quotes doubled. */
static void put_field(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"') putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static int print_csv(const bench *b) {
    char type[96];
    model_type(b, type, sizeof type);
    printf(
        "model_filename,model_type,model_size,model_n_params,n_threads,type_k,type_v,n_prompt,n_gen,n_depth,test_time,"
        "avg_ns,stddev_ns,avg_ts,stddev_ts,bytes_per_token,read_bandwidth\n");
    for (size_t i = 0; i < b->n_tests; i++) {
        const bench_test *t = &b->tests[i];
        put_field(b->info.path);
        putchar(',');
        put_field(type);
        printf(",%lld,%lld,%d,%s,%s,%lld,%lld,%lld,%s,%.0f,%.0f,%.6f,%.6f,%lld,%.0f\n", (long long)b->info.weight_bytes,
               (long long)b->info.n_params, b->threads, b->kv_name, b->kv_name, (long long)t->n_prompt,
               (long long)t->n_gen, (long long)t->n_depth, t->when, t->avg_ns, t->stddev_ns, t->avg_ts, t->stddev_ts,
               (long long)b->info.bytes_per_token, b->bandwidth);
    }
    return EXIT_OK;
}

static llmq_status draw(const bench *b, const char *path, llmq_err *err) {
    plot_bar *bars = calloc(b->n_tests ? b->n_tests : 1, sizeof *bars);
    if (!bars) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the plot");
    for (size_t i = 0; i < b->n_tests; i++) {
        test_name(&b->tests[i], bars[i].label, sizeof bars[i].label);
        bars[i].value = b->tests[i].avg_ts;
        bars[i].spread = b->tests[i].stddev_ts;
    }
    char type[96], title[160];
    model_type(b, type, sizeof type);
    snprintf(title, sizeof title, "%s, %d threads, tokens per second", type, b->threads);
    llmq_status status = plot_bars(path, title, "t/s", bars, b->n_tests, err);
    free(bars);
    return status;
}

static void clear(bench *b, bench_opts *o) {
    for (size_t i = 0; i < b->n_tests; i++) free(b->tests[i].samples);
    free(b->tests);
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
    b.repeats = opts.repeats;
    b.threads = common.threads ? (int)common.threads : llmq_cpu_count();
    b.kv_name = opts.kv_type == LLMQ_KV_F32 ? "f32" : opts.kv_type == LLMQ_KV_Q8_0 ? "q8_0" : "f16";
    cli_progress_init(&b.progress, "tokens", common.quiet);
    llmq_status status = default_list(&opts.prompt, 512) && default_list(&opts.gen, 128) && default_list(&opts.depth, 0)
                             ? LLMQ_OK
                             : cli_set_err(&err, LLMQ_E_MEMORY, "out of memory");
    if (!status) status = cli_open(path, &common, &b.model, &err);
    if (!status) {
        llmq_model_get_info(b.model, &b.info);
        status = measure_all(&b, &opts, &err);
        cli_progress_finish(&b.progress);
    }
    if (!status)
        rc = opts.format == FORMAT_JSON ? print_json(&b) : opts.format == FORMAT_CSV ? print_csv(&b) : print_md(&b);
    if (!status && opts.plot) status = draw(&b, opts.plot, &err);
    if (status) rc = cli_fail_err(&err);
done:
    clear(&b, &opts);
    return rc;
}

const cli_command cmd_bench = {
    .name = "bench",
    .usage = "MODEL [-p 512] [-n 128] [-r 5] [options]",
    .summary = "speed of prompts and of generation",
    .about = "Measures prompt processing (pp512: one prompt of 512 tokens) and generation (tg128: 128 tokens one after "
             "the other) "
             "as llama-bench does: a warm-up, then -r timed repetitions, mean and standard deviation. -p, -n and "
             "--depth take "
             "lists. For generation it also says what part of the memory's read bandwidth, measured in the same run, "
             "the weights used.",
    .examples = "  llmq bench model.gguf\n"
                "  llmq bench model.gguf -p 128,512 -n 64 --depth 0,2048 --threads 2 --json\n",
    .run = run,
};
