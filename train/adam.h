/* AdamW (Loshchilov and Hutter 2019): the numbers of a step for the backend's op, and the schedule of rates. */
#ifndef LLMQ_TRAIN_ADAM_H
#define LLMQ_TRAIN_ADAM_H

#include <math.h>

#include "core/backend.h"

typedef struct adam_settings {
    double beta1, beta2, eps;
    double decay; /* of what decays, decoupled */
    double clip;  /* the gradient is made no longer than this; 0: as it is */
} adam_settings;

/* A step at rate lr; it counts from 1, and before the first one the moments are 0. length: of the gradient, for clip.
 */
static inline llmq_adam adam_step(const adam_settings *s, double lr, int64_t step, double length, bool decays) {
    return (llmq_adam){.beta1 = (float)s->beta1,
                       .beta2 = (float)s->beta2,
                       .eps = (float)s->eps,
                       .keep = decays ? (float)(1 - lr * s->decay) : 1,
                       .rate = (float)(lr / (1 - pow(s->beta1, (double)step))),
                       .inv = (float)(1 / (1 - pow(s->beta2, (double)step))),
                       .scale = s->clip > 0 && length > s->clip ? (float)(s->clip / length) : 1};
}

/* Linear warm-up, then half a cosine to `floor` of the rate. step from 0 to n_steps - 1. */
static inline double adam_schedule(int64_t step, int64_t warmup, int64_t n_steps, double floor) {
    if (step < warmup) return (double)(step + 1) / (double)warmup;
    double at = n_steps > warmup ? (double)(step - warmup) / (double)(n_steps - warmup) : 1;
    return floor + (1 - floor) * 0.5 * (1 + cos(3.14159265358979323846 * at));
}

#endif
