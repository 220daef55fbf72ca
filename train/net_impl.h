/* The decoder forward and backward in terms of math_x, for numbers of type REAL; the includer defines these, NET(x) for
 * the names of net.h, and its types as this_x. Functions with a worker are called by the whole team; math_linears,
 * math_linears_back, math_head_back and math_outer meet at barriers of their own, before and behind. */

typedef struct ready_layer { /* one layer, or the model */
    math_matrix m[ROLE_COUNT];
    const REAL *v[ROLE_COUNT];
} ready_layer;

/* What the way back needs of a layer besides its input. */
typedef struct layer_acts {
    REAL *a, *x2, *b;                      /* (n, n_embd): normalized input, middle, its norm */
    REAL *q, *q0, *k, *k0, *vv, *attn_out; /* (n, q_dim | kv_dim); q0, k0: before their norms */
    REAL *gate, *up, *act;                 /* (n, n_ff) */
} layer_acts;

struct NET(net) {
    net_shape s;
    net_wants wants;
    llmq_arena *arena;
    size_t bytes;
    math_ctx math;
    llmq_team *team;
    int64_t n; /* tokens of a batch */
    llmq_causal attn;
    float *rope, *rope_back;                /* (n_tok, n_rot/2, 2); the rotation back */
    ready_layer layer, model, teacher_head; /* of the source, made ready now */
    REAL *inputs;                           /* (n_layer, n, n_embd) */
    REAL *x, *want;                         /* (n, n_embd) residual stream; the teacher's normalized hidden states */
    layer_acts of;                          /* of the layer at work: one of kept, or of no layer */
    layer_acts *kept;                       /* [n_layer + 1], the last of no layer; NULL: layers are run again */
    REAL *t, *dx;                           /* (n, n_embd): a result, a gradient */
    REAL *dq, *dk, *dv, *dattn, *dact;      /* (n, q_dim | kv_dim | n_ff) */
    REAL *logits, *want_logits, *dz;        /* (NET_CHUNK, n_vocab) */
    double *row_loss;                       /* [n] */
    REAL *g[ROLE_COUNT];                    /* gradients of what is wanted, of one layer or the model */
};

/* ---- memory ---- */

static REAL *take(this_net *net, int64_t rows, int64_t cols, bool *ok) {
    size_t bytes = (size_t)rows * (size_t)cols * sizeof(REAL) + MEM_ALIGN;
    REAL *p = net->arena ? arena_alloc(net->arena, bytes, MEM_ALIGN) : NULL; /* without one they are only counted */
    if (!p) *ok = false;
    net->bytes += bytes;
    return p;
}

/* Numbers of a role's gradient. */
static int64_t role_size(const this_net *net, int role) {
    const llmq_hparams *hp = &net->s.hp;
    int64_t q_dim = hp->n_head * hp->head_dim, kv_dim = hp->n_head_kv * hp->head_dim;
    switch (role) {
    case ROLE_TOKEN_EMBD: return 0; /* the residual stream's gradient itself */
    case ROLE_OUTPUT: return net->s.alone ? 0 : hp->n_vocab * hp->n_embd;
    case ROLE_Q:
    case ROLE_O: return q_dim * hp->n_embd;
    case ROLE_K:
    case ROLE_V: return kv_dim * hp->n_embd;
    case ROLE_GATE:
    case ROLE_UP:
    case ROLE_DOWN: return hp->n_ff * hp->n_embd;
    case ROLE_Q_BIAS: return q_dim;
    case ROLE_K_BIAS:
    case ROLE_V_BIAS: return kv_dim;
    case ROLE_Q_NORM:
    case ROLE_K_NORM: return hp->head_dim;
    case ROLE_ATTN_NORM:
    case ROLE_FFN_NORM:
    case ROLE_OUTPUT_NORM:
    case ROLE_O_BIAS: return hp->n_embd;
    default: return 0;
    }
}

