/* AVX2 kernels of NF4 and FP4 (nf4.h). Few tokens: the two bytes of a level are looked up by vpshufb, and pairs of
 * 16-bit products added by vpmaddwd. Many tokens: floats of a panel for the product of dense_avx2.c, which takes as
 * many multiply-adds an instruction and rounds no input. */
#include <immintrin.h>

#include "cpu/act16_simd.h"
#include "cpu/inline.h"
#include "cpu/nf4.h"
#include "cpu/simd.h"

/* ---- activations */

/* Looked up and put together, 8 columns lie as 0 4 1 5 (those of the low nibbles) and 2 6 3 7. */
INLINE void nibble_order(int16_t *q) {
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    UNROLL for (int i = 0; i < 32; i += 8) {
        __m128i *p = (__m128i *)(void *)(q + i);
        _mm_storeu_si128(p, _mm_shuffle_epi8(_mm_loadu_si128(p), order));
    }
}

void nf4_fill_avx2(const llmq_worker *worker, llmq_acts *a) {
    if (a->n_tok <= MATMUL_ALIKE) act16_fill(worker, a, a->q16, nibble_order); /* otherwise nobody reads them */
}

/* ---- few tokens */

typedef struct level_bytes {
    __m256i low, high;
} level_bytes;

static level_bytes level_table(llmq_type type) {
    int16_t level[16];
    uint8_t low[16], high[16];
    nf4_levels16(type, level);
    for (int i = 0; i < 16; i++) {
        low[i] = (uint8_t)(level[i] & 255);
        high[i] = (uint8_t)((uint16_t)level[i] >> 8);
    }
    return (level_bytes){_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)low)),
                         _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)high))};
}

/* Four activations in every 64 bits. */
INLINE __m256i four(const int16_t *q) {
    return _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)(const void *)q));
}

/* acc[t] += 4 columns of 8 rows, of codes in bytes, times x[t]: in acc[t][0] rows 0, 1, 4, 5, in acc[t][1] the others,
 * two sums each. Sums are held in registers, or gcc makes the products of a whole group first and spills them. */
INLINE void add_products(int nt, const level_bytes *table, __m256i codes, const __m256i x[2], __m256i acc[2][2]) {
    __m256i low = _mm256_shuffle_epi8(table->low, codes), high = _mm256_shuffle_epi8(table->high, codes),
            w0 = _mm256_unpacklo_epi8(low, high), w1 = _mm256_unpackhi_epi8(low, high);
    UNROLL for (int t = 0; t < nt; t++) {
        acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(w0, x[t]));
        acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(w1, x[t]));
        IN_REGISTER(acc[t][0]);
        IN_REGISTER(acc[t][1]);
    }
}

/* acc[h] as above, of half h of 16 rows, += the 32 columns of a group. */
INLINE void add_group(int nt, const level_bytes *table, const uint32_t *code, const int16_t *q, __m256i acc[2][2][2]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    UNROLL for (int j = 0; j < 8; j++) {
        __m256i x[2];
        UNROLL for (int t = 0; t < nt; t++) x[t] = four(q + 32 * t + 4 * j);
        UNROLL for (int h = 0; h < 2; h++) {
            __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)(code + 16 * (j / 2) + 8 * h));
            if (j % 2) raw = _mm256_srli_epi16(raw, 4);
            add_products(nt, table, _mm256_and_si256(raw, nibble), x, acc[h]);
        }
    }
}

/* out[t] = 16 rows of the tile times tokens t0 .. t0+nt of the block. */
INLINE void gemv_tile(int nt, const nf4_tile_block *w, int64_t n_blocks, const level_bytes *table, act16_block b,
                      int t0, float out[2][16]) {
    const int16_t *q = b.q + 32 * t0;
    const float *d = b.d + t0;
    __m256 f[2][2];
    UNROLL for (int t = 0; t < nt; t++) f[t][0] = f[t][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < 2 * n_blocks; g++, q += 32 * b.n, d += b.n) {
        const nf4_tile_block *block = w + g / 2;
        nf4_fetch(block, g);
        __m256i acc[2][2][2];
        UNROLL for (int h = 0; h < 2; h++) {
            UNROLL for (int t = 0; t < nt; t++) acc[h][t][0] = acc[h][t][1] = _mm256_setzero_si256();
        }
        add_group(nt, table, block->code[g % 2 * 4], q, acc);
        UNROLL for (int h = 0; h < 2; h++) {
            __m256 scale = _mm256_loadu_ps(block->scale + 8 * h);
            UNROLL for (int t = 0; t < nt; t++) {
                __m256 sum = _mm256_cvtepi32_ps(_mm256_hadd_epi32(acc[h][t][0], acc[h][t][1]));
                f[t][h] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, _mm256_set1_ps(d[t])), f[t][h]);
            }
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        _mm256_storeu_ps(out[t], f[t][0]);
        _mm256_storeu_ps(out[t] + 8, f[t][1]);
    }
}

#include "cpu/nf4_few.h"

/* ---- many tokens */

void nf4_panel_avx2(const llmq_weight *w, int64_t r, int64_t k, int64_t n, float *panel) {
    const nf4_tile_block *block = nf4_tile(w, r) + k / QK_NF4;
    float level[16];
    nf4_levels(w->native.type, level);
    __m256 lower = _mm256_loadu_ps(level), upper = _mm256_loadu_ps(level + 8);
    for (int64_t j = 0; j < n / 8; j++, panel += 8 * 16) {
        const nf4_tile_block *from = block + j / 8;
        UNROLL for (int h = 0; h < 2; h++) {
            __m256i raw = _mm256_loadu_si256((const __m256i *)(const void *)(from->code[j % 8] + 8 * h));
            __m256 scale = _mm256_loadu_ps(from->scale + 8 * h);
            UNROLL for (int i = 0; i < 8; i++) {
                __m256i code = _mm256_srli_epi32(raw, 4 * i), top = _mm256_slli_epi32(raw, 28 - 4 * i);
                __m256 v = _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, code),
                                            _mm256_permutevar8x32_ps(upper, code), _mm256_castsi256_ps(top));
                int column = i < 4 ? 2 * i : 2 * i - 7;
                _mm256_store_ps(panel + column * 16 + 8 * h, _mm256_mul_ps(v, scale));
            }
        }
    }
}
