/* Vectors of floats for files compiled for one ISA: AVX-512 (16 lanes) or AVX2 (8 lanes) under the same names, so that
 * one text (the *_simd.h files) gives the kernels of both. Unaligned loads and stores throughout. */
#ifndef LLMQ_CPU_SIMD_H
#define LLMQ_CPU_SIMD_H

#include <immintrin.h>
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
SIMD_FN __m128 vf_sum4(vf a, vf b, vf c, vf d) {
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

SIMD_FN vf vf_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
SIMD_FN void vf_store_f16(void *p, vf x) {
    _mm256_storeu_si256(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
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

SIMD_FN __m128 vf_sum4(vf a, vf b, vf c, vf d) {
    vf all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

SIMD_FN vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
SIMD_FN void vf_store_f16(void *p, vf x) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
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
