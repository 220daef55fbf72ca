/* The probes of AVX2: 256-bit loads; vpmaddubsw with its sums kept in 16 bits, the products of matmul_256.h. */
#include <immintrin.h>

#include "cpu/cpu.h"
#include "cpu/inline.h"

enum { LOADS = 16, SUMS = 12 };

INLINE uint64_t read_loop(const char *p, size_t bytes, size_t ahead) {
    __m256i sum[LOADS];
    UNROLL for (int j = 0; j < LOADS; j++) sum[j] = _mm256_setzero_si256();
    for (const char *end = p + bytes; p < end; p += 32 * LOADS) {
        UNROLL for (int j = 0; j < LOADS; j++) {
            if (ahead && j % 2 == 0) _mm_prefetch(p + ahead + 32 * j, _MM_HINT_T0);
            sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256((const __m256i *)p + j));
        }
    }
    UNROLL for (int j = 1; j < LOADS; j++) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    return (uint64_t)_mm256_extract_epi64(sum[0], 0) ^ (uint64_t)_mm256_extract_epi64(sum[0], 3);
}

static uint64_t read_avx2(const void *p, size_t bytes, size_t ahead) {
    return ahead ? read_loop(p, bytes, ahead) : read_loop(p, bytes, 0);
}

static double products_avx2(int64_t rounds, uint64_t *sum_out) {
    __m256i sum[SUMS], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
    UNROLL for (int j = 0; j < SUMS; j++) sum[j] = _mm256_setzero_si256();
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL for (int j = 0; j < SUMS; j++) {
            __asm__ volatile("" : "+x"(x)); /* another product, for all that the compiler knows */
            sum[j] = _mm256_add_epi16(sum[j], _mm256_maddubs_epi16(x, y));
            IN_REGISTER(sum[j]);
        }
    }
    UNROLL for (int j = 1; j < SUMS; j++) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    *sum_out = (uint64_t)_mm256_extract_epi64(sum[0], 0);
    return (double)rounds * SUMS * 32;
}

void cpu_fill_limits_avx2(llmq_backend_ops *ops) {
    ops->probe_read = read_avx2;
    ops->probe_products = products_avx2;
    ops->product = "vpmaddubsw";
}
