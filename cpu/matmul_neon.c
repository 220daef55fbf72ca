/* NEON kernels for the interleaved quantized layouts, and activations in the forms that weights want. */
#define DOTPROD 0
#include "cpu/matmul_neon.h"
#include "cpu/act_q8.h"

/* ---- activations */

INLINE uint32_t peak(const float *x, int64_t n) {
    float padded[32];
    x = act_whole(x, n, padded);
    int32x4_t mag = vdupq_n_s32(0);
    UNROLL for (int k = 0; k < 8; k++) { /* magnitudes order as integers */
        int32x4_t bits = vreinterpretq_s32_f32(vld1q_f32(x + 4 * k));
        mag = vmaxq_s32(mag, vandq_s32(bits, vdupq_n_s32(0x7fffffff)));
    }
    return (uint32_t)vmaxvq_s32(mag);
}

INLINE void round_group(const float *x, int64_t n, float inverse, int8_t *q, int32_t sum[2]) {
    float padded[32];
    x = act_whole(x, n, padded);
    UNROLL for (int half = 0; half < 2; half++) {
        int16x4_t h[4];
        UNROLL for (int k = 0; k < 4; k++) h[k] =
            vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 16 * half + 4 * k), inverse)));
        int16x8_t low = vcombine_s16(h[0], h[1]), high = vcombine_s16(h[2], h[3]);
        vst1q_s8(q + 16 * half, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        sum[half] = vaddvq_s16(vaddq_s16(low, high));
    }
}

#include "cpu/matmul_entries.h"
