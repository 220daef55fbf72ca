/* llmq: models, tokenizers, sessions, evaluation. Quantization jobs are in llmq_quant.h.
 *
 * A model is immutable after llmq_model_open and may be shared by threads. A session holds all that changes (KV cache,
 * position, random state) and belongs to one thread at a time. Strings that functions return through const char *
 * belong to the object they were asked of and live as long as it does.
 *
 *     llmq_err err;
 *     llmq_model *model;
 *     llmq_session *session;
 *     if (llmq_model_open("model.gguf", NULL, &model, &err)) die(err.msg);
 *     if (llmq_session_create(model, NULL, &session, &err)) die(err.msg);
 *     llmq_session_sync(session, tokens, n_tokens, &err);          // prefill
 *     while (llmq_session_next(session, &token, &err) == LLMQ_OK && !llmq_model_is_end(model, token)) ...
 */
#ifndef LLMQ_H
#define LLMQ_H

#include "llmq_base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct llmq_model llmq_model;
typedef struct llmq_session llmq_session;
typedef struct llmq_batch llmq_batch;

/* ---- models -------------------------------------------------------------------------------------------------------
 */

typedef struct llmq_model_params {
    const char
        *tokenizer;  /* a tokenizer.bin, tokenizer.json or GGUF to take the tokenizer from; NULL: the model's own */
    int n_threads;   /* threads for repacking at load; 0: physical cores */
    bool vocab_only; /* open metadata and tokenizer only; weights may be absent */
    bool no_weights; /* open metadata and the tensor directory, prepare no weights for running (inspect, convert) */
    const char *device; /* where passes are run: NULL, "cpu" or "auto": the CPU; "cuda" or "cuda:N": a GPU. Sessions
                         * go there, and parts of llmq_quantize. GPUs: experimental, docs/cuda.md */
    int64_t gpu_layers;  /* on a GPU: so many of the last layers run there, the others on the CPU; 0: as many as fit */
    int64_t n_ctx;       /* for gpu_layers 0: positions of the session to come, for which memory is left; 0: the usual */
} llmq_model_params;

LLMQ_API void llmq_model_params_default(llmq_model_params *params);
/* Can llmq_model_params.device be this? LLMQ_E_UNSUPPORTED says what is missing: a build with CUDA, a driver, a GPU. */
LLMQ_API llmq_status llmq_device_check(const char *device, llmq_err *err);

/* Opens a GGUF file (the first of a split works for all), a Hugging Face folder, or a llama2.c .bin, and prepares its
 * weights for this machine's CPU. params may be NULL. *out is owned by the caller (llmq_model_close). */
LLMQ_API llmq_status llmq_model_open(const char *path, const llmq_model_params *params, llmq_model **out,
                                     llmq_err *err);
LLMQ_API void llmq_model_close(llmq_model *model);

typedef struct llmq_model_info {
    const char *path, *container; /* "gguf", "huggingface", "llama2c" */
    const char *arch, *name;      /* "llama", "qwen2", ...; general.name or "" */
    const char *tokenizer;        /* "bpe smollm", "spm", "none", ... */
    const char *chat_template;    /* recognized template: "chatml", "llama2", ... ; NULL if none or not recognized */
    int64_t n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_ctx_train;
    double rope_theta;
    const char *quantization; /* how others quantized the matrices of a Hugging Face folder: "gptq, 4 bits, groups of
                                 128, symmetric"; NULL if nobody did, and for other containers */
    int64_t n_rounded;        /* of these, matrices that no storage type of llmq holds exactly */
    int64_t n_params;         /* all weights, embedding and head counted (a tied head once) */
    int64_t weight_bytes;     /* as stored */
    int64_t matrix_params, matrix_bytes; /* matrices inside the layers only */
    bool tied_head;
    llmq_type main_type;        /* storage type of most of the matrices' parameters */
    const char *activations;    /* "dynamic" or "static": inputs of matrices with 8-bit rows are 8-bit integers, with a
                                   scale for each token or one that was found when quantizing; NULL: no such model */
    int64_t kv_bytes_per_token; /* with an f16 cache */
    int64_t bytes_per_token;    /* weight bytes read to generate one token */
    const char *device;         /* "cuda": where the last n_device_layers layers and the head are; NULL: nowhere */
    int64_t n_device_layers;
} llmq_model_info;
LLMQ_API void llmq_model_get_info(const llmq_model *model, llmq_model_info *out);

