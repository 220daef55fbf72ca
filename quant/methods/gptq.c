/* GPTQ in its LDLQ form: every column is rounded to its own fixed grid after the errors of the columns before it have
 * been added to it, weighed so that what the layer computes on the calibration text changes least (the derivation is in
 * quant/hessian.c). Then, if asked for, coordinate descent improves codes and scales (quant/refine.c).
 * docs/quantization.md says what each piece gives.
 *
 * Grids are fitted either all first, on the original weights, which leaves the order of the columns free; or when their
 * block is reached, on weights that hold the errors so far, which keeps a block's columns together. A column keeps the
 * grid of the group it lies in whatever the order ("static groups"): no permutation survives.
 *
 * Rows do not know of each other. So a slab of rows goes through all columns on one worker, without barriers: per block
 * of columns the errors so far are brought in by one matrix product, then the block is rounded column by column. Slabs
 * have a size of their own, hence the same bytes for any number of workers. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "quant/methods/methods.h"
#include "quant/refine.h"

#define BLOCK 128 /* columns of a step where grids do not say */

typedef struct slab_buffers {
    float *e;       /* (cols, lanes) targets, then errors, in the order of rounding */
    float *w;       /* (step, lanes) */
    float *x;       /* [block_len] targets of one row's block, in its own order */
    float *grids;   /* (groups, 3, lanes) */
    uint8_t *codes; /* (step, lanes) */
    int32_t *group; /* [cols] of the k-th rounded column */
} slab_buffers;

typedef struct gptq_job {
    const llmq_quant_problem *p;
    const llmq_feedback *f;
    const float *importance;
    llmq_quantized *out;
    bool corrected; /* a step is a block, fitted when it is reached */
    bool refine;
    int64_t lanes;
    llmq_refiner refiner;
    slab_buffers *buffers; /* [workers] */
} gptq_job;

#define CACHED 2048 /* columns whose triangle stays in an L3 cache */

/* Wider slabs stream the triangle less often; narrower ones give every worker something to do, and their own numbers
 * stay in faster caches. */
static int64_t slab_lanes(const llmq_quant_problem *p) {
    int64_t rows = p->part_of ? p->part_of : p->rows;
    if (p->cols <= CACHED) return 32;
    return rows >= 2048 ? 128 : rows >= 512 ? 64 : 32;
}

/* Scale, inverse scale and offset of one block's groups into lane r. */
static void load_grid(const gptq_job *job, const slab_buffers *buf, const llmq_grid *grid, int64_t block, int64_t r) {
    int64_t lanes = job->lanes, per_block = job->p->type->block_len / job->p->type->group_len;
    for (int64_t g = 0; g < per_block; g++) {
        float *dst = buf->grids + (block * per_block + g) * 3 * lanes + r;
        dst[0] = grid->scale[g];
        dst[lanes] = grid->scale[g] != 0 ? 1.0f / grid->scale[g] : 0;
        dst[2 * lanes] = grid->offset[g];
    }
}

/* All grids, on the original weights. */
static void fit_rows(const llmq_worker *worker, const gptq_job *job) {
    int64_t n_blocks = type_blocks(job->p->type, job->p->cols), begin, end;
    worker_range(worker, job->p->rows, 1, &begin, &end);
    rtn_fit_blocks(job->p, job->importance, begin * n_blocks, end * n_blocks, job->out);
}

/* The grids of the block whose columns are rounded next, [k0, k0 + n), on their targets e. */
static void fit_block(const gptq_job *job, const slab_buffers *buf, int64_t row, int64_t n_rows, int64_t k0,
                      int64_t n) {
    const llmq_type_info *t = job->p->type;
    const int32_t *perm = job->f->perm + k0;
    const float *e = buf->e + k0 * job->lanes;
    int64_t b = perm[0] / t->block_len, col = b * t->block_len;
    for (int64_t r = 0; r < n_rows; r++) {
        llmq_grid *grid = &job->out->grids[(row + r) * type_blocks(t, job->p->cols) + b];
        for (int64_t k = 0; k < n; k++) buf->x[perm[k] - col] = e[k * job->lanes + r];
        type_fit(t, buf->x, job->importance + col, n, grid);
        load_grid(job, buf, grid, b, r);
    }
}

static int64_t step_cols(const gptq_job *job, int64_t k0) {
    int64_t cols = job->p->cols;
    if (job->corrected) return type_block_cols(job->p->type, cols, job->f->perm[k0] / job->p->type->block_len);
    return cols - k0 < BLOCK ? cols - k0 : BLOCK;
}

