/* Kernels in vectors of 8 floats (AVX2, NEON) for float weights, and for many tokens by NF4 and FP4, all in f32: few
 * tokens by row dot products (4 rows x up to 2 tokens, 8 partial sums each); more tokens by a panel of 16 rows x 128
 * columns, converted and transposed into L1, times 6 tokens at a time. Rows may lie at any address; columns may be any
 * number. Included by the file of each ISA. */
#include <string.h>

#include "cpu/dense.h"
#include "cpu/layout.h"
#include "cpu/nf4.h"
#include "cpu/simd.h"

#define PANEL_ROWS 16
#define PANEL_COLS 128
#define TILE 6
#define TOKENS 120       /* of a pass: whole tiles, so few that they stay in the L2 cache for all rows */
#define FEW MATMUL_ALIKE /* up to so many tokens by dot products */
/* The next rows are fetched ahead if they are no more than this: longer ones come by themselves. */
#define NEAR (32 << 10)

enum { FLOAT32, FLOAT16, BFLOAT16, BLOCKS_NF4 };

INLINE int64_t elem_bytes(int kind) {
    return kind == FLOAT32 ? 4 : 2;
}

INLINE vf load_w(int kind, const char *p) {
    return kind == FLOAT32 ? vf_load((const float *)p) : kind == FLOAT16 ? vf_load_f16(p) : vf_load_bf16(p);
}

/* n <= 8 elements, zeros after them. */
INLINE vf load_w_part(int kind, const char *p, int64_t n) {
    char part[32] = {0};
    if (n > 0) memcpy(part, p, (size_t)(n * elem_bytes(kind)));
    return load_w(kind, part);
}

/* ---- few tokens: row dot products */

INLINE void dot_tile(int kind, int nr, int nt, const char *row, int64_t row_bytes, const float *x, int64_t cols,
                     const float *bias, float *y, int64_t ldy) {
    vf f[4][2], v[2];
    int64_t k = 0, next = nr * row_bytes <= NEAR ? nr * row_bytes : 0;
    UNROLL for (int i = 0; i < nr; i++) {
        UNROLL for (int t = 0; t < nt; t++) f[i][t] = vf_zero();
    }
    for (; k + 8 <= cols; k += 8) {
        UNROLL for (int t = 0; t < nt; t++) v[t] = vf_load(x + t * cols + k);
        UNROLL for (int i = 0; i < nr; i++) {
            const char *p = row + i * row_bytes + k * elem_bytes(kind);
            __builtin_prefetch(p + next);
            vf w = load_w(kind, p);
            UNROLL for (int t = 0; t < nt; t++) f[i][t] = vf_fma(w, v[t], f[i][t]);
        }
    }
    if (k < cols) {
        UNROLL for (int t = 0; t < nt; t++) v[t] = load_w_part(FLOAT32, (const char *)(x + t * cols + k), cols - k);
        UNROLL for (int i = 0; i < nr; i++) {
            vf w = load_w_part(kind, row + i * row_bytes + k * elem_bytes(kind), cols - k);
            UNROLL for (int t = 0; t < nt; t++) f[i][t] = vf_fma(w, v[t], f[i][t]);
        }
    }
    UNROLL for (int i = 0; i < nr; i++) {
        UNROLL for (int t = 0; t < nt; t++) y[t * ldy + i] = vf_sum(f[i][t]) + (bias ? bias[i] : 0.0f);
    }
}

typedef void dot_fn(const char *row, int64_t row_bytes, const float *x, int64_t cols, const float *bias, float *y,
                    int64_t ldy);

#define DOT_EACH(Y, kind) Y(kind, 1, 1) Y(kind, 1, 2) Y(kind, 4, 1) Y(kind, 4, 2)
#define DOT_DEFINE(kind, nr, nt)                                                                                       \
    static void dot_##kind##_##nr##_##nt(const char *row, int64_t row_bytes, const float *x, int64_t cols,             \
                                         const float *bias, float *y, int64_t ldy) {                                   \
        dot_tile(kind, nr, nt, row, row_bytes, x, cols, bias, y, ldy);                                                 \
    }
#define DOT_NAME(kind, nr, nt) [nr == 4][nt - 1] = dot_##kind##_##nr##_##nt,
DOT_EACH(DOT_DEFINE, FLOAT32)
DOT_EACH(DOT_DEFINE, FLOAT16)
DOT_EACH(DOT_DEFINE, BFLOAT16)
static dot_fn *const dot_fns[3][2][2] = {
    {DOT_EACH(DOT_NAME, FLOAT32)}, {DOT_EACH(DOT_NAME, FLOAT16)}, {DOT_EACH(DOT_NAME, BFLOAT16)}};

static void few(const llmq_worker *worker, const llmq_weight *w, int kind, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t row_bytes = w->cols * elem_bytes(kind), begin, end;
    worker_range(worker, w->rows, 4, &begin, &end);
    for (int64_t r = begin; r < end;) {
        int nr = end - r >= 4 ? 4 : 1;
        for (int64_t t = 0; t < a->n_tok; t += 2) {
            int nt = a->n_tok - t < 2 ? 1 : 2;
            dot_fns[kind][nr == 4][nt - 1]((const char *)w->native.data + r * row_bytes, row_bytes, a->x + t * w->cols,
                                           w->cols, w->bias ? w->bias + r : NULL, y + t * ldy + r, ldy);
        }
        r += nr;
    }
}

/* ---- many tokens */