/* The memory that a model takes in FP32, FP16, INT8, 4, 3 and 2 bits, in this order: scales and minimums of the
 * smallest storage type of each count; below 8 bits the cache is an f16 one. */
#define LLMQ_MEMORY_ROWS 6
#define LLMQ_MEMORY_CTX 4096
typedef struct llmq_memory_row {
    const char *key, *name; /* "int8", "INT8". Static */
    const char *kv_name;    /* of the cache: "f32", "f16", "q8_0". Static */
    double bits;            /* of a weight: 8.5 */
    int64_t weights, kv;    /* bytes */
} llmq_memory_row;
LLMQ_API void llmq_memory_table(int64_t n_params, int64_t kv_bytes_per_token, int64_t n_ctx,
                                llmq_memory_row rows[LLMQ_MEMORY_ROWS]);
/* The context that tables are made for unless a user says otherwise: the model's own, at most LLMQ_MEMORY_CTX. */
LLMQ_API int64_t llmq_memory_ctx(int64_t n_ctx_train);

typedef struct llmq_tensor_info {
    const char *name;
    llmq_type type;
    int n_dims;
    int64_t dims[4]; /* dims[0] is contiguous: the input features of a matrix */
    int64_t bytes;
} llmq_tensor_info;
LLMQ_API size_t llmq_model_n_tensors(const llmq_model *model);
LLMQ_API llmq_status llmq_model_tensor(const llmq_model *model, size_t index, llmq_tensor_info *out);
/* Metadata in GGUF's names, rendered as text for people (arrays shortened). false past the end. key/value live until
 * the next call from this thread. */
LLMQ_API bool llmq_model_meta(const llmq_model *model, size_t index, const char **key_out, const char **value_out);

/* ---- tokenizer ----------------------------------------------------------------------------------------------------
 */

enum {
    LLMQ_TOK_BOS = 1,    /* put BOS (and EOS) where the tokenizer's own settings add it */
    LLMQ_TOK_SPECIAL = 2 /* recognize special tokens ("<|im_start|>") in the text */
};

/* Encodes text (len bytes, any bytes) to ids. *out is malloc'ed, freed by llmq_free. */
LLMQ_API llmq_status llmq_encode(const llmq_model *model, const char *text, size_t len, int flags, int32_t **out,
                                 size_t *n_out, llmq_err *err);
/* Decodes ids to bytes; special tokens are left out unless flags has LLMQ_TOK_SPECIAL. *out is malloc'ed and
 * NUL-terminated. */
LLMQ_API llmq_status llmq_decode(const llmq_model *model, const int32_t *ids, size_t n, int flags, char **out,
                                 size_t *len_out, llmq_err *err);
LLMQ_API void llmq_free(void *p);

/* Streaming decode: bytes of incomplete UTF-8 are held back until they are whole. */
typedef struct llmq_stream llmq_stream;
LLMQ_API llmq_status llmq_stream_create(const llmq_model *model, llmq_stream **out, llmq_err *err);
LLMQ_API void llmq_stream_destroy(llmq_stream *stream);
/* The bytes that id makes printable now: *text lives until the next call. */
LLMQ_API void llmq_stream_put(llmq_stream *stream, int32_t id, const char **text, size_t *len);
/* What is still held back at the end (broken UTF-8 becomes U+FFFD). */
LLMQ_API void llmq_stream_finish(llmq_stream *stream, const char **text, size_t *len);

/* True for every token that ends a turn or a text: eos, eot, generation_config's list (and BOS for llama2.c models). */
LLMQ_API bool llmq_model_is_end(const llmq_model *model, int32_t id);

