/* AVX-512 kernels for float weights.
 *
 * Native rows, all in f32: dot products of 4 rows with up to 6 tokens, 16 partial sums each. Neither operand is copied:
 * rows may lie at any address and columns may be any number.
 * BF16 and more than ACT_FEW tokens, unless the inputs are exact: vdpbf16ps on pairs of columns, 32 rows x 8 tokens,
 * inputs rounded to bf16; rows as stored are transposed once for all tokens, up to 2048 columns at a time, into the L2
 * cache.
 * LAYOUT_BF16 (calibration): the same product straight from the packed tiles, for any number of tokens. */
#include <immintrin.h>
#include <string.h>

#include "core/half.h"
#include "cpu/dense.h"
#include "cpu/fetch.h"
#include "cpu/inline.h"
#include "cpu/layout.h"
#include "cpu/simd.h"
#include "cpu/tile_avx512.h"

#define DOT_TOKENS 6
#define X_BYTES (384 << 10) /* of inputs, in the L2 cache */
#define W_BYTES (16 << 10)  /* of 4 rows, in the L1 cache */
#define ONE_ROW (48 << 10)  /* bytes of inputs up to which rows are read one after the other */
#define PANEL_ROWS 32
#define PANEL_PAIRS 1024 /* of columns of native rows: 128 KB */
#define TILE 8           /* tokens of a register tile of PANEL_ROWS rows */

enum { FLOAT32, FLOAT16, BFLOAT16 };

INLINE int64_t elem_bytes(int kind) {
    return kind == FLOAT32 ? 4 : 2;
}
INLINE __m512 load_w(int kind, const char *p) {
    if (kind == FLOAT32) return _mm512_loadu_ps(p);
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    if (kind == FLOAT16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

INLINE __m512 load_w_mask(int kind, const char *p, __mmask16 m) {
    if (kind == FLOAT32) return _mm512_maskz_loadu_ps(m, p);
    __m256i h = _mm256_maskz_loadu_epi16(m, p);
    if (kind == FLOAT16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* ---- native rows: dot products */

/* Sums of the lanes of a, b, c, d. */
INLINE __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); /* a b a b in each quarter */
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)),
            hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512 s = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

/* cols columns of some rows and tokens. */
typedef struct dot_args {
    const char *row; /* stride row_bytes */
    int64_t row_bytes;
    const float *x; /* stride ldx */
    int64_t ldx, cols;
    const float *bias; /* of these rows, or NULL */
    bool first;        /* of the column blocks: y starts at bias, not at what it holds */
    float *y;          /* row 0 of token 0; stride ldy from token to token */
    int64_t ldy;
} dot_args;

/* y[t*ldy + i] for nr (1 or 4) rows and nt tokens. */
INLINE void dot_tile(int kind, int nr, int nt, const dot_args *d) {
    const char *row = d->row;
    const float *x = d->x;
    int64_t row_bytes = d->row_bytes, ldx = d->ldx, cols = d->cols;
    __m512 f[4][DOT_TOKENS], v[DOT_TOKENS];
    int64_t k = 0;
    UNROLL for (int i = 0; i < 4; i++) {
        UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_setzero_ps();
    }
    for (; k + 16 <= cols; k += 16) {
        UNROLL for (int t = 0; t < nt; t++) v[t] = _mm512_loadu_ps(x + t * ldx + k);
        UNROLL for (int i = 0; i < nr; i++) {
            const char *p = row + i * row_bytes + k * elem_bytes(kind);
            if (nr == 1) fetch_ahead(p, 1);
            __m512 w = load_w(kind, p);
            UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_fmadd_ps(w, v[t], f[i][t]);
        }
    }
    if (k < cols) {
        __mmask16 m = mask_of(cols - k);
        UNROLL for (int t = 0; t < nt; t++) v[t] = _mm512_maskz_loadu_ps(m, x + t * ldx + k);
        UNROLL for (int i = 0; i < nr; i++) {
            __m512 w = load_w_mask(kind, row + i * row_bytes + k * elem_bytes(kind), m);
            UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_fmadd_ps(w, v[t], f[i][t]);
        }
    }
    __mmask8 rows = (__mmask8)((1 << nr) - 1);
    __m128 b = d->bias ? _mm_maskz_loadu_ps(rows, d->bias) : _mm_setzero_ps();
    UNROLL for (int t = 0; t < nt; t++) {
        float *y = d->y + t * d->ldy;
        __m128 before = d->first ? b : _mm_maskz_loadu_ps(rows, y);
        _mm_mask_storeu_ps(y, rows, _mm_add_ps(sum_lanes(f[0][t], f[1][t], f[2][t], f[3][t]), before));
    }
}

typedef void dot_fn(const dot_args *d);

#define DOT_ROWS(Y, kind, nr) Y(kind, nr, 1) Y(kind, nr, 2) Y(kind, nr, 3) Y(kind, nr, 4) Y(kind, nr, 5) Y(kind, nr, 6)
#define DOT_DEFINE(kind, nr, nt)                                                                                       \
    static void dot_##kind##_##nr##_##nt(const dot_args *d) {                                                          \
        dot_tile(kind, nr, nt, d);                                                                                     \
    }
