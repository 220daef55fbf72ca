/* Quantization on the emulated GPU against the CPU: a block of columns gets the CPU's codes and errors bit for bit; a
 * whole matrix the codes of the method gptq; and what stands for cuBLAS and cuSOLVER does what cuda/blas.h says. */
#include "gpu.h"

#include "core/half.h"
#include "cuda/quant.h"
#include "quant/hessian.h"
#include "quant/methods/methods.h"
#include "types/type.h"

/* On a GPU a product and a sum are one operation, and a target next to the middle between two levels may go the other
 * way; what follows in its row may then as well. */
static void assert_codes(const uint8_t *got, const uint8_t *want, size_t n) {
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) differ += got[i] != want[i];
    assert_true(differ <= (emu_here() ? 0 : n / 100));
}

static float *upload_floats(const char *what, const float *x, int64_t n) {
    return input_of(what, x, (size_t)n * sizeof *x);
}

/* Random grids (groups, 3, rows) as gptq.c makes them. */
static float *random_grids(int64_t groups, int64_t rows) {
    float *grids = malloc((size_t)(groups * 3 * rows) * sizeof *grids);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t r = 0; r < rows; r++) {
            float scale = r == 3 ? 0 : uniform(0.05f, 0.3f) * (rng_u32() & 1 ? 1.0f : -1.0f),
                  *at = grids + g * 3 * rows + r;
            at[0] = scale;
            at[rows] = scale != 0 ? 1.0f / scale : 0;
            at[2 * rows] = uniform(-0.2f, 0.2f);
        }
    return grids;
}

static void check_block(const llmq_type_info *t, int64_t rows, int n, emu_order order) {
    int64_t groups = 3;
    float *at = random_floats((size_t)(n * n), -0.3f, 0.3f), *w = random_floats((size_t)(n * rows), -1, 1);
    float *grids = random_grids(groups, rows), *want = malloc((size_t)(n * rows) * sizeof *want);
    float *got = malloc((size_t)(n * rows) * sizeof *got);
    uint8_t *codes = malloc((size_t)(n * rows)), *got_codes = malloc((size_t)(n * rows));
    int32_t *group = malloc((size_t)n * sizeof *group);
    for (int k = 0; k < n; k++) group[k] = (int32_t)(rng_u32() % 3);
    for (int k = 0; k < n; k++)
        for (int j = k; j < n; j++) at[k * n + j] = NAN; /* not to be read */
    memcpy(want, w, (size_t)(n * rows) * sizeof *w);
    llmq_round_block block = {n, rows, at, n, want, w, grids, group, t->levels, t->n_levels, t->uniform, codes};
    backend_cpu_isa("c")->round_block(&block);

    cuda_sweep s = {.rows = rows, .cols = n, .n_levels = t->n_levels, .uniform = t->uniform};
    s.at = upload_floats("at", at, n * n);
    s.e = on_device("e", w, (size_t)(n * rows) * sizeof *w, false);
    s.w = upload_floats("w", w, n * rows);
    s.grids = upload_floats("grids", grids, groups * 3 * rows);
    s.group = input_of("group", group, (size_t)n * sizeof *group);
    s.levels = upload_floats("levels", t->levels, t->n_levels);
    s.codes = output_of("codes", (size_t)(n * rows));
    emu_set_order(order, 9);
    llmq_err err;
    assert_int_equal(cuda_quant_sweep(NULL, &s, NULL, &err), LLMQ_OK);
    from_device(got, s.e, (size_t)(n * rows) * sizeof *got, t->name);
    from_device(got_codes, s.codes, (size_t)(n * rows), t->name);
    assert_codes(got_codes, codes, (size_t)(n * rows));
    if (emu_here()) assert_memory_equal(got, want, (size_t)(n * rows) * sizeof *got);
    void *on_gpu[] = {(void *)s.at, s.e, (void *)s.w, (void *)s.grids, (void *)s.group, (void *)s.levels, s.codes};
    for (size_t i = 0; i < sizeof on_gpu / sizeof *on_gpu; i++) gpu_free(on_gpu[i]);
    free(at), free(w), free(grids), free(want), free(got), free(codes), free(got_codes), free(group);
}

