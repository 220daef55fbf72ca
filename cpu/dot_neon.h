/* Sums of products of signed bytes, for files that are compiled with DOTPROD as 0 (any ARMv8) and 1 (sdot): a `sums` is
 * of 4 rows, whose words of 4 columns are multiplied with one word of activations.
 *
 * Without sdot: products of 16 bits are added up there for so many words that they stay exact, then in pairs to 32. The
 * integers are the same. */
#ifndef LLMQ_CPU_DOT_NEON_H
#define LLMQ_CPU_DOT_NEON_H

#include <arm_neon.h>
#include <stdbool.h>

#include "cpu/inline.h"

#if DOTPROD
#define DOT_NAME(name) name##_dotprod

typedef int32x4_t sums;

INLINE sums sums_start(int32_t start) {
    return vdupq_n_s32(start);
}
INLINE int32x4_t sums_rows(const sums *s) {
    return *s;
}

/* *s += the products of w with word `lane` of x. */
INLINE void add_word(int exact, int k, int8x16_t w, int8x16_t x, int lane, sums *s) {
    (void)exact, (void)k;
    if (lane == 0) *s = vdotq_laneq_s32(*s, w, x, 0);
    if (lane == 1) *s = vdotq_laneq_s32(*s, w, x, 1);
    if (lane == 2) *s = vdotq_laneq_s32(*s, w, x, 2);
    if (lane == 3) *s = vdotq_laneq_s32(*s, w, x, 3);
}
#else
#define DOT_NAME(name) name##_neon

typedef struct sums {
    int32x4_t all[2];  /* two sums for each of rows 0 and 1, 2 and 3 */
    int16x8_t part[2]; /* by column */
} sums;

INLINE sums sums_start(int32_t start) {
    int32x4_t once = {start, 0, start, 0};
    return (sums){.all = {once, once}};
}
INLINE int32x4_t sums_rows(const sums *s) {
    return vpaddq_s32(s->all[0], s->all[1]);
}

/* Likewise: the k-th word, of which `exact` fit. */
INLINE void add_word(int exact, int k, int8x16_t w, int8x16_t x, int lane, sums *s) {
    int32x4_t words = vreinterpretq_s32_s8(x), one = lane == 0   ? vdupq_laneq_s32(words, 0)
                                                     : lane == 1 ? vdupq_laneq_s32(words, 1)
                                                     : lane == 2 ? vdupq_laneq_s32(words, 2)
                                                                 : vdupq_laneq_s32(words, 3);
    int8x16_t y = vreinterpretq_s8_s32(one);
    int8x8_t low = vget_low_s8(w), by = vget_low_s8(y);
    bool first = k % exact == 0;
    s->part[0] = first ? vmull_s8(low, by) : vmlal_s8(s->part[0], low, by);
    s->part[1] = first ? vmull_high_s8(w, y) : vmlal_high_s8(s->part[1], w, y);
    if (k % exact != exact - 1) return;
    UNROLL for (int i = 0; i < 2; i++) s->all[i] = vpadalq_s16(s->all[i], s->part[i]);
}
#endif

#endif
