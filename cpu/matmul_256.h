/* Kernels of 256 bits for the interleaved quantized layouts (layout.h), which matmul_avx2.c and matmul_avxvnni.c
 * compile with VNNI as 0 and 1: the AVX-512 kernels' twins.
 *
 * Without VNNI: vpmaddubsw multiplies unsigned codes with signed activations and adds pairs in saturating 16 bits.
 * Codes of b bits give at most (2^b - 1) * 127 * 2 for a pair, so up to 8 words (b <= 4), 4 (b = 5) or 2 (b = 6) add up
 * exactly in 16 bits before they are widened. Signed operands (Q8_0, codebooks) go as |w| and activation * sign(w): one
 * word at a time. With it vpdpbusd adds the four products of a word to 32 bits, and signed operands go as w + 128. The
 * integers are the same. */
#ifndef LLMQ_CPU_MATMUL_256_H
#define LLMQ_CPU_MATMUL_256_H

#include <immintrin.h>

#include "cpu/dense.h"
#include "cpu/int8.h"
#include "cpu/nf4.h"
#include "cpu/vnni256.h"

#define TILE (VNNI ? 6 : 3) /* rows of a register tile; divides ACT_BLOCK */
#define AT_ONCE 4           /* tokens of a product without a panel */
typedef __m256i code_vec;
#include "cpu/matmul_parts.h"

INLINE __m256i load_i(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
INLINE __m256 load_half8(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE __m256 load_sc8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE __m256i bcast4(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}

/* ---- codes of 8 rows (p: their half of the group's first vector) */

INLINE __m256i plane_bits(__m256i plane, int from, int to, int mask) {
    __m256i v = plane;
    if (from > to) v = _mm256_srli_epi16(plane, from - to);
    if (from < to) v = _mm256_slli_epi16(plane, to - from);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(mask << to)));
}

/* Word j: byte b = code of column 4j + b; for 8 bits and codebooks its level, plus 128 with
 * VNNI. */
INLINE __m256i word(int bits, bool codebook, __m256i table, const uint8_t *p, int j) {
    const __m256i low = _mm256_set1_epi8(15);
    const uint8_t *planes = bits >= 4 ? p + 256 : p; /* of two bits, then of one */
    __m256i u = _mm256_setzero_si256();
    if (bits == 8 && VNNI) return load_i(p + 64 * j);
    if (bits == 8) return _mm256_xor_si256(load_i(p + 64 * j), _mm256_set1_epi8((char)0x80));
    if (bits >= 4 && j < 4) u = _mm256_and_si256(load_i(p + 64 * j), low);
    if (bits >= 4 && j >= 4) u = _mm256_and_si256(_mm256_srli_epi16(load_i(p + 64 * (j - 4)), 4), low);
    if (bits == 6 || bits <= 3)
        u = _mm256_or_si256(u, plane_bits(load_i(planes + 64 * (j & 1)), j / 2 * 2, bits == 6 ? 4 : 0, 3));
    if (bits == 5 || bits == 3)
        u = _mm256_or_si256(u, plane_bits(load_i(planes + (bits == 3 ? 128 : 0)), j, bits - 1, 1));
    return codebook ? _mm256_shuffle_epi8(table, u) : u;
}

static __m256i code_table(const cpu_layout *l) {
    if (!l->codebook) return _mm256_setzero_si256();
    uint8_t table[16];
    for (int i = 0; i < 16; i++) table[i] = (uint8_t)((int)type_info(l->type)->levels[i] + (VNNI ? 128 : 0));
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

INLINE bool is_signed(int bits, bool codebook) {
    return !VNNI && (bits == 8 || codebook);
}

/* Words whose products add up exactly in 16 bits, of a part's. */
INLINE int exact_words(int bits, bool codebook, int words) {
    int most = is_signed(bits, codebook) ? 1 : bits <= 4 ? 8 : bits == 5 ? 4 : 2;
    return most < words ? most : words;
}

/* *acc += the four products of each word, word k of its part. Without VNNI they gather in *sum, in 16 bits, for `exact`
 * words. Both stay in registers, or gcc makes the products of all words first and spills them. */
#if VNNI
INLINE void add_word(bool sign, int exact, int k, __m256i w, __m256i x, __m256i *sum, __m256i *acc) {
    (void)sign, (void)exact, (void)k, (void)sum;
    *acc = vnni_add(*acc, w, x);
}
#else
INLINE void add_word(bool sign, int exact, int k, __m256i w, __m256i x, __m256i *sum, __m256i *acc) {
    __m256i y = sign ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
    *sum = k % exact == 0 ? y : _mm256_add_epi16(*sum, y);
    IN_REGISTER(*sum);
    if (k % exact != exact - 1) return;
    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(*sum, _mm256_set1_epi16(1)));
    IN_REGISTER(*acc);
}
#endif

