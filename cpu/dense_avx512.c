/* AVX-512 kernels for float weights.
 *
 * Native rows, all in f32: dot products of 4 rows with up to 6 tokens, 16 partial sums each. Neither operand is copied:
 * rows may lie at any address and columns may be any number.
 * F16 and BF16 and more than ACT_FEW tokens, unless the inputs are exact: integers of 16 bits (act16.h), nearly
 * twice the rate of floats. */
#include <immintrin.h>
#include <math.h>

#include "cpu/act16_simd.h"
#include "cpu/dense.h"
#include "cpu/fetch.h"
#include "cpu/inline.h"
#include "cpu/layout.h"
#include "cpu/many16.h"
#include "cpu/simd.h"

#define DOT_TOKENS 6
#define X_BYTES (384 << 10) /* of inputs, in the L2 cache */
#define W_BYTES (16 << 10)  /* of 4 rows, in the L1 cache */
#define ONE_ROW (48 << 10)  /* bytes of inputs up to which rows are read one after the other */

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

/* f[i][t] += columns k .. k+16 of nr rows times nt tokens. */
INLINE void dot_16(int kind, int nr, int nt, const char *row, int64_t row_bytes, const float *x, int64_t ldx, int64_t k,
                   __m512 f[4][DOT_TOKENS]) {
    __m512 v[DOT_TOKENS];
    UNROLL for (int t = 0; t < nt; t++) v[t] = _mm512_loadu_ps(x + t * ldx + k);
    UNROLL for (int i = 0; i < nr; i++) {
        __m512 w = load_w(kind, row + i * row_bytes + k * elem_bytes(kind));
        UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_fmadd_ps(w, v[t], f[i][t]);
    }
}

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
    /* One row of one token: whole cache lines, each asked for once. (With two tokens that was an eighth slower.) */
    const int64_t line = nr == 1 && nt == 1 ? 64 / elem_bytes(kind) : 16;
    for (; k + line <= cols; k += line) {
        if (nr == 1) fetch_ahead(row + k * elem_bytes(kind), 1);
        UNROLL for (int j = 0; j < line; j += 16) dot_16(kind, nr, nt, row, row_bytes, x, ldx, k + j, f);
    }
    for (; k + 16 <= cols; k += 16) dot_16(kind, nr, nt, row, row_bytes, x, ldx, k, f);
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

/* ---- rows of F16 and BF16 as integers of 16 bits */

/* 32 columns of 16 rows (n_rows of them there), `left` of them there. */
INLINE void unpack_group(int kind, const char *row, int64_t row_bytes, int64_t n_rows, int64_t left, int64_t g,
                         panel16 *out, int half) {
    vf col[2][16]; /* lower and upper 16 columns */
    __m512i most = _mm512_setzero_si512();
    UNROLL_FOR(h, 2) {
        const __mmask16 there = left > 16 * h ? mask_of(left - 16 * h) : 0;
        UNROLL_FOR(r, 16)
        col[h][r] = r < n_rows ? load_w_mask(kind, row + r * row_bytes + 16 * h * elem_bytes(kind), there) : vf_zero();
        vf_transpose(col[h]);
        UNROLL_FOR(i, 16) most = _mm512_max_epu32(most, _mm512_castps_si512(vf_abs(col[h][i]))); /* NaN the most */
    }
    const vf scale = _mm512_castsi512_ps(most);
    const __mmask16 damaged = _mm512_cmp_ps_mask(vf_sub(scale, scale), vf_zero(), _CMP_UNORD_Q);
    const __mmask16 some = _mm512_cmp_ps_mask(scale, vf_set1(1e-30f), _CMP_NLT_UQ);
    const vf inverse = _mm512_maskz_div_ps(some, vf_set1(LEVEL16_ONE), scale);
    UNROLL_FOR(j, 16) {
        __m512i even = _mm512_cvtps_epi32(vf_mul(col[j / 8][j % 8 * 2], inverse));
        __m512i odd = _mm512_cvtps_epi32(vf_mul(col[j / 8][j % 8 * 2 + 1], inverse));
        _mm512_store_si512(out->level[g * 16 + j][half],
                           _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16)));
    }
    _mm512_store_ps(out->scale[g] + 16 * half, _mm512_mask_mov_ps(scale, damaged, vf_set1(NAN)));
}

INLINE void unpack_rows(int kind, const llmq_weight *w, int64_t r, int64_t k, int64_t n, panel16 *out, int half) {
    const int64_t row_bytes = w->cols * elem_bytes(kind), n_rows = w->rows - r;
    const char *row = (const char *)w->native.data + r * row_bytes + k * elem_bytes(kind);
    for (int64_t g = 0; g < n / 32; g++)
        unpack_group(kind, row + 32 * g * elem_bytes(kind), row_bytes, n_rows, w->cols - k - 32 * g, g, out, half);
}

static void unpack_f16(const llmq_weight *w, int64_t r, int64_t k, int64_t n, panel16 *out, int half) {
    unpack_rows(FLOAT16, w, r, k, n, out, half);
}
static void unpack_bf16(const llmq_weight *w, int64_t r, int64_t k, int64_t n, panel16 *out, int half) {
    unpack_rows(BFLOAT16, w, r, k, n, out, half);
}

/* ---- entries */

/* Do these tokens meet ACT_DENSE? */
static bool takes_dense(const llmq_acts *a) {
    return a->n_tok > ACT_FEW && !a->exact;
}

void dense_fill_avx512(const llmq_worker *worker, const llmq_acts *a) {
    if (takes_dense(a)) act16_fill(worker, a, act_dense_at(a), act16_in_order);
}

void dense_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const int kind = w->native.type == LLMQ_TYPE_F32 ? FLOAT32 : w->native.type == LLMQ_TYPE_F16 ? FLOAT16 : BFLOAT16;
    if (w->act == ACT_DENSE && takes_dense(a))
        many16_avx512(worker, w, a, act_dense_at(a), kind == FLOAT16 ? unpack_f16 : unpack_bf16, y, ldy);
    else
        native_rows(worker, w, kind, a, y, ldy);
}
