/* Gram matrix of inputs rounded to 8 bits, with VNNI: twice the speed of bf16.
 *
 * A slice of the tokens has a scale for each column. What rounding adds to the sums is noise that does not know of
 * other columns, so it lands on the diagonal: (max / rms)^2 / 12 / 127^2 of it, 0.01 % of a normal column, 0.13 % at
 * most.
 *
 * The triangle is cut into square tiles. Columns of a tile become a panel, four tokens of a column in a word. First all
 * panels of some slices are packed, each by one worker; then every worker goes through its tiles, slice by slice, so
 * that a tile's sums stay in its caches. One operand of vpdpbusd is unsigned: its codes are 128 too large, and sums
 * start at -128 times the sum of the other's. */
#include <immintrin.h>

#include "cpu/inline.h"
#include "cpu/ops.h"

#define SLICE 256 /* tokens: sums stay below 2^24, exact as floats */
#define SIDE 96
#define VECTORS (SIDE / 16)
#define ROWS 8          /* register tile */
#define WIDE 3          /* its vectors of columns */
#define BATCH (8 << 20) /* bytes of panels that are packed at a time: they stay in the L3 cache */
#define TINY 1e-30f
#define AHEAD 8 /* tokens that are fetched before they are read */

typedef struct panel {
    _Alignas(64) int32_t word[SLICE / 4 * SIDE]; /* (tokens / 4, SIDE) */
    _Alignas(64) float scale[SIDE];
    _Alignas(64) int32_t start[SIDE];
} panel;

typedef struct slice {
    const float *x; /* (n_tok, cols) */
    int64_t n_tok, cols;
    float *gram;
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

static void pack(const slice *s, int64_t tile, double *sums, panel *p) {
    int64_t col = tile * SIDE;
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

/* out (ROWS, WIDE) = sums over n quads of rows a times columns b. Apart from what follows, or gcc keeps the sums in
 * memory. */
static __attribute__((noinline)) void product(int64_t n, const int32_t *start, const int32_t *a, const int32_t *b,
                                              __m512i *out) {
    __m512i acc[ROWS][WIDE], col[WIDE];
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    UNROLL for (int i = 0; i < ROWS; i++) {
        UNROLL for (int j = 0; j < WIDE; j++) acc[i][j] = _mm512_set1_epi32(start[i]);
    }
    for (; n > 0; n--, a += SIDE, b += SIDE) {
        UNROLL for (int j = 0; j < WIDE; j++) col[j] = _mm512_xor_si512(_mm512_load_si512(b + 16 * j), flip);
        UNROLL for (int i = 0; i < ROWS; i++) {
            __m512i x = _mm512_set1_epi32(a[i]);
            IN_REGISTER(x); /* once for its three uses */
            UNROLL for (int j = 0; j < WIDE; j++) acc[i][j] = _mm512_dpbusd_epi32(acc[i][j], col[j], x);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        UNROLL for (int j = 0; j < WIDE; j++) _mm512_store_si512(out + i * WIDE + j, acc[i][j]);
    }
}

/* Rows i0.. of panel r times columns j0.. of panel c; row0, col0: where those lie in the matrix. Adds only what is on
 * and below the diagonal. */
static void register_tile(const slice *s, const panel *r, int64_t row0, int64_t i0, const panel *c, int64_t col0,
                          int64_t j0) {
    __m512i sums[ROWS * WIDE];
    int64_t n_rows = s->cols - row0 < ROWS ? s->cols - row0 : ROWS;
    float *gram = s->gram + row0 * s->cols + col0;
    for (int64_t i = 0; i < n_rows; i++) /* the sums so far lie in the L2 cache, or beyond */
        for (int j = 0; j < WIDE; j++) _mm_prefetch((const char *)(gram + i * s->cols + 16 * j), _MM_HINT_T0);
    product((s->n_tok + 3) / 4, r->start + i0, r->word + i0, c->word + j0, sums);
    for (int64_t i = 0; i < n_rows; i++) {
        UNROLL for (int j = 0; j < WIDE; j++) {
            __mmask16 mask = mask_of(row0 + i + 1 - (col0 + 16 * j));
            float *to = gram + i * s->cols + 16 * j;
            __m512 scale = _mm512_mul_ps(_mm512_set1_ps(r->scale[i0 + i]), _mm512_load_ps(c->scale + j0 + 16 * j));
            __m512 sum = _mm512_cvtepi32_ps(sums[i * WIDE + j]);
            _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, to)));
        }
    }
}

static void tile(const slice *s, const panel *r, int64_t ti, const panel *c, int64_t tj) {
    int64_t row0 = ti * SIDE, col0 = tj * SIDE;
    for (int64_t j = 0; j < SIDE && col0 + j < s->cols; j += WIDE * 16)
        for (int64_t i = 0; i < SIDE && row0 + i < s->cols; i += ROWS)
            if (row0 + i + ROWS > col0 + j) register_tile(s, r, row0 + i, i, c, col0 + j, j);
}

static int64_t n_tiles(int64_t cols) {
    return (cols + SIDE - 1) / SIDE;
}

/* Slices whose panels are packed at a time. */
static int64_t batch_slices(int64_t n_tok, int64_t cols) {
    int64_t n = (n_tok + SLICE - 1) / SLICE, most = BATCH / (int64_t)sizeof(panel) / n_tiles(cols);
    return n < most ? n : most > 1 ? most : 1;
}

static slice slice_at(const float *x, int64_t n_tok, int64_t cols, float *gram, int64_t index) {
    int64_t t = index * SLICE;
    return (slice){x + t * cols, n_tok - t < SLICE ? n_tok - t : SLICE, cols, gram};
}

/* Never less for more tokens or columns. */
size_t gram_q8_scratch_avx512(int64_t n_tok, int64_t cols) {
    int64_t n = n_tiles(cols), all = (n_tok + SLICE - 1) / SLICE * n, most = BATCH / (int64_t)sizeof(panel);
    if (most < n) most = n;
    return (size_t)(all < most ? all : most) * sizeof(panel);
}

void gram_q8_avx512(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, double *sums, float *gram,
                    void *scratch) {
    panel *panels = scratch; /* (slices of the batch, tiles) */
    int64_t n = n_tiles(cols), n_slices = (n_tok + SLICE - 1) / SLICE, batch = batch_slices(n_tok, cols), begin, end;
    worker_range(w, n, 1, &begin, &end);
    for (int64_t first = 0; first < n_slices; first += batch) {
        int64_t count = n_slices - first < batch ? n_slices - first : batch;
        if (first > 0) worker_barrier(w); /* the last batch has been read */
        for (int64_t k = 0; k < count; k++) {
            slice s = slice_at(x, n_tok, cols, gram, first + k);
            for (int64_t i = begin; i < end; i++) pack(&s, i, sums, &panels[k * n + i]);
        }
        worker_barrier(w);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j <= i; j++) {
                if (!gram_tile_mine(w, n, i, j)) continue;
                for (int64_t k = 0; k < count; k++) {
                    slice s = slice_at(x, n_tok, cols, gram, first + k);
                    tile(&s, &panels[k * n + i], i, &panels[k * n + j], j);
                }
            }
        }
    }
}
