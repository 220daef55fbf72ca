/* Caches of the CPU with contents, and their bytes as the GPU has them. */
#ifndef LLMQ_TESTS_CUDA_CACHES_H
#define LLMQ_TESTS_CUDA_CACHES_H

#include "gpu.h"

#include "cpu/kv.h"

/* Random rows on the CPU, as earlier tokens leave them. */
static inline void fill_cache(const llmq_kv *kv, void *rows) {
    const size_t n = (size_t)kv->head_dim, n_rows = (size_t)(kv->n_head_kv * kv->n_ctx);
    uint8_t *row = rows;
    for (size_t r = 0; r < n_rows; r++, row += kv_row_bytes(kv->type, kv->head_dim)) {
        uint16_t *halves = (uint16_t *)row;
        for (size_t i = 0; i < n && kv->type == KV_F16; i++) halves[i] = f32_to_f16(uniform(-1, 1));
        if (kv->type == KV_F16) continue;
        for (size_t i = 0; i < n; i++) row[i] = (uint8_t)(int8_t)uniform(-127, 127);
        for (size_t g = 0; g < n / KV_GROUP; g++) halves[n / 2 + g] = f32_to_f16(uniform(0.001f, 0.01f));
    }
}

/* From the CPU's order to the GPU's, in which scales lie behind all codes, and back. */
static inline void reorder(const llmq_kv *kv, const uint8_t *from, uint8_t *to, bool to_gpu) {
    const size_t n_rows = (size_t)(kv->n_head_kv * kv->n_ctx), row_bytes = kv_row_bytes(kv->type, kv->head_dim);
    const size_t codes = kv->type == KV_F16 ? row_bytes : (size_t)kv->head_dim, scales = row_bytes - codes;
    for (size_t r = 0; r < n_rows; r++) {
        const size_t here[2] = {r * row_bytes, r * row_bytes + codes},
                     there[2] = {r * codes, n_rows * codes + r * scales};
        memcpy(to + (to_gpu ? there : here)[0], from + (to_gpu ? here : there)[0], codes);
        memcpy(to + (to_gpu ? there : here)[1], from + (to_gpu ? here : there)[1], scales);
    }
}

#endif
