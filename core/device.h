/* A device that keeps weights, cache and activations in memory of its own and runs whole passes: one struct of
 * functions, like llmq_backend_ops, but a coarser one, since nothing goes over the bus between two ops. The engine
 * describes to it the layers that it is to have, which are the last ones of a model or all of them, and gives it tokens
 * or the hidden states of the layers before. Not SPMD: one thread calls; models may be shared between sessions, each
 * used by one thread at a time. Errors of earlier calls may come to light late. */
#ifndef LLMQ_CORE_DEVICE_H
#define LLMQ_CORE_DEVICE_H

#include "core/backend.h"
#include "llmq.h"

/* Native rows of [output features, input features], read during model_create only, between load and release. */
typedef struct llmq_device_matrix {
    const llmq_tensor *w;
    const float *bias; /* [rows] or NULL */
} llmq_device_matrix;

/* Dims as in core/backend.h. */
typedef struct llmq_device_layer {
    const float *attn_norm, *ffn_norm; /* [n_embd] */
    const float *q_norm, *k_norm;      /* [head_dim] or NULL */
    llmq_device_matrix q, k, v, o;     /* (n_head*head_dim | n_head_kv*head_dim, n_embd), o (n_embd, ...) */
    llmq_device_matrix gate, up, down; /* (n_ff, n_embd), down (n_embd, n_ff) */
} llmq_device_layer;

typedef struct llmq_device_desc {
    int64_t n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_rot;
    int64_t window; /* sliding window, 0: none */
    float eps;
    bool rope_neox;
    const llmq_tensor *embd; /* (n_vocab, n_embd); NULL: the layers before are elsewhere */
    const llmq_tensor *head; /* (n_vocab, n_embd); may be embd */
    const float *output_norm;
    const llmq_device_layer *layers; /* [n_layer] */
    int n_threads;                   /* of the host, to make the weights ready; 0: physical cores */
    /* Makes the rows of a matrix be there; lets them go. */
    llmq_status (*load)(void *user, const llmq_tensor *t, llmq_err *err);
    void (*release)(void *user, const llmq_tensor *t);
    void *user;
} llmq_device_desc;

typedef struct llmq_device_model llmq_device_model;
typedef struct llmq_device_cache llmq_device_cache; /* keys and values of one sequence */
typedef struct llmq_device_work llmq_device_work;   /* what passes write besides: one serves several sequences */

/* A token of a pass over several sequences. */
typedef struct llmq_device_row {
    llmq_device_cache *cache; /* all before pos are in it, or are rows before this one */
    int32_t token;
    int64_t pos;
} llmq_device_row;

/* How a token is to be drawn. */
typedef struct llmq_device_draw {
    const llmq_sampler_params *params; /* repeat_last_n and seed are seen to: */
    const int32_t *repeated;           /* n_repeated tokens that repeat_penalty is for; each is penalized once */
    int64_t n_repeated;
    double uniform; /* the random number, [0, 1) */
} llmq_device_draw;
/* Instead of a token: the best logit is not finite; more candidates than a device sorts, so the CPU has to draw. */
enum { LLMQ_DEVICE_NOT_FINITE = -1, LLMQ_DEVICE_TOO_MANY = -2 };
#define LLMQ_DEVICE_CANDIDATES 1024 /* that a device sorts, at most */

/* What a device does of a quantization with calibration. One thread calls, always the same. */
typedef struct llmq_device_sweep { /* the column sweep of GPTQ (llmq_round_block) over a whole matrix */
    int64_t rows, cols;
    const float *w;      /* (rows, cols) */
    const float *at;     /* (cols, cols) below the diagonal, in the order of rounding */
    const int32_t *perm; /* [cols] the column that is rounded k-th */
    const float *grids;  /* (rows, groups, 2): scale and offset */
    int64_t groups;      /* of a row, */
    int group_len;       /* so many columns each; the last may have fewer */
    const float *levels; /* n_levels, ascending */
    int n_levels;
    bool uniform;   /* levels are consecutive integers */
    uint8_t *codes; /* (rows, cols) out */
} llmq_device_sweep;

