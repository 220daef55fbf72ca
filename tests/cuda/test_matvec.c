/* The decode kernels of every weight type, under the emulator, against double arithmetic on what the CPU's oracle makes
 * of the same weights, and on activations rounded here: odd rows and columns, 1 to 8 tokens, every thread order, both
 * models of a tensor core. */
#include "products.h"

#include "core/mem.h"
#include "cuda/matmul.h"

/* ---- what it should be */

/* x rounded to 8 bits, as floats: d = absmax / 127 for each 32. */
static double *rounded_q8(const problem *p) {
    double *out = malloc((size_t)(p->n_tok * p->cols) * sizeof *out);
    for (int64_t i = 0; i < p->n_tok * p->cols;) {
        int64_t left = p->cols - i % p->cols, end = i + (left < 32 ? left : 32);
        float amax = 0;
        for (int64_t k = i; k < end; k++) amax = fmaxf(amax, fabsf(p->x[k]));
        for (; i < end; i++) out[i] = amax > 0 ? (double)(amax / 127.0f) * (double)rintf(p->x[i] * (127.0f / amax)) : 0;
    }
    return out;
}

/* ---- what it is */

typedef struct on_gpu {
    cuda_matrix w;
    cuda_source source;
    void *acts, *y;
    bool f16;
} on_gpu;

static on_gpu put_on_gpu(const problem *p, bool f16) {
    on_gpu g = {.w = weights_on_gpu(p), .f16 = f16};
    g.source.x = input_of("x", p->x, (size_t)(p->n_tok * p->cols) * sizeof(float));
    g.acts = output_of("activations", (f16 ? cuda_acts_f16_bytes : cuda_acts_q8_bytes)(p->n_tok, p->cols));
    g.y = output_of("y", (size_t)(p->n_tok * (p->rows + PAD)) * sizeof(float));
    return g;
}

static void drop_from_gpu(on_gpu *g) {
    drop_weights(&g->w), gpu_free((void *)g->source.x), gpu_free((void *)g->source.gain),
        gpu_free((void *)g->source.up), gpu_free(g->acts), gpu_free(g->y);
}

/* y (n_tok, rows + PAD): what lies between the rows has to stay as it was. */
static void run(const problem *p, const on_gpu *g, float *y, const char *what) {
    size_t n = (size_t)(p->n_tok * (p->rows + PAD));
    const float guard = 7.25e7f;
    llmq_err err;
    for (size_t i = 0; i < n; i++) y[i] = guard;
    assert_int_equal(gpu_upload(g->y, y, n * sizeof *y, &err), LLMQ_OK);
    if (g->f16)
        cuda_acts_f16(NULL, &g->source, p->n_tok, p->cols, g->acts);
    else
        cuda_acts_q8(NULL, g->source.x, p->n_tok, p->cols, g->acts);
    (g->f16 ? cuda_matvec_f16 : cuda_matvec_q8)(NULL, &g->w, g->acts, p->n_tok, g->y, p->rows + PAD);
    from_device(y, g->y, n * sizeof *y, what);
    for (int t = 0; t < p->n_tok; t++)
        for (int i = 0; i < PAD; i++) assert_true(y[t * (p->rows + PAD) + p->rows + i] == guard);
}

/* Products with the activations x in every order: close to the reference, and the same bits whatever the order: y
 * (n_tok, rows + PAD). */
static void check_orders(const problem *p, const on_gpu *g, const double *x, double tol, float *first) {
    size_t n = (size_t)(p->n_tok * p->rows), n_y = (size_t)(p->n_tok * (p->rows + PAD));
    double *want = malloc(n * sizeof *want), *mag = malloc(n * sizeof *mag);
    float *y = malloc(n_y * sizeof *y);
    char what[96];
    reference(p, x, want, mag);
    for (int order = 0; order < EMU_ORDERS; order++) {
        snprintf(what, sizeof what, "%s %s rows %d cols %d tokens %d order %d", name_of(p), g->f16 ? "f16" : "q8",
                 (int)p->rows, (int)p->cols, p->n_tok, order);
        emu_set_order((emu_order)order, 5);
        run(p, g, y, what);
        compare(p, y, want, mag, tol, what);
        if (order == 0) memcpy(first, y, n_y * sizeof *y);
        assert_memory_equal(y, first, n_y * sizeof *y);
    }
    free(want), free(mag), free(y);
}

