#include "train/tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/calib.h"
#include "engine/outputs.h"
#include "train/adam.h"
#include "train/net.h"
#include "train/tunable.h"

/* ---- settings ---- */

static const tune_settings defaults[2] = {
    {.steps = 135, .batch = 1, .lr = 1e-3, .warmup = 5, .norm_lr = 1, .held_out = 6, .judge = 3},
    /* codes too */
    {.steps = 300, .batch = 3, .lr = 7e-4, .code_lr = 0.02, .warmup = 10, .norm_lr = 1, .held_out = 6, .judge = 10}};

llmq_status tune_settings_parse(const char *list, bool codes, tune_settings *s, llmq_err *err) {
    struct {
        const char *name;
        int64_t *whole;
        double *real;
        double max;
    } const items[] = {
        {"steps", &s->steps, NULL, 1e6},   {"batch", &s->batch, NULL, 1024}, {"held", &s->held_out, NULL, 4096},
        {"judge", &s->judge, NULL, 1e6},   {"code", NULL, &s->code_lr, 10},  {"lr", NULL, &s->lr, 1},
        {"warmup", NULL, &s->warmup, 1e6}, {"floor", NULL, &s->floor, 1},    {"norm", NULL, &s->norm_lr, 1e3}};
    *s = defaults[codes];
    while (list && *list) {
        size_t name = strcspn(list, "="), i = 0, n = sizeof items / sizeof *items;
        char *end = NULL;
        double x = list[name] ? strtod(list + name + 1, &end) : -1;
        while (i < n && (strlen(items[i].name) != name || strncmp(items[i].name, list, name) != 0)) i++;
        if (i == n || !end || end == list + name + 1 || (*end && *end != ',') || !(x >= 0 && x <= items[i].max))
            return llmq_fail(err, LLMQ_E_ARG,
                             "--tune-set: '%.40s': a list of NAME=NUMBER of steps, batch, held, judge, lr, warmup, "
                             "floor and norm is wanted",
                             list);
        if (items[i].whole)
            *items[i].whole = (int64_t)x;
        else
            *items[i].real = x;
        list = end + (*end == ',');
    }
    if (s->batch < 1) s->batch = 1;
    return LLMQ_OK;
}

/* Settings for this job's text. */
static llmq_status read_settings(const llmq_tune_job *job, tune_settings *s, llmq_err *err) {
    int64_t n = job->calib->n_windows;
    LLMQ_TRY(tune_settings_parse(job->params->tune_settings, job->params->tune_codes, s, err));
    s->held_out = s->held_out / s->batch * s->batch;
    if (s->held_out < s->batch) s->held_out = s->batch;
    if (n > s->held_out) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG,
                     "--tune: %lld windows of text are too few: %lld judge the result, and others must be there to "
                     "train on; give more with --tokens",
                     (long long)n, (long long)s->held_out);
}

/* ---- what is trained ---- */

/* A norm's gain, as a factor of what it was. */
typedef struct gain {
    float *g0, *x, *now; /* [n] found, factors, g0 * x */
    int64_t n;
} gain;

/* Numbers of one tensor in the optimizer. g serves for the state in the journal too: there it holds x, or at the end
 * what x has become. */
typedef struct trained {
    float *x, *g, *m, *v, *best;
    int64_t n;
    double rate; /* of the learning rate */
} trained;

/* In front of all g, m, v and best: what the journal keeps. */
typedef struct tune_state {
    int64_t step;       /* steps done */
    int64_t storing;    /* training is over, the outputs may hold some of it */
    double first, best; /* KL divergence of held-out windows: before, and the best so far */
    int64_t total;      /* steps in all; 0: the first one has not told yet how many a limit of time allows */
    double pad[3];
} tune_state;

/* One tensor of the model as the outputs hold it. */
typedef struct part {
    llmq_tensor view;    /* of what stays: data NULL for what does not */
    tunable matrix;      /* rows 0: none */
    gain gain;           /* n 0: none */
    uint8_t *best_codes; /* of the state, where codes are trained; else NULL */
    trained t;           /* n 0: stays */
} part;

