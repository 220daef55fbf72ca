/* AVX-512 kernels of NF4 and FP4 (nf4.h): vpermw looks up the levels of 32 codes, vpdpwssd adds pairs of 16-bit
 * products.
 *
 * Few tokens (decode, memory-bound): codes become levels in registers, one tile of 16 rows = one vector of results.
 * More tokens: a panel of 32 rows x up to 2048 columns becomes levels once, in L2, and is multiplied by all tokens, 6
 * at a time: 12 integer and 12 float sums in registers. */
#include <immintrin.h>

#include "cpu/inline.h"
#include "cpu/nf4.h"
#include "cpu/nf4_simd.h"
#include "cpu/tile_avx512.h"

#define PANEL_ROWS 32
#define PANEL_COLS 2048 /* 132 KB with scales, of the L2 cache: as in matmul_avx512.c */
#define FEW_TOKENS 8    /* that share the levels of a tile */

/* ---- activations */

INLINE void in_order(int16_t *q) {
    (void)q;
}

void nf4_fill_avx512(const llmq_worker *worker, llmq_acts *a) {
    act16_fill(worker, a, in_order);
}

/* ---- levels */

/* Two copies of the 16 levels: bit 4 of an index does not matter, and those above are not looked at. */
static __m512i level_table(llmq_type type) {
    int16_t level[32];
    nf4_levels16(type, level);
    memcpy(level + 16, level, 16 * sizeof *level);
    return _mm512_loadu_si512(level);
}

/* pair[i]: columns 2i and 2i + 1 of 8, for 16 rows. */
INLINE void look_up(__m512i table, const uint32_t *code, __m512i pair[4]) {
    __m512i raw = _mm512_loadu_si512(code);
    pair[0] = _mm512_permutexvar_epi16(raw, table);
    pair[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 4), table);
    pair[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 8), table);
    pair[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 12), table);
}

/* ---- few tokens */

/* out[t] = 16 rows of the tile times tokens t0 .. t0+nt of the block. */
INLINE void gemv_tile(int nt, const nf4_tile_block *w, int64_t n_blocks, __m512i table, const act16_block *b, int t0,
                      __m512 *out) {
    const int16_t *q = b->q + 32 * t0;
    const float *d = b->d + t0;
    const int n_acc =
        nt <= 4 ? 2 : 1; /* sums of a token at a time, so that its products need not wait for each other */
    __m512 f[FEW_TOKENS];
    UNROLL for (int t = 0; t < nt; t++) f[t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < 2 * n_blocks; g++, q += 32 * b->n, d += b->n) {
        const nf4_tile_block *block = w + g / 2;
        __m512i acc[FEW_TOKENS][2];
        nf4_fetch(block, g);
        UNROLL for (int t = 0; t < nt; t++) acc[t][0] = acc[t][1] = _mm512_setzero_si512();
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i pair[4];
            look_up(table, block->code[g % 2 * 4 + j], pair);
            UNROLL for (int t = 0; t < nt; t++) {
                UNROLL for (int i = 0; i < 4; i++) acc[t][i % n_acc] =
                    _mm512_dpwssd_epi32(acc[t][i % n_acc], pair[i], bcast4(q + 32 * t + 8 * j + 2 * i));
            }
        }
        __m512 scale = _mm512_loadu_ps(block->scale);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i sum = n_acc == 2 ? _mm512_add_epi32(acc[t][0], acc[t][1]) : acc[t][0];
            f[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, _mm512_set1_ps(d[t])), f[t]);
        }
    }
    UNROLL for (int t = 0; t < nt; t++) out[t] = f[t];
}

typedef void gemv_fn(const nf4_tile_block *w, int64_t n_blocks, __m512i table, const act16_block *b, int t0,
                     __m512 *out);

#define GEMV_WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6) Y(7) Y(8)
#define GEMV_DEFINE(nt)                                                                                                \
    static void gemv_##nt(const nf4_tile_block *w, int64_t n_blocks, __m512i table, const act16_block *b, int t0,      \
                          __m512 *out) {                                                                               \
        gemv_tile(nt, w, n_blocks, table, b, t0, out);                                                                 \
    }
#define GEMV_NAME(nt) gemv_##nt,
GEMV_WIDTHS(GEMV_DEFINE)
static gemv_fn *const gemv_fns[FEW_TOKENS] = {GEMV_WIDTHS(GEMV_NAME)};

