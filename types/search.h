/* Searches for the grid of a block: importance-weighted least squares over scales (and offsets), with every number
 * rounded as the block stores it. Derivations: search.c. */
#ifndef LLMQ_TYPES_SEARCH_H
#define LLMQ_TYPES_SEARCH_H

#include "types/type.h"

/* What the searches need to know of a type. The fan is the set of first guesses for a scale: n_fan steps of the ratio
 * (scale that just reaches the largest weight) / scale, from fan_from (room to spare) to fan_to (the largest weights
 * are clipped). Affine types use the fan at both ends of the range. */
typedef struct llmq_search {
    const float *levels; /* the levels to aim at, integers, ascending; 16 where they are not uniform */
    int n_levels;
    bool uniform;
    float fan_from, fan_to;
    int n_fan;
    int sc_min, sc_max; /* second-level scales; the minimums go from 0 to sc_max */
} llmq_search;

/* Blocks of TYPE small (32 weights, one group). */
void search_fit_scaled(const llmq_search *s, const float *x, const float *importance, llmq_grid *grid);
void search_fit_affine(const llmq_search *s, const float *x, const float *importance, llmq_grid *grid);
/* Super-blocks of 256 weights in n_groups groups. */
void search_fit_super_scaled(const llmq_search *s, int n_groups, const float *x, const float *importance,
                             llmq_grid *grid);
void search_fit_super_affine(const llmq_search *s, int n_groups, const float *x, const float *importance,
                             llmq_grid *grid);

#endif
