/* A session: what one conversation changes. The public functions are in session.c; this is for the rooms of the engine.
 */
#ifndef LLMQ_ENGINE_SESSION_H
#define LLMQ_ENGINE_SESSION_H

#include "engine/forward.h"
#include "engine/sampler.h"

#define SESSION_LOGIT_ROWS 64 /* positions whose logits are held at once when all are asked for */

struct llmq_session {
    const llmq_model *model;
    llmq_team *team;
    llmq_forward fwd;
    int64_t n_ctx, n_past;
    int32_t *tokens;   /* [n_ctx], n_past of them in the cache */
    float *logits;     /* [n_vocab] */
    float *logit_rows; /* (SESSION_LOGIT_ROWS, n_vocab), made when first needed */
    const float *last; /* logits of the last position: in one of the two above; NULL: none */
    llmq_sampler sampler;
};

/* Runs n tokens (at most fwd.n_batch) and keeps the hidden states of the last n_out for forward_head. */
llmq_status session_run(llmq_session *s, const int32_t *tokens, int64_t n, int64_t n_out, float *logits, llmq_err *err);
/* Makes s->logit_rows. */
llmq_status session_need_rows(llmq_session *s, llmq_err *err);

#endif
