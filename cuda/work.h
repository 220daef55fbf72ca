/* What the passes of a model on a GPU write: activations, scratch, inputs. */
#ifndef LLMQ_CUDA_WORK_H
#define LLMQ_CUDA_WORK_H

#include "cuda/layout.h"
#include "cuda/matmul.h"
#include "cuda/model.h"

/* A pass of more than 8 tokens, the most that the decode kernels take, has up to so many: as many as weights have to
 * meet to be worth unpacking. Longer runs are cut. */
#define PASS_TOKENS 512
/* The most for the head at a time: what a block of gemm has, so weights are read once for so many. */
#define HEAD_TOKENS 64

/* Who a step's tokens belong to: neighbours of one sequence are a span (cuda/forward.c). Steps of more than one span
 * have at most 8 tokens. What a recording of such a step depends on. */
typedef struct span_shape {
    uint64_t cache; /* its id; 0: no such span */
    int n_tok;
    int64_t n_keys;
} span_shape;

struct llmq_device_work {
    const llmq_device_model *m;
    uint64_t id; /* another for each work of the process */
    gpu_stream *stream;
    int64_t n_ctx, n_batch;
    cuda_acts acts;       /* of decode steps */
    int n_pass;           /* tokens that go through the layers at a time */
    bool ran[ACT_TOKENS]; /* a step of so many tokens, less 1, has been run unrecorded: its kernels are loaded */
    bool unrecorded;      /* recording failed: steps are launched one by one */
    bool asked_blas;      /* cuBLAS is opened when a pass first wants it; where it is missing, gemm takes all */
    gpu_recording *mixed; /* the last step of several sequences, and what it was: the next one is often alike */
    span_shape mixed_shape[ACT_TOKENS];
    int32_t *host;              /* what `inputs` gets */
    float *rope;                /* (n_ctx, n_rot/2, 2) */
    int32_t *inputs;            /* positions [n_batch], then tokens [n_batch] */
    float *x;                   /* (n_batch, n_embd): the residual stream; the hidden states afterwards */
    float *norm, *delta;        /* (n_pass, n_embd) */
    float *q, *k, *v, *attn;    /* (n_pass, ...) */
    float *gate, *up;           /* (n_pass, n_ff) */
    void *forms, *attn_scratch; /* forms: of one input after another; scratch of 8 tokens */
    cuda_scratch scratch;       /* of products */
    bool rows_run;              /* the last run was of rows, which get the bits that each gets alone */
    float *logits;              /* (HEAD_TOKENS or n_pass if that is less, n_vocab) */
    void *sampling;             /* CUDA_SAMPLE_BYTES(8) */
    int32_t *repeated;          /* tokens of a text, each once: at most the smaller one of n_ctx and n_vocab; and on */
    int32_t *host_repeated;     /* the host, as many, */
    bool *marks;                /* [n_vocab] where all are false between two uses */
};

/* Takes passes of fewer tokens where memory does not allow for PASS_TOKENS and a whole cache beside them. */
llmq_status gpu_work_create(const llmq_device_model *m, int64_t n_ctx, int64_t n_batch, const float *rope,
                            llmq_device_work **out, llmq_err *err);
void gpu_work_destroy(llmq_device_work *w);
/* Tokens that the head takes at a time: 8 in a work for steps only. */
int gpu_head_tokens(const llmq_device_work *w);
/* Bytes of it in device memory, with passes as long as they may be. */
size_t gpu_work_bytes(const llmq_device_desc *d, int64_t n_ctx, int64_t n_batch);

#endif