typedef struct llmq_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} llmq_message;
/* Renders messages by the model's recognized chat template, ending in the opening of an assistant turn if
 * add_assistant. *recognized_out is false when the model has no template that llmq knows: the text is then the last
 * message's content. The text is to be encoded with LLMQ_TOK_SPECIAL; it contains BOS where the template writes it
 * (*has_bos_out). */
LLMQ_API llmq_status llmq_chat_render(const llmq_model *model, const llmq_message *messages, size_t n,
                                      bool add_assistant, char **out, bool *recognized_out, bool *has_bos_out,
                                      llmq_err *err);

/* ---- sessions -----------------------------------------------------------------------------------------------------
 */

/* F32 is for exact scores: slower, and twice the memory of F16; nothing is rounded further than to f32 on the way of a
 * prompt through rows of F16 and BF16 and attention, as it is with the others on processors with AVX-512. */
typedef enum llmq_kv_type { LLMQ_KV_F16, LLMQ_KV_Q8_0, LLMQ_KV_F32 } llmq_kv_type;

typedef struct llmq_session_params {
    int64_t n_ctx;   /* tokens the KV cache holds; 0: min(model's training context, 4096) */
    int n_threads;   /* 0: physical cores */
    int64_t n_batch; /* tokens per prefill pass; 0: 512 */
    llmq_kv_type kv_type;
} llmq_session_params;
LLMQ_API void llmq_session_params_default(llmq_session_params *params);

LLMQ_API llmq_status llmq_session_create(llmq_model *model, const llmq_session_params *params, llmq_session **out,
                                         llmq_err *err);
LLMQ_API void llmq_session_destroy(llmq_session *session);
LLMQ_API int64_t llmq_session_n_ctx(const llmq_session *session);
LLMQ_API int64_t llmq_session_n_past(const llmq_session *session);
/* Of n_ctx tokens. On a GPU memory is taken as the text grows, so running tokens may fail with LLMQ_E_MEMORY: what ran
 * before stays (n_past says how much), its logits do not. */
LLMQ_API int64_t llmq_session_kv_bytes(const llmq_session *session);

/* Makes the cache hold exactly tokens[0..n): keeps the common prefix with what it holds, drops the rest, runs the new
 * ones (at least the last one). Afterwards logits of the last position are ready. More than n_ctx tokens:
 * LLMQ_E_CONTEXT. */
LLMQ_API llmq_status llmq_session_sync(llmq_session *session, const int32_t *tokens, size_t n, llmq_err *err);
/* Runs n more tokens after those in the cache. */
LLMQ_API llmq_status llmq_session_append(llmq_session *session, const int32_t *tokens, size_t n, llmq_err *err);
/* Forgets everything after the first n_keep tokens. */
LLMQ_API void llmq_session_truncate(llmq_session *session, int64_t n_keep);
/* Logits [n_vocab] of the last position run; borrowed, valid until the next run. NULL before the first. */
LLMQ_API const float *llmq_session_logits(const llmq_session *session);
/* Runs tokens and hands out logits of every position: fn(user, position in tokens, logits [n_vocab]) in order. Used by
 * perplexity and score. Positions before `from` are run but not handed out (their head is not computed). */
typedef void llmq_logits_fn(void *user, size_t pos, const float *logits);
LLMQ_API llmq_status llmq_session_append_all(llmq_session *session, const int32_t *tokens, size_t n, size_t from,
                                             llmq_logits_fn *fn, void *user, llmq_err *err);

