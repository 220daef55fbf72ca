/* Vectors of floats for files compiled for one ISA: AVX-512 (16 lanes), AVX2 (8 lanes) or NEON (two registers of 4, so 8
 * lanes and AVX2's shapes) under the same names, so that one text (the *_simd.h files) gives the kernels of all.
 * Unaligned loads and stores throughout. */
#ifndef LLMQ_CPU_SIMD_H
#define LLMQ_CPU_SIMD_H

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#include "cpu/inline.h"

#define SIMD_FN INLINE

/* for (i = 0..n-1) over a register tile, n known. */
#define UNROLL_FOR(i, n) UNROLL for (int i = 0; i < (n); i++)

#ifndef VF_HAS_TILES /* 1: the file's kernels are AMX's, which has AVX-512 and tiles beside it */
#define VF_HAS_TILES 0
#endif
#ifndef VF_HAS_BF16 /* 1: its products of bf16 are those of vdpbf16ps */
#define VF_HAS_BF16 0
#endif

#if defined(__AVX512F__)
#define VF_N 16
#if VF_HAS_TILES
#define SIMD_NAME(name) name##_amx
#elif VF_HAS_BF16
#define SIMD_NAME(name) name##_avx512bf16
#else
#define SIMD_NAME(name) name##_avx512
#endif
typedef __m512 vf;

SIMD_FN vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
#if defined(__AVX512BF16__)
/* Each lane: bf16 of even, then of odd. */
SIMD_FN vf vf_pair_bf16(vf even, vf odd) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
#endif
SIMD_FN void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
SIMD_FN vf vf_set1(float x) { return _mm512_set1_ps(x); }
SIMD_FN vf vf_zero(void) { return _mm512_setzero_ps(); }
SIMD_FN vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
SIMD_FN vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
SIMD_FN vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SIMD_FN vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
SIMD_FN vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }              /* b if one of them is NaN */
SIMD_FN vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }              /* likewise */
SIMD_FN vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a * b + c */
SIMD_FN vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */
SIMD_FN vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SIMD_FN vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
SIMD_FN vf vf_abs(vf a) { return _mm512_abs_ps(a); }

/* a * 2^n for integral n in -300..300; results beyond the range of floats become 0 (or subnormal) and infinite. */
SIMD_FN vf vf_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }

/* y, 0 where x is below the limit; a NaN is not. */
SIMD_FN vf vf_not_below(vf x, float limit, vf y) {
    return _mm512_mask_mov_ps(_mm512_setzero_ps(), _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), y);
}

/* The first n lanes, 0 <= n <= VF_N; the others are 0. */
SIMD_FN __mmask16 vf_first(int64_t n) { return (__mmask16)((1u << n) - 1); }
SIMD_FN vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vf_first(n), p); }
SIMD_FN void vf_store_n(float *p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, vf_first(n), x); }

/* Lanes lo <= i < hi of x, `other` elsewhere; 0 <= lo, hi <= VF_N. */
SIMD_FN vf vf_window(vf x, int64_t lo, int64_t hi, vf other) {
    return _mm512_mask_mov_ps(other, (__mmask16)(vf_first(hi) & ~vf_first(lo)), x);
}

/* Halves are added in a fixed order. */
SIMD_FN float vf_sum(vf a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
SIMD_FN float vf_top(vf a) {
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

/* The sums of four vectors. */
SIMD_FN void vf_store_sums(float *to, vf a, vf b, vf c, vf d) {
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

SIMD_FN vf vf_set1_f16(uint16_t half) { return _mm512_set1_ps(_cvtsh_ss(half)); }
SIMD_FN vf vf_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
SIMD_FN void vf_store_f16(void *p, vf x) {
    _mm256_storeu_si256(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SIMD_FN vf vf_load_bf16(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
SIMD_FN vf vf_load_u8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p))); }
/* VF_N numbers, by bytes of 0..15. */
typedef struct vf_table {
    vf at[1];
} vf_table;
SIMD_FN vf vf_look_up(const vf_table *t, const void *index) {
    return _mm512_permutex2var_ps(t->at[0], _mm512_cvtepu8_epi32(_mm_loadu_si128(index)), t->at[0]);
}
SIMD_FN vf vf_load_i8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }
/* Rounded to nearest even; |x| <= 127. */
SIMD_FN void vf_store_i8(void *p, vf x) { _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x))); }

