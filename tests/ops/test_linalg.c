/* cpu: Gram matrix, C -= A B and Cholesky of every ISA against double precision, on teams of 1 to 3 workers. */
#include "ops_util.h"

typedef struct gram_call {
    const llmq_backend_ops *ops;
    const float *x;
    int64_t n_tok, cols;
    bool q8;
    double *sums;
    float *gram;
    void *scratch;
} gram_call;

static void run_gram(const llmq_worker *w, void *arg) {
    gram_call *c = arg;
    c->ops->gram_add(w, c->x, c->n_tok, c->cols, c->q8, c->sums, c->gram, c->scratch);
}

/* Sums in token order are the same bits everywhere. */
static void check_sums(const gram_call *c, const char *what) {
    for (int64_t i = 0; i < c->cols; i++) {
        double want = 3;
        for (int64_t t = 0; t < c->n_tok; t++) want += (double)c->x[t * c->cols + i];
        if (c->sums[i] != want) fail_msg("%s: sum %d is %.17g, expected %.17g", what, (int)i, c->sums[i], want);
    }
}

/* tol is relative to sqrt(G[i][i] G[j][j]), the largest value that the sum could have. */
static void check_gram(const gram_call *c, const double *want, const float *before, double tol, const char *what) {
    int64_t n = c->cols;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            float got = c->gram[i * n + j];
            double bound = tol * sqrt(want[i * n + i] * want[j * n + j]);
            if (j > i && got != before[i * n + j])
                fail_msg("%s: (%d, %d) above the diagonal was written", what, (int)i, (int)j);
            if (j <= i && !(fabs(got - before[i * n + j] - want[i * n + j]) <= bound + 1e-6 * fabs(before[i * n + j])))
                fail_msg("%s: (%d, %d) is %g, expected %g", what, (int)i, (int)j, (double)got,
                         before[i * n + j] + want[i * n + j]);
        }
}

static void test_gram(void **state) {
    (void)state;
    const struct {
        int64_t cols, n_tok;
    } shapes[] = {{172, 65},  {1, 3},    {7, 1},    {96, 300}, {97, 2},
                  {200, 131}, {320, 64}, {33, 513}, {700, 30}, {1500, 64}};
    rng_state = 31;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t n = shapes[s].cols, n_tok = shapes[s].n_tok;
        size_t area = (size_t)(n * n);
        float *x = guarded_normal((size_t)(n * n_tok)), *before = guarded_normal(area);
        double *want = calloc(area, sizeof *want);
        for (int64_t t = 0; t < n_tok; t++)
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = 0; j <= i; j++) want[i * n + j] += (double)x[t * n + i] * x[t * n + j];
        for (int isa = 0; isa < N_ISAS; isa++)
            for (int q8 = 0; q8 < 2; q8++) {
                gram_call c = {.ops = backend_cpu_isa(all_isas[isa]), .x = x, .n_tok = n_tok, .cols = n, .q8 = q8};
                if (!c.ops) continue;
                float *first = NULL;
                size_t scratch = c.ops->gram_scratch_bytes(n_tok, n);
                c.sums = calloc((size_t)n, sizeof *c.sums);
                for (int w = 1; w <= MAX_TEAM; w++) {
                    char name[96];
                    snprintf(name, sizeof name, "gram %dx%d q8 %d on %s, %d workers", (int)n_tok, (int)n, q8,
                             all_isas[isa], w);
                    c.gram = guarded(area);
                    memcpy(c.gram, before, area * sizeof(float));
                    c.scratch = mem_alloc(scratch, 1);
                    for (int64_t i = 0; i < n; i++) c.sums[i] = 3;
                    team_run(teams[w], run_gram, &c);
                    mem_free(c.scratch);
                    check_sums(&c, name);
                    check_gram(&c, want, before, q8 ? 8e-3 : 2e-6, name);
                    assert_guard(c.gram, area);
                    if (!first) {
                        first = c.gram;
                        continue;
                    }
                    if (memcmp(first, c.gram, area * sizeof(float)) != 0) fail_msg("%s: differs from one worker", name);
                    guarded_free(c.gram);
                }
                guarded_free(first);
                free(c.sums);
            }
        free(want);
        guarded_free(x);
        guarded_free(before);
    }
}

static float *gram_of(const char *isa, const float *x, int64_t n_tok, int64_t cols, const float *before) {
    size_t area = (size_t)(cols * cols);
    gram_call c = {.ops = backend_cpu_isa(isa), .x = x, .n_tok = n_tok, .cols = cols, .q8 = true};
    c.gram = guarded(area);
    memcpy(c.gram, before, area * sizeof(float));
    c.scratch = mem_alloc(c.ops->gram_scratch_bytes(n_tok, cols), 1);
    team_run(teams[MAX_TEAM], run_gram, &c);
    mem_free(c.scratch);
    assert_guard(c.gram, area);
    return c.gram;
}

