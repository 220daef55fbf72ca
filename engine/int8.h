/* Models whose matrices have 8-bit rows with one scale each (Q8_0 with the same d in all blocks of a row) and take
 * their inputs as 8-bit integers: one integer sum over a row. What others read as plain Q8_0, llmq runs so where the
 * metadata say it. */
#ifndef LLMQ_ENGINE_INT8_H
#define LLMQ_ENGINE_INT8_H

#include "engine/model.h"

/* Sets model->int8_inputs by the metadata, or by what the container has with each matrix, and then the metadata as a
 * GGUF file of this model would carry them. After the tensors are bound. */
llmq_status int8_read(llmq_model *model, llmq_err *err);
/* Metadata of fixed ranges, (n_layer, SITE_COUNT); without any. */
llmq_status int8_write(llmq_meta *meta, const llmq_act_range *inputs, size_t n, llmq_err *err);
void int8_forget(llmq_meta *meta);
/* "dynamic", ...; NULL: not such a model. */
const char *int8_describe(const llmq_model *model);
/* A matrix inside a layer, as stored, is to be made ready by weight_prepare_int8 if its rows allow. */
bool int8_runs(const llmq_model *model, const llmq_tensor *t);
/* The inputs of a role's matrix. */
llmq_act_range int8_input(const llmq_model *model, int64_t layer, llmq_role role);

#endif
