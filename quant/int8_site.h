/* What the input of a layer's matrices loses as 8-bit integers in one fixed range: trials of ranges, and of scales of
 * the input's channels, on some tokens and some rows, by the products that inference will use. */
#ifndef LLMQ_QUANT_INT8_SITE_H
#define LLMQ_QUANT_INT8_SITE_H

#include "quant/transforms/transform.h"

typedef struct int8_problem {
    llmq_site_problem site; /* without gram; its matrices' types do not matter; ops with weight_prepare_int8 */
    const float *x;         /* (n_tok, cols) inputs: n_even tokens evenly spaced, then those with the largest numbers */
    int64_t n_even, n_tok;
    const float *weight; /* [n_even] of a squared error; NULL: one over the square of the token's output */
    const float *most;   /* [cols] the largest magnitude of each input over all tokens */
    const float *cut;    /* [cols] where each is best cut off (int8_channels_cut); NULL: nowhere */
    const float *rms;    /* [cols] the root of its mean square (int8_channels_rms); NULL: not known */
    bool fixed;          /* one range for all tokens is looked for; else each has its own */
} int8_problem;

typedef struct int8_trial int8_trial;
llmq_status int8_trial_create(const int8_problem *p, int8_trial **out, llmq_err *err); /* borrows p */
void int8_trial_destroy(int8_trial *t);                                                /* NULL allowed */
/* Inputs over s [n_channels], columns of the matrices times s, each row then rounded to 8 bits; NULL: as they are. */
void int8_trial_scale(int8_trial *t, const float *s);
/* Of the outputs: the mean over the evenly spaced tokens of the squared error over the square of the output, and the
 * same of the sums over all tokens, added: small only if common tokens and the few with huge numbers both fare well.
 * With weights: the mean over the evenly spaced tokens of the error of all rows times the weight, and a 32nd of
 * the sum of squared errors over that of squared outputs, of all tokens. The mean over the matrices. */
llmq_status int8_trial_error(int8_trial *t, llmq_act_range range, double *error_out, llmq_err *err);
/* The symmetric range of magnitudes up to most, with a scale that F16 holds. */
llmq_act_range int8_range_of(double most);
float int8_scale_f16(double scale); /* the least F16 number that is not below, and not below 2^-14 */

/* ---- smoothing (quant/transforms/smooth.c) */

typedef struct int8_smooth_report {
    double before,
        after;    /* int8_trial_error without and with s, each in its best symmetric range or each token's own */
    double alpha; /* 0: s is all ones */
    double limit; /* the most that any channel's input over s is where it is best cut off */
} int8_smooth_report;

/* SmoothQuant (arXiv 2211.10438): s = x^alpha / w^(1 - alpha), x and w the largest magnitudes of a channel's inputs and
 * weights, so that outliers of inputs are taken over by weights, whose rows have a scale each. Where the channel is
 * best cut off and its root mean square are tried as x, too. x and alpha are the best of a grid by measured error. s
 * [n_channels], with a geometric mean of one; the trial is left scaled by it. */
llmq_status smooth_scales(const int8_problem *p, int8_trial *t, float *s, int8_smooth_report *report, llmq_err *err);

/* ---- channels (quant/int8_channels.c) */

/* What each channel of the input holds, from all tokens: they are shown twice, first for their ends. Threads may work
 * on different columns [begin, end) of x (n, cols) at the same time. */
typedef struct int8_channels int8_channels;
llmq_status int8_channels_create(int64_t cols, int8_channels **out, llmq_err *err); /* forgets nothing: one a site */
void int8_channels_destroy(int8_channels *c);                                       /* NULL allowed */
size_t int8_channels_bytes(int64_t cols);
void int8_channels_find_ends(int8_channels *c, const float *x, int64_t n, int64_t begin, int64_t end);
/* weight [n]: of a squared error of each token */
void int8_channels_count(int8_channels *c, const float *x, const float *weight, int64_t n, int64_t begin, int64_t end);
const float *int8_channels_low(const int8_channels *c);  /* [cols] at most 0, borrowed */
const float *int8_channels_high(const int8_channels *c); /* at least 0 */
const float *int8_channels_most(const int8_channels *c); /* the larger magnitude */
/* cut [cols]: the magnitude up to which 8 bits of its own would serve each channel with the least squared error. */
void int8_channels_cut(const int8_channels *c, float *cut);
void int8_channels_rms(const int8_channels *c, float *rms); /* rms [cols], with the weights that were counted */

/* ---- ranges (quant/int8_range.c) */

typedef struct int8_observers int8_observers;
llmq_status int8_observers_create(int8_observers **out, llmq_err *err);
void int8_observers_destroy(int8_observers *o); /* NULL allowed */
/* n finite inputs; `all` false: only their ends count. */
llmq_status int8_observers_add(int8_observers *o, const float *x, int64_t n, bool all, llmq_err *err);

typedef struct int8_range_report {
    llmq_act_range range;
    float min, max;       /* seen */
    const char *observer; /* whose range it is: "min-max", "percentile", "mse", "entropy", "channels". Static */
    double error;         /* int8_trial_error in it */
} int8_range_report;
/* The range with the least error, as the trial is scaled: of the observers', and of symmetric ones about limit (that of
 * the smoothing; "channels"). A zero point is taken where it helps. */
llmq_status int8_observers_choose(int8_observers *o, int8_trial *t, double limit, int8_range_report *report,
                                  llmq_err *err);

#endif
