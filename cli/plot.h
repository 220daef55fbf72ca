/* Plain charts as SVG. */
#ifndef LLMQ_CLI_PLOT_H
#define LLMQ_CLI_PLOT_H

#include <stddef.h>

#include "llmq.h"

typedef struct plot_bar {
    char label[48];
    double value, spread; /* spread: half length of the whisker */
} plot_bar;

/* Writes bars from top to bottom, longest = largest value. */
llmq_status plot_bars(const char *path, const char *title, const char *unit, const plot_bar *bars, size_t n,
                      llmq_err *err);

typedef struct plot_curve {
    const char *label, *color; /* "#3b6ea5" */
    const double *x, *y;       /* n; points whose y is not finite are left out */
    size_t n;
} plot_curve;

/* Writes curves over one pair of axes. */
llmq_status plot_curves(const char *path, const char *title, const char *x_label, const char *y_label,
                        const plot_curve *curves, size_t n, llmq_err *err);

#endif
