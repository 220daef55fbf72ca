/* llmq quantize: a full-precision model to a small one. */
#define _POSIX_C_SOURCE 200809L
#include "llmq_quant.h"

#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct quantize_opts {
    int gptq, rtn, hqq, nf4, fp4, awq, int8_dynamic, int8_static, smooth, act_order, plan, force, no_resume, asym,
        double_quant, tune, tune_codes, qat;
    int64_t max_ram;
    const char *method, *type, *out, *emit, *report_json, *report, *policy;
    int64_t bits, tokens, calib_ctx, seed, group, shard_bytes, target_bytes;
    const char *solver, *tune_settings;
    double damp, target_bpw, tune_minutes;
    cli_texts calib, keep;
} quantize_opts;

static const opt_def quantize_defs[] = {
    OPT_ROW_HEAD("method"),
    OPT_ROW_FLAG("--gptq", NULL, quantize_opts, gptq, 1,
                 "GPTQ: rounding errors are made up for by the weights not rounded yet (the default)"),
    OPT_ROW_FLAG("--rtn", NULL, quantize_opts, rtn, 1, "round to nearest, without calibration"),
    OPT_ROW_FLAG("--hqq", NULL, quantize_opts, hqq, 1, "HQQ: rounding that lets far weights go, without calibration"),
    OPT_ROW_FLAG("--nf4", NULL, quantize_opts, nf4, 1, "round to bitsandbytes' NF4, without calibration (--emit bnb)"),
    OPT_ROW_FLAG("--fp4", NULL, quantize_opts, fp4, 1, "round to bitsandbytes' FP4, without calibration (--emit bnb)"),
    OPT_ROW_FLAG("--awq", NULL, quantize_opts, awq, 1,
                 "AWQ: inputs that matter are scaled up before rounding, and the op before them down; alone, or with "
                 "--gptq (or another method) after it"),
    OPT_ROW_TEXT("--method", NULL, "NAME", quantize_opts, method, "the same by name: gptq, rtn, hqq, nf4, fp4"),
    OPT_ROW_FLAG("--int8-dynamic", NULL, quantize_opts, int8_dynamic, 1,
                 "8-bit rows with one scale each, run on inputs that are quantized as they come, a scale for each "
                 "token; by GPTQ, or with --rtn, --hqq or --awq (--emit gguf, ct)"),
    OPT_ROW_FLAG("--int8-static", NULL, quantize_opts, int8_static, 1,
                 "the same, but inputs are quantized in ranges that the calibration text gives: no range is computed "
                 "while the model runs"),
    OPT_ROW_HEAD("tuning"),
    OPT_ROW_FLAG(
        "--tune", NULL, quantize_opts, tune, 1,
        "after any method: train scales and norms, so that the model answers as the full-precision one does on "
        "the calibration text; takes minutes to hours, by the model's size, and gains more than anything else"),
    OPT_ROW_FLAG("--tune-codes", NULL, quantize_opts, tune_codes, 1, "with --tune: train the codes too"),
    OPT_ROW_FLAG("--qat", NULL, quantize_opts, qat, 1,
                 "quantization-aware training: --tune --tune-codes from where the method ends; for 2 and 3 bits"),
    OPT_ROW_REAL("--tune-minutes", NULL, "N", quantize_opts, tune_minutes, 0.01, 1e6,
                 "train about so long (default: so many steps as help, see --plan)"),
    OPT_ROW_TEXT("--tune-set", NULL, "LIST", quantize_opts, tune_settings,
                 "advanced: steps=N, batch=WINDOWS, lr=X, warmup=STEPS, floor=X, norm=X, held=WINDOWS, judge=N, "
                 "blocks=0|1 (1: one layer after the other, as is done where the whole model does not fit)"),
    OPT_ROW_HEAD("grid"),
    OPT_ROW_INT("--bits", NULL, "2|3|4|8", quantize_opts, bits, 2, 8,
                "bits of a weight when --type is not given (default 4)"),
    OPT_ROW_TEXT("--type", NULL, "T", quantize_opts, type,
                 "storage type of every matrix inside the layers: q4_0, q4_1, iq4_nl, q4_k, q6_k, q8_0, ... (default: "
                 "the best of --bits whose block divides the rows)"),
    OPT_ROW_TEXTS(
        "--keep", NULL, "PATTERN=TYPE", quantize_opts, keep,
        "tensors whose GGUF name matches get this type, e.g. 'blk.0.*=f16' (repeatable, the first match decides)"),
    OPT_ROW_INT("--group", NULL, "32|64|128|-1", quantize_opts, group, -1, 128,
                "weights of a row that share a scale in gptq, awq and ct; -1: the whole row (default 128; a GGUF type "
                "has a block of its own)"),
    OPT_ROW_FLAG("--sym", NULL, quantize_opts, asym, 0,
                 "gptq, awq, ct: levels around zero (the default, but at 2 bits)"),
    OPT_ROW_FLAG(
        "--asym", NULL, quantize_opts, asym, 1,
        "gptq, awq, ct: a zero point for each group (the default at 2 bits); vLLM reads it in awq and ct only"),
    OPT_ROW_FLAG("--double-quant", NULL, quantize_opts, double_quant, 1, "bnb: quantize the scales too"),
    OPT_ROW_TEXT("--policy", NULL, "FILE", quantize_opts, policy,
                 "the same from a file, one 'PATTERN TYPE' a line, # for comments; --keep goes before it"),
    OPT_ROW_REAL(
        "--target-bpw", NULL, "X", quantize_opts, target_bpw, 0.1, 32,
        "choose the type of every matrix, embedding and head too, by measured errors: the best model of at most "
        "so many bits a weight, all tensors counted (--keep and --policy still fix what they name)"),
    {.kind = OPT_SIZE,
     .name = "--target-size",
     .arg = "SIZE",
     .offset = offsetof(quantize_opts, target_bytes),
     .help = "the same for the size of the file: 90MB, 4.2GiB"},
    OPT_ROW_HEAD("solver"),
    OPT_ROW_FLAG("--act-order", NULL, quantize_opts, act_order, 1,
                 "quantize the inputs with the largest activations first (GPTQ's default)"),
    OPT_ROW_FLAG("--no-act-order", NULL, quantize_opts, act_order, 0, "quantize the inputs in their own order"),
    OPT_ROW_REAL("--damp", NULL, "X", quantize_opts, damp, 0, 1,
                 "damping, as a part of the Hessian's mean diagonal (default: chosen by the method)"),
    OPT_ROW_TEXT(
        "--solver", NULL, "LIST", quantize_opts, solver,
        "advanced: pieces of GPTQ, to measure them (default: sweeps=3,refit=1,mean=2,order=static,acts=q8): sweeps=N, "
        "mean=X, refit=0|1, "
        "grid=original|corrected, "
        "weight=diag|pivot, order=static|group|none, acts=q8|f32"),
    OPT_ROW_INT("--seed", NULL, "N", quantize_opts, seed, 0, 9e18,
                "for choices made at random: the text of --calib self (default 0)"),
    OPT_ROW_FLAG("--smooth", NULL, quantize_opts, smooth, 1,
                 "INT8: outliers of inputs go over into weights (SmoothQuant), where that is measured to help "
                 "(the default)"),
    OPT_ROW_FLAG("--no-smooth", NULL, quantize_opts, smooth, 0, "INT8: they stay where they are"),
    OPT_ROW_HEAD("calibration"),
    OPT_ROW_TEXTS("--calib", NULL, "FILE[:WEIGHT]", quantize_opts, calib,
                  "text to calibrate with, or .jsonl of chat messages, which go through the model's template, or self: "
                  "the model writes the text; or default: the text that ships with llmq; weights "
                  "share out the tokens (repeatable)"),
    OPT_ROW_INT("--tokens", NULL, "N", quantize_opts, tokens, 1, 1 << 30,
                "calibration tokens (default 65536; 16384 with --calib self alone)"),
    OPT_ROW_INT("--calib-ctx", NULL, "N", quantize_opts, calib_ctx, 8, 1 << 20,
                "tokens of one calibration window (default 512)"),
    OPT_ROW_HEAD("output"),
    OPT_ROW_TEXT(
        "--output", "-o", "OUT", quantize_opts, out,
        "the file or folder to write (default: STEM-METHOD-TYPE.gguf or STEM-METHOD-FORMAT beside the source)"),
    OPT_ROW_TEXT("--emit", NULL, "LIST", quantize_opts, emit,
                 "what to write: gguf (the default); or Hugging Face folders that vLLM, transformers and SGLang load: "
                 "gptq, awq, ct (compressed-tensors), bnb (bitsandbytes NF4). Several, as in gguf,gptq,ct: OUT is a "
                 "folder with one folder for each; gptq, awq, ct and a gguf beside them share one grid and its codes"),
    {.kind = OPT_SIZE,
     .name = "--shard-size",
     .arg = "SIZE",
     .offset = offsetof(quantize_opts, shard_bytes),
     .min = 1,
     .max = 9e18,
     .help = "safetensors files become no larger, as in 500MB, 4.2GiB (default 5GB)"},
    OPT_ROW_FLAG("--force", NULL, quantize_opts, force, 1, "replace OUT if it exists"),
    OPT_ROW_FLAG(
        "--plan", NULL, quantize_opts, plan, 1,
        "print what would become of every tensor, and the time (by a short measurement), memory and disk it takes"),
    OPT_ROW_TEXT("--report-json", NULL, "F", quantize_opts, report_json, "write a report of every tensor as JSON"),
    OPT_ROW_TEXT("--report", NULL, "F.html", quantize_opts, report,
                 "the same as one page for a browser: sizes, types, curves of the layers' errors, times, warnings"),
    {.kind = OPT_SIZE,
     .name = "--max-ram",
     .arg = "SIZE",
     .offset = offsetof(quantize_opts, max_ram),
     .min = 1,
     .max = 9e18,
     .help = "memory to do with, besides mapped files: 16GiB. Activations go to the disk first, then fewer tokens are "
             "worked on at a time; the result stays the same (default: what it takes, see --plan)"},
    OPT_ROW_FLAG("--no-resume", NULL, quantize_opts, no_resume, 1,
                 "start anew even if an earlier run of the same command was stopped half-way"),
    OPT_ROW_END,
};

