/* cpu: the small ops of every ISA against double precision, on teams of 1 to 3 workers. */
#include "ops_util.h"

#include "types/type.h"

typedef struct call {
    const llmq_backend_ops *ops;
    const float *x, *z;
    float *y;
    int64_t n_rows, n, stride;
    int n_head, head_dim, n_rot;
    bool neox;
    const llmq_tensor *table;
    const int32_t *tokens;
} call;

typedef void op_fn(const llmq_worker *w, void *arg);

static void run_rms(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->rms_norm(w, c->x, c->z, 1e-5f, c->y, c->n_rows, c->n, c->stride);
}
static void run_rope(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->rope(w, c->y, c->n_rows, c->stride, c->n_head, c->head_dim, c->n_rot, c->z, c->neox);
}
static void run_add(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->add(w, c->y, c->x, c->n);
}
static void run_silu(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->silu_mul(w, c->x, c->z, c->y, c->n);
}
static void run_embed(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->embed(w, c->table, c->tokens, c->n_rows, c->y);
}

/* Runs fn for every ISA and team from the same start (init, or stale), and compares with want and among the teams. */
static void check_all(call c, op_fn *fn, const float *init, size_t len, const double *want, double tol,
                      const char *what) {
    for (int i = 0; i < N_ISAS; i++) {
        c.ops = backend_cpu_isa(all_isas[i]);
        if (!c.ops) continue;
        float *first = NULL;
        for (int n = 1; n <= MAX_TEAM; n++) {
            c.y = guarded(len);
            if (init) memcpy(c.y, init, len * sizeof(float));
            team_run(teams[n], fn, &c);
            char name[64];
            snprintf(name, sizeof name, "%s on %s, %d workers", what, all_isas[i], n);
            assert_close(c.y, want, len, tol, name);
            assert_guard(c.y, len);
            if (first) {
                assert_memory_equal(first, c.y, len * sizeof(float));
                guarded_free(c.y);
            } else {
                first = c.y;
            }
        }
        guarded_free(first);
    }
}

static void test_rms_norm(void **state) {
    (void)state;
    const struct {
        int64_t rows, n, stride;
    } shapes[] = {{1, 576, 576}, {5, 172, 180}, {7, 64, 64}, {3, 1, 2}, {2, 4099, 4099}, {9, 15, 16}};
    rng_state = 11;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t rows = shapes[s].rows, n = shapes[s].n, stride = shapes[s].stride;
        size_t len = (size_t)((rows - 1) * stride + n);
        float *x = guarded_normal(len), *gain = guarded_normal((size_t)n);
        double *want = malloc(len * sizeof *want);
        for (size_t i = 0; i < len; i++) want[i] = 777.0; /* between rows nothing is written */
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t i = 0; i < n; i++) sum += (double)x[r * stride + i] * x[r * stride + i];
            for (int64_t i = 0; i < n; i++)
                want[r * stride + i] = x[r * stride + i] / sqrt(sum / (double)n + 1e-5f) * gain[i];
        }
        check_all((call){.x = x, .z = gain, .n_rows = rows, .n = n, .stride = stride}, run_rms, NULL, len, want, 1e-6,
                  "rms_norm");
        free(want);
        guarded_free(x);
        guarded_free(gain);
    }
}

