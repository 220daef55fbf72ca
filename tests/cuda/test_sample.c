/* Sampling under the emulator, beside engine/sampler.c: the same token from the same logits and the same random number,
 * in every thread order. */
#include "core/device.h"
#include "engine/sampler.h"
#include "gpu.h"

typedef struct problem {
    float *logits; /* [n] */
    int n;
    const int32_t *history; /* [n_history] */
    int64_t n_history;
} problem;

/* What the device gives for each of n_rows <= 8 rows of one length, after penalties. */
static void sample_rows(const problem *rows, int n_rows, llmq_sampler *const *samplers, int32_t *tokens,
                        const char *what) {
    const size_t n = (size_t)rows[0].n;
    float *all = malloc((size_t)n_rows * n * sizeof *all);
    cuda_draw draws[CUDA_SAMPLE_ROWS];
    for (int r = 0; r < n_rows; r++) memcpy(all + (size_t)r * n, rows[r].logits, n * sizeof *all);
    float *logits = on_device("logits", all, (size_t)n_rows * n * sizeof *all, false);
    for (int r = 0; r < n_rows; r++) {
        const llmq_device_draw d = sampler_on_device(samplers[r], rows[r].history, rows[r].n_history);
        int32_t *once = malloc((size_t)(d.n_repeated + 1) * sizeof *once);
        int n_once = 0;
        for (int64_t i = 0; i < d.n_repeated; i++) {
            bool is_new = d.repeated[i] >= 0 && d.repeated[i] < rows[r].n;
            for (int j = 0; j < n_once; j++) is_new = is_new && once[j] != d.repeated[i];
            if (is_new) once[n_once++] = d.repeated[i];
        }
        draws[r] = (cuda_draw){d.params, d.uniform};
        if (n_once > 0) {
            int32_t *there = input_of("repeated", once, (size_t)n_once * sizeof *once);
            cuda_penalize(NULL, logits + (size_t)r * n, there, n_once, d.params->repeat_penalty);
            gpu_free(there);
        }
        free(once);
    }
    void *scratch = output_of("scratch", CUDA_SAMPLE_BYTES(n_rows));
    cuda_sample(NULL, logits, (int64_t)n, n_rows, draws, scratch);
    from_device(tokens, scratch, (size_t)n_rows * sizeof *tokens, what);
    gpu_free(scratch), gpu_free(logits);
    free(all);
}

/* Draws on both, in turn through the orders; returns how many were left to the CPU. */
static int check(const problem *p, const llmq_sampler_params *params, int n_draws, const char *what) {
    static int order;
    llmq_sampler cpu, gpu;
    llmq_sampler *samplers[1] = {&gpu};
    int too_many = 0;
    assert_int_equal(sampler_create(p->n, &cpu, NULL), LLMQ_OK);
    assert_int_equal(sampler_create(p->n, &gpu, NULL), LLMQ_OK);
    sampler_set(&cpu, params), sampler_set(&gpu, params);
    for (int i = 0; i < n_draws; i++) {
        int32_t want = -7, got = -7;
        emu_set_order((emu_order)(order++ % EMU_ORDERS), 3);
        sample_rows(p, 1, samplers, &got, what);
        const llmq_status status = sampler_sample(&cpu, p->logits, p->history, p->n_history, &want, NULL);
        if (got == LLMQ_DEVICE_TOO_MANY) {
            too_many++;
            sampler_uniform(&gpu);
            continue;
        }
        assert_int_equal(sampler_drew(&gpu, got, NULL), status);
        if (status == LLMQ_OK && got != want) fail_msg("%s: draw %d is %d, the CPU's is %d", what, i, got, want);
        assert_memory_equal(cpu.rng, gpu.rng, sizeof cpu.rng);
    }
    sampler_destroy(&cpu), sampler_destroy(&gpu);
    return too_many;
}

/* Nearly normal, as a model's. */
static problem logits_like(int n, float spread) {
    problem p = {malloc((size_t)n * sizeof(float)), n, NULL, 0};
    for (int i = 0; i < n; i++) {
        float sum = 0;
        for (int j = 0; j < 6; j++) sum += uniform(-1, 1);
        p.logits[i] = spread * sum / 1.4142135f;
    }
    return p;
}

static const llmq_sampler_params usual = {
    .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1, .seed = 5};

static void test_usual(void **state) {
    (void)state;
    const int sizes[] = {1,    2,    31,    257,   1000,
                         1025, 4099, 20011, 140001}; /* the last one has more logits than 128 parts of 1,024 */
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        problem p = logits_like(sizes[s], 3);
        char what[32];
        snprintf(what, sizeof what, "%d tokens", p.n);
        assert_int_equal(check(&p, &usual, p.n < 100000 ? 8 : 1, what), 0);
        free(p.logits);
    }
}

