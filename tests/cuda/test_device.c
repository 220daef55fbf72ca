/* What is said of machines without a usable GPU, and of memory that is not there. */
#include "gpu.h"

static void expect(const gpu_facts *facts, int index, const char *problem, const char *cure) {
    llmq_err err = {0};
    assert_int_equal(gpu_judge(facts, index, &err), LLMQ_E_UNSUPPORTED);
    if (!strstr(err.msg, problem) || !strstr(err.msg, cure))
        fail_msg("no '%s' and '%s' in: %s", problem, cure, err.msg);
}

static void test_missing(void **state) {
    (void)state;
    llmq_err err = {0};
    const gpu_facts good = {.runtime = 13000, .driver = 13010, .count = 2};
    gpu_facts f = good;
    assert_int_equal(gpu_judge(&good, 0, &err), LLMQ_OK);
    assert_int_equal(gpu_judge(&good, 1, &err), LLMQ_OK);
    expect(&good, 2, "2 GPUs", "counted from 0");
    f.count = 1;
    expect(&f, 5, "1 GPU,", "counted from 0");
    f.count = 0;
    expect(&f, 0, "finds no GPU", "CUDA_VISIBLE_DEVICES");
    f.problem = "system not yet initialized";
    expect(&f, 0, "system not yet initialized", "nvidia-smi");
    f = (gpu_facts){.runtime = 13000, .driver = 12080, .too_old = true, .problem = "insufficient"};
    expect(&f, 0, "is for CUDA 12.8, and this llmq needs 13.0", "update the driver");
    f = (gpu_facts){.runtime = 13000};
    expect(&f, 0, "no NVIDIA driver", "install one for CUDA 13.0");
    assert_int_equal(gpu_judge_device(0, "A100", 8, 0, &err), LLMQ_OK);
    assert_int_equal(gpu_judge_device(1, "Tesla V100", 7, 0, &err), LLMQ_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "Tesla V100 has compute capability 7.0"));
}

static void test_memory(void **state) {
    (void)state;
    llmq_err err = {0};
    void *p = NULL, *q = &err;
    size_t before, after;
    assert_int_equal(gpu_memory(&before, &err), LLMQ_OK);
    assert_int_equal(gpu_alloc("a test", 1 << 26, &p, &err), LLMQ_OK);
    assert_int_equal(gpu_memory(&after, &err), LLMQ_OK);
    assert_true(after < before && before - after >= 1 << 26);
    assert_int_equal(gpu_alloc("a very large test", (size_t)1 << 46, &q, &err), LLMQ_E_MEMORY);
    assert_null(q);
    assert_non_null(strstr(err.msg, "a very large test"));
    assert_int_equal(gpu_wait(&err), LLMQ_OK); /* the failed allocation is forgotten */
    gpu_free(p);
    gpu_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_missing), cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
