/* Calibration text as windows of token ids. */
#ifndef LLMQ_ENGINE_CALIB_H
#define LLMQ_ENGINE_CALIB_H

#include "engine/model.h"

typedef struct llmq_calib {
    int32_t *tokens; /* (n_windows, ctx) */
    int64_t n_windows, ctx;
} llmq_calib;

/* What a job that lets the model write its own text gives for that. */
typedef struct llmq_calib_self {
    llmq_team *team;
    uint64_t seed;
    bool plan_only;                            /* windows of no meaning: only their number counts */
    bool (*tick)(void *user, double n_tokens); /* after so many more tokens; false stops. NULL allowed */
    void *user;
} llmq_calib_self;

/* n_files of text, or of conversations if the name ends in .jsonl, as "FILE" or "FILE:WEIGHT", "self" for what the
 * model writes (self NULL: refused), or "default" for the text that ships with llmq (so with none): consecutive windows
 * from the start of each file, n_tokens / ctx in all, shared by weight, those of several files mixed evenly. Where the
 * tokenizer adds BOS, each window begins with one, as it does when perplexity is measured. Less text than asked for:
 * what there is, and a warning. */
llmq_status calib_load(const llmq_model *model, const char *const *files, size_t n_files, int64_t n_tokens, int64_t ctx,
                       const llmq_calib_self *self, llmq_calib *out, llmq_err *err);
/* That many of n_tokens the model would write itself. */
int64_t calib_self_tokens(const char *const *files, size_t n_files, int64_t n_tokens);
void calib_clear(llmq_calib *calib); /* zeroed allowed */

/* calib_self.c. So many windows grow at a time, one token each, drawn from so many of the likeliest: of the tail
 * beyond, less than a token in hundreds would come, and sorting it would take longest. */
#define CALIB_SELF_STREAMS 16
#define CALIB_SELF_TOP_K 1000
/* Windows [begin, begin + n) of calib. The model is opened once more, with its weights. */
llmq_status calib_self_windows(const llmq_model *model, const llmq_calib_self *self, llmq_calib *calib, int64_t begin,
                               int64_t n, llmq_err *err);

/* Bytes that this takes beside the directory and the tokenizer of the model. */
size_t calib_self_bytes(const llmq_model *model, int64_t ctx, int n_workers);

/* calib_chat.c: the lines of a .jsonl file of conversations as text of the model's chat template, special tokens
 * spelled out. *out by mem_alloc, NUL-terminated. */
llmq_status calib_chat_text(const llmq_model *model, const char *path, const char *jsonl, size_t len, char **out,
                            size_t *len_out, llmq_err *err);

/* calib_text.c: the text that ships with llmq. */
const char *calib_default_text(size_t *len_out);

#endif
