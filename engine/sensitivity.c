/* How much a matrix matters is measured by making it worse: one window of text runs through the model many times at
 * once, each time with one matrix rounded coarsely (a stream), and the KL divergence of the predictions from those of
 * the untouched stream is what that rounding costs. For small errors the divergence grows with the energy of the
 * layer's error, so
 *
 *     loss(type) = KL(coarse) * e(type) / e(coarse) * gain,    e = tr(E H E') / tr(W H W')
 *
 * with e from the Gram matrix H of the first calibration tokens and a sample of rows. gain is what error feedback is
 * expected to make good: with H = L D L' in the order of rounding, feedback leaves tr(D) of the tr(H) that plain
 * rounding leaves.
 *
 * Of deep models only some layers get streams; between them KL / e is interpolated for each role. */
#include "engine/sensitivity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "engine/eval.h"
#include "quant/quant.h"

#define GRAM_TOKENS 8192
#define STREAM_TOKENS 256
#define STREAM_LAYERS 12 /* that get streams */
#define ERROR_ROWS 16    /* of a matrix that errors are measured on */
#define TABLE_ROWS 256   /* of the embedding and the head */
#define COARSE_GROUP 32
#define HEAD_ROWS 64 /* tokens whose logits are in memory at a time */

static const llmq_role matrix_roles[] = {ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN};
enum { N_MATRIX_ROLES = sizeof matrix_roles / sizeof *matrix_roles };

typedef struct measured {
    double error[LLMQ_TYPE_COUNT]; /* relative, of each candidate */
    double coarse;                 /* of coarse rounding */
    double gain;
    double kl; /* of coarse rounding; < 0: no stream */
    int64_t window;
} measured;

typedef struct sensitivity {
    const llmq_sensitivity_job *job;
    llmq_calib gram_calib, stream_calib;
    llmq_calib_run *gram_run, *stream_run;
    float *gram, *factor;        /* the largest site's (cols, cols) */
    measured *m;                 /* [ex->n] */
    size_t (*index)[ROLE_COUNT]; /* [n_layer] entries of matrices; ex->n: none */
    llmq_weight clean[ROLE_COUNT], worse[ROLE_COUNT];
    uint16_t *worse_bf16[ROLE_COUNT];
} sensitivity;

bool sensitivity_is_candidate(const llmq_export *ex, size_t index, llmq_type type) {
    const llmq_type_info *t = type_info(type);
    bool outer = ex->entries[index].layer < 0;
    if (!t || !type_can_encode(t) || t->ragged) return false;
    if (type_is_float(t)) return outer && type == LLMQ_TYPE_F16;
    return tensor_cols(&ex->tensors[index]) % t->block_len == 0 && t->bits >= (outer ? 4 : 2) && t->bits <= 8;
}

static int64_t stream_ctx(const llmq_calib *calib) {
    return calib->ctx < STREAM_TOKENS ? calib->ctx : STREAM_TOKENS;
}

/* Layer l of n gets streams: the first and the last ones always, the others evenly. */
static bool has_streams(int64_t l, int64_t n) {
    if (n <= STREAM_LAYERS || l < 3 || l >= n - 2) return true;
    int64_t inner = STREAM_LAYERS - 5, span = n - 5, at = l - 3;
    return at * (inner + 1) / span != (at - 1) * (inner + 1) / span && at > 0;
}

static int64_t count_windows(const llmq_model *model) {
    int64_t n = 2; /* untouched, embedding */
    for (int64_t l = 0; l < model->hp.n_layer; l++) n += has_streams(l, model->hp.n_layer) ? N_MATRIX_ROLES : 0;
    return n;
}

static void add_work(llmq_calib_work *sum, llmq_calib_work work, double n_tok) {
    for (int k = 0; k < CALIB_KINDS; k++) sum->of[k] += work.of[k] * n_tok;
}

static int64_t gram_windows(const llmq_calib *calib) {
    int64_t n = (GRAM_TOKENS + calib->ctx - 1) / calib->ctx;
    return n < calib->n_windows ? n : calib->n_windows;
}

/* A chunk of the Gram matrices' tokens. */
static int64_t gram_chunk(const llmq_sensitivity_job *job) {
    int64_t n_tok = gram_windows(job->calib) * job->calib->ctx, chunk = job->chunk;
    if (!chunk) chunk = calib_run_chunk(job->calib, 0);
    return chunk < n_tok ? chunk : n_tok;
}

