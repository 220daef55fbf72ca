/* The layers of a decoder on a GPU: what core/device.h asks for, as a sequence of launches. Tokens go through the
 * layers in steps. Up to 8 take the decode kernels, from one sequence or several; prompts go on in passes of hundreds,
 * whose products and attention have kernels of their own. */
#include <math.h>
#include <string.h>

#include "cuda/cache.h"
#include "cuda/cuda.h"
#include "cuda/work.h"

/* ---- what fits */

/* A part stays free: for what the driver takes when kernels are first run, and cuBLAS, and for gaps between buffers. */
static llmq_status fit(const llmq_device_desc *d, int64_t n_ctx, int64_t n_batch, int64_t *n_layers, llmq_err *err) {
    size_t available;
    *n_layers = 0;
    LLMQ_TRY(gpu_model_check(d, err));
    LLMQ_TRY(gpu_memory(&available, err));
    available -= available / 16;
    size_t used = gpu_work_bytes(d, n_ctx, n_batch) + gpu_cache_table_bytes(n_ctx) + gpu_matrix_bytes(d->head);
    for (int64_t l = d->n_layer - 1; l >= 0; l--) {
        used += gpu_layer_bytes(d, &d->layers[l]) + gpu_cache_layer_bytes(d, n_ctx, false);
        if (l == 0 && d->embd != d->head) used += gpu_matrix_bytes(d->embd);
        if (used > available) break;
        *n_layers = d->n_layer - l;
    }
    return LLMQ_OK;
}

/* ---- a step */

/* Neighbouring tokens of one sequence. */
typedef struct span {
    llmq_device_cache *cache;
    int first, n_tok; /* of the step's */
    int64_t n_keys;   /* in the cache when the step is done, or more: attention's grid */
} span;

/* What goes through the layers at once; all of it on the device. */
typedef struct step {
    const int32_t *tokens, *pos; /* NULL tokens: x is there already; the position of each */
    float *x;                    /* (n_tok, n_embd) */
    int n_tok, n_spans;
    span spans[ACT_TOKENS];
} step;

static cuda_input input_of(llmq_device_work *w, cuda_source source, float *values, int64_t n_tok, int64_t cols) {
    return cuda_input_of(source, values, n_tok, cols, w->acts, w->forms);
}

static cuda_input normalized(llmq_device_work *w, const float *x, const float *gain, int n_tok) {
    const cuda_source norm = {.x = x, .gain = gain, .eps = w->m->d.eps};
    return input_of(w, norm, w->norm, n_tok, w->m->d.n_embd);
}

static llmq_status multiply(llmq_device_work *w, const cuda_matrix *by, cuda_input *in, float *y, llmq_err *err) {
    return cuda_matmul(w->stream, by, in, y, by->rows, &w->scratch, err);
}

/* attn = attention(rope(q, k), v) */
static void attend(llmq_device_work *w, int64_t l, const step *s, const span *of) {
    const llmq_device_desc *d = &w->m->d;
    const int64_t q_dim = d->n_head * d->head_dim, kv_dim = d->n_head_kv * d->head_dim;
    const cuda_kv kv = gpu_cache_layer(of->cache, l);
    const int32_t *pos = s->pos + of->first;
    float *q = w->q + of->first * q_dim, *out = w->attn + of->first * q_dim;
    const cuda_rope rope = {(int)d->n_head, (int)d->n_rot, d->rope_neox, w->rope, pos};
    cuda_rope_store(w->stream, &rope, q, q_dim, w->k + of->first * kv_dim, kv_dim, w->v + of->first * kv_dim, kv_dim,
                    of->n_tok, &kv);
    const cuda_attn attn = {(int)d->n_head, 1.0f / sqrtf((float)d->head_dim), d->window, of->n_keys, pos};
    if (of->n_tok > ACT_TOKENS)
        cuda_prompt_attention(w->stream, &attn, q, q_dim, &kv, of->n_tok, out);
    else
        cuda_attention(w->stream, &attn, q, q_dim, &kv, of->n_tok, out, w->attn_scratch);
}

