/* The decoder on a GPU: what core/device.h asks for, as a sequence of launches. Up to 8 tokens go through the layers at
 * a time, which is what the decode kernels take; longer runs are cut. */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "cuda/cuda.h"
#include "cuda/device.h"
#include "cuda/layout.h"

typedef struct gpu_layer {
    float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    cuda_matrix q, k, v, o, gate, up, down;
} gpu_layer;

struct llmq_device_model {
    int device;
    llmq_device_desc d; /* dims; its pointers are not kept */
    gpu_layer *layers;
    cuda_matrix embd, head;
    bool tied; /* embd and head are the same memory */
    float *output_norm;
};

struct llmq_device_cache {
    const llmq_device_model *m;
    int64_t n_ctx;
    cuda_kv *kv; /* [n_layer] */
};

struct llmq_device_work {
    const llmq_device_model *m;
    int64_t n_ctx, n_batch;
    float *rope; /* (n_ctx, n_rot/2, 2) */
    int32_t *tokens, *pos;
    float *x;                /* (n_batch, n_embd): the residual stream; the hidden states afterwards */
    float *norm, *delta;     /* (8, n_embd) */
    float *q, *k, *v, *attn; /* (8, ...) */
    float *gate, *up;        /* (8, n_ff) */
    void *acts_q8, *acts_f16, *attn_scratch;
    float *logits; /* (8, n_vocab) */
};

/* ---- weights */

static llmq_status upload_new(const char *what, const void *data, size_t bytes, void *out, llmq_err *err) {
    void *p = NULL;
    LLMQ_TRY(gpu_alloc(what, bytes, &p, err));
    memcpy(out, &p, sizeof p); /* from now on somebody's, even if the upload fails */
    LLMQ_TRY(gpu_upload(p, data, bytes, err));
    gpu_seal(p);
    return LLMQ_OK;
}

static llmq_status upload_vector(const char *what, const float *x, int64_t n, float **out, llmq_err *err) {
    *out = NULL;
    return x ? upload_new(what, x, (size_t)n * sizeof *x, out, err) : LLMQ_OK;
}

static llmq_status upload_matrix(const char *what, const llmq_tensor *t, const float *bias, cuda_matrix *out,
                                 llmq_err *err) {
    int64_t rows = tensor_rows(t), cols = tensor_cols(t);
    *out = (cuda_matrix){.type = cuda_packed_type(t->type), .rows = rows, .cols = cols};
    size_t bytes = cuda_pack_bytes(out->type, rows, cols);
    void *packed = bytes ? mem_alloc_big(bytes) : NULL;
    if (!packed) return mem_error(err, bytes, "packing weights for the GPU");
    llmq_status status = cuda_pack(t->type, rows, cols, t->data, packed, err);
    if (status == LLMQ_OK) status = upload_new(what, packed, bytes, &out->packed, err);
    mem_free_big(packed, bytes);
    if (status == LLMQ_OK && bias) status = upload_new("bias", bias, (size_t)rows * sizeof *bias, &out->bias, err);
    return status;
}

static llmq_status upload_layer(const llmq_device_desc *d, const llmq_device_layer *from, gpu_layer *to,
                                llmq_err *err) {
    const struct {
        const char *what;
        const llmq_weight *from;
        cuda_matrix *to;
    } matrices[] = {{"q", from->q, &to->q},         {"k", from->k, &to->k},          {"v", from->v, &to->v},
                    {"o", from->o, &to->o},         {"gate", from->gate, &to->gate}, {"up", from->up, &to->up},
                    {"down", from->down, &to->down}};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        LLMQ_TRY(
            upload_matrix(matrices[i].what, &matrices[i].from->native, matrices[i].from->bias, matrices[i].to, err));
    LLMQ_TRY(upload_vector("norm", from->attn_norm, d->n_embd, &to->attn_norm, err));
    LLMQ_TRY(upload_vector("norm", from->ffn_norm, d->n_embd, &to->ffn_norm, err));
    LLMQ_TRY(upload_vector("norm", from->q_norm, d->head_dim, &to->q_norm, err));
    return upload_vector("norm", from->k_norm, d->head_dim, &to->k_norm, err);
}