static void take_acts(this_net *net, layer_acts *out, bool *ok) {
    const llmq_hparams *hp = &net->s.hp;
    int64_t n = net->n, e = hp->n_embd, q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    struct {
        REAL **to;
        int64_t cols;
    } parts[] = {{&out->a, e},        {&out->x2, e},          {&out->b, e},         {&out->q, q},
                 {&out->q0, q},       {&out->k, kv},          {&out->k0, kv},       {&out->vv, kv},
                 {&out->attn_out, q}, {&out->gate, hp->n_ff}, {&out->up, hp->n_ff}, {&out->act, hp->n_ff}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) *parts[i].to = take(net, n, parts[i].cols, ok);
}

/* Those of each layer too, where they fit into keep_bytes. */
static void take_kept(this_net *net, bool *ok) {
    size_t before = net->bytes, n_layer = (size_t)net->s.hp.n_layer;
    layer_acts unused;
    take_acts(net, &net->of, ok);
    if (net->bytes - before > net->s.keep_bytes / n_layer) return;
    net->kept = net->arena ? arena_alloc(net->arena, (n_layer + 1) * sizeof *net->kept, MEM_ALIGN) : NULL;
    if (!net->kept) *ok = false;
    for (size_t l = 0; l < n_layer; l++) take_acts(net, net->kept ? &net->kept[l] : &unused, ok);
    if (net->kept) net->kept[n_layer] = net->of;
}

/* The activations of a layer, or with n_layer those of none. */
static void use_acts(this_net *net, int64_t layer) {
    if (net->kept) net->of = net->kept[layer];
}

