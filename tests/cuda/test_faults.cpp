/* Proof that the emulator sees what it is there to see: small kernels, each right, and wrong in one way. The right one
 * must pass and the wrong one be reported, with the fault's kind and its line, whatever order the threads run in. The
 * lines are those marked with the case's name; where two sides of a race are marked, either will do: the later one is
 * reported, and the order decides which that is. (Memory is written once before, or the first fault would be a read of
 * what nobody has written.) */
#include <fstream> /* before cmocka's macros */
#include <set>
#include <string>

#include "cuda/device.h"
#include "emu.h"

enum { THREADS = 64 };

/* ---- shared memory and barriers */

static void race_missing_barrier(bool bad) {
    emu::launch("sum of neighbours", 1, THREADS, 0, [=] {
        SHARED(int, tile, THREADS);
        unsigned i = threadIdx.x;
        int sum = 0;
        tile[i] = 0;
        __syncthreads();
        tile[i] = static_cast<int>(i); /* fault: race_missing_barrier */
        if (!bad) __syncthreads();
        sum += tile[(i + 1) % THREADS]; /* fault: race_missing_barrier */
        (void)sum;
    });
}

static void race_overwrite(bool bad) {
    emu::launch("rotate in place", 1, THREADS, 0, [=] {
        SHARED(int, tile, THREADS);
        unsigned i = threadIdx.x;
        tile[i] = static_cast<int>(i);
        __syncthreads();
        int next = tile[(i + 1) % THREADS]; /* fault: race_overwrite */
        if (!bad) __syncthreads();
        tile[i] = next; /* fault: race_overwrite */
    });
}

static void race_two_writers(bool bad) {
    emu::launch("flag", 1, THREADS, 0, [=] {
        SHARED(int, flag, 1);
        if (bad || threadIdx.x == 0) flag[0] = 1; /* fault: race_two_writers */
    });
}

static void race_neighbour_bytes(bool bad) { /* bytes of one word are different memory; the same byte is not */
    emu::launch("bytes", 1, THREADS, 0, [=] {
        SHARED(uint8_t, bytes, THREADS);
        bytes[bad ? threadIdx.x / 2 : threadIdx.x] = 1; /* fault: race_neighbour_bytes */
    });
}

static void race_within_warp(bool bad) { /* lanes are not in step: __syncwarp is what orders them */
    emu::launch("warp exchange", 1, 32, 0, [=] {
        SHARED(int, tile, 32);
        unsigned i = threadIdx.x;
        int sum = 0;
        tile[i] = 0;
        __syncthreads();
        tile[i] = static_cast<int>(i); /* fault: race_within_warp */
        if (!bad) __syncwarp();
        sum += tile[i ^ 1]; /* fault: race_within_warp */
        (void)sum;
    });
}

static void race_shuffle_is_no_barrier(bool bad) {
    emu::launch("shuffle as barrier", 1, 32, 0, [=] {
        SHARED(int, tile, 32);
        unsigned i = threadIdx.x;
        int sum = 0;
        tile[i] = 0;
        __syncthreads();
        tile[i] = static_cast<int>(i); /* fault: race_shuffle_is_no_barrier */
        __shfl_xor_sync(WARP_ALL, 1, 1);
        if (!bad) __syncwarp();
        sum += tile[i ^ 1]; /* fault: race_shuffle_is_no_barrier */
        (void)sum;
    });
}

static void race_syncwarp_across_warps(bool bad) {
    emu::launch("two warps", 1, THREADS, 0, [=] {
        SHARED(int, tile, THREADS);
        unsigned i = threadIdx.x;
        int sum = 0;
        tile[i] = 0;
        __syncthreads();
        tile[i] = static_cast<int>(i); /* fault: race_syncwarp_across_warps */
        if (bad)
            __syncwarp();
        else
            __syncthreads();
        sum += tile[i ^ 32]; /* fault: race_syncwarp_across_warps */
        (void)sum;
    });
}

