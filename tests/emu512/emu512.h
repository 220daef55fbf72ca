/* The AVX-512 intrinsics that cpu/ uses, and AMX's (tiles.h), for CPUs with AVX2 only: the compiler reads this file
 * before a kernel's own text (-include) and builds it with the flags of AVX2. For tests: right results, not speed.
 *
 * Most intrinsics are what AVX2's of the same name does to each half of a vector (TWIN). The others are written from
 * Intel's description of the instruction. intrinsics.c compares each with a formula for one lane, here and, built for
 * real AVX-512, on machines that have it.
 *
 * What is stricter than the hardware: loads and stores that need an address divisible by 64 say so and abort, and
 * masked-off lanes are never touched, so that AddressSanitizer sees what the others touch.
 *
 * One more intrinsic: its name into names.h, its function here, its formula into intrinsics.c. */
#ifndef LLMQ_TESTS_EMU512_H
#define LLMQ_TESTS_EMU512_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emu512/names.h"

#define __AVX512F__ 1 /* the kernels choose their text by it */
#define __AVX512BF16__ 1
#define EMU static inline __attribute__((always_inline, unused))

/* A vector in all its shapes. */
typedef union emu512 {
    __m512 ps;
    __m512d pd;
    __m512i si;
    __m512bh bh;
    __m256 hf[2];
    __m256d hd[2];
    __m256i hi[2];
    float f[16];
    double d[8];
    int8_t b[64];
    uint8_t ub[64];
    int16_t h[32];
    uint16_t uh[32];
    int32_t i[16];
    uint32_t u[16];
    int64_t q[8];
    uint64_t uq[8];
} emu512;

/* ---- AVX2's instruction on each half; arguments: the field of the union that is the argument, and its half's */

#define TWIN1(name, out, out_half, in, in_half)                                                                        \
    EMU __typeof__(((emu512 *)0)->out) _mm512_##name(__typeof__(((emu512 *)0)->in) a) {                                \
        emu512 x = {.in = a}, r;                                                                                       \
        r.out_half[0] = _mm256_##name(x.in_half[0]);                                                                   \
        r.out_half[1] = _mm256_##name(x.in_half[1]);                                                                   \
        return r.out;                                                                                                  \
    }
#define TWIN2(name, v, half)                                                                                           \
    EMU __typeof__(((emu512 *)0)->v) _mm512_##name(__typeof__(((emu512 *)0)->v) a, __typeof__(((emu512 *)0)->v) b) {   \
        emu512 x = {.v = a}, y = {.v = b}, r;                                                                          \
        r.half[0] = _mm256_##name(x.half[0], y.half[0]);                                                               \
        r.half[1] = _mm256_##name(x.half[1], y.half[1]);                                                               \
        return r.v;                                                                                                    \
    }
#define TWIN3(name)                                                                                                    \
    EMU __m512 _mm512_##name(__m512 a, __m512 b, __m512 c) {                                                           \
        emu512 x = {a}, y = {b}, z = {c}, r;                                                                           \
        r.hf[0] = _mm256_##name(x.hf[0], y.hf[0], z.hf[0]);                                                            \
        r.hf[1] = _mm256_##name(x.hf[1], y.hf[1], z.hf[1]);                                                            \
        return r.ps;                                                                                                   \
    }
#define TWIN_SHIFT(name)                                                                                               \
    EMU __m512i _mm512_##name(__m512i a, unsigned count) {                                                             \
        emu512 x = {.si = a}, r;                                                                                       \
        r.hi[0] = _mm256_##name(x.hi[0], (int)count);                                                                  \
        r.hi[1] = _mm256_##name(x.hi[1], (int)count);                                                                  \
        return r.si;                                                                                                   \
    }

