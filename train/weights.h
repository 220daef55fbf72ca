/* All of a model's tensors as f32 parameters in one block, with their gradients and AdamW's moments: what training from
 * scratch and training on are about. */
#ifndef LLMQ_TRAIN_WEIGHTS_H
#define LLMQ_TRAIN_WEIGHTS_H

#include "engine/outputs.h"
#include "train/adam.h"
#include "train/net.h"

typedef struct weights_tensor {
    const llmq_tensor *src; /* of the model: name and shape */
    bool matrix;
    int64_t at, n; /* numbers [at, at + n) of the block */
} weights_tensor;

typedef struct weights {
    const llmq_model *model;
    llmq_team *team;
    weights_tensor *tensors; /* n_tensors */
    size_t n_tensors;
    int32_t *by_role;     /* (n_layer + 1, ROLE_COUNT) numbers of tensors, the model's own last; -1: absent */
    float *x, *g, *m, *v; /* [n] */
    int64_t n;
    double *sums;          /* of squares of g, of pieces */
    const int32_t *tokens; /* of the step under way: where the lookup's gradient goes */
    int64_t n_tok;
} weights;

/* The model's tensors as floats; the model may be opened with no_weights. w stays to be cleared after a failure too. */
llmq_status weights_create(weights *w, const llmq_model *model, llmq_team *team, llmq_err *err);
void weights_clear(weights *w);
int64_t weights_count(const weights *w); /* of parameters */

/* For net_step_f32. gradients of a pass are in w->g behind it. */
net_source_f32 weights_source(weights *w);
net_wants weights_wants(const weights *w);
void weights_set_tokens(weights *w, const int32_t *tokens, int64_t n_tok);

/* One step with w->g; step counts from 1. Matrices decay. Returns the gradient's length. */
double weights_update(weights *w, const adam_settings *s, double lr, int64_t step);

/* Every tensor of the export from x. */
llmq_status weights_write(const weights *w, const llmq_export *ex, llmq_outputs *outputs, llmq_err *err);

#endif
