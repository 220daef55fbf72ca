/* train: gradients of the decoder, each architecture flag: doubles against finite differences, floats against doubles,
 * the same bytes for any team. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/isas.h"
#include "train/net.h"

enum { WINDOWS = 2, TOKENS = 7, LAYERS = 2, MODEL = LAYERS }; /* MODEL: index of the model's own weights */

typedef struct variant {
    const char *name;
    bool neox, qkv_bias, o_bias, qk_norm, teacher;
    int n_head, n_head_kv, head_dim, n_rot, window;
} variant;

static const variant variants[] = {
    {"llama", false, false, false, false, false, 4, 2, 6, 6, 0},
    {"llama hf", true, false, false, false, true, 4, 4, 6, 6, 0},
    {"qwen2", true, true, false, false, false, 4, 1, 8, 8, 0},
    {"qwen3", true, false, false, true, true, 2, 1, 12, 12, 0},
    {"mistral", true, false, false, false, true, 4, 2, 6, 6, 3},
    {"o bias", true, true, true, true, false, 2, 2, 8, 4, 0},
};

static uint64_t seed;
static double uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return ((double)(seed >> 33) + 0.5) / 2147483648.0 * 2 - 1;
}

/* A random model in doubles and the same in floats. */
typedef struct toy {
    net_shape shape;
    net_wants wants;
    float rope[TOKENS * 32];
    double *w[LAYERS + 1][ROLE_COUNT], *g[LAYERS + 1][ROLE_COUNT];
    float *f[LAYERS + 1][ROLE_COUNT], *fg[LAYERS + 1][ROLE_COUNT];
    int64_t rows[LAYERS + 1][ROLE_COUNT], cols[LAYERS + 1][ROLE_COUNT];
    int32_t tokens[WINDOWS * TOKENS], labels[WINDOWS * TOKENS];
} toy;

static void add(toy *t, int l, llmq_role role, int64_t rows, int64_t cols, double mean, double spread) {
    size_t n = (size_t)(rows * cols);
    t->rows[l][role] = rows;
    t->cols[l][role] = cols;
    t->w[l][role] = mem_alloc(n, sizeof(double));
    t->g[l][role] = mem_zalloc(n, sizeof(double));
    t->f[l][role] = mem_alloc(n, sizeof(float));
    t->fg[l][role] = mem_zalloc(n, sizeof(float));
    for (size_t i = 0; i < n; i++) t->w[l][role][i] = t->f[l][role][i] = (float)(mean + spread * uniform());
    t->wants.of[role] = true;
}

static void make(toy *t, const variant *v) {
    memset(t, 0, sizeof *t);
    seed = 42;
    llmq_hparams *hp = &t->shape.hp;
    *hp = (llmq_hparams){.n_vocab = 37,
                         .n_embd = 20,
                         .n_layer = LAYERS,
                         .n_head = v->n_head,
                         .n_head_kv = v->n_head_kv,
                         .head_dim = v->head_dim,
                         .n_ff = 28,
                         .n_rot = v->n_rot,
                         .eps = 1e-5f,
                         .window = v->window};
    t->shape.neox = v->neox;
    t->shape.n_windows = WINDOWS;
    t->shape.n_tok = TOKENS;
    t->shape.rope = t->rope;
    for (int i = 0; i < TOKENS; i++)
        for (int k = 0; k < v->n_rot / 2; k++) {
            t->rope[i * v->n_rot + 2 * k] = (float)cos(i * pow(100, -2.0 * k / v->n_rot));
            t->rope[i * v->n_rot + 2 * k + 1] = (float)sin(i * pow(100, -2.0 * k / v->n_rot));
        }
    int64_t e = hp->n_embd, q = hp->n_head * hp->head_dim, kv = hp->n_head_kv * hp->head_dim, ff = hp->n_ff;
    for (int l = 0; l < LAYERS; l++) {
        add(t, l, ROLE_ATTN_NORM, 1, e, 1, 0.3);
        add(t, l, ROLE_Q, q, e, 0, 0.5);
        add(t, l, ROLE_K, kv, e, 0, 0.5);
        add(t, l, ROLE_V, kv, e, 0, 0.5);
        add(t, l, ROLE_O, e, q, 0, 0.5);
        add(t, l, ROLE_FFN_NORM, 1, e, 1, 0.3);
        add(t, l, ROLE_GATE, ff, e, 0, 0.5);
        add(t, l, ROLE_UP, ff, e, 0, 0.5);
        add(t, l, ROLE_DOWN, e, ff, 0, 0.5);
        if (v->qkv_bias)
            add(t, l, ROLE_Q_BIAS, 1, q, 0, 0.5), add(t, l, ROLE_K_BIAS, 1, kv, 0, 0.5),
                add(t, l, ROLE_V_BIAS, 1, kv, 0, 0.5);
        if (v->o_bias) add(t, l, ROLE_O_BIAS, 1, e, 0, 0.5);
        if (v->qk_norm)
            add(t, l, ROLE_Q_NORM, 1, hp->head_dim, 1, 0.3), add(t, l, ROLE_K_NORM, 1, hp->head_dim, 1, 0.3);
    }
    add(t, MODEL, ROLE_TOKEN_EMBD, hp->n_vocab, e, 0, 1);
    add(t, MODEL, ROLE_OUTPUT_NORM, 1, e, 1, 0.3);
    add(t, MODEL, ROLE_OUTPUT, hp->n_vocab, e, 0, 0.5);
    for (int i = 0; i < WINDOWS * TOKENS; i++) {
        t->tokens[i] = (int32_t)((uniform() + 1) * 18);
        t->labels[i] = i % 5 == 4 ? -1 : (int32_t)((uniform() + 1) * 18);
    }
}

