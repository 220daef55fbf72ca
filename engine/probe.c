/* What work costs on this machine with this team: each kind is done in small, by the calls that the job itself makes,
 * on random numbers in the job's shapes. What would take too long is cut where that does not change the speed; all
 * probes together take some tenths of a second. */
#include <math.h>
#include <string.h>

#include "core/hash.h"
#include "engine/pipeline.h"
#include "engine/sampler.h"

#define MOST_CTX 2048
#define PROBE_TIMES 2      /* the fastest one counts, */
#define PROBE_LONG 0.15    /* unless the first took so many seconds */
#define TABLE_ROWS 16      /* of the embedding, and different rows of a weight */
#define SOLVE_COLS 2048    /* of the matrices that solving is probed on */
#define SOLVE_SECONDS 0.04 /* for one of them, about */
#define SOLVE_ROWS 128     /* of each worker, at least */
#define SEARCH_ROWS 32     /* of the site that AWQ's search is probed on */
#define SEARCH_COLS 1024
#define SELF_BYTES ((int64_t)32 << 20) /* of a weight that caches do not hold */
#define HASH_BYTES ((size_t)4 << 20)

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* About as large as weights are. */
static void fill_random(float *x, int64_t n, uint64_t seed) {
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < n; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        x[i] = ((float)(s & 0xffff) + (float)(s >> 16 & 0xffff) + (float)(s >> 32 & 0xffff) - 98302.5f) * 1e-6f;
    }
}

/* Rows that repeat, in a type's bytes: what is timed does not look at the values. *out by mem_alloc. */
static llmq_status random_weight(llmq_type type, int64_t rows, int64_t cols, llmq_tensor *t, uint8_t **out,
                                 llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t row_bytes = (size_t)type_row_bytes(type, cols);
    int64_t different = min64(rows, TABLE_ROWS);
    float *x = mem_alloc((size_t)cols, sizeof *x);
    uint8_t *bytes = *out = mem_alloc((size_t)rows, row_bytes);
    if (!x || !bytes) LLMQ_TRY_GOTO(mem_error(err, (size_t)rows * row_bytes, "measuring this machine"));
    for (int64_t i = 0; i < different; i++) {
        fill_random(x, cols, (uint64_t)i + 1);
        LLMQ_TRY_GOTO(type_from_f32(type, x, NULL, bytes + (size_t)i * row_bytes, cols, err));
    }
    for (int64_t i = different; i < rows; i++)
        memcpy(bytes + (size_t)i * row_bytes, bytes + (size_t)(i % different) * row_bytes, row_bytes);
    *t = (llmq_tensor){
        .type = type, .n_dims = 2, .dims = {cols, rows, 1, 1}, .data = bytes, .bytes = rows * (int64_t)row_bytes};
done:
    mem_free(x);
    return status;
}

/* ---- the calibration's passes: tokens through a layer of random weights */

typedef struct rehearsal {
    llmq_model model; /* as much of one as passes read */
    llmq_calib calib;
    llmq_tensor table;
    uint8_t *table_bytes, *bytes[ROLE_COUNT];
    llmq_weight w[ROLE_COUNT];
    float *gain, *gram; /* ones [n_embd]; (cols, cols) of the widest site */
    llmq_calib_run *run;
} rehearsal;

/* The type in which the calibration's passes read a matrix. */
static llmq_type pass_type(const pipeline *p, const llmq_hparams *hp) {
    for (size_t i = 0; i < p->ex->n; i++) {
        const llmq_type_info *grid = pipeline_is_solved(p, i) ? outputs_grid(&p->spec, p->ex, i, 0) : NULL;
        llmq_type type = grid ? pipeline_pass_type(p, grid) : LLMQ_TYPE_BF16;
        if (type == LLMQ_TYPE_BF16) continue;
        int64_t len = type_info(type)->block_len;
        if (hp->n_embd % len == 0 && hp->n_ff % len == 0 && hp->n_head * hp->head_dim % len == 0) return type;
    }
    return LLMQ_TYPE_BF16;
}