TWIN2(add_ps, ps, hf)
TWIN2(sub_ps, ps, hf)
TWIN2(mul_ps, ps, hf)
TWIN2(div_ps, ps, hf)
TWIN2(max_ps, ps, hf)
TWIN2(min_ps, ps, hf)
TWIN2(unpacklo_ps, ps, hf)
TWIN2(unpackhi_ps, ps, hf)
TWIN2(add_pd, pd, hd)
TWIN2(unpacklo_pd, pd, hd)
TWIN2(unpackhi_pd, pd, hd)
TWIN2(add_epi8, si, hi)
TWIN2(add_epi16, si, hi)
TWIN2(add_epi32, si, hi)
TWIN2(add_epi64, si, hi)
TWIN2(sub_epi32, si, hi)
TWIN2(mullo_epi16, si, hi)
TWIN2(mullo_epi32, si, hi)
TWIN2(mul_epi32, si, hi)
TWIN2(min_epi32, si, hi)
TWIN2(max_epi32, si, hi)
TWIN2(max_epu32, si, hi)
TWIN2(sllv_epi32, si, hi)
TWIN2(srlv_epi32, si, hi)
TWIN2(sllv_epi64, si, hi)
TWIN2(srav_epi32, si, hi)
TWIN3(fmadd_ps)
TWIN3(fnmadd_ps)
TWIN3(fmaddsub_ps)
TWIN_SHIFT(slli_epi16)
TWIN_SHIFT(slli_epi32)
TWIN_SHIFT(slli_epi64)
TWIN_SHIFT(srli_epi16)
TWIN_SHIFT(srli_epi32)
TWIN_SHIFT(srli_epi64)
TWIN_SHIFT(srai_epi32)
TWIN1(sqrt_ps, ps, hf, ps, hf)
TWIN1(moveldup_ps, ps, hf, ps, hf)
TWIN1(movehdup_ps, ps, hf, ps, hf)
TWIN1(cvtepi32_ps, ps, hf, si, hi)
TWIN1(cvtps_epi32, si, hi, ps, hf)

EMU __m512i _mm512_and_si512(__m512i a, __m512i b) {
    return a & b;
}
EMU __m512i _mm512_or_si512(__m512i a, __m512i b) {
    return a | b;
}
EMU __m512i _mm512_xor_si512(__m512i a, __m512i b) {
    return a ^ b;
}
/* Bit j of table is the result for bits of a, b and c that are bits 2, 1 and 0 of j. */
EMU __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    emu512 x = {.si = a}, y = {.si = b}, z = {.si = c}, r;
    for (int i = 0; i < 8; i++) {
        r.uq[i] = 0;
        for (int j = 0; j < 8; j++)
            if (table >> j & 1)
                r.uq[i] |= (j & 4 ? x.uq[i] : ~x.uq[i]) & (j & 2 ? y.uq[i] : ~y.uq[i]) & (j & 1 ? z.uq[i] : ~z.uq[i]);
    }
    return r.si;
}

/* ---- constants, casts, halves */

EMU __m512 _mm512_setzero_ps(void) {
    return (__m512){0};
}
EMU __m512i _mm512_setzero_si512(void) {
    return (__m512i){0};
}
EMU __m512 _mm512_set1_ps(float x) {
    emu512 r = {.hf = {_mm256_set1_ps(x), _mm256_set1_ps(x)}};
    return r.ps;
}
EMU __m512i _mm512_set1_epi8(char x) {
    emu512 r = {.hi = {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}};
    return r.si;
}
EMU __m512i _mm512_set1_epi32(int x) {
    emu512 r = {.hi = {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}};
    return r.si;
}
EMU __m512i _mm512_set1_epi64(long long x) {
    emu512 r = {.hi = {_mm256_set1_epi64x(x), _mm256_set1_epi64x(x)}};
    return r.si;
}
/* The last argument is lane 0. */
EMU __m512i _mm512_set_epi32(int f, int e, int d, int c, int b, int a, int i9, int i8, int i7, int i6, int i5, int i4,
                             int i3, int i2, int i1, int i0) {
    emu512 r = {.i = {i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, a, b, c, d, e, f}};
    return r.si;
}
/* A macro: 32 parameters would only be written down to be reversed. */
#define _mm512_set_epi16(...) emu_reverse((emu512){.h = {__VA_ARGS__}})
EMU __m512i emu_reverse(emu512 x) {
    emu512 r;
    for (int j = 0; j < 32; j++) r.h[j] = x.h[31 - j];
    return r.si;
}
EMU __m512i _mm512_broadcast_i32x4(__m128i a) {
    emu512 r = {.hi = {_mm256_broadcastsi128_si256(a), _mm256_broadcastsi128_si256(a)}};
    return r.si;
}
EMU __m512 _mm512_castpd_ps(__m512d a) {
    return (__m512)a;
}
EMU __m512d _mm512_castps_pd(__m512 a) {
    return (__m512d)a;
}
EMU __m512i _mm512_castps_si512(__m512 a) {
    return (__m512i)a;
}
EMU __m512 _mm512_castsi512_ps(__m512i a) {
    return (__m512)a;
}
EMU __m256 _mm512_castps512_ps256(__m512 a) {
    return (emu512){a}.hf[0];
}
EMU __m256 _mm512_extractf32x8_ps(__m512 a, int half) {
    return (emu512){a}.hf[half];
}
EMU __m512 _mm512_abs_ps(__m512 a) {
    return (__m512)((__m512i)a & _mm512_set1_epi32(0x7fffffff));
}

