/* Kernels of 256 bits for the interleaved quantized layouts (layout.h), which matmul_avx2.c and matmul_avxvnni.c
 * compile with VNNI as 0 and 1: the AVX-512 kernels' twins.
 *
 * Without VNNI: vpmaddubsw multiplies unsigned codes with signed activations and adds pairs in saturating 16 bits.
 * Codes of b bits give at most (2^b - 1) * 127 * 2 for a pair, so up to 8 words (b <= 4), 4 (b = 5) or 2 (b = 6) add up
 * exactly in 16 bits before they are widened. Signed operands (Q8_0, codebooks) go as |w| and activation * sign(w): one
 * word at a time. With it vpdpbusd adds the four products of a word to 32 bits, and signed operands go as w + 128. The
 * integers are the same but for factors of theirs (raised, SC_IN_SUMS). */
#ifndef LLMQ_CPU_MATMUL_256_H
#define LLMQ_CPU_MATMUL_256_H

#include <immintrin.h>

#include "cpu/dense.h"
#include "cpu/int8.h"
#include "cpu/nf4.h"
#include "cpu/vnni256.h"

#define TILE (VNNI ? 6 : 3) /* rows of a register tile; divides ACT_BLOCK */
#define AT_ONCE 4           /* tokens of a product without a panel */
#define TILE_MOST (TILE > AT_ONCE ? TILE : AT_ONCE)
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
INLINE __m256i bcast4(const void *q) {
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

/* ---- integer sums
 *
 * A unit is what has one sum for each row before it becomes a float: a group, and without VNNI always 32 columns, as
 * there the integer scales of two groups of 16 cost nothing: they are what vpmaddwd multiplies sums of 16 bits with to
 * widen them. */

#define UNIT(group) (VNNI ? (group) : 32)
#define UNITS(group) (32 / UNIT(group)) /* of 32 columns */
#define SC_IN_SUMS(group) (UNIT(group) != (group))

/* Words whose products add up exactly in 16 bits, of a group's. */
INLINE int exact_words(int bits, int group, bool codebook) {
    int most = is_signed(bits, codebook) ? 1 : bits <= 4 ? 8 : bits == 5 ? 4 : 2, words = group / 4;
    return most < words ? most : words;
}

/* What a unit's sum is times too large: start values then come with the activations as they are. */
INLINE int raised(int bits, int group, bool codebook, int zero) {
    return VNNI || SC_IN_SUMS(group) || is_signed(bits, codebook) || zero == 0 ? 1 : 128 / zero;
}

/* Scales of 32 columns, of halves h of 16 rows. */
typedef struct scales {
    __m256 w[UNITS(16)][2], m[UNITS(16)][2]; /* of each unit: of its integer sum, and of the sum of its inputs */
    __m256i sc[2][2];                        /* SC_IN_SUMS: of each group, both 16 bits of a word; */
    __m256i pair[2];                         /* mn, or -zero * sc, of both groups */
} scales;

/* *acc += the four products of each word, word k of a unit. Without VNNI they gather in *sum, in 16 bits, for `exact`
 * words, and then go to *acc times `times`; empty: that has no start value. Both stay in registers, or gcc makes the
 * products of all words first and spills them. */
#if VNNI
INLINE void add_word(bool sign, int exact, bool empty, int k, __m256i w, __m256i x, __m256i times, __m256i *sum,
                     __m256i *acc) {
    (void)sign, (void)exact, (void)empty, (void)k, (void)times, (void)sum;
    *acc = vnni_add(*acc, w, x);
}
#else
INLINE void add_word(bool sign, int exact, bool empty, int k, __m256i w, __m256i x, __m256i times, __m256i *sum,
                     __m256i *acc) {
    __m256i y = sign ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
    *sum = k % exact == 0 ? y : _mm256_add_epi16(*sum, y);
    IN_REGISTER(*sum);
    if (k % exact != exact - 1) return;
    y = _mm256_madd_epi16(*sum, times);
    *acc = empty && k < exact ? y : _mm256_add_epi32(*acc, y);
    IN_REGISTER(*acc);
}
#endif

/* Whether sums begin with something, and that, of unit i: what activations times the zero point come to. */
INLINE bool has_start(int bits, bool codebook, int zero) {
    return zero != 0 && !is_signed(bits, codebook);
}
INLINE __m256i start_of(int bits, int group, bool codebook, int zero, int i, const __m256i *pair, const act_group *ag) {
    if (!has_start(bits, codebook, zero)) return _mm256_setzero_si256();
    if (SC_IN_SUMS(group)) return _mm256_madd_epi16(*pair, bcast4(ag->sum));
    if (group == 32) return _mm256_srai_epi32(bcast4(&ag->start), VNNI ? 7 - log2_of(zero) : 0);
    return _mm256_set1_epi32(-zero * ag->sum[i]);
}

/* acc[t][h] = unit i of 32 columns times token t's activations at q + 32t, for half h of 16 rows, raised. code: packed,
 * or words of a panel. Of packed ones those that come from the same bytes follow each other. */
INLINE void dot_unit(LAYOUT_PARAMS, bool packed, int nt, int i, __m256i table, const uint8_t *code, const scales *s,
                     const int8_t *q, const act_group *ag, __m256i acc[][2]) {
    const int words = UNIT(group) / 4, exact = exact_words(bits, group, codebook);
    const bool empty = !has_start(bits, codebook, zero), nibbles = packed && group == 32;
    __m256i sum[TILE_MOST][2];
    (void)two_level, (void)mins;
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int h = 0; h < 2; h++) acc[t][h] = start_of(bits, group, codebook, zero, i, &s->pair[h], ag + t);
    }
    UNROLL for (int k = 0; k < words; k++) {
        const int j = nibbles ? k / 2 + k % 2 * 4 : words * i + k;
        __m256i u[2];
        UNROLL for (int h = 0; h < 2; h++) u[h] =
            packed ? word(bits, codebook, table, code + 32 * h, j) : load_i(code + 64 * j + 32 * h);
        UNROLL for (int t = 0; t < nt; t++) {
            __m256i x = bcast4(q + 32 * t + 4 * j);
            UNROLL for (int h = 0; h < 2; h++) add_word(
                is_signed(bits, codebook), exact, empty, k, u[h], x,
                SC_IN_SUMS(group) ? s->sc[k / 4][h] : _mm256_set1_epi16((short)raised(bits, group, codebook, zero)),
                &sum[t][h], &acc[t][h]);
        }
    }
}

