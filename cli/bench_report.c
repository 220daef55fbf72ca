/* The results of llmq bench as a table, JSON, CSV and a drawing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/json.h"
#include "cli/plot.h"

enum { PREFILL_BATCH = 512 }; /* a session's default: tokens of a prompt pass */

int64_t bench_tokens(const bench_test *t) {
    return t->n_prompt + t->n_gen * t->n_batch;
}

static void model_type(const bench_results *b, char *buf, size_t cap) {
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
    static const char *const guess[] = {"", " lookup", " draft", " lookup, draft"};
    char batch[32] = "", depth[32] = "";
    if (t->n_batch > 1) snprintf(batch, sizeof batch, " x%lld", (long long)t->n_batch);
    if (t->n_depth) snprintf(depth, sizeof depth, " @ d%lld", (long long)t->n_depth);
    snprintf(buf, cap, "%s%lld%s%s%s", t->n_prompt ? "pp" : "tg", (long long)(t->n_prompt ? t->n_prompt : t->n_gen),
             batch, depth, guess[t->guess]);
}

/* ---- how near the machine's limits a test came */

/* Bytes of weights and of the caches that are read for one token of each sequence, halfway through the test. */
static double bytes_per_pass(const bench_results *b, const bench_test *t) {
    double cached = (double)t->n_depth + (double)t->n_gen / 2;
    return (double)b->info.bytes_per_token + cached * b->kv_bytes_per_token * (double)t->n_batch;
}

/* Share of the measured read bandwidth that generation used; a prompt reads a weight for many tokens, so it says
 * nothing there, and nor does a pass with guesses. */
static double bandwidth_share(const bench_results *b, const bench_test *t) {
    if (!t->n_gen || t->guess || b->bandwidth <= 0 || b->info.device) return NAN;
    return t->avg_ts / (double)t->n_batch * bytes_per_pass(b, t) / b->bandwidth;
}

/* By the instruction whose rate was measured: NF4's and FP4's levels are multiplied otherwise. */
static bool is_measured(const bench_results *b) {
    llmq_type type = b->info.main_type;
    return type != LLMQ_TYPE_F32 && type != LLMQ_TYPE_F16 && type != LLMQ_TYPE_BF16 && type != LLMQ_TYPE_NF4 &&
           type != LLMQ_TYPE_FP4;
}

/* Share of the measured rate of multiply-adds that a prompt's matrices inside the layers used; attention and the head,
 * which only the last token needs, come on top. */
static double product_share(const bench_results *b, const bench_test *t) {
    if (!t->n_prompt || b->product_rate <= 0 || !is_measured(b) || b->info.device) return NAN;
    return t->avg_ts * (double)b->info.matrix_params / b->product_rate;
}

/* ---- text */

static void print_limits(const bench_results *b) {
    char per_token[32];
    if (b->info.device) return; /* what was measured is the CPU's */
    printf("\n%s of weights are read for each generated token; read bandwidth measured in this run: %.2f GB/s.\n",
           cli_bytes((double)b->info.bytes_per_token, per_token), b->bandwidth / 1e9);
    if (is_measured(b))
        printf("%.2f M multiply-adds in the layers' matrices for each token; product rate (%s) measured in this run: "
               "%.1f G/s.\n",
               (double)b->info.matrix_params / 1e6, llmq_product_name(), b->product_rate / 1e9);
}

static void backend_name(const bench_results *b, char *out, size_t cap) {
    const llmq_model_info *info = &b->info;
    if (!info->device)
        snprintf(out, cap, "cpu %s", llmq_cpu_isa());
    else if (info->n_device_layers == info->n_layer)
        snprintf(out, cap, "%s", info->device);
    else
        snprintf(out, cap, "%s %lld of %lld layers, cpu %s", info->device, (long long)info->n_device_layers,
                 (long long)info->n_layer, llmq_cpu_isa());
}

