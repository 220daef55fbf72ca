/* C -= A B, Gram matrix and Cholesky in vectors; included by the file of each ISA.
 *
 * Every element is summed in an order that depends on its own position only, so results do not depend on the team. */
#include <math.h>

#include "core/mem.h"
#include "cpu/ops.h"
#include "cpu/tile_simd.h"

/* ---- C -= A B ---- */

/* Register tiles of GEMM_M rows and two vectors: their part of B stays in the L1 cache. Blocks of A and B are copied to
 * the stack (72 + 24 KB, or 72 + 12): rows of the operands are often a power of two apart and would fight for the same
 * sets of the caches. Not copied is an A that only one tile of columns is multiplied with, which costs more to copy
 * than to read, nor a B that lies close together already. */
#define GEMM_KC 192
#define GEMM_MC 96
#define GEMM_N (2 * VF_N)
#if VF_N == 16
#define GEMM_M 12
#else
#define GEMM_M 6
#endif

typedef struct gemm_block {
    int64_t m, n, k;
    const float *a, *b; /* (m, k), (k, n up to whole vectors) */
    int64_t lda, ldb;
    _Alignas(64) float a_copy[GEMM_MC * GEMM_KC];
    _Alignas(64) float b_copy[GEMM_KC * GEMM_N]; /* missing columns 0 */
} gemm_block;

static void gemm_copy_a(gemm_block *g) {
    for (int64_t i = 0; i < g->m; i++) memcpy(g->a_copy + i * GEMM_KC, g->a + i * g->lda, sizeof(float) * (size_t)g->k);
    g->a = g->a_copy;
    g->lda = GEMM_KC;
}

static void gemm_copy_b(gemm_block *g) {
    for (int64_t l = 0; l < g->k; l++)
        for (int j = 0; j < 2; j++) {
            int64_t left = g->n - j * VF_N;
            const float *from = g->b + l * g->ldb + j * VF_N;
            vf v = left >= VF_N ? vf_load(from) : left > 0 ? vf_load_n(from, left) : vf_zero();
            vf_store(g->b_copy + l * GEMM_N + j * VF_N, v);
        }
    g->b = g->b_copy;
    g->ldb = GEMM_N;
}

/* m rows and nv vectors of columns; meanwhile the rows of A that come next, at `next`, are fetched. */
SIMD_FN void gemm_tile(int m, int nv, const gemm_block *g, int64_t row, const float *next, float *c, int64_t ldc) {
    vf acc[GEMM_M][4];
    UNROLL_FOR(i, m)
    UNROLL_FOR(j, nv) acc[i][j] = vf_zero();
    const float *a = g->a + row * g->lda;
    for (int64_t l = 0; l < g->k; l += 16) { /* a cache line of A */
        UNROLL_FOR(i, m) __builtin_prefetch(next + i * g->lda + l);
        tile_fma(m, nv, g->k - l < 16 ? g->k - l : 16, a + l, g->lda, 1, g->b + l * g->ldb, g->ldb, acc);
    }
    int64_t last = g->n - (nv - 1) * VF_N; /* columns of the last vector */
    UNROLL_FOR(i, m) {
        float *to = c + (row + i) * ldc;
        UNROLL_FOR(j, nv - 1) vf_store(to + j * VF_N, vf_sub(vf_load(to + j * VF_N), acc[i][j]));
        to += (nv - 1) * VF_N;
        vf_store_n(to, vf_sub(vf_load_n(to, last), acc[i][nv - 1]), last);
    }
}

SIMD_FN void gemm_rows(int m, const gemm_block *g, int64_t row, float *c, int64_t ldc) {
    const float *next = row + m < g->m ? g->a + (row + m) * g->lda : g->a + g->k;
    if (g->n <= VF_N)
        gemm_tile(m, 1, g, row, next, c, ldc);
    else
        gemm_tile(m, 2, g, row, next, c, ldc);
}