/* (x0, y0, x1, y1, ...), 2 VF_N of them, to x and y; and pairs (x0, x1), (x2, x3), ... of one vector. */
SIMD_FN void vf_load_pairs(const float *p, vf *x, vf *y) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    vf a = vf_load(p), b = vf_load(p + 16);
    *x = _mm512_permutex2var_ps(a, even, b);
    *y = _mm512_permutex2var_ps(a, _mm512_or_si512(even, _mm512_set1_epi32(1)), b);
}
SIMD_FN vf vf_dup_even(vf a) { return _mm512_moveldup_ps(a); }
SIMD_FN vf vf_dup_odd(vf a) { return _mm512_movehdup_ps(a); }
SIMD_FN vf vf_swap_pairs(vf a) { return _mm512_permute_ps(a, 0xb1); }
SIMD_FN vf vf_fmaddsub(vf a, vf b, vf c) { return _mm512_fmaddsub_ps(a, b, c); } /* c off even lanes, onto odd */

/* Rows become columns. Each step exchanges blocks twice as large: 1, 2, 4, 8 lanes. */
SIMD_FN void vf_transpose(vf r[VF_N]) {
    vf t[16];
    UNROLL_FOR(h, 8) {
        const int i = 2 * h;
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL_FOR(h, 4) {
        const int i = 4 * h; /* r[i + j]: column j of rows i..i+3 in every 128-bit lane */
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL_FOR(j, 4) { /* lanes 0, 2 | 1, 3 of rows 0..7 and of rows 8..15 */
        t[j] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
        t[j + 4] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);
        t[j + 8] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
        t[j + 12] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xdd);
    }
    UNROLL_FOR(j, 4) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
        r[j + 4] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0x88);
        r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
        r[j + 12] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0xdd);
    }
}

#elif defined(__aarch64__)
#define VF_N 8
#define SIMD_NAME(name) name##_neon
typedef struct vf {
    float32x4_t lo, hi;
} vf;

