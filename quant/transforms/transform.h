/* Transforms change a layer before any of its weights is rounded: the model means what it meant, and its weights lose
 * less. They work on a site (the matrices that read the same inputs) and leave the change of the op before it to the
 * caller: every transform here is a scale s of the site's columns, which that op takes up by 1/s. */
#ifndef LLMQ_QUANT_TRANSFORMS_TRANSFORM_H
#define LLMQ_QUANT_TRANSFORMS_TRANSFORM_H

#include "quant/quant.h"

typedef struct llmq_site_matrix {
    const float *w; /* (n_rows, cols): a sample of the matrix's rows, evenly spaced */
    int64_t n_rows;
    const llmq_type_info *type; /* what it will be rounded to */
} llmq_site_matrix;

typedef struct llmq_site_problem {
    const llmq_site_matrix *matrices; /* n_matrices, those of the site that will be rounded */
    int n_matrices;
    int64_t cols;
    const int32_t *channel; /* [cols] output of the op before that feeds a column (several columns of grouped query
                               heads may share one, and then share a scale); NULL: column k is fed by output k */
    int64_t n_channels;     /* cols where channel is NULL */
    const float *gram;      /* (cols, cols) lower triangle of X'X over the calibration tokens */
    int64_t n_tokens;
    bool feedback; /* the matrices will be rounded with error feedback, with this damping (as in llmq_quant_problem) */
    double damp;
    const llmq_backend_ops *ops;
    llmq_team *team;
} llmq_site_problem;

typedef struct llmq_site_report {
    double before, after; /* sum over the matrices of tr(E H E') / tr(W H W') by plain rounding, without and with s;
                           * what feedback leaves of it where that is to come */
    double alpha;         /* exponent of the activations' magnitude; 0: not scaled */
    bool divided;         /* by the weights' magnitude to the power of 1 - alpha */
} llmq_site_report;

/* AWQ: s [n_channels], the best of a family with two parameters, judged by the error of the rounded site's outputs.
 * Scales lie within [1/AWQ_SCALE_MAX, AWQ_SCALE_MAX] about a geometric mean of one. Channels that were always zero and
 * sites whose Gram matrix is empty or not finite keep s = 1; report->after never exceeds report->before. */
#define AWQ_SCALE_MAX 100.0
#define AWQ_CHUNK 16 /* rows measured at a time: fixed, so that sums do not depend on the workers */
llmq_status awq_scales(const llmq_site_problem *p, float *s, llmq_site_report *report, llmq_err *err);

#endif
