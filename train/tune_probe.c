/* What training costs on this machine: a layer of the model's shape, or of a smaller one that works as fast, with codes
 * at random on the job's own grids, is run and trained as the job will do it. */
#include "engine/calib.h"
#include "train/tune_stages.h"

#define MOST_TOKENS 512
#define TIMES 2  /* the faster counts: the first one meets memory that nobody has touched, */
#define LONG 0.5 /* unless it took so many seconds */

/* A model of one layer in place of the job's; entry i of its export would be the matrix of role i. */
typedef struct rehearsal {
    const llmq_tune_job *real;
    size_t entry[ROLE_COUNT]; /* of the job's export, in a layer */
    bool has[ROLE_COUNT];
    llmq_model model;
    llmq_layer_tensors layer;
    llmq_tensor shape[ROLE_COUNT];
    llmq_calib calib;
    llmq_tune_job job;
    student s;
    net_f32 *net;
    float *numbers[ROLE_COUNT]; /* gradients of what is trained; codes' too */
    float *x, *want;
    double size; /* weights */
} rehearsal;

static bool input_of(void *user, size_t role, llmq_act_range *range) {
    const rehearsal *r = user;
    return r->real->input(r->real->user, r->entry[role], range);
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void set_shape(rehearsal *r) {
    const llmq_model *model = r->real->model;
    r->model.hp = hparams_small(&model->hp);
    r->model.rope_neox = model->rope_neox;
    r->model.freq_factors = model->freq_factors;
    r->model.ops = model->ops;
    r->model.layer_tensors = &r->layer;
    r->calib.ctx = least(r->real->calib->ctx, MOST_TOKENS);
    r->job = *r->real;
    r->job.model = &r->model;
    r->job.calib = &r->calib;
    r->job.input = input_of;
    r->job.grid = NULL; /* these know the job's own user only */
    r->job.tick = NULL;
    r->job.save = NULL;
    r->job.skip = NULL;
    r->job.user = r;
}

/* A matrix on this grid whose codes take every value and whose weights are about as large as weights are. */
static llmq_status random_matrix(const llmq_type_info *grid, int64_t rows, int64_t cols, tunable *out, llmq_err *err) {
    llmq_quantized *q = NULL;
    uint64_t s = 1;
    LLMQ_TRY(quantized_create(grid, rows, cols, &q, err));
    for (int64_t i = 0; i < rows * cols; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        q->codes[i] = (uint8_t)((s >> 33) % (uint64_t)grid->n_levels);
    }
    float top = grid->levels[grid->n_levels - 1], scale = 0.05f / (top > 1 ? top : 1);
    if (q->nested) q->nested->offset = scale;
    for (int64_t g = 0; g < quantized_grids(q); g++) {
        q->grids[g] = (llmq_grid){.d = scale};
        for (int k = 0; k < TYPE_MAX_GROUPS; k++) q->grids[g].scale[k] = scale, q->grids[g].sc[k] = 1;
    }
    llmq_status status = tunable_create(q, out, err);
    quantized_destroy(q);
    return status;
}

static llmq_status take(void *slot, size_t n, llmq_err *err) {
    void **p = slot;
    *p = mem_zalloc(n, 1);
    return *p ? LLMQ_OK : mem_error(err, n, "measuring what tuning costs");
}

static llmq_status make_matrix(rehearsal *r, llmq_role role, llmq_err *err) {
    student_part *p = &r->s.parts[role];
    const llmq_tensor *shape = &r->shape[role];
    int64_t rows = tensor_rows(shape), cols = tensor_cols(shape);
    const llmq_type_info *grid = r->real->grid(r->real->user, r->entry[role]);
    bool fits = grid && (grid->ragged || cols % grid->block_len == 0); /* the outputs of fewer heads may not */
    r->size += (double)(rows * cols);
    if (!fits) { /* as it would stay */
        p->view = *shape;
        return take(&p->view.data, (size_t)shape->bytes, err);
    }
    LLMQ_TRY(random_matrix(grid, rows, cols, &p->matrix, err));
    size_t n = (size_t)p->matrix.n_x, cells = r->s.set->code_lr > 0 ? (size_t)(rows * cols) : 0;
    LLMQ_TRY(take(&r->numbers[role], (n + 3 * cells) * sizeof(float), err));
    float *z = r->numbers[role] + n;
    if (cells) tunable_free_codes(&p->matrix, false, z, z + cells, z + 2 * cells);
    p->t = (student_numbers){.x = p->matrix.x, .g = r->numbers[role], .n = p->matrix.n_x, .rate = 1};
    return LLMQ_OK;
}

static llmq_status make_gain(rehearsal *r, llmq_role role, llmq_err *err) {
    student_part *p = &r->s.parts[role];
    student_gain *g = &p->gain;
    g->n = tensor_numel(&r->shape[role]);
    size_t bytes = (size_t)g->n * sizeof(float);
    p->view = r->shape[role];
    LLMQ_TRY(take(&p->view.data, bytes, err));
    LLMQ_TRY(take(&g->g0, bytes, err));
    LLMQ_TRY(take(&g->x, bytes, err));
    LLMQ_TRY(take(&g->now, bytes, err));
    LLMQ_TRY(take(&r->numbers[role], bytes, err));
    for (int64_t i = 0; i < g->n; i++) g->g0[i] = g->x[i] = g->now[i] = 1;
    p->t = (student_numbers){.x = g->x, .g = r->numbers[role], .n = g->n, .rate = 1};
    return LLMQ_OK;
}

/* The entries of a layer in the middle, which mixtures treat as most. */
static void find_entries(rehearsal *r) {
    int middle = (int)r->real->model->hp.n_layer / 2;
    for (size_t i = 0; i < r->real->ex->n; i++) {
        const llmq_export_entry *e = &r->real->ex->entries[i];
        if (e->layer != middle) continue;
        r->entry[e->role] = i;
        r->has[e->role] = true;
    }
}

static llmq_status make_layer(rehearsal *r, llmq_err *err) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        int64_t rows, cols;
        if (!r->has[role] || !student_wants().of[role] || role == ROLE_OUTPUT_NORM) continue;
        hparams_role_shape(&r->model.hp, (llmq_role)role, &rows, &cols);
        bool matrix = arch_role_is_matrix((llmq_role)role);
        llmq_type type = matrix ? LLMQ_TYPE_BF16 : LLMQ_TYPE_F32;
        r->shape[role] = (llmq_tensor){.type = type, .n_dims = 2, .dims = {cols, rows, 1, 1}};
        r->shape[role].bytes = rows * type_row_bytes(type, cols);
        r->layer.by_role[role] = &r->shape[role];
        r->s.by_role[role] = &r->s.parts[role];
        LLMQ_TRY(matrix ? make_matrix(r, (llmq_role)role, err) : make_gain(r, (llmq_role)role, err));
    }
    return LLMQ_OK;
}

