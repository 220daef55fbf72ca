/* Bit placements that several storage types share (blocks.h says which), and the level tables. */
#ifndef LLMQ_TYPES_BITS_H
#define LLMQ_TYPES_BITS_H

#include "core/half.h"
#include "types/blocks.h"
#include "types/type.h"

/* -128..255: the levels of every uniform type are a window of it, BITS_RAMP(first). */
extern const float bits_ramp[384];
#define BITS_RAMP(first) (bits_ramp + 128 + (first))
extern const float bits_iq4_nl[16];

/* Low nibbles to codes[0..n), high nibbles to codes[n..2n). */
static inline void nibbles_get(const uint8_t *qs, int n, uint8_t *codes) {
    for (int j = 0; j < n; j++) codes[j] = qs[j] & 15;
    for (int j = 0; j < n; j++) codes[n + j] = qs[j] >> 4;
}

static inline void nibbles_set(const uint8_t *codes, int n, uint8_t *qs) {
    for (int j = 0; j < n; j++) qs[j] = (uint8_t)((codes[j] & 15) | codes[n + j] << 4);
}

/* Bit 4 of 32 codes, from and to the four bytes of q5_0 and q5_1. */
static inline void fifth_get(const uint8_t *qh, uint8_t *codes) {
    for (int b = 0; b < 4; b++) {
        /* Eight copies of the byte, bit j kept in byte j: nonzero bytes become 16. */
        uint64_t bits = (qh[b] * UINT64_C(0x0101010101010101)) & UINT64_C(0x8040201008040201);
        bits = (bits + UINT64_C(0x007f7f7f7f7f7f7f)) >> 3 & UINT64_C(0x1010101010101010);
        for (int j = 0; j < 8; j++) codes[8 * b + j] |= (uint8_t)(bits >> 8 * j);
    }
}

static inline void fifth_set(const uint8_t *codes, uint8_t *qh) {
    for (int b = 0; b < 4; b++) {
        unsigned bits = 0;
        for (int j = 0; j < 8; j++) bits |= (unsigned)(codes[8 * b + j] >> 4 & 1) << j;
        qh[b] = (uint8_t)bits;
    }
}

/* Two bits of 256 codes: q2_k and the low bits of q3_k. */
static inline void pairs_get(const uint8_t *qs, uint8_t *codes) {
    for (int c = 0; c < 8; c++)
        for (int l = 0; l < 32; l++) codes[32 * c + l] = qs[32 * (c / 4) + l] >> 2 * (c % 4) & 3;
}

static inline void pairs_set(const uint8_t *codes, uint8_t *qs) {
    for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
            const uint8_t *c = codes + 128 * h + l;
            qs[32 * h + l] = (uint8_t)((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
        }
}

/* The 12 scale bytes of q4_k and q5_k. Groups 0..3 lie in the low six bits of bytes 0..3 (scale) and 4..7 (minimum);
 * groups 4..7 have their low four bits in the nibbles of bytes 8..11 and their high two on top of the bytes of group
 * g - 4. */
static inline void bits6_get(const uint8_t *s, int8_t *sc, uint8_t *mn) {
    for (int g = 0; g < 4; g++) {
        sc[g] = (int8_t)(s[g] & 63);
        mn[g] = s[g + 4] & 63;
        sc[g + 4] = (int8_t)((s[g + 8] & 15) | (s[g] >> 6) << 4);
        mn[g + 4] = (uint8_t)(s[g + 8] >> 4 | (s[g + 4] >> 6) << 4);
    }
}

static inline void bits6_set(const int8_t *sc, const uint8_t *mn, uint8_t *s) {
    for (int g = 0; g < 4; g++) {
        unsigned high_sc = (unsigned)sc[g + 4] & 63u, high_mn = mn[g + 4] & 63u;
        s[g] = (uint8_t)(((unsigned)sc[g] & 63u) | (high_sc >> 4) << 6);
        s[g + 4] = (uint8_t)((mn[g] & 63u) | (high_mn >> 4) << 6);
        s[g + 8] = (uint8_t)((high_sc & 15u) | (high_mn & 15u) << 4);
    }
}

/* Effective scales and offsets of a super-block from d, dmin, sc, mn: the one place where they are multiplied. */
static inline void grid_expand(llmq_grid *grid, int n_groups, bool has_min) {
    for (int g = 0; g < n_groups; g++) {
        grid->scale[g] = grid->d * (float)grid->sc[g];
        grid->offset[g] = has_min ? -(grid->dmin * (float)grid->mn[g]) : 0.0f;
    }
}

/* The one group of a small block. */
static inline void grid_single(llmq_grid *grid, float d, float offset) {
    grid->scale[0] = grid->d = d;
    grid->offset[0] = grid->dmin = offset;
    grid->sc[0] = 1;
    grid->mn[0] = 0;
}

#endif
