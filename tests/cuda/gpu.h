/* What the tests of kernels share: device memory with contents, random numbers, the four thread orders. */
#ifndef LLMQ_TESTS_CUDA_GPU_H
#define LLMQ_TESTS_CUDA_GPU_H

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
#include "cuda/device.h"
#include "cuda/emu/control.h"

static uint64_t rng_state = 1;
static uint32_t rng_u32(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}
static inline float uniform(float lo, float hi) {
    return lo + (hi - lo) * (float)(rng_u32() & 0xffffff) / 16777216.0f;
}
static inline float *random_floats(size_t n, float lo, float hi) {
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = uniform(lo, hi);
    return x;
}

/* Contents NULL: as allocated. An input is sealed. */
static inline void *on_device(const char *what, const void *contents, size_t bytes, bool input) {
    void *p;
    llmq_err err = {0};
    if (gpu_alloc(what, bytes, &p, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    if (contents && gpu_upload(p, contents, bytes, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    if (input) gpu_seal(p);
    return p;
}
static inline void *input_of(const char *what, const void *contents, size_t bytes) {
    return on_device(what, contents, bytes, true);
}
static inline void *output_of(const char *what, size_t bytes) {
    return on_device(what, NULL, bytes, false);
}

/* To the host, after the kernels have passed without a fault. */
static inline void from_device(void *to, const void *from, size_t bytes, const char *what) {
    llmq_err err = {0};
    if (gpu_wait(&err) != LLMQ_OK) fail_msg("%s: %s", what, err.msg);
    if (gpu_download(to, from, bytes, &err) != LLMQ_OK) fail_msg("%s: %s", what, err.msg);
}

/* |got - want| <= tol * (1 + |want|) everywhere; NaN fails. */
static inline void assert_close(const float *got, const double *want, size_t n, double tol, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tol * (1 + fabs(want[i]))))
            fail_msg("%s: [%zu] is %.9g, expected %.9g", what, i, (double)got[i], want[i]);
}

/* The CPU's ops, the oracle, run on this team. */
static llmq_team *team;
static int make_team(void **state) {
    llmq_err err;
    (void)state;
    if (gpu_open(0, &err) != LLMQ_OK) {
        fprintf(stderr, "%s\n", err.msg);
        exit(77); /* skipped */
    }
    return team_create(1, &team, NULL) == LLMQ_OK ? 0 : -1;
}
static int drop_team(void **state) {
    (void)state;
    team_destroy(team);
    return 0;
}

#endif
