/* AdamW (Loshchilov and Hutter 2019) and its schedule. */
#ifndef LLMQ_TRAIN_ADAM_H
#define LLMQ_TRAIN_ADAM_H

#include <math.h>
#include <stdint.h>

typedef struct adam_settings {
    double beta1, beta2, eps, decay; /* decay: of weights, decoupled */
} adam_settings;

/* Parameters [begin, end) of x by their gradients g; m and v are their moments, zeroed before the first step. step
 * counts from 1. lr: of this step. */
static inline void adam_update(const adam_settings *s, double lr, int64_t step, float *x, const float *g, float *m,
                               float *v, int64_t begin, int64_t end) {
    float b1 = (float)s->beta1, b2 = (float)s->beta2, eps = (float)s->eps, keep = (float)(1 - lr * s->decay);
    float rate = (float)(lr / (1 - pow(s->beta1, (double)step)));
    float inv = (float)(1 / (1 - pow(s->beta2, (double)step)));
    for (int64_t i = begin; i < end; i++) {
        m[i] += (1 - b1) * (g[i] - m[i]);
        v[i] += (1 - b2) * (g[i] * g[i] - v[i]);
        x[i] = x[i] * keep - rate * m[i] / (sqrtf(v[i] * inv) + eps);
    }
}

/* Linear warm-up, then half a cosine to `floor` of the rate. step from 0 to n_steps - 1. */
static inline double adam_schedule(int64_t step, int64_t warmup, int64_t n_steps, double floor) {
    if (step < warmup) return (double)(step + 1) / (double)warmup;
    double at = n_steps > warmup ? (double)(step - warmup) / (double)(n_steps - warmup) : 1;
    return floor + (1 - floor) * 0.5 * (1 + cos(3.14159265358979323846 * at));
}

#endif
