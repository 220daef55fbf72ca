#include "engine/forward.h"

#include <math.h>

/* One worker's view of a pass. */
typedef struct step {
    llmq_forward *f;
    const llmq_backend_ops *ops;
    const llmq_hparams *hp;
    const llmq_worker *all; /* divides matmuls and attention; its barriers are real */
    llmq_worker me; /* divides the small ops: the same, or this worker alone (one token: everybody does them whole) */
    bool alone;
    forward_lane *lane;
    float *x; /* (n_tok, n_embd) */
    int64_t n_tok, pos;
} step;

static step step_begin(llmq_forward *f, const llmq_worker *w, int64_t n_tok, int64_t pos) {
    bool alone = n_tok == 1;
    step s = {.f = f,
              .ops = f->model->ops,
              .hp = &f->model->hp,
              .all = w,
              .me = *w,
              .alone = alone,
              .n_tok = n_tok,
              .pos = pos};
    if (alone) s.me = (llmq_worker){0, 1, w->team};
    s.lane = &f->lanes[alone ? w->id : 0];
    s.x = s.lane->x;
    return s;
}

/* Between two small ops: what other workers wrote is read next. */
static void sync_small(const step *s) {
    if (!s->alone) worker_barrier(s->all);
}

/* x (n_tok, cols) in every form that one of the n weights reads. */
static llmq_acts acts_for(const step *s, const float *x, int64_t cols, const llmq_weight *const *weights, int n) {
    llmq_acts a = {.n_tok = s->n_tok, .cols = cols, .x = x, .q8 = s->lane->q8, .bf16 = s->lane->bf16};
    bool filled[3] = {[ACT_F32] = true};
    bool any = false;
    for (int i = 0; i < n; i++) {
        llmq_act_form form = weights[i]->act;
        if (filled[form]) continue;
        filled[form] = any = true;
        s->ops->acts_fill(&s->me, &a, form);
    }
    if (any) sync_small(s);
    return a;
}

static llmq_acts normalized(const step *s, const float *x, const float *gain, const llmq_weight *const *weights,
                            int n) {
    int64_t n_embd = s->hp->n_embd;
    s->ops->rms_norm(&s->me, x, gain, s->hp->eps, s->lane->norm, s->n_tok, n_embd, n_embd);
    sync_small(s);
    return acts_for(s, s->lane->norm, n_embd, weights, n);
}

/* Norm and rotation of one of q, k by worker w. */
static void rotate(const step *s, const llmq_worker *w, float *x, const float *gain, int64_t n_head) {
    const llmq_hparams *hp = s->hp;
    const float *table = s->f->rope + s->pos * hp->n_rot;
    if (gain) {
        s->ops->rms_norm(w, x, gain, hp->eps, x, s->n_tok * n_head, hp->head_dim, hp->head_dim);
        if (!s->alone) worker_barrier(w);
    }
    s->ops->rope(w, x, s->n_tok, n_head * hp->head_dim, (int)n_head, (int)hp->head_dim, (int)hp->n_rot, table,
                 s->f->model->rope_neox);
}

static void rotate_and_store(const step *s, const llmq_layer *layer, llmq_kv *kv) {
    llmq_forward *f = s->f;
    int64_t kv_dim = s->hp->n_head_kv * s->hp->head_dim;
    if (s->alone) { /* first and last worker share the few rows; no barrier between rotating and storing */
        if (s->all->id == s->all->n - 1) rotate(s, &s->me, f->q, layer->q_norm, s->hp->n_head);
        if (s->all->id != 0) return;
    } else {
        rotate(s, s->all, f->q, layer->q_norm, s->hp->n_head);
    }
    rotate(s, &s->me, f->k, layer->k_norm, s->hp->n_head_kv);
    sync_small(s);
    s->ops->kv_store(&s->me, kv, f->k, kv_dim, f->v, kv_dim, s->pos, s->n_tok);
}

/* From here on only the last n_out tokens matter: drops the others. Returns how many are gone. */
static int64_t keep_last(step *s, int64_t n_out) {
    int64_t gone = s->n_tok - n_out;
    s->x += gone * s->hp->n_embd;
    s->pos += gone;
    s->n_tok = n_out;
    return gone;
}