/* Tiles give the bits of AVX-512, also of columns that are all 0 or tiny. */
static void test_gram_tiles(void **state) {
    (void)state;
    if (!backend_cpu_isa("amx")) skip();
    rng_state = 36;
    for (int round = 0; round < 60; round++) {
        int64_t cols = 1 + rng_u32() % (round % 2 ? 300 : 70), n_tok = 1 + rng_u32() % 700;
        float *x = guarded_normal((size_t)(cols * n_tok)), *before = guarded_normal((size_t)(cols * cols));
        int64_t odd = rng_u32() % cols;
        for (int64_t t = 0; round % 3 && t < n_tok; t++) x[t * cols + odd] *= round % 3 == 1 ? 0.0f : 1e-32f;
        float *want = gram_of("avx512", x, n_tok, cols, before), *got = gram_of("amx", x, n_tok, cols, before);
        if (memcmp(want, got, (size_t)(cols * cols) * sizeof *got) != 0)
            fail_msg("gram of %d columns, %d tokens: not the bits of AVX-512", (int)cols, (int)n_tok);
        guarded_free(x), guarded_free(before), guarded_free(want), guarded_free(got);
    }
}

/* However many tokens come at a time, cut where slices are: the same bits, sums not asked for, and scratch that a
 * larger call asked for. So many tokens that not all are packed at once. */
static void test_gram_parts(void **state) {
    (void)state;
    enum { COLS = 100, TOKENS = 256 * 170, PART = 256 * 3 };
    rng_state = 35;
    float *x = guarded_normal((size_t)COLS * TOKENS);
    for (int isa = 0; isa < N_ISAS; isa++) {
        gram_call c = {.ops = backend_cpu_isa(all_isas[isa]), .x = x, .n_tok = TOKENS, .cols = COLS, .q8 = true};
        if (!c.ops) continue;
        size_t bytes = c.ops->gram_scratch_bytes(TOKENS, COLS);
        assert_true(bytes >= c.ops->gram_scratch_bytes(PART, COLS));
        float *whole = guarded(COLS * COLS);
        memset(whole, 0, COLS * COLS * sizeof *whole);
        c.scratch = mem_alloc(bytes, 1);
        c.gram = whole;
        team_run(teams[2], run_gram, &c);
        c.gram = guarded(COLS * COLS);
        memset(c.gram, 0, COLS * COLS * sizeof *c.gram);
        for (int64_t t = 0; t < TOKENS; t += PART) {
            c.x = x + t * COLS;
            c.n_tok = TOKENS - t < PART ? TOKENS - t : PART;
            team_run(teams[3], run_gram, &c);
        }
        if (memcmp(whole, c.gram, COLS * COLS * sizeof *whole) != 0) fail_msg("gram in parts on %s", all_isas[isa]);
        mem_free(c.scratch);
        guarded_free(whole);
        guarded_free(c.gram);
    }
    guarded_free(x);
}

static void test_gemm_sub(void **state) {
    (void)state;
    const struct {
        int64_t m, n, k, gap; /* gap: of B's rows */
    } shapes[] = {{64, 128, 300, 5}, {1, 1, 1, 5},      {7, 65, 33, 5},   {13, 200, 257, 5}, {6, 64, 0, 5},
                  {96, 31, 512, 5},  {5, 17, 1000, 5},  {70, 130, 64, 5}, {32, 32, 400, 0},  {15, 16, 200, 0},
                  {31, 32, 17, 0},   {128, 16, 193, 8}, {9, 48, 77, 0},   {100, 64, 576, 0}};
    rng_state = 32;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t m = shapes[s].m, n = shapes[s].n, k = shapes[s].k, lda = k + 3, ldb = n + shapes[s].gap, ldc = n + 1;
        size_t len = (size_t)(m * ldc);
        float *a = guarded_normal((size_t)(m * lda)), *b = guarded_normal((size_t)(k * ldb)),
              *start = guarded_normal(len);
        double *want = malloc(len * sizeof *want);
        for (size_t i = 0; i < len; i++) want[i] = start[i];
        for (int64_t i = 0; i < m; i++)
            for (int64_t l = 0; l < k; l++)
                for (int64_t j = 0; j < n; j++) want[i * ldc + j] -= (double)a[i * lda + l] * b[l * ldb + j];
        for (int isa = 0; isa < N_ISAS; isa++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
            if (!ops) continue;
            float *c = guarded(len);
            memcpy(c, start, len * sizeof(float));
            ops->gemm_sub(m, n, k, a, lda, b, ldb, c, ldc);
            assert_close(c, want, len, 1e-6 + 2e-6 * sqrt((double)k), all_isas[isa]);
            for (int64_t i = 0; i < m; i++) assert_true(c[i * ldc + n] == start[i * ldc + n]);
            assert_guard(c, len);
            guarded_free(c);
        }
        free(want);
        guarded_free(a);
        guarded_free(b);
        guarded_free(start);
    }
}

