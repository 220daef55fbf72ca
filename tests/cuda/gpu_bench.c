/* Products on a GPU. Decode: time and share of the memory bandwidth that a plain read loop reaches in the same run, by
 * weight type, form of the activations and number of tokens. Prefill: by gemm, and by unpacking and cuBLAS, beside
 * cuBLAS with f16 weights. Under the emulator it runs tiny matrices to its end, and figures are left out: nothing was
 * measured.
 * usage: gpu_bench OUT.json   (a table goes to stdout; exits 77 without a GPU, and under the emulator) */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "baselines.h"
#include "core/mem.h"
#include "core/parallel.h"
#include "cuda/device.h"
#include "cuda/emu/control.h"
#include "cuda/gemm.h"
#include "cuda/matmul.h"
#include "types/type.h"

/* group: of cuda/layout.h */
static const struct layout {
    const char *name;
    llmq_type type;
    int group;
} layouts[] = {{"q4_0", LLMQ_TYPE_Q4_0, 0},       {"q4_0_128", LLMQ_TYPE_Q4_0, 128}, {"q4_1", LLMQ_TYPE_Q4_1, 0},
               {"q5_0_128", LLMQ_TYPE_Q5_0, 128}, {"iq4_nl", LLMQ_TYPE_IQ4_NL, 0},   {"q4_k", LLMQ_TYPE_Q4_K, 0},
               {"q6_k", LLMQ_TYPE_Q6_K, 0},       {"iq4_xs", LLMQ_TYPE_IQ4_XS, 0},   {"q8_0", LLMQ_TYPE_Q8_0, 0},
               {"f16", LLMQ_TYPE_F16, 0}};
static const int batches[] = {1, 2, 4, 8}, prompts[] = {16, 64, 256, 512, 2048};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts, N_BATCHES = sizeof batches / sizeof *batches, READ_BLOCKS = 2048 };
enum { N_PROMPTS = sizeof prompts / sizeof *prompts };

/* Enough matrices, one after another, that no cache keeps them. */
typedef struct sizes {
    int64_t rows, cols;
    size_t bytes;  /* of all matrices of a type, and of the read loop */
    int repeats;   /* rows of replays, and replays in a row; half as many of prefill */
    int n_prompts; /* of `prompts` */
} sizes;

typedef struct bench {
    sizes size;
    bool measured;
    gpu_stream *stream;
    double bandwidth; /* bytes a second of the read loop */
    json_t *rows, *prefill;
    void *x, *y, *forms; /* of prefill: any numbers, results, forms of x */
    cuda_scratch scratch;
    double plain[N_PROMPTS]; /* seconds of a product of cuBLAS with f16 weights; 0: none */
} bench;

static llmq_status try(bool ok, llmq_err *err) {
    return ok ? LLMQ_OK : mem_error(err, 0, "the benchmark");
}

/* Seconds of one replay: the best of several rows of them, so long that waiting for the last one is little. */
static llmq_status time_replays(const bench *b, gpu_recording *r, double *best, llmq_err *err) {
    uint32_t word;
    void *p = NULL; /* a download waits for the stream */
    llmq_status status = gpu_alloc("a word", sizeof word, &p, err);
    if (status == LLMQ_OK) status = gpu_upload(p, &(uint32_t){0}, sizeof word, err);
    *best = 1e30;
    for (int i = 0; i < b->size.repeats && status == LLMQ_OK; i++) {
        double begin = time_seconds();
        for (int j = 0; j < b->size.repeats && status == LLMQ_OK; j++) status = gpu_replay(r, b->stream, err);
        if (status == LLMQ_OK) status = gpu_stream_download(b->stream, &word, p, sizeof word, err);
        double seconds = (time_seconds() - begin) / b->size.repeats;
        if (seconds < *best) *best = seconds;
    }
    gpu_free(p);
    return status;
}

/* Runs `launch` once as it is, then records and times it. */
static llmq_status time_launches(const bench *b, void (*launch)(const bench *, void *), void *arg, double *seconds,
                                 llmq_err *err) {
    gpu_recording *r = NULL;
    launch(b, arg);
    LLMQ_TRY(gpu_wait(err));
    LLMQ_TRY(gpu_record_begin(b->stream, err));
    launch(b, arg);
    LLMQ_TRY(gpu_record_end(b->stream, &r, err));
    llmq_status status = time_replays(b, r, seconds, err);
    gpu_recording_destroy(r);
    return status;
}