SIMD_FN vf vf_load(const float *p) { return (vf){vld1q_f32(p), vld1q_f32(p + 4)}; }
#define VF_HAS_BF16 0
SIMD_FN void vf_store(float *p, vf x) { vst1q_f32(p, x.lo), vst1q_f32(p + 4, x.hi); }
SIMD_FN vf vf_set1(float x) { return (vf){vdupq_n_f32(x), vdupq_n_f32(x)}; }
SIMD_FN vf vf_zero(void) { return vf_set1(0); }
SIMD_FN vf vf_add(vf a, vf b) { return (vf){vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
SIMD_FN vf vf_sub(vf a, vf b) { return (vf){vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
SIMD_FN vf vf_mul(vf a, vf b) { return (vf){vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
SIMD_FN vf vf_div(vf a, vf b) { return (vf){vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
/* ARM's own maximum is NaN if one of them is. */
SIMD_FN float32x4_t vf4_max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
SIMD_FN float32x4_t vf4_min(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
SIMD_FN vf vf_max(vf a, vf b) { return (vf){vf4_max(a.lo, b.lo), vf4_max(a.hi, b.hi)}; }
SIMD_FN vf vf_min(vf a, vf b) { return (vf){vf4_min(a.lo, b.lo), vf4_min(a.hi, b.hi)}; }
SIMD_FN vf vf_fma(vf a, vf b, vf c) { return (vf){vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)}; }
SIMD_FN vf vf_fnma(vf a, vf b, vf c) { return (vf){vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi)}; }
SIMD_FN vf vf_round(vf a) { return (vf){vrndnq_f32(a.lo), vrndnq_f32(a.hi)}; }
SIMD_FN vf vf_sqrt(vf a) { return (vf){vsqrtq_f32(a.lo), vsqrtq_f32(a.hi)}; }
SIMD_FN vf vf_abs(vf a) { return (vf){vabsq_f32(a.lo), vabsq_f32(a.hi)}; }

/* In two halves, so that each factor is a normal float. */
SIMD_FN float32x4_t vf4_scale2(float32x4_t a, float32x4_t n) {
    const int32x4_t bias = vdupq_n_s32(127);
    int32x4_t whole = vcvtnq_s32_f32(n), half = vshrq_n_s32(whole, 1), rest = vsubq_s32(whole, half);
    float32x4_t s = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    float32x4_t t = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    return vmulq_f32(vmulq_f32(a, s), t);
}
SIMD_FN vf vf_scale2(vf a, vf n) {
    n = vf_min(vf_set1(250), vf_max(vf_set1(-250), n));
    return (vf){vf4_scale2(a.lo, n.lo), vf4_scale2(a.hi, n.hi)};
}

/* Lanes of y where the mask has ones, else 0. */
SIMD_FN float32x4_t vf4_and(uint32x4_t mask, float32x4_t y) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(y)));
}
SIMD_FN vf vf_not_below(vf x, float limit, vf y) {
    float32x4_t l = vdupq_n_f32(limit);
    return (vf){vf4_and(vmvnq_u32(vcltq_f32(x.lo, l)), y.lo), vf4_and(vmvnq_u32(vcltq_f32(x.hi, l)), y.hi)};
}

/* Nothing behind the first n lanes is touched; n <= 4 as for a half, and may be negative. */
SIMD_FN float32x4_t vf4_load_n(const float *p, int64_t n) {
    float32x4_t x = vdupq_n_f32(0);
    if (n >= 4) return vld1q_f32(p);
    if (n > 0) x = vld1q_lane_f32(p, x, 0);
    if (n > 1) x = vld1q_lane_f32(p + 1, x, 1);
    if (n > 2) x = vld1q_lane_f32(p + 2, x, 2);
    return x;
}
SIMD_FN void vf4_store_n(float *p, float32x4_t x, int64_t n) {
    if (n >= 4) {
        vst1q_f32(p, x);
        return;
    }
    if (n > 0) vst1q_lane_f32(p, x, 0);
    if (n > 1) vst1q_lane_f32(p + 1, x, 1);
    if (n > 2) vst1q_lane_f32(p + 2, x, 2);
}
SIMD_FN vf vf_load_n(const float *p, int64_t n) { return (vf){vf4_load_n(p, n), vf4_load_n(p + 4, n - 4)}; }
SIMD_FN void vf_store_n(float *p, vf x, int64_t n) { vf4_store_n(p, x.lo, n), vf4_store_n(p + 4, x.hi, n - 4); }

SIMD_FN float32x4_t vf4_window(float32x4_t x, int32_t lo, int32_t hi, float32x4_t other) {
    const int32x4_t lanes = {0, 1, 2, 3};
    uint32x4_t inside = vandq_u32(vcgeq_s32(lanes, vdupq_n_s32(lo)), vcltq_s32(lanes, vdupq_n_s32(hi)));
    return vbslq_f32(inside, x, other);
}
SIMD_FN vf vf_window(vf x, int64_t lo, int64_t hi, vf other) {
    int32_t from = (int32_t)lo, end = (int32_t)hi;
    return (vf){vf4_window(x.lo, from, end, other.lo), vf4_window(x.hi, from - 4, end - 4, other.hi)};
}

SIMD_FN float vf_sum(vf a) {
    float32x4_t q = vaddq_f32(a.lo, a.hi);
    return vaddv_f32(vadd_f32(vget_low_f32(q), vget_high_f32(q)));
}
SIMD_FN float vf_top(vf a) {
    float32x4_t q = vf4_max(a.lo, a.hi);
    q = vf4_max(q, vextq_f32(q, q, 2));
    return vgetq_lane_f32(vf4_max(q, vdupq_laneq_f32(q, 1)), 0);
}

SIMD_FN void vf_store_sums(float *to, vf a, vf b, vf c, vf d) {
    float32x4_t lo = vpaddq_f32(vpaddq_f32(a.lo, b.lo), vpaddq_f32(c.lo, d.lo));
    vst1q_f32(to, vaddq_f32(lo, vpaddq_f32(vpaddq_f32(a.hi, b.hi), vpaddq_f32(c.hi, d.hi))));
}

SIMD_FN vf vf_of_f16(uint16x8_t h) {
    return (vf){vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(h))),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(h)))};
}
SIMD_FN vf vf_set1_f16(uint16_t half) { return vf_of_f16(vdupq_n_u16(half)); }
SIMD_FN vf vf_load_f16(const void *p) { return vf_of_f16(vreinterpretq_u16_u8(vld1q_u8(p))); }
SIMD_FN void vf_store_f16(void *p, vf x) {
    vst1q_u8(p, vcombine_u8(vreinterpret_u8_f16(vcvt_f16_f32(x.lo)), vreinterpret_u8_f16(vcvt_f16_f32(x.hi))));
}
SIMD_FN vf vf_load_bf16(const void *p) {
    uint16x8_t h = vreinterpretq_u16_u8(vld1q_u8(p));
    return (vf){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
                vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(h), 16))};
}
SIMD_FN vf vf_load_u8(const void *p) {
    uint16x8_t h = vmovl_u8(vld1_u8(p));
    return (vf){vcvtq_f32_u32(vmovl_u16(vget_low_u16(h))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(h)))};
}
typedef struct vf_table {
    vf at[2];
} vf_table;
/* Its bytes, and numbers by them: those of number i are four from 4 i on. */
SIMD_FN uint8x16x4_t vf4_table(const vf_table *t) {
    return (uint8x16x4_t){{vreinterpretq_u8_f32(t->at[0].lo), vreinterpretq_u8_f32(t->at[0].hi),
                           vreinterpretq_u8_f32(t->at[1].lo), vreinterpretq_u8_f32(t->at[1].hi)}};
}
SIMD_FN float32x4_t vf4_look_up(uint8x16x4_t table, uint32x4_t i) {
    uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), i, 0x04040404);
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
}
SIMD_FN vf vf_look_up(const vf_table *t, const void *index) {
    uint16x8_t i = vmovl_u8(vld1_u8(index));
    uint8x16x4_t table = vf4_table(t);
    return (vf){vf4_look_up(table, vmovl_u16(vget_low_u16(i))), vf4_look_up(table, vmovl_u16(vget_high_u16(i)))};
}
SIMD_FN vf vf_load_i8(const void *p) {
    int16x8_t h = vmovl_s8(vld1_s8(p));
    return (vf){vcvtq_f32_s32(vmovl_s16(vget_low_s16(h))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(h)))};
}
SIMD_FN void vf_store_i8(void *p, vf x) {
    int16x8_t h = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.lo)), vqmovn_s32(vcvtnq_s32_f32(x.hi)));
    vst1_s8(p, vqmovn_s16(h));
}

