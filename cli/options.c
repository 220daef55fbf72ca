#include "cli/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_COLUMN = 26, HELP_WIDTH = 100 };

int opt_bad(const cli_command *cmd, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "llmq: %s: ", cmd->name);
    vfprintf(stderr, fmt, args);
    fprintf(stderr, " (see llmq %s --help)\n", cmd->name);
    va_end(args);
    return 2;
}

int opt_distance(const char *a, const char *b) {
    enum { CAP = 48 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= CAP || m >= CAP) return CAP;
    int row[CAP + 1];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

int opt_close(const char *typed) {
    size_t n = strlen(typed);
    return n < 4 ? 2 : n < 8 ? 3 : 4;
}

/* ---- values */

static bool parse_int(const char *text, int64_t *out) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno) return false;
    *out = v;
    return true;
}

static bool parse_real(const char *text, double *out) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !isfinite(v)) return false;
    *out = v;
    return true;
}

bool opt_parse_size(const char *text, int64_t *out) {
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},
                 {"B", 1},
                 {"K", 1024},
                 {"KB", 1e3},
                 {"KIB", 1024},
                 {"M", 1048576},
                 {"MB", 1e6},
                 {"MIB", 1048576},
                 {"G", 1073741824},
                 {"GB", 1e9},
                 {"GIB", 1073741824},
                 {"TB", 1e12},
                 {"TIB", 1099511627776.0}};
    char *end;
    double v = strtod(text, &end);
    if (end == text || !isfinite(v) || v < 0) return false;
    while (*end == ' ') end++;
    char unit[4] = "";
    size_t n = strlen(end);
    if (n >= sizeof unit) return false;
    for (size_t i = 0; i < n; i++) unit[i] = (char)toupper((unsigned char)end[i]);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(unit, units[i].name)) continue;
        if (v * units[i].bytes > 9e18) return false;
        *out = (int64_t)(v * units[i].bytes);
        return true;
    }
    return false;
}

static bool parse_choice(const char *choices, const char *text, int *out) {
    int index = 0;
    for (const char *p = choices; *p; index++) {
        size_t n = strcspn(p, "|");
        if (strlen(text) == n && strncmp(p, text, n) == 0) {
            *out = index;
            return true;
        }
        p += n;
        if (*p) p++;
    }
    return false;
}

/* The words for what an option takes, for the message about a value that is none. */
static const char *range_text(const opt_def *d, char *buf, size_t cap) {
    const char *what = d->kind == OPT_REAL ? "number" : d->kind == OPT_INTS ? "list of whole numbers" : "whole number";
    if (d->min > -1e15 && d->max < 1e15)
        snprintf(buf, cap, "a %s from %.10g to %.10g", what, d->min, d->max);
    else if (d->min > -1e15)
        snprintf(buf, cap, "a %s of at least %.10g", what, d->min);
    else
        snprintf(buf, cap, "a %s", what);
    return buf;
}

static bool in_range(const opt_def *d, double v) {
    return v >= d->min && v <= d->max;
}

static int store_ints(const cli_command *cmd, const opt_def *d, cli_ints *list, const char *text) {
    char want[96];
    size_t n = 1;
    for (const char *p = text; *p; p++) n += *p == ',';
    int64_t *v = malloc(n * sizeof *v);
    if (!v) return opt_bad(cmd, "%s: out of memory", d->name);
    size_t i = 0;
    for (const char *p = text; i < n; i++) {
        char *end;
        errno = 0;
        v[i] = strtoll(p, &end, 10);
        if (end == p || errno || (*end && *end != ',') || !in_range(d, (double)v[i])) {
            free(v);
            return opt_bad(cmd, "%s '%.60s': it takes %s, such as 1,5,7", d->name, text,
                           range_text(d, want, sizeof want));
        }
        p = end + (*end == ',');
    }
    free(list->v);
    *list = (cli_ints){v, n};
    return CLI_GO_ON;
}

