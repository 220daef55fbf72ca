/* The 8-bit ops as plain loops that the compiler turns into vectors of the file's instruction set. Included once by
 * each affine_ISA.c, which defines AFFINE_NAME(name). */
#include <math.h>
#include <string.h>

#include "cpu/affine.h"

#define LANES 16

static inline float finite_or_0(float x) {
    return x == x ? x : 0;
}
/* In float: the integers meant are below 2^24, and larger numbers and infinities end at the limits. */
static inline float clamped(float x, float lo, float hi) {
    x = x < lo ? lo : x;
    return x > hi ? hi : x;
}

static void AFFINE_NAME(quantize)(const float *x, int64_t n, float inv, int32_t zero, int32_t lo, int32_t hi,
                                  uint8_t *q) {
    float least = (float)(lo - zero), most = (float)(hi - zero);
    for (int64_t i = 0; i < n; i++) {
        float t = clamped(rintf(finite_or_0(x[i] * inv)), least, most);
        q[i] = (uint8_t)((int32_t)t + zero);
    }
}

static void AFFINE_NAME(dequantize)(const uint8_t *q, bool is_signed, int64_t n, float scale, int32_t zero, float *x) {
    int32_t flip = is_signed ? 0x80 : 0; /* (q ^ 128) - 128 is the value of a signed byte */
    for (int64_t i = 0; i < n; i++) x[i] = (float)((q[i] ^ flip) - flip - zero) * scale;
}

static bool AFFINE_NAME(range)(const float *x, int64_t n, float *min, float *max) {
    float lo[LANES], hi[LANES], odd[LANES], sum = 0;
    for (int j = 0; j < LANES; j++) lo[j] = hi[j] = x[0], odd[j] = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float v = x[i + j];
            lo[j] = v < lo[j] ? v : lo[j];
            hi[j] = v > hi[j] ? v : hi[j];
            odd[j] += v - v; /* 0, or NaN for ever after a NaN or Inf */
        }
    for (int j = 0; i < n; i++, j++) {
        lo[j] = x[i] < lo[j] ? x[i] : lo[j];
        hi[j] = x[i] > hi[j] ? x[i] : hi[j];
        odd[j] += x[i] - x[i];
    }
    *min = lo[0], *max = hi[0];
    for (int j = 0; j < LANES; j++) {
        *min = lo[j] < *min ? lo[j] : *min;
        *max = hi[j] > *max ? hi[j] : *max;
        sum += odd[j];
    }
    return sum == 0;
}

static void AFFINE_NAME(finish)(const affine_epilogue *e, const int32_t *acc, int64_t c0, int64_t n, int64_t row,
                                void *y) {
    int32_t v[AFFINE_BLOCK];
    const int32_t *offset = e->offset + c0;
    const float *mult = e->mult + c0, *add = e->add + c0;
    for (int64_t done = 0, m; done < n; done += m) {
        m = n - done < AFFINE_BLOCK ? n - done : AFFINE_BLOCK;
        for (int64_t i = 0; i < m; i++) v[i] = (int32_t)((uint32_t)acc[done + i] + (uint32_t)offset[done + i]);
        if (e->row_zero) {
            uint32_t zero = (uint32_t)e->row_zero[row];
            for (int64_t i = 0; i < m; i++) v[i] = (int32_t)((uint32_t)v[i] - zero * (uint32_t)e->wsum[c0 + done + i]);
        }
        if (e->output == LLMQ_OUT_I32) {
            memcpy((int32_t *)y + done, v, (size_t)m * sizeof *v);
        } else if (e->output == LLMQ_OUT_F32) {
            float scale = e->row_scale ? e->row_scale[row] : 1, *out = (float *)y + done;
            for (int64_t i = 0; i < m; i++) {
                float t = (float)v[i] * (mult[done + i] * scale) + add[done + i];
                out[i] = e->relu && t < 0 ? 0 : t;
            }
        } else if (e->fixed) {
            uint8_t *out = (uint8_t *)y + done;
            for (int64_t i = 0; i < m; i++) {
                int64_t t = (int64_t)affine_fixed_times(v[i], e->fix[c0 + done + i], e->shift[c0 + done + i]) + e->zero;
                out[i] = (uint8_t)(t < e->lo ? e->lo : t > e->hi ? e->hi : t);
            }
        } else {
            float least = (float)(e->lo - e->zero), most = (float)(e->hi - e->zero);
            uint8_t *out = (uint8_t *)y + done;
            for (int64_t i = 0; i < m; i++) {
                float t = clamped(rintf(((float)v[i] + add[done + i]) * mult[done + i]), least, most);
                out[i] = (uint8_t)((int32_t)t + e->zero);
            }
        }
    }
}

