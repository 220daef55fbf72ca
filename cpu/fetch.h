/* Weights on their way from memory. A worker reads the tiles of its rows one after the other, so what it will need lies
 * beyond what it is at. */
#ifndef LLMQ_CPU_FETCH_H
#define LLMQ_CPU_FETCH_H

#include <stdint.h>

#include "cpu/inline.h"

#define FETCH_AHEAD 8192 /* bytes */

/* The n bytes that begin FETCH_AHEAD beyond p. Into the L2 cache: a line on its way to L1 holds one of the few miss
 * buffers there until memory answers, and on Zen 4 these were what limited generation. */
INLINE void fetch_ahead(const void *p, int64_t n) {
    UNROLL for (int64_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + FETCH_AHEAD + i, 0, 2);
}

#endif
