/* One layer after the other: each is trained to give what the full-precision layer gives, on the inputs that the layers
 * before it, trained already, make of the text (as the blocks of EfficientQAT are, Chen et al. 2024). One layer is in
 * memory at a time, and of every window the hidden states in front of it: those of the student and those of the
 * full-precision model. */
#include <stdio.h>
#include <string.h>

#include "engine/calib.h"
#include "train/adam.h"
#include "train/tune_stages.h"

typedef struct range {
    size_t first, last; /* a layer's entries */
} range;

typedef struct blocks {
    const llmq_tune_job *job;
    const tune_settings *set;
    tune_head *head;
    int64_t n_train;  /* windows, in front of those that are held out */
    int64_t cells;    /* numbers of a window's hidden states */
    float *x, *want;  /* (n_windows, ctx, n_embd) streams of the student and of the full-precision model */
    float *in, *goal; /* the same of a batch */
    void *rest;       /* of the optimizer */
    size_t rest_bytes;
    student s;
    teacher t;
    net_f32 *net;
    double done; /* of all work, in passes of a window through a layer forward */
} blocks;

static range range_of(const llmq_export *ex, int layer) {
    range r = {0, 0};
    while (r.first < ex->n && ex->entries[r.first].layer != layer) r.first++;
    for (r.last = r.first; r.last < ex->n && ex->entries[r.last].layer == layer;) r.last++;
    return r;
}

/* ---- progress ---- */

/* A step takes a pass forward and two back. */
static double passes_of(const blocks *b, int64_t steps) {
    return 2 * (double)b->job->calib->n_windows + 3 * (double)(steps * b->set->batch) +
           (double)((b->set->judge + 1) * b->set->held_out);
}

static llmq_status advance(blocks *b, double passes, const char *what, llmq_err *err) {
    double all = passes_of(b, b->head->total ? b->head->total : b->set->steps) * (double)b->job->model->hp.n_layer;
    bool go_on = b->job->tick(b->job->user, passes / all, what);
    return go_on ? LLMQ_OK : llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
}

/* ---- streams ---- */

typedef struct embed_job {
    const blocks *b;
    const llmq_tensor *table;
    float *to;
} embed_job;

static void embed_worker(const llmq_worker *w, void *arg) {
    const embed_job *j = arg;
    const llmq_calib *c = j->b->job->calib;
    j->b->job->model->ops->embed(w, j->table, c->tokens, c->n_windows * c->ctx, j->to);
}

static llmq_status embed(blocks *b, llmq_err *err) {
    const llmq_tune_job *job = b->job;
    const llmq_tensor *src = job->model->by_role[ROLE_TOKEN_EMBD];
    llmq_tensor table;
    size_t i = 0;
    while (job->ex->entries[i].role != ROLE_TOKEN_EMBD) i++;
    LLMQ_TRY(source_load(job->model->source, src, false, err));
    team_run(job->team, embed_worker, &(embed_job){b, src, b->want});
    source_release(job->model->source, src);
    LLMQ_TRY(outputs_get_plain(job->outputs, i, &table, err));
    team_run(job->team, embed_worker, &(embed_job){b, &table, b->x});
    mem_free((void *)(uintptr_t)table.data);
    return LLMQ_OK;
}

/* All windows of a stream through a layer of the source. */
static llmq_status pass(blocks *b, const net_source_f32 *source, float *stream, const char *what, llmq_err *err) {
    int64_t n_windows = b->job->calib->n_windows, batch = b->set->batch;
    LLMQ_TRY(net_layer_ready_f32(b->net, source, (int)b->head->blocks, false, err));
    for (int64_t at = 0; at < n_windows; at += batch) {
        int64_t n = n_windows - at < batch ? n_windows - at : batch; /* the rest of the batch is of other windows */
        size_t bytes = (size_t)(n * b->cells) * sizeof(float);
        memcpy(b->in, stream + at * b->cells, bytes);
        net_layer_run_f32(b->net, b->in, b->in);
        memcpy(stream + at * b->cells, b->in, bytes);
        LLMQ_TRY(advance(b, (double)n, what, err));
    }
    return LLMQ_OK;
}

/* ---- training ---- */

static net_square loss_of(const blocks *b, int64_t n_windows) {
    return (net_square){.weight = 1.0 / (double)(n_windows * b->job->calib->ctx), .relative = true};
}

static llmq_status judge(blocks *b, double *error, llmq_err *err) {
    net_source_f32 from = student_source(&b->s);
    net_square what = loss_of(b, b->set->held_out);
    int layer = (int)b->head->blocks;
    *error = 0;
    LLMQ_TRY(net_layer_ready_f32(b->net, &from, layer, false, err));
    for (int64_t i = 0; i < b->set->held_out; i += b->set->batch) {
        int64_t at = (b->n_train + i) * b->cells;
        double loss;
        LLMQ_TRY(net_layer_step_f32(b->net, &from, layer, b->x + at, b->want + at, &what, false, &loss, err));
        *error += loss;
    }
    return LLMQ_OK;
}

