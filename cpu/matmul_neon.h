/* NEON kernels for the interleaved quantized layouts (layout.h), which matmul_neon.c and matmul_dotprod.c compile with
 * DOTPROD as 0 and 1: the twins of matmul_256.h.
 *
 * dot_neon.h multiplies signed bytes. Codes of up to 6 bits and levels of codebooks are such; codes of 8 bits become
 * them by turning over the top bit. A register holds 4 of the 16 rows of a word, a quarter; the quarters of a group
 * come one after the other, so that the sums of several tokens and their activations stay in registers. */
#ifndef LLMQ_CPU_MATMUL_NEON_H
#define LLMQ_CPU_MATMUL_NEON_H

#include <arm_neon.h>

#include "cpu/dense.h"
#include "cpu/dot_neon.h"
#include "cpu/int8.h"
#include "cpu/nf4.h"

#define TILE (DOTPROD ? 6 : 3)    /* rows of a register tile; divides ACT_BLOCK */
#define AT_ONCE (DOTPROD ? 4 : 2) /* tokens of a product without a panel */
typedef uint8x16_t code_vec;
#include "cpu/matmul_parts.h"

INLINE float32x4_t load_half4(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
/* 16 signed bytes. */
INLINE void load_sc16(const uint8_t *p, float32x4_t out[4]) {
    int8x16_t b = vld1q_s8((const int8_t *)p);
    int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
    out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
    out[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
    out[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
}

/* ---- codes of 4 rows (p: their quarter of the group's first vector) */

INLINE uint8x16_t plane_bits(uint8x16_t plane, int from, int to, int mask) {
    uint8x16_t v = plane;
    if (from > to) v = plane >> (from - to);
    if (from < to) v = plane << (to - from);
    return vandq_u8(v, vdupq_n_u8((uint8_t)(mask << to)));
}

/* Word j: byte b = code of column 4j + b; for 8 bits and codebooks its level. */
INLINE int8x16_t word(int bits, bool codebook, uint8x16_t table, const uint8_t *p, int j) {
    const uint8x16_t low = vdupq_n_u8(15);
    const uint8_t *planes = bits >= 4 ? p + 256 : p; /* of two bits, then of one */
    uint8x16_t u = vdupq_n_u8(0);
    if (bits == 8) u = veorq_u8(vld1q_u8(p + 64 * j), vdupq_n_u8(0x80));
    if (bits >= 4 && bits < 8) u = j < 4 ? vandq_u8(vld1q_u8(p + 64 * j), low) : vld1q_u8(p + 64 * (j - 4)) >> 4;
    if (bits == 6 || bits <= 3)
        u = vorrq_u8(u, plane_bits(vld1q_u8(planes + 64 * (j & 1)), j / 2 * 2, bits == 6 ? 4 : 0, 3));
    if (bits == 5 || bits == 3) u = vorrq_u8(u, plane_bits(vld1q_u8(planes + (bits == 3 ? 128 : 0)), j, bits - 1, 1));
    return vreinterpretq_s8_u8(codebook ? vqtbl1q_u8(table, u) : u);
}

static uint8x16_t code_table(const cpu_layout *l) {
    uint8_t table[16] = {0};
    for (int i = 0; l->codebook && i < 16; i++) table[i] = (uint8_t)(int)type_info(l->type)->levels[i];
    return vld1q_u8(table);
}

INLINE bool is_signed(int bits, bool codebook) {
    return bits == 8 || codebook;
}

/* Words whose products of one column add up exactly in 16 bits, of a part's: activations are 127 at most. */
INLINE int exact_words(int bits, bool codebook, int words) {
    int most = is_signed(bits, codebook) ? 2 : bits <= 5 ? 8 : 4;
    return most < words ? most : words;
}

/* Start value of an integer sum: act_group's, scaled from 128 to the zero point of unsigned codes. */
INLINE sums start_of(int bits, bool codebook, int zero, int32_t start) {
    return sums_start(is_signed(bits, codebook) || zero == 0 ? 0 : start >> (7 - log2_of(zero)));
}

/* act_group's start value, of part i of a group. */
INLINE int32_t part_start(int group, const act_group *ag, int i) {
    return group == 32 ? ag->start : -128 * ag->sum[i];
}

/* The activations of a part of a group, of nt tokens. */
INLINE void load_x(int group, int nt, const int8_t *q, int8x16_t x[][2]) {
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < group / 16; i++) x[t][i] = vld1q_s8(q + 32 * t + 16 * i);
    }
}

/* acc[t] += part i of a group of 4 rows times x[t]. Words that come from the same bytes follow each other. */
INLINE void dot_part(int bits, int group, bool codebook, int nt, int i, uint8x16_t table, const uint8_t *p,
                     int8x16_t x[][2], sums acc[]) {
    const int words = group / 4, exact = exact_words(bits, codebook, words);
    UNROLL for (int k = 0; k < words; k++) {
        const int j = words == 8 ? k / 2 + k % 2 * 4 : k;
        int8x16_t u = word(bits, codebook, table, p, words == 8 ? j : 4 * i + k);
        UNROLL for (int t = 0; t < nt; t++) add_word(exact, k, u, x[t][j / 4], j % 4, &acc[t]);
    }
}

/* ---- scales of 16 rows, in quarters */

typedef struct super_scale {
    float32x4_t d[4], dmin[4];
} super_scale;

INLINE void load_super(bool mins, const uint8_t *p, super_scale *s) {
    UNROLL for (int h = 0; h < 4; h++) {
        s->d[h] = load_half4(p + 8 * h);
        if (mins) s->dmin[h] = vnegq_f32(load_half4(p + 32 + 8 * h));
    }
}

/* w[i][h], m[i][h]: scale and offset of quarter h of the rows, for the group of 32 (i = 0) whose own scales are at p,
 * or its parts where group is 16. */
INLINE void load_scales(int group, bool two_level, bool mins, const uint8_t *p, const super_scale *s,
                        float32x4_t w[2][4], float32x4_t m[2][4]) {
    if (!two_level) {
        UNROLL for (int h = 0; h < 4; h++) {
            w[0][h] = load_half4(p + 8 * h);
            if (mins) m[0][h] = load_half4(p + 32 + 8 * h);
        }
        return;
    }
    UNROLL for (int i = 0; i < 32 / group; i++) {
        load_sc16(p, w[i]);
        if (mins) load_sc16(p + 16, m[i]);
        UNROLL for (int h = 0; h < 4; h++) {
            w[i][h] = vmulq_f32(w[i][h], s->d[h]);
            if (mins) m[i][h] = vmulq_f32(m[i][h], s->dmin[h]);
        }
        p += mins ? 32 : 16;
    }
}

/* The same for groups one after the other, of which the first begins a run: s is kept from one to the next. */
INLINE void next_scales(int group, bool two_level, bool mins, const uint8_t *tile, const layout_place *at,
                        super_scale *s, float32x4_t w[2][4], float32x4_t m[2][4]) {
    if (two_level && at->first) load_super(mins, tile + at->super, s);
    load_scales(group, two_level, mins, tile + at->scale, s, w, m);
}

/* ---- outliers */

/* Levels of column `col` of a group, of 4 rows (p: their quarter of the group's first vector). */
INLINE int32x4_t level_at(int bits, bool codebook, int zero, uint8x16_t table, const uint8_t *p, int col) {
    const uint8_t *planes = bits >= 4 ? p + 256 : p;
    const int j = col / 4, from = col % 4 * 8; /* its word, and where its bits begin there */
    uint32x4_t u = vdupq_n_u32(0);
#define BITS(vector, at, mask) vandq_u32(vreinterpretq_u32_u8(vld1q_u8(vector)) >> (from + (at)), vdupq_n_u32(mask))
    if (bits == 8) u = BITS(p + 64 * j, 0, 255);
    if (bits >= 4 && bits < 8) u = BITS(p + 64 * (j % 4), j / 4 * 4, 15);
    if (bits == 6) u = vorrq_u32(u, BITS(planes + 64 * (j % 2), j / 2 * 2, 3) << 4);
    if (bits <= 3) u = BITS(planes + 64 * (j % 2), j / 2 * 2, 3);
    if (bits == 5) u = vorrq_u32(u, BITS(planes, j, 1) << 4);
    if (bits == 3) u = vorrq_u32(u, BITS(planes + 128, j, 1) << 2);
#undef BITS
    if (!codebook) return vsubq_s32(vreinterpretq_s32_u32(u), vdupq_n_s32(zero));
    u = vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(u)));
    return vreinterpretq_s32_u32(u << 24) >> 24;
}