static void drop(toy *t) {
    for (int l = 0; l <= LAYERS; l++)
        for (int r = 0; r < ROLE_COUNT; r++) {
            mem_free(t->w[l][r]);
            mem_free(t->g[l][r]);
            mem_free(t->f[l][r]);
            mem_free(t->fg[l][r]);
        }
}

static llmq_status weights_f64(void *user, int layer, bool back, net_weights_f64 *out, llmq_err *err) {
    toy *t = user;
    (void)back, (void)err;
    for (int r = 0; r < ROLE_COUNT; r++) out->of[r] = t->w[layer < 0 ? MODEL : layer][r];
    return LLMQ_OK;
}
static llmq_status weights_f32(void *user, int layer, bool back, net_weights_f32 *out, llmq_err *err) {
    toy *t = user;
    int l = layer < 0 ? MODEL : layer;
    (void)back, (void)err;
    for (int r = 0; r < ROLE_COUNT; r++)
        if (t->f[l][r])
            out->of[r] = (llmq_tensor){.type = LLMQ_TYPE_F32,
                                       .n_dims = 2,
                                       .dims = {t->cols[l][r], t->rows[l][r], 1, 1},
                                       .bytes = t->rows[l][r] * t->cols[l][r] * 4,
                                       .data = t->f[l][r]};
    return LLMQ_OK;
}

#define KEEP(suffix, type, where)                                                                                      \
    static llmq_status gradients_##suffix(void *user, int layer, type *const *g, llmq_err *err) {                      \
        toy *t = user;                                                                                                 \
        int l = layer < 0 ? MODEL : layer;                                                                             \
        (void)err;                                                                                                     \
        for (int r = 0; r < ROLE_COUNT; r++) {                                                                         \
            if (!g[r] || !t->where[l][r]) continue;                                                                    \
            int64_t cols = t->cols[l][r], n = t->rows[l][r] * cols;                                                    \
            if (r != ROLE_TOKEN_EMBD)                                                                                  \
                memcpy(t->where[l][r], g[r], (size_t)n * sizeof(type));                                                \
            else                                                                                                       \
                for (int i = 0; i < WINDOWS * TOKENS; i++)                                                             \
                    for (int64_t c = 0; c < cols; c++) t->where[l][r][t->tokens[i] * cols + c] += g[r][i * cols + c];  \
        }                                                                                                              \
        return LLMQ_OK;                                                                                                \
    }
KEEP(f64, double, g)
KEEP(f32, float, fg)

static llmq_team *teams[4];
static int make_teams(void **state) {
    (void)state;
    for (int n = 1; n <= 3; n++)
        if (team_create(n, &teams[n], NULL) != LLMQ_OK) return -1;
    return 0;
}
static int drop_teams(void **state) {
    (void)state;
    for (int n = 1; n <= 3; n++) team_destroy(teams[n]);
    return 0;
}

/* The teacher is another toy. */
static double loss_f64(toy *t, toy *teacher, bool gradients) {
    net_f64 *net = NULL;
    llmq_err err = {0};
    double loss;
    net_source_f64 source = {weights_f64, gradients_f64, t->wants, false, t},
                   other = {weights_f64, NULL, {{0}}, false, teacher};
    net_loss what = {teacher != NULL, t->labels, 0.1};
    assert_int_equal(net_create_f64(&t->shape, &t->wants, teacher != NULL, true, NULL, NULL, &net, &err), LLMQ_OK);
    if (teacher) assert_int_equal(net_teach_f64(net, &other, t->tokens, &err), LLMQ_OK);
    assert_int_equal(net_step_f64(net, &source, t->tokens, &what, gradients, &loss, &err), LLMQ_OK);
    net_destroy_f64(net);
    return loss;
}

