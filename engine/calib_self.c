/* Calibration text that the model writes itself, by sampling at temperature 1. Several windows grow side by side, one
 * token each at a time, so that every weight is read once for all of them. Each window has a seed of its own: what it
 * holds depends on neither the threads nor the time. Half of the windows begin as any text does, half with a token
 * drawn from the vocabulary, and so does what follows the end of a text: that makes for texts of many kinds. */
#include <math.h>
#include <string.h>

#include "engine/calib.h"
#include "engine/sampler.h"
#include "types/type.h"

#define STREAMS CALIB_SELF_STREAMS

typedef struct self_writer {
    const llmq_model *model; /* with its weights */
    const llmq_tokenizer *tok;
    const llmq_calib *calib;
    int64_t n, pos; /* windows growing now; position of ids */
    int32_t *ids;   /* [n] the tokens at pos */
    llmq_kv *kv;    /* (n_layer, STREAMS) */
    void *kv_block;
    float *x, *norm, *q, *k, *v, *mixed; /* (n, .) mixed: attention's outputs */
    float *gate, *up, *delta, *logits;   /* (n, .) */
    float *cos_sin, *turn;               /* (ctx, n_rot), (n, n_rot) */
    void *q8, *bf16, *int8, *q16, *scratch;
    llmq_attn attn;
    llmq_sampler samplers[STREAMS];
    llmq_status status[STREAMS];
    llmq_err errs[STREAMS];
} self_writer;

/* ---- one token of every window; called by all workers ---- */

/* y = W x for each of the weights (NULL-terminated), x (n, cols) complete and behind a barrier. */
static void multiply(const llmq_worker *w, const self_writer *s, const float *x, const llmq_weight *const *weights,
                     float *const *y) {
    const llmq_backend_ops *ops = s->model->ops;
    llmq_acts acts = {
        .n_tok = s->n, .cols = weights[0]->cols, .x = x, .q8 = s->q8, .bf16 = s->bf16, .q16 = s->q16, .int8 = s->int8};
    bool filled[ACT_FORMS] = {[ACT_F32] = true};
    for (int i = 0; weights[i]; i++) {
        if (weights[i]->act == ACT_INT8) acts.range = weights[i]->range;
        if (!filled[weights[i]->act]) ops->acts_fill(w, &acts, weights[i]->act);
        filled[weights[i]->act] = true;
    }
    worker_barrier(w);
    for (int i = 0; weights[i]; i++) ops->matmul(w, weights[i], &acts, y[i], weights[i]->rows);
    worker_barrier(w);
}

static void normalize(const llmq_worker *w, const self_writer *s, const float *gain) {
    int64_t n_embd = s->model->hp.n_embd;
    s->model->ops->rms_norm(w, s->x, gain, s->model->hp.eps, s->norm, s->n, n_embd, n_embd);
    worker_barrier(w);
}

static void turn_heads(const llmq_worker *w, const self_writer *s, float *x, const float *gain, int64_t n_head) {
    const llmq_backend_ops *ops = s->model->ops;
    const llmq_hparams *hp = &s->model->hp;
    if (gain) {
        ops->rms_norm(w, x, gain, hp->eps, x, s->n * n_head, hp->head_dim, hp->head_dim);
        worker_barrier(w);
    }
    ops->rope(w, x, s->n, n_head * hp->head_dim, (int)n_head, (int)hp->head_dim, (int)hp->n_rot, s->turn,
              s->model->rope_neox);
}

static void add_delta(const llmq_worker *w, const self_writer *s) {
    s->model->ops->add(w, s->x, s->delta, s->n * s->model->hp.n_embd);
    worker_barrier(w);
}

