/* Speed of the training ops at the sizes of a model of 135 M: bench_grad [isa] [threads]. As bench_ops: each figure is
 * the best of several, and with one thread it is the process's CPU time that counts. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/backend.h"
#include "core/mem.h"

#define RUNS 7

typedef struct job {
    const llmq_backend_ops *ops;
    int64_t rows, cols, n_tok;
    bool bf16;
    llmq_causal attn;
    llmq_loss loss;
    float *x, *y, *z, *g, *dq, *dk, *dv;
    void *scratch;
} job;

static bool cpu_time;

static double now(void) {
    struct timespec t;
    clock_gettime(cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *numbers(int64_t n) {
    float *x = mem_alloc((size_t)n, sizeof(float));
    uint32_t s = 1;
    if (!x) exit(1);
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 0x1p-31f;
    }
    return x;
}

static double best_of(llmq_team *team, team_fn *fn, job *j) {
    double best = INFINITY;
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        team_run(team, fn, j);
        double took = now() - start;
        best = took < best ? took : best;
    }
    return best;
}

static void drop(job *j) {
    float *all[] = {j->x, j->y, j->z, j->g, j->dq, j->dk, j->dv, j->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

static void run_outer(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->outer(w, j->y, j->rows, j->x, j->cols, j->n_tok, true, j->bf16, j->g, j->scratch);
}

static void bench_outer(job j, llmq_team *team, int64_t rows, int64_t cols, int64_t n_tok) {
    j.rows = rows, j.cols = cols, j.n_tok = n_tok;
    j.y = numbers(rows * n_tok), j.x = numbers(cols * n_tok), j.g = numbers(rows * cols);
    j.scratch = mem_alloc(j.ops->outer_scratch_bytes(rows, cols, n_tok) + 1, 1);
    for (int bf16 = 1; bf16 >= 0; bf16--) {
        j.bf16 = bf16;
        double took = best_of(team, run_outer, &j);
        printf("outer %5lld x %4lld of %4lld tokens, %s: %8.2f ms, %6.1f GMAC/s\n", (long long)rows, (long long)cols,
               (long long)n_tok, bf16 ? "bf16" : "f32 ", took * 1e3,
               (double)rows * (double)cols * (double)n_tok / took * 1e-9);
    }
    drop(&j);
}

static void run_causal(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->causal(w, &j->attn, j->x, j->y, j->z, j->g, j->scratch);
}
static void run_causal_back(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->causal_back(w, &j->attn, j->x, j->y, j->z, j->g, j->dq, j->dk, j->dv, j->scratch);
}

static void bench_causal(job j, llmq_team *team, int n_head, int n_head_kv, int dim, int64_t n_tok, int64_t n_windows) {
    int64_t n_q = n_tok * n_windows * n_head * dim, n_k = n_tok * n_windows * n_head_kv * dim;
    j.attn = (llmq_causal){n_head, n_head_kv, dim, 1 / sqrtf((float)dim), 0, n_tok, n_windows, true};
    j.x = numbers(n_q), j.y = numbers(n_k), j.z = numbers(n_k), j.g = numbers(n_q);
    j.dq = numbers(n_q), j.dk = numbers(n_k), j.dv = numbers(n_k);
    j.scratch = mem_alloc(j.ops->causal_scratch_bytes(&j.attn, team_size(team)), 1);
    double pairs = (double)n_windows * (double)n_tok * (double)(n_tok + 1) / 2 * n_head * dim;
    double forward = best_of(team, run_causal, &j), back = best_of(team, run_causal_back, &j);
    printf("causal %d/%d heads of %d, %lld windows of %lld: %8.2f ms, %6.1f GMAC/s; back: %8.2f ms, %6.1f GMAC/s\n",
           n_head, n_head_kv, dim, (long long)n_windows, (long long)n_tok, forward * 1e3, 2 * pairs / forward * 1e-9,
           back * 1e3, 5 * pairs / back * 1e-9);
    drop(&j);
}

static void run_loss(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->loss_rows(w, &j->loss);
}

/* z is destroyed by every run: probabilities are as good as logits here. */
static void bench_loss(job j, llmq_team *team, int64_t n, int64_t n_vocab) {
    int32_t *labels = mem_zalloc((size_t)n, sizeof *labels);
    double *loss = mem_zalloc((size_t)n, sizeof *loss);
    j.x = numbers(n * n_vocab), j.y = numbers(n * n_vocab), j.g = numbers(n * n_vocab);
    j.scratch = mem_alloc((size_t)(team_size(team) * n_vocab), sizeof(float));
    for (int teacher = 0; teacher < 2; teacher++) {
        j.loss = (llmq_loss){n, n_vocab, j.x, teacher ? j.y : NULL, labels, 1, 2048, j.g, loss, j.scratch};
        double took = best_of(team, run_loss, &j);
        printf("loss of %lld x %lld, %s: %8.2f ms, %6.2f ns a logit\n", (long long)n, (long long)n_vocab,
               teacher ? "teacher" : "labels ", took * 1e3, took / (double)(n * n_vocab) * 1e9);
    }
    mem_free(labels);
    mem_free(loss);
    drop(&j);
}

