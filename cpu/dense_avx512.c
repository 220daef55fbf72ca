/* AVX-512 kernels for float weights.
 *
 * Native rows, all in f32: few tokens by row dot products (4 rows x up to 4 tokens, 16 partial sums each); more tokens by
 * a panel of 32 rows x 128 columns, converted to f32 and transposed into L1, times 8 tokens at a time.
 * LAYOUT_BF16 (calibration): vdpbf16ps on pairs of columns, straight from the packed tiles.
 * Rows may lie at any address; columns may be any number. */
#include <immintrin.h>
#include <string.h>

#include "core/half.h"
#include "cpu/dense.h"
#include "cpu/layout.h"

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define PANEL_ROWS 32
#define PANEL_COLS 128
#define BF16_COLS 256 /* columns of two packed tiles in L1 */
#define TILE 8        /* tokens of a register tile */
#define FEW 100000         /* up to so many tokens by dot products */

enum { FLOAT32, FLOAT16, BFLOAT16 };

INLINE int64_t elem_bytes(int kind) { return kind == FLOAT32 ? 4 : 2; }
INLINE __mmask16 mask_of(int64_t left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1); }

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

/* ---- few tokens: row dot products */

/* y[t*ldy + i] for nr rows and nt tokens; row (stride row_bytes), x (stride cols). */
INLINE void dot_tile(int kind, int nr, int nt, const char *row, int64_t row_bytes, const float *x, int64_t cols, const float *bias, float *y, int64_t ldy) {
    __m512 f[4][4];
    int64_t k = 0;
    UNROLL for (int i = 0; i < nr; i++) {
        UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_setzero_ps();
    }
    for (; k + 16 <= cols; k += 16) {
        __m512 v[4];
        UNROLL for (int t = 0; t < nt; t++) v[t] = _mm512_loadu_ps(x + t * cols + k);
        UNROLL for (int i = 0; i < nr; i++) {
            const char *p = row + i * row_bytes + k * elem_bytes(kind);
            if (nt == 1) _mm_prefetch(p + 1024, _MM_HINT_T0);
            __m512 w = load_w(kind, p);
            UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_fmadd_ps(w, v[t], f[i][t]);
        }
    }
    if (k < cols) {
        __mmask16 m = mask_of(cols - k);
        UNROLL for (int i = 0; i < nr; i++) {
            __m512 w = load_w_mask(kind, row + i * row_bytes + k * elem_bytes(kind), m);
            UNROLL for (int t = 0; t < nt; t++) f[i][t] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(m, x + t * cols + k), f[i][t]);
        }
    }
    UNROLL for (int i = 0; i < nr; i++) {
        UNROLL for (int t = 0; t < nt; t++) y[t * ldy + i] = _mm512_reduce_add_ps(f[i][t]) + (bias ? bias[i] : 0.0f);
    }
}

typedef void dot_fn(const char *row, int64_t row_bytes, const float *x, int64_t cols, const float *bias, float *y, int64_t ldy);

#define DOT_EACH(Y, kind) Y(kind, 1, 1) Y(kind, 1, 2) Y(kind, 1, 3) Y(kind, 1, 4) Y(kind, 4, 1) Y(kind, 4, 2) Y(kind, 4, 3) Y(kind, 4, 4)
#define DOT_DEFINE(kind, nr, nt)                                                                                                                          \
    static void dot_##kind##_##nr##_##nt(const char *row, int64_t row_bytes, const float *x, int64_t cols, const float *bias, float *y, int64_t ldy) { \
        dot_tile(kind, nr, nt, row, row_bytes, x, cols, bias, y, ldy);                                                                                    \
    }
#define DOT_NAME(kind, nr, nt) [nr == 4][nt - 1] = dot_##kind##_##nr##_##nt,
DOT_EACH(DOT_DEFINE, FLOAT32)
DOT_EACH(DOT_DEFINE, FLOAT16)
DOT_EACH(DOT_DEFINE, BFLOAT16)
static dot_fn *const dot_fns[3][2][4] = {{DOT_EACH(DOT_NAME, FLOAT32)}, {DOT_EACH(DOT_NAME, FLOAT16)}, {DOT_EACH(DOT_NAME, BFLOAT16)}};

static void few(const llmq_worker *worker, const llmq_weight *w, int kind, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t row_bytes = w->cols * elem_bytes(kind), begin, end;
    worker_range(worker, w->rows, 4, &begin, &end);
    for (int64_t r = begin; r < end;) {
        int nr = end - r >= 4 ? 4 : 1;
        for (int64_t t = 0; t < a->n_tok; t += 4) {
            int nt = a->n_tok - t < 4 ? (int)(a->n_tok - t) : 4;
            dot_fns[kind][nr == 4][nt - 1]((const char *)w->native.data + r * row_bytes, row_bytes, a->x + t * w->cols, w->cols,
                                           w->bias ? w->bias + r : NULL, y + t * ldy + r, ldy);
        }
        r += nr;
    }
}