/* Every setting alone and together. */
static void test_settings(void **state) {
    (void)state;
    static const llmq_sampler_params all[] = {
        {.temperature = 0, .top_k = 40, .top_p = 0.9f, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 1, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 7, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 60, .top_p = 0, .repeat_penalty = 1},
        {.temperature = 1.5f, .top_k = 200, .top_p = 0.5f, .repeat_penalty = 1},
        {.temperature = 0.3f, .top_k = 1024, .top_p = 0.999f, .repeat_penalty = 1},
        {.temperature = 2, .top_k = 64, .top_p = 1, .min_p = 0.1f, .repeat_penalty = 1},
        {.temperature = 2, .top_k = 65, .top_p = 1, .min_p = 1, .repeat_penalty = 1},
        {.temperature = 2, .top_k = 65, .top_p = 0.7f, .min_p = 2, .repeat_penalty = 1},
        {.temperature = 100, .top_k = 33, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1e-3f, .top_k = 33, .top_p = 1, .repeat_penalty = 1},
        {.temperature = INFINITY, .top_k = 9, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1e-40f, .top_k = 9, .top_p = 1, .repeat_penalty = 1},
        {.temperature = NAN, .top_k = 9, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 20, .top_p = NAN, .min_p = NAN, .repeat_penalty = NAN},
        {.temperature = 1, .top_k = -3, .top_p = 0.8f, .repeat_penalty = 1}, /* not 1,024 candidates: all */
        {.temperature = 1, .top_k = 5000, .top_p = 0.9f, .min_p = 0.02f, .repeat_penalty = 1},
    };
    problem p = logits_like(997, 3);
    for (size_t s = 0; s < sizeof all / sizeof *all; s++) {
        char what[32];
        snprintf(what, sizeof what, "settings %zu", s);
        assert_int_equal(check(&p, &all[s], 6, what), 0);
    }
    free(p.logits);
}

/* Without top_k a vocabulary has more candidates than are sorted. What top_p and min_p leave is known all the same,
 * unless it is more. */
static void test_whole_vocabulary(void **state) {
    (void)state;
    static const struct {
        llmq_sampler_params params;
        float spread;
        bool left; /* to the CPU */
    } cases[] = {
        {{.temperature = 0.9f, .top_p = 0.9f, .repeat_penalty = 1}, 4, false},
        {{.temperature = 1.3f, .top_p = 1, .min_p = 0.05f, .repeat_penalty = 1}, 3, false},
        {{.temperature = 1, .top_p = 0.3f, .repeat_penalty = 1}, 1.5f, false}, /* a hundred tokens are left */
        {{.temperature = 0.7f, .top_p = 0.95f, .min_p = 0.1f, .repeat_penalty = 1}, 3, false},
        {{.temperature = 1, .top_p = 1, .repeat_penalty = 1}, 3, true},
        {{.temperature = 1, .top_p = 0.99f, .repeat_penalty = 1}, 0.5f, true},
        {{.temperature = 1, .top_p = 1, .min_p = 1e-4f, .repeat_penalty = 1}, 0.5f, true},
        {{.temperature = 1, .top_k = 3000, .top_p = 0.5f, .repeat_penalty = 1}, 3, true}, /* sums of 3,000 */
        {{.temperature = 1, .top_k = 1025, .top_p = 0.5f, .repeat_penalty = 1}, 3, true},
    };
    for (size_t s = 0; s < sizeof cases / sizeof *cases; s++) {
        char what[32];
        snprintf(what, sizeof what, "case %zu", s);
        problem p = logits_like(6007, cases[s].spread);
        assert_int_equal(check(&p, &cases[s].params, 6, what), cases[s].left ? 6 : 0);
        free(p.logits);
    }
}