/* ---- checks that need no model */

static int check_method(const cli_command *cmd, quantize_opts *o) {
    const struct {
        int set;
        const char *name;
    } methods[] = {{o->gptq, "gptq"}, {o->rtn, "rtn"}, {o->hqq, "hqq"}, {o->nf4, "nf4"}, {o->fp4, "fp4"}};
    const char *chosen = NULL;
    bool known = !o->method;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        known = known || !strcmp(o->method, methods[i].name);
        if (!methods[i].set) continue;
        if (chosen)
            return opt_bad(cmd, "one method, please: --%s and --%s exclude each other", chosen, methods[i].name);
        chosen = methods[i].name;
    }
    if (o->method && chosen) return opt_bad(cmd, "one method, please: --method %s and --%s", o->method, chosen);
    if (!known) return opt_bad(cmd, "--method '%s': this version has gptq, rtn, hqq, nf4 and fp4", o->method);
    if (o->int8_dynamic && o->int8_static)
        return opt_bad(cmd, "one of the two, please: --int8-dynamic and --int8-static exclude each other");
    if (o->smooth >= 0 && !o->int8_static && !o->int8_dynamic)
        return opt_bad(cmd, "--smooth and --no-smooth are for --int8-dynamic and --int8-static");
    if (!o->method) o->method = chosen ? chosen : o->awq ? "rtn" : "gptq";
    return CLI_GO_ON;
}