/* Rows come in multiples of 16 on the CPU; here any number does (the last case fills a block and one row more). */
static void test_block(void **state) {
    (void)state;
    static const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q4_1, LLMQ_TYPE_IQ4_NL, LLMQ_TYPE_Q6_K};
    for (int i = 0; i < 4; i++) {
        check_block(type_info(types[i]), 16, 64, (emu_order)i);
        check_block(type_info(types[i]), 48, 13 + i, (emu_order)(3 - i));
    }
    check_block(type_info(LLMQ_TYPE_Q4_1), 144, 9, EMU_SHUFFLED);
}

/* ---- a whole matrix */

static void fill_problem(llmq_quant_problem *p, float *w, float *gram) {
    int64_t n_tok = 2 * p->cols;
    float *x = random_floats((size_t)(n_tok * p->cols), -1, 1);
    for (int64_t i = 0; i < p->rows * p->cols; i++) w[i] = uniform(-1, 1) + uniform(-1, 1);
    for (int64_t t = 0; t < n_tok; t++) /* inputs that go together */
        for (int64_t c = 0; c < p->cols; c++) x[t * p->cols + c] += (float)(c % 7) * 0.2f * x[t * p->cols];
    for (int64_t i = 0; i < p->cols; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t t = 0; t < n_tok; t++) sum += (double)x[t * p->cols + i] * (double)x[t * p->cols + j];
            gram[i * p->cols + j] = (float)sum;
        }
    p->n_tokens = n_tok;
    p->w = w;
    p->gram = gram;
    free(x);
}

