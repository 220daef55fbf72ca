#include "types/bits.h"

static void to_f32(const void *src, float *dst, int64_t n) {
    const uint16_t *h = src;
    for (int64_t i = 0; i < n; i++) dst[i] = f16_to_f32(h[i]);
}

static void from_f32(const float *src, void *dst, int64_t n) {
    uint16_t *h = dst;
    for (int64_t i = 0; i < n; i++) h[i] = f32_to_f16(src[i]);
}

const llmq_type_info type_f16 = {
    .id = LLMQ_TYPE_F16,
    .name = "f16",
    .ftype = 1,
    .bits = 16,
    .block_len = 1,
    .block_bytes = 2,
    .group_len = 1,
    .to_f32 = to_f32,
    .from_f32 = from_f32,
};