/* acc[t][h] += part i of a group times token t's activations at q + 32t, for half h of 16 rows. Words that come from
 * the same bytes follow each other. */
INLINE void dot_part(int bits, int group, bool codebook, int nt, int i, __m256i table, const uint8_t *p,
                     const int8_t *q, __m256i acc[][2]) {
    const int words = group / 4, exact = exact_words(bits, codebook, words);
    __m256i sum[AT_ONCE][2];
    UNROLL for (int k = 0; k < words; k++) {
        const int j = words == 8 ? k / 2 + k % 2 * 4 : 4 * i + k;
        __m256i u[2] = {word(bits, codebook, table, p, j), word(bits, codebook, table, p + 32, j)};
        UNROLL for (int t = 0; t < nt; t++) {
            __m256i x = bcast4(q + 32 * t + 4 * j);
            UNROLL for (int h = 0; h < 2; h++)
                add_word(is_signed(bits, codebook), exact, k, u[h], x, &sum[t][h], &acc[t][h]);
        }
    }
}

/* Start value of an integer sum: act_group's, scaled from 128 to the zero point of unsigned codes. */
INLINE __m256i start_of(int bits, bool codebook, int zero, int32_t start) {
    if (is_signed(bits, codebook) || zero == 0) return _mm256_setzero_si256();
    return _mm256_set1_epi32(start >> (7 - log2_of(zero)));
}

/* ---- scales of 8 rows (p: their half of the first) */

typedef struct super_scale {
    __m256 d[2], dmin[2]; /* of both halves */
} super_scale;

INLINE void load_super(bool mins, const uint8_t *p, super_scale *s) {
    UNROLL for (int h = 0; h < 2; h++) {
        s->d[h] = load_half8(p + 16 * h);
        if (mins) s->dmin[h] = _mm256_sub_ps(_mm256_setzero_ps(), load_half8(p + 32 + 16 * h));
    }
}

/* w[i][h], m[i][h]: scale and offset of half h of the rows, for the group of 32 (i = 0) whose own scales are at p, or
 * its parts where group is 16. */
INLINE void load_scales(int group, bool two_level, bool mins, const uint8_t *p, const super_scale *s, __m256 w[2][2],
                        __m256 m[2][2]) {
    if (!two_level) {
        UNROLL for (int h = 0; h < 2; h++) {
            w[0][h] = load_half8(p + 16 * h);
            if (mins) m[0][h] = load_half8(p + 32 + 16 * h);
        }
        return;
    }
    for (int i = 0; i < 32 / group; i++) {
        UNROLL for (int h = 0; h < 2; h++) {
            w[i][h] = _mm256_mul_ps(load_sc8(p + 8 * h), s->d[h]);
            if (mins) m[i][h] = _mm256_mul_ps(load_sc8(p + 16 + 8 * h), s->dmin[h]);
        }
        p += mins ? 32 : 16;
    }
}

/* The same for groups one after the other, of which the first begins a run: s is kept from one to the next. */
INLINE void next_scales(int group, bool two_level, bool mins, const uint8_t *tile, const layout_place *at,
                        super_scale *s, __m256 w[2][2], __m256 m[2][2]) {
    if (two_level && at->first) load_super(mins, tile + at->super, s);
    load_scales(group, two_level, mins, tile + at->scale, s, w, m);
}

/* ---- outliers */

