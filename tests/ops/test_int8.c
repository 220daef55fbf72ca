/* Products of 8-bit rows: activations to integers by their definition, every ISA against it and against each other to
 * the bit; odd rows, few and many tokens, ranges with a zero point, teams of 1 to 3, guarded outputs; what is refused.
 */
#include "ops_util.h"

#include "types/blocks.h"
#include "types/type.h"

typedef struct matrix {
    block_q8_0 *blocks; /* (rows, cols / 32) */
    llmq_tensor t;
} matrix;

static matrix random_matrix(int64_t rows, int64_t cols) {
    matrix m = {.blocks = mem_alloc((size_t)(rows * cols / QK), sizeof(block_q8_0))};
    for (int64_t r = 0; r < rows; r++) {
        uint16_t d = f32_to_f16((float)(rng_uniform() * 0.02 + 0.001) * (r % 7 == 3 ? 0.0f : 1.0f));
        for (int64_t b = 0; b < cols / QK; b++) {
            block_q8_0 *block = &m.blocks[r * (cols / QK) + b];
            block->d = d;
            for (int i = 0; i < QK; i++) block->qs[i] = (int8_t)(rng_u32() >> 13);
        }
    }
    m.t = (llmq_tensor){.name = "w",
                        .type = LLMQ_TYPE_Q8_0,
                        .n_dims = 2,
                        .dims = {cols, rows, 1, 1},
                        .bytes = rows * cols / QK * (int64_t)sizeof(block_q8_0),
                        .data = m.blocks};
    return m;
}

typedef struct job {
    const llmq_backend_ops *ops;
    const llmq_weight *w;
    llmq_acts a;
    float *y;
    int64_t ldy;
} job;

static void run_job(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->acts_fill(w, &j->a, ACT_INT8);
    worker_barrier(w);
    j->ops->matmul(w, j->w, &j->a, j->y, j->ldy);
}

/* The same numbers by their definition, in double from the quantized inputs on. */
static void expect(const matrix *m, const float *x, int64_t n_tok, llmq_act_range range, const float *bias, double *y,
                   int64_t ldy) {
    int64_t cols = m->t.dims[0], rows = m->t.dims[1];
    for (int64_t t = 0; t < n_tok; t++) {
        float most = 0;
        for (int64_t i = 0; i < cols; i++) most = fmaxf(most, fabsf(x[t * cols + i]));
        double scale = range.scale > 0 ? (double)range.scale : (double)(most / 127.5f);
        float inverse = range.scale > 0 ? 1.0f / range.scale : 127.5f / most;
        for (int64_t r = 0; r < rows; r++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < cols; i++) {
                float q = most > 1e-30f ? rintf(x[t * cols + i] * inverse) + (float)range.zero : (float)range.zero;
                q = fminf(fmaxf(q, -128), 127);
                sum += (int64_t)m->blocks[r * (cols / QK) + i / QK].qs[i % QK] * ((int64_t)q - range.zero);
            }
            y[t * ldy + r] = most > 1e-30f || range.scale > 0
                                 ? (double)sum * scale * (double)f16_to_f32(m->blocks[r * (cols / QK)].d)
                                 : 0;
            if (bias) y[t * ldy + r] += (double)bias[r];
        }
    }
}

static float *run_isa(const char *isa, const matrix *m, const float *x, int64_t n_tok, llmq_act_range range,
                      const float *bias, int team) {
    const llmq_backend_ops *ops = backend_cpu_isa(isa);
    int64_t cols = m->t.dims[0], rows = m->t.dims[1], ldy = rows + 3;
    llmq_weight w;
    llmq_err err;
    if (!ops) return NULL;
    assert_int_equal(ops->weight_prepare_int8(&w, &m->t, range, teams[team], &err), LLMQ_OK);
    w.bias = bias;
    size_t bytes = ops->acts_bytes(ACT_INT8, n_tok, cols);
    job j = {ops, &w, {.n_tok = n_tok, .cols = cols, .x = x, .range = range}, guarded((size_t)(n_tok * ldy)), ldy};
    j.a.int8 = guarded((bytes + 3) / 4);
    team_run(teams[team], run_job, &j);
    assert_guard(j.y, (size_t)(n_tok * ldy));
    assert_guard(j.a.int8, (bytes + 3) / 4);
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t c = rows; c < ldy; c++) assert_true(j.y[t * ldy + c] == 777.0f);
    guarded_free(j.a.int8);
    ops->weight_release(&w);
    return j.y;
}

static void products(void **state) {
    (void)state;
    for (int round = 0; round < 240; round++) {
        int64_t rows = 1 + rng_u32() % (round % 3 ? 40 : 200), cols = 32 * (1 + rng_u32() % 20),
                n_tok = 1 + rng_u32() % (round % 40 == 7 ? 1100 : round % 5 == 3 ? 90 : round % 2 ? 9 : 26);
        matrix m = random_matrix(rows, cols);
        float *x = guarded_normal((size_t)(n_tok * cols)), *bias = round % 4 ? NULL : guarded_normal((size_t)rows);
        if (round % 5 == 1) memset(x, 0, (size_t)cols * sizeof *x);
        if (round % 5 == 2) x[rng_u32() % (n_tok * cols)] = 300;
        llmq_act_range range = {0, 0};
        if (round % 2)
            range = (llmq_act_range){(float)(0.005 + 0.03 * rng_uniform()), (int32_t)(rng_u32() % 256) - 128};
        int64_t ldy = rows + 3;
        double *want = mem_alloc((size_t)(n_tok * ldy), sizeof *want);
        expect(&m, x, n_tok, range, bias, want, ldy);
        float *first = NULL;
        for (int i = 0; i < N_ISAS; i++) {
            float *y = run_isa(all_isas[i], &m, x, n_tok, range, bias, 1 + round % MAX_TEAM);
            if (!y) continue;
            for (int64_t t = 0; t < n_tok; t++)
                assert_close(y + t * ldy, want + t * ldy, (size_t)rows, 1e-5, all_isas[i]);
            if (!first) first = y;
            if (!bias) assert_memory_equal(y, first, (size_t)(n_tok * ldy) * sizeof *y); /* integers, and one product */
            if (y != first) guarded_free(y);
        }
        guarded_free(first), guarded_free(x), guarded_free(bias);
        mem_free(want), mem_free(m.blocks);
    }
}

