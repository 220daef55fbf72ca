/* The model behind the public llmq_model, and what the rooms of the engine share. */
#ifndef LLMQ_ENGINE_MODEL_H
#define LLMQ_ENGINE_MODEL_H

#include "core/device.h"
#include "core/mem.h"
#include "engine/arch/arch.h"
#include "formats/format.h"
#include "llmq.h"
#include "tokenizer/tokenizer.h"

enum { SESSION_CTX_USUAL = 4096, SESSION_BATCH_USUAL = 512 }; /* of sessions that ask for nothing else */

typedef enum llmq_rope_scaling { ROPE_NONE, ROPE_LINEAR, ROPE_YARN, ROPE_LLAMA3 } llmq_rope_scaling;

typedef struct llmq_hparams {
    int64_t n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_ctx_train, n_rot;
    float eps;
    double rope_base;
    int64_t window; /* sliding window, 0: none */
    llmq_rope_scaling scaling;
    double rope_factor, yarn_beta_fast, yarn_beta_slow, llama3_low, llama3_high;
    double rope_attn_factor; /* cos and sin are multiplied by this (YaRN; 1 otherwise) */
    int64_t rope_ctx_orig;
} llmq_hparams;

/* The weights of one layer as the source stores them; NULL where the architecture has none. */
typedef struct llmq_layer_tensors {
    const llmq_tensor *by_role[ROLE_COUNT];
} llmq_layer_tensors;

typedef struct llmq_layer {
    const float *attn_norm, *ffn_norm; /* [n_embd], owned by the model as f32 */
    const float *q_norm, *k_norm;      /* [head_dim] or NULL */
    llmq_weight q, k, v, o;            /* (n_head*head_dim | n_head_kv*head_dim, n_embd), o (n_embd, n_head*head_dim) */
    llmq_weight gate, up, down;        /* (n_ff, n_embd), down (n_embd, n_ff) */
} llmq_layer;

struct llmq_model {
    llmq_source *source;
    llmq_meta *meta; /* source->meta with the tokenizer's keys added: what a GGUF of this model would carry */
    const llmq_arch *arch;
    llmq_hparams hp;
    llmq_tokenizer *tok; /* NULL if the model has none or one that llmq cannot use: */
    llmq_err tok_err;    /* then this says why, and whoever needs the tokenizer reports it */
    const llmq_chat_template *chat;
    const llmq_backend_ops *ops;
    llmq_arena *arena;                      /* names, norms, biases, tables */
    const llmq_tensor *by_role[ROLE_COUNT]; /* of the model: embedding, output norm, head (NULL when tied) */
    llmq_layer_tensors *layer_tensors;      /* [n_layer] */
    bool rope_neox;                         /* order of q/k rows in this source */
    const float
        *freq_factors; /* [n_rot/2] divisors of the rope frequencies (llama3 scaling, rope_freqs.weight), or NULL */
    /* How matrices of 8-bit rows inside layers take the inputs of each site (int8.h); NULL: no model of that kind. */
    const llmq_act_range *int8_inputs; /* [n_layer * SITE_COUNT] */
    bool q16_inputs;                   /* some matrix may take its inputs as ACT_Q16 */
    /* Made ready for running (NULL/zero when opened with no_weights): */
    llmq_layer *layers;
    const float *output_norm;      /* [n_embd] */
    llmq_weight head;              /* (n_vocab, n_embd); of the embedding when tied */
    const llmq_device_ops *device; /* which has the last n_on_device layers and the head; NULL: the CPU has all */
    llmq_device_model *on_device;
    int64_t n_on_device;
    llmq_model_info info;
};

/* All of llmq_model_open; also used by jobs. */
llmq_status model_open(const char *path, const llmq_model_params *params, llmq_model **out, llmq_err *err);
/* The same for a given backend (tests run every ISA). */
llmq_status model_open_with(const char *path, const llmq_model_params *params, const llmq_backend_ops *ops,
                            llmq_model **out, llmq_err *err);
/* The same with weights on a device. */
llmq_status model_open_on(const char *path, const llmq_model_params *params, const llmq_device_ops *device,
                          llmq_model **out, llmq_err *err);
void model_close(llmq_model *model);
/* Of llmq_acts.q8, for inputs of layers with up to cols columns and for the head's. */
size_t model_q8_bytes(const llmq_model *model, int64_t n_tok, int64_t cols);
/* Of llmq_acts.q16; 0 if no weight reads it. */
size_t model_q16_bytes(const llmq_model *model, int64_t n_tok, int64_t cols);

/* device.c: the device that --device names, opened; *out NULL for the CPU. */
llmq_status device_select(const char *spec, const llmq_device_ops **out, llmq_err *err);
/* Puts params->gpu_layers layers, or as many as fit, on model->device. */
llmq_status device_put(llmq_model *model, const llmq_model_params *params, llmq_err *err);
/* Layers 0.. that the backend runs. */
static inline int64_t model_cpu_layers(const llmq_model *model) {
    return model->hp.n_layer - model->n_on_device;
}

/* A small vector of the source (norm, bias) as f32 in the model's arena. */
llmq_status model_load_vector(llmq_model *model, const llmq_tensor *t, int64_t n, const float **out, llmq_err *err);

/* The tokenizer, or the reason why there is none. */
llmq_status model_tokenizer(const llmq_model *model, const llmq_tokenizer **out, llmq_err *err);

/* hparams.c: every value checked. n_vocab_hint: rows of the embedding table, used where the metadata give no
 * vocabulary. */
llmq_status hparams_read(const llmq_source *source, const char *arch, int64_t n_vocab_hint, llmq_hparams *out,
                         llmq_err *err);

/* The shape that a role's tensor has; rows 1 for vectors. */
void hparams_role_shape(const llmq_hparams *hp, llmq_role role, int64_t *rows, int64_t *cols);

/* One layer of this shape, or of a smaller one that works as fast: what speeds are measured on. */
llmq_hparams hparams_small(const llmq_hparams *hp);

/* rope.c: the divisors of llama3 scaling, [n_rot/2]. */
void rope_llama3_factors(const llmq_hparams *hp, float *out);
/* cos/sin of positions pos..pos+n-1: out (n, n_rot/2, 2). Every scaling (linear, YaRN, llama3) and YaRN's attention
 * factor are in it, so the op that rotates knows nothing of them. */
void rope_table(const llmq_model *model, int64_t pos, int64_t n, float *out);

#endif