/* Levels of column `col` of a group, of 8 rows (p: their half of the group's first vector). */
INLINE __m256i level_at(int bits, bool codebook, int zero, __m256i table, const uint8_t *p, int col) {
    const uint8_t *planes = bits >= 4 ? p + 256 : p;
    const int j = col / 4, from = col % 4 * 8; /* its word, and where its bits begin there */
    __m256i u = _mm256_setzero_si256();
#define BITS(vector, at, mask)                                                                                         \
    _mm256_and_si256(_mm256_srl_epi32(load_i(vector), _mm_cvtsi32_si128(from + (at))), _mm256_set1_epi32(mask))
    if (bits == 8) u = BITS(p + 64 * j, 0, 255);
    if (bits >= 4 && bits < 8) u = BITS(p + 64 * (j % 4), j / 4 * 4, 15);
    if (bits == 6) u = _mm256_or_si256(u, _mm256_slli_epi32(BITS(planes + 64 * (j % 2), j / 2 * 2, 3), 4));
    if (bits <= 3) u = BITS(planes + 64 * (j % 2), j / 2 * 2, 3);
    if (bits == 5) u = _mm256_or_si256(u, _mm256_slli_epi32(BITS(planes, j, 1), 4));
    if (bits == 3) u = _mm256_or_si256(u, _mm256_slli_epi32(BITS(planes + 128, j, 1), 2));
#undef BITS
    if (codebook) u = _mm256_and_si256(_mm256_shuffle_epi8(table, u), _mm256_set1_epi32(255));
    if (codebook && !VNNI) return _mm256_srai_epi32(_mm256_slli_epi32(u, 24), 24);
    return _mm256_sub_epi32(u, _mm256_set1_epi32(zero));
}

/* out (nt, 16) += 16 rows of the tile times the outliers of rows t0 .. t0+nt of the block, whose other inputs have
 * been there before. */
INLINE void outliers_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t cols, __m256i table, const act_block *b, int t0,
                          int nt, float out[][16]) {
    const int64_t end = cols / 32 * b->n;
    for (int64_t i = act_next_outlier(b, 0, end); i < end; i = act_next_outlier(b, i + 1, end)) {
        const int64_t g = i / b->n, t = i - g * b->n - t0;
        if (t < 0 || t >= nt) continue;
        const layout_place at = layout_at(bits, group, two_level, mins, g);
        super_scale super = {0};
        __m256 w[2][2], m[2][2], x = _mm256_set1_ps(b->outlier[i]);
        const int col = b->outlier_at[i], part = group == 16 ? col / 16 : 0;
        if (two_level) load_super(mins, tile + at.super, &super);
        load_scales(group, two_level, mins, tile + at.scale, &super, w, m);
        UNROLL for (int h = 0; h < 2; h++) {
            __m256i level = level_at(bits, codebook, zero, table, tile + at.code + 32 * h, col);
            __m256 value = _mm256_mul_ps(w[part][h], _mm256_cvtepi32_ps(level));
            if (mins) value = _mm256_add_ps(value, m[part][h]);
            _mm256_storeu_ps(out[t] + 8 * h, _mm256_fmadd_ps(value, x, _mm256_loadu_ps(out[t] + 8 * h)));
        }
    }
}

/* ---- few tokens */

/* out (nt, 16) = 16 rows of the tile times rows t0 .. t0+nt of the block. */
INLINE void gemv_tile(LAYOUT_PARAMS, int nt, const uint8_t *tile, int64_t cols, __m256i table, const act_block *b,
                      int t0, float out[AT_ONCE][16]) {
    const int64_t group_bytes = LAYOUT_GROUP_BYTES(bits, group, two_level, mins);
    super_scale super = {0};
    __m256 f[AT_ONCE][2];
    UNROLL for (int t = 0; t < nt; t++) f[t][0] = f[t][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < cols / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, g);
        const uint8_t *p = tile + at.code;
        __m256 w[2][2], m[2][2];
        fetch_ahead(tile + g * group_bytes, group_bytes);
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        const int8_t *q = b->q + (g * b->n + t0) * 32;
        const act_group *ag = b->group + g * b->n + t0;
        UNROLL for (int i = 0; i < 32 / group; i++) {
            __m256i acc[AT_ONCE][2];
            UNROLL for (int t = 0; t < nt; t++) acc[t][0] = acc[t][1] =
                start_of(bits, codebook, zero, part_start(group, ag + t, i));
            dot_part(bits, group, codebook, nt, i, table, p, q, acc);
            UNROLL for (int t = 0; t < nt; t++) {
                __m256 d = _mm256_set1_ps(ag[t].d), dsum = _mm256_set1_ps(mins ? part_dsum(group, ag + t, i) : 0);
                UNROLL for (int h = 0; h < 2; h++) {
                    f[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[t][h]), _mm256_mul_ps(w[i][h], d), f[t][h]);
                    if (mins) f[t][h] = _mm256_fmadd_ps(m[i][h], dsum, f[t][h]);
                }
            }
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        _mm256_storeu_ps(out[t], f[t][0]);
        _mm256_storeu_ps(out[t] + 8, f[t][1]);
    }
}

