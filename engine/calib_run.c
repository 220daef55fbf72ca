#include "engine/calib_run.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "core/half.h"

#define CHUNK_TOKENS 2048 /* per pass of a weight: enough to hide the traffic of the Gram matrix */
#define GRAM_TOKENS 256   /* Gram kernels sum so many at a time: chunks cut there give the same sums */

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
    llmq_calib_work spent; /* seconds */
    /* of a chunk */
    float *in;        /* (chunk, cols of the site) what matrices read */
    void *q8, *bf16;  /* in in other forms */
    double *sums;     /* [wide] of a site's inputs over all tokens */
    float *a, *b, *c; /* (chunk, .) q k v, or gate up, or a block's output in a */
    float *cos_sin;   /* (ctx, n_rot / 2, 2) */
    llmq_kv kv;       /* one window */
    llmq_attn attn;
    void *scratch;
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

/* ---- the steps of a chunk; each is called by all workers ---- */

typedef struct pass {
    llmq_calib_run *run;
    llmq_site_id site;
    float *gram;
    int64_t begin, n; /* tokens of the chunk */
    double mark;      /* when the kind of work under way began */
    _Atomic int64_t dropped;
} pass;

/* The time since the last call went into work of this kind. One worker keeps the time of all: they meet at barriers. */
static void spend(const llmq_worker *w, pass *p, calib_kind kind) {
    if (w->id != 0) return;
    double now = time_seconds();
    p->run->spent.of[kind] += now - p->mark;
    p->mark = now;
}

static bool row_finite(const float *x, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint32_t)((f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u);
    return bad == 0;
}

/* Rows that are not finite become zero: they add nothing to a Gram matrix, and keys and values stay sound for the rest
 * of their window. */
static void drop_bad_rows(const llmq_worker *w, pass *p, int64_t cols) {
    int64_t begin, end;
    worker_range(w, p->n, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        float *row = p->run->in + t * cols;
        if (row_finite(row, cols)) continue;
        memset(row, 0, (size_t)cols * sizeof *row);
        p->run->bad[p->begin + t] = 1;
        atomic_fetch_add(&p->dropped, 1);
    }
}

/* The chunk's inputs as ops take them. */
static llmq_acts inputs(const pass *p, int64_t cols) {
    return (llmq_acts){.n_tok = p->n, .cols = cols, .x = p->run->in, .q8 = p->run->q8, .bf16 = p->run->bf16};
}

/* Workers divide columns, so that each sum is made in the order of the tokens. */
static void sum_inputs(const llmq_worker *w, pass *p, int64_t cols) {
    int64_t begin, end;
    worker_range(w, cols, 16, &begin, &end);
    for (int64_t t = 0; t < p->n; t++)
        for (int64_t c = begin; c < end; c++) p->run->sums[c] += (double)p->run->in[t * cols + c];
}

/* in, complete and behind a barrier, becomes what the site's matrices read; then the Gram matrix. */
static void finish_inputs(const llmq_worker *w, pass *p) {
    const llmq_backend_ops *ops = p->run->model->ops;
    llmq_acts acts = inputs(p, calib_site_cols(&p->run->model->hp, p->site));
    if (!p->gram) return;
    worker_barrier(w);
    if (p->run->mean_weight > 0) sum_inputs(w, p, acts.cols);
    spend(w, p, CALIB_FLOATS);
    ops->gram_add(w, &acts, true, p->gram);
    worker_barrier(w);
    spend(w, p, CALIB_GRAM);
}

static void norm_inputs(const llmq_worker *w, pass *p, llmq_role gain) {
    llmq_calib_run *run = p->run;
    int64_t n_embd = run->model->hp.n_embd;
    run->model->ops->rms_norm(w, run->x + p->begin * n_embd, run->vec[gain], run->model->hp.eps, run->in, p->n, n_embd,
                              n_embd);
    worker_barrier(w);
    drop_bad_rows(w, p, n_embd);
    worker_barrier(w);
}

/* Makes the forms that the weights of roles want (roles ends with ROLE_COUNT). */
static void fill_for(const llmq_worker *w, pass *p, const llmq_role *roles) {
    const llmq_backend_ops *ops = p->run->model->ops;
    llmq_acts acts = inputs(p, p->run->w[*roles]->cols);
    bool q8 = false, bf16 = false;
    for (; *roles != ROLE_COUNT; roles++) {
        const llmq_weight *other = p->run->instead[*roles].w;
        q8 = q8 || p->run->w[*roles]->act == ACT_Q8 || (other && other->act == ACT_Q8);
        bf16 = bf16 || p->run->w[*roles]->act == ACT_BF16 || (other && other->act == ACT_BF16);
    }
    if (q8) ops->acts_fill(w, &acts, ACT_Q8);
    if (bf16) ops->acts_fill(w, &acts, ACT_BF16);
    worker_barrier(w);
    spend(w, p, CALIB_FLOATS);
}

