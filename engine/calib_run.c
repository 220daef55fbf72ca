#include "engine/calib_run.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "core/half.h"

#define CHUNK_TOKENS 4096 /* at a time: enough windows for some workers */
#define GRAM_TOKENS 256   /* Gram kernels sum so many at a time: chunks cut there give the same sums */
#define PART_TOKENS 64    /* of a window, whose rows stay in the L2 cache from one step to the next */

/* What one window passes through on its way to a site's inputs. */
typedef struct lane {
    float *x;                     /* (ctx, wide) inputs of the matrices before the site */
    void *q8, *bf16, *int8, *q16; /* x in other forms */
    float *a, *b, *c;             /* (ctx, .) q k v, or gate up, or a block's output in a */
    llmq_kv kv;
    void *scratch;         /* of attention */
    llmq_calib_work spent; /* seconds, of what takes much time alone */
} lane;

struct llmq_calib_run {
    llmq_model *model;
    const llmq_calib *calib;
    llmq_team *team;
    calib_tick_fn *tick;
    void *user;
    int64_t n_tok, chunk;        /* all tokens; at most so many at a time, whole windows */
    int64_t n_active;            /* tokens that passes run */
    int64_t q_dim, kv_dim, wide; /* wide: the longest input row */
    float *x;                    /* (n_tok, n_embd) the residual stream */
    uint16_t *mid;               /* (n_tok, q_dim or n_ff) bf16: attention's outputs, then the gated hidden layer's */
    uint8_t *bad;                /* [n_tok] left out somewhere */
    bool settled;                /* x is what the last layer left */
    bool mapped, borrowed;       /* x and mid are the caller's; the buffers of a chunk another run's */
    double mean_weight;
    bool allow_q8;
    llmq_device_solver *device; /* sums Gram matrices; NULL: the team does */
    llmq_calib_work spent;      /* seconds of the team */
    double *sums;               /* [wide] of a site's inputs over all tokens */
    float *in;                  /* (chunk, cols of the site) inputs of the site's matrices */
    void *gram_scratch;         /* of summing their Gram matrix */
    float *cos_sin;             /* (ctx, n_rot / 2, 2) */
    lane *lanes;                /* one: all workers share the work on a window; else one for each worker */
    int n_lanes, n_workers;     /* n_workers: on one window */
    llmq_attn attn;
    /* of the layer */
    llmq_weight *w[ROLE_COUNT];
    const float *vec[ROLE_COUNT]; /* norms and biases, NULL where there are none */
    struct {
        int64_t window;
        llmq_weight *w; /* NULL: none */
    } instead[ROLE_COUNT];
};

int64_t calib_site_cols(const llmq_hparams *hp, llmq_site_id site) {
    return site == SITE_O ? hp->n_head * hp->head_dim : site == SITE_DOWN ? hp->n_ff : hp->n_embd;
}

/* ---- the steps of a window; each is called by all who work on it ---- */

typedef struct pass {
    llmq_calib_run *run;
    llmq_site_id site;
    float *gram;
    int64_t begin, n;    /* tokens of the chunk */
    double gram_seconds; /* worker 0's */
    llmq_status status;  /* of the device, and what it says */
    llmq_err *err;
    _Atomic int64_t dropped;
} pass;

typedef struct span {
    pass *p;
    const llmq_calib_run *run;
    lane *l;
    int64_t begin, n; /* tokens of the window */
    float *in;        /* (n, cols of the site) its part of run->in */
} span;

/* The time since `since` went into work of this kind. One worker keeps the time of all who work on a window. */
static void spend(const llmq_worker *w, const span *s, calib_kind kind, double since) {
    if (w->id == 0) s->l->spent.of[kind] += time_seconds() - since;
}

/* Between products rows do not know of each other. So a worker takes a few rows of the window at a time through all
 * steps, without barriers: the rows [begin, end). To ops it is worker `as` of as many as there are parts. */
typedef struct part {
    llmq_worker as;
    int64_t begin, end;
} part;

static const part no_part = {.as.id = -1};

/* The part of w's that follows p; false if there is none. */
static bool next_part(const llmq_worker *w, const span *s, part *p) {
    int n = (int)((s->n + PART_TOKENS - 1) / PART_TOKENS), i = p->as.id < 0 ? w->id : p->as.id + w->n;
    if (i >= n) return false;
    p->as = (llmq_worker){i, n, w->team};
    worker_range(&p->as, s->n, 1, &p->begin, &p->end);
    return true;
}