/* Seconds of what queues products and may fail: the best of several rows of them. Not recorded, since cuBLAS may take
 * memory; products of prefill take longer than their launches. */
static llmq_status time_calls(bench *b, llmq_status (*call)(bench *, void *, llmq_err *), void *arg, double *best,
                              llmq_err *err) {
    const int repeats = (b->size.repeats + 1) / 2;
    *best = 1e30;
    LLMQ_TRY(call(b, arg, err));
    LLMQ_TRY(gpu_wait(err));
    for (int i = 0; i < repeats; i++) {
        const double begin = time_seconds();
        for (int j = 0; j < repeats; j++) LLMQ_TRY(call(b, arg, err));
        LLMQ_TRY(gpu_wait(err));
        const double seconds = (time_seconds() - begin) / repeats;
        if (seconds < *best) *best = seconds;
    }
    return LLMQ_OK;
}

/* ---- the read loop */

typedef struct read_job {
    void *x, *out;
} read_job;

static void launch_read(const bench *b, void *arg) {
    const read_job *job = arg;
    probe_read(b->stream, job->x, b->size.bytes, b->measured ? READ_BLOCKS : 2, job->out);
}

static llmq_status measure_bandwidth(bench *b, llmq_err *err) {
    read_job job = {0};
    double seconds = 0;
    void *zeros = calloc(b->size.bytes, 1);
    llmq_status status = try(zeros != NULL, err);
    if (status == LLMQ_OK) status = gpu_alloc("the read loop", b->size.bytes, &job.x, err);
    if (status == LLMQ_OK) status = gpu_alloc("the read loop", READ_BLOCKS * 256 * sizeof(uint32_t), &job.out, err);
    if (status == LLMQ_OK) status = gpu_upload(job.x, zeros, b->size.bytes, err);
    if (status == LLMQ_OK) status = time_launches(b, launch_read, &job, &seconds, err);
    if (status == LLMQ_OK) b->bandwidth = (double)b->size.bytes / seconds;
    gpu_free(job.x);
    gpu_free(job.out);
    free(zeros);
    return status;
}

/* ---- products */

typedef struct product {
    const char *name;
    cuda_matrix w;
    size_t matrix_bytes;
    int n_matrices, n_tok;
    bool f16;
    void *packed, *x, *acts, *y;
} product;

static void launch_products(const bench *b, void *arg) {
    const product *p = arg;
    for (int i = 0; i < p->n_matrices; i++) {
        cuda_matrix w = p->w;
        w.packed = (const uint8_t *)p->packed + (size_t)i * p->matrix_bytes;
        (p->f16 ? cuda_matvec_f16 : cuda_matvec_q8)(b->stream, &w, p->acts, p->n_tok, p->y, w.rows);
    }
}

/* One slab of random weights, again and again: what is read is as much, and values are as usual (a group has the scale
 * of its first block). */
static llmq_status fill_weights(const bench *b, const cuda_matrix *w, uint8_t *packed, size_t bytes, llmq_err *err) {
    const llmq_type type = w->type;
    const int64_t cols = b->size.cols, n = 16 * cols;
    float *x = malloc((size_t)n * sizeof *x);
    void *native = malloc((size_t)(16 * type_row_bytes(type, cols)));
    uint32_t state = 1;
    llmq_status status = try(x && native, err);
    for (int64_t i = 0; status == LLMQ_OK && i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-24f - 0.5f;
    }
    if (status == LLMQ_OK) status = type_from_f32(type, x, NULL, native, n, err);
    if (status == LLMQ_OK) status = cuda_pack(type, w->group, 16, cols, native, packed, err);
    const size_t slab = cuda_pack_bytes(type, w->group, 16, cols);
    for (size_t at = slab; status == LLMQ_OK && at < bytes; at += slab) memcpy(packed + at, packed, slab);
    free(x);
    free(native);
    return status;
}