static void round_step(const gptq_job *job, const slab_buffers *buf, int64_t row, int64_t n_rows, int64_t k0,
                       int64_t n) {
    const llmq_quant_problem *p = job->p;
    int64_t cols = p->cols, lanes = job->lanes;
    const int32_t *perm = job->f->perm + k0;
    const float *at = job->f->at + k0 * cols;
    float *e = buf->e + k0 * lanes;
    memset(buf->w, 0, (size_t)(n * lanes) * sizeof(float));
    for (int64_t r = 0; r < n_rows; r++) {
        const float *w = p->w + (row + r) * cols;
        for (int64_t k = 0; k < n; k++) buf->w[k * lanes + r] = w[perm[k]];
    }
    memcpy(e, buf->w, (size_t)(n * lanes) * sizeof(float));
    if (k0 > 0) p->ops->gemm_sub(n, lanes, k0, at, cols, buf->e, lanes, e, lanes);
    if (job->corrected) fit_block(job, buf, row, n_rows, k0, n);
    llmq_round_block block = {.n = n,
                              .lanes = lanes,
                              .at = at + k0,
                              .ldat = cols,
                              .e = e,
                              .w = buf->w,
                              .grids = buf->grids,
                              .group = buf->group + k0,
                              .levels = p->type->levels,
                              .n_levels = p->type->n_levels,
                              .uniform = p->type->uniform,
                              .codes = buf->codes};
    p->ops->round_block(&block);
    for (int64_t r = 0; r < n_rows; r++) {
        uint8_t *codes = job->out->codes + (row + r) * cols;
        for (int64_t k = 0; k < n; k++) codes[perm[k]] = buf->codes[k * lanes + r];
    }
}

/* Rounds all columns of a slab of rows. */
static void round_slab(const gptq_job *job, int id, int64_t row) {
    const llmq_quant_problem *p = job->p;
    const slab_buffers *buf = &job->buffers[id];
    int64_t lanes = job->lanes, n_rows = p->rows - row < lanes ? p->rows - row : lanes;
    int64_t n_blocks = type_blocks(p->type, p->cols), groups = n_blocks * (p->type->block_len / p->type->group_len);
    memset(buf->grids, 0, (size_t)(groups * 3 * lanes) * sizeof(float)); /* lanes past the last row stay zero */
    for (int64_t i = 0; !job->corrected && i < n_rows * n_blocks; i++)
        load_grid(job, buf, &job->out->grids[row * n_blocks + i], i % n_blocks, i / n_blocks);
    for (int64_t k0 = 0, n; k0 < p->cols; k0 += n) {
        n = step_cols(job, k0);
        round_step(job, buf, row, n_rows, k0, n);
    }
}

static void grids_worker(const llmq_worker *worker, void *arg) {
    const gptq_job *job = arg;
    if (!job->corrected) fit_rows(worker, job);
    quantized_settle(worker, job->out);
}

static void gptq_worker(const llmq_worker *worker, void *arg) {
    const gptq_job *job = arg;
    const slab_buffers *buf = &job->buffers[worker->id];
    if (worker->id == 0) worker_counter_reset(worker);
    grids_worker(worker, arg);
    for (int64_t k = 0; k < job->p->cols; k++) buf->group[k] = job->f->perm[k] / job->p->type->group_len;
    worker_barrier(worker);
    for (int64_t row; (row = worker_counter_next(worker) * job->lanes) < job->p->rows;) {
        round_slab(job, worker->id, row);
        if (job->refine) refine_slab(&job->refiner, worker->id, row, job->out);
    }
}

/* What is left where a device has rounded. */
static void refine_worker(const llmq_worker *worker, void *arg) {
    const gptq_job *job = arg;
    if (worker->id == 0) worker_counter_reset(worker);
    worker_barrier(worker);
    for (int64_t row; (row = worker_counter_next(worker) * job->lanes) < job->p->rows;)
        refine_slab(&job->refiner, worker->id, row, job->out);
}

/* Grids here, columns there. */
static llmq_status round_on_device(gptq_job *job, llmq_err *err) {
    const llmq_quant_problem *p = job->p;
    const llmq_type_info *t = p->type;
    int64_t blocks = type_blocks(t, p->cols), per_block = t->block_len / t->group_len, groups = blocks * per_block;
    float *grids = mem_alloc((size_t)(p->rows * groups) * 2, sizeof *grids);
    if (!grids) return mem_error(err, (size_t)(p->rows * groups) * 2 * sizeof *grids, "grids");
    team_run(p->team, grids_worker, job);
    for (int64_t i = 0; i < p->rows * groups; i++) {
        const llmq_grid *grid = &job->out->grids[i / per_block];
        grids[2 * i] = grid->scale[i % per_block];
        grids[2 * i + 1] = grid->offset[i % per_block];
    }
    const llmq_device_sweep sweep = {.rows = p->rows,
                                     .cols = p->cols,
                                     .w = p->w,
                                     .at = job->f->at,
                                     .perm = job->f->perm,
                                     .grids = grids,
                                     .groups = groups,
                                     .group_len = t->group_len,
                                     .levels = t->levels,
                                     .n_levels = t->n_levels,
                                     .uniform = t->uniform,
                                     .codes = job->out->codes};
    llmq_status status = p->device->ops->sweep(p->device, &sweep, err);
    mem_free(grids);
    return status;
}