#define DOT_NAME(kind, nr, nt) dot_##kind##_##nr##_##nt,
#define DOT_KIND(kind) DOT_ROWS(DOT_DEFINE, kind, 1) DOT_ROWS(DOT_DEFINE, kind, 4)
#define DOT_TABLE(kind) {{DOT_ROWS(DOT_NAME, kind, 1)}, {DOT_ROWS(DOT_NAME, kind, 4)}},
DOT_KIND(FLOAT32)
DOT_KIND(FLOAT16)
DOT_KIND(BFLOAT16)
static dot_fn *const dot_fns[3][2][DOT_TOKENS] = {DOT_TABLE(FLOAT32) DOT_TABLE(FLOAT16) DOT_TABLE(BFLOAT16)};

/* Tokens (whole tiles) whose inputs, words of 4 bytes, stay in the L2 cache while all rows pass by. */
static int64_t tokens_at_once(int64_t words, int64_t tile) {
    int64_t n = X_BYTES / 4 / words / tile * tile;
    return n > tile ? n : tile;
}

static void native_rows(const llmq_worker *worker, const llmq_weight *w, int kind, const llmq_acts *a, float *y,
                        int64_t ldy) {
    int64_t step = tokens_at_once(w->cols, DOT_TOKENS), begin, end;
    /* Columns: with many tokens so many that 4 rows stay in the L1 cache. Fewer blocks are other sums, so up to
     * MATMUL_ALIKE tokens have one. */
    int64_t k_step = a->n_tok > MATMUL_ALIKE ? W_BYTES / 4 / elem_bytes(kind) : w->cols;
    /* One row at a time is one stream from memory, which on Zen 5 is a quarter faster than four; but then inputs are
     * read for each row, so they have to lie in the L1 cache, or nearly. */
    const bool one_row = a->n_tok == 1 || a->n_tok * w->cols * (int64_t)sizeof(float) <= ONE_ROW;
    worker_range(worker, w->rows, 4, &begin, &end);
    for (int64_t t0 = 0; t0 < a->n_tok; t0 += step) {
        int64_t stop = a->n_tok - t0 < step ? a->n_tok : t0 + step;
        for (int64_t r = begin, nr; r < end; r += nr) {
            nr = end - r >= 4 && !one_row ? 4 : 1;
            dot_args d = {.row_bytes = w->cols * elem_bytes(kind),
                          .ldx = w->cols,
                          .bias = w->bias ? w->bias + r : NULL,
                          .ldy = ldy};
            for (int64_t k = 0; k < w->cols; k += k_step) {
                d.row = (const char *)w->native.data + r * d.row_bytes + k * elem_bytes(kind);
                d.cols = w->cols - k < k_step ? w->cols - k : k_step;
                d.first = k == 0;
                for (int64_t t = t0; t < stop; t += DOT_TOKENS) {
                    d.x = a->x + t * w->cols + k;
                    d.y = y + t * ldy + r;
                    dot_fns[kind][nr == 4][(stop - t < DOT_TOKENS ? stop - t : DOT_TOKENS) - 1](&d);
                }
            }
        }
    }
}

/* ---- bf16: register tiles of 32 rows x nt tokens */

/* w0, w1 (n pairs, 16 rows) pairs of bf16; x (nt, n pairs) with stride ldx pairs. */
INLINE void gemm_bf16(int nt, const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n,
                      const tile_out *o) {
    __m512 f[TILE][2];
    tile_begin(nt, o, f);
    for (int64_t k = 0; k < n; k++) {
        __m512bh v0 = (__m512bh)_mm512_loadu_si512(w0 + 16 * k), v1 = (__m512bh)_mm512_loadu_si512(w1 + 16 * k);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i v = _mm512_set1_epi32((int)x[t * ldx + k]);
            IN_REGISTER(v);
            f[t][0] = _mm512_dpbf16_ps(f[t][0], v0, (__m512bh)v);
            f[t][1] = _mm512_dpbf16_ps(f[t][1], v1, (__m512bh)v);
        }
    }
    tile_end(nt, o, f);
}

typedef void gemm_bf16_fn(const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n,
                          const tile_out *o);

#define WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6) Y(7) Y(8)
#define BF16_DEFINE(nt)                                                                                                \
    static void gemm_bf16_##nt(const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n,      \
                               const tile_out *o) {                                                                    \
        gemm_bf16(nt, w0, w1, x, ldx, n, o);                                                                           \
    }
#define BF16_NAME(nt) gemm_bf16_##nt,
WIDTHS(BF16_DEFINE)
static gemm_bf16_fn *const gemm_bf16_fns[TILE] = {WIDTHS(BF16_NAME)};