typedef struct llmq_device_solver llmq_device_solver;
typedef struct llmq_device_solver_ops {
    /* Of the device that this thread opened last. LLMQ_E_UNSUPPORTED names the library that is missing. */
    llmq_status (*create)(llmq_device_solver **out, llmq_err *err);
    void (*destroy)(llmq_device_solver *s); /* NULL allowed */
    /* A Gram matrix as in llmq_backend_ops.gram_add, of inputs rounded to bf16: begin, then pieces (n_tok,
     * cols) of finite numbers, which may be changed as soon as add returns, while it is still at work; gram (cols,
     * cols) is there after end, its lower triangle and diagonal, the rest is anything. */
    llmq_status (*gram_begin)(llmq_device_solver *s, int64_t cols, llmq_err *err);
    llmq_status (*gram_add)(llmq_device_solver *s, const float *x, int64_t n_tok, llmq_err *err);
    llmq_status (*gram_end)(llmq_device_solver *s, float *gram, llmq_err *err);
    /* In place lower Cholesky, as in llmq_backend_ops; above the diagonal a is anything afterwards. */
    llmq_status (*cholesky)(llmq_device_solver *s, int64_t n, float *a, llmq_err *err);
    llmq_status (*sweep)(llmq_device_solver *s, const llmq_device_sweep *sweep, llmq_err *err);
} llmq_device_solver_ops;
struct llmq_device_solver { /* the device's own begins with this */
    const llmq_device_solver_ops *ops;
    char name[160]; /* the device and its library of products, which decide about bits */
};

typedef struct llmq_device_ops {
    const char *name; /* "cuda" */
    const llmq_device_solver_ops *solver;
    /* Device `index` can be used: this thread's next models are made there. LLMQ_E_UNSUPPORTED says what is missing. */
    llmq_status (*open)(int index, llmq_err *err);
    /* How many of the last layers fit into the memory that is free now, with the head, one f16 cache of n_ctx positions
     * and work for n_batch tokens; all of them only if the embedding fits too. May be 0. Reads no rows. */
    llmq_status (*fit)(const llmq_device_desc *d, int64_t n_ctx, int64_t n_batch, int64_t *n_layers, llmq_err *err);
    /* Brings the weights over. LLMQ_E_UNSUPPORTED names what this device cannot do, LLMQ_E_MEMORY what did not fit. */
    llmq_status (*model_create)(const llmq_device_desc *d, llmq_device_model **out, llmq_err *err);
    void (*model_destroy)(llmq_device_model *m); /* after its caches and work; NULL allowed, as below */
    /* Up to n_ctx positions, of a kv_type as in llmq_kv; their bytes. Memory is taken as they are used. */
    llmq_status (*cache_create)(const llmq_device_model *m, int64_t n_ctx, int kv_type, llmq_device_cache **out,
                                size_t *bytes, llmq_err *err);
    void (*cache_destroy)(llmq_device_cache *c);
    /* `to` becomes the first n positions of `from`, another cache of this kv_type that w runs: stored once, until one
     * of the two writes other tokens there. If it fails, `to` may hold anything. */
    llmq_status (*cache_share)(llmq_device_work *w, llmq_device_cache *to, const llmq_device_cache *from, int64_t n,
                               llmq_err *err);
    /* Positions below n_ctx, at most n_batch tokens a run. rope (n_ctx, n_rot/2, 2), read here only. May get by with
     * less memory and be slower, to leave room for a cache of n_ctx positions. */
    llmq_status (*work_create)(const llmq_device_model *m, int64_t n_ctx, int64_t n_batch, const float *rope,
                               llmq_device_work **out, llmq_err *err);
    void (*work_destroy)(llmq_device_work *w);
    /* A cache is used by one work, or by another one after a head. Tokens at positions pos.. (all before are in the
     * cache, those behind are forgotten), or, of a model without an embedding, hidden states (n_tok, n_embd). Keeps the
     * hidden states behind its layers for head. LLMQ_E_MEMORY: the cache cannot grow; what is before pos stays. */
    llmq_status (*run)(llmq_device_work *w, llmq_device_cache *c, const int32_t *tokens, const float *hidden,
                       int64_t n_tok, int64_t pos, llmq_err *err);
    /* The same for rows of any sequences, at most n_batch of them; each gets the bits that run gives it alone. */
    llmq_status (*run_rows)(llmq_device_work *w, const llmq_device_row *rows, const float *hidden, int64_t n_rows,
                            llmq_err *err);
    /* Logits (n_rows, n_vocab) of the tokens row.. of the last run. */
    llmq_status (*head)(llmq_device_work *w, int64_t row, int64_t n_rows, float *logits, llmq_err *err);
    /* The tokens that the chain of engine/sampler.c draws after the tokens row.. of the last run, draws[i] after the
     * i-th of n_rows: the CPU's, but where they hang on the last bits of an exponential. */
    llmq_status (*sample)(llmq_device_work *w, int64_t row, int64_t n_rows, const llmq_device_draw *draws,
                          int32_t *tokens, llmq_err *err);
} llmq_device_ops;

#endif
