/* From the kernels of one tile to products of matrices: included after code_table, panel, and outliers_tile,
 * gemv_tile, unpack_tile, gemm_tile and panel_outlier, each compiled here for every layout and number of tokens. */
#ifndef LLMQ_CPU_MATMUL_DRIVE_H
#define LLMQ_CPU_MATMUL_DRIVE_H

#include "cpu/matmul_parts.h"

/* ---- the kernels of every layout */

typedef void outliers_fn(const uint8_t *tile, int64_t cols, code_vec table, const act_block *b, int t0, int nt,
                         float out[][16]);

#define X(type, ...)                                                                                                   \
    static void outliers_##type(const uint8_t *tile, int64_t cols, code_vec table, const act_block *b, int t0, int nt, \
                                float out[][16]) {                                                                     \
        outliers_tile(__VA_ARGS__, tile, cols, table, b, t0, nt, out);                                                 \
    }
CPU_LAYOUTS(X)
#undef X

static outliers_fn *const outliers_fns[LAYOUT_BF16] = {
#define X(type, ...) [LAYOUT_##type] = outliers_##type,
    CPU_LAYOUTS(X)
#undef X
};

typedef void gemv_fn(const uint8_t *tile, int64_t cols, code_vec table, const act_block *b, int t0,
                     float out[AT_ONCE][16]);

#if AT_ONCE == 4
#define GEMVS(Y, ...) Y(1, __VA_ARGS__) Y(2, __VA_ARGS__) Y(3, __VA_ARGS__) Y(4, __VA_ARGS__)
#else
#define GEMVS(Y, ...) Y(1, __VA_ARGS__) Y(2, __VA_ARGS__)
#endif
#define GEMV(nt, type, ...)                                                                                            \
    static void gemv##nt##_##type(const uint8_t *tile, int64_t cols, code_vec table, const act_block *b, int t0,       \
                                  float out[AT_ONCE][16]) {                                                            \
        gemv_tile(__VA_ARGS__, nt, tile, cols, table, b, t0, out);                                                     \
    }
#define GEMV_NAME(nt, type) gemv##nt##_##type,
#define X(type, ...) GEMVS(GEMV, type, __VA_ARGS__)
CPU_LAYOUTS(X)
#undef X

static gemv_fn *const gemv_fns[LAYOUT_BF16][AT_ONCE] = {
#define X(type, ...) [LAYOUT_##type] = {GEMVS(GEMV_NAME, type)},
    CPU_LAYOUTS(X)
#undef X
};

/* ---- few tokens */

/* Rows of a tile are written through a buffer: the last tile may be cut. */
static void store_rows(float *y, const float *sum, const float *bias, int64_t left) {
    int64_t n = left < 16 ? left : 16;
    if (n == 16 && !bias)
        memcpy(y, sum, 16 * sizeof *y);
    else
        for (int64_t i = 0; i < n; i++) y[i] = sum[i] + (bias ? bias[i] : 0.0f);
}

/* Rows r.. of y of the tokens of a block, from the sums of its rows; of split inputs a token has two (layout.h). */
static void store_block(const llmq_weight *w, const act_block *b, float sum[][16], int64_t r, float *y, int64_t ldy) {
    const int n_tok = b->n / act_parts(w->act);
    for (int t = n_tok; t < b->n; t++)
        for (int i = 0; i < 16; i++) sum[t - n_tok][i] += sum[t][i];
    for (int t = 0; t < n_tok; t++) store_rows(y + t * ldy + r, sum[t], w->bias ? w->bias + r : NULL, w->rows - r);
}