static llmq_status buffers(this_net *net, bool teacher, llmq_err *err) {
    const llmq_hparams *hp = &net->s.hp;
    int64_t n = net->n, e = hp->n_embd, q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    int64_t chunk = n < NET_CHUNK ? n : NET_CHUNK;
    bool ok = true, model = !net->s.alone;
    struct {
        REAL **to;
        int64_t rows, cols;
    } parts[] = {{&net->inputs, model ? hp->n_layer * n : 0, e},
                 {&net->x, n, e},
                 {&net->want, teacher ? n : 0, e},
                 {&net->t, n, e},
                 {&net->dx, n, e},
                 {&net->dq, n, q},
                 {&net->dk, n, kv},
                 {&net->dv, n, kv},
                 {&net->dattn, n, q},
                 {&net->dact, n, hp->n_ff},
                 {&net->logits, model ? chunk : 0, hp->n_vocab},
                 {&net->want_logits, teacher ? chunk : 0, hp->n_vocab},
                 {&net->dz, model ? chunk : 0, hp->n_vocab}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        *parts[i].to = take(net, parts[i].rows, parts[i].cols, &ok);
    take_kept(net, &ok);
    for (int role = 0; role < ROLE_COUNT; role++)
        if (net->wants.of[role] && role_size(net, role)) net->g[role] = take(net, 1, role_size(net, role), &ok);
    if (!net->arena) return LLMQ_OK;
    net->row_loss = arena_alloc(net->arena, (size_t)n * sizeof *net->row_loss, MEM_ALIGN);
    net->rope =
        arena_alloc(net->arena, 2 * (size_t)(net->s.n_tok * hp->n_rot) * sizeof *net->rope + MEM_ALIGN, MEM_ALIGN);
    return ok && net->row_loss && net->rope ? LLMQ_OK : mem_error(err, net->bytes, "gradients");
}

llmq_status NET(net_create)(const net_shape *shape, const net_wants *wants, bool teacher, bool exact,
                            const llmq_backend_ops *ops, llmq_team *team, this_net **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_hparams *hp = &shape->hp;
    this_net *net = mem_zalloc(1, sizeof *net);
    if (!net) return mem_error(err, sizeof *net, "gradients");
    net->s = *shape;
    net->wants = *wants;
    net->team = team;
    net->n = shape->n_windows * shape->n_tok;
    net->attn = (llmq_causal){.n_head = (int)hp->n_head,
                              .n_head_kv = (int)hp->n_head_kv,
                              .head_dim = (int)hp->head_dim,
                              .scale = (float)(1.0 / sqrt((double)hp->head_dim)),
                              .window = hp->window,
                              .n_tok = shape->n_tok,
                              .n_windows = shape->n_windows};
    net->arena = arena_create();
    if (!net->arena) LLMQ_TRY_GOTO(mem_error(err, sizeof *net, "gradients"));
    LLMQ_TRY_GOTO(buffers(net, teacher, err));
    LLMQ_TRY_GOTO(math_begin(&net->math, shape, exact, ops, team, net->arena, err));
    int64_t n_rope = shape->n_tok * hp->n_rot;
    net->rope_back = net->rope + n_rope;
    for (int64_t i = 0; i < n_rope; i++) {
        net->rope[i] = shape->rope[i];
        net->rope_back[i] = i % 2 ? -shape->rope[i] : shape->rope[i];
    }
    *out = net;
done:
    if (status != LLMQ_OK) NET(net_destroy)(net);
    return status;
}

static void let_go(this_net *net, ready_layer *r) {
    for (int role = 0; role < ROLE_COUNT; role++) math_release(&net->math, &r->m[role]);
    memset(r->v, 0, sizeof r->v);
}

void NET(net_destroy)(this_net *net) {
    if (!net) return;
    let_go(net, &net->layer);
    let_go(net, &net->model);
    let_go(net, &net->teacher_head);
    arena_destroy(net->arena);
    mem_free(net);
}

REAL *NET(net_taught)(this_net *net) {
    return net->want;
}

size_t NET(net_need)(const net_shape *shape, const net_wants *wants, bool teacher, const llmq_backend_ops *ops,
                     int n_workers) {
    this_net net = {.s = *shape, .wants = *wants, .n = shape->n_windows * shape->n_tok};
    (void)buffers(&net, teacher, NULL);
    return net.bytes + math_need(shape, ops, n_workers);
}

/* ---- weights ---- */

/* A pass wants one way at a time, a layer alone both. */
static llmq_status get_layer(this_net *net, const this_source *source, int layer, bool back, llmq_err *err) {
    static const struct {
        llmq_role role, bias;
    } mats[] = {{ROLE_Q, ROLE_Q_BIAS},   {ROLE_K, ROLE_K_BIAS}, {ROLE_V, ROLE_V_BIAS},  {ROLE_O, ROLE_O_BIAS},
                {ROLE_GATE, ROLE_COUNT}, {ROLE_UP, ROLE_COUNT}, {ROLE_DOWN, ROLE_COUNT}};
    static const llmq_role vectors[] = {ROLE_ATTN_NORM, ROLE_FFN_NORM, ROLE_Q_NORM, ROLE_K_NORM,
                                        ROLE_Q_BIAS,    ROLE_K_BIAS,   ROLE_V_BIAS, ROLE_O_BIAS};
    const llmq_hparams *hp = &net->s.hp;
    int64_t e = hp->n_embd, q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    this_weights w = {0};
    let_go(net, &net->layer);
    LLMQ_TRY(source->weights(source->user, layer, back, &w, err));
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        net->layer.v[vectors[i]] = math_is_there(&w.of[vectors[i]]) ? math_vector(&w.of[vectors[i]]) : NULL;
    for (size_t i = 0; i < sizeof mats / sizeof *mats; i++) {
        llmq_role role = mats[i].role;
        int64_t rows = role == ROLE_Q                         ? q
                       : role == ROLE_K || role == ROLE_V     ? kv
                       : role == ROLE_GATE || role == ROLE_UP ? hp->n_ff
                                                              : e;
        int64_t cols = role == ROLE_O ? q : role == ROLE_DOWN ? hp->n_ff : e;
        const REAL *bias = mats[i].bias == ROLE_COUNT ? NULL : net->layer.v[mats[i].bias];
        /* On the way back the layer's output is not needed, or nothing that was kept. */
        bool forward = net->s.alone || !back || (!net->kept && role != ROLE_DOWN);
        LLMQ_TRY(math_ready(&net->math, &w, role, rows, cols, bias, forward, back, rows, &net->layer.m[role], err));
    }
    return LLMQ_OK;
}

/* The head and the output norm; the embedding's rows of the tokens into x. */
typedef struct embed_job {
    this_net *net;
    math_view table;
    const int32_t *tokens;
} embed_job;

static void embed_worker(const llmq_worker *w, void *arg) {
    embed_job *j = arg;
    math_embed(w, &j->net->math, &j->table, j->tokens, j->net->n, j->net->s.hp.n_embd, j->net->x);
}

static llmq_status begin(this_net *net, const this_source *source, ready_layer *model, const int32_t *tokens, bool back,
                         llmq_err *err) {
    const llmq_hparams *hp = &net->s.hp;
    this_weights w = {0};
    LLMQ_TRY(source->weights(source->user, -1, back, &w, err));
    math_run(&net->math, embed_worker, &(embed_job){net, w.of[ROLE_TOKEN_EMBD], tokens});
    model->v[ROLE_OUTPUT_NORM] = math_vector(&w.of[ROLE_OUTPUT_NORM]);
    if (source->keep_head && model->m[ROLE_OUTPUT].rows) return LLMQ_OK;
    math_release(&net->math, &model->m[ROLE_OUTPUT]);
    return math_ready(&net->math, &w, ROLE_OUTPUT, hp->n_vocab, hp->n_embd, NULL, true, back, math_slice(hp->n_vocab),
                      &model->m[ROLE_OUTPUT], err);
}

/* ---- one layer ---- */

static void copy(const llmq_worker *w, const REAL *from, REAL *to, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    memcpy(to + begin, from + begin, (size_t)(end - begin) * sizeof *to);
}

/* y = a + b, or y += b where y is a. */
static void sum(const llmq_worker *w, const REAL *a, const REAL *b, REAL *y, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i++) y[i] = a[i] + b[i];
}