/* ---- memory */

EMU void emu_check_aligned(const void *p) {
    if ((uintptr_t)p % 64 == 0) return;
    fprintf(stderr, "emu512: an aligned access to %p, which 64 does not divide\n", p);
    abort();
}
EMU __m512i _mm512_loadu_si512(const void *p) {
    emu512 r;
    memcpy(&r, p, sizeof r);
    return r.si;
}
EMU __m512 _mm512_loadu_ps(const void *p) {
    return (__m512)_mm512_loadu_si512(p);
}
EMU void _mm512_storeu_ps(void *p, __m512 a) {
    memcpy(p, &a, sizeof a);
}
EMU void _mm512_storeu_si512(void *p, __m512i a) {
    memcpy(p, &a, sizeof a);
}
EMU __m512i _mm512_load_si512(const void *p) {
    emu_check_aligned(p);
    return _mm512_loadu_si512(p);
}
EMU __m512 _mm512_load_ps(const void *p) {
    return (__m512)_mm512_load_si512(p);
}
EMU void _mm512_store_ps(void *p, __m512 a) {
    emu_check_aligned(p);
    _mm512_storeu_ps(p, a);
}
EMU void _mm512_store_si512(void *p, __m512i a) {
    _mm512_store_ps(p, (__m512)a);
}

/* n lanes of `bytes` each, those of the mask only; the others read as 0. */
EMU emu512 emu_load(uint64_t mask, const void *p, int n, size_t bytes) {
    emu512 r = {.si = {0}};
    for (int j = 0; j < n; j++)
        if (mask >> j & 1) memcpy(r.b + (size_t)j * bytes, (const char *)p + (size_t)j * bytes, bytes);
    return r;
}
EMU void emu_store(uint64_t mask, void *p, emu512 a, int n, size_t bytes) {
    for (int j = 0; j < n; j++)
        if (mask >> j & 1) memcpy((char *)p + (size_t)j * bytes, a.b + (size_t)j * bytes, bytes);
}
EMU __m512 _mm512_maskz_loadu_ps(__mmask16 k, const void *p) {
    return k == 0xffff ? _mm512_loadu_ps(p) : emu_load(k, p, 16, 4).ps;
}
EMU __m512d _mm512_maskz_loadu_pd(__mmask8 k, const void *p) {
    return emu_load(k, p, 8, 8).pd;
}
EMU __m256i _mm256_maskz_loadu_epi16(__mmask16 k, const void *p) {
    return emu_load(k, p, 16, 2).hi[0];
}
EMU __m128 _mm_maskz_loadu_ps(__mmask8 k, const void *p) {
    return _mm256_castps256_ps128(emu_load(k, p, 4, 4).hf[0]);
}
EMU void _mm512_mask_storeu_ps(void *p, __mmask16 k, __m512 a) {
    if (k == 0xffff)
        _mm512_storeu_ps(p, a);
    else
        emu_store(k, p, (emu512){a}, 16, 4);
}
EMU void _mm512_mask_storeu_epi32(void *p, __mmask16 k, __m512i a) {
    _mm512_mask_storeu_ps(p, k, (__m512)a);
}
EMU void _mm512_mask_storeu_pd(void *p, __mmask8 k, __m512d a) {
    emu_store(k, p, (emu512){.pd = a}, 8, 8);
}
EMU void _mm256_mask_storeu_epi16(void *p, __mmask16 k, __m256i a) {
    emu_store(k, p, (emu512){.hi = {a}}, 16, 2);
}
EMU void _mm_mask_storeu_epi8(void *p, __mmask16 k, __m128i a) {
    emu_store(k, p, (emu512){.hi = {_mm256_castsi128_si256(a)}}, 16, 1);
}
EMU void _mm_mask_storeu_ps(void *p, __mmask8 k, __m128 a) {
    emu_store(k, p, (emu512){.hf = {_mm256_castps128_ps256(a)}}, 4, 4);
}

