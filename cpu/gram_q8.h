/* Gram matrix of inputs rounded to 8 bits: what the instruction sets that multiply bytes share.
 *
 * A slice of the tokens has a scale for each column. What rounding adds to the sums is noise that does not know of
 * other columns, so it lands on the diagonal: (max / rms)^2 / 12 / 127^2 of it, 0.01 % of a normal column, 0.13 % at
 * most.
 *
 * The triangle is cut into square tiles. Columns of a tile become a panel, four tokens of a column in a word. First all
 * panels of some slices are packed, each by one worker; then every worker goes through its tiles, slice by slice, so
 * that a tile's sums stay in its caches. Sums of a slice are whole numbers, and slices are added in their order: the
 * results are the same bits whoever multiplies. */
#ifndef LLMQ_CPU_GRAM_Q8_H
#define LLMQ_CPU_GRAM_Q8_H

#include <immintrin.h>

#include "cpu/inline.h"
#include "cpu/ops.h"

#define SLICE 256 /* tokens: sums stay below 2^24, exact as floats */
#define SIDE 96
#define VECTORS (SIDE / 16)
#define BATCH (8 << 20) /* bytes of panels that are packed at a time: they stay in the L3 cache */
#define TINY 1e-30f
#define AHEAD 8 /* tokens that are fetched before they are read */

typedef struct panel {
    _Alignas(64) int32_t word[SLICE / 4 * SIDE]; /* (tokens / 4, SIDE) */
    _Alignas(64) float scale[SIDE];
    _Alignas(64) int32_t start[SIDE]; /* -128 * sum of codes: makes good for an operand that is 128 too large */
} panel;

typedef struct slice {
    const float *x; /* (n_tok, cols) */
    int64_t n_tok, cols;
} slice;

/* The codes of 16 columns of n tokens (4 at most) side by side, those of tokens past the last zero. */
INLINE __m512i round_quad(int n, const float *x, int64_t cols, __mmask16 mask, __m512 inverse) {
    __m512i c[4];
    UNROLL for (int b = 0; b < 4; b++) {
        c[b] = b < n ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + b * cols), inverse))
                     : _mm512_setzero_si512();
    }
    __m512i low = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, c[0], _mm512_slli_epi32(c[1], 8));
    __m512i high = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, c[2], _mm512_slli_epi32(c[3], 8));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}

/* One vector of columns, all tokens; words are SIDE apart. Returns the sums of codes. */
INLINE __m512i round_columns(const slice *s, int64_t col, __mmask16 mask, __m512 inverse, int32_t *words) {
    const __m512i ones = _mm512_set1_epi8(1);
    const float *x = s->x + col;
    int64_t cols = s->cols, n = s->n_tok, t = 0;
    __m512i sum = _mm512_setzero_si512(), word;
    for (; t < n; t += 4, x += 4 * cols, words += SIDE) {
        if (t + 4 <= n)
            word = round_quad(4, x, cols, mask, inverse);
        else
            word = round_quad((int)(n - t), x, cols, mask, inverse);
        sum = _mm512_dpbusd_epi32(sum, ones, word);
        _mm512_store_si512(words, word);
    }
    return sum;
}