static void matmul_few(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    int64_t tile_bytes = layout_tile_bytes(l, w->cols), begin, end;
    code_vec table = code_table(l);
    act_block b = act_block_at(a, act_parts(w->act) * a->n_tok, 0);
    for (worker_share s = worker_share_begin(worker, w->rows, 16); worker_share_next(&s, &begin, &end);) {
        for (int64_t r = begin; r < end; r += 16) {
            const uint8_t *tile = (const uint8_t *)w->packed + r / 16 * tile_bytes;
            float out[2 * FEW][16];
            for (int t0 = 0; t0 < b.n; t0 += AT_ONCE) {
                int nt = b.n - t0 < AT_ONCE ? b.n - t0 : AT_ONCE;
                gemv_fns[w->layout][nt - 1](tile, w->cols, table, &b, t0, out + t0);
                outliers_fns[w->layout](tile, w->cols, table, &b, t0, nt, out + t0);
            }
            store_block(w, &b, out, r, y, ldy);
        }
    }
}

/* ---- many tokens */

/* An outlier of a row of a pass, in a panel's columns. */
typedef struct row_outlier {
    float x;
    uint16_t row;
    uint8_t group, col;
} row_outlier;

/* f (rows, 16) += panel x all rows of the block, over n columns; b points at its first group of them; fresh: f begins
 * at 0. */
typedef void gemm_fn(const panel *w, const act_block *b, int64_t n, bool fresh, float f[][16]);

#define REST(nt, ...)                                                                                                  \
    case nt:                                                                                                           \
        gemm_tile(__VA_ARGS__, nt, w, b, t, n, fresh, f);                                                              \
        break;
#if TILE == 6
#define RESTS(...)                                                                                                     \
    REST(1, __VA_ARGS__) REST(2, __VA_ARGS__) REST(3, __VA_ARGS__) REST(4, __VA_ARGS__) REST(5, __VA_ARGS__)
#else
#define RESTS(...) REST(1, __VA_ARGS__) REST(2, __VA_ARGS__)
#endif

#define X(type, ...)                                                                                                   \
    static void unpack_##type(const uint8_t *tile, int64_t k0, int64_t n, code_vec table, panel *out) {                \
        unpack_tile(__VA_ARGS__, tile, k0, n, table, out);                                                             \
    }                                                                                                                  \
    static void gemm_##type(const panel *w, const act_block *b, int64_t n, bool fresh, float f[][16]) {                \
        int t = 0;                                                                                                     \
        for (; t + TILE <= b->n; t += TILE) gemm_tile(__VA_ARGS__, TILE, w, b, t, n, fresh, f);                        \
        switch (b->n - t) { RESTS(__VA_ARGS__) }                                                                       \
    }                                                                                                                  \
    static void panel_outliers_##type(const panel *w, const row_outlier *o, int n, float f[][16]) {                    \
        for (int i = 0; i < n; i++) panel_outlier(__VA_ARGS__, w, o[i].group, o[i].col, o[i].x, f[o[i].row]);          \
    }
CPU_LAYOUTS(X)
#undef X

static const struct {
    void (*unpack)(const uint8_t *tile, int64_t k0, int64_t n, code_vec table, panel *out);
    gemm_fn *gemm;
    void (*outliers)(const panel *w, const row_outlier *o, int n, float f[][16]); /* f += panel x n outliers */
} many_fns[LAYOUT_BF16] = {
#define X(type, ...) [LAYOUT_##type] = {unpack_##type, gemm_##type, panel_outliers_##type},
    CPU_LAYOUTS(X)
#undef X
};

_Static_assert(PASS_ROWS % ACT_BLOCK == 0 && PASS_ROWS >= ACT_FEW, "a pass has whole blocks");
_Static_assert(PANEL_COLS % 256 == 0 && PANEL_COLS / 32 <= UINT8_MAX, "whole runs, and row_outlier.group holds them");

/* Rows of activations that a panel is multiplied with: n from first on, of all. */
typedef struct pass {
    const llmq_acts *a;
    int64_t all, first, n;
} pass;

/* Row t of the pass and those after it in its block, of their columns from k on. */
static act_block pass_block(const pass *x, int64_t t, int64_t k) {
    return act_block_from(act_block_at(x->a, x->all, x->first + t), k);
}

/* f (x->n, 16) += panel, columns k .. k+n, times x; from column 0 on it is set. Meanwhile what the next panel is taken
 * from is asked for, `bytes` from `next` on: unpacking would wait for it. */
