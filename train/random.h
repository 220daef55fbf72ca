/* SplitMix64 (Steele, Lea, Flood 2014): a stream for each pair of a seed and a purpose.
 * scripts/compare_torch_training.py draws the same windows by it. */
#ifndef LLMQ_TRAIN_RANDOM_H
#define LLMQ_TRAIN_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct random_state {
    uint64_t at;
    double spare; /* of a pair of normal numbers */
    int has_spare;
} random_state;

static inline uint64_t random_next(random_state *r) {
    uint64_t z = r->at += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline random_state random_begin(uint64_t seed, uint64_t purpose) {
    random_state r = {.at = seed};
    r.at = random_next(&r) ^ purpose;
    return r;
}

/* Box and Muller. */
static inline double random_normal(random_state *r) {
    if (r->has_spare) {
        r->has_spare = 0;
        return r->spare;
    }
    double u = (double)((random_next(r) >> 11) + 1) * 0x1p-53,
           a = 6.283185307179586 * (double)(random_next(r) >> 11) * 0x1p-53;
    double radius = sqrt(-2 * log(u));
    r->spare = radius * sin(a);
    r->has_spare = 1;
    return radius * cos(a);
}

#endif