/* ---- register tiles: 32 rows x nt tokens */

typedef struct tile_out {
    float *y; /* row r of token 0 */
    int64_t ldy;
    __mmask16 mask[2];
    const float *bias; /* of row r, or NULL */
    bool first;        /* of the column blocks: start at bias, not at y */
} tile_out;

INLINE void tile_begin(int nt, const tile_out *o, __m512 f[TILE][2]) {
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < 2; i++) {
            if (!o->first) f[t][i] = _mm512_maskz_loadu_ps(o->mask[i], o->y + t * o->ldy + 16 * i);
            else f[t][i] = o->bias ? _mm512_maskz_loadu_ps(o->mask[i], o->bias + 16 * i) : _mm512_setzero_ps();
        }
    }
}

INLINE void tile_end(int nt, const tile_out *o, __m512 f[TILE][2]) {
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < 2; i++) _mm512_mask_storeu_ps(o->y + t * o->ldy + 16 * i, o->mask[i], f[t][i]);
    }
}

/* panel (n, 32) f32; x (nt, n) with stride ldx. */
INLINE void gemm_f32(int nt, const float *panel, const float *x, int64_t ldx, int64_t n, const tile_out *o) {
    __m512 f[TILE][2];
    tile_begin(nt, o, f);
    for (int64_t k = 0; k < n; k++) {
        __m512 w0 = _mm512_load_ps(panel + 32 * k), w1 = _mm512_load_ps(panel + 32 * k + 16);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512 v = _mm512_set1_ps(x[t * ldx + k]);
            __asm__("" : "+v"(v)); /* one load for its two uses */
            f[t][0] = _mm512_fmadd_ps(w0, v, f[t][0]);
            f[t][1] = _mm512_fmadd_ps(w1, v, f[t][1]);
        }
    }
    tile_end(nt, o, f);
}

/* w0, w1 (n pairs, 16 rows) pairs of bf16; x (nt, n pairs) with stride ldx pairs. */
INLINE void gemm_bf16(int nt, const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n, const tile_out *o) {
    __m512 f[TILE][2];
    tile_begin(nt, o, f);
    for (int64_t k = 0; k < n; k++) {
        __m512bh v0 = (__m512bh)_mm512_loadu_si512(w0 + 16 * k), v1 = (__m512bh)_mm512_loadu_si512(w1 + 16 * k);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i v = _mm512_set1_epi32((int)x[t * ldx + k]);
            __asm__("" : "+v"(v));
            f[t][0] = _mm512_dpbf16_ps(f[t][0], v0, (__m512bh)v);
            f[t][1] = _mm512_dpbf16_ps(f[t][1], v1, (__m512bh)v);
        }
    }
    tile_end(nt, o, f);
}

typedef void gemm_f32_fn(const float *panel, const float *x, int64_t ldx, int64_t n, const tile_out *o);
typedef void gemm_bf16_fn(const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n, const tile_out *o);

#define WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6) Y(7) Y(8)
#define F32_DEFINE(nt)                                                                                             \
    static void gemm_f32_##nt(const float *panel, const float *x, int64_t ldx, int64_t n, const tile_out *o) {     \
        gemm_f32(nt, panel, x, ldx, n, o);                                                                         \
    }
#define BF16_DEFINE(nt)                                                                                                                       \
    static void gemm_bf16_##nt(const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n, const tile_out *o) {       \
        gemm_bf16(nt, w0, w1, x, ldx, n, o);                                                                                                  \
    }
#define F32_NAME(nt) gemm_f32_##nt,
#define BF16_NAME(nt) gemm_bf16_##nt,
WIDTHS(F32_DEFINE)
WIDTHS(BF16_DEFINE)
static gemm_f32_fn *const gemm_f32_fns[TILE] = {WIDTHS(F32_NAME)};
static gemm_bf16_fn *const gemm_bf16_fns[TILE] = {WIDTHS(BF16_NAME)};

static tile_out tile_at(const llmq_weight *w, int64_t r, int64_t ldy, bool first) {
    return (tile_out){NULL, ldy, {mask_of(w->rows - r), mask_of(w->rows - r - 16)}, w->bias ? w->bias + r : NULL, first};
}

/* ---- many tokens, native rows */