/* Tokens [t, end) times the 32 rows at w0 and w1, over n pairs of columns from pair k on. */
static void times_tokens(const llmq_acts *a, int64_t t, int64_t end, const uint32_t *w0, const uint32_t *w1, int64_t k,
                         int64_t n, float *y, tile_out *o) {
    int64_t stride = act_bf16_stride(a->cols) / 2;
    for (; t < end; t += TILE) {
        o->y = y + t * o->ldy;
        gemm_bf16_fns[(end - t < TILE ? end - t : TILE) - 1](w0, w1, (const uint32_t *)a->bf16 + t * stride + k, stride,
                                                             n, o);
    }
}

static void packed_bf16(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t tile_words = layout_bf16_tile_bytes(w->cols) / 4, begin, end;
    int64_t pairs = (w->cols + 31) / 32 * 16; /* padded with zeros on both sides */
    int64_t step = tokens_at_once(act_bf16_stride(w->cols) / 2, TILE);
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t t0 = 0; t0 < a->n_tok; t0 += step) {
        int64_t stop = a->n_tok - t0 < step ? a->n_tok : t0 + step;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint32_t *w0 = (const uint32_t *)w->packed + r / 16 * tile_words;
            const uint32_t *w1 =
                w->rows - r > 16 ? w0 + tile_words : w0; /* a missing half repeats the first and is not stored */
            tile_out o = tile_out_of(w, r, ldy, true);
            times_tokens(a, t0, stop, w0, w1, 0, pairs, y + r, &o);
        }
    }
}

/* 16 rows (n_rows of them there) of a matrix of BF16 as stored, n pairs of columns (a multiple of 16) from k on:
 * (n, 16 rows), zeros for what is not there. */
static void transpose_pairs(const uint16_t *row, int64_t cols, int64_t n_rows, int64_t k, int64_t n, uint32_t *out) {
    for (int64_t p = 0; p < n; p += 16, out += 256) {
        int64_t left = cols - 2 * (k + p);
        vf word[16];
        UNROLL_FOR(r, 16) {
            uint16_t some[32] = {0};
            word[r] = vf_zero();
            if (r >= n_rows) continue;
            const uint16_t *from = row + r * cols + 2 * (k + p);
            if (left < 32) from = memcpy(some, from, (size_t)left * sizeof *from);
            word[r] = vf_load((const float *)(const void *)from);
        }
        vf_transpose(word);
        UNROLL_FOR(j, 16) vf_store((float *)out + 16 * j, word[j]);
    }
}

static void native_bf16(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    _Alignas(64) uint32_t panel[2][PANEL_PAIRS * 16];
    int64_t pairs = (w->cols + 31) / 32 * 16, step = panel_step(pairs, 16, PANEL_PAIRS), begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t k = 0; k < pairs; k += step) {
        int64_t n = pairs - k < step ? pairs - k : step;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint16_t *row = (const uint16_t *)w->native.data + r * w->cols;
            bool pair = w->rows - r > 16;
            for (int i = 0; i <= pair; i++)
                transpose_pairs(row + 16 * i * w->cols, w->cols, w->rows - r - 16 * i, k, n, panel[i]);
            tile_out o = tile_out_of(w, r, ldy, k == 0);
            times_tokens(a, 0, a->n_tok, panel[0], panel[pair], k, n, y + r, &o);
        }
    }
}

INLINE void to_bf16(int kind, const char *src, uint16_t *dst, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = mask_of(n - i);
        _mm256_mask_storeu_epi16(dst + i, m,
                                 (__m256i)_mm512_cvtneps_pbh(load_w_mask(kind, src + i * elem_bytes(kind), m)));
    }
}

void dense_to_bf16_avx512(llmq_type type, const void *src, uint16_t *dst, int64_t n) {
    if (type == LLMQ_TYPE_F32)
        to_bf16(FLOAT32, src, dst, n);
    else if (type == LLMQ_TYPE_F16)
        to_bf16(FLOAT16, src, dst, n);
    else
        memcpy(dst, src, (size_t)n * 2);
}

void dense_fill_bf16_avx512(const llmq_worker *worker, llmq_acts *a) {
    int64_t stride = act_bf16_stride(a->cols), begin, end;
    worker_range(worker, a->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        uint16_t *out = (uint16_t *)a->bf16 + t * stride;
        to_bf16(FLOAT32, (const char *)(a->x + t * a->cols), out, a->cols);
        memset(out + a->cols, 0, (size_t)(stride - a->cols) * 2);
    }
}

void dense_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout == LAYOUT_BF16) {
        packed_bf16(worker, w, a, y, ldy);
        return;
    }
    if (w->act == ACT_BF16 && a->n_tok > ACT_FEW && !a->exact) {
        native_bf16(worker, w, a, y, ldy);
        return;
    }
    int kind = w->native.type == LLMQ_TYPE_F32 ? FLOAT32 : w->native.type == LLMQ_TYPE_F16 ? FLOAT16 : BFLOAT16;
    native_rows(worker, w, kind, a, y, ldy);
}
