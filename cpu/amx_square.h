/* Products in squares of 2 x 2 tiles of sums, so that each tile that is loaded takes part in two products.
 *
 * An operand is an array of tiles, those of some columns (a panel) of one row of tiles after the other, so that what is
 * multiplied at a time lies close together: rows of a matrix often are a power of two apart and would compete for the
 * same few sets of the caches. */
#ifndef LLMQ_CPU_AMX_SQUARE_H
#define LLMQ_CPU_AMX_SQUARE_H

#include <stdbool.h>

#include "cpu/amx.h"
#include "cpu/simd.h"

#define PANEL_TILES 8 /* of columns: a panel of 32 rows is 16 KB */

INLINE int64_t tiles_of(int64_t n, int64_t side) {
    return (n + side - 1) / side;
}

/* Tiles of columns of the panel that holds tile k of depth. */
INLINE int64_t panel_tiles(int64_t k, int64_t depth) {
    int64_t left = depth - k / PANEL_TILES * PANEL_TILES;
    return left < PANEL_TILES ? left : PANEL_TILES;
}

/* Where tile (i, k) of (n, depth) lies. */
INLINE int64_t tile_offset(int64_t i, int64_t k, int64_t n, int64_t depth) {
    int64_t first = k / PANEL_TILES * PANEL_TILES;
    return (first * n + i * panel_tiles(k, depth) + k - first) * AMX_TILE;
}

INLINE void store_tile_words(vf *word, bool transposed, uint8_t *out) {
    if (transposed) vf_transpose(word);
    UNROLL_FOR(q, VF_N) vf_store((float *)(void *)(out + 64 * q), word[q]);
}

/* 32 rows from r on and 16 columns from c on of x (n_rows, n_cols; ldx) as a right operand, whose words are two rows of
 * a column; transposed: as a left one. What is not there is zero. */
static inline void pack_pairs(const float *x, int64_t ldx, int64_t n_rows, int64_t n_cols, int64_t r, int64_t c,
                              bool transposed, uint8_t *out) {
    __mmask16 mask = mask_of(n_cols - c);
    const float *from = x + r * ldx + c;
    vf word[VF_N];
    UNROLL_FOR(q, VF_N) {
        __mmask16 even = r + 2 * q < n_rows ? mask : 0, odd = r + 2 * q + 1 < n_rows ? mask : 0;
        word[q] = vf_pair_bf16(_mm512_maskz_loadu_ps(even, from + 2 * q * ldx),
                               _mm512_maskz_loadu_ps(odd, from + (2 * q + 1) * ldx));
    }
    store_tile_words(word, transposed, out);
}

/* 16 rows and 32 columns as a left operand, whose words are two columns of a row; transposed: as a right one. */
static inline void pack_rows(const float *x, int64_t ldx, int64_t n_rows, int64_t n_cols, int64_t r, int64_t c,
                             bool transposed, uint8_t *out) {
    __mmask16 low = mask_of(n_cols - c), high = mask_of(n_cols - c - 16);
    const float *from = x + r * ldx + c;
    vf word[VF_N];
    UNROLL_FOR(q, VF_N) {
        bool there = r + q < n_rows;
        word[q] = (vf)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(there ? high : 0, from + q * ldx + 16),
                                          _mm512_maskz_loadu_ps(there ? low : 0, from + q * ldx));
    }
    store_tile_words(word, transposed, out);
}

/* The square, `bytes` between its rows. */
INLINE void load_sums(const void *from, int64_t bytes) {
    const char *high = from, *low = high + 16 * bytes;
    _tile_loadd(0, high, bytes);
    _tile_loadd(1, high + 64, bytes);
    _tile_loadd(2, low, bytes);
    _tile_loadd(3, low + 64, bytes);
}

INLINE void store_sums(void *to, int64_t bytes) {
    char *high = to, *low = high + 16 * bytes;
    _tile_stored(0, high, bytes);
    _tile_stored(1, high + 64, bytes);
    _tile_stored(2, low, bytes);
    _tile_stored(3, low + 64, bytes);
}

INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* The square where it goes: `rows` rows and `cols` columns of it, ld numbers apart. */
static inline void finish_sums(float *to, int64_t ld, int64_t rows, int64_t cols) {
    enum { SIDE_OF_SQUARE = 2 * AMX_SIDE };
    _Alignas(64) float edge[SIDE_OF_SQUARE][SIDE_OF_SQUARE];
    if (rows >= SIDE_OF_SQUARE && cols >= SIDE_OF_SQUARE) {
        store_sums(to, ld * 4);
        return;
    }
    store_sums(edge[0], sizeof edge[0]);
    amx_fence();
    for (int64_t r = 0; r < rows && r < SIDE_OF_SQUARE; r++)
        for (int i = 0; i < 2; i++)
            _mm512_mask_storeu_ps(to + r * ld + 16 * i, mask_of(cols - 16 * i), _mm512_load_ps(&edge[r][16 * i]));
}

/* The square += n tiles of columns of two rows of tiles each, by an instruction. `next`: sums that are needed soon, 32
 * numbers each next_bytes apart. */
#define MULTIPLY(name, product)                                                                                        \
    INLINE void name(const uint8_t *a0, const uint8_t *a1, const uint8_t *b0, const uint8_t *b1, int64_t n,            \
                     const void *next, int64_t next_bytes) {                                                           \
        const char *soon = next;                                                                                       \
        for (int64_t k = 0; k < n * AMX_TILE; k += AMX_TILE, soon += 4 * next_bytes) {                                 \
            UNROLL for (int i = 0; i < 4; i++) {                                                                       \
                _mm_prefetch(soon + i * next_bytes, _MM_HINT_T0);                                                      \
                _mm_prefetch(soon + i * next_bytes + 64, _MM_HINT_T0);                                                 \
            }                                                                                                          \
            _tile_loadd(4, a0 + k, 64);                                                                                \
            _tile_loadd(6, b0 + k, 64);                                                                                \
            _tile_loadd(7, b1 + k, 64);                                                                                \
            product(0, 4, 6);                                                                                          \
            _tile_loadd(5, a1 + k, 64);                                                                                \
            product(1, 4, 7);                                                                                          \
            product(2, 5, 6);                                                                                          \
            product(3, 5, 7);                                                                                          \
        }                                                                                                              \
    }
MULTIPLY(multiply_bf16, _tile_dpbf16ps)
MULTIPLY(multiply_bytes, _tile_dpbsud) /* signed times unsigned */

#endif
