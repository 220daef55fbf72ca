/* core: conversions, metadata, files, teams. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/half.h"
#include "core/hash.h"
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

/* Every number once, in each of several shares and after barriers, with few numbers and with many. */
typedef struct share_test {
    atomic_int seen[3][2000];
    int64_t n;
} share_test;

static void mark_shares(const llmq_worker *w, void *arg) {
    share_test *t = arg;
    for (int phase = 0; phase < 20; phase++) {
        for (int i = 0; i < 12; i++) { /* more than have counters */
            int64_t begin, end;
            for (worker_share s = worker_share_begin(w, t->n, 3); worker_share_next(&s, &begin, &end);)
                for (int64_t k = begin; k < end; k++) atomic_fetch_add(&t->seen[i % 3][k], 1);
        }
        worker_barrier(w);
    }
}

static void test_team_shares(void **state) {
    (void)state;
    static const int64_t sizes[] = {0, 1, 3, 190, 191, 500, 1999};
    static share_test t;
    for (int n = 1; n <= 4; n++) {
        llmq_team *team;
        assert_int_equal(team_create(n, &team, NULL), LLMQ_OK);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            memset(&t, 0, sizeof t);
            t.n = sizes[i];
            team_run(team, mark_shares, &t);
            team_run(team, mark_shares, &t);
            for (int k = 0; k < 2000; k++)
                for (int s = 0; s < 3; s++) assert_int_equal(t.seen[s][k], k < t.n ? 2 * 20 * 4 : 0);
        }
        team_destroy(team);
    }
}

static void count_workers(const llmq_worker *w, void *arg) {
    bool *met = arg;
    met[w->id] = w->n == team_size(w->team);
    worker_barrier(w);
    if (w->id == 0)
        for (int i = 0; i < w->n; i++) met[LLMQ_THREADS_MAX] &= met[i];
}

/* An explicit number of threads is obeyed on any machine. */
static void test_team_is_as_large_as_asked(void **state) {
    (void)state;
    static const int sizes[] = {1, 3, 17, 64, LLMQ_THREADS_MAX};
    llmq_team *team;
    llmq_err err;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bool met[LLMQ_THREADS_MAX + 1] = {[LLMQ_THREADS_MAX] = true};
        assert_int_equal(team_create(sizes[i], &team, NULL), LLMQ_OK);
        assert_int_equal(team_size(team), sizes[i]);
        team_run(team, count_workers, met);
        assert_true(met[LLMQ_THREADS_MAX]);
        team_destroy(team);
    }
    assert_int_equal(team_create(0, &team, NULL), LLMQ_OK);
    assert_int_equal(team_size(team), cpu_physical_cores());
    team_destroy(team);
    assert_int_equal(team_create(LLMQ_THREADS_MAX + 1, &team, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "--threads 513: at most 512"));
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
    mem_fail_after(1);
    assert_null(mem_zalloc_huge(1, 1));
    assert_null(mem_zalloc_huge(5 << 20, 1));
    mem_fail_after(0);
    assert_null(mem_zalloc_huge(SIZE_MAX, 2));
    assert_null(mem_zalloc_huge(SIZE_MAX / 2, 2));
    for (size_t n = 1; n < 20 << 20; n = n * 3 + 1) { /* below and above the size that gets huge pages */
        uint8_t *p = mem_zalloc_huge(n, 1);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % MEM_ALIGN, 0);
        for (size_t i = 0; i < n; i++)
            if (p[i]) fail_msg("byte %zu of %zu is not zero", i, n);
        memset(p, 1, n);
        mem_free(p);
    }
    void *p = mem_alloc(0, 0);
    assert_non_null(p);
    mem_free(p);
}

/* Large blocks are zero when they come, also where others were, and do not overlap. */
static void test_big_blocks(void **state) {
    (void)state;
    enum { N = 60 };
    uint8_t *block[N] = {NULL};
    size_t bytes[N] = {0};
    for (int round = 0; round < 300; round++) {
        int i = round * 37 % N;
        for (size_t k = 0; block[i] && k < bytes[i]; k += 509) assert_int_equal(block[i][k], i + 1);
        mem_free_big(block[i], bytes[i]);
        bytes[i] = (size_t)(round * 7919 % 1000) * (round % 5 ? 3000 : 40000) + 1;
        block[i] = mem_alloc_big(bytes[i]);
        assert_non_null(block[i]);
        for (size_t k = 0; k < bytes[i]; k += 509)
            if (block[i][k]) fail_msg("byte %zu of %zu is not zero", k, bytes[i]);
        memset(block[i], i + 1, bytes[i]);
    }
    for (int i = 0; i < N; i++) mem_free_big(block[i], bytes[i]);
    assert_null(mem_alloc_big(0));
    mem_fail_after(1);
    assert_null(mem_alloc_big(1 << 20));
    mem_fail_after(0);
}