/* ---- masks: where a bit is set the lane is b's (blend), a's (mov), the result's */

#define EMU_BLEND(bits, n, field)                                                                                      \
    EMU __m512i _mm512_mask_blend_epi##bits(uint64_t k, __m512i a, __m512i b) {                                        \
        emu512 x = {.si = a}, y = {.si = b}, r;                                                                        \
        for (int j = 0; j < n; j++) r.field[j] = k >> j & 1 ? y.field[j] : x.field[j];                                 \
        return r.si;                                                                                                   \
    }
EMU_BLEND(8, 64, b)
EMU_BLEND(16, 32, h)
EMU_BLEND(32, 16, i)

EMU __m512 _mm512_mask_mov_ps(__m512 other, __mmask16 k, __m512 a) {
    return (__m512)_mm512_mask_blend_epi32(k, (__m512i)other, (__m512i)a);
}
EMU __m512i _mm512_mask_add_epi32(__m512i other, __mmask16 k, __m512i a, __m512i b) {
    return _mm512_mask_blend_epi32(k, other, _mm512_add_epi32(a, b));
}
EMU __m512 _mm512_maskz_div_ps(__mmask16 k, __m512 a, __m512 b) {
    return _mm512_mask_mov_ps(_mm512_setzero_ps(), k, _mm512_div_ps(a, b));
}
EMU __mmask16 emu_signs(__m256i lo, __m256i hi) {
    return (__mmask16)(_mm256_movemask_ps((__m256)lo) | _mm256_movemask_ps((__m256)hi) << 8);
}
EMU __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int op) {
    emu512 x = {a}, y = {b};
    return emu_signs((__m256i)_mm256_cmp_ps(x.hf[0], y.hf[0], op), (__m256i)_mm256_cmp_ps(x.hf[1], y.hf[1], op));
}
EMU __mmask16 _mm512_cmpgt_epi32_mask(__m512i a, __m512i b) {
    emu512 x = {.si = a}, y = {.si = b};
    return emu_signs(_mm256_cmpgt_epi32(x.hi[0], y.hi[0]), _mm256_cmpgt_epi32(x.hi[1], y.hi[1]));
}
EMU __mmask64 _mm512_cmpneq_epi8_mask(__m512i a, __m512i b) {
    emu512 x = {.si = a}, y = {.si = b};
    uint32_t lo = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x.hi[0], y.hi[0]));
    uint32_t hi = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(x.hi[1], y.hi[1]));
    return ~((uint64_t)hi << 32 | lo);
}
EMU __mmask16 _mm512_test_epi32_mask(__m512i a, __m512i b) {
    emu512 x = {.si = a & b};
    int k = 0;
    for (int j = 0; j < 16; j++) k |= (x.u[j] != 0) << j;
    return (__mmask16)k;
}

/* ---- lanes that move */

EMU __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int imm) {
    emu512 x = {a}, y = {b}, r;
    r.hf[0] = _mm256_shuffle_ps(x.hf[0], y.hf[0], imm);
    r.hf[1] = _mm256_shuffle_ps(x.hf[1], y.hf[1], imm);
    return r.ps;
}
EMU __m512 _mm512_permute_ps(__m512 a, int imm) {
    return _mm512_shuffle_ps(a, a, imm);
}
/* Two blocks of 128 bits of a, then two of b, each chosen by two bits. */
EMU __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int imm) {
    emu512 x = {a}, y = {b}, r;
    for (int j = 0; j < 16; j++) r.f[j] = (j < 8 ? x : y).f[(imm >> j / 4 * 2 & 3) * 4 + j % 4];
    return r.ps;
}
EMU __m512i _mm512_permutexvar_epi8(__m512i index, __m512i a) {
    emu512 x = {.si = index}, y = {.si = a}, r;
    for (int j = 0; j < 64; j++) r.b[j] = y.b[x.b[j] & 63];
    return r.si;
}
EMU __m512i _mm512_maskz_permutexvar_epi8(__mmask64 mask, __m512i index, __m512i a) {
    emu512 x = {.si = _mm512_permutexvar_epi8(index, a)};
    for (int j = 0; j < 64; j++)
        if (!(mask >> j & 1)) x.b[j] = 0;
    return x.si;
}
EMU __m512i _mm512_permutexvar_epi16(__m512i index, __m512i a) {
    emu512 x = {.si = index}, y = {.si = a}, r;
    for (int j = 0; j < 32; j++) r.h[j] = y.h[x.h[j] & 31];
    return r.si;
}
/* Bit 4 of an index chooses b. */
EMU __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
    emu512 x = {a}, y = {b}, n = {.si = index}, r;
    for (int j = 0; j < 16; j++) r.f[j] = n.i[j] & 16 ? y.f[n.i[j] & 15] : x.f[n.i[j] & 15];
    return r.ps;
}

