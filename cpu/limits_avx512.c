/* The probes of AVX-512: 512-bit loads; vpdpbusd, 64 multiply-adds each. */
#include <immintrin.h>

#include "cpu/cpu.h"
#include "cpu/inline.h"

enum { LOADS = 16, SUMS = 16 };

/* As asm, since gcc 12 puts two copies of registers before each of them. */
INLINE __m512i product(__m512i sum, __m512i x, __m512i y) {
#ifdef LLMQ_EMULATED
    return _mm512_dpbusd_epi32(sum, x, y);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
#endif
}

INLINE uint64_t any_word(__m512i v) {
    _Alignas(64) uint64_t word[8];
    _mm512_store_si512(word, v);
    return word[0] ^ word[7];
}

INLINE uint64_t read_loop(const char *p, size_t bytes, size_t ahead) {
    __m512i sum[LOADS];
    UNROLL for (int j = 0; j < LOADS; j++) sum[j] = _mm512_setzero_si512();
    for (const char *end = p + bytes; p < end; p += 64 * LOADS) {
        UNROLL for (int j = 0; j < LOADS; j++) {
            if (ahead) _mm_prefetch(p + ahead + 64 * j, _MM_HINT_T0);
            sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512((const __m512i *)p + j));
        }
    }
    UNROLL for (int j = 1; j < LOADS; j++) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
    return any_word(sum[0]);
}

static uint64_t read_avx512(const void *p, size_t bytes, size_t ahead) {
    return ahead ? read_loop(p, bytes, ahead) : read_loop(p, bytes, 0);
}

static double products_avx512(int64_t rounds, uint64_t *sum_out) {
    __m512i sum[SUMS], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
    UNROLL for (int j = 0; j < SUMS; j++) sum[j] = _mm512_set1_epi32(j);
    for (int64_t r = 0; r < rounds; r++) UNROLL for (int j = 0; j < SUMS; j++) sum[j] = product(sum[j], x, y);
    UNROLL for (int j = 1; j < SUMS; j++) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
    *sum_out = any_word(sum[0]);
    return (double)rounds * SUMS * 64;
}

void cpu_fill_limits_avx512(llmq_backend_ops *ops) {
    ops->probe_read = read_avx512;
    ops->probe_products = products_avx512;
    ops->product = "vpdpbusd";
}
