/* Speed of matmul for each storage type on one ISA: bench_matmul [isa [threads [rows cols]]]
 *   repack    seconds per 10^9 weights
 *   GEMV      of 1 to 8 tokens: GB/s of weights in their layout (memory- or cache-bound: compare with the read loop)
 *   GEMM      of 8 to 512, of no more than 2048 rows: GMAC/s (compare with the product peak of the machine)
 * Best of several runs. One thread is timed by its processor time, so that a busy machine disturbs it less. The default
 * 24576 x 2048 lies outside the caches. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/backend.h"
#include "core/half.h"
#include "core/mem.h"
#include "types/type.h"

typedef struct job {
    const llmq_backend_ops *ops;
    llmq_weight *w;
    llmq_acts a;
    float *y;
    int repeat;
} job;

static void worker_fn(const llmq_worker *worker, void *arg) {
    job *j = arg;
    for (int i = 0; i < j->repeat; i++) {
        j->ops->matmul(worker, j->w, &j->a, j->y, j->w->rows);
        worker_barrier(worker);
    }
}

static void fill_fn(const llmq_worker *worker, void *arg) {
    job *j = arg;
    j->ops->acts_fill(worker, &j->a, j->w->act);
}

static llmq_tensor make_tensor(llmq_type type, int64_t rows, int64_t cols, void **data_out) {
    const llmq_type_info *info = type_info(type);
    int64_t row_bytes = type_row_bytes(type, cols), some = 32 < rows ? 32 : rows;
    uint8_t *data = malloc((size_t)(row_bytes * rows));
    uint32_t seed = 1;
    if (type_is_float(info)) {
        for (int64_t i = 0; i < some * cols; i++) {
            seed = seed * 1664525u + 1013904223u;
            float x = (float)(seed >> 8) / 16777216.0f - 0.5f;
            info->from_f32(&x, data + i * (row_bytes / cols), 1);
        }
    } else {
        for (int64_t b = 0; b < some * row_bytes / info->block_bytes; b++) {
            llmq_grid grid;
            uint8_t codes[TYPE_MAX_BLOCK], *block = data + b * info->block_bytes;
            for (int i = 0; i < info->block_bytes; i++)
                block[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 13);
            info->unpack(block, &grid, codes);
            for (int i = 0; i < info->block_len; i++)
                if (codes[i] >= info->n_levels) codes[i] = 0; /* FP4 has 15 */
            grid.d = grid.scale[0] = 0.5f;
            grid.dmin = grid.offset[0] = 0.25f;
            info->pack(&grid, codes, block);
        }
    }
    for (int64_t r = some; r < rows; r++)
        memcpy(data + r * row_bytes, data + (r % some) * row_bytes, (size_t)row_bytes);
    *data_out = data;
    return (llmq_tensor){
        .name = "w", .type = type, .n_dims = 2, .dims = {cols, rows, 1, 1}, .bytes = rows * row_bytes, .data = data};
}

