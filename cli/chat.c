/* llmq chat: a conversation. Every turn renders the whole conversation and hands it to llmq_session_sync, which runs
 * only what the cache does not hold yet. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef LLMQ_HAVE_EDIT
#include <histedit.h>
#endif

#include "cli/generate.h"

typedef struct chat_opts {
    const char *system;
} chat_opts;

static const opt_def chat_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_TEXT("--system", NULL, "TEXT", chat_opts, system, "system message at the start of the conversation"),
    OPT_ROW_END,
};

enum { PLAIN_LIMIT = 256 }; /* tokens of one answer without a template when -n is not given */

/* ---- the conversation: messages by a template, or one growing text for a model without one */
typedef struct chat {
    llmq_model *model;
    gen_engine engine;
    const gen_opts *gen;
    bool plain; /* no template */
    llmq_message *messages;
    size_t n, cap, n_system; /* n_system: 1 when messages[0] is the system message */
    int64_t total_tokens;
    double total_seconds;
} chat;

static llmq_status push(chat *c, const char *role, const char *content, llmq_err *err) {
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 16;
        llmq_message *grown = realloc(c->messages, cap * sizeof *grown);
        if (!grown) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the conversation");
        c->messages = grown;
        c->cap = cap;
    }
    char *copy = strdup(content);
    if (!copy) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the conversation");
    c->messages[c->n++] = (llmq_message){role, copy};
    return LLMQ_OK;
}

static void drop(chat *c, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) free((void *)c->messages[i].content);
    memmove(c->messages + first, c->messages + first + count, (c->n - first - count) * sizeof *c->messages);
    c->n -= count;
}

/* Without a template the conversation is one text: what was typed and what the model wrote, one after the other. */
static llmq_status encode_plain(const chat *c, int32_t **ids, size_t *n_ids, llmq_err *err) {
    size_t len = 0, o = 0;
    for (size_t i = 0; i < c->n; i++) len += strlen(c->messages[i].content) + 1;
    char *text = malloc(len + 1);
    if (!text) return cli_set_err(err, LLMQ_E_MEMORY, "out of memory for the conversation");
    for (size_t i = 0; i < c->n; i++) {
        size_t part = strlen(c->messages[i].content);
        memcpy(text + o, c->messages[i].content, part);
        o += part;
        if (i + 1 < c->n && strcmp(c->messages[i].role, "assistant") == 0) text[o++] = '\n';
    }
    llmq_status status = llmq_encode(c->model, text, o, LLMQ_TOK_BOS, ids, n_ids, err);
    free(text);
    return status;
}

static llmq_status encode(const chat *c, int32_t **ids, size_t *n_ids, llmq_err *err) {
    if (c->plain) return encode_plain(c, ids, n_ids, err);
    bool recognized = false;
    return gen_encode_chat(c->model, c->messages, c->n, ids, n_ids, &recognized, err);
}

/* Tokens of the conversation, shortened by its oldest turns until an answer has room. */
static llmq_status encode_fitting(chat *c, int32_t **ids, size_t *n_ids, llmq_err *err) {
    size_t n_ctx = (size_t)llmq_session_n_ctx(c->engine.session);
    size_t reserve = n_ctx / 4 < 256 ? n_ctx / 4 : 256;
    size_t dropped = 0;
    for (;;) {
        llmq_status status = encode(c, ids, n_ids, err);
        if (status || *n_ids + reserve <= n_ctx) {
            if (!status && dropped)
                cli_note("the context of %zu tokens is full: the oldest %zu message%s dropped", n_ctx, dropped,
                         dropped == 1 ? " is" : "s are");
            return status;
        }
        size_t first = c->n_system, count = c->n - first > 2 ? 2 : c->n - first - 1;
        if (!count) {
            if (*n_ids < n_ctx) return LLMQ_OK; /* alone it fits, with less room for the answer */
            status = cli_set_err(err, LLMQ_E_CONTEXT,
                                 "this message makes %zu tokens and the context holds %zu: shorten it or use --ctx",
                                 *n_ids, n_ctx);
            llmq_free(*ids);
            *ids = NULL;
            return status;
        }
        llmq_free(*ids);
        *ids = NULL;
        drop(c, first, count);
        dropped += count;
    }
}

