/* The f32 product of layers (core/affine.h), 4 rows and one panel at a time, in vectors of 8;
 * included by the files of AVX2 and NEON. */
#include "cpu/affine.h"
#include "cpu/simd.h"

#define ROWS_F32 4

INLINE void sums_f32(int nt, const affine_rows *m, const float *const *rows, const float *w, float *acc) {
    vf f[ROWS_F32][2];
    UNROLL for (int i = 0; i < nt; i++) f[i][0] = f[i][1] = vf_zero();
    for (int64_t s = 0; s < m->n_seg; s++)
        for (int64_t k = 0; k < m->seg_len; k++, w += AFFINE_PANEL) {
            vf v0 = vf_load(w), v1 = vf_load(w + 8);
            UNROLL for (int i = 0; i < nt; i++) {
                vf a = vf_set1(rows[i][m->seg_off[s] + k]);
                f[i][0] = vf_fma(a, v0, f[i][0]);
                f[i][1] = vf_fma(a, v1, f[i][1]);
            }
        }
    UNROLL for (int i = 0; i < nt; i++) {
        vf_store(acc + AFFINE_PANEL * i, f[i][0]);
        vf_store(acc + AFFINE_PANEL * i + 8, f[i][1]);
    }
}

static void SIMD_NAME(gemm_f32)(const llmq_worker *w, const affine_gemm *g) {
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
