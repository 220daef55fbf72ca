/* A session: what one conversation changes. The public functions are in session.c; this is for the rooms of the engine.
 */
#ifndef LLMQ_ENGINE_SESSION_H
#define LLMQ_ENGINE_SESSION_H

#include "engine/forward.h"
#include "engine/sampler.h"

#define SESSION_LOGIT_ROWS 64 /* positions whose logits are held at once when all are asked for */

struct speculation; /* speculate.h */

struct llmq_session {
    const llmq_model *model;
    llmq_team *team;
    llmq_forward *fwd; /* its own and its team's, or those of the batch that it belongs to */
    llmq_batch *batch; /* NULL: it stands alone */
    forward_cache cache;
    int64_t n_ctx, n_past;
    int32_t *tokens;   /* [n_ctx], n_past of them in the cache; behind them what speculation has run ahead */
    float *logits;     /* [n_vocab] */
    float *logit_rows; /* (SESSION_LOGIT_ROWS, n_vocab), made when first needed */
    const float *last; /* logits of the last position: in one of these or of speculation's rows; NULL: none */
    bool unread;       /* `last` is NULL since the last position's logits stayed on the device: session_read; */
    int64_t row;       /* then: which row of the forward's last pass they come from */
    llmq_sampler sampler;
    bool has_next; /* llmq_session_next has handed out `next`, which is not run yet */
    int32_t next;
    struct speculation *spec; /* NULL: off */
};

/* All of a session but a forward and a team, which it borrows. */
llmq_status session_init(llmq_session *s, const llmq_model *model, llmq_team *team, llmq_forward *fwd,
                         const llmq_session_params *p, llmq_err *err);
void session_clear(llmq_session *s); /* zeroed allowed */
/* The parameters with defaults filled in, checked. */
llmq_status session_params_check(const llmq_model *model, const llmq_session_params *params, llmq_session_params *out,
                                 llmq_err *err);
/* Do n more tokens fit, and are they in the vocabulary? */
llmq_status session_check_tokens(const llmq_session *s, const int32_t *tokens, size_t n, int64_t n_past, llmq_err *err);
/* Whatever llmq_session_next has handed out or run ahead does not count any more. */
void session_forget_next(llmq_session *s);
/* Brings the last position's logits here if they are on the device. */
llmq_status session_read(llmq_session *s, llmq_err *err);
/* The token after the last position, drawn where its logits are; history as sampling one by one would have it. */
llmq_status session_draw(llmq_session *s, int32_t *token_out, llmq_err *err);
/* The same after the device has been asked for it: takes the token that it drew, or draws where it could not. */
llmq_status session_take_drawn(llmq_session *s, int32_t drawn, int32_t *token_out, llmq_err *err);
/* Can a device draw its tokens? A batch's sessions share what keeps the logits there: engine/batch.c. */
static inline bool session_draws_there(const llmq_session *s) {
    return s->model->on_device && !s->batch && sampler_suits_device(&s->sampler);
}
/* Runs one more token; if a device can draw the next one, the logits stay there. */
llmq_status session_step(llmq_session *s, int32_t token, llmq_err *err);

/* Runs n tokens (at most fwd->n_batch) and keeps the hidden states of the last n_out for forward_head. */
llmq_status session_run(llmq_session *s, const int32_t *tokens, int64_t n, int64_t n_out, float *logits, llmq_err *err);
/* Makes s->logit_rows. */
llmq_status session_need_rows(llmq_session *s, llmq_err *err);

#endif