/* Rows of x that are not finite become zero: they add nothing to a Gram matrix, and keys and values stay sound for the
 * rest of their window. */
static void drop_bad_rows(const span *s, const part *p, float *x, int64_t cols) {
    int64_t n =
        s->run->model->ops->drop_rows(x + p->begin * cols, p->end - p->begin, cols, s->run->bad + s->begin + p->begin);
    if (n > 0) atomic_fetch_add(&s->p->dropped, n);
}

/* The lane's x as ops take it. */
static llmq_acts inputs(const span *s, int64_t cols) {
    return (llmq_acts){.n_tok = s->n,
                       .cols = cols,
                       .x = s->l->x,
                       .q8 = s->l->q8,
                       .bf16 = s->l->bf16,
                       .q16 = s->l->q16,
                       .int8 = s->l->int8};
}

static void norm_part(const span *s, const part *p, llmq_role gain, float *to) {
    const llmq_calib_run *run = s->run;
    int64_t n_embd = run->model->hp.n_embd;
    const llmq_worker alone = {0, 1, p->as.team};
    run->model->ops->rms_norm(&alone, run->x + (s->begin + p->begin) * n_embd, run->vec[gain], run->model->hp.eps,
                              to + p->begin * n_embd, p->end - p->begin, n_embd, n_embd);
    drop_bad_rows(s, p, to, n_embd);
}

/* Makes the forms of the lane's x that the weights of roles want (roles ends with ROLE_COUNT). */
static void fill_part(const span *s, const part *p, const llmq_role *roles) {
    const llmq_calib_run *run = s->run;
    llmq_acts acts = inputs(s, run->w[*roles]->cols);
    bool wanted[ACT_FORMS] = {false};
    for (; *roles != ROLE_COUNT; roles++) {
        const llmq_weight *own = run->w[*roles], *other = run->instead[*roles].w;
        wanted[own->act] = true;
        if (own->act == ACT_INT8) acts.range = own->range;
        if (other) wanted[other->act] = true;
    }
    LLMQ_ASSERT(s->n >= ACT_WHOLE * p->as.n || p->as.n == 1);
    for (int form = 0; form < ACT_FORMS; form++)
        if (wanted[form]) run->model->ops->acts_fill(&p->as, &acts, (llmq_act_form)form);
}

/* The lane's x, for the weights of roles. */
static void norm_for(const llmq_worker *w, const span *s, llmq_role gain, const llmq_role *roles) {
    for (part p = no_part; next_part(w, s, &p);) {
        norm_part(s, &p, gain, s->l->x);
        fill_part(s, &p, roles);
    }
    worker_barrier(w);
}

static void multiply(const llmq_worker *w, const span *s, llmq_role role, float *y) {
    const llmq_calib_run *run = s->run;
    bool instead = run->instead[role].w && run->instead[role].window == s->begin / run->calib->ctx;
    const llmq_weight *weight = instead ? run->instead[role].w : run->w[role];
    llmq_acts acts = inputs(s, weight->cols);
    run->model->ops->matmul(w, weight, &acts, y, weight->rows);
}

/* The site's inputs are kept for the pass that multiplies them. */
static void store_mid(const span *s, const part *p, int64_t cols) {
    uint16_t *mid = s->run->mid + (s->begin + p->begin) * cols;
    s->run->model->ops->to_bf16(s->in + p->begin * cols, mid, (p->end - p->begin) * cols);
}

static void load_mid(const span *s, const part *p, int64_t cols) {
    const uint16_t *mid = s->run->mid + (s->begin + p->begin) * cols;
    s->run->model->ops->from_bf16(mid, s->l->x + p->begin * cols, (p->end - p->begin) * cols);
}

/* x += W mid, of a block's last matrix. With a gain of the norm behind it (else ROLE_COUNT) the next site's inputs. */
static void close_block(const llmq_worker *w, const span *s, llmq_role role, int64_t cols, llmq_role gain) {
    const llmq_calib_run *run = s->run;
    const llmq_worker alone = {0, 1, w->team};
    int64_t n_embd = run->model->hp.n_embd;
    for (part p = no_part; next_part(w, s, &p);) {
        load_mid(s, &p, cols);
        fill_part(s, &p, (llmq_role[]){role, ROLE_COUNT});
    }
    worker_barrier(w);
    double since = time_seconds();
    multiply(w, s, role, s->l->a);
    worker_barrier(w);
    spend(w, s, CALIB_WEIGHTS, since);
    for (part p = no_part; next_part(w, s, &p);) {
        float *x = run->x + (s->begin + p.begin) * n_embd;
        run->model->ops->add(&alone, x, s->l->a + p.begin * n_embd, (p.end - p.begin) * n_embd);
        if (gain != ROLE_COUNT) norm_part(s, &p, gain, s->in);
    }
    worker_barrier(w);
}

