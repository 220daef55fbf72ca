#define _POSIX_C_SOURCE 200809L
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BAR_CELLS = 24 };
static const double redraw_seconds = 0.1, line_seconds = 15;

static cli_progress *live; /* the bar that stands on the terminal now, if any */

bool cli_color(FILE *stream) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    return isatty(fileno(stream)) && !(no_color && *no_color) && !(term && strcmp(term, "dumb") == 0);
}

void cli_progress_init(cli_progress *p, const char *unit, bool quiet) {
    const char *term = getenv("TERM");
    *p = (cli_progress){.unit = unit, .quiet = quiet, .started = cli_seconds(), .last_fraction = -1};
    p->terminal = isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

void cli_progress_hide(void) {
    if (!live || !live->shown) return;
    fputs("\r\033[K", stderr);
    live->shown = false;
}

/* "  41 %  3.2 windows/s  0:34 left" */
static void describe(const cli_progress *p, double done, double total, double left, char *buf, size_t cap) {
    double seconds = cli_seconds() - p->started;
    char clock[32];
    size_t o = 0;
    if (total > 0) o += (size_t)snprintf(buf + o, cap - o, "%3.0f %%", 100 * done / total);
    if (p->unit && seconds > 0.5 && done > 0) {
        char rate[32];
        if (strcmp(p->unit, "bytes") == 0)
            o += (size_t)snprintf(buf + o, cap - o, "  %s/s", cli_bytes(done / seconds, rate));
        else
            o += (size_t)snprintf(buf + o, cap - o, "  %.3g %s/s", done / seconds, p->unit);
    }
    if (left < 0 && total > 0 && done > 0 && seconds > 1) left = seconds * (total - done) / done;
    if (left >= 0)
        snprintf(buf + o, cap - o, "  %s left", cli_clock(left, clock));
    else
        snprintf(buf + o, cap - o, "  %s", cli_clock(seconds, clock));
}

static void draw_bar(cli_progress *p, double fraction, const char *what, const char *numbers) {
    bool color = cli_color(stderr);
    int full = (int)(fraction * BAR_CELLS + 0.5);
    char bar[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++) bar[i] = i < full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    fprintf(stderr, "\r%s[%s]%s %s  %.40s\033[K", color ? "\033[32m" : "", bar, color ? "\033[0m" : "", numbers, what);
    fflush(stderr);
    p->shown = true;
    live = p;
}

bool cli_progress_update(void *user, double done, double total, const char *what, double seconds_left) {
    cli_progress *p = user;
    if (p->quiet) return !cli_interrupted();
    double now = cli_seconds(), fraction = total > 0 ? done / total : 0;
    if (fraction < 0) fraction = 0;
    if (fraction > 1) fraction = 1;
    char numbers[96];
    if (p->terminal) {
        if (p->last_time && now - p->last_time < redraw_seconds && fraction < 1) return !cli_interrupted();
        describe(p, done, total, seconds_left, numbers, sizeof numbers);
        draw_bar(p, fraction, what ? what : "", numbers);
        p->last_time = now;
    } else if (now - (p->last_time ? p->last_time : p->started) >= line_seconds) {
        /* In a log file: a line now and then, none for jobs that are over at once. */
        describe(p, done, total, seconds_left, numbers, sizeof numbers);
        fprintf(stderr, "llmq: %s  %s\n", numbers, what ? what : "");
        p->last_time = now;
    }
    p->last_fraction = fraction;
    return !cli_interrupted();
}

void cli_progress_finish(cli_progress *p) {
    if (live == p) {
        cli_progress_hide();
        live = NULL;
    }
}
