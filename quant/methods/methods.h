/* What methods share. */
#ifndef LLMQ_QUANT_METHODS_METHODS_H
#define LLMQ_QUANT_METHODS_METHODS_H

#include "quant/quant.h"

/* Plain rounding of rows [begin, end): each block's grid by the type's own fit, each weight to its nearest level.
 * importance [cols] steers the fit; NULL: all one. */
void rtn_rows(const llmq_quant_problem *p, const float *importance, int64_t begin, int64_t end, llmq_quantized *out);
/* Its two halves, for blocks [begin, end) of the matrix, numbered row by row: grids from the weights (importance [cols]
 * or NULL), and nearest codes on the grids there are. */
void rtn_fit_blocks(const llmq_quant_problem *p, const float *importance, int64_t begin, int64_t end,
                    llmq_quantized *out);
void rtn_round_blocks(const llmq_quant_problem *p, int64_t begin, int64_t end, llmq_quantized *out);
/* Both for all rows, shared by the team. */
void rtn_matrix(const llmq_quant_problem *p, const float *importance, llmq_quantized *out);
/* The method rtn itself, for methods that are plain rounding on a grid of theirs. */
llmq_status rtn_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report, llmq_err *err);
/* *out: [cols] by mem_alloc, what the grids are to be fitted with if the problem is weighted and its Gram matrix of
 * use; else NULL. */
llmq_status method_importance(const llmq_quant_problem *p, float **out, llmq_err *err);

#endif
