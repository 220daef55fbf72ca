/* f16 (IEEE binary16) and bf16 conversions: the only ones in the project, for C and CUDA. Round to nearest even;
 * NaN stays NaN, overflow becomes infinity, subnormals are kept. */
#ifndef LLMQ_CORE_HALF_H
#define LLMQ_CORE_HALF_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define HALF_FN static __host__ __device__ inline
#else
#define HALF_FN static inline
#endif

HALF_FN uint32_t f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

HALF_FN float f32_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* mask ? a : b for all ones or all zeros; a ?: would become a branch, and loops over rows would not vectorize. */
HALF_FN uint32_t bits_select(uint32_t mask, uint32_t a, uint32_t b) {
    return (a & mask) | (b & ~mask);
}

HALF_FN float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;
    uint32_t normal = (mag << 13) + 0x38000000u;
    uint32_t wide = mag << 13 | 0x7f800000u;                                 /* Inf, NaN */
    uint32_t small = f32_bits((float)(int32_t)mag * 5.9604644775390625e-8f); /* mag * 2^-24: exact if subnormal */
    uint32_t u = bits_select(0u - (uint32_t)(mag < 0x0400u), small, normal);
    return f32_from_bits(sign | bits_select(0u - (uint32_t)(mag >= 0x7c00u), wide, u));
}

HALF_FN uint16_t f32_to_f16(float x) {
    uint32_t u = f32_bits(x), sign = u >> 16 & 0x8000u, mag = u & 0x7fffffffu;
    uint32_t normal = (mag - 0x38000000u + 0xfffu + (mag >> 13 & 1u)) >> 13;
    /* Subnormal or zero: adding 0.5 puts the value's 2^-24 units into the low mantissa bits, rounded by the FPU. */
    uint32_t small = f32_bits(f32_from_bits(mag) + 0.5f) - 0x3f000000u;
    uint32_t quiet = 0x200u | (mag >> 13 & 0x1ffu);
    uint32_t wide = 0x7c00u | (quiet & (0u - (uint32_t)(mag > 0x7f800000u))); /* Inf; NaN */
    uint32_t h = bits_select(0u - (uint32_t)(mag < 0x38800000u), small, normal);
    return (uint16_t)(sign | bits_select(0u - (uint32_t)(mag >= 0x477ff000u), wide, h)); /* 65520 and up: Inf */
}

HALF_FN float bf16_to_f32(uint16_t h) {
    return f32_from_bits((uint32_t)h << 16);
}

HALF_FN uint16_t f32_to_bf16(float x) {
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#endif
