/* The 8-bit ops by NEON, which affine_neon.c and affine_dotprod.c compile with DOTPROD as 0 and 1: register tiles of
 * some rows and one panel. Inputs become signed by turning over their top bit, so that they are 128 too small; what
 * that leaves out of a channel's sum is 128 times its weights', which are summed up beside the products. */
#include "cpu/dot_neon.h"

#define AFFINE_NAME DOT_NAME
#include "cpu/affine_plain.h"

#define ROWS_Q8 (DOTPROD ? 4 : 1)

/* acc (nt, 16) of rows that begin at x[t]. */
INLINE void sums_q8(int nt, const affine_rows *m, const uint8_t *const *rows, const int8_t *w, int32_t *acc) {
    int64_t seg4 = (m->seg_len + AFFINE_K - 1) / AFFINE_K;
    const int8x16_t less = vdupq_n_s8(-128);
    sums f[ROWS_Q8][4], rest[4]; /* rest: -128 times the weights */
    UNROLL for (int q = 0; q < 4; q++) {
        rest[q] = sums_start(0);
        UNROLL for (int i = 0; i < nt; i++) f[i][q] = sums_start(0);
    }
    for (int64_t s = 0; s < m->n_seg; s++)
        for (int64_t k = 0; k < seg4; k++, w += 64) {
            int8x16_t a[ROWS_Q8];
            UNROLL for (int i = 0; i < nt; i++) {
                uint32_t four;
                memcpy(&four, rows[i] + m->seg_off[s] + 4 * k, 4);
                a[i] = vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080));
            }
            UNROLL for (int q = 0; q < 4; q++) { /* four channels of four inputs each */
                int8x16_t v = vld1q_s8(w + 16 * q);
                add_word(1, 0, v, less, 0, &rest[q]);
                UNROLL for (int i = 0; i < nt; i++) add_word(1, 0, v, a[i], 0, &f[i][q]);
            }
        }
    UNROLL for (int i = 0; i < nt; i++) {
        UNROLL for (int q = 0; q < 4; q++)
            vst1q_s32(acc + AFFINE_PANEL * i + 4 * q, vsubq_s32(sums_rows(&f[i][q]), sums_rows(&rest[q])));
    }
}

static void DOT_NAME(gemm_q8)(const llmq_worker *w, const affine_gemm *g) {
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
                const uint8_t *rows[ROWS_Q8];
                nt = n - i < ROWS_Q8 ? 1 : ROWS_Q8;
                for (int64_t t = 0; t < nt; t++) rows[t] = (const uint8_t *)m->x + begin[i + t];
                if (nt > 1)
                    sums_q8(ROWS_Q8, m, rows, wp, acc);
                else
                    sums_q8(1, m, rows, wp, acc);
                for (int64_t t = 0; t < nt; t++)
                    DOT_NAME(finish)
                    (g->epi, acc + t * AFFINE_PANEL, c, nc, r0 + i + t,
                     (char *)g->y + ((r0 + i + t) * g->ldy + c) * bytes);
            }
        }
    }
}
