/* The intrinsics of emu512.h, each against a formula for one lane, on random bits and on the numbers that are special.
 * Compiled twice: on the emulation, and for the hardware, where there is any, so that the formulas are proved too. */
#include "tests/emu512/check.h"

#include <stdlib.h>

#include "core/half.h"
#include "cpu/cpu.h"

#ifdef LLMQ_TESTS_EMU512_H
#define NEEDED CPU_ISA_AVX2
#else
#define NEEDED CPU_ISA_AVX512BF16
#endif
#define ROUNDS 300

#define SAME(field, j)                                                                                                 \
    _Generic(got.field[j], float                                                                                       \
             : same_f(&got.f[(j)], &want.f[(j)]), double                                                               \
             : same_d(&got.d[(j)&7], &want.d[(j)&7]), default                                                          \
             : same_bits(&got.field[j], &want.field[j], sizeof got.field[j]))

/* to = call; lane j of n in the given field is the formula of a, b, c, mask k and j. */
#define TRY(name, to, call, n, field, formula)                                                                         \
    static void name(void **state) {                                                                                   \
        (void)state;                                                                                                   \
        for (int round = 0; round < ROUNDS; round++) {                                                                 \
            vec a = any(), b = any(), c = any(), got = {.uq = {0}}, want;                                              \
            uint64_t k = (uint64_t)rng() << 32 | rng();                                                                \
            (void)a, (void)b, (void)c, (void)k;                                                                        \
            got.to = call;                                                                                             \
            for (int j = 0; j < (n); j++) {                                                                            \
                want.field[j] = formula;                                                                               \
                if (!SAME(field, j)) fail_msg(#name ": lane %d of %d differs, round %d", j, (int)(n), round);          \
            }                                                                                                          \
        }                                                                                                              \
    }
#define FLOATS2(name, formula) TRY(name, ps, _mm512_##name(a.ps, b.ps), 16, f, formula)
#define FLOATS3(name, formula) TRY(name, ps, _mm512_##name(a.ps, b.ps, c.ps), 16, f, formula)
#define FLOATS1(name, formula) TRY(name, ps, _mm512_##name(a.ps), 16, f, formula)
#define INTS2(name, n, field, formula) TRY(name, si, _mm512_##name(a.si, b.si), n, field, formula)

FLOATS2(add_ps, a.f[j] + b.f[j])
FLOATS2(sub_ps, a.f[j] - b.f[j])
FLOATS2(mul_ps, a.f[j] * b.f[j])
FLOATS2(div_ps, a.f[j] / b.f[j])
FLOATS2(max_ps, a.f[j] > b.f[j] ? a.f[j] : b.f[j])
FLOATS2(min_ps, a.f[j] < b.f[j] ? a.f[j] : b.f[j])
FLOATS3(fmadd_ps, fmaf(a.f[j], b.f[j], c.f[j]))
FLOATS3(fnmadd_ps, fmaf(-a.f[j], b.f[j], c.f[j]))
FLOATS3(fmaddsub_ps, fmaf(a.f[j], b.f[j], j % 2 ? c.f[j] : -c.f[j]))
FLOATS1(sqrt_ps, sqrtf(a.f[j]))
FLOATS1(abs_ps, fabsf(a.f[j]))
TRY(add_pd, pd, _mm512_add_pd(a.pd, b.pd), 8, d, a.d[j] + b.d[j])
TRY(maskz_div_ps, ps, _mm512_maskz_div_ps((__mmask16)k, a.ps, b.ps), 16, f, k >> j & 1 ? a.f[j] / b.f[j] : 0)
TRY(roundscale_ps, ps, _mm512_roundscale_ps(a.ps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 16, f,
    nearbyintf(a.f[j]))

/* ---- integers */

INTS2(add_epi8, 64, ub, (uint8_t)(a.ub[j] + b.ub[j]))
INTS2(add_epi16, 32, uh, (uint16_t)(a.uh[j] + b.uh[j]))
INTS2(add_epi32, 16, u, a.u[j] + b.u[j])
INTS2(add_epi64, 8, uq, a.uq[j] + b.uq[j])
INTS2(sub_epi32, 16, u, a.u[j] - b.u[j])
INTS2(mullo_epi16, 32, uh, (uint16_t)((uint32_t)a.uh[j] * b.uh[j]))
INTS2(mullo_epi32, 16, u, a.u[j] * b.u[j])
INTS2(mul_epi32, 8, q, (int64_t)a.i[2 * j] * b.i[2 * j])
INTS2(min_epi32, 16, i, a.i[j] < b.i[j] ? a.i[j] : b.i[j])
INTS2(max_epi32, 16, i, a.i[j] > b.i[j] ? a.i[j] : b.i[j])
INTS2(max_epu32, 16, u, a.u[j] > b.u[j] ? a.u[j] : b.u[j])
INTS2(min_epi64, 8, q, a.q[j] < b.q[j] ? a.q[j] : b.q[j])
INTS2(max_epi64, 8, q, a.q[j] > b.q[j] ? a.q[j] : b.q[j])
INTS2(and_si512, 8, uq, a.uq[j] & b.uq[j])
INTS2(or_si512, 8, uq, a.uq[j] | b.uq[j])
INTS2(xor_si512, 8, uq, a.uq[j] ^ b.uq[j])
/* The result for bits of a, b and c is a bit of the table, here those of a & b | c and of a choice by a. */
TRY(ternarylogic_ea, si, _mm512_ternarylogic_epi32(a.si, b.si, c.si, 0xea), 8, uq, (a.uq[j] & b.uq[j]) | c.uq[j])
TRY(ternarylogic_ca, si, _mm512_ternarylogic_epi32(a.si, b.si, c.si, 0xca), 8, uq,
    (a.uq[j] & b.uq[j]) | (~a.uq[j] & c.uq[j]))

/* Counts from 0 to beyond the width; some are small. */
#define COUNT32(j) (b.u[j] = c.u[j] & 1 ? b.u[j] & 63 : b.u[j])
#define COUNT64(j) (b.uq[j] = c.u[j] & 1 ? b.uq[j] & 127 : b.uq[j])
static vec counts32(vec b, vec c) {
    for (int j = 0; j < 16; j++) COUNT32(j);
    return b;
}
static vec counts64(vec b, vec c) {
    for (int j = 0; j < 8; j++) COUNT64(j);
    return b;
}
TRY(sllv_epi32, si, _mm512_sllv_epi32(a.si, counts32(b, c).si), 16, u, COUNT32(j) > 31 ? 0 : a.u[j] << COUNT32(j))
TRY(srlv_epi32, si, _mm512_srlv_epi32(a.si, counts32(b, c).si), 16, u, COUNT32(j) > 31 ? 0 : a.u[j] >> COUNT32(j))
TRY(sllv_epi64, si, _mm512_sllv_epi64(a.si, counts64(b, c).si), 8, uq, COUNT64(j) > 63 ? 0 : a.uq[j] << COUNT64(j))
TRY(srav_epi32, si, _mm512_srav_epi32(a.si, counts32(b, c).si), 16, i, a.i[j] >> (COUNT32(j) > 31 ? 31 : COUNT32(j)))

/* The constants that kernels use, 0 and the width. */
#define LEFT(name, at, count, n, field, bits)                                                                          \
    TRY(name##_##at, si, _mm512_##name(a.si, count), n, field, count >= bits ? 0 : (a.field[j] << (count % bits)))
#define RIGHT(name, at, count, n, field, bits)                                                                         \
    TRY(name##_##at, si, _mm512_##name(a.si, count), n, field, count >= bits ? 0 : (a.field[j] >> (count % bits)))
#define SIGNED(name, at, count, n, field, bits)                                                                        \
    TRY(name##_##at, si, _mm512_##name(a.si, count), n, field, a.field[j] >> (count >= bits ? bits - 1 : count))
#define SHIFTS(KIND, name, n, field, bits)                                                                             \
    KIND(name, none, 0, n, field, bits)                                                                                \
    KIND(name, some, bits / 2 - 3, n, field, bits) KIND(name, all, bits, n, field, bits)
SHIFTS(LEFT, slli_epi16, 32, uh, 16)
SHIFTS(LEFT, slli_epi32, 16, u, 32)
SHIFTS(LEFT, slli_epi64, 8, uq, 64)
SHIFTS(RIGHT, srli_epi16, 32, uh, 16)
SHIFTS(RIGHT, srli_epi32, 16, u, 32)
SHIFTS(RIGHT, srli_epi64, 8, uq, 64)
SHIFTS(SIGNED, srai_epi32, 16, i, 32)
SHIFTS(SIGNED, srai_epi64, 8, q, 64)

static uint32_t dot4(uint32_t sum, const uint8_t *a, const int8_t *b) {
    int32_t dot = 0;
    for (int l = 0; l < 4; l++) dot += a[l] * b[l];
    return sum + (uint32_t)dot;
}
TRY(dpbusd_epi32, si, _mm512_dpbusd_epi32(a.si, b.si, c.si), 16, u, dot4(a.u[j], b.ub + 4 * j, c.b + 4 * j))
TRY(dpbusd_256, si256, _mm256_dpbusd_epi32(a.si256, b.si256, c.si256), 8, u, dot4(a.u[j], b.ub + 4 * j, c.b + 4 * j))
TRY(dpbusd_128, si128, _mm_dpbusd_epi32(a.si128, b.si128, c.si128), 4, u, dot4(a.u[j], b.ub + 4 * j, c.b + 4 * j))
/* Without saturation, in 32 bits. */
static uint32_t dot_words(uint32_t sum, const int16_t *a, const int16_t *b) {
    return (uint32_t)((int64_t)sum + (int64_t)a[0] * b[0] + (int64_t)a[1] * b[1]);
}
TRY(dpwssd_epi32, si, _mm512_dpwssd_epi32(a.si, b.si, c.si), 16, u, dot_words(a.u[j], b.h + 2 * j, c.h + 2 * j))

static uint32_t most(const vec *a) {
    uint32_t m = 0;
    for (int j = 0; j < 16; j++) m = a->u[j] > m ? a->u[j] : m;
    return m;
}
TRY(reduce_max_epu32, u[0], _mm512_reduce_max_epu32(a.si), 1, u, most(&a))

/* ---- constants, casts, halves */

TRY(setzero_ps, ps, _mm512_setzero_ps(), 16, u, 0)
TRY(setzero_si512, si, _mm512_setzero_si512(), 16, u, 0)
TRY(set1_ps, ps, _mm512_set1_ps(a.f[0]), 16, f, a.f[0])
TRY(set1_epi8, si, _mm512_set1_epi8((char)a.b[0]), 64, b, a.b[0])
TRY(set1_epi32, si, _mm512_set1_epi32(a.i[0]), 16, i, a.i[0])
TRY(set1_epi64, si, _mm512_set1_epi64(a.q[0]), 8, q, a.q[0])
TRY(set_epi32, si, _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, a.i[0]), 16, i, j ? j : a.i[0])
TRY(set_epi16, si,
    _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6,
                     5, 4, 3, 2, 1, a.h[0]),
    32, h, (int16_t)(j ? j : a.h[0]))
TRY(broadcast_i32x4, si, _mm512_broadcast_i32x4(a.si128), 16, i, a.i[j % 4])
TRY(castpd_ps, ps, _mm512_castpd_ps(a.pd), 16, u, a.u[j])
TRY(castps_pd, pd, _mm512_castps_pd(a.ps), 16, u, a.u[j])
TRY(castps_si512, si, _mm512_castps_si512(a.ps), 16, u, a.u[j])
TRY(castsi512_ps, ps, _mm512_castsi512_ps(a.si), 16, u, a.u[j])
TRY(castps512_ps256, ps256, _mm512_castps512_ps256(a.ps), 8, u, a.u[j])
TRY(extractf32x8_ps, ps256, _mm512_extractf32x8_ps(a.ps, 1), 8, u, a.u[8 + j])

/* ---- masks */

TRY(mask_blend_epi8, si, _mm512_mask_blend_epi8(k, a.si, b.si), 64, b, k >> j & 1 ? b.b[j] : a.b[j])
TRY(mask_blend_epi16, si, _mm512_mask_blend_epi16((__mmask32)k, a.si, b.si), 32, h, k >> j & 1 ? b.h[j] : a.h[j])
TRY(mask_blend_epi32, si, _mm512_mask_blend_epi32((__mmask16)k, a.si, b.si), 16, i, k >> j & 1 ? b.i[j] : a.i[j])
TRY(mask_mov_ps, ps, _mm512_mask_mov_ps(a.ps, (__mmask16)k, b.ps), 16, u, k >> j & 1 ? b.u[j] : a.u[j])
TRY(mask_add_epi32, si, _mm512_mask_add_epi32(a.si, (__mmask16)k, b.si, c.si), 16, u,
    k >> j & 1 ? b.u[j] + c.u[j] : a.u[j])
#define MASK(name, call, condition)                                                                                    \
    TRY(name, u[0], call, 1, u, 0; for (int l = 0; l < 16; l++) want.u[0] |= (uint32_t)(condition) << l)
MASK(cmp_ps_mask, _mm512_cmp_ps_mask(a.ps, b.ps, _CMP_GT_OQ), a.f[l] > b.f[l])
MASK(cmpgt_epi32_mask, _mm512_cmpgt_epi32_mask(a.si, b.si), a.i[l] > b.i[l])
static uint64_t odd_differs(const vec *a, const vec *b) {
    uint64_t differs = 0;
    for (int l = 0; l < 64; l++) differs |= (uint64_t)((a->b[l] ^ b->b[l]) & 1) << l;
    return differs;
}
#define ODD(v) _mm512_and_si512((v).si, _mm512_set1_epi8(1))
TRY(cmpneq_epi8_mask, uq[0], _mm512_cmpneq_epi8_mask(ODD(a), ODD(b)), 1, uq, odd_differs(&a, &b))
MASK(test_epi32_mask, _mm512_test_epi32_mask(a.si, b.si), (a.u[l] & b.u[l]) != 0)

/* ---- lanes that move: four lanes of 32 bits a block */

FLOATS2(unpacklo_ps, (j % 2 ? b : a).f[j / 4 * 4 + j % 4 / 2])
FLOATS2(unpackhi_ps, (j % 2 ? b : a).f[j / 4 * 4 + 2 + j % 4 / 2])
TRY(unpacklo_pd, pd, _mm512_unpacklo_pd(a.pd, b.pd), 8, uq, (j % 2 ? b : a).uq[j / 2 * 2])
TRY(unpackhi_pd, pd, _mm512_unpackhi_pd(a.pd, b.pd), 8, uq, (j % 2 ? b : a).uq[j / 2 * 2 + 1])
FLOATS1(moveldup_ps, a.f[j / 2 * 2])
FLOATS1(movehdup_ps, a.f[j / 2 * 2 + 1])
#define CHOICE(imm, j) ((imm) >> 2 * (j)&3)
#define SHUFFLES(imm)                                                                                                  \
    TRY(shuffle_ps_##imm, ps, _mm512_shuffle_ps(a.ps, b.ps, 0x##imm), 16, u,                                           \
        (j % 4 < 2 ? a : b).u[j / 4 * 4 + CHOICE(0x##imm, j % 4)])                                                     \
    TRY(permute_ps_##imm, ps, _mm512_permute_ps(a.ps, 0x##imm), 16, u, a.u[j / 4 * 4 + CHOICE(0x##imm, j % 4)])        \
    TRY(shuffle_f32x4_##imm, ps, _mm512_shuffle_f32x4(a.ps, b.ps, 0x##imm), 16, u,                                     \
        (j < 8 ? a : b).u[CHOICE(0x##imm, j / 4) * 4 + j % 4])
SHUFFLES(44)
SHUFFLES(ee)
SHUFFLES(88)
SHUFFLES(dd)
SHUFFLES(b1)
SHUFFLES(1b)
TRY(permutexvar_epi8, si, _mm512_permutexvar_epi8(a.si, b.si), 64, b, b.b[a.b[j] & 63])
TRY(maskz_permutexvar_epi8, si, _mm512_maskz_permutexvar_epi8(c.uq[0], a.si, b.si), 64, b,
    c.uq[0] >> j & 1 ? b.b[a.b[j] & 63] : 0)
TRY(permutexvar_epi16, si, _mm512_permutexvar_epi16(a.si, b.si), 32, h, b.h[a.h[j] & 31])
TRY(permutex2var_ps, ps, _mm512_permutex2var_ps(a.ps, b.si, c.ps), 16, u, (b.u[j] & 16 ? c : a).u[b.u[j] & 15])

/* ---- conversions */

TRY(cvtepi32_ps, ps, _mm512_cvtepi32_ps(a.si), 16, f, (float)a.i[j])
TRY(cvtps_epi32, si, _mm512_cvtps_epi32(a.ps), 16, i,
    a.f[j] >= -0x1p31f && a.f[j] < 0x1p31f ? (int32_t)nearbyintf(a.f[j]) : INT32_MIN)
TRY(cvtepi32_epi8, si128, _mm512_cvtepi32_epi8(a.si), 16, b, (int8_t)a.i[j])
TRY(cvtepu8_epi32, si, _mm512_cvtepu8_epi32(a.si128), 16, u, a.ub[j])
TRY(cvtepi8_epi32, si, _mm512_cvtepi8_epi32(a.si128), 16, i, a.b[j])
TRY(cvtepu16_epi32, si, _mm512_cvtepu16_epi32(a.si256), 16, u, a.uh[j])
TRY(cvtps_pd, pd, _mm512_cvtps_pd(a.ps256), 8, d, (double)a.f[j])
TRY(cvtph_ps, ps, _mm512_cvtph_ps(a.si256), 16, f, f16_to_f32(a.uh[j]))
static uint16_t to_f16(float x, uint16_t got) {
    if (isnan(x)) return (got & 0x7fff) > 0x7c00 ? got : 0; /* any NaN will do */
    return f32_to_f16(x);
}
TRY(cvtps_ph, si256, _mm512_cvtps_ph(a.ps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 16, uh,
    to_f16(a.f[j], got.uh[j]))

/* b's integral part is added to the exponent. */
static float scalef(float a, float b) {
    if (isnan(a)) return isinf(b) ? (b > 0 ? b : 0) : a;
    if (isnan(b)) return b;
    if (!isinf(b)) return scalbnf(a, (int)floorf(b < -999 ? -999 : b > 999 ? 999 : b));
    if (b > 0) return a == 0 ? NAN : copysignf(INFINITY, a);
    return isinf(a) ? NAN : copysignf(0, a);
}
FLOATS2(scalef_ps, scalef(a.f[j], b.f[j]))

/* The nearer of two neighbours, by their distances; beyond the largest lies what would be 2^128. */
static uint16_t to_bf16(float x, uint16_t got) {
    if (isnan(x)) return isnan(from_bf16(got)) ? got : 0;
    if (flush(x) == 0 || isinf(x)) return (uint16_t)((signbit(x) ? 0x8000 : 0) | (isinf(x) ? 0x7f80 : 0));
    vec v = {.f = {fabsf(x)}};
    uint16_t low = v.uh[1], sign = signbit(x) ? 0x8000 : 0;
    double below = v.f[0] - (double)from_bf16(low);
    double above = (low == 0x7f7f ? 0x1p128 : (double)from_bf16((uint16_t)(low + 1))) - (double)v.f[0];
    return (uint16_t)((below < above || (below == above && low % 2 == 0) ? low : low + 1) | sign);
}
TRY(cvtneps_pbh, bh256, _mm512_cvtneps_pbh(a.ps), 16, uh, to_bf16(a.f[j], got.uh[j]))
TRY(cvtne2ps_pbh, bh, _mm512_cvtne2ps_pbh(a.ps, b.ps), 32, uh, to_bf16((j < 16 ? b : a).f[j % 16], got.uh[j]))
static float dot2(float sum, const uint16_t *a, const uint16_t *b) {
    for (int l = 1; l >= 0; l--) sum = flush(fmaf(flush(from_bf16(a[l])), flush(from_bf16(b[l])), flush(sum)));
    return sum;
}
TRY(dpbf16_ps, ps, _mm512_dpbf16_ps(a.ps, b.bh, c.bh), 16, f, dot2(a.f[j], b.uh + 2 * j, c.uh + 2 * j))

/* ---- memory */

static void plain_memory(void **state) {
    (void)state;
    _Alignas(64) unsigned char from[128], to[192];
    vec v;
    for (size_t i = 0; i < sizeof from; i++) from[i] = (unsigned char)rng();
    for (size_t at = 0; at < 64; at += 1) {
        v.si = _mm512_loadu_si512(from + at);
        assert_memory_equal(&v, from + at, 64);
        v.ps = _mm512_loadu_ps(from + at);
        assert_memory_equal(&v, from + at, 64);
        memset(to, 0xa5, sizeof to);
        _mm512_storeu_ps(to + at, v.ps);
        assert_memory_equal(to + at, from + at, 64);
        for (size_t i = 0; i < sizeof to; i++) assert_true(to[i] == 0xa5 || (i >= at && i < at + 64));
    }
    v.si = _mm512_load_si512(from + 64);
    assert_memory_equal(&v, from + 64, 64);
    v.ps = _mm512_load_ps(from);
    assert_memory_equal(&v, from, 64);
    _mm512_store_ps(to, v.ps);
    assert_memory_equal(to, from, 64);
    _mm512_store_si512(to + 64, _mm512_loadu_si512(from + 1));
    assert_memory_equal(to + 64, from + 1, 64);
    _mm512_storeu_si512(to + 65, _mm512_loadu_si512(from + 2));
    assert_memory_equal(to + 65, from + 2, 64);
}

/* What needs an address that 64 divides must not work at another. */
static void use_misaligned(int what) {
    static _Alignas(64) char from[192];
    char *volatile at = from + 32;
    volatile vec sink;
    if (what == 0) sink.ps = _mm512_load_ps((float *)at);
    if (what == 1) sink.si = _mm512_load_si512(at);
    if (what == 2) _mm512_store_ps((float *)at, _mm512_setzero_ps());
    if (what == 3) _mm512_store_si512(at, _mm512_setzero_si512());
    (void)sink;
}
static void misaligned(void **state) {
    (void)state;
    for (int what = 0; what < 4; what++) assert_true(dies(use_misaligned, what));
}

/* Loads and stores of n lanes, with the masks that leave out some of them and all that lie behind a page's end. */
#define MASKED(name, to, load, store, n, bytes)                                                                        \
    static void name(void **state) {                                                                                   \
        char *end = *state;                                                                                            \
        for (int round = 0; round < ROUNDS; round++) {                                                                 \
            int left = (int)(rng() % ((n) + 1));                                                                       \
            uint64_t k = round % 3 ? rng() : UINT64_MAX;                                                               \
            k &= left == 64 ? UINT64_MAX : ((uint64_t)1 << left) - 1;                                                  \
            char *p = end - left * (bytes), before[64] = {0}, after[64];                                               \
            for (int i = 0; i < left * (bytes); i++) p[i] = before[i] = (char)rng();                                   \
            vec got = {.uq = {0}}, b = any();                                                                          \
            got.to = load;                                                                                             \
            for (int i = 0; i < (n) * (bytes); i++)                                                                    \
                assert_int_equal(got.b[i], k >> i / (bytes)&1 ? (int8_t)before[i] : 0);                                \
            store;                                                                                                     \
            memcpy(after, p, (size_t)(left * (bytes)));                                                                \
            for (int i = 0; i < left * (bytes); i++)                                                                   \
                assert_int_equal((int8_t)after[i], k >> i / (bytes)&1 ? b.b[i] : (int8_t)before[i]);                   \
        }                                                                                                              \
    }
MASKED(masked_ps, ps, _mm512_maskz_loadu_ps((__mmask16)k, p), _mm512_mask_storeu_ps(p, (__mmask16)k, b.ps), 16, 4)
MASKED(masked_epi32, ps, _mm512_maskz_loadu_ps((__mmask16)k, p), _mm512_mask_storeu_epi32(p, (__mmask16)k, b.si), 16, 4)
MASKED(masked_pd, pd, _mm512_maskz_loadu_pd((__mmask8)k, p), _mm512_mask_storeu_pd(p, (__mmask8)k, b.pd), 8, 8)
MASKED(masked_ps_128, ps128, _mm_maskz_loadu_ps((__mmask8)k, p), _mm_mask_storeu_ps(p, (__mmask8)k, b.ps128), 4, 4)
MASKED(masked_epi16, si256, _mm256_maskz_loadu_epi16((__mmask16)k, p),
       _mm256_mask_storeu_epi16(p, (__mmask16)k, b.si256), 16, 2)
static __m128i bytes_of(uint64_t k, const char *p) {
    vec v = {.uq = {0}};
    for (int j = 0; j < 16; j++)
        if (k >> j & 1) v.b[j] = p[j];
    return v.si128;
}
MASKED(masked_epi8, si128, bytes_of(k, p), _mm_mask_storeu_epi8(p, (__mmask16)k, b.si128), 16, 1)

/* Apart from main, which must run where this would not. */
static __attribute__((noinline)) int run(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(add_ps),
        cmocka_unit_test(sub_ps),
        cmocka_unit_test(mul_ps),
        cmocka_unit_test(div_ps),
        cmocka_unit_test(max_ps),
        cmocka_unit_test(min_ps),
        cmocka_unit_test(fmadd_ps),
        cmocka_unit_test(fnmadd_ps),
        cmocka_unit_test(fmaddsub_ps),
        cmocka_unit_test(sqrt_ps),
        cmocka_unit_test(abs_ps),
        cmocka_unit_test(add_pd),
        cmocka_unit_test(maskz_div_ps),
        cmocka_unit_test(roundscale_ps),
        cmocka_unit_test(add_epi8),
        cmocka_unit_test(add_epi16),
        cmocka_unit_test(add_epi32),
        cmocka_unit_test(add_epi64),
        cmocka_unit_test(sub_epi32),
        cmocka_unit_test(mullo_epi16),
        cmocka_unit_test(mullo_epi32),
        cmocka_unit_test(mul_epi32),
        cmocka_unit_test(min_epi32),
        cmocka_unit_test(max_epi32),
        cmocka_unit_test(max_epu32),
        cmocka_unit_test(min_epi64),
        cmocka_unit_test(max_epi64),
        cmocka_unit_test(and_si512),
        cmocka_unit_test(or_si512),
        cmocka_unit_test(xor_si512),
        cmocka_unit_test(ternarylogic_ea),
        cmocka_unit_test(ternarylogic_ca),
        cmocka_unit_test(sllv_epi32),
        cmocka_unit_test(srlv_epi32),
        cmocka_unit_test(sllv_epi64),
        cmocka_unit_test(srav_epi32),
        cmocka_unit_test(slli_epi16_all),
        cmocka_unit_test(slli_epi16_none),
        cmocka_unit_test(slli_epi16_some),
        cmocka_unit_test(slli_epi32_all),
        cmocka_unit_test(slli_epi32_none),
        cmocka_unit_test(slli_epi32_some),
        cmocka_unit_test(slli_epi64_all),
        cmocka_unit_test(slli_epi64_none),
        cmocka_unit_test(slli_epi64_some),
        cmocka_unit_test(srli_epi16_all),
        cmocka_unit_test(srli_epi16_none),
        cmocka_unit_test(srli_epi16_some),
        cmocka_unit_test(srli_epi32_all),
        cmocka_unit_test(srli_epi32_none),
        cmocka_unit_test(srli_epi32_some),
        cmocka_unit_test(srli_epi64_all),
        cmocka_unit_test(srli_epi64_none),
        cmocka_unit_test(srli_epi64_some),
        cmocka_unit_test(srai_epi32_all),
        cmocka_unit_test(srai_epi32_none),
        cmocka_unit_test(srai_epi32_some),
        cmocka_unit_test(srai_epi64_all),
        cmocka_unit_test(srai_epi64_none),
        cmocka_unit_test(srai_epi64_some),
        cmocka_unit_test(dpbusd_epi32),
        cmocka_unit_test(dpbusd_256),
        cmocka_unit_test(dpbusd_128),
        cmocka_unit_test(dpwssd_epi32),
        cmocka_unit_test(reduce_max_epu32),
        cmocka_unit_test(setzero_ps),
        cmocka_unit_test(setzero_si512),
        cmocka_unit_test(set1_ps),
        cmocka_unit_test(set1_epi8),
        cmocka_unit_test(set1_epi32),
        cmocka_unit_test(set1_epi64),
        cmocka_unit_test(set_epi32),
        cmocka_unit_test(set_epi16),
        cmocka_unit_test(broadcast_i32x4),
        cmocka_unit_test(castpd_ps),
        cmocka_unit_test(castps_pd),
        cmocka_unit_test(castps_si512),
        cmocka_unit_test(castsi512_ps),
        cmocka_unit_test(castps512_ps256),
        cmocka_unit_test(extractf32x8_ps),
        cmocka_unit_test(mask_blend_epi8),
        cmocka_unit_test(mask_blend_epi16),
        cmocka_unit_test(mask_blend_epi32),
        cmocka_unit_test(mask_mov_ps),
        cmocka_unit_test(mask_add_epi32),
        cmocka_unit_test(cmp_ps_mask),
        cmocka_unit_test(cmpgt_epi32_mask),
        cmocka_unit_test(cmpneq_epi8_mask),
        cmocka_unit_test(test_epi32_mask),
        cmocka_unit_test(unpacklo_ps),
        cmocka_unit_test(unpackhi_ps),
        cmocka_unit_test(unpacklo_pd),
        cmocka_unit_test(unpackhi_pd),
        cmocka_unit_test(moveldup_ps),
        cmocka_unit_test(movehdup_ps),
        cmocka_unit_test(permute_ps_44),
        cmocka_unit_test(shuffle_f32x4_44),
        cmocka_unit_test(shuffle_ps_44),
        cmocka_unit_test(permute_ps_ee),
        cmocka_unit_test(shuffle_f32x4_ee),
        cmocka_unit_test(shuffle_ps_ee),
        cmocka_unit_test(permute_ps_88),
        cmocka_unit_test(shuffle_f32x4_88),
        cmocka_unit_test(shuffle_ps_88),
        cmocka_unit_test(permute_ps_dd),
        cmocka_unit_test(shuffle_f32x4_dd),
        cmocka_unit_test(shuffle_ps_dd),
        cmocka_unit_test(permute_ps_b1),
        cmocka_unit_test(shuffle_f32x4_b1),
        cmocka_unit_test(shuffle_ps_b1),
        cmocka_unit_test(permute_ps_1b),
        cmocka_unit_test(shuffle_f32x4_1b),
        cmocka_unit_test(shuffle_ps_1b),
        cmocka_unit_test(permutexvar_epi8),
        cmocka_unit_test(maskz_permutexvar_epi8),
        cmocka_unit_test(permutexvar_epi16),
        cmocka_unit_test(permutex2var_ps),
        cmocka_unit_test(cvtepi32_ps),
        cmocka_unit_test(cvtps_epi32),
        cmocka_unit_test(cvtepi32_epi8),
        cmocka_unit_test(cvtepu8_epi32),
        cmocka_unit_test(cvtepi8_epi32),
        cmocka_unit_test(cvtepu16_epi32),
        cmocka_unit_test(cvtps_pd),
        cmocka_unit_test(cvtph_ps),
        cmocka_unit_test(cvtps_ph),
        cmocka_unit_test(scalef_ps),
        cmocka_unit_test(cvtneps_pbh),
        cmocka_unit_test(cvtne2ps_pbh),
        cmocka_unit_test(dpbf16_ps),
        cmocka_unit_test(plain_memory),
        cmocka_unit_test(misaligned),
        cmocka_unit_test(masked_ps),
        cmocka_unit_test(masked_epi32),
        cmocka_unit_test(masked_pd),
        cmocka_unit_test(masked_ps_128),
        cmocka_unit_test(masked_epi16),
        cmocka_unit_test(masked_epi8),
    };
    return cmocka_run_group_tests(tests, page_make, NULL);
}

int main(void) {
    if (cpu_detect() >= NEEDED) return run();
    printf("this machine lacks the instructions\n");
    return 77;
}
