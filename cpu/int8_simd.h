/* What the kernels of 8-bit rows share (int8.h): activations to 8 bits, as plain loops that the compiler turns into
 * vectors of the instruction set of the file that includes this, the same bits on all of them; and what a register tile
 * multiplies. */
#ifndef LLMQ_CPU_INT8_SIMD_H
#define LLMQ_CPU_INT8_SIMD_H

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "cpu/int8.h"

/* One token. Magnitudes of floats order as integers; those of NaN and infinities are from 0x7f800000 on. */
static void fill_row(const float *restrict x, int64_t cols, llmq_act_range range, int8_t *restrict q,
                     int8_token *token) {
    int32_t largest = 0, sum = 0;
    for (int64_t i = 0; i < cols; i++) {
        int32_t magnitude;
        memcpy(&magnitude, x + i, 4);
        magnitude &= 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    bool finite = largest < 0x7f800000;
    float most = f32_from_bits((uint32_t)largest);
    token->d = !finite ? NAN : range.scale > 0 ? range.scale : most > 1e-30f ? most / 127.5f : 0.0f;
    float inverse = !finite || !(token->d > 0) ? 0.0f : range.scale > 0 ? 1.0f / range.scale : 127.5f / most;
    float zero = range.scale > 0 ? (float)range.zero : 0.0f;
    for (int64_t i = 0; i < cols; i++) {
        float v = rintf((finite ? x[i] : 0.0f) * inverse) + zero;
        v = v > -128.0f ? v : -128.0f;
        v = v < 127.0f ? v : 127.0f;
        q[i] = (int8_t)(int32_t)v;
    }
    for (int64_t i = 0; i < cols; i++) sum += q[i];
    token->start = -128 * sum;
    memset(q + cols, 0, (size_t)(int8_stride(cols) - cols));
}

static inline void fill_tokens(const llmq_worker *worker, llmq_acts *a) {
    int64_t stride = int8_stride(a->cols), begin, end;
    worker_range(worker, a->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        fill_row(a->x + t * a->cols, a->cols, a->range, (int8_t *)a->int8 + t * stride, int8_tokens(a) + t);
}

typedef struct product {
    const uint8_t *w; /* first tile */
    int64_t tile_bytes, cols;
    const int8_t *q; /* of the first token */
    int64_t stride;
    const int8_token *token;
    float *y; /* of the first token and row */
    int64_t ldy, rows;
    const float *bias; /* of the first row, or NULL */
} product;

/* All tokens times the rows from r on. */
static inline product product_of(const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy, int64_t r) {
    int64_t tile_bytes = int8_tile_bytes(w->cols);
    return (product){.w = (const uint8_t *)w->packed + r / 16 * tile_bytes,
                     .tile_bytes = tile_bytes,
                     .cols = w->cols,
                     .q = a->int8,
                     .stride = int8_stride(w->cols),
                     .token = int8_tokens(a),
                     .y = y + r,
                     .ldy = ldy,
                     .rows = w->rows - r,
                     .bias = w->bias ? w->bias + r : NULL};
}

/* Token t's results, from `ways` sums side by side for each row. */
static inline void store_token(const product *p, int t, const int32_t *sum, int ways) {
    const int8_tile_end *end = (const int8_tile_end *)(const void *)(p->w + p->cols * 16);
    const int8_token *token = p->token + t;
    int64_t n = p->rows < 16 ? p->rows : 16;
    for (int64_t r = 0; r < n; r++) {
        uint32_t v = (uint32_t)end->start[r] + (uint32_t)token->start;
        for (int i = 0; i < ways; i++) v += (uint32_t)sum[r * ways + i];
        /* fused in every copy of this, for the same bits in tiles of any number of tokens */
        p->y[t * p->ldy + r] = fmaf((float)(int32_t)v, end->scale[r] * token->d, p->bias ? p->bias[r] : 0.0f);
    }
}

static inline void next_tokens(product *p, int64_t n) {
    p->q += n * p->stride;
    p->token += n;
    p->y += n * p->ldy;
}

typedef void tile_fn(const product *p);

/* Rows from r on times all tokens, `most` at a time; fns[n - 1] is for n. */
static inline void all_tokens(const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy, int64_t r, int64_t most,
                              tile_fn *const *fns) {
    product p = product_of(w, a, y, ldy, r);
    for (int64_t t = 0; t < a->n_tok; t += most, next_tokens(&p, most))
        fns[(a->n_tok - t < most ? a->n_tok - t : most) - 1](&p);
}

#endif