static double now(const llmq_team *team) {
    if (team_size(team) > 1) return time_seconds();
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best seconds of one matmul with n_tok tokens. */
static double measure(const llmq_backend_ops *ops, llmq_team *team, llmq_weight *w, int64_t n_tok) {
    float *x = mem_alloc((size_t)(n_tok * w->cols), sizeof *x), *y = mem_alloc((size_t)(n_tok * w->rows), sizeof *y);
    for (int64_t i = 0; i < n_tok * w->cols; i++) x[i] = (float)(i * 7919 % 1000) / 500.0f - 1.0f;
    job j = {ops, w, {.n_tok = n_tok, .cols = w->cols, .x = x}, y, 1};
    void *form = mem_alloc(ops->acts_bytes(w->act, n_tok, w->cols), 1);
    if (w->act == ACT_Q8) j.a.q8 = form;
    if (w->act == ACT_BF16 || w->act == ACT_DENSE) j.a.bf16 = form;
    if (w->act == ACT_INT8) j.a.int8 = form;
    if (w->act == ACT_Q16) j.a.q16 = form;
    team_run(team, fill_fn, &j);
    double best = 1e9, spent = 0;
    for (int i = 0; i < 40 && (i < 4 || spent < 0.25); i++) {
        double t0 = now(team);
        team_run(team, worker_fn, &j);
        double t = (now(team) - t0) / j.repeat;
        spent += t * j.repeat;
        if (t < best) best = t;
        if (i == 0 && t < 2e-4) j.repeat = 10;
    }
    mem_free(form), mem_free(x), mem_free(y);
    return best;
}

/* weight_prepare, or weight_prepare_int8 with the flag that this program adds to those of the backend. */
#define PREP_INT8 0x100
static llmq_status prepare(const llmq_backend_ops *ops, llmq_weight *w, const llmq_tensor *t, int flags,
                           llmq_team *team, llmq_err *err) {
    if (!(flags & PREP_INT8)) return ops->weight_prepare(w, t, flags, team, err);
    return ops->weight_prepare_int8(w, t, (llmq_act_range){0, 0}, team, err);
}

static void bench_type(const llmq_backend_ops *ops, llmq_team *team, llmq_type type, int flags, int64_t rows,
                       int64_t cols) {
    void *data;
    llmq_weight w;
    llmq_err err;
    llmq_tensor t = make_tensor(type, rows, cols, &data);
    double t0 = now(team);
    if (prepare(ops, &w, &t, flags, team, &err) != LLMQ_OK) {
        printf("%-7s %s\n", type_info(type)->name, err.msg);
        free(data);
        return;
    }
    double took = now(team) - t0, n = (double)rows * (double)cols,
           bytes = (double)(w.packed ? w.packed_bytes : (size_t)t.bytes);
    printf("%-7s%s repack %5.2f s  bits %5.2f ", type_info(type)->name,
           flags & PREP_INT8 ? "+int8"
           : flags           ? "+bf16"
                             : "     ",
           w.packed ? took / n * 1e9 : 0.0, bytes * 8 / n);
    printf(" GEMV");
    for (int i = 1; i <= 8; i *= 2) printf(" %d: %5.1f", i, bytes / measure(ops, team, &w, i) / 1e9);
    printf(" GB/s");
    ops->weight_release(&w);
    t.dims[1] = rows < 2048 ? rows : 2048; /* GEMM: compute-bound, a smaller matrix does */
    if (prepare(ops, &w, &t, flags, team, &err) == LLMQ_OK) {
        const int64_t toks[] = {8, 16, 64, 512};
        printf("  GEMM");
        for (int i = 0; i < (int)(sizeof toks / sizeof *toks); i++)
            printf(" %d: %5.0f", (int)toks[i],
                   (double)toks[i] * (double)(t.dims[1] * cols) / measure(ops, team, &w, toks[i]) / 1e9);
        printf(" GMAC/s\n");
        ops->weight_release(&w);
    }
    fflush(stdout);
    free(data);
}

int main(int argc, char **argv) {
    const llmq_backend_ops *ops = argc > 1 ? backend_cpu_isa(argv[1]) : backend_cpu();
    int64_t rows = argc > 4 ? atoll(argv[3]) : 24576, cols = argc > 4 ? atoll(argv[4]) : 2048;
    const char *only = argc > 5 ? argv[5] : NULL;
    llmq_team *team;
    if (!ops || team_create(argc > 2 ? atoi(argv[2]) : 0, &team, NULL) != LLMQ_OK) return 1;
    printf("%s, %d threads, %lld x %lld, read loop %.1f GB/s\n", ops->isa, team_size(team), (long long)rows,
           (long long)cols, backend_read_bandwidth(ops, team, (size_t)256 << 20) / 1e9);
    for (size_t i = 0; type_at(i); i++) {
        const llmq_type_info *info = type_at(i);
        if (only && strcmp(only, info->name) != 0) continue;
        bench_type(ops, team, info->id, 0, rows, cols);
        if (type_is_float(info)) bench_type(ops, team, info->id, PREP_BF16, rows, cols);
        if (info->id == LLMQ_TYPE_Q8_0) bench_type(ops, team, info->id, PREP_INT8, rows, cols);
    }
    team_destroy(team);
    return 0;
}
