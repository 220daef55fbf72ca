/* A new model: shape from the options, tokenizer from the text, random weights; as a GGUF file like any other. */
#ifndef LLMQ_TRAIN_SCRATCH_H
#define LLMQ_TRAIN_SCRATCH_H

#include "core/meta.h"
#include "llmq_train.h"

/* Defaults filled in, and whether the shape makes sense. */
llmq_status scratch_check(llmq_train_params *p, llmq_err *err);
/* Writes an F32 GGUF of that shape to path, over what is there. name: the model's. The weights are normal with standard
 * deviation 0.02, those that write to the residual stream (o, down) over sqrt(2 layers), gains 1; they depend on the
 * seed alone. */
llmq_status scratch_write(const char *path, const char *name, const llmq_train_params *p, const char *text, size_t len,
                          llmq_err *err);

#endif
