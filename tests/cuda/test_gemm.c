/* Products with more than 8 tokens, of every weight type, under the emulator, against double arithmetic on what the
 * CPU's oracle makes of the same weights: rows, columns and tokens that fill no tile, columns shared by blocks, every
 * thread order, both models of a tensor core. And the entry that picks kernels by the number of tokens. */
#include "products.h"

#include "cuda/gemm.h"
#include "cuda/matmul.h"
#include "types/nf4.h"

typedef struct on_gpu {
    cuda_matrix w;
    void *x, *acts, *y, *parts;
    size_t parts_bytes;
} on_gpu;

static on_gpu put_on_gpu(const problem *p) {
    on_gpu g = {.w = weights_on_gpu(p)};
    g.x = input_of("x", p->x, (size_t)(p->n_tok * p->cols) * sizeof(float));
    g.acts = output_of("activations", cuda_acts_rows_bytes(p->n_tok, p->cols));
    g.y = output_of("y", (size_t)(p->n_tok * (p->rows + PAD)) * sizeof(float));
    g.parts_bytes = cuda_gemm_bytes(p->n_tok, p->rows, p->cols);
    if (g.parts_bytes) g.parts = output_of("parts", g.parts_bytes);
    return g;
}

static void drop_from_gpu(on_gpu *g) {
    drop_weights(&g->w), gpu_free(g->x), gpu_free(g->acts), gpu_free(g->y), gpu_free(g->parts);
}

/* y (n_tok, rows + PAD): what lies between the rows has to stay as it was. */
static const float guard = 7.25e7f;
static void fill_guards(const problem *p, float *y_on_gpu) {
    size_t n = (size_t)(p->n_tok * (p->rows + PAD));
    float *y = malloc(n * sizeof *y);
    llmq_err err;
    for (size_t i = 0; i < n; i++) y[i] = guard;
    assert_int_equal(gpu_upload(y_on_gpu, y, n * sizeof *y, &err), LLMQ_OK);
    free(y);
}
static void take(const problem *p, const float *y_on_gpu, float *y, const char *what) {
    from_device(y, y_on_gpu, (size_t)(p->n_tok * (p->rows + PAD)) * sizeof *y, what);
    for (int t = 0; t < p->n_tok; t++)
        for (int i = 0; i < PAD; i++) assert_true(y[t * (p->rows + PAD) + p->rows + i] == guard);
}

static void run(const problem *p, const on_gpu *g, float *y, const char *what) {
    fill_guards(p, g->y);
    cuda_acts_rows(NULL, g->x, p->n_tok, p->cols, g->acts);
    cuda_gemm(NULL, &g->w, g->acts, p->n_tok, g->y, p->rows + PAD, g->parts, g->parts_bytes);
    take(p, g->y, y, what);
}

/* One problem in some orders: close to the reference, and the same bits whatever the order. */
static void check(const problem *p, int orders, double tol) {
    size_t n = (size_t)(p->n_tok * p->rows), n_y = (size_t)(p->n_tok * (p->rows + PAD));
    double *x = rounded_f16(p), *want = malloc(n * sizeof *want), *mag = malloc(n * sizeof *mag);
    float *y = malloc(n_y * sizeof *y), *first = malloc(n_y * sizeof *first);
    reference(p, x, want, mag);
    on_gpu g = put_on_gpu(p);
    char what[96];
    for (int order = 0; order < EMU_ORDERS; order++) {
        if (!(orders >> order & 1)) continue;
        snprintf(what, sizeof what, "gemm %s rows %d cols %d tokens %d order %d", name_of(p), (int)p->rows,
                 (int)p->cols, p->n_tok, order);
        emu_set_order((emu_order)order, 5);
        run(p, &g, y, what);
        compare(p, y, want, mag, tol, what);
        if (orders == 1 << order) continue;
        if ((orders & ((1 << order) - 1)) == 0) memcpy(first, y, n_y * sizeof *y);
        assert_memory_equal(y, first, n_y * sizeof *y);
    }
    drop_from_gpu(&g);
    free(x), free(want), free(mag), free(y), free(first);
}