/* out (nt, 16) += 16 rows of the tile times the outliers of rows t0 .. t0+nt of the block, whose other inputs have
 * been there before. */
INLINE void outliers_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t cols, uint8x16_t table, const act_block *b,
                          int t0, int nt, float out[][16]) {
    const int64_t end = cols / 32 * b->n;
    for (int64_t i = act_next_outlier(b, 0, end); i < end; i = act_next_outlier(b, i + 1, end)) {
        const int64_t g = i / b->n, t = i - g * b->n - t0;
        if (t < 0 || t >= nt) continue;
        const layout_place at = layout_at(bits, group, two_level, mins, g);
        super_scale super = {0};
        float32x4_t w[2][4], m[2][4];
        const int col = b->outlier_at[i], part = group == 16 ? col / 16 : 0;
        if (two_level) load_super(mins, tile + at.super, &super);
        load_scales(group, two_level, mins, tile + at.scale, &super, w, m);
        UNROLL for (int h = 0; h < 4; h++) {
            int32x4_t level = level_at(bits, codebook, zero, table, tile + at.code + 16 * h, col);
            float32x4_t value = vmulq_f32(w[part][h], vcvtq_f32_s32(level));
            if (mins) value = vaddq_f32(value, m[part][h]);
            vst1q_f32(out[t] + 4 * h, vfmaq_n_f32(vld1q_f32(out[t] + 4 * h), value, b->outlier[i]));
        }
    }
}

