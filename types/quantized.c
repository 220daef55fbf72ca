#include "types/quantized.h"

#include "core/mem.h"
#include "types/nf4.h"

static llmq_nested *nested_create(int64_t n_grids) {
    llmq_nested *nested = mem_zalloc(1, sizeof *nested);
    if (!nested) return NULL;
    nested->absmax = mem_zalloc((size_t)nf4_nested_blocks(n_grids), sizeof *nested->absmax);
    nested->codes = mem_zalloc((size_t)n_grids, 1);
    return nested;
}

static int64_t n_grids_of(const llmq_type_info *t, int64_t rows, int64_t cols) {
    return t->flat ? type_blocks(t, rows * cols) : rows * type_blocks(t, cols);
}

int64_t quantized_grids(const llmq_quantized *q) {
    return n_grids_of(q->type, q->rows, q->cols);
}

llmq_status quantized_create(const llmq_type_info *type, int64_t rows, int64_t cols, llmq_quantized **out,
                             llmq_err *err) {
    if (rows <= 0 || cols <= 0 || type_is_float(type) || (!type->ragged && cols % type->block_len != 0))
        return llmq_fail(err, LLMQ_E_ARG, "%s cannot hold a matrix of %lld rows of %lld weights", type->name,
                         (long long)rows, (long long)cols);
    size_t n_codes, n_grids;
    if (!size_mul((size_t)rows, (size_t)cols, &n_codes) || n_codes > SIZE_MAX / 4)
        return mem_error(err, SIZE_MAX, "a quantized matrix");
    n_grids = (size_t)n_grids_of(type, rows, cols);
    llmq_quantized *q = mem_zalloc(1, sizeof *q);
    if (!q) return mem_error(err, sizeof *q, "a quantized matrix");
    *q = (llmq_quantized){.type = type, .rows = rows, .cols = cols};
    q->grids = mem_alloc(n_grids, sizeof *q->grids);
    q->codes = mem_alloc(n_codes, 1);
    if (type->settle) q->nested = nested_create((int64_t)n_grids);
    if (!q->grids || !q->codes || (type->settle && (!q->nested || !q->nested->absmax || !q->nested->codes))) {
        quantized_destroy(q);
        return mem_error(err, n_grids * sizeof *q->grids + n_codes, "a quantized matrix");
    }
    *out = q;
    return LLMQ_OK;
}

void quantized_destroy(llmq_quantized *q) {
    if (!q) return;
    if (q->nested) {
        mem_free(q->nested->absmax);
        mem_free(q->nested->codes);
    }
    mem_free(q->nested);
    mem_free(q->grids);
    mem_free(q->codes);
    mem_free(q);
}

void quantized_settle(const llmq_worker *worker, llmq_quantized *q) {
    if (!q->type->settle) return;
    worker_barrier(worker);
    if (worker->id == 0) q->type->settle(q);
    worker_barrier(worker);
}

void quantized_pack_row(const llmq_quantized *q, int64_t r, void *dst) {
    const llmq_type_info *t = q->type;
    int64_t n_blocks = type_blocks(t, q->cols);
    const llmq_grid *grid = q->grids + r * n_blocks;
    const uint8_t *codes = q->codes + r * q->cols;
    uint8_t *bytes = dst;
    for (int64_t b = 0; b < n_blocks; b++) t->pack(grid + b, codes + b * t->block_len, bytes + b * t->block_bytes);
}

void quantized_pack_row_as(const llmq_quantized *q, int64_t r, const llmq_type_info *type, void *dst) {
    const llmq_grid *groups = q->grids + r * type_blocks(q->type, q->cols);
    const uint8_t *codes = q->codes + r * q->cols;
    uint8_t *bytes = dst;
    for (int64_t at = 0; at < q->cols; at += type->block_len, bytes += type->block_bytes)
        type->pack(&groups[at / q->type->block_len], codes + at, bytes);
}

/* The row's part of blocks that need not begin where it does. */
static void flat_row_to_f32(const llmq_quantized *q, int64_t r, float *dst) {
    int64_t len = q->type->block_len, begin = r * q->cols, end = begin + q->cols;
    for (int64_t at = begin, n; at < end; at += n) {
        n = (at / len + 1) * len - at;
        n = n < end - at ? n : end - at;
        type_values(q->type, q->grids + at / len, q->codes + at, n, dst + at - begin);
    }
}

void quantized_row_to_f32(const llmq_quantized *q, int64_t r, float *dst) {
    const llmq_type_info *t = q->type;
    int64_t n_blocks = type_blocks(t, q->cols);
    const llmq_grid *grid = q->grids + r * n_blocks;
    const uint8_t *codes = q->codes + r * q->cols;
    if (t->flat) {
        flat_row_to_f32(q, r, dst);
        return;
    }
    for (int64_t b = 0; b < n_blocks; b++)
        type_values(t, grid + b, codes + b * t->block_len, type_block_cols(t, q->cols, b), dst + b * t->block_len);
}