llmq_calib_work sensitivity_work(const llmq_model *model, const llmq_calib *calib) {
    static const int matrices[SITE_COUNT] = {3, 1, 2, 1};
    const llmq_hparams *hp = &model->hp;
    llmq_calib_work sum = {{0}};
    int64_t ctx = stream_ctx(calib), streams = 2;
    for (int64_t l = 0; l < hp->n_layer; l++)
        for (int site = 0; site <= SITE_COUNT; site++) {
            llmq_site_id id = (llmq_site_id)site;
            if (site < SITE_COUNT || l + 1 < hp->n_layer)
                add_work(&sum, calib_site_work(hp, calib->ctx, id, site < SITE_COUNT),
                         (double)(gram_windows(calib) * calib->ctx));
            add_work(&sum, calib_site_work(hp, ctx, id, false), (double)(streams * ctx));
            if (site < SITE_COUNT && has_streams(l, hp->n_layer)) streams += matrices[site];
        }
    sum.of[CALIB_WEIGHTS] += (double)(streams * ctx) / 2 * (double)hp->n_vocab * (double)hp->n_embd; /* the head */
    return sum;
}

/* Absmax rounding to 4 bits in groups, without any search. */
static void round_coarsely(const float *w, float *y, int64_t n) {
    for (int64_t at = 0; at < n; at += COARSE_GROUP) {
        int64_t end = at + COARSE_GROUP < n ? at + COARSE_GROUP : n;
        float most = 0;
        for (int64_t i = at; i < end; i++) most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
        float scale = most / 7;
        for (int64_t i = at; i < end; i++) y[i] = scale > 0 ? rintf(w[i] / scale) * scale : 0;
    }
}

/* ---- errors of sampled rows ---- */

typedef struct error_job {
    const llmq_export *ex;
    size_t index;
    const float *gram;       /* (cols, cols) lower triangle; NULL: the identity */
    const float *importance; /* [cols] or NULL */
    float *scratch;          /* (workers, 3, cols) */
    int64_t n_rows;
    double (*row)[LLMQ_TYPE_COUNT + 2]; /* [n_rows] errors of the types, of coarse rounding, energy */
} error_job;

/* e H e' by the lower triangle. */
static double energy(const float *gram, const float *e, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double dot = 0;
        if (e[i] == 0) continue;
        for (int64_t at = 0; gram && at < i; at += 64) { /* floats over a short stretch, then doubles */
            int64_t end = at + 64 < i ? at + 64 : i;
            float part[16] = {0};
            int64_t j = at;
            for (; j + 16 <= end; j += 16)
                for (int k = 0; k < 16; k++) part[k] += gram[i * n + j + k] * e[j + k];
            for (; j < end; j++) part[0] += gram[i * n + j] * e[j];
            for (int k = 0; k < 16; k++) dot += (double)part[k];
        }
        sum += (double)e[i] * (2 * dot + (gram ? (double)gram[i * n + i] : 1.0) * (double)e[i]);
    }
    return sum > 0 ? sum : 0;
}

static void round_row(const llmq_type_info *t, const float *w, const float *importance, float *y, int64_t cols) {
    uint8_t codes[TYPE_MAX_BLOCK];
    llmq_grid grid;
    if (type_is_float(t)) {
        for (int64_t i = 0; i < cols; i++) y[i] = f16_to_f32(f32_to_f16(w[i]));
        return;
    }
    for (int64_t at = 0; at < cols; at += t->block_len) {
        type_fit(t, w + at, importance ? importance + at : NULL, t->block_len, &grid);
        type_codes(t, &grid, w + at, t->block_len, codes);
        type_values(t, &grid, codes, t->block_len, y + at);
    }
}

static void error_worker(const llmq_worker *worker, void *arg) {
    const error_job *job = arg;
    const llmq_tensor *src = job->ex->entries[job->index].src;
    int64_t cols = tensor_cols(src), rows = tensor_rows(src), row_bytes = type_row_bytes(src->type, cols);
    float *w = job->scratch + worker->id * 3 * cols, *e = w + cols;
    for (int64_t r = worker->id; r < job->n_rows; r += worker->n) {
        double *out = job->row[r];
        type_to_f32(src->type, (const uint8_t *)src->data + r * rows / job->n_rows * row_bytes, w, cols);
        out[LLMQ_TYPE_COUNT + 1] = energy(job->gram, w, cols);
        round_coarsely(w, e, cols);
        for (int64_t i = 0; i < cols; i++) e[i] -= w[i];
        out[LLMQ_TYPE_COUNT] = energy(job->gram, e, cols);
        for (int type = 0; type < LLMQ_TYPE_COUNT; type++) {
            out[type] = 0;
            if (!sensitivity_is_candidate(job->ex, job->index, (llmq_type)type)) continue;
            round_row(type_info((llmq_type)type), w, job->importance, e, cols);
            for (int64_t i = 0; i < cols; i++) e[i] -= w[i];
            out[type] = energy(job->gram, e, cols);
        }
    }
}