static llmq_status prepare_layer(rehearsal *r, llmq_type type, llmq_team *team, llmq_err *err) {
    static const llmq_role roles[] = {ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        llmq_role role = roles[i];
        int64_t rows, cols;
        llmq_tensor t;
        hparams_role_shape(&r->model.hp, role, &rows, &cols);
        LLMQ_TRY(random_weight(type, rows, cols, &t, &r->bytes[role], err));
        LLMQ_TRY(r->model.ops->weight_prepare(&r->w[role], &t, PREP_BF16, team, err));
        if (r->w[role].packed) {
            mem_free(r->bytes[role]);
            r->bytes[role] = NULL;
        }
        calib_run_weight(r->run, role, &r->w[role]);
    }
    calib_run_vector(r->run, ROLE_ATTN_NORM, r->gain);
    calib_run_vector(r->run, ROLE_FFN_NORM, r->gain);
    return LLMQ_OK;
}

static bool go_on(void *user, const llmq_calib_work *done) {
    (void)user, (void)done;
    return true;
}

static llmq_status rehearsal_create(const pipeline *p, bool dense, rehearsal *r, llmq_err *err) {
    const llmq_model *model = p->model;
    llmq_hparams *hp = &r->model.hp;
    *r = (rehearsal){.model = {.ops = model->ops, .rope_neox = model->rope_neox, .freq_factors = model->freq_factors}};
    *hp = hparams_small(&model->hp);
    hp->n_vocab = TABLE_ROWS;
    r->calib.ctx = min64(p->calib.ctx, MOST_CTX);
    r->calib.n_windows = p->params->max_ram > 0 ? 1 : calib_run_chunk(&p->calib, 0) / p->calib.ctx;
    int64_t n_tok = r->calib.n_windows * r->calib.ctx, widest = 0;
    for (int site = 0; site < SITE_COUNT; site++) {
        int64_t cols = calib_site_cols(hp, (llmq_site_id)site);
        widest = cols > widest ? cols : widest;
    }
    LLMQ_TRY(random_weight(LLMQ_TYPE_F32, TABLE_ROWS, hp->n_embd, &r->table, &r->table_bytes, err));
    r->model.by_role[ROLE_TOKEN_EMBD] = &r->table;
    r->calib.tokens = mem_alloc((size_t)n_tok, sizeof *r->calib.tokens);
    r->gain = mem_alloc((size_t)hp->n_embd, sizeof *r->gain);
    r->gram = mem_alloc((size_t)(widest * widest), sizeof *r->gram);
    if (!r->calib.tokens || !r->gain || !r->gram)
        return mem_error(err, (size_t)(widest * widest) * sizeof *r->gram, "measuring this machine");
    for (int64_t i = 0; i < n_tok; i++) r->calib.tokens[i] = (int32_t)(i * 7 % TABLE_ROWS);
    for (int64_t i = 0; i < hp->n_embd; i++) r->gain[i] = 1;
    LLMQ_TRY(calib_run_create(&r->model, &r->calib, p->team, go_on, NULL, &r->run, err));
    if (!dense) calib_run_statistics(r->run, p->method->needs_gram ? 1 : 0, p->solver.q8);
    LLMQ_TRY(prepare_layer(r, dense ? LLMQ_TYPE_BF16 : pass_type(p, hp), p->team, err));
    mem_note_peak();
    return LLMQ_OK;
}

static void rehearsal_clear(rehearsal *r) {
    calib_run_destroy(r->run);
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (r->w[role].rows) r->model.ops->weight_release(&r->w[role]);
        mem_free(r->bytes[role]);
    }
    mem_free(r->calib.tokens);
    mem_free(r->table_bytes);
    mem_free(r->gain);
    mem_free(r->gram);
}

static double seconds(const llmq_calib_work *spent) {
    double sum = 0;
    for (int k = 0; k < CALIB_KINDS; k++) sum += spent->of[k];
    return sum;
}

