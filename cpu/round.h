/* The body of round_block (core/backend.h), written once with vector types and compiled for each ISA by cpu/round_*.c,
 * which define
 * ROUND_FN and LANES first. Lanes are dealt in strips; inside a strip columns go in panels of PANEL: a panel first
 * takes the errors of all columns before it with its PANEL sums in registers, then its own columns follow one by one.
 */
#include "core/backend.h"

#include "cpu/lanes.h"

#define PANEL 8

/* e[k] for the panel's columns -= sum over j < k0 of at[k][j] * e[j]. */
static inline void take_errors(const llmq_round_block *b, int64_t k0, int64_t n, int64_t lane) {
    int64_t lanes = b->lanes, ld = b->ldat;
    if (n < PANEL) {
        for (int64_t k = k0; k < k0 + n; k++) {
            lanes_f *sum = (lanes_f *)(b->e + k * lanes + lane);
            for (int64_t j = 0; j < k0; j++) *sum -= *(const lanes_f *)(b->e + j * lanes + lane) * b->at[k * ld + j];
        }
        return;
    }
    const float *at = b->at + k0 * ld;
    lanes_f *e = (lanes_f *)(b->e + k0 * lanes + lane);
    int64_t step = lanes / LANES;
    lanes_f s0 = e[0], s1 = e[step], s2 = e[2 * step], s3 = e[3 * step];
    lanes_f s4 = e[4 * step], s5 = e[5 * step], s6 = e[6 * step], s7 = e[7 * step];
    for (int64_t j = 0; j < k0; j++) {
        lanes_f x = *(const lanes_f *)(b->e + j * lanes + lane);
        s0 -= x * at[j];
        s1 -= x * at[ld + j];
        s2 -= x * at[2 * ld + j];
        s3 -= x * at[3 * ld + j];
        s4 -= x * at[4 * ld + j];
        s5 -= x * at[5 * ld + j];
        s6 -= x * at[6 * ld + j];
        s7 -= x * at[7 * ld + j];
    }
    e[0] = s0, e[step] = s1, e[2 * step] = s2, e[3 * step] = s3;
    e[4 * step] = s4, e[5 * step] = s5, e[6 * step] = s6, e[7 * step] = s7;
}

/* Column k: code and error of the target in e[k], which has taken all errors before it. */
static inline void round_column(const llmq_round_block *b, int64_t k, int64_t lane) {
    int64_t lanes = b->lanes;
    const float *grid = b->grids + b->group[k] * 3 * lanes + lane;
    lanes_f scale = *(const lanes_f *)grid, inv = *(const lanes_f *)(grid + lanes),
            offset = *(const lanes_f *)(grid + 2 * lanes);
    lanes_f t = (*(const lanes_f *)(b->e + k * lanes + lane) - offset) * inv;
    lanes_i code;
    lanes_f level = lanes_nearest(b->levels, b->n_levels, b->uniform, t, &code);
    *(lanes_f *)(b->e + k * lanes + lane) = scale * level + offset - *(const lanes_f *)(b->w + k * lanes + lane);
    for (int i = 0; i < LANES; i++) b->codes[k * lanes + lane + i] = (uint8_t)code[i];
}

void ROUND_FN(const llmq_round_block *b) {
    int64_t lanes = b->lanes;
    for (int64_t lane = 0; lane < lanes; lane += LANES) {
        for (int64_t k0 = 0; k0 < b->n; k0 += PANEL) {
            int64_t n = b->n - k0 < PANEL ? b->n - k0 : PANEL;
            take_errors(b, k0, n, lane);
            for (int64_t k = k0; k < k0 + n; k++) {
                lanes_f sum = *(const lanes_f *)(b->e + k * lanes + lane);
                for (int64_t j = k0; j < k; j++)
                    sum -= *(const lanes_f *)(b->e + j * lanes + lane) * b->at[k * b->ldat + j];
                *(lanes_f *)(b->e + k * lanes + lane) = sum;
                round_column(b, k, lane);
            }
        }
    }
}
