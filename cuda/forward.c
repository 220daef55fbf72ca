/* The layers of a decoder on a GPU: what core/device.h asks for, as a sequence of launches. Up to 8 tokens go through
 * the layers at a time, which is what the decode kernels take; longer runs are cut. */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "cuda/cuda.h"
#include "cuda/layout.h"
#include "cuda/matmul.h"
#include "cuda/model.h"

/* A step of up to 8 tokens is hundreds of launches, each of which costs the host more than some of them take. So a step
 * is recorded when it comes for the second time, and replayed from then on. What changes from step to step is in device
 * memory; but how many keys there are decides the grid of attention: a recording is for so many parts of keys, rounded
 * up to a power of two, of which the last ones find nothing to do. */
enum { RECORDINGS = 24 }; /* powers of two: a context has less than 2^24 parts */

struct llmq_device_cache {
    const llmq_device_model *m;
    int64_t n_ctx;
    cuda_kv *kv;      /* [n_layer] */
    uint64_t used_by; /* the work whose buffers the recordings know */
    gpu_recording *recordings[ACT_TOKENS][RECORDINGS];
};

struct llmq_device_work {
    const llmq_device_model *m;
    uint64_t id; /* another for each work of the process */
    gpu_stream *stream;
    int64_t n_ctx, n_batch;
    bool ran[ACT_TOKENS];       /* a step of so many tokens, less 1, has been run unrecorded: its kernels are loaded */
    bool unrecorded;            /* recording failed: steps are launched one by one */
    int32_t *host;              /* what `inputs` gets */
    float *rope;                /* (n_ctx, n_rot/2, 2) */
    int32_t *inputs;            /* positions of the first token of every step, then [n_batch] tokens */
    float *x;                   /* (n_batch, n_embd): the residual stream; the hidden states afterwards */
    float *norm, *delta;        /* (8, n_embd) */
    float *q, *k, *v, *attn;    /* (8, ...) */
    float *gate, *up;           /* (8, n_ff) */
    void *forms, *attn_scratch; /* forms: of one input after another */
    float *logits;              /* (8, n_vocab) */
    void *best;                 /* CUDA_ARGMAX_BYTES */
};

/* ---- caches */

static cuda_kv kv_of(const llmq_device_desc *d, int64_t n_ctx, bool q8) {
    return (cuda_kv){.n_ctx = n_ctx, .n_head_kv = (int)d->n_head_kv, .head_dim = (int)d->head_dim, .q8 = q8};
}

/* Of K or V of one layer, in memory. */
static size_t kv_bytes(const cuda_kv *kv) {
    return size_align(cuda_kv_bytes(kv), GPU_ALIGN);
}

static void drop_recordings(llmq_device_cache *c) {
    for (int n = 0; n < ACT_TOKENS; n++)
        for (int i = 0; i < RECORDINGS; i++) {
            gpu_recording_destroy(c->recordings[n][i]);
            c->recordings[n][i] = NULL;
        }
}

static void cache_destroy(llmq_device_cache *c) {
    if (!c) return;
    gpu_use(c->m->device);
    drop_recordings(c);
    for (int64_t l = 0; c->kv && l < c->m->d.n_layer; l++) {
        gpu_free(c->kv[l].k);
        gpu_free(c->kv[l].v);
    }
    mem_free(c->kv);
    mem_free(c);
}

static llmq_status cache_alloc(llmq_device_cache *c, const cuda_kv *shape, llmq_err *err) {
    const llmq_device_desc *d = &c->m->d;
    c->kv = mem_zalloc((size_t)d->n_layer, sizeof *c->kv);
    if (!c->kv) return mem_error(err, (size_t)d->n_layer * sizeof *c->kv, "the KV cache");
    for (int64_t l = 0; l < d->n_layer; l++) {
        c->kv[l] = *shape;
        LLMQ_TRY(gpu_alloc("the KV cache", cuda_kv_bytes(shape), &c->kv[l].k, err));
        LLMQ_TRY(gpu_alloc("the KV cache", cuda_kv_bytes(shape), &c->kv[l].v, err));
    }
    return LLMQ_OK;
}