static llmq_status time_passes(const pipeline *p, bool dense, double costs[CALIB_KINDS], llmq_err *err) {
    rehearsal r;
    int64_t n_counted;
    llmq_calib_work before = {{0}}, work = {{0}};
    llmq_status status = rehearsal_create(p, dense, &r, err);
    if (status != LLMQ_OK) goto done;
    for (int site = 0; site <= SITE_COUNT; site++) {
        llmq_calib_work one = calib_site_work(&r.model.hp, r.calib.ctx, (llmq_site_id)site, site < SITE_COUNT);
        for (int k = 0; k < CALIB_KINDS; k++) work.of[k] += one.of[k] * (double)(r.calib.n_windows * r.calib.ctx);
    }
    for (int time = 0; time < PROBE_TIMES; time++) {
        for (int site = 0; site <= SITE_COUNT; site++)
            LLMQ_TRY_GOTO(
                calib_run_site(r.run, (llmq_site_id)site, site < SITE_COUNT ? r.gram : NULL, &n_counted, err));
        llmq_calib_work after = calib_run_spent(r.run);
        for (int k = 0; k < CALIB_KINDS; k++) {
            double cost = (after.of[k] - before.of[k]) * 1e9 / work.of[k];
            if (time == 0 || cost < costs[k]) costs[k] = cost;
        }
        if (seconds(&after) - seconds(&before) > PROBE_LONG) break;
        before = after;
    }
done:
    rehearsal_clear(&r);
    return status;
}

llmq_status probe_passes(pipeline *p, llmq_err *err) {
    if (pipeline_calibrates(p)) LLMQ_TRY(time_passes(p, false, p->costs.pass, err));
    bool dense = p->params->awq || pipeline_has_target(p) || p->params->tune || pipeline_finds_ranges(p);
    return dense ? time_passes(p, true, p->costs.dense_pass, err) : LLMQ_OK;
}

/* ---- one tensor: solved, or on its way to the file as it is */

typedef struct gram_job {
    const llmq_backend_ops *ops;
    const float *x;
    int64_t n_tok, cols;
    float *gram;
    void *scratch;
} gram_job;

static void gram_worker(const llmq_worker *w, void *arg) {
    gram_job *job = arg;
    job->ops->gram_add(w, job->x, job->n_tok, job->cols, true, NULL, job->gram, job->scratch);
}

/* The Gram matrix of random inputs. */
static llmq_status make_gram(const pipeline *p, int64_t cols, float **out, int64_t *n_tok_out, llmq_err *err) {
    int64_t n = *n_tok_out = 2 * cols < 512 ? 2 * cols : 512;
    float *x = mem_alloc((size_t)(n * cols), sizeof *x), *gram = *out = mem_zalloc((size_t)(cols * cols), sizeof *gram);
    void *scratch = mem_alloc(p->model->ops->gram_scratch_bytes(n, cols), 1);
    if (!x || !gram || !scratch) {
        mem_free(x);
        mem_free(scratch);
        return mem_error(err, (size_t)(cols * cols) * sizeof *gram, "measuring this machine");
    }
    fill_random(x, n * cols, 3);
    for (int64_t t = 0; t < n; t++) /* inputs are alike in part, and some are larger */
        for (int64_t c = 0; c < cols; c++) x[t * cols + c] = (x[t * cols + c] + x[t * cols]) * (float)(1 + c % 5);
    gram_job job = {p->model->ops, x, n, cols, gram, scratch};
    team_run(p->team, gram_worker, &job);
    mem_free(x);
    mem_free(scratch);
    return LLMQ_OK;
}

/* Evenly spaced rows of a tensor of the source, their first columns. */
static llmq_status sample_rows(const pipeline *p, size_t index, int64_t n, int64_t cols, float **out, llmq_err *err) {
    const llmq_tensor *src = p->ex->entries[index].src;
    int64_t rows = tensor_rows(src), row_bytes = type_row_bytes(src->type, tensor_cols(src));
    float *w = *out = mem_alloc((size_t)(n * cols), sizeof *w);
    if (!w) return mem_error(err, (size_t)(n * cols) * sizeof *w, "measuring this machine");
    LLMQ_TRY(source_load(p->model->source, src, false, err));
    for (int64_t i = 0; i < n; i++)
        type_to_f32(src->type, (const uint8_t *)src->data + i * rows / n * row_bytes, w + i * cols, cols);
    source_release(p->model->source, src);
    return LLMQ_OK;
}

