/* AVX-VNNI products of 8-bit rows (int8.h): a tile of 16 rows times some tokens, over all columns. */
#include "cpu/fetch.h"
#include "cpu/int8_simd.h"
#include "cpu/vnni256.h"

#define TOKENS 6 /* of a register tile: 12 sums, 2 vectors of weights */

INLINE __m256i four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}

INLINE void tile(int nt, const product *p) {
    __m256i sum[TOKENS][2];
    UNROLL for (int t = 0; t < nt; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < p->cols; k += 4) {
        const uint8_t *at = p->w + k * 16;
        __m256i w[2] = {_mm256_loadu_si256((const __m256i *)at), _mm256_loadu_si256((const __m256i *)(at + 32))};
        if (nt == 1) fetch_ahead(at, 64);
        UNROLL for (int t = 0; t < nt; t++) {
            __m256i x = four(p->q + t * p->stride + k);
            UNROLL for (int h = 0; h < 2; h++) sum[t][h] = vnni_add(sum[t][h], w[h], x);
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        int32_t row[16];
        UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i *)(row + 8 * h), sum[t][h]);
        store_token(p, t, row, 1);
    }
}

#define TILE(nt)                                                                                                       \
    static void tile_##nt(const product *p) {                                                                          \
        tile(nt, p);                                                                                                   \
    }
/* clang-format off */
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
static tile_fn *const tiles[TOKENS] = {tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};
/* clang-format on */

void int8_matmul_avxvnni(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t begin, end;
    worker_range(worker, w->rows, 16, &begin, &end);
    for (int64_t r = begin; r < end; r += 16) all_tokens(w, a, y, ldy, r, TOKENS, tiles);
}