static void run_norm(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->rms_norm_back(w, j->x, j->dq, 1e-5f, j->y, j->g, true, j->dk, j->n_tok, j->cols);
}
static void run_gain(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->rms_gain_back(w, j->x, j->dk, j->y, j->dq, j->n_tok, j->cols);
}
static void run_silu(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->silu_mul_back(w, j->x, j->y, j->g, j->n_tok * j->cols);
}
static void run_transpose(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->transpose(w, j->x, j->n_tok, j->cols, j->cols, j->g, j->n_tok);
}

/* GB/s: every array once for each reading and writing of it. */
static void bench_small(job j, llmq_team *team, int64_t n_tok, int64_t cols) {
    const struct {
        const char *name;
        team_fn *fn;
        int arrays;
    } ops[] = {{"rms_norm_back", run_norm, 4},
               {"rms_gain_back", run_gain, 2},
               {"silu_mul_back", run_silu, 5},
               {"transpose", run_transpose, 2}};
    j.n_tok = n_tok, j.cols = cols;
    j.x = numbers(n_tok * cols), j.y = numbers(n_tok * cols), j.g = numbers(n_tok * cols);
    j.dq = numbers(cols), j.dk = numbers(n_tok);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        double took = best_of(team, ops[i].fn, &j);
        printf("%-13s %lld x %lld: %8.3f ms, %5.1f GB/s\n", ops[i].name, (long long)n_tok, (long long)cols, took * 1e3,
               (double)(ops[i].arrays * n_tok * cols) * sizeof(float) / took * 1e-9);
    }
    drop(&j);
}

int main(int argc, char **argv) {
    job j = {.ops = argc > 1 ? backend_cpu_isa(argv[1]) : backend_cpu()};
    llmq_team *team;
    if (!j.ops || team_create(argc > 2 ? atoi(argv[2]) : 0, &team, NULL) != LLMQ_OK) {
        printf("usage: bench_grad [c|avx2|avxvnni|avx512|avx512bf16|amx|neon|dotprod] [threads]\n");
        return 1;
    }
    cpu_time = team_size(team) == 1;
    printf("%s, %d threads\n", j.ops->isa, team_size(team));
    bench_outer(j, team, 1536, 576, 1536);
    bench_outer(j, team, 2048, 576, 128);
    bench_outer(j, team, 192, 576, 1536);
    bench_causal(j, team, 9, 3, 64, 512, 1);
    bench_causal(j, team, 9, 3, 64, 128, 4);
    bench_causal(j, team, 4, 2, 128, 512, 1);
    bench_loss(j, team, 128, 49152);
    bench_small(j, team, 1536, 576);
    bench_small(j, team, 1536, 1536);
    team_destroy(team);
    return 0;
}
