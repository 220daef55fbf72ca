/* Storing in the KV cache in vectors: what kv_store and attention share. */
#ifndef LLMQ_CPU_KV_SIMD_H
#define LLMQ_CPU_KV_SIMD_H

#include <math.h>

#include "cpu/kv.h"
#include "cpu/simd.h"

/* A group of 32: the same operations as in plain C, so the same codes. */
SIMD_FN void kv_group_store_q8(const float *x, uint8_t *codes, uint8_t *scale_out) {
    enum { N = KV_GROUP / VF_N };
    vf v[N], top = vf_zero(), poison = vf_zero();
    UNROLL_FOR(j, N) {
        v[j] = vf_load(x + j * VF_N);
        top = vf_max(vf_abs(v[j]), top);
        poison = vf_fma(v[j], vf_zero(), poison);
    }
    uint16_t half = f32_to_f16(vf_top(top) / 127.0f + vf_sum(poison));
    float scale = f16_to_f32(half), inv = scale > 0 && isfinite(scale) ? 1.0f / scale : 0.0f;
    UNROLL_FOR(j, N) {
        vf c = vf_min(vf_set1(127), vf_max(vf_set1(-127), vf_mul(v[j], vf_set1(inv))));
        vf_store_i8(codes + j * VF_N, inv > 0 ? c : vf_zero());
    }
    memcpy(scale_out, &half, sizeof half);
}

SIMD_FN void kv_row_store_simd(int type, const float *x, uint8_t *row, int head_dim) {
    if (type == KV_F32) {
        memcpy(row, x, (size_t)head_dim * sizeof *x);
        return;
    }
    if (type == KV_Q8) {
        for (int g = 0; g < head_dim / KV_GROUP; g++)
            kv_group_store_q8(x + g * KV_GROUP, row + g * KV_GROUP, row + head_dim + 2 * g);
        return;
    }
    int i = 0;
    for (; i + VF_N <= head_dim; i += VF_N) vf_store_f16(row + 2 * i, vf_load(x + i));
    for (; i < head_dim; i++) {
        uint16_t half = f32_to_f16(x[i]);
        memcpy(row + 2 * i, &half, sizeof half);
    }
}

/* k and v [head_dim] of one head at one position. */
SIMD_FN void kv_head_store_simd(const llmq_kv *kv, int head, int64_t pos, const float *k, const float *v) {
    kv_row_store_simd(kv->type, k, (uint8_t *)kv_row(kv->k, kv, head, pos), kv->head_dim);
    kv_row_store_simd(kv->type, v, (uint8_t *)kv_row(kv->v, kv, head, pos), kv->head_dim);
}

#endif