static void head_norm(const llmq_worker *w, const span *s, llmq_role gain, float *y, int64_t dim) {
    const llmq_hparams *hp = &s->run->model->hp;
    if (s->run->vec[gain])
        s->run->model->ops->rms_norm(w, y, s->run->vec[gain], hp->eps, y, s->n * dim / hp->head_dim, hp->head_dim,
                                     hp->head_dim);
}

/* q, k, v of the window to attention's outputs. */
static void attend(const llmq_worker *w, const span *s) {
    const llmq_calib_run *run = s->run;
    const llmq_backend_ops *ops = run->model->ops;
    const llmq_hparams *hp = &run->model->hp;
    llmq_kv kv = s->l->kv;
    head_norm(w, s, ROLE_Q_NORM, s->l->a, run->q_dim);
    head_norm(w, s, ROLE_K_NORM, s->l->b, run->kv_dim);
    worker_barrier(w);
    ops->rope(w, s->l->a, s->n, run->q_dim, (int)hp->n_head, (int)hp->head_dim, (int)hp->n_rot, run->cos_sin,
              run->model->rope_neox);
    ops->rope(w, s->l->b, s->n, run->kv_dim, (int)hp->n_head_kv, (int)hp->head_dim, (int)hp->n_rot, run->cos_sin,
              run->model->rope_neox);
    worker_barrier(w);
    ops->kv_store(w, &kv, s->l->b, run->kv_dim, s->l->c, run->kv_dim, 0, s->n);
    worker_barrier(w);
    ops->attention(w, &run->attn, s->l->a, run->q_dim, &kv, s->in, s->l->scratch);
    worker_barrier(w);
}

static void pass_qkv(const llmq_worker *w, const span *s) {
    if (!s->p->gram) return;
    for (part p = no_part; next_part(w, s, &p);) norm_part(s, &p, ROLE_ATTN_NORM, s->in);
    worker_barrier(w);
}

static void pass_o(const llmq_worker *w, const span *s) {
    int64_t cols = s->run->q_dim;
    norm_for(w, s, ROLE_ATTN_NORM, (llmq_role[]){ROLE_Q, ROLE_K, ROLE_V, ROLE_COUNT});
    double since = time_seconds();
    multiply(w, s, ROLE_Q, s->l->a);
    multiply(w, s, ROLE_K, s->l->b);
    multiply(w, s, ROLE_V, s->l->c);
    worker_barrier(w);
    spend(w, s, CALIB_WEIGHTS, since);
    since = time_seconds();
    attend(w, s);
    spend(w, s, CALIB_ATTENTION, since);
    for (part p = no_part; next_part(w, s, &p);) {
        drop_bad_rows(s, &p, s->in, cols);
        store_mid(s, &p, cols);
    }
}

static void pass_gate_up(const llmq_worker *w, const span *s) {
    close_block(w, s, ROLE_O, s->run->q_dim, s->p->gram ? ROLE_FFN_NORM : ROLE_COUNT);
}

static void pass_down(const llmq_worker *w, const span *s) {
    int64_t n_ff = s->run->model->hp.n_ff;
    const llmq_worker alone = {0, 1, w->team};
    norm_for(w, s, ROLE_FFN_NORM, (llmq_role[]){ROLE_GATE, ROLE_UP, ROLE_COUNT});
    double since = time_seconds();
    multiply(w, s, ROLE_GATE, s->l->a);
    multiply(w, s, ROLE_UP, s->l->b);
    worker_barrier(w);
    spend(w, s, CALIB_WEIGHTS, since);
    for (part p = no_part; next_part(w, s, &p);) {
        int64_t at = p.begin * n_ff;
        s->run->model->ops->silu_mul(&alone, s->l->a + at, s->l->b + at, s->in + at, p.end * n_ff - at);
        drop_bad_rows(s, &p, s->in, n_ff);
        store_mid(s, &p, n_ff);
    }
}

