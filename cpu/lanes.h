/* Rows side by side in the lanes of a vector: what round_block and refine_block share. Files that include it define
 * LANES first, the floats of a vector of their ISA. */
#ifndef LLMQ_CPU_LANES_H
#define LLMQ_CPU_LANES_H

#include <stdbool.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float lanes_f __attribute__((vector_size(4 * LANES), aligned(16), may_alias));
typedef int32_t lanes_i __attribute__((vector_size(4 * LANES), aligned(16), may_alias));

/* bits of a where mask, else of b */
#define PICK(mask, a, b) ((lanes_f)(((mask) & (lanes_i)(a)) | (~(mask) & (lanes_i)(b))))
#define SPLAT(x) ((lanes_f)((lanes_f){0} + (x)))

static inline bool lanes_any(lanes_i mask) {
#if LANES == 16
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif LANES == 8
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__aarch64__)
    return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
    int32_t any = 0;
    for (int i = 0; i < LANES; i++) any |= mask[i];
    return any != 0;
#endif
}

/* To the nearest integer, |x| < 2^22. */
static inline lanes_f lanes_round(lanes_f x) {
    return (x + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23 leaves no bits after the point */
}

/* To the nearest f16 (ties to even), as a float; beyond the largest f16: that. */
static inline lanes_f lanes_f16(lanes_f x) {
    const lanes_f max = SPLAT(65504.0f), tiny = SPLAT(6.103515625e-5f); /* 2^-14, the smallest normal f16 */
    x = PICK(x < max, x, max);
    x = PICK(x > -max, x, -max);
    lanes_i bits = (lanes_i)x;
    lanes_f normal = (lanes_f)((bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fff);
    lanes_f subnormal = (x + 0.75f) - 0.75f; /* floats from 0.5 to 1 are 2^-24 apart, as subnormal f16 are */
    return PICK((x < tiny) & (x > -tiny), subnormal, normal);
}

/* The level nearest to t, and its code. A NaN gets the first level. */
static inline lanes_f lanes_nearest(const float *levels, int n_levels, bool uniform, lanes_f t, lanes_i *code) {
    lanes_f lo = SPLAT(levels[0]), hi = SPLAT(levels[n_levels - 1]);
    if (uniform) {
        t = PICK(t > lo, t, lo);
        t = PICK(t < hi, t, hi);
        t = lanes_round(t);
        *code = __builtin_convertvector(t - lo, lanes_i);
        return t;
    }
    lanes_f level = lo;
    *code = (lanes_i){0};
    for (int i = 1; i < n_levels; i++) {
        lanes_i above = t > SPLAT(0.5f * (levels[i - 1] + levels[i]));
        *code -= above; /* true is -1 */
        level = PICK(above, SPLAT(levels[i]), level);
    }
    return level;
}

#endif
