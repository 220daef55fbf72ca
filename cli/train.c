/* llmq train: a small model from a text, or training on. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/json.h"
#include "cli/plot.h"
#include "llmq_train.h"

typedef struct train_opts {
    const char *out, *from, *type, *plot;
    int64_t layers, dim, heads, kv_heads, ff, vocab, ctx, batch, steps, seed;
    double minutes, lr;
    int force, no_resume, json;
} train_opts;

static const opt_def train_defs[] = {
    OPT_ROW_HEAD("what to train"),
    OPT_ROW_TEXT("--output", "-o", "OUT", train_opts, out, "the Hugging Face folder to write"),
    OPT_ROW_TEXT("--from", NULL, "MODEL", train_opts, from,
                 "go on with this model (anything that llmq opens) instead of a new one"),
    OPT_ROW_INT("--layers", NULL, "N", train_opts, layers, 1, 256, "layers of a new model (default 6)"),
    OPT_ROW_INT("--dim", NULL, "N", train_opts, dim, 8, 8192, "its width (default 256)"),
    OPT_ROW_INT("--heads", NULL, "N", train_opts, heads, 1, 256, "attention heads (default: one for 64 of the width)"),
    OPT_ROW_INT("--kv-heads", NULL, "N", train_opts, kv_heads, 1, 256, "heads of keys and values (default: as many)"),
    OPT_ROW_INT("--ff", NULL, "N", train_opts, ff, 8, 32768,
                "width of the feed-forward part (default: 8/3 of the width, up to a multiple of 64)"),
    OPT_ROW_INT("--vocab", NULL, "N", train_opts, vocab, 257, 1 << 17,
                "tokens of the tokenizer that is made from the text (default 4096)"),
    OPT_ROW_HEAD("how"),
    OPT_ROW_INT("--ctx", NULL, "N", train_opts, ctx, 8, 65536, "tokens of a window (default 256)"),
    OPT_ROW_INT("--batch", NULL, "N", train_opts, batch, 1, 4096, "windows of a step (default 16)"),
    OPT_ROW_INT("--steps", NULL, "N", train_opts, steps, 0, 1 << 30, "steps (default 1000)"),
    OPT_ROW_REAL("--minutes", NULL, "X", train_opts, minutes, 0.01, 1e6, "instead of a number of steps: so long"),
    OPT_ROW_REAL("--lr", NULL, "X", train_opts, lr, 0, 1,
                 "peak of the learning rate (default 0.003, with --from 0.0003)"),
    OPT_ROW_INT("--seed", NULL, "N", train_opts, seed, 0, 9e18,
                "of the first weights and of the order of the windows (default 0)"),
    OPT_ROW_HEAD("output"),
    OPT_ROW_TEXT("--type", NULL, "f32|f16|bf16", train_opts, type, "of the written weights (default bf16)"),
    OPT_ROW_FLAG("--force", NULL, train_opts, force, 1, "replace OUT if it is a folder that llmq wrote"),
    OPT_ROW_FLAG("--no-resume", NULL, train_opts, no_resume, 1,
                 "start anew even if an earlier run of the same command was stopped half-way"),
    OPT_ROW_TEXT("--plot", NULL, "F.svg", train_opts, plot, "draw the losses as curves"),
    OPT_ROW_FLAG("--json", NULL, train_opts, json, 1, "one JSON document on stdout: shape, losses, curve, speed"),
    OPT_ROW_END,
};

/* ---- while it runs */

typedef struct watch {
    cli_progress progress;
    bool quiet;
    double first; /* held-out loss of the first point */
} watch;

static bool on_progress(void *user, double done, double total, const char *what, double seconds_left) {
    return cli_progress_update(&((watch *)user)->progress, done, total, what, seconds_left);
}

/* A line for each point; the bars of all of them are the curve of the held-out loss. */
static void on_point(void *user, const llmq_train_point *p) {
    enum { CELLS = 32 };
    watch *w = user;
    char bar[CELLS + 1] = "", clock[32], loss[16] = "-";
    if (w->first <= 0) w->first = p->held_out;
    if (w->quiet) return;
    int n = (int)(CELLS * p->held_out / w->first + 0.5);
    memset(bar, '#', (size_t)(n < 0 ? 0 : n > CELLS ? CELLS : n));
    if (p->loss >= 0) snprintf(loss, sizeof loss, "%.3f", p->loss);
    cli_progress_hide();
    fprintf(stderr, "llmq: %s  step %-6lld loss %-6s held out %.3f %-*s %6.0f tokens/s\n", cli_clock(p->seconds, clock),
            (long long)p->step, loss, p->held_out, CELLS, bar, p->tokens_per_second);
}