/* x += o(attention(rope(qkv(norm(x))))). In the last layer, n_out < n_tok drops the tokens whose result nobody reads.
 */
static void attention_block(step *s, int64_t l, int64_t n_out) {
    llmq_forward *f = s->f;
    const llmq_layer *layer = &f->model->layers[l];
    const llmq_hparams *hp = s->hp;
    int64_t q_dim = hp->n_head * hp->head_dim, kv_dim = hp->n_head_kv * hp->head_dim;

    llmq_acts a = normalized(s, s->x, layer->attn_norm, (const llmq_weight *[]){&layer->q, &layer->k, &layer->v}, 3);
    s->ops->matmul(s->all, &layer->q, &a, f->q, q_dim);
    s->ops->matmul(s->all, &layer->k, &a, f->k, kv_dim);
    s->ops->matmul(s->all, &layer->v, &a, f->v, kv_dim);
    worker_barrier(s->all);
    rotate_and_store(s, layer, &f->kv[l]);
    worker_barrier(s->all);

    const float *q = f->q + keep_last(s, n_out) * q_dim;
    if (s->n_tok == 0) return;
    llmq_attn attn = {.n_head = (int)hp->n_head,
                      .n_head_kv = (int)hp->n_head_kv,
                      .head_dim = (int)hp->head_dim,
                      .scale = f->attn_scale,
                      .window = hp->window,
                      .pos = s->pos,
                      .n_tok = s->n_tok};
    s->ops->attention(s->all, &attn, q, q_dim, &f->kv[l], f->attn, f->attn_scratch);
    worker_barrier(s->all);
    a = acts_for(s, f->attn, q_dim, (const llmq_weight *[]){&layer->o}, 1);
    s->ops->matmul(s->all, &layer->o, &a, f->delta, hp->n_embd);
    worker_barrier(s->all);
    s->ops->add(&s->me, s->x, f->delta, s->n_tok * hp->n_embd);
    sync_small(s);
}

/* x += down(silu(gate(norm(x))) * up(norm(x))) */
static void ffn_block(step *s, int64_t l) {
    llmq_forward *f = s->f;
    const llmq_layer *layer = &f->model->layers[l];
    int64_t n_embd = s->hp->n_embd, n_ff = s->hp->n_ff;

    llmq_acts a = normalized(s, s->x, layer->ffn_norm, (const llmq_weight *[]){&layer->gate, &layer->up}, 2);
    s->ops->matmul(s->all, &layer->gate, &a, f->gate, n_ff);
    s->ops->matmul(s->all, &layer->up, &a, f->up, n_ff);
    worker_barrier(s->all);
    float *act = s->alone ? s->lane->act : f->gate;
    s->ops->silu_mul(&s->me, f->gate, f->up, act, s->n_tok * n_ff);
    sync_small(s);
    a = acts_for(s, act, n_ff, (const llmq_weight *[]){&layer->down}, 1);
    s->ops->matmul(s->all, &layer->down, &a, f->delta, n_embd);
    worker_barrier(s->all);
    s->ops->add(&s->me, s->x, f->delta, s->n_tok * n_embd);
    sync_small(s);
}

static void head_block(const step *s, const float *x, float *logits) {
    const llmq_model *model = s->f->model;
    llmq_acts a = normalized(s, x, model->output_norm, (const llmq_weight *[]){&model->head}, 1);
    s->ops->matmul(s->all, &model->head, &a, logits, s->hp->n_vocab);
}

typedef struct pass {
    llmq_forward *f;
    const int32_t *tokens;
    int64_t n_tok, pos, n_out;
    float *logits;
} pass;

static void run_pass(const llmq_worker *w, void *arg) {
    const pass *p = arg;
    const llmq_model *model = p->f->model;
    step s = step_begin(p->f, w, p->n_tok, p->pos);
    s.ops->embed(&s.me, model->by_role[ROLE_TOKEN_EMBD], p->tokens, p->n_tok, s.x);
    sync_small(&s);
    for (int64_t l = 0; l < s.hp->n_layer; l++) {
        bool last = l == s.hp->n_layer - 1;
        attention_block(&s, l, last ? p->n_out : s.n_tok);
        if (s.n_tok > 0) ffn_block(&s, l);
    }
    if (p->logits && s.n_tok > 0) head_block(&s, s.x, p->logits);
}