static void pass_window(const llmq_worker *w, pass *p, lane *l, int64_t window) {
    int64_t ctx = p->run->calib->ctx, cols = calib_site_cols(&p->run->model->hp, p->site);
    span s = {p, p->run, l, p->begin + window * ctx, ctx, p->run->in + window * ctx * cols};
    switch (p->site) {
    case SITE_QKV: pass_qkv(w, &s); break;
    case SITE_O: pass_o(w, &s); break;
    case SITE_GATE_UP: pass_gate_up(w, &s); break;
    case SITE_DOWN: pass_down(w, &s); break;
    default: close_block(w, &s, ROLE_DOWN, p->run->model->hp.n_ff, ROLE_COUNT);
    }
}

/* ---- the steps of a chunk ---- */

/* The chunk's inputs go to the device, which sums their products while the next chunk is on its way. */
static void add_on_device(const llmq_worker *w, pass *p, int64_t cols) {
    const llmq_calib_run *run = p->run;
    int64_t begin, end;
    worker_range(w, cols, 1, &begin, &end);
    for (int64_t t = 0; t < p->n && run->mean_weight > 0; t++)
        for (int64_t c = begin; c < end; c++) run->sums[c] += (double)run->in[t * cols + c];
    if (w->id == 0) p->status = run->device->ops->gram_add(run->device, run->in, p->n, p->err);
}

/* Windows do not know of each other, so each is one worker's own from end to end, without barriers; where there are
 * fewer of them than workers all share each. A window is multiplied by itself either way: the same bytes. */
static void pass_worker(const llmq_worker *w, void *arg) {
    pass *p = arg;
    const llmq_calib_run *run = p->run;
    int64_t n_windows = p->n / run->calib->ctx, cols = calib_site_cols(&run->model->hp, p->site);
    if (run->n_lanes > 1) {
        const llmq_worker alone = {0, 1, w->team};
        if (w->id == 0) worker_counter_reset(w);
        worker_barrier(w);
        for (int64_t i; (i = worker_counter_next(w)) < n_windows;) pass_window(&alone, p, &run->lanes[w->id], i);
    } else {
        for (int64_t i = 0; i < n_windows; i++) pass_window(w, p, run->lanes, i);
    }
    if (!p->gram) return;
    worker_barrier(w);
    double since = time_seconds();
    if (run->device)
        add_on_device(w, p, cols);
    else
        run->model->ops->gram_add(w, run->in, p->n, cols, run->allow_q8, run->mean_weight > 0 ? run->sums : NULL,
                                  p->gram, run->gram_scratch);
    if (w->id == 0) p->gram_seconds += time_seconds() - since;
}

/* ---- passes ---- */

llmq_calib_work calib_site_work(const llmq_hparams *hp, int64_t ctx, llmq_site_id site, bool gram) {
    double n_embd = (double)hp->n_embd, n_ff = (double)hp->n_ff, q = (double)(hp->n_head * hp->head_dim),
           kv = (double)(hp->n_head_kv * hp->head_dim), cols = (double)calib_site_cols(hp, site);
    double seen = (double)(hp->window > 0 && hp->window < ctx / 2 ? hp->window : ctx / 2); /* on the average, about */
    llmq_calib_work work = {{0}};
    switch (site) {
    case SITE_QKV: work.of[CALIB_FLOATS] = gram ? n_embd : 0; break;
    case SITE_O:
        work.of[CALIB_WEIGHTS] = n_embd * (q + 2 * kv);
        work.of[CALIB_ATTENTION] = 2 * q * seen;
        work.of[CALIB_FLOATS] = n_embd + q;
        break;
    case SITE_GATE_UP:
        work.of[CALIB_WEIGHTS] = n_embd * q;
        work.of[CALIB_FLOATS] = q + (gram ? n_embd : 0);
        break;
    case SITE_DOWN:
        work.of[CALIB_WEIGHTS] = 2 * n_embd * n_ff;
        work.of[CALIB_FLOATS] = n_embd + n_ff;
        break;
    default: work.of[CALIB_WEIGHTS] = n_embd * n_ff; work.of[CALIB_FLOATS] = n_ff;
    }
    if (gram) work.of[CALIB_GRAM] = cols * cols / 2;
    return work;
}