static void gemm_run(const gemm_block *g, float *c, int64_t ldc) {
    int64_t row = 0;
    for (; row + GEMM_M <= g->m; row += GEMM_M) gemm_rows(GEMM_M, g, row, c, ldc);
#if GEMM_M > 8
    if (row + 8 <= g->m) {
        gemm_rows(8, g, row, c, ldc);
        row += 8;
    }
#endif
    if (row + 4 <= g->m) {
        gemm_rows(4, g, row, c, ldc);
        row += 4;
    }
    if (row + 2 <= g->m) {
        gemm_rows(2, g, row, c, ldc);
        row += 2;
    }
    if (row < g->m) gemm_rows(1, g, row, c, ldc);
}

void SIMD_NAME(linalg_gemm_sub)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                                int64_t ldb, float *c, int64_t ldc) {
    gemm_block g;
    bool copy_a = n > GEMM_N, copy_b = ldb > GEMM_N || n % VF_N != 0;
    for (int64_t k0 = 0; k0 < k; k0 += GEMM_KC) {
        g.k = k - k0 < GEMM_KC ? k - k0 : GEMM_KC;
        for (int64_t m0 = 0; m0 < m; m0 += GEMM_MC) {
            g.m = m - m0 < GEMM_MC ? m - m0 : GEMM_MC;
            g.a = a + m0 * lda + k0;
            g.lda = lda;
            if (copy_a) gemm_copy_a(&g);
            for (int64_t n0 = 0; n0 < n; n0 += GEMM_N) {
                g.n = n - n0 < GEMM_N ? n - n0 : GEMM_N;
                g.b = b + k0 * ldb + n0;
                g.ldb = ldb;
                if (copy_b) gemm_copy_b(&g);
                gemm_run(&g, c + m0 * ldc + n0, ldc);
            }
        }
    }
}

/* ---- Gram matrix ----
 * The triangle is cut into GRAM x GRAM tiles. A worker takes a slice of the tokens, copies the columns of a tile row
 * once and those of each of its tile columns, and adds the slice's products to its tiles: x is read in order, panels
 * stay in L1 and L2. */

#define GRAM 96
#if VF_N == 16
#define GRAM_M 8
#define GRAM_NV 3
#else
#define GRAM_M 6
#define GRAM_NV 2
#endif
#define GRAM_TOK 128
#define GRAM_HAS_Q8 (VF_N == 16) /* gram_avx512.c */

typedef struct gram_panels {
    _Alignas(64) float row[GRAM_TOK * GRAM], col[GRAM_TOK * GRAM]; /* (tokens, GRAM) */
} gram_panels;

static void gram_pack(const float *x, int64_t n_tok, int64_t cols, int64_t col0, float *panel) {
    int64_t width = cols - col0 < GRAM ? cols - col0 : GRAM;
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t j = 0; j < GRAM; j += VF_N) {
            int64_t left = width - j;
            const float *from = x + t * cols + col0 + j;
            vf_store(panel + t * GRAM + j, left >= VF_N ? vf_load(from) : left > 0 ? vf_load_n(from, left) : vf_zero());
        }
}

/* The tile's sums so far lie in the L3 cache or beyond: fetch them while the products are made. */
SIMD_FN void gram_tile_fetch(const float *gram, int64_t cols, int64_t row, int64_t col) {
    UNROLL_FOR(i, GRAM_M)
    UNROLL_FOR(j, GRAM_NV)
    if (row + i < cols && col + j * VF_N < cols) __builtin_prefetch(gram + (row + i) * cols + col + j * VF_N);
}

SIMD_FN void gram_tile_zero(vf acc[][4]) {
    UNROLL_FOR(i, GRAM_M)
    UNROLL_FOR(j, GRAM_NV) acc[i][j] = vf_zero();
}

/* Adds a register tile at (row, col) of the matrix, only on and below the diagonal and left of cols. */
SIMD_FN void gram_tile_add(vf acc[][4], float *gram, int64_t cols, int64_t row, int64_t col) {
    UNROLL_FOR(i, GRAM_M) {
        if (row + i >= cols) break;
        UNROLL_FOR(j, GRAM_NV) {
            int64_t left = row + i + 1 - (col + j * VF_N);
            float *to = gram + (row + i) * cols + col + j * VF_N;
            if (left >= VF_N)
                vf_store(to, vf_add(vf_load(to), acc[i][j]));
            else if (left > 0)
                vf_store_n(to, vf_add(vf_load_n(to, left), acc[i][j]), left);
        }
    }
}