static int64_t error_rows(const llmq_export *ex, size_t index) {
    int64_t most = ex->entries[index].layer >= 0 ? ERROR_ROWS : TABLE_ROWS, rows = tensor_rows(&ex->tensors[index]);
    return rows < most ? rows : most;
}

/* Fills error and coarse of entry `index`, whose source is loaded. */
static llmq_status measure_errors(sensitivity *s, size_t index, const float *gram, const float *importance,
                                  llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    const llmq_tensor *t = &job->ex->tensors[index];
    error_job e = {.ex = job->ex, .index = index, .gram = gram, .importance = importance};
    e.n_rows = error_rows(job->ex, index);
    e.scratch = mem_alloc((size_t)team_size(job->team) * 3 * (size_t)tensor_cols(t), sizeof *e.scratch);
    e.row = mem_alloc((size_t)e.n_rows, sizeof *e.row);
    llmq_status status = e.scratch && e.row ? LLMQ_OK : mem_error(err, (size_t)tensor_cols(t), t->name);
    if (status == LLMQ_OK) {
        double sum[LLMQ_TYPE_COUNT + 2] = {0};
        team_run(job->team, error_worker, &e);
        for (int64_t r = 0; r < e.n_rows; r++)
            for (int k = 0; k < LLMQ_TYPE_COUNT + 2; k++) sum[k] += e.row[r][k];
        double all = sum[LLMQ_TYPE_COUNT + 1] > 0 ? sum[LLMQ_TYPE_COUNT + 1] : 1;
        for (int k = 0; k < LLMQ_TYPE_COUNT; k++) s->m[index].error[k] = sum[k] / all;
        s->m[index].coarse = sum[LLMQ_TYPE_COUNT] / all;
    }
    mem_free(e.row);
    mem_free(e.scratch);
    if (status == LLMQ_OK && job->tick_errors && !job->tick_errors(job->user, sensitivity_error_work(job->ex, index)))
        return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    return status;
}

/* Every candidate fits every weight, and multiplies the errors with half of the Gram matrix if there is one. */
double sensitivity_error_work(const llmq_export *ex, size_t index) {
    double cols = (double)tensor_cols(&ex->tensors[index]);
    return (double)error_rows(ex, index) * cols * (150 + (ex->entries[index].layer >= 0 ? cols / 4 : 0));
}

llmq_status sensitivity_probe(const llmq_sensitivity_job *job, size_t index, double *seconds_out, llmq_err *err) {
    size_t cols = (size_t)tensor_cols(&job->ex->tensors[index]);
    sensitivity s = {.job = job};
    s.m = mem_zalloc(job->ex->n, sizeof *s.m);
    s.gram = mem_zalloc(cols * cols, sizeof *s.gram);
    llmq_status status = s.m && s.gram ? LLMQ_OK : mem_error(err, cols * cols * sizeof *s.gram, "the forecast");
    if (status == LLMQ_OK) status = source_load(job->model->source, job->ex->entries[index].src, false, err);
    double begin = time_seconds();
    if (status == LLMQ_OK) status = measure_errors(&s, index, s.gram, NULL, err);
    *seconds_out = time_seconds() - begin;
    source_release(job->model->source, job->ex->entries[index].src);
    mem_free(s.gram);
    mem_free(s.m);
    return status;
}

/* ---- gain of error feedback ---- */

typedef struct ranked {
    float diag;
    int32_t index;
} ranked;

static int by_descending_diag(const void *pa, const void *pb) {
    const ranked *a = pa, *b = pb;
    if (a->diag != b->diag) return a->diag < b->diag ? 1 : -1;
    return a->index < b->index ? -1 : 1;
}

/* tr(D) / tr(H) of the site's damped Hessian. The columns are eliminated from the last one to be rounded to the first,
 * as in quant/hessian.c. */
static llmq_status measure_gain(sensitivity *s, const float *importance, int64_t n, double *gain, llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    *gain = 1;
    if (!job->feedback) return LLMQ_OK;
    ranked *order = mem_alloc((size_t)n, sizeof *order);
    if (!order) return mem_error(err, (size_t)n * sizeof *order, "the order of columns");
    for (int64_t k = 0; k < n; k++) order[k] = (ranked){importance[k], (int32_t)k};
    if (job->act_order) qsort(order, (size_t)n, sizeof *order, by_descending_diag);
    double trace = 0, left = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t a = order[n - 1 - i].index;
        for (int64_t j = 0; j < i; j++) {
            int64_t b = order[n - 1 - j].index;
            s->factor[i * n + j] = s->gram[a > b ? a * n + b : b * n + a];
        }
        s->factor[i * n + i] = importance[a];
        trace += (double)importance[a];
    }
    mem_free(order);
    llmq_err reason;
    if (job->model->ops->cholesky(n, s->factor, n, job->team, &reason) != LLMQ_OK) return LLMQ_OK; /* no gain then */
    for (int64_t i = 0; i < n; i++) left += (double)s->factor[i * n + i] * (double)s->factor[i * n + i];
    if (trace > 0 && isfinite(left) && left < trace) *gain = left / trace;
    return LLMQ_OK;
}

