/* Attention of prompts under the emulator, in every thread order: against double arithmetic on operands rounded as the
 * kernel rounds them, and against the CPU's plain C op. */
#include "caches.h"

typedef struct prompt {
    int n_tok, pos, n_ctx, window, n_head, n_head_kv, head_dim;
} prompt;

/* Tiles have 64 keys (32 with heads above 128), blocks 64 queries of one head of the cache. */
static const prompt prompts[] = {
    {.n_tok = 1, .pos = 0, .n_ctx = 1, .n_head = 1, .n_head_kv = 1, .head_dim = 8},
    {.n_tok = 9, .pos = 0, .n_ctx = 9, .n_head = 2, .n_head_kv = 1, .head_dim = 16},
    {.n_tok = 64, .pos = 64, .n_ctx = 128, .n_head = 1, .n_head_kv = 1, .head_dim = 32},
    {.n_tok = 23, .pos = 41, .n_ctx = 67, .n_head = 6, .n_head_kv = 2, .head_dim = 64},
    {.n_tok = 70, .pos = 60, .n_ctx = 131, .n_head = 2, .n_head_kv = 2, .head_dim = 96, .window = 64},
    {.n_tok = 13, .pos = 125, .n_ctx = 140, .n_head = 5, .n_head_kv = 1, .head_dim = 80},
    {.n_tok = 17, .pos = 200, .n_ctx = 217, .n_head = 4, .n_head_kv = 4, .head_dim = 128, .window = 65},
    {.n_tok = 40, .pos = 3, .n_ctx = 50, .n_head = 3, .n_head_kv = 1, .head_dim = 104, .window = 7},
    {.n_tok = 12, .pos = 40, .n_ctx = 60, .n_head = 16, .n_head_kv = 1, .head_dim = 256, .window = 40},
    {.n_tok = 21, .pos = 50, .n_ctx = 71, .n_head = 1, .n_head_kv = 1, .head_dim = 200},
    {.n_tok = 10, .pos = 90, .n_ctx = 100, .n_head = 2, .n_head_kv = 1, .head_dim = 160, .window = 1},
};
enum { N_PROMPTS = sizeof prompts / sizeof *prompts, GUARD = 8 /* floats behind the queries of each token */ };

static int64_t q_dim(const prompt *p) {
    return (int64_t)p->n_head * p->head_dim;
}

/* A value of the cache as the tensor cores get it: f16, with 8 bits rounded to it. */
static double cached(const llmq_kv *kv, const void *base, int head, int64_t pos, int d) {
    const uint8_t *row = kv_row(base, kv, head, pos);
    if (kv->type == KV_F16) return (double)f16_to_f32(((const uint16_t *)row)[d]);
    return (double)f16_to_f32(f32_to_f16((float)(int8_t)row[d] * kv_q8_scale(row, kv->head_dim, d / KV_GROUP)));
}

/* What attention of one query is, and the sum of the magnitudes of which it is made. */
static void attend(const prompt *p, const llmq_kv *kv, const float *q, int t, int h, double scale, double *out,
                   double *mag) {
    const int last = p->pos + t, first = p->window > 0 && last + 1 > p->window ? last + 1 - p->window : 0;
    const int head_kv = h / (p->n_head / p->n_head_kv);
    double *w = malloc((size_t)(last + 1) * sizeof *w), most = -INFINITY, sum = 0;
    for (int key = first; key <= last; key++) {
        w[key] = 0;
        for (int d = 0; d < p->head_dim; d++)
            w[key] += (double)f16_to_f32(f32_to_f16(q[h * p->head_dim + d])) * cached(kv, kv->k, head_kv, key, d);
        w[key] *= scale;
        most = fmax(most, w[key]);
    }
    for (int d = 0; d < p->head_dim; d++) out[d] = mag[d] = 0;
    for (int key = first; key <= last; key++) {
        const double weight = exp(w[key] - most);
        sum += weight;
        for (int d = 0; d < p->head_dim; d++) {
            const double x = weight * cached(kv, kv->v, head_kv, key, d);
            out[d] += x;
            mag[d] += fabs(x);
        }
    }
    for (int d = 0; d < p->head_dim; d++) out[d] /= sum, mag[d] /= sum;
    free(w);
}