static void attention_block(const llmq_worker *w, const self_writer *s, int64_t l) {
    const llmq_backend_ops *ops = s->model->ops;
    const llmq_hparams *hp = &s->model->hp;
    const llmq_layer *layer = &s->model->layers[l];
    int64_t q_dim = hp->n_head * hp->head_dim, kv_dim = hp->n_head_kv * hp->head_dim;
    normalize(w, s, layer->attn_norm);
    multiply(w, s, s->norm, (const llmq_weight *[]){&layer->q, &layer->k, &layer->v, NULL},
             (float *[]){s->q, s->k, s->v});
    turn_heads(w, s, s->q, layer->q_norm, hp->n_head);
    turn_heads(w, s, s->k, layer->k_norm, hp->n_head_kv);
    worker_barrier(w);
    for (int64_t i = 0; i < s->n; i++) {
        llmq_kv kv = s->kv[l * STREAMS + i];
        ops->kv_store(w, &kv, s->k + i * kv_dim, kv_dim, s->v + i * kv_dim, kv_dim, s->pos, 1);
    }
    worker_barrier(w);
    llmq_attn attn = s->attn;
    attn.pos = s->pos;
    for (int64_t i = 0; i < s->n; i++) {
        ops->attention(w, &attn, s->q + i * q_dim, q_dim, &s->kv[l * STREAMS + i], s->mixed + i * q_dim, s->scratch);
        worker_barrier(w);
    }
    multiply(w, s, s->mixed, (const llmq_weight *[]){&layer->o, NULL}, (float *[]){s->delta});
    add_delta(w, s);
}

static void ffn_block(const llmq_worker *w, const self_writer *s, int64_t l) {
    const llmq_layer *layer = &s->model->layers[l];
    normalize(w, s, layer->ffn_norm);
    multiply(w, s, s->norm, (const llmq_weight *[]){&layer->gate, &layer->up, NULL}, (float *[]){s->gate, s->up});
    s->model->ops->silu_mul(w, s->gate, s->up, s->gate, s->n * s->model->hp.n_ff);
    worker_barrier(w);
    multiply(w, s, s->gate, (const llmq_weight *[]){&layer->down, NULL}, (float *[]){s->delta});
    add_delta(w, s);
}

static void step_worker(const llmq_worker *w, void *arg) {
    self_writer *s = arg;
    const llmq_model *model = s->model;
    model->ops->embed(w, model->by_role[ROLE_TOKEN_EMBD], s->ids, s->n, s->x);
    worker_barrier(w);
    for (int64_t l = 0; l < model->hp.n_layer; l++) {
        attention_block(w, s, l);
        ffn_block(w, s, l);
    }
    normalize(w, s, model->output_norm);
    multiply(w, s, s->norm, (const llmq_weight *[]){&model->head, NULL}, (float *[]){s->logits});
    for (int64_t i = w->id; i < s->n; i += w->n)
        s->status[i] =
            sampler_sample(&s->samplers[i], s->logits + i * model->hp.n_vocab, NULL, 0, &s->ids[i], &s->errs[i]);
}

/* ---- windows ---- */

/* A token that stands for text, drawn evenly. */
static int32_t random_token(const self_writer *s, llmq_sampler *sampler) {
    int32_t id = 0;
    for (int tries = 0; tries < 1000; tries++) {
        const char *bytes;
        size_t len = 0;
        id = (int32_t)(sampler_uniform(sampler) * (double)s->model->hp.n_vocab);
        if (id >= tokenizer_n_vocab(s->tok) || tokenizer_is_end(s->tok, id)) continue;
        tokenizer_token_bytes(s->tok, id, false, &bytes, &len);
        if (len > 0) break;
    }
    return id;
}

/* What a window begins with where that is fixed; -1: free. BOS where the tokenizer adds it, and one token at random in
 * every other window, or in all where there is no BOS. */
static int32_t fixed_token(const self_writer *s, int64_t window, int64_t pos, llmq_sampler *sampler) {
    bool bos = tokenizer_bos(s->tok) >= 0;
    if (bos && pos == 0) return tokenizer_bos(s->tok);
    if (bos ? pos == 1 && window % 2 : pos == 0) return random_token(s, sampler);
    return -1;
}

