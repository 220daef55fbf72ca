#include "train/tunable.h"

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "types/blocks.h"
#include "types/nf4.h"

/* A step of a minimum's parameter moves it by so many steps of the scale's factor: a factor moves the weights of a
 * block by several levels' worth, a minimum by one. */
#define MIN_REACH 4.0f

static float stored(const tunable *t, float x) {
    return t->f16 ? f16_to_f32(f32_to_f16(x)) : x;
}

/* The middle of the levels: a minimum is trained as the value there, so that it and the scale do not pull at each
 * other. */
static float middle(const llmq_type_info *type) {
    return 0.5f * (type->levels[0] + type->levels[type->n_levels - 1]);
}

/* What is trained of a type, without sizes; false: nothing. */
static bool set_form(const llmq_type_info *type, tunable *t) {
    t->type = type;
    t->f16 = true;
    t->tie = 1;
    switch (type->form) {
    case GRID_SCALE:
    case GRID_SUPER: t->offset = OFFSET_NONE; return true;
    case GRID_ZERO: t->offset = OFFSET_ZERO; return true;
    case GRID_AFFINE: t->offset = OFFSET_MIN; return true;
    case GRID_SUPER_AFFINE: t->offset = OFFSET_SUPER; return true;
    case GRID_FIXED: break;
    }
    t->f16 = false;
    t->tie = type->settle ? NF4_NESTED_BLOCK : 1;
    return nf4_is(type, false) || nf4_is(type, true);
}

static void set_sizes(tunable *t, int64_t rows, int64_t cols) {
    const llmq_type_info *type = t->type;
    bool crosses = quantized_crosses_rows(type, cols);
    t->rows = crosses ? 1 : rows;
    t->cols = crosses ? rows * cols : cols;
    t->per_block = type->block_len / type->group_len;
    t->n_blocks = t->rows * type_blocks(type, t->cols);
    t->n_groups = t->n_blocks * t->per_block;
    t->n_params = (t->n_blocks + t->tie - 1) / t->tie;
    t->n_numbers = t->n_params * (t->offset == OFFSET_MIN || t->offset == OFFSET_SUPER ? 2 : 1);
    t->n_x = t->n_numbers + (t->tie == 1 ? t->rows : 0);
}

int64_t tunable_count(const llmq_type_info *type, int64_t rows, int64_t cols) {
    tunable t = {0};
    if (!set_form(type, &t)) return 0;
    set_sizes(&t, rows, cols);
    return t.n_x;
}

static void load_block(tunable *t, const llmq_quantized *q, int64_t b) {
    const llmq_grid *grid = &q->grids[b];
    int64_t p = b / t->tie;
    bool super = t->per_block > 1;
    float map[NF4_MAP];
    if (q->nested) {
        nf4_nested_map(map);
        t->d0[p] = q->nested->absmax[p];
        t->a[b] = map[q->nested->codes[b]];
        return;
    }
    t->d0[p] = super ? grid->d : grid->scale[0];
    if (t->offset == OFFSET_SUPER) t->m0[p] = grid->dmin;
    if (t->offset == OFFSET_MIN) t->m0[p] = grid->offset[0] + middle(q->type) * grid->scale[0];
    for (int64_t g = 0; g < t->per_block; g++) {
        int64_t at = b * t->per_block + g;
        if (super) t->a[at] = grid->sc[g];
        if (t->m) t->m[at] = grid->mn[g];
    }
}

size_t tunable_bytes(const llmq_type_info *type, int64_t rows, int64_t cols) {
    tunable t = {0};
    if (!set_form(type, &t)) return 0;
    set_sizes(&t, rows, cols);
    size_t lists = 2 + (t.per_block > 1 || type->settle) + (t.offset == OFFSET_ZERO || t.offset == OFFSET_SUPER);
    return (size_t)(rows * cols) + ((size_t)t.n_groups * lists + (size_t)(2 * t.n_params + t.n_x)) * sizeof(float);
}