#define ALL_ORDERS ((1 << EMU_ORDERS) - 1)

/* Columns in units of 32, rounded up for the K types. */
static const struct shape {
    int64_t rows, blocks;
    int n_tok;
    bool bias;
} shapes[] = {{33, 7, 9, true}, {7, 11, 29, false}, {130, 2, 16, false}, {20, 5, 70, true}, {21, 33, 13, true}};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static problem problem_of(packing k, const struct shape *s, bool exact) {
    int64_t unit = type_info(k.type)->block_len, blocks = unit == 32 ? s->blocks : (s->blocks + 7) / 8;
    if (type_is_float(type_info(k.type))) unit = 1, blocks = 32 * s->blocks - 5;
    return make_problem(k, s->rows, blocks * unit, s->n_tok, s->bias, exact);
}

/* The bound is that of the decode kernels: f32 sums of 16 to 128 products, cut to 24 or 25 bits (ptx.md 1.3). */
static void test_every_type(void **state) {
    (void)state;
    for (size_t i = 0; i < N_PACKINGS; i++)
        for (size_t k = 0; k < N_SHAPES; k++) {
            emu_set_tensor_core((i + k) % 2 ? EMU_GROUPS_OF_16 : EMU_GROUPS_OF_8);
            problem p = problem_of(packings[i], &shapes[k], false);
            check(&p, ALL_ORDERS & ~(1 << (i + k) % EMU_ORDERS), 2.5e-6);
            drop_problem(&p);
        }
}

/* Whole numbers and scales of one: every product and sum is a whole number below 2^24, so nothing is ever rounded. */
static void test_exact(void **state) {
    (void)state;
    emu_set_tensor_core(EMU_GROUPS_OF_8);
    for (size_t i = 0; i < N_QUANTIZED; i++) {
        problem p = make_problem(packings[i], 19, 512, 17, false, true);
        for (int64_t c = 0; c < p.n_tok * p.cols; c++) p.x[c] = (float)((int)(rng_u32() % 7) - 3);
        check(&p, 1 << i % EMU_ORDERS, 0);
        drop_problem(&p);
    }
}

/* What is not finite stays with its token. */
static void test_odd_activations(void **state) {
    (void)state;
    problem p = make_problem((packing){LLMQ_TYPE_Q4_1, 0}, 18, 64, 12, false, false);
    p.x[64 + 7] = NAN;
    p.x[3 * 64 + 40] = INFINITY;
    p.x[5 * 64] = -INFINITY, p.x[5 * 64 + 1] = 1e30f;
    for (int c = 0; c < 64; c++) p.x[7 * 64 + c] = 0;
    on_gpu g = put_on_gpu(&p);
    float y[12 * (18 + PAD)];
    emu_set_order(EMU_FORWARD, 0);
    run(&p, &g, y, "odd activations");
    for (int t = 0; t < 12; t++)
        for (int r = 0; r < 18; r++) {
            float v = y[t * (18 + PAD) + r];
            assert_true(t == 1 || t == 3 || t == 5 ? !isfinite(v) : t == 7 ? v == 0 : isfinite(v));
        }
    drop_from_gpu(&g);
    drop_problem(&p);
}

/* Rows of any magnitude, those of one side by side: by gemm with and without shared columns. */
static void test_magnitudes(void **state) {
    (void)state;
    static const packing some[] = {{LLMQ_TYPE_Q4_1, 0}, {LLMQ_TYPE_Q6_K, 0}, {LLMQ_TYPE_F16, 0}, {LLMQ_TYPE_Q5_0, 128}};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        for (int shared = 0; shared < 2; shared++) {
            problem p = make_problem(some[i], 18, shared ? 1280 : 256, N_MAGNITUDES + 5, i == 0, false);
            set_magnitudes(&p);
            check(&p, 1 << EMU_FORWARD | 1 << EMU_SHUFFLED, 2.5e-6);
            drop_problem(&p);
        }
}

