/* What the files of the 8-bit ops share. */
#ifndef LLMQ_CPU_AFFINE_H
#define LLMQ_CPU_AFFINE_H

#include "core/affine.h"

#define AFFINE_TILE 8    /* rows of a register tile */
#define AFFINE_BLOCK 256 /* rows whose begins are kept while all channels pass by */

void cpu_fill_affine_c(affine_ops *ops);
#if defined(__x86_64__)
void cpu_fill_affine_avx2(affine_ops *ops);
void cpu_fill_affine_avx512(affine_ops *ops);
#elif defined(__aarch64__)
void cpu_fill_affine_neon(affine_ops *ops);
void cpu_fill_affine_dotprod(affine_ops *ops);
#endif

/* Begins of rows r .. r + n - 1, by counting on. */
static inline void affine_begins(const affine_rows *m, int64_t r, int64_t n, int64_t *begin) {
    int64_t x = r % m->out_w, y = r / m->out_w % m->out_h, i = r / m->out_w / m->out_h;
    for (int64_t k = 0; k < n; k++) {
        begin[k] = i * m->img + y * m->step_h + x * m->step_w;
        if (++x < m->out_w) continue;
        x = 0;
        if (++y < m->out_h) continue;
        y = 0;
        i++;
    }
}

/* This worker's rows and channels of a gemm: rows in tiles, or channels in panels where there are too few rows. */
typedef struct affine_share {
    int64_t row, row_end, channel, channel_end;
} affine_share;
static inline affine_share affine_deal(const llmq_worker *w, const affine_gemm *g) {
    affine_share s = {0, g->rows.n_img * g->rows.out_h * g->rows.out_w, 0, g->channels};
    if (s.row_end >= 2 * AFFINE_TILE * w->n)
        worker_range(w, s.row_end, AFFINE_TILE, &s.row, &s.row_end);
    else
        worker_range(w, g->channels, AFFINE_PANEL, &s.channel, &s.channel_end);
    return s;
}

static inline int64_t affine_out_bytes(llmq_q8_output o) {
    return o == LLMQ_OUT_Q8 ? 1 : 4;
}

#endif
