/* The range of each input of an INT8 model against its quantized range: a panel for each kind of input, layers from
 * left to right. A thin line spans what was seen, a bar what 8 bits cover. The axis is signed and logarithmic beyond
 * one unit either way, so that common numbers and outliers are both to be seen. */
#include <math.h>
#include <string.h>

#include "report/page.h"

#define PANEL_W 456
#define PANEL_H 190
#define LEFT 46
#define TOP 22
#define PLOT_W (PANEL_W - LEFT - 10)
#define PLOT_H (PANEL_H - TOP - 26)
#define COLUMNS 2

static const char *const sites[] = {"qkv", "o", "gate_up", "down"};
enum { N_SITES = sizeof sites / sizeof *sites };

typedef struct axis {
    double most; /* on the axis, of both signs */
    int last_layer;
} axis;

static bool is_drawn(const llmq_quant_input *in, const char *site) {
    return !strcmp(in->site, site) && in->scale > 0;
}

static double squeeze(double x) {
    return x < 0 ? -log10(1 - x) : log10(1 + x);
}

static double low_of(const llmq_quant_input *in) {
    return (double)in->scale * (-128 - in->zero);
}

static double high_of(const llmq_quant_input *in) {
    return (double)in->scale * (127 - in->zero);
}

static axis find_axis(const llmq_quant_result *r, const char *site) {
    axis a = {.most = 0.1};
    for (size_t i = 0; i < r->n_inputs; i++) {
        const llmq_quant_input *in = &r->inputs[i];
        if (in->layer > a.last_layer) a.last_layer = in->layer;
        if (!is_drawn(in, site)) continue;
        a.most = fmax(a.most, fmax(squeeze((double)in->max), -squeeze((double)in->min)));
        a.most = fmax(a.most, fmax(squeeze(high_of(in)), -squeeze(low_of(in))));
    }
    return a;
}

static double x_of(const axis *a, int layer) {
    return LEFT + ((double)layer + 0.5) / (a->last_layer + 1) * PLOT_W;
}

static double y_of(const axis *a, double value) {
    return TOP + (1 - squeeze(value) / a->most) / 2 * PLOT_H;
}

static void draw_ticks(report_text *t, const axis *a) {
    for (double v = 1; squeeze(v) <= a->most; v *= 10)
        for (int sign = -1; sign <= 1; sign += 2)
            text_add(t,
                     "<line class=\"grid\" stroke=\"#d9dee5\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text "
                     "class=\"tick\" font-size=\"10\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>",
                     LEFT, LEFT + PLOT_W, y_of(a, sign * v), y_of(a, sign * v), LEFT - 5, y_of(a, sign * v) + 3.5,
                     sign * v);
    text_add(t, "<line class=\"grid\" stroke=\"#d9dee5\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
             LEFT + PLOT_W, y_of(a, 0), y_of(a, 0));
    text_add(t, "<text class=\"tick\" font-size=\"10\" x=\"%d\" y=\"%d\">layer 0</text>", LEFT, TOP + PLOT_H + 15);
    if (a->last_layer)
        text_add(t, "<text class=\"tick\" font-size=\"10\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%d</text>",
                 LEFT + PLOT_W, TOP + PLOT_H + 15, a->last_layer);
}

static void draw_input(report_text *t, const axis *a, const llmq_quant_input *in) {
    double x = x_of(a, in->layer), width = fmax(2, fmin(10, 0.6 * PLOT_W / (a->last_layer + 1)));
    double top = y_of(a, high_of(in)), bottom = y_of(a, low_of(in));
    text_add(t,
             "<g><title>layer %d %s: seen %.4g to %.4g, 8 bits cover %.4g to %.4g (%s%s), error %.3g%s</title><rect "
             "class=\"%s\" fill=\"%s\" fill-opacity=\"0.45\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
             in->layer, in->site, (double)in->min, (double)in->max, low_of(in), high_of(in),
             in->observer ? in->observer : "none", in->zero ? ", with a zero point" : "", in->error,
             in->kept ? "; kept in higher precision" : "", in->kept ? "kept" : "covered", in->kept ? "#a33" : "#0b6bcb",
             x - width / 2, top, width, bottom - top);
    text_add(t, "<line class=\"seen\" stroke=\"#1c2430\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/></g>", x, x,
             y_of(a, (double)in->max), y_of(a, (double)in->min));
}