typedef struct tuner {
    const llmq_tune_job *job;
    tune_settings set;
    part *parts;       /* [ex->n] */
    part **by_role;    /* (n_layer + 1, ROLE_COUNT), the model's own last; NULL: absent */
    uint8_t **packed;  /* as dense, as blocks of their types, for the way forward */
    bool has_head;     /* the net has made the head ready */
    float **dense;     /* [ROLE_COUNT] a layer's matrices as floats */
    tune_state *state; /* all of the optimizer's numbers behind it */
    size_t state_bytes;
    net_f32 *net;
    int64_t n_windows;     /* to train on */
    int32_t *tokens;       /* of a batch */
    float *held;           /* the teacher's states of held-out windows */
    const float **vectors; /* the teacher's, (n_layer + 1, ROLE_COUNT) */
} tuner;

static part *part_at(const tuner *t, int layer, int role) {
    int64_t n_layer = t->job->model->hp.n_layer;
    return t->by_role[(layer < 0 ? n_layer : layer) * ROLE_COUNT + role];
}

static bool is_norm(llmq_role role) {
    return role == ROLE_ATTN_NORM || role == ROLE_FFN_NORM || role == ROLE_Q_NORM || role == ROLE_K_NORM ||
           role == ROLE_OUTPUT_NORM;
}

static llmq_status load_gain(gain *g, const llmq_tensor *t, llmq_err *err) {
    g->n = tensor_numel(t);
    g->g0 = mem_alloc((size_t)g->n, sizeof(float));
    g->x = mem_alloc((size_t)g->n, sizeof(float));
    g->now = mem_alloc((size_t)g->n, sizeof(float));
    if (!g->g0 || !g->x || !g->now) return mem_error(err, (size_t)g->n * 12, t->name);
    type_to_f32(t->type, t->data, g->g0, g->n);
    for (int64_t i = 0; i < g->n; i++) {
        g->x[i] = 1;
        g->now[i] = g->g0[i];
    }
    return LLMQ_OK;
}

/* A vector that stays: as floats. */
static llmq_status load_vector(llmq_tensor *t, llmq_err *err) {
    int64_t n = tensor_numel(t);
    float *x = mem_alloc((size_t)n, sizeof *x);
    if (!x) return mem_error(err, (size_t)n * sizeof *x, t->name);
    type_to_f32(t->type, t->data, x, n);
    mem_free((void *)(uintptr_t)t->data);
    t->data = x;
    t->type = LLMQ_TYPE_F32;
    return LLMQ_OK;
}

static llmq_status load_matrix(const tuner *t, size_t index, part *p, llmq_err *err) {
    llmq_quantized *q = NULL;
    LLMQ_TRY(outputs_get(t->job->outputs, index, &q, err));
    llmq_status status = tunable_create(q, &p->matrix, err);
    quantized_destroy(q);
    if (status != LLMQ_OK) return status;
    p->t = (trained){.x = p->matrix.x, .n = p->matrix.n_x, .rate = 1};
    return LLMQ_OK;
}

static llmq_status load_part(tuner *t, size_t index, llmq_err *err) {
    const llmq_export_entry *entry = &t->job->ex->entries[index];
    int64_t n_layer = t->job->model->hp.n_layer;
    part *p = &t->parts[index];
    if (entry->role == ROLE_ROPE_FREQS) return LLMQ_OK; /* the table of angles has them */
    t->by_role[(entry->layer < 0 ? n_layer : entry->layer) * ROLE_COUNT + entry->role] = p;
    if (t->job->grid(t->job->user, index)) return load_matrix(t, index, p, err);
    LLMQ_TRY(outputs_get_plain(t->job->outputs, index, &p->view, err));
    if (entry->matrix) return LLMQ_OK;
    LLMQ_TRY(load_vector(&p->view, err));
    if (!is_norm(entry->role)) return LLMQ_OK;
    LLMQ_TRY(load_gain(&p->gain, &p->view, err));
    p->t = (trained){.x = p->gain.x, .n = p->gain.n, .rate = t->set.norm_lr};
    return LLMQ_OK;
}

/* Numbers to train of a tensor. */
static int64_t count_of(const llmq_tune_job *job, size_t index) {
    const llmq_tensor *t = &job->ex->tensors[index];
    const llmq_type_info *grid = job->grid(job->user, index);
    if (grid) return tunable_count(grid, tensor_rows(t), tensor_cols(t));
    return is_norm(job->ex->entries[index].role) ? tensor_numel(t) : 0;
}

