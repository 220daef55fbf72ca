/* One matrix as grids and codes: what a quantization method returns, and what storage types and Hugging Face schemes
 * turn into bytes. */
#ifndef LLMQ_TYPES_QUANTIZED_H
#define LLMQ_TYPES_QUANTIZED_H

#include "types/type.h"

typedef struct llmq_quantized {
    const llmq_type_info *type;
    int64_t rows, cols;
    llmq_grid *grids; /* (rows, type_blocks(type, cols)) */
    uint8_t *codes;   /* (rows, cols) */
} llmq_quantized;

llmq_status quantized_create(const llmq_type_info *type, int64_t rows, int64_t cols, llmq_quantized **out,
                             llmq_err *err);
void quantized_destroy(llmq_quantized *q);
/* Row r as the bytes of its storage type (type_row_bytes). */
void quantized_pack_row(const llmq_quantized *q, int64_t r, void *dst);
/* Row r back to floats [cols]. */
void quantized_row_to_f32(const llmq_quantized *q, int64_t r, float *dst);

#endif
