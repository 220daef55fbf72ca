/* NEON products of 8-bit rows (int8.h), which int8_neon.c and int8_dotprod.c compile with DOTPROD as 0 and 1: a tile of
 * 16 rows times some tokens, over all columns. Weights are 128 too large for signed bytes: turning over their top bit
 * takes that off again, and with it what store_token adds for it. */
#include "cpu/dot_neon.h"
#include "cpu/fetch.h"
#include "cpu/int8_simd.h"

#define TOKENS (DOTPROD ? 6 : 2) /* of a register tile: 24 sums, 4 vectors of weights; 16 and as many of 16 bits */

/* 4 activations, over and over. */
INLINE int8x16_t four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(v));
}

INLINE void tile(int nt, const product *p) {
    sums sum[TOKENS][4];
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int h = 0; h < 4; h++) sum[t][h] = sums_start(-p->token[t].start);
    }
    for (int64_t k = 0; k < p->cols; k += 4) {
        const uint8_t *at = p->w + k * 16;
        int8x16_t w[4];
        if (nt == 1) fetch_ahead(at, 64);
        UNROLL for (int h = 0; h < 4; h++) w[h] =
            vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 16 * h), vdupq_n_u8(0x80)));
        UNROLL for (int t = 0; t < nt; t++) {
            int8x16_t x = four(p->q + t * p->stride + k);
            UNROLL for (int h = 0; h < 4; h++) add_word(1, 0, w[h], x, 0, &sum[t][h]);
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        int32_t row[16];
        UNROLL for (int h = 0; h < 4; h++) vst1q_s32(row + 4 * h, sums_rows(&sum[t][h]));
        store_token(p, t, row, 1);
    }
}

#define TILE(nt)                                                                                                       \
    static void tile_##nt(const product *p) {                                                                          \
        tile(nt, p);                                                                                                   \
    }
/* clang-format off */
#if DOTPROD
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
static tile_fn *const tiles[TOKENS] = {tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};
#else
TILE(1) TILE(2)
static tile_fn *const tiles[TOKENS] = {tile_1, tile_2};
#endif
/* clang-format on */

void DOT_NAME(int8_matmul)(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t begin, end;
    worker_range(worker, w->rows, 16, &begin, &end);
    for (int64_t r = begin; r < end; r += 16) all_tokens(w, a, y, ldy, r, TOKENS, tiles);
}
