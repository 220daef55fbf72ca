/* The way of a few tokens through packed weights, for the kernels of AVX-512 and of tiles: one or two tiles of 16 rows
 * at a time. */
#ifndef LLMQ_CPU_FEW_AVX512_H
#define LLMQ_CPU_FEW_AVX512_H

#include <immintrin.h>

#include "cpu/codes_avx512.h"
#include "cpu/cpu.h"
#include "cpu/fetch.h"
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

/* out[t] += 16 rows of the tile times the outliers of row t of the block, the first of which is at place `first`. */
INLINE void outliers_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t cols, __m512i table, const act_block *b,
                          int64_t first, __m512 *out) {
    const int64_t end = cols / 32 * b->n;
    for (int64_t i = first; i < end; i = act_next_outlier(b, i + 1, end)) {
        const int64_t g = i / b->n, t = i - g * b->n;
        const layout_place at = layout_at(bits, group, two_level, mins, g);
        super_scale super = {0};
        __m512 w[2], m[2];
        const int col = b->outlier_at[i], part = group == 16 ? col / 16 : 0;
        if (two_level) load_super(mins, tile + at.super, &super);
        load_scales(group, two_level, mins, tile + at.scale, &super, w, m);
        __m512i level = level_at(bits, codebook, zero, table, tile + at.code, col);
        __m512 value = _mm512_mul_ps(w[part], _mm512_cvtepi32_ps(level));
        if (mins) value = _mm512_add_ps(value, m[part]);
        out[t] = _mm512_fmadd_ps(value, _mm512_set1_ps(b->outlier[i]), out[t]);
    }
}

typedef void outliers_fn(const uint8_t *tile, int64_t cols, __m512i table, const act_block *b, int64_t first,
                         __m512 *out);

#define X(type, ...)                                                                                                   \
    static void outliers_##type(const uint8_t *tile, int64_t cols, __m512i table, const act_block *b, int64_t first,   \
                                __m512 *out) {                                                                         \
        outliers_tile(__VA_ARGS__, tile, cols, table, b, first, out);                                                  \
    }
CPU_LAYOUTS(X)
#undef X

static outliers_fn *const outliers_fns[LAYOUT_BF16] = {
#define X(type, ...) [LAYOUT_##type] = outliers_##type,
    CPU_LAYOUTS(X)
#undef X
};

/* ---- one or two tiles at a time */

#define FEW_PARTS 2
#define FEW_LONG (256 << 10) /* bytes of weights that are worth the start of a stream */

/* out[i][t] = 16 rows of tile[i] times row t of the block, all of its at most ACT_FEW rows, without their outliers, for
 * n tiles. fetch: what comes next is asked for (cpu/fetch.h). The block goes by address: a copy of it for each tile had
 * its parts stored and loaded in other sizes, which waits until the tile before is done. */
typedef void few_fn(const uint8_t *const *tile, int n, int64_t cols, __m512i table, const act_block *b, bool fetch,
                    __m512 (*out)[ACT_FEW]);

#define FEW_FN(type, ...) [LAYOUT_##type] = few_##type, /* of a table by layout */

typedef struct few_job {
    const llmq_weight *w;
    int64_t tile_bytes;
    act_block b;
    int64_t outlier; /* place of the first, or after all */
    few_fn *fn;
    __m512i table, codes; /* for fn; code_table's */
    float *y;
    int64_t ldy;
} few_job;

/* n tiles: `first` and those `apart` from each other. */
static inline void few_store(const few_job *job, int64_t first, int64_t apart, int n, bool fetch) {
    const llmq_weight *w = job->w;
    const int rows = job->b.n, n_tok = rows / act_parts(w->act);
    const uint8_t *tile[FEW_PARTS];
    __m512 out[FEW_PARTS][ACT_FEW];
    for (int i = 0; i < n; i++) tile[i] = (const uint8_t *)w->packed + (first + i * apart) * job->tile_bytes;
    job->fn(tile, n, w->cols, job->table, &job->b, fetch, out);
    for (int i = 0; i < n; i++) {
        const int64_t r = (first + i * apart) * 16;
        const __mmask16 mask = mask_of(w->rows - r);
        const __m512 bias = w->bias ? _mm512_maskz_loadu_ps(mask, w->bias + r) : _mm512_setzero_ps();
        outliers_fns[w->layout](tile[i], w->cols, job->codes, &job->b, job->outlier, out[i]);
        for (int t = n_tok; t < rows; t++) out[i][t - n_tok] = _mm512_add_ps(out[i][t - n_tok], out[i][t]);
        for (int t = 0; t < n_tok; t++)
            _mm512_mask_storeu_ps(job->y + t * job->ldy + r, mask, _mm512_add_ps(out[i][t], bias));
    }
}

/* Where streams come alone (cpu.h), long rows of a worker are read in FEW_PARTS parts side by side: the processor goes
 * ahead of each of them, and so twice as far in all. It does not go far enough ahead of several tokens, whose products
 * take their time: these are asked for, as are the pieces that workers share at the end. */
static inline void few_rows(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, few_fn *fn,
                            __m512i table, __m512i codes, float *y, int64_t ldy) {
    const act_block b = act_block_at(a, act_parts(w->act) * a->n_tok, 0);
    const few_job job = {.w = w,
                         .tile_bytes = layout_tile_bytes(cpu_layout_of(w->layout), w->cols),
                         .b = b,
                         .outlier = act_next_outlier(&b, 0, w->cols / 32 * b.n),
                         .fn = fn,
                         .table = table,
                         .codes = codes,
                         .y = y,
                         .ldy = ldy};
    const bool alone = cpu_streams_alone();
    int64_t begin, end;
    for (worker_share s = worker_share_begin(worker, w->rows, 16); worker_share_next(&s, &begin, &end);) {
        const int64_t first = begin / 16, n = (end - begin + 15) / 16, bytes = n * job.tile_bytes;
        const int parts = alone && bytes >= FEW_PARTS * FEW_LONG ? FEW_PARTS : 1;
        const bool fetch = a->n_tok > 1 || !alone || bytes < FEW_LONG;
        for (int64_t i = 0; i < n / parts; i++) few_store(&job, first + i, n / parts, parts, fetch);
        for (int64_t i = n / parts * parts; i < n; i++) few_store(&job, first + i, 0, 1, fetch);
    }
}

#endif