/* [n] diagonal of the damped Gram matrix. False: it has no information (nothing finite, or all zero). */
static bool read_importance(const float *gram, int64_t n, float *importance) {
    double sum = 0;
    for (int64_t k = 0; k < n; k++) sum += (double)gram[k * n + k];
    if (!(sum > 0) || !isfinite(sum)) return false;
    for (int64_t k = 0; k < n; k++) importance[k] = gram[k * n + k] + (float)(QUANT_DEFAULT_DAMP * sum / (double)n);
    return true;
}

/* ---- streams ---- */

typedef struct coarse_job {
    const llmq_tensor *src;
    uint16_t *bf16; /* (rows, cols) */
    float *scratch; /* (workers, 2, cols) */
} coarse_job;

static void coarse_worker(const llmq_worker *worker, void *arg) {
    const coarse_job *job = arg;
    int64_t cols = tensor_cols(job->src), row_bytes = type_row_bytes(job->src->type, cols), begin, end;
    float *w = job->scratch + worker->id * 2 * cols, *y = w + cols;
    worker_range(worker, tensor_rows(job->src), 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        type_to_f32(job->src->type, (const uint8_t *)job->src->data + r * row_bytes, w, cols);
        round_coarsely(w, y, cols);
        for (int64_t i = 0; i < cols; i++) job->bf16[r * cols + i] = f32_to_bf16(y[i]);
    }
}

/* src rounded coarsely, ready for the forward pass. *bf16_out holds the rows and is freed after the weight. */
static llmq_status prepare_coarse(const sensitivity *s, const llmq_tensor *src, llmq_weight *w, uint16_t **bf16_out,
                                  llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    coarse_job coarse = {.src = src};
    llmq_tensor view = *src;
    size_t cells = (size_t)tensor_numel(src);
    coarse.bf16 = *bf16_out = mem_alloc(cells, sizeof *coarse.bf16);
    coarse.scratch = mem_alloc((size_t)team_size(job->team) * 2 * (size_t)tensor_cols(src), sizeof *coarse.scratch);
    llmq_status status = LLMQ_OK;
    if (!coarse.bf16 || !coarse.scratch)
        status = mem_error(err, cells * sizeof *coarse.bf16, src->name);
    else
        team_run(job->team, coarse_worker, &coarse);
    mem_free(coarse.scratch);
    view.type = LLMQ_TYPE_BF16;
    view.data = coarse.bf16;
    view.bytes = (int64_t)(cells * sizeof *coarse.bf16);
    if (status == LLMQ_OK) status = job->model->ops->weight_prepare(w, &view, PREP_BF16, job->team, err);
    return status;
}

static void release_layer(sensitivity *s) {
    const llmq_backend_ops *ops = s->job->model->ops;
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (s->clean[role].rows) ops->weight_release(&s->clean[role]);
        if (s->worse[role].rows) ops->weight_release(&s->worse[role]);
        mem_free(s->worse_bf16[role]);
        s->worse_bf16[role] = NULL;
        memset(&s->clean[role], 0, sizeof s->clean[role]);
        memset(&s->worse[role], 0, sizeof s->worse[role]);
    }
}

/* ---- layers ---- */

static llmq_status measure_matrix(sensitivity *s, int64_t layer, llmq_role role, const float *importance, double gain,
                                  llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    size_t i = s->index[layer][role];
    if (!job->open[i]) return LLMQ_OK;
    LLMQ_TRY(measure_errors(s, i, importance ? s->gram : NULL, importance, err));
    s->m[i].gain = gain;
    if (!has_streams(layer, job->model->hp.n_layer)) return LLMQ_OK;
    LLMQ_TRY(prepare_coarse(s, job->ex->entries[i].src, &s->worse[role], &s->worse_bf16[role], err));
    s->m[i].window = calib_run_fork(s->stream_run, arch_rule(job->model->arch, role)->site, role, &s->worse[role]);
    return LLMQ_OK;
}