/* *f += a unit's sums as floats, for half h of the rows. */
INLINE void add_unit(bool mins, int group, int i, int h, const scales *s, const act_group *ag, __m256i acc, __m256 *f) {
    const __m256 d = _mm256_set1_ps(ag->d);
    *f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), _mm256_mul_ps(s->w[i][h], d), *f);
    if (!mins) return;
    if (SC_IN_SUMS(group)) {
        const __m256i sum = _mm256_madd_epi16(s->pair[h], bcast4(ag->sum));
        *f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(s->m[i][h], d), *f);
    } else
        *f = _mm256_fmadd_ps(s->m[i][h], _mm256_set1_ps(part_dsum(group, ag, i)), *f);
}

/* ---- scales of packed weights */

typedef struct super_scale {
    __m256 d[2], dmin[2]; /* of both halves */
} super_scale;

INLINE void load_super(bool mins, const uint8_t *p, super_scale *s) {
    UNROLL for (int h = 0; h < 2; h++) {
        s->d[h] = load_half8(p + 16 * h);
        if (mins) s->dmin[h] = _mm256_sub_ps(_mm256_setzero_ps(), load_half8(p + 32 + 16 * h));
    }
}

/* Scale and offset of half h of the rows, for group `part` of the 32 columns whose own scales are at p. */
INLINE void group_scale(int group, bool two_level, bool mins, const uint8_t *p, const super_scale *s, int part, int h,
                        __m256 *w, __m256 *m) {
    if (!two_level) {
        *w = load_half8(p + 16 * h);
        if (mins) *m = load_half8(p + 32 + 16 * h);
        return;
    }
    p += group == 16 ? part * (mins ? 32 : 16) : 0;
    *w = _mm256_mul_ps(load_sc8(p + 8 * h), s->d[h]);
    if (mins) *m = _mm256_mul_ps(load_sc8(p + 16 + 8 * h), s->dmin[h]);
}

