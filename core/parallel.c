#define _GNU_SOURCE
#include "core/parallel.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define cpu_relax() _mm_pause()
#elif defined(__aarch64__)
#define cpu_relax() __asm__ volatile("yield")
#else
#define cpu_relax() ((void)0)
#endif

#include "core/mem.h"

/* Rounds of waiting at a barrier before a worker sleeps: long where everybody has a core, since waking takes as long as
 * the work between two barriers of a token; hardly any where the one waited for may need this very core. */
#define SPINS 20000
#define SPINS_CROWDED 100

/* Shares between two barriers that have a counter; others are static. */
#define SHARES 8
#define SHARE_LEAST 64 /* steps below which a share is static: pieces would cost more than they save */
#define SHARE_REST 8   /* one part in so many is handed out in pieces of one step */

typedef struct share_counter {
    _Alignas(64) _Atomic int64_t next;
} share_counter;

typedef struct share_count {
    _Alignas(64) int begun; /* by this worker since the last barrier */
} share_count;

struct llmq_team {
    int n, spins;
    share_count *counts;            /* [n] */
    share_counter counters[SHARES]; /* pieces handed out; 0 at every barrier */
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint phase;
    atomic_int sleepers;
    _Alignas(64) _Atomic int64_t counter;
};

/* Hyper-threads of one core share its vector units: count each core once. */
int cpu_physical_cores(void) {
    cpu_set_t allowed, seen;
    CPU_ZERO(&seen);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    int cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        char path[96];
        int first = cpu;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *f = fopen(path, "r");
        if (f) {
            if (fscanf(f, "%d", &first) != 1 || first < 0 || first >= CPU_SETSIZE) first = cpu;
            fclose(f);
        }
        if (!CPU_ISSET(first, &seen)) cores++;
        CPU_SET(first, &seen);
    }
    return cores > 0 ? cores : 1;
}

static int cpu_processors(void) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
}

double time_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

llmq_status team_create(int n_threads, llmq_team **out, llmq_err *err) {
    if (n_threads <= 0) n_threads = cpu_physical_cores();
    if (n_threads > LLMQ_THREADS_MAX)
        return llmq_fail(err, LLMQ_E_ARG, "--threads %d: at most %d", n_threads, LLMQ_THREADS_MAX);
    llmq_team *team = mem_zalloc(1, sizeof *team);
    if (!team) return mem_error(err, sizeof *team, "a thread team");
#ifdef _OPENMP
    team->n = n_threads;
#else
    team->n = 1;
#endif
    team->spins = team->n <= cpu_processors() ? SPINS : SPINS_CROWDED;
    team->counts = mem_zalloc((size_t)team->n, sizeof *team->counts);
    if (!team->counts) {
        mem_free(team);
        return mem_error(err, (size_t)n_threads * sizeof *team->counts, "a thread team");
    }
    *out = team;
    return LLMQ_OK;
}

void team_destroy(llmq_team *team) {
    if (team) mem_free(team->counts);
    mem_free(team);
}
int team_size(const llmq_team *team) {
    return team->n;
}

/* By one worker while the others wait. */
static void shares_reset(llmq_team *team) {
    for (int i = 0; i < SHARES; i++) atomic_store_explicit(&team->counters[i].next, 0, memory_order_relaxed);
    for (int i = 0; i < team->n; i++) team->counts[i].begun = 0;
}

void team_run(llmq_team *team, team_fn *fn, void *arg) {
    shares_reset(team);
    if (team->n == 1) {
        fn(&(llmq_worker){0, 1, team}, arg);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(team->n)
    {
        /* The runtime may give fewer threads than asked for (a limit of the system): the team is what it gave. */
        llmq_worker worker = {omp_get_thread_num(), omp_get_num_threads(), team};
        fn(&worker, arg);
    }
#endif
}

static void phase_sleep(llmq_team *team, unsigned phase) {
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->phase) == phase)
        syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0);
    atomic_fetch_sub(&team->sleepers, 1);
}

void worker_barrier(const llmq_worker *worker) {
    if (worker->n == 1) return;
    llmq_team *team = worker->team;
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == worker->n) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        if (team->counts[worker->id].begun > 0) shares_reset(team);
        /* Sequentially consistent, like the sleeper's count and its look at the phase: one of the two sees the other.
         */
        atomic_store(&team->phase, phase + 1);
        if (atomic_load(&team->sleepers) > 0)
            syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, worker->n, NULL, NULL, 0);
        return;
    }
    for (int i = 0; i < team->spins; i++) {
        if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase) return;
        cpu_relax();
    }
    phase_sleep(team, phase);
}

/* Where pieces begin. */
static int64_t share_rest(const llmq_worker *w, int64_t n, int64_t step) {
    int64_t steps = (n + step - 1) / step;
    return w->n > 1 && steps >= SHARE_LEAST ? (steps - steps / SHARE_REST) * step : n;
}

worker_share worker_share_begin(const llmq_worker *w, int64_t n, int64_t step) {
    worker_share s = {.worker = w, .n = n, .step = step, .rest = n};
    if (w->n == 1) return s;
    s.slot = w->team->counts[w->id].begun++;
    if (s.slot < SHARES) s.rest = share_rest(w, n, step);
    return s;
}

void worker_share_own(const llmq_worker *w, int64_t n, int64_t step, int64_t *begin, int64_t *end) {
    worker_range(w, share_rest(w, n, step), step, begin, end);
}

bool worker_share_next(worker_share *s, int64_t *begin, int64_t *end) {
    if (!s->own) {
        s->own = true;
        worker_range(s->worker, s->rest, s->step, begin, end);
        if (*begin < *end) return true;
    }
    if (s->rest >= s->n) return false;
    share_counter *counter = &s->worker->team->counters[s->slot];
    *begin = s->rest + s->step * atomic_fetch_add_explicit(&counter->next, 1, memory_order_relaxed);
    *end = *begin + s->step < s->n ? *begin + s->step : s->n;
    return *begin < s->n;
}

void worker_counter_reset(const llmq_worker *worker) {
    atomic_store_explicit(&worker->team->counter, 0, memory_order_relaxed);
}

int64_t worker_counter_next(const llmq_worker *worker) {
    return atomic_fetch_add_explicit(&worker->team->counter, 1, memory_order_relaxed);
}
