/* Weights on their way from memory, which are asked for ahead. A worker reads the tiles of its rows as they lie, so
 * what it will need lies beyond what it is at. */
#ifndef LLMQ_CPU_FETCH_H
#define LLMQ_CPU_FETCH_H

#include <stdint.h>

#include "cpu/inline.h"

#define FETCH_AHEAD 8192 /* bytes */

/* The n bytes that begin FETCH_AHEAD beyond p. Into the L2 cache, by which generation on Zen 4 was faster than by
 * lines on their way to L1; not to ask at all is faster yet there (cpu_streams_alone). */
INLINE void fetch_ahead(const void *p, int64_t n) {
    UNROLL for (int64_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + FETCH_AHEAD + i, 0, 2);
}

#endif