llmq_status tunable_create(const llmq_quantized *q, tunable *out, llmq_err *err) {
    tunable t = {0};
    if (!set_form(q->type, &t))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--tune: %s has no scales that can be trained", q->type->name);
    set_sizes(&t, q->rows, q->cols);
    size_t cells = (size_t)(q->rows * q->cols), groups = (size_t)t.n_groups, params = (size_t)t.n_params;
    t.codes = mem_alloc(cells, 1);
    t.d0 = mem_zalloc(params, sizeof(float));
    t.m0 = mem_zalloc(params, sizeof(float));
    t.x = mem_alloc((size_t)t.n_x, sizeof(float));
    t.sums = mem_alloc(2 * groups, sizeof(float));
    bool ok = t.codes && t.d0 && t.m0 && t.x && t.sums;
    if (t.per_block > 1 || q->nested) ok = (t.a = mem_zalloc(groups, sizeof(float))) != NULL && ok;
    if (t.offset == OFFSET_ZERO || t.offset == OFFSET_SUPER)
        ok = (t.m = mem_zalloc(groups, sizeof(float))) != NULL && ok;
    if (!ok) {
        tunable_clear(&t);
        return mem_error(err, cells + (5 * params + 4 * groups) * sizeof(float), "scales to be trained");
    }
    memcpy(t.codes, q->codes, cells);
    if (q->nested) t.shift = q->nested->offset;
    for (int64_t b = 0; b < t.n_blocks; b++) load_block(&t, q, b);
    for (int64_t i = 0; i < t.n_x; i++) t.x[i] = t.offset == OFFSET_MIN && i >= t.n_params && i < t.n_numbers ? 0 : 1;
    *out = t;
    return LLMQ_OK;
}

void tunable_clear(tunable *t) {
    mem_free(t->codes);
    mem_free(t->a);
    mem_free(t->m);
    mem_free(t->d0);
    mem_free(t->m0);
    mem_free(t->x);
    mem_free(t->sums);
    *t = (tunable){0};
}

static float row_factor(const tunable *t, int64_t row) {
    return t->tie == 1 ? t->x[t->n_numbers + row] : 1;
}

/* The numbers of parameter p, of this row, as stored: D, and M or the minimum. */
static void param_now(const tunable *t, int64_t r, int64_t p, float *d, float *m) {
    float row = row_factor(t, r);
    *d = stored(t, t->d0[p] * t->x[p] * row);
    if (t->offset == OFFSET_SUPER) *m = stored(t, t->m0[p] * fmaxf(t->x[t->n_params + p] * row, 0));
    if (t->offset == OFFSET_MIN)
        *m = stored(t, (t->m0[p] + MIN_REACH * t->d0[p] * t->x[t->n_params + p]) * row - middle(t->type) * *d);
}

/* scale * level + offset of group g of block b. */
static void group_now(const tunable *t, int64_t b, int64_t g, float d, float m, float *scale, float *offset) {
    int64_t at = b * t->per_block + g;
    *scale = t->a ? d * t->a[at] : d;
    if (t->tie > 1) *scale += t->shift;
    *offset = 0;
    if (t->offset == OFFSET_MIN) *offset = m;
    if (t->offset == OFFSET_ZERO) *offset = -(d * t->m[at]);
    if (t->offset == OFFSET_SUPER) *offset = -(m * t->m[at]);
}

/* Groups whose numbers are made at a time. */
#define GROUPS 64

/* Codes of groups [first, first + n) of row r. */
static llmq_code_run run_of(const tunable *t, int64_t r, int64_t first, int64_t n) {
    const llmq_type_info *type = t->type;
    int64_t at = first * type->group_len, left = t->cols - at;
    return (llmq_code_run){.codes = t->codes + r * t->cols + at,
                           .n = left / n < type->group_len ? left : n * type->group_len,
                           .group_len = type->group_len,
                           .levels = type->levels,
                           .n_levels = type->n_levels,
                           .uniform = type->uniform};
}

static int64_t row_groups(const tunable *t) {
    return (t->cols + t->type->group_len - 1) / t->type->group_len;
}

void tunable_values(const tunable *t, const llmq_backend_ops *ops, int64_t begin, int64_t end, float *out) {
    int64_t all = row_groups(t), row_blocks = type_blocks(t->type, t->cols);
    float scale[GROUPS], offset[GROUPS];
    for (int64_t r = begin; r < end; r++)
        for (int64_t first = 0; first < all; first += GROUPS) {
            int64_t n = all - first < GROUPS ? all - first : GROUPS;
            float d = 0, m = 0;
            for (int64_t i = 0; i < n; i++) {
                int64_t b = r * row_blocks + (first + i) / t->per_block, g = (first + i) % t->per_block;
                if (g == 0 || i == 0) param_now(t, r, b / t->tie, &d, &m);
                group_now(t, b, g, d, m, &scale[i], &offset[i]);
            }
            llmq_code_run run = run_of(t, r, first, n);
            ops->code_values(&run, scale, offset, out + r * t->cols + first * t->type->group_len);
        }
}