static void extend_rope(llmq_forward *f, int64_t n) {
    if (n <= f->n_rope) return;
    int64_t end = n + 255 < f->n_ctx ? n + 255 : f->n_ctx;
    rope_table(f->model, f->n_rope, end - f->n_rope, f->rope + f->n_rope * f->model->hp.n_rot);
    f->n_rope = end;
}

void forward_run(llmq_forward *f, const int32_t *tokens, int64_t n_tok, int64_t pos, int64_t n_out, float *logits) {
    LLMQ_ASSERT(n_tok >= 1 && n_tok <= f->n_batch && pos + n_tok <= f->n_ctx && n_out >= 0 && n_out <= n_tok);
    extend_rope(f, pos + n_tok);
    team_run(f->team, run_pass, &(pass){f, tokens, n_tok, pos, n_out, logits});
    f->hidden = f->lanes[0].x + (n_tok - n_out) * f->model->hp.n_embd;
    f->n_hidden = n_out;
}

static void run_head(const llmq_worker *w, void *arg) {
    const pass *p = arg;
    step s = step_begin(p->f, w, p->n_tok, 0);
    head_block(&s, p->f->hidden + p->pos * s.hp->n_embd, p->logits);
}

void forward_head(llmq_forward *f, int64_t row, int64_t n_rows, float *logits) {
    LLMQ_ASSERT(row >= 0 && n_rows >= 1 && row + n_rows <= f->n_hidden);
    team_run(f->team, run_head, &(pass){.f = f, .n_tok = n_rows, .pos = row, .logits = logits});
}

/* ---- memory ---- */

/* Deals out pieces of one block; with base NULL it only counts. */
typedef struct carver {
    uint8_t *base;
    size_t at;
} carver;

static void *carve(carver *c, size_t bytes) {
    void *p = c->base ? c->base + c->at : NULL;
    c->at += size_align(bytes, MEM_ALIGN) + MEM_ALIGN; /* vector loads may run over the end */
    return p;
}

static float *carve_f32(carver *c, int64_t rows, int64_t cols) {
    return carve(c, (size_t)rows * (size_t)cols * sizeof(float));
}

static size_t acts_max(const llmq_backend_ops *ops, const llmq_hparams *hp, llmq_act_form form, int64_t n_tok) {
    int64_t cols[] = {hp->n_embd, hp->n_head * hp->head_dim, hp->n_ff};
    size_t max = 0;
    for (int i = 0; i < 3; i++) {
        size_t bytes = ops->acts_bytes(form, n_tok, cols[i]);
        if (bytes > max) max = bytes;
    }
    return max;
}

static size_t attn_scratch_max(const llmq_forward *f) {
    const llmq_hparams *hp = &f->model->hp;
    llmq_attn one = {.n_head = (int)hp->n_head,
                     .n_head_kv = (int)hp->n_head_kv,
                     .head_dim = (int)hp->head_dim,
                     .scale = f->attn_scale,
                     .window = hp->window,
                     .pos = f->n_ctx - 1,
                     .n_tok = 1};
    llmq_attn batch = one;
    batch.pos = f->n_ctx - f->n_batch;
    batch.n_tok = f->n_batch;
    size_t a = f->model->ops->attn_scratch_bytes(&one, team_size(f->team));
    size_t b = f->model->ops->attn_scratch_bytes(&batch, team_size(f->team));
    return a > b ? a : b;
}