/* A layer's cache and queries on both sides. */
typedef struct problem {
    prompt p;
    llmq_kv kv;
    size_t n_cache, n_out;
    float *q, scale; /* (n_tok, q_dim + GUARD) */
    paged gpu;
    float *d_q;
    int32_t *d_pos;
} problem;

static problem make_problem(const prompt *p, int type) {
    problem b = {.p = *p, .kv = {NULL, NULL, type, p->n_ctx, p->n_head_kv, p->head_dim}};
    b.n_cache = (size_t)(p->n_ctx * p->n_head_kv) * kv_row_bytes(type, p->head_dim);
    b.n_out = (size_t)(p->n_tok * q_dim(p));
    b.q = random_floats((size_t)(p->n_tok * (q_dim(p) + GUARD)), -3, 3);
    b.scale = 1 / sqrtf((float)p->head_dim);
    b.kv.k = malloc(b.n_cache), b.kv.v = malloc(b.n_cache);
    fill_cache(&b.kv, b.kv.k), fill_cache(&b.kv, b.kv.v);
    return b;
}

static void put_on_gpu(problem *b) {
    const prompt *p = &b->p;
    const int32_t pos = p->pos;
    b->d_q = input_of("q", b->q, (size_t)(p->n_tok * (q_dim(p) + GUARD)) * sizeof *b->q);
    b->d_pos = input_of("pos", &pos, sizeof pos);
    b->gpu = make_pages(&b->kv);
    /* Only rows that there are tokens for: the emulator reports reads of what nobody has written. */
    put_rows(&b->gpu, &b->kv, b->kv.k, false, pos + p->n_tok), put_rows(&b->gpu, &b->kv, b->kv.v, true, pos + p->n_tok);
    for (int i = 0; i < b->gpu.n_pages; i++) gpu_seal(b->gpu.pages[i]);
}

static void drop_problem(problem *b) {
    gpu_free(b->d_q), gpu_free(b->d_pos);
    drop_pages(&b->gpu);
    free(b->q), free(b->kv.k), free(b->kv.v);
}

static void run(const problem *b, float *out, const char *what) {
    const size_t guarded = b->n_out + GUARD;
    const cuda_attn a = {b->p.n_head, b->scale, b->p.window, 0, b->d_pos};
    float *d_out = output_of("out", guarded * sizeof *d_out);
    llmq_err err;
    for (size_t i = 0; i < guarded; i++) out[i] = -77;
    assert_int_equal(gpu_upload(d_out, out, guarded * sizeof *out, &err), LLMQ_OK);
    cuda_prompt_attention(NULL, &a, b->d_q, q_dim(&b->p) + GUARD, &b->gpu.kv, b->p.n_tok, d_out);
    from_device(out, d_out, guarded * sizeof *out, what);
    for (size_t i = b->n_out; i < guarded; i++) assert_true(out[i] == -77);
    gpu_free(d_out);
}

static void name_of(const prompt *p, int type, int order, char *out, size_t size) {
    snprintf(out, size, "cache %d heads %d/%d dim %d tokens %d pos %d window %d order %d", type, p->n_head,
             p->n_head_kv, p->head_dim, p->n_tok, p->pos, p->window, order);
}

/* ---- against double arithmetic, and the CPU's op */

typedef struct cpu_call {
    const problem *b;
    float *out;
    void *scratch;
    llmq_attn attn;
} cpu_call;

static void cpu_attention(const llmq_worker *w, void *arg) {
    const cpu_call *c = arg;
    backend_cpu_isa("c")->attention(w, &c->attn, c->b->q, q_dim(&c->b->p) + GUARD, &c->b->kv, c->out, c->scratch);
}

static void compare_with_cpu(const problem *b, const float *out, const char *what) {
    const prompt *p = &b->p;
    double *want = malloc(b->n_out * sizeof *want);
    cpu_call c = {b,
                  malloc(b->n_out * sizeof(float)),
                  NULL,
                  {p->n_head, p->n_head_kv, p->head_dim, b->scale, p->window, p->pos, p->n_tok, false, NULL, NULL}};
    c.scratch = malloc(backend_cpu_isa("c")->attn_scratch_bytes(&c.attn, 1));
    team_run(team, cpu_attention, &c);
    for (size_t i = 0; i < b->n_out; i++) want[i] = (double)c.out[i];
    assert_close(out, want, b->n_out, 2e-3, what);
    free(want), free(c.out), free(c.scratch);
}

