/* What methods share. */
#ifndef LLMQ_QUANT_METHODS_METHODS_H
#define LLMQ_QUANT_METHODS_METHODS_H

#include "quant/quant.h"

/* Plain rounding of rows [begin, end): each block's grid by the type's own fit, each weight to its nearest level.
 * importance [cols] steers the fit; NULL: all one. */
void rtn_rows(const llmq_quant_problem *p, const float *importance, int64_t begin, int64_t end, llmq_quantized *out);
/* The same for all rows, shared by the team. */
void rtn_matrix(const llmq_quant_problem *p, const float *importance, llmq_quantized *out);

#endif
