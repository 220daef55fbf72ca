/* The sums that a guess of a grid is judged by, for several guesses at once. */
#ifndef LLMQ_TYPES_SEARCH_RESTS_H
#define LLMQ_TYPES_SEARCH_RESTS_H

#include "types/search.h"

#define SEARCH_GUESSES 4

/* Weighted sums over a group, of the levels q and of the rests r = x - scale q - offset: least squares without the
 * cancellation of <xx> - <xq>^2 / <qq>, which at 8 bits leaves no correct digit. */
typedef struct search_rests {
    float q, qq, r, rq, rr;
} search_rests;

typedef struct search_guesses {
    float scale[SEARCH_GUESSES], inv[SEARCH_GUESSES]; /* inv = 1 / scale */
    float offset[SEARCH_GUESSES];
    search_rests rests[SEARCH_GUESSES]; /* out, with the levels nearest to (x - offset) inv */
} search_guesses;

/* Four numbers of from, as often as there are guesses, then the next four. n is a multiple of 4; to has room for
 * SEARCH_GUESSES times as many. */
void search_repeat(const float *from, int n, float *to);

/* n weights and their importances, repeated; s has uniform levels. offsets false: all offsets are 0, and of the sums
 * only qq, rq and rr are made. */
typedef void search_rests_fn(const llmq_search *s, bool offsets, const float *xs, const float *ws, int n,
                             search_guesses *g);

search_rests_fn *search_rests_best(void);
search_rests_fn *search_rests_isa(const char *isa); /* "c", "avx2", "avx512"; NULL: not here. All give the same bits. */

#endif