static void rotate(const llmq_worker *w, this_net *net, REAL *x, int64_t n_head, const float *table) {
    const llmq_hparams *hp = &net->s.hp;
    for (int64_t i = 0; i < net->s.n_windows; i++)
        math_rope(w, &net->math, x + i * net->s.n_tok * n_head * hp->head_dim, net->s.n_tok, (int)n_head,
                  (int)hp->head_dim, (int)hp->n_rot, table, net->s.neox);
}

/* x (input) to act, the input of the last matrix. */
static void forward_to_act(const llmq_worker *w, this_net *net, const REAL *x) {
    const llmq_hparams *hp = &net->s.hp;
    const ready_layer *r = &net->layer;
    math_ctx *m = &net->math;
    int64_t n = net->n, e = hp->n_embd;
    math_norm(w, m, x, r->v[ROLE_ATTN_NORM], hp->eps, net->of.a, n, e);
    math_linears(w, m, 3, (const math_matrix *[]){&r->m[ROLE_Q], &r->m[ROLE_K], &r->m[ROLE_V]}, net->of.a, n,
                 (REAL *[]){net->of.q, net->of.k, net->of.vv});
    if (r->v[ROLE_Q_NORM]) {
        copy(w, net->of.q, net->of.q0, n * hp->n_head * hp->head_dim);
        copy(w, net->of.k, net->of.k0, n * hp->n_head_kv * hp->head_dim);
        math_sync(w);
        math_norm(w, m, net->of.q0, r->v[ROLE_Q_NORM], hp->eps, net->of.q, n * hp->n_head, hp->head_dim);
        math_norm(w, m, net->of.k0, r->v[ROLE_K_NORM], hp->eps, net->of.k, n * hp->n_head_kv, hp->head_dim);
        math_sync(w);
    }
    rotate(w, net, net->of.q, hp->n_head, net->rope);
    rotate(w, net, net->of.k, hp->n_head_kv, net->rope);
    math_sync(w);
    math_causal(w, m, &net->attn, net->of.q, net->of.k, net->of.vv, net->of.attn_out);
    math_linears(w, m, 1, (const math_matrix *[]){&r->m[ROLE_O]}, net->of.attn_out, n, (REAL *[]){net->t});
    sum(w, x, net->t, net->of.x2, n * e);
    math_sync(w);
    math_norm(w, m, net->of.x2, r->v[ROLE_FFN_NORM], hp->eps, net->of.b, n, e);
    math_linears(w, m, 2, (const math_matrix *[]){&r->m[ROLE_GATE], &r->m[ROLE_UP]}, net->of.b, n,
                 (REAL *[]){net->of.gate, net->of.up});
    math_silu_mul(w, m, net->of.gate, net->of.up, net->of.act, n * hp->n_ff);
    math_sync(w);
}