SIMD_FN void gram_tile(int64_t n_tok, const float *a, const float *b, float *gram, int64_t cols, int64_t row,
                       int64_t col) {
    vf acc[GRAM_M][4];
    gram_tile_fetch(gram, cols, row, col);
    gram_tile_zero(acc);
    tile_fma(GRAM_M, GRAM_NV, n_tok, a, 1, GRAM, b, GRAM, acc);
    gram_tile_add(acc, gram, cols, row, col);
}

static void gram_block(int64_t n_tok, const float *a, const float *b, float *gram, int64_t cols, int64_t row0,
                       int64_t col0) {
    for (int64_t j = 0; j < GRAM && col0 + j < cols; j += GRAM_NV * VF_N)
        for (int64_t i = 0; i < GRAM && row0 + i < cols; i += GRAM_M) {
            if (row0 + i + GRAM_M <= col0 + j) continue; /* above the diagonal */
            gram_tile(n_tok, a + i, b + j, gram, cols, row0 + i, col0 + j);
        }
}

/* Workers divide columns; four tokens at a time go through a column's sum in their order. */
static void gram_sums(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, double *sums) {
    int64_t begin, end, t = 0;
    worker_range(w, cols, 16, &begin, &end);
    for (; t + 4 <= n_tok; t += 4) {
        const float *a = x + t * cols, *b = a + cols, *c = b + cols, *d = c + cols;
        for (int64_t i = begin; i < end; i++)
            sums[i] = sums[i] + (double)a[i] + (double)b[i] + (double)c[i] + (double)d[i];
    }
    for (; t < n_tok; t++)
        for (int64_t i = begin; i < end; i++) sums[i] += (double)x[t * cols + i];
}

static void gram_add_simd(const llmq_worker *w, const float *x0, int64_t n, int64_t cols, bool allow_q8, double *sums,
                          float *gram, void *scratch) {
#if GRAM_HAS_Q8
    if (allow_q8) {
        gram_q8_avx512(w, x0, n, cols, sums, gram, scratch);
        return;
    }
#endif
    (void)allow_q8;
    (void)scratch;
    int64_t n_tiles = (cols + GRAM - 1) / GRAM;
    gram_panels panels;
    for (int64_t t = 0; t < n; t += GRAM_TOK) {
        const float *x = x0 + t * cols;
        int64_t n_tok = n - t < GRAM_TOK ? n - t : GRAM_TOK;
        if (sums) gram_sums(w, x, n_tok, cols, sums);
        for (int64_t i = 0; i < n_tiles; i++) {
            bool packed = false;
            for (int64_t j = 0; j <= i; j++) {
                if (!gram_tile_mine(w, n_tiles, i, j)) continue;
                if (!packed) gram_pack(x, n_tok, cols, i * GRAM, panels.row);
                packed = true;
                if (j < i) gram_pack(x, n_tok, cols, j * GRAM, panels.col);
                gram_block(n_tok, panels.row, j < i ? panels.col : panels.row, gram, cols, i * GRAM, j * GRAM);
            }
        }
    }
}

/* ---- Cholesky ----
 * Left-looking by block columns of CHOL: everything to the left is subtracted from the block column by one long
 * product, A[j:, J] -= L[j:, 0:j] L[J, 0:j]', then its diagonal block is factored and the rows below are solved against
 * it. Only the lower triangle is read or written. */

#define CHOL 128
#define CHOL_SUB 32 /* columns solved at a time */
#define CHOL_ROWS 96

