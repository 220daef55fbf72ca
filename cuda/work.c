/* Buffers of passes (cuda/work.h): each is named once, with its size, for those who allocate and those who count. */
#include "cuda/work.h"

#include <string.h>

#include "core/mem.h"
#include "cuda/cache.h"

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

int gpu_head_tokens(const llmq_device_work *w) {
    return w->n_pass < HEAD_TOKENS ? w->n_pass : HEAD_TOKENS;
}

/* The most that any product of a pass of n tokens needs, or the head. */
static size_t product_bytes(const llmq_device_desc *d, int64_t n, int64_t n_head) {
    const int64_t q_dim = d->n_head * d->head_dim, kv_dim = d->n_head_kv * d->head_dim;
    const int64_t shapes[][2] = {{larger(q_dim, kv_dim), d->n_embd}, /* q, k, v */
                                 {d->n_embd, q_dim},
                                 {d->n_ff, d->n_embd},
                                 {d->n_embd, d->n_ff}};
    size_t most = cuda_scratch_bytes(n_head, d->n_vocab, d->n_embd);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const size_t bytes = cuda_scratch_bytes(n, shapes[i][0], shapes[i][1]);
        if (bytes > most) most = bytes;
    }
    return most;
}

static size_t repeated_most(const llmq_device_desc *d, const llmq_device_work *w) {
    return (size_t)(w->n_ctx < d->n_vocab ? w->n_ctx : d->n_vocab);
}

typedef struct buffer {
    void *out; /* the address of a pointer */
    size_t bytes;
} buffer;
enum { BUFFERS = 16 };

/* What runs write. */
static void list_buffers(const llmq_device_desc *d, llmq_device_work *w, buffer list[BUFFERS]) {
    const cuda_kv any = gpu_kv_of(d, false);
    const cuda_attn longest = {.n_head = (int)d->n_head, .n_keys = w->n_ctx};
    const size_t f32 = sizeof(float), tokens = (size_t)w->n_pass, embd = (size_t)d->n_embd * f32;
    const size_t q_dim = (size_t)(d->n_head * d->head_dim) * f32, kv_dim = (size_t)(d->n_head_kv * d->head_dim) * f32;
    const int64_t widest = larger(larger(d->n_head * d->head_dim, d->n_embd), d->n_ff);
    w->scratch.bytes = product_bytes(d, w->n_pass, gpu_head_tokens(w));
    const buffer all[BUFFERS] = {
        {&w->inputs, 2 * (size_t)w->n_batch * sizeof *w->inputs},
        {&w->x, (size_t)w->n_batch * embd},
        {&w->norm, tokens * embd},
        {&w->delta, tokens * embd},
        {&w->q, tokens * q_dim},
        {&w->k, tokens * kv_dim},
        {&w->v, tokens * kv_dim},
        {&w->attn, tokens * q_dim},
        {&w->gate, tokens * (size_t)d->n_ff * f32},
        {&w->up, tokens * (size_t)d->n_ff * f32},
        {&w->forms, cuda_input_bytes(w->n_pass, widest)},
        {&w->attn_scratch, cuda_attention_scratch_bytes(&longest, &any, ACT_TOKENS)},
        {&w->scratch.memory, w->scratch.bytes},
        {&w->logits, (size_t)gpu_head_tokens(w) * (size_t)d->n_vocab * f32},
        {&w->sampling, CUDA_SAMPLE_BYTES(ACT_TOKENS)},
        {&w->repeated, repeated_most(d, w) * sizeof *w->repeated},
    };
    memcpy(list, all, sizeof all);
}

static int longest_pass(int64_t n_batch) {
    return n_batch < ACT_TOKENS ? ACT_TOKENS : n_batch < PASS_TOKENS ? (int)n_batch : PASS_TOKENS;
}

size_t gpu_work_bytes(const llmq_device_desc *d, int64_t n_ctx, int64_t n_batch) {
    llmq_device_work nowhere = {.n_ctx = n_ctx, .n_batch = n_batch, .n_pass = longest_pass(n_batch)};
    buffer list[BUFFERS];
    size_t sum = size_align((size_t)(n_ctx * d->n_rot) * sizeof(float), GPU_ALIGN);
    list_buffers(d, &nowhere, list);
    for (int i = 0; i < BUFFERS; i++) sum += size_align(list[i].bytes, GPU_ALIGN);
    return sum;
}

