/* Each part of the sampling chain against the distribution that it should leave. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sampler.h"

enum { N = 6, DRAWS = 20000 };
/* Shuffled on purpose: ids are not in order of probability. p = 0.05 0.4 0.1 0.25 0.15 0.05 */
static const double probs[N] = {0.05, 0.4, 0.1, 0.25, 0.15, 0.05};

static llmq_sampler_params plain(void) {
    return (llmq_sampler_params){.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .repeat_last_n = 64, .seed = 7};
}

static void logits_of(float *out) {
    for (int i = 0; i < N; i++) out[i] = (float)log(probs[i]) + 3; /* any shift is the same distribution */
}

/* Shares of each id over many draws. */
static void draw(const llmq_sampler_params *p, const float *logits, const int32_t *history, int64_t n, double share[N]) {
    llmq_sampler s;
    assert_int_equal(sampler_create(N, &s, NULL), LLMQ_OK);
    sampler_set(&s, p);
    for (int i = 0; i < N; i++) share[i] = 0;
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = -1;
        assert_int_equal(sampler_sample(&s, logits, history, n, &id, NULL), LLMQ_OK);
        assert_in_range(id, 0, N - 1);
        share[id] += 1.0 / DRAWS;
    }
    sampler_destroy(&s);
}

/* Five standard deviations of a share, and exact zeros. */
static void expect(const double share[N], const double want[N]) {
    for (int i = 0; i < N; i++) {
        double sd = sqrt(want[i] * (1 - want[i]) / DRAWS);
        if (fabs(share[i] - want[i]) > 5 * sd + 1e-9) fail_msg("id %d: share %.4f, expected %.4f", i, share[i], want[i]);
    }
}

static void test_plain_and_temperature(void **state) {
    (void)state;
    float l[N];
    double share[N], want[N], sum = 0;
    logits_of(l);
    llmq_sampler_params p = plain();
    draw(&p, l, NULL, 0, share);
    expect(share, probs);
    p.temperature = 0.5f; /* probabilities squared */
    for (int i = 0; i < N; i++) sum += probs[i] * probs[i];
    for (int i = 0; i < N; i++) want[i] = probs[i] * probs[i] / sum;
    draw(&p, l, NULL, 0, share);
    expect(share, want);
}

static void test_top_k(void **state) {
    (void)state;
    float l[N];
    double share[N];
    logits_of(l);
    llmq_sampler_params p = plain();
    p.top_k = 3;
    draw(&p, l, NULL, 0, share);
    expect(share, (double[N]){0, 0.5, 0, 0.3125, 0.1875, 0});
    p.top_k = 1;
    draw(&p, l, NULL, 0, share);
    expect(share, (double[N]){0, 1, 0, 0, 0, 0});
}

static void test_top_p(void **state) {
    (void)state;
    float l[N];
    double share[N];
    logits_of(l);
    llmq_sampler_params p = plain();
    p.top_p = 0.7f; /* 0.4 + 0.25 < 0.7: a third one is needed */
    draw(&p, l, NULL, 0, share);
    expect(share, (double[N]){0, 0.5, 0, 0.3125, 0.1875, 0});
    p.top_p = 0; /* the best always stays */
    draw(&p, l, NULL, 0, share);
    expect(share, (double[N]){0, 1, 0, 0, 0, 0});
}

static void test_min_p(void **state) {
    (void)state;
    float l[N];
    double share[N];
    logits_of(l);
    llmq_sampler_params p = plain();
    p.min_p = 0.3f; /* at least 0.12 */
    p.temperature = 2; /* the filter does not see the temperature: roots of 0.4, 0.25, 0.15 */
    draw(&p, l, NULL, 0, share);
    double sum = sqrt(0.4) + sqrt(0.25) + sqrt(0.15);
    expect(share, (double[N]){0, sqrt(0.4) / sum, 0, sqrt(0.25) / sum, sqrt(0.15) / sum, 0});
}