bool tunable_can_pack(const tunable *t) {
    return t->type->pack != NULL;
}

/* Block b as its type stores it. */
static void block_now(const tunable *t, int64_t b, float d, float m, llmq_grid *grid) {
    for (int64_t g = 0; g < t->per_block; g++) {
        int64_t at = b * t->per_block + g;
        group_now(t, b, g, d, m, &grid->scale[g], &grid->offset[g]);
        if (t->per_block > 1) grid->sc[g] = (int8_t)t->a[at];
        if (t->m) grid->mn[g] = (uint8_t)t->m[at];
    }
    grid->d = t->per_block > 1 ? d : grid->scale[0];
    grid->dmin = m;
}

void tunable_pack(const tunable *t, int64_t begin, int64_t end, uint8_t *out) {
    int64_t row_blocks = type_blocks(t->type, t->cols);
    for (int64_t r = begin; r < end; r++)
        for (int64_t b = r * row_blocks; b < (r + 1) * row_blocks; b++) {
            llmq_grid grid;
            float d, m = 0;
            param_now(t, r, b / t->tie, &d, &m);
            block_now(t, b, d, m, &grid);
            t->type->pack(&grid, t->codes + b * t->type->block_len, out + b * t->type->block_bytes);
        }
}

bool tunable_can_pack_q8(const tunable *t) {
    const llmq_type_info *type = t->type;
    return t->offset == OFFSET_NONE && t->per_block == 1 && t->n_groups == t->rows && t->cols % QK == 0 &&
           type->levels[0] >= -128 && type->levels[type->n_levels - 1] <= 127;
}

void tunable_pack_q8(const tunable *t, int64_t begin, int64_t end, uint8_t *out) {
    block_q8_0 *block = (block_q8_0 *)(void *)out + begin * (t->cols / QK);
    const uint8_t *code = t->codes + begin * t->cols;
    for (int64_t r = begin; r < end; r++) {
        float d, m;
        param_now(t, r, r, &d, &m);
        for (int64_t i = 0; i < t->cols / QK; i++, block++, code += QK) {
            block->d = f32_to_f16(d);
            for (int k = 0; k < QK; k++) block->qs[k] = (int8_t)t->type->levels[code[k]];
        }
    }
}

void tunable_sums(const tunable *t, const llmq_backend_ops *ops, const float *grad, int64_t begin, int64_t end) {
    int64_t all = row_groups(t), stride = type_blocks(t->type, t->cols) * t->per_block;
    for (int64_t r = begin; r < end; r++) {
        llmq_code_run run = run_of(t, r, 0, all);
        ops->code_sums(&run, grad + r * t->cols, t->sums + 2 * r * stride);
        memset(t->sums + 2 * (r * stride + all), 0, (size_t)(2 * (stride - all)) * sizeof *t->sums);
    }
}

/* Of group i of row r, by the chain rule through group_now and param_now; rounding to f16 counts as none. */
static void group_gradient(const tunable *t, int64_t r, int64_t i, int64_t p, float *g) {
    float with = t->sums[2 * i], alone = t->sums[2 * i + 1], row = row_factor(t, r);
    float d = with * (t->a ? t->a[i] : 1), m = 0, x2 = t->n_numbers > t->n_params ? t->x[t->n_params + p] : 0;
    if (t->offset == OFFSET_ZERO) d -= alone * t->m[i];
    if (t->offset == OFFSET_MIN) d -= alone * middle(t->type);
    if (t->offset == OFFSET_SUPER) g[t->n_params + p] -= alone * t->m[i] * t->m0[p] * row;
    if (t->offset == OFFSET_SUPER) m = -alone * t->m[i] * t->m0[p] * x2;
    if (t->offset == OFFSET_MIN) g[t->n_params + p] += alone * MIN_REACH * t->d0[p] * row;
    if (t->offset == OFFSET_MIN) m = alone * (t->m0[p] + MIN_REACH * t->d0[p] * x2);
    g[p] += d * t->d0[p] * row;
    if (t->tie == 1) g[t->n_numbers + r] += d * t->d0[p] * t->x[p] + m;
}

static void clear(float *g, int64_t begin, int64_t end) {
    memset(g + begin, 0, (size_t)(end - begin) * sizeof *g);
}

