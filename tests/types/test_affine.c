/* Integer grids: the table, the search against an exhaustive one, exactness of what is stored, odd weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "types/affine.h"

static uint64_t seed = 7;

static float unit(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return ((float)(seed >> 40) + 0.5f) / 16777216.0f;
}

static float gaussian(void) {
    return sqrtf(-2.0f * logf(unit())) * cosf(6.2831853f * unit());
}

static const int all_bits[] = {2, 3, 4, 8};
static const int64_t all_groups[] = {32, 64, 128, -1};

static void test_table(void **state) {
    (void)state;
    char name[32];
    for (int b = 0; b < 4; b++)
        for (int g = 0; g < 4; g++)
            for (int sym = 0; sym < 2; sym++) {
                const llmq_type_info *t = type_affine(all_bits[b], all_groups[g], sym);
                assert_non_null(t);
                assert_true(type_is_affine(t) && t->ragged && t->uniform);
                int n = 1 << all_bits[b], first = sym ? -n / 2 : 0;
                assert_int_equal(t->n_levels, n);
                for (int k = 0; k < n; k++) assert_true(t->levels[k] == (float)(first + k));
                if (all_groups[g] > 0)
                    snprintf(name, sizeof name, "int%d-g%d-%s", all_bits[b], (int)all_groups[g], sym ? "sym" : "asym");
                else
                    snprintf(name, sizeof name, "int%d-row-%s", all_bits[b], sym ? "sym" : "asym");
                assert_string_equal(t->name, name);
                assert_int_equal(type_blocks(t, 576),
                                 all_groups[g] < 0 ? 1 : (576 + all_groups[g] - 1) / all_groups[g]);
            }
    const llmq_type_info *ragged = type_affine(4, 128, true);
    assert_int_equal(type_block_cols(ragged, 576, 3), 128);
    assert_int_equal(type_block_cols(ragged, 576, 4), 64);
    assert_null(type_affine(5, 128, true));
    assert_null(type_affine(4, 100, true));
    assert_ptr_equal(type_affine(4, TYPE_WHOLE_ROW, true), type_affine(4, -1, true));
    assert_false(type_is_affine(type_info(LLMQ_TYPE_Q4_0)));
}

static double error_of(const llmq_type_info *t, const llmq_grid *grid, const float *x, const float *w, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double e = (double)x[i] - type_value(t, grid, 0, type_code(t, grid, 0, x[i]));
        sum += (w ? w[i] : 1.0) * e * e;
    }
    return sum;
}

/* What every reader of the formats computes: F16 scale, integer zero. */
static void check_stored(const llmq_type_info *t, const llmq_grid *grid) {
    assert_true(f16_to_f32(f32_to_f16(grid->scale[0])) == grid->scale[0]);
    assert_true(grid->scale[0] >= 0.0f && grid->scale[0] == grid->d);
    if (t->levels[0] < 0) {
        assert_true(grid->offset[0] == 0.0f && grid->mn[0] == 0);
    } else {
        assert_true(grid->mn[0] < t->n_levels);
        assert_true((double)grid->offset[0] == -(double)grid->scale[0] * grid->mn[0]);
        assert_true(grid->scale[0] == 0.0f || type_value(t, grid, 0, grid->mn[0]) == 0.0f);
    }
}

/* The least error over very many scales and all zero points. */
static double exhaustive(const llmq_type_info *t, const float *x, const float *w, int n) {
    float amax = 0;
    double best = INFINITY;
    bool sym = t->levels[0] < 0;
    for (int i = 0; i < n; i++) amax = fmaxf(amax, fabsf(x[i]));
    for (int k = 1; k <= 400; k++)
        for (int z = 0; z < (sym ? 1 : t->n_levels); z++) {
            llmq_grid grid;
            affine_grid_set(&grid, amax * 3.0f / (float)t->n_levels * (float)k / 400, z);
            best = fmin(best, error_of(t, &grid, x, w, n));
        }
    return best;
}