/* x += o(attention(rope(qkv(norm(x))))) */
static llmq_status attention_block(llmq_device_work *w, int64_t l, const step *s, llmq_err *err) {
    const llmq_device_desc *d = &w->m->d;
    const gpu_layer *layer = &w->m->layers[l];
    const int64_t dim = d->head_dim;
    cuda_input in = normalized(w, s->x, layer->attn_norm, s->n_tok);
    LLMQ_TRY(multiply(w, &layer->q, &in, w->q, err));
    LLMQ_TRY(multiply(w, &layer->k, &in, w->k, err));
    LLMQ_TRY(multiply(w, &layer->v, &in, w->v, err));
    if (layer->q_norm) cuda_rms_norm(w->stream, w->q, layer->q_norm, d->eps, w->q, s->n_tok * d->n_head, dim, dim);
    if (layer->k_norm) cuda_rms_norm(w->stream, w->k, layer->k_norm, d->eps, w->k, s->n_tok * d->n_head_kv, dim, dim);
    for (int i = 0; i < s->n_spans; i++) attend(w, l, s, &s->spans[i]);
    cuda_input out = input_of(w, (cuda_source){.x = w->attn}, NULL, s->n_tok, d->n_head * dim);
    LLMQ_TRY(multiply(w, &layer->o, &out, w->delta, err));
    cuda_add(w->stream, s->x, w->delta, s->n_tok * d->n_embd);
    return LLMQ_OK;
}

/* x += down(silu(gate(norm(x))) * up(norm(x))) */
static llmq_status ffn_block(llmq_device_work *w, int64_t l, const step *s, llmq_err *err) {
    const llmq_device_desc *d = &w->m->d;
    const gpu_layer *layer = &w->m->layers[l];
    cuda_input in = normalized(w, s->x, layer->ffn_norm, s->n_tok);
    LLMQ_TRY(multiply(w, &layer->gate, &in, w->gate, err));
    LLMQ_TRY(multiply(w, &layer->up, &in, w->up, err));
    cuda_input act = input_of(w, (cuda_source){.x = w->gate, .up = w->up}, w->gate, s->n_tok, d->n_ff);
    LLMQ_TRY(multiply(w, &layer->down, &act, w->delta, err));
    cuda_add(w->stream, s->x, w->delta, s->n_tok * d->n_embd);
    return LLMQ_OK;
}

static llmq_status launch_step(llmq_device_work *w, const step *s, llmq_err *err) {
    if (s->tokens) cuda_embed(w->stream, &w->m->embd, s->tokens, s->n_tok, s->x);
    for (int64_t l = 0; l < w->m->d.n_layer; l++) {
        LLMQ_TRY(attention_block(w, l, s, err));
        LLMQ_TRY(ffn_block(w, l, s, err));
    }
    return LLMQ_OK;
}

/* ---- steps recorded and replayed */

/* A step of up to 8 tokens is hundreds of launches, each of which costs the host more than some of them take. So a step
 * is recorded when it comes for the second time, and replayed from then on. What changes from step to step is in device
 * memory; but how many keys there are decides the grid of attention: a recording is for so many parts of keys, rounded
 * up to a power of two, of which the last ones find nothing to do. */

static llmq_status record_step(llmq_device_work *w, const step *s, gpu_recording **out, llmq_err *err) {
    LLMQ_TRY(gpu_record_begin(w->stream, err));
    const llmq_status launched = launch_step(w, s, err);
    LLMQ_TRY(gpu_record_end(w->stream, out, err));
    if (launched == LLMQ_OK) return LLMQ_OK;
    gpu_recording_destroy(*out);
    *out = NULL;
    return launched;
}

/* A step whose kernels are loaded: from its recording, which is made if it is not there. */
static llmq_status replay_step(llmq_device_work *w, const step *s, gpu_recording **recording, llmq_err *err) {
    llmq_err why;
    if (!*recording && !w->unrecorded && record_step(w, s, recording, &why) != LLMQ_OK) {
        w->unrecorded = true;
        llmq_log(LLMQ_LOG_WARN, "%s: steps are launched kernel by kernel, which is slower", why.msg);
    }
    return *recording ? gpu_replay(*recording, w->stream, err) : launch_step(w, s, err);
}

