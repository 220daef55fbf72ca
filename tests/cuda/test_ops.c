/* The small kernels and decode attention under the emulator, against the CPU's plain C ops (attention also against
 * double arithmetic), in every thread order. */
#include "caches.h"
#include "core/mem.h"

/* fn(what) in every order: results must not depend on it. */
typedef struct result {
    float *first;
    size_t n;
} result;

static void same_bits(result *r, int order, const float *y, const char *what) {
    if (order == 0) {
        r->first = malloc(r->n * sizeof *r->first);
        memcpy(r->first, y, r->n * sizeof *y);
    }
    if (memcmp(r->first, y, r->n * sizeof *y) != 0) fail_msg("%s: order %d gives other bits", what, order);
    if (order == EMU_ORDERS - 1) free(r->first);
}

/* ---- norm, add, SwiGLU */

static void test_rms_norm(void **state) {
    (void)state;
    const struct {
        int64_t rows, n, stride;
    } shapes[] = {{1, 576, 576}, {5, 172, 180}, {3, 1, 2}, {2, 4099, 4099}, {9, 15, 16}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int64_t rows = shapes[s].rows, n = shapes[s].n, stride = shapes[s].stride;
        size_t len = (size_t)((rows - 1) * stride + n);
        float *x = random_floats(len, -3, 3), *gain = random_floats((size_t)n, -2, 2), *y = malloc(len * sizeof *y);
        double *want = malloc(len * sizeof *want);
        for (size_t i = 0; i < len; i++) want[i] = (double)x[i]; /* in place: between rows nothing changes */
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t i = 0; i < n; i++) sum += (double)x[r * stride + i] * (double)x[r * stride + i];
            for (int64_t i = 0; i < n; i++)
                want[r * stride + i] = (double)x[r * stride + i] / sqrt(sum / (double)n + 1e-5) * (double)gain[i];
        }
        float *d_gain = input_of("gain", gain, (size_t)n * sizeof *gain);
        result same = {NULL, len};
        for (int order = 0; order < EMU_ORDERS; order++) {
            float *d_x = on_device("x", x, len * sizeof *x, false);
            emu_set_order((emu_order)order, 3);
            cuda_rms_norm(NULL, d_x, d_gain, 1e-5f, d_x, rows, n, stride);
            from_device(y, d_x, len * sizeof *y, "rms_norm");
            assert_close(y, want, len, 1e-6, "rms_norm");
            same_bits(&same, order, y, "rms_norm");
            gpu_free(d_x);
        }
        gpu_free(d_gain), free(x), free(gain), free(y), free(want);
    }
}

static void test_elements(void **state) {
    (void)state;
    const size_t lens[] = {1, 31, 256, 257, 1000};
    for (size_t s = 0; s < sizeof lens / sizeof *lens; s++) {
        size_t n = lens[s];
        float *x = random_floats(n, -8, 8), *z = random_floats(n, -8, 8), *y = malloc(n * sizeof *y);
        double *sum = malloc(n * sizeof *sum), *act = malloc(n * sizeof *act);
        x[0] = -200; /* exp overflows: the result is zero, not NaN */
        for (size_t i = 0; i < n; i++) {
            sum[i] = (double)x[i] + (double)z[i];
            act[i] = (double)x[i] / (1 + exp(-(double)x[i])) * (double)z[i];
        }
        for (int order = 0; order < EMU_ORDERS; order++) {
            emu_set_order((emu_order)order, 3);
            float *d_x = on_device("x", x, n * sizeof *x, false), *d_z = input_of("z", z, n * sizeof *z);
            cuda_add(NULL, d_x, d_z, (int64_t)n);
            from_device(y, d_x, n * sizeof *y, "add");
            assert_close(y, sum, n, 1e-7, "add");
            llmq_err err;
            assert_int_equal(gpu_upload(d_x, x, n * sizeof *x, &err), LLMQ_OK);
            cuda_silu_mul(NULL, d_x, d_z, d_x, (int64_t)n);
            from_device(y, d_x, n * sizeof *y, "silu_mul");
            assert_close(y, act, n, 1e-6, "silu_mul");
            gpu_free(d_x), gpu_free(d_z);
        }
        free(x), free(z), free(y), free(sum), free(act);
    }
}

/* ---- rotation and cache, against the CPU's ops */

typedef struct layer {
    int64_t n_tok, pos, n_ctx, window;
    int n_head, n_head_kv, head_dim, n_rot;
    bool neox;
} layer;

