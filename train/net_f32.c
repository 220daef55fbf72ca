/* The decoder by the backend's kernels. */
#include <math.h>
#include <string.h>

#include "train/net.h"
#include "types/type.h"

#define REAL float
#define NET(name) name##_f32
typedef net_f32 this_net;
typedef net_source_f32 this_source;
typedef net_weights_f32 this_weights;

typedef llmq_tensor math_view;
/* back: the transposed matrix, of slices of its rows. */
typedef struct math_matrix {
    llmq_weight forward, *back;
    int64_t rows, cols, slice, n_back;
    float *transposed; /* what back reads where the backend packs no copy of its own; else NULL */
} math_matrix;
typedef struct math_ctx {
    const llmq_backend_ops *ops;
    llmq_team *team;
    bool exact, packs;              /* packs: weights are copied when they are made ready */
    float *inv, *add, *teacher_row; /* [rows of a norm], (n, n_embd), (workers, n_vocab) */
    void *q8, *bf16, *int8, *q16, *attention, *outer;
    float *flip; /* a slice of a matrix, transposed */
} math_ctx;

static void math_sync(const llmq_worker *w) {
    worker_barrier(w);
}
static void math_run(math_ctx *m, team_fn *fn, void *arg) {
    team_run(m->team, fn, arg);
}

