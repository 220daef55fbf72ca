/* Weights on their way from memory, which are asked for ahead. Of few tokens a worker reads the tiles of its rows as
 * they lie, so what it will need lies beyond what it is at; of many, the next panel. */
#ifndef LLMQ_CPU_FETCH_H
#define LLMQ_CPU_FETCH_H

#include <stdint.h>

#include "cpu/inline.h"

#define FETCH_AHEAD 8192 /* bytes */
#define FETCH_PART 4096  /* of each of several streams that are read in turns */
#define FETCH_SOON 1152

/* The n bytes at p, into the L2 cache: by that generation on Zen 4 was faster than by lines on their way to L1. */
INLINE void fetch(const void *p, int64_t n) {
    UNROLL for (int64_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

/* Into L1, what is wanted soon and asked for already. */
INLINE void fetch_soon(const void *p, int64_t n) {
    UNROLL for (int64_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 0, 3);
}

/* The n bytes that begin FETCH_AHEAD beyond p. */
INLINE void fetch_ahead(const void *p, int64_t n) {
    fetch((const char *)p + FETCH_AHEAD, n);
}

#endif
