#include "formats/coverage.h"

#include <string.h>

#include "core/mem.h"

bool coverage_add(coverage *c, uint64_t begin, uint64_t end) {
    size_t first = 0, last;
    if (begin == end) return true;
    while (first < c->n && c->runs[first].end < begin) first++;
    for (last = first; last < c->n && c->runs[last].begin <= end; last++) {
        if (c->runs[last].begin < begin) begin = c->runs[last].begin;
        if (c->runs[last].end > end) end = c->runs[last].end;
    }
    if (last == first) { /* touches nothing: make room for one more */
        if (c->n == c->cap) {
            size_t cap = c->cap ? c->cap * 2 : 4;
            coverage_run *grown = mem_grow(c->runs, c->n, cap, sizeof *grown);
            if (!grown) return false;
            c->runs = grown;
            c->cap = cap;
        }
        memmove(c->runs + first + 1, c->runs + first, (c->n - first) * sizeof *c->runs);
        c->n++;
    } else { /* runs first..last-1 become one */
        memmove(c->runs + first + 1, c->runs + last, (c->n - last) * sizeof *c->runs);
        c->n -= last - first - 1;
    }
    c->runs[first] = (coverage_run){begin, end};
    return true;
}

uint64_t coverage_missing(const coverage *c, uint64_t bytes) {
    if (!c->n || c->runs[0].begin > 0) return 0;
    return c->runs[0].end < bytes ? c->runs[0].end : bytes;
}

void coverage_clear(coverage *c) {
    mem_free(c->runs);
    *c = (coverage){0};
}
