/* core: conversions, metadata, files, teams. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/half.h"
#include "core/mem.h"
#include "core/meta.h"
#include "core/parallel.h"

static void test_f16_round_trip(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float x = f16_to_f32((uint16_t)h);
        if (isnan(x)) assert_true((f32_to_f16(x) & 0x7c00) == 0x7c00 && (f32_to_f16(x) & 0x3ff));
        else assert_int_equal(f32_to_f16(x), h);
        float y = bf16_to_f32((uint16_t)h);
        if (!isnan(y)) assert_int_equal(f32_to_bf16(y), h);
    }
}

static void test_f16_rounding(void **state) {
    (void)state;
    assert_int_equal(f32_to_f16(65504.f), 0x7bff);
    assert_int_equal(f32_to_f16(65519.f), 0x7bff);
    assert_int_equal(f32_to_f16(65520.f), 0x7c00);
    assert_int_equal(f32_to_f16(5.9604644775390625e-8f), 1);
    assert_int_equal(f32_to_f16(2.98023223876953125e-8f), 0); /* half of the smallest: to even */
    assert_int_equal(f32_to_f16(1.0f + 1.0f / 2048), 0x3c00); /* tie to even */
    assert_int_equal(f32_to_f16(1.0f + 3.0f / 2048), 0x3c02);
    assert_int_equal(f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(f32_to_bf16(1.00390625f), 0x3f80); /* 1 + 2^-8: tie to even */
}

static void test_meta(void **state) {
    (void)state;
    llmq_meta *meta = meta_create();
    const float xs[] = {1, 2, 3};
    const llmq_str strs[] = {{"a", 1}, {"b\0c", 3}};
    int64_t i = -1;
    double f = 0;
    assert_int_equal(meta_set_u32(meta, "n", 7, NULL), LLMQ_OK);
    assert_int_equal(meta_set_u32(meta, "n", 8, NULL), LLMQ_OK);
    assert_int_equal(meta_set_array(meta, "xs", META_F32, xs, 3, NULL), LLMQ_OK);
    assert_int_equal(meta_set_strs(meta, "strs", strs, 2, NULL), LLMQ_OK);
    assert_int_equal(meta_set_str(meta, "name", "tiny", NULL), LLMQ_OK);
    assert_int_equal(meta_count(meta), 4);
    assert_true(meta_get_i64(meta, "n", &i) && i == 8);
    assert_true(meta_get_f64(meta, "n", &f) && f == 8);
    assert_false(meta_get_i64(meta, "name", &i));
    assert_string_equal(meta_get_str(meta, "name"), "tiny");
    const llmq_meta_value *v = meta_find(meta, "strs");
    assert_memory_equal(((const llmq_str *)v->arr.data)[1].s, "b\0c", 4);
    meta_remove(meta, "n");
    assert_null(meta_find(meta, "n"));
    meta_destroy(meta);
}

static void test_out_is_whole_or_absent(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/out.bin";
    llmq_out *out;
    llmq_err err;
    unlink(path);
    assert_int_equal(out_open(path, false, 0, &out, &err), LLMQ_OK);
    assert_int_equal(out_write_at(out, "world", 5, 5, &err), LLMQ_OK);
    assert_int_equal(out_write_at(out, "hello", 5, 0, &err), LLMQ_OK);
    assert_false(file_exists(path));
    assert_int_equal(out_finish(out, &err), LLMQ_OK);
    char *text;
    size_t len;
    assert_int_equal(file_read(path, 100, &text, &len, &err), LLMQ_OK);
    assert_int_equal(len, 10);
    assert_string_equal(text, "helloworld");
    mem_free(text);
    assert_int_equal(file_read(path, 9, &text, &len, &err), LLMQ_E_FORMAT);
    assert_int_equal(out_open(path, false, 0, &out, &err), LLMQ_E_EXISTS);
    assert_int_equal(out_open(path, true, 0, &out, &err), LLMQ_OK);
    out_abort(out);
    assert_true(file_exists(path));
    assert_false(file_exists(LLMQ_TEST_TMP "/out.bin.tmp"));
    unlink(path);
}

static void count_phases(const llmq_worker *w, void *arg) {
    int *cells = arg;
    for (int phase = 0; phase < 200; phase++) {
        cells[w->id] = phase;
        worker_barrier(w);
        for (int i = 0; i < w->n; i++)
            if (cells[i] != phase) cells[64] = 1; /* somebody is in another phase */
        worker_barrier(w);
    }
}

static void test_team_barrier(void **state) {
    (void)state;
    for (int n = 1; n <= 5; n++) {
        llmq_team *team;
        int cells[65] = {0};
        assert_int_equal(team_create(n, &team, NULL), LLMQ_OK);
        team_run(team, count_phases, cells);
        assert_int_equal(cells[64], 0);
        team_destroy(team);
    }
}

static void test_worker_range_covers_once(void **state) {
    (void)state;
    for (int64_t n = 0; n < 70; n++)
        for (int workers = 1; workers < 6; workers++) {
            int64_t next = 0;
            for (int id = 0; id < workers; id++) {
                int64_t a, b;
                worker_range(&(llmq_worker){id, workers, NULL}, n, 16, &a, &b);
                assert_int_equal(a, next);
                assert_true(b >= a && (b % 16 == 0 || b == n));
                next = b;
            }
            assert_int_equal(next, n);
        }
}

static void test_failed_allocation_is_reported(void **state) {
    (void)state;
    mem_fail_after(1);
    assert_null(mem_alloc(1, 1));
    assert_null(meta_create());
    mem_fail_after(0);
    assert_null(mem_alloc(SIZE_MAX, 2));
    void *p = mem_alloc(0, 0);
    assert_non_null(p);
    mem_free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_round_trip),   cmocka_unit_test(test_f16_rounding),
        cmocka_unit_test(test_meta),             cmocka_unit_test(test_out_is_whole_or_absent),
        cmocka_unit_test(test_team_barrier),     cmocka_unit_test(test_worker_range_covers_once),
        cmocka_unit_test(test_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
