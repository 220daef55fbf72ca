/* AVX-512 VNNI products of 8-bit rows (int8.h). A register tile is some tiles of 16 rows times some tokens, over all
 * columns; nothing is unpacked and no float is touched before the end. */
#include "cpu/int8_avx512.h"
#include "cpu/fetch.h"

#define FEW 8    /* tokens up to which each tile of rows is read alone: weights stream once from memory */
#define WIDE 4   /* tiles of rows side by side otherwise, */
#define TOKENS 6 /* times so many tokens: 24 sums */

/* Four activations in every word. In a register: gcc would otherwise fold the broadcast into each of its uses. */
INLINE __m512i four(const int8_t *q, bool keep) {
    int32_t v;
    memcpy(&v, q, 4);
    __m512i x = _mm512_set1_epi32(v);
    if (keep) IN_REGISTER(x);
    return x;
}

/* nt tokens times np tiles; `ways` sums for each result hide the latency of the product where there are few. */
INLINE void tile(int nt, int np, int ways, const product *p) {
    __m512i sum[8][WIDE][4];
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < np; i++) {
            UNROLL for (int j = 0; j < ways; j++) sum[t][i][j] = _mm512_setzero_si512();
        }
    }
    for (int64_t k = 0; k < p->cols; k += 16) {
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i w[WIDE];
            UNROLL for (int i = 0; i < np; i++) {
                const uint8_t *at = p->w + i * p->tile_bytes + (k + 4 * j) * 16;
                if (np == 1) fetch_ahead(at, 64);
                w[i] = _mm512_loadu_si512(at);
            }
            UNROLL for (int t = 0; t < nt; t++) {
                __m512i x = four(p->q + t * p->stride + k + 4 * j, np > 1);
                UNROLL for (int i = 0; i < np; i++) sum[t][i][j % ways] =
                    _mm512_dpbusd_epi32(sum[t][i][j % ways], w[i], x);
            }
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < np; i++) {
            UNROLL for (int j = 1; j < ways; j++) sum[t][i][0] = _mm512_add_epi32(sum[t][i][0], sum[t][i][j]);
            store(p, sum[t][i][0], t, i);
        }
    }
}

#define TILE(nt, np, ways)                                                                                             \
    static void tile_##nt##_##np(const product *p) {                                                                   \
        tile(nt, np, ways, p);                                                                                         \
    }
/* clang-format off */
TILE(1, 1, 4) TILE(2, 1, 2) TILE(3, 1, 2) TILE(4, 1, 1) TILE(5, 1, 1) TILE(6, 1, 1) TILE(7, 1, 1) TILE(8, 1, 1)
TILE(1, 4, 1) TILE(2, 4, 1) TILE(3, 4, 1) TILE(4, 4, 1) TILE(5, 4, 1) TILE(6, 4, 1)
    /* clang-format on */
    static tile_fn *const one_tile[FEW] = {tile_1_1, tile_2_1, tile_3_1, tile_4_1,
                                           tile_5_1, tile_6_1, tile_7_1, tile_8_1};
static tile_fn *const wide_tile[TOKENS] = {tile_1_4, tile_2_4, tile_3_4, tile_4_4, tile_5_4, tile_6_4};

void int8_fill_avx512(const llmq_worker *worker, llmq_acts *a) {
    fill_tokens(worker, a);
}

void int8_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t begin, end;
    bool few = a->n_tok <= FEW;
    worker_range(worker, w->rows, few ? 16 : 16 * WIDE, &begin, &end);
    int64_t r = begin;
    for (; !few && end - r > 16 * (WIDE - 1); r += 16 * WIDE) all_tokens(w, a, y, ldy, r, TOKENS, wide_tile);
    for (; r < end; r += 16) all_tokens(w, a, y, ldy, r, FEW, one_tile);
}