/* 16 signed bytes as 16 bits, in the order of which unpacking makes rows 0 to 7, and 8 to 15. */
INLINE __m256i load_sc16(const uint8_t *p) {
    return _mm256_permute4x64_epi64(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 0xd8);
}

/* Where integer scales go into the sums: two groups', at p. */
INLINE void integer_scales(bool mins, int zero, const uint8_t *p, const super_scale *super, scales *s) {
    __m256i sc[2], other[2];
    UNROLL for (int i = 0; i < 2; i++) {
        sc[i] = load_sc16(p + (mins ? 32 : 16) * i);
        s->sc[i][0] = _mm256_unpacklo_epi16(sc[i], sc[i]);
        s->sc[i][1] = _mm256_unpackhi_epi16(sc[i], sc[i]);
        other[i] = mins ? load_sc16(p + 32 * i + 16) : _mm256_mullo_epi16(sc[i], _mm256_set1_epi16((short)-zero));
    }
    s->pair[0] = _mm256_unpacklo_epi16(other[0], other[1]);
    s->pair[1] = _mm256_unpackhi_epi16(other[0], other[1]);
    UNROLL for (int h = 0; h < 2; h++) {
        s->w[0][h] = super->d[h];
        if (mins) s->m[0][h] = super->dmin[h];
    }
}

/* Those of groups one after the other, of which the first begins a run: super is kept from one to the next. */
INLINE void next_scales(LAYOUT_PARAMS, const uint8_t *tile, const layout_place *at, super_scale *super, scales *s) {
    if (two_level && at->first) load_super(mins, tile + at->super, super);
    if (SC_IN_SUMS(group)) {
        integer_scales(mins, zero, tile + at->scale, super, s);
        return;
    }
    UNROLL for (int i = 0; i < UNITS(group); i++) {
        UNROLL for (int h = 0; h < 2; h++) {
            group_scale(group, two_level, mins, tile + at->scale, super, i, h, &s->w[i][h], &s->m[i][h]);
            const int times = raised(bits, group, codebook, zero);
            if (times > 1) s->w[i][h] = _mm256_mul_ps(s->w[i][h], _mm256_set1_ps(1.0f / (float)times));
        }
    }
}

/* ---- outliers of packed weights */

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
        __m256 w, m, x = _mm256_set1_ps(b->outlier[i]);
        const int col = b->outlier_at[i];
        if (two_level) load_super(mins, tile + at.super, &super);
        UNROLL for (int h = 0; h < 2; h++) {
            group_scale(group, two_level, mins, tile + at.scale, &super, col / 16, h, &w, &m);
            __m256i level = level_at(bits, codebook, zero, table, tile + at.code + 32 * h, col);
            __m256 value = _mm256_mul_ps(w, _mm256_cvtepi32_ps(level));
            if (mins) value = _mm256_add_ps(value, m);
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
        const act_group *ag = b->group + g * b->n + t0;
        scales s;
        fetch_ahead(tile + g * group_bytes, group_bytes);
        next_scales(LAYOUT_ARGS, tile, &at, &super, &s);
        UNROLL for (int i = 0; i < UNITS(group); i++) {
            __m256i acc[AT_ONCE][2];
            dot_unit(LAYOUT_ARGS, true, nt, i, table, tile + at.code, &s, b->q + (g * b->n + t0) * 32, ag, acc);
            UNROLL for (int t = 0; t < nt; t++) {
                UNROLL for (int h = 0; h < 2; h++) add_unit(mins, group, i, h, &s, ag + t, acc[t][h], &f[t][h]);
            }
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        _mm256_storeu_ps(out[t], f[t][0]);
        _mm256_storeu_ps(out[t] + 8, f[t][1]);
    }
}

/* ---- many tokens */

