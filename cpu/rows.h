/* Passes over rows of floats that any compiler turns into vectors: one text for the file of each ISA, which fills the
 * ops from it. The same bits on all of them. */
#ifndef LLMQ_CPU_ROWS_H
#define LLMQ_CPU_ROWS_H

#include <string.h>

#include "core/backend.h"
#include "core/half.h"

static bool rows_finite(const float *x, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint32_t)((f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u);
    return bad == 0;
}

static int64_t rows_drop(float *x, int64_t n_rows, int64_t n, uint8_t *bad) {
    int64_t dropped = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        if (rows_finite(x + r * n, n)) continue;
        memset(x + r * n, 0, (size_t)n * sizeof *x);
        bad[r] = 1;
        dropped++;
    }
    return dropped;
}

static void rows_to_bf16(const float *restrict x, uint16_t *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = f32_to_bf16(x[i]);
}

static void rows_from_bf16(const uint16_t *restrict x, float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = bf16_to_f32(x[i]);
}

static void rows_fill(llmq_backend_ops *ops) {
    ops->drop_rows = rows_drop;
    ops->to_bf16 = rows_to_bf16;
    ops->from_bf16 = rows_from_bf16;
}

#endif