static int check_types(const cli_command *cmd, const quantize_opts *o) {
    if (o->type && llmq_type_from_name(o->type) == LLMQ_TYPE_NONE)
        return opt_bad(cmd, "--type '%s': no such storage type; q4_0, q4_1, iq4_nl, q4_k, q6_k, q8_0 are some",
                       o->type);
    for (size_t i = 0; i < o->keep.n; i++) {
        const char *equals = strrchr(o->keep.v[i], '=');
        if (!equals || equals == o->keep.v[i])
            return opt_bad(cmd, "--keep '%s': it takes PATTERN=TYPE, such as 'blk.0.*=f16'", o->keep.v[i]);
        if (llmq_type_from_name(equals + 1) == LLMQ_TYPE_NONE)
            return opt_bad(cmd, "--keep '%s': no storage type '%s'", o->keep.v[i], equals + 1);
    }
    if (o->bits && o->bits != 2 && o->bits != 3 && o->bits != 4 && o->bits != 8)
        return opt_bad(cmd, "--bits %lld: it takes 2, 3, 4 or 8", (long long)o->bits);
    if (o->group && o->group != 32 && o->group != 64 && o->group != 128 && o->group != -1)
        return opt_bad(cmd, "--group %lld: it takes 32, 64, 128 or -1", (long long)o->group);
    return CLI_GO_ON;
}