static void multiply(const llmq_worker *w, pass *p, llmq_role role, float *y) {
    const llmq_calib_run *run = p->run;
    bool instead = run->instead[role].w && run->instead[role].window == p->begin / run->calib->ctx;
    const llmq_weight *weight = instead ? run->instead[role].w : run->w[role];
    llmq_acts acts = inputs(p, weight->cols);
    p->run->model->ops->matmul(w, weight, &acts, y, weight->rows);
}

static void store_mid(const llmq_worker *w, pass *p, int64_t cols) {
    int64_t begin, end;
    worker_range(w, p->n, 1, &begin, &end);
    uint16_t *mid = p->run->mid + p->begin * cols;
    for (int64_t i = begin * cols; i < end * cols; i++) mid[i] = f32_to_bf16(p->run->in[i]);
}

static void load_mid(const llmq_worker *w, pass *p, int64_t cols) {
    int64_t begin, end;
    worker_range(w, p->n, 1, &begin, &end);
    const uint16_t *mid = p->run->mid + p->begin * cols;
    for (int64_t i = begin * cols; i < end * cols; i++) p->run->in[i] = bf16_to_f32(mid[i]);
    worker_barrier(w);
}

/* x += W in, of a block's last matrix. */
static void close_block(const llmq_worker *w, pass *p, llmq_role role, int64_t cols) {
    llmq_calib_run *run = p->run;
    int64_t n_embd = run->model->hp.n_embd;
    load_mid(w, p, cols);
    fill_for(w, p, (llmq_role[]){role, ROLE_COUNT});
    multiply(w, p, role, run->a);
    worker_barrier(w);
    spend(w, p, CALIB_WEIGHTS);
    run->model->ops->add(w, run->x + p->begin * n_embd, run->a, p->n * n_embd);
    worker_barrier(w);
}

static void head_norm(const llmq_worker *w, pass *p, llmq_role gain, float *y, int64_t dim) {
    const llmq_hparams *hp = &p->run->model->hp;
    if (p->run->vec[gain])
        p->run->model->ops->rms_norm(w, y, p->run->vec[gain], hp->eps, y, p->n * dim / hp->head_dim, hp->head_dim,
                                     hp->head_dim);
}

/* q, k, v of the chunk to attention's outputs, window by window. */
static void attend(const llmq_worker *w, pass *p) {
    llmq_calib_run *run = p->run;
    const llmq_backend_ops *ops = run->model->ops;
    const llmq_hparams *hp = &run->model->hp;
    int64_t ctx = run->calib->ctx;
    head_norm(w, p, ROLE_Q_NORM, run->a, run->q_dim);
    head_norm(w, p, ROLE_K_NORM, run->b, run->kv_dim);
    worker_barrier(w);
    for (int64_t t = 0; t < p->n; t += ctx) {
        float *q = run->a + t * run->q_dim, *k = run->b + t * run->kv_dim, *v = run->c + t * run->kv_dim;
        ops->rope(w, q, ctx, run->q_dim, (int)hp->n_head, (int)hp->head_dim, (int)hp->n_rot, run->cos_sin,
                  run->model->rope_neox);
        ops->rope(w, k, ctx, run->kv_dim, (int)hp->n_head_kv, (int)hp->head_dim, (int)hp->n_rot, run->cos_sin,
                  run->model->rope_neox);
        worker_barrier(w);
        ops->kv_store(w, &run->kv, k, run->kv_dim, v, run->kv_dim, 0, ctx);
        worker_barrier(w);
        ops->attention(w, &run->attn, q, run->q_dim, &run->kv, run->in + t * run->q_dim, run->scratch);
        worker_barrier(w);
    }
}

static void pass_qkv(const llmq_worker *w, pass *p) {
    if (!p->gram) return;
    norm_inputs(w, p, ROLE_ATTN_NORM);
    finish_inputs(w, p);
}

static void pass_o(const llmq_worker *w, pass *p) {
    llmq_calib_run *run = p->run;
    norm_inputs(w, p, ROLE_ATTN_NORM);
    fill_for(w, p, (llmq_role[]){ROLE_Q, ROLE_K, ROLE_V, ROLE_COUNT});
    multiply(w, p, ROLE_Q, run->a);
    multiply(w, p, ROLE_K, run->b);
    multiply(w, p, ROLE_V, run->c);
    worker_barrier(w);
    spend(w, p, CALIB_WEIGHTS);
    attend(w, p);
    spend(w, p, CALIB_ATTENTION);
    drop_bad_rows(w, p, run->q_dim);
    worker_barrier(w);
    store_mid(w, p, run->q_dim);
    finish_inputs(w, p);
}

