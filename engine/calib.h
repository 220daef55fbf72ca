/* Calibration text as windows of token ids. */
#ifndef LLMQ_ENGINE_CALIB_H
#define LLMQ_ENGINE_CALIB_H

#include "engine/model.h"

typedef struct llmq_calib {
    int32_t *tokens; /* (n_windows, ctx) */
    int64_t n_windows, ctx;
} llmq_calib;

/* n_files of text, or of conversations if the name ends in .jsonl, as "FILE" or "FILE:WEIGHT" (none: the text that
 * ships with llmq): consecutive windows from the start of each file, n_tokens / ctx in all, shared by weight. Where the
 * tokenizer adds BOS, each window begins with one, as it does when perplexity is measured. Less text than asked for:
 * what there is, and a warning. */
llmq_status calib_load(const llmq_model *model, const char *const *files, size_t n_files, int64_t n_tokens, int64_t ctx,
                       llmq_calib *out, llmq_err *err);
void calib_clear(llmq_calib *calib); /* zeroed allowed */

/* calib_chat.c: the lines of a .jsonl file of conversations as text of the model's chat template, special tokens
 * spelled out. *out by mem_alloc, NUL-terminated. */
llmq_status calib_chat_text(const llmq_model *model, const char *path, const char *jsonl, size_t len, char **out,
                            size_t *len_out, llmq_err *err);

/* calib_text.c: the text that ships with llmq. */
const char *calib_default_text(size_t *len_out);

#endif
