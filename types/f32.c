#include "types/bits.h"

static void to_f32(const void *src, float *dst, int64_t n) {
    memcpy(dst, src, (size_t)n * sizeof *dst);
}

static void from_f32(const float *src, void *dst, int64_t n) {
    memcpy(dst, src, (size_t)n * sizeof *src);
}

const llmq_type_info type_f32 = {
    .id = LLMQ_TYPE_F32,
    .name = "f32",
    .ftype = 0,
    .bits = 32,
    .block_len = 1,
    .block_bytes = 4,
    .group_len = 1,
    .to_f32 = to_f32,
    .from_f32 = from_f32,
};