/* v[i] lane j <-> v[j] lane i. */
INLINE void transpose16(__m512 v[16]) {
    __m512 s[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { /* v[i + c]: column c of each quarter, of rows i .. i+3 */
        UNROLL for (int h = 0; h < 2; h++) {
            __m512d a = _mm512_castps_pd(s[i + h]), b = _mm512_castps_pd(s[i + 2 + h]);
            v[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    UNROLL for (int c = 0; c < 4; c++) {
        __m512 a = _mm512_shuffle_f32x4(v[c], v[4 + c], 0x88), b = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0x88);
        __m512 d = _mm512_shuffle_f32x4(v[c], v[4 + c], 0xdd), e = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0xdd);
        s[c] = _mm512_shuffle_f32x4(a, b, 0x88);
        s[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
        s[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
        s[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) v[i] = s[i];
}

/* Columns k0 .. k0+n of rows r .. r+32 to panel (n, 32); rows past the end are zero. */
INLINE void fill_panel_kind(int kind, const llmq_weight *w, int64_t r, int64_t k0, int64_t n, float *panel) {
    int64_t row_bytes = w->cols * elem_bytes(kind);
    for (int half = 0; half < 2; half++) {
        for (int64_t k = 0; k < n; k += 16) {
            __m512 v[16];
            __mmask16 m = mask_of(n - k);
            const char *p = (const char *)w->native.data + (r + 16 * half) * row_bytes + (k0 + k) * elem_bytes(kind);
            UNROLL for (int i = 0; i < 16; i++)
                v[i] = load_w_mask(kind, p + i * row_bytes, r + 16 * half + i < w->rows ? m : 0);
            transpose16(v);
            UNROLL for (int i = 0; i < 16; i++) _mm512_store_ps(panel + (k + i) * 32 + 16 * half, v[i]);
        }
    }
}

static void fill_panel(int kind, const llmq_weight *w, int64_t r, int64_t k0, int64_t n, float *panel) {
    if (kind == FLOAT32) fill_panel_kind(FLOAT32, w, r, k0, n, panel);
    else if (kind == FLOAT16) fill_panel_kind(FLOAT16, w, r, k0, n, panel);
    else fill_panel_kind(BFLOAT16, w, r, k0, n, panel);
}

static void many(const llmq_worker *worker, const llmq_weight *w, int kind, const llmq_acts *a, float *y, int64_t ldy) {
    _Alignas(64) float panel[PANEL_COLS * PANEL_ROWS];
    int64_t begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t k = 0; k < w->cols; k += PANEL_COLS) {
        int64_t n = w->cols - k < PANEL_COLS ? w->cols - k : PANEL_COLS;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            fill_panel(kind, w, r, k, n, panel);
            tile_out o = tile_at(w, r, ldy, k == 0);
            for (int64_t t = 0; t < a->n_tok; t += TILE) {
                int nt = a->n_tok - t < TILE ? (int)(a->n_tok - t) : TILE;
                o.y = y + t * ldy + r;
                gemm_f32_fns[nt - 1](panel, a->x + t * w->cols + k, w->cols, n, &o);
            }
        }
    }
}

/* ---- bf16 */

static void packed_bf16(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t stride = act_bf16_stride(w->cols), tile_words = layout_bf16_tile_bytes(w->cols) / 4, begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    int64_t cols = (w->cols + 31) / 32 * 32; /* padded with zeros on both sides */
    for (int64_t k = 0; k < cols; k += BF16_COLS) {
        int64_t n = cols - k < BF16_COLS ? cols - k : BF16_COLS;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint32_t *w0 = (const uint32_t *)w->packed + r / 16 * tile_words + k / 2 * 16;
            const uint32_t *w1 = w->rows - r > 16 ? w0 + tile_words : w0;
            tile_out o = tile_at(w, r, ldy, k == 0);
            for (int64_t t = 0; t < a->n_tok; t += TILE) {
                int nt = a->n_tok - t < TILE ? (int)(a->n_tok - t) : TILE;
                o.y = y + t * ldy + r;
                gemm_bf16_fns[nt - 1](w0, w1, (const uint32_t *)a->bf16 + (t * stride + k) / 2, stride / 2, n / 2, &o);
            }
        }
    }
}

void dense_fill_bf16_avx512(const llmq_worker *worker, llmq_acts *a) {
    int64_t stride = act_bf16_stride(a->cols), begin, end;
    worker_range(worker, a->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        uint16_t *out = (uint16_t *)a->bf16 + t * stride;
        for (int64_t c = 0; c < stride; c += 16) {
            __m512 x = _mm512_maskz_loadu_ps(mask_of(a->cols - c), a->x + t * a->cols + c);
            _mm256_storeu_si256((__m256i *)(out + c), (__m256i)_mm512_cvtneps_pbh(x));
        }
    }
}

void dense_matmul_avx512(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout == LAYOUT_BF16) {
        packed_bf16(worker, w, a, y, ldy);
        return;
    }
    int kind = w->native.type == LLMQ_TYPE_F32 ? FLOAT32 : w->native.type == LLMQ_TYPE_F16 ? FLOAT16 : BFLOAT16;
    if (a->n_tok <= FEW) few(worker, w, kind, a, y, ldy);
    else many(worker, w, kind, a, y, ldy);
}