/* ---- few tokens */

/* out (nt, 16) = 16 rows of the tile times rows t0 .. t0+nt of the block. */
INLINE void gemv_tile(LAYOUT_PARAMS, int nt, const uint8_t *tile, int64_t cols, uint8x16_t table, const act_block *b,
                      int t0, float out[AT_ONCE][16]) {
    const int64_t group_bytes = LAYOUT_GROUP_BYTES(bits, group, two_level, mins);
    super_scale super = {0};
    float32x4_t f[AT_ONCE][4];
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int h = 0; h < 4; h++) f[t][h] = vdupq_n_f32(0);
    }
    for (int64_t g = 0; g < cols / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, g);
        const uint8_t *p = tile + at.code;
        float32x4_t w[2][4], m[2][4];
        fetch_ahead(tile + g * group_bytes, group_bytes);
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        const int8_t *q = b->q + (g * b->n + t0) * 32;
        const act_group *ag = b->group + g * b->n + t0;
        UNROLL for (int i = 0; i < 32 / group; i++) {
            int8x16_t x[AT_ONCE][2];
            load_x(group, nt, q + 16 * i, x);
            UNROLL for (int h = 0; h < 4; h++) {
                sums acc[AT_ONCE];
                UNROLL for (int t = 0; t < nt; t++) acc[t] =
                    start_of(bits, codebook, zero, part_start(group, ag + t, i));
                dot_part(bits, group, codebook, nt, i, table, p + 16 * h, x, acc);
                UNROLL for (int t = 0; t < nt; t++) {
                    float32x4_t scale = vmulq_n_f32(w[i][h], ag[t].d);
                    f[t][h] = vfmaq_f32(f[t][h], vcvtq_f32_s32(sums_rows(&acc[t])), scale);
                    if (mins) f[t][h] = vfmaq_n_f32(f[t][h], m[i][h], part_dsum(group, ag + t, i));
                }
            }
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int h = 0; h < 4; h++) vst1q_f32(out[t] + 4 * h, f[t][h]);
    }
}

/* ---- many tokens */

/* 16 rows of weights ready for the register tile. */
typedef struct panel {
    _Alignas(64) uint8_t code[PANEL_COLS / 4 * 64];        /* (words, 64) */
    _Alignas(64) float scale[PANEL_COLS / 16][PANEL_ROWS]; /* per group */
    _Alignas(64) float offset[PANEL_COLS / 16][PANEL_ROWS];
} panel;

/* Columns k0 .. k0+n of one tile. */
INLINE void unpack_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t k0, int64_t n, uint8x16_t table, panel *out) {
    super_scale super = {0};
    int parts = 32 / group;
    (void)zero;
    for (int64_t g = 0; g < n / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, k0 / 32 + g);
        const uint8_t *p = tile + at.code;
        float32x4_t w[2][4], m[2][4];
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        UNROLL for (int h = 0; h < 4; h++) {
            UNROLL for (int j = 0; j < 8; j++) vst1q_u8(
                out->code + (g * 8 + j) * 64 + 16 * h, vreinterpretq_u8_s8(word(bits, codebook, table, p + 16 * h, j)));
            UNROLL for (int i = 0; i < parts; i++) {
                vst1q_f32(&out->scale[g * parts + i][4 * h], w[i][h]);
                if (mins) vst1q_f32(&out->offset[g * parts + i][4 * h], m[i][h]);
            }
        }
    }
}