static void check(const problem *p, bool f16, double tol) {
    double *x = f16 ? rounded_f16(p) : rounded_q8(p);
    float *y = malloc((size_t)(p->n_tok * (p->rows + PAD)) * sizeof *y);
    on_gpu g = put_on_gpu(p, f16);
    check_orders(p, &g, x, tol, y);
    drop_from_gpu(&g);
    free(x), free(y);
}

static const struct shape {
    int64_t rows, blocks; /* columns in units of 32, or of 256 for the K types: then an eighth of it, at least one */
    int n_tok;
    bool bias;
} shapes[] = {{16, 2, 1, false}, {1, 1, 8, true},  {33, 9, 3, false},
              {17, 24, 2, true}, {50, 5, 5, true}, {7, 41, 7, false}};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static problem problem_of(packing k, const struct shape *s, bool exact) {
    int64_t unit = type_info(k.type)->block_len, blocks = unit == 32 ? s->blocks : (s->blocks + 7) / 8;
    if (type_is_float(type_info(k.type))) unit = 1, blocks = 27 * s->blocks + 1;
    return make_problem(k, s->rows, blocks * unit, s->n_tok, s->bias && !exact, exact);
}

/* Groups of 32 are summed in integers; the few f32 sums over groups are what the CPU's kernels have too. */
static void test_q8(void **state) {
    (void)state;
    for (size_t i = 0; i < N_QUANTIZED; i++)
        for (size_t k = 0; k < N_SHAPES; k++) {
            problem p = problem_of(packings[i], &shapes[k], false);
            check(&p, false, 1e-6);
            drop_problem(&p);
        }
}

/* No rounding anywhere: equal. */
static void test_q8_exact(void **state) {
    (void)state;
    for (size_t i = 0; i < N_QUANTIZED; i++)
        for (size_t k = 0; k < N_SHAPES; k += 2) {
            problem p = problem_of(packings[i], &shapes[k], true);
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
        for (size_t i = 0; i < N_PACKINGS; i++)
            for (size_t k = (size_t)model; k < N_SHAPES; k += 2) {
                problem p = problem_of(packings[i], &shapes[k], false);
                check(&p, true, 2.5e-6);
                drop_problem(&p);
            }
    }
}

/* Activations that are zero, tiny, huge or not finite. */
static void test_odd_activations(void **state) {
    (void)state;
    problem p = make_problem((packing){LLMQ_TYPE_Q8_0, 0}, 20, 64, 6, false, false);
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

/* f16: whatever is finite stays finite and close, what is not shows. */
static void test_magnitudes(void **state) {
    (void)state;
    static const packing some[] = {
        {LLMQ_TYPE_Q4_0, 0}, {LLMQ_TYPE_Q4_K, 0}, {LLMQ_TYPE_Q6_K, 0}, {LLMQ_TYPE_F16, 0}, {LLMQ_TYPE_Q4_0, 128}};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) { /* F16: more columns than a block reads at once */
        const bool wide = some[i].type == LLMQ_TYPE_F16;
        problem p = make_problem(some[i], wide ? 2 : 20, wide ? 8203 : 512, wide ? 1 : N_MAGNITUDES, i % 2, false);
        set_magnitudes(&p);
        check(&p, true, 2.5e-6);
        drop_problem(&p);
    }
    problem p = make_problem((packing){LLMQ_TYPE_Q8_0, 0}, 20, 64, 4, false, false);
    p.x[40] = NAN;
    p.x[64 + 3] = INFINITY, p.x[64 + 9] = 1e30f;
    p.x[2 * 64] = -INFINITY;
    on_gpu g = put_on_gpu(&p, true);
    float y[4 * (20 + PAD)];
    run(&p, &g, y, "not finite");
    for (int t = 0; t < 4; t++)
        for (int r = 0; r < 20; r++) assert_true(!isfinite(y[t * (20 + PAD) + r]) == (t < 3));
    drop_from_gpu(&g);
    drop_problem(&p);
}

/* Activations of norms and of SwiGLU. */

enum { NORM, SWIGLU, SOURCES };
typedef struct made_of {
    float *gain, *up; /* NULL but for NORM, SWIGLU */
    float eps;
} made_of;

static made_of random_source(const problem *p, int kind) {
    made_of m = {.eps = 0.03f};
    if (kind == SWIGLU) m.up = random_floats((size_t)(p->n_tok * p->cols), -2, 2);
    if (kind == NORM) m.gain = random_floats((size_t)p->cols, -2, 2);
    for (int64_t c = 0; m.gain && c < p->cols; c++)
        if (c % 50 == 17) m.gain[c] *= 1e5f; /* values beyond f16 */
    return m;
}

