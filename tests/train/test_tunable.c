/* train: scales, minimums and codes of every grid as numbers to train. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "quant/quant.h"
#include "train/adam.h"
#include "train/tunable.h"
#include "types/affine.h"
#include "types/nf4.h"

enum { ROWS = 3 };

static uint64_t seed = 7;
static float uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 33) / 1073741824.0 - 1);
}

static llmq_team *team;
static int make_team(void **state) {
    (void)state;
    return team_create(2, &team, NULL) == LLMQ_OK ? 0 : -1;
}
static int drop_team(void **state) {
    (void)state;
    team_destroy(team);
    return 0;
}

/* Every grid that can be trained, with rows that end in the middle of a group where the grid allows it. */
typedef struct grid_case {
    const llmq_type_info *type;
    int64_t cols;
} grid_case;

static size_t all_grids(grid_case *out) {
    size_t n = 0;
    for (size_t i = 0; type_at(i); i++)
        if (!type_is_float(type_at(i)) && type_can_encode(type_at(i)) && !type_at(i)->ragged)
            out[n++] = (grid_case){type_at(i), 512};
    for (int bits = 2; bits <= 8; bits += bits == 4 ? 4 : 1)
        for (int sym = 0; sym < 2; sym++) {
            out[n++] = (grid_case){type_affine(bits, 64, sym), 160};
            out[n++] = (grid_case){type_affine(bits, -1, sym), 100};
        }
    for (int nested = 0; nested < 2; nested++) {
        out[n++] = (grid_case){nf4_grid(false, 64, nested), 192};
        out[n++] = (grid_case){nf4_grid(true, 64, nested), 192};
        out[n++] = (grid_case){nf4_grid(false, 64, nested), 100}; /* blocks run over the ends of rows */
    }
    return n;
}

static llmq_quantized *quantize(grid_case c) {
    float *w = mem_alloc((size_t)(ROWS * c.cols), sizeof *w);
    llmq_quantized *q = NULL;
    llmq_quant_report report;
    bool crosses = quantized_crosses_rows(c.type, c.cols);
    for (int64_t i = 0; i < ROWS * c.cols; i++) w[i] = uniform() * uniform() + 0.02f;
    assert_int_equal(quantized_create(c.type, ROWS, c.cols, &q, NULL), LLMQ_OK);
    llmq_quant_problem p = {.name = "test", .w = w, .rows = crosses ? 1 : ROWS, .cols = crosses ? ROWS * c.cols : c.cols,
                            .type = c.type, .damp = -1, .ops = backend_cpu(), .team = team};
    assert_int_equal(method_find("rtn")->solve(&p, q, &report, NULL), LLMQ_OK);
    mem_free(w);
    return q;
}

/* Nothing trained: the very same weights, grids and blocks. */
static void nothing_changes(void **state) {
    static grid_case cases[64];
    size_t n = all_grids(cases);
    (void)state;
    assert_true(n > 30);
    for (size_t i = 0; i < n; i++) {
        grid_case c = cases[i];
        llmq_quantized *q = quantize(c), *other = quantize(c);
        tunable t;
        size_t cells = (size_t)(ROWS * c.cols), grids = (size_t)quantized_grids(q);
        memcpy(other->grids, q->grids, grids * sizeof *q->grids);
        memcpy(other->codes, q->codes, cells);
        assert_int_equal(tunable_create(q, &t, NULL), LLMQ_OK);
        assert_int_equal(t.n_x, tunable_count(c.type, ROWS, c.cols));
        float *w = mem_alloc(cells, sizeof *w), *row = mem_alloc((size_t)c.cols, sizeof *row),
              *numbers = mem_alloc((size_t)t.n_x, sizeof *numbers);
        tunable_values(&t, backend_cpu(), 0, t.rows, w);
        for (int64_t r = 0; r < ROWS; r++) {
            if (quantized_crosses_rows(c.type, c.cols)) break;
            quantized_row_to_f32(q, r, row);
            for (int64_t k = 0; k < c.cols; k++)
                if (fabsf(row[k] - w[r * c.cols + k]) > 1e-6f * fabsf(row[k]))
                    fail_msg("%s: [%d, %d] %.9g, not %.9g", c.type->name, (int)r, (int)k, (double)w[r * c.cols + k], (double)row[k]);
        }
        tunable_numbers(&t, numbers);
        tunable_store(&t, numbers, other);
        for (size_t g = 0; g < grids; g++)
            for (int k = 0; k < t.per_block; k++) {
                assert_true(fabsf(other->grids[g].scale[k] - q->grids[g].scale[k]) <= 1e-7f * fabsf(q->grids[g].scale[k]));
                assert_true(fabsf(other->grids[g].offset[k] - q->grids[g].offset[k]) <= 6e-4f * fabsf(q->grids[g].scale[k]) * 16);
            }
        if (c.type->pack && c.type->form != GRID_AFFINE) { /* a minimum may move by half an ulp of f16 */
            size_t bytes = (size_t)type_row_bytes(c.type->id, c.cols);
            uint8_t *a = mem_alloc(bytes, 1), *b = mem_alloc(bytes * ROWS, 1);
            tunable_pack(&t, 0, t.rows, b);
            for (int64_t r = 0; r < ROWS; r++) {
                quantized_pack_row(q, r, a);
                assert_memory_equal(a, b + (size_t)r * bytes, bytes);
            }
            mem_free(a);
            mem_free(b);
        }
        mem_free(w);
        mem_free(row);
        mem_free(numbers);
        tunable_clear(&t);
        quantized_destroy(q);
        quantized_destroy(other);
    }
}