static void buffers_destroy(gptq_job *job, int n) {
    for (int i = 0; job->buffers && i < n; i++) {
        slab_buffers *buf = &job->buffers[i];
        mem_free(buf->e);
        mem_free(buf->w);
        mem_free(buf->x);
        mem_free(buf->grids);
        mem_free(buf->codes);
        mem_free(buf->group);
    }
    mem_free(job->buffers);
}

static llmq_status buffers_create(gptq_job *job, int n, llmq_err *err) {
    const llmq_type_info *t = job->p->type;
    size_t cols = (size_t)job->p->cols, lanes = (size_t)job->lanes;
    size_t block = job->corrected ? (size_t)t->block_len : 1, step = block > BLOCK ? block : BLOCK;
    size_t groups = (size_t)type_blocks(t, job->p->cols) * (size_t)(t->block_len / t->group_len);
    job->buffers = mem_zalloc((size_t)n, sizeof *job->buffers);
    if (!job->buffers) return mem_error(err, (size_t)n * sizeof *job->buffers, "rounding");
    for (int i = 0; i < n; i++) {
        slab_buffers *buf = &job->buffers[i];
        buf->e = mem_alloc(cols * lanes, sizeof *buf->e);
        buf->w = mem_alloc(step * lanes, sizeof *buf->w);
        buf->x = mem_alloc(block, sizeof *buf->x);
        buf->grids = mem_alloc(groups * 3 * lanes, sizeof *buf->grids);
        buf->codes = mem_alloc(step * lanes, 1);
        buf->group = mem_alloc(cols, sizeof *buf->group);
        if (!buf->e || !buf->w || !buf->x || !buf->grids || !buf->codes || !buf->group)
            return mem_error(err, cols * lanes * sizeof(float), "rounding");
    }
    return LLMQ_OK;
}

static llmq_status gptq_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report,
                              llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_feedback f = {.failed = true};
    gptq_job job = {.p = p, .f = &f, .out = out, .lanes = slab_lanes(p)};
    job.corrected = p->solver.corrected && p->type->block_len <= REFINE_MAX && !p->type->settle;
    job.refine = p->solver.sweeps > 0 || p->solver.refit;
    *report = (llmq_quant_report){.error = -1, .rtn_error = -1};
    if (!p->gram)
        return llmq_fail(err, LLMQ_E_ARG, "%s: gptq needs calibration text; give --calib FILE or use --rtn", p->name);
    LLMQ_TRY(hessian_check_weights(p, err));
    LLMQ_TRY_GOTO(hessian_factor(p, quant_damp(p->damp), &f, err));
    report->damp_used = f.damp;
    report->dead_columns = f.dead;
    if (f.failed) {
        report->fell_back = true;
        snprintf(report->note, sizeof report->note, "plain rounding: %s",
                 p->n_tokens <= 0    ? "none of its inputs was finite"
                 : f.dead == p->cols ? "its inputs were always zero"
                                     : "the Hessian could not be factored");
        rtn_matrix(p, f.usable_diag ? f.importance : NULL, out);
    } else {
        if (f.dead) snprintf(report->note, sizeof report->note, "%lld inputs were always zero", (long long)f.dead);
        job.importance = f.importance;
        bool on_device = p->device && !job.corrected;
        LLMQ_TRY_GOTO(on_device ? round_on_device(&job, err) : buffers_create(&job, team_size(p->team), err));
        if (job.refine) {
            hessian_mirror(p, &f, f.damp);
            LLMQ_TRY_GOTO(refiner_create(p, &f, job.lanes, team_size(p->team), &job.refiner, err));
        }
        mem_note_peak();
        if (!on_device || job.refine) team_run(p->team, on_device ? refine_worker : gptq_worker, &job);
    }
    LLMQ_TRY_GOTO(hessian_errors(p, out, report, err));
done:
    refiner_clear(&job.refiner);
    buffers_destroy(&job, team_size(p->team));
    hessian_feedback_clear(&f);
    return status;
}

/* Slabs go to workers whole. A slab takes half a multiply-add in the feedback and one in each pass of the refinement
 * for every weight and column, some of them one by one; the matrix its factor, and H put in order a few times. */
static double gptq_work(const llmq_quant_problem *p) {
    double cols = (double)p->cols, workers = team_size(p->team), lanes = (double)slab_lanes(p),
           rounds = ceil(ceil((double)p->rows / lanes) / workers),
           passes = p->solver.sweeps > 0 ? p->solver.sweeps : p->solver.refit;
    return rounds * lanes * cols * (WORK_FIT + 2 * WORK_MAC * (0.5 + passes) * cols) +
           (8 + cols / 6 * WORK_MAC) * cols * cols / workers;
}

const llmq_method method_gptq = {
    .name = "gptq", .needs_gram = true, .act_order_default = true, .solve = gptq_solve, .work = gptq_work};
