#include "train/student.h"

#include <string.h>

#include "engine/calib.h"
#include "train/adam.h"

/* ---- what is trained ---- */

static student_part *part_at(const student *t, int layer, int role) {
    int64_t n_layer = t->job->model->hp.n_layer;
    return t->by_role[(layer < 0 ? n_layer : layer) * ROLE_COUNT + role];
}

static bool is_norm(llmq_role role) {
    return role == ROLE_ATTN_NORM || role == ROLE_FFN_NORM || role == ROLE_Q_NORM || role == ROLE_K_NORM ||
           role == ROLE_OUTPUT_NORM;
}

static llmq_status load_gain(student_gain *g, const llmq_tensor *t, llmq_err *err) {
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

static llmq_status load_matrix(const student *t, size_t index, student_part *p, llmq_err *err) {
    llmq_quantized *q = NULL;
    LLMQ_TRY(outputs_get(t->job->outputs, index, &q, err));
    llmq_status status = tunable_create(q, &p->matrix, err);
    quantized_destroy(q);
    if (status != LLMQ_OK) return status;
    p->t = (student_numbers){.x = p->matrix.x, .n = p->matrix.n_x, .rate = 1};
    return LLMQ_OK;
}

static llmq_status load_part(student *t, size_t index, llmq_err *err) {
    const llmq_export_entry *entry = &t->job->ex->entries[index];
    int64_t n_layer = t->job->model->hp.n_layer;
    student_part *p = &t->parts[index - t->first];
    if (entry->role == ROLE_ROPE_FREQS) return LLMQ_OK; /* the table of angles has them */
    t->by_role[(entry->layer < 0 ? n_layer : entry->layer) * ROLE_COUNT + entry->role] = p;
    if (t->job->grid(t->job->user, index)) return load_matrix(t, index, p, err);
    LLMQ_TRY(outputs_get_plain(t->job->outputs, index, &p->view, err));
    if (entry->matrix) return LLMQ_OK;
    LLMQ_TRY(load_vector(&p->view, err));
    if (!is_norm(entry->role)) return LLMQ_OK;
    LLMQ_TRY(load_gain(&p->gain, &p->view, err));
    p->t = (student_numbers){.x = p->gain.x, .n = p->gain.n, .rate = t->set->norm_lr};
    return LLMQ_OK;
}

int64_t student_count(const llmq_tune_job *job, size_t index) {
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

student_room student_need(const llmq_tune_job *job, const tune_settings *set, size_t first, size_t last) {
    student_room room = {0, 0};
    for (size_t i = first; i < last; i++) {
        size_t numbers = (size_t)padded(student_count(job, i)) * sizeof(float),
               codes = (size_t)padded(codes_of(job, set, i));
        room.result += numbers + codes;
        room.rest += 3 * numbers + 3 * codes * sizeof(float);
    }
    return room;
}

/* Deals out the optimizer's numbers. */
static void lay_out(student_part *p, int64_t n_codes, bool filled, float **result, float **rest) {
    student_numbers *x = &p->t;
    int64_t len = padded(x->n), codes = padded(n_codes);
    x->g = *result;
    x->m = *rest;
    x->v = *rest + len;
    x->best = *rest + 2 * len;
    *result += len;
    *rest += 3 * len;
    if (x->n && !filled) memcpy(x->best, x->x, (size_t)x->n * sizeof(float));
    if (!codes) return;
    tunable_free_codes(&p->matrix, filled, *rest, *rest + codes, *rest + 2 * codes);
    p->best_codes = (uint8_t *)*result;
    if (!filled) memcpy(p->best_codes, p->matrix.codes, (size_t)n_codes);
    *result += codes / (int64_t)sizeof(float);
    *rest += 3 * codes;
}

llmq_status student_shell(student *s, const llmq_tune_job *job, const tune_settings *set, size_t n, llmq_err *err) {
    size_t cells = (size_t)(job->model->hp.n_layer + 1) * ROLE_COUNT;
    *s = (student){.job = job, .set = set, .last = n};
    s->parts = mem_zalloc(n, sizeof *s->parts);
    s->by_role = mem_zalloc(cells, sizeof *s->by_role);
    s->dense = mem_zalloc(ROLE_COUNT, sizeof *s->dense);
    s->packed = mem_zalloc(ROLE_COUNT, sizeof *s->packed);
    if (s->parts && s->by_role && s->dense && s->packed) return LLMQ_OK;
    return mem_error(err, cells * sizeof *s->by_role, "tuning");
}

llmq_status student_open(student *s, const llmq_tune_job *job, const tune_settings *set, size_t first, size_t last,
                         const student_memory *memory, llmq_err *err) {
    float *result = memory->result, *rest = memory->rest;
    LLMQ_TRY(student_shell(s, job, set, last - first, err));
    s->first = first;
    s->last = last;
    for (size_t i = first; i < last; i++) {
        LLMQ_TRY(load_part(s, i, err));
        lay_out(&s->parts[i - first], codes_of(job, set, i), memory->filled, &result, &rest);
    }
    return LLMQ_OK;
}

void student_clear(student *s) {
    for (size_t i = 0; s->parts && i < s->last - s->first; i++) {
        student_part *p = &s->parts[i];
        mem_free((void *)(uintptr_t)p->view.data);
        tunable_clear(&p->matrix);
        mem_free(p->gain.g0);
        mem_free(p->gain.x);
        mem_free(p->gain.now);
    }
    for (int role = 0; s->dense && role < ROLE_COUNT; role++) mem_free(s->dense[role]);
    for (int role = 0; s->packed && role < ROLE_COUNT; role++) mem_free(s->packed[role]);
    mem_free(s->parts);
    mem_free(s->by_role);
    mem_free(s->dense);
    mem_free(s->packed);
    *s = (student){0};
}

static const adam_settings adam = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};

/* ---- the model for the net ---- */

typedef struct values_job {
    tunable *m;
    const float *grad;
    float *out; /* the weights, or the gradient of what is trained */
    uint8_t *blocks;
    bool int8;
    const student *t;
} values_job;

static void values_worker(const llmq_worker *w, void *arg) {
    const values_job *j = arg;
    int64_t begin, end;
    worker_range(w, j->m->rows, 1, &begin, &end);
    tunable_values(j->m, j->t->job->model->ops, begin, end, j->out);
}

static void pack_worker(const llmq_worker *w, void *arg) {
    const values_job *j = arg;
    int64_t begin, end;
    worker_range(w, j->m->rows, 1, &begin, &end);
    if (j->int8)
        tunable_pack_q8(j->m, begin, end, j->blocks);
    else
        tunable_pack(j->m, begin, end, j->blocks);
}

static void sums_worker(const llmq_worker *w, void *arg) {
    const values_job *j = arg;
    int64_t begin, end;
    worker_range(w, j->m->rows, 1, &begin, &end);
    const llmq_backend_ops *ops = j->t->job->model->ops;
    tunable_sums(j->m, ops, j->grad, begin, end);
    if (tunable_rows_apart(j->m)) tunable_gradient(j->m, begin, end, j->out);
    if (!j->m->z) return;
    double lr = j->t->set->code_lr * j->t->rate;
    const llmq_adam now = adam_step(&adam, lr, j->t->step + 1, 0, false);
    tunable_update_codes(j->m, ops, &now, j->grad, begin, end);
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
static llmq_status as_floats(student *t, student_part *p, int role, const llmq_tensor *like, llmq_tensor *out,
                             llmq_err *err) {
    int64_t cells = tensor_numel(like);
    LLMQ_TRY(take(&t->dense[role], (size_t)cells * sizeof(float), err));
    if (p->matrix.rows)
        team_run(t->job->team, values_worker, &(values_job){.m = &p->matrix, .out = t->dense[role], .t = t});
    else
        type_to_f32(p->view.type, p->view.data, t->dense[role], cells);
    *out = view_of(like, LLMQ_TYPE_F32, t->dense[role]);
    return LLMQ_OK;
}

/* A matrix inside a layer. */
static llmq_status student_matrix(student *t, student_part *p, int role, const llmq_tensor *like, bool back,
                                  net_weights_f32 *out, llmq_err *err) {
    size_t index = t->first + (size_t)(p - t->parts);
    if (!p->matrix.rows) {
        out->forward[role] = p->view;
    } else {
        bool int8 = tunable_can_pack_q8(&p->matrix) && t->job->input(t->job->user, index, &out->range[role]);
        if (int8 || tunable_can_pack(&p->matrix)) {
            llmq_tensor v = view_of(like, int8 ? LLMQ_TYPE_Q8_0 : p->matrix.type->id, NULL);
            LLMQ_TRY(take(&t->packed[role], (size_t)v.bytes, err));
            v.data = t->packed[role];
            team_run(t->job->team, pack_worker,
                     &(values_job){.m = &p->matrix, .blocks = t->packed[role], .int8 = int8});
            out->forward[role] = v;
            out->int8[role] = int8;
        }
    }
    return back || !out->forward[role].data ? as_floats(t, p, role, like, &out->of[role], err) : LLMQ_OK;
}

/* Embedding, head and output norm. Only the norm changes, so the head's floats are not kept. */
static llmq_status student_model(student *t, bool back, net_weights_f32 *out, llmq_err *err) {
    student_part *table = part_at(t, -1, ROLE_TOKEN_EMBD), *head = part_at(t, -1, ROLE_OUTPUT),
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
    student *t = user;
    if (layer < 0) return student_model(t, back, out, err);
    for (int role = 0; role < ROLE_COUNT; role++) {
        student_part *p = part_at(t, layer, role);
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
    student *t = user;
    (void)err;
    for (int role = 0; role < ROLE_COUNT; role++) {
        student_part *p = part_at(t, layer, role);
        if (!g[role] || !p || !p->t.n) continue;
        if (p->matrix.rows) {
            team_run(t->job->team, sums_worker, &(values_job){.m = &p->matrix, .grad = g[role], .out = p->t.g, .t = t});
            if (!tunable_rows_apart(&p->matrix)) tunable_gradient(&p->matrix, 0, p->matrix.rows, p->t.g);
        } else {
            for (int64_t i = 0; i < p->gain.n; i++) p->t.g[i] = g[role][i] * p->gain.g0[i];
        }
    }
    return LLMQ_OK;
}

net_wants student_wants(void) {
    net_wants wants = {{0}};
    for (int role = 0; role < ROLE_COUNT; role++)
        wants.of[role] = is_norm((llmq_role)role) || (role >= ROLE_Q && role <= ROLE_O) || role == ROLE_GATE ||
                         role == ROLE_UP || role == ROLE_DOWN;
    return wants;
}

net_source_f32 student_source(student *t) {
    return (net_source_f32){.weights = student_weights,
                            .gradients = student_gradients,
                            .wants = student_wants(),
                            .keep_head = true,
                            .user = t};
}

/* ---- the optimizer ---- */

/* Trained numbers take effect. */
static void settle_gains(student *t) {
    for (size_t i = 0; i < t->last - t->first; i++) {
        student_gain *g = &t->parts[i].gain;
        for (int64_t k = 0; k < g->n; k++) g->now[k] = g->g0[k] * g->x[k];
    }
}

static void update_worker(const llmq_worker *w, void *arg) {
    const student *t = arg;
    for (size_t i = 0; i < t->last - t->first; i++) {
        const student_numbers *x = &t->parts[i].t;
        const llmq_adam now = adam_step(&adam, t->set->lr * t->rate * x->rate, t->step + 1, 0, false);
        t->job->model->ops->adam(w, &now, x->x, x->g, x->m, x->v, x->n);
    }
}

void student_update(student *t) {
    team_run(t->job->team, update_worker, t);
    settle_gains(t);
    t->step++;
}

void student_keep_best(student *t, bool restore) {
    for (size_t i = 0; i < t->last - t->first; i++) {
        student_numbers *x = &t->parts[i].t;
        student_part *p = &t->parts[i];
        for (int64_t k = 0; k < x->n; k++) *(restore ? &x->x[k] : &x->best[k]) = *(restore ? &x->best[k] : &x->x[k]);
        if (p->best_codes)
            memcpy(restore ? p->matrix.codes : p->best_codes, restore ? p->best_codes : p->matrix.codes,
                   (size_t)(p->matrix.rows * p->matrix.cols));
    }
    if (restore) settle_gains(t);
}

/* ---- journal and outputs ---- */

void student_save(student *t) {
    for (size_t i = 0; i < t->last - t->first; i++) {
        student_numbers *x = &t->parts[i].t;
        if (x->n) memcpy(x->g, x->x, (size_t)x->n * sizeof(float));
    }
}

void student_load(student *t) {
    for (size_t i = 0; i < t->last - t->first; i++) {
        student_part *p = &t->parts[i];
        if (p->t.n) memcpy(p->t.x, p->t.g, (size_t)p->t.n * sizeof(float));
        if (p->best_codes) tunable_settle_codes(&p->matrix);
    }
    settle_gains(t);
}

void student_finish(student *t) {
    student_keep_best(t, true);
    for (size_t i = 0; i < t->last - t->first; i++) {
        student_part *p = &t->parts[i];
        if (p->matrix.rows) tunable_numbers(&p->matrix, p->t.g);
        if (p->gain.n) memcpy(p->t.g, p->gain.now, (size_t)p->gain.n * sizeof(float));
    }
}

static llmq_status store_matrix(student *t, size_t index, student_part *p, llmq_err *err) {
    llmq_quantized *q = NULL;
    LLMQ_TRY(outputs_get(t->job->outputs, index, &q, err));
    if (p->best_codes) memcpy(p->matrix.codes, p->best_codes, (size_t)(p->matrix.rows * p->matrix.cols));
    tunable_store(&p->matrix, p->t.g, q);
    llmq_status status = outputs_put(t->job->outputs, index, q, t->job->team, err);
    quantized_destroy(q);
    return status;
}

llmq_status student_store(student *t, llmq_err *err) {
    for (size_t i = t->first; i < t->last; i++) {
        student_part *p = &t->parts[i - t->first];
        bool exact;
        if (p->matrix.rows) LLMQ_TRY(store_matrix(t, i, p, err));
        if (p->gain.n) LLMQ_TRY(outputs_put_plain(t->job->outputs, i, p->t.g, t->job->team, &exact, NULL, NULL, err));
    }
    return LLMQ_OK;
}

/* ---- what it takes ---- */

size_t student_bytes(const llmq_tune_job *job, size_t first, size_t last) {
    size_t bytes = 0;
    for (size_t i = first; i < last; i++) {
        const llmq_type_info *grid = job->grid(job->user, i);
        const llmq_tensor *t = &job->ex->tensors[i];
        bytes += grid ? tunable_bytes(grid, tensor_rows(t), tensor_cols(t)) : (size_t)t->bytes;
    }
    return bytes;
}

/* As floats, both ways in bf16 or in blocks; one on its way. */
size_t student_layer_bytes(const llmq_tune_job *job, size_t first, size_t last) {
    size_t cells[ROLE_COUNT] = {0}, largest = 0, all = 0;
    for (size_t i = first; i < last; i++) {
        const llmq_export_entry *e = &job->ex->entries[i];
        size_t n = (size_t)tensor_numel(&job->ex->tensors[i]);
        if (e->matrix && e->layer >= 0 && n > cells[e->role]) cells[e->role] = n;
    }
    for (int role = 0; role < ROLE_COUNT; role++) {
        largest = cells[role] > largest ? cells[role] : largest;
        all += cells[role];
    }
    return all * (sizeof(float) + 4) + largest * sizeof(float);
}

static net_shape shape_of(const llmq_tune_job *job, int64_t n_windows, bool alone) {
    return (net_shape){.hp = job->model->hp,
                       .int8 = job->params->int8 != LLMQ_INT8_OFF,
                       .q16 = job->model->q16_inputs,
                       .neox = job->model->rope_neox,
                       .n_windows = n_windows,
                       .n_tok = job->calib->ctx,
                       .alone = alone};
}

size_t student_net_bytes(const llmq_tune_job *job, int64_t n_windows, bool alone) {
    const net_shape shape = shape_of(job, n_windows, alone);
    const net_wants wants = student_wants();
    return net_need_f32(&shape, &wants, !alone, job->model->ops, team_size(job->team));
}

llmq_status student_net(const llmq_tune_job *job, int64_t n_windows, bool alone, net_f32 **out, llmq_err *err) {
    const llmq_model *model = job->model;
    net_shape shape = shape_of(job, n_windows, alone);
    net_wants wants = student_wants();
    size_t cells = (size_t)(shape.n_tok * model->hp.n_rot);
    float *rope = mem_alloc(cells, sizeof *rope);
    if (!rope) return mem_error(err, cells * sizeof *rope, "tuning");
    rope_table(model, 0, shape.n_tok, rope);
    shape.rope = rope;
    llmq_status status = net_create_f32(&shape, &wants, !alone, false, model->ops, job->team, out, err);
    mem_free(rope);
    return status;
}

/* ---- the full-precision model ---- */

llmq_status teacher_open(teacher *t, llmq_model *model, bool keep, llmq_err *err) {
    size_t cells = (size_t)(model->hp.n_layer + 1) * ROLE_COUNT;
    *t = (teacher){.model = model, .keep = keep, .vectors = mem_zalloc(cells, sizeof *t->vectors)};
    return t->vectors ? LLMQ_OK : mem_error(err, cells * sizeof *t->vectors, "tuning");
}

void teacher_clear(teacher *t) {
    mem_free(t->vectors);
    *t = (teacher){0};
}

static llmq_status teacher_weights(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err) {
    teacher *t = user;
    llmq_model *model = t->model;
    (void)back;
    for (int role = 0; role < ROLE_COUNT; role++) {
        const llmq_tensor *src = layer < 0 ? model->by_role[role] : model->layer_tensors[layer].by_role[role];
        if (!src || role == ROLE_ROPE_FREQS) continue;
        out->of[role] = *src;
        LLMQ_TRY(source_load(model->source, src, t->keep, err));
        if (arch_role_is_matrix((llmq_role)role)) continue;
        const float **x = &t->vectors[(layer < 0 ? model->hp.n_layer : layer) * ROLE_COUNT + role];
        if (!*x) LLMQ_TRY(model_load_vector(model, src, tensor_numel(src), x, err));
        out->of[role].type = LLMQ_TYPE_F32;
        out->of[role].data = *x;
    }
    if (layer < 0 && !model->by_role[ROLE_OUTPUT]) out->of[ROLE_OUTPUT] = out->of[ROLE_TOKEN_EMBD];
    return LLMQ_OK;
}

net_source_f32 teacher_source(teacher *t) {
    return (net_source_f32){.weights = teacher_weights, .keep_head = true, .user = t};
}

void teacher_release(teacher *t, int layer) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        const llmq_tensor *src = t->model->layer_tensors[layer].by_role[role];
        if (src) source_release(t->model->source, src);
    }
}
