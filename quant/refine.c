/* Coordinate descent over the codes and scales of a slab of rows, block of columns by block of columns.
 *
 * With G = E H a change x of a row's values changes its error by 2 G x' + x H x'. A pass takes the blocks in order: the
 * block's part of G comes from all errors by one matrix product, then refine_block (core/backend.h) changes one number
 * after another and keeps its part of G up to date. Errors only ever fall, so passes end when they gain little.
 *
 * H is read where it lies: below the diagonal in the Gram matrix, from the diagonal on in the unused half of the
 * feedback triangle (hessian_mirror). */
#include "quant/refine.h"

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "types/search.h"

#define LONG_STEP 128 /* columns of a step in groups too long for one */
#define ENOUGH 1e-6   /* a pass that takes less than this part of the error is the last */

typedef struct refine_buffers {
    float *all;
    float *e, *level;                /* (cols, lanes) */
    float *scale, *offset, *sc, *mn; /* (groups, lanes) */
    float *d, *dmin;                 /* (blocks, lanes) */
    float *g, *gain;                 /* (width, lanes), (1, lanes) */
    float *h, *ones;                 /* (width, width), (TYPE_MAX_GROUPS, width) */
    float *y, *sums;                 /* long groups: (cols, lanes), (5, lanes) */
} refine_buffers;

static bool is_super(const llmq_type_info *t) {
    return t->form == GRID_SUPER || t->form == GRID_SUPER_AFFINE;
}

static bool is_long(const llmq_type_info *t) {
    return t->group_len > REFINE_MAX;
}

/* ---- buffers ---- */

static float *part(float *base, size_t *used, size_t n) {
    float *at = base ? base + *used : NULL;
    *used += (n + 15) / 16 * 16;
    return at;
}

/* Lays the buffers out from base on and returns their floats. */
static size_t layout(const llmq_refiner *r, refine_buffers *b, float *base) {
    const llmq_type_info *t = r->p->type;
    size_t cols = (size_t)r->p->cols, lanes = (size_t)r->lanes, width = (size_t)r->width, used = 0;
    size_t blocks = (size_t)type_blocks(t, r->p->cols) * lanes, groups = blocks * (size_t)(t->block_len / t->group_len);
    size_t super = is_super(t), more = is_long(t);
    b->e = part(base, &used, cols * lanes);
    b->level = part(base, &used, cols * lanes);
    b->scale = part(base, &used, groups);
    b->offset = part(base, &used, groups);
    b->sc = part(base, &used, super * groups);
    b->mn = part(base, &used, super * groups);
    b->d = part(base, &used, super * blocks);
    b->dmin = part(base, &used, super * blocks);
    b->g = part(base, &used, width * lanes);
    b->gain = part(base, &used, lanes);
    b->h = part(base, &used, width * width);
    b->ones = part(base, &used, TYPE_MAX_GROUPS * width);
    b->y = part(base, &used, more * cols * lanes);
    b->sums = part(base, &used, more * 5 * lanes);
    return used;
}

llmq_status refiner_create(const llmq_quant_problem *p, const llmq_feedback *f, int64_t lanes, int n_workers,
                           llmq_refiner *out, llmq_err *err) {
    const llmq_type_info *t = p->type;
    *out = (llmq_refiner){p, f, lanes, t->block_len <= REFINE_MAX ? t->block_len : LONG_STEP, n_workers, NULL};
    out->buffers = mem_zalloc((size_t)n_workers, sizeof *out->buffers);
    if (!out->buffers) return mem_error(err, (size_t)n_workers * sizeof *out->buffers, "refinement");
    for (int i = 0; i < n_workers; i++) {
        refine_buffers *b = &out->buffers[i];
        size_t n = layout(out, b, NULL);
        b->all = mem_alloc(n, sizeof *b->all);
        if (!b->all) return mem_error(err, n * sizeof *b->all, "refinement");
        layout(out, b, b->all);
    }
    return LLMQ_OK;
}

void refiner_clear(llmq_refiner *r) {
    for (int i = 0; r->buffers && i < r->n_buffers; i++) mem_free(r->buffers[i].all);
    mem_free(r->buffers);
    *r = (llmq_refiner){0};
}

/* ---- in and out: rows become lanes ---- */

