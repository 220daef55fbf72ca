/* Errors over the depth of the model: a panel for each kind of matrix, all on one logarithmic axis. Colours are of the
 * page's style, which knows light and dark; the attributes are for viewers that apply no style to SVG. */
#include <math.h>
#include <string.h>

#include "report/page.h"

#define PANEL_W 226
#define PANEL_H 150
#define LEFT 50
#define TOP 22
#define PLOT_W (PANEL_W - LEFT - 8)
#define PLOT_H (PANEL_H - TOP - 24)
#define COLUMNS 4

static const char *const roles[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
enum { N_ROLES = sizeof roles / sizeof *roles };

typedef struct axes {
    double low, high; /* powers of ten */
    int last_layer;
} axes;

static bool is_measured(const llmq_quant_row *row) {
    return row->layer >= 0 && row->role && row->error > 0 && row->rtn_error > 0;
}

static bool find_axes(const llmq_quant_result *r, axes *a) {
    *a = (axes){.low = 1e9, .high = -1e9};
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        if (!is_measured(row)) continue;
        a->low = fmin(a->low, floor(log10(fmin(row->error, row->rtn_error))));
        a->high = fmax(a->high, ceil(log10(fmax(row->error, row->rtn_error))));
        if (row->layer > a->last_layer) a->last_layer = row->layer;
    }
    if (a->high <= a->low) a->high = a->low + 1;
    return a->low < 1e8;
}

static double x_of(const axes *a, int layer) {
    return LEFT + (a->last_layer ? (double)layer / a->last_layer : 0.5) * PLOT_W;
}

static double y_of(const axes *a, double error) {
    return TOP + (a->high - log10(error)) / (a->high - a->low) * PLOT_H;
}

static void draw_line(report_text *t, const llmq_quant_result *r, const axes *a, const char *role, bool rtn) {
    text_add(t, "<polyline class=\"%s\" fill=\"none\" stroke=\"%s\" points=\"", rtn ? "rtn" : "own",
             rtn ? "#8a6d1f" : "#0b6bcb");
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        if (is_measured(row) && !strcmp(row->role, role))
            text_add(t, "%.1f,%.1f ", x_of(a, row->layer), y_of(a, rtn ? row->rtn_error : row->error));
    }
    text_add(t, "\"/>");
}

static void draw_dots(report_text *t, const llmq_quant_result *r, const axes *a, const char *role) {
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        if (!is_measured(row) || strcmp(row->role, role) != 0) continue;
        text_add(t,
                 "<circle class=\"dot\" fill=\"#0b6bcb\" cx=\"%.1f\" cy=\"%.1f\" r=\"1.8\"><title>layer %d, %s: %.4g, "
                 "plain rounding "
                 "%.4g</title></circle>",
                 x_of(a, row->layer), y_of(a, row->error), row->layer, llmq_type_name(row->to), row->error,
                 row->rtn_error);
    }
}

static void draw_panel(report_text *t, const llmq_quant_result *r, const axes *a, int k) {
    text_add(t, "<g transform=\"translate(%d,%d)\"><text class=\"head\" font-size=\"12\" x=\"%d\" y=\"14\">%s</text>",
             k % COLUMNS * PANEL_W, k / COLUMNS * PANEL_H, LEFT, roles[k]);
    for (double p = a->low; p <= a->high; p++) {
        double y = y_of(a, pow(10, p));
        text_add(t, "<line class=\"grid\" stroke=\"#d9dee5\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
                 LEFT + PLOT_W, y, y);
        text_add(t, "<text class=\"tick\" font-size=\"10\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>", LEFT - 5,
                 y + 3.5, pow(10, p));
    }
    text_add(t, "<text class=\"tick\" font-size=\"10\" x=\"%d\" y=\"%d\">layer 0</text>", LEFT, TOP + PLOT_H + 14);
    if (a->last_layer)
        text_add(t, "<text class=\"tick\" font-size=\"10\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%d</text>",
                 LEFT + PLOT_W, TOP + PLOT_H + 14, a->last_layer);
    draw_line(t, r, a, roles[k], true);
    draw_line(t, r, a, roles[k], false);
    draw_dots(t, r, a, roles[k]);
    text_add(t, "</g>");
}

void page_curves(report_text *t, const llmq_report_facts *facts) {
    axes a;
    if (!find_axes(facts->result, &a)) {
        text_add(t, "<p>No layer was measured: that takes a calibration.</p>");
        return;
    }
    int height = (N_ROLES + COLUMNS - 1) / COLUMNS * PANEL_H;
    text_add(t,
             "<p class=\"legend\"><svg width=\"34\" height=\"10\" aria-hidden=\"true\"><line class=\"own\" "
             "stroke=\"#0b6bcb\" x1=\"2\" "
             "x2=\"32\" y1=\"5\" y2=\"5\"/></svg> %s ",
             facts->params->method);
    text_add(t, "<svg width=\"34\" height=\"10\" aria-hidden=\"true\"><line class=\"rtn\" stroke=\"#8a6d1f\" x1=\"2\" "
                "x2=\"32\" y1=\"5\" "
                "y2=\"5\"/></svg> plain rounding to the same type. Relative error of the outputs on the calibration "
                "text, logarithmic; the figures are in the table of tensors.</p>");
    text_add(t,
             "<svg class=\"curves\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Relative error of each kind of "
             "matrix by layer\">",
             COLUMNS * PANEL_W, height);
    for (int k = 0; k < N_ROLES; k++) draw_panel(t, facts->result, &a, k);
    text_add(t, "</svg>");
}
