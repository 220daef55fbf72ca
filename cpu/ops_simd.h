/* The small ops in vectors; included by the file of each ISA. */
#include <math.h>

#include "cpu/kv_simd.h"
#include "cpu/ops.h"
#include "cpu/rows.h"

static void rms_norm_simd(const llmq_worker *w, const float *x, const float *gain, float eps, float *y, int64_t n_rows,
                          int64_t n, int64_t stride) {
    int64_t begin, end;
    worker_range(w, n_rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *in = x + r * stride;
        float *out = y + r * stride;
        vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        int64_t i = 0;
        for (; i + 4 * VF_N <= n; i += 4 * VF_N)
            for (int j = 0; j < 4; j++) {
                vf v = vf_load(in + i + j * VF_N);
                sum[j] = vf_fma(v, v, sum[j]);
            }
        for (; i < n; i += VF_N) {
            vf v = vf_load_n(in + i, n - i < VF_N ? n - i : VF_N);
            sum[0] = vf_fma(v, v, sum[0]);
        }
        double total = vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
        vf inv = vf_set1((float)(1.0 / sqrt(total / (double)n + eps)));
        for (i = 0; i + VF_N <= n; i += VF_N)
            vf_store(out + i, vf_mul(vf_mul(vf_load(in + i), inv), vf_load(gain + i)));
        if (i < n)
            vf_store_n(out + i, vf_mul(vf_mul(vf_load_n(in + i, n - i), inv), vf_load_n(gain + i, n - i)), n - i);
    }
}

/* One head of one token, pairs (i, i + half). */
SIMD_FN void rope_halves(float *v, int half, const float *cs) {
    int i = 0;
    for (; i + VF_N <= half; i += VF_N) {
        vf c, s, a = vf_load(v + i), b = vf_load(v + half + i);
        vf_load_pairs(cs + 2 * i, &c, &s);
        vf_store(v + i, vf_fnma(b, s, vf_mul(a, c)));
        vf_store(v + half + i, vf_fma(a, s, vf_mul(b, c)));
    }
    for (; i < half; i++) {
        float a = v[i], b = v[half + i];
        v[i] = a * cs[2 * i] - b * cs[2 * i + 1];
        v[half + i] = b * cs[2 * i] + a * cs[2 * i + 1];
    }
}

/* Pairs (2i, 2i+1): n numbers, and as many of cos, sin. */
SIMD_FN void rope_neighbours(float *v, int n, const float *cs) {
    for (int i = 0; i < n; i += VF_N) {
        int len = n - i < VF_N ? n - i : VF_N;
        vf x = vf_load_n(v + i, len), t = vf_load_n(cs + i, len);
        vf_store_n(v + i, vf_fmaddsub(x, vf_dup_even(t), vf_mul(vf_swap_pairs(x), vf_dup_odd(t))), len);
    }
}

static void rope_simd(const llmq_worker *w, float *x, int64_t n_tok, int64_t ldx, int n_head, int head_dim, int n_rot,
                      const float *cos_sin, bool neox) {
    int64_t begin, end;
    worker_range(w, n_tok * n_head, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / n_head;
        float *v = x + t * ldx + item % n_head * head_dim;
        const float *cs = cos_sin + t * n_rot;
        if (neox)
            rope_halves(v, n_rot / 2, cs);
        else
            rope_neighbours(v, n_rot, cs);
    }
}

static void add_simd(const llmq_worker *w, float *y, const float *x, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i += VF_N) {
        int64_t len = end - i < VF_N ? end - i : VF_N;
        if (len == VF_N)
            vf_store(y + i, vf_add(vf_load(y + i), vf_load(x + i)));
        else
            vf_store_n(y + i, vf_add(vf_load_n(y + i, len), vf_load_n(x + i, len)), len);
    }
}

SIMD_FN vf silu_times(vf gate, vf up) {
    vf e = vf_exp(vf_sub(vf_zero(), gate));
    return vf_mul(vf_div(gate, vf_add(vf_set1(1), e)), up);
}

static void silu_mul_simd(const llmq_worker *w, const float *gate, const float *up, float *y, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, 16, &begin, &end);
    for (int64_t i = begin; i < end; i += VF_N) {
        int64_t len = end - i < VF_N ? end - i : VF_N;
        if (len == VF_N)
            vf_store(y + i, silu_times(vf_load(gate + i), vf_load(up + i)));
        else
            vf_store_n(y + i, silu_times(vf_load_n(gate + i, len), vf_load_n(up + i, len)), len);
    }
}

static void kv_store_simd(const llmq_worker *w, llmq_kv *kv, const float *k, int64_t ldk, const float *v, int64_t ldv,
                          int64_t pos, int64_t n_tok) {
    int64_t begin, end;
    worker_range(w, n_tok * kv->n_head_kv, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / kv->n_head_kv;
        int head = (int)(item % kv->n_head_kv);
        kv_head_store_simd(kv, head, pos + t, k + t * ldk + head * kv->head_dim, v + t * ldv + head * kv->head_dim);
    }
}

void SIMD_NAME(cpu_fill_ops)(llmq_backend_ops *ops) {
    rows_fill(ops);
    ops->rms_norm = rms_norm_simd;
    ops->rope = rope_simd;
    ops->add = add_simd;
    ops->silu_mul = silu_mul_simd;
    ops->kv_store = kv_store_simd;
    SIMD_NAME(attention_fill)(ops);
    SIMD_NAME(linalg_fill)(ops);
}
