/* A plain bar chart as SVG. */
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

#endif
