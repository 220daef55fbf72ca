/* The decode kernels of every weight type, under the emulator, against double arithmetic on what the CPU's oracle makes
 * of the same weights and activations: odd rows and columns, 1 to 8 tokens, every thread order, both models of a tensor
 * core. */
#include "gpu.h"

#include "core/half.h"
#include "core/mem.h"
#include "cpu/layout.h"
#include "types/type.h"

/* Those with a layout of their own come first, then some that become f16. */
static const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q4_1, LLMQ_TYPE_IQ4_NL, LLMQ_TYPE_Q8_0, LLMQ_TYPE_Q4_K,
                                  LLMQ_TYPE_Q6_K, LLMQ_TYPE_F16,  LLMQ_TYPE_F32,    LLMQ_TYPE_Q5_1, LLMQ_TYPE_Q3_K};
#define N_TYPES (sizeof types / sizeof *types)
#define N_QUANTIZED 6

typedef struct problem {
    llmq_type type;
    int64_t rows, cols;
    int n_tok;
    uint8_t *native;
    float *x, *bias; /* bias may be NULL */
} problem;

/* exact: scales of one, and inputs that are whole numbers up to 127 with one of 127 in each group: no rounding at all.
 */
static void random_block(const llmq_type_info *info, uint8_t *block, bool exact) {
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    for (int i = 0; i < info->block_bytes; i++) block[i] = (uint8_t)(rng_u32() >> 5);
    info->unpack(block, &grid, codes);
    grid.d = grid.scale[0] =
        exact ? 1.0f : f16_to_f32(f32_to_f16(uniform(0.5f, 1.5f) * (rng_u32() & 1 ? 1.0f : -1.0f)));
    grid.dmin = grid.offset[0] = exact ? 2.0f : f16_to_f32(f32_to_f16(uniform(-1.0f, 1.0f)));
    if (exact)
        for (int g = 0; g < TYPE_MAX_GROUPS; g++) grid.sc[g] = (int8_t)(grid.sc[g] & 3);
    info->pack(&grid, codes, block);
}

static problem make_problem(llmq_type type, int64_t rows, int64_t cols, int n_tok, bool bias, bool exact) {
    const llmq_type_info *info = type_info(type);
    int64_t bytes = type_row_bytes(type, cols) * rows;
    problem p = {type, rows, cols, n_tok, malloc((size_t)bytes), NULL, NULL};
    if (type_is_float(info)) {
        float *w = random_floats((size_t)(rows * cols), -1, 1);
        info->from_f32(w, p.native, rows * cols);
        free(w);
    }
    for (int64_t b = 0; !type_is_float(info) && b < bytes; b += info->block_bytes)
        random_block(info, p.native + b, exact);
    p.x = random_floats((size_t)(n_tok * cols), -2, 2);
    if (exact)
        for (int64_t i = 0; i < n_tok * cols; i++) p.x[i] = i % 32 == 7 ? 127.0f : (float)((int)(rng_u32() % 15) - 7);
    if (bias) p.bias = random_floats((size_t)rows, -9, 9);
    return p;
}

static void drop_problem(problem *p) {
    free(p->native), free(p->x), free(p->bias);
}

/* ---- what it should be */

typedef struct fill_args {
    llmq_acts acts;
} fill_args;
static void fill_worker(const llmq_worker *w, void *arg) {
    backend_cpu_isa("c")->acts_fill(w, &((fill_args *)arg)->acts, ACT_Q8);
}

/* x rounded to 8 bits by the CPU, as floats; codes (n_tok, cols) if wanted */
static double *rounded_q8(const problem *p) {
    fill_args f = {{.n_tok = p->n_tok, .cols = p->cols, .x = p->x}};
    f.acts.q8 = mem_alloc(backend_cpu_isa("c")->acts_bytes(ACT_Q8, p->n_tok, p->cols), 1);
    team_run(team, fill_worker, &f);
    double *x = malloc((size_t)(p->n_tok * p->cols) * sizeof *x);
    for (int t = 0; t < p->n_tok; t++)
        for (int64_t c = 0; c < p->cols; c++) {
            act_block b = act_block_at(&f.acts, 0);
            int64_t g = c / 32 * b.n + t;
            x[t * p->cols + c] = (double)b.group[g].d * b.q[g * 32 + c % 32];
        }
    mem_free(f.acts.q8);
    return x;
}

static double *rounded_f16(const problem *p) {
    double *x = malloc((size_t)(p->n_tok * p->cols) * sizeof *x);
    for (int64_t i = 0; i < p->n_tok * p->cols; i++) x[i] = (double)f16_to_f32(f32_to_f16(p->x[i]));
    return x;
}

