/* What each storage type of each matrix would cost the model: the measurements behind --target-bpw and --target-size.
 */
#ifndef LLMQ_ENGINE_SENSITIVITY_H
#define LLMQ_ENGINE_SENSITIVITY_H

#include "engine/calib_run.h"
#include "engine/export.h"

typedef struct llmq_sensitivity_job {
    llmq_model *model; /* opened, possibly with no_weights; its arena grows by norms and biases */
    const llmq_export *ex;
    llmq_team *team;
    const llmq_calib *calib;
    const bool *open; /* [ex->n] matrices whose type is to be chosen */
    bool feedback;    /* the method makes errors good by the weights not rounded yet (GPTQ) */
    bool act_order;
    calib_tick_fn *tick;
    void *user;
} llmq_sensitivity_job;

/* loss [ex->n * LLMQ_TYPE_COUNT]: entry i stored as type t is expected to move the model's predictions by
 * loss[i * LLMQ_TYPE_COUNT + t] nats of KL divergence a token; -1: not a candidate. The same numbers for any number of
 * threads. */
llmq_status sensitivity_measure(const llmq_sensitivity_job *job, double *loss, llmq_err *err);
/* The types that an open matrix may get: GGUF's of 2 to 8 bits whose blocks divide its rows; the embedding and the head
 * at least 4 bits, or f16. */
bool sensitivity_is_candidate(const llmq_export *ex, size_t index, llmq_type type);
/* Tokens that the measurement runs through the whole model. */
int64_t sensitivity_tokens(const llmq_model *model, const llmq_calib *calib);

#endif