static llmq_status answer(chat *c, const char *line, llmq_err *err) {
    int32_t *ids = NULL;
    size_t n_ids = 0;
    gen_result result = {0};
    llmq_status status = push(c, "user", line, err);
    if (status) return status;
    status = encode_fitting(c, &ids, &n_ids, err);
    if (status == LLMQ_E_CONTEXT) {
        cli_note("%s", err->msg);
        drop(c, c->n - 1, 1);
        return LLMQ_OK;
    }
    if (status) return status;
    int64_t limit = c->gen->n != -2 ? c->gen->n : c->plain ? PLAIN_LIMIT : -1;
    status = gen_run(&c->engine, ids, n_ids, limit, c->plain, &result, err);
    putchar('\n');
    fflush(stdout);
    if (status) goto done;
    if (result.stop == GEN_CONTEXT)
        cli_note("the answer is cut: the context of %lld tokens is full",
                 (long long)llmq_session_n_ctx(c->engine.session));
    c->total_tokens += result.n_generated;
    c->total_seconds += result.seconds;
    if (c->gen->stats) gen_print_stats(&result);
    status = push(c, "assistant", result.text ? result.text : "", err);
done:
    gen_result_clear(&result);
    llmq_free(ids);
    return status;
}

static llmq_status reset(chat *c, const char *system, llmq_err *err) {
    drop(c, 0, c->n);
    c->n_system = 0;
    if (!system) return LLMQ_OK;
    c->n_system = 1;
    return push(c, "system", system, err);
}

/* ---- reading lines */
typedef struct reader {
    bool terminal;
    char *line; /* getline's, of stdin */
    size_t cap;
#ifdef LLMQ_HAVE_EDIT
    EditLine *edit;
    History *history;
#endif
} reader;

#ifdef LLMQ_HAVE_EDIT
static char *prompt_text(EditLine *edit) {
    (void)edit;
    static char text[] = "> ";
    return text;
}
#endif

static void reader_open(reader *r) {
    *r = (reader){.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
#ifdef LLMQ_HAVE_EDIT
    if (!r->terminal) return;
    HistEvent event;
    r->edit = el_init("llmq", stdin, stdout, stderr);
    r->history = history_init();
    if (!r->edit || !r->history) return;
    history(r->history, &event, H_SETSIZE, 500);
    el_set(r->edit, EL_PROMPT, prompt_text);
    el_set(r->edit, EL_EDITOR, "emacs");
    el_set(r->edit, EL_SIGNAL, 1); /* Ctrl-C: libedit puts the terminal right before our handler runs */
    el_set(r->edit, EL_HIST, history, r->history);
#endif
}

static void reader_close(reader *r) {
#ifdef LLMQ_HAVE_EDIT
    if (r->history) history_end(r->history);
    if (r->edit) el_end(r->edit);
#endif
    free(r->line);
}

#ifdef LLMQ_HAVE_EDIT
static char *edit_line(reader *r) {
    int count = 0;
    /* Raw mode before the prompt is shown: a Ctrl-D typed in between would reach the line editor as a NUL, which it
     * takes for "quote the next key". One typed during an answer does so still, and is bound to what was meant. */
    el_set(r->edit, EL_PREP_TERM, 1);
    el_set(r->edit, EL_BIND, "^@", "ed-end-of-file", NULL);
    errno = 0;
    const char *text = el_gets(r->edit, &count);
    /* libedit sends the process its Ctrl-C once more, which a sleeping worker may take after el_gets has returned. */
    if (!text && errno == EINTR) raise(SIGINT);
    if (!text || count <= 0) return NULL;
    HistEvent event;
    if (count > 1) history(r->history, &event, H_ENTER, text);
    free(r->line);
    r->line = strdup(text);
    return r->line;
}
#endif

/* The next line without its newline, borrowed; NULL at the end of input. */
static char *reader_next(reader *r) {
    char *line = NULL;
    cli_interrupts_at_prompt(r->terminal);
#ifdef LLMQ_HAVE_EDIT
    if (r->terminal && r->edit) {
        line = edit_line(r);
        goto done;
    }
#endif
    if (r->terminal) {
        fputs("> ", stdout);
        fflush(stdout);
    }
    if (getline(&r->line, &r->cap, stdin) > 0) line = r->line;
#ifdef LLMQ_HAVE_EDIT
done:
#endif
    cli_interrupts_at_prompt(false);
    if (line) line[strcspn(line, "\r\n")] = '\0';
    return line;
}

static void print_chat_help(void) {
    fprintf(stderr, "/reset  forget the conversation\n/exit   leave (also Ctrl-D)\n/help   this text\n"
                    "Ctrl-C stops an answer; at the prompt it leaves.\n");
}

static llmq_status converse(chat *c, const char *system, bool quiet, llmq_err *err) {
    reader in;
    reader_open(&in);
    if (in.terminal && !quiet) fprintf(stderr, "Type a message; /help lists commands, Ctrl-D leaves.\n");
    llmq_status status = LLMQ_OK;
    for (char *line; !status && (line = reader_next(&in)) != NULL;) {
        if (!line[strspn(line, " \t")]) continue;
        if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0) break;
        if (strcmp(line, "/help") == 0) {
            print_chat_help();
        } else if (strcmp(line, "/reset") == 0) {
            status = reset(c, system, err);
            if (!status) cli_note("the conversation starts anew");
        } else if (line[0] == '/' && line[1] >= 'a' && line[1] <= 'z' && !strchr(line, ' ') && !strchr(line + 1, '/')) {
            cli_note("unknown command %s; /help lists the commands", line);
        } else {
            status = answer(c, line, err);
            if (!status && cli_interrupted() && !in.terminal) break;
            if (in.terminal) cli_interrupts_clear();
        }
    }
    if (in.terminal) putchar('\n');
    if (!status && cli_interrupted()) status = cli_set_err(err, LLMQ_E_INTERRUPTED, "interrupted");
    reader_close(&in);
    return status;
}

