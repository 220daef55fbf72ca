/* The 8-bit ops in plain C: the oracle. */
#define AFFINE_NAME(name) name##_c
#include "cpu/affine_plain.h"

static void gemm_q8_c(const llmq_worker *w, const affine_gemm *g) {
    const affine_rows *m = &g->rows;
    affine_share part = affine_deal(w, g);
    int64_t seg4 = (m->seg_len + AFFINE_K - 1) / AFFINE_K, panel = m->n_seg * seg4 * AFFINE_PANEL * AFFINE_K;
    for (int64_t r = part.row; r < part.row_end; r++) {
        const uint8_t *x = (const uint8_t *)m->x + affine_row_begin(m, r);
        for (int64_t c = part.channel; c < part.channel_end; c += AFFINE_PANEL) {
            const int8_t *wp = (const int8_t *)g->w + c / AFFINE_PANEL * panel;
            int32_t acc[AFFINE_PANEL] = {0};
            for (int64_t s = 0; s < m->n_seg; s++)
                for (int64_t k = 0; k < m->seg_len; k++) {
                    const int8_t *ws = wp + (s * seg4 + k / AFFINE_K) * AFFINE_PANEL * AFFINE_K + k % AFFINE_K;
                    for (int j = 0; j < AFFINE_PANEL; j++) acc[j] += x[m->seg_off[s] + k] * ws[j * AFFINE_K];
                }
            int64_t n = g->channels - c < AFFINE_PANEL ? g->channels - c : AFFINE_PANEL;
            finish_c(g->epi, acc, c, n, r, (char *)g->y + (r * g->ldy + c) * affine_out_bytes(g->epi->output));
        }
    }
}

static void gemm_f32_c(const llmq_worker *w, const affine_gemm *g) {
    const affine_rows *m = &g->rows;
    affine_share part = affine_deal(w, g);
    for (int64_t r = part.row; r < part.row_end; r++) {
        const float *x = (const float *)m->x + affine_row_begin(m, r);
        for (int64_t c = part.channel; c < part.channel_end; c += AFFINE_PANEL) {
            const float *ws = (const float *)g->w + c * m->n_seg * m->seg_len;
            float acc[AFFINE_PANEL] = {0}, *y = (float *)g->y + r * g->ldy + c;
            for (int64_t s = 0; s < m->n_seg; s++)
                for (int64_t k = 0; k < m->seg_len; k++, ws += AFFINE_PANEL)
                    for (int j = 0; j < AFFINE_PANEL; j++) acc[j] += x[m->seg_off[s] + k] * ws[j];
            for (int64_t j = 0; j < AFFINE_PANEL && c + j < g->channels; j++) {
                float t = acc[j] + g->bias[c + j];
                y[j] = g->relu && t < 0 ? 0 : t;
            }
        }
    }
}

void cpu_fill_affine_c(affine_ops *ops) {
    fill_c(ops);
    ops->gemm_q8 = gemm_q8_c;
    ops->gemm_f32 = gemm_f32_c;
}
