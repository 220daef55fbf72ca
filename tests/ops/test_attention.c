/* cpu: KV cache and attention of every ISA against double precision, on teams of 1 to 3 workers. */
#include "ops_util.h"

typedef struct attn_case {
    int n_head, n_head_kv, head_dim, kv_type;
    int64_t pos, n_tok, window;
} attn_case;

typedef struct call {
    const llmq_backend_ops *ops;
    llmq_attn attn;
    llmq_kv kv;
    const float *q, *k, *v; /* (n_tok | pos + n_tok, ld) */
    int64_t ldq, ldk, ldv, split;
    float *out;
    void *scratch;
} call;

static void store(const llmq_worker *w, void *arg) {
    call *c = arg;
    int64_t n = c->attn.pos + c->attn.n_tok;
    c->ops->kv_store(w, &c->kv, c->k, c->ldk, c->v, c->ldv, 0, c->split);
    c->ops->kv_store(w, &c->kv, c->k + c->split * c->ldk, c->ldk, c->v + c->split * c->ldv, c->ldv, c->split,
                     n - c->split);
}

static void attend(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->attention(w, &c->attn, c->q, c->ldq, &c->kv, c->out, c->scratch);
    worker_barrier(w);
    c->ops->attention(w, &c->attn, c->q, c->ldq, &c->kv, c->out, c->scratch); /* scratch needs no clearing */
}

/* What the cache keeps of n values. */
static void cache_round(const float *x, double *y, int n, int kv_type) {
    if (kv_type == 0) {
        for (int i = 0; i < n; i++) y[i] = f16_to_f32(f32_to_f16(x[i]));
        return;
    }
    if (kv_type == 2) {
        for (int i = 0; i < n; i++) y[i] = x[i];
        return;
    }
    for (int g = 0; g < n; g += 32) {
        float max = 0;
        for (int i = 0; i < 32; i++) max = fmaxf(max, fabsf(x[g + i]));
        double scale = f16_to_f32(f32_to_f16(max / 127));
        for (int i = 0; i < 32; i++) y[g + i] = scale * fmax(-127, fmin(127, rint(x[g + i] / scale)));
    }
}

static void reference(const attn_case *a, const call *c, double *out) {
    int dim = a->head_dim, ratio = a->n_head / a->n_head_kv, width = a->n_head_kv * dim;
    int64_t n = a->pos + a->n_tok;
    double *k = malloc(sizeof(double) * (size_t)(n * width)), *v = malloc(sizeof(double) * (size_t)(n * width));
    double *p = malloc(sizeof(double) * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        cache_round(c->k + i * c->ldk, k + i * width, width, a->kv_type);
        cache_round(c->v + i * c->ldv, v + i * width, width, a->kv_type);
    }
    for (int64_t t = 0; t < a->n_tok; t++)
        for (int h = 0; h < a->n_head; h++) {
            const float *q = c->q + t * c->ldq + h * dim;
            double *o = out + (t * a->n_head + h) * dim, max = -INFINITY, sum = 0;
            int64_t last = a->pos + t, first = a->window > 0 && last - a->window + 1 > 0 ? last - a->window + 1 : 0;
            for (int i = 0; i < dim; i++) o[i] = 0;
            for (int64_t j = first; j <= last; j++) {
                p[j] = 0;
                for (int i = 0; i < dim; i++) p[j] += q[i] * k[j * width + h / ratio * dim + i];
                p[j] *= c->attn.scale;
                max = fmax(max, p[j]);
            }
            for (int64_t j = first; j <= last; j++) {
                p[j] = exp(p[j] - max);
                sum += p[j];
                for (int i = 0; i < dim; i++) o[i] += p[j] * v[j * width + h / ratio * dim + i];
            }
            for (int i = 0; i < dim; i++) o[i] /= sum;
        }
    free(k);
    free(v);
    free(p);
}

