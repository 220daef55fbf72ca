/* AVX-512 VNNI: register tiles of up to 8 rows and 4 panels. Each step loads the panels' weights and broadcasts four
 * inputs (f32: one) of every row, so that nothing is shuffled and no row is copied. */
#include <immintrin.h>

#include "cpu/inline.h"
#define AFFINE_NAME(name) name##_avx512
#include "cpu/affine_plain.h"

#define WIDE 4 /* panels of the widest tile, for few rows */

/* One tile: nt rows that begin at x[t], np panels. */
typedef struct tile {
    const affine_gemm *g;
    const char *x[AFFINE_TILE];
    const char *w; /* first panel */
    int64_t panel; /* bytes */
    int64_t row, channel;
} tile;

INLINE __m512i times_fixed(__m512i v, __m512i fix, __m512i shift) {
    const __m512i zero = _mm512_setzero_si512(), round = _mm512_set1_epi64(1 << 30);
    __m512i left = _mm512_max_epi32(shift, zero), right = _mm512_sub_epi32(zero, _mm512_min_epi32(shift, zero));
    __m512i half[2];
    UNROLL for (int i = 0; i < 2; i++) { /* even, odd lanes in 64 bits */
        __m512i x = i ? _mm512_srai_epi64(v, 32) : _mm512_srai_epi64(_mm512_slli_epi64(v, 32), 32);
        __m512i l = i ? _mm512_srli_epi64(left, 32) : _mm512_and_si512(left, _mm512_set1_epi64(0xffffffff));
        x = _mm512_sllv_epi64(x, l);
        x = _mm512_min_epi64(_mm512_max_epi64(x, _mm512_set1_epi64(INT32_MIN)), _mm512_set1_epi64(INT32_MAX));
        __m512i f = i ? _mm512_srli_epi64(fix, 32) : fix;
        half[i] = _mm512_srai_epi64(_mm512_add_epi64(_mm512_mul_epi32(x, f), round), 31);
    }
    __m512i high = _mm512_mask_blend_epi32(0xaaaa, half[0], _mm512_slli_epi64(half[1], 32));
    __m512i mask = _mm512_sub_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), right), _mm512_set1_epi32(1));
    __m512i limit = _mm512_sub_epi32(_mm512_srli_epi32(mask, 1), _mm512_srai_epi32(high, 31));
    __mmask16 up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(high, mask), limit);
    __m512i low = _mm512_srav_epi32(high, right);
    return _mm512_mask_add_epi32(low, up, low, _mm512_set1_epi32(1));
}

INLINE void store_q8(const affine_epilogue *e, __m512i v, int64_t c, __mmask16 m, uint8_t *y) {
    __m512i zero = _mm512_set1_epi32(e->zero), lo = _mm512_set1_epi32(e->lo), hi = _mm512_set1_epi32(e->hi);
    if (e->fixed) {
        v = times_fixed(v, _mm512_loadu_si512(e->fix + c), _mm512_loadu_si512(e->shift + c));
        /* v + zero might wrap: clamp v by the limits less zero */
        v = _mm512_max_epi32(_mm512_min_epi32(v, _mm512_sub_epi32(hi, zero)), _mm512_sub_epi32(lo, zero));
        _mm_mask_storeu_epi8(y, m, _mm512_cvtepi32_epi8(_mm512_add_epi32(v, zero)));
        return;
    }
    __m512 f =
        _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(v), _mm512_loadu_ps(e->add + c)), _mm512_loadu_ps(e->mult + c));
    f = _mm512_max_ps(_mm512_min_ps(f, _mm512_set1_ps(512)), _mm512_set1_ps(-512)); /* what int32 can hold */
    v = _mm512_add_epi32(_mm512_cvtps_epi32(f), zero);
    v = _mm512_min_epi32(_mm512_max_epi32(v, lo), hi);
    _mm_mask_storeu_epi8(y, m, _mm512_cvtepi32_epi8(v));
}