static llmq_status step(blocks *b, double *loss, llmq_err *err) {
    net_source_f32 from = student_source(&b->s);
    net_square what = loss_of(b, b->set->batch);
    int layer = (int)b->head->blocks;
    b->s.rate = adam_schedule(b->s.step, (int64_t)b->set->warmup, b->head->total, b->set->floor);
    for (int64_t i = 0; i < b->set->batch; i++) {
        int64_t at = tune_window(b->n_train, b->s.step * b->set->batch + i) * b->cells;
        memcpy(b->in + i * b->cells, b->x + at, (size_t)b->cells * sizeof(float));
        memcpy(b->goal + i * b->cells, b->want + at, (size_t)b->cells * sizeof(float));
    }
    LLMQ_TRY(net_layer_ready_f32(b->net, &from, layer, true, err));
    LLMQ_TRY(net_layer_step_f32(b->net, &from, layer, b->in, b->goal, &what, true, loss, err));
    return LLMQ_OK;
}

/* How many steps a block has time for: an equal share of what there is, the streams' part taken off. */
static void set_total(blocks *b, double pass_seconds, double step_seconds) {
    double seconds = 60 * b->set->minutes / (double)b->job->model->hp.n_layer - 2 * pass_seconds;
    b->head->total = tune_steps_in(seconds, step_seconds, b->set);
    llmq_log(LLMQ_LOG_INFO, "tuning: %lld steps for each layer in %g minutes", (long long)b->head->total,
             b->set->minutes);
}

static llmq_status train(blocks *b, double pass_seconds, const char *what, llmq_err *err) {
    const tune_settings *set = b->set;
    tune_head *head = b->head;
    double first, best, now;
    char text[96];
    LLMQ_TRY(judge(b, &first, err));
    LLMQ_TRY(advance(b, (double)set->held_out, what, err));
    best = first;
    if (set->minutes <= 0) head->total = set->steps;
    while (b->s.step < head->total || !head->total) {
        double begin = time_seconds();
        LLMQ_TRY(step(b, &now, err));
        if (!head->total) set_total(b, pass_seconds, time_seconds() - begin);
        student_update(&b->s);
        mem_note_peak();
        int64_t at = b->s.step, n = head->total;
        snprintf(text, sizeof text, "tuning layer %lld/%lld, block by block: %lld/%lld, error %.5f",
                 (long long)head->blocks + 1, (long long)b->job->model->hp.n_layer, (long long)at, (long long)n, now);
        LLMQ_TRY(advance(b, 3 * (double)set->batch, text, err));
        if (at * set->judge / n == (at - 1) * set->judge / n) continue;
        LLMQ_TRY(judge(b, &now, err));
        LLMQ_TRY(advance(b, (double)set->held_out, text, err));
        if (!(now < best)) continue;
        best = now;
        student_keep_best(&b->s, false);
    }
    llmq_log(LLMQ_LOG_INFO, "tuning: layer %lld: error on held-out windows %.6f -> %.6f", (long long)head->blocks + 1,
             first, best);
    head->block_steps += b->s.step;
    head->block_first += first;
    head->block_best += best;
    return LLMQ_OK;
}

/* ---- blocks ---- */

/* The student's layer `layer`; what is to be stored of it is in the state already if `filled`. */
static llmq_status open_layer(blocks *b, int layer, bool filled, llmq_err *err) {
    range r = range_of(b->job->ex, layer);
    student_memory memory = {.result = tune_numbers_of(b->job), .rest = b->rest, .filled = filled};
    memset(b->rest, 0, b->rest_bytes);
    return student_open(&b->s, b->job, b->set, r.first, r.last, &memory, err);
}

static llmq_status store_layer(blocks *b, llmq_err *err) {
    LLMQ_TRY(student_store(&b->s, err));
    student_clear(&b->s);
    return LLMQ_OK;
}

/* The streams are those of the next layer before its numbers go over the first ones: a run that goes on stores once
 * more and never reads what may be there in part. */
static llmq_status tune_layer(blocks *b, llmq_err *err) {
    char text[96];
    int layer = (int)b->head->blocks;
    net_source_f32 to = teacher_source(&b->t), from = student_source(&b->s);
    double begin = time_seconds();
    snprintf(text, sizeof text, "tuning layer %d/%lld, block by block", layer + 1,
             (long long)b->job->model->hp.n_layer);
    LLMQ_TRY(pass(b, &to, b->want, text, err));
    teacher_release(&b->t, layer);
    LLMQ_TRY(open_layer(b, layer, false, err));
    LLMQ_TRY(train(b, time_seconds() - begin, text, err));
    student_finish(&b->s);
    LLMQ_TRY(pass(b, &from, b->x, text, err));
    b->head->blocks++;
    LLMQ_TRY(b->job->save(b->job->user, true, true, err));
    return store_layer(b, err);
}

