/* Linear algebra around a layer's Hessian H = X'X / n_tokens, of which callers hold the lower triangle. */
#ifndef LLMQ_QUANT_HESSIAN_H
#define LLMQ_QUANT_HESSIAN_H

#include "quant/quant.h"

/* The triangle that error feedback works with. With columns in the order perm and the damped H = R R', R upper
 * triangular: feedback[k*n + j] = R[j][k] / R[k][k] for j < k (elsewhere undefined). */
typedef struct llmq_feedback {
    int64_t n;
    float *at;         /* (n, n), row k: what the errors of the columns before k add to column k */
    int32_t *perm;     /* [n] perm[k]: the matrix's column that is rounded k-th */
    float *diag;       /* [n] diagonal of H in the matrix's own order; 0 for dead columns */
    float *importance; /* [n] what the grids are fitted with, in the matrix's own order: the diagonal of the damped H (a
                        * dead column weighs little, not nothing), or with solver.pivots the squared diagonal of R: what
                        * an input adds to those that are rounded after it */
    bool usable_diag;  /* all of diag is finite and some of it positive */
    int64_t dead;      /* columns whose input was always zero */
    double damp;       /* fraction of the mean diagonal that was added in the end */
    bool failed;       /* no damping made H positive definite: at is of no use */
} llmq_feedback;

/* Permutes, damps (fraction damp, raised tenfold up to 1 while the factorization fails) and factors. A Gram matrix that
 * no damping saves is not an error: then failed is set. */
llmq_status hessian_factor(const llmq_quant_problem *p, double damp, llmq_feedback *out, llmq_err *err);
/* Fills at[i*n + j], j >= i, in the matrix's own order of columns, with the Gram matrix and `ridge` times its mean
 * diagonal: with the Gram matrix's own lower triangle every row of H is then at hand. */
void hessian_mirror(const llmq_quant_problem *p, llmq_feedback *f, double ridge);
void hessian_feedback_clear(llmq_feedback *f); /* zeroed allowed */

/* Fills report->error and rtn_error with tr(E H E') / tr(W H W') of q and of plain rounding. H is the Gram matrix
 * without damping. Measured on at most HESSIAN_ERROR_ROWS rows, evenly spaced: the rows of one matrix share H and
 * differ little in statistics, and all rows would cost as much as the solving. -1 without a Gram matrix or with one
 * that is not finite. */
#define HESSIAN_ERROR_ROWS 128
llmq_status hessian_errors(const llmq_quant_problem *p, const llmq_quantized *q, llmq_quant_report *report,
                           llmq_err *err);

/* energy[r] = x_r G x_r' of m rows x (m, n), G the symmetric matrix whose lower triangle is gram (n, n). y (m, n) is
 * scratch. One thread; a row's sum does not depend on m. */
void hessian_energy(const llmq_backend_ops *ops, int64_t n, const float *gram, int64_t m, const float *x, float *y,
                    double *energy);

/* What grids are fitted with where nothing is factored: the diagonal of H with so much of its mean added,
 * importance [cols]. false: the Gram matrix is missing, empty or not finite. */
#define HESSIAN_PLAIN_FLOOR 0.01
bool hessian_importance(const llmq_quant_problem *p, float *importance);

/* LLMQ_E_NUMERIC naming the tensor if a weight is not finite. */
llmq_status hessian_check_weights(const llmq_quant_problem *p, llmq_err *err);

#endif
