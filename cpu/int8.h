/* Products of 8-bit rows: weights with one scale a row, activations with one scale a token (ACT_INT8). One integer sum
 * runs over the whole row, so a result takes one multiplication of floats, and the integers are the same whatever the
 * instruction set and the number of tokens.
 *
 * Activations: (n_tok, int8_stride) bytes, zeros behind the last column, then n_tok of int8_token.
 * Weights (LAYOUT_INT8): a tile is 16 rows x all columns, word (k, r) holds columns 4k..4k+3 of row r, each 128 too
 * large, so that it is the unsigned operand of a product of bytes; then int8_tile_end. */
#ifndef LLMQ_CPU_INT8_H
#define LLMQ_CPU_INT8_H

#include "core/backend.h"

typedef struct int8_token {
    float d;       /* x = d * (q - zero); not finite where an x was not */
    int32_t start; /* -128 * sum of q: makes good for weights that are 128 too large */
} int8_token;

typedef struct int8_tile_end {
    int32_t start[16]; /* -zero * sum of the row's weights */
    float scale[16];   /* rows past the last: 0 */
} int8_tile_end;

static inline int64_t int8_stride(int64_t cols) {
    return (cols + 63) / 64 * 64;
}
static inline size_t int8_acts_bytes(int64_t n_tok, int64_t cols) {
    return (size_t)n_tok * ((size_t)int8_stride(cols) + sizeof(int8_token));
}
static inline int8_token *int8_tokens(const llmq_acts *a) {
    return (int8_token *)(void *)((char *)a->int8 + a->n_tok * int8_stride(a->cols));
}
static inline int64_t int8_tile_bytes(int64_t cols) {
    return cols * 16 + (int64_t)sizeof(int8_tile_end);
}

/* Checks t and fills the fields of w that every layout has; the rows stay as they are stored. */
llmq_status int8_prepare_c(llmq_weight *w, const llmq_tensor *t, llmq_act_range range, llmq_team *team, llmq_err *err);
/* The same into LAYOUT_INT8. */
llmq_status int8_pack(llmq_weight *w, const llmq_tensor *t, llmq_act_range range, llmq_team *team, llmq_err *err);

void int8_fill_c(const llmq_worker *worker, llmq_acts *a);
void int8_fill_avx2(const llmq_worker *worker, llmq_acts *a);
void int8_fill_neon(const llmq_worker *worker, llmq_acts *a);
void int8_fill_avx512(const llmq_worker *worker, llmq_acts *a);
void int8_matmul_c(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void int8_matmul_avx2(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void int8_matmul_avxvnni(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void int8_matmul_neon(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void int8_matmul_dotprod(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void int8_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);

#endif