static double loss_f32(toy *t, toy *teacher, const char *isa, int n_workers, bool exact) {
    net_f32 *net = NULL;
    llmq_err err = {0};
    double loss;
    net_source_f32 source = {weights_f32, gradients_f32, t->wants, false, t},
                   other = {weights_f32, NULL, {{0}}, false, teacher};
    net_loss what = {teacher != NULL, t->labels, 0.1};
    for (int r = 0; t->fg[MODEL][ROLE_TOKEN_EMBD] && r < 1; r++)
        memset(t->fg[MODEL][ROLE_TOKEN_EMBD], 0, (size_t)(37 * 20) * sizeof(float));
    assert_int_equal(net_create_f32(&t->shape, &t->wants, teacher != NULL, exact, backend_cpu_isa(isa),
                                    teams[n_workers], &net, &err),
                     LLMQ_OK);
    if (teacher) assert_int_equal(net_teach_f32(net, &other, t->tokens, &err), LLMQ_OK);
    assert_int_equal(net_step_f32(net, &source, t->tokens, &what, true, &loss, &err), LLMQ_OK);
    net_destroy_f32(net);
    return loss;
}

/* Central differences of the largest and of some other elements of every tensor of layers [first, last). */
typedef double loss_fn(toy *t, toy *teacher, bool gradients);
static void differences(const char *name, loss_fn *loss, toy *t, toy *teacher, int first, int last) {
    loss(t, teacher, true);
    for (int l = first; l < last; l++)
        for (int r = 0; r < ROLE_COUNT; r++) {
            if (!t->w[l][r]) continue;
            int64_t n = t->rows[l][r] * t->cols[l][r];
            double scale = 0;
            for (int64_t i = 0; i < n; i++) scale = fmax(scale, fabs(t->g[l][r][i]));
            assert_true(scale > 0);
            for (int64_t i = 0; i < n; i += 1 + n / 7) {
                double keep = t->w[l][r][i], h = 2e-4, d[3];
                for (int k = 1; k <= 2; k++) { /* fourth order */
                    t->w[l][r][i] = keep + k * h;
                    d[k] = loss(t, teacher, false);
                    t->w[l][r][i] = keep - k * h;
                    d[k] -= loss(t, teacher, false);
                }
                t->w[l][r][i] = keep;
                double want = (8 * d[1] - d[2]) / (12 * h), got = t->g[l][r][i];
                if (!(fabs(got - want) <= 1e-5 * fmax(fabs(want), 0.01 * scale)))
                    fail_msg("%s, layer %d, role %d [%d]: %.12g, differences give %.12g", name, l, r, (int)i, got,
                             want);
            }
        }
}

/* The teacher is the same but for its gates. */
static void make_both(const variant *v, toy *t, toy *teacher) {
    make(t, v);
    make(teacher, v);
    for (int l = 0; l < LAYERS; l++)
        for (int64_t i = 0; i < 20 * 28; i++)
            teacher->w[l][ROLE_GATE][i] = teacher->f[l][ROLE_GATE][i] += (float)(0.3 * uniform());
}

static void finite_differences(void **state) {
    (void)state;
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        static toy t, teacher;
        make_both(&variants[v], &t, &teacher);
        differences(variants[v].name, loss_f64, &t, variants[v].teacher ? &teacher : NULL, 0, LAYERS + 1);
        drop(&t);
        drop(&teacher);
    }
}

/* ---- a layer alone: the last one, on inputs of its own, against what the teacher's makes of them ---- */

enum { ALONE = LAYERS - 1, STATES = WINDOWS * TOKENS * 20 };

static const net_square squares[] = {{0.1, false}, {0.1, true}};
static const net_square *square;

static void inputs(double *x, float *f) {
    seed = 7;
    for (int i = 0; i < STATES; i++) x[i] = f[i] = (float)uniform();
}

static double alone_f64(toy *t, toy *teacher, bool gradients) {
    net_f64 *net = NULL;
    llmq_err err = {0};
    double loss, x[STATES], want[STATES];
    float f[STATES];
    net_source_f64 source = {weights_f64, gradients_f64, t->wants, false, t},
                   other = {weights_f64, NULL, {{0}}, false, teacher};
    inputs(x, f);
    t->shape.alone = true;
    assert_int_equal(net_create_f64(&t->shape, &t->wants, false, true, NULL, NULL, &net, &err), LLMQ_OK);
    assert_int_equal(net_layer_ready_f64(net, &other, ALONE, false, &err), LLMQ_OK);
    net_layer_run_f64(net, x, want);
    assert_int_equal(net_layer_ready_f64(net, &source, ALONE, gradients, &err), LLMQ_OK);
    assert_int_equal(net_layer_step_f64(net, &source, ALONE, x, want, square, gradients, &loss, &err), LLMQ_OK);
    net_destroy_f64(net);
    return loss;
}