/* The number of keys goes up to a power of two of parts; what the context has of them has words in the cache's table,
 * and scratch memory. */
static int round_keys(const llmq_device_work *w, span *of) {
    int bucket = 0;
    while ((int64_t)CUDA_ATTENTION_KEYS << bucket < of->n_keys) bucket++;
    LLMQ_ASSERT(bucket < GPU_RECORDINGS);
    of->n_keys = (int64_t)CUDA_ATTENTION_KEYS << bucket;
    if (of->n_keys > w->n_ctx) of->n_keys = w->n_ctx;
    if (of->n_keys > of->cache->n_ctx) of->n_keys = of->cache->n_ctx;
    return bucket;
}

/* A run of one step of one sequence, which begins at x and inputs[0]. */
static llmq_status run_recorded(llmq_device_work *w, llmq_device_cache *c, step *s, llmq_err *err) {
    const int bucket = round_keys(w, &s->spans[0]);
    if (c->used_by != w->id) gpu_cache_drop_recordings(c);
    c->used_by = w->id;
    gpu_recording **recording = &c->recordings[s->n_tok - 1][bucket];
    if (*recording || w->ran[s->n_tok - 1]) return replay_step(w, s, recording, err);
    w->ran[s->n_tok - 1] = true;
    return launch_step(w, s, err);
}

/* A run of one step of several sequences: they often go on side by side. */
static llmq_status run_mixed(llmq_device_work *w, step *s, llmq_err *err) {
    span_shape shape[ACT_TOKENS] = {0};
    for (int i = 0; i < s->n_spans; i++) {
        round_keys(w, &s->spans[i]);
        shape[i] = (span_shape){s->spans[i].cache->id, s->spans[i].n_tok, s->spans[i].n_keys};
    }
    bool again = true;
    for (int i = 0; i < ACT_TOKENS; i++)
        again = again && shape[i].cache == w->mixed_shape[i].cache && shape[i].n_tok == w->mixed_shape[i].n_tok &&
                shape[i].n_keys == w->mixed_shape[i].n_keys;
    if (again) return replay_step(w, s, &w->mixed, err);
    gpu_recording_destroy(w->mixed);
    w->mixed = NULL;
    memcpy(w->mixed_shape, shape, sizeof shape);
    return launch_step(w, s, err);
}

/* ---- runs */

/* The inputs that w->host holds, of n tokens. */
static llmq_status send_inputs(llmq_device_work *w, const float *hidden, int64_t n, llmq_err *err) {
    const size_t embd = (size_t)w->m->d.n_embd;
    if (!w->m->embd.packed)
        LLMQ_TRY(gpu_stream_upload(w->stream, w->x, hidden, (size_t)n * embd * sizeof *hidden, err));
    return gpu_stream_upload(w->stream, w->inputs, w->host, (size_t)(w->n_batch + n) * sizeof *w->host, err);
}

/* The n tokens from `at` on, without spans. */
static step step_at(llmq_device_work *w, int64_t at, int n) {
    return (step){.tokens = w->m->embd.packed ? w->inputs + w->n_batch + at : NULL,
                  .pos = w->inputs + at,
                  .x = w->x + at * w->m->d.n_embd,
                  .n_tok = n};
}

static void want_blas(llmq_device_work *w, int n_tok) {
    llmq_err why;
    if (w->asked_blas || n_tok <= CUDA_GEMM_TOKENS) return;
    w->asked_blas = true;
    if (cuda_blas_create(&w->scratch.blas, &why) != LLMQ_OK)
        llmq_log(LLMQ_LOG_DEBUG, "long prompts go without cuBLAS: %s", why.msg);
}

