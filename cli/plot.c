#define _POSIX_C_SOURCE 200809L
#include "cli/plot.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "cli/cli.h"

static void put_escaped(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '>')
            fputs("&gt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else if ((unsigned char)*text >= ' ')
            fputc(*text, f);
    }
}

static FILE *open_svg(const char *path, const char *title, int width, int height, llmq_err *err) {
    FILE *f = fopen(path, "w");
    if (!f) {
        cli_set_err(err, LLMQ_E_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"13\">\n",
            width, height, width, height);
    fprintf(f, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n<text x=\"16\" y=\"28\" font-size=\"16\">", width,
            height);
    put_escaped(f, title);
    fputs("</text>\n", f);
    return f;
}

static llmq_status close_svg(FILE *f, const char *path, llmq_err *err) {
    fputs("</svg>\n", f);
    bool failed = ferror(f) != 0;
    if (fclose(f) || failed) return cli_set_err(err, LLMQ_E_IO, "%s: %s", path, strerror(errno));
    return LLMQ_OK;
}

llmq_status plot_bars(const char *path, const char *title, const char *unit, const plot_bar *bars, size_t n,
                      llmq_err *err) {
    enum { LEFT = 150, LENGTH = 520, RIGHT = 130, TOP = 56, ROW = 34, BAR = 20 };
    double max = 1e-9;
    for (size_t i = 0; i < n; i++) max = bars[i].value + bars[i].spread > max ? bars[i].value + bars[i].spread : max;
    FILE *f = open_svg(path, title, LEFT + LENGTH + RIGHT, TOP + ROW * (int)n + 16, err);
    if (!f) return LLMQ_E_IO;
    for (size_t i = 0; i < n; i++) {
        int y = TOP + ROW * (int)i, middle = y + BAR / 2;
        double length = LENGTH * bars[i].value / max, whisker = LENGTH * bars[i].spread / max;
        fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">", LEFT - 10, middle + 5);
        put_escaped(f, bars[i].label);
        fprintf(f, "</text><rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"#3b6ea5\"/>", LEFT, y, length,
                BAR);
        fprintf(f, "<path d=\"M%.1f %dH%.1f\" stroke=\"#222222\" stroke-width=\"1.5\"/>", LEFT + length - whisker,
                middle, LEFT + length + whisker);
        fprintf(f, "<text x=\"%.1f\" y=\"%d\">%.1f %s</text>\n", LEFT + length + whisker + 8, middle + 5, bars[i].value,
                unit);
    }
    return close_svg(f, path, err);
}

/* ---- curves ---- */

enum { PLOT_LEFT = 64, PLOT_TOP = 48, PLOT_WIDTH = 640, PLOT_HEIGHT = 320, PLOT_RIGHT = 24, PLOT_BOTTOM = 56 };

/* Where a panel lies and what its axes span. */
typedef struct plot_range {
    double x0, x1, y0, y1;
    int top; /* pixels */
} plot_range;

static plot_range range_of(const plot_panel *panel, int top) {
    plot_range r = {INFINITY, -INFINITY, INFINITY, -INFINITY, top};
    for (size_t c = 0; c < panel->n; c++)
        for (size_t i = 0; i < panel->curves[c].n; i++) {
            double x = panel->curves[c].x[i], y = panel->curves[c].y[i];
            if (!isfinite(y)) continue;
            r = (plot_range){fmin(r.x0, x), fmax(r.x1, x), fmin(r.y0, y), fmax(r.y1, y), top};
        }
    if (panel->measured) r.y0 = 0;
    if (!(r.x1 > r.x0)) r.x0 = isfinite(r.x0) ? r.x0 : 0, r.x1 = r.x0 + 1;
    if (!(r.y1 > r.y0)) r.y0 = isfinite(r.y0) ? r.y0 : 0, r.y1 = r.y0 + 1;
    return r;
}

/* 1, 2 or 5 times a power of ten: about five steps of it make the range. */
static double tick_step(double range) {
    double step = pow(10, floor(log10(range / 5))), parts = range / 5 / step;
    return step * (parts >= 5 ? 5 : parts >= 2 ? 2 : 1);
}

static double at_x(const plot_range *r, double x) {
    return PLOT_LEFT + PLOT_WIDTH * (x - r->x0) / (r->x1 - r->x0);
}
static double at_y(const plot_range *r, double y) {
    return r->top + PLOT_HEIGHT * (r->y1 - y) / (r->y1 - r->y0);
}

static void draw_axes(FILE *f, const plot_range *r, const plot_panel *panel) {
    double step = tick_step(r->x1 - r->x0);
    for (double x = ceil(r->x0 / step) * step; x <= r->x1 + 1e-9 * step; x += step)
        fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", at_x(r, x),
                r->top + PLOT_HEIGHT + 18, x);
    step = tick_step(r->y1 - r->y0);
    for (double y = ceil(r->y0 / step) * step; y <= r->y1 + 1e-9 * step; y += step)
        fprintf(f,
                "<path d=\"M%d %.1fH%d\" stroke=\"#dddddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                PLOT_LEFT, at_y(r, y), PLOT_LEFT + PLOT_WIDTH, PLOT_LEFT - 8, at_y(r, y) + 4,
                fabs(y) < 1e-9 * step ? 0 : y);
    fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">", PLOT_LEFT + PLOT_WIDTH / 2,
            r->top + PLOT_HEIGHT + 42);
    put_escaped(f, panel->x_label);
    fprintf(f, "</text><text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\">",
            r->top + PLOT_HEIGHT / 2);
    put_escaped(f, panel->y_label);
    fputs("</text>\n", f);
}

static void draw_curve(FILE *f, const plot_range *r, const plot_curve *c, int row, bool marks) {
    const char *before = "M";
    int y = r->top + 16 + 20 * row, x = PLOT_LEFT + PLOT_WIDTH - 150;
    fputs("<path d=\"", f);
    for (size_t i = 0; i < c->n; i++) {
        if (!isfinite(c->y[i])) continue;
        fprintf(f, "%s%.1f %.1f", before, at_x(r, c->x[i]), at_y(r, c->y[i]));
        before = "L";
    }
    fprintf(f, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", c->color);
    for (size_t i = 0; marks && i < c->n; i++)
        if (isfinite(c->y[i]))
            fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", at_x(r, c->x[i]), at_y(r, c->y[i]),
                    c->color);
    fprintf(f, "<path d=\"M%d %dh24\" stroke=\"%s\" stroke-width=\"2\"/><text x=\"%d\" y=\"%d\">", x, y, c->color,
            x + 32, y + 4);
    put_escaped(f, c->label);
    fputs("</text>\n", f);
}

llmq_status plot_panels(const char *path, const char *title, const plot_panel *panels, size_t n, llmq_err *err) {
    const int step = PLOT_HEIGHT + PLOT_BOTTOM + 16;
    FILE *f = open_svg(path, title, PLOT_LEFT + PLOT_WIDTH + PLOT_RIGHT, PLOT_TOP + step * (int)n, err);
    if (!f) return LLMQ_E_IO;
    for (size_t p = 0; p < n; p++) {
        plot_range range = range_of(&panels[p], PLOT_TOP + step * (int)p);
        draw_axes(f, &range, &panels[p]);
        for (size_t c = 0; c < panels[p].n; c++)
            draw_curve(f, &range, &panels[p].curves[c], (int)c, panels[p].measured);
    }
    return close_svg(f, path, err);
}