static llmq_status upload_weights(const bench *b, product *p, llmq_err *err) {
    const size_t bytes = p->matrix_bytes * (size_t)p->n_matrices;
    uint8_t *packed = malloc(p->matrix_bytes);
    llmq_status status = try(packed != NULL, err);
    if (status == LLMQ_OK) status = fill_weights(b, &p->w, packed, p->matrix_bytes, err);
    if (status == LLMQ_OK) status = gpu_alloc("weights", bytes, &p->packed, err);
    for (int i = 0; status == LLMQ_OK && i < p->n_matrices; i++)
        status = gpu_upload((uint8_t *)p->packed + (size_t)i * p->matrix_bytes, packed, p->matrix_bytes, err);
    free(packed);
    return status;
}

static llmq_status upload_x(const bench *b, product *p, llmq_err *err) {
    const size_t n = 8 * (size_t)b->size.cols;
    float *x = malloc(n * sizeof *x);
    llmq_status status = try(x != NULL, err);
    for (size_t i = 0; status == LLMQ_OK && i < n; i++) x[i] = (float)(i % 17) - 8;
    if (status == LLMQ_OK) status = gpu_alloc("activations", n * sizeof *x, &p->x, err);
    if (status == LLMQ_OK) status = gpu_alloc("activations", cuda_acts_f16_bytes(8, b->size.cols), &p->acts, err);
    if (status == LLMQ_OK) status = gpu_alloc("results", 8 * (size_t)b->size.rows * sizeof(float), &p->y, err);
    if (status == LLMQ_OK) status = gpu_upload(p->x, x, n * sizeof *x, err);
    free(x);
    return status;
}

static llmq_status add_row(bench *b, const product *p, const char *form, double seconds, llmq_err *err) {
    const char *type = p->name;
    json_t *row =
        json_pack("{s:s, s:s, s:i, s:I, s:I, s:I}", "type", type, "activations", form, "tokens", p->n_tok, "rows",
                  (json_int_t)b->size.rows, "cols", (json_int_t)b->size.cols, "bytes", (json_int_t)p->matrix_bytes);
    const double rate = (double)p->matrix_bytes / seconds;
    if (b->measured) {
        json_object_set_new(row, "us", json_real(seconds * 1e6));
        json_object_set_new(row, "gb_per_s", json_real(rate * 1e-9));
        json_object_set_new(row, "of_read", json_real(rate / b->bandwidth));
        printf("| %s x %s | %d | %.2f | %.0f | %.0f %% |\n", type, form, p->n_tok, seconds * 1e6, rate * 1e-9,
               100 * rate / b->bandwidth);
    } else {
        printf("| %s x %s | %d | unrun | unrun | unrun |\n", type, form, p->n_tok);
    }
    return try(row && json_array_append_new(b->rows, row) == 0, err);
}

static llmq_status measure(bench *b, product *p, llmq_err *err) {
    double seconds;
    if (p->f16)
        cuda_acts_f16(b->stream, &(cuda_source){.x = p->x}, p->n_tok, b->size.cols, p->acts);
    else
        cuda_acts_q8(b->stream, p->x, p->n_tok, b->size.cols, p->acts);
    LLMQ_TRY(time_launches(b, launch_products, p, &seconds, err));
    return add_row(b, p, p->f16 ? "f16" : "q8", seconds / p->n_matrices, err);
}

static product product_of(const bench *b, const struct layout *l) {
    product p = {.name = l->name,
                 .w = {.type = l->type, .group = l->group, .rows = b->size.rows, .cols = b->size.cols}};
    p.matrix_bytes = cuda_pack_bytes(l->type, l->group, b->size.rows, b->size.cols);
    return p;
}

static llmq_status bench_layout(bench *b, const struct layout *l, llmq_err *err) {
    product p = product_of(b, l);
    p.n_matrices = (int)(b->size.bytes / p.matrix_bytes) + 1;
    llmq_status status = upload_weights(b, &p, err);
    if (status == LLMQ_OK) status = upload_x(b, &p, err);
    for (int f16 = l->type == LLMQ_TYPE_F16; f16 < 2; f16++)
        for (int i = 0; i < N_BATCHES && status == LLMQ_OK; i++) {
            p.f16 = f16;
            p.n_tok = batches[i];
            status = measure(b, &p, err);
        }
    gpu_free(p.packed), gpu_free(p.x), gpu_free(p.acts), gpu_free(p.y);
    return status;
}

