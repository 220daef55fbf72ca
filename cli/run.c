/* llmq run: one completion to stdout. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/generate.h"

enum { RAW_LIMIT = 256 }; /* tokens of a raw completion when -n is not given: a base model may never end by itself */

typedef struct run_opts {
    const char *prompt, *file, *system;
    int raw;
} run_opts;

static const opt_def run_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_TEXT("--prompt", "-p", "TEXT", run_opts, prompt,
                 "the prompt (default: all of stdin when that is not a terminal)"),
    OPT_ROW_TEXT("--file", "-f", "FILE", run_opts, file, "take the prompt from a file (-: stdin)"),
    OPT_ROW_TEXT("--system", NULL, "TEXT", run_opts, system,
                 "system message before the prompt, where the model has a chat template"),
    OPT_ROW_FLAG("--raw", NULL, run_opts, raw, 1,
                 "complete the text itself: no chat template, prompt and completion are printed (the default for a "
                 "model without a template)"),
    OPT_ROW_END,
};

static llmq_status get_prompt(const cli_command *cmd, const run_opts *run, char **out, size_t *len, int *rc,
                              llmq_err *err) {
    *rc = CLI_GO_ON;
    if (run->prompt && run->file) {
        *rc = opt_bad(cmd, "-p and -f exclude each other");
        return LLMQ_OK;
    }
    if (run->prompt) {
        *len = strlen(run->prompt);
        *out = malloc(*len + 1);
        if (!*out) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory");
        memcpy(*out, run->prompt, *len + 1);
        return LLMQ_OK;
    }
    if (!run->file && isatty(STDIN_FILENO)) {
        *rc = opt_bad(cmd, "a prompt is missing: -p TEXT, -f FILE, or text on stdin");
        return LLMQ_OK;
    }
    llmq_status status = cli_read_file(run->file ? run->file : "-", out, len, err);
    /* The newline that ends a file or an echo is not part of a question. */
    if (!status && *len && (*out)[*len - 1] == '\n') (*out)[--*len] = '\0';
    return status;
}

static llmq_status complete(llmq_model *model, const run_opts *run, const gen_opts *gen, const common_opts *common,
                            const char *prompt, size_t len, gen_result *result, llmq_err *err) {
    gen_engine engine = {0};
    int32_t *ids = NULL;
    size_t n_ids = 0;
    bool raw = run->raw;
    llmq_model_info info;
    llmq_model_get_info(model, &info);
    if (!info.chat_template) {
        if (run->system)
            cli_note("%s: the model has no chat template that llmq knows: --system is not used", info.path);
        raw = true;
    }
    llmq_message messages[2] = {{"system", run->system}, {"user", prompt}};
    int skip = run->system ? 0 : 1;
    bool recognized = false;
    llmq_status status =
        raw ? llmq_encode(model, prompt, len, LLMQ_TOK_BOS, &ids, &n_ids, err)
            : gen_encode_chat(model, messages + skip, (size_t)(2 - skip), &ids, &n_ids, &recognized, err);
    if (status) goto done;
    status = gen_open(model, gen, common, &engine, err);
    if (status) goto done;
    if (raw) {
        fwrite(prompt, 1, len, stdout);
        fflush(stdout);
    }
    int64_t limit = gen->n != -2 ? gen->n : raw ? RAW_LIMIT : -1;
    status = gen_run(&engine, ids, n_ids, limit, raw, result, err);
    if (raw || result->n_generated) putchar('\n');
    fflush(stdout);
    if (status == LLMQ_OK && result->stop == GEN_CONTEXT)
        cli_note("stopped: the context of %lld tokens is full (--ctx makes it larger)",
                 (long long)llmq_session_n_ctx(engine.session));
done:
    gen_close(&engine);
    llmq_free(ids);
    return status;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    run_opts opts = {0};
    common_opts common = {0};
    gen_opts gen;
    gen_opts_init(&gen);
    const opt_set sets[] = {{run_defs, &opts}, {gen_defs, &gen}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 3, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    llmq_err err = {0};
    char *prompt = NULL;
    size_t len = 0;
    llmq_model *model = NULL;
    gen_result result = {0};
    llmq_status status = get_prompt(cmd, &opts, &prompt, &len, &rc, &err);
    if (status == LLMQ_OK && rc != CLI_GO_ON) return rc;
    common.ctx = gen.ctx;
    if (status == LLMQ_OK) status = cli_open(path, &common, &model, &err);
    if (status == LLMQ_OK) status = complete(model, &opts, &gen, &common, prompt, len, &result, &err);
    rc = status ? cli_fail_err(&err) : result.stop == GEN_INTERRUPTED ? EXIT_INTERRUPTED : EXIT_OK;
    if (!status && gen.stats) gen_print_stats(&result);
    gen_result_clear(&result);
    llmq_model_close(model);
    free(prompt);
    return rc;
}

const cli_command cmd_run = {
    .name = "run",
    .usage = "MODEL -p TEXT [options]",
    .summary = "one completion to stdout",
    .about =
        "Prints one answer to a prompt. A model with a chat template gets the prompt as one user message and only the "
        "answer is printed; with --raw, or for a model without a template, the text itself is continued and printed "
        "together with its continuation.",
    .examples = "  llmq run model.gguf -p \"Why is the sky blue?\"\n"
                "  llmq run stories260K.bin --tokenizer tok512.bin -p \"Once upon a time\" -n 80 --temp 0\n"
                "  llmq run model.gguf -f question.txt --system \"Answer in one line.\"\n",
    .run = run,
    .gpu = true,
};
