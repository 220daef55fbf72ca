/* NF4 and FP4: plain rounding onto bitsandbytes' grids, which nothing else has. Other methods reach the same grids by
 * --emit bnb. */
#include "types/nf4.h"
#include "quant/methods/methods.h"

static llmq_status solve(const llmq_quant_problem *p, bool fp4, llmq_quantized *out, llmq_quant_report *report,
                         llmq_err *err) {
    if (!nf4_is(p->type, fp4))
        return llmq_fail(err, LLMQ_E_ARG, "%s: %s is a grid of bitsandbytes and cannot make %s; use --rtn", p->name,
                         fp4 ? "fp4" : "nf4", p->type->name);
    return rtn_solve(p, out, report, err);
}

static llmq_status nf4_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report,
                             llmq_err *err) {
    return solve(p, false, out, report, err);
}

static llmq_status fp4_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report,
                             llmq_err *err) {
    return solve(p, true, out, report, err);
}

const llmq_method method_nf4 = {.name = "nf4", .emit = "bnb", .solve = nf4_solve};
const llmq_method method_fp4 = {.name = "fp4", .emit = "bnb", .fp4 = true, .solve = fp4_solve};