/* The product that nobody took care of: what care is worth. */
typedef struct naive_job {
    void *w, *x, *y;
    int64_t rows, cols, matrix_bytes;
    int n_matrices;
} naive_job;

static void launch_naive(const bench *b, void *arg) {
    const naive_job *job = arg;
    for (int i = 0; i < job->n_matrices; i++)
        naive_product(b->stream, (const uint8_t *)job->w + i * job->matrix_bytes, job->rows, job->cols, job->x, job->y);
}

static llmq_status bench_naive(bench *b, llmq_err *err) {
    naive_job job = {.rows = b->size.rows, .cols = b->size.cols};
    product p = {.name = "q4_0, naive", .f16 = true, .n_tok = 1, .w = {.type = LLMQ_TYPE_Q4_0}};
    p.matrix_bytes = (size_t)(job.matrix_bytes = b->size.rows * type_row_bytes(LLMQ_TYPE_Q4_0, b->size.cols));
    p.n_matrices = job.n_matrices = (int)(b->size.bytes / p.matrix_bytes) + 1;
    double seconds = 0;
    void *zeros = calloc((size_t)job.n_matrices, p.matrix_bytes);
    llmq_status status = try(zeros != NULL, err);
    if (status == LLMQ_OK) status = upload_x(b, &p, err);
    if (status == LLMQ_OK) status = gpu_alloc("weights", (size_t)job.n_matrices * p.matrix_bytes, &job.w, err);
    if (status == LLMQ_OK) status = gpu_upload(job.w, zeros, (size_t)job.n_matrices * p.matrix_bytes, err);
    job.x = p.x, job.y = p.y;
    if (status == LLMQ_OK) status = time_launches(b, launch_naive, &job, &seconds, err);
    if (status == LLMQ_OK) status = add_row(b, &p, "f32", seconds / job.n_matrices, err);
    gpu_free(job.w), gpu_free(p.x), gpu_free(p.acts), gpu_free(p.y);
    free(zeros);
    return status;
}

/* ---- prefill: some matrices in turn, each of which is more than a cache that keeps it would gain */

enum { PREFILL_MATRICES = 4 };

typedef struct prefill {
    const product *p;
    cuda_input in;
    bool unpack;
} prefill;

static llmq_status call_prefill(bench *b, void *arg, llmq_err *err) {
    prefill *run = arg;
    for (int i = 0; i < PREFILL_MATRICES; i++) {
        cuda_matrix w = run->p->w;
        w.packed = (const uint8_t *)run->p->packed + (size_t)i * run->p->matrix_bytes;
        if (run->unpack)
            LLMQ_TRY(cuda_matmul_unpacked(b->stream, &w, &run->in, b->y, w.rows, &b->scratch, err));
        else
            cuda_gemm(b->stream, &w, run->in.forms, (int)run->in.n_tok, b->y, w.rows, b->scratch.memory,
                      b->scratch.bytes);
    }
    return LLMQ_OK;
}

static llmq_status add_prefill(bench *b, const char *type, const char *way, int i, double seconds, llmq_err *err) {
    const double flops = 2.0 * (double)prompts[i] * (double)b->size.rows * (double)b->size.cols;
    json_t *row = json_pack("{s:s, s:s, s:i, s:I, s:I}", "type", type, "way", way, "tokens", prompts[i], "rows",
                            (json_int_t)b->size.rows, "cols", (json_int_t)b->size.cols);
    printf("| %s, %s | %d |", type, way, prompts[i]);
    if (b->measured) {
        json_object_set_new(row, "us", json_real(seconds * 1e6));
        json_object_set_new(row, "tflops", json_real(flops / seconds * 1e-12));
        printf(" %.1f | %.1f |", seconds * 1e6, flops / seconds * 1e-12);
    } else {
        printf(" unrun | unrun |");
    }
    if (b->measured && b->plain[i] > 0) {
        json_object_set_new(row, "of_cublas_f16", json_real(b->plain[i] / seconds));
        printf(" %.2f |\n", b->plain[i] / seconds);
    } else {
        printf(" unrun |\n");
    }
    return try(row && json_array_append_new(b->prefill, row) == 0, err);
}

