/* Gram matrix of inputs rounded to 8 bits, by tiles: the bits of gram_avx512.c, since sums of a slice are whole
 * numbers.
 *
 * Both operands of tdpbssd are signed. A panel's words, four tokens of a column each, are the right operand as they
 * stand; the left one has 64 tokens of a column side by side, which is 16 x 16 of those words transposed. Squares of
 * 32 x 32 columns are summed over a slice in four tiles, and scaled and added from the L1 cache. */
#include "cpu/amx_square.h"

#include <string.h>

#include "cpu/gram_q8.h"

#define DEPTH 64                      /* tokens of a tile */
#define SQUARE (2 * AMX_SIDE)         /* columns of a side of a square */
#define LINE (SIDE * sizeof(int32_t)) /* between rows of a tile of the right operand */

typedef struct tile_panel {
    panel p;
    _Alignas(64) int8_t left[SIDE / AMX_SIDE][SLICE / DEPTH][AMX_TILE]; /* tiles of 16 columns x 64 tokens */
} tile_panel;

static void pack(const slice *s, int64_t index, double *sums, void *to) {
    tile_panel *p = to;
    int64_t quads = (s->n_tok + 3) / 4, all = (s->n_tok + DEPTH - 1) / DEPTH * (DEPTH / 4);
    pack_panel(s, index, sums, &p->p);
    memset(p->p.word + quads * SIDE, 0, (size_t)(all - quads) * LINE);
    for (int64_t k = 0; k < all / 16; k++) {
        for (int i = 0; i < SIDE / AMX_SIDE; i++) {
            vf r[VF_N];
            UNROLL_FOR(q, VF_N) r[q] = vf_load((const float *)&p->p.word[(k * 16 + q) * SIDE + i * AMX_SIDE]);
            vf_transpose(r);
            UNROLL_FOR(q, VF_N) vf_store((float *)(void *)(p->left[i][k] + 64 * q), r[q]);
        }
    }
}

typedef struct square {
    _Alignas(64) int32_t sum[SQUARE][SQUARE];
} square;

/* Columns i0.. of panel r times columns j0.. of panel c. */
INLINE void multiply_square(int64_t n_tok, const tile_panel *r, int64_t i0, const tile_panel *c, int64_t j0,
                            square *out) {
    const int8_t *a = r->left[i0 / AMX_SIDE][0], *low = r->left[i0 / AMX_SIDE + 1][0];
    const int32_t *b = c->p.word + j0;
    zero_sums();
    for (int64_t t = 0; t < n_tok; t += DEPTH, a += AMX_TILE, low += AMX_TILE, b += DEPTH / 4 * SIDE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, LINE);
        _tile_loadd(7, b + AMX_SIDE, LINE);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, low, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    store_sums(out->sum[0], sizeof out->sum[0]);
    amx_fence();
}

static void multiply(int64_t n_tok, const void *rows, const void *cols, tile *t) {
    const tile_panel *r = rows, *c = cols;
    square q;
    for (int64_t j = 0; j < t->n_cols; j += SQUARE) {
        for (int64_t i = t->diagonal ? j : 0; i < t->n_rows; i += SQUARE) {
            multiply_square(n_tok, r, i, c, j, &q);
            for (int64_t k = 0; k < SQUARE; k++) {
                UNROLL for (int h = 0; h < SQUARE; h += 16) add_sums(
                    &t->sum[i + k][j + h], _mm512_load_si512(q.sum[k] + h), r->p.scale[i + k], c->p.scale + j + h);
            }
        }
    }
}

static const gram_kernel kernel = {sizeof(tile_panel), pack, multiply};

static size_t scratch_bytes(int64_t n_tok, int64_t cols) {
    return gram_q8_scratch(&kernel, n_tok, cols);
}

static llmq_backend_ops avx512; /* what tiles do not do */

static void gram_add(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, bool allow_q8, double *sums,
                     float *gram, void *scratch) {
    if (!allow_q8) {
        avx512.gram_add(w, x, n_tok, cols, allow_q8, sums, gram, scratch);
        return;
    }
    amx_begin();
    gram_q8(&kernel, w, x, n_tok, cols, sums, gram, scratch);
    amx_end();
}

void cpu_fill_gram_amx(llmq_backend_ops *ops) {
    avx512 = *ops;
    ops->gram_scratch_bytes = scratch_bytes;
    ops->gram_add = gram_add;
}