static llmq_status cache_create(const llmq_device_model *m, int64_t n_ctx, int kv_type, llmq_device_cache **out,
                                size_t *bytes, llmq_err *err) {
    *out = NULL;
    if (kv_type != 0 && kv_type != 1)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--kv-type f32: on a GPU the cache is f16 or q8_0");
    gpu_use(m->device);
    llmq_device_cache *c = mem_zalloc(1, sizeof *c);
    if (!c) return mem_error(err, sizeof *c, "the KV cache");
    *c = (llmq_device_cache){.m = m, .n_ctx = n_ctx};
    const cuda_kv shape = kv_of(&m->d, n_ctx, kv_type == 1);
    *bytes = 2 * kv_bytes(&shape) * (size_t)m->d.n_layer;
    llmq_status status = cache_alloc(c, &shape, err);
    if (status == LLMQ_OK)
        *out = c;
    else
        cache_destroy(c);
    return status;
}

/* ---- what passes write */

static void work_destroy(llmq_device_work *w) {
    if (!w) return;
    gpu_use(w->m->device);
    gpu_stream_destroy(w->stream);
    void *buffers[] = {w->rope, w->inputs, w->x,  w->norm,  w->delta,        w->q,      w->k,   w->v,
                       w->attn, w->gate,   w->up, w->forms, w->attn_scratch, w->logits, w->best};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) gpu_free(buffers[i]);
    mem_free(w->host);
    mem_free(w);
}

static size_t steps_of(int64_t n_tok) {
    return (size_t)((n_tok + ACT_TOKENS - 1) / ACT_TOKENS);
}

static int64_t widest_input(const llmq_device_desc *d) {
    int64_t most = d->n_head * d->head_dim;
    if (most < d->n_embd) most = d->n_embd;
    return most < d->n_ff ? d->n_ff : most;
}

/* Allocates the buffers that runs write; with w NULL it only adds up their bytes. */
static llmq_status alloc_activations(const llmq_device_desc *d, int64_t n_ctx, int64_t n_batch, llmq_device_work *w,
                                     size_t *sum, llmq_err *err) {
    int64_t q_dim = d->n_head * d->head_dim, kv_dim = d->n_head_kv * d->head_dim;
    const cuda_kv any = kv_of(d, n_ctx, false);
    cuda_attn longest = {.n_head = (int)d->n_head, .n_keys = n_ctx};
    llmq_device_work nowhere = {0}, *to = w ? w : &nowhere;
    const size_t f32 = sizeof(float), tokens = ACT_TOKENS;
    const struct {
        void *out; /* the address of a pointer */
        size_t bytes;
    } buffers[] = {
        {&to->inputs, ((size_t)n_batch + steps_of(n_batch)) * sizeof *to->inputs},
        {&to->x, (size_t)(n_batch * d->n_embd) * f32},
        {&to->norm, tokens * (size_t)d->n_embd * f32},
        {&to->delta, tokens * (size_t)d->n_embd * f32},
        {&to->q, tokens * (size_t)q_dim * f32},
        {&to->k, tokens * (size_t)kv_dim * f32},
        {&to->v, tokens * (size_t)kv_dim * f32},
        {&to->attn, tokens * (size_t)q_dim * f32},
        {&to->gate, tokens * (size_t)d->n_ff * f32},
        {&to->up, tokens * (size_t)d->n_ff * f32},
        {&to->forms, cuda_input_bytes(ACT_TOKENS, widest_input(d))},
        {&to->attn_scratch, cuda_attention_scratch_bytes(&longest, &any, ACT_TOKENS)},
        {&to->logits, tokens * (size_t)d->n_vocab * f32},
        {&to->best, CUDA_ARGMAX_BYTES},
    };
    *sum = 0;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        void *p = NULL;
        *sum += size_align(buffers[i].bytes, GPU_ALIGN);
        if (!w) continue;
        LLMQ_TRY(gpu_alloc("activations", buffers[i].bytes, &p, err));
        memcpy(buffers[i].out, &p, sizeof p);
    }
    return LLMQ_OK;
}