static llmq_status write_streams(self_writer *s, llmq_team *team, int64_t first, const llmq_calib_self *self,
                                 llmq_err *err) {
    int64_t ctx = s->calib->ctx, n_rot = s->model->hp.n_rot;
    for (int64_t i = 0; i < s->n; i++) {
        llmq_sampler_params params = {.temperature = 1,
                                      .top_k = CALIB_SELF_TOP_K,
                                      .top_p = 1,
                                      .repeat_penalty = 1,
                                      .seed = self->seed * 0x9e3779b97f4a7c15u + (uint64_t)(first + i)};
        sampler_set(&s->samplers[i], &params);
        s->ids[i] = fixed_token(s, first + i, 0, &s->samplers[i]);
    }
    for (s->pos = 0;; s->pos++) {
        for (int64_t i = 0; i < s->n; i++) s->calib->tokens[(first + i) * ctx + s->pos] = s->ids[i];
        if (s->pos + 1 == ctx) return LLMQ_OK;
        for (int64_t i = 0; i < s->n; i++)
            memcpy(s->turn + i * n_rot, s->cos_sin + s->pos * n_rot, (size_t)n_rot * sizeof *s->turn);
        team_run(team, step_worker, s);
        for (int64_t i = 0; i < s->n; i++) {
            bool ended = tokenizer_is_end(s->tok, s->calib->tokens[(first + i) * ctx + s->pos]) && s->pos > 0;
            int32_t fixed =
                ended ? random_token(s, &s->samplers[i]) : fixed_token(s, first + i, s->pos + 1, &s->samplers[i]);
            if (s->status[i] != LLMQ_OK) return llmq_fail(err, s->status[i], "--calib self: %s", s->errs[i].msg);
            if (fixed >= 0) s->ids[i] = fixed;
        }
        if (self->tick && !self->tick(self->user, (double)s->n)) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    }
}

/* ---- life ---- */

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

typedef struct block {
    void *p; /* the address of a pointer */
    size_t n, size;
} block;
enum { N_BLOCKS = 20 };

/* Of K or V, one layer and one window. */
static size_t kv_bytes(const llmq_model *model, int64_t ctx) {
    const llmq_hparams *hp = &model->hp;
    return size_align(model->ops->kv_bytes(LLMQ_KV_F16, ctx, (int)hp->n_head_kv, (int)hp->head_dim), MEM_ALIGN);
}

static void list_blocks(self_writer *s, int n_workers, block blocks[N_BLOCKS]) {
    const llmq_hparams *hp = &s->model->hp;
    const llmq_backend_ops *ops = s->model->ops;
    int64_t ctx = s->calib->ctx, q_dim = hp->n_head * hp->head_dim, kv_dim = hp->n_head_kv * hp->head_dim;
    int64_t wide = max64(hp->n_embd, max64(q_dim, hp->n_ff));
    size_t f = sizeof(float), n = STREAMS;
    s->attn = (llmq_attn){.n_head = (int)hp->n_head,
                          .n_head_kv = (int)hp->n_head_kv,
                          .head_dim = (int)hp->head_dim,
                          .scale = 1.0f / sqrtf((float)hp->head_dim),
                          .window = hp->window,
                          .pos = ctx - 1,
                          .n_tok = 1};
    const block list[N_BLOCKS] = {{&s->ids, n, sizeof *s->ids},
                                  {&s->kv, n * (size_t)hp->n_layer, sizeof *s->kv},
                                  {&s->kv_block, 2 * n * (size_t)hp->n_layer, kv_bytes(s->model, ctx)},
                                  {&s->x, n * (size_t)hp->n_embd, f},
                                  {&s->norm, n * (size_t)hp->n_embd, f},
                                  {&s->q, n * (size_t)q_dim, f},
                                  {&s->k, n * (size_t)kv_dim, f},
                                  {&s->v, n * (size_t)kv_dim, f},
                                  {&s->mixed, n * (size_t)q_dim, f},
                                  {&s->gate, n * (size_t)hp->n_ff, f},
                                  {&s->up, n * (size_t)hp->n_ff, f},
                                  {&s->delta, n * (size_t)hp->n_embd, f},
                                  {&s->logits, n * (size_t)hp->n_vocab, f},
                                  {&s->cos_sin, (size_t)ctx * (size_t)hp->n_rot, f},
                                  {&s->turn, n * (size_t)hp->n_rot, f},
                                  {&s->q8, model_q8_bytes(s->model, STREAMS, wide), 1},
                                  {&s->bf16, ops->acts_bytes(ACT_BF16, STREAMS, wide), 1},
                                  {&s->q16, model_q16_bytes(s->model, STREAMS, wide), 1},
                                  {&s->int8, ops->acts_bytes(ACT_INT8, STREAMS, wide), 1},
                                  {&s->scratch, ops->attn_scratch_bytes(&s->attn, n_workers), 1}};
    memcpy(blocks, list, sizeof list);
}

