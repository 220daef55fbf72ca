/* Many tokens by vpdpwssd, which adds pairs of 16-bit products: 6 tokens x 32 rows at a time, 12 integer and 12 float
 * sums in registers. */
#include <immintrin.h>

#include "cpu/inline.h"
#include "cpu/many16.h"
#include "cpu/tile_avx512.h"

/* f (tokens, 2) += panel x nt tokens of the block, over n columns; b points at its first group of them. */
INLINE void gemm_tile(int nt, const panel16 *w, act16_block b, int64_t n, __m512 f[6][2]) {
    const int16_t *q = b.q;
    const float *d = b.d;
    for (int64_t g = 0; g < n / 32; g++, q += nt * 32, d += nt) {
        __m512i acc[6][2];
        UNROLL for (int t = 0; t < nt; t++) acc[t][0] = acc[t][1] = _mm512_setzero_si512();
        UNROLL for (int i = 0; i < 16; i++) {
            __m512i w0 = _mm512_load_si512(w->level[g * 16 + i][0]), w1 = _mm512_load_si512(w->level[g * 16 + i][1]);
            UNROLL for (int t = 0; t < nt; t++) {
                __m512i x = bcast4_reg(q + t * 32 + 2 * i);
                acc[t][0] = _mm512_dpwssd_epi32(acc[t][0], w0, x);
                acc[t][1] = _mm512_dpwssd_epi32(acc[t][1], w1, x);
            }
        }
        __m512 s0 = _mm512_load_ps(w->scale[g]), s1 = _mm512_load_ps(w->scale[g] + 16);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512 dt = _mm512_set1_ps(d[t]);
            f[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][0]), _mm512_mul_ps(s0, dt), f[t][0]);
            f[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][1]), _mm512_mul_ps(s1, dt), f[t][1]);
        }
    }
}

typedef void gemm_fn(const panel16 *w, act16_block b, int64_t n, const tile_out *o);

#define GEMM_WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6)
#define GEMM_DEFINE(nt)                                                                                                \
    static void gemm_##nt(const panel16 *w, act16_block b, int64_t n, const tile_out *o) {                             \
        __m512 f[6][2];                                                                                                \
        tile_begin(nt, o, f);                                                                                          \
        gemm_tile(nt, w, b, n, f);                                                                                     \
        tile_end(nt, o, f);                                                                                            \
    }
#define GEMM_NAME(nt) gemm_##nt,
GEMM_WIDTHS(GEMM_DEFINE)
static gemm_fn *const gemm_fns[ACT_BLOCK] = {GEMM_WIDTHS(GEMM_NAME)};

/* The panel times all tokens: n columns from k on of rows r .. r+32. */
static void times_tokens(const panel16 *p, const llmq_acts *a, const void *q16, int64_t k, int64_t n, int64_t r,
                         tile_out *o, float *y) {
    for (int64_t t = 0; t < a->n_tok; t += ACT_BLOCK) {
        act16_block b = act16_block_at(a, q16, t);
        b.q += k * b.n;
        b.d += k / 32 * b.n;
        o->y = y + t * o->ldy + r;
        int64_t next = t + ACT_BLOCK, last = next + ACT_BLOCK;
        tile_fetch(y, o->ldy, r, next, last < a->n_tok ? last : a->n_tok);
        gemm_fns[b.n - 1](p, b, n, o);
    }
}

void many16_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, const void *q16,
                   unpack16_fn *unpack, float *y, int64_t ldy) {
    int64_t cols = act_groups(w->cols) * 32, step = panel_step(cols, 64, PANEL16_COLS), begin, end;
    panel16 p;
    worker_range(worker, w->rows, PANEL16_ROWS, &begin, &end);
    for (int64_t k = 0; k < cols; k += step) {
        int64_t n = cols - k < step ? cols - k : step;
        for (int64_t r = begin; r < end; r += PANEL16_ROWS) {
            bool pair = w->rows - r > 16; /* otherwise the second half repeats the first and is not stored */
            unpack(w, r, k, n, &p, 0);
            unpack(w, pair ? r + 16 : r, k, n, &p, 1);
            tile_out o = tile_out_of(w, r, ldy, k == 0);
            times_tokens(&p, a, q16, k, n, r, &o, y);
        }
    }
}
