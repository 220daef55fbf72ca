/* llmq perplexity: how well a model predicts a text, alone or beside the model it was made from. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/json.h"

typedef struct ppl_opts {
    const char *file, *base;
    int64_t ctx, chunks;
    int stride, json;
} ppl_opts;

static const opt_def ppl_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_TEXT("--file", "-f", "TEXT", ppl_opts, file, "the text file (-: stdin)"),
    OPT_ROW_INT("--ctx", "-c", "N", ppl_opts, ctx, 8, 1 << 24, "tokens of one window (default 512)"),
    OPT_ROW_INT("--chunks", NULL, "N", ppl_opts, chunks, 0, 1 << 30, "use only the first N windows (default: all)"),
    OPT_ROW_ENUM(
        "--stride", NULL, ppl_opts, stride, "half|full",
        "half: score the second half of each window, as llama-perplexity does (default); full: score all of it"),
    OPT_ROW_TEXT("--base", NULL, "MODEL0", ppl_opts, base,
                 "compare with this model in the same run: KL divergence, top-1 agreement, paired difference"),
    OPT_ROW_FLAG("--json", NULL, ppl_opts, json, 1,
                 "one JSON document: ppl, ppl_stderr, tokens, chunks; with --base also base_ppl, kl_mean, kl_p99, "
                 "top1, dppl, dppl_ci95"),
    OPT_ROW_END,
};

static int print_json(const llmq_ppl_result *r) {
    json_t *doc = json_object();
    json_object_set_new(doc, "ppl", cli_json_real(r->ppl));
    json_object_set_new(doc, "ppl_stderr", cli_json_real(r->ppl_stderr));
    json_object_set_new(doc, "tokens", json_integer(r->tokens));
    json_object_set_new(doc, "chunks", json_integer(r->chunks));
    if (r->has_base) {
        json_object_set_new(doc, "base_ppl", cli_json_real(r->base_ppl));
        json_object_set_new(doc, "kl_mean", cli_json_real(r->kl_mean));
        json_object_set_new(doc, "kl_p99", cli_json_real(r->kl_p99));
        json_object_set_new(doc, "top1", cli_json_real(r->top1));
        json_object_set_new(doc, "dppl", cli_json_real(r->dppl));
        json_object_set_new(doc, "dppl_ci95", cli_json_real(r->dppl_ci95));
    }
    return cli_json_print(doc, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
}

static int print_text(const llmq_ppl_result *r) {
    printf("perplexity        %.4f +- %.4f\n", r->ppl, r->ppl_stderr);
    printf("scored            %lld tokens in %lld windows\n", (long long)r->tokens, (long long)r->chunks);
    if (r->has_base) {
        printf("base perplexity   %.4f\n", r->base_ppl);
        printf("difference        %+.4f +- %.4f (95 %%, paired)\n", r->dppl, r->dppl_ci95);
        printf("KL divergence     mean %.5f, 99th percentile %.5f\n", r->kl_mean, r->kl_p99);
        printf("same top token    %.2f %%\n", 100 * r->top1);
    }
    return EXIT_OK;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    ppl_opts opts = {.ctx = 512};
    common_opts common = {0};
    const opt_set sets[] = {{ppl_defs, &opts}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    if (!opts.file) return opt_bad(cmd, "a text is missing: -f TEXT");
    llmq_err err = {0};
    llmq_model *model = NULL, *base = NULL;
    char *text = NULL;
    size_t len = 0;
    llmq_ppl_result result = {0};
    cli_progress progress;
    llmq_status status = cli_read_file(opts.file, &text, &len, &err);
    common.ctx = opts.ctx;
    if (!status) status = cli_open(path, &common, &model, &err);
    if (!status && opts.base) status = cli_open(opts.base, &common, &base, &err);
    if (!status) {
        llmq_ppl_params params;
        llmq_ppl_params_default(&params);
        cli_progress_init(&progress, "windows", common.quiet);
        params.n_ctx = opts.ctx;
        params.n_chunks = opts.chunks;
        params.full = opts.stride == 1;
        params.n_threads = (int)common.threads;
        params.progress = cli_progress_update;
        params.user = &progress;
        status = llmq_perplexity(model, base, text, len, &params, &result, &err);
        cli_progress_finish(&progress);
    }
    rc = status ? cli_fail_err(&err) : opts.json ? print_json(&result) : print_text(&result);
    llmq_model_close(base);
    llmq_model_close(model);
    free(text);
    return rc;
}

const cli_command cmd_perplexity = {
    .name = "perplexity",
    .usage = "MODEL -f TEXT [options]",
    .summary = "how well a model predicts a text, alone or against another model",
    .about = "Perplexity as llama.cpp's llama-perplexity defines it: the text is cut into windows of --ctx tokens and "
             "the second "
             "half of each window is scored (--stride full scores all of it). With --base both models read the same "
             "windows in "
             "one process.",
    .examples = "  llmq perplexity model.gguf -f wiki.test.raw --chunks 40\n"
                "  llmq perplexity model-gptq-q4_0.gguf -f wiki.test.raw --base model-f16.gguf --json\n",
    .run = run,
    .gpu = true,
};
