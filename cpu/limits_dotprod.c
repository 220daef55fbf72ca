/* The product of matmul_dotprod.c; memory is read as by NEON. */
#include <arm_neon.h>

#include "cpu/cpu.h"
#include "cpu/inline.h"

enum { SUMS = 12 };

static double products_dotprod(int64_t rounds, uint64_t *sum_out) {
    int32x4_t sum[SUMS];
    int8x16_t x = vdupq_n_s8(3), y = vdupq_n_s8(5);
    UNROLL for (int j = 0; j < SUMS; j++) sum[j] = vdupq_n_s32(j);
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL for (int j = 0; j < SUMS; j++) {
            sum[j] = vdotq_s32(sum[j], x, y);
            IN_REGISTER(sum[j]);
        }
    }
    UNROLL for (int j = 1; j < SUMS; j++) sum[0] = veorq_s32(sum[0], sum[j]);
    *sum_out = vgetq_lane_u64(vreinterpretq_u64_s32(sum[0]), 0);
    return (double)rounds * SUMS * 16;
}

void cpu_fill_limits_dotprod(llmq_backend_ops *ops) {
    ops->probe_products = products_dotprod;
    ops->product = "sdot";
}