static void test_rope(void **state) {
    (void)state;
    const struct {
        int64_t n_tok;
        int n_head, head_dim, n_rot;
    } shapes[] = {{1, 9, 64, 64}, {5, 3, 80, 80}, {3, 2, 128, 32}, {2, 4, 32, 20}, {4, 1, 6, 2}, {7, 5, 96, 88}};
    rng_state = 12;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int neox = 0; neox < 2; neox++) {
            int64_t n_tok = shapes[s].n_tok;
            int heads = shapes[s].n_head, dim = shapes[s].head_dim, rot = shapes[s].n_rot;
            int64_t ld = heads * dim + 3;
            size_t len = (size_t)((n_tok - 1) * ld + heads * dim);
            float *x = guarded_normal(len), *cs = guarded((size_t)(n_tok * rot));
            double *want = malloc(len * sizeof *want);
            for (size_t i = 0; i < len; i++) want[i] = x[i];
            for (int64_t t = 0; t < n_tok; t++)
                for (int i = 0; i < rot / 2; i++) {
                    double angle = (double)(t + 3) * pow(10000, -2.0 * i / rot);
                    float c = cs[t * rot + 2 * i] = (float)cos(angle), d = cs[t * rot + 2 * i + 1] = (float)sin(angle);
                    for (int h = 0; h < heads; h++) {
                        int64_t at = t * ld + h * dim, a = neox ? at + i : at + 2 * i,
                                b = neox ? at + i + rot / 2 : at + 2 * i + 1;
                        want[a] = (double)x[a] * c - (double)x[b] * d;
                        want[b] = (double)x[b] * c + (double)x[a] * d;
                    }
                }
            check_all((call){.z = cs,
                             .n_rows = n_tok,
                             .stride = ld,
                             .n_head = heads,
                             .head_dim = dim,
                             .n_rot = rot,
                             .neox = neox},
                      run_rope, x, len, want, 1e-6, "rope");
            free(want);
            guarded_free(x);
            guarded_free(cs);
        }
}

static void test_add_and_silu(void **state) {
    (void)state;
    const int64_t lens[] = {1, 15, 16, 17, 48, 1000, 4099};
    rng_state = 13;
    for (size_t s = 0; s < sizeof lens / sizeof *lens; s++) {
        size_t n = (size_t)lens[s];
        float *x = guarded_normal(n), *z = guarded_normal(n);
        double *want = malloc(n * sizeof *want);
        for (size_t i = 0; i < n; i++) want[i] = (double)x[i] + z[i];
        check_all((call){.x = x, .n = (int64_t)n}, run_add, z, n, want, 1e-7, "add");
        for (size_t i = 0; i < n; i++) x[i] *= 20;
        for (size_t i = 0; i < n; i++) want[i] = x[i] / (1 + exp(-(double)x[i])) * z[i];
        check_all((call){.x = x, .z = z, .n = (int64_t)n}, run_silu, NULL, n, want, 1e-6, "silu_mul");
        free(want);
        guarded_free(x);
        guarded_free(z);
    }
}

/* Relative accuracy where silu is small, and the ends of the range. */
static void test_silu_range(void **state) {
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        if (!ops) continue;
        enum { N = 4096 };
        static float x[N], one[N], y[N];
        for (int j = 0; j < N; j++) {
            x[j] = -100.0f + 200.0f * (float)j / N;
            one[j] = 1;
        }
        call c = {.ops = ops, .x = x, .z = one, .y = y, .n = N};
        team_run(teams[1], run_silu, &c);
        for (int j = 0; j < N; j++) {
            double want = x[j] / (1 + exp(-(double)x[j]));
            if (!(fabs(y[j] - want) <= 1e-6 * fabs(want) + 1e-36))
                fail_msg("silu(%g) on %s is %.9g, expected %.9g", (double)x[j], all_isas[i], (double)y[j], want);
        }
        x[0] = NAN, x[1] = 1e30f, x[2] = -1e30f, x[3] = INFINITY, x[4] = -0.0f;
        team_run(teams[1], run_silu, &c);
        assert_true(isnan(y[0]));
        assert_true(y[1] == 1e30f && y[2] == 0 && y[3] == INFINITY && y[4] == 0);
    }
}

static void test_embed(void **state) {
    (void)state;
    enum { COLS = 96, ROWS = 7, N = 5 };
    const llmq_type types[] = {LLMQ_TYPE_F32, LLMQ_TYPE_F16, LLMQ_TYPE_BF16, LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q8_0};
    const int32_t tokens[N] = {3, 0, 6, 6, 1};
    rng_state = 14;
    for (size_t s = 0; s < sizeof types / sizeof *types; s++) {
        llmq_tensor table = {.type = types[s], .n_dims = 2, .dims = {COLS, ROWS, 1, 1}};
        int64_t row_bytes = type_row_bytes(types[s], COLS);
        uint8_t *data = mem_zalloc(ROWS, (size_t)row_bytes);
        float row[COLS];
        double want[N * COLS];
        for (int r = 0; r < ROWS; r++) {
            for (int i = 0; i < COLS; i++) row[i] = (float)rng_normal();
            assert_int_equal(type_from_f32(types[s], row, NULL, data + r * row_bytes, COLS, NULL), LLMQ_OK);
        }
        table.data = data;
        table.bytes = ROWS * row_bytes;
        for (int t = 0; t < N; t++) {
            type_to_f32(types[s], data + tokens[t] * row_bytes, row, COLS);
            for (int i = 0; i < COLS; i++) want[t * COLS + i] = row[i];
        }
        check_all((call){.table = &table, .tokens = tokens, .n_rows = N}, run_embed, NULL, N * COLS, want, 0, "embed");
        mem_free(data);
    }
}