static llmq_status fill_work(llmq_device_work *w, const float *rope, llmq_err *err) {
    const llmq_device_desc *d = &w->m->d;
    const size_t n_inputs = (size_t)w->n_batch + steps_of(w->n_batch);
    size_t bytes;
    w->host = mem_zalloc(n_inputs, sizeof *w->host);
    if (!w->host) return mem_error(err, n_inputs * sizeof *w->host, "tokens");
    LLMQ_TRY(gpu_stream_create(&w->stream, err));
    LLMQ_TRY(alloc_activations(d, w->n_ctx, w->n_batch, w, &bytes, err));
    return gpu_upload_new("the RoPE table", rope, (size_t)(w->n_ctx * d->n_rot) * sizeof *rope, &w->rope, err);
}

static llmq_status work_create(const llmq_device_model *m, int64_t n_ctx, int64_t n_batch, const float *rope,
                               llmq_device_work **out, llmq_err *err) {
    static _Atomic uint64_t works;
    *out = NULL;
    gpu_use(m->device);
    llmq_device_work *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, "activations");
    *w = (llmq_device_work){.m = m, .id = ++works, .n_ctx = n_ctx, .n_batch = n_batch};
    llmq_status status = fill_work(w, rope, err);
    if (status == LLMQ_OK)
        *out = w;
    else
        work_destroy(w);
    return status;
}

/* ---- what fits */

/* A part stays free: for what the driver takes when kernels are first run, and for gaps between buffers. */
static llmq_status fit(const llmq_device_desc *d, int64_t n_ctx, int64_t n_batch, int64_t *n_layers, llmq_err *err) {
    size_t available, work;
    *n_layers = 0;
    LLMQ_TRY(gpu_model_check(d, err));
    LLMQ_TRY(gpu_memory(&available, err));
    LLMQ_TRY(alloc_activations(d, n_ctx, n_batch, NULL, &work, err));
    available -= available / 16;
    const cuda_kv kv = kv_of(d, n_ctx, false);
    size_t used = work + gpu_matrix_bytes(d->head) + (size_t)(n_ctx * d->n_rot) * sizeof(float);
    for (int64_t l = d->n_layer - 1; l >= 0; l--) {
        used += gpu_layer_bytes(d, &d->layers[l]) + 2 * kv_bytes(&kv);
        if (l == 0 && d->embd != d->head) used += gpu_matrix_bytes(d->embd);
        if (used > available) break;
        *n_layers = d->n_layer - l;
    }
    return LLMQ_OK;
}

/* ---- a step: up to 8 tokens through the layers */

static cuda_input normalized(llmq_device_work *w, const float *x, const float *gain, int n_tok) {
    int64_t n = w->m->d.n_embd;
    cuda_rms_norm(w->stream, x, gain, w->m->d.eps, w->norm, n_tok, n, n);
    return cuda_input_of(w->norm, n_tok, n, w->forms);
}

/* What a step reads and writes; all of it on the device. */
typedef struct step {
    const int32_t *tokens, *pos; /* NULL tokens: x is there already; the position of the first */
    float *x;                    /* (n_tok, n_embd) */
    int n_tok;
    int64_t n_keys; /* in the cache when it is done, or more: attention's grid */
} step;

/* x += o(attention(rope(qkv(norm(x))))) */
static void attention_block(llmq_device_work *w, const cuda_kv *kv, int64_t l, const step *s) {
    const llmq_device_desc *d = &w->m->d;
    const gpu_layer *layer = &w->m->layers[l];
    int64_t q_dim = d->n_head * d->head_dim, kv_dim = d->n_head_kv * d->head_dim, dim = d->head_dim;
    cuda_input in = normalized(w, s->x, layer->attn_norm, s->n_tok);
    cuda_decode(w->stream, &layer->q, &in, w->q, q_dim);
    cuda_decode(w->stream, &layer->k, &in, w->k, kv_dim);
    cuda_decode(w->stream, &layer->v, &in, w->v, kv_dim);
    if (layer->q_norm) cuda_rms_norm(w->stream, w->q, layer->q_norm, d->eps, w->q, s->n_tok * d->n_head, dim, dim);
    if (layer->k_norm) cuda_rms_norm(w->stream, w->k, layer->k_norm, d->eps, w->k, s->n_tok * d->n_head_kv, dim, dim);
    cuda_rope rope = {(int)d->n_head, (int)d->n_rot, d->rope_neox, w->rope, s->pos};
    cuda_rope_store(w->stream, &rope, w->q, q_dim, w->k, kv_dim, w->v, kv_dim, s->n_tok, kv);
    cuda_attn attn = {(int)d->n_head, 1.0f / sqrtf((float)dim), d->window, s->n_keys, s->pos};
    cuda_attention(w->stream, &attn, w->q, q_dim, kv, s->n_tok, w->attn, w->attn_scratch);
    cuda_input out = cuda_input_of(w->attn, s->n_tok, q_dim, w->forms);
    cuda_decode(w->stream, &layer->o, &out, w->delta, d->n_embd);
    cuda_add(w->stream, s->x, w->delta, s->n_tok * d->n_embd);
}

