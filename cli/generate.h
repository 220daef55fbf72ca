/* What chat and run share: their options, and the loop from a prompt to printed text. */
#ifndef LLMQ_CLI_GENERATE_H
#define LLMQ_CLI_GENERATE_H

#include "cli/cli.h"

typedef struct gen_opts {
    int64_t ctx, n, top_k, seed, repeat_last_n;
    double temperature, top_p, min_p, repeat_penalty;
    int kv_type, stats, lookup;
    const char *draft;
} gen_opts;
extern const opt_def gen_defs[];
void gen_opts_init(gen_opts *g); /* the library's defaults */

/* What generates: a session with its sampler and speculation, and the tokens that its cache holds, so that the next
 * prompt's reused part is known. */
typedef struct gen_engine {
    const llmq_model *model; /* borrowed */
    llmq_session *session;
    llmq_model *draft; /* NULL: none */
    int32_t *ids;      /* [n], cap allocated: in the cache */
    size_t n, cap;
} gen_engine;
llmq_status gen_open(llmq_model *model, const gen_opts *g, const common_opts *common, gen_engine *out, llmq_err *err);
void gen_close(gen_engine *e); /* zeroed allowed */

typedef enum gen_stop { GEN_END, GEN_LIMIT, GEN_CONTEXT, GEN_INTERRUPTED } gen_stop;

typedef struct gen_result {
    char *text; /* generated, malloc'ed, NUL-terminated; freed by gen_result_clear */
    size_t len;
    gen_stop stop;
    int64_t n_prompt, n_reused, n_generated; /* tokens of the prompt, of these already in the cache, generated */
    llmq_speculation_stats guesses;          /* of this answer */
    double prompt_seconds, seconds;
} gen_result;
void gen_result_clear(gen_result *r);

/* Runs the prompt and generates to stdout until the model ends its text, `limit` tokens (< 0: no limit), a full context
 * or Ctrl-C. follow_on: the text goes on from the prompt's own (a leading space of the first token is kept). */
llmq_status gen_run(gen_engine *e, const int32_t *prompt, size_t n, int64_t limit, bool follow_on, gen_result *out,
                    llmq_err *err);

/* Messages or plain text to tokens. *recognized_out: whether the model has a template that llmq knows. */
llmq_status gen_encode_chat(const llmq_model *model, const llmq_message *messages, size_t n, int32_t **ids,
                            size_t *n_ids, bool *recognized_out, llmq_err *err);

/* "prompt 35 tokens, 290 t/s; generated 80 tokens, 193 t/s" on stderr. */
void gen_print_stats(const gen_result *r);

#endif
