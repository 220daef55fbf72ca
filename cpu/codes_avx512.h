/* The interleaved layouts taken apart by AVX-512 (layout.h): codes of a group, and the scales beside them. */
#ifndef LLMQ_CPU_CODES_AVX512_H
#define LLMQ_CPU_CODES_AVX512_H

#include <immintrin.h>

#include "cpu/inline.h"
#include "cpu/layout.h"
#include "types/type.h"

INLINE __m512i load_i(const void *p) {
    return _mm512_loadu_si512(p);
}
/* For vectors that are used more than once: gcc would fold a load of its own into each use, which tokens one at a time
 * are 5 % (weights in memory) to 12 % (in L3) slower by (docs/benchmarks.md). */
INLINE __m512i load_once(const void *p) {
    __m512i v = load_i(p);
    IN_REGISTER(v);
    return v;
}
INLINE __m512 load_half16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE __m512 load_sc16(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* ---- codes */

/* Bits of `plane` that start at bit `from` of each byte, moved to bit `to`, and masked. */
INLINE __m512i plane_bits(__m512i plane, int from, int to, int mask) {
    __m512i v = plane;
    if (from > to) v = _mm512_srli_epi16(plane, from - to);
    if (from < to) v = _mm512_slli_epi16(plane, to - from);
    return _mm512_and_si512(v, _mm512_set1_epi8((char)(mask << to)));
}

/* Words 0..7 of a group, as stored: u[j] byte b = code of column 4j + b. 4-bit codes go through table if it is used. */
INLINE void decode(int bits, bool use_table, __m512i table, const uint8_t *p, __m512i u[8]) {
    if (bits == 8) {
        UNROLL for (int j = 0; j < 8; j++) u[j] = load_i(p + 64 * j);
        return;
    }
    if (bits >= 4) {
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i raw = load_once(p + 64 * j), high = _mm512_srli_epi16(raw, 4);
            if (use_table) { /* the table has 4 copies of its 16 entries: the upper bits of an index do not matter */
                u[j] = _mm512_permutexvar_epi8(raw, table);
                u[j + 4] = _mm512_permutexvar_epi8(high, table);
            } else {
                u[j] = _mm512_and_si512(raw, _mm512_set1_epi8(15));
                u[j + 4] = _mm512_and_si512(high, _mm512_set1_epi8(15));
            }
        }
        p += 256;
    }
    if (bits == 6 || bits <= 3) {
        const __m512i planes[2] = {load_once(p), load_once(p + 64)};
        UNROLL for (int j = 0; j < 8; j++) {
            __m512i v = plane_bits(planes[j & 1], j / 2 * 2, bits == 6 ? 4 : 0, 3);
            u[j] = bits == 6 ? _mm512_or_si512(u[j], v) : v;
        }
        p += 128;
    }
    if (bits == 5 || bits == 3) {
        __m512i plane = load_once(p);
        UNROLL for (int j = 0; j < 8; j++) u[j] = _mm512_or_si512(u[j], plane_bits(plane, j, bits - 1, 1));
    }
}

/* level + 128 of each 4-bit code. */
static __m512i code_table(const cpu_layout *l) {
    uint8_t table[16];
    const llmq_type_info *info = l->codebook ? type_info(l->type) : NULL;
    for (int i = 0; i < 16; i++) table[i] = (uint8_t)((info ? (int)info->levels[i] : i - l->zero) + 128);
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}

/* ---- scales of 16 rows */

typedef struct super_scale {
    __m512 d, dmin;
} super_scale;

INLINE void load_super(bool mins, const uint8_t *p, super_scale *s) {
    s->d = load_half16(p);
    if (mins) s->dmin = _mm512_sub_ps(_mm512_setzero_ps(), load_half16(p + 32));
}

/* w[h], m[h]: scale and offset of a group of 32, whose own scales are at p, or of its two halves where group is 16. */
INLINE void load_scales(int group, bool two_level, bool mins, const uint8_t *p, const super_scale *s, __m512 w[2],
                        __m512 m[2]) {
    if (!two_level) {
        w[0] = load_half16(p);
        if (mins) m[0] = load_half16(p + 32);
        return;
    }
    for (int h = 0; h < 32 / group; h++) {
        w[h] = _mm512_mul_ps(load_sc16(p), s->d);
        p += 16;
        if (mins) {
            m[h] = _mm512_mul_ps(load_sc16(p), s->dmin);
            p += 16;
        }
    }
}

/* The same for groups one after the other, of which the first begins a run: s is kept from one to the next. */
INLINE void next_scales(int group, bool two_level, bool mins, const uint8_t *tile, const layout_place *at,
                        super_scale *s, __m512 w[2], __m512 m[2]) {
    if (two_level && at->first) load_super(mins, tile + at->super, s);
    load_scales(group, two_level, mins, tile + at->scale, s, w, m);
}

#endif
