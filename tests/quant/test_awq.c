/* AWQ's search on one site: what it reports is what its scales do, measured here in double; channels that share a
 * scale; inputs it cannot learn from. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/mem.h"
#include "quant/transforms/transform.h"

enum { ROWS = 24, MORE_ROWS = 9, COLS = 128, TOKENS = 300, DEAD = 77 };

typedef struct fixture {
    float w[ROWS * COLS], more[MORE_ROWS * COLS], gram[COLS * COLS];
    llmq_site_matrix matrices[2];
} fixture;

static uint64_t rng_state;
static float uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(rng_state >> 40) / 16777216.0f - 0.5f;
}

/* Inputs of very different sizes that are alike in part; one is always zero. */
static int setup(void **state) {
    fixture *f = mem_zalloc(1, sizeof *f);
    assert_non_null(f);
    rng_state = 11;
    float size[COLS], x[COLS];
    for (int c = 0; c < COLS; c++) size[c] = c == DEAD ? 0 : expf(4 * uniform());
    for (int t = 0; t < TOKENS; t++) {
        float common = uniform();
        for (int c = 0; c < COLS; c++) x[c] = size[c] * (common + uniform());
        for (int i = 0; i < COLS; i++)
            for (int j = 0; j <= i; j++) f->gram[i * COLS + j] += x[i] * x[j];
    }
    for (int i = 0; i < ROWS * COLS; i++) f->w[i] = 0.1f * uniform();
    for (int i = 0; i < MORE_ROWS * COLS; i++) f->more[i] = 2 * uniform();
    f->matrices[0] = (llmq_site_matrix){.w = f->w, .n_rows = ROWS, .type = type_info(LLMQ_TYPE_Q4_0)};
    f->matrices[1] = (llmq_site_matrix){.w = f->more, .n_rows = MORE_ROWS, .type = type_info(LLMQ_TYPE_IQ4_NL)};
    *state = f;
    return 0;
}

static int teardown(void **state) {
    mem_free(*state);
    return 0;
}

static llmq_site_problem problem(const fixture *f, llmq_team *team) {
    return (llmq_site_problem){.matrices = f->matrices,
                               .n_matrices = 2,
                               .cols = COLS,
                               .n_channels = COLS,
                               .gram = f->gram,
                               .n_tokens = TOKENS,
                               .ops = backend_cpu(),
                               .team = team};
}

static double energy(const float *gram, const double *e) {
    double sum = 0;
    for (int i = 0; i < COLS; i++)
        for (int j = 0; j < COLS; j++) sum += e[i] * e[j] * (double)gram[i > j ? i * COLS + j : j * COLS + i];
    return sum;
}

/* The site's relative error when its columns are scaled by s, rounded and scaled back. */
static double site_error(const fixture *f, const float *s) {
    double total = 0, mean = 0;
    for (int c = 0; c < COLS; c++) mean += (double)f->gram[c * COLS + c] / TOKENS / (COLS - 1);
    for (int m = 0; m < 2; m++) {
        const llmq_site_matrix *matrix = &f->matrices[m];
        double lost = 0, whole = 0;
        for (int64_t r = 0; r < matrix->n_rows; r++) {
            float x[COLS], importance[COLS], back[COLS];
            double e[COLS], w[COLS];
            uint8_t codes[COLS];
            for (int c = 0; c < COLS; c++) {
                w[c] = matrix->w[r * COLS + c];
                x[c] = (float)w[c] * s[c];
                importance[c] = (float)(((double)f->gram[c * COLS + c] / TOKENS + 0.01 * mean) / s[c] / s[c]);
            }
            for (int b = 0; b < COLS; b += matrix->type->block_len) {
                llmq_grid grid;
                type_fit(matrix->type, x + b, importance + b, matrix->type->block_len, &grid);
                type_codes(matrix->type, &grid, x + b, matrix->type->block_len, codes + b);
                type_values(matrix->type, &grid, codes + b, matrix->type->block_len, back + b);
            }
            for (int c = 0; c < COLS; c++) e[c] = (double)back[c] / s[c] - w[c];
            lost += energy(f->gram, e);
            whole += energy(f->gram, w);
        }
        total += lost / whole;
    }
    return total;
}

