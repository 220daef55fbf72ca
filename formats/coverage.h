/* Which bytes of an output's tensors have been put: writers take them in any order and in pieces. */
#ifndef LLMQ_FORMATS_COVERAGE_H
#define LLMQ_FORMATS_COVERAGE_H

#include "core/err.h"

typedef struct coverage_run {
    uint64_t begin, end;
} coverage_run;

/* Of one tensor; all zero: nothing yet. */
typedef struct coverage {
    coverage_run *runs; /* sorted, not touching each other */
    size_t n, cap;
} coverage;

/* Bytes [begin, end) are there too; false when out of memory. */
bool coverage_add(coverage *c, uint64_t begin, uint64_t end);
/* The first byte of [0, bytes) that is missing; bytes if none is. */
uint64_t coverage_missing(const coverage *c, uint64_t bytes);
void coverage_clear(coverage *c);

#endif