void tunable_gradient(const tunable *t, int64_t begin, int64_t end, float *g) {
    int64_t row_blocks = type_blocks(t->type, t->cols);
    int64_t first = begin * row_blocks / t->tie, last = (end * row_blocks + t->tie - 1) / t->tie;
    clear(g, first, last);
    if (t->n_numbers > t->n_params) clear(g, t->n_params + first, t->n_params + last);
    if (t->tie == 1) clear(g, t->n_numbers + begin, t->n_numbers + end);
    for (int64_t r = begin; r < end; r++)
        for (int64_t b = r * row_blocks; b < (r + 1) * row_blocks; b++)
            for (int64_t k = 0; k < t->per_block; k++) group_gradient(t, r, b * t->per_block + k, b / t->tie, g);
}

bool tunable_rows_apart(const tunable *t) {
    return t->tie == 1;
}

void tunable_free_codes(tunable *t, bool filled, float *z, float *zm, float *zv) {
    t->z = z;
    t->zm = zm;
    t->zv = zv;
    for (int64_t i = 0; !filled && i < t->rows * t->cols; i++) {
        z[i] = t->type->levels[t->codes[i]];
        zm[i] = zv[i] = 0;
    }
}

static uint8_t nearest(const llmq_type_info *type, float z) {
    int top = type->n_levels - 1, code = 0;
    if (type->uniform) {
        float x = z - type->levels[0];
        return (uint8_t)(x <= 0 ? 0 : x >= (float)top ? top : (int)(x + 0.5f));
    }
    while (code < top && 2 * z > type->levels[code] + type->levels[code + 1]) code++;
    return (uint8_t)code;
}

void tunable_update_codes(tunable *t, const llmq_backend_ops *ops, const llmq_adam *adam, const float *grad,
                          int64_t begin, int64_t end) {
    const llmq_worker alone = {0, 1, NULL};
    const llmq_type_info *type = t->type;
    int64_t row_blocks = type_blocks(type, t->cols);
    float low = type->levels[0], high = type->levels[type->n_levels - 1], g[TYPE_MAX_BLOCK];
    for (int64_t r = begin; r < end; r++)
        for (int64_t i = 0; i < row_blocks; i++) {
            int64_t b = r * row_blocks + i, at = r * t->cols + i * type->block_len;
            int64_t len = type_block_cols(type, t->cols, i);
            float d, m = 0, scale = 0, offset;
            param_now(t, r, b / t->tie, &d, &m);
            for (int64_t from = 0; from < len; from += TYPE_MAX_BLOCK) {
                int64_t n = len - from < TYPE_MAX_BLOCK ? len - from : TYPE_MAX_BLOCK;
                for (int64_t k = 0; k < n; k++) {
                    if ((from + k) % type->group_len == 0 || k == 0)
                        group_now(t, b, (from + k) / type->group_len, d, m, &scale, &offset);
                    g[k] = grad[at + from + k] * scale;
                }
                ops->adam(&alone, adam, t->z + at + from, g, t->zm + at + from, t->zv + at + from, n);
                for (int64_t k = at + from; k < at + from + n; k++) {
                    t->z[k] = t->z[k] < low ? low : t->z[k] > high ? high : t->z[k];
                    t->codes[k] = nearest(type, t->z[k]);
                }
            }
        }
}

void tunable_settle_codes(tunable *t) {
    for (int64_t i = 0; i < t->rows * t->cols; i++) t->codes[i] = nearest(t->type, t->z[i]);
}

void tunable_numbers(const tunable *t, float *numbers) {
    for (int64_t p = 0; p < t->n_params; p++) {
        float d, m = 0;
        param_now(t, t->tie == 1 ? p / (t->n_params / t->rows) : 0, p, &d, &m);
        numbers[p] = d;
        if (t->n_numbers > t->n_params) numbers[t->n_params + p] = m;
    }
}

void tunable_store(const tunable *t, const float *numbers, llmq_quantized *q) {
    if (t->z) memcpy(q->codes, t->codes, (size_t)(t->rows * t->cols));
    for (int64_t b = 0; b < t->n_blocks; b++) {
        llmq_grid *grid = &q->grids[b];
        int64_t p = b / t->tie;
        float d = numbers[p], m = t->n_numbers > t->n_params ? numbers[t->n_params + p] : 0;
        for (int64_t g = 0; g < t->per_block; g++) group_now(t, b, g, d, m, &grid->scale[g], &grid->offset[g]);
        grid->d = t->per_block > 1 ? d : grid->scale[0];
        if (t->n_numbers > t->n_params) grid->dmin = m;
        if (q->nested) q->nested->absmax[p] = d;
    }
}