static double alone_f32(toy *t, toy *teacher, const char *isa, int n_workers, bool exact) {
    net_f32 *net = NULL;
    llmq_err err = {0};
    double loss, unused[STATES];
    float x[STATES], want[STATES];
    net_source_f32 source = {weights_f32, gradients_f32, t->wants, false, t},
                   other = {weights_f32, NULL, {{0}}, false, teacher};
    inputs(unused, x);
    memcpy(want, x, sizeof want);
    t->shape.alone = true;
    assert_int_equal(
        net_create_f32(&t->shape, &t->wants, false, exact, backend_cpu_isa(isa), teams[n_workers], &net, &err),
        LLMQ_OK);
    assert_int_equal(net_layer_ready_f32(net, &other, ALONE, false, &err), LLMQ_OK);
    net_layer_run_f32(net, want, want); /* in place */
    assert_int_equal(net_layer_ready_f32(net, &source, ALONE, true, &err), LLMQ_OK);
    assert_int_equal(net_layer_step_f32(net, &source, ALONE, x, want, square, true, &loss, &err), LLMQ_OK);
    net_destroy_f32(net);
    return loss;
}

static void finite_differences_alone(void **state) {
    (void)state;
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        static toy t, teacher;
        make_both(&variants[v], &t, &teacher);
        for (int i = 0; i < 2; i++) {
            square = &squares[i];
            differences(variants[v].name, alone_f64, &t, &teacher, ALONE, ALONE + 1);
        }
        drop(&t);
        drop(&teacher);
    }
}

/* Gradients of layers [first, last): not far from the doubles, and the first team's bytes (by n_workers 1 into first).
 */
static void compare(const char *name, toy *t, int first, int last, double far, float *kept[LAYERS + 1][ROLE_COUNT],
                    bool keep) {
    for (int l = first; l < last; l++)
        for (int r = 0; r < ROLE_COUNT; r++) {
            if (!t->fg[l][r]) continue;
            size_t cells = (size_t)(t->rows[l][r] * t->cols[l][r]);
            double off = 0, all = 0;
            for (size_t k = 0; k < cells; k++) {
                double d = t->fg[l][r][k] - t->g[l][r][k];
                off += d * d;
                all += t->g[l][r][k] * t->g[l][r][k];
            }
            if (!(sqrt(off) <= far * sqrt(all)))
                fail_msg("%s, layer %d, role %d: off by %.3g of %.3g", name, l, r, sqrt(off), sqrt(all));
            if (keep) {
                kept[l][r] = mem_alloc(cells, sizeof(float));
                memcpy(kept[l][r], t->fg[l][r], cells * sizeof(float));
            } else {
                assert_memory_equal(kept[l][r], t->fg[l][r], cells * sizeof(float));
            }
        }
}

typedef double loss32_fn(toy *t, toy *teacher, const char *isa, int n_workers, bool exact);
static void floats_follow(const char *name, loss32_fn *loss, double want, toy *t, toy *teacher, int first, int last) {
    for (int i = 0; i < N_ISAS; i++)
        for (int exact = 1; exact >= 0; exact--) {
            if (!backend_cpu_isa(all_isas[i])) continue;
            float *kept[LAYERS + 1][ROLE_COUNT] = {{NULL}};
            double before = 0;
            for (int n = 1; n <= 3; n++) {
                char what[80];
                t->shape.keep_bytes = n == 2 ? (size_t)1 << 30 : 0; /* kept or computed once more: the same bytes */
                double now = loss(t, teacher, all_isas[i], n, exact);
                assert_true(fabs(now - want) <= (exact ? 1e-5 : 2e-2) * fabs(want));
                assert_true(n == 1 || now == before);
                before = now;
                snprintf(what, sizeof what, "%s on %s, %d workers, exact %d", name, all_isas[i], n, exact);
                compare(what, t, first, last, exact ? 1e-4 : 5e-2, kept, n == 1);
            }
            for (int l = 0; l <= LAYERS; l++)
                for (int r = 0; r < ROLE_COUNT; r++) mem_free(kept[l][r]);
        }
}

static void floats(void **state) {
    (void)state;
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        static toy t, teacher;
        make_both(&variants[v], &t, &teacher);
        toy *other = variants[v].teacher ? &teacher : NULL;
        floats_follow(variants[v].name, loss_f32, loss_f64(&t, other, true), &t, other, 0, LAYERS + 1);
        square = &squares[v % 2];
        floats_follow(variants[v].name, alone_f32, alone_f64(&t, &teacher, true), &t, &teacher, ALONE, ALONE + 1);
        drop(&t);
        drop(&teacher);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(finite_differences), cmocka_unit_test(finite_differences_alone),
                                       cmocka_unit_test(floats)};
    isas_say();
    return cmocka_run_group_tests(tests, make_teams, drop_teams);
}
