/* How activations are rounded to 8 bits in groups of 32 (layout.h has their form), the same bits on every instruction
 * set.
 *
 * What rounding costs a token is the sum of its groups' squared steps, and a few groups make most of it, each by one
 * input. So the largest input of a group is taken out, and kept as it is, where that lowers the square of the group's
 * largest by more than the square of what is ACT_OUTLIER_ABOVE beyond the usual in the token. Usual is the mean of the
 * groups' largest, in logarithms: of the bits of floats, whose sum is exact in any order. (Outliers apart, the rest in
 * 8 bits: after LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339, which keeps whole columns.) docs/numerics.md has
 * what it is worth. */
#ifndef LLMQ_CPU_ACT_Q8_H
#define LLMQ_CPU_ACT_Q8_H

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "cpu/layout.h"

#define ACT_OUTLIER_ABOVE (1 << 22) /* as added to the bits of a float: 4/3 to 3/2 times */
#define ACT_SPAN 512                /* groups that share what is usual */
#define ACT_FETCH 1024              /* floats ahead */
/* d at least, and the bits of 2^100: inputs from there on make the result NaN, as infinity does. So no product of d and
 * a weight's scale (2^-28 to 2^23) leaves the normal floats. */
#define ACT_LEAST 0x1p-96f
#define ACT_HUGE (227u << 23)

static inline uint32_t act_magnitude(float x) {
    return f32_bits(x) & 0x7fffffff;
}
static inline double act_square(uint32_t bits) {
    return (double)f32_from_bits(bits) * (double)f32_from_bits(bits);
}

/* d for a largest magnitude of these bits. */
static inline float act_scale(uint32_t bits) {
    const uint32_t fraction = (1u << 20) - 1; /* ACT_SCALES leave three bits of 23 */
    float d = f32_from_bits((f32_bits(f32_from_bits(bits) / 127.0f) + fraction) & ~fraction);
    return d > ACT_LEAST ? d : ACT_LEAST;
}

/* By the square of which the square of a group's largest has to fall, as bits. bits: the largest magnitude of each of n
 * groups. */
static inline uint32_t act_outlier_bound(const uint32_t *bits, int64_t n) {
    uint64_t sum = 0, count = 0;
    for (int64_t g = 0; g < n; g++) {
        sum += bits[g];
        count += bits[g] != 0;
    }
    uint64_t bound = count ? sum / count + ACT_OUTLIER_ABOVE : 0;
    return bound < ACT_HUGE ? (uint32_t)bound : ACT_HUGE - 1;
}

/* The bits of the largest magnitude of n inputs, at most 32; a NaN is above infinity. */
typedef uint32_t act_peak_fn(const float *x, int64_t n);
/* q (32) = n inputs times inverse, to nearest, ties to even, the rest 0; sum: of the lower and the upper 16. */
typedef void act_round_fn(const float *x, int64_t n, float inverse, int8_t *q, int32_t sum[2]);

/* If the largest of n inputs, of these bits, is the only one so large and to be taken out: copies the others to rest
 * (32), changes bits to those of their largest, and returns its column. */
INLINE int act_take_out(act_peak_fn *peak, const float *x, int64_t n, uint32_t bound, uint32_t *bits, float *rest) {
    float padded[32];
    uint32_t largest = 0;
    x = act_whole(x, n, padded);
    for (int i = 0; i < 32; i++) { /* for vectors: no part of rest is stored by itself */
        bool is = act_magnitude(x[i]) == *bits;
        rest[i] = is ? 0.0f : x[i];
        largest |= (uint32_t)is << i;
    }
    uint32_t next = peak(rest, 32);
    if (largest & (largest - 1) || !(act_square(*bits) - act_square(next) > act_square(bound))) return ACT_NO_OUTLIER;
    *bits = next;
    return __builtin_ctz(largest);
}

/* What rounding group `at` of a block left of its n inputs x. */
INLINE void act_rest_of(const float *x, int64_t n, const act_block *b, int64_t at, float rest[32]) {
    const int8_t *q = b->q + at * 32;
    const int out = b->outlier_at[at];
    const bool damaged = isnan(b->outlier[at]); /* the result is NaN already */
    for (int i = 0; i < 32; i++) rest[i] = i < n && i != out && !damaged ? x[i] - b->group[at].d * (float)q[i] : 0.0f;
}

