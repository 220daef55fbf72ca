/* The way of a few tokens through packed weights, for the kernels of AVX-512 and of tiles: 16 rows at a time. */
#ifndef LLMQ_CPU_FEW_AVX512_H
#define LLMQ_CPU_FEW_AVX512_H

#include <immintrin.h>

#include "cpu/codes_avx512.h"
#include "cpu/inline.h"
#include "cpu/layout.h"

/* Codes of Q4_0 stay in the upper half of their byte, 16 times as large: -128 * sum, which comes with the activations,
 * is then where their sums start, without a shift for each token. The scales make up for it. */
#define RAISED(bits, zero) ((bits) == 4 && (zero) == 8)

INLINE void decode_raised(int bits, bool use_table, int zero, __m512i table, const uint8_t *p, __m512i u[8]) {
    if (!RAISED(bits, zero)) {
        decode(bits, use_table, table, p, u);
        return;
    }
    const __m512i high = _mm512_set1_epi8((char)0xf0);
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i raw = load_once(p + 64 * j);
        u[j] = _mm512_and_si512(_mm512_slli_epi16(raw, 4), high);
        u[j + 4] = _mm512_and_si512(raw, high);
    }
}

INLINE __m512 scale_raised(int bits, int zero, __m512 scale) {
    return RAISED(bits, zero) ? _mm512_mul_ps(scale, _mm512_set1_ps(1.0f / 16)) : scale;
}

/* ---- outliers */

/* Levels of column `col` of a group, of 16 rows; table: that of code_table. */
INLINE __m512i level_at(int bits, bool codebook, int zero, __m512i table, const uint8_t *p, int col) {
    const uint8_t *planes = bits >= 4 ? p + 256 : p;
    const int j = col / 4, from = col % 4 * 8; /* its word, and where its bits begin there */
    __m512i u = _mm512_setzero_si512();
#define BITS(vector, at, mask)                                                                                         \
    _mm512_and_si512(_mm512_srlv_epi32(load_i(vector), _mm512_set1_epi32(from + (at))), _mm512_set1_epi32(mask))
    if (bits == 8) u = BITS(p + 64 * j, 0, 255);
    if (bits >= 4 && bits < 8) u = BITS(p + 64 * (j % 4), j / 4 * 4, 15);
    if (bits == 6) u = _mm512_or_si512(u, _mm512_slli_epi32(BITS(planes + 64 * (j % 2), j / 2 * 2, 3), 4));
    if (bits <= 3) u = BITS(planes + 64 * (j % 2), j / 2 * 2, 3);
    if (bits == 5) u = _mm512_or_si512(u, _mm512_slli_epi32(BITS(planes, j, 1), 4));
    if (bits == 3) u = _mm512_or_si512(u, _mm512_slli_epi32(BITS(planes + 128, j, 1), 2));
#undef BITS
    if (codebook) u = _mm512_and_si512(_mm512_permutexvar_epi8(u, table), _mm512_set1_epi32(255));
    return _mm512_sub_epi32(u, _mm512_set1_epi32(zero));
}

/* out[t] += 16 rows of the tile times the outliers of row t of the block. */
INLINE void outliers_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t cols, __m512i table, const act_block *b,
                          __m512 *out) {
    const int64_t end = cols / 32 * b->n;
    for (int64_t i = act_next_outlier(b, 0, end); i < end; i = act_next_outlier(b, i + 1, end)) {
        const int64_t g = i / b->n, t = i - g * b->n, first = two_level ? g / 8 * 8 : g;
        scale_walk walk = scales_from(LAYOUT_ARGS, tile, cols, first * 32);
        __m512 w[2], m[2];
        const int col = b->outlier_at[i], part = group == 16 ? col / 16 : 0;
        next_scales(group, two_level, mins, &walk, first, w, m);
        if (g > first) {
            walk.p += (g - first - 1) * LAYOUT_PART_BYTES(group, mins);
            next_scales(group, two_level, mins, &walk, g, w, m);
        }
        __m512i level = level_at(bits, codebook, zero, table, tile + g * bits * 64, col);
        __m512 value = _mm512_mul_ps(w[part], _mm512_cvtepi32_ps(level));
        if (mins) value = _mm512_add_ps(value, m[part]);
        out[t] = _mm512_fmadd_ps(value, _mm512_set1_ps(b->outlier[i]), out[t]);
    }
}

/* ---- 16 rows at a time */

/* out[t] = 16 rows of the tile times row t of the block, all of its at most ACT_FEW rows, without or
 * with their outliers (then table is code_table's). The block goes by
 * address: a copy of it for each tile had its parts stored and loaded in other sizes, which waits until the tile before
 * is done. */
typedef void few_fn(const uint8_t *tile, int64_t cols, __m512i table, const act_block *b, __m512 *out);

#define FEW_FN(type, ...) [LAYOUT_##type] = few_##type, /* of a table by layout */

#define X(type, ...)                                                                                                   \
    static void outliers_##type(const uint8_t *tile, int64_t cols, __m512i table, const act_block *b, __m512 *out) {   \
        outliers_tile(__VA_ARGS__, tile, cols, table, b, out);                                                         \
    }
CPU_LAYOUTS(X)
#undef X

static few_fn *const outliers_fns[LAYOUT_BF16] = {
#define X(type, ...) [LAYOUT_##type] = outliers_##type,
    CPU_LAYOUTS(X)
#undef X
};

/* table: for fn; codes: code_table's. */
static inline void few_rows(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, few_fn *fn,
                            __m512i table, __m512i codes, float *y, int64_t ldy) {
    int64_t tile_bytes = layout_tile_bytes(cpu_layout_of(w->layout), w->cols), begin, end;
    const int parts = act_parts(w->act), n_tok = (int)a->n_tok;
    act_block b = act_block_at(a, parts * a->n_tok, 0);
    for (worker_share s = worker_share_begin(worker, w->rows, 16); worker_share_next(&s, &begin, &end);) {
        for (int64_t r = begin; r < end; r += 16) {
            __mmask16 mask = mask_of(w->rows - r);
            __m512 bias = w->bias ? _mm512_maskz_loadu_ps(mask, w->bias + r) : _mm512_setzero_ps(), out[ACT_FEW];
            const uint8_t *tile = (const uint8_t *)w->packed + r / 16 * tile_bytes;
            fn(tile, w->cols, table, &b, out);
            outliers_fns[w->layout](tile, w->cols, codes, &b, out);
            for (int t = n_tok; t < b.n; t++) out[t - n_tok] = _mm512_add_ps(out[t - n_tok], out[t]);
            for (int t = 0; t < n_tok; t++) _mm512_mask_storeu_ps(y + t * ldy + r, mask, _mm512_add_ps(out[t], bias));
        }
    }
}

#endif