/* Cuts the problem to what takes about SOLVE_SECONDS, but not below two turns for each worker. */
static void cut_problem(const llmq_method *method, llmq_quant_problem *p) {
    int64_t least = SOLVE_ROWS * team_size(p->team);
    p->part_of = p->rows;
    p->cols = min64(p->cols, SOLVE_COLS);
    while (method_work(method, p) > SOLVE_SECONDS * 1e9 && p->rows > least)
        p->rows = p->rows / 2 > least ? p->rows / 2 : least;
}

/* Seconds of solving it as a matrix of `rows` rows. */
static llmq_status time_solve(const llmq_method *method, const llmq_quant_problem *p, int64_t rows, double *out,
                              llmq_err *err) {
    llmq_quant_report report;
    for (int time = 0; time < PROBE_TIMES; time++) {
        llmq_quantized *q = NULL;
        double begin = time_seconds();
        llmq_status status = quantized_create(p->type, rows, p->rows * p->cols / rows, &q, err);
        if (status == LLMQ_OK) status = method->solve(p, q, &report, err);
        double took = time_seconds() - begin;
        mem_note_peak();
        quantized_destroy(q);
        if (status != LLMQ_OK) return status;
        if (time == 0 || took < *out) *out = took;
        if (took > PROBE_LONG) break;
    }
    return LLMQ_OK;
}

/* Nanoseconds of solving matrix `index` on one grid: of some rows' decoding and solving. */
static llmq_status probe_solve(pipeline *p, size_t index, const llmq_type_info *grid, double *out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_tensor *t = &p->ex->tensors[index];
    bool one_row = quantized_crosses_rows(grid, tensor_cols(t)); /* as in pipeline.c's run_method */
    const llmq_method *method = one_row && p->method->needs_gram ? method_find("rtn") : p->method;
    float *w = NULL, *gram = NULL;
    llmq_quant_problem problem = {.name = t->name,
                                  .rows = tensor_rows(t),
                                  .cols = tensor_cols(t),
                                  .type = grid,
                                  .weighted = p->params->awq && !one_row,
                                  .solver = p->solver,
                                  .damp = p->params->damp,
                                  .ops = p->model->ops,
                                  .team = p->team};
    if (method->needs_gram || problem.weighted)
        LLMQ_TRY_GOTO(make_gram(p, min64(problem.cols, SOLVE_COLS), &gram, &problem.n_tokens, err));
    problem.gram = gram;
    double whole = method_work(method, &problem), solving = 0, begin = time_seconds();
    cut_problem(method, &problem);
    double part = method_work(method, &problem), cells = (double)(problem.rows * problem.cols);
    LLMQ_TRY_GOTO(sample_rows(p, index, problem.rows, problem.cols, &w, err));
    double decoding = (time_seconds() - begin) * (double)tensor_numel(t) / cells / team_size(p->team);
    problem.w = w;
    int64_t rows = problem.rows;
    if (one_row) problem.cols *= rows, problem.rows = 1;
    LLMQ_TRY_GOTO(time_solve(method, &problem, rows, &solving, err));
    *out = 1e9 * (solving * whole / part + decoding);
done:
    mem_free(w);
    mem_free(gram);
    return status;
}

static llmq_status drop_bytes(void *to, size_t index, const void *data, size_t bytes, size_t offset, llmq_err *err) {
    (void)to, (void)index, (void)data, (void)bytes, (void)offset, (void)err;
    return LLMQ_OK;
}

static bool stop_at_once(void *share_out, double share) {
    *(double *)share_out = share;
    return false;
}

/* Nanoseconds of a tensor's way into the file as it is, or plainly rounded: of a part of it, written to nowhere. What
 * else is wrong with the tensor, the job itself will find. */
static llmq_status probe_copy(const pipeline *p, size_t index, double *out, llmq_err *err) {
    bool exact;
    llmq_err why;
    double share = 1, begin = time_seconds();
    export_sink sink = {.put = drop_bytes, .tick = stop_at_once, .user = &share};
    if (export_write(p->ex, index, NULL, &sink, p->team, &exact, &why) == LLMQ_E_MEMORY)
        return llmq_fail(err, LLMQ_E_MEMORY, "%s", why.msg);
    *out = (time_seconds() - begin) * 1e9 / share * (double)outputs_count(&p->spec);
    return LLMQ_OK;
}