/* A token's results are the same bits beside others as alone. */
static void tokens_do_not_matter(void **state) {
    (void)state;
    matrix m = random_matrix(75, 96);
    float *x = guarded_normal(23 * 96), *bias = guarded_normal(75);
    for (int i = 0; i < N_ISAS; i++)
        for (int mode = 0; mode < 4; mode++) {
            llmq_act_range range = {mode % 2 ? 0.02f : 0, mode % 2 ? 11 : 0};
            const float *b = mode / 2 ? bias : NULL;
            float *all = run_isa(all_isas[i], &m, x, 23, range, b, 2);
            if (!all) continue;
            for (int64_t t = 0; t < 23; t++) {
                float *one = run_isa(all_isas[i], &m, x + t * 96, 1, range, b, 3);
                assert_memory_equal(one, all + t * 78, 75 * sizeof *one);
                guarded_free(one);
            }
            guarded_free(all);
        }
    guarded_free(x), guarded_free(bias), mem_free(m.blocks);
}

/* The largest integers that there are stay inside 32 bits. */
static void extremes(void **state) {
    (void)state;
    matrix m = random_matrix(17, INT8_MAX_COLS);
    float *x = guarded(2 * INT8_MAX_COLS);
    for (int64_t i = 0; i < 17 * INT8_MAX_COLS; i++) m.blocks[i / QK].qs[i % QK] = i / INT8_MAX_COLS % 2 ? 127 : -128;
    for (int64_t i = 0; i < 2 * INT8_MAX_COLS; i++) x[i] = i < INT8_MAX_COLS ? 1000.0f : -1000.0f;
    const llmq_act_range ranges[] = {{0, 0}, {0.01f, -128}, {0.01f, 127}};
    double want[2 * 20];
    for (int k = 0; k < 3; k++) {
        expect(&m, x, 2, ranges[k], NULL, want, 20);
        for (int i = 0; i < N_ISAS; i++) {
            float *y = run_isa(all_isas[i], &m, x, 2, ranges[k], NULL, 1);
            for (int t = 0; y && t < 2; t++) assert_close(y + t * 20, want + t * 20, 17, 1e-6, all_isas[i]);
            guarded_free(y);
        }
    }
    guarded_free(x), mem_free(m.blocks);
}

static void not_finite_is_seen(void **state) {
    (void)state;
    matrix m = random_matrix(16, 64);
    float *x = guarded_normal(3 * 64);
    x[64 + 9] = NAN, x[128 + 63] = INFINITY;
    for (int i = 0; i < N_ISAS; i++)
        for (int mode = 0; mode < 2; mode++) {
            float *y = run_isa(all_isas[i], &m, x, 3, (llmq_act_range){mode ? 0.02f : 0, 0}, NULL, 1);
            for (int r = 0; y && r < 16; r++) assert_true(isfinite(y[r]) && isnan(y[19 + r]) && isnan(y[38 + r]));
            guarded_free(y);
        }
    guarded_free(x), mem_free(m.blocks);
}

static void refusals(void **state) {
    (void)state;
    matrix m = random_matrix(5, 96);
    for (int i = 0; i < N_ISAS; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        llmq_weight w;
        llmq_err err;
        if (!ops) continue;
        llmq_tensor t = m.t;
        t.bytes--;
        assert_int_equal(ops->weight_prepare_int8(&w, &t, (llmq_act_range){0, 0}, teams[1], &err), LLMQ_E_FORMAT);
        t = m.t, t.type = LLMQ_TYPE_F16;
        assert_int_equal(ops->weight_prepare_int8(&w, &t, (llmq_act_range){0, 0}, teams[1], &err), LLMQ_E_FORMAT);
        t = m.t, t.type = LLMQ_TYPE_Q4_0;
        assert_int_equal(ops->weight_prepare_int8(&w, &t, (llmq_act_range){0, 0}, teams[1], &err), LLMQ_E_UNSUPPORTED);
        m.blocks[13].d ^= 1; /* the second of the last row */
        assert_int_equal(ops->weight_prepare_int8(&w, &m.t, (llmq_act_range){0, 0}, teams[1], &err),
                         LLMQ_E_UNSUPPORTED);
        m.blocks[13].d ^= 1;
        assert_int_equal(ops->weight_prepare_int8(&w, &m.t, (llmq_act_range){0, 0}, NULL, &err), LLMQ_OK);
        ops->weight_release(&w);
    }
    mem_free(m.blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(products), cmocka_unit_test(tokens_do_not_matter),
                                       cmocka_unit_test(extremes), cmocka_unit_test(not_finite_is_seen),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, make_teams, drop_teams);
}