static int64_t padded(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* Weights whose codes are trained. */
static int64_t codes_of(const llmq_tune_job *job, const tune_settings *s, size_t index) {
    return s->code_lr > 0 && job->grid(job->user, index) ? tensor_numel(&job->ex->tensors[index]) : 0;
}

static size_t state_bytes_for(const llmq_tune_job *job, const tune_settings *s) {
    size_t bytes = sizeof(tune_state);
    for (size_t i = 0; i < job->ex->n; i++) {
        bytes += 4 * (size_t)padded(count_of(job, i)) * sizeof(float);
        bytes += (size_t)padded(codes_of(job, s, i)) * (3 * sizeof(float) + 1);
    }
    return bytes;
}

static size_t state_bytes(const llmq_tune_job *job) {
    tune_settings s;
    return read_settings(job, &s, NULL) == LLMQ_OK ? state_bytes_for(job, &s) : 0;
}

/* Deals out the state's numbers. */
static float *lay_out(part *p, float *at, int64_t n_codes) {
    trained *x = &p->t;
    int64_t len = padded(x->n), codes = padded(n_codes);
    x->g = at;
    x->m = at + len;
    x->v = at + 2 * len;
    x->best = at + 3 * len;
    at += 4 * len;
    if (x->n) memcpy(x->best, x->x, (size_t)x->n * sizeof(float));
    if (!codes) return at;
    tunable_free_codes(&p->matrix, at, at + codes, at + 2 * codes);
    p->best_codes = (uint8_t *)(at + 3 * codes);
    memcpy(p->best_codes, p->matrix.codes, (size_t)n_codes);
    return at + 3 * codes + codes / (int64_t)sizeof(float);
}

static llmq_status load_parts(tuner *t, llmq_err *err) {
    size_t n = t->job->ex->n, cells = (size_t)(t->job->model->hp.n_layer + 1) * ROLE_COUNT;
    t->state_bytes = state_bytes_for(t->job, &t->set);
    t->parts = mem_zalloc(n, sizeof *t->parts);
    t->by_role = mem_zalloc(cells, sizeof *t->by_role);
    t->dense = mem_zalloc(ROLE_COUNT, sizeof *t->dense);
    t->packed = mem_zalloc(ROLE_COUNT, sizeof *t->packed);
    t->state = mem_zalloc(t->state_bytes, 1);
    if (!t->parts || !t->by_role || !t->dense || !t->packed || !t->state)
        return mem_error(err, t->state_bytes, "tuning");
    float *at = (float *)(t->state + 1);
    for (size_t i = 0; i < n; i++) {
        LLMQ_TRY(load_part(t, i, err));
        at = lay_out(&t->parts[i], at, codes_of(t->job, &t->set, i));
    }
    return LLMQ_OK;
}

static const adam_settings adam = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};

/* ---- the model for the net ---- */

typedef struct values_job {
    tunable *m;
    const float *grad;
    float *out;
    uint8_t *blocks;
    const tuner *t;
} values_job;

static void values_worker(const llmq_worker *w, void *arg) {
    const values_job *j = arg;
    int64_t begin, end;
    worker_range(w, j->m->rows, 1, &begin, &end);
    tunable_values(j->m, begin, end, j->out);
}

static void pack_worker(const llmq_worker *w, void *arg) {
    const values_job *j = arg;
    int64_t begin, end;
    worker_range(w, j->m->rows, 1, &begin, &end);
    tunable_pack(j->m, begin, end, j->blocks);
}

/* The schedule's part of a rate. */
static double rate_now(const tuner *t) {
    return adam_schedule(t->state->step, (int64_t)t->set.warmup, t->state->total, t->set.floor);
}

static void sums_worker(const llmq_worker *w, void *arg) {
    const values_job *j = arg;
    int64_t begin, end;
    worker_range(w, j->m->rows, 1, &begin, &end);
    tunable_sums(j->m, j->grad, begin, end);
    if (!j->m->z) return;
    const tune_settings *s = &j->t->set;
    double lr = s->code_lr * rate_now(j->t);
    const llmq_adam now = adam_step(&adam, lr, j->t->state->step + 1, 0, false);
    tunable_update_codes(j->m, j->t->job->model->ops, &now, j->grad, begin, end);
}

/* A buffer for a role's matrix, which all layers share. */
static llmq_status take(void *slot, size_t bytes, llmq_err *err) {
    void **p = slot;
    if (!*p) *p = mem_alloc(bytes, 1);
    return *p ? LLMQ_OK : mem_error(err, bytes, "tuning");
}