static void drop_matrix(cuda_matrix *w) {
    gpu_free((void *)w->packed);
    gpu_free((void *)w->bias);
}

static void model_destroy(llmq_device_model *m) {
    if (!m) return;
    for (int64_t l = 0; m->layers && l < m->d.n_layer; l++) {
        gpu_layer *layer = &m->layers[l];
        cuda_matrix *matrices[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
        float *norms[] = {layer->attn_norm, layer->ffn_norm, layer->q_norm, layer->k_norm};
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) drop_matrix(matrices[i]);
        for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) gpu_free(norms[i]);
    }
    drop_matrix(&m->head);
    if (!m->tied) drop_matrix(&m->embd);
    gpu_free(m->output_norm);
    mem_free(m->layers);
    mem_free(m);
}

static llmq_status check_shape(const llmq_device_desc *d, llmq_err *err) {
    if (d->head_dim % 8 || d->head_dim > 256 || d->n_rot % 2 || d->n_rot > d->head_dim)
        return llmq_fail(
            err, LLMQ_E_UNSUPPORTED,
            "heads of %lld dimensions: the GPU's attention takes multiples of 8 up to 256; use --device cpu",
            (long long)d->head_dim);
    if (d->n_vocab > INT32_MAX || d->n_ff > INT32_MAX)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "a matrix of more than 2^31 rows; use --device cpu");
    return LLMQ_OK;
}

static llmq_status upload_model(const llmq_device_desc *d, llmq_device_model *m, llmq_err *err) {
    m->layers = mem_zalloc((size_t)d->n_layer, sizeof *m->layers);
    if (!m->layers) return mem_error(err, (size_t)d->n_layer * sizeof *m->layers, "the layers");
    for (int64_t l = 0; l < d->n_layer; l++) LLMQ_TRY(upload_layer(d, &d->layers[l], &m->layers[l], err));
    LLMQ_TRY(upload_vector("norm", d->output_norm, d->n_embd, &m->output_norm, err));
    LLMQ_TRY(upload_matrix("head", &d->head->native, d->head->bias, &m->head, err));
    m->tied = d->head->native.data == d->embd->data;
    if (!m->tied) return upload_matrix("embedding", d->embd, NULL, &m->embd, err);
    m->embd = m->head;
    return LLMQ_OK;
}

static llmq_status model_create(const llmq_device_desc *d, llmq_device_model **out, llmq_err *err) {
    *out = NULL;
    LLMQ_TRY(check_shape(d, err));
    llmq_device_model *m = mem_zalloc(1, sizeof *m);
    if (!m) return mem_error(err, sizeof *m, "a model");
    m->device = gpu_current();
    m->d = *d;
    llmq_status status = upload_model(d, m, err);
    m->d.layers = NULL, m->d.embd = NULL, m->d.head = NULL, m->d.output_norm = NULL;
    if (status == LLMQ_OK)
        *out = m;
    else
        model_destroy(m);
    return status;
}

/* ---- caches */

static void cache_destroy(llmq_device_cache *c) {
    if (!c) return;
    for (int64_t l = 0; c->kv && l < c->m->d.n_layer; l++) {
        gpu_free(c->kv[l].k);
        gpu_free(c->kv[l].v);
    }
    mem_free(c->kv);
    mem_free(c);
}