static llmq_status probe_tensor(pipeline *p, size_t index, double *out, llmq_err *err) {
    const llmq_type_info *grid;
    *out = 0;
    if (!pipeline_is_solved(p, index)) return probe_copy(p, index, out, err);
    for (size_t k = 0; (grid = outputs_grid(&p->spec, p->ex, index, k)) != NULL; k++) {
        double one;
        LLMQ_TRY(probe_solve(p, index, grid, &one, err));
        *out += one;
    }
    return LLMQ_OK;
}

/* The same work, for all that probe_tensor looks at. */
static bool is_alike(const pipeline *p, size_t a, size_t b) {
    const llmq_tensor *x = &p->ex->tensors[a], *y = &p->ex->tensors[b];
    const llmq_export_entry *from = &p->ex->entries[a], *to = &p->ex->entries[b];
    bool same_source = from->src && to->src ? from->src->type == to->src->type : from->src == to->src;
    return x->type == y->type && tensor_rows(x) == tensor_rows(y) && tensor_cols(x) == tensor_cols(y) && same_source &&
           from->matrix == to->matrix && (from->layer < 0) == (to->layer < 0);
}

/* Of those alike, one from the middle of the model is measured: the first layers' weights are unlike the others'. */
llmq_status probe_tensors(pipeline *p, llmq_err *err) {
    size_t n = p->ex->n;
    double *cost = p->costs.tensor ? p->costs.tensor : mem_alloc(n, sizeof *cost);
    if (!cost) return mem_error(err, n * sizeof *cost, "the forecast");
    p->costs.tensor = cost;
    for (size_t i = 0; i < n; i++) cost[i] = -1;
    for (size_t i = 0; i < n; i++) {
        size_t members = 0, middle = i;
        double one;
        if (cost[i] >= 0) continue;
        for (size_t k = i; k < n; k++) members += is_alike(p, i, k);
        for (size_t k = i, seen = 0; k < n; k++)
            if (is_alike(p, i, k) && seen++ == members / 2) middle = k;
        LLMQ_TRY(probe_tensor(p, middle, &one, err));
        for (size_t k = i; k < n; k++)
            if (is_alike(p, i, k)) cost[k] = one;
    }
    return LLMQ_OK;
}

/* ---- AWQ's search */

/* A matrix in the middle of the model that is solved. */
static size_t some_solved(const pipeline *p) {
    size_t n = 0, i = 0;
    for (size_t k = 0; k < p->ex->n; k++) n += pipeline_is_solved(p, k);
    for (size_t seen = 0; i < p->ex->n && (!pipeline_is_solved(p, i) || seen++ < n / 2);) i++;
    return i;
}

llmq_status probe_search(pipeline *p, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t i = some_solved(p);
    float *w = NULL, *gram = NULL, *scales = NULL;
    llmq_site_report report;
    if (i == p->ex->n) return LLMQ_OK;
    int64_t cols = min64(tensor_cols(&p->ex->tensors[i]), SEARCH_COLS), n_tok;
    int64_t rows = min64(tensor_rows(&p->ex->tensors[i]), SEARCH_ROWS);
    scales = mem_alloc((size_t)cols, sizeof *scales);
    if (!scales) LLMQ_TRY_GOTO(mem_error(err, (size_t)cols * sizeof *scales, "measuring this machine"));
    LLMQ_TRY_GOTO(sample_rows(p, i, rows, cols, &w, err));
    LLMQ_TRY_GOTO(make_gram(p, cols, &gram, &n_tok, err));
    llmq_site_matrix matrix = {.w = w, .n_rows = rows, .type = outputs_grid(&p->spec, p->ex, i, 0)};
    llmq_site_problem problem = {.matrices = &matrix,
                                 .n_matrices = 1,
                                 .cols = cols,
                                 .n_channels = cols,
                                 .gram = gram,
                                 .n_tokens = n_tok,
                                 .feedback = p->method->needs_gram,
                                 .damp = p->params->damp,
                                 .ops = p->model->ops,
                                 .team = p->team};
    double begin = time_seconds();
    LLMQ_TRY_GOTO(awq_scales(&problem, scales, &report, err));
    p->costs.search =
        (time_seconds() - begin) * 1e9 / transform_search_work(rows, cols, problem.feedback, team_size(p->team));
done:
    mem_free(scales);
    mem_free(gram);
    mem_free(w);
    return status;
}

