/* Gradients of the decoder: n_windows windows of n_tok tokens forward and backward, layer by layer.
 *
 * A pass keeps each layer's input only and runs the layer once more on its way back (activation checkpointing), unless
 * there is memory for the rest (keep_bytes). Weights
 * are asked for one layer at a time and their gradients handed over as they come, so neither needs memory for the whole
 * model. The loss never holds more than NET_CHUNK rows of logits.
 *
 * Or one layer alone, by its inputs and the outputs that it should have: net_layer_x.
 *
 * The same text (net_impl.h) is compiled twice: net_f32 computes by the backend's kernels, matrices in bf16 with f32
 * sums unless `exact`; net_f64 in plain doubles on one thread, for checks by finite differences. Results do not depend
 * on the number of threads. */
#ifndef LLMQ_TRAIN_NET_H
#define LLMQ_TRAIN_NET_H

#include "core/mem.h"
#include "engine/model.h"

#define NET_CHUNK 128  /* rows of logits at a time */
#define NET_SLICE 2048 /* rows of the head that its way back takes at a time */

typedef struct net_shape {
    llmq_hparams hp;
    bool neox;                /* order of q/k rows */
    int64_t n_windows, n_tok; /* of a batch; n_tok of each window */
    const float *rope;        /* (n_tok, n_rot/2, 2), rope_table; copied */
    bool int8;                /* matrices may take inputs of 8 bits (net_weights_f32) */
    bool q16;                 /* or of 16 (llmq_model.q16_inputs) */
    bool alone;               /* layers are run one by one (net_layer): no room for a model's pass and its head */
    size_t keep_bytes; /* what layers compute is kept for the way back where it takes no more than this, instead of
                          being computed once more; the results are the same */
} net_shape;

/* Which gradients are wanted, by role; ROLE_OUTPUT is the head whether or not it is tied, ROLE_TOKEN_EMBD the lookup.
 */
typedef struct net_wants {
    bool of[ROLE_COUNT];
} net_wants;

typedef struct net_loss {
    bool teacher;          /* KL from the teacher's distribution, else cross entropy with labels */
    const int32_t *labels; /* (n_windows, n_tok), < 0: does not count; NULL with a teacher: all count */
    double weight;         /* of each row */
} net_loss;

/* Of a layer alone: the sum over tokens of weight * |output - want|^2, over |want|^2 if `relative`. */
typedef struct net_square {
    double weight;
    bool relative;
} net_square;

/* ---- f32 ---- */

/* Tensors of one layer, or of the model, by role; data NULL: absent. Vectors are F32, matrices any type that the
 * backend multiplies; rows in the order of shape.neox. Must stay as they are until the next call. */
typedef struct net_weights_f32 {
    llmq_tensor of[ROLE_COUNT];
    /* Where products of the way forward read something else, which means the same: a quantized matrix's own blocks, by
     * the kernels of inference. data NULL: `of`, which then may be absent where only the way forward is asked for. */
    llmq_tensor forward[ROLE_COUNT];
    /* Of those: 8-bit rows whose inputs are 8 bits, too, in `range` (weight_prepare_int8). On the way back rounding of
     * inputs counts as none. */
    bool int8[ROLE_COUNT];
    llmq_act_range range[ROLE_COUNT];
} net_weights_f32;

typedef struct net_source_f32 {
    /* layer -1: embedding, output norm and head (ROLE_OUTPUT, also when tied). back: `of` has F32 matrices, for the way
     * back. */
    llmq_status (*weights)(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err);
    /* g[role]: the gradients of what is wanted, (rows, cols) or [n]; NULL: not there. Called for layers from the last
     * to the first; before them layer -1 with the head and the output norm, after them once more with the embedding: g
     * of ROLE_TOKEN_EMBD is then (n_windows * n_tok, n_embd), one row for each token. */
    llmq_status (*gradients)(void *user, int layer, float *const *g, llmq_err *err);
    net_wants wants;
    bool keep_head; /* the head stays as it is from pass to pass: it is made ready once */
    void *user;
} net_source_f32;

typedef struct net_f32 net_f32;
/* exact: products in f32 instead of bf16. teacher: room for one. */
llmq_status net_create_f32(const net_shape *shape, const net_wants *wants, bool teacher, bool exact,
                           const llmq_backend_ops *ops, llmq_team *team, net_f32 **out, llmq_err *err);
void net_destroy_f32(net_f32 *net); /* NULL allowed */
/* The teacher's last hidden states of these tokens, for the losses that follow. */
llmq_status net_teach_f32(net_f32 *net, const net_source_f32 *teacher, const int32_t *tokens, llmq_err *err);
/* Forward; *loss is the sum over counting rows of weight * loss. With gradients also backward. */
llmq_status net_step_f32(net_f32 *net, const net_source_f32 *source, const int32_t *tokens, const net_loss *what,
                         bool gradients, double *loss, llmq_err *err);
float *net_taught_f32(net_f32 *net); /* the states that net_teach left, (n_windows * n_tok, n_embd) */
/* A layer of a shape that is `alone`: made ready for what follows, with `back` for its way back too; then x to y, both
 * (n_windows * n_tok, n_embd), y may be x; or x to the loss, with gradients as net_step has them. */
llmq_status net_layer_ready_f32(net_f32 *net, const net_source_f32 *source, int layer, bool back, llmq_err *err);
void net_layer_run_f32(net_f32 *net, const float *x, float *y);
llmq_status net_layer_step_f32(net_f32 *net, const net_source_f32 *source, int layer, const float *x, const float *want,
                               const net_square *what, bool gradients, double *loss, llmq_err *err);
/* Bytes that a net of this kind takes beside weights. */
size_t net_need_f32(const net_shape *shape, const net_wants *wants, bool teacher, const llmq_backend_ops *ops,
                    int n_workers);

/* ---- f64: the same, matrices and vectors as arrays of doubles; NULL: absent ---- */

typedef struct net_weights_f64 {
    const double *of[ROLE_COUNT];
} net_weights_f64;

typedef struct net_source_f64 {
    llmq_status (*weights)(void *user, int layer, bool back, net_weights_f64 *out, llmq_err *err);
    llmq_status (*gradients)(void *user, int layer, double *const *g, llmq_err *err);
    net_wants wants;
    bool keep_head;
    void *user;
} net_source_f64;

typedef struct net_f64 net_f64;
llmq_status net_create_f64(const net_shape *shape, const net_wants *wants, bool teacher, bool exact,
                           const llmq_backend_ops *ops, llmq_team *team, net_f64 **out, llmq_err *err);
void net_destroy_f64(net_f64 *net);
llmq_status net_teach_f64(net_f64 *net, const net_source_f64 *teacher, const int32_t *tokens, llmq_err *err);
llmq_status net_step_f64(net_f64 *net, const net_source_f64 *source, const int32_t *tokens, const net_loss *what,
                         bool gradients, double *loss, llmq_err *err);
double *net_taught_f64(net_f64 *net); /* the states that net_teach left, (n_windows * n_tok, n_embd) */
llmq_status net_layer_ready_f64(net_f64 *net, const net_source_f64 *source, int layer, bool back, llmq_err *err);
void net_layer_run_f64(net_f64 *net, const double *x, double *y);
llmq_status net_layer_step_f64(net_f64 *net, const net_source_f64 *source, int layer, const double *x,
                               const double *want, const net_square *what, bool gradients, double *loss, llmq_err *err);
/* Bytes that a net of this kind takes beside weights. */
size_t net_need_f64(const net_shape *shape, const net_wants *wants, bool teacher, const llmq_backend_ops *ops,
                    int n_workers);

#endif