typedef struct layer_job {
    this_net *net;
    const REAL *x; /* the layer's input */
} layer_job;

/* x to y, the layer's output; y may be x. */
static void forward(const llmq_worker *w, this_net *net, const REAL *x, REAL *y) {
    forward_to_act(w, net, x);
    math_linears(w, &net->math, 1, (const math_matrix *[]){&net->layer.m[ROLE_DOWN]}, net->of.act, net->n,
                 (REAL *[]){net->t});
    sum(w, net->of.x2, net->t, y, net->n * net->s.hp.n_embd);
}

/* net->x becomes the layer's output. */
static void forward_worker(const llmq_worker *w, void *arg) {
    this_net *net = ((layer_job *)arg)->net;
    forward(w, net, net->x, net->x);
}

/* g of a bias: sums of the columns of dy. */
static void bias_back(const llmq_worker *w, this_net *net, llmq_role role, const REAL *dy, int64_t n) {
    REAL *g = net->g[role];
    int64_t begin, end;
    if (!g || !net->layer.v[role]) return;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i++) g[i] = 0;
    for (int64_t t = 0; t < net->n; t++)
        for (int64_t i = begin; i < end; i++) g[i] += dy[t * n + i];
}

static void matrix_back(const llmq_worker *w, this_net *net, llmq_role role, const REAL *dy, const REAL *x) {
    const math_matrix *m = &net->layer.m[role];
    if (net->g[role]) math_outer(w, &net->math, dy, m->rows, x, m->cols, net->n, false, net->g[role]);
}

/* dx: gradient of the norm's input, or what is added to it. */
static void gain_back(const llmq_worker *w, this_net *net, llmq_role role, const REAL *gain, const REAL *x,
                      const REAL *dy, REAL *dx, bool add, int64_t n_rows, int64_t n) {
    REAL *g = net->g[role];
    if (g && w->id == 0) memset(g, 0, (size_t)n * sizeof *g);
    math_sync(w);
    math_norm_back(w, &net->math, x, gain, net->s.hp.eps, dy, dx, add, g, n_rows, n);
    math_sync(w);
}

/* The feed-forward part: dx, the gradient of the layer's output, becomes that of the middle x2. */
static void ffn_back(const llmq_worker *w, this_net *net) {
    const llmq_hparams *hp = &net->s.hp;
    const ready_layer *r = &net->layer;
    math_ctx *m = &net->math;
    int64_t n = net->n;
    math_linears_back(w, m, 1, (const math_matrix *[]){&r->m[ROLE_DOWN]}, (REAL *[]){net->dx}, n, net->dact);
    matrix_back(w, net, ROLE_DOWN, net->dx, net->of.act);
    math_silu_mul_back(w, m, net->of.gate, net->of.up, net->dact, n * hp->n_ff);
    math_sync(w);
    math_linears_back(w, m, 2, (const math_matrix *[]){&r->m[ROLE_GATE], &r->m[ROLE_UP]},
                      (REAL *[]){net->of.gate, net->of.up}, n, net->t);
    matrix_back(w, net, ROLE_GATE, net->of.gate, net->of.b);
    matrix_back(w, net, ROLE_UP, net->of.up, net->of.b);
    gain_back(w, net, ROLE_FFN_NORM, r->v[ROLE_FFN_NORM], net->of.x2, net->t, net->dx, true, n, hp->n_embd);
}

