/* `llmq quantize` with its Gram matrices, factors and rounding on the GPU (cuda/solver.c), under the emulator, beside
 * the same job on the CPU alone. */
#include "gpu.h"

#include <unistd.h>

#include "core/half.h"
#include "cuda/cuda.h"
#include "engine/jobs.h"
#include "formats/format.h"
#include "quant/methods/methods.h"
#include "types/type.h"

#define MODEL LLMQ_TEST_DATA "/../../data/tiny"

static llmq_quant_params small_job(const char *out) {
    llmq_quant_params p;
    llmq_quant_params_default(&p);
    p.type = "q4_0";
    p.calib_tokens = 1024;
    p.calib_ctx = 128;
    p.n_threads = 2;
    p.out = out;
    p.force = true;
    return p;
}

static void quantize(const llmq_quant_params *p, const llmq_device_ops *device, llmq_quant_result *result) {
    llmq_err err = {0};
    if (job_quantize_on(MODEL, p, NULL, device, result, &err) != LLMQ_OK) fail_msg("%s", err.msg);
}

static char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: not there", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    char *data = malloc(*n);
    rewind(f);
    assert_int_equal(fread(data, 1, *n, f), *n);
    fclose(f);
    return data;
}

/* Inputs are rounded to bf16 there and to 8 bits here, so codes may differ, and what later layers see with them; how
 * good they are does not. */
static void check_beside_cpu(const char *solver) {
    const char *ours = LLMQ_TEST_TMP "/quantize_cpu.gguf", *theirs = LLMQ_TEST_TMP "/quantize_cuda.gguf";
    llmq_quant_result cpu = {0}, gpu = {0};
    llmq_quant_params p = small_job(ours);
    int measured = 0;
    p.solver = solver;
    quantize(&p, NULL, &cpu);
    p.out = theirs;
    quantize(&p, &cuda_device_ops, &gpu);
    assert_int_equal(cpu.n_rows, gpu.n_rows);
    assert_int_equal(gpu.n_fallback, cpu.n_fallback);
    for (size_t i = 0; i < cpu.n_rows; i++) {
        const llmq_quant_row *a = &cpu.rows[i], *b = &gpu.rows[i];
        assert_string_equal(a->name, b->name);
        assert_string_equal(a->method, b->method);
        if (a->error < 0) continue;
        if (!(fabs(b->error / a->error - 1) < 0.1) || !(b->error < 0.9 * b->rtn_error))
            fail_msg("%s: error %g, on the CPU %g, plain rounding %g", a->name, b->error, a->error, b->rtn_error);
        measured++;
    }
    assert_int_equal(measured, 4 * 7);
    assert_true(fabs(gpu.mean_error / cpu.mean_error - 1) < 0.03);
    llmq_quant_result_clear(&cpu);
    llmq_quant_result_clear(&gpu);
    unlink(ours);
    unlink(theirs);
}

static void test_beside_cpu(void **state) {
    (void)state;
    check_beside_cpu("sweeps=0,refit=0");
    check_beside_cpu(NULL);
}