SIMD_FN void vf_load_pairs(const float *p, vf *x, vf *y) {
    float32x4x2_t a = vld2q_f32(p), b = vld2q_f32(p + 8);
    *x = (vf){a.val[0], b.val[0]};
    *y = (vf){a.val[1], b.val[1]};
}
SIMD_FN vf vf_dup_even(vf a) { return (vf){vtrn1q_f32(a.lo, a.lo), vtrn1q_f32(a.hi, a.hi)}; }
SIMD_FN vf vf_dup_odd(vf a) { return (vf){vtrn2q_f32(a.lo, a.lo), vtrn2q_f32(a.hi, a.hi)}; }
SIMD_FN vf vf_swap_pairs(vf a) { return (vf){vrev64q_f32(a.lo), vrev64q_f32(a.hi)}; }
SIMD_FN float32x4_t vf4_negate_even(float32x4_t c) {
    return vreinterpretq_f32_u64(veorq_u64(vreinterpretq_u64_f32(c), vdupq_n_u64(0x80000000)));
}
SIMD_FN vf vf_fmaddsub(vf a, vf b, vf c) { return vf_fma(a, b, (vf){vf4_negate_even(c.lo), vf4_negate_even(c.hi)}); }

/* Rows of 4 become columns. */
SIMD_FN void vf4_transpose(float32x4_t r[4]) {
    float64x2_t t[4] = {vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1])), vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1])),
                        vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3])), vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]))};
    r[0] = vreinterpretq_f32_f64(vzip1q_f64(t[0], t[2]));
    r[1] = vreinterpretq_f32_f64(vzip1q_f64(t[1], t[3]));
    r[2] = vreinterpretq_f32_f64(vzip2q_f64(t[0], t[2]));
    r[3] = vreinterpretq_f32_f64(vzip2q_f64(t[1], t[3]));
}
SIMD_FN void vf_transpose(vf r[VF_N]) {
    float32x4_t t[4][4]; /* quarters: left and right of the upper rows, of the lower rows */
    UNROLL_FOR(q, 4) {
        UNROLL_FOR(i, 4) t[q][i] = q % 2 ? r[q / 2 * 4 + i].hi : r[q / 2 * 4 + i].lo;
        vf4_transpose(t[q]);
    }
    UNROLL_FOR(j, 4) {
        r[j] = (vf){t[0][j], t[2][j]};
        r[j + 4] = (vf){t[1][j], t[3][j]};
    }
}

