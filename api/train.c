#include "llmq_train.h"

#include "core/err.h"
#include "train/train.h"

void llmq_train_params_default(llmq_train_params *params) {
    *params = (llmq_train_params){.steps = 1000};
}

llmq_status llmq_train(const char *const *texts, size_t n_texts, const llmq_train_params *params,
                       llmq_train_result *result, llmq_err *err) {
    if (!texts || !n_texts || !params || !params->out || !result)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_train: texts, params with out, and the result must be given");
    return train_run(texts, n_texts, params, result, err);
}