static void panel_times(gemm_fn *gemm, const panel *p, const pass *x, int64_t k, int64_t n, const uint8_t *next,
                        int64_t bytes, float f[][16]) {
    const int64_t len = act_block_len(x->all), lines = bytes / 64 / ((x->n + len - 1) / len) + 1; /* a block */
    for (int64_t t = 0; t < x->n; t += len) {
        for (int64_t i = 0; i < lines && bytes > 0; i++, next += 64, bytes -= 64) __builtin_prefetch(next, 0, 2);
        const act_block b = pass_block(x, t, k);
        gemm(p, &b, n, k == 0, f + t);
    }
}

/* Those of x in columns k .. k+n. */
static int find_outliers(const pass *x, int64_t k, int64_t n, row_outlier *found) {
    int count = 0;
    for (int64_t t = 0; t < x->n; t += act_block_len(x->all)) {
        const act_block b = pass_block(x, t, k);
        const int64_t end = n / 32 * b.n;
        for (int64_t i = act_next_outlier(&b, 0, end); i < end; i = act_next_outlier(&b, i + 1, end))
            found[count++] = (row_outlier){
                .x = b.outlier[i], .row = (uint16_t)(t + i % b.n), .group = (uint8_t)(i / b.n), .col = b.outlier_at[i]};
    }
    return count;
}

/* y of rows r .. r_end of the weights and of x. Sums stay in f over all panels of columns, as y would be read from far
 * away; some tiles take turns with the activations of a panel, as those of all columns would not stay in the L2 cache.
 */
static void many_rows(const llmq_weight *w, const pass *x, int64_t r, int64_t r_end, code_vec table, float *y,
                      int64_t ldy) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    const int64_t tile_bytes = layout_tile_bytes(l, w->cols), step = layout_panel_cols(l, w->cols, PANEL_COLS),
                  n_tiles = (r_end - r + 15) / 16;
    const uint8_t *tiles = (const uint8_t *)w->packed + r / 16 * tile_bytes;
    _Alignas(64) float f[PASS_TILES][PASS_ROWS][16];
    row_outlier outlier[PASS_ROWS * PANEL_COLS / 32];
    panel p;
    for (int64_t k = 0, n; k < w->cols; k += n) {
        n = w->cols - k < step ? w->cols - k : step;
        const int64_t at = layout_place_of(l, k / 32).super, bytes = layout_span(l, k, n);
        const int n_outliers = find_outliers(x, k, n, outlier);
        for (int64_t i = 0; i < n_tiles; i++) {
            const uint8_t *next = i + 1 < n_tiles   ? tiles + (i + 1) * tile_bytes + at
                                  : k + n < w->cols ? tiles + layout_place_of(l, (k + n) / 32).super
                                                    : tiles + n_tiles * tile_bytes;
            many_fns[w->layout].unpack(tiles + i * tile_bytes, k, n, table, &p);
            panel_times(many_fns[w->layout].gemm, &p, x, k, n, next, bytes, f[i]);
            many_fns[w->layout].outliers(&p, outlier, n_outliers, f[i]);
            for (int64_t t = 0; t < x->n && k + n == w->cols; t += act_block_len(x->all)) {
                const act_block b = pass_block(x, t, 0);
                store_block(w, &b, f[i] + t, r + 16 * i, y + (x->first + t) / act_parts(w->act) * ldy, ldy);
            }
        }
    }
}

static void matmul_many(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const int64_t rows = PASS_TILES * PANEL_ROWS;
    const code_vec table = code_table(cpu_layout_of(w->layout));
    pass x = {.a = a, .all = act_parts(w->act) * a->n_tok};
    int64_t begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (; x.first < x.all; x.first += x.n) {
        x.n = x.all - x.first < PASS_ROWS ? x.all - x.first : PASS_ROWS;
        for (int64_t r = begin; r < end; r += rows) many_rows(w, &x, r, end - r < rows ? end : r + rows, table, y, ldy);
    }
}

#endif
