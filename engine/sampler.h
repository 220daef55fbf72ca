/* Choosing the next token. A sampler belongs to a session; its random numbers depend on the seed alone. */
#ifndef LLMQ_ENGINE_SAMPLER_H
#define LLMQ_ENGINE_SAMPLER_H

#include "core/device.h"
#include "core/mem.h"
#include "llmq.h"

typedef struct sampler_entry {
    float logit, p;
    int32_t id;
} sampler_entry;

typedef struct llmq_sampler {
    llmq_sampler_params params;
    uint64_t rng[4];        /* xoshiro256++ */
    sampler_entry *entries; /* [n_vocab] */
    float *logits;          /* [n_vocab]: a copy, changed by penalties */
    int64_t n_vocab;
} llmq_sampler;

llmq_status sampler_create(int64_t n_vocab, llmq_sampler *out, llmq_err *err);
size_t sampler_bytes(int64_t n_vocab); /* of memory */
void sampler_destroy(llmq_sampler *s); /* zeroed allowed */
/* Restarts the random numbers from params->seed. */
void sampler_set(llmq_sampler *s, const llmq_sampler_params *params);
/* The settings and the random numbers that `from` is about to use. */
void sampler_follow(llmq_sampler *s, const llmq_sampler *from);
/* history: the n tokens before. LLMQ_E_NUMERIC if no logit is a number. */
llmq_status sampler_sample(llmq_sampler *s, const float *logits, const int32_t *history, int64_t n, int32_t *token_out,
                           llmq_err *err);
/* Is it worth asking a device? Settings that filter nothing leave it more candidates than it sorts. */
bool sampler_suits_device(const llmq_sampler *s);
/* What a device is given to draw that very token, with the random number that sampler_sample would take next; it is
 * taken when sampler_drew says what came of it. LLMQ_DEVICE_TOO_MANY is not for it: sampler_sample has to draw then. */
llmq_device_draw sampler_on_device(const llmq_sampler *s, const int32_t *history, int64_t n);
llmq_status sampler_drew(llmq_sampler *s, int32_t token, llmq_err *err);
double sampler_uniform(llmq_sampler *s); /* [0, 1) */

#endif