static on_gpu put_source_on_gpu(const problem *p, const made_of *m, bool f16) {
    on_gpu g = put_on_gpu(p, f16);
    if (m->gain) g.source.gain = input_of("gain", m->gain, (size_t)p->cols * sizeof(float));
    if (m->up) g.source.up = input_of("up", m->up, (size_t)(p->n_tok * p->cols) * sizeof(float));
    g.source.eps = m->eps;
    return g;
}

static double *values_of(const problem *p, const made_of *m) {
    double *out = malloc((size_t)(p->n_tok * p->cols) * sizeof *out);
    for (int t = 0; t < p->n_tok; t++) {
        const float *x = p->x + t * p->cols;
        double squares = 0;
        for (int64_t c = 0; c < p->cols; c++) squares += (double)x[c] * (double)x[c];
        const double inverse = 1 / sqrt(squares / (double)p->cols + (double)m->eps);
        for (int64_t c = 0; c < p->cols; c++) {
            const double v = (double)x[c];
            out[t * p->cols + c] =
                m->gain ? v * inverse * (double)m->gain[c] : v / (1 + exp(-v)) * (double)m->up[t * p->cols + c];
        }
    }
    return out;
}

/* Within what rounding to f16 makes (2^-11) of double arithmetic; a token alone has the bits that it has among 8. */
static void test_sources(void **state) {
    (void)state;
    static const int64_t widths[] = {131, 2051}; /* the second: more than one block, and threads, a row */
    for (int kind = 0; kind < SOURCES; kind++)
        for (int i = 0; i < 2; i++) {
            problem p = make_problem((packing){LLMQ_TYPE_F16, 0}, 2, widths[i], N_MAGNITUDES, false, false);
            const int64_t ldy = p.rows + PAD;
            float y[N_MAGNITUDES * (2 + PAD)], alone[2 + PAD];
            made_of m = random_source(&p, kind);
            set_magnitudes(&p);
            for (int64_t c = 0; kind == NORM && c < p.cols; c++) p.x[2 * p.cols + c] *= 1e-14f; /* squares in f32 */
            double *x = values_of(&p, &m);
            on_gpu g = put_source_on_gpu(&p, &m, true);
            check_orders(&p, &g, x, 5e-4, y);
            drop_from_gpu(&g);
            for (int t = 0; t < p.n_tok; t += 3) {
                problem one = p;
                one.n_tok = 1, one.x = p.x + t * p.cols;
                made_of with = {m.gain, m.up ? m.up + t * p.cols : NULL, m.eps};
                g = put_source_on_gpu(&one, &with, true);
                run(&one, &g, alone, "alone");
                assert_memory_equal(alone, y + t * ldy, 2 * sizeof *y);
                drop_from_gpu(&g);
            }
            free(x), free(m.gain), free(m.up), drop_problem(&p);
        }
}

/* What is not finite shows. */
static void test_sources_not_finite(void **state) {
    (void)state;
    for (int kind = 0; kind < SOURCES; kind++) {
        problem p = make_problem((packing){LLMQ_TYPE_Q8_0, 0}, 20, 64, 4, false, false);
        made_of m = random_source(&p, kind);
        float y[4 * (20 + PAD)];
        p.x[40] = NAN, p.x[64 + 3] = INFINITY, p.x[2 * 64] = -INFINITY;
        on_gpu g = put_source_on_gpu(&p, &m, true);
        run(&p, &g, y, "not finite");
        for (int t = 0; t < 4; t++)
            for (int r = 0; r < 20; r++) assert_true(!isfinite(y[t * (20 + PAD) + r]) == (t < 3));
        drop_from_gpu(&g);
        free(m.gain), free(m.up), drop_problem(&p);
    }
}

/* Forms that need the values in f32 get them once, from the ops of their own; weights that take f16 beside 8-bit
 * activations, before and after that, have the values, too. (Blocks of one size: all sums are the ops'.) */
