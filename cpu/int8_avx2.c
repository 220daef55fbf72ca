/* AVX2 products of 8-bit rows (int8.h). Products of two bytes do not fit the 16 bits that vpmaddubsw adds them in, so
 * both operands are widened to 16 bits first. */
#include <immintrin.h>

#include "cpu/fetch.h"
#include "cpu/inline.h"
#include "cpu/int8_simd.h"

#define TOKENS 2 /* of a register tile: 8 sums and 4 vectors of weights */

/* 4 activations in 16 bits, over and over. */
INLINE __m256i four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_cvtepi8_epi16(_mm_set1_epi32(v));
}

INLINE void tile(int nt, const product *p) {
    __m256i sum[TOKENS][4];
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < 4; i++) sum[t][i] = _mm256_setzero_si256();
    }
    for (int64_t k = 0; k < p->cols; k += 4) {
        __m256i w[4];
        if (nt == 1) fetch_ahead(p->w + k * 16, 64);
        UNROLL for (int i = 0; i < 4; i++) w[i] =
            _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p->w + k * 16 + 16 * i)));
        UNROLL for (int t = 0; t < nt; t++) {
            __m256i x = four(p->q + t * p->stride + k);
            UNROLL for (int i = 0; i < 4; i++) sum[t][i] = _mm256_add_epi32(sum[t][i], _mm256_madd_epi16(w[i], x));
        }
    }
    UNROLL for (int t = 0; t < nt; t++) { /* two sums for each row, of rows 4i .. 4i+3 in vector i */
        int32_t pair[32];
        UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)(pair + 8 * i), sum[t][i]);
        store_token(p, t, pair, 2);
    }
}

static void tile_1(const product *p) {
    tile(1, p);
}
static void tile_2(const product *p) {
    tile(2, p);
}

static tile_fn *const tiles[TOKENS] = {tile_1, tile_2};

void int8_fill_avx2(const llmq_worker *worker, llmq_acts *a) {
    fill_tokens(worker, a);
}

void int8_matmul_avx2(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t begin, end;
    worker_range(worker, w->rows, 16, &begin, &end);
    for (int64_t r = begin; r < end; r += 16) all_tokens(w, a, y, ldy, r, TOKENS, tiles);
}
