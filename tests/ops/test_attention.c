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

/* Many queries meet caches of f16 and q8_0 as bf16. */
static bool in_bf16(const attn_case *a, const char *isa) {
    return (strcmp(isa, "amx") == 0 || strcmp(isa, "avx512bf16") == 0) && a->kv_type != 2 && a->head_dim % 16 == 0 &&
           a->n_tok > 1 && a->n_tok * (a->n_head / a->n_head_kv) > 8;
}

static void check_case(attn_case a) {
    int width = a.n_head_kv * a.head_dim;
    int64_t n = a.pos + a.n_tok;
    call c = {.attn = {a.n_head, a.n_head_kv, a.head_dim, 1.3f / sqrtf((float)a.head_dim), a.window, a.pos, a.n_tok,
                       false, NULL, NULL},
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
        check_isa(&a, &c, want, in_bf16(&a, all_isas[i]) ? 2e-2 : 5e-6, all_isas[i]);
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
            c.attn = (llmq_attn){1, 1, DIM, 1.0f, 0, N - n_tok, n_tok, false, NULL, NULL};
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
        const llmq_attn largest = {32, 8, 128, 1, 0, 4096 - 512, 512, false, NULL, NULL};
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

/* ---- a token whose k and v are not in the cache yet */

static void store_before(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->kv_store(w, &c->kv, c->k, c->ldk, c->v, c->ldv, 0, c->attn.pos);
}

/* Every worker has copies of its own. */
static void attend_new(const llmq_worker *w, void *arg) {
    const call *c = arg;
    size_t q_len = (size_t)(c->attn.n_head * c->attn.head_dim), kv_len = (size_t)(c->attn.n_head_kv * c->attn.head_dim);
    float *q = malloc(sizeof(float) * q_len), *k = malloc(sizeof(float) * kv_len), *v = malloc(sizeof(float) * kv_len);
    memcpy(q, c->q, sizeof(float) * q_len);
    memcpy(k, c->k + c->attn.pos * c->ldk, sizeof(float) * kv_len);
    memcpy(v, c->v + c->attn.pos * c->ldv, sizeof(float) * kv_len);
    llmq_attn a = c->attn;
    a.k_new = k;
    a.v_new = v;
    c->ops->attention(w, &a, q, c->ldq, &c->kv, c->out, c->scratch);
    free(q);
    free(k);
    free(v);
}

/* The cache's bytes and the output's bits of kv_store and attention, by attention alone. */
static void check_new(call *c, llmq_team *team, const char *name) {
    int n = team_size(team);
    size_t len = (size_t)(c->attn.n_head * c->attn.head_dim),
           bytes = c->ops->kv_bytes(c->kv.type, c->kv.n_ctx, c->kv.n_head_kv, c->kv.head_dim);
    uint8_t *k[2], *v[2];
    float *out[2];
    c->scratch = mem_alloc(c->ops->attn_scratch_bytes(&c->attn, n), 1);
    for (int i = 0; i < 2; i++) {
        c->kv.k = k[i] = mem_alloc(bytes, 1);
        c->kv.v = v[i] = mem_alloc(bytes, 1);
        c->out = out[i] = guarded(len);
        memset(k[i], 0xff, bytes);
        memset(v[i], 0xff, bytes);
        team_run(team, i ? store_before : store, c);
        team_run(team, i ? attend_new : attend, c);
        assert_guard(out[i], len);
    }
    if (memcmp(k[0], k[1], bytes) != 0 || memcmp(v[0], v[1], bytes) != 0)
        fail_msg("%s, %d workers: other bytes in the cache than kv_store's", name, n);
    if (memcmp(out[0], out[1], len * sizeof(float)) != 0) fail_msg("%s, %d workers: other bits", name, n);
    for (int i = 0; i < 2; i++) mem_free(k[i]), mem_free(v[i]), guarded_free(out[i]);
    mem_free(c->scratch);
}

static void check_new_case(attn_case a, llmq_team *four) {
    int64_t width = a.n_head_kv * a.head_dim, n = a.pos + 1;
    float *q = guarded_normal((size_t)(a.n_head * a.head_dim)), *k = guarded_normal((size_t)(n * (width + 1))),
          *v = guarded_normal((size_t)(n * (width + 7)));
    for (int isa = 0; isa < N_ISAS; isa++) {
        call c = {.ops = backend_cpu_isa(all_isas[isa]), .q = q, .k = k, .v = v, .split = a.pos,
                  .attn = {.n_head = a.n_head, .n_head_kv = a.n_head_kv, .head_dim = a.head_dim, .scale = 0.2f,
                           .window = a.window, .pos = a.pos, .n_tok = 1},
                  .kv = {.type = a.kv_type, .n_ctx = n + 3, .n_head_kv = a.n_head_kv, .head_dim = a.head_dim},
                  .ldq = a.n_head * a.head_dim, .ldk = width + 1, .ldv = width + 7};
        if (!c.ops) continue;
        char name[160];
        snprintf(name, sizeof name, "%s, kv %d, %d/%d heads of %d, pos %lld, window %lld", all_isas[isa], a.kv_type,
                 a.n_head, a.n_head_kv, a.head_dim, (long long)a.pos, (long long)a.window);
        for (int workers = 1; workers <= MAX_TEAM; workers++) check_new(&c, teams[workers], name);
        check_new(&c, four, name);
    }
    guarded_free(q), guarded_free(k), guarded_free(v);
}

static void test_new_position(void **state) {
    (void)state;
    rng_state = 25;
    llmq_team *four = NULL;
    assert_int_equal(team_create(4, &four, NULL), LLMQ_OK);
    /* Keys are split from 128 on, in tiles (more than 8 heads on one) from 512 on; heads of 20 are not for vectors. */
    const int heads[][3] = {{9, 3, 64}, {4, 4, 32}, {8, 2, 128}, {24, 2, 32}, {6, 2, 20}};
    const int64_t positions[] = {0, 40, 127, 128, 700};
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
            for (int type = 0; type < 3; type++) {
                attn_case a = {heads[h][0], heads[h][1], heads[h][2], type, positions[p], 1, 0};
                if (type == 1 && a.head_dim % 32 != 0) continue;
                check_new_case(a, four);
                a.window = 50;
                check_new_case(a, four);
            }
    team_destroy(four);
}

/* ---- rows that are independent of each other */

typedef struct rows_call {
    const llmq_backend_ops *ops;
    llmq_attn attn;
    llmq_kv *kv;               /* [2] */
    const llmq_attn_row *rows; /* n_rows */
    int64_t n_rows;
    const float *q, *k, *v; /* q (n_rows, ldq); k, v of both caches (2, n_ctx, width) */
    int64_t ldq;
    float *out;
    void *scratch;
} rows_call;

static void store_both(const llmq_worker *w, void *arg) {
    rows_call *c = arg;
    int64_t width = c->attn.n_head_kv * c->attn.head_dim, n = c->kv[0].n_ctx;
    for (int i = 0; i < 2; i++)
        c->ops->kv_store(w, &c->kv[i], c->k + i * n * width, width, c->v + i * n * width, width, 0, n);
}

static void attend_rows(const llmq_worker *w, void *arg) {
    rows_call *c = arg;
    c->ops->attention_rows(w, &c->attn, c->rows, c->n_rows, c->q, c->ldq, c->out, c->scratch);
    worker_barrier(w);
    c->ops->attention_rows(w, &c->attn, c->rows, c->n_rows, c->q, c->ldq, c->out, c->scratch);
}

static void attend_each(const llmq_worker *w, void *arg) {
    rows_call *c = arg;
    for (int64_t i = 0; i < c->n_rows; i++) {
        llmq_attn one = c->attn;
        one.pos = c->rows[i].pos;
        one.n_tok = 1;
        c->ops->attention(w, &one, c->q + i * c->ldq, c->ldq, c->rows[i].kv,
                          c->out + i * one.n_head * one.head_dim, c->scratch);
        worker_barrier(w);
    }
}

/* Row i at pos[i] of cache which[i]: the bits that attention of it alone gives. */
static void check_rows(attn_case shape, int64_t n_ctx, const int which[], const int64_t pos[], int64_t n_rows) {
    int64_t dim = shape.head_dim, width = shape.n_head_kv * dim, ldq = shape.n_head * dim + 5;
    size_t len = (size_t)(n_rows * shape.n_head * dim);
    float *q = guarded_normal((size_t)(n_rows * ldq)), *k = guarded_normal((size_t)(2 * n_ctx * width)),
          *v = guarded_normal((size_t)(2 * n_ctx * width)), *want = guarded(len);
    for (size_t isa = 0; isa < sizeof all_isas / sizeof *all_isas; isa++) {
        llmq_kv kv[2];
        llmq_attn_row rows[16];
        rows_call c = {.ops = backend_cpu_isa(all_isas[isa]), .kv = kv, .rows = rows, .n_rows = n_rows, .q = q, .k = k, .v = v,
                       .ldq = ldq,
                       .attn = {.n_head = shape.n_head, .n_head_kv = shape.n_head_kv, .head_dim = shape.head_dim,
                                .scale = 0.2f, .window = shape.window, .pos = n_ctx - 1}};
        if (!c.ops) continue;
        size_t bytes = c.ops->kv_bytes(shape.kv_type, n_ctx, shape.n_head_kv, shape.head_dim);
        for (int i = 0; i < 2; i++)
            kv[i] = (llmq_kv){.k = mem_alloc(bytes, 1), .v = mem_alloc(bytes, 1), .type = shape.kv_type, .n_ctx = n_ctx,
                              .n_head_kv = shape.n_head_kv, .head_dim = shape.head_dim};
        for (int64_t i = 0; i < n_rows; i++) rows[i] = (llmq_attn_row){&kv[which[i]], pos[i]};
        team_run(teams[2], store_both, &c);
        for (int n = 1; n <= MAX_TEAM; n++) {
            llmq_attn one = c.attn;
            one.n_tok = 1;
            size_t rows_len = c.ops->attn_rows_scratch_bytes(&c.attn, n_rows, n) / sizeof(float) + 1,
                   one_len = c.ops->attn_scratch_bytes(&one, n) / sizeof(float) + 1;
            float *scratch = guarded(rows_len), *alone = guarded(one_len), *out = guarded(len);
            memset(scratch, 0xff, rows_len * sizeof(float));
            c.scratch = alone, c.out = want;
            team_run(teams[n], attend_each, &c);
            c.scratch = scratch, c.out = out;
            team_run(teams[n], attend_rows, &c);
            if (memcmp(out, want, len * sizeof(float)) != 0)
                fail_msg("%s, kv %d, %d/%d heads of %d, window %d, %d rows from %lld, %d workers: other bits than alone",
                         all_isas[isa], shape.kv_type, shape.n_head, shape.n_head_kv, shape.head_dim, (int)shape.window,
                         (int)n_rows, (long long)pos[0], n);
            assert_guard(scratch, rows_len);
            assert_guard(out, len);
            guarded_free(scratch), guarded_free(alone), guarded_free(out);
        }
        for (int i = 0; i < 2; i++) mem_free(kv[i].k), mem_free(kv[i].v);
    }
    guarded_free(q), guarded_free(k), guarded_free(v), guarded_free(want);
}

static void test_rows(void **state) {
    (void)state;
    rng_state = 24;
    const int same[8] = {0}, mixed[8] = {0, 1, 1, 0, 0, 1, 0, 1};
    const attn_case shapes[] = {{3, 3, 64, 0, 0, 0, 0},  {6, 2, 64, 1, 0, 0, 0},  {8, 2, 32, 2, 0, 0, 0},
                                {16, 2, 16, 0, 0, 0, 0}, {24, 2, 48, 0, 0, 0, 0}, {4, 2, 20, 0, 0, 0, 0},
                                {8, 2, 64, 0, 0, 0, 50}};
    const int64_t starts[] = {0, 5, 124, 128, 253, 700};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t j = 0; j < sizeof starts / sizeof *starts; j++) {
            int64_t next[8], odd[8];
            for (int r = 0; r < 8; r++) next[r] = starts[j] + r, odd[r] = (starts[j] * (r + 3)) % 700 + r % 2;
            if ((i + j) % 2)
                check_rows(shapes[i], 720, same, next, 8 - (int64_t)j % 3);
            else
                check_rows(shapes[i], 720, mixed, odd, 8);
        }
    /* Where a row's splits become longer, and splits of several steps of which a row sees none. */
    const int64_t late[] = {8188, 8189, 8190, 8191, 8192, 8193, 8194, 8195};
    check_rows((attn_case){2, 1, 16, 0, 0, 0, 0}, 8200, same, late, 8);
    const int64_t steps[] = {8314, 8315, 8316, 8317, 8318, 8319, 8320, 8321};
    check_rows((attn_case){2, 1, 16, 0, 0, 0, 0}, 8330, same, steps, 8);
}

static void copy(const llmq_worker *w, void *arg) {
    rows_call *c = arg;
    c->ops->kv_copy(w, &c->kv[1], &c->kv[0], 3, 5);
}

static void test_kv_copy(void **state) {
    (void)state;
    enum { HEADS = 2, DIM = 32, N = 12, FAR = 20 };
    for (int type = 0; type < 3; type++) {
        const llmq_backend_ops *ops = backend_cpu();
        size_t row = ops->kv_bytes(type, 1, 1, DIM), from = ops->kv_bytes(type, N, HEADS, DIM),
               to = ops->kv_bytes(type, FAR, HEADS, DIM);
        llmq_kv kv[2] = {{mem_alloc(from, 1), mem_alloc(from, 1), type, N, HEADS, DIM},
                         {mem_zalloc(to, 1), mem_zalloc(to, 1), type, FAR, HEADS, DIM}};
        for (size_t i = 0; i < from; i++) {
            ((uint8_t *)kv[0].k)[i] = (uint8_t)(i % 250 + 1);
            ((uint8_t *)kv[0].v)[i] = (uint8_t)(i % 249 + 2);
        }
        team_run(teams[3], copy, &(rows_call){.ops = ops, .kv = kv});
        for (int head = 0; head < HEADS; head++)
            for (size_t pos = 0; pos < FAR; pos++)
                for (size_t i = 0; i < row; i++) {
                    size_t at = ((size_t)head * N + pos) * row + i, there = ((size_t)head * FAR + pos) * row + i;
                    bool inside = pos >= 3 && pos < 8;
                    assert_int_equal(((uint8_t *)kv[1].k)[there], inside ? ((uint8_t *)kv[0].k)[at] : 0);
                    assert_int_equal(((uint8_t *)kv[1].v)[there], inside ? ((uint8_t *)kv[0].v)[at] : 0);
                }
        for (int i = 0; i < 2; i++) mem_free(kv[i].k), mem_free(kv[i].v);
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
                                       cmocka_unit_test(test_new_position),
                                       cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_kv_copy),
                                       cmocka_unit_test(test_kv_bytes)};
    return cmocka_run_group_tests_name("attention", tests, make_teams, drop_teams);
}