typedef struct llmq_sampler_params {
    float temperature;    /* <= 0: greedy */
    int top_k;            /* <= 0: off */
    float top_p;          /* >= 1: off */
    float min_p;          /* <= 0: off */
    float repeat_penalty; /* 1: off; over the last repeat_last_n tokens */
    int repeat_last_n;
    uint64_t seed; /* the same seed gives the same text (with tokens that a GPU draws: but for the last bit of an
                    * exponential, which moves about one draw in a million) */
} llmq_sampler_params;
LLMQ_API void llmq_sampler_params_default(llmq_sampler_params *params);
LLMQ_API void llmq_session_set_sampler(llmq_session *session, const llmq_sampler_params *params);
/* Samples the next token from the last logits; does not run it. */
LLMQ_API llmq_status llmq_session_sample(llmq_session *session, int32_t *token_out, llmq_err *err);
/* Generates: runs the token that this function gave last, if nothing else was done since, and samples the one after it:
 * the same tokens as llmq_session_sample and llmq_session_append in turn, in fewer passes where speculation is on. The
 * token given is not in the cache before the next call. A full context: LLMQ_E_CONTEXT, and nothing has changed. */
LLMQ_API llmq_status llmq_session_next(llmq_session *session, int32_t *token_out, llmq_err *err);

/* Speculation: llmq_session_next runs guesses of the tokens that follow together with the one that is certain, and
 * keeps those that sampling would have given. It gives the same tokens with and without, at any temperature. How many
 * are guessed follows from how many were right and what passes take. */
typedef struct llmq_speculation_params {
    bool lookup;       /* guess that what followed the last tokens earlier in the text follows again */
    llmq_model *draft; /* guess by a smaller model of the same vocabulary (after lookup, where that finds nothing). It
                          must outlive the session. NULL: none */
    int n_guess;       /* tokens guessed at a time, at most; 1 to 7, 0: 7 */
} llmq_speculation_params;
/* params NULL, or without lookup and draft: off. May be called at any time. Another vocabulary: LLMQ_E_ARG, and it is
 * off. */
LLMQ_API llmq_status llmq_session_set_speculation(llmq_session *session, const llmq_speculation_params *params,
                                                  llmq_err *err);
typedef struct llmq_speculation_stats {
    int64_t tokens, passes;    /* given by llmq_session_next, and passes over the weights that it made for them */
    int64_t guessed, accepted; /* tokens */
} llmq_speculation_stats;
LLMQ_API void llmq_session_get_speculation_stats(const llmq_session *session, llmq_speculation_stats *out);

/* ---- batches ------------------------------------------------------------------------------------------------------
 */

/* Several sessions that are computed together: one pass over the weights gives each of them a token. Sessions of a
 * batch share threads and scratch memory; all of it belongs to one thread at a time. */

#define LLMQ_BATCH_MAX 4096
/* n_sessions sessions, at most LLMQ_BATCH_MAX, with these parameters (n_ctx each). params may be NULL. */
LLMQ_API llmq_status llmq_batch_create(llmq_model *model, int64_t n_sessions, const llmq_session_params *params,
                                       llmq_batch **out, llmq_err *err);
LLMQ_API void llmq_batch_destroy(llmq_batch *batch); /* and its sessions */
/* The i-th session, borrowed (llmq_session_destroy leaves it alone); NULL out of range. Every function of sessions
 * works on it, by itself. llmq_session_sync takes keys and values of a prefix that another session of the batch holds
 * from there instead of computing them. */
LLMQ_API llmq_session *llmq_batch_session(llmq_batch *batch, int64_t i);
/* Runs tokens[i] in sessions[i], n different sessions of this batch, in one pass. Afterwards logits of each are ready.
 * If a context is full or a token is wrong, the error names the session and nothing has changed. */
LLMQ_API llmq_status llmq_batch_append(llmq_batch *batch, llmq_session *const *sessions, const int32_t *tokens,
                                       size_t n, llmq_err *err);
/* llmq_session_next for n different sessions of this batch in one pass (without speculation). */
LLMQ_API llmq_status llmq_batch_next(llmq_batch *batch, llmq_session *const *sessions, int32_t *tokens_out, size_t n,
                                     llmq_err *err);

/* ---- evaluation ---------------------------------------------------------------------------------------------------
 */