static size_t stream_cells(const llmq_tune_job *job) {
    return (size_t)(job->calib->n_windows * job->calib->ctx * job->model->hp.n_embd);
}

static llmq_status prepare(blocks *b, llmq_err *err) {
    const llmq_tune_job *job = b->job;
    size_t batch;
    b->n_train = job->calib->n_windows - b->set->held_out;
    b->cells = job->calib->ctx * job->model->hp.n_embd;
    batch = (size_t)(b->set->batch * b->cells);
    b->x = job->streams;
    b->want = b->x + stream_cells(job);
    for (int l = 0; l < (int)job->model->hp.n_layer; l++) {
        range r = range_of(job->ex, l);
        size_t bytes = student_need(job, b->set, r.first, r.last).rest;
        if (bytes > b->rest_bytes) b->rest_bytes = bytes;
    }
    b->rest = mem_alloc(b->rest_bytes, 1);
    b->in = mem_zalloc(batch, sizeof *b->in);
    b->goal = mem_alloc(batch, sizeof *b->goal);
    if (!b->rest || !b->in || !b->goal) return mem_error(err, b->rest_bytes, "tuning");
    LLMQ_TRY(teacher_open(&b->t, job->model, false, err));
    return student_net(job, b->set->batch, true, &b->net, err);
}

llmq_status tune_blocks(const llmq_tune_job *job, const tune_settings *set, llmq_err *err) {
    blocks b = {.job = job, .set = set, .head = tune_head_of(job)};
    llmq_status status = LLMQ_OK;
    LLMQ_TRY_GOTO(prepare(&b, err));
    if (b.head->blocks > 0) {
        llmq_log(LLMQ_LOG_NOTE, "going on with tuning after layer %lld", (long long)b.head->blocks);
        job->skip(job->user, (double)b.head->blocks / (double)job->model->hp.n_layer);
        LLMQ_TRY_GOTO(open_layer(&b, (int)b.head->blocks - 1, true, err));
        LLMQ_TRY_GOTO(store_layer(&b, err));
    } else {
        LLMQ_TRY_GOTO(embed(&b, err));
    }
    while (b.head->blocks < job->model->hp.n_layer) LLMQ_TRY_GOTO(tune_layer(&b, err));
done:
    student_clear(&b.s);
    teacher_clear(&b.t);
    net_destroy_f32(b.net);
    mem_free(b.rest);
    mem_free(b.in);
    mem_free(b.goal);
    return status;
}

/* ---- what it takes ---- */

/* All windows through both models, the steps, and the windows that judge. */
double tune_blocks_cost(const llmq_tune_job *job, const tune_settings *set, const llmq_tune_costs *costs) {
    double all = (double)job->calib->n_windows, steps = (double)(set->steps * set->batch),
           judged = (double)((set->judge + 1) * set->held_out);
    return (all * (costs->dense + costs->forward) + steps * costs->step + judged * costs->forward) *
           (double)job->calib->ctx * tune_layers_size(job);
}

static size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

/* A matrix on its way from the outputs. */
static size_t quantized_bytes(const llmq_tune_job *job, size_t index) {
    const llmq_type_info *grid = job->grid(job->user, index);
    const llmq_tensor *t = &job->ex->tensors[index];
    if (!grid) return 0;
    return (size_t)tensor_numel(t) + (size_t)(tensor_rows(t) * type_blocks(grid, tensor_cols(t))) * sizeof(llmq_grid);
}

/* A layer of the student, its optimizer, the layer made ready both ways and the net; before, the embedding. */
llmq_tune_need tune_blocks_need(const llmq_tune_job *job, const tune_settings *set) {
    llmq_tune_need need = {.streams = 2 * stream_cells(job) * sizeof(float)};
    size_t layer = 0, moving = 0, table = 0;
    for (int l = 0; l < (int)job->model->hp.n_layer; l++) {
        range r = range_of(job->ex, l);
        student_room room = student_need(job, set, r.first, r.last);
        need.state = max_size(need.state, TUNE_HEAD_BYTES + room.result);
        layer = max_size(layer,
                         room.rest + student_bytes(job, r.first, r.last) + student_layer_bytes(job, r.first, r.last));
    }
    for (size_t i = 0; i < job->ex->n; i++) {
        moving = max_size(moving, quantized_bytes(job, i));
        if (job->ex->entries[i].role == ROLE_TOKEN_EMBD) table = (size_t)job->ex->tensors[i].bytes;
    }
    size_t batch = (size_t)(set->batch * job->calib->ctx * job->model->hp.n_embd);
    need.work = max_size(layer + moving, table) + 2 * batch * sizeof(float) + student_net_bytes(job, set->batch, true);
    return need;
}
