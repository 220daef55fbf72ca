/* The gradient of a matrix, dy' x, by tiles of bf16.
 *
 * Tokens are the columns of tiles. Both operands begin as words of two tokens of a column: 16 x 16 of them are a tile
 * of x as they stand, and a tile of dy when transposed. Squares of 32 x 32 results are summed over 256 tokens at a
 * time; those of a block wait for the next tokens in the L2 cache. A result's order of sums depends on the shape only.
 */
#include "cpu/amx_square.h"

#include <string.h>

#include "cpu/cpu.h"

#define SQUARE (2 * AMX_SIDE)
#define BLOCK_ROWS 512 /* results whose sums are kept: 256 KB, */
#define BLOCK_COLS 128

/* ---- operands */

static int64_t operand_bytes(int64_t n, int64_t n_tok) {
    return tiles_of(n, SQUARE) * 2 * tiles_of(n_tok, AMX_DEPTH) * AMX_TILE;
}

static void pack(const llmq_worker *w, const float *x, int64_t n, int64_t n_tok, bool transposed, uint8_t *out) {
    int64_t depth = tiles_of(n_tok, AMX_DEPTH), n_tiles = 2 * tiles_of(n, SQUARE), begin, end;
    worker_range(w, n_tiles, 1, &begin, &end);
    for (int64_t k = 0; k < depth; k++)
        for (int64_t i = begin; i < end; i++)
            pack_pairs(x, n, n_tok, n, k * AMX_DEPTH, i * AMX_SIDE, transposed,
                       out + tile_offset(i, k, n_tiles, depth));
}

/* ---- products */

/* A square of results: its part of g. */
typedef struct square {
    float *g;
    int64_t cols, n_rows, n_cols; /* the stride of g; how many are there from here on */
    bool add;
} square;

/* The same whole, for the edges. */
typedef struct edge {
    _Alignas(64) float g[SQUARE][SQUARE];
} edge;

INLINE bool is_whole(const square *s) {
    return s->n_rows >= SQUARE && s->n_cols >= SQUARE;
}

static void begin_square(const square *s) {
    if (!s->add) {
        zero_sums();
        return;
    }
    if (is_whole(s)) {
        load_sums(s->g, s->cols * 4);
        return;
    }
    edge e;
    memset(&e, 0, sizeof e);
    for (int64_t r = 0; r < s->n_rows && r < SQUARE; r++)
        for (int i = 0; i < 2; i++)
            _mm512_store_ps(&e.g[r][16 * i],
                            _mm512_maskz_loadu_ps(mask_of(s->n_cols - 16 * i), s->g + r * s->cols + 16 * i));
    amx_fence();
    load_sums(e.g[0], sizeof e.g[0]);
}

typedef struct job {
    const uint8_t *a, *b; /* tiles of dy and of x */
    int64_t rows, cols, n_tok;
    bool add;
    float *g;
} job;

/* 32 rows from r on times 32 columns from c on, over the panel of tokens that begins with tile k. */
static void times_panel(const job *j, int64_t r, int64_t c, int64_t k, float *sums) {
    int64_t depth = tiles_of(j->n_tok, AMX_DEPTH), n = panel_tiles(k, depth), step = n * AMX_TILE;
    const uint8_t *a = j->a + tile_offset(r / AMX_SIDE, k, 2 * tiles_of(j->rows, SQUARE), depth);
    const uint8_t *b = j->b + tile_offset(c / AMX_SIDE, k, 2 * tiles_of(j->cols, SQUARE), depth);
    square s = {j->g + r * j->cols + c, j->cols, j->rows - r, j->cols - c, j->add};
    bool first = k == 0, last = k + n == depth;
    if (first)
        begin_square(&s);
    else
        load_sums(sums, 128);
    if (first && (s.n_rows < 2 * SQUARE || !s.add)) /* nothing to fetch */
        multiply_bf16(a, a + step, b, b + step, n, s.g, 0);
    else if (first)
        multiply_bf16(a, a + step, b, b + step, n, s.g + SQUARE * j->cols, j->cols * 4);
    else
        multiply_bf16(a, a + step, b, b + step, n, sums + SQUARE * SQUARE, 128);
    if (last)
        finish_sums(s.g, s.cols, s.n_rows, s.n_cols);
    else
        store_sums(sums, 128);
}

/* Up to BLOCK_ROWS x BLOCK_COLS results. */
static void block(const job *j, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    _Alignas(64) float sums[BLOCK_COLS / SQUARE][BLOCK_ROWS / SQUARE][SQUARE * SQUARE];
    for (int64_t k = 0; k < tiles_of(j->n_tok, AMX_DEPTH); k += PANEL_TILES)
        for (int64_t c = c0; c < c1; c += SQUARE)
            for (int64_t r = r0; r < r1; r += SQUARE)
                times_panel(j, r, c, k, sums[(c - c0) / SQUARE][(r - r0) / SQUARE]);
}

static void outer_tiles(const llmq_worker *w, const float *dy, int64_t rows, const float *x, int64_t cols,
                        int64_t n_tok, bool add, float *g, void *scratch) {
    uint8_t *a = scratch, *b = a + operand_bytes(rows, n_tok);
    job j = {a, b, rows, cols, n_tok, add, g};
    int64_t begin, end;
    pack(w, dy, rows, n_tok, true, a);
    pack(w, x, cols, n_tok, false, b);
    worker_barrier(w);
    worker_range(w, rows, SQUARE, &begin, &end);
    amx_begin();
    for (int64_t r = begin; r < end; r += BLOCK_ROWS)
        for (int64_t c = 0; c < cols; c += BLOCK_COLS)
            block(&j, r, end - r < BLOCK_ROWS ? end : r + BLOCK_ROWS, c, cols - c < BLOCK_COLS ? cols : c + BLOCK_COLS);
    amx_end();
    worker_barrier(w); /* the scratch may be used again */
}

/* ---- entries */

static llmq_backend_ops avx512; /* what tiles do not do */

static size_t scratch_bytes(int64_t rows, int64_t cols, int64_t n_tok) {
    return (size_t)(operand_bytes(rows, n_tok) + operand_bytes(cols, n_tok));
}

static void outer(const llmq_worker *w, const float *dy, int64_t rows, const float *x, int64_t cols, int64_t n_tok,
                  bool add, bool allow_bf16, float *g, void *scratch) {
    if (allow_bf16)
        outer_tiles(w, dy, rows, x, cols, n_tok, add, g, scratch);
    else
        avx512.outer(w, dy, rows, x, cols, n_tok, add, allow_bf16, g, scratch);
}

void cpu_fill_grad_amx(llmq_backend_ops *ops) {
    avx512 = *ops;
    ops->outer_scratch_bytes = scratch_bytes;
    ops->outer = outer;
}