static llmq_status measure_site(sensitivity *s, int64_t layer, llmq_site_id site, llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    int64_t n_tokens, cols = calib_site_cols(&job->model->hp, site);
    double gain = 1;
    float *importance = mem_alloc((size_t)cols, sizeof *importance);
    if (!importance) return mem_error(err, (size_t)cols * sizeof *importance, "importance");
    llmq_status status = LLMQ_OK;
    LLMQ_TRY_GOTO(calib_run_site(s->gram_run, site, s->gram, &n_tokens, err));
    LLMQ_TRY_GOTO(calib_run_site(s->stream_run, site, NULL, &n_tokens, err));
    bool sound = read_importance(s->gram, cols, importance);
    if (sound) LLMQ_TRY_GOTO(measure_gain(s, importance, cols, &gain, err));
    for (int k = 0; k < N_MATRIX_ROLES; k++)
        if (arch_rule(job->model->arch, matrix_roles[k])->site == site)
            LLMQ_TRY_GOTO(measure_matrix(s, layer, matrix_roles[k], sound ? importance : NULL, gain, err));
done:
    mem_free(importance);
    return status;
}

static llmq_status measure_layer(sensitivity *s, int64_t layer, llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    int64_t n_tokens;
    LLMQ_TRY(calib_run_layer(s->gram_run, (int)layer, err));
    LLMQ_TRY(calib_run_layer(s->stream_run, (int)layer, err));
    for (int k = 0; k < N_MATRIX_ROLES; k++) {
        llmq_role role = matrix_roles[k];
        const llmq_tensor *src = job->ex->entries[s->index[layer][role]].src;
        LLMQ_TRY(source_load(job->model->source, src, false, err));
        LLMQ_TRY(job->model->ops->weight_prepare(&s->clean[role], src, PREP_BF16, job->team, err));
        calib_run_weight(s->gram_run, role, &s->clean[role]);
        calib_run_weight(s->stream_run, role, &s->clean[role]);
    }
    for (int site = 0; site < SITE_COUNT; site++) LLMQ_TRY(measure_site(s, layer, (llmq_site_id)site, err));
    if (layer + 1 < job->model->hp.n_layer) LLMQ_TRY(calib_run_site(s->gram_run, SITE_COUNT, NULL, &n_tokens, err));
    LLMQ_TRY(calib_run_site(s->stream_run, SITE_COUNT, NULL, &n_tokens, err));
    mem_note_peak();
    for (int k = 0; k < N_MATRIX_ROLES; k++)
        source_release(job->model->source, job->ex->entries[s->index[layer][matrix_roles[k]]].src);
    return LLMQ_OK;
}

/* ---- predictions ---- */

typedef struct head_job {
    const sensitivity *s;
    const llmq_weight *head;
    const float *gain;             /* of the output norm */
    const float *x;                /* (n_tok, n_embd) hidden states */
    int64_t first, n_tok, n_vocab; /* first: of the tokens that count */
    int64_t stride;                /* every stride-th token counts */
    float *in, *base_logits, *logits;
    void *q8, *bf16, *q16;
    double *kl; /* [HEAD_ROWS] */
} head_job;

static void head_logits(const llmq_worker *worker, const head_job *job, float *y) {
    const llmq_model *model = job->s->job->model;
    const llmq_backend_ops *ops = model->ops;
    int64_t n_embd = model->hp.n_embd;
    llmq_acts acts = {
        .n_tok = job->n_tok, .cols = n_embd, .x = job->in, .q8 = job->q8, .bf16 = job->bf16, .q16 = job->q16};
    worker_barrier(worker);
    if (worker->id == 0)
        for (int64_t t = 0; t < job->n_tok; t++)
            memcpy(job->in + t * n_embd, job->x + t * job->stride * n_embd, (size_t)n_embd * sizeof *job->x);
    worker_barrier(worker);
    ops->rms_norm(worker, job->in, job->gain, model->hp.eps, job->in, job->n_tok, n_embd, n_embd);
    worker_barrier(worker);
    if (job->head->act != ACT_F32) ops->acts_fill(worker, &acts, job->head->act);
    worker_barrier(worker);
    ops->matmul(worker, job->head, &acts, y, job->n_vocab);
    worker_barrier(worker);
}

static void base_worker(const llmq_worker *worker, void *arg) {
    const head_job *job = arg;
    head_logits(worker, job, job->base_logits + job->first * job->n_vocab);
}