static void race_named_barrier(bool bad) { /* warps 0 and 1 meet at barrier 1; warp 2 does not */
    emu::launch("producer and consumer", 1, 96, 0, [=] {
        SHARED(int, tile, 32);
        unsigned i = threadIdx.x;
        int sum = 0;
        if (i < 32) tile[i] = 0;
        __syncthreads();
        if (i < 32) tile[i] = 1; /* fault: race_named_barrier */
        if (i < 64) barrier_sync(1, 64);
        if (i >= 32 && i < (bad ? 96 : 64)) sum += tile[i % 32]; /* fault: race_named_barrier */
        (void)sum;
    });
}

static void barrier_diverged(bool bad) {
    emu::launch("two barriers", 1, THREADS, 0, [=] {
        if (bad && threadIdx.x >= 32)
            __syncthreads(); /* fault: barrier_diverged */
        else
            __syncthreads(); /* fault: barrier_diverged */
    });
}

static void barrier_after_exit(bool bad) {
    emu::launch("early return", 1, THREADS, 0, [=] {
        if (bad && threadIdx.x >= 40) return;
        __syncthreads(); /* fault: barrier_after_exit */
    });
}

/* ---- global memory */

static void race_across_blocks(bool bad) {
    array<float> sum("sum", std::vector<float>(1, 0.0f), false);
    emu::launch("sum of blocks", 4, 32, 0, [=, p = gptr<float>(sum)] {
        if (threadIdx.x) return;
        if (bad)
            p[0] += 1.0f; /* fault: race_across_blocks */
        else
            atomicAdd(p, 1.0f);
    });
    if (!bad) assert_true(sum.host(0) == 4.0f);
}

static void race_atomic_and_plain(bool bad) {
    array<int> count("count", std::vector<int>(1, 0), false);
    emu::launch("counter", 1, 32, 0, [=, p = gptr<int>(count)] {
        int seen = 0;
        atomicAdd(p, 1); /* fault: race_atomic_and_plain */
        if (!bad) __syncwarp();
        if (threadIdx.x == 7) seen = p[0]; /* fault: race_atomic_and_plain */
        (void)seen;
    });
}

static void bounds_past_end(bool bad) {
    array<float> x("x", std::vector<float>(THREADS, 1.0f)), y("y", THREADS);
    emu::launch("shift", 1, THREADS, 0, [=, p = gptr<const float>(x), q = gptr<float>(y)] {
        unsigned i = threadIdx.x;
        if (bad || i + 1 < THREADS) q[i] = p[i + 1]; /* fault: bounds_past_end */
    });
}

static void bounds_before_start(bool bad) {
    array<float> y("y", THREADS);
    emu::launch("shift left", 1, THREADS, 0, [=, q = gptr<float>(y)] {
        int i = static_cast<int>(threadIdx.x);
        if (bad || i > 0) q[i - 1] = 0.0f; /* fault: bounds_before_start */
    });
}

static void bounds_shared(bool bad) { /* into the neighbour array: inside the block's memory, outside its own */
    emu::launch("two arrays", 1, 32, 0, [=] {
        SHARED(int, first, 32);
        SHARED(int, second, 32);
        second[threadIdx.x] = 1;
        first[threadIdx.x + (bad ? 1 : 0)] = 2; /* fault: bounds_shared */
    });
}

static void bounds_null(bool bad) {
    array<float> bias("bias", std::vector<float>(32, 1.0f));
    emu::launch("bias", 1, 32, 0, [=, p = bad ? gptr<const float>() : gptr<const float>(bias)] {
        float v = 0;
        v += p[threadIdx.x]; /* fault: bounds_null */
        (void)v;
    });
}

static void misaligned_vector(bool bad) {
    array<float> x("x", std::vector<float>(64, 1.0f));
    emu::launch("vectors", 1, 8, 0, [=, p = gptr<const float>(x)] {
        gptr<const float> mine = p + (threadIdx.x * 4 + (bad ? 1 : 0));
        float4 v = as<const float4>(mine)[0]; /* fault: misaligned_vector */
        (void)v;
    });
}