static double loss_of(tunable *t, const float *r, float *w) {
    double sum = 0;
    tunable_values(t, backend_cpu(), 0, t->rows, w);
    for (int64_t i = 0; i < t->rows * t->cols; i++) sum += (double)w[i] * r[i];
    return sum;
}

/* Of sum r * w, by differences: exact but for rounding, since weights are linear in every number. */
static void gradients(void **state) {
    static grid_case cases[64];
    size_t n = all_grids(cases);
    (void)state;
    for (size_t i = 0; i < n; i++) {
        grid_case c = cases[i];
        llmq_quantized *q = quantize(c);
        tunable t;
        size_t cells = (size_t)(ROWS * c.cols);
        assert_int_equal(tunable_create(q, &t, NULL), LLMQ_OK);
        t.f16 = false; /* rounding is no part of the gradient */
        float *w = mem_alloc(cells, sizeof *w), *r = mem_alloc(cells, sizeof *r),
              *g = mem_alloc((size_t)t.n_x, sizeof *g);
        for (size_t k = 0; k < cells; k++) r[k] = uniform();
        for (int64_t k = 0; k < t.n_x; k++) t.x[k] += 0.1f * uniform();
        for (int64_t row = t.rows - 1; row >= 0; row--) {
            tunable_sums(&t, backend_cpu(), r, row, row + 1);
            if (tunable_rows_apart(&t)) tunable_gradient(&t, row, row + 1, g);
        }
        if (!tunable_rows_apart(&t)) tunable_gradient(&t, 0, t.rows, g);
        for (int64_t i0 = 0; i0 < t.n_x; i0 += 1 + t.n_x / 11) {
            int64_t k = t.n_x - 1 - i0; /* rows are at the end */
            float keep = t.x[k], h = 0.25f;
            t.x[k] = keep + h;
            double up = loss_of(&t, r, w);
            t.x[k] = keep - h;
            double want = (up - loss_of(&t, r, w)) / (2 * (double)h);
            t.x[k] = keep;
            if (!(fabs(want - g[k]) <= 1e-4 * (fabs(want) + 0.1)))
                fail_msg("%s: number %d: %.9g, differences give %.9g", c.type->name, (int)k, (double)g[k], want);
        }
        mem_free(w);
        mem_free(r);
        mem_free(g);
        tunable_clear(&t);
        quantized_destroy(q);
    }
}

/* A weight that always wants to grow climbs level by level, to the top and no further. */
static void codes_move(void **state) {
    grid_case c = {type_affine(3, 64, true), 64};
    llmq_quantized *q = quantize(c);
    tunable t;
    float z[ROWS * 64], m[ROWS * 64], v[ROWS * 64], grad[ROWS * 64];
    const adam_settings adam = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    llmq_adam now;
    (void)state;
    assert_int_equal(tunable_create(q, &t, NULL), LLMQ_OK);
    tunable_free_codes(&t, false, z, m, v);
    for (int i = 0; i < ROWS * 64; i++) grad[i] = i % 2 ? -1.0f : 1.0f;
    for (int step = 1; step <= 40; step++) {
        now = adam_step(&adam, 0.25, step, 0, false);
        tunable_update_codes(&t, backend_cpu(), &now, grad, 0, ROWS);
    }
    for (int i = 0; i < ROWS * 64; i++) assert_int_equal(t.codes[i], i % 2 ? 7 : 0);
    memset(t.codes, 3, sizeof z / sizeof *z);
    tunable_settle_codes(&t);
    for (int i = 0; i < ROWS * 64; i++) assert_int_equal(t.codes[i], i % 2 ? 7 : 0);
    tunable_clear(&t);
    quantized_destroy(q);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_changes), cmocka_unit_test(gradients),
                                       cmocka_unit_test(codes_move)};
    return cmocka_run_group_tests(tests, make_team, drop_team);
}
