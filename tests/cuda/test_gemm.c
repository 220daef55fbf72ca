/* Products with more than 8 tokens, of every weight type, under the emulator, against double arithmetic on what the
 * CPU's oracle makes of the same weights: rows, columns and tokens that fill no tile, columns shared by blocks, every
 * thread order, both models of a tensor core. And the entry that picks kernels by the number of tokens. */
#include "products.h"

#include "cuda/gemm.h"
#include "cuda/matmul.h"

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
        snprintf(what, sizeof what, "gemm %s rows %d cols %d tokens %d order %d", type_info(p->type)->name,
                 (int)p->rows, (int)p->cols, p->n_tok, order);
        emu_set_order((emu_order)order, 5);
        run(p, &g, y, what);
        compare(p, y, want, mag, tol, what);
        if (orders >> order == 1) continue;
        if ((orders & ((1 << order) - 1)) == 0) memcpy(first, y, n_y * sizeof *y);
        assert_memory_equal(y, first, n_y * sizeof *y);
    }
    drop_from_gpu(&g);
    free(x), free(want), free(mag), free(y), free(first);
}

#define N_GEMM_TYPES 7 /* of products.h: those with a layout */
#define ALL_ORDERS ((1 << EMU_ORDERS) - 1)

/* Columns in units of 32, rounded up for the K types. */
static const struct shape {
    int64_t rows, blocks;
    int n_tok;
    bool bias;
} shapes[] = {{33, 7, 9, true}, {7, 11, 29, false}, {130, 2, 16, false}, {20, 5, 70, true}, {21, 33, 13, true}};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static problem problem_of(llmq_type type, const struct shape *s, bool exact) {
    int64_t unit = type_info(type)->block_len, blocks = unit == 32 ? s->blocks : (s->blocks + 7) / 8;
    if (type_is_float(type_info(type))) unit = 1, blocks = 32 * s->blocks - 5;
    return make_problem(type, s->rows, blocks * unit, s->n_tok, s->bias, exact);
}

/* The bound is that of the decode kernels: f32 sums of 32 (16) products, cut to 24 or 25 bits (ptx.md 1.3). */
static void test_every_type(void **state) {
    (void)state;
    for (size_t i = 0; i < N_GEMM_TYPES; i++)
        for (size_t k = 0; k < N_SHAPES; k++) {
            emu_set_tensor_core((i + k) % 2 ? EMU_GROUPS_OF_16 : EMU_GROUPS_OF_8);
            problem p = problem_of(types[i], &shapes[k], false);
            check(&p, (i + k) % 3 ? 1 << (i + k) % EMU_ORDERS : ALL_ORDERS, 2.5e-6);
            drop_problem(&p);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
    };
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