/* ---- many tokens */

/* Columns k0 .. k0+n of one tile. */
INLINE void unpack_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t k0, int64_t n, __m256i table, panel *out) {
    super_scale super = {0};
    int parts = 32 / group;
    (void)zero;
    for (int64_t g = 0; g < n / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, k0 / 32 + g);
        const uint8_t *p = tile + at.code;
        __m256 w[2][2], m[2][2];
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        UNROLL for (int h = 0; h < 2; h++) {
            UNROLL for (int j = 0; j < 8; j++) _mm256_store_si256((__m256i *)(out->code + (g * 8 + j) * 64 + 32 * h),
                                                                  word(bits, codebook, table, p + 32 * h, j));
            UNROLL for (int i = 0; i < parts; i++) {
                _mm256_store_ps(&out->scale[g * parts + i][8 * h], w[i][h]);
                if (mins) _mm256_store_ps(&out->offset[g * parts + i][8 * h], m[i][h]);
            }
        }
    }
}

/* f (rows, 2) += panel x nt rows of the block from t0 on, over n columns; b points at its first group of them.
 * f stays in memory: 6 sums (with VNNI 12), 2 words of weights and their helpers fill the 16 registers. */
INLINE void gemm_tile(LAYOUT_PARAMS, int nt, const panel *w, act_block b, int t0, int64_t n, float f[TILE][16]) {
    const int parts = 32 / group, words = group / 4, exact = exact_words(bits, codebook, words);
    const uint8_t *code = w->code;
    (void)two_level;
    for (int64_t s = 0; s < n / group; s++, code += words * 64) { /* s counts parts */
        const act_group *ag = b.group + s / parts * b.n + t0;
        const int8_t *q = b.q + (s / parts * b.n + t0) * 32 + s % parts * 16;
        __m256i acc[TILE][2], sum[TILE][2];
        UNROLL for (int t = 0; t < nt; t++) acc[t][0] = acc[t][1] =
            start_of(bits, codebook, zero, part_start(group, ag + t, (int)(s % parts)));
        UNROLL for (int k = 0; k < words; k++) {
            __m256i u[2] = {load_i(code + k * 64), load_i(code + k * 64 + 32)};
            UNROLL for (int t = 0; t < nt; t++) {
                __m256i x = bcast4(q + t * 32 + 4 * k);
                UNROLL for (int h = 0; h < 2; h++)
                    add_word(is_signed(bits, codebook), exact, k, u[h], x, &sum[t][h], &acc[t][h]);
            }
        }
        UNROLL for (int t = 0; t < nt; t++) {
            __m256 d = _mm256_set1_ps(ag[t].d);
            UNROLL for (int h = 0; h < 2; h++) {
                __m256 v = _mm256_load_ps(f[t] + 8 * h);
                v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[t][h]),
                                    _mm256_mul_ps(_mm256_load_ps(w->scale[s] + 8 * h), d), v);
                if (mins)
                    v = _mm256_fmadd_ps(_mm256_load_ps(w->offset[s] + 8 * h),
                                        _mm256_set1_ps(part_dsum(group, ag + t, (int)(s % parts))), v);
                _mm256_store_ps(f[t] + 8 * h, v);
            }
        }
    }
}

#include "cpu/matmul_drive.h"

/* ---- any number */

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout == LAYOUT_INT8)
        (VNNI ? int8_matmul_avxvnni : int8_matmul_avx2)(worker, w, a, y, ldy);
    else if (w->layout == LAYOUT_NF4 && a->n_tok <= FEW)
        nf4_few_avx2(worker, w, a, y, ldy);
    else if (!cpu_layout_of(w->layout))
        dense_matmul_avx2(worker, w, a, y, ldy);
    else if (a->n_tok <= FEW)
        matmul_few(worker, w, a, y, ldy);
    else
        matmul_many(worker, w, a, y, ldy);
}

#endif