/* Block i of a row. All rows of a block come before the next block: their lanes are neighbours. */
static void load_block(const llmq_refiner *r, const refine_buffers *b, const llmq_quantized *q, int64_t row, int64_t i,
                       int64_t lane) {
    const llmq_type_info *t = r->p->type;
    int64_t cols = r->p->cols, lanes = r->lanes, per_block = t->block_len / t->group_len;
    const uint8_t *codes = q->codes + row * cols;
    const float *w = r->p->w + row * cols;
    const llmq_grid *grid = &q->grids[row * type_blocks(t, cols) + i];
    for (int64_t g = 0; g < per_block; g++) {
        int64_t at = (i * per_block + g) * lanes + lane;
        b->scale[at] = grid->scale[g];
        b->offset[at] = grid->offset[g];
        if (is_super(t)) b->sc[at] = grid->sc[g], b->mn[at] = grid->mn[g];
    }
    if (is_super(t)) b->d[i * lanes + lane] = grid->d, b->dmin[i * lanes + lane] = grid->dmin;
    int64_t begin = i * t->block_len, end = begin + type_block_cols(t, cols, i);
    for (int64_t g = 0, k = begin; k < end; g++) {
        float scale = grid->scale[g], offset = grid->offset[g];
        for (int64_t stop = end - k < t->group_len ? end : k + t->group_len; k < stop; k++) {
            float level = t->levels[codes[k]];
            b->level[k * lanes + lane] = level;
            b->e[k * lanes + lane] = scale * level + offset - w[k];
        }
    }
}

static uint8_t code_of(const llmq_type_info *t, float level) {
    if (t->uniform) return (uint8_t)(level - t->levels[0]);
    int code = 0;
    for (int i = 1; i < t->n_levels; i++) code += level >= t->levels[i];
    return (uint8_t)code;
}

static void store_block(const llmq_refiner *r, const refine_buffers *b, llmq_quantized *q, int64_t row, int64_t i,
                        int64_t lane) {
    const llmq_type_info *t = r->p->type;
    int64_t cols = r->p->cols, lanes = r->lanes, per_block = t->block_len / t->group_len;
    if (t->form != GRID_FIXED) {
        llmq_grid *grid = &q->grids[row * type_blocks(t, cols) + i];
        for (int64_t g = 0; g < per_block; g++) {
            int64_t at = (i * per_block + g) * lanes + lane;
            grid->scale[g] = b->scale[at];
            grid->offset[g] = b->offset[at];
            if (is_super(t)) grid->sc[g] = (int8_t)b->sc[at], grid->mn[g] = (uint8_t)b->mn[at];
        }
        grid->d = is_super(t) ? b->d[i * lanes + lane] : grid->scale[0];
        if (is_super(t)) grid->dmin = b->dmin[i * lanes + lane];
        if (t->form == GRID_AFFINE) grid->dmin = grid->offset[0];
    }
    for (int64_t k = i * t->block_len, end = k + type_block_cols(t, cols, i); k < end; k++)
        q->codes[row * cols + k] = code_of(t, b->level[k * lanes + lane]);
}

/* ---- products with H ---- */

/* h (n, n): the block of H at the diagonal. */
static void diagonal_block(const llmq_refiner *r, int64_t k0, int64_t n, float *h) {
    const float *from = r->f->at + k0 * r->p->cols + k0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i; j < n; j++) h[i * n + j] = h[j * n + i] = from[i * r->p->cols + j];
}

/* out (n, lanes) -= the rows [row, row + n) of H, the columns [begin, end), times x (cols, lanes); h: diagonal_block of
 * those rows. No cut runs through a step. */
static void subtract_product(const llmq_refiner *r, int64_t row, int64_t n, int64_t begin, int64_t end, const float *h,
                             const float *x, float *out) {
    const llmq_backend_ops *ops = r->p->ops;
    int64_t cols = r->p->cols, lanes = r->lanes, before = end < row ? end : row,
            after = begin > row + n ? begin : row + n;
    if (begin < before)
        ops->gemm_sub(n, lanes, before - begin, r->p->gram + row * cols + begin, cols, x + begin * lanes, lanes, out,
                      lanes);
    if (begin <= row && row + n <= end) ops->gemm_sub(n, lanes, n, h, n, x + row * lanes, lanes, out, lanes);
    if (after < end)
        ops->gemm_sub(n, lanes, end - after, r->f->at + row * cols + after, cols, x + after * lanes, lanes, out, lanes);
}