/* A chunk took so many seconds: the lanes' share of its kinds, what is left is all the rest. */
static void add_spent(llmq_calib_run *run, const pass *p, double seconds) {
    for (int i = 0; i < run->n_lanes; i++) {
        for (int k = 0; k < CALIB_KINDS; k++) {
            run->spent.of[k] += run->lanes[i].spent.of[k] / run->n_lanes;
            seconds -= run->lanes[i].spent.of[k] / run->n_lanes;
        }
        run->lanes[i].spent = (llmq_calib_work){{0}};
    }
    run->spent.of[CALIB_GRAM] += p->gram_seconds;
    run->spent.of[CALIB_FLOATS] += seconds > p->gram_seconds ? seconds - p->gram_seconds : 0;
}

void calib_run_inputs(llmq_calib_run *run, llmq_site_id site, int64_t begin, int64_t n, float *to) {
    const llmq_backend_ops *ops = run->model->ops;
    const llmq_worker alone = {0, 1, run->team};
    int64_t cols = calib_site_cols(&run->model->hp, site);
    if (site == SITE_O || site == SITE_DOWN) {
        ops->from_bf16(run->mid + begin * cols, to, n * cols);
        return;
    }
    ops->rms_norm(&alone, run->x + begin * cols, run->vec[site == SITE_QKV ? ROLE_ATTN_NORM : ROLE_FFN_NORM],
                  run->model->hp.eps, to, n, cols, cols);
    ops->drop_rows(to, n, cols, run->bad + begin);
}

void calib_run_device(llmq_calib_run *run, llmq_device_solver *device) {
    run->device = device;
}

void calib_run_statistics(llmq_calib_run *run, double mean, bool allow_q8) {
    run->mean_weight = mean;
    run->allow_q8 = allow_q8;
}

/* gram += weight * n * mean mean', of n tokens. */
static void weigh_mean(const llmq_calib_run *run, int64_t cols, int64_t n_tokens, float *gram) {
    double weight = run->mean_weight / (double)n_tokens;
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j <= i; j++) gram[i * cols + j] += (float)(weight * run->sums[i] * run->sums[j]);
}

llmq_status calib_run_site(llmq_calib_run *run, llmq_site_id site, float *gram, int64_t *n_tokens_out, llmq_err *err) {
    int64_t cols = calib_site_cols(&run->model->hp, site);
    pass p = {.run = run, .site = site, .gram = gram, .err = err};
    if (site == SITE_GATE_UP) run->settled = false; /* close_block adds to x from here on */
    if (gram) memset(gram, 0, (size_t)(cols * cols) * sizeof *gram);
    if (gram) memset(run->sums, 0, (size_t)cols * sizeof *run->sums);
    if (gram && run->device) LLMQ_TRY(run->device->ops->gram_begin(run->device, cols, err));
    for (p.begin = 0; p.begin < run->n_active; p.begin += run->chunk) {
        p.n = run->n_active - p.begin < run->chunk ? run->n_active - p.begin : run->chunk;
        double start = time_seconds();
        p.gram_seconds = 0;
        team_run(run->team, pass_worker, &p);
        add_spent(run, &p, time_seconds() - start);
        if (p.status != LLMQ_OK) return p.status;
        llmq_calib_work done = calib_site_work(&run->model->hp, run->calib->ctx, site, gram != NULL);
        for (int k = 0; k < CALIB_KINDS; k++) done.of[k] *= (double)p.n;
        if (!run->tick(run->user, &done)) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    }
    if (gram && run->device) {
        double start = time_seconds();
        LLMQ_TRY(run->device->ops->gram_end(run->device, gram, err));
        run->spent.of[CALIB_GRAM] += time_seconds() - start;
    }
    if (site == SITE_COUNT) run->settled = true;
    *n_tokens_out = run->n_active - atomic_load(&p.dropped);
    if (gram && run->mean_weight > 0 && *n_tokens_out > 0) weigh_mean(run, cols, *n_tokens_out, gram);
    return LLMQ_OK;
}

/* ---- layers ---- */

llmq_status calib_run_layer(llmq_calib_run *run, int layer, llmq_err *err) {
    const llmq_tensor *const *tensors = run->model->layer_tensors[layer].by_role;
    static const llmq_role roles[] = {ROLE_ATTN_NORM, ROLE_FFN_NORM, ROLE_Q_NORM, ROLE_K_NORM,
                                      ROLE_Q_BIAS,    ROLE_K_BIAS,   ROLE_V_BIAS, ROLE_O_BIAS};
    memset(run->w, 0, sizeof run->w);
    memset(run->vec, 0, sizeof run->vec);
    memset(run->instead, 0, sizeof run->instead);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        const llmq_tensor *t = tensors[roles[i]];
        if (t) LLMQ_TRY(model_load_vector(run->model, t, tensor_numel(t), &run->vec[roles[i]], err));
    }
    return LLMQ_OK;
}

