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

/* One pair of axes with its curves. */
typedef struct plot_panel {
    const char *x_label, *y_label;
    const plot_curve *curves;
    size_t n;
    bool measured; /* points are marked and the y axis begins at 0 */
} plot_panel;

/* Writes panels one below the other. */
llmq_status plot_panels(const char *path, const char *title, const plot_panel *panels, size_t n, llmq_err *err);

#endif