static llmq_status work_run(llmq_device_work *w, llmq_device_cache *c, const int32_t *tokens, const float *hidden,
                            int64_t n_tok, int64_t pos, llmq_err *err) {
    LLMQ_ASSERT(n_tok >= 1 && n_tok <= w->n_batch && pos + n_tok <= w->n_ctx);
    LLMQ_ASSERT(w->m->embd.packed || hidden);
    gpu_use(w->m->device);
    w->rows_run = false;
    for (int64_t i = 0; i < n_tok; i++) w->host[i] = (int32_t)(pos + i), w->host[w->n_batch + i] = tokens[i];
    LLMQ_TRY(gpu_cache_reserve(c, w->stream, pos, n_tok, err));
    LLMQ_TRY(send_inputs(w, hidden, n_tok, err));
    for (int64_t at = 0; at < n_tok; at += w->n_pass) {
        const int n = (int)(n_tok - at < w->n_pass ? n_tok - at : w->n_pass);
        step s = step_at(w, at, n);
        s.spans[s.n_spans++] = (span){c, 0, n, pos + at + n};
        want_blas(w, n);
        LLMQ_TRY(n_tok <= ACT_TOKENS ? run_recorded(w, c, &s, err) : launch_step(w, &s, err));
    }
    return gpu_launched(err);
}

/* Rows i.. of one sequence that follow each other. */
static int64_t neighbours(const llmq_device_row *rows, int64_t i, int64_t n) {
    int64_t end = i + 1;
    while (end < n && rows[end].cache == rows[i].cache && rows[end].pos == rows[end - 1].pos + 1) end++;
    return end - i;
}

static llmq_status reserve_rows(llmq_device_work *w, const llmq_device_row *rows, int64_t n_rows, llmq_err *err) {
    for (int64_t i = 0, n; i < n_rows; i += n) {
        n = neighbours(rows, i, n_rows);
        LLMQ_TRY(gpu_cache_reserve(rows[i].cache, w->stream, rows[i].pos, n, err));
    }
    return LLMQ_OK;
}

/* The sequences of up to 8 rows. */
static void find_spans(const llmq_device_row *rows, int n, step *s) {
    for (int64_t i = 0, n_tok; i < n; i += n_tok) {
        n_tok = neighbours(rows, i, n);
        s->spans[s->n_spans++] = (span){rows[i].cache, (int)i, (int)n_tok, rows[i + n_tok - 1].pos + 1};
    }
}

/* Steps of 8 by the decode kernels, so that every row gets the bits that it gets alone. */
static llmq_status work_run_rows(llmq_device_work *w, const llmq_device_row *rows, const float *hidden, int64_t n_rows,
                                 llmq_err *err) {
    LLMQ_ASSERT(n_rows >= 1 && n_rows <= w->n_batch && (w->m->embd.packed || hidden));
    gpu_use(w->m->device);
    w->rows_run = true;
    for (int64_t i = 0; i < n_rows; i++) {
        LLMQ_ASSERT(rows[i].pos < w->n_ctx);
        w->host[i] = (int32_t)rows[i].pos, w->host[w->n_batch + i] = rows[i].token;
    }
    LLMQ_TRY(reserve_rows(w, rows, n_rows, err));
    LLMQ_TRY(send_inputs(w, hidden, n_rows, err));
    for (int64_t at = 0; at < n_rows; at += ACT_TOKENS) {
        const int n = (int)(n_rows - at < ACT_TOKENS ? n_rows - at : ACT_TOKENS);
        step s = step_at(w, at, n);
        find_spans(rows + at, n, &s);
        if (n_rows > ACT_TOKENS)
            LLMQ_TRY(launch_step(w, &s, err));
        else
            LLMQ_TRY(s.n_spans == 1 ? run_recorded(w, rows[0].cache, &s, err) : run_mixed(w, &s, err));
    }
    return gpu_launched(err);
}

/* Logits of up to gpu_head_tokens, on the device. */
static llmq_status launch_head(llmq_device_work *w, int64_t row, int n, llmq_err *err) {
    cuda_input in = normalized(w, w->x + row * w->m->d.n_embd, w->m->output_norm, n);
    return multiply(w, &w->m->head, &in, w->logits, err);
}