/* ---- errors by which types are chosen */

llmq_status probe_errors(pipeline *p, llmq_err *err) {
    llmq_sensitivity_job job = pipeline_sensitivity_job(p);
    double took;
    size_t i = p->ex->n;
    for (size_t k = 0; k < p->ex->n; k++) /* of the smallest columns */
        if (p->ex->entries[k].matrix && p->ex->entries[k].layer == (int)p->model->hp.n_layer / 2 &&
            (i == p->ex->n || tensor_cols(&p->ex->tensors[k]) < tensor_cols(&p->ex->tensors[i])))
            i = k;
    if (i == p->ex->n) return LLMQ_OK;
    job.tick_errors = NULL;
    LLMQ_TRY(sensitivity_probe(&job, i, &took, err));
    p->costs.errors = took * 1e9 / sensitivity_error_work(p->ex, i);
    return LLMQ_OK;
}

/* ---- text that the model writes */

typedef struct self_probe {
    const llmq_backend_ops *ops;
    llmq_weight w;
    llmq_acts acts; /* (streams, cols) */
    float *y;       /* (streams, rows) */
    llmq_attn attn;
    llmq_kv kv; /* one layer's of one stream */
    float *q, *mixed;
    void *scratch;
    double weights, attention; /* seconds of all streams */
} self_probe;

static void self_worker(const llmq_worker *w, void *arg) {
    self_probe *s = arg;
    double begin = time_seconds();
    s->ops->acts_fill(w, &s->acts, s->w.act);
    worker_barrier(w);
    s->ops->matmul(w, &s->w, &s->acts, s->y, s->w.rows);
    worker_barrier(w);
    double middle = time_seconds();
    for (int i = 0; i < CALIB_SELF_STREAMS; i++) {
        s->ops->attention(w, &s->attn, s->q, s->attn.n_head * s->attn.head_dim, &s->kv, s->mixed, s->scratch);
        worker_barrier(w);
    }
    if (w->id != 0) return;
    s->weights = middle - begin;
    s->attention = time_seconds() - middle;
}

static llmq_status self_buffers(const pipeline *p, self_probe *s, float **x, llmq_err *err) {
    const llmq_hparams *hp = &p->model->hp;
    const llmq_backend_ops *ops = s->ops;
    int64_t n = CALIB_SELF_STREAMS, rows = s->w.rows, cols = s->w.cols, q_dim = hp->n_head * hp->head_dim;
    size_t kv_bytes = ops->kv_bytes(LLMQ_KV_F16, p->calib.ctx, (int)hp->n_head_kv, (int)hp->head_dim);
    s->attn = (llmq_attn){.n_head = (int)hp->n_head,
                          .n_head_kv = (int)hp->n_head_kv,
                          .head_dim = (int)hp->head_dim,
                          .scale = 1,
                          .window = hp->window,
                          .pos = p->calib.ctx / 2,
                          .n_tok = 1};
    *x = mem_zalloc((size_t)(n * cols), sizeof **x);
    s->acts = (llmq_acts){.n_tok = n, .cols = cols, .x = *x};
    s->acts.q8 = mem_zalloc(ops->acts_bytes(ACT_Q8, n, cols), 1);
    s->acts.bf16 = mem_zalloc(ops->acts_bytes(ACT_BF16, n, cols), 1);
    s->y = mem_zalloc((size_t)(n * rows), sizeof *s->y);
    s->q = mem_zalloc((size_t)q_dim, sizeof *s->q);
    s->mixed = mem_zalloc((size_t)q_dim, sizeof *s->mixed);
    s->scratch = mem_zalloc(ops->attn_scratch_bytes(&s->attn, team_size(p->team)), 1);
    s->kv = (llmq_kv){.k = mem_zalloc(kv_bytes, 1),
                      .v = mem_zalloc(kv_bytes, 1),
                      .type = LLMQ_KV_F16,
                      .n_ctx = p->calib.ctx,
                      .n_head_kv = (int)hp->n_head_kv,
                      .head_dim = (int)hp->head_dim};
    if (*x && s->acts.q8 && s->acts.bf16 && s->y && s->q && s->mixed && s->scratch && s->kv.k && s->kv.v)
        return LLMQ_OK;
    return mem_error(err, (size_t)(n * rows) * sizeof *s->y, "measuring this machine");
}

