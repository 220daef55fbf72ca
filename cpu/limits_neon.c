/* The probes of NEON: 128-bit loads; smlal of bytes with its sums kept in 16 bits, the products of dot_neon.h. */
#include <arm_neon.h>

#include "cpu/cpu.h"
#include "cpu/inline.h"

enum { LOADS = 16, SUMS = 12 };

INLINE uint64_t read_loop(const char *p, size_t bytes, size_t ahead) {
    uint64x2_t sum[LOADS];
    UNROLL for (int j = 0; j < LOADS; j++) sum[j] = vdupq_n_u64(0);
    for (const char *end = p + bytes; p < end; p += 16 * LOADS) {
        UNROLL for (int j = 0; j < LOADS; j++) {
            if (ahead && j % 4 == 0) __builtin_prefetch(p + ahead + 16 * j);
            sum[j] = veorq_u64(sum[j], vld1q_u64((const uint64_t *)(const void *)p + 2 * j));
        }
    }
    UNROLL for (int j = 1; j < LOADS; j++) sum[0] = veorq_u64(sum[0], sum[j]);
    return vgetq_lane_u64(sum[0], 0) ^ vgetq_lane_u64(sum[0], 1);
}

static uint64_t read_neon(const void *p, size_t bytes, size_t ahead) {
    return ahead ? read_loop(p, bytes, ahead) : read_loop(p, bytes, 0);
}

static double products_neon(int64_t rounds, uint64_t *sum_out) {
    int16x8_t sum[SUMS];
    int8x8_t x = vdup_n_s8(3), y = vdup_n_s8(5);
    UNROLL for (int j = 0; j < SUMS; j++) sum[j] = vdupq_n_s16(0);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL for (int j = 0; j < SUMS; j++) {
            IN_REGISTER(x); /* another product, for all that the compiler knows */
            sum[j] = vmlal_s8(sum[j], x, y);
            IN_REGISTER(sum[j]);
        }
    }
    UNROLL for (int j = 1; j < SUMS; j++) sum[0] = veorq_s16(sum[0], sum[j]);
    *sum_out = vgetq_lane_u64(vreinterpretq_u64_s16(sum[0]), 0);
    return (double)rounds * SUMS * 8;
}

void cpu_fill_limits_neon(llmq_backend_ops *ops) {
    ops->probe_read = read_neon;
    ops->probe_products = products_neon;
    ops->product = "smlal of bytes";
}