typedef struct chol_job {
    int64_t n, lda;
    float *a;
    float *left;          /* (n, CHOL): L[J, 0:j] transposed, so that it can be the right operand */
    float *diag, *diag_t; /* (CHOL, CHOL): the diagonal block and its transpose, zeros elsewhere */
    int64_t bad;          /* column of a pivot that is not positive, or -1; worker 0 writes it */
} chol_job;

/* Factors the n x n block d (CHOL wide) in place and writes its transpose to t. Returns the column that
 * failed, or -1. */
static int64_t chol_leaf(float *d, float *t, int64_t n) {
    for (int64_t c = 0; c < n; c++) {
        float pivot = d[c * CHOL + c];
        if (!(pivot > 0) || !isfinite(pivot)) return c;
        float root = sqrtf(pivot);
        d[c * CHOL + c] = t[c * CHOL + c] = root;
        for (int64_t r = c + 1; r < n; r++) t[c * CHOL + r] = d[r * CHOL + c] /= root;
        for (int64_t r = c + 1; r < n; r++) {
            float x = d[r * CHOL + c];
            for (int64_t j = c + 1; j <= r; j++) d[r * CHOL + j] -= x * t[c * CHOL + j];
        }
    }
    return -1;
}

/* Rows of X (m, n <= CHOL_SUB; ldx) become X L^-T, with L' given as t (CHOL wide). Lanes are rows: VF_N of them at a
 * time go through a transposed copy. */
static void chol_solve_sub(const float *t, int64_t n, float *x, int64_t ldx, int64_t m) {
    for (int64_t r = 0; r < m; r += VF_N) {
        vf col[CHOL_SUB];
        int64_t rows = m - r < VF_N ? m - r : VF_N;
        for (int64_t b = 0; b < CHOL_SUB; b += VF_N) {
            int64_t left = n - b < 0 ? 0 : n - b < VF_N ? n - b : VF_N;
            UNROLL_FOR(i, VF_N) col[b + i] = i < rows ? vf_load_n(x + (r + i) * ldx + b, left) : vf_zero();
            vf_transpose(col + b);
        }
        for (int64_t c = 0; c < n; c++) {
            vf y = col[c] = vf_div(col[c], vf_set1(t[c * CHOL + c]));
            for (int64_t j = c + 1; j < n; j++) col[j] = vf_fnma(y, vf_set1(t[c * CHOL + j]), col[j]);
        }
        for (int64_t b = 0; b < n; b += VF_N) {
            int64_t left = n - b < VF_N ? n - b : VF_N;
            vf_transpose(col + b);
            UNROLL_FOR(i, VF_N)
            if (i < rows) vf_store_n(x + (r + i) * ldx + b, col[b + i], left);
        }
    }
}

/* The same for n <= CHOL. */
static void chol_solve(const float *t, int64_t n, float *x, int64_t ldx, int64_t m) {
    for (int64_t s = 0; s < n; s += CHOL_SUB) {
        int64_t width = n - s < CHOL_SUB ? n - s : CHOL_SUB;
        SIMD_NAME(linalg_gemm_sub)(m, width, s, x, ldx, t + s, CHOL, x + s, ldx);
        chol_solve_sub(t + s * CHOL + s, width, x + s, ldx, m);
    }
}

/* As chol_leaf for n <= CHOL. What is above the diagonal of d is lost. */
static int64_t chol_factor(float *d, float *t, int64_t n) {
    for (int64_t s = 0; s < n; s += CHOL_SUB) {
        int64_t width = n - s < CHOL_SUB ? n - s : CHOL_SUB, below = s + width;
        SIMD_NAME(linalg_gemm_sub)(n - s, width, s, d + s * CHOL, CHOL, t + s, CHOL, d + s * CHOL + s, CHOL);
        int64_t bad = chol_leaf(d + s * CHOL + s, t + s * CHOL + s, width);
        if (bad >= 0) return s + bad;
        chol_solve_sub(t + s * CHOL + s, width, d + below * CHOL + s, CHOL, n - below);
        for (int64_t c = s; c < below; c++)
            for (int64_t r = below; r < n; r++) t[c * CHOL + r] = d[r * CHOL + c];
    }
    return -1;
}

