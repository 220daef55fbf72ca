/* What the tests of this room share. */
#ifndef LLMQ_TESTS_FORMATS_SUPPORT_H
#define LLMQ_TESTS_FORMATS_SUPPORT_H

#define _GNU_SOURCE /* truncate, mkfifo */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/mem.h"
#include "formats/format.h"
#include "types/type.h"

#define DATA LLMQ_TEST_DATA "/formats/"

/* make_formats.py's weight i of tensor k. */
static inline float pattern(int k, int64_t i) { return (float)((37 * i + 101 * (int64_t)k) % 257 - 128) / 64; }

/* Values of a tensor as floats at an address that need not be aligned; freed by mem_free. */
static inline float *tensor_values(const llmq_tensor *t) {
    float *x = mem_alloc((size_t)tensor_numel(t), sizeof *x);
    void *copy = mem_alloc((size_t)t->bytes, 1);
    memcpy(copy, t->data, (size_t)t->bytes);
    type_to_f32(t->type, copy, x, tensor_numel(t));
    mem_free(copy);
    return x;
}

static inline void assert_pattern(const llmq_tensor *t, int k, float tolerance) {
    assert_non_null(t);
    float *x = tensor_values(t);
    for (int64_t i = 0; i < tensor_numel(t); i++)
        if (fabsf(x[i] - pattern(k, i)) > tolerance) fail_msg("%s[%d] is %g, not %g", t->name, (int)i, (double)x[i], (double)pattern(k, i));
    mem_free(x);
}

static inline void write_file(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static inline void copy_file(const char *from, const char *to) {
    char *data;
    size_t len;
    assert_int_equal(file_read(from, 1 << 24, &data, &len, NULL), LLMQ_OK);
    write_file(to, data, len);
    mem_free(data);
}

static inline llmq_source *open_ok(const char *path) {
    llmq_source *src;
    llmq_err err = {0};
    if (source_open(path, &src, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return src;
}

/* Opening fails with this status and a message that has `part` and the file's name in it. */
static inline void open_fails(const char *path, llmq_status status, const char *part) {
    llmq_source *src;
    llmq_err err = {0};
    llmq_status got = source_open(path, &src, &err);
    if (got == LLMQ_OK) fail_msg("%s was opened; expected: %s", path, part);
    assert_null(src);
    if (got != status || !strstr(err.msg, part) || !strstr(err.msg, path_base(path)))
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, err.msg, status, part);
}

#endif
