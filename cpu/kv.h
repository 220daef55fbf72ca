/* The KV cache of the CPU backend, the same for every ISA: (n_head_kv, n_ctx, head_dim), so that a head's keys are one
 * stream. A row of f16: head_dim halfs; of f32: head_dim floats; of q8_0: head_dim int8 codes, then one f16 scale for
 * every 32 of them. */
#ifndef LLMQ_CPU_KV_H
#define LLMQ_CPU_KV_H

#include "core/backend.h"
#include "core/half.h"

enum { KV_F16 = 0, KV_Q8 = 1, KV_F32 = 2 };
#define KV_GROUP 32

static inline size_t kv_row_bytes(int type, int head_dim) {
    if (type == KV_F32) return (size_t)head_dim * sizeof(float);
    return type == KV_Q8 ? (size_t)head_dim + (size_t)(head_dim / KV_GROUP) * 2 : (size_t)head_dim * 2;
}

static inline const uint8_t *kv_row(const void *base, const llmq_kv *kv, int head, int64_t pos) {
    return (const uint8_t *)base +
           ((size_t)head * (size_t)kv->n_ctx + (size_t)pos) * kv_row_bytes(kv->type, kv->head_dim);
}

/* Scales sit behind head_dim bytes: even, since head_dim is a multiple of 32. */
static inline float kv_q8_scale(const uint8_t *row, int head_dim, int group) {
    uint16_t half;
    memcpy(&half, row + head_dim + 2 * group, sizeof half);
    return f16_to_f32(half);
}

#endif
