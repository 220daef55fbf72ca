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

HALF_FN float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;
    if (mag >= 0x7c00u) return f32_from_bits(sign | 0x7f800000u | (mag & 0x3ffu) << 13); /* Inf, NaN */
    if (mag >= 0x0400u) return f32_from_bits(sign | ((mag << 13) + 0x38000000u));
    /* Subnormal: mag * 2^-24 exactly, since mag has at most 10 bits. */
    float x = (float)mag * 5.9604644775390625e-8f;
    return f32_from_bits(f32_bits(x) | sign);
}

HALF_FN uint16_t f32_to_f16(float x) {
    uint32_t u = f32_bits(x), sign = u >> 16 & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (mag >> 13 & 0x1ffu)); /* NaN, quiet */
    if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);                        /* rounds to 65536 or more */
    if (mag < 0x38800000u) {                                                         /* subnormal or zero */
        /* Adding 0.5 puts the value's 2^-24 units into the low mantissa bits, rounded by the FPU. */
        float y = f32_from_bits(mag) + 0.5f;
        return (uint16_t)(sign | (f32_bits(y) - 0x3f000000u));
    }
    uint32_t odd = mag >> 13 & 1u;
    return (uint16_t)(sign | (mag - 0x38000000u + 0xfffu + odd) >> 13);
}

HALF_FN float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

HALF_FN uint16_t f32_to_bf16(float x) {
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#endif
