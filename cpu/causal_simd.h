/* Rows of scores of training's attention, in vectors. */
#ifndef LLMQ_CPU_CAUSAL_SIMD_H
#define LLMQ_CPU_CAUSAL_SIMD_H

#include <math.h>

#include "core/backend.h"
#include "cpu/simd.h"

static int64_t first_key(const llmq_causal *a, int64_t query) {
    return a->window > 0 && query + 1 > a->window ? query + 1 - a->window : 0;
}

/* Softmax of scale * s over keys [first, last]; 0 outside, up to n. */
static void softmax_row(float *s, int64_t first, int64_t last, int64_t n, float scale) {
    vf top = vf_set1(-INFINITY), sum = vf_zero(), by = vf_set1(scale);
    for (int64_t j = first; j <= last; j += VF_N) {
        int64_t m = lanes_left(last + 1, j);
        vf v = vf_mul(by, vf_load_n(s + j, m));
        vf_store_n(s + j, v, m);
        top = vf_max(top, vf_window(v, 0, m, vf_set1(-INFINITY)));
    }
    vf shift = vf_set1(vf_top(top));
    for (int64_t j = first; j <= last; j += VF_N) {
        int64_t m = lanes_left(last + 1, j);
        vf v = vf_window(vf_exp(vf_sub(vf_load_n(s + j, m), shift)), 0, m, vf_zero());
        vf_store_n(s + j, v, m);
        sum = vf_add(sum, v);
    }
    vf inv = vf_set1(1.0f / vf_sum(sum));
    for (int64_t j = first; j <= last; j += VF_N) {
        int64_t m = lanes_left(last + 1, j);
        vf_store_n(s + j, vf_mul(vf_load_n(s + j, m), inv), m);
    }
    memset(s, 0, (size_t)first * sizeof *s);
    memset(s + last + 1, 0, (size_t)(n - last - 1) * sizeof *s);
}

/* With p the probabilities of keys [first, last], dp becomes scale * p * (dp - sum of p dp); 0 outside, up to n. */
static void score_row_back(const float *p, float *dp, int64_t first, int64_t last, int64_t n, float scale) {
    vf sum = vf_zero();
    for (int64_t j = first; j <= last; j += VF_N) {
        int64_t m = lanes_left(last + 1, j);
        sum = vf_fma(vf_load_n(p + j, m), vf_load_n(dp + j, m), sum);
    }
    vf mean = vf_set1(vf_sum(sum)), by = vf_set1(scale);
    for (int64_t j = first; j <= last; j += VF_N) {
        int64_t m = lanes_left(last + 1, j);
        vf v = vf_mul(by, vf_load_n(p + j, m));
        vf_store_n(dp + j, vf_mul(v, vf_sub(vf_load_n(dp + j, m), mean)), m);
    }
    memset(dp, 0, (size_t)first * sizeof *dp);
    memset(dp + last + 1, 0, (size_t)(n - last - 1) * sizeof *dp);
}

#endif