static int print_md(const bench_results *b) {
    char type[96], name[48], bytes[32], backend[96];
    model_type(b, type, sizeof type);
    backend_name(b, backend, sizeof backend);
    printf("| model | size | params | backend | threads | kv | test | t/s | of the machine |\n");
    printf("|---|--:|--:|---|--:|---|--:|--:|--:|\n");
    for (size_t i = 0; i < b->n_tests; i++) {
        const bench_test *t = &b->tests[i];
        double read = bandwidth_share(b, t), products = product_share(b, t);
        test_name(t, name, sizeof name);
        printf("| %s | %s | %.2f M | %s | %d | %s | %s | %.2f ± %.2f | ", type,
               cli_bytes((double)b->info.weight_bytes, bytes), (double)b->info.n_params / 1e6, backend, b->threads,
               b->kv_name, name, t->avg_ts, t->stddev_ts);
        if (isfinite(read)) printf("%.0f %% of reads ", 100 * read);
        if (isfinite(products)) printf("%.0f %% of products ", 100 * products);
        if (t->guess) printf("%.2f tokens a pass ", (double)t->guesses.tokens / fmax((double)t->guesses.passes, 1));
        printf("|\n");
    }
    print_limits(b);
    return EXIT_OK;
}

/* ---- JSON and CSV */

static json_t *samples_json(const bench_results *b, const bench_test *t, bool speeds) {
    json_t *list = json_array();
    for (int64_t i = 0; i < b->repeats; i++) {
        double s = t->samples[i];
        json_array_append_new(list, speeds ? cli_json_real((double)bench_tokens(t) / s)
                                           : json_integer((json_int_t)(s * 1e9)));
    }
    return list;
}

/* llmq_version() is "0.1.0 (408e615)". */
static void build_commit(char *buf, size_t cap) {
    const char *open = strchr(llmq_version(), '(');
    snprintf(buf, cap, "%s", open ? open + 1 : "");
    buf[strcspn(buf, ")")] = '\0';
}

static json_t *row_json(const bench_results *b, const bench_test *t) {
    char type[96], commit[48];
    model_type(b, type, sizeof type);
    build_commit(commit, sizeof commit);
    json_t *row = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:s}",
        "build_commit", commit, "build_version", llmq_version(), "backends", b->info.device ? "CUDA" : "CPU", "cpu_isa",
        llmq_cpu_isa(), "model_filename", b->info.path, "model_type", type, "model_arch", b->info.arch, "model_size",
        (json_int_t)b->info.weight_bytes, "model_n_params", (json_int_t)b->info.n_params, "n_batch", PREFILL_BATCH,
        "n_ubatch", PREFILL_BATCH, "n_threads", b->threads, "n_gpu_layers", (int)b->info.n_device_layers, "type_k",
        b->kv_name, "type_v", b->kv_name, "n_prompt", (json_int_t)t->n_prompt, "n_gen", (json_int_t)t->n_gen, "n_depth",
        (json_int_t)t->n_depth, "n_parallel", (json_int_t)t->n_batch, "test_time", t->when);
    if (!row) return NULL;
    json_object_set_new(row, "avg_ns", json_integer((json_int_t)t->avg_ns));
    json_object_set_new(row, "stddev_ns", json_integer((json_int_t)t->stddev_ns));
    json_object_set_new(row, "avg_ts", cli_json_real(t->avg_ts));
    json_object_set_new(row, "stddev_ts", cli_json_real(t->stddev_ts));
    json_object_set_new(row, "samples_ns", samples_json(b, t, false));
    json_object_set_new(row, "samples_ts", samples_json(b, t, true));
    if (t->guess) {
        json_object_set_new(row, "lookup", json_boolean(t->guess != BY_DRAFT));
        json_object_set_new(row, "draft", json_boolean(t->guess != BY_LOOKUP));
        json_object_set_new(row, "n_passes", json_integer(t->guesses.passes));
        json_object_set_new(row, "n_guessed", json_integer(t->guesses.guessed));
        json_object_set_new(row, "n_accepted", json_integer(t->guesses.accepted));
    }
    json_object_set_new(row, "bytes_per_token", json_integer(b->info.bytes_per_token));
    json_object_set_new(row, "read_bandwidth", cli_json_real(b->bandwidth));
    json_object_set_new(row, "bandwidth_share", cli_json_real(bandwidth_share(b, t)));
    json_object_set_new(row, "product", json_string(llmq_product_name())); /* of the rate, whose name is older */
    json_object_set_new(row, "int8_rate", cli_json_real(b->product_rate));
    json_object_set_new(row, "int8_share", cli_json_real(product_share(b, t)));
    return row;
}