static void check_isa(const attn_case *a, call *c, const double *want, double tol, const char *isa) {
    size_t len = (size_t)(a->n_tok * a->n_head * a->head_dim);
    size_t kv_len = c->ops->kv_bytes(a->kv_type, c->kv.n_ctx, a->n_head_kv, a->head_dim) / sizeof(float) + 1;
    float *first = NULL;
    for (int n = 1; n <= MAX_TEAM; n++) {
        size_t scratch_len = c->ops->attn_scratch_bytes(&c->attn, n) / sizeof(float) + 1;
        float *k = guarded(kv_len), *v = guarded(kv_len), *scratch = guarded(scratch_len), *out = guarded(len);
        memset(k, 0xff, kv_len * sizeof(float)); /* NaN where nothing is stored */
        memset(v, 0xff, kv_len * sizeof(float));
        memset(scratch, 0xff, scratch_len * sizeof(float));
        c->kv.k = k, c->kv.v = v, c->out = out, c->scratch = scratch;
        team_run(teams[n], store, c);
        team_run(teams[n], attend, c);
        char name[160];
        snprintf(name, sizeof name,
                 "attention %d/%d heads of %d, kv %d, pos %lld, %lld tokens, window %lld, bf16 %d on %s, %d workers",
                 a->n_head, a->n_head_kv, a->head_dim, a->kv_type, (long long)a->pos, (long long)a->n_tok,
                 (long long)a->window, c->attn.allow_bf16, isa, n);
        assert_close(out, want, len, tol, name);
        assert_guard(k, kv_len);
        assert_guard(v, kv_len);
        assert_guard(scratch, scratch_len);
        assert_guard(out, len);
        if (first && memcmp(first, out, len * sizeof(float)) != 0) fail_msg("%s: differs from one worker", name);
        guarded_free(k);
        guarded_free(v);
        guarded_free(scratch);
        if (first)
            guarded_free(out);
        else
            first = out;
    }
    guarded_free(first);
}

static void check_case(attn_case a) {
    int width = a.n_head_kv * a.head_dim;
    int64_t n = a.pos + a.n_tok;
    call c = {.attn = {a.n_head, a.n_head_kv, a.head_dim, 1.3f / sqrtf((float)a.head_dim), a.window, a.pos, a.n_tok,
                       false},
              .kv = {.type = a.kv_type, .n_ctx = n + 3, .n_head_kv = a.n_head_kv, .head_dim = a.head_dim},
              .ldq = a.n_head * a.head_dim + 5,
              .ldk = width + 1,
              .ldv = width + 7,
              .split = n / 3};
    float *q = guarded_normal((size_t)(a.n_tok * c.ldq)), *k = guarded_normal((size_t)(n * c.ldk)),
          *v = guarded_normal((size_t)(n * c.ldv));
    double *want = malloc(sizeof(double) * (size_t)(a.n_tok * a.n_head * a.head_dim));
    c.q = q, c.k = k, c.v = v;
    reference(&a, &c, want);
    for (int i = 0; i < N_ISAS; i++) {
        c.ops = backend_cpu_isa(all_isas[i]);
        if (!c.ops) continue;
        c.attn.allow_bf16 = false;
        check_isa(&a, &c, want, 5e-6, all_isas[i]);
        c.attn.allow_bf16 = true;
        check_isa(&a, &c, want, 2e-2, all_isas[i]);
    }
    free(want);
    guarded_free(q);
    guarded_free(k);
    guarded_free(v);
}

static void test_decode(void **state) {
    (void)state;
    rng_state = 21;
    const int64_t positions[] = {0, 1, 15, 63, 64, 255, 256, 700, 1300};
    const int dims[] = {64, 128, 80, 32};
    for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            int ratio = (const int[]){1, 3, 4, 8}[(p + d) % 4], type = dims[d] % 32 == 0 ? (int)(p + d / 2) % 2 : 0;
            check_case((attn_case){2 * ratio, 2, dims[d], type, positions[p], 1, p % 3 == 2 ? 100 : 0});
        }
}

static void test_batches(void **state) {
    (void)state;
    rng_state = 22;
    const int64_t batches[] = {2, 7, 64, 130};
    const int dims[] = {64, 128, 80, 32};
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
            int ratio = (const int[]){1, 3, 4, 8}[(b + d) % 4], type = dims[d] % 32 == 0 ? (int)(b + d / 2) % 2 : 0;
            int64_t pos = (const int64_t[]){0, 37, 300}[(b * 2 + d) % 3],
                    window = (const int64_t[]){0, 50, 1, 70}[(b + 3 * d) % 4];
            check_case((attn_case){2 * ratio, 2, dims[d], type, pos, batches[b], window});
        }
}