/* Ties, both zeros, numbers that are none; repeated tokens, some outside the vocabulary. */
static void test_odd_logits(void **state) {
    (void)state;
    enum { N = 1301, KINDS = 12 };
    llmq_sampler_params params = usual;
    for (int kind = 0; kind < KINDS; kind++) {
        problem p = logits_like(N, 3);
        int32_t history[300];
        char what[32];
        bool left = false;
        snprintf(what, sizeof what, "kind %d", kind);
        for (int i = 0; i < N; i++) {
            const uint32_t r = rng_u32();
            float *x = &p.logits[i];
            if (kind == 0) *x = (float)(r % 40) * 0.25f; /* ties, of which top_k cuts one */
            if (kind == 1) *x = r % 2 ? 0.0f : -0.0f;    /* all equal */
            if (kind == 2 && r % 2) *x = r % 4 > 1 ? NAN : -INFINITY;
            if (kind == 3) *x = i % 2 ? NAN : -INFINITY; /* not one is a number */
            if (kind == 4 && i == N / 2) *x = INFINITY;
            if (kind == 5) *x *= 1e37f;                                          /* differences are infinite */
            if (kind == 6) *x *= 1e-37f;                                         /* denormal */
            if (kind == 7) *x = i == N - 1 ? -3.0f : r % 3 ? -INFINITY : -60.0f; /* one in reach */
            if (kind == 8) *x = i < 30 ? (r % 2 ? 0.0f : -0.0f) : -1.0f - (float)(r % 7);
            if (kind == 9) *x = i % 100 == 0 ? 5 : (float)(r % 5);
            if (kind >= 10) *x = (float)(r % 64) * 0.5f - (kind == 11 ? 40 : 16);
        }
        p.history = history;
        p.n_history = kind >= 9 ? 300 : 0;
        for (int i = 0; i < 300; i++) history[i] = i % 7 == 0 ? N + i : i % 11 == 0 ? -i : (int32_t)(rng_u32() % N);
        for (int i = 0; i < 300; i += 2) history[i] = history[i / 2];
        params.repeat_penalty = kind == 9 ? 1.3f : kind == 10 ? 0.5f : kind == 11 ? 3.0f : 1;
        params.repeat_last_n = kind == 11 ? 1000 : 128;
        left = kind == 1 || kind == 6;
        for (int greedy = 0; greedy < 2; greedy++) {
            params.temperature = greedy ? 0 : 0.8f;
            assert_int_equal(check(&p, &params, 4, what), left && !greedy ? 4 : 0);
        }
        params.temperature = INFINITY; /* every number is a candidate, -infinity too */
        params.top_k = 300;
        check(&p, &params, 2, what);
        params.top_k = usual.top_k;
        free(p.logits);
    }
}

/* Rows of one launch, each with its own settings: what each gets alone. */
static void test_rows(void **state) {
    (void)state;
    problem rows[CUDA_SAMPLE_ROWS];
    llmq_sampler samplers[CUDA_SAMPLE_ROWS], *pointers[CUDA_SAMPLE_ROWS];
    int32_t history[20], got[CUDA_SAMPLE_ROWS], want;
    for (int i = 0; i < 20; i++) history[i] = i % 9;
    for (int r = 0; r < CUDA_SAMPLE_ROWS; r++) {
        llmq_sampler_params params = usual;
        rows[r] = logits_like(3001, 3);
        rows[r].history = history, rows[r].n_history = 20;
        if (r == 1) params.temperature = 0;
        if (r == 2) params.top_k = 0, params.top_p = 1, params.min_p = 0; /* too many */
        if (r == 3) params.repeat_penalty = 2;
        if (r == 4) rows[r].logits[77] = INFINITY;
        if (r == 5) params.top_k = 0;
        if (r == 6) params.temperature = 0, params.repeat_penalty = 1.5f;
        assert_int_equal(sampler_create(3001, &samplers[r], NULL), LLMQ_OK);
        params.seed = (uint64_t)r;
        sampler_set(&samplers[r], &params);
        pointers[r] = &samplers[r];
    }
    for (int order = 0; order < EMU_ORDERS; order++) {
        emu_set_order((emu_order)order, 3);
        sample_rows(rows, CUDA_SAMPLE_ROWS, pointers, got, "rows");
        for (int r = 0; r < CUDA_SAMPLE_ROWS; r++) {
            const llmq_status status = sampler_sample(&samplers[r], rows[r].logits, history, 20, &want, NULL);
            if (r == 2)
                assert_int_equal(got[r], LLMQ_DEVICE_TOO_MANY);
            else if (r == 4)
                assert_true(status == LLMQ_E_NUMERIC && got[r] == LLMQ_DEVICE_NOT_FINITE);
            else
                assert_int_equal(got[r], want);
        }
    }
    for (int r = 0; r < CUDA_SAMPLE_ROWS; r++) free(rows[r].logits), sampler_destroy(&samplers[r]);
}

/* Reads of logits come in whole sectors, and shared memory without bank conflicts but for the counting of bins. */
static void test_traffic(void **state) {
    (void)state;
    if (!emu_here()) skip();
    problem p = logits_like(4096, 3);
    llmq_sampler_params params = usual;
    params.top_k = 1000;
    emu_count(true);
    check(&p, &params, 1, "traffic");
    emu_count(false);
    emu_traffic list[128];
    const int n = emu_traffic_list(list, 128);
    int passes = 0, lines = 0, conflicts = 0;
    for (int i = 0; i < n; i++) {
        const emu_traffic *t = &list[i];
        lines += t->shared;
        conflicts += t->shared && t->needed > t->best;
        if (t->shared || t->write || t->accesses != p.n / 32) continue;
        passes++;
        assert_int_equal(t->needed, p.n / 8);
    }
    assert_int_equal(passes, 3);
    assert_true(lines > 15);
    assert_int_equal(conflicts, 1); /* the counting: who meets whom is up to the logits */
    free(p.logits);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usual),      cmocka_unit_test(test_settings), cmocka_unit_test(test_whole_vocabulary),
        cmocka_unit_test(test_odd_logits), cmocka_unit_test(test_rows),     cmocka_unit_test(test_traffic),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
