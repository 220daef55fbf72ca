/* Tokenizer tests: vocabularies in the text form of tests/data/make_tokenizer_data.py, unpacked by the xz program. */
#ifndef LLMQ_TESTS_TOKENIZER_META_TEXT_H
#define LLMQ_TESTS_TOKENIZER_META_TEXT_H

#define _POSIX_C_SOURCE 200809L
/* clang-format off: cmocka.h needs the first four before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "llmq.h"
#include "tokenizer/tokenizer.h"

/* One line without its newline; fails the test at the end of the file. */
static inline size_t meta_text_line(FILE *f, char **line, size_t *cap) {
    ssize_t n = getline(line, cap, f);
    assert_true(n > 0);
    (*line)[n - 1] = 0;
    return (size_t)n - 1;
}

static inline void meta_text_array(FILE *f, llmq_meta *meta, const char *key, const char *kind, size_t n) {
    char *line = NULL;
    size_t cap = 0;
    llmq_str *strs = calloc(n, sizeof *strs);
    int32_t *ints = calloc(n, sizeof *ints);
    float *floats = calloc(n, sizeof *floats);
    for (size_t i = 0; i < n; i++) {
        size_t len = meta_text_line(f, &line, &cap);
        if (!strcmp(kind, "strs")) {
            char *copy = malloc(len + 1);
            memcpy(copy, line, len + 1);
            strs[i] = (llmq_str){copy, len};
        }
        ints[i] = (int32_t)strtol(line, NULL, 10);
        floats[i] = strtof(line, NULL);
    }
    llmq_status status = LLMQ_E_FORMAT;
    if (!strcmp(kind, "strs")) status = meta_set_strs(meta, key, strs, n, NULL);
    if (!strcmp(kind, "i32s")) status = meta_set_array(meta, key, META_I32, ints, n, NULL);
    if (!strcmp(kind, "f32s")) status = meta_set_array(meta, key, META_F32, floats, n, NULL);
    assert_int_equal(status, LLMQ_OK);
    for (size_t i = 0; i < n; i++) free((void *)strs[i].s);
    free(strs);
    free(ints);
    free(floats);
    free(line);
}

static inline llmq_meta *meta_text_open(const char *name) {
    char command[1024], key[128], kind[16], *line = NULL;
    size_t cap = 0, n;
    snprintf(command, sizeof command, "xz -dc '%s/tokenizers/%s.txt.xz'", LLMQ_TEST_DATA, name);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    llmq_meta *meta = meta_create();
    size_t n_keys = 0;
    while (getline(&line, &cap, f) > 0) {
        assert_int_equal(sscanf(line, "%127s %15s %zu", key, kind, &n), 3);
        if (!strcmp(kind, "u32"))
            meta_set_u32(meta, key, (uint32_t)n, NULL);
        else if (!strcmp(kind, "bool"))
            meta_set_bool(meta, key, n, NULL);
        else if (!strcmp(kind, "str")) {
            meta_text_line(f, &line, &cap);
            meta_set_str(meta, key, line, NULL);
        } else
            meta_text_array(f, meta, key, kind, n);
        n_keys++;
    }
    free(line);
    assert_int_equal(pclose(f), 0); /* xz is missing, or the file is damaged */
    assert_true(n_keys > 0);
    return meta;
}

static inline llmq_tokenizer *meta_text_tokenizer(const char *name) {
    llmq_meta *meta = meta_text_open(name);
    llmq_tokenizer *tok = NULL;
    llmq_err err = {0};
    if (tokenizer_create(meta, &tok, &err)) fail_msg("%s: %s", name, err.msg);
    meta_destroy(meta);
    return tok;
}

/* A whole file of the tests' data; freed by free. */
static inline char *data_read(const char *name, size_t *len_out) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", LLMQ_TEST_DATA, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is missing", path);
    fseek(f, 0, SEEK_END);
    long len = ftell(f);
    rewind(f);
    char *text = malloc((size_t)len + 1);
    assert_int_equal(fread(text, 1, (size_t)len, f), len);
    text[len] = 0;
    fclose(f);
    *len_out = (size_t)len;
    return text;
}

#endif
