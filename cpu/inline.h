/* What register tiles are written with: code that must be inlined, and loops that must vanish, or gcc keeps their
 * accumulators in memory. */
#ifndef LLMQ_CPU_INLINE_H
#define LLMQ_CPU_INLINE_H

#ifdef LLMQ_EMULATED /* tests/emu512 has no such registers: code that compiles soon instead */
#define INLINE static inline
#define UNROLL
#define IN_REGISTER(v) (void)(v)
#else
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
/* A value with several uses stays in a register: gcc would fold the broadcast that makes it into each of them. */
#ifdef __aarch64__
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#endif
#endif

#ifdef __AVX512F__
#include <immintrin.h>
#include <stdint.h>

/* The first `left` of 16 lanes. */
INLINE __mmask16 mask_of(int64_t left) {
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
}
#endif

#endif