/* Column c of the file's order in rows of f16 (cuda/gemm.h). */
static int64_t place_of(int64_t c) {
    return c / 16 * 16 + c % 16 / 2 + c % 2 * 8;
}

static void test_unpack_rows(void **state) {
    (void)state;
    for (size_t i = 0; i < N_PACKINGS; i++) {
        problem p = problem_of(packings[i], &(struct shape){37, 17, 1, false}, false);
        cuda_matrix w = weights_on_gpu(&p);
        int64_t ld = cuda_acts_rows_ld(p.cols), padded = p.group ? p.cols : (p.cols + 63) / 64 * 64;
        size_t n = (size_t)(p.rows * ld);
        uint16_t *out = output_of("unpacked", n * sizeof *out), *got = calloc(n, sizeof *got);
        float *row = malloc((size_t)p.cols * sizeof *row);
        llmq_err err;
        assert_int_equal(gpu_upload(out, got, n * sizeof *got, &err), LLMQ_OK);
        emu_set_order((emu_order)(i % EMU_ORDERS), 3);
        cuda_unpack_rows(NULL, &w, out);
        from_device(got, out, n * sizeof *got, "unpack");
        for (int64_t r = 0; r < p.rows; r++) {
            type_to_f32(p.type, p.native + r * type_row_bytes(p.type, p.cols), row, p.cols);
            for (int64_t c = 0; c < padded; c++) {
                float want = c < p.cols ? row[c] : 0, v = f16_to_f32(got[r * ld + place_of(c)]);
                float once = 4.9e-4f * fabsf(want);
                float tol = p.type == LLMQ_TYPE_F16 ? 0
                            : (!p.group && cuda_packed_type(p.type) == LLMQ_TYPE_F16) || in_f16_levels(p.type)
                                ? 2 * once      /* values or levels, then their products with a scale */
                                : once + 2e-5f; /* the minimum's own rounding */
                if (!(fabsf(v - want) <= tol))
                    fail_msg("%s: row %d column %d is %g, expected %g", name_of(&p), (int)r, (int)c, (double)v,
                             (double)want);
            }
        }
        gpu_free(out), free(got), free(row);
        drop_weights(&w);
        drop_problem(&p);
    }
}

/* ---- the entry */

/* rounding: of the weights as well, where they become f16; y (n_tok, rows + PAD) */
static void check_matmul(const problem *p, const double *x, cuda_acts acts, size_t scratch_bytes, cuda_blas *blas,
                         double rounding, float *y) {
    size_t n = (size_t)(p->n_tok * p->rows);
    double *want = malloc(n * sizeof *want), *mag = malloc(n * sizeof *mag);
    void *forms = output_of("forms", cuda_input_bytes(p->n_tok, p->cols));
    float *x_on_gpu = input_of("x", p->x, (size_t)(p->n_tok * p->cols) * sizeof(float));
    float *y_on_gpu = output_of("y", (size_t)(p->n_tok * (p->rows + PAD)) * sizeof(float));
    cuda_scratch scratch = {scratch_bytes ? output_of("scratch", scratch_bytes) : NULL, scratch_bytes, blas, false};
    cuda_matrix w = weights_on_gpu(p);
    cuda_input in = cuda_input_of((cuda_source){.x = x_on_gpu}, NULL, p->n_tok, p->cols, acts, forms);
    llmq_err err;
    char what[96];
    snprintf(what, sizeof what, "matmul %s, %d tokens, %zu bytes of scratch", name_of(p), p->n_tok, scratch_bytes);
    reference(p, x, want, mag);
    for (int time = 0; time < 2; time++) { /* the second finds its input's form made */
        fill_guards(p, y_on_gpu);
        if (cuda_matmul(NULL, &w, &in, y_on_gpu, p->rows + PAD, &scratch, &err) != LLMQ_OK) fail_msg("%s", err.msg);
        take(p, y_on_gpu, y, what);
        compare(p, y, want, mag, rounding, what);
    }
    gpu_free(forms), gpu_free(x_on_gpu), gpu_free(y_on_gpu), gpu_free(scratch.memory);
    drop_weights(&w);
    free(want), free(mag);
}

