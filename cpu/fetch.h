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

#define FETCH_LONG (18 << 10)  /* bytes of a tile from which on, */
#define FETCH_MOST (192 << 10) /* and up to which, it is fetched whole */

/* How a tile is fetched whose scales lie behind the codes of all columns. Long ones: what is needed one tile and
 * FETCH_AHEAD later, so that codes and scales are one stream (two cost memory a tenth of its speed on Zen 5). Of short
 * ones that would be a good part of a matrix that never comes to use. */
typedef struct fetch_plan {
    int64_t skip;   /* beyond FETCH_AHEAD */
    int64_t scales; /* from those of this tile to those that are fetched apart, or 0 */
} fetch_plan;

INLINE fetch_plan fetch_plan_of(int64_t tile_bytes) {
    if (tile_bytes >= FETCH_LONG && tile_bytes <= FETCH_MOST) return (fetch_plan){tile_bytes, 0};
    return (fetch_plan){0, tile_bytes > FETCH_AHEAD ? tile_bytes : 0};
}

/* For the group of n bytes at p, as if scales lay between codes, whose scales are at `scales`. */
INLINE void fetch_group(const fetch_plan *plan, const uint8_t *p, int64_t n, const uint8_t *scales) {
    fetch_ahead(p + plan->skip, n);
    if (plan->scales) __builtin_prefetch(scales + plan->scales, 0, 2);
}

#endif