/* x, m and v of a step of AdamW lie behind each other in y. */
static void run_adam(const llmq_worker *w, void *arg) {
    static const llmq_adam a = {
        .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-6f, .keep = 0.99f, .rate = 0.02f, .inv = 3, .scale = 0.5f};
    call *c = arg;
    c->ops->adam(w, &a, c->y, c->x, c->y + c->n, c->y + 2 * c->n, c->n);
}

static void test_adam(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 7, 16, 33, 250};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        int64_t n = lengths[k];
        float *g = guarded_normal((size_t)n), *init = guarded_normal((size_t)(3 * n));
        double want[750];
        for (int64_t i = 0; i < n; i++) {
            init[2 * n + i] *= init[2 * n + i]; /* second moments */
            double h = 0.5 * g[i], m = 0.9f * (double)init[n + i] + (1 - 0.9f) * h;
            double v = 0.95f * (double)init[2 * n + i] + (1 - 0.95f) * h * h;
            want[i] = 0.99f * (double)init[i] - 0.02f * m / (sqrt(3 * v) + 1e-6f);
            want[n + i] = m;
            want[2 * n + i] = v;
        }
        check_all((call){.x = g, .n = n}, run_adam, init, (size_t)(3 * n), want, 1e-6, "adam");
        guarded_free(g);
        guarded_free(init);
    }
}

/* scale * level + offset, then its gradients with respect to scale and offset. */
typedef struct code_case {
    llmq_code_run run;
    const float *scale, *offset, *g;
    int64_t groups;
} code_case;

static void check_codes(const code_case *c) {
    const llmq_code_run *run = &c->run;
    size_t n = (size_t)run->n, groups = (size_t)c->groups;
    double *value = calloc(n, sizeof *value), *sums = calloc(2 * groups, sizeof *sums);
    for (int64_t k = 0; k < run->n; k++) {
        int64_t at = k / run->group_len;
        double level = run->levels[run->codes[k]];
        value[k] = c->scale[at] * level + c->offset[at];
        sums[2 * at] += c->g[k] * level;
        sums[2 * at + 1] += c->g[k];
    }
    for (int i = 0; i < N_ISAS; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        if (!ops) continue;
        float *y = guarded(n), *s = guarded(2 * groups);
        ops->code_values(run, c->scale, c->offset, y);
        ops->code_sums(run, c->g, s);
        assert_close(y, value, n, 1e-6, "code_values");
        assert_close(s, sums, 2 * groups, 1e-5, "code_sums");
        assert_guard(y, n);
        assert_guard(s, 2 * groups);
        guarded_free(y);
        guarded_free(s);
    }
    free(value);
    free(sums);
}

static void test_codes(void **state) {
    static const int64_t group_lens[] = {16, 32, 64, 7, (int64_t)1 << 40}, lens[] = {1, 16, 37, 64, 250};
    const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_IQ4_NL, LLMQ_TYPE_Q8_0, LLMQ_TYPE_Q6_K};
    (void)state;
    rng_state = 19;
    for (int i = 0; i < 5 * 5 * 4; i++) {
        const llmq_type_info *type = type_info(types[i / 25]);
        int64_t n = lens[i % 5], len = group_lens[i / 5 % 5], groups = n <= len ? 1 : (n + len - 1) / len;
        float *scale = guarded_normal((size_t)groups), *offset = guarded_normal((size_t)groups),
              *g = guarded_normal((size_t)n);
        uint8_t *codes = malloc((size_t)n); /* exactly: what lies behind is AddressSanitizer's */
        for (int64_t k = 0; k < n; k++) codes[k] = (uint8_t)(rng_u32() % (unsigned)type->n_levels);
        check_codes(
            &(code_case){{codes, n, len, type->levels, type->n_levels, type->uniform}, scale, offset, g, groups});
        free(codes);
        guarded_free(scale);
        guarded_free(offset);
        guarded_free(g);
    }
}