#else /* AVX2, FMA, F16C */
#define VF_N 8
#define SIMD_NAME(name) name##_avx2
typedef __m256 vf;

SIMD_FN vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
SIMD_FN void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
SIMD_FN vf vf_set1(float x) { return _mm256_set1_ps(x); }
SIMD_FN vf vf_zero(void) { return _mm256_setzero_ps(); }
SIMD_FN vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
SIMD_FN vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
SIMD_FN vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SIMD_FN vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
SIMD_FN vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
SIMD_FN vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
SIMD_FN vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SIMD_FN vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
SIMD_FN vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SIMD_FN vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
SIMD_FN vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

/* In two halves, so that each factor is a normal float. */
SIMD_FN vf vf_scale2(vf a, vf n) {
    const __m256i bias = _mm256_set1_epi32(127);
    n = vf_min(vf_set1(250), vf_max(vf_set1(-250), n));
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    vf s = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vf t = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return vf_mul(vf_mul(a, s), t);
}

SIMD_FN vf vf_not_below(vf x, float limit, vf y) {
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_NLT_UQ), y);
}

SIMD_FN __m256i vf_lanes(void) { return _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0); }
SIMD_FN __m256i vf_first(int64_t n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), vf_lanes()); }
SIMD_FN vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vf_first(n)); }
SIMD_FN void vf_store_n(float *p, vf x, int64_t n) { _mm256_maskstore_ps(p, vf_first(n), x); }

SIMD_FN vf vf_window(vf x, int64_t lo, int64_t hi, vf other) {
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_andnot_si256(vf_first(lo), vf_first(hi))));
}

SIMD_FN float vf_sum(vf a) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
SIMD_FN float vf_top(vf a) {
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

SIMD_FN void vf_store_sums(float *to, vf a, vf b, vf c, vf d) {
    vf all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

SIMD_FN vf vf_set1_f16(uint16_t half) { return _mm256_set1_ps(_cvtsh_ss(half)); }
SIMD_FN vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
SIMD_FN void vf_store_f16(void *p, vf x) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SIMD_FN vf vf_load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
SIMD_FN vf vf_load_u8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p))); }
typedef struct vf_table {
    vf at[2];
} vf_table;
SIMD_FN vf vf_look_up(const vf_table *t, const void *index) {
    __m256i i = _mm256_cvtepu8_epi32(_mm_loadl_epi64(index));
    vf high = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)); /* the sign says which half */
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t->at[0], i), _mm256_permutevar8x32_ps(t->at[1], i), high);
}
SIMD_FN vf vf_load_i8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
SIMD_FN void vf_store_i8(void *p, vf x) {
    __m256i i = _mm256_cvtps_epi32(x);
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64(p, _mm_packs_epi16(h, h));
}