static void uninitialized_shared(bool bad) {
    emu::launch("half a tile", 1, THREADS, 0, [=] {
        SHARED(float, tile, THREADS);
        if (!bad || threadIdx.x < 32) tile[threadIdx.x] = 1.0f;
        __syncthreads();
        float v = tile[THREADS - 1]; /* fault: uninitialized_shared */
        (void)v;
    });
}

static void uninitialized_global(bool bad) {
    array<float> fresh("fresh", 32), ready("ready", std::vector<float>(32, 0.0f), false);
    emu::launch("accumulate", 1, 32, 0, [=, p = bad ? gptr<float>(fresh) : gptr<float>(ready)] {
        p[threadIdx.x] += 1.0f; /* fault: uninitialized_global */
    });
}

static void write_to_input(bool bad) {
    array<float> x("x", std::vector<float>(32, 1.0f)), y("y", 32);
    emu::launch("scale", 1, 32, 0, [=, p = bad ? gptr<float>(x) : gptr<float>(y)] {
        p[threadIdx.x] = 2.0f; /* fault: write_to_input */
    });
}

/* ---- warps */

static void mask_without_caller(bool bad) {
    emu::launch("wrong mask", 1, 32, 0, [=] {
        unsigned mask = bad ? 0xfffffffeu : WARP_ALL;
        __shfl_xor_sync(mask, 1, 1); /* fault: mask_without_caller */
    });
}

static void mask_differs(bool bad) {
    emu::launch("two masks", 1, 32, 0, [=] {
        unsigned mask = bad && threadIdx.x >= 16 ? 0xffff00ffu : WARP_ALL;
        if (bad && threadIdx.x >= 8 && threadIdx.x < 16) return;
        __shfl_xor_sync(mask, 1, 1); /* fault: mask_differs */
    });
}

static void mask_reads_outside(bool bad) {
    emu::launch("lane outside", 1, 32, 0, [=] {
        if (threadIdx.x < 16) __shfl_xor_sync(0xffffu, 1, bad ? 16 : 8); /* fault: mask_reads_outside */
    });
}

static void mask_reads_exited(bool bad) {
    emu::launch("lane gone", 1, 32, 0, [=] {
        if (bad && threadIdx.x == 31) return;
        __shfl_down_sync(WARP_ALL, 1, 1); /* fault: mask_reads_exited */
    });
}

static void deadlock_in_branch(bool bad) {
    emu::launch("full mask in a branch", 1, 32, 0, [=] {
        if (!bad || threadIdx.x < 16) __shfl_xor_sync(WARP_ALL, 1, 1); /* fault: deadlock_in_branch */
        __syncthreads();
    });
}

static void diverged_operations(bool bad) {
    emu::launch("two operations", 1, 32, 0, [=] {
        if (bad && threadIdx.x < 16)
            __ballot_sync(WARP_ALL, true); /* fault: diverged_operations */
        else
            __shfl_xor_sync(WARP_ALL, 1, 1); /* fault: diverged_operations */
        if (bad && threadIdx.x < 16)
            __shfl_xor_sync(WARP_ALL, 1, 1);
        else
            __ballot_sync(WARP_ALL, true);
    });
}

static void mma_without_a_lane(bool bad) {
    emu::launch("mma", 1, 32, 0, [=] {
        float d[4] = {};
        const uint32_t a[4] = {}, b[2] = {};
        if (bad && threadIdx.x == 5) return;
        mma_f16(d, a, b); /* fault: mma_without_a_lane */
    });
}

static void ldmatrix_misaligned(bool bad) {
    emu::launch("ldmatrix", 1, 32, 0, [=] {
        SHARED(uint16_t, tile, 32 * 8 + 8);
        for (unsigned i = threadIdx.x; i < 32 * 8 + 8; i += 32) tile[i] = 0;
        __syncwarp();
        uint32_t r[4];
        ldmatrix_x4(r, tile + (threadIdx.x * 8 + (bad ? 4 : 0))); /* fault: ldmatrix_misaligned */
    });
}

