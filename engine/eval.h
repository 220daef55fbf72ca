/* What evaluation lends to other parts of the engine. */
#ifndef LLMQ_ENGINE_EVAL_H
#define LLMQ_ENGINE_EVAL_H

#include <stdint.h>

/* KL divergence in nats of the predictions of logits from those of base, [n] each. */
double eval_kl(const float *base, const float *logits, int64_t n);

#endif