/* A view of like's shape. */
static llmq_tensor view_of(const llmq_tensor *like, llmq_type type, const void *data) {
    llmq_tensor t = {.type = type, .n_dims = 2, .data = data};
    memcpy(t.dims, like->dims, sizeof t.dims);
    t.bytes = tensor_rows(like) * type_row_bytes(type, tensor_cols(like));
    return t;
}

/* As floats, for the way back. */
static llmq_status as_floats(tuner *t, part *p, int role, const llmq_tensor *like, llmq_tensor *out, llmq_err *err) {
    int64_t cells = tensor_numel(like);
    LLMQ_TRY(take(&t->dense[role], (size_t)cells * sizeof(float), err));
    if (p->matrix.rows)
        team_run(t->job->team, values_worker, &(values_job){.m = &p->matrix, .out = t->dense[role]});
    else
        type_to_f32(p->view.type, p->view.data, t->dense[role], cells);
    *out = view_of(like, LLMQ_TYPE_F32, t->dense[role]);
    return LLMQ_OK;
}

/* A matrix inside a layer. */
static llmq_status student_matrix(tuner *t, part *p, int role, const llmq_tensor *like, bool back, net_weights_f32 *out,
                                  llmq_err *err) {
    if (!p->matrix.rows) {
        out->forward[role] = p->view;
    } else if (tunable_can_pack(&p->matrix)) {
        llmq_tensor v = view_of(like, p->matrix.type->id, NULL);
        LLMQ_TRY(take(&t->packed[role], (size_t)v.bytes, err));
        v.data = t->packed[role];
        team_run(t->job->team, pack_worker, &(values_job){.m = &p->matrix, .blocks = t->packed[role]});
        out->forward[role] = v;
    }
    return back || !out->forward[role].data ? as_floats(t, p, role, like, &out->of[role], err) : LLMQ_OK;
}

/* Embedding, head and output norm. Only the norm changes, so the head's floats are not kept. */
static llmq_status student_model(tuner *t, bool back, net_weights_f32 *out, llmq_err *err) {
    part *table = part_at(t, -1, ROLE_TOKEN_EMBD), *head = part_at(t, -1, ROLE_OUTPUT),
         *norm = part_at(t, -1, ROLE_OUTPUT_NORM);
    out->of[ROLE_TOKEN_EMBD] = table->view;
    out->of[ROLE_OUTPUT_NORM] = norm->view;
    out->of[ROLE_OUTPUT_NORM].data = norm->gain.now;
    if (!head) head = table;
    out->of[ROLE_OUTPUT] = out->forward[ROLE_OUTPUT] = head->view;
    if (t->has_head) {
        mem_free(t->dense[ROLE_OUTPUT]);
        t->dense[ROLE_OUTPUT] = NULL;
        return LLMQ_OK;
    }
    t->has_head = back;
    return back ? as_floats(t, head, ROLE_OUTPUT, &head->view, &out->of[ROLE_OUTPUT], err) : LLMQ_OK;
}

static llmq_status student_weights(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err) {
    tuner *t = user;
    if (layer < 0) return student_model(t, back, out, err);
    for (int role = 0; role < ROLE_COUNT; role++) {
        part *p = part_at(t, layer, role);
        if (!p) continue;
        if (arch_role_is_matrix((llmq_role)role)) {
            const llmq_tensor *like = t->job->model->layer_tensors[layer].by_role[role];
            LLMQ_TRY(student_matrix(t, p, role, like, back, out, err));
            continue;
        }
        out->of[role] = p->view;
        if (p->gain.n) out->of[role].data = p->gain.now;
    }
    return LLMQ_OK;
}

static llmq_status student_gradients(void *user, int layer, float *const *g, llmq_err *err) {
    tuner *t = user;
    (void)err;
    for (int role = 0; role < ROLE_COUNT; role++) {
        part *p = part_at(t, layer, role);
        if (!g[role] || !p || !p->t.n) continue;
        if (p->matrix.rows) {
            team_run(t->job->team, sums_worker, &(values_job){.m = &p->matrix, .grad = g[role], .t = t});
            tunable_gradient(&p->matrix, p->t.g);
        } else {
            for (int64_t i = 0; i < p->gain.n; i++) p->t.g[i] = g[role][i] * p->gain.g0[i];
        }
    }
    return LLMQ_OK;
}