/* Group `at` of a block: n inputs, d and 1 / d for their largest, and an outlier that is no longer among them. */
INLINE void act_fill_group(act_round_fn *round, const float *x, int64_t n, float d, float inverse, int out,
                           float outlier, const act_block *b, int64_t at) {
    int32_t sum[2];
    round(x, n, inverse, (int8_t *)b->q + at * 32, sum);
    ((float *)b->outlier)[at] = outlier;
    ((uint8_t *)b->outlier_at)[at] = (uint8_t)out;
    ((act_group *)b->group)[at] =
        (act_group){d, -128 * (sum[0] + sum[1]), d * (float)(sum[0] + sum[1]), {(int16_t)sum[0], (int16_t)sum[1]}};
}

/* The same of a group whose largest, of these bits, is above bound, or too large. */
static inline void act_fill_large(act_peak_fn *peak, act_round_fn *round, const float *x, int64_t n, uint32_t bits,
                                  uint32_t bound, const act_block *b, int64_t at) {
    float rest[32];
    if (bits >= ACT_HUGE) {
        memset(rest, 0, sizeof rest);
        act_fill_group(round, rest, 32, ACT_LEAST, 1.0f / ACT_LEAST, 0, NAN, b, at);
        return;
    }
    int out = act_take_out(peak, x, n, bound, &bits, rest);
    float d = act_scale(bits);
    if (out == ACT_NO_OUTLIER)
        act_fill_group(round, x, n, d, 1.0f / d, out, 0, b, at);
    else
        act_fill_group(round, rest, 32, d, 1.0f / d, out, x[out], b, at);
}

/* Groups g..end of token t, which is row `row` of its block; parts: rows of a token. */
INLINE void act_fill_groups(const llmq_acts *a, int parts, const act_block *b, int64_t row, int64_t t, int64_t g,
                            int64_t end, act_peak_fn *peak, act_round_fn *round) {
    const int64_t groups = act_groups(a->cols);
    const float *x = a->x + t * a->cols;
    uint32_t bits[ACT_SPAN];
    float d[ACT_SPAN], inverse[ACT_SPAN];
    while (g < end) {
        const int64_t first = g / ACT_SPAN * ACT_SPAN, n = groups - first < ACT_SPAN ? groups - first : ACT_SPAN;
        for (int64_t i = 0; i < n; i++) {
            int64_t left = a->cols - 32 * (first + i);
            __builtin_prefetch(x + 32 * (first + i) + ACT_FETCH);
            __builtin_prefetch(x + 32 * (first + i) + ACT_FETCH + 16);
            bits[i] = peak(x + 32 * (first + i), left < 32 ? left : 32);
        }
        for (int64_t i = g - first; i < n && i < end - first; i++)
            d[i] = act_scale(bits[i]), inverse[i] = 1.0f / d[i]; /* by vectors */
        uint32_t bound = act_outlier_bound(bits, n);
        for (; g < end && g < first + n; g++) {
            int64_t left = a->cols - 32 * g, at = g * b->n + row;
            if (left > 32) left = 32;
            if (bits[g - first] > bound)
                act_fill_large(peak, round, x + 32 * g, left, bits[g - first], bound, b, at);
            else
                act_fill_group(round, x + 32 * g, left, d[g - first], inverse[g - first], ACT_NO_OUTLIER, 0, b, at);
            if (parts == 1) continue;
            float rest[32];
            act_rest_of(x + 32 * g, left, b, at, rest);
            float step = act_scale(peak(rest, 32));
            act_fill_group(round, rest, 32, step, 1.0f / step, ACT_NO_OUTLIER, 0, b, at + b->n / 2);
        }
    }
}

/* ACT_Q8 of a's inputs, or ACT_Q8_SPLIT. peak, round: constants, so that they are inlined. */
INLINE void act_fill_q8(const llmq_worker *worker, llmq_acts *a, llmq_act_form form, act_peak_fn *peak,
                        act_round_fn *round) {
    const int parts = act_parts(form);
    const int64_t groups = act_groups(a->cols), rows = parts * a->n_tok, len = act_block_len(rows) / parts;
    int64_t begin, end;
    if (rows <= ACT_FEW && !act_whole_tokens(worker, a->n_tok)) {
        /* One block, in which a group's tokens are neighbours: workers that had tokens each would write to the same
         * cache lines. */
        const act_block b = act_block_at(a, rows, 0);
        worker_range(worker, groups, 1, &begin, &end);
        for (int64_t t = 0; t < a->n_tok; t++) act_fill_groups(a, parts, &b, t, t, begin, end, peak, round);
        return;
    }
    act_share(worker, a, &begin, &end);
    while (begin < end) { /* t * groups + g */
        const int64_t t = begin / groups, g = begin % groups, most = g + end - begin;
        const act_block b = act_block_at(a, rows, t / len * len * parts);
        act_fill_groups(a, parts, &b, t % len, t, g, most < groups ? most : groups, peak, round);
        begin += groups - g;
    }
}

#endif