static void chol_transpose_left(const llmq_worker *w, const chol_job *job, int64_t j0, int64_t width) {
    int64_t begin, end;
    worker_range(w, j0, 64, &begin, &end);
    for (int64_t k0 = begin; k0 < end; k0 += 64)
        for (int64_t i = 0; i < width; i++)
            for (int64_t k = k0; k < end && k < k0 + 64; k++) job->left[k * CHOL + i] = job->a[(j0 + i) * job->lda + k];
}

/* The diagonal block goes through a square copy, since the product would touch the upper triangle. */
static void chol_diagonal(chol_job *job, int64_t j0, int64_t width) {
    float *block = job->a + j0 * job->lda + j0;
    memset(job->diag, 0, sizeof(float) * CHOL * CHOL);
    memset(job->diag_t, 0, sizeof(float) * CHOL * CHOL);
    for (int64_t i = 0; i < width; i++)
        memcpy(job->diag + i * CHOL, block + i * job->lda, sizeof(float) * (size_t)(i + 1));
    SIMD_NAME(linalg_gemm_sub)(width, width, j0, job->a + j0 * job->lda, job->lda, job->left, CHOL, job->diag, CHOL);
    int64_t bad = chol_factor(job->diag, job->diag_t, width);
    if (bad >= 0) job->bad = j0 + bad;
    for (int64_t i = 0; i < width; i++)
        memcpy(block + i * job->lda, job->diag + i * CHOL, sizeof(float) * (size_t)(i + 1));
}

static void chol_worker(const llmq_worker *w, void *arg) {
    chol_job *job = arg;
    for (int64_t j0 = 0; j0 < job->n; j0 += CHOL) {
        int64_t width = job->n - j0 < CHOL ? job->n - j0 : CHOL, below = j0 + width, begin, end;
        chol_transpose_left(w, job, j0, width);
        worker_barrier(w);
        worker_range(w, job->n - below, CHOL_ROWS, &begin, &end);
        if (w->id == 0) chol_diagonal(job, j0, width);
        for (int64_t r = below + begin; r < below + end; r += CHOL_ROWS) {
            int64_t m = below + end - r < CHOL_ROWS ? below + end - r : CHOL_ROWS;
            SIMD_NAME(linalg_gemm_sub)
            (m, width, j0, job->a + r * job->lda, job->lda, job->left, CHOL, job->a + r * job->lda + j0, job->lda);
        }
        worker_barrier(w);
        if (job->bad >= 0) return; /* everybody sees the same: it was written before the barrier */
        for (int64_t r = below + begin; r < below + end; r += CHOL_ROWS) {
            int64_t m = below + end - r < CHOL_ROWS ? below + end - r : CHOL_ROWS;
            chol_solve(job->diag_t, width, job->a + r * job->lda + j0, job->lda, m);
        }
        worker_barrier(w);
    }
}

static llmq_status cholesky_simd(int64_t n, float *a, int64_t lda, llmq_team *team, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t left_len = (size_t)n * CHOL, square = (size_t)CHOL * CHOL;
    chol_job job = {n, lda, a, mem_alloc(left_len + 2 * square, sizeof(float)), NULL, NULL, -1};
    if (!job.left) return mem_error(err, (left_len + 2 * square) * sizeof(float), "a Cholesky factorization");
    job.diag = job.left + left_len;
    job.diag_t = job.diag + square;
    if (team)
        team_run(team, chol_worker, &job);
    else
        chol_worker(&(llmq_worker){0, 1, NULL}, &job);
    if (job.bad >= 0) status = linalg_cholesky_error(n, job.bad, err);
    mem_free(job.left);
    return status;
}

void SIMD_NAME(linalg_fill)(llmq_backend_ops *ops) {
    ops->gram_add = gram_add_simd;
#if GRAM_HAS_Q8
    ops->gram_scratch_bytes = gram_q8_scratch_avx512;
#endif
    ops->gemm_sub = SIMD_NAME(linalg_gemm_sub);
    ops->cholesky = cholesky_simd;
}