static int print_json(const bench_results *b) {
    json_t *list = json_array();
    for (size_t i = 0; i < b->n_tests; i++)
        if (json_array_append_new(list, row_json(b, &b->tests[i]))) {
            json_decref(list);
            return cli_fail("out of memory for the JSON result");
        }
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

static int print_csv(const bench_results *b) {
    char type[96];
    model_type(b, type, sizeof type);
    printf(
        "model_filename,model_type,model_size,model_n_params,n_threads,type_k,type_v,n_prompt,n_gen,n_depth,n_parallel,"
        "guessed_by,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts,bytes_per_token,read_bandwidth,int8_rate\n");
    for (size_t i = 0; i < b->n_tests; i++) {
        const bench_test *t = &b->tests[i];
        put_field(b->info.path);
        putchar(',');
        put_field(type);
        static const char *const guess[] = {"", "lookup", "draft", "lookup+draft"};
        printf(",%lld,%lld,%d,%s,%s,%lld,%lld,%lld,%lld,%s,%s,%.0f,%.0f,%.6f,%.6f,%lld,%.0f,%.0f\n",
               (long long)b->info.weight_bytes, (long long)b->info.n_params, b->threads, b->kv_name, b->kv_name,
               (long long)t->n_prompt, (long long)t->n_gen, (long long)t->n_depth, (long long)t->n_batch,
               guess[t->guess], t->when, t->avg_ns, t->stddev_ns, t->avg_ts, t->stddev_ts,
               (long long)b->info.bytes_per_token, b->bandwidth, b->product_rate);
    }
    return EXIT_OK;
}

int bench_print(const bench_results *b, int format) {
    return format == BENCH_JSON ? print_json(b) : format == BENCH_CSV ? print_csv(b) : print_md(b);
}

/* ---- the drawing */

/* What may lie along an axis. */
typedef enum axis { AXIS_PROMPT, AXIS_DEPTH, AXIS_BATCH, AXIS_COUNT } axis;

static int64_t axis_value(const bench_test *t, axis a) {
    return a == AXIS_PROMPT ? t->n_prompt : a == AXIS_DEPTH ? t->n_depth : t->n_batch;
}

/* Do two tests lie on one curve over this axis: the same but for it? Generation has no place over prompt lengths, nor
 * prompts over numbers of sequences. */
static bool one_curve(const bench_test *s, const bench_test *t, axis a) {
    if (a == AXIS_PROMPT && (!s->n_prompt || !t->n_prompt)) return false;
    if (a == AXIS_BATCH && (!s->n_gen || !t->n_gen)) return false;
    bool same = s->n_gen == t->n_gen && s->text == t->text && s->guess == t->guess;
    for (int i = 0; i < AXIS_COUNT; i++)
        same = same && (i == (int)a || axis_value(s, (axis)i) == axis_value(t, (axis)i));
    return same;
}

/* The points of test i's curve in the order of the axis; returns how many, 0 if an earlier test is on the same curve or
 * the axis takes a single value. */
static size_t gather(const bench_results *b, size_t i, axis a, double *x, double *y) {
    size_t n = 0;
    for (size_t j = 0; j < b->n_tests; j++) {
        const bench_test *t = &b->tests[j];
        if (!one_curve(&b->tests[i], t, a)) continue;
        if (j < i) return 0;
        double at = (double)axis_value(t, a);
        size_t k = n++;
        for (; k > 0 && x[k - 1] > at; k--) x[k] = x[k - 1], y[k] = y[k - 1];
        x[k] = at;
        y[k] = t->avg_ts;
    }
    return n > 1 && x[0] < x[n - 1] ? n : 0;
}

/* The curve is named by what does not lie along the axis. */
static void curve_name(const bench_test *t, axis a, char *buf, size_t cap) {
    bench_test rest = *t;
    if (a == AXIS_DEPTH) rest.n_depth = 0;
    if (a == AXIS_BATCH) rest.n_batch = 1;
    test_name(&rest, buf, cap);
    if (a == AXIS_PROMPT) snprintf(buf, cap, "prompt, depth %lld", (long long)t->n_depth);
}

typedef struct drawing {
    plot_panel panels[AXIS_COUNT];
    size_t n_panels;
    plot_curve *curves; /* [AXIS_COUNT * n_tests] */
    char (*names)[48];  /* likewise */
    double *points;     /* [AXIS_COUNT * n_tests * n_tests * 2] */
} drawing;

static void add_panel(drawing *d, const bench_results *b, axis a) {
    static const char *const labels[AXIS_COUNT] = {"tokens of the prompt", "tokens in the cache before", "sequences"};
    static const char *const colors[] = {"#3b6ea5", "#c0562f", "#3f8f5b", "#8a5aa8", "#a08a2e", "#5a6670"};
    plot_panel panel = {labels[a], "tokens per second", d->curves + (size_t)a * b->n_tests, 0, true};
    for (size_t i = 0; i < b->n_tests; i++) {
        double *x = d->points + ((size_t)a * b->n_tests + i) * b->n_tests * 2, *y = x + b->n_tests;
        size_t n = gather(b, i, a, x, y), at = (size_t)a * b->n_tests + panel.n;
        if (!n) continue;
        curve_name(&b->tests[i], a, d->names[at], sizeof d->names[at]);
        d->curves[at] = (plot_curve){d->names[at], colors[panel.n % (sizeof colors / sizeof *colors)], x, y, n};
        panel.n++;
    }
    if (panel.n) d->panels[d->n_panels++] = panel;
}

static llmq_status draw_bars(const bench_results *b, const char *path, const char *title, llmq_err *err) {
    plot_bar *bars = calloc(b->n_tests, sizeof *bars);
    if (!bars) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the plot");
    for (size_t i = 0; i < b->n_tests; i++) {
        test_name(&b->tests[i], bars[i].label, sizeof bars[i].label);
        bars[i].value = b->tests[i].avg_ts;
        bars[i].spread = b->tests[i].stddev_ts;
    }
    llmq_status status = plot_bars(path, title, "t/s", bars, b->n_tests, err);
    free(bars);
    return status;
}

llmq_status bench_draw(const bench_results *b, const char *path, llmq_err *err) {
    size_t n = b->n_tests;
    drawing d = {.curves = calloc(AXIS_COUNT * n, sizeof *d.curves),
                 .names = calloc(AXIS_COUNT * n, sizeof *d.names),
                 .points = calloc(AXIS_COUNT * n * n * 2, sizeof *d.points)};
    char type[96], title[160];
    model_type(b, type, sizeof type);
    snprintf(title, sizeof title, "%s, %s, %d threads, tokens per second", type, llmq_cpu_isa(), b->threads);
    llmq_status status;
    if (!d.curves || !d.names || !d.points) {
        status = cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the plot");
    } else {
        for (int a = 0; a < AXIS_COUNT; a++) add_panel(&d, b, (axis)a);
        status = d.n_panels ? plot_panels(path, title, d.panels, d.n_panels, err) : draw_bars(b, path, title, err);
    }
    free(d.curves);
    free(d.names);
    free(d.points);
    return status;
}