static llmq_status create(rehearsal *r, const tune_settings *set, llmq_err *err) {
    size_t cells = (size_t)(set->batch * r->calib.ctx * r->model.hp.n_embd);
    LLMQ_TRY(student_shell(&r->s, &r->job, set, ROLE_COUNT, err));
    LLMQ_TRY(make_layer(r, err));
    LLMQ_TRY(take(&r->x, cells * sizeof(float), err));
    LLMQ_TRY(take(&r->want, cells * sizeof(float), err));
    for (size_t i = 0; i < cells; i++) {
        r->x[i] = (float)(i * 7919 % 2003) / 1001.0f - 1;
        r->want[i] = (float)(i * 6131 % 1999) / 999.0f - 1;
    }
    return student_net(&r->job, set->batch, true, &r->net, err);
}

static llmq_status measure(rehearsal *r, llmq_tune_costs *costs, llmq_err *err) {
    net_source_f32 source = student_source(&r->s);
    int64_t n_tok = r->s.set->batch * r->calib.ctx;
    net_square what = {.weight = 1.0 / (double)n_tok, .relative = true};
    double work = r->size * (double)n_tok, loss, begin = time_seconds();
    r->s.rate = 1;
    LLMQ_TRY(net_layer_ready_f32(r->net, &source, 0, false, err));
    net_layer_run_f32(r->net, r->x, r->x);
    double middle = time_seconds();
    LLMQ_TRY(net_layer_ready_f32(r->net, &source, 0, true, err));
    LLMQ_TRY(net_layer_step_f32(r->net, &source, 0, r->x, r->want, &what, true, &loss, err));
    mem_note_peak();
    costs->forward = 1e9 * (middle - begin) / work;
    costs->step = 1e9 * (time_seconds() - middle) / work;
    return LLMQ_OK;
}

static void clear(rehearsal *r) {
    student_clear(&r->s);
    net_destroy_f32(r->net);
    for (int role = 0; role < ROLE_COUNT; role++) mem_free(r->numbers[role]);
    mem_free(r->x);
    mem_free(r->want);
}

llmq_status tune_probe(const llmq_tune_job *job, const tune_settings *set, llmq_tune_costs *costs, llmq_err *err) {
    rehearsal r = {.real = job};
    tune_settings small = *set;
    llmq_status status = LLMQ_OK;
    set_shape(&r);
    find_entries(&r);
    small.batch = least(set->batch, MOST_TOKENS / r.calib.ctx);
    LLMQ_TRY_GOTO(create(&r, &small, err));
    for (int i = 0; i < TIMES; i++) {
        llmq_tune_costs now = *costs;
        LLMQ_TRY_GOTO(measure(&r, &now, err));
        if (i == 0 || now.forward < costs->forward) costs->forward = now.forward;
        if (i == 0 || now.step < costs->step) costs->step = now.step;
        if (1e-9 * now.step * r.size * (double)(small.batch * r.calib.ctx) > LONG) break;
    }
done:
    clear(&r);
    return status;
}
