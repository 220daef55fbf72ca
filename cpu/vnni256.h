/* The product of AVX-VNNI. As asm, since gcc 12 copies registers before the intrinsic. */
#ifndef LLMQ_CPU_VNNI256_H
#define LLMQ_CPU_VNNI256_H

#include <immintrin.h>

#include "cpu/inline.h"

/* acc + the four products of each word: bytes of u unsigned, of x signed. */
INLINE __m256i vnni_add(__m256i acc, __m256i u, __m256i x) {
#ifdef LLMQ_EMULATED
    const __m256i low = _mm256_set1_epi16(255);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
#else
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u), "x"(x));
    return acc;
#endif
}

#endif
