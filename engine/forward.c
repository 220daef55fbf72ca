#include "engine/forward.h"

#include <math.h>
#include <string.h>

/* Floats up to which a worker does the small ops of several tokens whole, for itself: where it takes less time than the
 * barriers between those that share them (measured with two workers). */
#define ALONE_MOST 8192

static int64_t alone_most = ALONE_MOST;

void forward_set_alone(int64_t floats) {
    alone_most = floats < 0 ? ALONE_MOST : floats;
}

/* Rows of so many floats that a worker has for itself: at least one. */
static int64_t alone_rows(const llmq_forward *f, int64_t n) {
    return n <= f->alone_most ? f->alone_most / n : 1;
}

/* Who does the small ops on rows of one width. */
typedef struct sharing {
    llmq_worker me; /* divides them: one of all, or this worker alone, as every other does */
    bool alone;
    forward_lane *lane; /* where they write */
} sharing;

static sharing sharing_of(const llmq_forward *f, const llmq_worker *w, int64_t n_tok, int64_t n) {
    if (n_tok > alone_rows(f, n)) return (sharing){*w, false, f->lanes};
    return (sharing){{0, 1, w->team}, true, &f->lanes[w->id]};
}

/* One worker's view of a pass. */
typedef struct step {
    llmq_forward *f;
    const llmq_backend_ops *ops;
    const llmq_hparams *hp;
    const llmq_worker *all;  /* divides matmuls and attention; its barriers are real */
    sharing narrow, wide;    /* rows of n_embd or of all heads; of n_ff */
    float *x;                /* (n_tok, n_embd) */
    float *q, *k;            /* (n_tok, n_head*head_dim | n_head_kv*head_dim): rotated */
    const float *rope;       /* (n_tok, n_rot/2, 2) */
    forward_cache *cache;    /* of tokens at pos.. */
    const forward_row *rows; /* or of each row its own; else NULL */
    int64_t n_tok, pos;
    bool one; /* a pass of one token, whose k and v attention stores */
} step;

static int64_t narrow_width(const llmq_hparams *hp) {
    int64_t q_dim = hp->n_head * hp->head_dim;
    return hp->n_embd > q_dim ? hp->n_embd : q_dim;
}

static step step_begin(llmq_forward *f, const llmq_worker *w, int64_t n_tok) {
    const llmq_hparams *hp = &f->model->hp;
    step s = {.f = f, .ops = f->model->ops, .hp = hp, .all = w, .n_tok = n_tok, .one = n_tok == 1};
    s.narrow = sharing_of(f, w, n_tok, narrow_width(hp));
    s.wide = sharing_of(f, w, n_tok, hp->n_ff);
    s.x = s.narrow.lane->x;
    s.q = s.narrow.alone ? s.narrow.lane->q : f->q;
    s.k = s.narrow.alone ? s.narrow.lane->k : f->k;
    return s;
}

/* Between two small ops: what other workers wrote is read next. */
static void sync_small(const step *s, const sharing *by) {
    if (!by->alone) worker_barrier(s->all);
}

/* x (n_tok, cols) in every form that one of the n weights reads. */
static llmq_acts acts_for(const step *s, const sharing *by, const float *x, int64_t cols,
                          const llmq_weight *const *weights, int n) {
    llmq_acts a = {.n_tok = s->n_tok,
                   .cols = cols,
                   .x = x,
                   .q8 = by->lane->q8,
                   .bf16 = by->lane->bf16,
                   .q16 = by->lane->q16,
                   .int8 = by->lane->int8,
                   .exact = s->f->exact};
    bool filled[ACT_FORMS] = {[ACT_F32] = true};
    bool any = false;
    for (int i = 0; i < n; i++) {
        llmq_act_form form = weights[i]->act;
        if (filled[form]) continue;
        filled[form] = any = true;
        LLMQ_ASSERT(s->ops->acts_bytes(form, s->n_tok, cols) <= by->lane->bytes[form]);
        if (form == ACT_INT8) a.range = weights[i]->range; /* one for all of a site: int8.h */
        s->ops->acts_fill(&by->me, &a, form);
    }
    if (any) sync_small(s, by);
    return a;
}