static void head_worker(const llmq_worker *worker, void *arg) {
    const head_job *job = arg;
    int64_t begin, end;
    const float *base = job->base_logits + job->first * job->n_vocab;
    head_logits(worker, job, job->logits);
    worker_range(worker, job->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        job->kl[t] = eval_kl(base + t * job->n_vocab, job->logits + t * job->n_vocab, job->n_vocab);
}

/* fn for the tokens of a window that count, a few at a time; the sum of kl. */
static double each_token(head_job *job, int64_t window, const llmq_weight *head, team_fn *fn) {
    const sensitivity *s = job->s;
    int64_t ctx = s->stream_calib.ctx, n = ctx / job->stride, n_embd = s->job->model->hp.n_embd;
    double sum = 0;
    job->head = head;
    for (job->first = 0; job->first < n; job->first += HEAD_ROWS) {
        job->n_tok = n - job->first < HEAD_ROWS ? n - job->first : HEAD_ROWS;
        job->x = calib_run_hidden(s->stream_run) + (window * ctx + job->first * job->stride + 1) * n_embd;
        team_run(s->job->team, fn, job);
        for (int64_t i = 0; i < job->n_tok; i++) sum += job->kl[i];
    }
    return sum;
}

/* Mean divergence of a stream's predictions from those of the untouched one. */
static double stream_kl(head_job *job, int64_t window, const llmq_weight *head) {
    double sum = each_token(job, window, head, head_worker);
    return isfinite(sum) ? sum / (double)(job->s->stream_calib.ctx / job->stride) : 0;
}

static llmq_status alloc_head(head_job *job, llmq_err *err) {
    const llmq_model *model = job->s->job->model;
    size_t n_embd = (size_t)model->hp.n_embd, n_vocab = (size_t)job->n_vocab;
    job->in = mem_alloc(HEAD_ROWS * n_embd, sizeof *job->in);
    size_t n_counted = (size_t)(job->s->stream_calib.ctx / job->stride);
    job->base_logits = mem_alloc(n_counted * n_vocab, sizeof *job->base_logits);
    job->logits = mem_alloc(HEAD_ROWS * n_vocab, sizeof *job->logits);
    job->q8 = mem_alloc(model->ops->acts_bytes(ACT_Q8, HEAD_ROWS, model->hp.n_embd), 1);
    job->bf16 = mem_alloc(model->ops->acts_bytes(ACT_BF16, HEAD_ROWS, model->hp.n_embd), 1);
    job->q16 = mem_alloc(model_q16_bytes(model, HEAD_ROWS, model->hp.n_embd), 1);
    job->kl = mem_zalloc(HEAD_ROWS, sizeof *job->kl);
    if (job->in && job->base_logits && job->logits && job->q8 && job->bf16 && job->q16 && job->kl) return LLMQ_OK;
    return mem_error(err, 2 * HEAD_ROWS * n_vocab * sizeof(float), "logits");
}

/* Fills kl of every entry with a stream, of the embedding and of the head. */
static llmq_status measure_predictions(sensitivity *s, size_t embedding, size_t head, llmq_err *err) {
    llmq_model *model = s->job->model;
    llmq_weight clean, worse;
    uint16_t *bf16 = NULL;
    bool tied = head == s->job->ex->n;
    const llmq_tensor *table = s->job->ex->entries[tied ? embedding : head].src;
    head_job job = {.s = s, .n_vocab = tensor_rows(table), .stride = 2};
    memset(&clean, 0, sizeof clean);
    memset(&worse, 0, sizeof worse);
    llmq_status status = model_load_vector(model, model->by_role[ROLE_OUTPUT_NORM], model->hp.n_embd, &job.gain, err);
    if (status != LLMQ_OK) return status;
    LLMQ_TRY_GOTO(alloc_head(&job, err));
    LLMQ_TRY_GOTO(model->ops->weight_prepare(&clean, table, PREP_BF16, s->job->team, err));
    each_token(&job, 0, &clean, base_worker);
    mem_note_peak();
    for (size_t i = 0; i < s->job->ex->n; i++) {
        if (s->m[i].window < 2) continue;
        s->m[i].kl = stream_kl(&job, s->m[i].window, &clean);
        const llmq_calib_work done = {
            .of = {[CALIB_WEIGHTS] = (double)tensor_numel(table) * (double)(s->stream_calib.ctx / 2)}};
        if (!s->job->tick(s->job->user, &done)) LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped"));
    }
    if (s->job->open[embedding] || (!tied && s->job->open[head]))
        LLMQ_TRY_GOTO(prepare_coarse(s, table, &worse, &bf16, err));
    mem_note_peak();
    if (s->job->open[embedding]) s->m[embedding].kl = stream_kl(&job, 1, tied ? &worse : &clean);
    if (!tied && s->job->open[head]) s->m[head].kl = stream_kl(&job, 0, &worse);
done:
    if (clean.rows) model->ops->weight_release(&clean);
    if (worse.rows) model->ops->weight_release(&worse);
    mem_free(bf16);
    void *blocks[] = {job.in, job.base_logits, job.logits, job.q8, job.bf16, job.q16, job.kl};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    return status;
}

/* ---- from measurements to losses ---- */

/* log of KL / e of a role at a layer: measured, or interpolated between the nearest layers that were. */
static double log_weight(const sensitivity *s, int64_t layer, llmq_role role, bool *known) {
    int64_t below = -1, above = -1, n = s->job->model->hp.n_layer;
    double value[2] = {0};
    for (int64_t l = 0; l < n; l++) {
        const measured *m = &s->m[s->index[l][role]];
        if (m->kl < 0 || !(m->coarse > 0)) continue;
        double x = log((m->kl > 1e-9 ? m->kl : 1e-9) / m->coarse);
        if (l <= layer) below = l, value[0] = x;
        if (l >= layer && above < 0) above = l, value[1] = x;
    }
    *known = below >= 0 || above >= 0;
    if (below < 0) return value[1];
    if (above < 0 || above == below) return value[0];
    double share = (double)(layer - below) / (double)(above - below);
    return value[0] * (1 - share) + value[1] * share;
}

static void fill_losses(const sensitivity *s, double *loss) {
    const llmq_export *ex = s->job->ex;
    for (size_t i = 0; i < ex->n; i++) {
        const measured *m = &s->m[i];
        const llmq_export_entry *entry = &ex->entries[i];
        bool known = true;
        for (int t = 0; t < LLMQ_TYPE_COUNT; t++) loss[i * LLMQ_TYPE_COUNT + (size_t)t] = -1;
        if (!s->job->open[i]) continue;
        double weight = entry->layer >= 0 ? exp(log_weight(s, entry->layer, entry->role, &known))
                        : m->coarse > 0   ? fmax(m->kl, 1e-9) / m->coarse
                                          : 0;
        for (int t = 0; t < LLMQ_TYPE_COUNT; t++)
            if (sensitivity_is_candidate(ex, i, (llmq_type)t))
                loss[i * LLMQ_TYPE_COUNT + (size_t)t] = (known ? weight : 1) * m->error[t] * m->gain;
    }
}

/* ---- the job ---- */

/* Every stream reads the same window, from the middle of the text. */
static llmq_status fill_stream_tokens(sensitivity *s, llmq_err *err) {
    const llmq_calib *calib = s->job->calib;
    int64_t ctx = stream_ctx(calib), n = count_windows(s->job->model);
    s->stream_calib = (llmq_calib){.n_windows = n, .ctx = ctx};
    s->stream_calib.tokens = mem_alloc((size_t)(n * ctx), sizeof *s->stream_calib.tokens);
    if (!s->stream_calib.tokens) return mem_error(err, (size_t)(n * ctx) * sizeof(int32_t), "streams");
    const int32_t *window = calib->tokens + calib->n_windows / 2 * calib->ctx;
    for (int64_t i = 0; i < n; i++) memcpy(s->stream_calib.tokens + i * ctx, window, (size_t)ctx * sizeof *window);
    return LLMQ_OK;
}

/* Stream 1 begins with embeddings that are rounded coarsely. */
static llmq_status worsen_embeddings(sensitivity *s, llmq_err *err) {
    int64_t n_embd = s->job->model->hp.n_embd, n = s->stream_calib.ctx * n_embd;
    float *x = calib_run_hidden(s->stream_run) + n, *copy = mem_alloc((size_t)n_embd, sizeof *copy);
    if (!copy) return mem_error(err, (size_t)n_embd * sizeof *copy, "an embedding");
    for (int64_t t = 0; t < s->stream_calib.ctx; t++) {
        memcpy(copy, x + t * n_embd, (size_t)n_embd * sizeof *copy);
        round_coarsely(copy, x + t * n_embd, n_embd);
    }
    mem_free(copy);
    return LLMQ_OK;
}

static llmq_status prepare(sensitivity *s, llmq_err *err) {
    const llmq_sensitivity_job *job = s->job;
    const llmq_export *ex = job->ex;
    int64_t cols = 0, n_layer = job->model->hp.n_layer;
    for (int site = 0; site < SITE_COUNT; site++) {
        int64_t n = calib_site_cols(&job->model->hp, (llmq_site_id)site);
        cols = n > cols ? n : cols;
    }
    size_t cells;
    bool fits = size_mul((size_t)cols, (size_t)cols, &cells);
    s->gram = fits ? mem_alloc(cells, sizeof *s->gram) : NULL;
    s->factor = fits ? mem_alloc(cells, sizeof *s->factor) : NULL;
    s->m = mem_zalloc(ex->n + 1, sizeof *s->m); /* one more: where entries that are not there point to */
    s->index = mem_alloc((size_t)n_layer, sizeof *s->index);
    if (!s->gram || !s->factor || !s->m || !s->index)
        return mem_error(err, 2 * cells * sizeof *s->gram, "measuring the layers");
    for (size_t i = 0; i <= ex->n; i++) s->m[i] = (measured){.kl = -1, .gain = 1, .window = -1};
    for (int64_t l = 0; l < n_layer; l++)
        for (int role = 0; role < ROLE_COUNT; role++) s->index[l][role] = ex->n;
    for (size_t i = 0; i < ex->n; i++)
        if (ex->entries[i].layer >= 0) s->index[ex->entries[i].layer][ex->entries[i].role] = i;
    s->gram_calib = *job->calib;
    s->gram_calib.n_windows = gram_windows(job->calib);
    LLMQ_TRY(fill_stream_tokens(s, err));
    llmq_calib_memory gram_memory = {.chunk = gram_chunk(job)};
    LLMQ_TRY(calib_run_create_in(&gram_memory, job->model, &s->gram_calib, job->team, job->tick, job->user,
                                 &s->gram_run, err));
    llmq_calib_memory stream_memory = {.chunk = s->stream_calib.ctx, .lender = s->gram_run};
    LLMQ_TRY(calib_run_create_in(&stream_memory, job->model, &s->stream_calib, job->team, job->tick, job->user,
                                 &s->stream_run, err));
    calib_run_limit(s->stream_run, 2);
    return worsen_embeddings(s, err);
}

/* What lives as long as the measurement, and beside it either a layer's weights, as they are and coarsely rounded, with
 * the rows that the latter are made from; or the head's, both, and logits. */
size_t sensitivity_bytes(const llmq_sensitivity_job *job) {
    llmq_model *model = job->model;
    const llmq_calib gram = {.ctx = job->calib->ctx, .n_windows = gram_windows(job->calib)},
                     stream = {.ctx = stream_ctx(job->calib), .n_windows = count_windows(model)};
    int n_workers = team_size(job->team);
    llmq_calib_need a = calib_run_need(model, &gram, gram_chunk(job), n_workers),
                    b = calib_run_need(model, &stream, stream.ctx, n_workers);
    size_t widest = 0, layer = 0, n_vocab = (size_t)model->hp.n_vocab, head = n_vocab * (size_t)model->hp.n_embd;
    for (int site = 0; site < SITE_COUNT; site++) {
        size_t cols = (size_t)calib_site_cols(&model->hp, (llmq_site_id)site);
        widest = cols > widest ? cols : widest;
    }
    for (int k = 0; k < N_MATRIX_ROLES; k++) {
        const llmq_tensor *t = model->layer_tensors[0].by_role[matrix_roles[k]];
        layer += (size_t)tensor_numel(t) * 3 * sizeof(uint16_t);
        if (model->source->quant) layer += (size_t)t->bytes; /* made of a folder's parts, until the layer's end */
    }
    head = 3 * sizeof(uint16_t) * head + sizeof(float) * n_vocab * (HEAD_ROWS + (size_t)stream.ctx / 2);
    return a.hidden + a.mid + a.bad + a.chunk + b.hidden + b.mid + b.bad + 2 * widest * widest * sizeof(float) +
           (layer > head ? layer : head);
}

static llmq_status measure_all(sensitivity *s, llmq_err *err) {
    const llmq_export *ex = s->job->ex;
    size_t embedding = ex->n, head = ex->n;
    for (size_t i = 0; i < ex->n; i++) {
        if (ex->entries[i].role == ROLE_TOKEN_EMBD) embedding = i;
        if (ex->entries[i].role == ROLE_OUTPUT) head = i;
    }
    for (int64_t l = 0; l < s->job->model->hp.n_layer; l++) {
        llmq_status status = measure_layer(s, l, err);
        release_layer(s);
        if (status != LLMQ_OK) return status;
    }
    const llmq_tensor *table = ex->entries[head < ex->n ? head : embedding].src;
    LLMQ_TRY(source_load(s->job->model->source, table, false, err)); /* a model has its embedding loaded */
    if (s->job->open[embedding]) LLMQ_TRY(measure_errors(s, embedding, NULL, NULL, err));
    if (head < ex->n && s->job->open[head]) LLMQ_TRY(measure_errors(s, head, NULL, NULL, err));
    LLMQ_TRY(measure_predictions(s, embedding, head, err));
    source_release(s->job->model->source, table);
    return LLMQ_OK;
}

llmq_status sensitivity_measure(const llmq_sensitivity_job *job, double *loss, llmq_err *err) {
    sensitivity s;
    memset(&s, 0, sizeof s);
    s.job = job;
    llmq_status status = prepare(&s, err);
    if (status == LLMQ_OK) status = measure_all(&s, err);
    if (status == LLMQ_OK) fill_losses(&s, loss);
    calib_run_destroy(s.stream_run);
    calib_run_destroy(s.gram_run);
    mem_free(s.stream_calib.tokens);
    mem_free(s.index);
    mem_free(s.m);
    mem_free(s.factor);
    mem_free(s.gram);
    return status;
}
