/* The probe of AVX-VNNI: vpdpbusd of 256 bits, 32 multiply-adds each. */
#include "cpu/cpu.h"
#include "cpu/vnni256.h"

enum { SUMS = 12 };

static double products_avxvnni(int64_t rounds, uint64_t *sum_out) {
    __m256i sum[SUMS], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
    UNROLL for (int j = 0; j < SUMS; j++) sum[j] = _mm256_set1_epi32(j);
    for (int64_t r = 0; r < rounds; r++) UNROLL for (int j = 0; j < SUMS; j++) sum[j] = vnni_add(sum[j], x, y);
    UNROLL for (int j = 1; j < SUMS; j++) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    *sum_out = (uint64_t)_mm256_extract_epi64(sum[0], 0);
    return (double)rounds * SUMS * 32;
}

void cpu_fill_limits_avxvnni(llmq_backend_ops *ops) {
    ops->probe_products = products_avxvnni;
    ops->product = "vpdpbusd of 256 bits";
}