static llmq_acts normalized(const step *s, const float *x, const float *gain, const llmq_weight *const *weights,
                            int n) {
    const sharing *by = &s->narrow;
    int64_t n_embd = s->hp->n_embd;
    s->ops->rms_norm(&by->me, x, gain, s->hp->eps, by->lane->norm, s->n_tok, n_embd, n_embd);
    sync_small(s, by);
    return acts_for(s, by, by->lane->norm, n_embd, weights, n);
}

/* Norm and rotation of one of q, k, from x to y; both may be the same. */
static void rotate(const step *s, const float *x, const float *gain, int64_t n_head, float *y) {
    const llmq_hparams *hp = s->hp;
    const sharing *by = &s->narrow;
    if (gain) {
        s->ops->rms_norm(&by->me, x, gain, hp->eps, y, s->n_tok * n_head, hp->head_dim, hp->head_dim);
        sync_small(s, by);
    } else if (by->alone) {
        memcpy(y, x, (size_t)(s->n_tok * n_head * hp->head_dim) * sizeof *y);
    }
    s->ops->rope(&by->me, y, s->n_tok, n_head * hp->head_dim, (int)n_head, (int)hp->head_dim, (int)hp->n_rot, s->rope,
                 s->f->model->rope_neox);
}

static void store(const step *s, int64_t l) {
    const llmq_forward *f = s->f;
    int64_t kv_dim = s->hp->n_head_kv * s->hp->head_dim;
    if (!s->rows) s->ops->kv_store(s->all, &s->cache->kv[l], s->k, kv_dim, f->v, kv_dim, s->pos, s->n_tok);
    for (int64_t i = 0; s->rows && i < s->n_tok; i++)
        s->ops->kv_store(s->all, &s->rows[i].cache->kv[l], s->k + i * kv_dim, kv_dim, f->v + i * kv_dim, kv_dim,
                         s->rows[i].pos, 1);
}

/* One token: attention stores k and v, so that nobody waits here. */
static void rotate_and_store(const step *s, const llmq_layer *layer, int64_t l, int64_t n_out) {
    rotate(s, s->f->q, layer->q_norm, s->hp->n_head, s->q);
    rotate(s, s->f->k, layer->k_norm, s->hp->n_head_kv, s->k);
    if (s->one && n_out > 0) return;
    sync_small(s, &s->narrow);
    store(s, l);
    worker_barrier(s->all);
}

/* From here on only the last n_out tokens matter: drops the others. Returns how many are gone. */
static int64_t keep_last(step *s, int64_t n_out) {
    int64_t gone = s->n_tok - n_out;
    s->x += gone * s->hp->n_embd;
    s->pos += gone;
    s->n_tok = n_out;
    return gone;
}

static void attend(const step *s, int64_t l, const float *q) {
    llmq_forward *f = s->f;
    const llmq_hparams *hp = s->hp;
    int64_t q_dim = hp->n_head * hp->head_dim;
    llmq_attn attn = {.n_head = (int)hp->n_head,
                      .n_head_kv = (int)hp->n_head_kv,
                      .head_dim = (int)hp->head_dim,
                      .scale = f->attn_scale,
                      .window = hp->window,
                      .pos = s->pos,
                      .n_tok = s->n_tok};
    if (s->one) {
        attn.k_new = s->k;
        attn.v_new = f->v;
    }
    if (!s->rows) {
        s->ops->attention(s->all, &attn, q, q_dim, &s->cache->kv[l], f->attn, f->attn_scratch);
        return;
    }
    s->ops->attention_rows(s->all, &attn, f->row_attn + l * s->n_tok, s->n_tok, q, q_dim, f->attn, f->attn_scratch);
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
    rotate_and_store(s, layer, l, n_out);

    const float *q = s->q + keep_last(s, n_out) * q_dim;
    if (s->n_tok == 0) return;
    attend(s, l, q);
    worker_barrier(s->all);
    a = acts_for(s, &s->narrow, f->attn, q_dim, (const llmq_weight *[]){&layer->o}, 1);
    s->ops->matmul(s->all, &layer->o, &a, f->delta, hp->n_embd);
    worker_barrier(s->all);
    s->ops->add(&s->narrow.me, s->x, f->delta, s->n_tok * hp->n_embd);
    sync_small(s, &s->narrow);
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
    float *act = s->wide.alone ? s->wide.lane->act : f->gate;
    s->ops->silu_mul(&s->wide.me, f->gate, f->up, act, s->n_tok * n_ff);
    sync_small(s, &s->wide);
    a = acts_for(s, &s->wide, act, n_ff, (const llmq_weight *[]){&layer->down}, 1);
    s->ops->matmul(s->all, &layer->down, &a, f->delta, n_embd);
    worker_barrier(s->all);
    s->ops->add(&s->narrow.me, s->x, f->delta, s->n_tok * n_embd);
    sync_small(s, &s->narrow);
}