static void test_matmul(void **state) {
    (void)state;
    static const struct {
        packing k;
        int n_tok;
        bool blas;
        double tol;
        cuda_acts acts;
    } cases[] = {{{LLMQ_TYPE_F16, 0}, 8, false, 2.5e-6, CUDA_ACTS_F16},
                 {{LLMQ_TYPE_Q4_K, 0}, 9, true, 2.5e-6, CUDA_ACTS_Q8},
                 {{LLMQ_TYPE_Q4_0, 0}, 257, false, 2.5e-6, CUDA_ACTS_Q8},
                 {{LLMQ_TYPE_Q4_1, 0}, 257, true, 5e-4, CUDA_ACTS_F16},
                 {{LLMQ_TYPE_Q6_K, 0}, 260, true, 5e-4, CUDA_ACTS_F16},
                 {{LLMQ_TYPE_F16, 0}, 300, true, 1e-6, CUDA_ACTS_F16},
                 {{LLMQ_TYPE_NF4, 0}, 5, false, 2.5e-6, CUDA_ACTS_Q8},
                 {{LLMQ_TYPE_FP4, 0}, 300, true, 1e-3, CUDA_ACTS_F16},
                 {{LLMQ_TYPE_Q4_1, 128}, 257, true, 5e-4, CUDA_ACTS_F16},
                 {{LLMQ_TYPE_Q8_0, 0}, 8, false, 2.5e-6, CUDA_ACTS_F16}};
    cuda_blas *blas;
    llmq_err err;
    if (cuda_blas_create(&blas, &err) != LLMQ_OK) { /* a GPU, but no cuBLAS: gemm takes all */
        assert_false(emu_here());
        print_message("%s\n", err.msg);
    }
    emu_set_order(EMU_FORWARD, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p = problem_of(cases[i].k, &(struct shape){41, 8, cases[i].n_tok, true}, false);
        double *x = rounded_f16(&p);
        float *y = malloc((size_t)(p.n_tok * (p.rows + PAD)) * sizeof *y);
        size_t bytes = cuda_scratch_bytes(p.n_tok, p.rows, p.cols);
        check_matmul(&p, x, cases[i].acts, bytes, cases[i].blas ? blas : NULL, cases[i].tol, y);
        if (cases[i].blas && p.n_tok > 256) { /* two slabs of rows; none fits: gemm */
            check_matmul(&p, x, cases[i].acts, (size_t)(39 * cuda_acts_rows_ld(p.cols)) * 2, blas, cases[i].tol, y);
            check_matmul(&p, x, cases[i].acts, 0, blas, 2.5e-6, y);
        }
        free(x), free(y);
        drop_problem(&p);
    }
    for (int bias = 0; bias < 2; bias++) { /* tokens that are brought back, some that are not */
        problem p = problem_of((packing){LLMQ_TYPE_F16, 0}, &(struct shape){20, 3, 257, bias}, false);
        set_magnitudes(&p);
        double *x = rounded_f16(&p);
        float *y = malloc((size_t)(p.n_tok * (p.rows + PAD)) * sizeof *y);
        check_matmul(&p, x, CUDA_ACTS_F16, cuda_scratch_bytes(p.n_tok, p.rows, p.cols), blas, 1e-6, y);
        free(x), free(y);
        drop_problem(&p);
    }
    cuda_blas_destroy(blas);
}

static void count_warnings(void *user, llmq_log_level level, const char *line) {
    if (level == LLMQ_LOG_WARN && strstr(line, "cuBLAS")) (*(int *)user)++;
}