/* dq and dk before rotation and norm; where there is a norm they move to q and k, whose contents are spent. */
static void qk_back(const llmq_worker *w, this_net *net, REAL **dq, REAL **dk) {
    const llmq_hparams *hp = &net->s.hp;
    const ready_layer *r = &net->layer;
    rotate(w, net, net->dq, hp->n_head, net->rope_back);
    rotate(w, net, net->dk, hp->n_head_kv, net->rope_back);
    math_sync(w);
    *dq = net->dq;
    *dk = net->dk;
    if (!r->v[ROLE_Q_NORM]) return;
    gain_back(w, net, ROLE_Q_NORM, r->v[ROLE_Q_NORM], net->of.q0, net->dq, net->of.q, false, net->n * hp->n_head,
              hp->head_dim);
    gain_back(w, net, ROLE_K_NORM, r->v[ROLE_K_NORM], net->of.k0, net->dk, net->of.k, false, net->n * hp->n_head_kv,
              hp->head_dim);
    *dq = net->of.q;
    *dk = net->of.k;
}

/* The attention part: dx of the middle becomes that of the layer's input x. */
static void attention_back(const llmq_worker *w, this_net *net, const REAL *x) {
    const llmq_hparams *hp = &net->s.hp;
    const ready_layer *r = &net->layer;
    math_ctx *m = &net->math;
    int64_t n = net->n, q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim;
    REAL *dq, *dk;
    math_linears_back(w, m, 1, (const math_matrix *[]){&r->m[ROLE_O]}, (REAL *[]){net->dx}, n, net->dattn);
    matrix_back(w, net, ROLE_O, net->dx, net->of.attn_out);
    bias_back(w, net, ROLE_O_BIAS, net->dx, hp->n_embd);
    math_causal_back(w, m, &net->attn, net->of.q, net->of.k, net->of.vv, net->dattn, net->dq, net->dk, net->dv);
    math_sync(w);
    qk_back(w, net, &dq, &dk);
    math_linears_back(w, m, 3, (const math_matrix *[]){&r->m[ROLE_Q], &r->m[ROLE_K], &r->m[ROLE_V]},
                      (REAL *[]){dq, dk, net->dv}, n, net->t);
    matrix_back(w, net, ROLE_Q, dq, net->of.a);
    matrix_back(w, net, ROLE_K, dk, net->of.a);
    matrix_back(w, net, ROLE_V, net->dv, net->of.a);
    bias_back(w, net, ROLE_Q_BIAS, dq, q);
    bias_back(w, net, ROLE_K_BIAS, dk, kv);
    bias_back(w, net, ROLE_V_BIAS, net->dv, kv);
    gain_back(w, net, ROLE_ATTN_NORM, r->v[ROLE_ATTN_NORM], x, net->t, net->dx, true, n, hp->n_embd);
}

static void backward_worker(const llmq_worker *w, void *arg) {
    const layer_job *j = arg;
    if (!j->net->kept) forward_to_act(w, j->net, j->x);
    ffn_back(w, j->net);
    attention_back(w, j->net, j->x);
}

/* ---- the loss ---- */

typedef struct loss_job {
    this_net *net;
    const net_loss *what;
    bool gradients;
} loss_job;