static void scales_do_what_is_reported(void **state) {
    const fixture *f = *state;
    float first[COLS], ones[COLS];
    for (int c = 0; c < COLS; c++) ones[c] = 1;
    for (int n = 1; n <= 3; n++) {
        llmq_team *team;
        float s[COLS];
        llmq_site_report report;
        assert_int_equal(team_create(n, &team, NULL), LLMQ_OK);
        llmq_site_problem p = problem(f, team);
        assert_int_equal(awq_scales(&p, s, &report, NULL), LLMQ_OK);
        team_destroy(team);
        if (n > 1) {
            assert_memory_equal(first, s, sizeof s);
            continue;
        }
        memcpy(first, s, sizeof s);
        double before = site_error(f, ones), after = site_error(f, s), product = 0;
        assert_true(fabs(report.before / before - 1) < 1e-3);
        assert_true(fabs(report.after / after - 1) < 1e-3);
        assert_true(report.after < 0.9 * report.before);
        assert_true(report.alpha > 0 && report.alpha <= 1);
        assert_true(s[DEAD] == 1);
        for (int c = 0; c < COLS; c++) {
            assert_true(s[c] >= 1 / AWQ_SCALE_MAX && s[c] <= AWQ_SCALE_MAX);
            product += log((double)s[c]);
        }
        assert_true(fabs(product) < 1e-3 * COLS);
        /* The best of the whole grid without division is not much better than what the search in two steps found. */
        for (int step = 0; step <= 20; step++) {
            float x[COLS];
            for (int c = 0; c < COLS; c++)
                x[c] = c == DEAD ? 1 : powf(sqrtf(f->gram[c * COLS + c] / TOKENS), (float)step / 20);
            assert_true(site_error(f, x) > 0.9 * report.after);
        }
    }
}

static void shared_channels_share_scales(void **state) {
    const fixture *f = *state;
    llmq_team *team;
    float s[COLS / 2], by_col[COLS];
    int32_t channel[COLS];
    llmq_site_report report;
    for (int c = 0; c < COLS; c++) channel[c] = c / 32 * 16 + c % 16; /* two heads of 16 read each kv head */
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    llmq_site_problem p = problem(f, team);
    p.channel = channel;
    p.n_channels = COLS / 2;
    assert_int_equal(awq_scales(&p, s, &report, NULL), LLMQ_OK);
    team_destroy(team);
    for (int c = 0; c < COLS; c++) by_col[c] = s[channel[c]];
    assert_true(report.after < report.before);
    assert_true(fabs(report.after / site_error(f, by_col) - 1) < 1e-3);
}

static void nothing_to_learn_from_scales_nothing(void **state) {
    fixture *f = *state;
    llmq_team *team;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    for (int kind = 0; kind < 4; kind++) {
        float s[COLS];
        llmq_site_report report;
        llmq_site_problem p = problem(f, team);
        if (kind == 0) p.n_tokens = 0;
        if (kind == 1) p.n_matrices = 0;
        if (kind == 2) f->gram[5 * COLS + 5] = NAN;
        if (kind == 3) memset(f->gram, 0, sizeof f->gram);
        assert_int_equal(awq_scales(&p, s, &report, NULL), LLMQ_OK);
        for (int c = 0; c < COLS; c++) assert_true(s[c] == 1);
        assert_true(report.after == report.before);
    }
    team_destroy(team);
}

static void running_out_of_memory_is_an_error(void **state) {
    const fixture *f = *state;
    llmq_team *team;
    float s[COLS];
    llmq_site_report report;
    int failures = 0;
    assert_int_equal(team_create(1, &team, NULL), LLMQ_OK);
    for (long n = 1; n < 50; n++) {
        llmq_err err = {0};
        llmq_site_problem p = problem(f, team);
        mem_fail_after(n);
        llmq_status status = awq_scales(&p, s, &report, &err);
        mem_fail_after(0);
        if (status == LLMQ_OK) break;
        assert_int_equal(status, LLMQ_E_MEMORY);
        failures++;
    }
    assert_in_range(failures, 5, 48);
    team_destroy(team);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(scales_do_what_is_reported, setup, teardown),
        cmocka_unit_test_setup_teardown(shared_channels_share_scales, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_to_learn_from_scales_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(running_out_of_memory_is_an_error, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