/* Seconds of drawing one token. */
static llmq_status time_sampling(int64_t n_vocab, double *out, llmq_err *err) {
    llmq_sampler sampler = {0};
    llmq_sampler_params params = {.temperature = 1, .top_k = CALIB_SELF_TOP_K, .top_p = 1, .repeat_penalty = 1};
    int32_t token;
    float *logits = mem_alloc((size_t)n_vocab, sizeof *logits);
    if (!logits) return mem_error(err, (size_t)n_vocab * sizeof *logits, "measuring this machine");
    fill_random(logits, n_vocab, 7);
    for (int64_t i = 0; i < n_vocab; i++) logits[i] *= 50;
    llmq_status status = sampler_create(n_vocab, &sampler, err);
    sampler_set(&sampler, &params);
    for (int time = 0; time < 2 && status == LLMQ_OK; time++) { /* the first one touches the memory */
        double begin = time_seconds();
        status = sampler_sample(&sampler, logits, NULL, 0, &token, err);
        *out = time_seconds() - begin;
    }
    sampler_destroy(&sampler);
    mem_free(logits);
    return status;
}

llmq_status probe_self(pipeline *p, llmq_err *err) {
    llmq_type type = p->model->layer_tensors[0].by_role[ROLE_Q]->type;
    const llmq_hparams *hp = &p->model->hp;
    self_probe s = {.ops = p->model->ops};
    llmq_tensor t;
    uint8_t *bytes = NULL;
    float *x = NULL;
    double weights = 0, sampling = 0, turns = ceil(CALIB_SELF_STREAMS / (double)team_size(p->team));
    for (size_t i = 0; i < p->ex->n; i++)
        if (p->ex->entries[i].matrix) weights += (double)tensor_numel(&p->ex->tensors[i]);
    if (!type_can_encode(type_info(type))) type = LLMQ_TYPE_F16;
    int64_t cols = hp->n_embd, rows = SELF_BYTES / type_row_bytes(type, cols);
    rows = min64(rows, (int64_t)weights / cols);
    llmq_status status = random_weight(type, rows, cols, &t, &bytes, err);
    if (status != LLMQ_OK) goto done;
    double begin = time_seconds();
    LLMQ_TRY_GOTO(s.ops->weight_prepare(&s.w, &t, 0, p->team, err));
    if (s.w.packed) {
        mem_free(bytes);
        bytes = NULL;
    }
    p->costs.self_open = (time_seconds() - begin) * 1e9 * weights / (double)(rows * cols);
    LLMQ_TRY_GOTO(self_buffers(p, &s, &x, err));
    for (int time = 0; time < 2; time++) team_run(p->team, self_worker, &s);
    LLMQ_TRY_GOTO(time_sampling(hp->n_vocab, &sampling, err));
    p->costs.self_token =
        1e9 / CALIB_SELF_STREAMS *
        (s.weights * weights / (double)(rows * cols) + s.attention * (double)hp->n_layer + sampling * turns);
done:
    if (s.w.rows) s.ops->weight_release(&s.w);
    void *blocks[] = {bytes, x, s.acts.q8, s.acts.bf16, s.y, s.q, s.mixed, s.scratch, s.kv.k, s.kv.v};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    return status;
}

/* ---- the source's bytes */

void probe_source(pipeline *p) {
    const llmq_source *source = p->model->source;
    if (!source->n_maps || !source->maps[0].size) return;
    size_t n = source->maps[0].size < HASH_BYTES ? source->maps[0].size : HASH_BYTES;
    double begin = time_seconds();
    (void)hash_bytes(source->maps[0].data, n);
    p->costs.source_byte = (time_seconds() - begin) * 1e9 / (double)n;
}
