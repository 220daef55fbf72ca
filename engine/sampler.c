/* The chain, in the order that llama.cpp made usual: repetition penalty, top-k, top-p, min-p, temperature, draw. The
 * filters see the distribution at temperature 1; ties are broken by the lower id, so a seed means the same text
 * everywhere. */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void llmq_sampler_params_default(llmq_sampler_params *params) {
    *params = (llmq_sampler_params){.temperature = 0.8f,
                                    .top_k = 40,
                                    .top_p = 0.95f,
                                    .min_p = 0.05f,
                                    .repeat_penalty = 1.0f,
                                    .repeat_last_n = 64,
                                    .seed = 0};
}

/* splitmix64: spreads any seed, 0 too, over the state. */
static uint64_t splitmix(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotl(uint64_t x, int k) {
    return x << k | x >> (64 - k);
}

static uint64_t xoshiro_next(uint64_t s[4]) {
    uint64_t result = rotl(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

double sampler_uniform(llmq_sampler *s) {
    return (double)(xoshiro_next(s->rng) >> 11) * 0x1p-53;
}

llmq_status sampler_create(int64_t n_vocab, llmq_sampler *out, llmq_err *err) {
    *out = (llmq_sampler){.n_vocab = n_vocab};
    out->entries = mem_alloc((size_t)n_vocab, sizeof *out->entries);
    out->logits = mem_alloc((size_t)n_vocab, sizeof *out->logits);
    if (!out->entries || !out->logits) {
        sampler_destroy(out);
        return mem_error(err, (size_t)n_vocab * sizeof *out->entries, "the sampler");
    }
    llmq_sampler_params params;
    llmq_sampler_params_default(&params);
    sampler_set(out, &params);
    return LLMQ_OK;
}

size_t sampler_bytes(int64_t n_vocab) {
    return (size_t)n_vocab * (sizeof(sampler_entry) + sizeof(float));
}

void sampler_destroy(llmq_sampler *s) {
    mem_free(s->entries);
    mem_free(s->logits);
    *s = (llmq_sampler){0};
}

void sampler_set(llmq_sampler *s, const llmq_sampler_params *params) {
    s->params = *params;
    uint64_t state = params->seed;
    for (int i = 0; i < 4; i++) s->rng[i] = splitmix(&state);
}

void sampler_follow(llmq_sampler *s, const llmq_sampler *from) {
    s->params = from->params;
    memcpy(s->rng, from->rng, sizeof s->rng);
}

/* How many tokens at the end of a history of n are penalized. */
static int64_t count_repeated(const llmq_sampler_params *p, int64_t n) {
    if (p->repeat_penalty == 1 || !(p->repeat_penalty > 0) || p->repeat_last_n <= 0) return 0;
    return n < p->repeat_last_n ? n : p->repeat_last_n;
}

/* Each of these tokens is penalized once, however often it occurs: its logit then differs from the original (0 stays 0,
 * and may be penalized again). */
static void penalize(const llmq_sampler *s, const float *original, const int32_t *history, int64_t n) {
    float penalty = s->params.repeat_penalty;
    for (int64_t i = n - count_repeated(&s->params, n); i < n; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= s->n_vocab || s->logits[id] != original[id]) continue;
        s->logits[id] = original[id] > 0 ? original[id] / penalty : original[id] * penalty;
    }
}

static int32_t argmax(const float *x, int64_t n) { /* -1 if no element is a number */
    int32_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (best < 0 ? x[i] > -INFINITY : x[i] > x[best]) best = (int32_t)i;
    return best;
}

static int by_logit(const void *a, const void *b) {
    const sampler_entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Moves a sifted-out root of a heap whose worst entry is on top. */
static void sift_down(sampler_entry *heap, int64_t n, int64_t i) {
    for (;;) {
        int64_t worst = i, left = 2 * i + 1, right = left + 1;
        if (left < n && by_logit(&heap[left], &heap[worst]) > 0) worst = left;
        if (right < n && by_logit(&heap[right], &heap[worst]) > 0) worst = right;
        if (worst == i) return;
        sampler_entry t = heap[i];
        heap[i] = heap[worst];
        heap[worst] = t;
        i = worst;
    }
}

/* The k best entries, sorted; returns how many there are. Left out: NaNs, and what is below e^-40 of the best at any
 * temperature in use, so that a whole vocabulary need not be sorted for tokens that are never drawn. */
static int64_t collect_best(llmq_sampler *s, int64_t k, float max) {
    sampler_entry *e = s->entries;
    float least = max - 40 * fmaxf(1, s->params.temperature);
    int64_t n = 0;
    for (int64_t i = 0; i < s->n_vocab; i++) {
        if (!(s->logits[i] >= least)) continue;
        sampler_entry entry = {s->logits[i], 0, (int32_t)i};
        if (n < k) {
            e[n++] = entry;
            if (n == k && k < s->n_vocab)
                for (int64_t j = n / 2; j-- > 0;) sift_down(e, n, j);
        } else if (by_logit(&entry, &e[0]) < 0) {
            e[0] = entry;
            sift_down(e, n, 0);
        }
    }
    qsort(e, (size_t)n, sizeof *e, by_logit);
    return n;
}

static void softmax_entries(sampler_entry *e, int64_t n, float inv_temperature) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)(e[i].p = expf((e[i].logit - e[0].logit) * inv_temperature));
    for (int64_t i = 0; i < n; i++) e[i].p = (float)((double)e[i].p / sum);
}

/* The shortest head of the sorted entries whose probability reaches top_p, then those within min_p of the best. */
static int64_t filter(const llmq_sampler *s, int64_t n) {
    const sampler_entry *e = s->entries;
    if (s->params.top_p < 1) {
        double sum = 0;
        int64_t keep = 0;
        while (keep < n && (keep == 0 || sum < (double)s->params.top_p)) sum += (double)e[keep++].p;
        n = keep;
    }
    if (s->params.min_p > 0)
        while (n > 1 && e[n - 1].p < s->params.min_p * e[0].p) n--;
    return n;
}

/* Tokens that top_k leaves. */
static int64_t most_kept(const llmq_sampler *s) {
    const int64_t k = s->params.top_k;
    return k > 0 && k < s->n_vocab ? k : s->n_vocab;
}

static llmq_status not_finite(llmq_err *err) {
    return llmq_fail(err, LLMQ_E_NUMERIC,
                     "the model's logits are not finite; its weights are damaged: download or quantize it again");
}

llmq_status sampler_sample(llmq_sampler *s, const float *logits, const int32_t *history, int64_t n, int32_t *token_out,
                           llmq_err *err) {
    const llmq_sampler_params *p = &s->params;
    memcpy(s->logits, logits, (size_t)s->n_vocab * sizeof *logits);
    penalize(s, logits, history, n);
    int32_t best = argmax(s->logits, s->n_vocab);
    if (best < 0 || !isfinite(s->logits[best])) return not_finite(err);
    *token_out = best;
    if (!(p->temperature > 0)) return LLMQ_OK;
    int64_t kept = collect_best(s, most_kept(s), s->logits[best]);
    softmax_entries(s->entries, kept, 1);
    kept = filter(s, kept);
    softmax_entries(s->entries, kept, 1 / p->temperature);
    double u = sampler_uniform(s), sum = 0;
    int64_t i = 0;
    for (; i < kept - 1; i++)
        if (u < (sum += (double)s->entries[i].p)) break;
    *token_out = s->entries[i].id;
    return LLMQ_OK;
}

bool sampler_suits_device(const llmq_sampler *s) {
    const llmq_sampler_params *p = &s->params;
    return !(p->temperature > 0) || most_kept(s) <= LLMQ_DEVICE_CANDIDATES || p->top_p < 1 || p->min_p > 0;
}

llmq_device_draw sampler_on_device(const llmq_sampler *s, const int32_t *history, int64_t n) {
    llmq_sampler ahead = *s;
    int64_t n_repeated = count_repeated(&s->params, n);
    return (llmq_device_draw){&s->params, history + (n - n_repeated), n_repeated, sampler_uniform(&ahead)};
}

llmq_status sampler_drew(llmq_sampler *s, int32_t token, llmq_err *err) {
    if (token == LLMQ_DEVICE_NOT_FINITE) return not_finite(err);
    if (s->params.temperature > 0) sampler_uniform(s);
    return LLMQ_OK;
}