/* Weights are rounded to f16, half of 2^-10 of each; sums, cut to 24 or 25 bits, and exponentials are small beside
 * that. */
static void compare(const problem *b, const float *out, const char *what) {
    const prompt *p = &b->p;
    double want[256], mag[256];
    for (int t = 0; t < p->n_tok; t++)
        for (int h = 0; h < p->n_head; h++) {
            attend(p, &b->kv, b->q + t * (q_dim(p) + GUARD), t, h, (double)b->scale, want, mag);
            const float *got = out + t * q_dim(p) + h * p->head_dim;
            for (int d = 0; d < p->head_dim; d++)
                if (!(fabs((double)got[d] - want[d]) <= 5.5e-4 * mag[d]))
                    fail_msg("%s: token %d head %d [%d] is %g, expected %g", what, t, h, d, (double)got[d], want[d]);
        }
}

static void check(const prompt *p, int type) {
    problem b = make_problem(p, type);
    float *out = malloc((b.n_out + GUARD) * sizeof *out), *first = malloc(b.n_out * sizeof *first);
    put_on_gpu(&b);
    for (int order = 0; order < EMU_ORDERS; order++) {
        char what[160];
        name_of(p, type, order, what, sizeof what);
        emu_set_order((emu_order)order, 7);
        run(&b, out, what);
        if (order == 0) {
            compare(&b, out, what);
            compare_with_cpu(&b, out, what);
            memcpy(first, out, b.n_out * sizeof *out);
        }
        assert_memory_equal(out, first, b.n_out * sizeof *out);
    }
    free(out), free(first);
    drop_problem(&b);
}

static void test_prompts(void **state) {
    (void)state;
    for (int i = 0; i < N_PROMPTS; i++) {
        emu_set_tensor_core(i % 2 ? EMU_GROUPS_OF_16 : EMU_GROUPS_OF_8);
        check(&prompts[i], KV_F16);
        if (prompts[i].head_dim % KV_GROUP == 0) check(&prompts[i], KV_Q8);
    }
    emu_set_tensor_core(EMU_GROUPS_OF_8);
}

/* Queries of zeros weigh all keys alike, and values are whole numbers: each result is an exact sum, of the very keys
 * that a token sees, divided by their number. */
static void test_which_keys(void **state) {
    (void)state;
    for (int i = 0; i < 2 * N_PROMPTS; i++) {
        const prompt *p = &prompts[i / 2];
        const int type = i % 2 ? KV_Q8 : KV_F16;
        if (type == KV_Q8 && p->head_dim % KV_GROUP) continue;
        problem b = make_problem(p, type);
        const size_t row_bytes = kv_row_bytes(type, p->head_dim), n_rows = b.n_cache / row_bytes;
        for (int j = 0; j < p->n_tok * (int)(q_dim(p) + GUARD); j++) b.q[j] = 0;
        for (size_t r = 0; r < n_rows; r++) {
            uint8_t *row = (uint8_t *)b.kv.v + r * row_bytes;
            for (int d = 0; d < p->head_dim; d++) {
                const int value = (int)(rng_u32() % 201) - 100;
                if (type == KV_Q8)
                    row[d] = (uint8_t)(int8_t)value;
                else
                    ((uint16_t *)row)[d] = f32_to_f16((float)value);
            }
            for (int g = 0; type == KV_Q8 && g < p->head_dim / KV_GROUP; g++)
                ((uint16_t *)(row + p->head_dim))[g] = f32_to_f16(1);
        }
        put_on_gpu(&b);
        float *out = malloc((b.n_out + GUARD) * sizeof *out);
        double want[256], mag[256];
        char what[160];
        name_of(p, type, i % EMU_ORDERS, what, sizeof what);
        emu_set_order((emu_order)(i % EMU_ORDERS), 7);
        run(&b, out, what);
        for (int t = 0; t < p->n_tok; t++)
            for (int h = 0; h < p->n_head; h++) {
                const int seen = p->window > 0 && p->pos + t + 1 > p->window ? p->window : p->pos + t + 1;
                attend(p, &b.kv, b.q, t, h, (double)b.scale, want, mag);
                for (int d = 0; d < p->head_dim; d++) {
                    const float exact = (float)rint(want[d] * seen) / (float)seen;
                    if (out[t * q_dim(p) + h * p->head_dim + d] != exact)
                        fail_msg("%s: token %d head %d [%d] is not the mean of its keys", what, t, h, d);
                }
            }
        free(out);
        drop_problem(&b);
    }
}