static void matmul_few(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t n_blocks = w->cols / QK_NF4, begin, end;
    __m512i table = level_table(w->native.type);
    act16_block b = act16_block_at(a, 0);
    for (worker_share s = worker_share_begin(worker, w->rows, 16); worker_share_next(&s, &begin, &end);) {
        for (int64_t r = begin; r < end; r += 16) {
            __mmask16 mask = mask_of(w->rows - r);
            __m512 bias = w->bias ? _mm512_maskz_loadu_ps(mask, w->bias + r) : _mm512_setzero_ps(), out[FEW_TOKENS];
            for (int t0 = 0; t0 < b.n; t0 += FEW_TOKENS) {
                int nt = b.n - t0 < FEW_TOKENS ? b.n - t0 : FEW_TOKENS;
                gemv_fns[nt - 1](nf4_tile(w, r), n_blocks, table, &b, t0, out);
                for (int t = 0; t < nt; t++)
                    _mm512_mask_storeu_ps(y + (t0 + t) * ldy + r, mask, _mm512_add_ps(out[t], bias));
            }
        }
    }
}

/* ---- many tokens */

/* 32 rows of weights ready for the register tile; rows r and r + 16 of a pair lie side by side. */
typedef struct panel {
    _Alignas(64) int16_t level[PANEL_COLS / 2][2][32]; /* (pairs of columns, halves of the rows, 16 pairs) */
    _Alignas(64) float scale[PANEL_COLS / QK_NF4][PANEL_ROWS];
} panel;

/* n columns of one tile into half `half` of the panel. */
static void unpack_tile(const nf4_tile_block *w, int64_t n, __m512i table, panel *out, int half) {
    for (int64_t k = 0; k < n / QK_NF4; k++, w++) {
        for (int j = 0; j < QK_NF4 / 8; j++) {
            __m512i pair[4];
            look_up(table, w->code[j], pair);
            UNROLL for (int i = 0; i < 4; i++)
                _mm512_store_si512(out->level[k * QK_NF4 / 2 + 4 * j + i][half], pair[i]);
        }
        _mm512_store_ps(out->scale[k] + 16 * half, _mm512_loadu_ps(w->scale));
    }
}

/* f (tokens, 2) += panel x nt tokens of the block, over n columns; b points at its first group of them. */
INLINE void gemm_tile(int nt, const panel *w, act16_block b, int64_t n, __m512 f[6][2]) {
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
        __m512 s0 = _mm512_load_ps(w->scale[g / 2]), s1 = _mm512_load_ps(w->scale[g / 2] + 16);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512 dt = _mm512_set1_ps(d[t]);
            f[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][0]), _mm512_mul_ps(s0, dt), f[t][0]);
            f[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][1]), _mm512_mul_ps(s1, dt), f[t][1]);
        }
    }
}

typedef void gemm_fn(const panel *w, act16_block b, int64_t n, const tile_out *o);

#define GEMM_WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6)
#define GEMM_DEFINE(nt)                                                                                                \
    static void gemm_##nt(const panel *w, act16_block b, int64_t n, const tile_out *o) {                               \
        __m512 f[6][2];                                                                                                \
        tile_begin(nt, o, f);                                                                                          \
        gemm_tile(nt, w, b, n, f);                                                                                     \
        tile_end(nt, o, f);                                                                                            \
    }
#define GEMM_NAME(nt) gemm_##nt,
GEMM_WIDTHS(GEMM_DEFINE)
static gemm_fn *const gemm_fns[ACT_BLOCK] = {GEMM_WIDTHS(GEMM_NAME)};

static void matmul_many(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t step = panel_step(w->cols, QK_NF4, PANEL_COLS), begin, end;
    __m512i table = level_table(w->native.type);
    panel p;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t k = 0; k < w->cols; k += step) {
        int64_t n = w->cols - k < step ? w->cols - k : step;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            bool pair = w->rows - r > 16; /* otherwise the second half repeats the first and is not stored */
            unpack_tile(nf4_tile(w, r) + k / QK_NF4, n, table, &p, 0);
            unpack_tile(nf4_tile(w, pair ? r + 16 : r) + k / QK_NF4, n, table, &p, 1);
            tile_out o = tile_out_of(w, r, ldy, k == 0);
            for (int64_t t = 0; t < a->n_tok; t += ACT_BLOCK) {
                act16_block b = act16_block_at(a, t);
                b.q += k * b.n;
                b.d += k / 32 * b.n;
                o.y = y + t * ldy + r;
                int64_t next = t + ACT_BLOCK, last = next + ACT_BLOCK;
                tile_fetch(y, ldy, r, next, last < a->n_tok ? last : a->n_tok);
                gemm_fns[b.n - 1](&p, b, n, &o);
            }
        }
    }
}

void nf4_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (a->n_tok <= ACT_FEW)
        matmul_few(worker, w, a, y, ldy);
    else
        matmul_many(worker, w, a, y, ldy);
}