/* Sums by the xxhash package of Python. */
static void test_hash(void **state) {
    (void)state;
    static const struct {
        size_t n;
        uint64_t sum;
    } known[] = {{0, 0xef46db3751d8e999},   {1, 0xe934a84adb052768},  {3, 0xc997034c0bb922ee},
                 {4, 0x6ac7f1517bab3f55},   {7, 0xafb353a67897bc23},  {8, 0x9cd612a90db709f0},
                 {12, 0x341c1da0121e8793},  {31, 0x148bb49643515e7c}, {32, 0xc1a8a55a98decdea},
                 {33, 0xa0790c1b7973d776},  {63, 0xf81d45fdae1b75f4}, {64, 0x221754ffc7697251},
                 {100, 0x14434a6ec2e36aa0}, {999, 0x2dea81d7ed570ccb}, {1000, 0x2f70d41cb0bedf78}};
    uint8_t bytes[1000];
    for (uint64_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 7);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_true(hash_bytes(bytes, known[i].n) == known[i].sum);
        for (size_t cut = 1; cut < 70; cut++) {
            llmq_hash h;
            hash_init(&h);
            for (size_t at = 0; at < known[i].n; at += cut)
                hash_add(&h, bytes + at, known[i].n - at < cut ? known[i].n - at : cut);
            assert_true(hash_sum(&h) == known[i].sum);
        }
    }
}

static void test_out_goes_on(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/goes-on";
    llmq_out *out;
    llmq_err err = {0};
    char back[7] = {0};
    unlink(path);
    assert_int_equal(out_open(path, false, 0, &out, &err), LLMQ_OK);
    assert_int_equal(out_write_at(out, "first ", 6, 0, &err), LLMQ_OK);
    assert_int_equal(out_sync(out, &err), LLMQ_OK);
    out_keep(out);
    assert_false(file_exists(path));
    assert_true(file_disk_bytes(LLMQ_TEST_TMP "/goes-on.tmp") >= 6);
    assert_int_equal(out_reopen(path, false, 7, &out, &err), LLMQ_E_FORMAT);
    assert_int_equal(out_reopen(path, false, 6, &out, &err), LLMQ_OK);
    assert_int_equal(out_read_at(out, back, 6, 0, &err), LLMQ_OK);
    assert_string_equal(back, "first ");
    assert_int_equal(out_read_at(out, back, 6, 1, &err), LLMQ_E_FORMAT);
    assert_int_equal(out_write_at(out, "second", 6, 6, &err), LLMQ_OK);
    assert_int_equal(out_finish(out, &err), LLMQ_OK);
    char *text;
    assert_int_equal(file_read(path, 100, &text, NULL, &err), LLMQ_OK);
    assert_string_equal(text, "first second");
    mem_free(text);
    assert_int_equal(out_reopen(path, true, 12, &out, &err), LLMQ_E_IO); /* no .tmp */
    assert_int_equal(out_reopen(path, false, 12, &out, &err), LLMQ_E_EXISTS);
    assert_int_equal(file_check_space(path, 1, &err), LLMQ_OK);
    assert_int_equal(file_check_space(path, UINT64_MAX, &err), LLMQ_E_IO);
    assert_non_null(strstr(err.msg, "the disk has"));
    assert_int_equal(file_disk_bytes(LLMQ_TEST_TMP "/nothing-here"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_round_trip),   cmocka_unit_test(test_f16_rounding),
        cmocka_unit_test(test_meta),             cmocka_unit_test(test_out_is_whole_or_absent),
        cmocka_unit_test(test_team_barrier),     cmocka_unit_test(test_team_is_as_large_as_asked),
        cmocka_unit_test(test_worker_range_covers_once),
        cmocka_unit_test(test_failed_allocation_is_reported), cmocka_unit_test(test_team_shares),
        cmocka_unit_test(test_big_blocks), cmocka_unit_test(test_hash),
        cmocka_unit_test(test_out_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