/* want and the sum of magnitudes of every product (n_tok, rows), weights as the device has them */
static void reference(const problem *p, const double *x, double *want, double *mag) {
    int64_t row_bytes = type_row_bytes(p->type, p->cols);
    float *w = malloc((size_t)p->cols * sizeof *w);
    for (int64_t r = 0; r < p->rows; r++) {
        type_to_f32(p->type, p->native + r * row_bytes, w, p->cols);
        if (cuda_packed_type(p->type) == LLMQ_TYPE_F16)
            for (int64_t c = 0; c < p->cols; c++) w[c] = f16_to_f32(f32_to_f16(w[c]));
        for (int t = 0; t < p->n_tok; t++) {
            double sum = p->bias ? (double)p->bias[r] : 0, m = fabs(sum);
            for (int64_t c = 0; c < p->cols; c++) {
                sum += (double)w[c] * x[t * p->cols + c];
                m += fabs((double)w[c] * x[t * p->cols + c]);
            }
            want[t * p->rows + r] = sum;
            mag[t * p->rows + r] = m;
        }
    }
    free(w);
}

/* ---- what it is */

#define PAD 3 /* floats between rows of y */

typedef struct on_gpu {
    cuda_matrix w;
    void *packed, *bias, *x, *acts, *y;
    bool f16;
} on_gpu;