void calib_run_weight(llmq_calib_run *run, llmq_role role, llmq_weight *w) {
    run->w[role] = w;
    if (role >= ROLE_Q && role <= ROLE_O) w->bias = run->vec[ROLE_Q_BIAS + (role - ROLE_Q)];
}

void calib_run_vector(llmq_calib_run *run, llmq_role role, const float *values) {
    run->vec[role] = values;
}

void calib_run_copy_window(llmq_calib_run *to, int64_t to_window, const llmq_calib_run *from, int64_t from_window) {
    int64_t n = to->calib->ctx * to->model->hp.n_embd;
    memcpy(to->x + to_window * n, from->x + from_window * n, (size_t)n * sizeof *to->x);
}

void calib_run_limit(llmq_calib_run *run, int64_t n_windows) {
    run->n_active = n_windows * run->calib->ctx;
}

int64_t calib_run_fork(llmq_calib_run *run, llmq_site_id site, llmq_role role, llmq_weight *w) {
    int64_t ctx = run->calib->ctx, window = run->n_active / ctx, n_embd = run->model->hp.n_embd;
    int64_t cols = calib_site_cols(&run->model->hp, site);
    run->n_active += ctx;
    memcpy(run->x + window * ctx * n_embd, run->x, (size_t)(ctx * n_embd) * sizeof *run->x);
    if (site == SITE_O || site == SITE_DOWN) /* inputs that passes keep */
        memcpy(run->mid + window * ctx * cols, run->mid, (size_t)(ctx * cols) * sizeof *run->mid);
    run->instead[role].window = window;
    run->instead[role].w = w;
    w->bias = run->w[role]->bias;
    return window;
}

float *calib_run_hidden(llmq_calib_run *run) {
    return run->x;
}

void calib_run_state(llmq_calib_run *run, void **hidden, size_t *hidden_bytes, void **bad, size_t *bad_bytes) {
    *hidden = run->x;
    *hidden_bytes = (size_t)run->n_tok * (size_t)run->model->hp.n_embd * sizeof *run->x;
    *bad = run->bad;
    *bad_bytes = (size_t)run->n_tok;
}

size_t calib_run_state_bytes(const llmq_hparams *hp, size_t n_tokens) {
    return n_tokens * ((size_t)hp->n_embd * sizeof(float) + 1);
}

bool calib_run_settled(const llmq_calib_run *run) {
    return run->settled;
}

llmq_calib_work calib_run_spent(const llmq_calib_run *run) {
    return run->spent;
}

int64_t calib_run_dropped(const llmq_calib_run *run) {
    int64_t n = 0;
    for (int64_t t = 0; t < run->n_tok; t++) n += run->bad[t];
    return n;
}

/* ---- life ---- */

static void embed_worker(const llmq_worker *w, void *arg) {
    llmq_calib_run *run = arg;
    run->model->ops->embed(w, run->model->by_role[ROLE_TOKEN_EMBD], run->calib->tokens, run->n_tok, run->x);
}

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

typedef struct block {
    void **p;
    size_t n, size;
} block;
enum { BLOCK_X, BLOCK_MID, BLOCK_BAD, N_SHARED = 7, N_OF_LANE = 11 };

/* For the widest site: narrower ones take no more. */
static size_t gram_scratch_bytes(const llmq_calib_run *run) {
    return run->model->ops->gram_scratch_bytes(run->chunk, run->wide);
}

static void list_shared(llmq_calib_run *run, block blocks[N_SHARED]) {
    const llmq_hparams *hp = &run->model->hp;
    size_t wide = (size_t)run->wide;
    const block list[N_SHARED] = {
        [BLOCK_X] = {(void **)&run->x, (size_t)run->n_tok * (size_t)hp->n_embd, sizeof(float)},
        [BLOCK_MID] = {(void **)&run->mid, (size_t)run->n_tok * (size_t)max64(run->q_dim, hp->n_ff), sizeof(uint16_t)},
        [BLOCK_BAD] = {(void **)&run->bad, (size_t)run->n_tok, 1},
        {(void **)&run->in, (size_t)run->chunk * wide, sizeof(float)},
        {&run->gram_scratch, gram_scratch_bytes(run), 1},
        {(void **)&run->sums, wide, sizeof(double)},
        {(void **)&run->cos_sin, (size_t)run->calib->ctx * (size_t)hp->n_rot, sizeof(float)}};
    memcpy(blocks, list, sizeof list);
}

