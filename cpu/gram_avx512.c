/* Gram matrix of inputs rounded to 8 bits, with VNNI: twice the speed of bf16. One operand of vpdpbusd is unsigned: its
 * codes are 128 too large, and sums start at -128 times the sum of the other's. */
#include "cpu/gram_q8.h"

#define ROWS 8 /* register tile */
#define WIDE 3 /* its vectors of columns */

/* out (ROWS, WIDE) = sums over n quads of rows a times columns b. Apart from what follows, or gcc keeps the sums in
 * memory. */
static __attribute__((noinline)) void product(int64_t n, const int32_t *start, const int32_t *a, const int32_t *b,
                                              __m512i *out) {
    __m512i acc[ROWS][WIDE], col[WIDE];
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    UNROLL for (int i = 0; i < ROWS; i++) {
        UNROLL for (int j = 0; j < WIDE; j++) acc[i][j] = _mm512_set1_epi32(start[i]);
    }
    for (; n > 0; n--, a += SIDE, b += SIDE) {
        UNROLL for (int j = 0; j < WIDE; j++) col[j] = _mm512_xor_si512(_mm512_load_si512(b + 16 * j), flip);
        UNROLL for (int i = 0; i < ROWS; i++) {
            __m512i x = _mm512_set1_epi32(a[i]);
            IN_REGISTER(x); /* once for its three uses */
            UNROLL for (int j = 0; j < WIDE; j++) acc[i][j] = _mm512_dpbusd_epi32(acc[i][j], col[j], x);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        UNROLL for (int j = 0; j < WIDE; j++) _mm512_store_si512(out + i * WIDE + j, acc[i][j]);
    }
}

static void pack(const slice *s, int64_t index, double *sums, void *to) {
    pack_panel(s, index, sums, to);
}

static void multiply(int64_t n_tok, const void *rows, const void *cols, tile *t) {
    const panel *r = rows, *c = cols;
    __m512i sums[ROWS * WIDE];
    for (int64_t j = 0; j < t->n_cols; j += WIDE * 16) {
        for (int64_t i = t->diagonal ? j : 0; i < t->n_rows; i += ROWS) {
            product((n_tok + 3) / 4, r->start + i, r->word + i, c->word + j, sums);
            for (int64_t k = 0; k < ROWS; k++) {
                UNROLL for (int h = 0; h < WIDE; h++)
                    add_sums(&t->sum[i + k][j + 16 * h], sums[k * WIDE + h], r->scale[i + k], c->scale + j + 16 * h);
            }
        }
    }
}

static const gram_kernel kernel = {sizeof(panel), pack, multiply};

size_t gram_q8_scratch_avx512(int64_t n_tok, int64_t cols) {
    return gram_q8_scratch(&kernel, n_tok, cols);
}

void gram_q8_avx512(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, double *sums, float *gram,
                    void *scratch) {
    gram_q8(&kernel, w, x, n_tok, cols, sums, gram, scratch);
}