/* 16 accumulators of row r, channels c.. */
INLINE void finish_panel(const affine_gemm *g, __m512i acc, int64_t r, int64_t c) {
    const affine_epilogue *e = g->epi;
    __mmask16 m = mask_of(g->channels - c);
    __m512i v = _mm512_add_epi32(acc, _mm512_loadu_si512(e->offset + c));
    if (e->row_zero)
        v = _mm512_sub_epi32(v, _mm512_mullo_epi32(_mm512_set1_epi32(e->row_zero[r]), _mm512_loadu_si512(e->wsum + c)));
    int64_t at = r * g->ldy + c;
    if (e->output == LLMQ_OUT_Q8) {
        store_q8(e, v, c, m, (uint8_t *)g->y + at);
    } else if (e->output == LLMQ_OUT_F32) {
        __m512 k = _mm512_loadu_ps(e->mult + c);
        if (e->row_scale) k = _mm512_mul_ps(k, _mm512_set1_ps(e->row_scale[r]));
        __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), k, _mm512_loadu_ps(e->add + c));
        if (e->relu) f = _mm512_max_ps(_mm512_setzero_ps(), f);
        _mm512_mask_storeu_ps((float *)g->y + at, m, f);
    } else {
        _mm512_mask_storeu_epi32((int32_t *)g->y + at, m, v);
    }
}

INLINE void tile_q8(int nt, int np, const tile *t) {
    const affine_rows *m = &t->g->rows;
    int64_t seg4 = (m->seg_len + AFFINE_K - 1) / AFFINE_K;
    const char *w = t->w;
    __m512i f[AFFINE_TILE][WIDE];
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int p = 0; p < np; p++) f[i][p] = _mm512_setzero_si512();
    }
    for (int64_t s = 0; s < m->n_seg; s++) {
        const char *x[AFFINE_TILE];
        UNROLL for (int i = 0; i < nt; i++) x[i] = t->x[i] + m->seg_off[s];
        for (int64_t k = 0; k < seg4; k++, w += 64) {
            __m512i v[WIDE];
            UNROLL for (int p = 0; p < np; p++) v[p] = _mm512_loadu_si512(w + p * t->panel);
            UNROLL for (int i = 0; i < nt; i++) {
                int32_t four;
                memcpy(&four, x[i] + 4 * k, 4);
                __m512i a = _mm512_set1_epi32(four);
                UNROLL for (int p = 0; p < np; p++) f[i][p] = _mm512_dpbusd_epi32(f[i][p], a, v[p]);
            }
        }
    }
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int p = 0; p < np; p++) finish_panel(t->g, f[i][p], t->row + i, t->channel + p * AFFINE_PANEL);
    }
}

INLINE void tile_f32(int nt, int np, const tile *t) {
    const affine_rows *m = &t->g->rows;
    const char *w = t->w;
    __m512 f[AFFINE_TILE][WIDE];
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int p = 0; p < np; p++) f[i][p] = _mm512_setzero_ps();
    }
    for (int64_t s = 0; s < m->n_seg; s++) {
        const float *x[AFFINE_TILE];
        UNROLL for (int i = 0; i < nt; i++) x[i] = (const float *)t->x[i] + m->seg_off[s];
        for (int64_t k = 0; k < m->seg_len; k++, w += 64) {
            __m512 v[WIDE];
            UNROLL for (int p = 0; p < np; p++) v[p] = _mm512_loadu_ps(w + p * t->panel);
            UNROLL for (int i = 0; i < nt; i++) {
                __m512 a = _mm512_set1_ps(x[i][k]);
                UNROLL for (int p = 0; p < np; p++) f[i][p] = _mm512_fmadd_ps(a, v[p], f[i][p]);
            }
        }
    }
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int p = 0; p < np; p++) {
            int64_t c = t->channel + p * AFFINE_PANEL;
            __m512 y = _mm512_add_ps(f[i][p], _mm512_loadu_ps(t->g->bias + c));
            if (t->g->relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);
            _mm512_mask_storeu_ps((float *)t->g->y + (t->row + i) * t->g->ldy + c, mask_of(t->g->channels - c), y);
        }
    }
}

