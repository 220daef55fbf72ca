/* Several sessions of one model with one team and one forward. The public functions are in batch.c. */
#ifndef LLMQ_ENGINE_BATCH_H
#define LLMQ_ENGINE_BATCH_H

#include "engine/session.h"

struct llmq_batch {
    const llmq_model *model;
    llmq_team *team;
    llmq_forward fwd;
    llmq_session *sessions; /* [n_sessions] */
    int64_t n_sessions;
    /* of the pass at work: */
    forward_row *rows;       /* [n_sessions] */
    llmq_session **running;  /* [n_sessions] */
    float *logits;           /* (n_sessions, n_vocab) */
    llmq_device_draw *draws; /* [n_sessions] of a model on a device; and what came of them */
    int32_t *drawn;
};

/* Before a pass of this batch (NULL allowed): what its sessions have left on the device comes here, or the pass would
 * write over it. Sessions that take part are not `unread` any more. */
llmq_status batch_read(llmq_batch *b, llmq_err *err);

/* Session s of a batch is to hold tokens[0..n): takes over what another session has of them beyond s's own common
 * prefix, to which s is truncated; s->n_past says how many s holds then. Only a device can fail; s is empty then. */
llmq_status batch_share_prefix(llmq_session *s, const int32_t *tokens, int64_t n, llmq_err *err);

#endif