/* ---- behind it */

static void add_point(json_t *list, const llmq_train_point *p) {
    json_t *o = json_pack("{s:I, s:I}", "step", (json_int_t)p->step, "tokens", (json_int_t)p->tokens);
    json_object_set_new(o, "seconds", cli_json_real(p->seconds));
    json_object_set_new(o, "loss", p->loss < 0 ? json_null() : cli_json_real(p->loss));
    json_object_set_new(o, "held_out", cli_json_real(p->held_out));
    json_object_set_new(o, "lr", cli_json_real(p->lr));
    json_array_append_new(list, o);
}

static int print_json(const char *out, const llmq_train_result *r) {
    json_t *doc = json_object(), *curve = json_array();
    const struct {
        const char *key;
        int64_t value;
    } counts[] = {{"params", r->n_params},
                  {"layers", r->n_layer},
                  {"dim", r->n_embd},
                  {"heads", r->n_head},
                  {"kv_heads", r->n_head_kv},
                  {"ff", r->n_ff},
                  {"vocab", r->n_vocab},
                  {"ctx", r->n_ctx},
                  {"batch", r->batch},
                  {"text_tokens", r->text_tokens},
                  {"held_tokens", r->held_tokens},
                  {"steps", r->steps},
                  {"resumed_steps", r->resumed_steps},
                  {"bytes", r->out_bytes}};
    json_object_set_new(doc, "out", json_string(out));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        json_object_set_new(doc, counts[i].key, json_integer(counts[i].value));
    json_object_set_new(doc, "unigram", cli_json_real(r->unigram));
    json_object_set_new(doc, "tokens_per_second", cli_json_real(r->tokens_per_second));
    json_object_set_new(doc, "seconds", cli_json_real(r->seconds));
    for (int64_t i = 0; i < r->n_points; i++) add_point(curve, &r->points[i]);
    json_object_set_new(doc, "curve", curve);
    return cli_json_print(doc, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
}

static int print_summary(const char *out, const llmq_train_result *r) {
    char a[32], b[32], path[2100], tok[2100];
    const llmq_train_point *first = &r->points[0], *last = &r->points[r->n_points - 1];
    printf("wrote      %s (%s)\n", out, cli_bytes((double)r->out_bytes, a));
    printf(
        "model      %s parameters: %lld layers, width %lld, %lld heads (%lld for keys and values), feed-forward %lld, "
        "%s tokens\n",
        cli_count(r->n_params, a), (long long)r->n_layer, (long long)r->n_embd, (long long)r->n_head,
        (long long)r->n_head_kv, (long long)r->n_ff, cli_count(r->n_vocab, b));
    printf("text       %s tokens, the last %s of them held out\n", cli_count(r->text_tokens, a),
           cli_count(r->held_tokens, b));
    printf("loss       %.4f on the held-out text (perplexity %.2f), %.4f before; single tokens' counts give %.4f\n",
           last->held_out, exp(last->held_out), first->held_out, r->unigram);
    if (r->steps > 0)
        printf("took       %s for %lld steps of %lld windows of %lld tokens, %s tokens/s%s\n",
               cli_clock(last->seconds, a), (long long)r->steps, (long long)r->batch, (long long)r->n_ctx,
               cli_count((int64_t)(r->tokens_per_second + 0.5), b), r->resumed_steps ? ", in several runs" : "");
    printf("next       %s run %s -p 'Once upon a time'\n", cli_quote(cli_program(), tok, sizeof tok),
           cli_quote(out, path, sizeof path));
    return EXIT_OK;
}

static llmq_status draw(const char *path, const llmq_train_result *r, llmq_err *err) {
    double x[LLMQ_TRAIN_POINTS], loss[LLMQ_TRAIN_POINTS], held[LLMQ_TRAIN_POINTS];
    size_t n = (size_t)r->n_points;
    for (size_t i = 0; i < n; i++) {
        x[i] = (double)r->points[i].step;
        loss[i] = r->points[i].loss < 0 ? NAN : r->points[i].loss;
        held[i] = r->points[i].held_out;
    }
    const plot_curve curves[] = {{"training text", "#3b6ea5", x, loss, n}, {"held-out text", "#c25b2a", x, held, n}};
    const plot_panel panel = {"steps", "loss, nats a token", curves, 2, false};
    return plot_panels(path, "llmq train", &panel, 1, err);
}

/* The command as it was typed, without what would throw away the work that is kept. */
static void print_command(int argc, char **argv) {
    char word[4200];
    fprintf(stderr, "  %s", cli_quote(cli_program(), word, sizeof word));
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--no-resume") != 0) fprintf(stderr, " %s", cli_quote(argv[i], word, sizeof word));
    fputc('\n', stderr);
}

static int fail(const llmq_train_result *r, const llmq_err *err, int argc, char **argv) {
    int rc = err->status == LLMQ_E_INTERRUPTED ? EXIT_INTERRUPTED : cli_fail_err(err);
    if (r->kept) {
        cli_note("%s after step %lld; the same command goes on from there:",
                 err->status == LLMQ_E_INTERRUPTED ? "interrupted" : "stopped", (long long)r->steps);
        print_command(argc, argv);
    } else if (err->status == LLMQ_E_INTERRUPTED) {
        cli_note("interrupted: nothing was written");
    }
    return rc;
}

static llmq_train_params params_of(const train_opts *o, const common_opts *common, watch *w) {
    llmq_train_params p;
    llmq_train_params_default(&p);
    p.from = o->from;
    p.n_layer = o->layers;
    p.n_embd = o->dim;
    p.n_head = o->heads;
    p.n_head_kv = o->kv_heads;
    p.n_ff = o->ff;
    p.n_vocab = o->vocab;
    p.n_ctx = o->ctx;
    p.batch = o->batch;
    if (o->steps >= 0) p.steps = o->steps;
    p.minutes = o->minutes;
    p.lr = o->lr;
    p.seed = (uint64_t)o->seed;
    p.type = o->type;
    p.out = o->out;
    p.force = o->force;
    p.no_resume = o->no_resume;
    p.n_threads = (int)common->threads;
    p.tokenizer = common->tokenizer;
    p.progress = on_progress;
    p.point = on_point;
    p.user = w;
    return p;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    train_opts opts = {.steps = -1};
    common_opts common = {0};
    cli_texts texts;
    const opt_set sets[] = {{train_defs, &opts}, {common_defs, &common}};
    int rc = opt_parse_list(cmd, sets, 2, argc, argv, "TEXT", &texts);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    if (!opts.out) return opt_bad(cmd, "the output is missing: -o OUT");
    if (opts.steps >= 0 && opts.minutes > 0) return opt_bad(cmd, "--steps and --minutes exclude each other");
    llmq_err err = {0};
    llmq_train_result result;
    watch w = {.quiet = common.quiet};
    cli_progress_init(&w.progress, NULL, common.quiet);
    llmq_train_params params = params_of(&opts, &common, &w);
    llmq_status status = llmq_train(texts.v, texts.n, &params, &result, &err);
    cli_progress_finish(&w.progress);
    if (status) return fail(&result, &err, argc, argv);
    rc = opts.json ? print_json(opts.out, &result) : print_summary(opts.out, &result);
    if (opts.plot && draw(opts.plot, &result, &err)) return cli_fail_err(&err);
    return rc;
}

const cli_command cmd_train = {
    .name = "train",
    .usage = "TEXT... -o OUT [options]",
    .summary = "a small model from a text, or training on",
    .about =
        "Trains a model of the Llama architecture from scratch, tokenizer included, or goes on with one (--from), and "
        "writes a Hugging Face folder that llmq and transformers load. The texts are read one behind the other; "
        "<|endoftext|> in them separates documents. The last twentieth (at most 32,768 tokens) is held out: its loss "
        "is measured about twenty times. Meant for models of 1 to 15 million parameters. A run that was stopped or "
        "killed goes on with the same command; with --steps the result is the same for any number of threads.",
    .examples = "  llmq train book.txt -o tiny --minutes 10\n"
                "  llmq train a.txt b.txt -o model --layers 8 --dim 384 --vocab 8192 --steps 5000 --plot loss.svg\n"
                "  llmq train more.txt --from tiny -o tiny2 --steps 200\n",
    .run = run,
};
