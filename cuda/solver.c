/* The device's part of a quantization (core/device.h): Gram matrices and factors by cuBLAS and cuSOLVER, the column
 * sweep by the kernels of quant.h. Everything is queued on one stream; buffers grow to the largest that was asked for.
 */
#include <stdio.h>

#include "core/mem.h"
#include "cuda/cuda.h"
#include "cuda/device.h"
#include "cuda/quant.h"

#define PIECE_TOKENS 4096              /* of a Gram matrix at a time */
#define SLAB_FLOATS ((int64_t)1 << 26) /* of a matrix's rows at a time: 256 MB, and twice as much for their columns */
#define SLAB_LEAST 128                 /* rows */

typedef struct buffer {
    const char *what;
    void *p;
    size_t bytes;
} buffer;

typedef enum buffer_id {
    GRAM, /* (cols, cols); a factor */
    INPUTS,
    BF16, /* (tokens, cols) */
    ROWS, /* (rows, cols) of weights; their codes */
    ERRORS,
    WEIGHTS,
    CODES, /* (cols, rows) */
    GRIDS,
    ORDER,
    GROUP,
    LEVELS,
    BUFFERS
} buffer_id;

typedef struct solver {
    llmq_device_solver base;
    int device;
    gpu_stream *stream;
    cuda_blas *blas;
    buffer buffers[BUFFERS];
    int64_t cols; /* of the Gram matrix under way */
    bool begun;   /* some of it is there */
} solver;

static solver *of(llmq_device_solver *s) {
    gpu_use(((solver *)s)->device);
    return (solver *)s;
}

/* At least so many bytes; what was in it is lost when it grows. */
static llmq_status need(solver *s, buffer_id id, size_t bytes, llmq_err *err) {
    buffer *b = &s->buffers[id];
    if (bytes <= b->bytes) return LLMQ_OK;
    gpu_free(b->p);
    *b = (buffer){.what = b->what};
    LLMQ_TRY(gpu_alloc(b->what, bytes, &b->p, err));
    b->bytes = bytes;
    return LLMQ_OK;
}

static llmq_status upload(solver *s, buffer_id id, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(need(s, id, bytes, err));
    return gpu_stream_upload(s->stream, s->buffers[id].p, from, bytes, err);
}

static llmq_status square_bytes(int64_t n, size_t *out, llmq_err *err) {
    *out = 0;
    if (n > 0 && size_mul((size_t)n, (size_t)n, out) && size_mul(*out, sizeof(float), out)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_MEMORY, "GPU: a matrix of %lld columns is too large", (long long)n);
}

/* ---- life */

static void solver_destroy(llmq_device_solver *base) {
    if (!base) return;
    solver *s = of(base);
    gpu_stream_destroy(s->stream);
    cuda_blas_destroy(s->blas);
    for (int i = 0; i < BUFFERS; i++) gpu_free(s->buffers[i].p);
    mem_free(s);
}

/* Both libraries are there: the factor of a matrix of one element. */
static llmq_status check_libraries(solver *s, llmq_err *err) {
    float four = 4;
    llmq_err reason;
    llmq_status status = cuda_blas_create(&s->blas, &reason);
    if (status == LLMQ_OK) {
        LLMQ_TRY(upload(s, GRAM, &four, sizeof four, err));
        status = cuda_blas_cholesky(s->blas, s->stream, 1, s->buffers[GRAM].p, 1, &reason);
    }
    if (status == LLMQ_OK) return LLMQ_OK;
    if (status != LLMQ_E_UNSUPPORTED) return llmq_fail(err, status, "%s", reason.msg);
    return llmq_fail(err, status,
                     "--device cuda: quantizing takes cuBLAS and cuSOLVER: %s; install CUDA's libraries or use "
                     "--device cpu",
                     reason.msg);
}

static void name_device(solver *s) {
    char device[96];
    gpu_name(device, sizeof device);
    snprintf(s->base.name, sizeof s->base.name, "cuda: %s, cuBLAS %d", device, cuda_blas_version(s->blas));
}