size_t calib_self_bytes(const llmq_model *model, int64_t ctx, int n_workers) {
    block blocks[N_BLOCKS];
    const llmq_calib calib = {.ctx = ctx};
    self_writer s = {.model = model, .calib = &calib};
    size_t bytes = STREAMS * sampler_bytes(model->hp.n_vocab);
    list_blocks(&s, n_workers, blocks);
    for (int i = 0; i < N_BLOCKS; i++) bytes += blocks[i].n * blocks[i].size;
    /* The model once more: floats are read where they lie, blocks are laid out anew. */
    for (int64_t l = 0; l < model->hp.n_layer; l++)
        for (int role = ROLE_ATTN_NORM; role < ROLE_COUNT; role++) {
            const llmq_tensor *t = model->layer_tensors[l].by_role[role];
            if (t && arch_role_is_matrix((llmq_role)role) && !type_is_float(type_info(t->type)))
                bytes += (size_t)t->bytes;
        }
    const llmq_tensor *head =
        model->by_role[ROLE_OUTPUT] ? model->by_role[ROLE_OUTPUT] : model->by_role[ROLE_TOKEN_EMBD];
    return bytes + (type_is_float(type_info(head->type)) ? 0 : (size_t)head->bytes);
}

static llmq_status create_buffers(self_writer *s, llmq_team *team, llmq_err *err) {
    const llmq_hparams *hp = &s->model->hp;
    int64_t ctx = s->calib->ctx;
    size_t one = kv_bytes(s->model, ctx);
    block blocks[N_BLOCKS];
    list_blocks(s, team_size(team), blocks);
    for (int i = 0; i < N_BLOCKS; i++) {
        void *p = mem_zalloc(blocks[i].n, blocks[i].size);
        memcpy(blocks[i].p, &p, sizeof p);
        if (!p) return mem_error(err, blocks[i].n * blocks[i].size, "writing calibration text");
    }
    for (int64_t i = 0; i < hp->n_layer * STREAMS; i++) {
        uint8_t *k = (uint8_t *)s->kv_block + 2 * one * (size_t)i;
        s->kv[i] = (llmq_kv){
            .k = k, .v = k + one, .n_ctx = ctx, .n_head_kv = (int)hp->n_head_kv, .head_dim = (int)hp->head_dim};
    }
    for (int i = 0; i < STREAMS; i++) LLMQ_TRY(sampler_create(hp->n_vocab, &s->samplers[i], err));
    rope_table(s->model, 0, ctx, s->cos_sin);
    return LLMQ_OK;
}

static void clear_buffers(self_writer *s) {
    void *blocks[] = {s->ids,  s->kv,    s->kv_block, s->x,    s->norm,  s->q,      s->k,
                      s->v,    s->mixed, s->gate,     s->up,   s->delta, s->logits, s->cos_sin,
                      s->turn, s->q8,    s->bf16,     s->int8, s->q16,   s->scratch};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    for (int i = 0; i < STREAMS; i++) sampler_destroy(&s->samplers[i]);
}

llmq_status calib_self_windows(const llmq_model *model, const llmq_calib_self *self, llmq_calib *calib, int64_t begin,
                               int64_t n, llmq_err *err) {
    llmq_model *whole = NULL;
    llmq_status status = LLMQ_OK;
    memset(calib->tokens + begin * calib->ctx, 0, (size_t)(n * calib->ctx) * sizeof *calib->tokens);
    if (self->plan_only) return LLMQ_OK;
    llmq_model_params open = {.n_threads = team_size(self->team)};
    self_writer *s = mem_zalloc(1, sizeof *s);
    if (!s) return mem_error(err, sizeof *s, "writing calibration text");
    LLMQ_TRY_GOTO(model_open_with(model->source->path, &open, model->ops, &whole, err));
    s->model = whole;
    s->tok = model->tok;
    s->calib = calib;
    LLMQ_TRY_GOTO(create_buffers(s, self->team, err));
    mem_note_peak();
    for (int64_t i = 0; i < n; i += STREAMS) {
        s->n = n - i < STREAMS ? n - i : STREAMS;
        LLMQ_TRY_GOTO(write_streams(s, self->team, begin + i, self, err));
    }
done:
    clear_buffers(s);
    mem_free(s);
    model_close(whole);
    return status;
}