/* Columns k0 .. k0+n of rows r .. r+16 to panel (n, 16); rows past the end are zero. */
INLINE void fill_panel_kind(int kind, const llmq_weight *w, int64_t r, int64_t k0, int64_t n, float *panel) {
    int64_t row_bytes = w->cols * elem_bytes(kind);
    for (int half = 0; half < 2; half++) {
        for (int64_t k = 0; k < n; k += 8) {
            vf v[8];
            const char *p = (const char *)w->native.data + (r + 8 * half) * row_bytes + (k0 + k) * elem_bytes(kind);
            UNROLL for (int i = 0; i < 8; i++) {
                bool inside = r + 8 * half + i < w->rows;
                v[i] = inside && n - k >= 8 ? load_w(kind, p + i * row_bytes)
                                            : load_w_part(kind, p + i * row_bytes, inside ? n - k : 0);
            }
            vf_transpose(v);
            UNROLL for (int i = 0; i < 8; i++) vf_store(panel + (k + i) * 16 + 8 * half, v[i]);
        }
    }
}

static void fill_panel(int kind, const llmq_weight *w, int64_t r, int64_t k0, int64_t n, float *panel) {
    if (kind == BLOCKS_NF4)
        SIMD_NAME(nf4_panel)(w, r, k0, n, panel);
    else if (kind == FLOAT32)
        fill_panel_kind(FLOAT32, w, r, k0, n, panel);
    else if (kind == FLOAT16)
        fill_panel_kind(FLOAT16, w, r, k0, n, panel);
    else
        fill_panel_kind(BFLOAT16, w, r, k0, n, panel);
}

/* f (nt, 16) += panel (n, 16) x (nt, n) with stride ldx. */
INLINE void gemm_f32(int nt, const float *panel, const float *x, int64_t ldx, int64_t n, float f[TILE][16]) {
    vf acc[TILE][2];
    UNROLL for (int t = 0; t < nt; t++) {
        acc[t][0] = vf_load(f[t]);
        acc[t][1] = vf_load(f[t] + 8);
    }
    for (int64_t k = 0; k < n; k++) {
        vf w0 = vf_load(panel + 16 * k), w1 = vf_load(panel + 16 * k + 8);
        UNROLL for (int t = 0; t < nt; t++) {
            vf v = vf_set1(x[t * ldx + k]);
            acc[t][0] = vf_fma(w0, v, acc[t][0]);
            acc[t][1] = vf_fma(w1, v, acc[t][1]);
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        vf_store(f[t], acc[t][0]);
        vf_store(f[t] + 8, acc[t][1]);
    }
}

typedef void gemm_fn(const float *panel, const float *x, int64_t ldx, int64_t n, float f[TILE][16]);

#define WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6)
#define GEMM_DEFINE(nt)                                                                                                \
    static void gemm_f32_##nt(const float *panel, const float *x, int64_t ldx, int64_t n, float f[TILE][16]) {         \
        gemm_f32(nt, panel, x, ldx, n, f);                                                                             \
    }
#define GEMM_NAME(nt) gemm_f32_##nt,
WIDTHS(GEMM_DEFINE)
static gemm_fn *const gemm_fns[TILE] = {WIDTHS(GEMM_NAME)};

/* Rows r .. r+16 of y for n tokens; sums stay in f over all panels of columns, as y would be read from far away. */
static void many_rows(const llmq_weight *w, int kind, int64_t r, const float *x, int64_t n, float *y, int64_t ldy) {
    _Alignas(64) float panel[PANEL_COLS * PANEL_ROWS], f[TOKENS][16] = {{0}};
    int64_t rows = w->rows - r < PANEL_ROWS ? w->rows - r : PANEL_ROWS;
    for (int64_t t = 0; t < n && w->bias; t++) memcpy(f[t], w->bias + r, (size_t)rows * sizeof(float));
    for (int64_t k = 0; k < w->cols; k += PANEL_COLS) {
        int64_t n_cols = w->cols - k < PANEL_COLS ? w->cols - k : PANEL_COLS;
        fill_panel(kind, w, r, k, n_cols, panel);
        for (int64_t t = 0; t < n; t += TILE)
            gemm_fns[(n - t < TILE ? n - t : TILE) - 1](panel, x + t * w->cols + k, w->cols, n_cols, f + t);
    }
    for (int64_t t = 0; t < n; t++) {
        if (rows == PANEL_ROWS)
            memcpy(y + t * ldy + r, f[t], sizeof f[t]);
        else
            memcpy(y + t * ldy + r, f[t], (size_t)rows * sizeof(float));
    }
}

static void many(const llmq_worker *worker, const llmq_weight *w, int kind, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t t = 0; t < a->n_tok; t += TOKENS) {
        int64_t n = a->n_tok - t < TOKENS ? a->n_tok - t : TOKENS;
        for (int64_t r = begin; r < end; r += PANEL_ROWS)
            many_rows(w, kind, r, a->x + t * w->cols, n, y + t * ldy, ldy);
    }
}

void SIMD_NAME(dense_matmul)(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y,
                             int64_t ldy) {
    int kind = w->layout == LAYOUT_NF4           ? BLOCKS_NF4
               : w->native.type == LLMQ_TYPE_F32 ? FLOAT32
               : w->native.type == LLMQ_TYPE_F16 ? FLOAT16
                                                 : BFLOAT16;
    if (a->n_tok <= FEW)
        few(worker, w, kind, a, y, ldy);
    else
        many(worker, w, kind, a, y, ldy);
}