static int64_t max_of(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Does the backend copy float weights? */
static llmq_status find_packs(math_ctx *m, llmq_err *err) {
    float number[16] = {0};
    llmq_weight w = {0};
    llmq_tensor t = {.type = LLMQ_TYPE_F32, .n_dims = 2, .dims = {16, 1, 1, 1}, .bytes = sizeof number, .data = number};
    LLMQ_TRY(m->ops->weight_prepare(&w, &t, m->exact ? 0 : PREP_BF16, m->team, err));
    m->packs = w.packed != NULL;
    m->ops->weight_release(&w);
    return LLMQ_OK;
}

/* A buffer of math_ctx. */
typedef struct math_part {
    size_t at; /* of the pointer to it */
    size_t bytes;
} math_part;
#define MATH_PARTS 10

/* Each for the largest use of it. */
static void math_parts(const net_shape *s, const llmq_backend_ops *ops, int n_workers, math_part parts[MATH_PARTS]) {
    const llmq_hparams *hp = &s->hp;
    int64_t n = s->n_windows * s->n_tok, q_dim = hp->n_head * hp->head_dim;
    int64_t widest = max_of(max_of(hp->n_embd, q_dim), max_of(hp->n_ff, s->alone ? 0 : NET_SLICE));
    const llmq_causal one = {.n_head = (int)hp->n_head,
                             .n_head_kv = (int)hp->n_head_kv,
                             .head_dim = (int)hp->head_dim,
                             .n_tok = s->n_tok,
                             .n_windows = s->n_windows};
    const math_part all[MATH_PARTS] = {
        {offsetof(math_ctx, inv), (size_t)(n * (hp->n_head + 1)) * sizeof(float)},
        {offsetof(math_ctx, add), (size_t)(n * widest) * sizeof(float)},
        {offsetof(math_ctx, teacher_row), s->alone ? 0 : (size_t)n_workers * (size_t)hp->n_vocab * sizeof(float)},
        {offsetof(math_ctx, q8), ops->acts_bytes(ACT_Q8, n, widest)},
        {offsetof(math_ctx, bf16), ops->acts_bytes(ACT_BF16, n, widest)},
        {offsetof(math_ctx, q16), s->q16 ? ops->acts_bytes(ACT_Q16, n, widest) : 0},
        {offsetof(math_ctx, int8), s->int8 ? ops->acts_bytes(ACT_INT8, n, widest) : 0},
        {offsetof(math_ctx, attention), ops->causal_scratch_bytes(&one, n_workers)},
        {offsetof(math_ctx, outer), ops->outer_scratch_bytes(widest, widest, n)},
        {offsetof(math_ctx, flip), (size_t)(max_of(hp->n_embd, q_dim) * widest) * sizeof(float)}};
    memcpy(parts, all, sizeof all);
}

static size_t math_need(const net_shape *s, const llmq_backend_ops *ops, int n_workers) {
    math_part parts[MATH_PARTS];
    size_t bytes = 0;
    math_parts(s, ops, n_workers, parts);
    for (int i = 0; i < MATH_PARTS; i++) bytes += parts[i].bytes;
    return bytes;
}

static llmq_status math_begin(math_ctx *m, const net_shape *s, bool exact, const llmq_backend_ops *ops, llmq_team *team,
                              llmq_arena *arena, llmq_err *err) {
    math_part parts[MATH_PARTS];
    m->ops = ops;
    m->team = team;
    m->exact = exact;
    math_parts(s, ops, team_size(team), parts);
    for (int i = 0; i < MATH_PARTS; i++) {
        void *p = arena_alloc(arena, parts[i].bytes + MEM_ALIGN, MEM_ALIGN);
        if (!p) return mem_error(err, parts[i].bytes, "gradients");
        memcpy((char *)m + parts[i].at, &p, sizeof p);
    }
    return find_packs(m, err);
}

static bool math_is_there(const math_view *v) {
    return v->data != NULL;
}
static const float *math_vector(const math_view *v) {
    return v->data;
}

/* ---- matrices made ready ---- */

static void math_release(math_ctx *m, math_matrix *x) {
    if (x->forward.rows) m->ops->weight_release(&x->forward);
    for (int64_t i = 0; x->back && i < x->n_back; i++)
        if (x->back[i].rows) m->ops->weight_release(&x->back[i]);
    mem_free(x->back);
    mem_free(x->transposed);
    *x = (math_matrix){0};
}

typedef struct flip_job {
    const llmq_backend_ops *ops;
    const float *x;
    int64_t rows, cols;
    float *y;
} flip_job;

static void flip_worker(const llmq_worker *w, void *arg) {
    const flip_job *j = arg;
    j->ops->transpose(w, j->x, j->rows, j->cols, j->cols, j->y, j->rows);
}

/* v: rows x cols in F32. */
static llmq_status ready_back(math_ctx *m, const llmq_tensor *v, int64_t rows, int64_t cols, int64_t slice,
                              math_matrix *out, llmq_err *err) {
    int64_t n = (rows + slice - 1) / slice;
    out->slice = slice;
    out->back = mem_zalloc((size_t)n, sizeof *out->back);
    if (!m->packs) out->transposed = mem_alloc((size_t)(rows * cols), sizeof(float));
    if (!out->back || (!m->packs && !out->transposed)) return mem_error(err, (size_t)(rows * cols) * 4, v->name);
    for (int64_t i = 0; i < n; i++) {
        int64_t len = rows - i * slice < slice ? rows - i * slice : slice;
        float *to = m->packs ? m->flip : out->transposed + i * slice * cols;
        llmq_tensor t = {
            .type = LLMQ_TYPE_F32, .n_dims = 2, .dims = {len, cols, 1, 1}, .bytes = len * cols * 4, .data = to};
        team_run(m->team, flip_worker, &(flip_job){m->ops, (const float *)v->data + i * slice * cols, len, cols, to});
        LLMQ_TRY(m->ops->weight_prepare(&out->back[i], &t, m->exact ? 0 : PREP_BF16, m->team, err));
        out->n_back = i + 1;
    }
    return LLMQ_OK;
}

static llmq_status math_ready(math_ctx *m, const this_weights *weights, llmq_role role, int64_t rows, int64_t cols,
                              const float *bias, bool forward, bool back, int64_t slice, math_matrix *out,
                              llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_tensor *v = &weights->of[role], *f = weights->forward[role].data ? &weights->forward[role] : v;
    *out = (math_matrix){.rows = rows, .cols = cols};
    if (forward) {
        if (weights->int8[role])
            LLMQ_TRY_GOTO(m->ops->weight_prepare_int8(&out->forward, f, weights->range[role], m->team, err));
        else
            LLMQ_TRY_GOTO(m->ops->weight_prepare(&out->forward, f, m->exact ? 0 : PREP_BF16, m->team, err));
        out->forward.bias = bias;
    }
    if (back) LLMQ_TRY_GOTO(ready_back(m, v, rows, cols, slice, out, err));
done:
    if (status != LLMQ_OK) math_release(m, out);
    return status;
}

/* ---- products: all workers call; what they read is there before and what they write is there after ---- */

static void math_embed(const llmq_worker *w, math_ctx *m, const math_view *table, const int32_t *tokens, int64_t n,
                       int64_t cols, float *y) {
    (void)cols;
    m->ops->embed(w, table, tokens, n, y);
}

/* x in the form that a weight reads. */
static llmq_acts fill(const llmq_worker *w, math_ctx *m, const float *x, int64_t n_tok, const llmq_weight *reader) {
    llmq_acts a = {.n_tok = n_tok,
                   .cols = reader->cols,
                   .x = x,
                   .q8 = m->q8,
                   .bf16 = m->bf16,
                   .q16 = m->q16,
                   .exact = m->exact,
                   .int8 = m->int8,
                   .range = reader->range};
    worker_barrier(w); /* the buffer may still be read */
    m->ops->acts_fill(w, &a, reader->act);
    worker_barrier(w);
    return a;
}

static void math_linears(const llmq_worker *w, math_ctx *m, int n_mats, const math_matrix *const *mats, const float *x,
                         int64_t n_tok, float *const *y) {
    bool filled[ACT_FORMS] = {false};
    llmq_acts a = {0};
    for (int i = 0; i < n_mats; i++) {
        llmq_act_form form = mats[i]->forward.act;
        if (!filled[form]) a = fill(w, m, x, n_tok, &mats[i]->forward);
        filled[form] = true;
        m->ops->matmul(w, &mats[i]->forward, &a, y[i], mats[i]->rows);
    }
    worker_barrier(w);
}

/* dx = dy of one slice times its rows; more: what is added to dx. */
static void slice_back(const llmq_worker *w, math_ctx *m, const llmq_weight *back, const float *dy, int64_t n_tok,
                       bool more, float *dx) {
    llmq_acts a = fill(w, m, dy, n_tok, back);
    m->ops->matmul(w, back, &a, more ? m->add : dx, back->rows);
    worker_barrier(w);
    if (!more) return;
    m->ops->add(w, dx, m->add, n_tok * back->rows);
    worker_barrier(w);
}

static void math_linears_back(const llmq_worker *w, math_ctx *m, int n_mats, const math_matrix *const *mats,
                              float *const *dy, int64_t n_tok, float *dx) {
    for (int i = 0; i < n_mats; i++) slice_back(w, m, &mats[i]->back[0], dy[i], n_tok, i > 0, dx);
}
static int64_t math_slice(int64_t n_vocab) {
    return n_vocab < NET_SLICE ? n_vocab : NET_SLICE;
}
static void math_head_back(const llmq_worker *w, math_ctx *m, const math_matrix *head, float *dz, int64_t n_tok,
                           float *dx) {
    for (int64_t i = 0; i < head->n_back; i++)
        slice_back(w, m, &head->back[i], dz + i * head->slice * n_tok, n_tok, i > 0, dx);
}

static void math_outer(const llmq_worker *w, math_ctx *m, const float *dy, int64_t rows, const float *x, int64_t cols,
                       int64_t n_tok, bool add, float *g) {
    m->ops->outer(w, dy, rows, x, cols, n_tok, add, !m->exact, g, m->outer);
}

/* ---- small ops ---- */

static void math_norm(const llmq_worker *w, math_ctx *m, const float *x, const float *gain, float eps, float *y,
                      int64_t n_rows, int64_t n) {
    m->ops->rms_norm(w, x, gain, eps, y, n_rows, n, n);
}
static void math_norm_back(const llmq_worker *w, math_ctx *m, const float *x, const float *gain, float eps,
                           const float *dy, float *dx, bool add, float *dgain, int64_t n_rows, int64_t n) {
    m->ops->rms_norm_back(w, x, gain, eps, dy, dx, add, m->inv, n_rows, n);
    worker_barrier(w);
    if (dgain) m->ops->rms_gain_back(w, x, m->inv, dy, dgain, n_rows, n);
}
static void math_rope(const llmq_worker *w, math_ctx *m, float *x, int64_t n_tok, int n_head, int head_dim, int n_rot,
                      const float *table, bool neox) {
    m->ops->rope(w, x, n_tok, (int64_t)n_head * head_dim, n_head, head_dim, n_rot, table, neox);
}
static llmq_causal math_attention(const math_ctx *m, const llmq_causal *a) {
    llmq_causal b = *a;
    b.allow_bf16 = !m->exact;
    return b;
}
static void math_causal(const llmq_worker *w, math_ctx *m, const llmq_causal *a, const float *q, const float *k,
                        const float *v, float *out) {
    const llmq_causal b = math_attention(m, a);
    m->ops->causal(w, &b, q, k, v, out, m->attention);
}
static void math_causal_back(const llmq_worker *w, math_ctx *m, const llmq_causal *a, const float *q, const float *k,
                             const float *v, const float *dout, float *dq, float *dk, float *dv) {
    const llmq_causal b = math_attention(m, a);
    m->ops->causal_back(w, &b, q, k, v, dout, dq, dk, dv, m->attention);
}
static void math_silu_mul(const llmq_worker *w, math_ctx *m, const float *gate, const float *up, float *y, int64_t n) {
    m->ops->silu_mul(w, gate, up, y, n);
}
static void math_silu_mul_back(const llmq_worker *w, math_ctx *m, float *gate, float *up, const float *dact,
                               int64_t n) {
    m->ops->silu_mul_back(w, gate, up, dact, n);
}
static void math_loss(const llmq_worker *w, math_ctx *m, float *z, const float *teacher, const int32_t *labels,
                      int64_t n, int64_t n_vocab, double weight, float *dz, double *loss) {
    llmq_loss l = {.n = n,
                   .n_vocab = n_vocab,
                   .z = z,
                   .teacher = teacher,
                   .labels = labels,
                   .weight = weight,
                   .slice = math_slice(n_vocab),
                   .dz = dz,
                   .loss = loss,
                   .scratch = m->teacher_row};
    m->ops->loss_rows(w, &l);
}

#include "train/net_impl.h"