/* 16 rows of weights ready for the register tile. */
typedef struct panel {
    _Alignas(64) uint8_t code[PANEL_COLS / 4 * 64]; /* (words, 64) */
    _Alignas(64) scales scale[PANEL_COLS / 32];
} panel;

/* Columns k0 .. k0+n of one tile. */
INLINE void unpack_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t k0, int64_t n, __m256i table, panel *out) {
    super_scale super = {0};
    for (int64_t g = 0; g < n / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, k0 / 32 + g);
        next_scales(LAYOUT_ARGS, tile, &at, &super, &out->scale[g]);
        UNROLL for (int h = 0; h < 2; h++) {
            UNROLL for (int j = 0; j < 8; j++)
                _mm256_store_si256((__m256i *)(out->code + (g * 8 + j) * 64 + 32 * h),
                                   word(bits, codebook, table, tile + at.code + 32 * h, j));
        }
    }
}

/* f (rows, 16) += panel x nt rows of the block from t0 on, over n columns; fresh: f begins at 0. It stays in memory: 6
 * sums (with VNNI 12), 2 words of weights and their helpers fill the 16 registers. */
INLINE void gemm_tile(LAYOUT_PARAMS, int nt, const panel *w, const act_block *b, int t0, int64_t n, bool fresh,
                      float f[][16]) {
    const int8_t *q = b->q + t0 * 32;
    const act_group *ag = b->group + t0;
    const uint8_t *code = w->code;
    if (fresh) UNROLL for (int t = 0; t < nt; t++) {
            UNROLL for (int h = 0; h < 2; h++) _mm256_store_ps(f[t0 + t] + 8 * h, _mm256_setzero_ps());
        }
    for (const scales *s = w->scale, *end = s + n / 32; s < end; s++, code += 512, q += b->n * 32, ag += b->n) {
        UNROLL for (int i = 0; i < UNITS(group); i++) {
            __m256i acc[TILE][2];
            dot_unit(LAYOUT_ARGS, false, nt, i, _mm256_setzero_si256(), code, s, q, ag, acc);
            UNROLL for (int t = 0; t < nt; t++) {
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256 v = _mm256_load_ps(f[t0 + t] + 8 * h);
                    add_unit(mins, group, i, h, s, ag + t, acc[t][h], &v);
                    _mm256_store_ps(f[t0 + t] + 8 * h, v);
                }
            }
        }
    }
}

/* f (16) += column col of group g of the panel times x. */
INLINE void panel_outlier(LAYOUT_PARAMS, const panel *w, int64_t g, int col, float x, float f[16]) {
    const scales *s = &w->scale[g];
    const int part = col / 16, i = col / UNIT(group);
    (void)two_level;
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i u = load_i(w->code + (g * 8 + col / 4) * 64 + 32 * h);
        __m256 value, scale = _mm256_mul_ps(s->w[i][h], _mm256_set1_ps((float)raised(bits, group, codebook, zero)));
        u = _mm256_srl_epi32(u, _mm_cvtsi32_si128(col % 4 * 8));
        u = is_signed(bits, codebook)
                ? _mm256_srai_epi32(_mm256_slli_epi32(u, 24), 24)
                : _mm256_sub_epi32(_mm256_and_si256(u, _mm256_set1_epi32(255)), _mm256_set1_epi32(zero));
        if (SC_IN_SUMS(group)) u = _mm256_mullo_epi32(u, _mm256_srai_epi32(s->sc[part][h], 16));
        value = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(u));
        if (mins && SC_IN_SUMS(group)) {
            __m256i mn = _mm256_srai_epi32(part ? s->pair[h] : _mm256_slli_epi32(s->pair[h], 16), 16);
            value = _mm256_fmadd_ps(s->m[i][h], _mm256_cvtepi32_ps(mn), value);
        } else if (mins)
            value = _mm256_add_ps(value, s->m[i][h]);
        _mm256_store_ps(f + 8 * h, _mm256_fmadd_ps(value, _mm256_set1_ps(x), _mm256_load_ps(f + 8 * h)));
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