/* cuBLAS that once finds no memory is not asked again: gemm takes over. */
static void test_blas_without_memory(void **state) {
    (void)state;
    if (!emu_here()) skip(); /* there, memory is what it is */
    problem p = problem_of((packing){LLMQ_TYPE_Q4_0, 0}, &(struct shape){20, 3, 257, true}, false);
    const size_t n = (size_t)(p.n_tok * p.rows), bytes = cuda_scratch_bytes(p.n_tok, p.rows, p.cols);
    double *x = rounded_f16(&p), *want = malloc(n * sizeof *want), *mag = malloc(n * sizeof *mag);
    float *y = malloc((size_t)(p.n_tok * (p.rows + PAD)) * sizeof *y);
    void *forms = output_of("forms", cuda_input_bytes(p.n_tok, p.cols));
    float *x_on_gpu = input_of("x", p.x, (size_t)(p.n_tok * p.cols) * sizeof(float));
    float *y_on_gpu = output_of("y", (size_t)(p.n_tok * (p.rows + PAD)) * sizeof(float));
    cuda_scratch scratch = {.memory = output_of("scratch", bytes), .bytes = bytes};
    cuda_matrix w = weights_on_gpu(&p);
    llmq_err err;
    int warnings = 0;
    assert_int_equal(cuda_blas_create(&scratch.blas, &err), LLMQ_OK);
    reference(&p, x, want, mag);
    llmq_log_set(count_warnings, &warnings);
    const int64_t before = emu_products();
    emu_fail_product();
    for (int time = 0; time < 2; time++) {
        cuda_input in = cuda_input_of((cuda_source){.x = x_on_gpu}, NULL, p.n_tok, p.cols, CUDA_ACTS_F16, forms);
        fill_guards(&p, y_on_gpu);
        assert_int_equal(cuda_matmul(NULL, &w, &in, y_on_gpu, p.rows + PAD, &scratch, &err), LLMQ_OK);
        take(&p, y_on_gpu, y, "without cuBLAS");
        compare(&p, y, want, mag, 2.5e-6, "without cuBLAS");
        assert_int_equal(emu_products() - before, 1);
        assert_int_equal(warnings, 1);
    }
    llmq_log_set(NULL, NULL);
    cuda_blas_destroy(scratch.blas);
    gpu_free(forms), gpu_free(x_on_gpu), gpu_free(y_on_gpu), gpu_free(scratch.memory);
    drop_weights(&w), drop_problem(&p);
    free(x), free(want), free(mag), free(y);
}

/* 8-bit activations where they are chosen and the weights have codes: other bits than f16 makes, and the rounding of
 * half a 127th of the largest of 32. */
static void test_chosen_acts(void **state) {
    (void)state;
    static const llmq_type some[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q6_K, LLMQ_TYPE_F16};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        problem p = problem_of((packing){some[i], 0}, &(struct shape){20, 8, 3, false}, false);
        double *x = rounded_f16(&p);
        float y[2][3 * (20 + PAD)];
        for (int acts = 0; acts < 2; acts++)
            check_matmul(&p, x, (cuda_acts)acts, 0, NULL, acts ? 8e-3 : 2.5e-6, y[acts]);
        assert_true((memcmp(y[0], y[1], sizeof y[0]) != 0) == (some[i] != LLMQ_TYPE_F16));
        free(x);
        drop_problem(&p);
    }
}

/* ---- weights of Hugging Face's schemes, as formats/schemes/read.c hands them on */

typedef enum hf_kind { HF_SYMMETRIC, HF_EXACT_MINS, HF_ZERO_POINTS, HF_INT8_ROWS, HF_NF4 } hf_kind;

static llmq_type hf_type(hf_kind kind) {
    static const llmq_type as[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q4_1, LLMQ_TYPE_Q5_0, LLMQ_TYPE_Q8_0, LLMQ_TYPE_F16};
    return as[kind];
}

