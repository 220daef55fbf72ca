/* The 8-bit product a few rows and one panel at a time, as AVX2's and NEON's registers allow; included by the files of
 * their instruction sets behind ROWS_Q8 and sums_q8, which sums up so many rows or one. */

static void AFFINE_NAME(gemm_q8)(const llmq_worker *w, const affine_gemm *g) {
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
                for (int64_t t = 0; t < nt; t++) AFFINE_NAME(finish)
                (g->epi, acc + t * AFFINE_PANEL, c, nc, r0 + i + t, (char *)g->y + ((r0 + i + t) * g->ldy + c) * bytes);
            }
        }
    }
}