static void test_odd_shapes(void **state) {
    (void)state;
    rng_state = 23;
    check_case((attn_case){9, 3, 64, 0, 0, 200, 0});
    check_case((attn_case){9, 3, 64, 1, 1100, 33, 0});
    check_case((attn_case){3, 1, 64, 0, 1500, 5, 0});
    check_case((attn_case){1, 1, 16, 0, 90, 3, 0});
    check_case((attn_case){4, 2, 20, 0, 40, 9, 13}); /* not a multiple of any vector */
    check_case((attn_case){2, 1, 7, 0, 3, 1, 0});
    check_case((attn_case){4, 4, 256, 0, 10, 40, 0});
    check_case((attn_case){24, 1, 48, 0, 600, 1, 0});
    check_case((attn_case){5, 1, 112, 0, 600, 1, 128});
    check_case((attn_case){40, 1, 32, 1, 20, 17, 0});
    check_case((attn_case){9, 3, 64, 2, 0, 130, 0}); /* f32 cache */
    check_case((attn_case){6, 2, 80, 2, 700, 1, 100});
    check_case((attn_case){2, 1, 20, 2, 40, 9, 0});
}

/* Scores so large that all but one key vanish, and equal scores. */
static void test_extreme_scores(void **state) {
    (void)state;
    enum { DIM = 64, N = 70 };
    for (int i = 0; i < N_ISAS; i++) {
        call c = {.ops = backend_cpu_isa(all_isas[i])};
        if (!c.ops) continue;
        for (int64_t n_tok = 1; n_tok <= N; n_tok += N - 1) {
            c.attn = (llmq_attn){1, 1, DIM, 1.0f, 0, N - n_tok, n_tok, false};
            c.kv = (llmq_kv){.n_ctx = N, .n_head_kv = 1, .head_dim = DIM};
            size_t bytes = c.ops->kv_bytes(0, N, 1, DIM);
            float *k = guarded(N * DIM), *v = guarded(N * DIM), *q = guarded(N * DIM), *out = guarded(N * DIM);
            for (int j = 0; j < N * DIM; j++) {
                q[j] = 100;
                k[j] = j / DIM == 5 ? 50.0f : -50.0f;
                v[j] = (float)(j / DIM);
            }
            c.k = k, c.v = v, c.q = q, c.out = out, c.ldq = c.ldk = c.ldv = DIM;
            c.kv.k = mem_alloc(bytes, 1), c.kv.v = mem_alloc(bytes, 1);
            c.scratch = mem_alloc(c.ops->attn_scratch_bytes(&c.attn, 1), 1);
            team_run(teams[1], store, &c);
            team_run(teams[1], attend, &c);
            assert_true(fabsf(out[n_tok * DIM - 1] - 5) < 1e-5f);
            for (int j = 0; j < N * DIM; j++) k[j] = 0;
            team_run(teams[1], store, &c);
            team_run(teams[1], attend, &c);
            assert_true(fabsf(out[n_tok * DIM - 1] - (N - 1) / 2.0f) < 1e-4f);
            k[3 * DIM] = NAN; /* must be seen, not swallowed by a maximum */
            team_run(teams[1], store, &c);
            team_run(teams[1], attend, &c);
            assert_true(isnan(out[n_tok * DIM - 1]));
            mem_free(c.kv.k);
            mem_free(c.kv.v);
            mem_free(c.scratch);
            guarded_free(k), guarded_free(v), guarded_free(q), guarded_free(out);
        }
    }
}

/* The engine asks once, for the largest call, and then makes smaller ones. */
static void test_scratch_is_monotone(void **state) {
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        if (!ops) continue;
        const llmq_attn largest = {32, 8, 128, 1, 0, 4096 - 512, 512, false};
        size_t most = ops->attn_scratch_bytes(&largest, 2);
        assert_true(most < (size_t)64 << 20);
        for (int64_t n_tok = 1; n_tok <= 512; n_tok += n_tok < 40 ? 1 : 59)
            for (int64_t pos = 0; pos + n_tok <= 4096; pos += 97) {
                llmq_attn a = largest;
                a.pos = pos, a.n_tok = n_tok;
                assert_true(ops->attn_scratch_bytes(&a, 2) <= most);
            }
    }
}

static void test_kv_bytes(void **state) {
    (void)state;
    const llmq_backend_ops *ops = backend_cpu();
    assert_int_equal(ops->kv_bytes(0, 100, 3, 64), 100 * 3 * 128);
    assert_int_equal(ops->kv_bytes(1, 100, 3, 64), 100 * 3 * 68);
    assert_true(ops->kv_bytes(0, INT64_MAX / 2, 8, 128) == SIZE_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode),
                                       cmocka_unit_test(test_batches),
                                       cmocka_unit_test(test_odd_shapes),
                                       cmocka_unit_test(test_extreme_scores),
                                       cmocka_unit_test(test_scratch_is_monotone),
                                       cmocka_unit_test(test_kv_bytes)};
    return cmocka_run_group_tests_name("attention", tests, make_teams, drop_teams);
}