static llmq_status cache_alloc(llmq_device_cache *c, size_t bytes, llmq_err *err) {
    const llmq_device_desc *d = &c->m->d;
    c->kv = mem_zalloc((size_t)d->n_layer, sizeof *c->kv);
    if (!c->kv) return mem_error(err, (size_t)d->n_layer * sizeof *c->kv, "the KV cache");
    for (int64_t l = 0; l < d->n_layer; l++) {
        c->kv[l] = (cuda_kv){.n_ctx = c->n_ctx, .n_head_kv = (int)d->n_head_kv, .head_dim = (int)d->head_dim};
        LLMQ_TRY(gpu_alloc("the KV cache", bytes, (void **)&c->kv[l].k, err));
        LLMQ_TRY(gpu_alloc("the KV cache", bytes, (void **)&c->kv[l].v, err));
    }
    return LLMQ_OK;
}

static llmq_status cache_create(const llmq_device_model *m, int64_t n_ctx, llmq_device_cache **out, size_t *bytes,
                                llmq_err *err) {
    *out = NULL;
    gpu_use(m->device);
    llmq_device_cache *c = mem_zalloc(1, sizeof *c);
    if (!c) return mem_error(err, sizeof *c, "the KV cache");
    *c = (llmq_device_cache){.m = m, .n_ctx = n_ctx};
    size_t one = (size_t)(n_ctx * m->d.n_head_kv * m->d.head_dim) * sizeof(uint16_t);
    *bytes = 2 * one * (size_t)m->d.n_layer;
    llmq_status status = cache_alloc(c, one, err);
    if (status == LLMQ_OK)
        *out = c;
    else
        cache_destroy(c);
    return status;
}

/* ---- what passes write */

static void work_destroy(llmq_device_work *w) {
    if (!w) return;
    void *buffers[] = {w->rope, w->tokens, w->pos, w->x,       w->norm,     w->delta,        w->q,     w->k, w->v,
                       w->attn, w->gate,   w->up,  w->acts_q8, w->acts_f16, w->attn_scratch, w->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) gpu_free(buffers[i]);
    mem_free(w);
}

static size_t widest_acts(const llmq_device_desc *d, size_t (*bytes_of)(int, int64_t)) {
    int64_t cols[] = {d->n_embd, d->n_head * d->head_dim, d->n_ff};
    size_t most = 0;
    for (int i = 0; i < 3; i++) {
        size_t bytes = bytes_of(ACT_TOKENS, cols[i]);
        if (bytes > most) most = bytes;
    }
    return most;
}

