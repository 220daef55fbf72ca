#include "types/quantized.h"

#include "core/mem.h"

llmq_status quantized_create(const llmq_type_info *type, int64_t rows, int64_t cols, llmq_quantized **out,
                             llmq_err *err) {
    if (rows <= 0 || cols <= 0 || type_is_float(type) || (!type->ragged && cols % type->block_len != 0))
        return llmq_fail(err, LLMQ_E_ARG, "%s cannot hold a matrix of %lld rows of %lld weights", type->name,
                         (long long)rows, (long long)cols);
    size_t n_codes, n_grids;
    if (!size_mul((size_t)rows, (size_t)cols, &n_codes)) return mem_error(err, SIZE_MAX, "a quantized matrix");
    n_grids = (size_t)rows * (size_t)type_blocks(type, cols);
    llmq_quantized *q = mem_zalloc(1, sizeof *q);
    if (!q) return mem_error(err, sizeof *q, "a quantized matrix");
    *q = (llmq_quantized){.type = type, .rows = rows, .cols = cols};
    q->grids = mem_alloc(n_grids, sizeof *q->grids);
    q->codes = mem_alloc(n_codes, 1);
    if (!q->grids || !q->codes) {
        quantized_destroy(q);
        return mem_error(err, n_grids * sizeof *q->grids + n_codes, "a quantized matrix");
    }
    *out = q;
    return LLMQ_OK;
}

void quantized_destroy(llmq_quantized *q) {
    if (!q) return;
    mem_free(q->grids);
    mem_free(q->codes);
    mem_free(q);
}

void quantized_pack_row(const llmq_quantized *q, int64_t r, void *dst) {
    const llmq_type_info *t = q->type;
    int64_t n_blocks = type_blocks(t, q->cols);
    const llmq_grid *grid = q->grids + r * n_blocks;
    const uint8_t *codes = q->codes + r * q->cols;
    uint8_t *bytes = dst;
    for (int64_t b = 0; b < n_blocks; b++) t->pack(grid + b, codes + b * t->block_len, bytes + b * t->block_bytes);
}

void quantized_row_to_f32(const llmq_quantized *q, int64_t r, float *dst) {
    const llmq_type_info *t = q->type;
    int64_t n_blocks = type_blocks(t, q->cols);
    const llmq_grid *grid = q->grids + r * n_blocks;
    const uint8_t *codes = q->codes + r * q->cols;
    for (int64_t b = 0; b < n_blocks; b++)
        type_values(t, grid + b, codes + b * t->block_len, type_block_cols(t, q->cols, b), dst + b * t->block_len);
}
