/* What the commands share: exit statuses, messages, interrupts, progress, opening a model, files. */
#ifndef LLMQ_CLI_CLI_H
#define LLMQ_CLI_CLI_H

#include <stdio.h>

#include "cli/options.h"
#include "llmq.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* ---- options that many commands take */
typedef struct common_opts {
    int64_t threads, gpu_layers;
    int64_t ctx; /* no option: positions of the session to come, for which cli_open leaves room on a GPU */
    const char *device, *tokenizer;
    int quiet, verbose;
} common_opts;
extern const opt_def common_defs[];

/* After parsing: checks --device, holds --threads to the processors there are, sets the log receiver. CLI_GO_ON or an exit
 * status. */
int cli_start(const cli_command *cmd, common_opts *common);

/* ---- messages: one line on stderr each */
int cli_fail(const char *fmt, ...) LLMQ_PRINTF(1, 2);  /* "llmq: ..."; returns 1 */
int cli_fail_err(const llmq_err *err);                 /* a library error; returns 1, 2 or 130 by its status */
void cli_note(const char *fmt, ...) LLMQ_PRINTF(1, 2); /* "llmq: ..." without failing */
const char *cli_program(void);                         /* as the user typed it */
void cli_set_program(const char *argv0);

/* ---- interrupts: the first Ctrl-C asks, the second leaves at once */
void cli_interrupts_init(void);
bool cli_interrupted(void);
void cli_interrupts_clear(void);
/* While at_prompt, Ctrl-C leaves at once with 130. */
void cli_interrupts_at_prompt(bool at_prompt);

/* ---- progress (progress.c): a bar on a terminal, a line now and then elsewhere, nothing when quiet */
typedef struct cli_progress {
    const char *unit; /* of done and total, for the rate: "windows", "bytes"; NULL: percent only */
    bool quiet, terminal, shown;
    double started, last_time, last_fraction;
} cli_progress;
void cli_progress_init(cli_progress *p, const char *unit, bool quiet);
bool cli_progress_update(void *user, double done, double total, const char *what,
                         double seconds_left); /* llmq_progress_fn */
void cli_progress_finish(cli_progress *p);
void cli_progress_hide(void); /* takes the bar off the terminal before another line is written to stderr */
bool cli_color(FILE *stream); /* a terminal, and NO_COLOR is unset */

/* ---- models, files, numbers */
llmq_status cli_open(const char *path, const common_opts *common, llmq_model **out, llmq_err *err);
/* All of a file ("-": stdin); *out is malloc'ed and NUL-terminated. */
llmq_status cli_read_file(const char *path, char **out, size_t *len_out, llmq_err *err);
llmq_status cli_set_err(llmq_err *err, llmq_status status, const char *fmt, ...) LLMQ_PRINTF(3, 4);
double cli_seconds(void); /* monotonic */
/* "98.4 MB" in buf, which is returned. */
const char *cli_bytes(double bytes, char buf[32]);
/* "3:05", "1:02:11" */
const char *cli_clock(double seconds, char buf[32]);
/* "12,345" */
const char *cli_count(int64_t n, char buf[32]);
/* The memory table at a context, with a line for the file as it is. */
void cli_print_memory(int64_t n_params, int64_t kv_bytes_per_token, int64_t n_ctx, int64_t file_bytes);
/* path as a shell word: quoted only where it must be. */
const char *cli_quote(const char *path, char *buf, size_t cap);

extern const cli_command cmd_chat, cmd_run, cmd_bench, cmd_perplexity, cmd_score, cmd_tokenize, cmd_inspect,
    cmd_convert, cmd_quantize, cmd_train;

#endif
