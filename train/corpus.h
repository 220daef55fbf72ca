/* The text as tokens: what is learned from, what is held out, and which windows a step takes. */
#ifndef LLMQ_TRAIN_CORPUS_H
#define LLMQ_TRAIN_CORPUS_H

#include "core/mem.h"
#include "tokenizer/tokenizer.h"

#define CORPUS_HELD_SHARE 20  /* one part in so many is held out, */
#define CORPUS_HELD_MAX 32768 /* but no more tokens than this */

typedef struct corpus {
    int32_t *tokens; /* n, then n_held that are held out */
    int64_t n, n_held, ctx;
    int64_t n_windows; /* of an epoch */
    uint64_t seed;
    int64_t epoch, shift; /* that order is of; -1: none */
    int32_t *order;       /* [n_windows] */
} corpus;

/* All texts, one behind the other; *out by mem_alloc. */
llmq_status corpus_read(const char *const *texts, size_t n_texts, char **out, size_t *len_out, llmq_err *err);
/* c is zeroed and stays to be cleared after a failure too. n_vocab: ids of the model. */
llmq_status corpus_create(corpus *c, const llmq_tokenizer *tok, int64_t n_vocab, const char *text, size_t len,
                          int64_t ctx, uint64_t seed, llmq_err *err);
void corpus_clear(corpus *c);
/* Window number i of the whole run: ctx tokens, and behind each the one that follows it, so ctx + 1 in all. An epoch
 * has every window once, in an order of its own and cut at places of its own. */
const int32_t *corpus_window(corpus *c, int64_t i);
int64_t corpus_held_windows(const corpus *c);
const int32_t *corpus_held_window(const corpus *c, int64_t i);
/* Cross entropy of the held-out tokens by the counts of the others, each one larger; -1: out of memory. */
double corpus_unigram(const corpus *c, int64_t n_vocab);

#endif
