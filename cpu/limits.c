/* What this machine gives at most: bytes read a second, multiply-adds a second. The loops are the backend's own;
 * here they are set up, shared among workers and timed. */
#include "core/backend.h"
#include "core/mem.h"

#define READ_PASSES 3
#define READ_STEP 4096 /* a worker's share is a multiple of it */
#define READ_AHEAD 2048
#define PRODUCT_SECONDS 0.03

typedef struct read_job {
    const llmq_backend_ops *ops;
    uint8_t *data;
    int64_t bytes;
    double best;    /* seconds of the fastest pass; worker 0 writes it */
    uint64_t *sums; /* one cache line a worker: keeps the loads alive */
} read_job;

static void read_worker(const llmq_worker *w, void *arg) {
    read_job *job = arg;
    int64_t begin, end;
    worker_range(w, job->bytes, READ_STEP, &begin, &end);
    for (int64_t i = begin; i < end; i++) job->data[i] = (uint8_t)i; /* first touch: pages come to their reader */
    for (int pass = 0; pass < 2 * READ_PASSES; pass++) {
        worker_barrier(w);
        double start = time_seconds();
        job->sums[w->id * 8] +=
            job->ops->probe_read(job->data + begin, (size_t)(end - begin), pass % 2 ? READ_AHEAD : 0);
        worker_barrier(w);
        double took = time_seconds() - start;
        if (w->id == 0 && (job->best == 0 || took < job->best)) job->best = took;
    }
}

double backend_read_bandwidth(const llmq_backend_ops *ops, llmq_team *team, size_t bytes) {
    bytes = bytes / READ_STEP * READ_STEP;
    uint64_t *sums = mem_zalloc((size_t)team_size(team) * 8, sizeof *sums);
    double best = 0;
    for (int small = 0; sums && small < 2; small++) {
        read_job job = {ops, small ? mem_alloc_lazy(bytes) : mem_alloc_big(bytes), (int64_t)bytes, 0, sums};
        if (job.data) team_run(team, read_worker, &job);
        mem_free_big(job.data, bytes);
        if (job.best > 0 && (double)bytes / job.best > best) best = (double)bytes / job.best;
    }
    mem_free(sums);
    return best;
}

typedef struct product_job {
    const llmq_backend_ops *ops;
    double products, seconds; /* of all workers; worker 0 writes them */
    double *counts;           /* one cache line a worker: multiply-adds, and their sum */
} product_job;

static void product_worker(const llmq_worker *w, void *arg) {
    product_job *job = arg;
    for (int64_t rounds = 1 << 12;; rounds *= 4) {
        worker_barrier(w);
        double start = time_seconds();
        uint64_t sum;
        job->counts[w->id * 8] = job->ops->probe_products(rounds, &sum);
        job->counts[w->id * 8 + 1] = (double)sum;
        worker_barrier(w);
        if (w->id == 0) {
            job->seconds = time_seconds() - start;
            job->products = 0;
            for (int i = 0; i < w->n; i++) job->products += job->counts[i * 8];
        }
        worker_barrier(w);
        if (job->seconds > PRODUCT_SECONDS) return;
    }
}

double backend_product_rate(const llmq_backend_ops *ops, llmq_team *team) {
    product_job job = {.ops = ops, .counts = mem_zalloc((size_t)team_size(team) * 8, sizeof *job.counts)};
    double best = 0;
    for (int i = 0; job.counts && i < 3; i++) {
        team_run(team, product_worker, &job);
        if (job.products / job.seconds > best) best = job.products / job.seconds;
    }
    mem_free(job.counts);
    return best;
}