/* x += down(silu(gate(norm(x))) * up(norm(x))) */
static void ffn_block(llmq_device_work *w, int64_t l, const step *s) {
    const llmq_device_desc *d = &w->m->d;
    const gpu_layer *layer = &w->m->layers[l];
    cuda_input in = normalized(w, s->x, layer->ffn_norm, s->n_tok);
    cuda_decode(w->stream, &layer->gate, &in, w->gate, d->n_ff);
    cuda_decode(w->stream, &layer->up, &in, w->up, d->n_ff);
    cuda_silu_mul(w->stream, w->gate, w->up, w->gate, s->n_tok * d->n_ff);
    cuda_input act = cuda_input_of(w->gate, s->n_tok, d->n_ff, w->forms);
    cuda_decode(w->stream, &layer->down, &act, w->delta, d->n_embd);
    cuda_add(w->stream, s->x, w->delta, s->n_tok * d->n_embd);
}

static void launch_step(llmq_device_work *w, const llmq_device_cache *c, const step *s) {
    if (s->tokens) cuda_embed(w->stream, &w->m->embd, s->tokens, s->n_tok, s->x);
    for (int64_t l = 0; l < w->m->d.n_layer; l++) {
        attention_block(w, &c->kv[l], l, s);
        ffn_block(w, l, s);
    }
}

/* ---- steps recorded and replayed */

static llmq_status record_step(llmq_device_work *w, const llmq_device_cache *c, const step *s, gpu_recording **out,
                               llmq_err *err) {
    LLMQ_TRY(gpu_record_begin(w->stream, err));
    launch_step(w, c, s);
    return gpu_record_end(w->stream, out, err);
}

/* A run of one step, which begins at x and inputs[0]. */
static llmq_status run_recorded(llmq_device_work *w, llmq_device_cache *c, step *s, llmq_err *err) {
    int bucket = 0;
    while ((int64_t)CUDA_ATTENTION_KEYS << bucket < s->n_keys) bucket++;
    LLMQ_ASSERT(bucket < RECORDINGS);
    if (c->used_by != w->id) drop_recordings(c);
    c->used_by = w->id;
    gpu_recording **recording = &c->recordings[s->n_tok - 1][bucket];
    s->n_keys = (int64_t)CUDA_ATTENTION_KEYS << bucket;
    if (s->n_keys > w->n_ctx) s->n_keys = w->n_ctx; /* what scratch memory is there for */
    llmq_err why;
    if (!*recording && w->ran[s->n_tok - 1] && !w->unrecorded && record_step(w, c, s, recording, &why) != LLMQ_OK) {
        w->unrecorded = true;
        llmq_log(LLMQ_LOG_WARN, "%s: steps are launched kernel by kernel, which is slower", why.msg);
    }
    if (*recording) return gpu_replay(*recording, w->stream, err);
    w->ran[s->n_tok - 1] = true;
    launch_step(w, c, s);
    return LLMQ_OK;
}

/* ---- runs */

