/* bitsandbytes' grids: the scale search against brute force, double quantization, blocks that cross rows. The values
 * themselves are held against bitsandbytes in tests/formats/test_bnb_awq.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/mem.h"
#include "types/nf4.h"

static uint64_t rng_state;
static float uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(rng_state >> 40) / 16777216.0f - 0.5f;
}
static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += uniform();
    return sum * 1.414f;
}

/* sum w (x - nearest value)^2 in double. */
static double error_of(const llmq_type_info *t, float scale, const float *x, const float *w, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double best = INFINITY;
        for (int k = 0; k < t->n_levels; k++) {
            double e = (double)x[i] - (double)scale * (double)t->levels[k];
            best = e * e < best ? e * e : best;
        }
        sum += best * (w ? (double)w[i] : 1);
    }
    return sum;
}

static void scales_are_nearly_the_best(void **state) {
    (void)state;
    rng_state = 3;
    for (int kind = 0; kind < 2; kind++) {
        double found = 0, brute = 0, absmax = 0;
        for (int round = 0; round < 60; round++) {
            const int lens[] = {64, 64, 37, 1, 256};
            int n = lens[round % 5];
            const llmq_type_info *t = nf4_grid(kind, n > 64 ? 256 : 64, false);
            float x[256], w[256], amax = 0, unit = powf(10.0f, (float)(round % 7 - 3));
            for (int i = 0; i < n; i++) {
                x[i] = unit * normal() * (i % 29 == 5 ? 3.0f : 1.0f);
                w[i] = expf(2.0f * normal());
                amax = fmaxf(amax, fabsf(x[i]));
            }
            const float *weights = round % 2 ? w : NULL;
            double best = INFINITY, scaled = 1.0 / ((double)unit * (double)unit);
            for (int k = 0; k <= 2000; k++)
                best = fmin(best, error_of(t, amax * (0.6f + 0.0004f * (float)k), x, weights, n));
            llmq_grid grid;
            type_fit(t, x, weights, n, &grid);
            double ours = error_of(t, grid.scale[0], x, weights, n);
            assert_true(grid.scale[0] > 0 && grid.offset[0] == 0);
            /* the scale of a lone weight is rounded once more than its largest magnitude */
            assert_true(ours * scaled <= error_of(t, amax, x, weights, n) * 1.0001 * scaled + 1e-12);
            found += ours * scaled;
            brute += best * scaled;
            absmax += error_of(t, amax, x, weights, n) * scaled;
        }
        assert_true(found < 1.02 * brute);
        assert_true(found < 0.93 * absmax);
    }
}

static void odd_blocks_give_finite_grids(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        const llmq_type_info *t = nf4_grid(kind, 64, false);
        float x[64] = {0};
        uint8_t codes[64];
        float back[64];
        llmq_grid grid;
        for (int odd = 0; odd < 7; odd++) {
            for (int i = 0; i < 64; i++) x[i] = odd == 0 ? 0 : odd == 1 ? 1e-42f : odd == 2 ? 3e38f : normal();
            if (odd == 3) x[5] = NAN, x[6] = INFINITY;
            if (odd == 4) x[5] = -1e30f;
            float w[64];
            for (int i = 0; i < 64; i++) w[i] = odd == 5 ? 0 : odd == 6 ? NAN : 1;
            type_fit(t, x, w, 64, &grid);
            assert_true(isfinite(grid.scale[0]) && grid.scale[0] >= 0);
            type_codes(t, &grid, x, 64, codes);
            type_values(t, &grid, codes, 64, back);
            for (int i = 0; i < 64; i++) {
                assert_true(codes[i] < t->n_levels);
                if (odd == 0) assert_true(back[i] == 0);
                if (odd == 2) assert_true(fabsf(back[i] / 3e38f - 1) < 1e-5f);
            }
        }
    }
    assert_null(nf4_grid(false, 0, false));
    assert_null(nf4_grid(false, 48, false));
    assert_null(nf4_grid(true, 8192, true));
    assert_null(nf4_grid(true, -1, true));
}