static void test_values_in_memory(void **state) {
    (void)state;
    enum { ROWS = 20, COLS = 64, MOST = 9 };
    static const llmq_type order[3] = {LLMQ_TYPE_F16, LLMQ_TYPE_Q8_0, LLMQ_TYPE_F16};
    const size_t bytes = MOST * COLS * sizeof(float);
    float *y_on_gpu = output_of("y", MOST * ROWS * sizeof(float)), *values = output_of("values", bytes);
    void *forms = output_of("forms", cuda_input_bytes(MOST, COLS));
    cuda_scratch none = {0};
    llmq_err err;
    for (int variant = 0; variant < SOURCES * 2 * 2; variant++) {
        const int kind = variant % SOURCES, n_tok = variant / 2 % 2 ? MOST : 5, first = variant / 4;
        problem p = make_problem((packing){LLMQ_TYPE_Q8_0, 0}, ROWS, COLS, n_tok, false, false);
        made_of m = random_source(&p, kind);
        on_gpu g = put_source_on_gpu(&p, &m, false);
        float y[2][2][MOST * ROWS];
        for (int made = 0; made < 2; made++) {
            cuda_source from = g.source;
            if (kind == SWIGLU && !made) { /* in place */
                assert_int_equal(gpu_upload(values, p.x, (size_t)(n_tok * COLS) * sizeof(float), &err), LLMQ_OK);
                from.x = values;
            }
            cuda_input in = cuda_input_of(from, values, n_tok, COLS, CUDA_ACTS_Q8, forms);
            if (made && kind == NORM) cuda_rms_norm(NULL, g.source.x, g.source.gain, m.eps, values, n_tok, COLS, COLS);
            if (made && kind == SWIGLU) cuda_silu_mul(NULL, g.source.x, g.source.up, values, n_tok * COLS);
            if (made) in.source = (cuda_source){.x = values};
            for (int i = 0; i < 2; i++) {
                rng_state = 7; /* the same weights */
                problem q = make_problem((packing){order[first + i], 0}, ROWS, COLS, 1, false, false);
                cuda_matrix w = weights_on_gpu(&q);
                assert_int_equal(cuda_matmul(NULL, &w, &in, y_on_gpu, ROWS, &none, &err), LLMQ_OK);
                from_device(y[made][i], y_on_gpu, (size_t)(n_tok * ROWS) * sizeof(float), "values in memory");
                drop_weights(&w), drop_problem(&q);
            }
        }
        for (int i = 0; i < 2; i++) assert_memory_equal(y[0][i], y[1][i], (size_t)(n_tok * ROWS) * sizeof(float));
        drop_from_gpu(&g);
        free(m.gain), free(m.up), drop_problem(&p);
    }
    gpu_free(y_on_gpu), gpu_free(values), gpu_free(forms);
}

/* Rows of the packed matrix come out as the file has them. */
static void test_embed(void **state) {
    (void)state;
    for (size_t i = 0; i < N_PACKINGS; i++) {
        problem p = problem_of(packings[i], &(struct shape){37, 24, 5, false}, false);
        const int32_t tokens[5] = {36, 0, 7, 8, 19};
        on_gpu g = put_on_gpu(&p, false);
        bool rounded = (!p.group && cuda_packed_type(p.type) == LLMQ_TYPE_F16) || in_f16_levels(p.type);
        float tol = rounded ? 5e-4f : 1e-6f;
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
                    fail_msg("%s: token %d column %d is %g, expected %g", name_of(&p), t, (int)c,
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
        bool f16 = packings[i].type == LLMQ_TYPE_F16;
        problem p = make_problem(packings[i], 32, 1024, 8, false, false);
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
                fail_msg("%s: %s:%d needs %d where %d would do", name_of(&p), list[k].file, list[k].line,
                         (int)list[k].needed, (int)list[k].best);
            if (weights) sectors += list[k].needed;
        }
        assert_int_equal(sectors * 32, cuda_pack_bytes(p.type, p.group, p.rows, p.cols));
        drop_from_gpu(&g);
        drop_problem(&p);
        free(y);
    }
}

static void test_pack_sizes(void **state) {
    (void)state;
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 0, 16, 64), 576);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 0, 17, 96), 4 * 576);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 64, 16, 96), 2 * 544);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 128, 17, 160), 4 * 1056);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_1, 128, 16, 128), 1088);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q5_0, 128, 16, 128), 1088);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q5_0, 32, 16, 128), 2 * 640);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 32, 16, 128), 0);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_IQ4_NL, 128, 16, 128), 0);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q6_K, 0, 16, 512), 2 * 3360);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 0, 16, 65), 0);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_F16, 0, 17, 65), 4 * 2048);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q5_K, 0, 16, 256), 0);
    assert_int_equal(cuda_packed_type(LLMQ_TYPE_Q5_K), LLMQ_TYPE_F16);
    assert_int_equal(cuda_packed_type(LLMQ_TYPE_Q4_K), LLMQ_TYPE_Q4_K);
    float large = 7e4f;
    uint8_t packed[2048];
    llmq_err err;
    assert_int_equal(cuda_pack(LLMQ_TYPE_F32, 0, 1, 1, &large, packed, &err), LLMQ_E_NUMERIC);
    mem_fail_after(2);
    assert_int_equal(cuda_pack(LLMQ_TYPE_F32, 0, 1, 1, &large, packed, &err), LLMQ_E_MEMORY);
    mem_fail_after(0);
    assert_int_equal(cuda_pack_bytes(LLMQ_TYPE_Q4_0, 0, 0, 64), 0);
}