static llmq_status work_head(llmq_device_work *w, int64_t row, int64_t n_rows, float *logits, llmq_err *err) {
    const int64_t n_vocab = w->m->d.n_vocab;
    LLMQ_ASSERT(row >= 0 && n_rows >= 1 && row + n_rows <= w->n_batch);
    gpu_use(w->m->device);
    const int most = w->rows_run ? ACT_TOKENS : gpu_head_tokens(w);
    for (int64_t at = 0; at < n_rows; at += most) {
        const int n = (int)(n_rows - at < most ? n_rows - at : most);
        LLMQ_TRY(launch_head(w, row + at, n, err));
        LLMQ_TRY(gpu_stream_download(w->stream, logits + at * n_vocab, w->logits,
                                     (size_t)(n * n_vocab) * sizeof *logits, err));
    }
    return LLMQ_OK;
}

/* The tokens to penalize in w->host_repeated, each once; returns how many. */
static int list_repeated(llmq_device_work *w, const llmq_device_draw *d) {
    int n = 0;
    LLMQ_ASSERT(d->n_repeated <= w->n_ctx);
    for (int64_t i = 0; i < d->n_repeated; i++) {
        const int32_t token = d->repeated[i];
        if (token < 0 || token >= w->m->d.n_vocab || w->marks[token]) continue;
        w->marks[token] = true;
        w->host_repeated[n++] = token;
    }
    for (int i = 0; i < n; i++) w->marks[w->host_repeated[i]] = false;
    return n;
}

/* Changes a row of logits. */
static llmq_status penalize(llmq_device_work *w, const llmq_device_draw *d, float *logits, llmq_err *err) {
    const int n = list_repeated(w, d);
    if (n == 0) return LLMQ_OK;
    LLMQ_TRY(gpu_stream_upload(w->stream, w->repeated, w->host_repeated, (size_t)n * sizeof *w->repeated, err));
    cuda_penalize(w->stream, logits, w->repeated, n, d->params->repeat_penalty);
    return LLMQ_OK;
}

/* After up to 8 tokens. */
static llmq_status sample_step(llmq_device_work *w, int64_t row, int n, const llmq_device_draw *draws, int32_t *tokens,
                               llmq_err *err) {
    cuda_draw as_drawn[ACT_TOKENS];
    LLMQ_TRY(launch_head(w, row, n, err));
    for (int i = 0; i < n; i++) {
        as_drawn[i] = (cuda_draw){draws[i].params, draws[i].uniform};
        LLMQ_TRY(penalize(w, &draws[i], w->logits + i * w->m->d.n_vocab, err));
    }
    cuda_sample(w->stream, w->logits, w->m->d.n_vocab, n, as_drawn, w->sampling);
    return gpu_stream_download(w->stream, tokens, w->sampling, (size_t)n * sizeof *tokens, err);
}

static llmq_status work_sample(llmq_device_work *w, int64_t row, int64_t n_rows, const llmq_device_draw *draws,
                               int32_t *tokens, llmq_err *err) {
    LLMQ_ASSERT(row >= 0 && n_rows >= 1 && row + n_rows <= w->n_batch);
    gpu_use(w->m->device);
    for (int64_t at = 0; at < n_rows; at += ACT_TOKENS) {
        const int n = (int)(n_rows - at < ACT_TOKENS ? n_rows - at : ACT_TOKENS);
        LLMQ_TRY(sample_step(w, row + at, n, draws + at, tokens + at, err));
    }
    return LLMQ_OK;
}

const llmq_device_ops cuda_device_ops = {
    .name = "cuda",
    .solver = &cuda_solver_ops,
    .open = gpu_open,
    .fit = fit,
    .model_create = gpu_model_create,
    .model_destroy = gpu_model_destroy,
    .cache_create = gpu_cache_create,
    .cache_destroy = gpu_cache_destroy,
    .cache_share = gpu_cache_share,
    .work_create = gpu_work_create,
    .work_destroy = gpu_work_destroy,
    .run = work_run,
    .run_rows = work_run_rows,
    .head = work_head,
    .sample = work_sample,
};
