/* Speculation: a pass runs the token that is certain and guesses of those that follow it, for hardly more than the time
 * of one. Each position is then sampled as if nothing had been guessed, from the same bits and with the same random
 * numbers; a guess that is not what was sampled ends the run of guesses, and what the cache holds of it is written
 * over. So the text is the one that sampling one by one gives, greedy or not. */
#ifndef LLMQ_ENGINE_SPECULATE_H
#define LLMQ_ENGINE_SPECULATE_H

#include "engine/session.h"

#define SPEC_ROWS MATMUL_ALIKE /* tokens of a pass: the certain one and its guesses */

/* Where a guess came from: a passage found by its last 1, 2..3, 4..7 or more tokens, or the draft model. */
enum { GUESS_LOOKUP, GUESS_DRAFT = GUESS_LOOKUP + 4, GUESS_KINDS };

typedef struct speculation {
    int64_t most; /* guesses a pass */
    bool lookup;
    bool always;                /* as many guesses as there are, whether they pay or not: tests */
    llmq_session *draft;        /* owned; NULL: none */
    float *logits;              /* (SPEC_ROWS, n_vocab) of the last pass with guesses */
    int64_t ahead;              /* guesses behind s->n_past in s->tokens that are run: their logits follow s->last */
    int kind;                   /* of these */
    double accept[GUESS_KINDS]; /* running share of guesses that were right */
    double pass_seconds[SPEC_ROWS + 1]; /* running mean of a pass with so many tokens; 0: none yet */
    double draft_seconds;               /* likewise of one guess by the draft model */
    llmq_speculation_stats stats;
} speculation;

void speculation_destroy(speculation *sp); /* NULL allowed */

/* Runs what llmq_session_next has handed out, if that is not done. */
llmq_status session_run_next(llmq_session *s, llmq_err *err);

/* The most likely continuation of text[n] by itself: what follows the longest earlier occurrence of its end (the latest
 * of equals) goes to out[most]. Returns the length of that occurrence, 0: there is none. */
int64_t speculation_lookup(const int32_t *text, int64_t n, int64_t most, int32_t *out);

#endif
