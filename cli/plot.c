#define _POSIX_C_SOURCE 200809L
#include "cli/plot.h"

#include <errno.h>
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

llmq_status plot_bars(const char *path, const char *title, const char *unit, const plot_bar *bars, size_t n,
                      llmq_err *err) {
    enum { LEFT = 150, LENGTH = 520, RIGHT = 130, TOP = 56, ROW = 34, BAR = 20 };
    double max = 1e-9;
    for (size_t i = 0; i < n; i++) max = bars[i].value + bars[i].spread > max ? bars[i].value + bars[i].spread : max;
    FILE *f = fopen(path, "w");
    if (!f) return cli_set_err(err, LLMQ_E_IO, "%s: %s", path, strerror(errno));
    int width = LEFT + LENGTH + RIGHT, height = TOP + ROW * (int)n + 16;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"13\">\n",
            width, height, width, height);
    fprintf(f, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n<text x=\"16\" y=\"28\" font-size=\"16\">", width,
            height);
    put_escaped(f, title);
    fputs("</text>\n", f);
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
    fputs("</svg>\n", f);
    bool failed = ferror(f) != 0;
    if (fclose(f) || failed) return cli_set_err(err, LLMQ_E_IO, "%s: %s", path, strerror(errno));
    return LLMQ_OK;
}
