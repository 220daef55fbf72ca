/* AVX2: register tiles of 2 rows (f32: 4) and one panel. Bytes are widened to 16 bits, since vpmaddubsw saturates:
 * vpmaddwd of four inputs with four channels gives two sums for each, which are added at the end. */
#include <immintrin.h>

#include "cpu/inline.h"
#define AFFINE_NAME(name) name##_avx2
#include "cpu/affine_plain.h"

#define ROWS_Q8 2
#define ROWS_F32 4

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

static void gemm_q8_avx2(const llmq_worker *w, const affine_gemm *g) {
    const affine_rows *m = &g->rows;
    affine_share part = affine_deal(w, g);
    int64_t panel = m->n_seg * ((m->seg_len + AFFINE_K - 1) / AFFINE_K) * 64, begin[AFFINE_BLOCK];
    int64_t bytes = affine_out_bytes(g->epi->output);
    int32_t acc[ROWS_Q8 * AFFINE_PANEL];
    for (int64_t r0 = part.row; r0 < part.row_end; r0 += AFFINE_BLOCK) {
        int64_t n = part.row_end - r0 < AFFINE_BLOCK ? part.row_end - r0 : AFFINE_BLOCK;
        affine_begins(m, r0, n, begin);
        for (int64_t c = part.channel; c < part.channel_end; c += AFFINE_PANEL) {
            const int8_t *wp = (const int8_t *)g->w + c / AFFINE_PANEL * panel;
            int64_t nc = g->channels - c < AFFINE_PANEL ? g->channels - c : AFFINE_PANEL;
            for (int64_t i = 0, nt; i < n; i += nt) {
                nt = n - i < ROWS_Q8 ? 1 : ROWS_Q8;
                const uint8_t *x = m->x, *rows[ROWS_Q8] = {x + begin[i], nt > 1 ? x + begin[i + 1] : NULL};
                if (nt > 1)
                    sums_q8(2, m, rows, wp, acc);
                else
                    sums_q8(1, m, rows, wp, acc);
                for (int64_t t = 0; t < nt; t++)
                    finish_avx2(g->epi, acc + t * AFFINE_PANEL, c, nc, r0 + i + t,
                                (char *)g->y + ((r0 + i + t) * g->ldy + c) * bytes);
            }
        }
    }
}

INLINE void sums_f32(int nt, const affine_rows *m, const float *const *rows, const float *w, float *acc) {
    __m256 f[ROWS_F32][2];
    UNROLL for (int i = 0; i < nt; i++) f[i][0] = f[i][1] = _mm256_setzero_ps();
    for (int64_t s = 0; s < m->n_seg; s++)
        for (int64_t k = 0; k < m->seg_len; k++, w += AFFINE_PANEL) {
            __m256 v0 = _mm256_loadu_ps(w), v1 = _mm256_loadu_ps(w + 8);
            UNROLL for (int i = 0; i < nt; i++) {
                __m256 a = _mm256_broadcast_ss(rows[i] + m->seg_off[s] + k);
                f[i][0] = _mm256_fmadd_ps(a, v0, f[i][0]);
                f[i][1] = _mm256_fmadd_ps(a, v1, f[i][1]);
            }
        }
    UNROLL for (int i = 0; i < nt; i++) {
        _mm256_storeu_ps(acc + AFFINE_PANEL * i, f[i][0]);
        _mm256_storeu_ps(acc + AFFINE_PANEL * i + 8, f[i][1]);
    }
}

static void gemm_f32_avx2(const llmq_worker *w, const affine_gemm *g) {
    const affine_rows *m = &g->rows;
    affine_share part = affine_deal(w, g);
    int64_t begin[AFFINE_BLOCK];
    float acc[ROWS_F32 * AFFINE_PANEL];
    for (int64_t r0 = part.row; r0 < part.row_end; r0 += AFFINE_BLOCK) {
        int64_t n = part.row_end - r0 < AFFINE_BLOCK ? part.row_end - r0 : AFFINE_BLOCK;
        affine_begins(m, r0, n, begin);
        for (int64_t c = part.channel; c < part.channel_end; c += AFFINE_PANEL) {
            const float *wp = (const float *)g->w + c * m->n_seg * m->seg_len;
            for (int64_t i = 0, nt; i < n; i += nt) {
                nt = n - i < ROWS_F32 ? 1 : ROWS_F32;
                const float *rows[ROWS_F32] = {0};
                for (int64_t t = 0; t < nt; t++) rows[t] = (const float *)m->x + begin[i + t];
                if (nt > 1)
                    sums_f32(ROWS_F32, m, rows, wp, acc);
                else
                    sums_f32(1, m, rows, wp, acc);
                for (int64_t t = 0; t < nt; t++) {
                    float *y = (float *)g->y + (r0 + i + t) * g->ldy + c;
                    for (int64_t j = 0; j < AFFINE_PANEL && c + j < g->channels; j++) {
                        float v = acc[t * AFFINE_PANEL + j] + g->bias[c + j];
                        y[j] = g->relu && v < 0 ? 0 : v;
                    }
                }
            }
        }
    }
}

void cpu_fill_affine_avx2(affine_ops *ops) {
    fill_avx2(ops);
    ops->gemm_q8 = gemm_q8_avx2;
    ops->gemm_f32 = gemm_f32_avx2;
}