/* ---- integers that AVX2 lacks */

EMU __m512i _mm512_srai_epi64(__m512i a, unsigned count) {
    emu512 x = {.si = a}, r;
    for (int j = 0; j < 8; j++) r.q[j] = x.q[j] >> (count > 63 ? 63 : count);
    return r.si;
}
EMU __m512i _mm512_min_epi64(__m512i a, __m512i b) {
    emu512 x = {.si = a}, y = {.si = b}, r;
    for (int j = 0; j < 8; j++) r.q[j] = x.q[j] < y.q[j] ? x.q[j] : y.q[j];
    return r.si;
}
EMU __m512i _mm512_max_epi64(__m512i a, __m512i b) {
    emu512 x = {.si = a}, y = {.si = b}, r;
    for (int j = 0; j < 8; j++) r.q[j] = x.q[j] > y.q[j] ? x.q[j] : y.q[j];
    return r.si;
}
EMU unsigned _mm512_reduce_max_epu32(__m512i a) {
    emu512 x = {.si = a};
    unsigned most = 0;
    for (int j = 0; j < 16; j++) most = x.u[j] > most ? x.u[j] : most;
    return most;
}

/* The even bytes of each word, the odd ones, as 16 bits each. */
EMU __m256i emu_even_bytes(__m256i a, bool has_sign) {
    return has_sign ? _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8) : _mm256_and_si256(a, _mm256_set1_epi16(255));
}
EMU __m256i emu_odd_bytes(__m256i a, bool has_sign) {
    return has_sign ? _mm256_srai_epi16(a, 8) : _mm256_srli_epi16(a, 8);
}
/* sum + four products of a byte of a and one of b. Each madd sums two of them, which 32 bits hold. */
EMU __m256i emu_dot4(__m256i sum, __m256i a, __m256i b, bool a_signed, bool b_signed) {
    __m256i even = _mm256_madd_epi16(emu_even_bytes(a, a_signed), emu_even_bytes(b, b_signed));
    __m256i odd = _mm256_madd_epi16(emu_odd_bytes(a, a_signed), emu_odd_bytes(b, b_signed));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
EMU __m256i _mm256_dpbusd_epi32(__m256i sum, __m256i a, __m256i b) {
    return emu_dot4(sum, a, b, false, true);
}
EMU __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    emu512 s = {.si = sum}, x = {.si = a}, y = {.si = b}, r;
    r.hi[0] = _mm256_dpbusd_epi32(s.hi[0], x.hi[0], y.hi[0]);
    r.hi[1] = _mm256_dpbusd_epi32(s.hi[1], x.hi[1], y.hi[1]);
    return r.si;
}
EMU __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    emu512 s = {.si = sum}, x = {.si = a}, y = {.si = b}, r;
    for (int h = 0; h < 2; h++) r.hi[h] = _mm256_add_epi32(s.hi[h], _mm256_madd_epi16(x.hi[h], y.hi[h]));
    return r.si;
}
EMU __m128i _mm_dpbusd_epi32(__m128i sum, __m128i a, __m128i b) {
    return _mm256_castsi256_si128(
        _mm256_dpbusd_epi32(_mm256_castsi128_si256(sum), _mm256_castsi128_si256(a), _mm256_castsi128_si256(b)));
}

/* ---- conversions */

