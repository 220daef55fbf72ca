/* Digits and weights in files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinycnn.h"

const char *const layer_names[LAYERS] = {"conv1", "conv2", "fc1", "fc2"};
const int64_t layer_rows[LAYERS] = {CHANNELS1, CHANNELS2, HIDDEN, CLASSES};
const int64_t layer_cols[LAYERS] = {9, 9 * CHANNELS1, POOLED, HIDDEN};
const int64_t layer_out[LAYERS] = {PIXELS * CHANNELS1, PIXELS *CHANNELS2, HIDDEN, CLASSES};

llmq_conv2d layer_conv(layer_id l) {
    return llmq_conv2d_same(l == CONV1 ? 1 : CHANNELS1, layer_rows[l], 3);
}

static void die(const char *path, const char *what) {
    fprintf(stderr, "tinycnn: %s: %s\n", path, what);
    exit(1);
}

void must(llmq_status status, const llmq_err *err) {
    if (status != LLMQ_OK) die(llmq_status_name(status), err->msg);
}

void *allocate(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p) die("memory", "an allocation failed");
    return p;
}

static void digits_add(digits *d, const uint8_t *record) {
    for (int i = 0; i < PIXELS; i++) d->x[d->n * PIXELS + i] = (float)record[i] / 16;
    d->label[d->n++] = record[PIXELS];
}

void digits_load(const char *path, digits *train, digits *test) {
    enum { RECORD = PIXELS + 1, MAX = 1797 };
    static uint8_t all[MAX * RECORD + 1];
    FILE *f = fopen(path, "rb");
    if (!f) die(path, "cannot be opened");
    size_t n = fread(all, 1, sizeof all, f);
    fclose(f);
    if (n != MAX * RECORD) die(path, "is not 1797 records of 65 bytes");
    for (int s = 0; s < 2; s++) {
        digits *d = s ? test : train;
        *d = (digits){0, allocate(MAX * PIXELS, sizeof(float)), allocate(MAX, 1)};
    }
    for (int i = 0; i < MAX; i++) {
        if (all[i * RECORD + PIXELS] >= CLASSES) die(path, "a label is not 0..9");
        digits_add(i % 5 == 4 ? test : train, all + i * RECORD);
    }
}

weights weights_create(void) {
    weights w;
    for (int l = 0; l < LAYERS; l++) {
        w.w[l] = allocate((size_t)(layer_rows[l] * layer_cols[l]), sizeof(float));
        w.b[l] = allocate((size_t)layer_rows[l], sizeof(float));
    }
    return w;
}

static const char magic[] = "TCNN1\n";

void weights_save(const weights *w, const char *path) {
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(magic, 1, 6, f) == 6;
    for (int l = 0; l < LAYERS && ok; l++) {
        size_t n = (size_t)(layer_rows[l] * layer_cols[l]), rows = (size_t)layer_rows[l];
        ok = fwrite(w->w[l], sizeof(float), n, f) == n && fwrite(w->b[l], sizeof(float), rows, f) == rows;
    }
    if (!ok || fclose(f)) die(path, "cannot be written");
}

void weights_load(const weights *w, const char *path) {
    char head[6];
    FILE *f = fopen(path, "rb");
    bool ok = f && fread(head, 1, 6, f) == 6 && memcmp(head, magic, 6) == 0;
    for (int l = 0; l < LAYERS && ok; l++) {
        size_t n = (size_t)(layer_rows[l] * layer_cols[l]), rows = (size_t)layer_rows[l];
        ok = fread(w->w[l], sizeof(float), n, f) == n && fread(w->b[l], sizeof(float), rows, f) == rows;
    }
    if (!ok) die(path, "is not a file that --save wrote");
    fclose(f);
}