/* Rows are dealt one by one; channels pass in blocks whose sums stay in the L1 cache. */
static void AFFINE_NAME(depthwise_q8)(const llmq_worker *w, const affine_depthwise *d) {
    const affine_rows *m = &d->rows;
    int64_t begin, end, bytes = affine_out_bytes(d->epi->output);
    worker_range(w, m->n_img * m->out_h * m->out_w, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const uint8_t *x = (const uint8_t *)m->x + affine_row_begin(m, r);
        char *y = (char *)d->y + r * d->ldy * bytes;
        for (int64_t c = 0, n; c < m->seg_len; c += n) {
            int32_t acc[AFFINE_BLOCK] = {0};
            n = m->seg_len - c < AFFINE_BLOCK ? m->seg_len - c : AFFINE_BLOCK;
            for (int64_t s = 0; s < m->n_seg; s++) {
                const uint8_t *xs = x + m->seg_off[s] + c;
                const int8_t *ws = d->w8 + s * d->ldw + c;
                for (int64_t i = 0; i < n; i++) acc[i] += (int16_t)xs[i] * (int16_t)ws[i];
            }
            AFFINE_NAME(finish)(d->epi, acc, c, n, r, y + c * bytes);
        }
    }
}

static void AFFINE_NAME(depthwise_f32)(const llmq_worker *w, const affine_depthwise *d) {
    const affine_rows *m = &d->rows;
    int64_t begin, end;
    worker_range(w, m->n_img * m->out_h * m->out_w, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *x = (const float *)m->x + affine_row_begin(m, r);
        for (int64_t c = 0, n; c < m->seg_len; c += n) {
            float acc[AFFINE_BLOCK] = {0}, *y = (float *)d->y + r * d->ldy + c;
            n = m->seg_len - c < AFFINE_BLOCK ? m->seg_len - c : AFFINE_BLOCK;
            for (int64_t s = 0; s < m->n_seg; s++) {
                const float *xs = x + m->seg_off[s] + c, *ws = d->w32 + s * d->ldw + c;
                for (int64_t i = 0; i < n; i++) acc[i] += xs[i] * ws[i];
            }
            for (int64_t i = 0; i < n; i++) {
                float t = acc[i] + d->bias[c + i];
                y[i] = d->relu && t < 0 ? 0 : t;
            }
        }
    }
}

static void AFFINE_NAME(max_u8)(const uint8_t *x, int64_t ld, int64_t k, int64_t channels, bool is_signed, uint8_t *y) {
    uint8_t flip = is_signed ? 0x80 : 0;
    for (int64_t c = 0; c < channels; c++) y[c] = x[c] ^ flip;
    for (int64_t i = 0; i < k * k; i++) {
        const uint8_t *p = x + i / k * ld + i % k * channels;
        for (int64_t c = 0; c < channels; c++) {
            uint8_t v = p[c] ^ flip;
            y[c] = v > y[c] ? v : y[c];
        }
    }
    for (int64_t c = 0; c < channels; c++) y[c] ^= flip;
}

static void AFFINE_NAME(max_f32)(const float *x, int64_t ld, int64_t k, int64_t channels, float *y) {
    memcpy(y, x, (size_t)channels * sizeof *y);
    for (int64_t i = 1; i < k * k; i++) {
        const float *p = x + i / k * ld + i % k * channels;
        for (int64_t c = 0; c < channels; c++) y[c] = p[c] > y[c] ? p[c] : y[c];
    }
}

static void AFFINE_NAME(fill)(affine_ops *ops) {
    ops->depthwise_q8 = AFFINE_NAME(depthwise_q8);
    ops->depthwise_f32 = AFFINE_NAME(depthwise_f32);
    ops->quantize = AFFINE_NAME(quantize);
    ops->dequantize = AFFINE_NAME(dequantize);
    ops->range = AFFINE_NAME(range);
    ops->finish = AFFINE_NAME(finish);
    ops->max_u8 = AFFINE_NAME(max_u8);
    ops->max_f32 = AFFINE_NAME(max_f32);
}