static void head_block(const step *s, const float *x, float *logits) {
    const llmq_model *model = s->f->model;
    llmq_acts a = normalized(s, x, model->output_norm, (const llmq_weight *[]){&model->head}, 1);
    s->ops->matmul(s->all, &model->head, &a, logits, s->hp->n_vocab);
}

typedef struct pass {
    llmq_forward *f;
    forward_cache *cache;
    const forward_row *rows;
    const int32_t *tokens;
    int64_t n_tok, pos, n_out;
    const float *rope;
    float *logits;
} pass;

static void run_pass(const llmq_worker *w, void *arg) {
    const pass *p = arg;
    const llmq_model *model = p->f->model;
    step s = step_begin(p->f, w, p->n_tok);
    s.cache = p->cache;
    s.rows = p->rows;
    s.rope = p->rope;
    s.pos = p->pos;
    s.ops->embed(&s.narrow.me, model->by_role[ROLE_TOKEN_EMBD], p->tokens, p->n_tok, s.x);
    sync_small(&s, &s.narrow);
    for (int64_t l = 0; l < model_cpu_layers(model); l++) {
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

static void run(const pass *p) {
    team_run(p->f->team, run_pass, (void *)p);
    p->f->hidden = p->f->lanes[0].x + (p->n_tok - p->n_out) * p->f->model->hp.n_embd;
    p->f->n_hidden = p->n_out;
}

/* ---- on a device: it goes on where the layers of the CPU end, and keeps the hidden states of its last run. hidden: of
 * the CPU's layers, NULL if there are none. */

static llmq_status run_on_device(llmq_forward *f, forward_cache *cache, const int32_t *tokens, const float *hidden,
                                 int64_t n_tok, int64_t pos, int64_t n_out, float *logits, llmq_err *err) {
    const llmq_device_ops *device = f->model->device;
    f->n_hidden = 0;
    LLMQ_TRY(device->run(f->on_device, cache->on_device, tokens, hidden, n_tok, pos, err));
    f->device_row = n_tok - n_out;
    f->n_hidden = n_out;
    return logits && n_out > 0 ? device->head(f->on_device, f->device_row, n_out, logits, err) : LLMQ_OK;
}

static llmq_status rows_on_device(llmq_forward *f, const forward_row *rows, const float *hidden, int64_t n,
                                  float *logits, llmq_err *err) {
    const llmq_device_ops *device = f->model->device;
    f->n_hidden = 0;
    for (int64_t i = 0; i < n; i++)
        f->device_rows[i] = (llmq_device_row){rows[i].cache->on_device, rows[i].token, rows[i].pos};
    LLMQ_TRY(device->run_rows(f->on_device, f->device_rows, hidden, n, err));
    f->device_row = 0;
    f->n_hidden = n;
    return logits ? device->head(f->on_device, 0, n, logits, err) : LLMQ_OK;
}

/* ---- passes */

llmq_status forward_run(llmq_forward *f, forward_cache *cache, const int32_t *tokens, int64_t n_tok, int64_t pos,
                        int64_t n_out, float *logits, llmq_err *err) {
    bool here = model_cpu_layers(f->model) > 0;
    LLMQ_ASSERT(n_tok >= 1 && n_tok <= f->n_batch && n_out >= 0 && n_out <= n_tok);
    LLMQ_ASSERT(pos + n_tok <= f->n_ctx && pos + n_tok <= cache->n_ctx);
    if (here) {
        extend_rope(f, pos + n_tok);
        f->exact = cache->kv[0].type == LLMQ_KV_F32;
        run(&(pass){.f = f,
                    .cache = cache,
                    .tokens = tokens,
                    .n_tok = n_tok,
                    .pos = pos,
                    .n_out = f->on_device ? n_tok : n_out,
                    .rope = f->rope + pos * f->model->hp.n_rot,
                    .logits = f->on_device ? NULL : logits});
    }
    if (!f->on_device) return LLMQ_OK;
    return run_on_device(f, cache, tokens, here ? f->hidden : NULL, n_tok, pos, n_out, logits, err);
}

/* Rows through the layers of the CPU. */
static void run_rows(llmq_forward *f, const forward_row *rows, int64_t n, float *logits) {
    const llmq_hparams *hp = &f->model->hp;
    f->exact = rows[0].cache->kv[0].type == LLMQ_KV_F32;
    for (int64_t i = 0; i < n; i++) {
        LLMQ_ASSERT(rows[i].pos < f->n_ctx && rows[i].pos < rows[i].cache->n_ctx);
        extend_rope(f, rows[i].pos + 1);
        f->row_tokens[i] = rows[i].token;
        memcpy(f->row_rope + i * hp->n_rot, f->rope + rows[i].pos * hp->n_rot, (size_t)hp->n_rot * sizeof(float));
        for (int64_t l = 0; l < model_cpu_layers(f->model); l++)
            f->row_attn[l * n + i] = (llmq_attn_row){&rows[i].cache->kv[l], rows[i].pos};
    }
    run(&(pass){.f = f,
                .cache = rows[0].cache, /* one row is a pass of one token */
                .rows = n > 1 ? rows : NULL,
                .tokens = f->row_tokens,
                .n_tok = n,
                .pos = rows[0].pos,
                .n_out = n,
                .rope = f->row_rope,
                .logits = logits});
}

llmq_status forward_rows(llmq_forward *f, const forward_row *rows, int64_t n, float *logits, llmq_err *err) {
    bool here = model_cpu_layers(f->model) > 0;
    LLMQ_ASSERT(n >= 1 && n <= f->n_rows);
    if (here) run_rows(f, rows, n, f->on_device ? NULL : logits);
    return f->on_device ? rows_on_device(f, rows, here ? f->hidden : NULL, n, logits, err) : LLMQ_OK;
}

static void run_head(const llmq_worker *w, void *arg) {
    const pass *p = arg;
    step s = step_begin(p->f, w, p->n_tok);
    head_block(&s, p->f->hidden + p->pos * s.hp->n_embd, p->logits);
}

llmq_status forward_head(llmq_forward *f, int64_t row, int64_t n_rows, float *logits, llmq_err *err) {
    LLMQ_ASSERT(row >= 0 && n_rows >= 1 && row + n_rows <= f->n_hidden);
    if (f->on_device) return f->model->device->head(f->on_device, f->device_row + row, n_rows, logits, err);
    team_run(f->team, run_head, &(pass){.f = f, .n_tok = n_rows, .pos = row, .logits = logits});
    return LLMQ_OK;
}

llmq_status forward_sample(llmq_forward *f, int64_t row, int64_t n_rows, const llmq_device_draw *draws, int32_t *tokens,
                           llmq_err *err) {
    LLMQ_ASSERT(f->on_device && row >= 0 && n_rows >= 1 && row + n_rows <= f->n_hidden);
    return f->model->device->sample(f->on_device, f->device_row + row, n_rows, draws, tokens, err);
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
    const llmq_backend_ops *ops = f->model->ops;
    size_t sizes[] = {ops->attn_scratch_bytes(&one, team_size(f->team)),
                      ops->attn_scratch_bytes(&batch, team_size(f->team)),
                      ops->attn_rows_scratch_bytes(&one, f->n_rows, team_size(f->team))};
    size_t most = sizes[0];
    for (int i = 1; i < 3; i++) most = sizes[i] > most ? sizes[i] : most;
    return most;
}

/* Rows of inputs that a lane may hold: of one width those that its worker does alone, or those that all share. */
typedef struct lane_rows {
    int64_t n_tok, cols;
} lane_rows;

static size_t form_bytes(const llmq_model *model, llmq_act_form form, lane_rows r) {
    if (r.n_tok == 0) return 0;
    if (form == ACT_Q8 || form == ACT_Q8_SPLIT) return model_q8_bytes(model, r.n_tok, r.cols);
    if (form == ACT_Q16) return model_q16_bytes(model, r.n_tok, r.cols);
    if (form == ACT_INT8 && !model->int8_inputs) return 0;
    return model->ops->acts_bytes(form, r.n_tok, r.cols);
}

/* Room for inputs in either of two forms, of which one takes the other's place. */
static void *carve_forms(carver *c, forward_lane *lane, const llmq_model *model, llmq_act_form form,
                         llmq_act_form instead, const lane_rows rows[3]) {
    size_t most = 0;
    for (int i = 0; i < 3; i++) {
        size_t one = form_bytes(model, form, rows[i]), other = form_bytes(model, instead, rows[i]);
        if (one < other) one = other;
        if (most < one) most = one;
    }
    lane->bytes[form] = lane->bytes[instead] = most;
    return carve(c, most);
}

/* Passes have n tokens at most; of more than a worker does alone lane 0 has them all. */
static void carve_lane(forward_lane *lane, carver *c, const llmq_forward *f, int64_t n, bool shared) {
    const llmq_model *model = f->model;
    const llmq_hparams *hp = &model->hp;
    int64_t narrow = narrow_width(hp), own = alone_rows(f, narrow), own_wide = alone_rows(f, hp->n_ff);
    if (own > n) own = n;
    if (own_wide > n) own_wide = n;
    const lane_rows rows[3] = {
        {own, narrow}, {own_wide, hp->n_ff}, {shared ? n : 0, narrow > hp->n_ff ? narrow : hp->n_ff}};
    lane->x = carve_f32(c, shared ? n : own, hp->n_embd);
    lane->norm = carve_f32(c, shared ? n : own, hp->n_embd);
    lane->act = carve_f32(c, own_wide, hp->n_ff);
    lane->q = carve_f32(c, own, hp->n_head * hp->head_dim);
    lane->k = carve_f32(c, own, hp->n_head_kv * hp->head_dim);
    lane->q8 = carve_forms(c, lane, model, ACT_Q8, ACT_Q8_SPLIT, rows);
    lane->bf16 = carve_forms(c, lane, model, ACT_BF16, ACT_DENSE, rows);
    lane->q16 = carve_forms(c, lane, model, ACT_Q16, ACT_Q16, rows);
    lane->int8 = carve_forms(c, lane, model, ACT_INT8, ACT_INT8, rows);
}

static void carve_scratch(llmq_forward *f, carver *c) {
    const llmq_hparams *hp = &f->model->hp;
    int64_t n = f->n_batch > f->n_rows ? f->n_batch : f->n_rows, q_dim = hp->n_head * hp->head_dim,
            kv_dim = hp->n_head_kv * hp->head_dim;
    for (int i = 0; i < team_size(f->team); i++) carve_lane(&f->lanes[i], c, f, n, i == 0);
    f->q = carve_f32(c, n, q_dim);
    f->k = carve_f32(c, n, kv_dim);
    f->v = carve_f32(c, n, kv_dim);
    f->attn = carve_f32(c, n, q_dim);
    f->gate = carve_f32(c, n, hp->n_ff);
    f->up = carve_f32(c, n, hp->n_ff);
    f->delta = carve_f32(c, n, hp->n_embd);
    f->attn_scratch = carve(c, attn_scratch_max(f));
    f->row_tokens = carve(c, (size_t)f->n_rows * sizeof *f->row_tokens);
    f->row_rope = carve_f32(c, f->n_rows, hp->n_rot);
    f->row_attn = carve(c, (size_t)(f->n_rows * hp->n_layer) * sizeof *f->row_attn);
    f->device_rows = carve(c, f->model->on_device ? (size_t)f->n_rows * sizeof *f->device_rows : 0);
}

/* K and V of the layers that the CPU runs. */
static llmq_status cache_here(const llmq_model *model, llmq_kv_type kv_type, forward_cache *out, llmq_err *err) {
    const llmq_hparams *hp = &model->hp;
    const size_t n = (size_t)model_cpu_layers(model);
    size_t one =
        size_align(model->ops->kv_bytes((int)kv_type, out->n_ctx, (int)hp->n_head_kv, (int)hp->head_dim), MEM_ALIGN);
    if (!size_mul(one, 2 * n, &out->block_bytes)) out->block_bytes = SIZE_MAX;
    out->kv = mem_zalloc(n, sizeof *out->kv);
    out->block = mem_alloc_lazy(out->block_bytes); /* heads lie n_ctx apart: huge pages would all be touched at once */
    if (!out->kv || !out->block) return mem_error(err, out->block_bytes, "the KV cache");
    for (size_t l = 0; l < n; l++) {
        uint8_t *k = (uint8_t *)out->block + 2 * one * l;
        out->kv[l] = (llmq_kv){.k = k,
                               .v = k + one,
                               .type = (int)kv_type,
                               .n_ctx = out->n_ctx,
                               .n_head_kv = (int)hp->n_head_kv,
                               .head_dim = (int)hp->head_dim};
    }
    out->bytes = out->block_bytes;
    return LLMQ_OK;
}

static llmq_status cache_on_device(const llmq_model *model, llmq_kv_type kv_type, forward_cache *out, llmq_err *err) {
    size_t bytes = 0;
    out->device = model->device;
    LLMQ_TRY(model->device->cache_create(model->on_device, out->n_ctx, (int)kv_type, &out->on_device, &bytes, err));
    out->bytes += bytes;
    return LLMQ_OK;
}

llmq_status forward_cache_create(const llmq_model *model, int64_t n_ctx, llmq_kv_type kv_type, forward_cache *out,
                                 llmq_err *err) {
    llmq_status status = LLMQ_OK;
    *out = (forward_cache){.n_ctx = n_ctx};
    if (model_cpu_layers(model) > 0) status = cache_here(model, kv_type, out, err);
    if (status == LLMQ_OK && model->on_device) status = cache_on_device(model, kv_type, out, err);
    if (status != LLMQ_OK) forward_cache_destroy(out);
    return status;
}

void forward_cache_destroy(forward_cache *c) {
    if (c->device) c->device->cache_destroy(c->on_device);
    mem_free(c->kv);
    mem_free_big(c->block, c->block_bytes);
    *c = (forward_cache){0};
}

static llmq_status create_buffers(llmq_forward *f, llmq_err *err) {
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

/* What is needed here where all layers are on the device. */
static llmq_status create_device_rows(llmq_forward *f, llmq_err *err) {
    f->scratch_bytes = (size_t)f->n_rows * sizeof *f->device_rows;
    f->scratch_block = mem_alloc_big(f->scratch_bytes);
    if (!f->scratch_block) return mem_error(err, f->scratch_bytes, "activations");
    f->device_rows = f->scratch_block;
    return LLMQ_OK;
}

static llmq_status create_on_device(llmq_forward *f, llmq_err *err) {
    int64_t n = f->n_batch > f->n_rows ? f->n_batch : f->n_rows;
    size_t rope_bytes = (size_t)f->n_ctx * (size_t)f->model->hp.n_rot * sizeof(float);
    float *rope = mem_alloc_lazy(rope_bytes);
    if (!rope) return mem_error(err, rope_bytes, "the RoPE table");
    rope_table(f->model, 0, f->n_ctx, rope);
    llmq_status status = f->model->device->work_create(f->model->on_device, f->n_ctx, n, rope, &f->on_device, err);
    mem_free_big(rope, rope_bytes);
    return status;
}

llmq_status forward_create(const llmq_model *model, llmq_team *team, int64_t n_ctx, int64_t n_batch, int64_t n_rows,
                           llmq_forward *out, llmq_err *err) {
    float scale = (float)(1.0 / sqrt((double)model->hp.head_dim));
    *out = (llmq_forward){.model = model,
                          .team = team,
                          .n_ctx = n_ctx,
                          .n_batch = n_batch,
                          .n_rows = n_rows,
                          .alone_most = alone_most,
                          .attn_scale = scale};
    llmq_status status = model_cpu_layers(model) > 0 ? create_buffers(out, err) : create_device_rows(out, err);
    if (status == LLMQ_OK && model->on_device) status = create_on_device(out, err);
    if (status != LLMQ_OK) forward_destroy(out);
    return status;
}

void forward_destroy(llmq_forward *f) {
    if (f->on_device) f->model->device->work_destroy(f->on_device);
    mem_free(f->lanes);
    mem_free_big(f->rope, f->rope_bytes);
    mem_free_big(f->scratch_block, f->scratch_bytes);
    *f = (llmq_forward){0};
}