/* ---- cp.async. A pipeline of two stages over four tiles of 32 x 16 bytes, and what can be left out of it. */

enum { STAGES = 2, TILES = 4 };

static void copy_pipeline(const char *name, bool no_wait, bool wait_less, bool no_barrier, bool barrier_first,
                          bool refill_early) {
    std::vector<uint32_t> numbers(TILES * 32 * 4);
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = static_cast<uint32_t>(i);
    array<uint32_t> x("x", numbers), y("y", 32);
    emu::launch(name, 1, 32, 0, [=, from = gptr<const uint32_t>(x), to = gptr<uint32_t>(y)] {
        SHARED(uint32_t, stage, STAGES * 32 * 4);
        unsigned i = threadIdx.x, sum = 0;
        for (unsigned k = i; k < STAGES * 128; k += 32) stage[k] = 0;
        __syncthreads();
        for (unsigned n = 0; n < STAGES - 1; n++) {
            cp_async_16(stage + n * 128 + i * 4, from + n * 128 + i * 4); /* fault: copy_unordered */
            cp_async_commit();
        }
        for (unsigned n = 0; n < TILES; n++) {
            if (barrier_first) __syncthreads();
            if (!no_wait && !wait_less) cp_async_wait<STAGES - 2>();
            if (wait_less) cp_async_wait<STAGES - 1>();
            if (!no_barrier && !barrier_first) __syncthreads();
            unsigned next = n + STAGES - 1;
            unsigned into = refill_early ? n % STAGES : next % STAGES;
            if (refill_early) sum += stage[n % STAGES * 128 + (127 - i)]; /* fault: copy_refill_early */
            sptr<uint32_t> refill = stage + into * 128 + i * 4;
            gptr<const uint32_t> tile = from + next * 128 + i * 4;
            if (next < TILES) cp_async_16(refill, tile); /* fault: copy_refill_early copy_unordered */
            cp_async_commit();
            if (!refill_early) sum += stage[n % STAGES * 128 + (127 - i)]; /* fault: copy_pipeline copy_unordered */
        }
        cp_async_wait<0>();
        to[i] = sum;
    });
    if (!no_wait && !wait_less && !no_barrier && !barrier_first && !refill_early) {
        unsigned want = 0;
        for (unsigned n = 0; n < TILES; n++) want += n * 128 + 127;
        assert_int_equal(y.host(0), want);
    }
}
static void copy_without_wait(bool bad) {
    copy_pipeline("no wait", bad, false, false, false, false);
}
static void copy_waits_for_less(bool bad) {
    copy_pipeline("wait for less", false, bad, false, false, false);
}
static void copy_without_barrier(bool bad) {
    copy_pipeline("no barrier", false, false, bad, false, false);
}
static void copy_barrier_first(bool bad) {
    copy_pipeline("barrier, then wait", false, false, false, bad, false);
}
static void copy_refill_early(bool bad) {
    copy_pipeline("refill of a stage in use", false, false, false, false, bad);
}

static void copy_misaligned(bool bad) {
    array<float> x("x", std::vector<float>(40, 1.0f));
    emu::launch("misaligned copy", 1, 1, 0, [=, p = gptr<const float>(x)] {
        SHARED(float, tile, 8);
        cp_async_16(tile, p + (bad ? 1 : 4)); /* fault: copy_misaligned */
        cp_async_commit();
        cp_async_wait<0>();
    });
}

static void copy_source_changes(bool bad) {
    array<float> x("x", std::vector<float>(4, 1.0f), false);
    emu::launch("source changes", 1, 1, 0, [=, p = gptr<float>(x)] {
        SHARED(float, tile, 4);
        cp_async_16(tile, as<const float>(p));
        cp_async_commit();
        if (!bad) cp_async_wait<0>();
        p[2] = 2.0f; /* fault: copy_source_changes */
        cp_async_wait<0>();
    });
}

