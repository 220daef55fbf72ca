/* JSON of Hugging Face tokenizers: what hf_json.c (tokenizer.json) and hf_config.c (the small files beside it) share,
 * and what hf_write.c makes. */
#ifndef LLMQ_TOKENIZER_HF_H
#define LLMQ_TOKENIZER_HF_H

#include <jansson.h>

#include "core/meta.h"

/* *out by json_decref; always an object. */
llmq_status hf_load_json(const char *path, json_t **out, llmq_err *err);

/* A file of a folder; json NULL: out of memory. */
llmq_status hf_save_json(const char *dir, const char *name, const json_t *json, llmq_err *err);

/* The other way: GGUF's tokenizer.* keys to tokenizer.json. LLMQ_E_UNSUPPORTED names what it cannot say. */
llmq_status hf_tokenizer_json(const llmq_meta *meta, json_t **out, llmq_err *err);
/* tokenizer_config.json: special tokens by name, the chat template. */
llmq_status hf_tokenizer_config(const llmq_meta *meta, json_t **out, llmq_err *err);
/* Both, as files of a folder. LLMQ_E_UNSUPPORTED: nothing is written. */
llmq_status hf_tokenizer_write(const char *dir, const llmq_meta *meta, llmq_err *err);

#endif