static llmq_status teacher_weights(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err) {
    tuner *t = user;
    llmq_model *model = t->job->model;
    (void)back;
    for (int role = 0; role < ROLE_COUNT; role++) {
        const llmq_tensor *src = layer < 0 ? model->by_role[role] : model->layer_tensors[layer].by_role[role];
        if (!src || role == ROLE_ROPE_FREQS) continue;
        out->of[role] = *src;
        LLMQ_TRY(source_load(model->source, src, true, err));
        if (arch_role_is_matrix((llmq_role)role)) continue;
        const float **x = &t->vectors[(layer < 0 ? model->hp.n_layer : layer) * ROLE_COUNT + role];
        if (!*x) LLMQ_TRY(model_load_vector(model, src, tensor_numel(src), x, err));
        out->of[role].type = LLMQ_TYPE_F32;
        out->of[role].data = *x;
    }
    if (layer < 0 && !model->by_role[ROLE_OUTPUT]) out->of[ROLE_OUTPUT] = out->of[ROLE_TOKEN_EMBD];
    return LLMQ_OK;
}

static net_wants wants_of(void) {
    net_wants wants = {{0}};
    for (int role = 0; role < ROLE_COUNT; role++)
        wants.of[role] = is_norm((llmq_role)role) || (role >= ROLE_Q && role <= ROLE_O) || role == ROLE_GATE ||
                         role == ROLE_UP || role == ROLE_DOWN;
    return wants;
}

static net_source_f32 student(tuner *t) {
    return (net_source_f32){
        .weights = student_weights, .gradients = student_gradients, .wants = wants_of(), .keep_head = true, .user = t};
}

static net_source_f32 teacher(tuner *t) {
    return (net_source_f32){.weights = teacher_weights, .keep_head = true, .user = t};
}

static llmq_status create_net(tuner *t, llmq_err *err) {
    const llmq_model *model = t->job->model;
    int64_t ctx = t->job->calib->ctx;
    float *rope = mem_alloc((size_t)(ctx * model->hp.n_rot), sizeof *rope);
    if (!rope) return mem_error(err, (size_t)(ctx * model->hp.n_rot) * sizeof *rope, "tuning");
    rope_table(model, 0, ctx, rope);
    net_shape shape = {
        .hp = model->hp, .neox = model->rope_neox, .n_windows = t->set.batch, .n_tok = ctx, .rope = rope};
    net_wants wants = student(t).wants;
    llmq_status status = net_create_f32(&shape, &wants, true, false, model->ops, t->job->team, &t->net, err);
    mem_free(rope);
    return status;
}

/* ---- training ---- */

/* Trained numbers take effect. */
static void settle_gains(tuner *t) {
    for (size_t i = 0; i < t->job->ex->n; i++) {
        gain *g = &t->parts[i].gain;
        for (int64_t k = 0; k < g->n; k++) g->now[k] = g->g0[k] * g->x[k];
    }
}

static void update_worker(const llmq_worker *w, void *arg) {
    const tuner *t = arg;
    for (size_t i = 0; i < t->job->ex->n; i++) {
        const trained *x = &t->parts[i].t;
        const llmq_adam now = adam_step(&adam, t->set.lr * rate_now(t) * x->rate, t->state->step + 1, 0, false);
        t->job->model->ops->adam(w, &now, x->x, x->g, x->m, x->v, x->n);
    }
}

static void update(tuner *t) {
    team_run(t->job->team, update_worker, t);
    settle_gains(t);
}

static void keep_best(tuner *t, bool restore) {
    for (size_t i = 0; i < t->job->ex->n; i++) {
        trained *x = &t->parts[i].t;
        part *p = &t->parts[i];
        for (int64_t k = 0; k < x->n; k++) *(restore ? &x->x[k] : &x->best[k]) = *(restore ? &x->best[k] : &x->x[k]);
        if (p->best_codes)
            memcpy(restore ? p->matrix.codes : p->best_codes, restore ? p->best_codes : p->matrix.codes,
                   (size_t)(p->matrix.rows * p->matrix.cols));
    }
    if (restore) settle_gains(t);
}

/* The windows of a step: in an order that a fixed stride through all of them makes. */
static const int32_t *batch_tokens(tuner *t, int64_t step) {
    const llmq_calib *c = t->job->calib;
    int64_t n = t->n_windows, stride = n * 5 / 8 | 1;
    for (int64_t a = stride, b = n; b;) { /* coprime to n, so that all windows come */
        int64_t r = a % b;
        a = b;
        b = r;
        if (!b && a != 1) a = stride += 2, b = n;
    }
    for (int64_t i = 0; i < t->set.batch; i++) {
        int64_t window = (step * t->set.batch + i) * stride % n;
        memcpy(t->tokens + i * c->ctx, c->tokens + window * c->ctx, (size_t)c->ctx * sizeof *t->tokens);
    }
    return t->tokens;
}