static const layer layers[] = {
    {.n_tok = 1, .pos = 0, .n_ctx = 4, .n_head = 1, .n_head_kv = 1, .head_dim = 8, .n_rot = 8},
    {.n_tok = 3, .pos = 40, .n_ctx = 64, .n_head = 6, .n_head_kv = 2, .head_dim = 64, .n_rot = 64, .neox = true},
    {.n_tok = 8, .pos = 125, .n_ctx = 140, .n_head = 9, .n_head_kv = 3, .head_dim = 64, .n_rot = 32},
    {.n_tok = 1, .pos = 299, .n_ctx = 300, .n_head = 5, .n_head_kv = 1, .head_dim = 80, .n_rot = 80, .neox = true},
    {.n_tok = 2, .pos = 270, .n_ctx = 288, .n_head = 4, .n_head_kv = 4, .head_dim = 128, .n_rot = 96, .window = 100},
    {.n_tok = 1, .pos = 130, .n_ctx = 160, .n_head = 16, .n_head_kv = 1, .head_dim = 256, .n_rot = 256, .window = 7},
};
#define N_LAYERS (sizeof layers / sizeof *layers)

typedef struct cpu_call {
    const layer *l;
    float *q, *k, *v, *out, *cos_sin;
    llmq_kv *kv;
    llmq_attn attn;
    void *scratch;
} cpu_call;

static void cpu_rope_store(const llmq_worker *w, void *arg) {
    cpu_call *c = arg;
    const layer *l = c->l;
    const llmq_backend_ops *ops = backend_cpu_isa("c");
    int64_t ldq = l->n_head * l->head_dim, ldk = l->n_head_kv * l->head_dim;
    const float *cs = c->cos_sin + l->pos * l->n_rot;
    ops->rope(w, c->q, l->n_tok, ldq, l->n_head, l->head_dim, l->n_rot, cs, l->neox);
    ops->rope(w, c->k, l->n_tok, ldk, l->n_head_kv, l->head_dim, l->n_rot, cs, l->neox);
    ops->kv_store(w, c->kv, c->k, ldk, c->v, ldk, l->pos, l->n_tok);
}

static void cpu_attention(const llmq_worker *w, void *arg) {
    cpu_call *c = arg;
    backend_cpu_isa("c")->attention(w, &c->attn, c->q, c->l->n_head * c->l->head_dim, c->kv, c->out, c->scratch);
}

/* A rotation may round its last bit the other way, and with it a code. */
static void assert_close_keys(const llmq_kv *kv, const uint8_t *got, const uint8_t *want) {
    const size_t n = (size_t)kv->head_dim, n_rows = (size_t)(kv->n_head_kv * kv->n_ctx);
    const size_t row_bytes = kv_row_bytes(kv->type, kv->head_dim);
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < n; i++) {
            const uint8_t *a = got + r * row_bytes, *b = want + r * row_bytes;
            if (kv->type == KV_F16)
                assert_true(fabsf(f16_to_f32(((const uint16_t *)a)[i]) - f16_to_f32(((const uint16_t *)b)[i])) <=
                            0.004f);
            else
                assert_true(fabsf((float)(int8_t)a[i] * kv_q8_scale(a, kv->head_dim, (int)i / KV_GROUP) -
                                  (float)(int8_t)b[i] * kv_q8_scale(b, kv->head_dim, (int)i / KV_GROUP)) <=
                            1.01f * kv_q8_scale(b, kv->head_dim, (int)i / KV_GROUP));
        }
}

