/* A tiny Llama-shaped GGUF with weights from a fixed generator, written with changes that a test asks for. */
#ifndef LLMQ_TESTS_ENGINE_TINY_H
#define LLMQ_TESTS_ENGINE_TINY_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/session.h"
#include "types/type.h"

#ifdef TINY_WIDE /* rows that types with blocks of 256 can hold */
#ifndef TINY_WIDE_FF
#define TINY_WIDE_FF 256
#endif
enum { TINY_EMBD = 256, TINY_DIM = 64, TINY_FF = TINY_WIDE_FF };
#define TINY_SCALE 0.15f
#else
enum { TINY_EMBD = 32, TINY_DIM = 8, TINY_FF = 64 };
#define TINY_SCALE 1.0f
#endif
enum { TINY_VOCAB = 48, TINY_HEADS = 4, TINY_KV_HEADS = 2, TINY_LAYERS = 2, TINY_MAX_TENSORS = 32 };

typedef struct tiny_model {
    llmq_meta *meta;
    llmq_tensor tensors[TINY_MAX_TENSORS];
    size_t n;
} tiny_model;

static void tiny_add(tiny_model *t, const char *name, int64_t cols, int64_t rows) {
    assert_true(t->n < TINY_MAX_TENSORS);
    llmq_tensor *x = &t->tensors[t->n++];
    *x = (llmq_tensor){.type = LLMQ_TYPE_F32, .n_dims = rows > 1 ? 2 : 1, .dims = {cols, rows, 1, 1}, .bytes = cols * rows * 4};
    snprintf(x->name, sizeof x->name, "%s", name);
}

static void tiny_init(tiny_model *t) {
    t->meta = meta_create();
    t->n = 0;
    assert_non_null(t->meta);
    meta_set_str(t->meta, "general.architecture", "llama", NULL);
    meta_set_u32(t->meta, "llama.block_count", TINY_LAYERS, NULL);
    meta_set_u32(t->meta, "llama.context_length", 64, NULL);
    meta_set_u32(t->meta, "llama.embedding_length", TINY_EMBD, NULL);
    meta_set_u32(t->meta, "llama.feed_forward_length", TINY_FF, NULL);
    meta_set_u32(t->meta, "llama.attention.head_count", TINY_HEADS, NULL);
    meta_set_u32(t->meta, "llama.attention.head_count_kv", TINY_KV_HEADS, NULL);
    meta_set_f32(t->meta, "llama.attention.layer_norm_rms_epsilon", 1e-5f, NULL);
    meta_set_f32(t->meta, "llama.rope.freq_base", 10000, NULL);
    meta_set_u32(t->meta, "llama.vocab_size", TINY_VOCAB, NULL);
    tiny_add(t, "token_embd.weight", TINY_EMBD, TINY_VOCAB);
    tiny_add(t, "output_norm.weight", TINY_EMBD, 1);
    for (int l = 0; l < TINY_LAYERS; l++) {
        const struct { const char *name; int64_t cols, rows; } layer[] = {
            {"attn_norm", TINY_EMBD, 1}, {"attn_q", TINY_EMBD, TINY_HEADS * TINY_DIM}, {"attn_k", TINY_EMBD, TINY_KV_HEADS * TINY_DIM},
            {"attn_v", TINY_EMBD, TINY_KV_HEADS * TINY_DIM}, {"attn_output", TINY_HEADS * TINY_DIM, TINY_EMBD}, {"ffn_norm", TINY_EMBD, 1},
            {"ffn_gate", TINY_EMBD, TINY_FF}, {"ffn_up", TINY_EMBD, TINY_FF}, {"ffn_down", TINY_FF, TINY_EMBD}};
        for (size_t i = 0; i < sizeof layer / sizeof *layer; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, layer[i].name);
            tiny_add(t, name, layer[i].cols, layer[i].rows);
        }
    }
}

static inline llmq_tensor *tiny_find(tiny_model *t, const char *name) {
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->tensors[i].name, name) == 0) return &t->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void tiny_drop(tiny_model *t, const char *name) {
    llmq_tensor *x = tiny_find(t, name);
    memmove(x, x + 1, (size_t)(t->tensors + --t->n - x) * sizeof *x);
}

/* Fills vectors with ones, matrices with numbers of up to +-TINY_SCALE / 2; value replaces the first number of every tensor if it is not 0. */
static void tiny_write(tiny_model *t, const char *path, float value) {
    llmq_gguf_writer *w = NULL;
    llmq_err err = {0};
    if (gguf_writer_open(path, true, t->meta, t->tensors, t->n, &w, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    uint32_t state = 12345;
    for (size_t i = 0; i < t->n; i++) {
        int64_t n = tensor_numel(&t->tensors[i]);
        float *x = malloc((size_t)n * sizeof *x);
        for (int64_t j = 0; j < n; j++) {
            state = state * 1664525u + 1013904223u;
            x[j] = t->tensors[i].n_dims == 1 ? 1.0f : ((float)(state >> 8) * 0x1p-24f - 0.5f) * TINY_SCALE;
        }
        if (value != 0) x[0] = value;
        if (gguf_writer_put(w, i, x, (size_t)n * sizeof *x, 0, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        free(x);
    }
    if (gguf_writer_finish(w, NULL, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    meta_destroy(t->meta);
}

/* The model as it is, written to path and opened; NULL: it could not be. */
static inline llmq_model *tiny_open(const char *path) {
    tiny_model t;
    llmq_model *model = NULL;
    tiny_init(&t);
    tiny_write(&t, path, 0);
    return model_open(path, NULL, &model, NULL) == LLMQ_OK ? model : NULL;
}

#endif
