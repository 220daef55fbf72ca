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
    int64_t chunk;    /* tokens that pass a matrix at a time: a calib_run_chunk, 0: the default */
    const bool *open; /* [ex->n] matrices whose type is to be chosen */
    bool feedback;    /* the method makes errors good by the weights not rounded yet (GPTQ) */
    bool act_order;
    calib_tick_fn *tick;
    bool (*tick_errors)(void *user, double work); /* sensitivity_error_work just done; false stops. NULL allowed */
    void *user;                                   /* of both */
} llmq_sensitivity_job;

/* loss [ex->n * LLMQ_TYPE_COUNT]: entry i stored as type t is expected to move the model's predictions by
 * loss[i * LLMQ_TYPE_COUNT + t] nats of KL divergence a token; -1: not a candidate. The same numbers for any number of
 * threads. */
llmq_status sensitivity_measure(const llmq_sensitivity_job *job, double *loss, llmq_err *err);
/* The types that an open matrix may get: GGUF's of 2 to 8 bits whose blocks divide its rows; the embedding and the head
 * at least 4 bits, or f16. */
bool sensitivity_is_candidate(const llmq_export *ex, size_t index, llmq_type type);
/* Bytes that the measurement takes. */
size_t sensitivity_bytes(const llmq_sensitivity_job *job);

/* For forecasts: what the measurement runs through the model, as if every matrix were open; and what the errors of a
 * matrix take, in a unit that only ratios of mean something: found by measuring those of one matrix. */
llmq_calib_work sensitivity_work(const llmq_model *model, const llmq_calib *calib);
double sensitivity_error_work(const llmq_export *ex, size_t index);
llmq_status sensitivity_probe(const llmq_sensitivity_job *job, size_t index, double *seconds_out, llmq_err *err);

#endif
