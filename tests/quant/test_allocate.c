/* Allocation against brute force: never over the budget, the optimum or within a hair of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "quant/allocate.h"

enum { MAX_ITEMS = 6, MAX_OPTIONS = 5 };

static uint32_t state_;
static uint32_t draw(uint32_t n) {
    state_ = state_ * 1664525u + 1013904223u;
    return (state_ >> 8) % n;
}

static double total(const llmq_alloc_item *items, size_t n) {
    double loss = 0;
    for (size_t i = 0; i < n; i++) loss += items[i].options[items[i].chosen].loss;
    return loss;
}

/* The least loss of all combinations within budget; -1: none fits. */
static double brute_force(const llmq_alloc_item *items, size_t n, int64_t budget) {
    size_t at[MAX_ITEMS] = {0};
    double best = -1;
    for (;;) {
        int64_t bytes = 0;
        double loss = 0;
        for (size_t i = 0; i < n; i++) bytes += items[i].options[at[i]].bytes, loss += items[i].options[at[i]].loss;
        if (bytes <= budget && (best < 0 || loss < best)) best = loss;
        size_t i = 0;
        while (i < n && ++at[i] == items[i].n) at[i++] = 0;
        if (i == n) return best;
    }
}

static void near_the_optimum(void **unused) {
    (void)unused;
    llmq_alloc_option options[MAX_ITEMS][MAX_OPTIONS];
    llmq_alloc_item items[MAX_ITEMS];
    int exact = 0, feasible = 0;
    state_ = 7;
    for (int round = 0; round < 2000; round++) {
        size_t n = 1 + draw(MAX_ITEMS);
        int64_t most = 0;
        for (size_t i = 0; i < n; i++) {
            int64_t size = 1 + draw(50);
            double weight = 1 + draw(1000);
            items[i] = (llmq_alloc_item){options[i], 1 + draw(MAX_OPTIONS), 99};
            for (size_t k = 0; k < items[i].n; k++) { /* loss falls fourfold a bit, with a jitter */
                int64_t bits = 2 + draw(8);
                options[i][k] = (llmq_alloc_option){size * bits + draw(3),
                                                    weight * size / (double)(1 << 2 * bits) * (1 + draw(100) / 50.0)};
            }
            most += size * 10 + 3;
        }
        int64_t budget = draw((uint32_t)most + 1);
        double best = brute_force(items, n, budget);
        llmq_status status = allocate(items, n, budget);
        assert_int_equal(status, best < 0 ? LLMQ_E_ARG : LLMQ_OK);
        for (size_t i = 0; i < n; i++) assert_in_range(items[i].chosen, 0, items[i].n - 1);
        if (best < 0) continue;
        feasible++;
        assert_true(allocate_bytes(items, n) <= budget);
        double got = total(items, n);
        if (got > best * 2.5 + 1e-12) fail_msg("round %d: %g, the optimum is %g", round, got, best);
        exact += got <= best * (1 + 1e-12);
    }
    assert_true(feasible > 1000);
    if (exact < feasible * 97 / 100) fail_msg("only %d of %d are optimal", exact, feasible);
}

static void extremes(void **unused) {
    (void)unused;
    const llmq_alloc_option options[] = {{20, 1}, {10, 5}, {30, 0.5}, {10, 4}, {40, 0.5}};
    llmq_alloc_item items[2] = {{options, 5, 0}, {options, 5, 0}};
    assert_int_equal(allocate(items, 2, 19), LLMQ_E_ARG);
    assert_int_equal(allocate_bytes(items, 2), 20); /* the least that is possible */
    assert_int_equal(allocate(items, 2, 20), LLMQ_OK);
    assert_int_equal(items[0].chosen, 3); /* of equal sizes the better one */
    assert_int_equal(allocate(items, 2, INT64_MAX / 4), LLMQ_OK);
    assert_true(total(items, 2) == 1);
    assert_int_equal(allocate_bytes(items, 2), 60); /* not more bytes than loss needs */
    assert_int_equal(allocate(items, 0, 0), LLMQ_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(near_the_optimum), cmocka_unit_test(extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