typedef void tile_fn(const tile *t);
/* clang-format off */
#define TILES(Y, kind)                                                                                                 \
    Y(kind, 1, 1) Y(kind, 2, 1) Y(kind, 3, 1) Y(kind, 4, 1) Y(kind, 5, 1) Y(kind, 6, 1) Y(kind, 7, 1) Y(kind, 8, 1)    \
    Y(kind, 1, 2) Y(kind, 2, 2) Y(kind, 3, 2) Y(kind, 4, 2) Y(kind, 5, 2) Y(kind, 6, 2) Y(kind, 7, 2) Y(kind, 8, 2)    \
    Y(kind, 1, 4) Y(kind, 2, 4) Y(kind, 3, 4) Y(kind, 4, 4)
/* clang-format on */
#define TILE_DEFINE(kind, nt, np)                                                                                      \
    static void kind##_##nt##_##np(const tile *t) {                                                                    \
        tile_##kind(nt, np, t);                                                                                        \
    }
#define TILE_NAME(kind, nt, np) [np][nt] = kind##_##nt##_##np,
TILES(TILE_DEFINE, q8)
TILES(TILE_DEFINE, f32)
static tile_fn *const q8_fns[WIDE + 1][AFFINE_TILE + 1] = {TILES(TILE_NAME, q8)};
static tile_fn *const f32_fns[WIDE + 1][AFFINE_TILE + 1] = {TILES(TILE_NAME, f32)};

/* All tiles of this worker: blocks of rows, then panels, then tiles, so that a panel's weights stay in the L1 cache. */
INLINE void gemm(const llmq_worker *w, const affine_gemm *g, int64_t elem, int64_t panel,
                 tile_fn *const fns[][AFFINE_TILE + 1]) {
    affine_share part = affine_deal(w, g);
    int64_t begin[AFFINE_BLOCK];
    for (int64_t r0 = part.row; r0 < part.row_end; r0 += AFFINE_BLOCK) {
        int64_t n = part.row_end - r0 < AFFINE_BLOCK ? part.row_end - r0 : AFFINE_BLOCK;
        affine_begins(&g->rows, r0, n, begin);
        for (int64_t c = part.channel, np; c < part.channel_end; c += np * AFFINE_PANEL) {
            int64_t left = (part.channel_end - c + AFFINE_PANEL - 1) / AFFINE_PANEL;
            np = left >= 4 && n <= 4 ? 4 : left >= 2 ? 2 : 1;
            tile t = {.g = g, .w = (const char *)g->w + c / AFFINE_PANEL * panel, .panel = panel, .channel = c};
            for (int64_t i = 0; i < n; i += AFFINE_TILE) {
                int64_t nt = n - i < AFFINE_TILE ? n - i : AFFINE_TILE;
                for (int64_t k = 0; k < nt; k++) t.x[k] = (const char *)g->rows.x + begin[i + k] * elem;
                t.row = r0 + i;
                fns[np][nt](&t);
            }
        }
    }
}

static void gemm_q8_avx512(const llmq_worker *w, const affine_gemm *g) {
    int64_t seg4 = (g->rows.seg_len + AFFINE_K - 1) / AFFINE_K;
    gemm(w, g, 1, g->rows.n_seg * seg4 * 64, q8_fns);
}
static void gemm_f32_avx512(const llmq_worker *w, const affine_gemm *g) {
    gemm(w, g, 4, g->rows.n_seg * g->rows.seg_len * 64, f32_fns);
}

void cpu_fill_affine_avx512(affine_ops *ops) {
    fill_avx512(ops);
    ops->gemm_q8 = gemm_q8_avx512;
    ops->gemm_f32 = gemm_f32_avx512;
}
