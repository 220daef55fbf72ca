/* One matrix as grids and codes: what a quantization method returns, and what storage types and Hugging Face schemes
 * turn into bytes. */
#ifndef LLMQ_TYPES_QUANTIZED_H
#define LLMQ_TYPES_QUANTIZED_H

#include "core/parallel.h"
#include "types/type.h"

/* Scales that are themselves quantized, as types/nf4.c's settle leaves them: scale = map[codes[i]] * absmax[i / 256] +
 * offset, i the number of the grid in the matrix. */
typedef struct llmq_nested {
    float offset;
    float *absmax;
    uint8_t *codes;
} llmq_nested;

typedef struct llmq_quantized {
    const llmq_type_info *type;
    int64_t rows, cols;
    llmq_grid *grids;    /* (rows, type_blocks(type, cols)); flat types: blocks of the whole matrix as one row */
    uint8_t *codes;      /* (rows, cols) */
    llmq_nested *nested; /* of types with settle; NULL otherwise */
} llmq_quantized;

llmq_status quantized_create(const llmq_type_info *type, int64_t rows, int64_t cols, llmq_quantized **out,
                             llmq_err *err);
void quantized_destroy(llmq_quantized *q);
int64_t quantized_grids(const llmq_quantized *q);
/* Blocks run over the ends of rows: methods then get the matrix as one row of rows * cols weights. */
static inline bool quantized_crosses_rows(const llmq_type_info *type, int64_t cols) {
    return type->flat && cols % type->block_len != 0;
}
/* Between fitting all grids and choosing codes, by every worker of a team: the scales become what is stored of them.
 * Does nothing for most types. Ends with a barrier where it does something. */
void quantized_settle(const llmq_worker *worker, llmq_quantized *q);
/* Row r as the bytes of its storage type (type_row_bytes). */
void quantized_pack_row(const llmq_quantized *q, int64_t r, void *dst);
/* The same of a type with the same levels whose blocks divide the groups: a group's scale (and minimum, rounded as the
 * type stores it) goes to each of its blocks, codes are what they were. */
void quantized_pack_row_as(const llmq_quantized *q, int64_t r, const llmq_type_info *type, void *dst);
/* Row r back to floats [cols]. */
void quantized_row_to_f32(const llmq_quantized *q, int64_t r, float *dst);

#endif
