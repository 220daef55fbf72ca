/* round_block of every ISA against double precision that follows its own choices: each code is a nearest level of the
 * target less the errors before it, each error the value's distance from the weight. */
#include "ops_util.h"

#include <stdbool.h>

#define MOST 100 /* columns */
#define LANES 48
#define GROUP 24

static const float nf[] = {-1.0f, -0.7f, -0.5f, -0.4f, -0.3f, -0.2f, -0.1f, 0,
                           0.08f, 0.16f, 0.25f, 0.34f, 0.44f, 0.56f, 0.72f, 1};
static const float whole[] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

typedef struct block {
    float *at, *e, *w, *grids, target[MOST * LANES];
    int32_t group[MOST];
    uint8_t codes[MOST * LANES + 64];
} block;

/* Lane 5 has a scale of 0 in its first group, lane 6 a NaN among its targets. */
static block *make(int64_t n, int64_t lanes) {
    block *b = mem_zalloc(1, sizeof *b);
    int64_t groups = (n + GROUP - 1) / GROUP;
    b->at = guarded_normal((size_t)(n * MOST));
    b->e = guarded((size_t)(n * lanes));
    b->w = guarded_normal((size_t)(n * lanes));
    b->grids = guarded((size_t)(groups * 3 * lanes));
    memset(b->codes, 0xa5, sizeof b->codes);
    for (int64_t i = 0; i < n * MOST; i++) b->at[i] *= 0.1f;
    for (int64_t i = 0; i < n * lanes; i++) b->target[i] = b->e[i] = b->w[i] + (float)(0.01 * rng_normal());
    for (int64_t k = 0; k < n; k++) b->group[k] = (int32_t)(k / GROUP);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t l = 0; l < lanes; l++) {
            float *to = b->grids + g * 3 * lanes + l, scale = g == 0 && l == 5 ? 0 : (float)(0.2 + 0.3 * rng_uniform());
            to[0] = scale;
            to[lanes] = scale > 0 ? 1 / scale : 0;
            to[2 * lanes] = (float)(0.3 * rng_normal());
        }
    b->target[6] = b->e[6] = NAN;
    return b;
}

static void drop(block *b) {
    guarded_free(b->at);
    guarded_free(b->e);
    guarded_free(b->w);
    guarded_free(b->grids);
    mem_free(b);
}

/* Lane l, column by column, from the codes and errors that came before. */
static void check_lane(const block *b, const llmq_round_block *r, int64_t l, const char *isa) {
    for (int64_t k = 0; k < r->n; k++) {
        int64_t at = k * r->lanes + l;
        const float *grid = b->grids + b->group[k] * 3 * r->lanes + l;
        double u = b->target[at], size = fabs(u);
        for (int64_t j = 0; j < k; j++) {
            u -= (double)b->at[k * r->ldat + j] * b->e[j * r->lanes + l];
            size += fabs((double)b->at[k * r->ldat + j] * b->e[j * r->lanes + l]);
        }
        double t = (u - grid[2 * r->lanes]) * grid[r->lanes], least = INFINITY;
        int code = b->codes[at];
        assert_in_range(code, 0, r->n_levels - 1);
        for (int i = 0; i < r->n_levels; i++) least = fmin(least, fabs(t - r->levels[i]));
        double over = fabs(t - r->levels[code]) - least, want = grid[0] * (double)r->levels[code] + grid[2 * r->lanes];
        if (!(over <= 1e-5 * (1 + size * grid[r->lanes])))
            fail_msg("%s: column %d, lane %d: level %g for %g", isa, (int)k, (int)l, (double)r->levels[code], t);
        if (!(fabs(b->e[at] - (want - b->w[at])) <= 1e-6 * (1 + fabs(want) + fabs(b->w[at]))))
            fail_msg("%s: column %d, lane %d: error %g, expected %g", isa, (int)k, (int)l, (double)b->e[at],
                     want - b->w[at]);
    }
}

static void test_round_block(void **state) {
    (void)state;
    const int64_t sizes[] = {1, 7, 8, 9, 64, MOST}, widths[] = {16, 32, LANES};
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        for (int i = 0; ops && i < 36; i++) {
            int64_t n = sizes[i % 6], lanes = widths[i / 6 % 3];
            bool uniform = i % 4 < 2;
            block *b = make(n, lanes);
            llmq_round_block r = {.n = n,
                                  .lanes = lanes,
                                  .at = b->at,
                                  .ldat = MOST,
                                  .e = b->e,
                                  .w = b->w,
                                  .grids = b->grids,
                                  .group = b->group,
                                  .levels = uniform ? whole : nf,
                                  .n_levels = 16,
                                  .uniform = uniform,
                                  .codes = b->codes};
            ops->round_block(&r);
            for (int64_t l = 0; l < lanes; l++)
                if (l != 6) check_lane(b, &r, l, all_isas[isa]);
            assert_int_equal(b->codes[6], 0); /* NaN: the first level, and nothing of it in other lanes */
            assert_guard(b->e, (size_t)(n * lanes));
            for (size_t j = (size_t)(n * lanes); j < sizeof b->codes; j++) assert_int_equal(b->codes[j], 0xa5);
            drop(b);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_block)};
    return cmocka_run_group_tests(tests, make_teams, drop_teams);
}
