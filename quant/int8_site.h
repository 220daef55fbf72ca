/* What the input of a layer's matrices loses as 8-bit integers in one fixed range: trials of ranges, and of scales of
 * the input's channels, on some tokens and some rows, by the products that inference will use. */
#ifndef LLMQ_QUANT_INT8_SITE_H
#define LLMQ_QUANT_INT8_SITE_H

#include "quant/transforms/transform.h"

typedef struct int8_problem {
    llmq_site_problem site; /* without gram; its matrices' types do not matter; ops with weight_prepare_int8 */
    const float *x;         /* (n_tok, cols) inputs: n_even tokens evenly spaced, then those with the largest numbers */
    int64_t n_even, n_tok;
    const float *most; /* [cols] the largest magnitude of each input over all tokens */
    bool fixed;        /* one range for all tokens is looked for; else each has its own */
} int8_problem;

typedef struct int8_trial int8_trial;
llmq_status int8_trial_create(const int8_problem *p, int8_trial **out, llmq_err *err); /* borrows p */
void int8_trial_destroy(int8_trial *t);                                                /* NULL allowed */
/* Inputs over s [n_channels], columns of the matrices times s, each row then rounded to 8 bits; NULL: as they are. */
void int8_trial_scale(int8_trial *t, const float *s);
/* Of the outputs: the mean over the evenly spaced tokens of the squared error over the square of the output, and the
 * same of the sums over all tokens, added: small only if common tokens and the few with huge numbers both fare well.
 * The mean over the matrices. */
llmq_status int8_trial_error(int8_trial *t, llmq_act_range range, double *error_out, llmq_err *err);
/* The symmetric range of magnitudes up to most, with a scale that F16 holds. */
llmq_act_range int8_range_of(double most);
float int8_scale_f16(double scale); /* the least F16 number that is not below, and not below 2^-14 */

/* ---- smoothing (quant/transforms/smooth.c) */

typedef struct int8_smooth_report {
    double before,
        after;    /* int8_trial_error without and with s, each in its best symmetric range or each token's own */
    double alpha; /* 0: s is all ones */
} int8_smooth_report;

/* SmoothQuant (arXiv 2211.10438): s = x^alpha / w^(1 - alpha), x and w the largest magnitudes of a channel's inputs and
 * weights, so that outliers of inputs are taken over by weights, whose rows have a scale each. alpha is the best of a
 * grid by measured error. s [n_channels], with a geometric mean of one; the trial is left scaled by it. */
llmq_status smooth_scales(const int8_problem *p, int8_trial *t, float *s, int8_smooth_report *report, llmq_err *err);

/* ---- ranges (quant/int8_range.c) */

typedef struct int8_observers int8_observers;
llmq_status int8_observers_create(int8_observers **out, llmq_err *err);
void int8_observers_destroy(int8_observers *o); /* NULL allowed */
/* n finite inputs; `all` false: only their ends count. */
llmq_status int8_observers_add(int8_observers *o, const float *x, int64_t n, bool all, llmq_err *err);

typedef struct int8_range_report {
    llmq_act_range range;
    float min, max;       /* seen */
    const char *observer; /* whose range it is: "min-max", "percentile", "mse", "entropy". Static */
    double error;         /* int8_trial_error in it */
} int8_range_report;
/* The observers' range with the least error, as the trial is scaled. A zero point is taken where it helps. */
llmq_status int8_observers_choose(int8_observers *o, int8_trial *t, int8_range_report *report, llmq_err *err);

#endif