static void check_layer(const layer *l, int type) {
    size_t n_q = (size_t)(l->n_tok * l->n_head * l->head_dim), n_k = (size_t)(l->n_tok * l->n_head_kv * l->head_dim);
    llmq_kv kv = {NULL, NULL, type, l->n_ctx, l->n_head_kv, l->head_dim};
    size_t n_cache = (size_t)(l->n_ctx * l->n_head_kv) * kv_row_bytes(type, l->head_dim),
           n_cs = (size_t)(l->n_ctx * l->n_rot);
    float *q = random_floats(n_q, -3, 3), *k = random_floats(n_k, -3, 3), *v = random_floats(n_k, -3, 3);
    float *cs = random_floats(n_cs, -1, 1), *got = malloc(n_q * sizeof *got);
    uint8_t *k_cache = malloc(n_cache), *v_cache = malloc(n_cache), *cache = malloc(n_cache);
    kv.k = malloc(n_cache), kv.v = malloc(n_cache);
    fill_cache(&kv, kv.k), fill_cache(&kv, kv.v);
    memcpy(k_cache, kv.k, n_cache), memcpy(v_cache, kv.v, n_cache); /* as it was before these tokens */
    int32_t pos = (int32_t)l->pos;
    result same_q = {NULL, n_q}, same_out = {NULL, n_q};

    float *d_k = input_of("k", k, n_k * 4), *d_v = input_of("v", v, n_k * 4), *d_cs = input_of("cos_sin", cs, n_cs * 4);
    float *cpu_q = malloc(n_q * 4), *cpu_out = malloc(n_q * 4);
    memcpy(cpu_q, q, n_q * 4);
    llmq_attn attn = {l->n_head, l->n_head_kv, l->head_dim, 1 / sqrtf((float)l->head_dim), l->window, l->pos, l->n_tok,
                      false,     NULL,         NULL};
    cpu_call c = {l, cpu_q, k, v, cpu_out, cs, &kv, attn, malloc(backend_cpu_isa("c")->attn_scratch_bytes(&attn, 1))};
    team_run(team, cpu_rope_store, &c);
    team_run(team, cpu_attention, &c);
    double *want_q = malloc(n_q * sizeof *want_q), *want = malloc(n_q * sizeof *want);
    for (size_t i = 0; i < n_q; i++) want_q[i] = (double)cpu_q[i], want[i] = (double)cpu_out[i];

    for (int order = 0; order < EMU_ORDERS; order++) {
        char what[96];
        snprintf(what, sizeof what, "cache %d heads %d/%d dim %d tokens %d pos %d order %d", type, l->n_head,
                 l->n_head_kv, l->head_dim, (int)l->n_tok, (int)l->pos, order);
        emu_set_order((emu_order)order, 11);
        int32_t *d_pos = input_of("pos", &pos, sizeof pos);
        float *d_q = on_device("q", q, n_q * 4, false), *d_out = output_of("out", n_q * 4);
        paged gpu = make_pages(&kv);
        put_rows(&gpu, &kv, k_cache, false, l->n_ctx), put_rows(&gpu, &kv, v_cache, true, l->n_ctx);
        cuda_rope rope = {l->n_head, l->n_rot, l->neox, d_cs, d_pos};
        int64_t ldq = l->n_head * l->head_dim, ldk = l->n_head_kv * l->head_dim;
        cuda_rope_store(NULL, &rope, d_q, ldq, d_k, ldk, d_v, ldk, (int)l->n_tok, &gpu.kv);
        from_device(got, d_q, n_q * 4, what);
        assert_close(got, want_q, n_q, 1e-6, what);
        same_bits(&same_q, order, got, what);
        get_rows(&gpu, &kv, cache, false, l->n_ctx);
        assert_close_keys(&kv, cache, kv.k);
        get_rows(&gpu, &kv, cache, true, l->n_ctx);
        assert_memory_equal(cache, kv.v, n_cache);

        llmq_err err; /* the same keys as the CPU's, to the last bit */
        put_rows(&gpu, &kv, kv.k, false, l->n_ctx);
        assert_int_equal(gpu_upload(d_q, cpu_q, n_q * 4, &err), LLMQ_OK);
        cuda_attn a = {l->n_head, attn.scale, l->window, l->pos + l->n_tok, d_pos};
        void *scratch = output_of("scratch", cuda_attention_scratch_bytes(&a, &gpu.kv, (int)l->n_tok));
        cuda_attention(NULL, &a, d_q, ldq, &gpu.kv, (int)l->n_tok, d_out, scratch);
        from_device(got, d_out, n_q * 4, what);
        assert_close(got, want, n_q, 5e-6, what);
        same_bits(&same_out, order, got, what);
        gpu_free(d_pos), gpu_free(d_q), gpu_free(d_out), gpu_free(scratch);
        drop_pages(&gpu);
    }
    gpu_free(d_k), gpu_free(d_v), gpu_free(d_cs);
    free(q), free(k), free(v), free(cs), free(got), free(k_cache), free(v_cache), free(cache), free(cpu_q),
        free(cpu_out);
    free(kv.k), free(kv.v), free(c.scratch), free(want_q), free(want);
}

static void test_layers(void **state) {
    (void)state;
    for (size_t i = 0; i < N_LAYERS; i++) {
        check_layer(&layers[i], KV_F16);
        if (layers[i].head_dim % KV_GROUP == 0) check_layer(&layers[i], KV_Q8);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_elements),
        cmocka_unit_test(test_layers),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