typedef struct llmq_ppl_params {
    int64_t n_ctx;    /* window; default 512 */
    int64_t n_chunks; /* 0: all whole windows */
    bool full;        /* false: llama-perplexity's rule, score the second half of each window; true: all positions */
    int n_threads;
    llmq_progress_fn *progress;
    void *user;
} llmq_ppl_params;
typedef struct llmq_ppl_result {
    double ppl, ppl_stderr;
    int64_t tokens, chunks; /* scored tokens, windows */
    bool has_base;          /* the rest is filled only with a base model */
    double base_ppl, kl_mean, kl_p99, top1, dppl, dppl_ci95;
} llmq_ppl_result;
LLMQ_API void llmq_ppl_params_default(llmq_ppl_params *params);
/* Perplexity of text as llama.cpp's llama-perplexity defines it (windows of n_ctx tokens of the whole encoded text; the
 * first token of each window is replaced by BOS where the tokenizer adds it); with base, also KL(base || model) and
 * top-1 agreement. */
LLMQ_API llmq_status llmq_perplexity(llmq_model *model, llmq_model *base, const char *text, size_t len,
                                     const llmq_ppl_params *params, llmq_ppl_result *out, llmq_err *err);

/* ---- the machine --------------------------------------------------------------------------------------------------
 */

LLMQ_API int llmq_cpu_count(void); /* physical cores this process may use */
/* "amx", "avx512bf16", "avx512", "avxvnni", "avx2", on ARM "dotprod", "neon", or "c": what the kernels run with
 * (LLMQ_ISA limits it) */
LLMQ_API const char *llmq_cpu_isa(void);
/* Bytes/s that n_threads read from a buffer of `bytes`: the fastest of plain and prefetching loops over large and small
 * pages. 0 if there is no memory for it. */
LLMQ_API double llmq_read_bandwidth(int n_threads, size_t bytes);
/* Multiply-adds/s that n_threads get at most from the instruction that multiplies prompts by quantized weights, and its
 * name: "tdpbf16ps" (AMX), "vpdpbusd" (AVX-512), "vpdpbusd of 256 bits" (AVX-VNNI), "vpmaddubsw" (AVX2), "sdot" or
 * "smlal of bytes" (ARM). */
LLMQ_API double llmq_product_rate(int n_threads);
LLMQ_API const char *llmq_product_name(void);

/* ---- other engines ------------------------------------------------------------------------------------------------
 */

typedef enum llmq_compat_verdict { LLMQ_COMPAT_LOADS, LLMQ_COMPAT_WARNS, LLMQ_COMPAT_REFUSES } llmq_compat_verdict;

typedef struct llmq_compat_finding {
    const char *engine;          /* "llama.cpp", "vllm", "transformers", "sglang". Static */
    llmq_compat_verdict verdict; /* LLMQ_COMPAT_WARNS or LLMQ_COMPAT_REFUSES */
    char field[96];              /* where in the model: "config.json: quantization_config.sym" */
    char reason[448];            /* what the engine makes of it */
    const char *cure;            /* what to do. Static */
} llmq_compat_finding;

typedef struct llmq_compat_report {
    struct {
        const char *name; /* static */
        llmq_compat_verdict verdict;
    } engines[4];
    size_t n_engines;              /* those that were asked for, in the order of asking */
    llmq_compat_finding *findings; /* n_findings, engine by engine */
    size_t n_findings;
} llmq_compat_report;

/* What will refuse the model at path (a GGUF file, a Hugging Face folder, a llama2.c .bin) and why, by what is known of
 * the engines' loaders (docs/compatibility.md): metadata and the directory of tensors are read, no weights. engines:
 * "llama.cpp,vllm,transformers,sglang" or some of them; NULL: all. Free the report with llmq_compat_report_clear. */
LLMQ_API llmq_status llmq_compat_check(const char *path, const char *engines, llmq_compat_report *out, llmq_err *err);
LLMQ_API void llmq_compat_report_clear(llmq_compat_report *report);
/* "loads", "loads with a warning", "refuses". Static string. */
LLMQ_API const char *llmq_compat_verdict_name(llmq_compat_verdict verdict);

#ifdef __cplusplus
}
#endif
#endif