/* Rows [row, row + n): the head's gradient, dz in slices. */
static void head_outer(const llmq_worker *w, this_net *net, int64_t row, int64_t n) {
    int64_t vocab = net->s.hp.n_vocab, e = net->s.hp.n_embd, slice = math_slice(vocab);
    for (int64_t at = 0; net->g[ROLE_OUTPUT] && at < vocab; at += slice) {
        int64_t len = vocab - at < slice ? vocab - at : slice;
        math_outer(w, &net->math, net->dz + at * n, len, net->of.a + row * e, e, n, row > 0,
                   net->g[ROLE_OUTPUT] + at * e);
    }
}

/* net->x to row_loss and, with gradients, to net->dx, that of net->x. */
static void loss_worker(const llmq_worker *w, void *arg) {
    const loss_job *j = arg;
    this_net *net = j->net;
    const llmq_hparams *hp = &net->s.hp;
    const math_matrix *head = &net->model.m[ROLE_OUTPUT], *teacher = &net->teacher_head.m[ROLE_OUTPUT];
    const int32_t *labels = j->what->labels;
    math_ctx *m = &net->math;
    int64_t e = hp->n_embd;
    math_norm(w, m, net->x, net->model.v[ROLE_OUTPUT_NORM], hp->eps, net->of.a, net->n, e);
    math_sync(w);
    for (int64_t row = 0; row < net->n; row += NET_CHUNK) {
        int64_t n = net->n - row < NET_CHUNK ? net->n - row : NET_CHUNK;
        math_linears(w, m, 1, &head, net->of.a + row * e, n, &net->logits);
        if (j->what->teacher) math_linears(w, m, 1, &teacher, net->want + row * e, n, &net->want_logits);
        math_loss(w, m, net->logits, j->what->teacher ? net->want_logits : NULL, labels ? labels + row : NULL, n,
                  hp->n_vocab, j->what->weight, net->dz, net->row_loss + row);
        math_sync(w);
        if (!j->gradients) continue;
        head_outer(w, net, row, n);
        math_head_back(w, m, head, net->dz, n, net->t + row * e);
    }
    if (j->gradients)
        gain_back(w, net, ROLE_OUTPUT_NORM, net->model.v[ROLE_OUTPUT_NORM], net->x, net->t, net->dx, false, net->n, e);
}

/* ---- passes ---- */

static llmq_status forward_all(this_net *net, const this_source *source, REAL *inputs, llmq_err *err) {
    size_t cells = (size_t)(net->n * net->s.hp.n_embd);
    for (int l = 0; l < (int)net->s.hp.n_layer; l++) {
        LLMQ_TRY(get_layer(net, source, l, false, err));
        if (inputs) memcpy(inputs + (size_t)l * cells, net->x, cells * sizeof *inputs);
        use_acts(net, inputs ? l : net->s.hp.n_layer);
        math_run(&net->math, forward_worker, &(layer_job){net, net->x});
    }
    use_acts(net, net->s.hp.n_layer);
    return LLMQ_OK;
}

static void final_norm(const llmq_worker *w, void *arg) {
    this_net *net = arg;
    math_norm(w, &net->math, net->x, net->teacher_head.v[ROLE_OUTPUT_NORM], net->s.hp.eps, net->want, net->n,
              net->s.hp.n_embd);
}

llmq_status NET(net_teach)(this_net *net, const this_source *teacher, const int32_t *tokens, llmq_err *err) {
    LLMQ_TRY(begin(net, teacher, &net->teacher_head, tokens, false, err));
    LLMQ_TRY(forward_all(net, teacher, NULL, err));
    math_run(&net->math, final_norm, net);
    return LLMQ_OK;
}

/* Those of a layer. */
static llmq_status give_gradients(this_net *net, const this_source *source, int layer, llmq_err *err) {
    REAL *g[ROLE_COUNT];
    for (int role = 0; role < ROLE_COUNT; role++)
        g[role] = net->layer.m[role].rows > 0 || net->layer.v[role] ? net->g[role] : NULL;
    return source->gradients(source->user, layer, g, err);
}

