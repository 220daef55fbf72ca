/* The random data of tests/data/make_affine.py, made again from its seeds, and the records of its files. */
#ifndef LLMQ_TESTS_AFFINE_CASES_H
#define LLMQ_TESTS_AFFINE_CASES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"
#include "llmq_affine.h"

/* Not mem_alloc, whose blocks are padded: a sanitizer sees every byte read past the end. */
static inline void *exact(size_t n, size_t size) {
    void *p = malloc(n * size + (n == 0));
    assert_non_null(p);
    return p;
}

static inline uint64_t word_at(uint32_t seed, uint64_t i) {
    uint64_t z = (((uint64_t)seed << 32) + i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline double unit_at(uint32_t seed, uint64_t i) {
    return ((double)(word_at(seed, i) >> 40) - 8388608) / 8388608;
}

static inline float number_at(uint32_t seed, int dist, uint64_t i) {
    double u = unit_at(seed, i), cube = u * u * u;
    double x[] = {u, cube * 4, cube * cube * cube * 100, cube > 0 ? cube * 6 : 0, u * 0x1p-30, u * 1000 + 600};
    return (float)x[dist];
}

static inline float *numbers(uint32_t seed, int dist, int64_t n) {
    float *x = exact((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = number_at(seed, dist, (uint64_t)i);
    return x;
}

typedef struct records {
    char *data;
    size_t at, size;
} records;

static inline records records_open(const char *name) {
    records r = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/affine/%s", LLMQ_TEST_DATA, name);
    assert_int_equal(file_read(path, 1 << 22, &r.data, &r.size, NULL), LLMQ_OK);
    return r;
}
static inline bool records_more(const records *r) {
    return r->at < r->size;
}
static inline const void *take(records *r, size_t bytes) {
    assert_true(bytes <= r->size - r->at);
    r->at += bytes;
    return r->data + r->at - bytes;
}
static inline int32_t take_int(records *r) {
    int32_t x;
    memcpy(&x, take(r, 4), 4);
    return x;
}
static inline float take_float(records *r) {
    float x;
    memcpy(&x, take(r, 4), 4);
    return x;
}
static inline double take_double(records *r) {
    double x;
    memcpy(&x, take(r, 8), 8);
    return x;
}

/* What a call is expected to refuse, with a message. */
#define REFUSES(expected, call)                                                                                        \
    do {                                                                                                               \
        llmq_err err_ = {0}, *err = &err_;                                                                             \
        assert_int_equal(call, expected);                                                                              \
        assert_true(err_.msg[0] != 0);                                                                                 \
    } while (0)

#endif
