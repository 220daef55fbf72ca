/* Improving codes and grids that are already good: coordinate descent on tr(E H E'), E = value - W. */
#ifndef LLMQ_QUANT_REFINE_H
#define LLMQ_QUANT_REFINE_H

#include "quant/hessian.h"

/* Works on the rows of one problem, a slab of `lanes` rows at a time; rows do not know of each other. */
typedef struct llmq_refiner {
    const llmq_quant_problem *p;
    const llmq_feedback *f; /* with hessian_mirror done */
    int64_t lanes;          /* rows of a slab, a multiple of 16 */
    int64_t width;          /* columns of a step: a block of the type, or a part of a longer one */
    int n_buffers;
    struct refine_buffers *buffers; /* [n_buffers] */
} llmq_refiner;

llmq_status refiner_create(const llmq_quant_problem *p, const llmq_feedback *f, int64_t lanes, int n_workers,
                           llmq_refiner *out, llmq_err *err);
void refiner_clear(llmq_refiner *r); /* zeroed allowed */

/* Improves rows [row, row + lanes) of q, or as many as there are. Worker `id` alone uses its buffers. The error of no
 * row rises. */
void refine_slab(const llmq_refiner *r, int id, int64_t row, llmq_quantized *q);

#endif
