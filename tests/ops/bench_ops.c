/* Speed of attention, Gram, C -= A B, Cholesky and reading: bench_ops [isa] [threads]. Other work on the machine only
 * slows a run down, so each figure is the best of several; with one thread it is the process's CPU time that counts. */
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
    llmq_attn attn;
    llmq_kv kv;
    int64_t layers; /* decode: caches in turn, so that they do not stay in the CPU's caches */
    llmq_acts acts;
    bool q8;
    float *x, *y, *z;
    void *scratch;
} job;

static bool cpu_time;

static double now(void) {
    struct timespec t;
    clock_gettime(cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill(float *x, size_t n) {
    uint32_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 0x1p-31f;
    }
}

static float *numbers(size_t n) {
    float *p = mem_alloc(n, sizeof(float));
    if (!p) exit(1);
    fill(p, n);
    return p;
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

static void run_attention(const llmq_worker *w, void *arg) {
    job *j = arg;
    size_t bytes = j->ops->kv_bytes(j->kv.type, j->kv.n_ctx, j->kv.n_head_kv, j->kv.head_dim);
    for (int64_t i = 0; i < j->layers; i++) {
        llmq_kv kv = j->kv;
        kv.k = (char *)kv.k + (size_t)i * bytes;
        kv.v = (char *)kv.v + (size_t)i * bytes;
        j->ops->attention(w, &j->attn, j->x, j->attn.n_head * j->attn.head_dim, &kv, j->y, j->scratch);
        worker_barrier(w);
    }
}

static void store(const llmq_worker *w, void *arg) {
    job *j = arg;
    size_t bytes = j->ops->kv_bytes(j->kv.type, j->kv.n_ctx, j->kv.n_head_kv, j->kv.head_dim);
    for (int64_t i = 0; i < j->layers; i++) {
        llmq_kv kv = j->kv;
        int64_t width = kv.n_head_kv * kv.head_dim;
        kv.k = (char *)kv.k + (size_t)i * bytes;
        kv.v = (char *)kv.v + (size_t)i * bytes;
        j->ops->kv_store(w, &kv, j->z, width, j->z, width, 0, kv.n_ctx);
    }
}

static void bench_attention(job j, llmq_team *team, int n_head, int n_head_kv, int dim, int type, int64_t pos,
                            int64_t n_tok) {
    int64_t n = pos + n_tok;
    j.attn = (llmq_attn){n_head, n_head_kv, dim, 1 / sqrtf((float)dim), 0, pos, n_tok, false, NULL, NULL};
    j.kv = (llmq_kv){.type = type, .n_ctx = n, .n_head_kv = n_head_kv, .head_dim = dim};
    size_t bytes = j.ops->kv_bytes(type, n, n_head_kv, dim);
    j.layers = n_tok > 8 ? 4 : (int64_t)(((size_t)96 << 20) / bytes) + 1;
    j.kv.k = mem_alloc_big(bytes * (size_t)j.layers);
    j.kv.v = mem_alloc_big(bytes * (size_t)j.layers);
    j.x = numbers((size_t)(n_tok * n_head * dim));
    j.y = numbers((size_t)(n_tok * n_head * dim));
    j.z = numbers((size_t)(n * n_head_kv * dim));
    j.scratch = mem_alloc(j.ops->attn_scratch_bytes(&j.attn, team_size(team)), 1);
    team_run(team, store, &j);
    double took = best_of(team, run_attention, &j) / (double)j.layers, pairs = 0;
    for (int64_t t = 0; t < n_tok; t++) pairs += (double)(pos + t + 1);
    printf("attention %2d/%d heads of %3d, %-4s pos %6lld, %4lld tokens: %8.1f us, %6.1f GMAC/s, %5.1f GB/s of KV\n",
           n_head, n_head_kv, dim, type ? "q8_0" : "f16", (long long)pos, (long long)n_tok, took * 1e6,
           2 * pairs * n_head * dim / took * 1e-9, 2 * (double)bytes / took * 1e-9);
    mem_free_big(j.kv.k, bytes * (size_t)j.layers);
    mem_free_big(j.kv.v, bytes * (size_t)j.layers);
    mem_free(j.x);
    mem_free(j.y);
    mem_free(j.z);
    mem_free(j.scratch);
}

static void run_gram(const llmq_worker *w, void *arg) {
    job *j = arg;
    j->ops->gram_add(w, j->acts.x, j->acts.n_tok, j->acts.cols, j->q8, NULL, j->y, j->scratch);
}

static void bench_gram(job j, llmq_team *team, int64_t cols, int64_t n_tok) {
    j.x = numbers((size_t)(cols * n_tok));
    j.y = numbers((size_t)(cols * cols));
    j.acts = (llmq_acts){.n_tok = n_tok, .cols = cols, .x = j.x};
    j.scratch = mem_alloc(j.ops->gram_scratch_bytes(n_tok, cols), 1);
    if (!j.scratch) exit(1);
    for (int q8 = 0; q8 < 2; q8++) {
        j.q8 = q8;
        double took = best_of(team, run_gram, &j);
        printf("gram %5lld columns, %5lld tokens, %s: %8.2f ms, %6.1f GMAC/s of the triangle\n", (long long)cols,
               (long long)n_tok, q8 ? "int8" : "f32 ", took * 1e3,
               (double)cols * (double)(cols + 1) / 2 * (double)n_tok / took * 1e-9);
    }
    mem_free(j.scratch);
    mem_free(j.x);
    mem_free(j.y);
}

static void bench_gemm(const llmq_backend_ops *ops, int64_t m, int64_t n, int64_t k, int64_t ld) {
    float *a = numbers((size_t)(m * ld)), *b = numbers((size_t)(k * ld)), *c = numbers((size_t)(m * ld));
    double best = INFINITY;
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        ops->gemm_sub(m, n, k, a, ld, b, ld, c, ld);
        double took = now() - start;
        best = took < best ? took : best;
    }
    printf("gemm_sub %4lld x %4lld x %5lld, one thread: %8.2f ms, %6.1f GMAC/s\n", (long long)m, (long long)n,
           (long long)k, best * 1e3, (double)m * (double)n * (double)k / best * 1e-9);
    mem_free(a);
    mem_free(b);
    mem_free(c);
}

static void bench_cholesky(const llmq_backend_ops *ops, llmq_team *team, int64_t n) {
    float *a = numbers((size_t)(n * n)), *l = numbers((size_t)(n * n));
    for (int64_t i = 0; i < n; i++) a[i * n + i] = (float)n;
    for (int threads = 0; threads < 2; threads++) {
        double best = INFINITY;
        for (int i = 0; i < 3; i++) {
            memcpy(l, a, sizeof(float) * (size_t)(n * n));
            double start = now();
            if (ops->cholesky(n, l, n, threads ? team : NULL, NULL) != LLMQ_OK) printf("not positive definite\n");
            double took = now() - start;
            best = took < best ? took : best;
        }
        printf("cholesky %5lld, %d threads: %8.1f ms, %6.1f GMAC/s\n", (long long)n, threads ? team_size(team) : 1,
               best * 1e3, (double)n * (double)n * (double)n / 6 / best * 1e-9);
    }
    mem_free(a);
    mem_free(l);
}

int main(int argc, char **argv) {
    job j = {.ops = argc > 1 ? backend_cpu_isa(argv[1]) : backend_cpu()};
    llmq_team *team;
    if (!j.ops || team_create(argc > 2 ? atoi(argv[2]) : 0, &team, NULL) != LLMQ_OK) {
        printf("usage: bench_ops [c|avx2|avxvnni|avx512|avx512bf16|amx|neon|dotprod] [threads]\n");
        return 1;
    }
    cpu_time = team_size(team) == 1;
    printf("%s, %d threads; reading: %.1f GB/s\n", j.ops->isa, team_size(team),
           backend_read_bandwidth(backend_cpu(), team, (size_t)256 << 20) * 1e-9);
    for (int type = 0; type < 2; type++) {
        bench_attention(j, team, 9, 3, 64, type, 0, 512);
        bench_attention(j, team, 32, 8, 128, type, 0, 512);
        bench_attention(j, team, 32, 8, 128, type, 8192, 512);
        bench_attention(j, team, 9, 3, 64, type, 255, 1);
        bench_attention(j, team, 9, 3, 64, type, 2047, 1);
        bench_attention(j, team, 32, 8, 128, type, 4095, 1);
        bench_attention(j, team, 32, 8, 128, type, 16383, 1);
        bench_attention(j, team, 32, 8, 128, type, 4095, 4);
        bench_attention(j, team, 32, 32, 128, type, 2047, 1);
    }
    bench_gram(j, team, 576, 2048);
    bench_gram(j, team, 1536, 2048);
    bench_gram(j, team, 4096, 512);
    bench_gemm(j.ops, 64, 128, 2048, 2048);
    bench_gemm(j.ops, 128, 128, 4096, 4096);
    bench_gemm(j.ops, 256, 128, 8192, 8192);
    bench_gemm(j.ops, 128, 2048, 128, 4096);
    bench_cholesky(j.ops, team, 576);
    bench_cholesky(j.ops, team, 1536);
    bench_cholesky(j.ops, team, 4096);
    team_destroy(team);
    return 0;
}