/* The model writes its text slowly: a quarter of what is read from files does. */
static int64_t default_tokens(const quantize_opts *o) {
    for (size_t i = 0; i < o->calib.n; i++)
        if (strncmp(o->calib.v[i], "self", 4) || (o->calib.v[i][4] && o->calib.v[i][4] != ':')) return 0;
    return o->calib.n ? 16384 : 0;
}

/* ---- printing */

static int cell_width(const llmq_quant_result *r) {
    size_t width = 6;
    for (size_t i = 0; i < r->n_rows; i++) width = strlen(r->rows[i].name) > width ? strlen(r->rows[i].name) : width;
    return (int)width;
}

static void print_plan(const llmq_quant_result *r) {
    char bytes[32], shape[48];
    int width = cell_width(r);
    printf("%-*s  %-6s    %-6s  %-6s  %14s  %10s  %s\n", width, "tensor", "from", "to", "method", "rows x cols",
           "bytes", "note");
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        snprintf(shape, sizeof shape, "%lld x %lld", (long long)row->rows, (long long)row->cols);
        printf("%-*s  %-6s -> %-6s  %-6s  %14s  %10s  %s\n", width, row->name, llmq_type_name(row->from), row->to_name,
               row->method, shape, cli_bytes((double)row->bytes, bytes), row->note);
    }
}

static void print_sizes(const llmq_quant_result *r, bool planned) {
    char a[32], b[32], c[32];
    double out = (double)r->out_bytes;
    if (r->n_outputs > 1)
        printf("size       %s%s in %zu outputs; FP32 is %s, FP16 %s\n", cli_bytes(out, a), planned ? " planned" : "",
               r->n_outputs, cli_bytes((double)r->f32_bytes, b), cli_bytes((double)r->f16_bytes, c));
    else
        printf("size       %s%s: %.2fx smaller than FP32 (%s), %.2fx smaller than FP16 (%s)\n", cli_bytes(out, a),
               planned ? " planned" : "", out > 0 ? (double)r->f32_bytes / out : 0, cli_bytes((double)r->f32_bytes, b),
               out > 0 ? (double)r->f16_bytes / out : 0, cli_bytes((double)r->f16_bytes, c));
    printf("bits       %.3f per weight over the whole model%s, %.3f inside the layers\n", r->bits_per_weight,
           r->n_outputs > 1 ? " (the first output)" : "", r->matrix_bits_per_weight);
}

/* INT8 in fixed ranges: how much of the work runs so, and what does not. */
static void print_inputs(const llmq_quant_result *r) {
    double all = 0, fixed = 0;
    size_t smoothed = 0;
    for (size_t i = 0; i < r->n_inputs; i++) {
        all += (double)r->inputs[i].macs;
        fixed += r->inputs[i].kept ? 0 : (double)r->inputs[i].macs;
        smoothed += r->inputs[i].alpha > 0;
    }
    if (!r->n_inputs) return;
    printf("ranges     %.2f %% of the layers' multiply-adds in fixed ranges of inputs; %zu of %zu inputs smoothed\n",
           100 * fixed / all, smoothed, r->n_inputs);
    for (size_t i = 0; i < r->n_inputs; i++)
        if (r->inputs[i].kept)
            printf("             layer %d %s kept in higher precision: %s\n", r->inputs[i].layer, r->inputs[i].site,
                   r->inputs[i].note);
}

/* Of the first output where there are several: its tensors, as they were written. */
static void print_memory(const llmq_quant_result *r) {
    int64_t bytes = 0;
    for (size_t i = 0; i < r->n_rows; i++) bytes += r->rows[i].bytes;
    putchar('\n');
    cli_print_memory(r->f32_bytes / 4, r->kv_bytes_per_token, r->memory_ctx, bytes);
    putchar('\n');
}

static void print_forecast(const llmq_quant_result *r) {
    char a[32], b[32];
    if (r->tune_how[0]) printf("tuning     %s\n", r->tune_how);
    printf("needs      %s of memory besides mapped files, %s of disk, about %.*f s\n",
           cli_bytes((double)r->planned_peak_bytes, a), cli_bytes((double)r->planned_disk_bytes, b),
           r->planned_seconds < 20, r->planned_seconds);
}

