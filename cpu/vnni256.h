/* The product of AVX-VNNI. As asm, since gcc 12 copies registers before the intrinsic. */
#ifndef LLMQ_CPU_VNNI256_H
#define LLMQ_CPU_VNNI256_H

#include <immintrin.h>

#include "cpu/inline.h"

/* acc + the four products of each word: bytes of u unsigned, of x signed. */
INLINE __m256i vnni_add(__m256i acc, __m256i u, __m256i x) {
#ifdef LLMQ_EMULATED
    return _mm256_dpbusd_epi32(acc, u, x);
#else
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u), "x"(x));
    return acc;
#endif
}

#endif