/* Scores so far apart that all but one key's weights vanish, growing and shrinking from tile to tile; a key that is not
 * a number spoils those who see it, and nobody else. */
static void test_odd_scores(void **state) {
    (void)state;
    const prompt p = {.n_tok = 20, .pos = 150, .n_ctx = 170, .n_head = 1, .n_head_kv = 1, .head_dim = 64};
    for (int kind = 0; kind < 3; kind++) {
        problem b = make_problem(&p, KV_F16);
        uint16_t *k = b.kv.k;
        for (int j = 0; j < p.n_tok * (64 + GUARD); j++) b.q[j] = 1000;
        for (int key = 0; key < p.n_ctx; key++)
            for (int d = 0; d < 64; d++)
                k[key * 64 + d] = f32_to_f16(kind == 0 ? (float)key : kind == 1 ? -(float)key : uniform(-1e-3f, 1e-3f));
        if (kind == 2) k[160 * 64 + 9] = f32_to_f16(NAN);
        put_on_gpu(&b);
        float *out = malloc((b.n_out + GUARD) * sizeof *out);
        emu_set_order((emu_order)kind, 7);
        run(&b, out, "odd scores");
        for (int t = 0; t < p.n_tok; t++)
            for (int d = 0; d < 64; d++) {
                const float got = out[t * 64 + d];
                const int only = kind == 0 ? p.pos + t : 0; /* the key with all the weight */
                const float v = f16_to_f32(((uint16_t *)b.kv.v)[only * 64 + d]);
                if (kind < 2) assert_true(fabsf(got - v) <= 5.5e-4f * fabsf(v));
                if (kind == 2) assert_true(p.pos + t >= 160 ? isnan(got) : isfinite(got));
            }
        free(out);
        drop_problem(&b);
    }
}

/* Nothing meets in a bank; queries, keys and values are read in whole sectors, and results written. */
static void test_traffic(void **state) {
    (void)state;
    if (!emu_here()) skip(); /* nothing counts there */
    static const int dims[] = {64, 96, 128, 256};
    for (int i = 0; i < 8; i++) {
        const prompt p = {.n_tok = 64, .pos = 64, .n_ctx = 128, .n_head = 1, .n_head_kv = 1, .head_dim = dims[i / 2]};
        problem b = make_problem(&p, i % 2 ? KV_Q8 : KV_F16);
        float *out = malloc((b.n_out + GUARD) * sizeof *out);
        put_on_gpu(&b);
        emu_set_order(EMU_FORWARD, 0);
        emu_count(true);
        run(&b, out, "traffic");
        emu_count(false);
        emu_traffic list[64];
        const int n = emu_traffic_list(list, 64);
        int shared_lines = 0, broken = 0;
        for (int k = 0; k < n; k++) {
            if (list[k].shared && list[k].needed != list[k].best)
                fail_msg("dim %d cache %d: %s:%d needs %d where %d would do", p.head_dim, i % 2, list[k].file,
                         list[k].line, (int)list[k].needed, (int)list[k].best);
            shared_lines += list[k].shared;
            broken += !list[k].shared && list[k].needed != list[k].best;
        }
        assert_true(shared_lines >= 3);
        assert_int_equal(broken, i % 2); /* scales of 8-bit caches: 2 bytes of a row */
        free(out);
        drop_problem(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_which_keys),
        cmocka_unit_test(test_odd_scores),
        cmocka_unit_test(test_traffic),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