/* A positive definite matrix with known factor; the upper triangle holds NaN, which nobody may read. */
static float *spd_matrix(int64_t n, int64_t lda, double *factor) {
    float *a = guarded((size_t)(n * lda));
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            factor[i * n + j] = j > i ? 0 : j == i ? 2 + rng_uniform() : rng_normal() / sqrt((double)n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < lda; j++) {
            double sum = 0;
            for (int64_t l = 0; l <= j && j <= i; l++) sum += factor[i * n + l] * factor[j * n + l];
            a[i * lda + j] = j <= i ? (float)sum : NAN;
        }
    return a;
}

static void test_cholesky(void **state) {
    (void)state;
    const int64_t sizes[] = {1, 2, 15, 16, 17, 64, 100, 128, 129, 300, 401};
    rng_state = 33;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s], lda = n + (int64_t)(s % 3);
        size_t len = (size_t)(n * lda);
        double *factor = malloc(sizeof(double) * (size_t)(n * n));
        float *a = spd_matrix(n, lda, factor);
        for (int isa = 0; isa < N_ISAS; isa++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
            if (!ops) continue;
            float *first = NULL;
            for (int w = 0; w <= MAX_TEAM; w++) {
                float *l = guarded(len);
                llmq_err err;
                memcpy(l, a, len * sizeof(float));
                assert_int_equal(ops->cholesky(n, l, lda, w ? teams[w] : NULL, &err), LLMQ_OK);
                for (int64_t i = 0; i < n; i++) {
                    for (int64_t j = 0; j <= i; j++)
                        if (!(fabs(l[i * lda + j] - factor[i * n + j]) < 2e-5))
                            fail_msg("cholesky %d on %s: (%d, %d) is %g, expected %g", (int)n, all_isas[isa], (int)i,
                                     (int)j, (double)l[i * lda + j], factor[i * n + j]);
                    for (int64_t j = i + 1; j < lda; j++) assert_true(isnan(l[i * lda + j])); /* not ours */
                }
                assert_guard(l, len);
                if (first && memcmp(first, l, len * sizeof(float)) != 0)
                    fail_msg("cholesky %d on %s depends on the team", (int)n, all_isas[isa]);
                if (first)
                    guarded_free(l);
                else
                    first = l;
            }
            guarded_free(first);
        }
        free(factor);
        guarded_free(a);
    }
}

static void test_cholesky_refuses(void **state) {
    (void)state;
    enum { N = 200 };
    rng_state = 34;
    double *factor = malloc(sizeof(double) * N * N);
    float *a = spd_matrix(N, N, factor), *l = guarded(N * N);
    const float bad[] = {-1, 0, NAN, INFINITY};
    const int at[][2] = {{0, 0}, {150, 150}, {199, 199}, {199, 3}, {130, 0}};
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++)
            for (size_t p = 0; p < sizeof at / sizeof *at; p++) {
                if (at[p][0] != at[p][1] && isfinite(bad[b])) continue;
                for (int w = 0; w <= 2; w += 2) {
                    llmq_err err = {LLMQ_OK, ""};
                    memcpy(l, a, sizeof(float) * N * N);
                    l[at[p][0] * N + at[p][1]] = bad[b];
                    assert_int_equal(ops->cholesky(N, l, N, w ? teams[w] : NULL, &err), LLMQ_E_NUMERIC);
                    assert_int_equal(err.status, LLMQ_E_NUMERIC);
                    assert_true(strlen(err.msg) > 10);
                }
            }
        memcpy(l, a, sizeof(float) * N * N);
        l[0] = -1;
        assert_int_equal(ops->cholesky(N, l, N, NULL, NULL), LLMQ_E_NUMERIC);
    }
    free(factor);
    guarded_free(a);
    guarded_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gram),       cmocka_unit_test(test_gram_tiles),
                                       cmocka_unit_test(test_gram_parts), cmocka_unit_test(test_gemm_sub),
                                       cmocka_unit_test(test_cholesky),   cmocka_unit_test(test_cholesky_refuses)};
    return cmocka_run_group_tests_name("linalg", tests, make_teams, drop_teams);
}
