/* Activations of 16 bits (act16.h), as plain loops that the compiler turns into vectors of the instruction set of the
 * file that includes this, the same bits on all of them. */
#ifndef LLMQ_CPU_ACT16_SIMD_H
#define LLMQ_CPU_ACT16_SIMD_H

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "cpu/act16.h"
#include "cpu/inline.h"

/* 32 inputs; returns their d, which is not finite where an input is not. Magnitudes of floats order as integers. */
INLINE float act16_group(const float *restrict x, int16_t *restrict q) {
    int32_t bits[32], largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 32; i++) {
        int32_t magnitude = bits[i] & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    bool finite = largest < 0x7f800000;
    float most = f32_from_bits((uint32_t)largest);
    bool some = finite && most > 1e-30f;
    float inverse = some ? ACT16_MAX / most : 0.0f;
    for (int i = 0; i < 32; i++) q[i] = (int16_t)(int32_t)rintf((finite ? x[i] : 0.0f) * inverse);
    return some ? most / ((float)LEVEL16_ONE * ACT16_MAX) : finite ? 0.0f : NAN;
}

/* For instruction sets that take the 32 of a group as they are. */
INLINE void act16_in_order(int16_t *q) {
    (void)q;
}

/* a's inputs to q16; order: what the instruction set does to the 32 of a group. */
INLINE void act16_fill(const llmq_worker *worker, const llmq_acts *a, void *q16, void (*order)(int16_t *q)) {
    int64_t groups = act_groups(a->cols), len = act_block_len(a->n_tok), begin, end;
    act_share(worker, a, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t t = i / groups, g = i % groups, left = a->cols - 32 * g;
        act16_block b = act16_block_at(a, q16, t / len * len);
        int64_t at = g * b.n + t % len;
        int16_t *q = (int16_t *)b.q + 32 * at;
        const float *x = a->x + t * a->cols + 32 * g;
        float padded[32];
        x = act_whole(x, left, padded);
        ((float *)b.d)[at] = act16_group(x, q);
        order(q);
    }
}

#endif