static int store(const cli_command *cmd, const opt_def *d, void *base, const char *text) {
    void *field = (char *)base + d->offset;
    char want[96];
    switch (d->kind) {
    case OPT_INT: {
        int64_t v;
        if (!parse_int(text, &v) || !in_range(d, (double)v))
            return opt_bad(cmd, "%s '%s': it takes %s", d->name, text, range_text(d, want, sizeof want));
        *(int64_t *)field = v;
        return CLI_GO_ON;
    }
    case OPT_SIZE:
        if (!opt_parse_size(text, field))
            return opt_bad(cmd, "%s '%s': it takes a size such as 500MB or 2GiB", d->name, text);
        return CLI_GO_ON;
    case OPT_REAL: {
        double v;
        if (!parse_real(text, &v) || !in_range(d, v))
            return opt_bad(cmd, "%s '%s': it takes %s", d->name, text, range_text(d, want, sizeof want));
        *(double *)field = v;
        return CLI_GO_ON;
    }
    case OPT_TEXT: *(const char **)field = text; return CLI_GO_ON;
    case OPT_ENUM:
        if (!parse_choice(d->choices, text, field))
            return opt_bad(cmd, "%s '%s': it takes %s", d->name, text, d->choices);
        return CLI_GO_ON;
    case OPT_INTS: return store_ints(cmd, d, field, text);
    case OPT_TEXTS: {
        cli_texts *list = field;
        if (list->n == CLI_MAX_TEXTS) return opt_bad(cmd, "%s: more than %d times", d->name, CLI_MAX_TEXTS);
        list->v[list->n++] = text;
        return CLI_GO_ON;
    }
    default: return opt_bad(cmd, "%s cannot take a value", d->name);
    }
}

/* ---- help */

/* Words of text from column `indent` on; the cursor stands at `column`. A newline in text is kept. */
static void print_wrapped(const char *text, int indent, int column) {
    for (const char *p = text; *p;) {
        if (*p == '\n') {
            printf("\n%*s", indent, "");
            column = indent;
            p++;
            continue;
        }
        int n = (int)strcspn(p, " \n");
        if (column + n > HELP_WIDTH && column > indent) {
            printf("\n%*s", indent, "");
            column = indent;
        }
        printf("%.*s", n, p);
        column += n;
        p += n;
        if (*p == ' ') {
            while (*p == ' ') p++;
            if (*p && *p != '\n' && column + 1 + (int)strcspn(p, " \n") <= HELP_WIDTH) {
                putchar(' ');
                column++;
            } else if (*p && *p != '\n') {
                printf("\n%*s", indent, "");
                column = indent;
            }
        }
    }
    putchar('\n');
}

static void print_option(const opt_def *d) {
    char left[96];
    const char *arg = d->kind == OPT_ENUM ? d->choices : d->arg;
    snprintf(left, sizeof left, "  %s%s%s%s%s", d->alias ? d->alias : "", d->alias ? ", " : "", d->name, arg ? " " : "",
             arg ? arg : "");
    int width = printf("%s", left);
    if (width > HELP_COLUMN - 2) {
        printf("\n%*s", HELP_COLUMN, "");
    } else {
        printf("%*s", HELP_COLUMN - width, "");
    }
    print_wrapped(d->help, HELP_COLUMN, HELP_COLUMN);
}

static void print_help(const cli_command *cmd, const opt_set *sets, size_t n_sets) {
    printf("usage: llmq %s %s\n\n", cmd->name, cmd->usage);
    print_wrapped(cmd->about, 0, 0);
    for (size_t s = 0; s < n_sets; s++)
        for (const opt_def *d = sets[s].defs; d->kind != OPT_END; d++) {
            if (d->kind == OPT_HEAD)
                printf("\n%s:\n", d->help);
            else if (d->kind != OPT_LATER)
                print_option(d);
        }
    printf("  -h, --help%*sthis text\n", HELP_COLUMN - 12, "");
    if (cmd->examples) printf("\nexamples:\n%s", cmd->examples);
}

/* ---- the command line */

static const opt_def *find(const opt_set *sets, size_t n_sets, const char *name, size_t len, void **base_out) {
    for (size_t s = 0; s < n_sets; s++)
        for (const opt_def *d = sets[s].defs; d->kind != OPT_END; d++) {
            const char *names[2] = {d->name, d->alias};
            for (int i = 0; i < 2; i++)
                if (names[i] && strlen(names[i]) == len && memcmp(names[i], name, len) == 0) {
                    *base_out = sets[s].base;
                    return d;
                }
        }
    return NULL;
}