static llmq_status backward(this_net *net, const this_source *source, llmq_err *err) {
    size_t cells = (size_t)(net->n * net->s.hp.n_embd);
    REAL *model[ROLE_COUNT] = {[ROLE_OUTPUT] = net->g[ROLE_OUTPUT], [ROLE_OUTPUT_NORM] = net->g[ROLE_OUTPUT_NORM]};
    LLMQ_TRY(source->gradients(source->user, -1, model, err));
    for (int l = (int)net->s.hp.n_layer - 1; l >= 0; l--) {
        LLMQ_TRY(get_layer(net, source, l, true, err));
        use_acts(net, l);
        math_run(&net->math, backward_worker, &(layer_job){net, net->inputs + (size_t)l * cells});
        LLMQ_TRY(give_gradients(net, source, l, err));
    }
    if (!net->wants.of[ROLE_TOKEN_EMBD]) return LLMQ_OK;
    return source->gradients(source->user, -1, (REAL *[ROLE_COUNT]){[ROLE_TOKEN_EMBD] = net->dx}, err);
}

llmq_status NET(net_step)(this_net *net, const this_source *source, const int32_t *tokens, const net_loss *what,
                          bool gradients, double *loss, llmq_err *err) {
    LLMQ_TRY(begin(net, source, &net->model, tokens, gradients || source->keep_head, err));
    LLMQ_TRY(forward_all(net, source, gradients ? net->inputs : NULL, err));
    math_run(&net->math, loss_worker, &(loss_job){net, what, gradients});
    *loss = 0;
    for (int64_t i = 0; i < net->n; i++) *loss += net->row_loss[i];
    return gradients ? backward(net, source, err) : LLMQ_OK;
}

/* ---- a layer alone ---- */

typedef struct alone_job {
    this_net *net;
    const REAL *x, *want;
    REAL *y;
    const net_square *what;
    bool gradients;
} alone_job;

static void run_worker(const llmq_worker *w, void *arg) {
    const alone_job *j = arg;
    forward(w, j->net, j->x, j->y);
}

/* Outputs x to row_loss and dx. */
static void square_rows(const llmq_worker *w, const alone_job *j) {
    this_net *net = j->net;
    int64_t e = net->s.hp.n_embd, begin, end;
    worker_range(w, net->n, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const REAL *x = net->x + r * e, *want = j->want + r * e;
        REAL *dx = net->dx + r * e;
        double off = 0, all = 0, weight = j->what->weight;
        for (int64_t i = 0; i < e; i++) {
            double d = (double)x[i] - (double)want[i];
            off += d * d;
            all += (double)want[i] * (double)want[i];
        }
        if (j->what->relative) weight = all > 0 ? weight / all : 0;
        net->row_loss[r] = weight * off;
        for (int64_t i = 0; i < e; i++) dx[i] = (REAL)(2 * weight * ((double)x[i] - (double)want[i]));
    }
    math_sync(w);
}

static void alone_worker(const llmq_worker *w, void *arg) {
    const alone_job *j = arg;
    forward(w, j->net, j->x, j->y);
    math_sync(w);
    square_rows(w, j);
    if (!j->gradients) return;
    ffn_back(w, j->net);
    attention_back(w, j->net, j->x);
}

llmq_status NET(net_layer_ready)(this_net *net, const this_source *source, int layer, bool back, llmq_err *err) {
    return get_layer(net, source, layer, back, err);
}

void NET(net_layer_run)(this_net *net, const REAL *x, REAL *y) {
    math_run(&net->math, run_worker, &(alone_job){.net = net, .x = x, .y = y});
}

llmq_status NET(net_layer_step)(this_net *net, const this_source *source, int layer, const REAL *x, const REAL *want,
                                const net_square *what, bool gradients, double *loss, llmq_err *err) {
    math_run(&net->math, alone_worker, &(alone_job){net, x, want, net->x, what, gradients});
    *loss = 0;
    for (int64_t i = 0; i < net->n; i++) *loss += net->row_loss[i];
    return gradients ? give_gradients(net, source, layer, err) : LLMQ_OK;
}
