/* Many tokens times 8-bit rows (int8.h) by tiles of bytes: the bits of int8_avx512.c, since sums are whole numbers.
 *
 * Weights are the right operand as they are stored. Inputs go into tiles when they are filled, so that rows of many
 * tokens do not compete for the same sets of the caches. A panel of 32 rows x 512 columns is multiplied by up to 512
 * tokens; between panels the sums of 128 rows wait in the L2 cache. */
#include "cpu/amx_square.h"
#include "cpu/cpu.h"
#include "cpu/int8_avx512.h"
#include "cpu/layout.h"

#define DEPTH 64 /* columns of a tile */
#define SQUARE (2 * AMX_SIDE)
#define BLOCK_ROWS 128
#define BLOCK_TOKENS 512

static bool many(int64_t n_tok) {
    return n_tok > AMX_SIDE;
}

/* ---- inputs: tiles of 16 tokens x 64 columns, then int8_token of each token */

static size_t tiles_bytes(int64_t n_tok, int64_t cols) {
    return (size_t)(tiles_of(n_tok, AMX_SIDE) * tiles_of(cols, DEPTH) * AMX_TILE);
}

static int8_token *tokens_of(const llmq_acts *a) {
    return (int8_token *)(void *)((char *)a->int8 + tiles_bytes(a->n_tok, a->cols));
}

static void fill_tiles(const llmq_worker *worker, const llmq_acts *a) {
    int64_t depth = tiles_of(a->cols, DEPTH), n = tiles_of(a->n_tok, AMX_SIDE), begin, end;
    _Alignas(64) int8_t row[INT8_MAX_COLS];
    worker_range(worker, a->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        fill_row(a->x + t * a->cols, a->cols, a->range, row, tokens_of(a) + t);
        for (int64_t k = 0; k < depth; k++)
            memcpy((uint8_t *)a->int8 + tile_offset(t / AMX_SIDE, k, n, depth) + t % AMX_SIDE * DEPTH, row + k * DEPTH,
                   DEPTH);
    }
}

/* ---- products */

/* The two tiles of rows from r on, of the panel of columns that begins with tile k; one that is cut short goes to
 * `room`. A missing half repeats the first and is not stored. */
static void panel_rows(const llmq_weight *w, int64_t r, int64_t k, uint8_t (*room)[PANEL_TILES * AMX_TILE],
                       const uint8_t *b[2]) {
    int64_t n = panel_tiles(k, tiles_of(w->cols, DEPTH)), bytes = (w->cols - k * DEPTH) * AMX_SIDE;
    for (int i = 0; i < 2; i++) {
        int64_t tile = w->rows - r > AMX_SIDE ? r / AMX_SIDE + i : r / AMX_SIDE;
        b[i] = (const uint8_t *)w->packed + tile * int8_tile_bytes(w->cols) + k * AMX_TILE;
        if (bytes >= n * AMX_TILE) continue;
        memcpy(room[i], b[i], (size_t)bytes);
        memset(room[i] + bytes, 0, (size_t)(n * AMX_TILE - bytes));
        b[i] = room[i];
    }
    amx_fence();
}

typedef struct sums {
    _Alignas(64) int32_t v[SQUARE][SQUARE];
} sums;

static void store_results(const product *p, const sums *s, int64_t n_tok) {
    amx_fence();
    for (int t = 0; t < n_tok; t++)
        for (int i = 0; i < 2 && p->rows > i * AMX_SIDE; i++) store(p, _mm512_load_si512(s->v[t] + 16 * i), t, i);
}

/* Tokens [t0, t1) times the panel, whose rows of weights are b. */
static void times_tokens(const llmq_acts *a, int64_t t0, int64_t t1, int64_t k, const uint8_t *const *b, product p,
                         sums *s) {
    int64_t depth = tiles_of(a->cols, DEPTH), n = panel_tiles(k, depth), all = tiles_of(a->n_tok, AMX_SIDE);
    p.token = tokens_of(a);
    next_tokens(&p, t0);
    for (int64_t t = t0; t < t1; t += SQUARE, s++, next_tokens(&p, SQUARE)) {
        const uint8_t *a0 = (const uint8_t *)a->int8 + tile_offset(t / AMX_SIDE, k, all, depth);
        if (k == 0)
            zero_sums();
        else
            load_sums(s, sizeof s->v[0]);
        multiply_bytes(a0, a->n_tok - t > AMX_SIDE ? a0 + n * AMX_TILE : a0, b[0], b[1], n, s + 1, sizeof s->v[0]);
        store_sums(s, sizeof s->v[0]);
        if (k + n == depth) store_results(&p, s, t1 - t < SQUARE ? t1 - t : SQUARE);
    }
}

static void matmul_tiles(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    _Alignas(64) uint8_t room[2][PANEL_TILES * AMX_TILE];
    sums s[BLOCK_ROWS / SQUARE][BLOCK_TOKENS / SQUARE];
    int64_t depth = tiles_of(w->cols, DEPTH), begin, end;
    worker_range(worker, w->rows, SQUARE, &begin, &end);
    for (int64_t t = 0; t < a->n_tok; t += BLOCK_TOKENS) {
        int64_t t1 = a->n_tok - t < BLOCK_TOKENS ? a->n_tok : t + BLOCK_TOKENS;
        for (int64_t r0 = begin; r0 < end; r0 += BLOCK_ROWS) {
            for (int64_t k = 0; k < depth; k += PANEL_TILES) {
                for (int64_t r = r0; r < end && r < r0 + BLOCK_ROWS; r += SQUARE) {
                    const uint8_t *b[2];
                    panel_rows(w, r, k, room, b);
                    times_tokens(a, t, t1, k, b, product_of(w, a, y, ldy, r), s[(r - r0) / SQUARE]);
                    amx_fence(); /* before `room` is written again */
                }
            }
        }
    }
}

/* ---- entries */

static llmq_backend_ops before; /* what was filled before: everything else */

static size_t acts_bytes(llmq_act_form form, int64_t n_tok, int64_t cols) {
    if (form != ACT_INT8 || !many(n_tok)) return before.acts_bytes(form, n_tok, cols);
    return tiles_bytes(n_tok, cols) + (size_t)n_tok * sizeof(int8_token);
}

static void acts_fill(const llmq_worker *worker, llmq_acts *a, llmq_act_form form) {
    if (form == ACT_INT8 && many(a->n_tok))
        fill_tiles(worker, a);
    else
        before.acts_fill(worker, a, form);
}

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout != LAYOUT_INT8 || !many(a->n_tok)) {
        before.matmul(worker, w, a, y, ldy);
        return;
    }
    amx_begin();
    matmul_tiles(worker, w, a, y, ldy);
    amx_end();
}

void cpu_fill_int8_amx(llmq_backend_ops *ops) {
    before = *ops;
    ops->acts_bytes = acts_bytes;
    ops->acts_fill = acts_fill;
    ops->matmul = matmul;
}
