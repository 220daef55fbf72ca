/* Gram matrix, C -= A B, Cholesky: the plain versions. */
#include "cpu/ops.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>

/* Of OpenBLAS; Debian builds it with 32-bit integers and without LAPACKE's wrappers. */
extern void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info, size_t uplo_len);
extern void openblas_set_num_threads(int n);

/* Rows of the triangle are dealt so that everybody gets the same area: row r costs r + 1. */
static void sum_columns(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, double *sums) {
    int64_t begin, end;
    worker_range(w, cols, 1, &begin, &end);
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t c = begin; c < end; c++) sums[c] += (double)x[t * cols + c];
}

void linalg_gram_c(const llmq_worker *w, const float *x, int64_t n_tok, int64_t cols, bool allow_q8, double *sums,
                   float *gram, void *scratch) {
    (void)allow_q8;
    (void)scratch;
    if (sums) sum_columns(w, x, n_tok, cols, sums);
    int64_t begin = (int64_t)((double)cols * sqrt((double)w->id / w->n)),
            end = w->id + 1 == w->n ? cols : (int64_t)((double)cols * sqrt((double)(w->id + 1) / w->n));
    for (int64_t t = 0; t < n_tok; t++, x += cols) {
        for (int64_t i = begin; i < end; i++) {
            float *row = gram + i * cols, xi = x[i];
            for (int64_t j = 0; j <= i; j++) row[j] += xi * x[j];
        }
    }
}

void linalg_gemm_sub_c(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                       float *c, int64_t ldc) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < k; l++) {
            float x = a[i * lda + l];
            for (int64_t j = 0; j < n; j++) c[i * ldc + j] -= x * b[l * ldb + j];
        }
}

llmq_status linalg_cholesky_error(int64_t n, int64_t column, llmq_err *err) {
    return llmq_fail(
        err, LLMQ_E_NUMERIC,
        "a %lld x %lld matrix is not positive definite (column %lld): raise the damping or calibrate on more tokens",
        (long long)n, (long long)n, (long long)column);
}

/* The library's own threads would fight with the team's for the cores. */
static void blas_single_thread(void) {
    openblas_set_num_threads(1);
}

llmq_status linalg_cholesky_c(int64_t n, float *a, int64_t lda, llmq_team *team, llmq_err *err) {
    (void)team;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, blas_single_thread);
    if (n > INT_MAX || lda > INT_MAX)
        return llmq_fail(err, LLMQ_E_ARG, "a matrix of %lld columns is too large", (long long)n);
    if (n == 0) return LLMQ_OK;
    /* The library lets NaN pass: its pivot test is "<= 0". */
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++)
            if (!isfinite(a[i * lda + j])) return linalg_cholesky_error(n, i, err);
    /* Lower by rows is upper by columns. */
    int size = (int)n, ld = (int)lda, info = 0;
    spotrf_("U", &size, a, &ld, &info, 1);
    if (info != 0) return linalg_cholesky_error(n, info - 1, err);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(a[i * lda + i])) return linalg_cholesky_error(n, i, err);
    return LLMQ_OK;
}