static void test_fit_is_near_the_optimum(void **state) {
    (void)state;
    static const double slack[] = {1.02, 1.02, 1.03};
    for (int b = 0; b < 3; b++)
        for (int sym = 0; sym < 2; sym++) {
            const llmq_type_info *t = type_affine(all_bits[b], 64, sym);
            double mine = 0, best = 0, plain = 0;
            for (int trial = 0; trial < 24; trial++) {
                float x[64], w[64], lo = 0, hi = 0;
                llmq_grid grid, minmax;
                float shift = trial % 3 ? 0.0f : 0.5f;
                for (int i = 0; i < 64; i++) {
                    x[i] = 0.02f * (gaussian() * (trial % 2 ? 1.0f : 0.5f + unit()) + shift);
                    w[i] = expf(gaussian());
                    lo = fminf(lo, x[i]);
                    hi = fmaxf(hi, x[i]);
                }
                t->fit_ragged(t, x, w, 64, &grid);
                check_stored(t, &grid);
                float n_steps = (float)(t->n_levels - 1), widest = fmaxf(-lo, hi);
                affine_grid_set(&minmax, sym ? 2 * widest / n_steps : (hi - lo) / n_steps,
                                sym ? 0 : (int)lrintf(-lo * n_steps / (hi - lo)));
                mine += error_of(t, &grid, x, w, 64);
                plain += error_of(t, &minmax, x, w, 64);
                best += exhaustive(t, x, w, 64);
            }
            print_message("%-14s error %.4f of the optimum, %.3f of min/max\n", t->name, mine / best, mine / plain);
            assert_true(mine < slack[b] * best);
            assert_true(mine < plain);
        }
}

/* Rows longer than a chunk, every length around the chunk's and the vector's; 8 bits must be near the step's error. */
static void test_lengths(void **state) {
    (void)state;
    static const int lengths[] = {1, 2, 15, 17, 64, 511, 512, 513, 576, 1024, 1025, 8192};
    float *x = mem_alloc(8192, sizeof *x), *w = mem_alloc(8192, sizeof *w);
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++)
        for (int b = 0; b < 4; b++)
            for (int sym = 0; sym < 2; sym++) {
                const llmq_type_info *t = type_affine(all_bits[b], -1, sym);
                int n = lengths[k];
                double power = 0;
                llmq_grid grid, again;
                for (int i = 0; i < n; i++) {
                    x[i] = 0.05f * gaussian();
                    w[i] = 3.0f;
                    power += (double)x[i] * x[i];
                }
                type_fit(t, x, NULL, n, &grid);
                check_stored(t, &grid);
                static const double bound[] = {0.2, 0.06, 0.02, 2e-4};
                assert_true(error_of(t, &grid, x, NULL, n) < bound[b] * power + 1e-12);
                type_fit(t, x, w, n, &again); /* a constant importance is none */
                assert_true(fabsf(again.scale[0] - grid.scale[0]) <= grid.scale[0] * 1e-3f);
                assert_int_equal(again.mn[0], grid.mn[0]);
            }
    mem_free(x);
    mem_free(w);
}

static void test_degenerate_groups(void **state) {
    (void)state;
    static const float specials[] = {0.0f,   -0.0f, 1e-30f,    -1e-30f, 1e-7f, 6e-8f,    1e-40f,   3e38f,
                                     -3e38f, 1e5f,  -70000.0f, 1.0f,    NAN,   INFINITY, -INFINITY};
    for (int trial = 0; trial < 2000; trial++) {
        const llmq_type_info *t = type_affine(all_bits[trial % 4], 32, trial / 4 % 2);
        float x[32], w[32];
        uint8_t codes[32];
        llmq_grid grid;
        for (int i = 0; i < 32; i++) {
            x[i] = unit() < 0.7f ? specials[trial < 120 ? trial / 8 : (int)(unit() * 15)] : gaussian();
            w[i] = unit() < 0.5f ? specials[(int)(unit() * 15)] : unit();
        }
        type_fit(t, x, trial % 3 ? w : NULL, 32, &grid);
        check_stored(t, &grid);
        type_codes(t, &grid, x, 32, codes);
        for (int i = 0; i < 32; i++) assert_true(isfinite(type_value(t, &grid, 0, codes[i])));
    }
    const llmq_type_info *t = type_affine(4, 32, false);
    float zeros[32] = {0};
    llmq_grid grid;
    type_fit(t, zeros, NULL, 32, &grid);
    assert_true(type_value(t, &grid, 0, type_code(t, &grid, 0, 0.0f)) == 0.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_fit_is_near_the_optimum),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_degenerate_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
