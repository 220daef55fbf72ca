/* refine_block of every instruction set: what it keeps true, on every form of grid, against sums in double. */
#include "ops_util.h"

#define LANES 32
#define N_MAX 256

typedef struct block {
    int n, group_len, n_groups;
    llmq_grid_form form;
    const float *levels;
    int n_levels;
    bool uniform;
    int sc_min, sc_max;
    float *h, *ones, *w, *g, *e, *level, *scale, *offset, *sc, *mn, *d, *dmin, *gain;
    double rest[N_MAX * LANES]; /* what the columns outside the block add to g */
} block;

static const float ramp[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static const float up[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const float table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

#define KIND(n_, len_, groups_, form_, levels_, count_, uniform_, lo_, hi_)                                             \
    {                                                                                                                  \
        .n = n_, .group_len = len_, .n_groups = groups_, .form = form_, .levels = levels_, .n_levels = count_,         \
        .uniform = uniform_, .sc_min = lo_, .sc_max = hi_                                                              \
    }
static const block kinds[] = {
    KIND(32, 32, 1, GRID_SCALE, ramp, 16, true, 0, 0),
    KIND(32, 32, 1, GRID_SCALE, table, 16, false, 0, 0),
    KIND(32, 32, 1, GRID_AFFINE, up, 16, true, 0, 0),
    KIND(44, 44, 1, GRID_ZERO, up, 16, true, 0, 0),
    KIND(128, 128, 1, GRID_FIXED, table, 16, false, 0, 0),
    KIND(7, 7, 1, GRID_AFFINE, up, 4, true, 0, 0),
    KIND(256, 16, 16, GRID_SUPER, ramp, 16, true, -32, 31),
    KIND(256, 32, 8, GRID_SUPER, table, 16, false, -32, 31),
    KIND(256, 32, 8, GRID_SUPER_AFFINE, up, 16, true, 0, 63),
    KIND(256, 16, 16, GRID_SUPER_AFFINE, up, 4, true, 0, 15),
};

static float f16(double x) {
    return f16_to_f32(f32_to_f16((float)x));
}

/* Weights, a grid that is only roughly right, nearest codes; H = X'X of inputs that are alike. */
static block *make(const block *kind) {
    block *b = mem_zalloc(1, sizeof *b);
    *b = *kind;
    size_t n = (size_t)b->n, groups = (size_t)b->n_groups;
    bool super = b->form == GRID_SUPER || b->form == GRID_SUPER_AFFINE;
    b->h = guarded(n * n), b->ones = guarded(groups * n), b->w = guarded_normal(n * LANES);
    b->g = guarded(n * LANES), b->e = guarded(n * LANES), b->level = guarded(n * LANES);
    b->scale = guarded(groups * LANES), b->offset = guarded(groups * LANES);
    b->sc = guarded(groups * LANES), b->mn = guarded(groups * LANES);
    b->d = guarded(LANES), b->dmin = guarded(LANES), b->gain = guarded(LANES);
    double *h = mem_zalloc(n * n, sizeof *h), x[N_MAX];
    for (int t = 0; t < 2 * b->n + 8; t++) {
        for (int i = 0; i < b->n; i++) x[i] = rng_normal() * (1 + i % 5) + (i ? 0.7 * x[i - 1] : 0);
        for (int i = 0; i < b->n; i++)
            for (int j = 0; j < b->n; j++) h[i * b->n + j] += x[i] * x[j];
    }
    for (size_t i = 0; i < n * n; i++) b->h[i] = (float)h[i];
    mem_free(h);
    for (int i = 0; i < b->n; i++)
        for (int g = 0; g < b->n_groups; g++) {
            b->ones[g * b->n + i] = 0;
            for (int k = g * b->group_len; k < (g + 1) * b->group_len && k < b->n; k++)
                b->ones[g * b->n + i] += b->h[i * b->n + k];
        }
    float reach = b->levels[b->n_levels - 1] - b->levels[0];
    for (int r = 0; r < LANES; r++) {
        bool empty = r == LANES - 1; /* a lane past the last row */
        b->gain[r] = 0;
        b->d[r] = super && !empty ? f16(0.3 / reach * (b->form == GRID_SUPER && r % 2 ? -1 : 1)) : 0;
        b->dmin[r] = b->form == GRID_SUPER_AFFINE && !empty ? f16(0.15) : 0;
        for (int g = 0; g < b->n_groups; g++) {
            int at = g * LANES + r;
            b->sc[at] = super && !empty ? (float)(8 + rng_u32() % 7) : 0;
            b->mn[at] = b->form == GRID_SUPER_AFFINE && !empty ? (float)(8 + rng_u32() % 7) : 0;
            b->scale[at] = super ? b->d[r] * b->sc[at] : empty ? 0 : f16((3.0 + rng_uniform()) / reach);
            b->offset[at] = b->form == GRID_SUPER_AFFINE       ? -(b->dmin[r] * b->mn[at])
                            : b->form == GRID_AFFINE && !empty ? f16(-2 + rng_uniform())
                            : b->form == GRID_ZERO             ? -(b->scale[at] * 7)
                                                               : 0;
        }
        for (int k = 0; k < b->n; k++) {
            int at = k * LANES + r, g = k / b->group_len * LANES + r;
            if (empty) b->w[at] = 0;
            int best = 0;
            for (int c = 1; c < b->n_levels; c++)
                if (fabsf(b->scale[g] * b->levels[c] + b->offset[g] - b->w[at]) <
                    fabsf(b->scale[g] * b->levels[best] + b->offset[g] - b->w[at]))
                    best = c;
            b->level[at] = b->levels[best];
            b->e[at] = b->scale[g] * b->level[at] + b->offset[g] - b->w[at];
            b->rest[at] = empty ? 0 : 3 * rng_normal() * b->h[k * b->n + k] / b->n;
        }
    }
    return b;
}

static double gradient(const block *b, int k, int r) {
    double sum = b->rest[k * LANES + r];
    for (int i = 0; i < b->n; i++) sum += (double)b->h[k * b->n + i] * b->e[i * LANES + r];
    return sum;
}

/* e H e' + 2 e rest': what changes in the error of the whole row. */
static double energy(const block *b, int r) {
    double sum = 0;
    for (int k = 0; k < b->n; k++) sum += b->e[k * LANES + r] * (gradient(b, k, r) + b->rest[k * LANES + r]);
    return sum;
}

static void fill_gradient(block *b) {
    for (int k = 0; k < b->n; k++)
        for (int r = 0; r < LANES; r++) b->g[k * LANES + r] = (float)gradient(b, k, r);
}

static void run(const llmq_backend_ops *ops, block *b, bool refit, bool sweep) {
    llmq_refine_block job = {b->n,      LANES,       b->h,       b->ones, b->group_len, b->form, b->sc_min, b->sc_max,
                             b->levels, b->n_levels, b->uniform, refit,   sweep,        b->g,    b->e,      b->level,
                             b->scale,  b->offset,   b->sc,      b->mn,   b->d,         b->dmin, b->gain};
    ops->refine_block(&job);
}

static bool is_f16(float x) {
    return f16(x) == x;
}

/* Grid numbers are as they are stored, e is value - w, g is the gradient, gain is what the energy fell by. */
static void check(const block *b, const double *before) {
    bool super = b->form == GRID_SUPER || b->form == GRID_SUPER_AFFINE;
    for (int r = 0; r < LANES; r++) {
        double after = energy(b, r), scale = fabs(before[r]) + fabs(after);
        assert_true(after <= before[r] + 1e-5 * scale);
        assert_true(fabs(before[r] - after - b->gain[r]) <= 1e-4 * scale);
        for (int k = 0; k < b->n; k++) {
            int at = k * LANES + r, g = k / b->group_len * LANES + r;
            assert_true(fabs(b->e[at] - (b->scale[g] * b->level[at] + b->offset[g] - b->w[at])) < 1e-4);
            float unit = b->h[k * b->n + k], g_units = b->g[at] / unit;
            double want = gradient(b, k, r) / unit;
            assert_close(&g_units, &want, 1, 1e-3, "gradient");
            bool known = false;
            for (int c = 0; c < b->n_levels; c++) known = known || b->levels[c] == b->level[at];
            assert_true(known);
        }
        for (int i = 0; i < b->n_groups; i++) {
            int g = i * LANES + r;
            if (super) {
                assert_true(b->sc[g] == rintf(b->sc[g]) && b->sc[g] >= (float)b->sc_min &&
                            b->sc[g] <= (float)b->sc_max);
                assert_true(b->mn[g] == rintf(b->mn[g]) && b->mn[g] >= 0 && b->mn[g] <= (float)b->sc_max);
                assert_true(b->scale[g] == b->d[r] * b->sc[g] && is_f16(b->d[r]) && is_f16(b->dmin[r]));
                if (b->form == GRID_SUPER_AFFINE) assert_true(b->offset[g] == -(b->dmin[r] * b->mn[g]));
            } else {
                assert_true(is_f16(b->scale[g]) && b->scale[g] >= 0);
                if (b->form == GRID_AFFINE) assert_true(is_f16(b->offset[g]));
                if (b->form == GRID_ZERO) assert_true(b->offset[g] == -(b->scale[g] * 7));
            }
        }
    }
}

/* No code of any weight can be changed for the better. */
static void check_codes(const block *b) {
    for (int r = 0; r < LANES; r++) {
        double all = fabs(energy(b, r));
        for (int k = 0; k < b->n; k++) {
            double g = gradient(b, k, r);
            for (int c = 0; c < b->n_levels; c++) {
                double step = (double)b->scale[k / b->group_len * LANES + r] * (b->levels[c] - b->level[k * LANES + r]);
                assert_true(step * (2 * g + step * b->h[k * b->n + k]) >= -1e-4 * all);
            }
        }
    }
}

static void check_guards(const block *b) {
    size_t n = (size_t)b->n, groups = (size_t)b->n_groups;
    float *const wide[] = {b->g, b->e, b->level}, *const narrow[] = {b->scale, b->offset, b->sc, b->mn};
    for (int i = 0; i < 3; i++) assert_guard(wide[i], n * LANES);
    for (int i = 0; i < 4; i++) assert_guard(narrow[i], groups * LANES);
    assert_guard(b->d, LANES);
    assert_guard(b->dmin, LANES);
    assert_guard(b->gain, LANES);
}

static void drop(block *b) {
    float *const all[] = {b->h,      b->ones, b->w,  b->g, b->e,    b->level, b->scale,
                          b->offset, b->sc,   b->mn, b->d, b->dmin, b->gain};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) guarded_free(all[i]);
    mem_free(b);
}

static void refine_lowers_the_error(void **state) {
    (void)state;
    for (int isa = 0; isa < N_ISAS; isa++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[isa]);
        for (size_t i = 0; ops && i < sizeof kinds / sizeof *kinds; i++) {
            double before[LANES], gained[3] = {0};
            for (int what = 0; what < 3; what++) { /* grids, codes, both until nothing changes */
                block *b = make(&kinds[i]);
                bool refit = what != 1, sweep = what != 0;
                for (int r = 0; r < LANES; r++) before[r] = energy(b, r);
                fill_gradient(b);
                for (int turn = 0; turn < (what == 2 ? 20 : 1); turn++) run(ops, b, refit, sweep);
                check(b, before);
                for (int r = 0; r < LANES; r++) gained[what] += b->gain[r];
                assert_true(b->gain[LANES - 1] == 0 && b->scale[LANES - 1] == 0);
                if (what == 2) {
                    for (int turn = 0; turn < 20; turn++) run(ops, b, false, true);
                    check_codes(b);
                }
                check_guards(b);
                drop(b);
            }
            assert_true(kinds[i].form == GRID_FIXED ? gained[0] == 0 : gained[0] > 0);
            assert_true(gained[1] > 0);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(refine_lowers_the_error)};
    return cmocka_run_group_tests(tests, make_teams, drop_teams);
}