static llmq_status judge(tuner *t, bool first, double *kl, llmq_err *err) {
    const llmq_calib *c = t->job->calib;
    net_source_f32 from = student(t), to = teacher(t);
    int64_t n = t->set.batch * c->ctx, batches = t->set.held_out / t->set.batch;
    size_t cells = (size_t)(n * t->job->model->hp.n_embd);
    *kl = 0;
    for (int64_t i = 0; i < batches; i++) {
        const int32_t *tokens = c->tokens + (t->n_windows + i * t->set.batch) * c->ctx;
        net_loss what = {.teacher = true, .weight = 1.0 / (double)(n * batches)};
        double loss;
        if (first) {
            LLMQ_TRY(net_teach_f32(t->net, &to, tokens, err));
            memcpy(t->held + (size_t)i * cells, net_taught_f32(t->net), cells * sizeof(float));
        }
        memcpy(net_taught_f32(t->net), t->held + (size_t)i * cells, cells * sizeof(float));
        LLMQ_TRY(net_step_f32(t->net, &from, tokens, &what, false, &loss, err));
        *kl += loss;
    }
    return LLMQ_OK;
}

/* Between two steps. */
static llmq_status save(tuner *t, bool now, llmq_err *err) {
    for (size_t i = 0; i < t->job->ex->n && !t->state->storing; i++) {
        trained *x = &t->parts[i].t;
        if (x->n) memcpy(x->g, x->x, (size_t)x->n * sizeof(float));
    }
    return t->job->save(t->job->user, t->state, t->state_bytes, now, err);
}

static llmq_status restore(tuner *t, llmq_err *err) {
    bool found;
    LLMQ_TRY(t->job->restore(t->job->user, t->state, t->state_bytes, &found, err));
    if (!found) return LLMQ_OK;
    for (size_t i = 0; i < t->job->ex->n; i++) {
        part *p = &t->parts[i];
        if (t->state->storing) {
            if (p->best_codes) memcpy(p->matrix.codes, p->best_codes, (size_t)(p->matrix.rows * p->matrix.cols));
            continue;
        }
        if (p->t.n) memcpy(p->t.x, p->t.g, (size_t)p->t.n * sizeof(float));
        if (p->best_codes) tunable_settle_codes(&p->matrix);
    }
    settle_gains(t);
    if (!t->state->storing) llmq_log(LLMQ_LOG_NOTE, "going on with tuning after step %lld", (long long)t->state->step);
    return LLMQ_OK;
}

static llmq_status judge_now(tuner *t, llmq_err *err) {
    double kl;
    LLMQ_TRY(judge(t, false, &kl, err));
    llmq_log(LLMQ_LOG_INFO, "tuning: KL divergence on held-out windows %.5f", kl);
    if (!(kl < t->state->best)) return LLMQ_OK;
    t->state->best = kl;
    keep_best(t, false);
    return LLMQ_OK;
}

/* Steps for so many minutes: the judging takes some of the time, at a fourth of a step for the same windows. */
static void set_total(tuner *t, double step_seconds) {
    const tune_settings *s = &t->set;
    double judging = (double)(s->judge * s->held_out) / (4.0 * (double)s->batch);
    double n = 60 * t->job->params->tune_minutes / step_seconds - judging;
    t->state->total = n > 1e6 ? 1000000 : n < 1 ? 1 : (int64_t)n;
    llmq_log(LLMQ_LOG_INFO, "tuning: %lld steps in %g minutes", (long long)t->state->total,
             t->job->params->tune_minutes);
}

static llmq_status train_step(tuner *t, double *loss, llmq_err *err) {
    const tune_settings *s = &t->set;
    net_source_f32 from = student(t), to = teacher(t);
    net_loss what = {.teacher = true, .weight = 1.0 / (double)(s->batch * t->job->calib->ctx)};
    const int32_t *tokens = batch_tokens(t, t->state->step);
    double begin = time_seconds();
    LLMQ_TRY(net_teach_f32(t->net, &to, tokens, err));
    LLMQ_TRY(net_step_f32(t->net, &from, tokens, &what, true, loss, err));
    if (!t->state->total) set_total(t, time_seconds() - begin);
    update(t);
    t->state->step++;
    mem_note_peak();
    llmq_log(LLMQ_LOG_INFO, "tuning: step %lld of %lld: KL divergence %.5f, %.1f s", (long long)t->state->step,
             (long long)t->state->total, *loss, time_seconds() - begin);
    return LLMQ_OK;
}