/* f (rows, 16) += panel x nt rows of the block from t0 on, over n columns; fresh: f begins at 0. A quarter of the rows
 * at a time, so that its floats stay in registers. */
INLINE void gemm_tile(LAYOUT_PARAMS, int nt, const panel *w, const act_block *b, int t0, int64_t n, bool fresh,
                      float f[][16]) {
    const int parts = 32 / group, words = group / 4, exact = exact_words(bits, codebook, words);
    (void)two_level;
    for (int h = 0; h < 4; h++) {
        const uint8_t *code = w->code + 16 * h;
        float32x4_t v[TILE];
        UNROLL for (int t = 0; t < nt; t++) v[t] = fresh ? vdupq_n_f32(0) : vld1q_f32(f[t0 + t] + 4 * h);
        for (int64_t s = 0; s < n / group; s++, code += words * 64) { /* s counts parts */
            const act_group *ag = b->group + s / parts * b->n + t0;
            const int part = (int)(s % parts);
            float32x4_t scale = vld1q_f32(w->scale[s] + 4 * h);
            int8x16_t x[TILE][2];
            sums acc[TILE];
            load_x(group, nt, b->q + (s / parts * b->n + t0) * 32 + part * 16, x);
            UNROLL for (int t = 0; t < nt; t++) acc[t] =
                start_of(bits, codebook, zero, part_start(group, ag + t, part));
            UNROLL for (int k = 0; k < words; k++) {
                int8x16_t u = vreinterpretq_s8_u8(vld1q_u8(code + k * 64));
                UNROLL for (int t = 0; t < nt; t++) add_word(exact, k, u, x[t][k / 4], k % 4, &acc[t]);
            }
            UNROLL for (int t = 0; t < nt; t++) {
                v[t] = vfmaq_f32(v[t], vcvtq_f32_s32(sums_rows(&acc[t])), vmulq_n_f32(scale, ag[t].d));
                if (mins) v[t] = vfmaq_n_f32(v[t], vld1q_f32(w->offset[s] + 4 * h), part_dsum(group, ag + t, part));
            }
        }
        UNROLL for (int t = 0; t < nt; t++) vst1q_f32(f[t0 + t] + 4 * h, v[t]);
    }
}

/* f (16) += column col of group g of the panel times x. */
INLINE void panel_outlier(LAYOUT_PARAMS, const panel *w, int64_t g, int col, float x, float f[16]) {
    const int64_t s = group == 16 ? 2 * g + col / 16 : g;
    (void)two_level;
    UNROLL for (int h = 0; h < 4; h++) {
        uint32x4_t u = vreinterpretq_u32_u8(vld1q_u8(w->code + (g * 8 + col / 4) * 64 + 16 * h));
        int32x4_t level = vreinterpretq_s32_u32(u << (24 - col % 4 * 8)) >> 24; /* unsigned codes are below 128 */
        if (!is_signed(bits, codebook)) level = vsubq_s32(level, vdupq_n_s32(zero));
        float32x4_t value = vmulq_f32(vld1q_f32(w->scale[s] + 4 * h), vcvtq_f32_s32(level));
        if (mins) value = vaddq_f32(value, vld1q_f32(w->offset[s] + 4 * h));
        vst1q_f32(f + 4 * h, vfmaq_n_f32(vld1q_f32(f + 4 * h), value, x));
    }
}

#include "cpu/matmul_drive.h"

/* ---- any number */

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout == LAYOUT_INT8)
        DOT_NAME(int8_matmul)(worker, w, a, y, ldy);
    else if (w->layout == LAYOUT_NF4 && a->n_tok <= FEW)
        nf4_few_neon(worker, w, a, y, ldy);
    else if (!cpu_layout_of(w->layout))
        dense_matmul_neon(worker, w, a, y, ldy);
    else if (a->n_tok <= FEW)
        matmul_few(worker, w, a, y, ldy);
    else
        matmul_many(worker, w, a, y, ldy);
}

#endif