static llmq_status measure_prefill(bench *b, const product *p, int i, llmq_err *err) {
    const char *type = p->name;
    prefill run = {.p = p,
                   .in = cuda_input_of((cuda_source){.x = b->x}, NULL, prompts[i], p->w.cols, CUDA_ACTS_F16, b->forms)};
    double seconds;
    cuda_acts_rows(b->stream, b->x, prompts[i], p->w.cols, b->forms);
    run.in.has_rows = true;
    LLMQ_TRY(time_calls(b, call_prefill, &run, &seconds, err));
    LLMQ_TRY(add_prefill(b, type, "gemm", i, seconds / PREFILL_MATRICES, err));
    if (!b->scratch.blas) return LLMQ_OK;
    run.unpack = true;
    LLMQ_TRY(time_calls(b, call_prefill, &run, &seconds, err));
    return add_prefill(b, type, "unpacked, cuBLAS", i, seconds / PREFILL_MATRICES, err);
}

/* cuBLAS alone: f16 weights, which any numbers are, and activations as they are in rows of f16. */
typedef struct plain_job {
    uint16_t *w; /* PREFILL_MATRICES matrices */
    int64_t ld, n_tok;
} plain_job;

static llmq_status call_plain(bench *b, void *arg, llmq_err *err) {
    const plain_job *job = arg;
    const int64_t rows = b->size.rows, cols = b->size.cols;
    for (int i = 0; i < PREFILL_MATRICES; i++)
        LLMQ_TRY(cuda_blas_gemm_f16(b->scratch.blas, b->stream, rows, job->n_tok, cols, job->w + i * rows * job->ld,
                                    job->ld, b->forms, job->ld, b->y, rows, err));
    return LLMQ_OK;
}

static llmq_status measure_plain(bench *b, llmq_err *err) {
    plain_job job = {.ld = cuda_acts_rows_ld(b->size.cols)};
    const size_t n = (size_t)(b->size.rows * job.ld);
    if (!b->scratch.blas) return LLMQ_OK;
    void *memory = NULL;
    uint16_t *w = malloc(n * sizeof *w);
    llmq_status status = try(w != NULL, err);
    for (size_t i = 0; status == LLMQ_OK && i < n; i++) /* 0.125 to 0.5 */
        w[i] = (uint16_t)(0x3000 + i * 2654435761u % 0x800);
    if (status == LLMQ_OK) status = gpu_alloc("f16 weights", PREFILL_MATRICES * n * sizeof *w, &memory, err);
    job.w = memory;
    for (int i = 0; i < PREFILL_MATRICES && status == LLMQ_OK; i++)
        status = gpu_upload(job.w + (size_t)i * n, w, n * sizeof *w, err);
    for (int i = 0; i < b->size.n_prompts && status == LLMQ_OK; i++) {
        double seconds;
        job.n_tok = prompts[i];
        cuda_acts_rows(b->stream, b->x, prompts[i], b->size.cols, b->forms);
        status = time_calls(b, call_plain, &job, &seconds, err);
        b->plain[i] = seconds / PREFILL_MATRICES;
        if (status == LLMQ_OK) status = add_prefill(b, "f16", "cuBLAS alone", i, b->plain[i], err);
    }
    gpu_free(memory);
    free(w);
    return status;
}