static llmq_status send_inputs(llmq_device_work *w, const int32_t *tokens, const float *hidden, int64_t n_tok,
                               int64_t pos, llmq_err *err) {
    const size_t n_steps = steps_of(n_tok), places = steps_of(w->n_batch);
    if (hidden)
        LLMQ_TRY(gpu_stream_upload(w->stream, w->x, hidden, (size_t)(n_tok * w->m->d.n_embd) * sizeof *hidden, err));
    for (size_t i = 0; i < n_steps; i++) w->host[i] = (int32_t)pos + (int32_t)i * ACT_TOKENS;
    memcpy(w->host + places, tokens, (size_t)n_tok * sizeof *tokens);
    return gpu_stream_upload(w->stream, w->inputs, w->host, (places + (size_t)n_tok) * sizeof *w->host, err);
}

static llmq_status work_run(llmq_device_work *w, llmq_device_cache *c, const int32_t *tokens, const float *hidden,
                            int64_t n_tok, int64_t pos, llmq_err *err) {
    const bool embeds = w->m->embd.packed != NULL;
    LLMQ_ASSERT(n_tok >= 1 && n_tok <= w->n_batch && pos + n_tok <= w->n_ctx && pos + n_tok <= c->n_ctx);
    LLMQ_ASSERT(embeds || hidden);
    const size_t places = steps_of(w->n_batch);
    gpu_use(w->m->device);
    LLMQ_TRY(send_inputs(w, tokens, embeds ? NULL : hidden, n_tok, pos, err));
    for (int64_t at = 0; at < n_tok; at += ACT_TOKENS) {
        int n = (int)(n_tok - at < ACT_TOKENS ? n_tok - at : ACT_TOKENS);
        step s = {.tokens = embeds ? w->inputs + places + at : NULL,
                  .pos = w->inputs + at / ACT_TOKENS,
                  .x = w->x + at * w->m->d.n_embd,
                  .n_tok = n,
                  .n_keys = pos + at + n};
        if (n_tok <= ACT_TOKENS)
            LLMQ_TRY(run_recorded(w, c, &s, err));
        else
            launch_step(w, c, &s);
    }
    return gpu_launched(err);
}

/* Logits of up to 8 tokens, on the device. */
static void launch_head(llmq_device_work *w, int64_t row, int n) {
    cuda_input in = normalized(w, w->x + row * w->m->d.n_embd, w->m->output_norm, n);
    cuda_decode(w->stream, &w->m->head, &in, w->logits, w->m->d.n_vocab);
}

static llmq_status work_head(llmq_device_work *w, int64_t row, int64_t n_rows, float *logits, llmq_err *err) {
    const int64_t n_vocab = w->m->d.n_vocab;
    LLMQ_ASSERT(row >= 0 && n_rows >= 1 && row + n_rows <= w->n_batch);
    gpu_use(w->m->device);
    for (int64_t at = 0; at < n_rows; at += ACT_TOKENS) {
        int n = (int)(n_rows - at < ACT_TOKENS ? n_rows - at : ACT_TOKENS);
        launch_head(w, row + at, n);
        LLMQ_TRY(gpu_stream_download(w->stream, logits + at * n_vocab, w->logits,
                                     (size_t)(n * n_vocab) * sizeof *logits, err));
    }
    return LLMQ_OK;
}

static llmq_status work_likeliest(llmq_device_work *w, int64_t row, int32_t *token, float *logit, llmq_err *err) {
    struct {
        float logit;
        int32_t token;
    } best;
    LLMQ_ASSERT(row >= 0 && row < w->n_batch);
    gpu_use(w->m->device);
    launch_head(w, row, 1);
    cuda_argmax(w->stream, w->logits, w->m->d.n_vocab, w->best);
    LLMQ_TRY(gpu_stream_download(w->stream, &best, w->best, sizeof best, err));
    *token = best.token;
    *logit = best.logit;
    return LLMQ_OK;
}

const llmq_device_ops cuda_device_ops = {
    .name = "cuda",
    .open = gpu_open,
    .fit = fit,
    .model_create = gpu_model_create,
    .model_destroy = gpu_model_destroy,
    .cache_create = cache_create,
    .cache_destroy = cache_destroy,
    .work_create = work_create,
    .work_destroy = work_destroy,
    .run = work_run,
    .head = work_head,
    .likeliest = work_likeliest,
};
