/* The gradient of a matrix, dy' x, by vdpbf16ps, where its products may round their inputs.
 *
 * Both sides are put in panels of pairs of tokens, (panels, pairs, width), each word two tokens of one column. A tile
 * is PAIR_ROWS rows, broadcast one after another, times PAIR_VECS vectors of columns: all sums in registers. */
#include "cpu/cpu.h"
#include "cpu/simd.h"

static llmq_backend_ops avx512; /* what it does not do goes to the ops as AVX-512 filled them */

#define PAIR_ROWS 8
#define PAIR_VECS 3
#define PAIR_COLS (PAIR_VECS * VF_N)
#define PAIR_STEP 128 /* pairs of a pass: a panel of columns stays in the L1 cache */

static int64_t panel_count(int64_t n, int64_t width) {
    return (n + width - 1) / width;
}
static int64_t panel_words(int64_t n, int64_t width, int64_t n_tok) {
    return panel_count(n, width) * width * ((n_tok + 1) / 2);
}

/* Panels [begin, end) of x (n_tok, n). */
static void pack_pairs(const float *x, int64_t n, int64_t n_tok, int64_t width, int64_t begin, int64_t end,
                       uint32_t *out) {
    int64_t pairs = (n_tok + 1) / 2;
    for (int64_t p = begin; p < end; p++)
        for (int64_t t = 0; t < pairs; t++)
            for (int64_t i = 0; i < width; i += VF_N) {
                int64_t c = p * width + i, m = c < n ? lanes_left(n < (p + 1) * width ? n : (p + 1) * width, c) : 0;
                vf even = vf_load_n(x + 2 * t * n + c, m);
                vf odd = 2 * t + 1 < n_tok ? vf_load_n(x + (2 * t + 1) * n + c, m) : vf_zero();
                vf_store_n((float *)(void *)(out + (p * pairs + t) * width + i), vf_pair_bf16(even, odd),
                           width - i < VF_N ? width - i : VF_N);
            }
}

SIMD_FN void outer_pairs(const uint32_t *a, const uint32_t *b, int64_t pairs, bool add, int64_t m, int64_t len,
                         float *g, int64_t cols) {
    vf acc[PAIR_ROWS][PAIR_VECS];
    UNROLL_FOR(i, PAIR_ROWS)
    UNROLL_FOR(j, PAIR_VECS) acc[i][j] = vf_zero();
    for (int64_t i = 0; add && i < m; i++) /* the sums so far lie in the L3 cache or beyond */
        for (int64_t j = 0; j < len; j += VF_N) _mm_prefetch((const char *)(g + i * cols + j), _MM_HINT_T0);
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh v[PAIR_VECS];
        UNROLL_FOR(j, PAIR_VECS) v[j] = (__m512bh)_mm512_loadu_si512(b + k * PAIR_COLS + j * VF_N);
        UNROLL_FOR(i, PAIR_ROWS) {
            __m512i x = _mm512_set1_epi32((int)a[k * PAIR_ROWS + i]);
            UNROLL_FOR(j, PAIR_VECS) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)x, v[j]);
        }
    }
    UNROLL_FOR(i, PAIR_ROWS) {
        if (i >= m) break;
        UNROLL_FOR(j, PAIR_VECS) {
            int64_t n = len - j * VF_N;
            n = n < 0 ? 0 : n < VF_N ? n : VF_N;
            float *to = g + i * cols + j * VF_N;
            vf_store_n(to, add ? vf_add(vf_load_n(to, n), acc[i][j]) : acc[i][j], n);
        }
    }
}

static void outer_bf16(const llmq_worker *w, const float *dy, int64_t rows, const float *x, int64_t cols, int64_t n_tok,
                       bool add, float *g, void *scratch) {
    int64_t n_a = panel_count(rows, PAIR_ROWS), n_b = panel_count(cols, PAIR_COLS), pairs = (n_tok + 1) / 2, begin, end;
    uint32_t *a = scratch, *b = a + panel_words(rows, PAIR_ROWS, n_tok);
    worker_range(w, n_a, 1, &begin, &end);
    pack_pairs(dy, rows, n_tok, PAIR_ROWS, begin, end, a);
    worker_range(w, n_b, 1, &begin, &end);
    pack_pairs(x, cols, n_tok, PAIR_COLS, begin, end, b);
    worker_barrier(w);
    worker_range(w, n_a, 1, &begin, &end);
    for (int64_t k = 0; k < pairs; k += PAIR_STEP) {
        int64_t n = pairs - k < PAIR_STEP ? pairs - k : PAIR_STEP;
        for (int64_t j = 0; j < n_b; j++) {
            int64_t len = cols - j * PAIR_COLS < PAIR_COLS ? cols - j * PAIR_COLS : PAIR_COLS;
            for (int64_t i = begin; i < end; i++) {
                int64_t m = rows - i * PAIR_ROWS < PAIR_ROWS ? rows - i * PAIR_ROWS : PAIR_ROWS;
                outer_pairs(a + (i * pairs + k) * PAIR_ROWS, b + (j * pairs + k) * PAIR_COLS, n, add || k > 0, m, len,
                            g + i * PAIR_ROWS * cols + j * PAIR_COLS, cols);
            }
        }
    }
    worker_barrier(w); /* the scratch may be used again */
}

static size_t outer_scratch(int64_t rows, int64_t cols, int64_t n_tok) {
    return (size_t)(panel_words(rows, PAIR_ROWS, n_tok) + panel_words(cols, PAIR_COLS, n_tok)) * sizeof(uint32_t);
}

static void outer(const llmq_worker *w, const float *dy, int64_t rows, const float *x, int64_t cols, int64_t n_tok,
                  bool add, bool allow_bf16, float *g, void *scratch) {
    if (allow_bf16)
        outer_bf16(w, dy, rows, x, cols, n_tok, add, g, scratch);
    else
        avx512.outer(w, dy, rows, x, cols, n_tok, add, allow_bf16, g, scratch);
}

void cpu_fill_grad_avx512bf16(llmq_backend_ops *ops) {
    avx512 = *ops;
    ops->outer_scratch_bytes = outer_scratch;
    ops->outer = outer;
}