static void pass_gate_up(const llmq_worker *w, pass *p) {
    close_block(w, p, ROLE_O, p->run->q_dim);
    if (!p->gram) return;
    norm_inputs(w, p, ROLE_FFN_NORM);
    finish_inputs(w, p);
}

static void pass_down(const llmq_worker *w, pass *p) {
    llmq_calib_run *run = p->run;
    int64_t n_ff = run->model->hp.n_ff;
    norm_inputs(w, p, ROLE_FFN_NORM);
    fill_for(w, p, (llmq_role[]){ROLE_GATE, ROLE_UP, ROLE_COUNT});
    multiply(w, p, ROLE_GATE, run->a);
    multiply(w, p, ROLE_UP, run->b);
    worker_barrier(w);
    spend(w, p, CALIB_WEIGHTS);
    run->model->ops->silu_mul(w, run->a, run->b, run->in, p->n * n_ff);
    worker_barrier(w);
    drop_bad_rows(w, p, n_ff);
    worker_barrier(w);
    store_mid(w, p, n_ff);
    finish_inputs(w, p);
}

static void pass_worker(const llmq_worker *w, void *arg) {
    pass *p = arg;
    switch (p->site) {
    case SITE_QKV: pass_qkv(w, p); break;
    case SITE_O: pass_o(w, p); break;
    case SITE_GATE_UP: pass_gate_up(w, p); break;
    case SITE_DOWN: pass_down(w, p); break;
    default: close_block(w, p, ROLE_DOWN, p->run->model->hp.n_ff);
    }
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

void calib_run_mean_weight(llmq_calib_run *run, double weight) {
    run->mean_weight = weight;
}

/* gram += weight * n * mean mean', of n tokens. */
static void weigh_mean(const llmq_calib_run *run, int64_t cols, int64_t n_tokens, float *gram) {
    double weight = run->mean_weight / (double)n_tokens;
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j <= i; j++) gram[i * cols + j] += (float)(weight * run->sums[i] * run->sums[j]);
}