static llmq_status train(tuner *t, llmq_err *err) {
    const tune_settings *s = &t->set;
    double kl;
    LLMQ_TRY(judge(t, true, &kl, err));
    if (t->state->step == 0) t->state->first = t->state->best = kl;
    llmq_log(LLMQ_LOG_INFO, "tuning: KL divergence on held-out windows %.5f", kl);
    if (t->job->params->tune_minutes <= 0) t->state->total = s->steps;
    while (t->state->step < t->state->total || !t->state->total) {
        char text[64];
        LLMQ_TRY(train_step(t, &kl, err));
        int64_t step = t->state->step, n = t->state->total;
        snprintf(text, sizeof text, "tuning %lld/%lld: KL %.4f", (long long)step, (long long)n, kl);
        if (step * s->judge / n != (step - 1) * s->judge / n) LLMQ_TRY(judge_now(t, err));
        bool go_on = t->job->tick(t->job->user, 1.0 / (double)n, text);
        LLMQ_TRY(save(t, !go_on, err));
        if (!go_on) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    }
    keep_best(t, true);
    return LLMQ_OK;
}

/* ---- back to the outputs ---- */

/* From here on the outputs change, and a run that goes on has to do this again instead of reading them. */
static llmq_status begin_storing(tuner *t, llmq_err *err) {
    for (size_t i = 0; i < t->job->ex->n; i++) {
        part *p = &t->parts[i];
        if (p->matrix.rows) tunable_numbers(&p->matrix, p->t.g);
        if (p->gain.n) memcpy(p->t.g, p->gain.now, (size_t)p->gain.n * sizeof(float));
    }
    t->state->storing = 1;
    return save(t, true, err);
}

static llmq_status store(tuner *t, llmq_err *err) {
    for (size_t i = 0; i < t->job->ex->n; i++) {
        part *p = &t->parts[i];
        bool exact;
        if (p->matrix.rows) {
            llmq_quantized *q = NULL;
            LLMQ_TRY(outputs_get(t->job->outputs, i, &q, err));
            tunable_store(&p->matrix, p->t.g, q);
            llmq_status status = outputs_put(t->job->outputs, i, q, t->job->team, err);
            quantized_destroy(q);
            if (status != LLMQ_OK) return status;
        } else if (p->gain.n) {
            LLMQ_TRY(outputs_put_plain(t->job->outputs, i, p->t.g, t->job->team, &exact, NULL, NULL, err));
        }
    }
    return LLMQ_OK;
}

static void clear(tuner *t) {
    for (size_t i = 0; t->parts && i < t->job->ex->n; i++) {
        part *p = &t->parts[i];
        mem_free((void *)(uintptr_t)p->view.data);
        tunable_clear(&p->matrix);
        mem_free(p->gain.g0);
        mem_free(p->gain.x);
        mem_free(p->gain.now);
    }
    for (int role = 0; t->dense && role < ROLE_COUNT; role++) mem_free(t->dense[role]);
    for (int role = 0; t->packed && role < ROLE_COUNT; role++) mem_free(t->packed[role]);
    mem_free(t->parts);
    mem_free(t->by_role);
    mem_free(t->dense);
    mem_free(t->packed);
    mem_free(t->state);
    mem_free(t->tokens);
    mem_free(t->held);
    mem_free(t->vectors);
    net_destroy_f32(t->net);
}

static llmq_status prepare(tuner *t, llmq_err *err) {
    const llmq_calib *c = t->job->calib;
    const llmq_hparams *hp = &t->job->model->hp;
    LLMQ_TRY(read_settings(t->job, &t->set, err));
    t->n_windows = c->n_windows - t->set.held_out;
    size_t held = (size_t)(t->set.held_out * c->ctx * hp->n_embd);
    t->tokens = mem_alloc((size_t)(t->set.batch * c->ctx), sizeof *t->tokens);
    t->held = mem_alloc(held, sizeof *t->held);
    t->vectors = mem_zalloc((size_t)(hp->n_layer + 1) * ROLE_COUNT, sizeof *t->vectors);
    if (!t->tokens || !t->held || !t->vectors) return mem_error(err, held * sizeof *t->held, "tuning");
    LLMQ_TRY(load_parts(t, err));
    return restore(t, err);
}

