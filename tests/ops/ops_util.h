/* What the tests of backend ops share: random numbers with fixed seeds, buffers between canaries, running an op on a
 * team. */
#ifndef LLMQ_TESTS_OPS_UTIL_H
#define LLMQ_TESTS_OPS_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"
#include "core/half.h"
#include "core/mem.h"
#include "tests/isas.h"

#define MAX_TEAM 3
static llmq_team *teams[MAX_TEAM + 1];

static int make_teams(void **state) {
    (void)state;
    isas_say();
    for (int n = 1; n <= MAX_TEAM; n++)
        if (team_create(n, &teams[n], NULL) != LLMQ_OK) return -1;
    return 0;
}

static int drop_teams(void **state) {
    (void)state;
    for (int n = 1; n <= MAX_TEAM; n++) team_destroy(teams[n]);
    return 0;
}

static uint64_t rng_state = 1;
static uint32_t rng_u32(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 32);
}
static double rng_uniform(void) { return (rng_u32() + 0.5) / 4294967296.0; }
static double rng_normal(void) { return sqrt(-2 * log(rng_uniform())) * cos(6.283185307179586 * rng_uniform()); }

/* Floats between two canaries of a cache line. */
#define CANARY 16
static float *guarded(size_t n) {
    float *p = mem_alloc(n + 2 * CANARY, sizeof(float));
    assert_non_null(p);
    for (size_t i = 0; i < CANARY; i++) p[i] = p[CANARY + n + i] = -12345.5f;
    for (size_t i = 0; i < n; i++) p[CANARY + i] = 777.0f; /* stale contents */
    return p + CANARY;
}

static void assert_guard(const float *p, size_t n) {
    for (size_t i = 0; i < CANARY; i++) {
        assert_true(p[-(ptrdiff_t)CANARY + (ptrdiff_t)i] == -12345.5f);
        assert_true(p[n + i] == -12345.5f);
    }
}

static void guarded_free(float *p) {
    if (p) mem_free(p - CANARY);
}

static inline float *guarded_normal(size_t n) {
    float *p = guarded(n);
    for (size_t i = 0; i < n; i++) p[i] = (float)rng_normal();
    return p;
}

/* |got - want| <= tol * (1 + |want|) everywhere; NaN fails. */
static inline void assert_close(const float *got, const double *want, size_t n, double tol, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tol * (1 + fabs(want[i]))))
            fail_msg("%s: [%zu] is %.9g, expected %.9g", what, i, (double)got[i], want[i]);
}

#endif