static llmq_status alloc_activations(llmq_device_work *w, llmq_err *err) {
    const llmq_device_desc *d = &w->m->d;
    int64_t q_dim = d->n_head * d->head_dim, kv_dim = d->n_head_kv * d->head_dim;
    cuda_kv any = {.n_ctx = w->n_ctx, .n_head_kv = (int)d->n_head_kv, .head_dim = (int)d->head_dim};
    cuda_attn longest = {.n_head = (int)d->n_head, .n_keys = w->n_ctx};
    const struct {
        void **out;
        size_t bytes;
    } buffers[] = {
        {(void **)&w->tokens, (size_t)w->n_batch * sizeof *w->tokens},
        {(void **)&w->pos, sizeof *w->pos},
        {(void **)&w->x, (size_t)(w->n_batch * d->n_embd) * sizeof(float)},
        {(void **)&w->norm, (size_t)(ACT_TOKENS * d->n_embd) * sizeof(float)},
        {(void **)&w->delta, (size_t)(ACT_TOKENS * d->n_embd) * sizeof(float)},
        {(void **)&w->q, (size_t)(ACT_TOKENS * q_dim) * sizeof(float)},
        {(void **)&w->k, (size_t)(ACT_TOKENS * kv_dim) * sizeof(float)},
        {(void **)&w->v, (size_t)(ACT_TOKENS * kv_dim) * sizeof(float)},
        {(void **)&w->attn, (size_t)(ACT_TOKENS * q_dim) * sizeof(float)},
        {(void **)&w->gate, (size_t)(ACT_TOKENS * d->n_ff) * sizeof(float)},
        {(void **)&w->up, (size_t)(ACT_TOKENS * d->n_ff) * sizeof(float)},
        {&w->acts_q8, widest_acts(d, cuda_acts_q8_bytes)},
        {&w->acts_f16, widest_acts(d, cuda_acts_f16_bytes)},
        {&w->attn_scratch, cuda_attention_scratch_bytes(&longest, &any, ACT_TOKENS)},
        {(void **)&w->logits, (size_t)(ACT_TOKENS * d->n_vocab) * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        LLMQ_TRY(gpu_alloc("activations", buffers[i].bytes, buffers[i].out, err));
    return LLMQ_OK;
}

static llmq_status work_create(const llmq_device_model *m, int64_t n_ctx, int64_t n_batch, const float *rope,
                               llmq_device_work **out, llmq_err *err) {
    *out = NULL;
    gpu_use(m->device);
    llmq_device_work *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, "activations");
    *w = (llmq_device_work){.m = m, .n_ctx = n_ctx, .n_batch = n_batch};
    llmq_status status = alloc_activations(w, err);
    size_t rope_bytes = (size_t)(n_ctx * m->d.n_rot) * sizeof *rope;
    if (status == LLMQ_OK) status = upload_new("the RoPE table", rope, rope_bytes, &w->rope, err);
    if (status == LLMQ_OK)
        *out = w;
    else
        work_destroy(w);
    return status;
}

/* ---- a pass of up to 8 tokens */

/* One input of matrices, in the forms that they asked for so far. */
typedef struct site {
    llmq_device_work *w;
    const float *x; /* (n_tok, cols) */
    int n_tok;
    int64_t cols;
    bool has_q8, has_f16;
} site;

static void multiply(site *in, const cuda_matrix *matrix, float *y) {
    llmq_device_work *w = in->w;
    if (matrix->type == LLMQ_TYPE_F16) {
        if (!in->has_f16) cuda_acts_f16(NULL, in->x, in->n_tok, in->cols, w->acts_f16);
        in->has_f16 = true;
        cuda_matvec_f16(NULL, matrix, w->acts_f16, in->n_tok, y, matrix->rows);
        return;
    }
    if (!in->has_q8) cuda_acts_q8(NULL, in->x, in->n_tok, in->cols, w->acts_q8);
    in->has_q8 = true;
    cuda_matvec_q8(NULL, matrix, w->acts_q8, in->n_tok, y, matrix->rows);
}

static site normalized(llmq_device_work *w, const float *x, const float *gain, int n_tok) {
    int64_t n = w->m->d.n_embd;
    cuda_rms_norm(NULL, x, gain, w->m->d.eps, w->norm, n_tok, n, n);
    return (site){.w = w, .x = w->norm, .n_tok = n_tok, .cols = n};
}

/* x += o(attention(rope(qkv(norm(x))))), the tokens at positions pos.. (w->pos on the device) */
static void attention_block(llmq_device_work *w, const cuda_kv *kv, int64_t l, float *x, int n_tok, int64_t pos) {
    const llmq_device_desc *d = &w->m->d;
    const gpu_layer *layer = &w->m->layers[l];
    int64_t q_dim = d->n_head * d->head_dim, kv_dim = d->n_head_kv * d->head_dim;
    site in = normalized(w, x, layer->attn_norm, n_tok);
    multiply(&in, &layer->q, w->q);
    multiply(&in, &layer->k, w->k);
    multiply(&in, &layer->v, w->v);
    if (layer->q_norm)
        cuda_rms_norm(NULL, w->q, layer->q_norm, d->eps, w->q, n_tok * d->n_head, d->head_dim, d->head_dim);
    if (layer->k_norm)
        cuda_rms_norm(NULL, w->k, layer->k_norm, d->eps, w->k, n_tok * d->n_head_kv, d->head_dim, d->head_dim);
    cuda_rope rope = {(int)d->n_head, (int)d->n_rot, d->rope_neox, w->rope, w->pos};
    cuda_rope_store(NULL, &rope, w->q, q_dim, w->k, kv_dim, w->v, kv_dim, n_tok, kv);
    cuda_attn attn = {(int)d->n_head, 1.0f / sqrtf((float)d->head_dim), d->window, pos + n_tok, w->pos};
    cuda_attention(NULL, &attn, w->q, q_dim, kv, n_tok, w->attn, w->attn_scratch);
    site out = {.w = w, .x = w->attn, .n_tok = n_tok, .cols = q_dim};
    multiply(&out, &layer->o, w->delta);
    cuda_add(NULL, x, w->delta, n_tok * d->n_embd);
}

/* x += down(silu(gate(norm(x))) * up(norm(x))) */
static void ffn_block(llmq_device_work *w, int64_t l, float *x, int n_tok) {
    const llmq_device_desc *d = &w->m->d;
    const gpu_layer *layer = &w->m->layers[l];
    site in = normalized(w, x, layer->ffn_norm, n_tok);
    multiply(&in, &layer->gate, w->gate);
    multiply(&in, &layer->up, w->up);
    cuda_silu_mul(NULL, w->gate, w->up, w->gate, n_tok * d->n_ff);
    site act = {.w = w, .x = w->gate, .n_tok = n_tok, .cols = d->n_ff};
    multiply(&act, &layer->down, w->delta);
    cuda_add(NULL, x, w->delta, n_tok * d->n_embd);
}

static llmq_status work_run(llmq_device_work *w, llmq_device_cache *c, const int32_t *tokens, int64_t n_tok,
                            int64_t pos, llmq_err *err) {
    LLMQ_ASSERT(n_tok >= 1 && n_tok <= w->n_batch && pos + n_tok <= w->n_ctx && pos + n_tok <= c->n_ctx);
    gpu_use(w->m->device);
    LLMQ_TRY(gpu_upload(w->tokens, tokens, (size_t)n_tok * sizeof *tokens, err));
    for (int64_t at = 0; at < n_tok; at += ACT_TOKENS) {
        int n = (int)(n_tok - at < ACT_TOKENS ? n_tok - at : ACT_TOKENS);
        int32_t first = (int32_t)(pos + at);
        float *x = w->x + at * w->m->d.n_embd;
        LLMQ_TRY(gpu_upload(w->pos, &first, sizeof first, err));
        cuda_embed(NULL, &w->m->embd, w->tokens + at, n, x);
        for (int64_t l = 0; l < w->m->d.n_layer; l++) {
            attention_block(w, &c->kv[l], l, x, n, first);
            ffn_block(w, l, x, n);
        }
    }
    return gpu_wait(err);
}

static llmq_status work_head(llmq_device_work *w, int64_t row, int64_t n_rows, float *logits, llmq_err *err) {
    const llmq_device_desc *d = &w->m->d;
    LLMQ_ASSERT(row >= 0 && n_rows >= 1 && row + n_rows <= w->n_batch);
    gpu_use(w->m->device);
    for (int64_t at = 0; at < n_rows; at += ACT_TOKENS) {
        int n = (int)(n_rows - at < ACT_TOKENS ? n_rows - at : ACT_TOKENS);
        site in = normalized(w, w->x + (row + at) * d->n_embd, w->m->output_norm, n);
        multiply(&in, &w->m->head, w->logits);
        LLMQ_TRY(gpu_wait(err));
        LLMQ_TRY(gpu_download(logits + at * d->n_vocab, w->logits, (size_t)(n * d->n_vocab) * sizeof *logits, err));
    }
    return LLMQ_OK;
}

const llmq_device_ops cuda_device_ops = {
    .name = "cuda",
    .open = gpu_open,
    .model_create = model_create,
    .model_destroy = model_destroy,
    .cache_create = cache_create,
    .cache_destroy = cache_destroy,
    .work_create = work_create,
    .work_destroy = work_destroy,
    .run = work_run,
    .head = work_head,
};