/* Neither the order of threads nor their number here decides about the bytes; the manifest says where it was done. */
static void test_same_bytes(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/quantize_cuda.gguf";
    char *first = NULL;
    size_t n_first = 0, n;
    for (int i = 0; i < 2; i++) {
        llmq_quant_result result = {0};
        llmq_quant_params p = small_job(path);
        p.n_threads = 1 + i;
        p.awq = true;
        emu_set_order(i ? EMU_SHUFFLED : EMU_FORWARD, 5);
        quantize(&p, &cuda_device_ops, &result);
        llmq_quant_result_clear(&result);
        char *data = read_file(path, &n);
        if (first) {
            assert_int_equal(n, n_first);
            assert_memory_equal(data, first, n);
            free(data);
        } else {
            first = data, n_first = n;
        }
    }
    free(first);
    llmq_source *source = NULL;
    llmq_err err = {0};
    if (source_open(path, &source, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    const char *manifest = meta_get_str(source->meta, "llmq.manifest");
    assert_non_null(manifest);
    assert_non_null(strstr(manifest, "\"device\":\"cuda: "));
    source_close(source);
    unlink(path);
}

static void test_refusals(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/quantize_cuda.gguf";
    llmq_quant_result result = {0};
    llmq_quant_params p = small_job(path);
    llmq_err err = {0};
    p.method = "rtn";
    assert_int_equal(job_quantize_on(MODEL, &p, NULL, &cuda_device_ops, &result, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "leave it out"));
    if (!emu_here()) return;
    p.method = "gptq";
    for (size_t kb = 1; kb < 4000; kb *= 5) { /* at every turn */
        size_t used = emu_memory_used();
        emu_set_memory(used + kb * 1024);
        assert_int_equal(job_quantize_on(MODEL, &p, NULL, &cuda_device_ops, &result, &err), LLMQ_E_MEMORY);
        assert_non_null(strstr(err.msg, "GPU"));
        assert_int_equal(emu_memory_used(), used);
        assert_int_equal(access(path, F_OK), -1);
        assert_int_equal(access(LLMQ_TEST_TMP "/quantize_cuda.gguf.tmp", F_OK), -1);
    }
    emu_set_memory(0);
}

/* More tokens than a piece, more than one add, and a second matrix of fewer columns in the same memory. */
static void test_gram(void **state) {
    (void)state;
    enum { COLS = 7, FIRST = 5001, SECOND = 36 };
    llmq_device_solver *s = NULL;
    llmq_err err = {0};
    float *x = random_floats((FIRST + SECOND) * COLS, -1, 1), gram[COLS * COLS];
    if (cuda_solver_ops.create(&s, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (int cols = COLS; cols > 2; cols -= 4) { /* an odd number of both, too */
        assert_int_equal(s->ops->gram_begin(s, cols, &err), LLMQ_OK);
        assert_int_equal(s->ops->gram_add(s, x, FIRST, &err), LLMQ_OK);
        assert_int_equal(s->ops->gram_add(s, x + FIRST * cols, SECOND, &err), LLMQ_OK);
        assert_int_equal(s->ops->gram_end(s, gram, &err), LLMQ_OK);
        for (int i = 0; i < cols; i++)
            for (int j = 0; j <= i; j++) {
                double sum = 0;
                for (int t = 0; t < FIRST + SECOND; t++)
                    sum += (double)bf16_to_f32(f32_to_bf16(x[t * cols + i])) *
                           (double)bf16_to_f32(f32_to_bf16(x[t * cols + j]));
                assert_true(fabs((double)gram[i * cols + j] - sum) <= 1e-5 * (FIRST + SECOND));
            }
    }
    float bad[4] = {1, 0, 2, 1};
    assert_int_equal(s->ops->cholesky(s, 2, bad, &err), LLMQ_E_NUMERIC);
    s->ops->destroy(s);
    free(x);
}

/* Rows that memory takes in turns, the last one short; blocks of several groups. The codes are the CPU's. */
static void test_slabs(void **state) {
    (void)state;
    enum { ROWS = 300, COLS = 256 };
    llmq_device_solver *s = NULL;
    llmq_err err = {0};
    llmq_quant_report report;
    llmq_quantized *q[2];
    float *w = random_floats(ROWS * COLS, -1, 1), *gram = calloc(COLS * COLS, sizeof *gram);
    for (int i = 0; i < COLS; i++)
        for (int j = 0; j <= i; j++) gram[i * COLS + j] = i == j ? uniform(1, 3) : uniform(-0.02f, 0.02f);
    if (cuda_solver_ops.create(&s, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    for (int i = 0; i < 2; i++) {
        llmq_quant_problem p = {.name = "w",
                                .w = w,
                                .rows = ROWS,
                                .cols = COLS,
                                .gram = gram,
                                .n_tokens = 1,
                                .type = type_info(LLMQ_TYPE_Q6_K),
                                .damp = -1,
                                .ops = backend_cpu_isa("c"),
                                .team = team,
                                .device = i ? s : NULL};
        p.solver.order = ORDER_STATIC;
        if (emu_here()) emu_set_memory(i ? emu_memory_used() + 1100000 : 0);
        assert_int_equal(quantized_create(p.type, ROWS, COLS, &q[i], &err), LLMQ_OK);
        if (method_find("gptq")->solve(&p, q[i], &report, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        assert_false(report.fell_back);
    }
    if (emu_here()) emu_set_memory(0);
    size_t differ = 0;
    for (size_t i = 0; i < ROWS * COLS; i++) differ += q[0]->codes[i] != q[1]->codes[i];
    assert_true(differ <= ROWS * COLS / 100);
    if (emu_here()) assert_int_equal(differ, 0);
    for (int i = 0; i < 2; i++) quantized_destroy(q[i]);
    s->ops->destroy(s);
    free(w), free(gram);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gram),       cmocka_unit_test(test_slabs),    cmocka_unit_test(test_beside_cpu),
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
