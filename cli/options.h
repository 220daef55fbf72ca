/* Options as tables. A table row names an option, the field of a struct that it fills, the values it takes and the
 * words that explain it; the same rows parse the command line and print the help, so the two cannot disagree. */
#ifndef LLMQ_CLI_OPTIONS_H
#define LLMQ_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum opt_kind {
    OPT_END,
    OPT_HEAD,  /* a heading in the help; help holds it */
    OPT_FLAG,  /* int = value */
    OPT_INT,   /* int64_t in [min, max] */
    OPT_SIZE,  /* int64_t bytes: 2000000, 64KiB, 1.5GB */
    OPT_REAL,  /* double in [min, max] */
    OPT_TEXT,  /* const char * into argv */
    OPT_ENUM,  /* int: index in choices "a|b|c" */
    OPT_INTS,  /* cli_ints: 1,5,7 */
    OPT_TEXTS, /* cli_texts: each use adds one */
    OPT_LATER  /* known to the design but not in this version: refused by name, absent from the help */
} opt_kind;

typedef struct opt_def {
    opt_kind kind;
    const char *name, *alias; /* "--threads", "-t" or NULL */
    const char *arg;          /* how the help calls the value */
    size_t offset;            /* of the field in the set's base */
    double min, max;
    const char *choices;
    int value;
    const char *help;
} opt_def;

typedef struct cli_ints {
    int64_t *v;
    size_t n;
} cli_ints;

#define CLI_MAX_TEXTS 64
typedef struct cli_texts {
    const char *v[CLI_MAX_TEXTS];
    size_t n;
} cli_texts;

#define OPT_ROW_HEAD(text)                                                                                             \
    { .kind = OPT_HEAD, .help = text }
#define OPT_ROW_FLAG(nm, al, type, field, val, text)                                                                   \
    { .kind = OPT_FLAG, .name = nm, .alias = al, .offset = offsetof(type, field), .value = val, .help = text }
#define OPT_ROW_INT(nm, al, ar, type, field, lo, hi, text)                                                             \
    {                                                                                                                  \
        .kind = OPT_INT, .name = nm, .alias = al, .arg = ar, .offset = offsetof(type, field), .min = lo, .max = hi,    \
        .help = text                                                                                                   \
    }
#define OPT_ROW_REAL(nm, al, ar, type, field, lo, hi, text)                                                            \
    {                                                                                                                  \
        .kind = OPT_REAL, .name = nm, .alias = al, .arg = ar, .offset = offsetof(type, field), .min = lo, .max = hi,   \
        .help = text                                                                                                   \
    }
#define OPT_ROW_TEXT(nm, al, ar, type, field, text)                                                                    \
    { .kind = OPT_TEXT, .name = nm, .alias = al, .arg = ar, .offset = offsetof(type, field), .help = text }
#define OPT_ROW_ENUM(nm, al, type, field, list, text)                                                                  \
    { .kind = OPT_ENUM, .name = nm, .alias = al, .offset = offsetof(type, field), .choices = list, .help = text }
#define OPT_ROW_INTS(nm, al, ar, type, field, lo, hi, text)                                                            \
    {                                                                                                                  \
        .kind = OPT_INTS, .name = nm, .alias = al, .arg = ar, .offset = offsetof(type, field), .min = lo, .max = hi,   \
        .help = text                                                                                                   \
    }
#define OPT_ROW_TEXTS(nm, al, ar, type, field, text)                                                                   \
    { .kind = OPT_TEXTS, .name = nm, .alias = al, .arg = ar, .offset = offsetof(type, field), .help = text }
#define OPT_ROW_LATER(nm, text)                                                                                        \
    { .kind = OPT_LATER, .name = nm, .help = text }
#define OPT_ROW_END                                                                                                    \
    { .kind = OPT_END }

typedef struct opt_set {
    const opt_def *defs;
    void *base;
} opt_set;

typedef struct cli_command {
    const char *name;
    const char *usage;    /* "MODEL -p TEXT [options]" */
    const char *summary;  /* one line for `llmq --help` */
    const char *about;    /* a paragraph or more; lines are wrapped */
    const char *examples; /* lines, or NULL */
    int (*run)(const struct cli_command *self, int argc, char **argv);
    bool gpu; /* --device cuda means something: tokens run through sessions, or matrices are quantized */
} cli_command;

enum { CLI_GO_ON = -1 };

/* Parses argv[1..): one positional argument (MODEL) and the options of the sets. CLI_GO_ON, or the exit status to leave
 * with: 0 after --help, 2 after a message about bad usage. */
int opt_parse(const cli_command *cmd, const opt_set *sets, size_t n_sets, int argc, char **argv,
              const char **model_out);
/* The same with one positional argument or more, which the usage calls `what`. */
int opt_parse_list(const cli_command *cmd, const opt_set *sets, size_t n_sets, int argc, char **argv, const char *what,
                   cli_texts *out);

/* "llmq: CMD: MESSAGE (llmq CMD --help)" on stderr; returns 2. */
int opt_bad(const cli_command *cmd, const char *fmt, ...);

/* "2GiB", "1.5 GB", "4096" to bytes; false if it is not a size. */
bool opt_parse_size(const char *text, int64_t *out);

/* Edit distance, for "did you mean". */
int opt_distance(const char *a, const char *b);
/* Only a name at a smaller distance than this is worth suggesting. */
int opt_close(const char *typed);

#endif