static void test_repetition(void **state) {
    (void)state;
    const float l[N] = {2, 4, -1, 3, 0, -8};
    const int32_t history[] = {0, 2, 1, 1, 1};
    llmq_sampler s;
    int32_t id;
    assert_int_equal(sampler_create(N, &s, NULL), LLMQ_OK);
    llmq_sampler_params p = plain();
    p.temperature = 0;
    p.repeat_penalty = 1.5f;
    sampler_set(&s, &p);
    assert_int_equal(sampler_sample(&s, l, history, 5, &id, NULL), LLMQ_OK);
    assert_int_equal(id, 3); /* 4 / 1.5 < 3, penalized once and not three times */
    assert_float_equal(s.logits[1], 4 / 1.5, 1e-6);
    assert_float_equal(s.logits[2], -1.5, 1e-6);
    p.repeat_last_n = 0;
    sampler_set(&s, &p);
    assert_int_equal(sampler_sample(&s, l, history, 5, &id, NULL), LLMQ_OK);
    assert_int_equal(id, 1);
    p.repeat_last_n = 3;
    sampler_set(&s, &p);
    assert_int_equal(sampler_sample(&s, l, history, 5, &id, NULL), LLMQ_OK);
    assert_float_equal(s.logits[0], 2, 0);
    sampler_destroy(&s);
}

static void test_greedy_and_broken_logits(void **state) {
    (void)state;
    llmq_sampler s;
    int32_t id;
    assert_int_equal(sampler_create(N, &s, NULL), LLMQ_OK);
    llmq_sampler_params p = plain();
    p.temperature = 0;
    sampler_set(&s, &p);
    assert_int_equal(sampler_sample(&s, (float[N]){1, 5, 5, 2, 5, 0}, NULL, 0, &id, NULL), LLMQ_OK);
    assert_int_equal(id, 1); /* ties: the lowest id */
    assert_int_equal(sampler_sample(&s, (float[N]){NAN, 1, 2, NAN, -INFINITY, NAN}, NULL, 0, &id, NULL), LLMQ_OK);
    assert_int_equal(id, 2);
    p.temperature = 1;
    sampler_set(&s, &p);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(sampler_sample(&s, (float[N]){NAN, 1, 2, NAN, -INFINITY, NAN}, NULL, 0, &id, NULL), LLMQ_OK);
        assert_true(id == 1 || id == 2);
    }
    assert_int_equal(sampler_sample(&s, (float[N]){NAN, NAN, NAN, NAN, NAN, NAN}, NULL, 0, &id, NULL), LLMQ_E_NUMERIC);
    assert_int_equal(sampler_sample(&s, (float[N]){0, INFINITY, 0, 0, 0, 0}, NULL, 0, &id, NULL), LLMQ_E_NUMERIC);
    sampler_destroy(&s);
}

/* The best k of many, against sorting, with ties. */
static void test_best_of_many(void **state) {
    (void)state;
    enum { MANY = 5000 };
    static float l[MANY];
    llmq_sampler s;
    assert_int_equal(sampler_create(MANY, &s, NULL), LLMQ_OK);
    uint32_t x = 1;
    for (int i = 0; i < MANY; i++) l[i] = (float)((x = x * 1664525u + 1013904223u) >> 24) / 64;
    llmq_sampler_params p = plain();
    p.top_k = 40;
    sampler_set(&s, &p);
    int32_t id;
    assert_int_equal(sampler_sample(&s, l, NULL, 0, &id, NULL), LLMQ_OK);
    for (int i = 0; i < 40; i++) {
        int32_t me = s.entries[i].id;
        int better = 0;
        for (int j = 0; j < MANY; j++) better += l[j] > l[me] || (l[j] == l[me] && j < me);
        assert_int_equal(better, i);
    }
    sampler_destroy(&s);
}

static void test_seeds(void **state) {
    (void)state;
    float l[N];
    logits_of(l);
    int32_t runs[3][100];
    for (int r = 0; r < 3; r++) {
        llmq_sampler s;
        assert_int_equal(sampler_create(N, &s, NULL), LLMQ_OK);
        llmq_sampler_params p = plain();
        p.seed = r == 2 ? 8 : 7;
        sampler_set(&s, &p);
        for (int i = 0; i < 100; i++) assert_int_equal(sampler_sample(&s, l, NULL, 0, &runs[r][i], NULL), LLMQ_OK);
        sampler_destroy(&s);
    }
    assert_memory_equal(runs[0], runs[1], sizeof runs[0]);
    assert_true(memcmp(runs[0], runs[2], sizeof runs[0]) != 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_and_temperature), cmocka_unit_test(test_top_k), cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_min_p), cmocka_unit_test(test_repetition), cmocka_unit_test(test_greedy_and_broken_logits),
        cmocka_unit_test(test_best_of_many), cmocka_unit_test(test_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