static void fp4_has_one_zero(void **state) {
    (void)state;
    const llmq_type_info *t = nf4_grid(true, 64, false);
    assert_int_equal(t->n_levels, 15);
    bool seen[16] = {false};
    for (int i = 0; i < 15; i++) {
        if (i) assert_true(t->levels[i] > t->levels[i - 1]);
        assert_true(nf4_table(true)[nf4_fp4_codes[i]] == t->levels[i]);
        assert_true(t->levels[i] == -t->levels[14 - i]);
        seen[nf4_fp4_codes[i]] = true;
    }
    for (int i = 0; i < 16; i++) assert_true(seen[i] == (i != 8)); /* 8 would be -0 */
    assert_true(nf4_table(true)[8] == 0);
}

static void settled_scales_are_storable(void **state) {
    (void)state;
    enum { ROWS = 30, COLS = 700 }; /* blocks cross rows; 329 of them, the last short */
    llmq_quantized *q;
    float map[NF4_MAP], row[COLS];
    rng_state = 9;
    nf4_nested_map(map);
    const llmq_type_info *t = nf4_grid(false, 64, true);
    assert_true(quantized_crosses_rows(t, COLS) && !quantized_crosses_rows(t, 640));
    assert_int_equal(quantized_create(t, ROWS, COLS, &q, NULL), LLMQ_OK);
    assert_int_equal(quantized_grids(q), 329);
    memset(q->grids, 0, 329 * sizeof *q->grids);
    float want[329];
    for (int i = 0; i < 329; i++) q->grids[i].scale[0] = want[i] = i % 50 == 0 ? 0.0f : expf(normal());
    t->settle(q);
    for (int i = 0; i < 329; i++) {
        float absmax = q->nested->absmax[i / 256], scale = map[q->nested->codes[i]] * absmax;
        scale += q->nested->offset;
        assert_true(q->grids[i].scale[0] == scale && scale >= 0);
        /* half of the widest step of the map, and what the rounding up of those below zero takes */
        assert_true(fabsf(scale - want[i]) <= absmax * (want[i] == 0 ? 0.02f : 0.0075f));
    }
    for (int i = 0; i < ROWS * COLS; i++) q->codes[i] = (uint8_t)(i % 16);
    for (int r = 0; r < ROWS; r++) {
        quantized_row_to_f32(q, r, row);
        for (int c = 0; c < COLS; c++) {
            int at = r * COLS + c;
            assert_true(row[c] == q->grids[at / 64].scale[0] * t->levels[at % 16]);
        }
    }
    for (int i = 0; i < 329; i++) q->grids[i].scale[0] = 0.25f; /* all alike: no second level is needed */
    t->settle(q);
    for (int i = 0; i < 329; i++) assert_true(q->grids[i].scale[0] == 0.25f);
    quantized_destroy(q);
    for (long n = 1; n <= 5; n++) {
        mem_fail_after(n);
        llmq_status status = quantized_create(t, ROWS, COLS, &q, NULL);
        mem_fail_after(0);
        assert_int_equal(status, LLMQ_E_MEMORY);
    }
}

/* Bytes of a block that a folder's matrix becomes: the halves of a word have the neighbours of every pair. */
static void blocks_in_memory(void **state) {
    (void)state;
    static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* element of each nibble */
    for (int fp4 = 0; fp4 < 2; fp4++) {
        const llmq_type_info *t = type_info(fp4 ? LLMQ_TYPE_FP4 : LLMQ_TYPE_NF4);
        const float d = 0.3f; /* no number of F16 */
        uint8_t block[36], again[36];
        uint8_t codes[64];
        float x[64];
        llmq_grid grid;
        assert_int_equal(t->block_bytes, sizeof block);
        assert_true(nf4_is(t, fp4) && !nf4_is(t, !fp4));
        memcpy(block, &d, sizeof d);
        for (int i = 0; i < 32; i++) block[4 + i] = (uint8_t)(2 * i % t->n_levels | (2 * i + 1) % t->n_levels << 4);
        type_to_f32(t->id, block, x, 64);
        for (int i = 0; i < 64; i++) assert_true(x[i / 8 * 8 + order[i % 8]] == d * t->levels[i % t->n_levels]);
        t->unpack(block, &grid, codes);
        t->pack(&grid, codes, again);
        assert_memory_equal(again, block, sizeof block);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_are_nearly_the_best),
        cmocka_unit_test(odd_blocks_give_finite_grids),
        cmocka_unit_test(fp4_has_one_zero),
        cmocka_unit_test(settled_scales_are_storable),
        cmocka_unit_test(blocks_in_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