/* Tensors that got another type or method than the one asked for; the first few by name. */
static void print_fallbacks(const llmq_quant_result *r) {
    enum { SHOWN = 6 };
    int shown = 0;
    if (!r->n_fallback) return;
    printf("fallbacks  %lld tensor%s not as asked:\n", (long long)r->n_fallback, r->n_fallback == 1 ? " is" : "s are");
    for (size_t i = 0; i < r->n_rows && shown < SHOWN; i++)
        if (r->rows[i].fallback) {
            printf("             %s: %s, %s: %s\n", r->rows[i].name, r->rows[i].to_name, r->rows[i].method,
                   r->rows[i].note);
            shown++;
        }
    if (r->n_fallback > shown)
        printf("             and %lld more (--plan lists them all)\n", (long long)r->n_fallback - shown);
}

static void print_summary(const llmq_quant_result *r) {
    char a[32], b[32], path[2100], tok[2100];
    printf("wrote      %s\n", r->out);
    print_sizes(r, false);
    if (r->mean_error >= 0 && r->calib_tokens > 0)
        printf("error      %.5f mean relative error of a layer's outputs, %.5f by plain rounding%s\n", r->mean_error,
               r->mean_rtn_error, r->mean_rtn_error > 0 && r->mean_error < r->mean_rtn_error ? "" : " (no better)");
    if (r->calib_tokens > 0) {
        printf("calibrated %s tokens", cli_count(r->calib_tokens, a));
        if (r->dropped_tokens) printf(", %s dropped for numbers that are not finite", cli_count(r->dropped_tokens, b));
        putchar('\n');
    }
    print_inputs(r);
    if (r->tune_blocks)
        printf(
            "tuned      %s\n           %lld layers, %lld steps: mean error of a layer's outputs on text held out %.5f "
            "-> %.5f\n",
            r->tune_how, (long long)r->tune_blocks, (long long)r->block_steps, r->block_before, r->block_after);
    if (r->tune_steps)
        printf("tuned      %lld steps: KL divergence from the source on text held out %.5f -> %.5f\n",
               (long long)r->tune_steps, r->tune_before, r->tune_after);
    if (r->resumed_layers)
        printf("resumed    after layer %lld of %lld\n", (long long)r->resumed_layers, (long long)r->n_layers);
    printf("took       %.1f s, peak memory %s besides mapped files (%.1f s and %s were planned)\n", r->seconds,
           cli_bytes((double)r->peak_bytes, a), r->planned_seconds, cli_bytes((double)r->planned_peak_bytes, b));
    print_fallbacks(r);
    print_memory(r);
    printf("next       %s chat %s\n", cli_quote(cli_program(), tok, sizeof tok),
           cli_quote(r->main_out, path, sizeof path));
}

/* The command as it was typed, without what would throw away the work that is kept. */
static void print_command(int argc, char **argv) {
    char word[4200];
    fprintf(stderr, "  %s", cli_quote(cli_program(), word, sizeof word));
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--no-resume")) fprintf(stderr, " %s", cli_quote(argv[i], word, sizeof word));
    fputc('\n', stderr);
}

static int report_failure(llmq_status status, const llmq_err *err, const llmq_quant_result *r, int argc, char **argv) {
    bool interrupted = status == LLMQ_E_INTERRUPTED;
    if (interrupted && !r->kept) return cli_fail("interrupted: nothing was written"), EXIT_INTERRUPTED;
    int rc = interrupted ? EXIT_INTERRUPTED : cli_fail_err(err);
    if (!r->kept) return rc;
    char after[64] = "";
    if (r->kept_layers)
        snprintf(after, sizeof after, " after layer %lld of %lld", (long long)r->kept_layers, (long long)r->n_layers);
    cli_note("%sthe work so far is kept in %s.tmp and .journal; this goes on%s:", interrupted ? "interrupted: " : "",
             r->out, after);
    print_command(argc, argv);
    return rc;
}