static void carve_scratch(llmq_forward *f, carver *c) {
    const llmq_hparams *hp = &f->model->hp;
    int64_t n = f->n_batch, q_dim = hp->n_head * hp->head_dim, kv_dim = hp->n_head_kv * hp->head_dim;
    for (int i = 0; i < team_size(f->team); i++) {
        forward_lane *lane = &f->lanes[i];
        int64_t n_tok = i == 0 ? n : 1;
        lane->x = carve_f32(c, n_tok, hp->n_embd);
        lane->norm = carve_f32(c, n_tok, hp->n_embd);
        lane->act = carve_f32(c, 1, hp->n_ff);
        lane->q8 = carve(c, acts_max(f->model->ops, hp, ACT_Q8, n_tok));
        lane->bf16 = carve(c, acts_max(f->model->ops, hp, ACT_BF16, n_tok));
    }
    f->q = carve_f32(c, n, q_dim);
    f->k = carve_f32(c, n, kv_dim);
    f->v = carve_f32(c, n, kv_dim);
    f->attn = carve_f32(c, n, q_dim);
    f->gate = carve_f32(c, n, hp->n_ff);
    f->up = carve_f32(c, n, hp->n_ff);
    f->delta = carve_f32(c, n, hp->n_embd);
    f->attn_scratch = carve(c, attn_scratch_max(f));
}

static llmq_status create_kv(llmq_forward *f, llmq_kv_type kv_type, llmq_err *err) {
    const llmq_hparams *hp = &f->model->hp;
    size_t one =
        size_align(f->model->ops->kv_bytes((int)kv_type, f->n_ctx, (int)hp->n_head_kv, (int)hp->head_dim), MEM_ALIGN);
    if (!size_mul(one, 2 * (size_t)hp->n_layer, &f->kv_bytes)) f->kv_bytes = SIZE_MAX;
    f->kv = mem_zalloc((size_t)hp->n_layer, sizeof *f->kv);
    f->kv_block = mem_alloc_lazy(f->kv_bytes); /* heads lie n_ctx apart: huge pages would all be touched at once */
    if (!f->kv || !f->kv_block) return mem_error(err, f->kv_bytes, "the KV cache");
    for (int64_t l = 0; l < hp->n_layer; l++) {
        uint8_t *k = (uint8_t *)f->kv_block + 2 * one * (size_t)l;
        f->kv[l] = (llmq_kv){.k = k,
                             .v = k + one,
                             .type = (int)kv_type,
                             .n_ctx = f->n_ctx,
                             .n_head_kv = (int)hp->n_head_kv,
                             .head_dim = (int)hp->head_dim};
    }
    return LLMQ_OK;
}

static llmq_status create_buffers(llmq_forward *f, llmq_kv_type kv_type, llmq_err *err) {
    LLMQ_TRY(create_kv(f, kv_type, err));
    size_t rope_bytes = (size_t)f->n_ctx * (size_t)f->model->hp.n_rot * sizeof *f->rope;
    f->rope = mem_alloc_lazy(rope_bytes);
    if (!f->rope) return mem_error(err, rope_bytes, "the RoPE table");
    f->rope_bytes = rope_bytes;
    f->lanes = mem_zalloc((size_t)team_size(f->team), sizeof *f->lanes);
    if (!f->lanes) return mem_error(err, sizeof *f->lanes, "activations");
    carver c = {0};
    carve_scratch(f, &c);
    f->scratch_block = c.base = mem_alloc_big(c.at);
    if (!f->scratch_block) return mem_error(err, c.at, "activations");
    f->scratch_bytes = c.at;
    c.at = 0;
    carve_scratch(f, &c);
    return LLMQ_OK;
}

llmq_status forward_create(const llmq_model *model, llmq_team *team, int64_t n_ctx, int64_t n_batch,
                           llmq_kv_type kv_type, llmq_forward *out, llmq_err *err) {
    float scale = (float)(1.0 / sqrt((double)model->hp.head_dim));
    *out = (llmq_forward){.model = model, .team = team, .n_ctx = n_ctx, .n_batch = n_batch, .attn_scale = scale};
    llmq_status status = create_buffers(out, kv_type, err);
    if (status != LLMQ_OK) forward_destroy(out);
    return status;
}

void forward_destroy(llmq_forward *f) {
    mem_free(f->kv);
    mem_free(f->lanes);
    mem_free_big(f->kv_block, f->kv_bytes);
    mem_free_big(f->rope, f->rope_bytes);
    mem_free_big(f->scratch_block, f->scratch_bytes);
    *f = (llmq_forward){0};
}