static llmq_status solver_create(llmq_device_solver **out, llmq_err *err) {
    static const char *const names[BUFFERS] = {
        "a Gram matrix", "inputs", "inputs in bf16",       "rows of weights",   "errors", "weights",
        "codes",         "grids",  "the order of columns", "groups of columns", "levels"};
    solver *s = mem_zalloc(1, sizeof *s);
    if (!s) return mem_error(err, sizeof *s, "quantizing on the GPU");
    s->base.ops = &cuda_solver_ops;
    s->device = gpu_current();
    for (int i = 0; i < BUFFERS; i++) s->buffers[i].what = names[i];
    llmq_status status = gpu_stream_create(&s->stream, err);
    if (status == LLMQ_OK) status = check_libraries(s, err);
    if (status == LLMQ_OK) {
        name_device(s);
        *out = &s->base;
    } else {
        solver_destroy(&s->base);
    }
    return status;
}

/* ---- Gram matrices and factors */

static llmq_status gram_begin(llmq_device_solver *base, int64_t cols, llmq_err *err) {
    solver *s = of(base);
    size_t bytes;
    s->cols = cols;
    s->begun = false;
    LLMQ_TRY(square_bytes(cols, &bytes, err));
    return need(s, GRAM, bytes, err);
}

static llmq_status gram_add(llmq_device_solver *base, const float *x, int64_t n_tok, llmq_err *err) {
    solver *s = of(base);
    for (int64_t t = 0; t < n_tok; t += PIECE_TOKENS) {
        int64_t n = n_tok - t < PIECE_TOKENS ? n_tok - t : PIECE_TOKENS, cells = n * s->cols;
        LLMQ_TRY(need(s, BF16, (size_t)cells * sizeof(uint16_t), err));
        LLMQ_TRY(upload(s, INPUTS, x + t * s->cols, (size_t)cells * sizeof *x, err));
        cuda_quant_to_bf16(s->stream, s->buffers[INPUTS].p, cells, s->buffers[BF16].p);
        LLMQ_TRY(cuda_blas_gram(s->blas, s->stream, s->buffers[BF16].p, n, s->cols, s->begun, s->buffers[GRAM].p, err));
        s->begun = true;
    }
    return gpu_launched(err);
}

static llmq_status gram_end(llmq_device_solver *base, float *gram, llmq_err *err) {
    solver *s = of(base);
    LLMQ_ASSERT(s->begun);
    return gpu_stream_download(s->stream, gram, s->buffers[GRAM].p, (size_t)(s->cols * s->cols) * sizeof *gram, err);
}

static llmq_status factor(llmq_device_solver *base, int64_t n, float *a, llmq_err *err) {
    solver *s = of(base);
    size_t bytes;
    LLMQ_TRY(square_bytes(n, &bytes, err));
    LLMQ_TRY(upload(s, GRAM, a, bytes, err));
    LLMQ_TRY(cuda_blas_cholesky(s->blas, s->stream, n, s->buffers[GRAM].p, n, err));
    return gpu_stream_download(s->stream, a, s->buffers[GRAM].p, bytes, err);
}

/* ---- the sweep, a slab of rows after the other */

/* (groups of a row, 3, rows) scales, their inverses and offsets of rows [row, row + n). */
static llmq_status upload_grids(solver *s, const llmq_device_sweep *w, int64_t row, int64_t n, llmq_err *err) {
    size_t bytes = (size_t)(w->groups * 3 * n) * sizeof(float);
    float *grids = mem_alloc(bytes, 1);
    if (!grids) return mem_error(err, bytes, "grids");
    for (int64_t r = 0; r < n; r++)
        for (int64_t g = 0; g < w->groups; g++) {
            const float *grid = w->grids + ((row + r) * w->groups + g) * 2;
            float *to = grids + g * 3 * n + r;
            to[0] = grid[0];
            to[n] = grid[0] != 0 ? 1.0f / grid[0] : 0;
            to[2 * n] = grid[1];
        }
    llmq_status status = upload(s, GRIDS, grids, bytes, err);
    mem_free(grids);
    return status;
}