EMU __m128i _mm512_cvtepi32_epi8(__m512i a) {
    emu512 x = {.si = a}, r = {.si = {0}};
    for (int j = 0; j < 16; j++) r.b[j] = (int8_t)x.i[j];
    return _mm256_castsi256_si128(r.hi[0]);
}
EMU __m512i _mm512_cvtepu8_epi32(__m128i a) {
    emu512 r = {.hi = {_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(a, a))}};
    return r.si;
}
EMU __m512i _mm512_cvtepi8_epi32(__m128i a) {
    emu512 r = {.hi = {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a))}};
    return r.si;
}
EMU __m512i _mm512_cvtepu16_epi32(__m256i a) {
    emu512 r = {.hi = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),
                       _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1))}};
    return r.si;
}
EMU __m512 _mm512_cvtph_ps(__m256i a) {
    emu512 r = {.hf = {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}};
    return r.ps;
}
EMU __m256i _mm512_cvtps_ph(__m512 a, int rounding) {
    emu512 x = {a}; /* AVX2's takes three bits: exceptions are masked anyway */
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(x.hf[0], rounding & 7)),
                                   _mm256_cvtps_ph(x.hf[1], rounding & 7), 1);
}
EMU __m512d _mm512_cvtps_pd(__m256 a) {
    emu512 r = {.hd = {_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))}};
    return r.pd;
}
/* To integers only: bits 4 to 7 of imm would keep bits after the point. */
EMU __m512 _mm512_roundscale_ps(__m512 a, int imm) {
    emu512 x = {a}, r;
    if (imm >> 4) abort();
    r.hf[0] = _mm256_round_ps(x.hf[0], imm);
    r.hf[1] = _mm256_round_ps(x.hf[1], imm);
    return r.ps;
}

/* a * 2^floor(b), rounded once. A float times such a power is exact as a double. */
EMU float emu_scalef(float a, float b) {
    if (__builtin_isinf(b) && a != a) return b > 0 ? b : 0;
    if (a != a || b != b) return a + b;
    if (__builtin_isinf(b)) {
        if (a == 0 || __builtin_isinf(a)) return (b > 0) == (a != 0) ? a : __builtin_nanf("");
        return __builtin_copysignf(b > 0 ? b : 0, a);
    }
    double n = __builtin_floor(b < -400 ? -400 : b > 400 ? 400 : (double)b);
    return (float)__builtin_ldexp((double)a, (int)n);
}
EMU __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
    emu512 x = {a}, y = {b}, r;
    for (int j = 0; j < 16; j++) r.f[j] = emu_scalef(x.f[j], y.f[j]);
    return r.ps;
}

/* ---- bf16: subnormal inputs count as zero of their sign, and subnormal results become it */

EMU uint16_t emu_bf16(uint32_t bits) {
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude < 0x00800000) return (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40); /* NaN, quiet */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
EMU __m256bh _mm512_cvtneps_pbh(__m512 a) {
    emu512 x = {a}, r = {.si = {0}};
    for (int j = 0; j < 16; j++) r.uh[j] = emu_bf16(x.u[j]);
    return (__m256bh)r.hi[0];
}
/* b's lanes come first. */
EMU __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {
    emu512 r = {.hi = {(__m256i)_mm512_cvtneps_pbh(b), (__m256i)_mm512_cvtneps_pbh(a)}};
    return r.bh;
}
EMU __m256 emu_flush(__m256 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 tiny = _mm256_cmp_ps(_mm256_andnot_ps(sign, a), _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
    return _mm256_blendv_ps(a, _mm256_and_ps(a, sign), tiny);
}
/* sum + two products, the odd one first, each added by a fused multiply-add. */
EMU __m256 emu_dpbf16(__m256 sum, __m256i a, __m256i b) {
    const __m256i odd = _mm256_set1_epi32((int)0xffff0000);
    __m256 a1 = emu_flush((__m256)_mm256_and_si256(a, odd)), b1 = emu_flush((__m256)_mm256_and_si256(b, odd));
    __m256 a0 = emu_flush((__m256)_mm256_slli_epi32(a, 16)), b0 = emu_flush((__m256)_mm256_slli_epi32(b, 16));
    return emu_flush(_mm256_fmadd_ps(a0, b0, emu_flush(_mm256_fmadd_ps(a1, b1, emu_flush(sum)))));
}
EMU __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    emu512 s = {sum}, x = {.bh = a}, y = {.bh = b}, r;
    r.hf[0] = emu_dpbf16(s.hf[0], x.hi[0], y.hi[0]);
    r.hf[1] = emu_dpbf16(s.hf[1], x.hi[1], y.hi[1]);
    return r.ps;
}

#include "tests/emu512/tiles.h"

#endif
