/* What llmq bench measures, and how it is shown. */
#ifndef LLMQ_CLI_BENCH_H
#define LLMQ_CLI_BENCH_H

#include "cli/cli.h"

/* What guesses tokens in a test of generated text. */
typedef enum bench_guess { BY_NOTHING, BY_LOOKUP, BY_DRAFT, BY_BOTH } bench_guess;

/* One row: a prompt of n_prompt tokens, or n_gen tokens one after the other in each of n_batch sequences, after n_depth
 * tokens in the cache. */
typedef struct bench_test {
    int64_t n_prompt, n_gen, n_depth, n_batch;
    bool text; /* n_depth tokens of a text, which greedy sampling continues; otherwise all tokens are arbitrary */
    bench_guess guess;
    llmq_speculation_stats guesses; /* of the last repetition */
    double *samples;                /* [repeats] seconds */
    double avg_ns, stddev_ns, avg_ts, stddev_ts;
    char when[32];
} bench_test;

typedef struct bench_results {
    llmq_model_info info;
    int threads;
    int64_t repeats;
    const char *kv_name;
    double kv_bytes_per_token;
    bench_test *tests;
    size_t n_tests;
    double bandwidth; /* bytes/s that the same threads read from a buffer of as many bytes as a token reads */
    double product_rate; /* multiply-adds/s of the same threads: llmq_product_rate */
} bench_results;

enum { BENCH_MD, BENCH_JSON, BENCH_CSV };

int64_t bench_tokens(const bench_test *t); /* all that a repetition runs */
/* Prints the rows to stdout in one of the formats; an exit status. */
int bench_print(const bench_results *b, int format);
/* Draws the speeds as an SVG file: curves over whatever takes several values, bars where nothing does. */
llmq_status bench_draw(const bench_results *b, const char *path, llmq_err *err);

#endif
