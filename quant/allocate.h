/* Which type for which matrix: the least total loss within so many bytes. Knows nothing of models or types. */
#ifndef LLMQ_QUANT_ALLOCATE_H
#define LLMQ_QUANT_ALLOCATE_H

#include "core/err.h"

typedef struct llmq_alloc_option {
    int64_t bytes;
    double loss; /* finite, not negative; losses of items add up */
} llmq_alloc_option;

typedef struct llmq_alloc_item {
    const llmq_alloc_option *options; /* n >= 1, in any order */
    size_t n;
    size_t chosen; /* out */
} llmq_alloc_item;

/* Chooses one option of each item so that their bytes are at most budget and the total loss is small: the path of
 * steepest descent, then exchanges between pairs of items while one lowers the loss (exact wherever the budget falls on
 * the path). The same choice for the same input. Not even the smallest options fit: LLMQ_E_ARG without a message, the
 * smallest are chosen. */
llmq_status allocate(llmq_alloc_item *items, size_t n_items, int64_t budget);
/* Bytes of the chosen options. */
int64_t allocate_bytes(const llmq_alloc_item *items, size_t n_items);

#endif
