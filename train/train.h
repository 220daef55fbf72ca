/* The job behind llmq_train.h. */
#ifndef LLMQ_TRAIN_TRAIN_H
#define LLMQ_TRAIN_TRAIN_H

#include "core/err.h"
#include "llmq_train.h"

/* *result is zeroed. */
llmq_status train_run(const char *const *texts, size_t n_texts, const llmq_train_params *params,
                      llmq_train_result *result, llmq_err *err);

#endif