SIMD_FN void vf_load_pairs(const float *p, vf *x, vf *y) {
    vf a = vf_load(p), b = vf_load(p + 8); /* a0 b0 a1 b1 | ... */
    vf lo = _mm256_permute2f128_ps(a, b, 0x20),
       hi = _mm256_permute2f128_ps(a, b, 0x31); /* pairs 0 1 | 4 5, 2 3 | 6 7 */
    *x = _mm256_shuffle_ps(lo, hi, 0x88);
    *y = _mm256_shuffle_ps(lo, hi, 0xdd);
}
SIMD_FN vf vf_dup_even(vf a) { return _mm256_moveldup_ps(a); }
SIMD_FN vf vf_dup_odd(vf a) { return _mm256_movehdup_ps(a); }
SIMD_FN vf vf_swap_pairs(vf a) { return _mm256_permute_ps(a, 0xb1); }
SIMD_FN vf vf_fmaddsub(vf a, vf b, vf c) { return _mm256_fmaddsub_ps(a, b, c); }

SIMD_FN void vf_transpose(vf r[VF_N]) {
    vf t[8];
    UNROLL_FOR(h, 4) {
        const int i = 2 * h;
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL_FOR(h, 2) {
        const int i = 4 * h;
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL_FOR(j, 4) {
        t[j] = _mm256_permute2f128_ps(r[j], r[j + 4], 0x20);
        t[j + 4] = _mm256_permute2f128_ps(r[j], r[j + 4], 0x31);
    }
    UNROLL_FOR(j, 8) r[j] = t[j];
}
#endif

/* Lanes of the vector at i of n; the last one of a row is cut. */
SIMD_FN int64_t lanes_left(int64_t n, int64_t i) { return n - i < VF_N ? n - i : VF_N; }

/* 2^f for |f| <= 1/2: the polynomial of degree 6 with the least relative error (2e-9, so that the floats round it to
 * 1e-7), found by reweighted least squares on Chebyshev nodes. Exactly 1 at 0. */
SIMD_FN vf vf_exp2_part(vf f) {
    vf p = vf_set1(0x1.41d332p-13f);
    p = vf_fma(p, f, vf_set1(0x1.5f456ap-10f));
    p = vf_fma(p, f, vf_set1(0x1.3b2dbcp-7f));
    p = vf_fma(p, f, vf_set1(0x1.c6aed4p-5f));
    p = vf_fma(p, f, vf_set1(0x1.ebfbdap-3f));
    p = vf_fma(p, f, vf_set1(0x1.62e430p-1f));
    return vf_fma(p, f, vf_set1(1));
}

/* 2^x, 0 where it would be subnormal (such numbers take the processor a hundred cycles each); NaN stays NaN (the second
 * operand of minimum and maximum wins). */
SIMD_FN vf vf_exp2(vf x) {
    x = vf_min(vf_set1(200), x);
    vf all = vf_max(vf_set1(-126), x), n = vf_round(all);
    return vf_not_below(x, -126, vf_scale2(vf_exp2_part(vf_sub(all, n)), n));
}

/* e^x = 2^n 2^f: x - n ln 2 is taken in two steps, since x log2(e) alone would lose |x| ulps. */
SIMD_FN vf vf_exp(vf x) {
    const vf log2e = vf_set1(0x1.715476p+0f);
    x = vf_max(vf_set1(-150), vf_min(vf_set1(150), x));
    vf n = vf_round(vf_mul(x, log2e));
    vf r = vf_fnma(n, vf_set1(0x1.62e400p-1f), x); /* ln 2 with few bits: n times it is exact */
    r = vf_fnma(n, vf_set1(0x1.7f7d1cp-20f), r);   /* the rest of ln 2 */
    return vf_scale2(vf_exp2_part(vf_mul(r, log2e)), n);
}

#endif
