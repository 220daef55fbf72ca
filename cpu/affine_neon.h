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

#include "cpu/affine_rows.h"