static void free_buffers(llmq_device_work *w) {
    buffer list[BUFFERS];
    list_buffers(&w->m->d, w, list);
    for (int i = 0; i < BUFFERS; i++) {
        void *p;
        memcpy(&p, list[i].out, sizeof p);
        gpu_free(p);
        memset(list[i].out, 0, sizeof p);
    }
}

static llmq_status alloc_pass(llmq_device_work *w, llmq_err *err) {
    buffer list[BUFFERS];
    list_buffers(&w->m->d, w, list);
    for (int i = 0; i < BUFFERS; i++) {
        void *p = NULL;
        if (list[i].bytes == 0) continue;
        LLMQ_TRY(gpu_alloc("activations", list[i].bytes, &p, err));
        memcpy(list[i].out, &p, sizeof p);
    }
    return LLMQ_OK;
}

/* Caches take their pages later: is there memory left for one of n_ctx positions? */
static bool leaves_room(const llmq_device_work *w) {
    const size_t cache = gpu_cache_layer_bytes(&w->m->d, w->n_ctx, false) * (size_t)w->m->d.n_layer;
    size_t available;
    return gpu_memory(&available, NULL) == LLMQ_OK && available >= cache;
}

/* Shorter passes are slower, none at all is worse. Where not even the shortest leave room, the longest do no harm: the
 * cache is in 8 bits, or another session has pages. */
static llmq_status alloc_buffers(llmq_device_work *w, llmq_err *err) {
    int longest = 0; /* of those that there was memory for */
    for (w->n_pass = longest_pass(w->n_batch);; w->n_pass = w->n_pass / 2 > ACT_TOKENS ? w->n_pass / 2 : ACT_TOKENS) {
        const llmq_status status = alloc_pass(w, err);
        if (status != LLMQ_OK && status != LLMQ_E_MEMORY) return status;
        if (status == LLMQ_OK && longest == 0) longest = w->n_pass;
        if (status == LLMQ_OK && leaves_room(w)) return LLMQ_OK;
        if (w->n_pass == ACT_TOKENS && longest <= ACT_TOKENS) return status;
        free_buffers(w);
        if (w->n_pass > ACT_TOKENS) continue;
        w->n_pass = longest;
        return alloc_pass(w, err);
    }
}

static llmq_status fill_work(llmq_device_work *w, const float *rope, llmq_err *err) {
    const size_t n_inputs = 2 * (size_t)w->n_batch, n_repeated = repeated_most(&w->m->d, w);
    w->host = mem_zalloc(n_inputs, sizeof *w->host);
    w->host_repeated = mem_alloc(n_repeated, sizeof *w->host_repeated);
    w->marks = mem_zalloc((size_t)w->m->d.n_vocab, sizeof *w->marks);
    if (!w->host || !w->host_repeated || !w->marks) return mem_error(err, n_inputs * sizeof *w->host, "tokens");
    LLMQ_TRY(gpu_stream_create(&w->stream, err));
    LLMQ_TRY(gpu_upload_new("the RoPE table", rope, (size_t)(w->n_ctx * w->m->d.n_rot) * sizeof *rope, &w->rope, err));
    return alloc_buffers(w, err);
}

llmq_status gpu_work_create(const llmq_device_model *m, int64_t n_ctx, int64_t n_batch, const float *rope,
                            llmq_device_work **out, llmq_err *err) {
    static _Atomic uint64_t works;
    *out = NULL;
    gpu_use(m->device);
    llmq_device_work *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, "activations");
    *w = (llmq_device_work){.m = m, .id = ++works, .n_ctx = n_ctx, .n_batch = n_batch, .acts = cuda_acts_chosen()};
    llmq_status status = fill_work(w, rope, err);
    if (status == LLMQ_OK && w->n_pass < longest_pass(n_batch))
        llmq_log(LLMQ_LOG_INFO, "prompts go in passes of %d tokens, so that the cache finds memory", w->n_pass);
    if (status == LLMQ_OK)
        *out = w;
    else
        gpu_work_destroy(w);
    return status;
}

void gpu_work_destroy(llmq_device_work *w) {
    if (!w) return;
    gpu_use(w->m->device);
    cuda_blas_destroy(w->scratch.blas); /* it knows the stream */
    gpu_stream_destroy(w->stream);
    gpu_recording_destroy(w->mixed);
    free_buffers(w);
    gpu_free(w->rope);
    mem_free(w->host);
    mem_free(w->host_repeated);
    mem_free(w->marks);
    mem_free(w);
}
