/* Quantization methods: each only chooses grids and codes. Types turn them into bytes. */
#ifndef LLMQ_QUANT_QUANT_H
#define LLMQ_QUANT_QUANT_H

#include "core/backend.h"
#include "core/device.h"
#include "types/quantized.h"

/* The pieces of gptq, so that each can be switched off and measured (docs/quantization.md). */
typedef enum llmq_column_order {
    ORDER_STATIC, /* by falling diagonal of H, across blocks */
    ORDER_GROUP,  /* blocks by their largest diagonal, columns of a block by theirs */
    ORDER_NONE
} llmq_column_order;

typedef struct llmq_solver {
    llmq_column_order order;
    bool corrected; /* grids fitted when their block is reached, on weights that hold the errors so far; not with
                     * ORDER_STATIC */
    bool pivots; /* importance in that fit: what H leaves of an input given those not rounded yet; else its diagonal */
    bool refit;  /* scales fitted anew for the codes chosen */
    int sweeps;  /* passes of coordinate descent over the codes, at most */
    /* Of the caller's calibration: */
    double mean; /* how often more H counts the mean of the inputs: added to the Gram matrix */
    bool q8;     /* the forward pass runs on the packed blocks with 8-bit activations, as inference does, else in bf16;
                  * inputs of Gram matrices are rounded to 8 bits, else not at all */
} llmq_solver;

/* The defaults, changed by a list such as "sweeps=0,refit=0,order=group,grid=corrected,weight=pivot"; NULL: none.
 * LLMQ_E_ARG names the item that is wrong. act_order false: ORDER_NONE unless the list has an order; ORDER_STATIC
 * clears corrected. */
llmq_status solver_parse(const char *list, bool act_order, llmq_solver *out, llmq_err *err);

/* Of the mean diagonal of H, added to each of its elements: H is known from some text only (docs/quantization.md). */
#define QUANT_DEFAULT_DAMP 0.1
/* A problem's damp as it is meant. */
static inline double quant_damp(double damp) {
    return damp < 0 ? QUANT_DEFAULT_DAMP : damp;
}

typedef struct llmq_quant_problem {
    const char *name; /* for messages */
    const float *w;   /* (rows, cols) */
    int64_t rows, cols;
    int64_t part_of;   /* rows of the matrix that these stand for: they are worked on as that would be; 0: rows */
    const float *gram; /* (cols, cols) lower triangle of X'X over the calibration tokens; NULL: data-free */
    int64_t n_tokens;
    const llmq_type_info *type;
    llmq_solver solver;
    bool weighted; /* methods that need no data: fit grids with the Gram matrix's diagonal as importance */
    double damp;   /* < 0: the method's default */
    const llmq_backend_ops *ops;
    llmq_team *team;
    llmq_device_solver *device; /* factors the Hessian and rounds the columns where it can; NULL: none */
} llmq_quant_problem;

typedef struct llmq_quant_report {
    double error, rtn_error; /* tr(E H E') / tr(W H W'); -1 without a Gram matrix */
    double damp_used;
    int64_t dead_columns;
    bool fell_back; /* the factorization failed at every damping: plain rounding was used */
    char note[120];
} llmq_quant_report;

typedef struct llmq_method {
    const char *name;
    bool needs_gram;
    bool act_order_default;
    /* Methods that are a grid of their own: the one output (--emit's name) that has it, which they write unless asked
     * otherwise; NULL: any. */
    const char *emit;
    bool fp4; /* bnb: that grid is FP4, not NF4 */
    llmq_status (*solve)(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report, llmq_err *err);
    double (*work)(const llmq_quant_problem *p); /* of method_work, but for measuring errors; NULL: a fit a weight */
} llmq_method;

/* What solve does for a matrix of p's shape, solver and team, in nanoseconds of some machine: only ratios mean
 * something, to judge a large matrix by the time that a small one took. p->gram counts by being there. */
double method_work(const llmq_method *m, const llmq_quant_problem *p);
#define WORK_FIT 40.0  /* of a weight, by one worker */
#define WORK_MAC 0.025 /* of products of matrices */

const llmq_method *method_find(const char *name); /* NULL if unknown */
const llmq_method *method_at(size_t index);       /* NULL past the end */

#endif