static int unknown(const cli_command *cmd, const opt_set *sets, size_t n_sets, const char *name) {
    const char *best = NULL;
    int best_distance = opt_close(name);
    for (size_t s = 0; s < n_sets; s++)
        for (const opt_def *d = sets[s].defs; d->kind != OPT_END; d++) {
            if (!d->name || d->kind == OPT_LATER) continue;
            int distance = opt_distance(name, d->name);
            if (distance < best_distance) {
                best = d->name;
                best_distance = distance;
            }
        }
    if (best) return opt_bad(cmd, "unknown option %s; did you mean %s?", name, best);
    return opt_bad(cmd, "unknown option %s", name);
}

static int parse_option(const cli_command *cmd, const opt_set *sets, size_t n_sets, int argc, char **argv, int *i) {
    char *name = argv[*i];
    char *equals = strncmp(name, "--", 2) == 0 ? strchr(name, '=') : NULL;
    size_t len = equals ? (size_t)(equals - name) : strlen(name);
    void *base = NULL;
    const opt_def *d = find(sets, n_sets, name, len, &base);
    if (!d) {
        if (equals) *equals = '\0';
        return unknown(cmd, sets, n_sets, name);
    }
    if (d->kind == OPT_LATER) return opt_bad(cmd, "%s is not in this version: %s", d->name, d->help);
    if (d->kind == OPT_FLAG) {
        if (equals) return opt_bad(cmd, "%s takes no value", d->name);
        *(int *)((char *)base + d->offset) = d->value;
        return CLI_GO_ON;
    }
    const char *value = equals ? equals + 1 : *i + 1 < argc ? argv[++*i] : NULL;
    if (!value) return opt_bad(cmd, "%s needs a value: %s %s", d->name, d->name, d->arg ? d->arg : d->choices);
    char typed_name[48];
    opt_def typed = *d; /* messages name the option as it was typed: -p, not --prompt */
    snprintf(typed_name, sizeof typed_name, "%.*s", (int)len, name);
    typed.name = typed_name;
    return store(cmd, &typed, base, value);
}

/* Help wins over any mistake elsewhere on the line, but the value of an option is not a question: run -p --help. */
static bool asks_for_help(const opt_set *sets, size_t n_sets, int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
        void *base;
        const opt_def *d = find(sets, n_sets, argv[i], strlen(argv[i]), &base);
        if (d && d->kind != OPT_FLAG && d->kind != OPT_LATER) i++;
    }
    return false;
}

/* max: of positional arguments. */
static int parse_line(const cli_command *cmd, const opt_set *sets, size_t n_sets, int argc, char **argv, size_t max,
                      const char *what, cli_texts *out) {
    out->n = 0;
    if (asks_for_help(sets, n_sets, argc, argv)) {
        print_help(cmd, sets, n_sets);
        return 0;
    }
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        if (!only_positional && strcmp(argv[i], "--") == 0) {
            only_positional = true;
        } else if (!only_positional && argv[i][0] == '-' && argv[i][1]) {
            int rc = parse_option(cmd, sets, n_sets, argc, argv, &i);
            if (rc != CLI_GO_ON) return rc;
        } else if (out->n == max && max == 1) {
            return opt_bad(cmd, "one %s, please: '%s' is one argument too many", what, argv[i]);
        } else if (out->n == max) {
            return opt_bad(cmd, "more than %zu of %s: join some of them to one file", max, what);
        } else {
            out->v[out->n++] = argv[i];
        }
    }
    return CLI_GO_ON;
}

int opt_parse(const cli_command *cmd, const opt_set *sets, size_t n_sets, int argc, char **argv,
              const char **model_out) {
    cli_texts list;
    int rc = parse_line(cmd, sets, n_sets, argc, argv, 1, "MODEL", &list);
    *model_out = list.n ? list.v[0] : NULL;
    if (rc == CLI_GO_ON && !list.n)
        return opt_bad(cmd, "MODEL is missing: a GGUF file, a Hugging Face folder or a llama2.c .bin");
    return rc;
}

int opt_parse_list(const cli_command *cmd, const opt_set *sets, size_t n_sets, int argc, char **argv, const char *what,
                   cli_texts *out) {
    int rc = parse_line(cmd, sets, n_sets, argc, argv, CLI_MAX_TEXTS, what, out);
    return rc == CLI_GO_ON && !out->n ? opt_bad(cmd, "%s is missing", what) : rc;
}