static llmq_status sweep_slab(solver *s, const llmq_device_sweep *w, int64_t row, int64_t n, llmq_err *err) {
    const size_t cells = (size_t)(n * w->cols);
    const int32_t *perm = s->buffers[ORDER].p;
    LLMQ_TRY(need(s, ERRORS, cells * sizeof(float), err));
    LLMQ_TRY(need(s, WEIGHTS, cells * sizeof(float), err));
    LLMQ_TRY(need(s, CODES, cells, err));
    LLMQ_TRY(upload(s, ROWS, w->w + row * w->cols, cells * sizeof(float), err));
    LLMQ_TRY(upload_grids(s, w, row, n, err));
    cuda_quant_gather(s->stream, s->buffers[ROWS].p, n, w->cols, perm, s->buffers[ERRORS].p);
    cuda_quant_gather(s->stream, s->buffers[ROWS].p, n, w->cols, perm, s->buffers[WEIGHTS].p);
    const cuda_sweep job = {.rows = n,
                            .cols = w->cols,
                            .at = s->buffers[GRAM].p,
                            .e = s->buffers[ERRORS].p,
                            .w = s->buffers[WEIGHTS].p,
                            .grids = s->buffers[GRIDS].p,
                            .group = s->buffers[GROUP].p,
                            .levels = s->buffers[LEVELS].p,
                            .n_levels = w->n_levels,
                            .uniform = w->uniform,
                            .codes = s->buffers[CODES].p};
    LLMQ_TRY(cuda_quant_sweep(s->stream, &job, s->blas, err));
    cuda_quant_scatter(s->stream, job.codes, n, w->cols, perm, s->buffers[ROWS].p);
    return gpu_stream_download(s->stream, w->codes + row * w->cols, s->buffers[ROWS].p, cells, err);
}

static llmq_status upload_order(solver *s, const llmq_device_sweep *w, llmq_err *err) {
    const size_t bytes = (size_t)w->cols * sizeof(int32_t);
    int32_t *group = mem_alloc((size_t)w->cols, sizeof *group);
    if (!group) return mem_error(err, bytes, "the order of columns");
    for (int64_t k = 0; k < w->cols; k++) group[k] = w->perm[k] / w->group_len;
    llmq_status status = upload(s, GROUP, group, bytes, err);
    if (status == LLMQ_OK) status = upload(s, ORDER, w->perm, bytes, err);
    mem_free(group);
    return status;
}

/* As many rows as three quarters of the free memory hold, beside what the buffers have of it already. */
static llmq_status slab_rows(solver *s, const llmq_device_sweep *w, int64_t *out, llmq_err *err) {
    static const buffer_id of_rows[] = {ROWS, ERRORS, WEIGHTS, CODES, GRIDS};
    size_t available, row = (size_t)w->cols * (3 * sizeof(float) + 1) + (size_t)w->groups * 3 * sizeof(float);
    LLMQ_TRY(gpu_memory(&available, err));
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++) available += s->buffers[of_rows[i]].bytes;
    int64_t most = SLAB_FLOATS / w->cols, fit = (int64_t)(available / 4 * 3 / row);
    *out = fit < most ? fit : most;
    *out = *out < SLAB_LEAST ? SLAB_LEAST : *out - *out % SLAB_LEAST; /* whole blocks of the sweep */
    return LLMQ_OK;
}

static llmq_status sweep(llmq_device_solver *base, const llmq_device_sweep *w, llmq_err *err) {
    solver *s = of(base);
    size_t bytes;
    int64_t step = 0;
    LLMQ_TRY(square_bytes(w->cols, &bytes, err));
    LLMQ_TRY(upload(s, GRAM, w->at, bytes, err));
    LLMQ_TRY(upload_order(s, w, err));
    LLMQ_TRY(upload(s, LEVELS, w->levels, (size_t)w->n_levels * sizeof *w->levels, err));
    LLMQ_TRY(slab_rows(s, w, &step, err));
    for (int64_t row = 0; row < w->rows; row += step)
        LLMQ_TRY(sweep_slab(s, w, row, w->rows - row < step ? w->rows - row : step, err));
    return LLMQ_OK;
}

const llmq_device_solver_ops cuda_solver_ops = {.create = solver_create,
                                                .destroy = solver_destroy,
                                                .gram_begin = gram_begin,
                                                .gram_add = gram_add,
                                                .gram_end = gram_end,
                                                .cholesky = factor,
                                                .sweep = sweep};