llmq_status calib_run_site(llmq_calib_run *run, llmq_site_id site, float *gram, int64_t *n_tokens_out, llmq_err *err) {
    int64_t cols = calib_site_cols(&run->model->hp, site);
    pass p = {.run = run, .site = site, .gram = gram};
    if (site == SITE_GATE_UP) run->settled = false; /* close_block adds to x from here on */
    if (gram) memset(gram, 0, (size_t)(cols * cols) * sizeof *gram);
    if (gram) memset(run->sums, 0, (size_t)cols * sizeof *run->sums);
    for (p.begin = 0; p.begin < run->n_active; p.begin += run->chunk) {
        p.n = run->n_active - p.begin < run->chunk ? run->n_active - p.begin : run->chunk;
        p.mark = time_seconds();
        team_run(run->team, pass_worker, &p);
        run->spent.of[CALIB_FLOATS] += time_seconds() - p.mark;
        llmq_calib_work done = calib_site_work(&run->model->hp, run->calib->ctx, site, gram != NULL);
        for (int k = 0; k < CALIB_KINDS; k++) done.of[k] *= (double)p.n;
        if (!run->tick(run->user, &done)) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
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
    run->chunk = run->calib->ctx;
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
enum { BLOCK_X, BLOCK_MID, BLOCK_BAD, N_BLOCKS = 14 };

static void list_blocks(llmq_calib_run *run, int n_workers, block blocks[N_BLOCKS]) {
    const llmq_hparams *hp = &run->model->hp;
    const llmq_backend_ops *ops = run->model->ops;
    int64_t ctx = run->calib->ctx, chunk = run->chunk;
    size_t kv_bytes = ops->kv_bytes(0, ctx, (int)hp->n_head_kv, (int)hp->head_dim);
    const block list[N_BLOCKS] = {
        [BLOCK_X] = {(void **)&run->x, (size_t)run->n_tok * (size_t)hp->n_embd, sizeof(float)},
        [BLOCK_MID] = {(void **)&run->mid, (size_t)run->n_tok * (size_t)max64(run->q_dim, hp->n_ff), sizeof(uint16_t)},
        [BLOCK_BAD] = {(void **)&run->bad, (size_t)run->n_tok, 1},
        {(void **)&run->in, (size_t)chunk * (size_t)run->wide, sizeof(float)},
        {&run->bf16, ops->acts_bytes(ACT_BF16, chunk, run->wide), 1},
        {&run->q8, ops->acts_bytes(ACT_Q8, chunk, run->wide), 1},
        {(void **)&run->sums, (size_t)run->wide, sizeof(double)},
        {(void **)&run->a, (size_t)chunk * (size_t)run->wide, sizeof(float)},
        {(void **)&run->b, (size_t)chunk * (size_t)max64(run->kv_dim, hp->n_ff), sizeof(float)},
        {(void **)&run->c, (size_t)chunk * (size_t)run->kv_dim, sizeof(float)},
        {(void **)&run->cos_sin, (size_t)ctx * (size_t)hp->n_rot, sizeof(float)},
        {&run->kv.k, kv_bytes, 1},
        {&run->kv.v, kv_bytes, 1},
        {&run->scratch, ops->attn_scratch_bytes(&run->attn, n_workers), 1}};
    memcpy(blocks, list, sizeof list);
}

static bool is_own(const llmq_calib_run *run, int i) {
    return i <= BLOCK_MID ? !run->mapped : i == BLOCK_BAD || !run->borrowed;
}

static llmq_status alloc_buffers(llmq_calib_run *run, const llmq_calib_memory *memory, llmq_err *err) {
    block blocks[N_BLOCKS], lent[N_BLOCKS];
    list_blocks(run, team_size(run->team), blocks);
    run->mapped = memory->hidden != NULL;
    run->borrowed = memory->lender != NULL;
    if (run->mapped) {
        run->x = memory->hidden;
        run->mid = memory->mid;
    }
    if (run->borrowed) {
        LLMQ_ASSERT(memory->lender->chunk >= run->chunk && memory->lender->calib->ctx >= run->calib->ctx);
        list_blocks(memory->lender, team_size(run->team), lent);
        for (int i = BLOCK_BAD + 1; i < N_BLOCKS; i++) *blocks[i].p = *lent[i].p;
    }
    for (int i = 0; i < N_BLOCKS; i++) {
        if (!is_own(run, i)) continue;
        *blocks[i].p = mem_zalloc(blocks[i].n, blocks[i].size);
        if (!*blocks[i].p)
            return llmq_fail(
                err, LLMQ_E_MEMORY,
                "out of memory: %.0f MB for the calibration's activations; calibrate on fewer --tokens, or "
                "set --max-ram",
                (double)blocks[i].n * (double)blocks[i].size / 1e6);
    }
    return LLMQ_OK;
}

/* Sizes only. */
static void size_run(llmq_calib_run *run, llmq_model *model, const llmq_calib *calib, int64_t chunk) {
    const llmq_hparams *hp = &model->hp;
    *run = (llmq_calib_run){.model = model, .calib = calib};
    run->n_tok = calib->n_windows * calib->ctx;
    run->chunk = chunk ? chunk : calib_run_chunk(calib, 0);
    run->n_active = run->n_tok;
    run->q_dim = hp->n_head * hp->head_dim;
    run->kv_dim = hp->n_head_kv * hp->head_dim;
    run->wide = max64(hp->n_embd, max64(run->q_dim, hp->n_ff));
    run->kv = (llmq_kv){.n_ctx = calib->ctx, .n_head_kv = (int)hp->n_head_kv, .head_dim = (int)hp->head_dim};
    run->attn = (llmq_attn){.n_head = (int)hp->n_head,
                            .n_head_kv = (int)hp->n_head_kv,
                            .head_dim = (int)hp->head_dim,
                            .scale = 1.0f / sqrtf((float)hp->head_dim),
                            .window = hp->window,
                            .n_tok = calib->ctx};
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
    block blocks[N_BLOCKS];
    size_run(&run, model, calib, chunk);
    list_blocks(&run, n_workers, blocks);
    llmq_calib_need need = {.hidden = blocks[BLOCK_X].n * blocks[BLOCK_X].size,
                            .mid = blocks[BLOCK_MID].n * blocks[BLOCK_MID].size,
                            .bad = blocks[BLOCK_BAD].n * blocks[BLOCK_BAD].size};
    for (size_t i = BLOCK_BAD + 1; i < N_BLOCKS; i++) need.chunk += blocks[i].n * blocks[i].size;
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
    size_run(run, model, calib, memory->chunk);
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
    block blocks[N_BLOCKS];
    if (!run) return;
    list_blocks(run, team_size(run->team), blocks);
    for (int i = 0; i < N_BLOCKS; i++)
        if (is_own(run, i)) mem_free(*blocks[i].p);
    mem_free(run);
}