/* What prefill needs, and the time of cuBLAS alone; without cuBLAS there is nothing to stand beside. */
static llmq_status prepare_prefill(bench *b, llmq_err *err) {
    const int64_t most = prompts[b->size.n_prompts - 1], cols = b->size.cols, rows = b->size.rows;
    const size_t n = (size_t)(most * cols);
    float *x = malloc(n * sizeof *x);
    llmq_err why;
    llmq_status status = try(x != NULL, err);
    for (size_t i = 0; status == LLMQ_OK && i < n; i++) x[i] = (float)(i % 17) - 8;
    b->scratch.bytes = cuda_scratch_bytes(CUDA_GEMM_TOKENS + most, rows, cols); /* what unpacking needs, too */
    if (status == LLMQ_OK) status = gpu_alloc("activations", n * sizeof *x, &b->x, err);
    if (status == LLMQ_OK) status = gpu_upload(b->x, x, n * sizeof *x, err);
    if (status == LLMQ_OK) status = gpu_alloc("activations", cuda_input_bytes(most, cols), &b->forms, err);
    if (status == LLMQ_OK) status = gpu_alloc("results", (size_t)(most * rows) * sizeof(float), &b->y, err);
    if (status == LLMQ_OK) status = gpu_alloc("scratch", b->scratch.bytes, &b->scratch.memory, err);
    free(x);
    if (status == LLMQ_OK && cuda_blas_create(&b->scratch.blas, &why) != LLMQ_OK)
        fprintf(stderr, "no cuBLAS: %s\n", why.msg);
    return status == LLMQ_OK ? measure_plain(b, err) : status;
}

static llmq_status bench_prefill(bench *b, const struct layout *l, llmq_err *err) {
    product p = product_of(b, l);
    p.n_matrices = PREFILL_MATRICES;
    llmq_status status = upload_weights(b, &p, err);
    for (int i = 0; i < b->size.n_prompts && status == LLMQ_OK; i++) status = measure_prefill(b, &p, i, err);
    gpu_free(p.packed);
    return status;
}

static llmq_status run(bench *b, llmq_err *err) {
    LLMQ_TRY(gpu_stream_create(&b->stream, err));
    LLMQ_TRY(measure_bandwidth(b, err));
    if (b->measured) printf("plain read loop: %.0f GB/s\n\n", b->bandwidth * 1e-9);
    printf("| %lld x %lld | tokens | us | GB/s | of the read loop |\n|---|--:|--:|--:|--:|\n", (long long)b->size.rows,
           (long long)b->size.cols);
    for (int i = 0; i < N_LAYOUTS; i++) LLMQ_TRY(bench_layout(b, &layouts[i], err));
    LLMQ_TRY(bench_naive(b, err));
    printf("\nprefill, beside cuBLAS alone\n\n| %lld x %lld | tokens | us | TFLOPS | of cuBLAS alone |\n",
           (long long)b->size.rows, (long long)b->size.cols);
    printf("|---|--:|--:|--:|--:|\n");
    LLMQ_TRY(prepare_prefill(b, err));
    for (int i = 0; i < N_LAYOUTS; i++) LLMQ_TRY(bench_prefill(b, &layouts[i], err));
    return LLMQ_OK;
}

int main(int argc, char **argv) {
    const sizes real = {14336, 4096, (size_t)1 << 29, 10, N_PROMPTS}, tiny = {48, 512, 1 << 16, 1, 2};
    bench b = {.measured = !emu_here(), .size = emu_here() ? tiny : real};
    b.rows = json_array(), b.prefill = json_array();
    llmq_err err = {0};
    if (argc != 2 || !b.rows || !b.prefill) return 2;
    if (gpu_open(0, &err) != LLMQ_OK) {
        fprintf(stderr, "gpu_bench: %s\n", err.msg);
        return 77;
    }
    llmq_status status = run(&b, &err);
    cuda_blas_destroy(b.scratch.blas); /* it knows the stream */
    gpu_stream_destroy(b.stream);
    gpu_free(b.x), gpu_free(b.y), gpu_free(b.forms), gpu_free(b.scratch.memory);
    json_t *doc =
        json_pack("{s:b, s:o?, s:o, s:o}", "measured", b.measured, "read_gb_per_s",
                  b.measured ? json_real(b.bandwidth * 1e-9) : NULL, "products", b.rows, "prefill", b.prefill);
    if (!doc || json_dump_file(doc, argv[1], JSON_INDENT(1)) != 0) status = llmq_fail(&err, LLMQ_E_IO, "%s", argv[1]);
    json_decref(doc);
    if (status != LLMQ_OK) fprintf(stderr, "gpu_bench: %s\n", err.msg);
    if (status != LLMQ_OK) return 1;
    if (!b.measured) printf("under the emulator: it ran to its end, and measured nothing\n");
    return b.measured ? 0 : 77;
}