/* Tails, NaN of either sign, infinities, subnormals and ties: the bits of core/half.h on every ISA. */
static void test_bf16(void **state) {
    (void)state;
    rng_state = 17;
    for (int n = 0; n < 70; n++) {
        float *x = guarded((size_t)n), *back = guarded((size_t)n);
        uint16_t *want = calloc((size_t)n + 1, 2), *got = calloc((size_t)n + 1, 2);
        for (int i = 0; i < n; i++) {
            uint32_t odd[] = {0x7fc00001, 0xff800001, 0x7f800000, 0xff800000,
                              0x00000001, 0x3f808000, 0x3f818000, 0x7f7fffff};
            x[i] = f32_from_bits(rng_u32() % 3 ? rng_u32() : odd[rng_u32() % 8]);
            want[i] = f32_to_bf16(x[i]);
        }
        for (int isa = 0; isa < N_ISAS; isa++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
            if (!ops) continue;
            got[n] = 4711;
            ops->to_bf16(x, got, n);
            assert_memory_equal(got, want, (size_t)n * 2);
            assert_int_equal(got[n], 4711);
            ops->from_bf16(want, back, n);
            for (int i = 0; i < n; i++) assert_int_equal(f32_bits(back[i]), (uint32_t)want[i] << 16);
            assert_guard(back, (size_t)n);
        }
        free(want);
        free(got);
        guarded_free(x);
        guarded_free(back);
    }
}

static void test_drop_rows(void **state) {
    (void)state;
    enum { ROWS = 7, N = 37 };
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const int at[] = {0, 15, 16, 31, 32, 36};
    rng_state = 18;
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        if (!ops) continue;
        for (size_t b = 0; b < 4; b++)
            for (size_t p = 0; p < 6; p++) {
                float *x = guarded_normal(ROWS * N), *start = guarded(ROWS * N);
                uint8_t dropped[ROWS + 1] = {[5] = 1, [ROWS] = 9}; /* what was dropped before stays so */
                memcpy(start, x, ROWS * N * sizeof *x);
                x[3 * N + at[p]] = x[6 * N + at[p]] = bad[b];
                assert_int_equal(ops->drop_rows(x, ROWS, N, dropped), 2);
                for (int i = 0; i < ROWS * N; i++) assert_true(x[i] == (i / N == 3 || i / N == 6 ? 0 : start[i]));
                for (int r = 0; r < ROWS; r++) assert_int_equal(dropped[r], r == 3 || r == 5 || r == 6);
                assert_int_equal(dropped[ROWS], 9);
                assert_guard(x, ROWS * N);
                guarded_free(x);
                guarded_free(start);
            }
    }
}

static void test_dispatch(void **state) {
    (void)state;
    assert_non_null(backend_cpu());
    assert_non_null(backend_cpu_isa("c"));
    assert_null(backend_cpu_isa("sse9"));
    assert_string_equal(backend_cpu_isa("c")->isa, "c");
}

static void test_probes(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof all_isas / sizeof *all_isas; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        if (!ops) continue;
        double rate = backend_read_bandwidth(ops, teams[2], (size_t)8 << 20);
        assert_true(rate > 1e8 && rate < 1e13);
        rate = backend_product_rate(ops, teams[2]);
        assert_true(rate > 1e7 && rate < 1e14);
        mem_fail_after(1);
        assert_true(backend_read_bandwidth(ops, teams[1], (size_t)8 << 20) == 0);
        assert_true(backend_product_rate(ops, teams[1]) == 0 && *ops->product);
        mem_fail_after(0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rms_norm),   cmocka_unit_test(test_rope),      cmocka_unit_test(test_add_and_silu),
        cmocka_unit_test(test_silu_range), cmocka_unit_test(test_embed),     cmocka_unit_test(test_adam),
        cmocka_unit_test(test_bf16),       cmocka_unit_test(test_drop_rows), cmocka_unit_test(test_dispatch),
        cmocka_unit_test(test_codes),      cmocka_unit_test(test_probes)};
    return cmocka_run_group_tests_name("ops", tests, make_teams, drop_teams);
}