static llmq_status run(const llmq_tune_job *job, llmq_err *err) {
    tuner t = {.job = job};
    llmq_status status = LLMQ_OK;
    LLMQ_TRY_GOTO(prepare(&t, err));
    if (!t.state->storing) {
        LLMQ_TRY_GOTO(save(&t, true, err)); /* the calibration's memory may go */
        LLMQ_TRY_GOTO(create_net(&t, err));
        LLMQ_TRY_GOTO(train(&t, err));
        LLMQ_TRY_GOTO(begin_storing(&t, err));
    }
    LLMQ_TRY_GOTO(store(&t, err));
    job->result->tune_steps = t.state->step;
    job->result->tune_before = t.state->first;
    job->result->tune_after = t.state->best;
done:
    clear(&t);
    return status;
}

/* ---- what it takes ---- */

static llmq_status check(const llmq_tune_job *job, llmq_err *err) {
    tune_settings s;
    for (size_t i = 0; i < job->ex->n; i++) {
        const llmq_type_info *grid = job->grid(job->user, i);
        if (grid && count_of(job, i) == 0)
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--tune: %s has no scales that can be trained", grid->name);
    }
    return read_settings(job, &s, err);
}

/* Multiply-adds of products with weights. Layers: the teacher forward, the student forward, once more on the way back
 * but for the last matrix, and the gradients of inputs and weights; the head without the gradient of its weights. */
static double work(const llmq_tune_job *job) {
    tune_settings s;
    const llmq_model *model = job->model;
    double layers = 0, head = (double)(model->hp.n_vocab * model->hp.n_embd);
    if (read_settings(job, &s, NULL) != LLMQ_OK) return 0;
    for (size_t i = 0; i < job->ex->n; i++)
        if (job->ex->entries[i].matrix && job->ex->entries[i].layer >= 0)
            layers += (double)tensor_numel(&job->ex->tensors[i]);
    double steps = (double)(s.steps * s.batch * job->calib->ctx) * (4.75 * layers + 3 * head);
    double judged = (double)(s.held_out * job->calib->ctx) *
                    ((double)(s.judge + 2) * (layers + head) + (double)(s.judge + 1) * head);
    return steps + judged;
}

static size_t matrix_memory(const llmq_tune_job *job, size_t index) {
    const llmq_type_info *grid = job->grid(job->user, index);
    const llmq_tensor *t = &job->ex->tensors[index];
    if (!grid) return (size_t)t->bytes;
    return tunable_bytes(grid, tensor_rows(t), tensor_cols(t));
}

/* The student, the optimizer, one layer made ready both ways, both heads, and the net. */
static size_t memory_bytes(const llmq_tune_job *job) {
    tune_settings s;
    const llmq_model *model = job->model;
    const llmq_hparams *hp = &model->hp;
    if (read_settings(job, &s, NULL) != LLMQ_OK) return 0;
    size_t bytes = state_bytes_for(job, &s), layer[ROLE_COUNT] = {0};
    for (size_t i = 0; i < job->ex->n; i++) {
        const llmq_export_entry *e = &job->ex->entries[i];
        size_t cells = (size_t)tensor_numel(&job->ex->tensors[i]);
        bytes += matrix_memory(job, i);
        if (e->matrix && e->layer >= 0 && cells > layer[e->role]) layer[e->role] = cells;
    }
    size_t head = (size_t)(hp->n_vocab * hp->n_embd), largest = 0, both = 0;
    for (int role = 0; role < ROLE_COUNT; role++) {
        largest = layer[role] > largest ? layer[role] : largest;
        both += layer[role];
    }
    net_shape shape = {.hp = *hp, .n_windows = s.batch, .n_tok = job->calib->ctx};
    net_wants wants = wants_of();
    bytes += both * (sizeof(float) + 4) + largest * sizeof(float); /* floats, both ways in bf16; one on its way */
    bytes += head * (2 + 2 + 1);                                   /* of the teacher; back and forward of the student */
    bytes += (size_t)(s.held_out * job->calib->ctx * hp->n_embd) * sizeof(float);
    return bytes + net_need_f32(&shape, &wants, true, model->ops, team_size(job->team));
}

static const llmq_tuner tuner_of_outputs = {
    .check = check, .state_bytes = state_bytes, .memory_bytes = memory_bytes, .work = work, .run = run};

const llmq_tuner *tune_tuner(void) {
    return &tuner_of_outputs;
}
