/* AVX-512 kernels of NF4 and FP4 (nf4.h): vpermw looks up the levels of 32 codes, vpdpwssd adds pairs of 16-bit
 * products.
 *
 * Few tokens (decode, memory-bound): codes become levels in registers, one tile of 16 rows = one vector of results.
 * More tokens: many16.h. */
#include <immintrin.h>

#include "cpu/act16_simd.h"
#include "cpu/inline.h"
#include "cpu/many16.h"
#include "cpu/nf4.h"
#include "cpu/tile_avx512.h"

#define FEW_TOKENS 8 /* that share the levels of a tile */

/* ---- activations */

void nf4_fill_avx512(const llmq_worker *worker, llmq_acts *a) {
    act16_fill(worker, a, a->q16, act16_in_order);
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
    act16_block b = act16_block_at(a, a->q16, 0);
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

static void unpack(const llmq_weight *w, int64_t r, int64_t k, int64_t n, panel16 *out, int half) {
    const nf4_tile_block *block = nf4_tile(w, r) + k / QK_NF4;
    __m512i table = level_table(w->native.type);
    for (int64_t b = 0; b < n / QK_NF4; b++, block++) {
        for (int j = 0; j < QK_NF4 / 8; j++) {
            __m512i pair[4];
            look_up(table, block->code[j], pair);
            UNROLL for (int i = 0; i < 4; i++)
                _mm512_store_si512(out->level[b * QK_NF4 / 2 + 4 * j + i][half], pair[i]);
        }
        for (int g = 0; g < QK_NF4 / 32; g++)
            _mm512_store_ps(out->scale[b * QK_NF4 / 32 + g] + 16 * half, _mm512_loadu_ps(block->scale));
    }
}

void nf4_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (a->n_tok <= ACT_FEW)
        matmul_few(worker, w, a, y, ldy);
    else
        many16_avx512(worker, w, a, a->q16, unpack, y, ldy);
}
