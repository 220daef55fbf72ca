/* Sums of guesses, one text for every width of registers: guess k lies in lanes 4k to 4k + 3, and each lane adds every
 * fourth weight. So each number is made by the same operations in the same order on any machine; CMakeLists.txt forbids
 * to contract them. */
#include "types/search_rests.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t v16i __attribute__((vector_size(64)));

/* Macros, since functions may not pass vectors that are wider than the baseline's. */
#define PICK(mask, a, b) ((v16)(((mask) & (v16i)(a)) | (~(mask) & (v16i)(b))))
#define SPREAD(p)                                                                                                      \
    ((v16){p[0], p[0], p[0], p[0], p[1], p[1], p[1], p[1], p[2], p[2], p[2], p[2], p[3], p[3], p[3], p[3]})
#define SWAP_ONE(v) __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define SWAP_TWO(v) __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)

/* Each guess's four lanes, all of which become their sum. */
INLINE void add_lanes(v16 *v) {
    *v = *v + SWAP_ONE(*v);
    *v = *v + SWAP_TWO(*v);
}

/* The level nearest to t. */
INLINE void nearest(const llmq_search *s, v16 *t) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves no bits after the point */
    v16 lo = (v16){0} + s->levels[0], hi = (v16){0} + s->levels[s->n_levels - 1];
    v16 v = PICK(*t > lo, *t, lo);
    v = PICK(v < hi, v, hi);
    *t = (v + round) - round;
}

INLINE void sum_rests(const llmq_search *s, bool offsets, const float *x, const float *w, int n, search_guesses *g) {
    v16 scale = SPREAD(g->scale), inv = SPREAD(g->inv), offset = {0}, bias = {0};
    if (offsets) {
        offset = SPREAD(g->offset);
        bias = -offset * inv;
    }
    v16 q = {0}, qq = {0}, r = {0}, rq = {0}, rr = {0};
    for (int i = 0; i < n; i += 4) {
        v16 vx = *(const v16 *)(x + 4 * i), vw = *(const v16 *)(w + 4 * i), level = vx * inv;
        if (offsets) level += bias;
        nearest(s, &level);
        v16 rest = vx - level * scale;
        if (offsets) rest -= offset;
        v16 wq = vw * level, wr = vw * rest;
        if (offsets) {
            q += wq;
            r += wr;
        }
        qq += wq * level;
        rq += wr * level;
        rr += wr * rest;
    }
    add_lanes(&qq), add_lanes(&rq), add_lanes(&rr);
    if (offsets) add_lanes(&q), add_lanes(&r);
    for (int k = 0; k < 16; k += 4) g->rests[k / 4] = (search_rests){q[k], qq[k], r[k], rq[k], rr[k]};
}

#define ARGS const llmq_search *s, bool offsets, const float *x, const float *w, int n, search_guesses *g

INLINE void sum_any(ARGS) {
    if (offsets)
        sum_rests(s, true, x, w, n, g);
    else
        sum_rests(s, false, x, w, n, g);
}

static void rests_c(ARGS) {
    sum_any(s, offsets, x, w, n, g);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void rests_avx2(ARGS) {
    sum_any(s, offsets, x, w, n, g);
}

__attribute__((target("avx512f,avx512dq"))) static void rests_avx512(ARGS) {
    sum_any(s, offsets, x, w, n, g);
}
#endif

void search_repeat(const float *from, int n, float *to) {
    for (int i = 0; i < n; i += 4)
        for (int k = 0; k < SEARCH_GUESSES; k++) memcpy(to + 4 * (i + k), from + i, 4 * sizeof *from);
}

search_rests_fn *search_rests_isa(const char *isa) {
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? rests_avx512 : NULL;
    if (strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") ? rests_avx2 : NULL;
#endif
    return strcmp(isa, "c") == 0 ? rests_c : NULL;
}

search_rests_fn *search_rests_best(void) {
    search_rests_fn *fn = search_rests_isa("avx512");
    if (!fn) fn = search_rests_isa("avx2");
    return fn ? fn : rests_c;
}
