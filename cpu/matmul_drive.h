/* From the kernels of one tile to products of matrices: included after outliers_tile, gemv_tile, unpack_tile and
 * gemm_tile, each compiled here for every layout and number of tokens, and code_table. */
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

typedef struct tile_fns {
    void (*unpack)(const uint8_t *tile, int64_t k0, int64_t n, code_vec table, panel *out);
    void (*gemm[TILE])(const panel *w, act_block b, int t0, int64_t n, float f[TILE][16]);
} tile_fns;

#if TILE == 6
#define TILES(Y, ...)                                                                                                  \
    Y(1, __VA_ARGS__) Y(2, __VA_ARGS__) Y(3, __VA_ARGS__) Y(4, __VA_ARGS__) Y(5, __VA_ARGS__) Y(6, __VA_ARGS__)
#else
#define TILES(Y, ...) Y(1, __VA_ARGS__) Y(2, __VA_ARGS__) Y(3, __VA_ARGS__)
#endif
#define GEMM(nt, type, ...)                                                                                            \
    static void gemm##nt##_##type(const panel *w, act_block b, int t0, int64_t n, float f[TILE][16]) {                 \
        gemm_tile(__VA_ARGS__, nt, w, b, t0, n, f);                                                                    \
    }
#define GEMM_NAME(nt, type) gemm##nt##_##type,
#define X(type, ...)                                                                                                   \
    static void unpack_##type(const uint8_t *tile, int64_t k0, int64_t n, code_vec table, panel *out) {                \
        unpack_tile(__VA_ARGS__, tile, k0, n, table, out);                                                             \
    }                                                                                                                  \
    TILES(GEMM, type, __VA_ARGS__)
CPU_LAYOUTS(X)
#undef X

static const tile_fns tiles[LAYOUT_BF16] = {
#define X(type, ...) [LAYOUT_##type] = {unpack_##type, {TILES(GEMM_NAME, type)}},
    CPU_LAYOUTS(X)
#undef X
};

/* Rows of activations of a pass over all weights: they stay in the L2 cache meanwhile. Whole blocks. */
static int64_t pass_rows(int64_t cols) {
    int64_t n = L2_BYTES / cols / ACT_BLOCK * ACT_BLOCK;
    return n > PASS_ROWS ? PASS_ROWS : n < 5 * ACT_BLOCK ? 5 * ACT_BLOCK : n;
}

/* f (n_rows, 16) += panel, columns k .. k+n, x the n_rows from first on of all rows of activations. */
static void panel_times(const tile_fns *fns, const llmq_acts *a, const panel *p, int64_t k, int64_t n, int64_t all,
                        int64_t first, int64_t n_rows, float f[][16]) {
    for (int64_t t = 0; t < n_rows; t += act_block_len(all)) {
        act_block b = act_block_from(act_block_at(a, all, first + t), k);
        for (int i = 0; i < b.n; i += TILE) fns->gemm[(b.n - i < TILE ? b.n - i : TILE) - 1](p, b, i, n, f + t + i);
    }
}

/* Sums stay in f over all panels of columns, as y would be read from far away. */
static void matmul_many(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    int64_t tile_bytes = layout_tile_bytes(l, w->cols), step = layout_panel_cols(l, w->cols, PANEL_COLS), begin, end;
    const int parts = act_parts(w->act);
    const int64_t all = parts * a->n_tok, len = act_block_len(all), pass = pass_rows(w->cols);
    const tile_fns *fns = &tiles[w->layout];
    code_vec table = code_table(l);
    _Alignas(64) float f[PASS_ROWS][16];
    panel p;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t first = 0; first < all; first += pass) {
        int64_t n_rows = all - first < pass ? all - first : pass;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint8_t *tile = (const uint8_t *)w->packed + r / 16 * tile_bytes;
            memset(f, 0, (size_t)n_rows * sizeof *f);
            for (int64_t k = 0; k < w->cols; k += step) {
                int64_t n = w->cols - k < step ? w->cols - k : step;
                fns->unpack(tile, k, n, table, &p);
                panel_times(fns, a, &p, k, n, all, first, n_rows, f);
            }
            for (int64_t t = 0; t < n_rows; t += len) {
                act_block b = act_block_at(a, all, first + t);
                outliers_fns[w->layout](tile, w->cols, table, &b, 0, b.n, f + t);
                store_block(w, &b, f + t, r, y + (first + t) / parts * ldy, ldy);
            }
        }
    }
}

#endif
