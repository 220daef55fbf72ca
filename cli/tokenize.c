/* llmq tokenize: stdin to token ids and back. */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct tokenize_opts {
    int bos, special, decode;
} tokenize_opts;

static const opt_def tokenize_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_FLAG("--bos", NULL, tokenize_opts, bos, 1, "put BOS (and EOS) where the tokenizer's own settings add it"),
    OPT_ROW_FLAG("--special", NULL, tokenize_opts, special, 1,
                 "recognize special tokens such as <|im_start|> in the text; with --decode, print them"),
    OPT_ROW_FLAG("--decode", NULL, tokenize_opts, decode, 1,
                 "the other way: a JSON list of ids on stdin, its bytes on stdout"),
    OPT_ROW_END,
};

/* "[1, 5, 7]" or ids between spaces and commas. */
static llmq_status parse_ids(const char *text, int32_t **out, size_t *n_out, llmq_err *err) {
    size_t cap = 0, n = 0;
    int32_t *ids = NULL;
    for (const char *p = text; *p;) {
        if (isspace((unsigned char)*p) || *p == ',' || *p == '[' || *p == ']') {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX) {
            free(ids);
            return cli_set_err(err, LLMQ_E_FORMAT,
                               "stdin: byte %zu: a JSON list of token ids is expected, such as [1, 5, 7]",
                               (size_t)(p - text));
        }
        if (n == cap) {
            cap = cap ? 2 * cap : 1024;
            int32_t *grown = realloc(ids, cap * sizeof *ids);
            if (!grown) {
                free(ids);
                return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the token ids");
            }
            ids = grown;
        }
        ids[n++] = (int32_t)v;
        p = end;
    }
    *out = ids;
    *n_out = n;
    return LLMQ_OK;
}

static llmq_status decode(const llmq_model *model, const char *text, int flags, llmq_err *err) {
    int32_t *ids = NULL;
    size_t n = 0, len = 0;
    char *bytes = NULL;
    llmq_model_info info;
    llmq_model_get_info(model, &info);
    llmq_status status = parse_ids(text, &ids, &n, err);
    for (size_t i = 0; !status && i < n; i++)
        if (ids[i] >= info.n_vocab)
            status = cli_set_err(err, LLMQ_E_FORMAT, "stdin: id %d is outside the vocabulary of %lld tokens", ids[i],
                                 (long long)info.n_vocab);
    if (!status && n) status = llmq_decode(model, ids, n, flags, &bytes, &len, err);
    if (!status && len) fwrite(bytes, 1, len, stdout);
    llmq_free(bytes);
    free(ids);
    return status;
}

static llmq_status encode(const llmq_model *model, const char *text, size_t len, int flags, llmq_err *err) {
    int32_t *ids = NULL;
    size_t n = 0;
    llmq_status status = llmq_encode(model, text, len, flags, &ids, &n, err);
    if (status) return status;
    putchar('[');
    for (size_t i = 0; i < n; i++) printf("%s%d", i ? ", " : "", ids[i]);
    printf("]\n");
    llmq_free(ids);
    return LLMQ_OK;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    tokenize_opts opts = {0};
    common_opts common = {0};
    const opt_set sets[] = {{tokenize_defs, &opts}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    llmq_err err = {0};
    llmq_model *model = NULL;
    char *text = NULL;
    size_t len = 0;
    llmq_model_params params;
    llmq_model_params_default(&params);
    params.vocab_only = true;
    params.tokenizer = common.tokenizer;
    int flags = (opts.bos ? LLMQ_TOK_BOS : 0) | (opts.special ? LLMQ_TOK_SPECIAL : 0);
    llmq_status status = llmq_model_open(path, &params, &model, &err);
    if (!status) status = cli_read_file("-", &text, &len, &err);
    if (!status) status = opts.decode ? decode(model, text, flags, &err) : encode(model, text, len, flags, &err);
    free(text);
    llmq_model_close(model);
    return status ? cli_fail_err(&err) : EXIT_OK;
}

const cli_command cmd_tokenize = {
    .name = "tokenize",
    .usage = "MODEL [--bos] [--special] [--decode]",
    .summary = "text on stdin to token ids, and back",
    .about = "Reads stdin, bytes unchanged, and prints a JSON list of token ids; with --decode the other way round. "
             "Files that "
             "hold only a vocabulary will do.",
    .examples = "  printf 'Hello world' | llmq tokenize model.gguf\n"
                "  echo '[19556, 905]' | llmq tokenize model.gguf --decode\n",
    .run = run,
};