/* One block of 32 of a group with this scale and zero; w: what the scheme says that it means. */
static void put_hf_block(hf_kind kind, float scale, int zero, uint8_t *block, double *w) {
    const llmq_type_info *t = type_info(hf_type(kind));
    const float *nf4 = nf4_grid(false, 64, false)->levels;
    llmq_grid grid = {.d = scale, .scale = {scale}};
    uint8_t codes[32];
    grid.dmin = grid.offset[0] = kind == HF_EXACT_MINS ? -scale * (float)zero : 0;
    for (int i = 0; i < 32; i++) {
        codes[i] = (uint8_t)(rng_u32() % (kind == HF_INT8_ROWS ? 256 : 16));
        w[i] = (double)scale * (kind == HF_NF4 ? (double)nf4[codes[i]] : codes[i] - zero);
        if (kind == HF_ZERO_POINTS) codes[i] = (uint8_t)(codes[i] + 16 - zero);
        if (kind != HF_NF4) continue;
        uint16_t half = f32_to_f16((float)w[i]);
        memcpy(block + 2 * i, &half, 2);
        w[i] = (double)f16_to_f32(half);
    }
    if (kind != HF_NF4) t->pack(&grid, codes, block);
}

static int hf_zero(hf_kind kind) {
    if (kind == HF_ZERO_POINTS) return (int)(rng_u32() % 16);
    return kind == HF_SYMMETRIC ? 8 : kind == HF_INT8_ROWS ? 128 : 2 << rng_u32() % 3;
}

/* Groups of 32, 64 and 128, and whole rows of 8 bits; 4 tokens and 18, against the scheme's own formula. */
static void test_hf_groups(void **state) {
    (void)state;
    enum { ROWS = 37, COLS = 384 };
    double w[COLS];
    for (int i = 0; i < 13; i++) {
        hf_kind kind = i < 12 ? (hf_kind)(i / 3 < 3 ? i / 3 : HF_NF4) : HF_INT8_ROWS;
        int group = kind == HF_INT8_ROWS ? COLS : 32 << i % 3, n_tok = i % 2 ? 4 : 18;
        problem p = make_problem((packing){hf_type(kind), 0}, ROWS, COLS, n_tok, false, false);
        int64_t block_bytes = type_row_bytes(p.type, 32);
        double *wanted = malloc((size_t)(n_tok * ROWS) * sizeof *wanted),
               *mags = malloc((size_t)(n_tok * ROWS) * sizeof *mags);
        double *x = rounded_f16(&p);
        for (int r = 0; r < ROWS; r++) {
            float scale = 0;
            int zero = 0;
            for (int c = 0; c < COLS; c += 32) {
                if (c % group == 0) scale = f16_to_f32(f32_to_f16(uniform(0.01f, 0.1f)));
                if (c % group == 0) zero = hf_zero(kind);
                put_hf_block(kind, scale, zero, p.native + (r * (COLS / 32) + c / 32) * block_bytes, w + c);
            }
            for (int t = 0; t < n_tok; t++) {
                double want = 0, mag = 0;
                for (int c = 0; c < COLS; c++) want += w[c] * x[t * COLS + c], mag += fabs(w[c] * x[t * COLS + c]);
                wanted[t * ROWS + r] = want, mags[t * ROWS + r] = mag;
            }
        }
        p.group = cuda_group_of(p.type, cuda_shared_columns(p.type, ROWS, COLS, p.native), COLS);
        assert_int_equal(p.group, kind == HF_ZERO_POINTS || (i < 6 && group > 32) ? group : 0);
        void *forms = output_of("forms", cuda_input_bytes(n_tok, COLS));
        float *x_on_gpu = input_of("x", p.x, (size_t)(n_tok * COLS) * sizeof(float)), y[18 * (ROWS + PAD)];
        float *y_on_gpu = output_of("y", (size_t)(n_tok * (ROWS + PAD)) * sizeof(float));
        cuda_matrix m = weights_on_gpu(&p);
        cuda_input in = cuda_input_of((cuda_source){.x = x_on_gpu}, NULL, n_tok, COLS, CUDA_ACTS_F16, forms);
        cuda_scratch none = {0};
        llmq_err err;
        emu_set_order((emu_order)(i % EMU_ORDERS), 8);
        fill_guards(&p, y_on_gpu);
        assert_int_equal(cuda_matmul(NULL, &m, &in, y_on_gpu, ROWS + PAD, &none, &err), LLMQ_OK);
        take(&p, y_on_gpu, y, "groups");
        compare(&p, y, wanted, mags, 2.5e-6, name_of(&p));
        gpu_free(forms), gpu_free(x_on_gpu), gpu_free(y_on_gpu), drop_weights(&m), drop_problem(&p);
        free(wanted), free(mags), free(x);
    }
}