static int group_of(const problem *p) {
    return cuda_group_of(p->type, cuda_shared_columns(p->type, p->rows, p->cols, p->native), p->cols);
}

/* The group is what all rows share, to the bit: scales, minimums and few levels, in the last group as well, which may
 * end early; and not a longer one than pays. */
static void test_groups(void **state) {
    (void)state;
    static const llmq_type of[3] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q4_1, LLMQ_TYPE_Q5_0};
    static const struct {
        int shared; /* columns; 512: whole rows */
        int64_t cols;
        int group[3]; /* of Q4_0, Q4_1, Q5_0 */
    } cases[] = {{32, 384, {0, 0, 32}},       {64, 384, {64, 64, 64}},    {96, 384, {0, 0, 32}},
                 {128, 384, {128, 128, 128}}, {192, 384, {64, 64, 64}},   {256, 512, {128, 128, 128}},
                 {512, 192, {64, 64, 64}},    {512, 96, {128, 128, 128}}, {128, 352, {128, 128, 128}},
                 {64, 288, {64, 64, 64}},     {512, 160, {64, 64, 64}},   {512, 32, {64, 64, 64}}};
    for (int t = 0; t < 3; t++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            problem p = make_problem((packing){of[t], cases[i].shared}, 3, cases[i].cols, 1, false, false);
            if (group_of(&p) != cases[i].group[t])
                fail_msg("%s in %d columns is packed as of %d", name_of(&p), (int)p.cols, group_of(&p));
            assert_int_equal(cuda_group_of(p.type, cases[i].shared, p.cols), cases[i].group[t]);
            drop_problem(&p);
        }
    for (size_t i = 0; i < N_QUANTIZED; i++) { /* scales of one, and of Q5_0 all levels */
        problem p = make_problem((packing){packings[i].type, 0}, 1, 256, 1, false, true);
        assert_int_equal(group_of(&p), p.type == LLMQ_TYPE_Q4_0 || p.type == LLMQ_TYPE_Q4_1 ? 128 : 0);
        assert_int_equal(cuda_group_of(p.type, 0, 256), 0);
        drop_problem(&p);
    }
}

/* One number of one block becomes another: the matrix is no longer in groups, unless that block is one for itself. */
static void test_broken_group(void **state) {
    (void)state;
    static const llmq_type of[] = {LLMQ_TYPE_Q4_1, LLMQ_TYPE_Q5_0};
    enum { SCALE, MINIMUM, CODE, LEVELS, CHANGES };
    for (int t = 0; t < 2; t++) {
        const llmq_type_info *info = type_info(of[t]);
        problem p = make_problem((packing){of[t], 64}, 5, 288, 1, false, false);
        for (int block = 0; block < 5 * 9; block += 4)
            for (int what = 0; what < CHANGES; what++) {
                uint8_t *at = p.native + block * info->block_bytes, before[64], codes[32];
                llmq_grid grid;
                memcpy(before, at, (size_t)info->block_bytes);
                info->unpack(at, &grid, codes);
                if (what == SCALE) grid.d = grid.scale[0] = -grid.d;
                if (what == MINIMUM) grid.dmin = grid.offset[0] = grid.offset[0] + 1; /* Q5_0 has none */
                if (what == CODE) codes[5] = codes[6];
                if (what == LEVELS) codes[5] = 0, codes[6] = (uint8_t)(info->n_levels - 1);
                info->pack(&grid, codes, at);
                const bool alone = block % 9 == 8, zeros = of[t] == LLMQ_TYPE_Q5_0;
                const bool broken = zeros ? (what == SCALE && !alone) || what == LEVELS : what <= MINIMUM && !alone;
                assert_int_equal(group_of(&p), !broken ? 64 : zeros && what == SCALE ? 32 : 0);
                memcpy(at, before, (size_t)info->block_bytes);
            }
        drop_problem(&p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8),
        cmocka_unit_test(test_q8_exact),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_odd_activations),
        cmocka_unit_test(test_magnitudes),
        cmocka_unit_test(test_sources),
        cmocka_unit_test(test_sources_not_finite),
        cmocka_unit_test(test_values_in_memory),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_pack_sizes),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_broken_group),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
