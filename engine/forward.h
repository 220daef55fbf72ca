/* The forward pass: tokens through all layers in one SPMD region. A forward owns what a pass writes besides K and V:
 * activations and the RoPE table; the K and V of a sequence are a cache of their own, so that one forward serves
 * several sequences. Nothing is allocated while a pass runs. */
#ifndef LLMQ_ENGINE_FORWARD_H
#define LLMQ_ENGINE_FORWARD_H

#include "engine/model.h"

/* What a worker writes alone. Passes of few tokens give each worker a lane of its own: adding, normalizing and
 * quantizing some rows takes less time than the barriers that sharing them would need. Rows of the hidden layer have
 * another width than others, so that another number of them is few: what is not is shared, and in lane 0. */
typedef struct forward_lane {
    float *x, *norm;              /* (few, lane 0: all; n_embd): the residual stream, its normalized copy */
    float *act;                   /* (few, n_ff): silu(gate) * up */
    float *q, *k;                 /* (few, n_head*head_dim | n_head_kv*head_dim): rotated */
    void *q8, *bf16, *int8, *q16; /* the current site's inputs in other forms */
    size_t bytes[ACT_FORMS];      /* room for each */
} forward_lane;

/* Keys and values of one sequence. */
typedef struct forward_cache {
    llmq_kv *kv; /* [model_cpu_layers] */
    void *block;
    size_t block_bytes, bytes;    /* bytes: with what is on the device */
    int64_t n_ctx;                /* positions it holds */
    llmq_device_cache *on_device; /* of the layers on the device */
    const llmq_device_ops *device;
} forward_cache;

/* Pages are touched only as they are used. */
llmq_status forward_cache_create(const llmq_model *model, int64_t n_ctx, llmq_kv_type kv_type, forward_cache *out,
                                 llmq_err *err);
void forward_cache_destroy(forward_cache *c); /* zeroed allowed */

/* One token of a pass of rows: the next one of its own sequence. */
typedef struct forward_row {
    int32_t token;
    int64_t pos; /* all before pos are in the cache */
    forward_cache *cache;
} forward_row;

typedef struct llmq_forward {
    const llmq_model *model;
    llmq_team *team;
    int64_t n_ctx, n_batch, n_rows;
    int64_t alone_most; /* floats of the rows that each worker does for itself */
    float attn_scale;   /* 1 / sqrt(head_dim) */
    float *rope;        /* (n_ctx, n_rot/2, 2), filled up to n_rope positions */
    int64_t n_rope;
    int32_t *row_tokens;          /* [n_rows] */
    float *row_rope;              /* (n_rows, n_rot/2, 2): those rows of the table that a pass of rows needs */
    llmq_attn_row *row_attn;      /* (n_layer, rows of the pass) */
    llmq_device_row *device_rows; /* [n_rows], of a model on a device */
    forward_lane *lanes;          /* [team_size] */
    float *q, *k, *v,
        *attn; /* (n_batch, n_head*head_dim | n_head_kv*head_dim | n_head_kv*head_dim | n_head*head_dim) */
    float *gate, *up, *delta; /* (n_batch, n_ff | n_ff | n_embd) */
    void *attn_scratch;
    const float
        *hidden; /* (n_hidden, n_embd): residual stream of the last pass's last tokens, before the output norm */
    int64_t n_hidden;
    bool exact; /* the last pass's cache is of f32, and so llmq_acts.exact */
    void *scratch_block;
    size_t rope_bytes, scratch_bytes;
    llmq_device_work *on_device; /* of a model on a device, which keeps the hidden states that head reads; without
                                  * layers on the CPU there are no buffers here */
    int64_t device_row;          /* of the last run's tokens: the first of n_hidden */
} llmq_forward;

/* For tests, of those created from then on: up to so many floats each worker does the small ops for itself (of one
 * token it always does); -1: as usual. */
void forward_set_alone(int64_t floats);

/* Positions below n_ctx, at most n_batch tokens a pass, and at most n_rows (1 or more) in a pass of rows. */
llmq_status forward_create(const llmq_model *model, llmq_team *team, int64_t n_ctx, int64_t n_batch, int64_t n_rows,
                           llmq_forward *out, llmq_err *err);
void forward_destroy(llmq_forward *f); /* zeroed allowed */

/* Runs tokens at positions pos.. of one sequence (all before pos are in the cache). The hidden states of the last n_out
 * tokens are kept for forward_head, the others end at the last layer's K and V. logits (n_out, n_vocab) or NULL:
 * computed in the same region. Only passes on a device can fail. */
llmq_status forward_run(llmq_forward *f, forward_cache *cache, const int32_t *tokens, int64_t n_tok, int64_t pos,
                        int64_t n_out, float *logits, llmq_err *err);
/* Runs rows, one token each, in one pass over the weights. Rows of one sequence are in the order of their positions and
 * see each other. logits (n, n_vocab); of a model on a device NULL leaves them there. Up to MATMUL_ALIKE rows get the
 * bits that forward_run gives them one by one. */
llmq_status forward_rows(llmq_forward *f, const forward_row *rows, int64_t n, float *logits, llmq_err *err);
/* Logits (n_rows, n_vocab) of rows row.. of the hidden states that the last pass kept. */
llmq_status forward_head(llmq_forward *f, int64_t row, int64_t n_rows, float *logits, llmq_err *err);
/* Of a model on a device: tokens drawn there after rows row.. of these (core/device.h), whose logits do not come here.
 */
llmq_status forward_sample(llmq_forward *f, int64_t row, int64_t n_rows, const llmq_device_draw *draws, int32_t *tokens,
                           llmq_err *err);

#endif
