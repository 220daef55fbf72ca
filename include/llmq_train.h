/* llmq: training of small models. */
#ifndef LLMQ_TRAIN_H
#define LLMQ_TRAIN_H

#include "llmq.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How far a run has come: the loss of the text that it learns from and of the text that it never sees, in nats a token.
 */
typedef struct llmq_train_point {
    int64_t step, tokens;     /* done */
    double seconds;           /* since the beginning, those of earlier runs of a resumed one included */
    double loss;              /* mean over the steps since the point before; -1: there were none */
    double held_out;          /* loss of the held-out text now */
    double lr;                /* of the next step */
    double tokens_per_second; /* of training, in this run; 0: not yet */
} llmq_train_point;

typedef void llmq_train_point_fn(void *user, const llmq_train_point *point);

typedef struct llmq_train_params {
    const char *from; /* the model to go on with, anything that llmq opens; NULL: a new one of the shape below */
    /* Of a new model: the Llama architecture with tied embeddings. 0: the default. */
    int64_t n_layer, n_embd; /* 6, 256 */
    int64_t n_head;          /* n_embd / 64 */
    int64_t n_head_kv;       /* n_head; fewer share keys and values among query heads */
    int64_t n_ff;            /* 8/3 of n_embd, up to a multiple of 64 */
    int64_t n_vocab;         /* 4096: of the byte-level BPE that is made from the text; fewer where the text is small */
    int64_t n_ctx;           /* 256: tokens of a window; what a new model is made for */
    int64_t batch;           /* 16: windows of a step */
    int64_t steps;           /* >= 0; 0 writes the model as it is before any training */
    double minutes;          /* instead of steps, > 0: train for so long */
    double lr;               /* peak of the learning rate; 0: 0.003 for a new model, 0.0003 for one that goes on */
    uint64_t seed;           /* of the first weights and of the order of windows */
    const char *type;        /* of the written weights: "f32", "f16", "bf16"; NULL: bf16 */
    const char *out;         /* the Hugging Face folder */
    bool force;              /* replace OUT if it is a folder that llmq wrote */
    bool no_resume;          /* start anew even if an earlier run of the same job was stopped half-way */
    int n_threads;
    const char *tokenizer;      /* with from: as in llmq_model_params */
    llmq_progress_fn *progress; /* done and total are tokens */
    llmq_train_point_fn *point; /* each time that the held-out text was measured: about twenty times, NULL allowed */
    void *user;                 /* of both */
} llmq_train_params;
LLMQ_API void llmq_train_params_default(llmq_train_params *params);

#define LLMQ_TRAIN_POINTS 32 /* room of a curve */
typedef struct llmq_train_result {
    int64_t n_params, n_layer, n_embd, n_head, n_head_kv, n_ff, n_vocab, n_ctx, batch; /* as trained */
    int64_t text_tokens, held_tokens; /* of the text; of them held out, the last */
    double unigram;                   /* loss of the held-out text by the counts of single tokens alone: what any
                                         training has to beat */
    llmq_train_point points[LLMQ_TRAIN_POINTS]; /* n_points: the first before any training, the last at the end */
    int64_t n_points;
    int64_t steps, resumed_steps; /* done in all; of them by earlier runs */
    int64_t out_bytes;
    double seconds;           /* of this run */
    double tokens_per_second; /* of training: without measurements, the tokenizer and files */
    bool kept;                /* the job was stopped, and OUT.journal lets the same job go on */
} llmq_train_result;

/* Trains a model on the texts, one behind the other, and writes it as a Hugging Face folder that transformers and llmq
 * load. OUT appears only when it is whole. A job that is stopped or killed leaves OUT.journal, and the same job goes on
 * with it; with a number of steps the result has the same bytes as that of a job in one piece, for any number of
 * threads. */
LLMQ_API llmq_status llmq_train(const char *const *texts, size_t n_texts, const llmq_train_params *params,
                                llmq_train_result *result, llmq_err *err);

#ifdef __cplusplus
}
#endif
#endif
