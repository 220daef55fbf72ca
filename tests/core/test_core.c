/* core: conversions, metadata, files, teams. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
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

/* What a rename would take the place of: nothing but plain files, force or not. */
static void test_out_spares_devices_and_links(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/special", *target = LLMQ_TEST_TMP "/target";
    llmq_out *out;
    llmq_err err;
    struct stat st;
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(out_open(path, true, 0, &out, &err), LLMQ_E_IO);
    assert_non_null(strstr(err.msg, "special: is a device or a pipe; name a file"));
    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    unlink(path);
    assert_int_equal(symlink(target, path), 0); /* to nothing: not an existing file */
    assert_int_equal(out_open(path, false, 0, &out, &err), LLMQ_E_IO);
    assert_non_null(strstr(err.msg, "special: is a link; name a file"));
    assert_int_equal(out_open(path, true, 0, &out, &err), LLMQ_E_IO);
    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
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

enum { SHARE_MOST = 1100, SHARE_ROUNDS = 12 };

typedef struct share_seen {
    int64_t n, step;
    _Atomic int64_t own; /* of all workers */
    atomic_int times[SHARE_ROUNDS][SHARE_MOST];
} share_seen;

/* More shares than there are counters between two barriers, by workers that go through them at different times; again
 * after a barrier. */
static void take_shares(const llmq_worker *w, void *arg) {
    share_seen *seen = arg;
    int64_t begin, end, own_begin, own_end;
    worker_share_own(w, seen->n, seen->step, &own_begin, &own_end);
    atomic_fetch_add(&seen->own, own_end - own_begin);
    for (int round = 0; round < SHARE_ROUNDS; round++) {
        bool first = round == 0 && own_begin < own_end;
        for (worker_share s = worker_share_begin(w, seen->n, seen->step); worker_share_next(&s, &begin, &end);) {
            if (first && (begin != own_begin || end != own_end)) seen->times[round][0] = 1000;
            first = false;
            if (begin % seen->step || (end % seen->step && end != seen->n)) seen->times[round][0] = 100;
            for (int64_t i = begin; i < end; i++) atomic_fetch_add(&seen->times[round][i], 1);
        }
        if (round == SHARE_ROUNDS - 3) worker_barrier(w);
    }
}

static void test_share_covers_once(void **state) {
    (void)state;
    static const int64_t steps[] = {1, 16};
    static share_seen seen;
    for (int n_workers = 1; n_workers <= 5; n_workers++) {
        llmq_team *team;
        assert_int_equal(team_create(n_workers, &team, NULL), LLMQ_OK);
        for (int64_t i = 0; i < 2 * 56; i++) { /* with and without pieces, whole steps and not */
            memset(&seen, 0, sizeof seen);
            seen.step = steps[i % 2];
            seen.n = i / 2 * (seen.step == 1 ? 3 : 19);
            team_run(team, take_shares, &seen);
            assert_true(seen.own <= seen.n && 8 * seen.own >= 7 * seen.n);
            for (int round = 0; round < SHARE_ROUNDS; round++)
                for (int64_t k = 0; k < seen.n; k++)
                    if (seen.times[round][k] != 1)
                        fail_msg("%d workers, %d in steps of %d: %d is handed out %d times", n_workers, (int)seen.n,
                                 (int)seen.step, (int)k, seen.times[round][k]);
        }
        team_destroy(team);
    }
}

/* Large blocks come and go in any order: zeros at first, and nobody else's. */
static void test_big_blocks(void **state) {
    (void)state;
    enum { N = 24, STEP = 1021 };
    static const size_t sizes[] = {1, 4096, 70001, (3 << 20) + 5, 16 << 20, (16 << 20) + 1};
    uint8_t *block[N] = {NULL};
    size_t size[N];
    uint32_t random = 1;
    for (int round = 0; round < 600; round++) {
        random = random * 1664525 + 1013904223;
        int i = (int)(random >> 16) % N;
        if (block[i]) {
            for (size_t k = 0; k < size[i]; k += STEP)
                if (block[i][k] != i + 1) fail_msg("block of %zu: another wrote to byte %zu", size[i], k);
            mem_free_big(block[i], size[i]);
            block[i] = NULL;
            continue;
        }
        size[i] = sizes[(random >> 8) % (sizeof sizes / sizeof *sizes)];
        block[i] = mem_alloc_big(size[i]);
        assert_non_null(block[i]);
        assert_int_equal((uintptr_t)block[i] % MEM_ALIGN, 0);
        for (size_t k = 0; k < size[i]; k += STEP) {
            if (block[i][k]) fail_msg("block of %zu: byte %zu is not zero", size[i], k);
            block[i][k] = (uint8_t)(i + 1);
        }
    }
    for (int i = 0; i < N; i++) mem_free_big(block[i], size[i]);
}

/* A limit of address space that leaves room for a block is enough. */
static void test_big_block_under_a_limit(void **state) {
    (void)state;
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld", &pages), 1);
    fclose(f);
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    low = old;
    low.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (16 << 20);
    assert_int_equal(setrlimit(RLIMIT_AS, &low), 0);
    void *p = mem_alloc_big(1 << 20), *q = mem_alloc_big(64 << 20);
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
    assert_non_null(p);
    assert_null(q);
    mem_free_big(p, 1 << 20);
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
        cmocka_unit_test(test_out_spares_devices_and_links),
        cmocka_unit_test(test_team_barrier),     cmocka_unit_test(test_team_is_as_large_as_asked),
        cmocka_unit_test(test_worker_range_covers_once), cmocka_unit_test(test_share_covers_once),
        cmocka_unit_test(test_big_blocks),       cmocka_unit_test(test_big_block_under_a_limit),
        cmocka_unit_test(test_failed_allocation_is_reported), cmocka_unit_test(test_hash),
        cmocka_unit_test(test_out_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