/* The command as it can be typed again, cut off where it is too long. */
static const char *join_command(int argc, char **argv, char *buf, size_t cap) {
    char word[1024];
    size_t n = (size_t)snprintf(buf, cap, "llmq quantize");
    for (int i = 1; i < argc && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, " %s", cli_quote(argv[i], word, sizeof word));
    return buf;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    char command[4096];
    quantize_opts opts = {.asym = -1, .act_order = -1, .smooth = -1, .damp = -1, .seed = -1};
    common_opts common = {0};
    const opt_set sets[] = {{quantize_defs, &opts}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON && common.gpu_layers)
        rc = opt_bad(cmd, "--gpu-layers: the GPU gets one matrix after the other; leave it out");
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc == CLI_GO_ON) rc = check_method(cmd, &opts);
    if (rc == CLI_GO_ON) rc = check_types(cmd, &opts);
    if (rc != CLI_GO_ON) return rc;
    llmq_quant_params params;
    llmq_quant_params_default(&params);
    cli_progress progress;
    cli_progress_init(&progress, NULL, common.quiet);
    params.method = opts.method;
    params.awq = opts.awq;
    params.int8 = opts.int8_dynamic ? LLMQ_INT8_DYNAMIC : opts.int8_static ? LLMQ_INT8_STATIC : LLMQ_INT8_OFF;
    params.no_smooth = opts.smooth == 0;
    params.bits = (int)opts.bits;
    params.type = opts.type;
    params.emit = opts.emit;
    params.group = (int)opts.group;
    params.asym = opts.asym;
    params.double_quant = opts.double_quant;
    if (opts.shard_bytes) params.shard_bytes = opts.shard_bytes;
    params.keep = opts.keep.v;
    params.n_keep = opts.keep.n;
    params.policy = opts.policy;
    params.target_bpw = opts.target_bpw;
    params.target_bytes = opts.target_bytes;
    params.act_order = opts.act_order;
    params.damp = opts.damp;
    params.solver = opts.solver;
    params.tune = opts.tune || opts.qat || opts.tune_codes || opts.tune_minutes > 0;
    params.tune_codes = opts.tune_codes || opts.qat;
    params.tune_minutes = opts.tune_minutes;
    params.tune_settings = opts.tune_settings;
    params.calib = opts.calib.v;
    params.n_calib = opts.calib.n;
    if (!opts.tokens) opts.tokens = default_tokens(&opts);
    if (opts.tokens) params.calib_tokens = opts.tokens;
    if (opts.calib_ctx) params.calib_ctx = opts.calib_ctx;
    if (opts.seed >= 0) params.seed = (uint64_t)opts.seed;
    params.out = opts.out;
    params.force = opts.force;
    params.no_resume = opts.no_resume;
    params.max_ram = opts.max_ram;
    params.plan_only = opts.plan;
    params.n_threads = (int)common.threads;
    params.device = common.device;
    params.report_json = opts.report_json;
    params.report = opts.report;
    params.command = join_command(argc, argv, command, sizeof command);
    params.tokenizer = common.tokenizer;
    params.progress = cli_progress_update;
    params.user = &progress;
    llmq_err err = {0};
    llmq_quant_result result = {0};
    llmq_status status = llmq_quantize(path, &params, &result, &err);
    cli_progress_finish(&progress);
    if (status) return report_failure(status, &err, &result, argc, argv);
    if (opts.plan) {
        print_plan(&result);
        putchar('\n');
        if (result.out[0]) printf("to write   %s\n", result.out);
        print_sizes(&result, true);
        print_memory(&result);
        print_forecast(&result);
    } else {
        print_summary(&result);
    }
    llmq_quant_result_clear(&result);
    return EXIT_OK;
}

const cli_command cmd_quantize = {
    .name = "quantize",
    .gpu = true,
    .usage = "MODEL [--gptq] [--bits 4] [-o OUT] [options]",
    .summary = "make a 4-bit model",
    .about =
        "Reads a full-precision model (a Hugging Face folder, a GGUF file or a llama2.c .bin), quantizes the matrices "
        "inside its "
        "layers with calibration text, stores the embedding and the head as Q8_0, and writes a GGUF file that llmq and "
        "llama.cpp read, or with --emit folders in the formats of other engines. Nothing but MODEL has to be given. "
        "OUT appears only when it is whole.",
    .examples = "  llmq quantize ./SmolLM2-135M-Instruct --gptq\n"
                "  llmq quantize model-f16.gguf --type q4_0 --calib text.txt --tokens 65536 -o small.gguf\n"
                "  llmq quantize ./SmolLM2-135M-Instruct --gptq --group 64 --emit gguf,gptq,ct -o small\n"
                "  llmq quantize ./SmolLM2-135M-Instruct --int8-dynamic --emit gguf,ct -o int8\n"
                "  llmq quantize model-f16.gguf --rtn --type q8_0 --keep 'blk.0.*=f16' --plan\n",
    .run = run,
};