/* Largest magnitudes of the slice's columns; sums (NULL: not wanted) of the tile's columns in the order of tokens. */
INLINE void read_columns(bool want_sums, const slice *s, int64_t col, const __mmask16 *mask, __m512 *max,
                         double *sums) {
    __m512d sum[VECTORS][2];
    UNROLL for (int j = 0; j < VECTORS; j++) {
        max[j] = _mm512_setzero_ps();
        if (!want_sums) continue;
        sum[j][0] = _mm512_maskz_loadu_pd((__mmask8)mask[j], sums + 16 * j);
        sum[j][1] = _mm512_maskz_loadu_pd((__mmask8)(mask[j] >> 8), sums + 16 * j + 8);
    }
    for (int64_t t = 0; t < s->n_tok; t++) {
        UNROLL for (int j = 0; j < VECTORS; j++) {
            const float *from = s->x + t * s->cols + col + 16 * j;
            _mm_prefetch((const char *)(from + AHEAD * s->cols), _MM_HINT_T0); /* rows are too far apart for others */
            __m512 x = _mm512_maskz_loadu_ps(mask[j], from);
            max[j] = _mm512_max_ps(max[j], _mm512_abs_ps(x));
            if (!want_sums) continue;
            sum[j][0] = _mm512_add_pd(sum[j][0], _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
            sum[j][1] = _mm512_add_pd(sum[j][1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
        }
    }
    UNROLL for (int j = 0; j < VECTORS; j++) {
        if (!want_sums) continue;
        _mm512_mask_storeu_pd(sums + 16 * j, (__mmask8)mask[j], sum[j][0]);
        _mm512_mask_storeu_pd(sums + 16 * j + 8, (__mmask8)(mask[j] >> 8), sum[j][1]);
    }
}

static void pack_panel(const slice *s, int64_t index, double *sums, panel *p) {
    int64_t col = index * SIDE;
    __m512 max[VECTORS], inverse[VECTORS];
    __mmask16 mask[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; j++) mask[j] = mask_of(s->cols - col - 16 * j);
    if (sums)
        read_columns(true, s, col, mask, max, sums + col);
    else
        read_columns(false, s, col, mask, max, NULL);
    UNROLL for (int j = 0; j < VECTORS; j++) {
        __mmask16 live = _mm512_cmp_ps_mask(max[j], _mm512_set1_ps(TINY), _CMP_GT_OQ);
        inverse[j] = _mm512_maskz_div_ps(live, _mm512_set1_ps(127.0f), max[j]);
        _mm512_store_ps(p->scale + 16 * j, _mm512_div_ps(max[j], _mm512_set1_ps(127.0f)));
    }
    UNROLL for (int j = 0; j < VECTORS; j++) {
        __m512i sum = round_columns(s, col + 16 * j, mask[j], inverse[j], p->word + 16 * j);
        _mm512_store_si512(p->start + 16 * j, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
    }
}

/* A tile of the gram, copied so that its rows lie side by side: they often are a power of two apart and would fight for
 * the same sets of the caches. */
typedef struct tile {
    int64_t n_rows, n_cols; /* that exist */
    bool diagonal;          /* what lies above it does not count */
    _Alignas(64) float sum[SIDE][SIDE];
} tile;

INLINE void load_tile(tile *t, const float *gram, int64_t cols, int64_t i, int64_t j) {
    int64_t row = i * SIDE, col = j * SIDE;
    t->n_rows = cols - row < SIDE ? cols - row : SIDE;
    t->n_cols = cols - col < SIDE ? cols - col : SIDE;
    t->diagonal = i == j;
    for (int64_t r = 0; r < t->n_rows; r++)
        for (int64_t c = 0; c < SIDE; c += 16)
            _mm512_store_ps(&t->sum[r][c],
                            _mm512_maskz_loadu_ps(mask_of(t->n_cols - c), gram + (row + r) * cols + col + c));
}

INLINE void store_tile(const tile *t, float *gram, int64_t cols, int64_t i, int64_t j) {
    for (int64_t r = 0; r < t->n_rows; r++) {
        int64_t n = t->diagonal ? r + 1 : t->n_cols;
        for (int64_t c = 0; c < n; c += 16)
            _mm512_mask_storeu_ps(gram + (i * SIDE + r) * cols + j * SIDE + c, mask_of(n - c),
                                  _mm512_load_ps(&t->sum[r][c]));
    }
}

/* Adds a slice's sums of a row times 16 columns. */
INLINE void add_sums(float *to, __m512i sums, float row_scale, const float *col_scale) {
    __m512 scale = _mm512_mul_ps(_mm512_set1_ps(row_scale), _mm512_load_ps(col_scale));
    _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, _mm512_load_ps(to)));
}

/* The panels of an instruction set: their bytes, how one is made, and how a slice's products of the columns of two are
 * added to a tile. */
typedef struct gram_kernel {
    size_t panel_bytes;
    void (*pack)(const slice *s, int64_t index, double *sums, void *to);
    void (*multiply)(int64_t n_tok, const void *rows, const void *cols, tile *t);
} gram_kernel;

INLINE int64_t n_tiles(int64_t cols) {
    return (cols + SIDE - 1) / SIDE;
}

/* Panels that are packed at a time, in whole slices. */
INLINE int64_t batch_panels(const gram_kernel *g) {
    return BATCH / (int64_t)g->panel_bytes;
}

INLINE int64_t batch_slices(const gram_kernel *g, int64_t n_tok, int64_t cols) {
    int64_t n = (n_tok + SLICE - 1) / SLICE, most = batch_panels(g) / n_tiles(cols);
    return n < most ? n : most > 1 ? most : 1;
}

INLINE slice slice_at(const float *x, int64_t n_tok, int64_t cols, int64_t index) {
    int64_t t = index * SLICE;
    return (slice){x + t * cols, n_tok - t < SLICE ? n_tok - t : SLICE, cols};
}

/* Never less for more tokens or columns. */
INLINE size_t gram_q8_scratch(const gram_kernel *g, int64_t n_tok, int64_t cols) {
    int64_t n = n_tiles(cols), all = (n_tok + SLICE - 1) / SLICE * n, most = batch_panels(g);
    if (most < n) most = n;
    return (size_t)(all < most ? all : most) * g->panel_bytes;
}

INLINE void gram_q8(const gram_kernel *g, const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols,
                    double *sums, float *gram, void *scratch) {
    int64_t n = n_tiles(cols), n_slices = (n_tok + SLICE - 1) / SLICE, batch = batch_slices(g, n_tok, cols), begin, end;
    int64_t bytes = (int64_t)g->panel_bytes, row_bytes = n * bytes; /* (slices of the batch, tiles) */
    char *panels = scratch;
    tile t;
    worker_range(w, n, 1, &begin, &end);
    for (int64_t first = 0; first < n_slices; first += batch) {
        int64_t count = n_slices - first < batch ? n_slices - first : batch;
        if (first > 0) worker_barrier(w); /* the last batch has been read */
        for (int64_t k = 0; k < count; k++) {
            slice s = slice_at(x, n_tok, cols, first + k);
            for (int64_t i = begin; i < end; i++) g->pack(&s, i, sums, panels + k * row_bytes + i * bytes);
        }
        worker_barrier(w);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j <= i; j++) {
                if (!gram_tile_mine(w, n, i, j)) continue;
                load_tile(&t, gram, cols, i, j);
                for (int64_t k = 0; k < count; k++) {
                    const char *row = panels + k * row_bytes;
                    g->multiply(slice_at(x, n_tok, cols, first + k).n_tok, row + i * bytes, row + j * bytes, &t);
                }
                store_tile(&t, gram, cols, i, j);
            }
        }
    }
}

#endif