static on_gpu put_on_gpu(const problem *p, bool f16) {
    llmq_type type = cuda_packed_type(p->type);
    size_t bytes = cuda_pack_bytes(type, p->rows, p->cols);
    llmq_err err;
    assert_true(bytes > 0);
    void *packed = malloc(bytes);
    if (cuda_pack(p->type, p->rows, p->cols, p->native, packed, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    on_gpu g = {.f16 = f16, .packed = input_of("weights", packed, bytes)};
    free(packed);
    if (p->bias) g.bias = input_of("bias", p->bias, (size_t)p->rows * sizeof(float));
    g.x = input_of("x", p->x, (size_t)(p->n_tok * p->cols) * sizeof(float));
    g.acts = output_of("activations", (f16 ? cuda_acts_f16_bytes : cuda_acts_q8_bytes)(p->n_tok, p->cols));
    g.y = output_of("y", (size_t)(p->n_tok * (p->rows + PAD)) * sizeof(float));
    g.w = (cuda_matrix){type, p->rows, p->cols, g.packed, g.bias};
    return g;
}

static void drop_from_gpu(on_gpu *g) {
    gpu_free(g->packed), gpu_free(g->bias), gpu_free(g->x), gpu_free(g->acts), gpu_free(g->y);
}

/* y (n_tok, rows + PAD): what lies between the rows has to stay as it was. */
static void run(const problem *p, const on_gpu *g, float *y, const char *what) {
    size_t n = (size_t)(p->n_tok * (p->rows + PAD));
    const float guard = 7.25e7f;
    llmq_err err;
    for (size_t i = 0; i < n; i++) y[i] = guard;
    assert_int_equal(gpu_upload(g->y, y, n * sizeof *y, &err), LLMQ_OK);
    (g->f16 ? cuda_acts_f16 : cuda_acts_q8)(NULL, g->x, p->n_tok, p->cols, g->acts);
    (g->f16 ? cuda_matvec_f16 : cuda_matvec_q8)(NULL, &g->w, g->acts, p->n_tok, g->y, p->rows + PAD);
    from_device(y, g->y, n * sizeof *y, what);
    for (int t = 0; t < p->n_tok; t++)
        for (int i = 0; i < PAD; i++) assert_true(y[t * (p->rows + PAD) + p->rows + i] == guard);
}

static void compare(const problem *p, const float *y, const double *want, const double *mag, double tol,
                    const char *what) {
    for (int t = 0; t < p->n_tok; t++)
        for (int64_t r = 0; r < p->rows; r++) {
            double error = fabs((double)y[t * (p->rows + PAD) + r] - want[t * p->rows + r]);
            if (!(error <= tol * (mag[t * p->rows + r] + 1e-30)))
                fail_msg("%s: row %d token %d is %g, expected %g", what, (int)r, t, (double)y[t * (p->rows + PAD) + r],
                         want[t * p->rows + r]);
        }
}

/* One problem in every order: close to the reference, and the same bits whatever the order. */
static void check(const problem *p, bool f16, double tol) {
    size_t n = (size_t)(p->n_tok * p->rows), n_y = (size_t)(p->n_tok * (p->rows + PAD));
    double *x = f16 ? rounded_f16(p) : rounded_q8(p), *want = malloc(n * sizeof *want), *mag = malloc(n * sizeof *mag);
    float *y = malloc(n_y * sizeof *y), *first = malloc(n_y * sizeof *first);
    reference(p, x, want, mag);
    on_gpu g = put_on_gpu(p, f16);
    char what[96];
    for (int order = 0; order < EMU_ORDERS; order++) {
        snprintf(what, sizeof what, "%s %s rows %d cols %d tokens %d order %d", type_info(p->type)->name,
                 f16 ? "f16" : "q8", (int)p->rows, (int)p->cols, p->n_tok, order);
        emu_set_order((emu_order)order, 5);
        run(p, &g, y, what);
        compare(p, y, want, mag, tol, what);
        if (order == 0) memcpy(first, y, n_y * sizeof *y);
        assert_memory_equal(y, first, n_y * sizeof *y);
    }
    drop_from_gpu(&g);
    free(x), free(want), free(mag), free(y), free(first);
}

static const struct shape {
    int64_t rows, blocks; /* columns in units of 32, or of 256 for the K types: then an eighth of it, at least one */
    int n_tok;
    bool bias;
} shapes[] = {{16, 2, 1, false}, {1, 1, 8, true},  {33, 9, 3, false},
              {17, 24, 2, true}, {50, 5, 5, true}, {7, 41, 7, false}};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static problem problem_of(llmq_type type, const struct shape *s, bool exact) {
    int64_t unit = type_info(type)->block_len, blocks = unit == 32 ? s->blocks : (s->blocks + 7) / 8;
    if (type_is_float(type_info(type))) unit = 1, blocks = 27 * s->blocks + 1;
    return make_problem(type, s->rows, blocks * unit, s->n_tok, s->bias && !exact, exact);
}

/* Groups of 32 are summed in integers; the few f32 sums over groups are what the CPU's kernels have too. */
static void test_q8(void **state) {
    (void)state;
    for (size_t i = 0; i < N_QUANTIZED; i++)
        for (size_t k = 0; k < N_SHAPES; k++) {
            problem p = problem_of(types[i], &shapes[k], false);
            check(&p, false, 1e-6);
            drop_problem(&p);
        }
}

/* No rounding anywhere: equal. */
static void test_q8_exact(void **state) {
    (void)state;
    for (size_t i = 0; i < N_QUANTIZED; i++)
        for (size_t k = 0; k < N_SHAPES; k += 2) {
            problem p = problem_of(types[i], &shapes[k], true);
            check(&p, false, 0);
            drop_problem(&p);
        }
}

/* Products of f16 are exact; a tensor core cuts each of 8 (16) terms and the sum to 24 (25) bits: at most 18 units of
 * 2^-24 of the largest term, and twice that for the two halves of a group (ptx.md 1.3). */
static void test_f16(void **state) {
    (void)state;
    for (int model = 0; model < 2; model++) {
        emu_set_tensor_core(model ? EMU_GROUPS_OF_16 : EMU_GROUPS_OF_8);
        for (size_t i = 0; i < N_TYPES; i++)
            for (size_t k = (size_t)model; k < N_SHAPES; k += 2) {
                problem p = problem_of(types[i], &shapes[k], false);
                check(&p, true, 2.5e-6);
                drop_problem(&p);
            }
    }
}

/* Activations that are zero, tiny, huge or not finite do what they do on the CPU. */
static void test_odd_activations(void **state) {
    (void)state;
    problem p = make_problem(LLMQ_TYPE_Q8_0, 20, 64, 6, false, false);
    for (int c = 0; c < 64; c++) {
        p.x[c] = 0;
        p.x[64 + c] *= 1e-38f;
        p.x[128 + c] *= 1e30f;
    }
    p.x[3 * 64 + 40] = NAN;
    p.x[4 * 64 + 3] = INFINITY;
    p.x[5 * 64] = -INFINITY;
    p.x[5 * 64 + 1] = NAN;
    on_gpu g = put_on_gpu(&p, false);
    float y[6 * (20 + PAD)];
    emu_set_order(EMU_FORWARD, 0);
    run(&p, &g, y, "odd activations");
    for (int r = 0; r < 20; r++) {
        assert_true(y[r] == 0);
        assert_true(y[20 + PAD + r] == 0);
        assert_true(isfinite(y[2 * (20 + PAD) + r]));
        for (int t = 3; t < 6; t++) assert_false(isfinite(y[t * (20 + PAD) + r]));
    }
    drop_from_gpu(&g);
    drop_problem(&p);
}

/* Rows of the packed matrix come out as the file has them. */
static void test_embed(void **state) {
    (void)state;
    for (size_t i = 0; i < N_TYPES; i++) {
        problem p = problem_of(types[i], &(struct shape){37, 24, 5, false}, false);
        const int32_t tokens[5] = {36, 0, 7, 8, 19};
        on_gpu g = put_on_gpu(&p, false);
        float tol = cuda_packed_type(p.type) == LLMQ_TYPE_F16 ? 5e-4f : 1e-6f;
        int32_t *ids = input_of("tokens", tokens, sizeof tokens);
        size_t n = (size_t)(5 * p.cols);
        float *y = output_of("embedding", n * sizeof *y), *got = malloc(n * sizeof *got),
              *row = malloc(n * sizeof *row);
        cuda_embed(NULL, &g.w, ids, 5, y);
        from_device(got, y, n * sizeof *got, "embed");
        for (int t = 0; t < 5; t++) {
            type_to_f32(p.type, p.native + tokens[t] * type_row_bytes(p.type, p.cols), row, p.cols);
            for (int64_t c = 0; c < p.cols; c++)
                if (fabsf(got[t * p.cols + c] - row[c]) > tol * (tol < 1e-5f ? 1 + fabsf(row[c]) : fabsf(row[c])))
                    fail_msg("%s: token %d column %d is %g, expected %g", type_info(p.type)->name, t, (int)c,
                             (double)got[t * p.cols + c], (double)row[c]);
        }
        gpu_free(ids), gpu_free(y), free(got), free(row);
        drop_from_gpu(&g);
        drop_problem(&p);
    }
}

/* Weights are read in whole sectors, once, and nothing meets in a bank of shared memory. */
static void test_traffic(void **state) {
    (void)state;
    if (!emu_here()) skip(); /* nothing counts there */
    for (size_t i = 0; i < N_QUANTIZED + 1; i++) {
        bool f16 = types[i] == LLMQ_TYPE_F16;
        problem p = make_problem(types[i], 32, 1024, 8, false, false);
        float *y = malloc((size_t)(p.n_tok * (p.rows + PAD)) * sizeof *y);
        on_gpu g = put_on_gpu(&p, f16);
        emu_set_order(EMU_FORWARD, 0);
        emu_count(true);
        run(&p, &g, y, "traffic");
        emu_count(false);
        emu_traffic list[64];
        int n = emu_traffic_list(list, 64);
        int64_t sectors = 0;
        for (int k = 0; k < n; k++) {
            bool weights = strcmp(list[k].file, "dequant.cuh") == 0;
            if ((list[k].shared || weights) && list[k].needed != list[k].best)
                fail_msg("%s: %s:%d needs %d where %d would do", type_info(p.type)->name, list[k].file, list[k].line,
                         (int)list[k].needed, (int)list[k].best);
            if (weights) sectors += list[k].needed;
        }
        assert_int_equal(sectors * 32, cuda_pack_bytes(p.type, p.rows, p.cols));
        drop_from_gpu(&g);
        drop_problem(&p);
        free(y);
    }
}

static void test_pack_sizes(void **state) {
    (void)state;
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 16, 64), 576);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 17, 96), 4 * 576);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q6_K, 16, 512), 2 * 3360);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 16, 65), 0);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_F16, 17, 65), 4 * 2048);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q5_K, 16, 256), 0);
    assert_int_equal(cuda_packed_type(LLMQ_TYPE_Q5_K), LLMQ_TYPE_F16);
    assert_int_equal(cuda_packed_type(LLMQ_TYPE_Q4_K), LLMQ_TYPE_Q4_K);
    float large = 7e4f;
    uint8_t packed[2048];
    llmq_err err;
    assert_int_equal(cuda_pack(LLMQ_TYPE_F32, 1, 1, &large, packed, &err), LLMQ_E_NUMERIC);
    mem_fail_after(2);
    assert_int_equal(cuda_pack(LLMQ_TYPE_F32, 1, 1, &large, packed, &err), LLMQ_E_MEMORY);
    mem_fail_after(0);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 0, 64), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8),         cmocka_unit_test(test_q8_exact),
        cmocka_unit_test(test_f16),        cmocka_unit_test(test_odd_activations),
        cmocka_unit_test(test_embed),      cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_pack_sizes),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
