/* What hf_json.c (tokenizer.json) and hf_config.c (the small files beside it) share. */
#ifndef LLMQ_TOKENIZER_HF_H
#define LLMQ_TOKENIZER_HF_H

#include <jansson.h>

#include "core/err.h"

/* *out by json_decref; always an object. */
llmq_status hf_load_json(const char *path, json_t **out, llmq_err *err);

#endif