static void draw_panel(report_text *t, const llmq_quant_result *r, int k) {
    axis a = find_axis(r, sites[k]);
    text_add(
        t,
        "<g transform=\"translate(%d,%d)\"><text class=\"head\" font-size=\"12\" x=\"%d\" y=\"14\">inputs of %s</text>",
        k % COLUMNS * PANEL_W, k / COLUMNS * PANEL_H, LEFT, sites[k]);
    draw_ticks(t, &a);
    for (size_t i = 0; i < r->n_inputs; i++)
        if (is_drawn(&r->inputs[i], sites[k])) draw_input(t, &a, &r->inputs[i]);
    text_add(t, "</g>");
}

/* How much of the work runs in fixed ranges, and what does not. */
static void add_kept(report_text *t, const llmq_quant_result *r) {
    double all = 0, fixed = 0;
    size_t n = 0;
    for (size_t i = 0; i < r->n_inputs; i++) {
        const llmq_quant_input *in = &r->inputs[i];
        all += (double)in->macs;
        fixed += in->kept || !(in->scale > 0) ? 0 : (double)in->macs;
    }
    text_add(t, "<p>%.2f %% of the layers' multiply-adds take their inputs in fixed ranges.</p>\n",
             all > 0 ? 100 * fixed / all : 0);
    for (size_t i = 0; i < r->n_inputs; i++) {
        const llmq_quant_input *in = &r->inputs[i];
        if (!in->kept) continue;
        text_add(t, "%s<li>layer %d, %s, kept in higher precision: ", n++ ? "" : "<ul>\n", in->layer, in->site);
        text_escape(t, in->note);
        text_add(t, "</li>\n");
    }
    if (n) text_add(t, "</ul>\n");
}

static void add_table(report_text *t, const llmq_quant_result *r) {
    text_add(t,
             "<details><summary>%zu inputs</summary><div class=\"wide\"><table><thead><tr><th scope=\"col\" "
             "class=\"n\">layer</th><th scope=\"col\">input of</th><th scope=\"col\" class=\"n\">seen</th><th "
             "scope=\"col\" class=\"n\">8 bits cover</th><th scope=\"col\">observer</th><th scope=\"col\" "
             "class=\"n\">smoothing</th><th scope=\"col\" class=\"n\">error</th><th scope=\"col\" "
             "class=\"n\">unsmoothed</th><th scope=\"col\" class=\"n\">a scale a token</th></tr></thead><tbody>\n",
             r->n_inputs);
    for (size_t i = 0; i < r->n_inputs; i++) {
        const llmq_quant_input *in = &r->inputs[i];
        text_add(t, "<tr><td class=\"n\">%d</td><td>%s%s</td>", in->layer, in->site, in->kept ? " (kept)" : "");
        if (in->scale > 0)
            text_add(t, "<td class=\"n\">%.4g to %.4g</td><td class=\"n\">%.4g to %.4g</td>", (double)in->min,
                     (double)in->max, low_of(in), high_of(in));
        else
            text_add(t, "<td class=\"n\">&#8211;</td><td class=\"n\">each token's own</td>");
        text_add(t, "<td>%s</td><td class=\"n\">%.2f</td>", in->observer ? in->observer : "", in->alpha);
        text_add(t, "<td class=\"n\">%.3g</td><td class=\"n\">%.3g</td><td class=\"n\">%.3g</td></tr>\n", in->error,
                 in->plain_error, in->token_error);
    }
    text_add(t, "</tbody></table></div></details>\n");
}

void page_ranges(report_text *t, const llmq_report_facts *facts) {
    const llmq_quant_result *r = facts->result;
    bool fixed = false;
    for (size_t i = 0; i < r->n_inputs; i++) fixed = fixed || r->inputs[i].scale > 0;
    if (!r->n_inputs) return;
    text_add(t, "<h2>Inputs of 8 bits</h2>\n");
    if (fixed) {
        add_kept(t, r);
        text_add(t, "<p class=\"legend\">Bars: what 8 bits cover. Lines: what was seen on the calibration text, after "
                    "smoothing. The axis is logarithmic.</p>");
        text_add(
            t,
            "<svg class=\"curves\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Ranges of inputs and what 8 bits "
            "cover, by layer\">",
            COLUMNS * PANEL_W, (N_SITES + COLUMNS - 1) / COLUMNS * PANEL_H);
        for (int k = 0; k < N_SITES; k++) draw_panel(t, r, k);
        text_add(t, "</svg>\n");
    } else {
        text_add(t, "<p>Each token has a scale of its own.</p>\n");
    }
    text_add(t,
             "<p class=\"legend\">Errors: of the matrices' outputs, squares over squares; those of o and down over the "
             "residual stream that they are added to.</p>\n");
    add_table(t, r);
}