static void copy_never_waited(bool bad) {
    array<float> x("x", std::vector<float>(4, 1.0f));
    emu::launch("never waited", 1, 1, 0, [=, p = gptr<const float>(x)] {
        SHARED(float, tile, 4);
        cp_async_16(tile, p); /* fault: copy_never_waited */
        cp_async_commit();
        if (!bad) cp_async_wait<0>();
    });
}

static void copy_too_much(bool bad) {
    array<float> x("x", std::vector<float>(4, 1.0f));
    emu::launch("zero fill", 1, 1, 0, [=, p = gptr<const float>(x)] {
        SHARED(float, tile, 4);
        cp_async_16(tile, p, bad ? 20 : 8); /* fault: copy_too_much */
        cp_async_commit();
        cp_async_wait<0>();
        float last = tile[3];
        assert_true(last == 0.0f);
    });
}

/* ---- the table */

static const struct fault_case {
    const char *name, *marks;
    emu_fault fault;
    void (*run)(bool bad);
} cases[] = {
#define CASE(name, fault)                                                                                              \
    { #name, #name, fault, name }
    CASE(race_missing_barrier, EMU_RACE),
    CASE(race_overwrite, EMU_RACE),
    CASE(race_two_writers, EMU_RACE),
    CASE(race_neighbour_bytes, EMU_RACE),
    CASE(race_within_warp, EMU_RACE),
    CASE(race_shuffle_is_no_barrier, EMU_RACE),
    CASE(race_syncwarp_across_warps, EMU_RACE),
    CASE(race_named_barrier, EMU_RACE),
    CASE(race_across_blocks, EMU_RACE),
    CASE(race_atomic_and_plain, EMU_RACE),
    CASE(barrier_diverged, EMU_BARRIER),
    CASE(barrier_after_exit, EMU_BARRIER),
    CASE(bounds_past_end, EMU_BOUNDS),
    CASE(bounds_before_start, EMU_BOUNDS),
    CASE(bounds_shared, EMU_BOUNDS),
    CASE(bounds_null, EMU_BOUNDS),
    CASE(misaligned_vector, EMU_MISALIGNED),
    CASE(uninitialized_shared, EMU_UNINITIALIZED),
    CASE(uninitialized_global, EMU_UNINITIALIZED),
    CASE(write_to_input, EMU_READ_ONLY),
    CASE(mask_without_caller, EMU_MASK),
    CASE(mask_differs, EMU_MASK),
    CASE(mask_reads_outside, EMU_MASK),
    CASE(mask_reads_exited, EMU_MASK),
    CASE(deadlock_in_branch, EMU_DEADLOCK),
    CASE(diverged_operations, EMU_DIVERGED),
    CASE(mma_without_a_lane, EMU_MASK),
    CASE(ldmatrix_misaligned, EMU_MISALIGNED),
    {"copy_without_wait", "copy_pipeline", EMU_MISSING_WAIT, copy_without_wait},
    {"copy_waits_for_less", "copy_pipeline", EMU_MISSING_WAIT, copy_waits_for_less},
    {"copy_without_barrier", "copy_unordered", EMU_NONE, copy_without_barrier},
    {"copy_barrier_first", "copy_unordered", EMU_NONE, copy_barrier_first},
    {"copy_refill_early", "copy_refill_early", EMU_RACE, copy_refill_early},
    CASE(copy_misaligned, EMU_MISALIGNED),
    CASE(copy_source_changes, EMU_MISSING_WAIT),
    CASE(copy_never_waited, EMU_MISSING_WAIT),
    CASE(copy_too_much, EMU_ARGUMENT),
};

/* Lines of this file that carry the name in their mark. */
static std::set<int> marked(const std::string &name) {
    std::set<int> lines;
    std::ifstream file(__FILE__);
    std::string line;
    for (int number = 1; std::getline(file, line); number++) {
        size_t mark = line.find("/* fault: ");
        if (mark != std::string::npos && line.find(" " + name + " ", mark + 9) != std::string::npos)
            lines.insert(number);
    }
    return lines;
}

static void test_faults(void **) {
    for (const fault_case &c : cases) {
        std::set<int> lines = marked(c.marks);
        assert_false(lines.empty());
        for (int order = 0; order < EMU_ORDERS; order++) {
            emu_report report;
            emu_set_order(static_cast<emu_order>(order), 7);
            c.run(false);
            if (emu_take_report(&report))
                fail_msg("%s, order %d: a right kernel is reported: %s", c.name, order, report.text);
            c.run(true);
            if (!emu_take_report(&report)) fail_msg("%s, order %d: not reported", c.name, order);
            bool kind = report.fault == c.fault ||
                        (c.fault == EMU_NONE && (report.fault == EMU_RACE || report.fault == EMU_MISSING_WAIT));
            if (!kind || !lines.count(report.line) || strcmp(report.file, "test_faults.cpp") != 0 || report.thread < 0)
                fail_msg("%s, order %d: reported as: %s", c.name, order, report.text);
        }
    }
}

/* ---- launches that a device refuses, and what the counters of accesses say */

static void test_launches(void **) {
    const struct {
        dim3 grid, threads;
        size_t shared;
    } refused[] = {{1, 1025, 0},      {1, dim3(8, 8, 65), 0}, {0, 32, 0}, {dim3(1, 65536), 32, 0},
                   {1, 32, 49 << 10}, /* without ALLOW_SHARED */
                   {1, 32, 100 << 10}};
    emu_report report;
    int ran = 0;
    for (auto &r : refused) {
        emu::launch("refused", r.grid, r.threads, r.shared, [&] { ran++; });
        assert_true(emu_take_report(&report));
        assert_int_equal(report.fault, EMU_LAUNCH);
    }
    emu::launch("too much", 1, 1, 0, [&] {
        SHARED(float, big, 20000);
        big[0] = 0.0f;
        ran++;
    });
    emu::launch("not run: a fault has not been taken", 1, 1, 0, [&] { ran++; });
    assert_true(emu_take_report(&report));
    assert_int_equal(report.fault, EMU_LAUNCH);
    assert_int_equal(ran, 0);
    emu::allow_shared("dynamic", 99 << 10);
    emu::launch("dynamic", 2, 48, 99 << 10, [&] {
        DYNAMIC_SHARED(float, all);
        all[threadIdx.x] = 0.0f;
        if (threadIdx.x == 47) all[25343] = 1.0f;
        ran++;
    });
    assert_false(emu_take_report(&report));
    assert_int_equal(ran, 96);
}

/* What is recorded runs when it is replayed, as often as that is, with the arguments of then. */
static void test_recordings(void **) {
    array<int> x("x", std::vector<int>{0, 5}, false);
    gptr<int> sum = x;
    gpu_stream *s, *other;
    gpu_recording *r;
    llmq_err err;
    int value = 7;
    assert_int_equal(gpu_stream_create(&s, &err), LLMQ_OK);
    assert_int_equal(gpu_stream_create(&other, &err), LLMQ_OK);
    assert_int_equal(gpu_record_begin(s, &err), LLMQ_OK);
    emu::queue(s, "add", 1, 1, 0, [=] { sum[0] += value; });
    emu::queue(s, "double", 1, 1, 0, [=] { sum[0] += sum[0]; });
    value = 1000;
    int32_t word;
    assert_int_equal(gpu_download(&word, x.address(), 4, &err), LLMQ_E_IO); /* not now */
    assert_int_equal(gpu_record_end(s, &r, &err), LLMQ_OK);
    assert_int_equal(x.host(0), 0);
    for (int i = 0; i < 2; i++) assert_int_equal(gpu_replay(r, s, &err), LLMQ_OK);
    assert_int_equal(x.host(0), 42);
    gpu_recording_destroy(r);
    assert_int_equal(gpu_record_begin(s, &err), LLMQ_OK);
    emu::queue(other, "elsewhere", 1, 1, 0, [=] { sum[0] = 0; });
    assert_int_equal(gpu_record_end(s, &r, &err), LLMQ_E_IO);
    assert_null(r);
    assert_int_equal(gpu_record_begin(nullptr, &err), LLMQ_E_ARG);
    assert_int_equal(x.host(0), 42);
    gpu_stream_destroy(s);
    gpu_stream_destroy(other);
}

/* A buffer that is filled again before its turn spoils the upload: the emulator copies as late as it may. */
static void test_staging(void **) {
    for (int wrong = 0; wrong < 2; wrong++) {
        array<int> x("x", std::vector<int>(6, 0), false);
        gpu_staging *s;
        llmq_err err;
        void *buffer = nullptr;
        assert_int_equal(gpu_staging_create(8, &s, &err), LLMQ_OK);
        for (int i = 0; i < 3; i++) {
            if (!wrong || i < 2) assert_int_equal(gpu_staging_next(s, &buffer, &err), LLMQ_OK);
            const int two[2] = {10 * i, 10 * i + 1};
            memcpy(buffer, two, sizeof two); /* wrong: of the buffer that was sent just now */
            if (!wrong || i < 2) assert_int_equal(gpu_staging_send(s, x.address() + 2 * i, sizeof two, &err), LLMQ_OK);
        }
        assert_int_equal(gpu_staging_finish(s, &err), LLMQ_OK);
        gpu_staging_destroy(s);
        assert_int_equal(x.host(1), 1);
        assert_int_equal(x.host(3), wrong ? 21 : 11);
        assert_int_equal(x.host(5), wrong ? 0 : 21);
    }
}

/* needed and best of the accesses at the marked line */
static void traffic_at(const char *mark, int64_t needed, int64_t best) {
    emu_traffic list[32];
    int n = emu_traffic_list(list, 32), line = *marked(mark).begin();
    for (int i = 0; i < n; i++) {
        if (list[i].line != line) continue;
        if (list[i].needed != needed || list[i].best != best)
            fail_msg("%s: needed %d, best %d", mark, static_cast<int>(list[i].needed), static_cast<int>(list[i].best));
        return;
    }
    fail_msg("%s: nothing was counted", mark);
}

static void test_traffic(void **) {
    array<float> x("x", std::vector<float>(2048, 1.0f));
    emu_count(true);
    warp([&](int lane) {
        SHARED(float, tile, 33 * 32);
        SHARED(float4, wide, 64);
        gptr<const float> p = x;
        float sum = 0;
        for (int i = 0; i < 33; i++) tile[lane + 32 * i] = 0.0f; /* fault: rows */
        wide[lane] = float4{0, 0, 0, 0};                         /* fault: vectors */
        __syncwarp();
        sum += tile[lane * 32];             /* fault: column */
        sum += tile[lane * 33];             /* fault: padded column */
        sum += tile[lane / 2 * 32];         /* fault: pairs share */
        sum += p[lane];                     /* fault: coalesced */
        sum += p[lane * 8];                 /* fault: strided */
        sum += p[lane + 1];                 /* fault: shifted */
        sum += as<const float4>(p)[lane].x; /* fault: wide loads */
        if (lane < 3) sum += p[lane];       /* fault: some lanes */
        (void)sum;
    });
    emu_count(false);
    traffic_at("rows", 33, 33);
    traffic_at("vectors", 4, 4);
    traffic_at("column", 32, 1);
    traffic_at("padded column", 1, 1);
    traffic_at("pairs share", 16, 1);
    traffic_at("coalesced", 4, 4);
    traffic_at("strided", 32, 4);
    traffic_at("shifted", 5, 4);
    traffic_at("wide loads", 16, 16);
    traffic_at("some lanes", 1, 1);
}

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_faults), cmocka_unit_test(test_launches),
                                cmocka_unit_test(test_recordings), cmocka_unit_test(test_staging),
                                cmocka_unit_test(test_traffic)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
