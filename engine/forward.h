/* The forward pass: n_tok tokens through all layers in one SPMD region. It owns what a pass writes: KV cache, RoPE
 * table and activations; nothing is allocated while it runs. */
#ifndef LLMQ_ENGINE_FORWARD_H
#define LLMQ_ENGINE_FORWARD_H

#include "engine/model.h"

/* What a worker writes alone. Passes of one token give each worker a lane of its own: adding, normalizing and
 * quantizing one row takes less time than the barriers that sharing it would need. Passes of more tokens share lane 0.
 */
typedef struct forward_lane {
    float *x, *norm; /* (n_batch or 1, n_embd): the residual stream, its normalized copy */
    float *act;      /* (1, n_ff): silu(gate) * up of one token */
    void *q8, *bf16; /* quantized activations of the current site */
} forward_lane;

typedef struct llmq_forward {
    const llmq_model *model;
    llmq_team *team;
    int64_t n_ctx, n_batch;
    float attn_scale; /* 1 / sqrt(head_dim) */
    llmq_kv *kv;      /* [n_layer] */
    float *rope;      /* (n_ctx, n_rot/2, 2), filled up to n_rope positions */
    int64_t n_rope;
    forward_lane *lanes; /* [team_size] */
    float *q, *k, *v,
        *attn; /* (n_batch, n_head*head_dim | n_head_kv*head_dim | n_head_kv*head_dim | n_head*head_dim) */
    float *gate, *up, *delta; /* (n_batch, n_ff | n_ff | n_embd) */
    void *attn_scratch;
    const float
        *hidden; /* (n_hidden, n_embd): residual stream of the last pass's last tokens, before the output norm */
    int64_t n_hidden;
    void *kv_block, *scratch_block;
    size_t kv_bytes, rope_bytes, scratch_bytes;
} llmq_forward;

/* n_ctx positions in the cache, at most n_batch tokens a pass. Pages are touched only as they are used. */
llmq_status forward_create(const llmq_model *model, llmq_team *team, int64_t n_ctx, int64_t n_batch,
                           llmq_kv_type kv_type, llmq_forward *out, llmq_err *err);
void forward_destroy(llmq_forward *f); /* zeroed allowed */

/* Runs tokens at positions pos.. (all before pos are in the cache). The hidden states of the last n_out tokens are kept
 * for forward_head, the others end at the last layer's K and V. logits (n_out, n_vocab) or NULL: computed in the same
 * region. */
void forward_run(llmq_forward *f, const int32_t *tokens, int64_t n_tok, int64_t pos, int64_t n_out, float *logits);
/* Logits (n_rows, n_vocab) of rows row.. of the hidden states that forward_run kept. */
void forward_head(llmq_forward *f, int64_t row, int64_t n_rows, float *logits);

#endif