/* Enough for less is enough for more: a buffer that was made for the largest product serves all. */
static void test_sizes(void **state) {
    (void)state;
    static const int64_t tokens[] = {1, 8, 9, 16, 17, 33, 64, 65, 256, 257, 700}, dims[] = {1, 64, 300, 4096, 9000};
    for (int t = 0; t + 1 < 11; t++)
        for (int d = 0; d + 1 < 5; d++) {
            assert_true(cuda_input_bytes(tokens[t], dims[d]) <= cuda_input_bytes(tokens[t + 1], dims[d]));
            assert_true(cuda_input_bytes(tokens[t], dims[d]) <= cuda_input_bytes(tokens[t], dims[d + 1]));
            assert_true(cuda_scratch_bytes(tokens[t], dims[d], 512) <= cuda_scratch_bytes(tokens[t + 1], dims[d], 512));
            assert_true(cuda_scratch_bytes(tokens[t], dims[d], 512) <= cuda_scratch_bytes(tokens[t], dims[d + 1], 512));
            assert_true(cuda_scratch_bytes(tokens[t], 512, dims[d]) <= cuda_scratch_bytes(tokens[t], 512, dims[d + 1]));
        }
    assert_int_equal(cuda_scratch_bytes(8, 4096, 4096), 0);
    assert_int_equal(cuda_scratch_bytes(1000, 128000, 4096), 64 << 20);
}

/* In shared memory nothing meets in a bank; weights and activations are read in whole sectors. */
static void test_traffic(void **state) {
    (void)state;
    if (!emu_here()) skip(); /* nothing counts there */
    for (size_t i = 0; i < N_PACKINGS; i++)
        for (int n_tok = 16; n_tok <= 64; n_tok *= 2) {
            problem p = make_problem(packings[i], 128, 512, n_tok, false, false);
            float *y = malloc((size_t)(p.n_tok * (p.rows + PAD)) * sizeof *y);
            on_gpu g = put_on_gpu(&p);
            emu_set_order(EMU_FORWARD, 0);
            emu_count(true);
            run(&p, &g, y, "traffic");
            emu_count(false);
            emu_traffic list[64];
            int n = emu_traffic_list(list, 64), shared_lines = 0;
            for (int k = 0; k < n; k++) {
                bool checked =
                    list[k].shared || !list[k].write; /* y is written 32 bytes at a time where rows fill a sector */
                if (checked && list[k].needed != list[k].best)
                    fail_msg("%s, %d tokens: %s:%d needs %d where %d would do", name_of(&p), n_tok, list[k].file,
                             list[k].line, (int)list[k].needed, (int)list[k].best);
                shared_lines += list[k].shared;
            }
            assert_true(shared_lines > 3);
            drop_from_gpu(&g);
            drop_problem(&p);
            free(y);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),      cmocka_unit_test(test_exact),
        cmocka_unit_test(test_odd_activations), cmocka_unit_test(test_magnitudes),
        cmocka_unit_test(test_unpack_rows),     cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_chosen_acts),     cmocka_unit_test(test_blas_without_memory),
        cmocka_unit_test(test_sizes),           cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_hf_groups),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