/* The codes that the GPU finds on the CPU's grids, (rows, cols). */
static void sweep_on_gpu(const llmq_quant_problem *p, const llmq_feedback *f, const llmq_quantized *q, uint8_t *out) {
    int64_t rows = p->rows, cols = p->cols, per_block = p->type->block_len / p->type->group_len;
    int64_t n_blocks = type_blocks(p->type, cols), groups = n_blocks * per_block;
    float *grids = malloc((size_t)(groups * 3 * rows) * sizeof *grids);
    int32_t *group = malloc((size_t)cols * sizeof *group);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t r = 0; r < rows; r++) {
            const llmq_grid *grid = &q->grids[r * n_blocks + g / per_block];
            float scale = grid->scale[g % per_block], *at = grids + g * 3 * rows + r;
            at[0] = scale, at[rows] = scale != 0 ? 1.0f / scale : 0, at[2 * rows] = grid->offset[g % per_block];
        }
    for (int64_t k = 0; k < cols; k++) group[k] = f->perm[k] / p->type->group_len;
    float *w = upload_floats("w", p->w, rows * cols);
    int32_t *perm = input_of("perm", f->perm, (size_t)cols * sizeof *perm);
    float *w_in_order = output_of("w in order", (size_t)(rows * cols) * sizeof *w_in_order);
    float *e = output_of("e", (size_t)(rows * cols) * sizeof *e);
    uint8_t *codes = output_of("codes", (size_t)(rows * cols)), *back = output_of("codes back", (size_t)(rows * cols));
    cuda_sweep s = {rows,
                    cols,
                    upload_floats("at", f->at, cols * cols),
                    e,
                    w_in_order,
                    upload_floats("grids", grids, groups * 3 * rows),
                    input_of("group", group, (size_t)cols * 4),
                    upload_floats("levels", p->type->levels, p->type->n_levels),
                    p->type->n_levels,
                    p->type->uniform,
                    codes};
    cuda_blas *blas;
    llmq_err err;
    if (cuda_blas_create(&blas, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    cuda_quant_gather(NULL, w, rows, cols, perm, w_in_order);
    cuda_quant_gather(NULL, w, rows, cols, perm, e);
    if (cuda_quant_sweep(NULL, &s, blas, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    cuda_quant_scatter(NULL, codes, rows, cols, perm, back);
    from_device(out, back, (size_t)(rows * cols), "sweep");
    cuda_blas_destroy(blas);
    void *on_gpu[] = {
        w, perm, w_in_order, e, codes, back, (void *)s.at, (void *)s.grids, (void *)s.group, (void *)s.levels};
    for (size_t i = 0; i < sizeof on_gpu / sizeof *on_gpu; i++) gpu_free(on_gpu[i]);
    free(grids), free(group);
}

/* Sums in another order may move a target across the middle between two levels: none of these does. */
static void test_matrix(void **state) {
    (void)state;
    static const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_IQ4_NL, LLMQ_TYPE_Q6_K};
    for (int i = 0; i < 3; i++) {
        llmq_quant_problem p = {.name = "w",
                                .rows = 35,
                                .cols = i < 2 ? 160 : 256,
                                .type = type_info(types[i]),
                                .damp = -1,
                                .ops = backend_cpu_isa("c"),
                                .team = team};
        size_t n = (size_t)(p.rows * p.cols);
        float *w = malloc(n * sizeof *w), *gram = malloc((size_t)(p.cols * p.cols) * sizeof *gram);
        uint8_t *codes = malloc(n);
        llmq_feedback f = {.failed = true};
        llmq_quant_report report;
        llmq_quantized *q;
        llmq_err err;
        p.solver.order = i == 1 ? ORDER_NONE : ORDER_STATIC;
        fill_problem(&p, w, gram);
        assert_int_equal(quantized_create(p.type, p.rows, p.cols, &q, &err), LLMQ_OK);
        assert_int_equal(method_find("gptq")->solve(&p, q, &report, &err), LLMQ_OK);
        assert_false(report.fell_back);
        assert_true(report.error < 0.9 * report.rtn_error);
        assert_int_equal(hessian_factor(&p, quant_damp(p.damp), &f, &err), LLMQ_OK);
        emu_set_order((emu_order)i, 4);
        sweep_on_gpu(&p, &f, q, codes);
        assert_codes(codes, q->codes, n);
        hessian_feedback_clear(&f);
        quantized_destroy(q);
        free(w), free(gram), free(codes);
    }
}

/* ---- Gram matrix and factor */

static void test_gram_and_factor(void **state) {
    (void)state;
    enum { N = 24, TOK = 50 };
    float *x = random_floats(TOK * N, -1, 1), gram[N * N], factor[N * N];
    uint16_t halves[TOK * N];
    cuda_blas *blas;
    llmq_err err;
    float *x_on_gpu = upload_floats("x", x, TOK * N), *gram_on_gpu = output_of("gram", sizeof gram);
    uint16_t *bf16 = output_of("bf16", sizeof halves);
    if (cuda_blas_create(&blas, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    cuda_quant_to_bf16(NULL, x_on_gpu, TOK * N, bf16);
    from_device(halves, bf16, sizeof halves, "bf16");
    for (int i = 0; i < TOK * N; i++) assert_int_equal(halves[i], f32_to_bf16(x[i]));
    for (int time = 0; time < 2; time++) /* the second one is added */
        assert_int_equal(cuda_blas_gram(blas, NULL, bf16, TOK, N, time > 0, gram_on_gpu, &err), LLMQ_OK);
    from_device(gram, gram_on_gpu, sizeof gram, "gram");
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int t = 0; t < TOK; t++)
                sum += (double)bf16_to_f32(halves[t * N + i]) * (double)bf16_to_f32(halves[t * N + j]);
            assert_true(fabs((double)gram[i * N + j] - 2 * sum) <= 1e-5 * TOK);
        }
    assert_int_equal(cuda_blas_cholesky(blas, NULL, N, gram_on_gpu, N, &err), LLMQ_OK);
    from_device(factor, gram_on_gpu, sizeof factor, "factor");
    for (int i = 0; i < N; i++)
        for (int j = 0; j <= i; j++) {
            double sum = 0;
            for (int c = 0; c <= j; c++) sum += (double)factor[i * N + c] * (double)factor[j * N + c];
            assert_true(fabs(sum - (double)gram[i * N + j]) <= 1e-5 * TOK);
        }
    gram[0] = -1;
    assert_int_equal(gpu_upload(gram_on_gpu, gram, sizeof gram, &err), LLMQ_OK);
    assert_int_equal(cuda_blas_cholesky(blas, NULL, N, gram_on_gpu, N, &err), LLMQ_E_NUMERIC);
    if (emu_here())
        assert_int_equal(cuda_blas_gram(blas, NULL, bf16, TOK + 1, N, true, gram_on_gpu, &err),
                         LLMQ_E_IO); /* more than is there */
    cuda_blas_destroy(blas);
    gpu_free(x_on_gpu), gpu_free(gram_on_gpu), gpu_free(bf16), free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block),
        cmocka_unit_test(test_matrix),
        cmocka_unit_test(test_gram_and_factor),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