static void list_lane(const llmq_calib_run *run, lane *l, block blocks[N_OF_LANE]) {
    const llmq_hparams *hp = &run->model->hp;
    const llmq_backend_ops *ops = run->model->ops;
    int64_t ctx = run->calib->ctx;
    size_t kv_bytes = ops->kv_bytes(0, ctx, (int)hp->n_head_kv, (int)hp->head_dim);
    const block list[N_OF_LANE] = {{(void **)&l->x, (size_t)(ctx * run->wide), sizeof(float)},
                                   {&l->q8, ops->acts_bytes(ACT_Q8, ctx, run->wide), 1},
                                   {&l->bf16, ops->acts_bytes(ACT_BF16, ctx, run->wide), 1},
                                   {&l->q16, model_q16_bytes(run->model, ctx, run->wide), 1},
                                   {&l->int8, ops->acts_bytes(ACT_INT8, ctx, run->wide), 1},
                                   {(void **)&l->a, (size_t)(ctx * run->wide), sizeof(float)},
                                   {(void **)&l->b, (size_t)(ctx * max64(run->kv_dim, hp->n_ff)), sizeof(float)},
                                   {(void **)&l->c, (size_t)(ctx * run->kv_dim), sizeof(float)},
                                   {&l->kv.k, kv_bytes, 1},
                                   {&l->kv.v, kv_bytes, 1},
                                   {&l->scratch, ops->attn_scratch_bytes(&run->attn, run->n_workers), 1}};
    memcpy(blocks, list, sizeof list);
}

static llmq_status alloc_blocks(const block *blocks, size_t n, llmq_err *err) {
    for (size_t i = 0; i < n; i++) {
        *blocks[i].p = mem_zalloc_huge(blocks[i].n, blocks[i].size);
        if (!*blocks[i].p)
            return llmq_fail(
                err, LLMQ_E_MEMORY,
                "out of memory: %.0f MB for the calibration's activations; calibrate on fewer --tokens, or "
                "set --max-ram",
                (double)blocks[i].n * (double)blocks[i].size / 1e6);
    }
    return LLMQ_OK;
}

static void borrow(llmq_calib_run *run, const llmq_calib_run *lender) {
    LLMQ_ASSERT(lender->chunk >= run->chunk && lender->calib->ctx >= run->calib->ctx);
    run->in = lender->in;
    run->gram_scratch = lender->gram_scratch;
    run->sums = lender->sums;
    run->cos_sin = lender->cos_sin;
    run->lanes = lender->lanes;
    run->n_lanes = lender->n_lanes;
    run->n_workers = lender->n_workers;
}

static llmq_status alloc_buffers(llmq_calib_run *run, const llmq_calib_memory *memory, llmq_err *err) {
    block shared[N_SHARED], of_lane[N_OF_LANE];
    const llmq_hparams *hp = &run->model->hp;
    list_shared(run, shared);
    run->mapped = memory->hidden != NULL;
    run->borrowed = memory->lender != NULL;
    if (run->mapped) {
        run->x = memory->hidden;
        run->mid = memory->mid;
    }
    size_t first = run->mapped ? BLOCK_BAD : 0, end = run->borrowed ? BLOCK_BAD + 1 : N_SHARED;
    LLMQ_TRY(alloc_blocks(shared + first, end - first, err));
    if (run->borrowed) {
        borrow(run, memory->lender);
        return LLMQ_OK;
    }
    run->lanes = mem_zalloc((size_t)run->n_lanes, sizeof *run->lanes);
    if (!run->lanes) return mem_error(err, (size_t)run->n_lanes * sizeof *run->lanes, "the calibration's activations");
    for (int i = 0; i < run->n_lanes; i++) {
        lane *l = &run->lanes[i];
        l->kv = (llmq_kv){.n_ctx = run->calib->ctx, .n_head_kv = (int)hp->n_head_kv, .head_dim = (int)hp->head_dim};
        list_lane(run, l, of_lane);
        LLMQ_TRY(alloc_blocks(of_lane, N_OF_LANE, err));
    }
    return LLMQ_OK;
}