/* Its absence is told at once, not after the first message. */
static llmq_status need_tokenizer(const llmq_model *model, llmq_err *err) {
    int32_t *ids = NULL;
    size_t n = 0;
    llmq_status status = llmq_encode(model, "", 0, 0, &ids, &n, err);
    llmq_free(ids);
    return status;
}

static llmq_status chat_session(llmq_model *model, const chat_opts *opts, const gen_opts *gen,
                                const common_opts *common, llmq_err *err) {
    chat c = {.model = model, .gen = gen};
    llmq_model_info info;
    llmq_status status = need_tokenizer(model, err);
    if (status) return status;
    llmq_model_get_info(model, &info);
    c.plain = info.chat_template == NULL;
    if (c.plain && !common->quiet)
        cli_note("%s: no chat template that llmq knows, so the model simply continues the text you type", info.path);
    const char *system = opts->system;
    if (c.plain && system) {
        cli_note("--system is not used without a chat template");
        system = NULL;
    }
    status = gen_open(model, gen, common, &c.engine, err);
    if (!status) status = reset(&c, system, err);
    if (!status) status = converse(&c, system, common->quiet, err);
    if (!common->quiet && c.total_seconds > 0)
        cli_note("%lld tokens generated, %.1f t/s", (long long)c.total_tokens,
                 (double)c.total_tokens / c.total_seconds);
    drop(&c, 0, c.n);
    free(c.messages);
    gen_close(&c.engine);
    return status;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    chat_opts opts = {0};
    common_opts common = {0};
    gen_opts gen;
    gen_opts_init(&gen);
    const opt_set sets[] = {{chat_defs, &opts}, {gen_defs, &gen}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 3, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    llmq_err err = {0};
    llmq_model *model = NULL;
    common.ctx = gen.ctx;
    llmq_status status = cli_open(path, &common, &model, &err);
    if (!status) status = chat_session(model, &opts, &gen, &common, &err);
    llmq_model_close(model);
    return status ? cli_fail_err(&err) : EXIT_OK;
}

const cli_command cmd_chat = {
    .name = "chat",
    .usage = "MODEL [--system TEXT] [options]",
    .summary = "talk with a model",
    .about =
        "A conversation with the model's own chat template (ChatML, Llama 2, Llama 3, Mistral, Gemma and Zephyr are "
        "recognized). Lines come from the keyboard, or from stdin when that is not a terminal: each line is one "
        "message, "
        "each answer goes to stdout. When the context is full the oldest messages are dropped, and llmq says so.",
    .examples = "  llmq chat model.gguf\n"
                "  llmq chat model.gguf --system \"You are terse.\" --temp 0.7 --seed 1\n"
                "  echo \"Name three rivers.\" | llmq chat model.gguf --temp 0\n",
    .run = run,
    .gpu = true,
};
