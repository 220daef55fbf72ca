/* AVX2: register tiles of 2 rows (f32: 4) and one panel. Bytes are widened to 16 bits, since vpmaddubsw saturates:
 * vpmaddwd of four inputs with four channels gives two sums for each, which are added at the end. */
#include <immintrin.h>

#include "cpu/inline.h"
#define AFFINE_NAME(name) name##_avx2
#include "cpu/affine_plain.h"

#define ROWS_Q8 2

/* acc (nt, 16) of rows that begin at x[t]. */
INLINE void sums_q8(int nt, const affine_rows *m, const uint8_t *const *rows, const int8_t *w, int32_t *acc) {
    int64_t seg4 = (m->seg_len + AFFINE_K - 1) / AFFINE_K;
    __m256i f[ROWS_Q8][4];
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int q = 0; q < 4; q++) f[i][q] = _mm256_setzero_si256();
    }
    for (int64_t s = 0; s < m->n_seg; s++)
        for (int64_t k = 0; k < seg4; k++, w += 64) {
            __m256i a[ROWS_Q8];
            UNROLL for (int i = 0; i < nt; i++) {
                int32_t four;
                memcpy(&four, rows[i] + m->seg_off[s] + 4 * k, 4);
                a[i] = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
            }
            UNROLL for (int q = 0; q < 4; q++) { /* four channels of four inputs each */
                __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * q)));
                UNROLL for (int i = 0; i < nt; i++) f[i][q] = _mm256_add_epi32(f[i][q], _mm256_madd_epi16(a[i], v));
            }
        }
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int q = 0; q < 4; q += 2) {
            /* hadd works within halves: channels 0 1 4 5 2 3 6 7 */
            __m256i h = _mm256_permute4x64_epi64(_mm256_hadd_epi32(f[i][q], f[i][q + 1]), 0xd8);
            _mm256_storeu_si256((__m256i *)(acc + AFFINE_PANEL * i + 4 * q), h);
        }
    }
}

#include "cpu/affine_rows.h"

#include "cpu/affine_f32.h"

void cpu_fill_affine_avx2(affine_ops *ops) {
    fill_avx2(ops);
    ops->gemm_q8 = gemm_q8_avx2;
    ops->gemm_f32 = gemm_f32_avx2;
}