/* Sizes only. */
static void size_run(llmq_calib_run *run, llmq_model *model, const llmq_calib *calib, int64_t chunk, int n_workers) {
    const llmq_hparams *hp = &model->hp;
    *run = (llmq_calib_run){.model = model, .calib = calib, .allow_q8 = true};
    run->n_tok = calib->n_windows * calib->ctx;
    run->chunk = chunk ? chunk : calib_run_chunk(calib, 0);
    run->n_active = run->n_tok;
    run->n_lanes = run->chunk / calib->ctx >= n_workers ? n_workers : 1;
    run->n_workers = run->n_lanes > 1 ? 1 : n_workers;
    run->q_dim = hp->n_head * hp->head_dim;
    run->kv_dim = hp->n_head_kv * hp->head_dim;
    run->wide = max64(hp->n_embd, max64(run->q_dim, hp->n_ff));
    run->attn = (llmq_attn){.n_head = (int)hp->n_head,
                            .n_head_kv = (int)hp->n_head_kv,
                            .head_dim = (int)hp->head_dim,
                            .scale = 1.0f / sqrtf((float)hp->head_dim),
                            .window = hp->window,
                            .n_tok = calib->ctx,
                            .allow_bf16 = true};
}

int64_t calib_run_chunk(const llmq_calib *calib, int halvings) {
    int64_t n_tok = calib->n_windows * calib->ctx, chunk = max64(1, CHUNK_TOKENS / calib->ctx) * calib->ctx;
    for (; halvings > 0; halvings--) {
        chunk /= 2;
        if (chunk % calib->ctx || chunk % GRAM_TOKENS) return 0;
    }
    return chunk < n_tok ? chunk : n_tok;
}

llmq_calib_need calib_run_need(llmq_model *model, const llmq_calib *calib, int64_t chunk, int n_workers) {
    llmq_calib_run run;
    lane l;
    block shared[N_SHARED], of_lane[N_OF_LANE];
    size_run(&run, model, calib, chunk, n_workers);
    list_shared(&run, shared);
    list_lane(&run, &l, of_lane);
    llmq_calib_need need = {.hidden = shared[BLOCK_X].n * shared[BLOCK_X].size,
                            .mid = shared[BLOCK_MID].n * shared[BLOCK_MID].size,
                            .bad = shared[BLOCK_BAD].n * shared[BLOCK_BAD].size};
    for (size_t i = BLOCK_BAD + 1; i < N_SHARED; i++) need.chunk += shared[i].n * shared[i].size;
    for (size_t i = 0; i < N_OF_LANE; i++) need.chunk += (size_t)run.n_lanes * of_lane[i].n * of_lane[i].size;
    return need;
}

void calib_run_restart(llmq_calib_run *run) {
    memset(run->bad, 0, (size_t)run->n_tok);
    team_run(run->team, embed_worker, run);
    run->settled = true;
}

llmq_status calib_run_create(llmq_model *model, const llmq_calib *calib, llmq_team *team, calib_tick_fn *tick,
                             void *user, llmq_calib_run **out, llmq_err *err) {
    return calib_run_create_in(&(llmq_calib_memory){0}, model, calib, team, tick, user, out, err);
}

llmq_status calib_run_create_in(const llmq_calib_memory *memory, llmq_model *model, const llmq_calib *calib,
                                llmq_team *team, calib_tick_fn *tick, void *user, llmq_calib_run **out, llmq_err *err) {
    llmq_calib_run *run = mem_zalloc(1, sizeof *run);
    if (!run) return mem_error(err, sizeof *run, "calibration");
    size_run(run, model, calib, memory->chunk, team_size(team));
    run->team = team;
    run->tick = tick;
    run->user = user;
    llmq_status status = alloc_buffers(run, memory, err);
    if (status != LLMQ_OK) {
        calib_run_destroy(run);
        return status;
    }
    rope_table(model, 0, calib->ctx, run->cos_sin);
    calib_run_restart(run);
    *out = run;
    return LLMQ_OK;
}

void calib_run_destroy(llmq_calib_run *run) {
    if (!run) return;
    block shared[N_SHARED], of_lane[N_OF_LANE];
    list_shared(run, shared);
    size_t end = run->borrowed ? BLOCK_BAD + 1 : N_SHARED;
    for (size_t i = run->mapped ? BLOCK_BAD : 0; i < end; i++) mem_free(*shared[i].p);
    for (int k = 0; !run->borrowed && run->lanes && k < run->n_lanes; k++) {
        list_lane(run, &run->lanes[k], of_lane);
        for (size_t i = 0; i < N_OF_LANE; i++) mem_free(*of_lane[i].p);
    }
    if (!run->borrowed) mem_free(run->lanes);
    mem_free(run);
}