/* ---- passes ---- */

/* Sums of h over the columns of each group. */
static void group_sums(int64_t n, int64_t group_len, const float *h, float *ones) {
    for (int64_t k = 0; k < n; k++) {
        float *to = ones + k / group_len * n;
        for (int64_t i = 0; i < n; i++) to[i] = (k % group_len ? to[i] : 0) + h[k * n + i];
    }
}

/* n is a multiple of 8; as many sums do not wait for each other. */
static double sum_of_products(const float *a, const float *b, int64_t n) {
    double sums[8] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += (double)a[i + j] * b[i + j];
    for (int j = 0; j < 8; j++) sum += sums[j];
    return sum;
}

/* Columns of the step that begins at k0: it ends where its block or group does. */
static int64_t step_cols(const llmq_refiner *r, int64_t k0) {
    int64_t len = r->p->type->block_len, end = k0 / len * len + len;
    end = end < r->p->cols ? end : r->p->cols;
    return end - k0 < r->width ? end - k0 : r->width;
}

/* One step; returns this block's part of tr(E H E') before it. */
static double refine_step(const llmq_refiner *r, const refine_buffers *b, int64_t k0, bool refit, bool sweep) {
    const llmq_type_info *t = r->p->type;
    int64_t cols = r->p->cols, lanes = r->lanes, n = step_cols(r, k0);
    int64_t block = k0 / t->block_len, group = k0 / t->group_len;
    diagonal_block(r, k0, n, b->h);
    memset(b->g, 0, (size_t)(n * lanes) * sizeof(float));
    subtract_product(r, k0, n, 0, cols, b->h, b->e, b->g);
    for (int64_t i = 0; i < n * lanes; i++) b->g[i] = -b->g[i];
    double energy = sum_of_products(b->g, b->e + k0 * lanes, n * lanes);
    llmq_refine_block step = {.n = n,
                              .lanes = lanes,
                              .h = b->h,
                              .ones = b->ones,
                              .group_len = t->group_len,
                              .form = t->form,
                              .sc_min = t->search ? t->search->sc_min : 0,
                              .sc_max = t->search ? t->search->sc_max : 0,
                              .levels = t->levels,
                              .n_levels = t->n_levels,
                              .uniform = t->uniform,
                              .refit = refit && !is_long(t),
                              .sweep = sweep,
                              .g = b->g,
                              .e = b->e + k0 * lanes,
                              .level = b->level + k0 * lanes,
                              .scale = b->scale + group * lanes,
                              .offset = b->offset + group * lanes,
                              .gain = b->gain};
    if (step.refit) group_sums(n, t->group_len, b->h, b->ones);
    if (is_super(t)) {
        step.sc = b->sc + group * lanes, step.mn = b->mn + group * lanes;
        step.d = b->d + block * lanes, step.dmin = b->dmin + block * lanes;
    }
    r->p->ops->refine_block(&step);
    return energy;
}

void refine_slab(const llmq_refiner *r, int id, int64_t row, llmq_quantized *q) {
    const llmq_solver *s = &r->p->solver;
    const refine_buffers *b = &r->buffers[id];
    int64_t cols = r->p->cols, lanes = r->lanes, n_rows = r->p->rows - row < lanes ? r->p->rows - row : lanes,
            n_blocks = type_blocks(r->p->type, cols);
    memset(b->all, 0, layout(r, &(refine_buffers){0}, NULL) * sizeof(float));
    for (int64_t block = 0; block < n_blocks; block++)
        for (int64_t i = 0; i < n_rows; i++) load_block(r, b, q, row + i, block, i);
    int passes = s->sweeps > 0 ? s->sweeps : 1;
    for (int pass = 0; pass < passes; pass++) {
        double energy = 0, gain = 0;
        memset(b->gain, 0, (size_t)lanes * sizeof(float));
        for (int64_t k0 = 0; k0 < cols; k0 += step_cols(r, k0))
            energy += refine_step(r, b, k0, s->refit, s->sweeps > 0);
        for (int64_t i = 0; i < lanes; i++) gain += b->gain[i];
        if (!(gain > ENOUGH * energy)) break;
    }
    for (int64_t block = 0; block < n_blocks; block++)
        for (int64_t i = 0; i < n_rows; i++) store_block(r, b, q, row + i, block, i);
}
