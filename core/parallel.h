/* The one place where threads are made. A team runs a function on all its workers at once (SPMD); workers meet at
 * barriers. One region serves a whole token, so the cost of waking threads is paid once. */
#ifndef LLMQ_CORE_PARALLEL_H
#define LLMQ_CORE_PARALLEL_H

#include "core/err.h"

typedef struct llmq_team llmq_team;

typedef struct llmq_worker {
    int id, n; /* 0 <= id < n */
    llmq_team *team;
} llmq_worker;

/* Kernels keep up to 300 KB on a worker's stack (cpu/matmul_amx.c): threads, and the caller of a team of one, need
 * 512 KB. */
typedef void team_fn(const llmq_worker *worker, void *arg);

/* n_threads 0: physical cores this process may use; else exactly so many, LLMQ_THREADS_MAX at most (LLMQ_E_ARG). */
llmq_status team_create(int n_threads, llmq_team **out, llmq_err *err);
void team_destroy(llmq_team *team);
int team_size(const llmq_team *team);
/* Runs fn(worker, arg) on every worker and returns when all are done. Not reentrant. */
void team_run(llmq_team *team, team_fn *fn, void *arg);

/* All workers of the team meet here; writes before it are seen by everyone after it. Spins, then sleeps. */
void worker_barrier(const llmq_worker *worker);

/* This worker's part of [0, n) in multiples of step: contiguous, the same for the same (n, step, workers). */
static inline void worker_range(const llmq_worker *w, int64_t n, int64_t step, int64_t *begin, int64_t *end) {
    int64_t units = (n + step - 1) / step, a = units * w->id / w->n * step, b = units * (w->id + 1) / w->n * step;
    *begin = a < n ? a : n;
    *end = b < n ? b : n;
}

/* Dynamic sharing: hands out 0, 1, 2, ... once each between two worker_counter_reset calls. reset is called by one
 * worker with a barrier after it. */
void worker_counter_reset(const llmq_worker *worker);
int64_t worker_counter_next(const llmq_worker *worker);

/* [0, n) in multiples of step, shared so that a worker whose core is taken away does not hold up the others: first this
 * worker's part of most of it, as worker_range gives it, then pieces of the rest, whoever is free. Every worker goes
 * through a share, and through those since the last barrier in the same order:
 *     for (worker_share s = worker_share_begin(w, n, step); worker_share_next(&s, &begin, &end);) ... */
typedef struct worker_share {
    const llmq_worker *worker;
    int64_t n, step;
    int64_t rest; /* where pieces begin; n: there are none */
    int slot;     /* of the counter */
    bool own;     /* the own part has been handed out */
} worker_share;
worker_share worker_share_begin(const llmq_worker *worker, int64_t n, int64_t step);
bool worker_share_next(worker_share *share, int64_t *begin, int64_t *end);
/* What worker_share_next would hand out first, of the first shares after a barrier, unless it is empty. */
void worker_share_own(const llmq_worker *worker, int64_t n, int64_t step, int64_t *begin, int64_t *end);

int cpu_physical_cores(void);
double time_seconds(void); /* monotonic */

#endif
