/* Every method on every storage type that can be encoded; GPTQ against the textbook in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/mem.h"
#include "quant/quant.h"
#include "types/affine.h"
#include "types/nf4.h"

#define ROWS 70 /* two and a bit slabs of 32 lanes */
#define COLS 512
#define TOKENS 900

typedef struct fixture {
    float *w, *gram; /* (ROWS, COLS), (COLS, COLS) lower triangle */
} fixture;

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

static void *array(size_t n, size_t size) {
    void *p = mem_zalloc(n, size);
    assert_non_null(p);
    return p;
}

/* Gram matrix of n_tokens inputs whose neighbours are alike and whose columns differ in size; column `dead` is zero. */
static void fill_gram(float *gram, int n_tokens, int dead) {
    float *x = array(COLS, sizeof *x), *size = array(COLS, sizeof *size);
    for (int c = 0; c < COLS; c++) size[c] = expf(1.5f * normal());
    for (int t = 0; t < n_tokens; t++) {
        float common = normal();
        for (int c = 0; c < COLS; c++)
            x[c] = 0.7f * (c ? x[c - 1] / size[c - 1] : 0) + 0.5f * common + normal(), x[c] *= size[c];
        float keep = dead >= 0 ? x[dead] : 0;
        if (dead >= 0) x[dead] = 0;
        for (int i = 0; i < COLS; i++)
            for (int j = 0; j <= i; j++) gram[i * COLS + j] += x[i] * x[j];
        if (dead >= 0) x[dead] = keep;
    }
    mem_free(x);
    mem_free(size);
}

static int setup(void **state) {
    fixture *f = array(1, sizeof *f);
    f->w = array(ROWS * COLS, sizeof *f->w);
    f->gram = array(COLS * COLS, sizeof *f->gram);
    rng_state = 7;
    for (int i = 0; i < ROWS * COLS; i++) f->w[i] = 0.05f * normal() * (i % 97 == 0 ? 4.0f : 1.0f);
    fill_gram(f->gram, TOKENS, -1);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    mem_free(f->w);
    mem_free(f->gram);
    mem_free(f);
    return 0;
}

static llmq_quant_problem problem(const float *w, const float *gram, const llmq_type_info *type, llmq_team *team) {
    return (llmq_quant_problem){.name = "test",
                                .w = w,
                                .rows = ROWS,
                                .cols = COLS,
                                .gram = gram,
                                .n_tokens = TOKENS,
                                .type = type,
                                .solver = {ORDER_GROUP, true, true, true, 3},
                                .damp = -1,
                                .ops = backend_cpu(),
                                .team = team};
}

static llmq_quantized *solve(const llmq_method *m, const llmq_quant_problem *p, llmq_quant_report *report) {
    llmq_quantized *q = NULL;
    llmq_err err = {0};
    assert_int_equal(quantized_create(p->type, p->rows, p->cols, &q, &err), LLMQ_OK);
    memset(q->grids, 0, sizeof *q->grids * (size_t)quantized_grids(q));
    llmq_status status = m->solve(p, q, report, &err);
    if (status != LLMQ_OK) fail_msg("%s: %s", m->name, err.msg);
    for (int64_t i = 0; i < p->rows * p->cols; i++) assert_true(q->codes[i] < p->type->n_levels);
    return q;
}

static void pack_all(const llmq_quantized *q, uint8_t *dst) {
    for (int64_t r = 0; r < q->rows; r++) quantized_pack_row(q, r, dst + r * type_row_bytes(q->type->id, q->cols));
}

static double energy(const float *gram, const float *w, const float *minus, int64_t rows) {
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        double x[COLS];
        for (int i = 0; i < COLS; i++) x[i] = (double)w[r * COLS + i] - (minus ? (double)minus[r * COLS + i] : 0);
        for (int i = 0; i < COLS; i++)
            for (int j = 0; j <= i; j++) sum += (i == j ? 1 : 2) * x[i] * x[j] * gram[i * COLS + j];
    }
    return sum;
}

static void every_method_and_type(void **state) {
    const fixture *f = *state;
    const llmq_method *m;
    const llmq_type_info *t;
    for (size_t i = 0; (m = method_at(i)) != NULL; i++) {
        for (size_t j = 0; (t = type_at(j)) != NULL; j++) {
            if (type_is_float(t) || !type_can_encode(t) || m->emit) continue;
            size_t bytes = (size_t)(ROWS * type_row_bytes(t->id, COLS));
            uint8_t *first = array(bytes, 1), *again = array(bytes, 1);
            for (int n = 1; n <= 3; n++) {
                llmq_team *team;
                llmq_quant_report report;
                assert_int_equal(team_create(n, &team, NULL), LLMQ_OK);
                llmq_quant_problem p = problem(f->w, f->gram, t, team);
                llmq_quantized *q = solve(m, &p, &report);
                pack_all(q, n == 1 ? first : again);
                if (n == 1) {
                    float *back = array(ROWS * COLS, sizeof *back);
                    type_to_f32(t->id, first, back, ROWS * COLS);
                    double error = energy(f->gram, f->w, back, ROWS) / energy(f->gram, f->w, NULL, ROWS);
                    assert_true(fabs(report.error / error - 1) < 1e-3);
                    assert_true(report.rtn_error > 0);
                    if (m->needs_gram)
                        assert_true(report.error < 0.8 * report.rtn_error);
                    else if (!strcmp(m->name, "rtn"))
                        assert_true(report.error == report.rtn_error);
                    else
                        assert_true(report.error < 1.3 * report.rtn_error);
                    assert_false(report.fell_back);
                    mem_free(back);
                } else {
                    assert_memory_equal(first, again, bytes);
                }
                quantized_destroy(q);
                team_destroy(team);
            }
            mem_free(first);
            mem_free(again);
        }
    }
}

/* The published algorithm: U with U'U = H^-1, one column at a time, all later columns updated at once. */
static void textbook(const fixture *f, const llmq_quantized *grids, const int *order, double damp, uint8_t *codes) {
    static double h[COLS][COLS], inv[COLS][COLS];
    double mean = 0;
    for (int i = 0; i < COLS; i++) mean += f->gram[i * COLS + i] / TOKENS / COLS;
    for (int i = 0; i < COLS; i++)
        for (int j = 0; j < COLS; j++) {
            int a = order[i] > order[j] ? order[i] : order[j], b = order[i] > order[j] ? order[j] : order[i];
            h[i][j] = f->gram[a * COLS + b] / TOKENS + (i == j ? damp * mean : 0);
            inv[i][j] = i == j;
        }
    for (int c = 0; c < COLS; c++) { /* Gauss-Jordan; H is positive definite */
        double pivot = h[c][c];
        for (int j = 0; j < COLS; j++) h[c][j] /= pivot, inv[c][j] /= pivot;
        for (int i = 0; i < COLS; i++) {
            double by = i == c ? 0 : h[i][c];
            if (by == 0) continue;
            for (int j = 0; j < COLS; j++) h[i][j] -= by * h[c][j], inv[i][j] -= by * inv[c][j];
        }
    }
    for (int i = 0; i < COLS; i++) { /* inv = U'U in its upper triangle */
        for (int k = 0; k < i; k++)
            for (int j = i; j < COLS; j++) inv[i][j] -= inv[k][i] * inv[k][j];
        double root = sqrt(inv[i][i]);
        for (int j = i; j < COLS; j++) inv[i][j] /= root;
    }
    const llmq_type_info *t = grids->type;
    for (int r = 0; r < ROWS; r++) {
        double w[COLS];
        for (int k = 0; k < COLS; k++) w[k] = f->w[r * COLS + order[k]];
        for (int k = 0; k < COLS; k++) {
            int col = order[k];
            const llmq_grid *grid = &grids->grids[(r * COLS + col) / t->block_len];
            int g = col % t->block_len / t->group_len;
            uint8_t code = type_code(t, grid, g, (float)w[k]);
            codes[r * COLS + col] = code;
            double err = (w[k] - (double)type_value(t, grid, g, code)) / inv[k][k];
            for (int j = k; j < COLS; j++) w[j] -= err * inv[k][j];
        }
    }
}

static const fixture *sorted;
static int by_diag(const void *pa, const void *pb) {
    int a = *(const int *)pa, b = *(const int *)pb;
    float x = sorted->gram[a * COLS + a], y = sorted->gram[b * COLS + b];
    return x != y ? (x < y ? 1 : -1) : a - b;
}

static void gptq_is_the_textbook(void **state) {
    const fixture *f = *state;
    const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q4_1, LLMQ_TYPE_IQ4_NL, LLMQ_TYPE_Q4_K};
    llmq_team *team;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    uint8_t *codes = array(ROWS * COLS, 1);
    llmq_grid *static_grids = NULL;
    for (int act_order = 0; act_order <= 1; act_order++) {
        int order[COLS];
        for (int i = 0; i < COLS; i++) order[i] = i;
        sorted = f;
        if (act_order) qsort(order, COLS, sizeof *order, by_diag);
        for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
            llmq_quant_problem p = problem(f->w, f->gram, type_info(types[i]), team);
            llmq_quant_report report;
            p.solver = (llmq_solver){.order = act_order ? ORDER_STATIC : ORDER_NONE};
            p.damp = 0.02;
            llmq_quantized *q = solve(method_find("gptq"), &p, &report);
            assert_true(fabs(report.damp_used - 0.02) < 1e-9);
            textbook(f, q, order, 0.02, codes);
            int differ = 0, far = 0;
            for (int k = 0; k < ROWS * COLS; k++) {
                differ += q->codes[k] != codes[k];
                far += abs(q->codes[k] - codes[k]) > 1;
            }
            /* A tie that falls the other way in float changes later columns of its row a little: rows differ, not
             * errors. */
            assert_true(differ < ROWS * COLS / 50);
            assert_true(far < ROWS * COLS / 500);
            if (i == 0) { /* the grids do not depend on the order of rounding */
                size_t n = ROWS * COLS / 32;
                if (!act_order) {
                    static_grids = array(n, sizeof *static_grids);
                    memcpy(static_grids, q->grids, n * sizeof *static_grids);
                } else {
                    for (size_t b = 0; b < n; b++) assert_true(static_grids[b].scale[0] == q->grids[b].scale[0]);
                }
            }
            quantized_destroy(q);
        }
    }
    mem_free(static_grids);
    mem_free(codes);
    team_destroy(team);
}

/* sum |w - value|^0.7 */
static double far_loss(const llmq_quantized *q, const float *w) {
    double sum = 0;
    float row[COLS];
    for (int64_t r = 0; r < q->rows; r++) {
        quantized_row_to_f32(q, r, row);
        for (int c = 0; c < COLS; c++) sum += pow(fabs((double)w[r * COLS + c] - (double)row[c]), 0.7);
    }
    return sum;
}

/* HQQ's measure on weights with heavy tails: below plain rounding's on any kind of grid. */
static void hqq_lets_far_weights_go(void **state) {
    const fixture *f = *state;
    const llmq_type_info *types[] = {type_info(LLMQ_TYPE_Q4_0), type_info(LLMQ_TYPE_Q4_1), type_info(LLMQ_TYPE_IQ4_NL),
                                     type_info(LLMQ_TYPE_Q4_K), type_info(LLMQ_TYPE_Q3_K), type_affine(4, 64, false),
                                     type_affine(3, 128, true), type_affine(4, -1, true),  nf4_grid(false, 64, false)};
    llmq_team *team;
    llmq_quant_report report;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    float *w = array(ROWS * COLS, sizeof *w);
    for (int i = 0; i < ROWS * COLS; i++) w[i] = 0.05f * normal() * expf(normal());
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        llmq_quant_problem p = problem(w, f->gram, types[i], team);
        llmq_quantized *plain = solve(method_find("rtn"), &p, &report), *hqq = solve(method_find("hqq"), &p, &report);
        double a = far_loss(hqq, w), b = far_loss(plain, w);
        if (!(a < 0.995 * b)) fail_msg("%s: %g, plain rounding %g", types[i]->name, a, b);
        assert_true(report.error > 0 && report.error < 2 * report.rtn_error);
        quantized_destroy(plain);
        quantized_destroy(hqq);
    }
    mem_free(w);
    team_destroy(team);
}

/* bitsandbytes' grids: rounded plainly by the methods of their name, with error feedback by gptq; with double
 * quantization the codes are the nearest for the scales as stored. */
static void every_method_on_nf4(void **state) {
    const fixture *f = *state;
    for (int kind = 0; kind < 4; kind++) {
        const llmq_type_info *t = nf4_grid(kind & 1, 64, kind & 2);
        for (int k = 0; k < 3; k++) {
            const llmq_method *m = method_find(k == 0 ? (kind & 1 ? "fp4" : "nf4") : k == 1 ? "gptq" : "hqq");
            llmq_quantized *first = NULL;
            for (int n = 1; n <= 3; n++) {
                llmq_team *team;
                llmq_quant_report report;
                assert_int_equal(team_create(n, &team, NULL), LLMQ_OK);
                llmq_quant_problem p = problem(f->w, f->gram, t, team);
                llmq_quantized *q = solve(m, &p, &report);
                if (k == 1) assert_true(report.error < 0.8 * report.rtn_error);
                if (k != 1) assert_true(report.error < 1.3 * report.rtn_error);
                for (int b = 0; b < ROWS * COLS / 64 && k != 1; b++) {
                    uint8_t codes[64];
                    type_codes(t, &q->grids[b], f->w + 64 * b, 64, codes);
                    assert_memory_equal(codes, q->codes + 64 * b, 64);
                }
                for (int b = 0; b < ROWS * COLS / 64 && t->settle; b++) {
                    float map[NF4_MAP];
                    nf4_nested_map(map);
                    float scale = map[q->nested->codes[b]] * q->nested->absmax[b / NF4_NESTED_BLOCK];
                    scale += q->nested->offset;
                    assert_true(q->grids[b].scale[0] == scale);
                }
                if (!first) {
                    first = q;
                } else {
                    assert_memory_equal(first->codes, q->codes, ROWS * COLS);
                    assert_memory_equal(first->grids, q->grids, ROWS * COLS / 64 * sizeof *q->grids);
                    quantized_destroy(q);
                }
                team_destroy(team);
            }
            quantized_destroy(first);
        }
    }
    llmq_team *team;
    llmq_quant_report report;
    llmq_err err = {0};
    assert_int_equal(team_create(1, &team, NULL), LLMQ_OK);
    llmq_quant_problem p = problem(f->w, NULL, type_info(LLMQ_TYPE_Q4_0), team);
    assert_int_equal(method_find("nf4")->solve(&p, NULL, &report, &err), LLMQ_E_ARG);
    p.type = nf4_grid(true, 64, false);
    assert_int_equal(method_find("nf4")->solve(&p, NULL, &report, &err), LLMQ_E_ARG);
    team_destroy(team);
}

/* tr(E H E') of all rows of q. */
static double error_of(const fixture *f, const llmq_quantized *q) {
    float *back = array((size_t)(q->rows * q->cols), sizeof *back);
    for (int64_t r = 0; r < q->rows; r++) quantized_row_to_f32(q, r, back + r * q->cols);
    double error = energy(f->gram, f->w, back, q->rows);
    mem_free(back);
    return error;
}

static llmq_solver solver_of(const char *list) {
    llmq_solver s;
    llmq_err err;
    if (solver_parse(list, true, &s, &err) != LLMQ_OK) fail_msg("%s", err.msg);
    return s;
}

#define PLAIN "sweeps=0,refit=0"

/* Each piece of the solver against the solver without it, on every type. */
static void every_piece_pays(void **state) {
    const struct {
        const char *without, *with;
        double factor; /* error with <= factor * error without */
        double damp;   /* 0: what is measured is what is brought down */
    } pieces[] = {
        {PLAIN, PLAIN ",sweeps=1", 1, 0},
        {PLAIN ",sweeps=1", PLAIN ",sweeps=4", 1, 0},
        {PLAIN, PLAIN ",refit=1", 1, 0},
        {PLAIN ",order=group,grid=corrected,weight=pivot",
         PLAIN ",order=group,grid=corrected,weight=pivot,sweeps=4,refit=1", 0.99, 0.01},
        {PLAIN ",order=group", PLAIN ",order=group,weight=pivot", 1.1, 0.01},
        {PLAIN ",order=group,weight=pivot", PLAIN ",order=group,weight=pivot,grid=corrected", 1.02, 0.01},
        {PLAIN ",order=none,grid=corrected,weight=pivot", PLAIN ",order=group,grid=corrected,weight=pivot", 1.02, 0.01},
    };
    const fixture *f = *state;
    const llmq_type_info *t;
    llmq_team *team;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        for (size_t j = 0; (t = type_at(j)) != NULL; j++) {
            if (type_is_float(t) || !type_can_encode(t)) continue;
            double error[2];
            for (int with = 0; with < 2; with++) {
                llmq_quant_report report;
                llmq_quant_problem p = problem(f->w, f->gram, t, team);
                p.rows = 33;
                p.solver = solver_of(with ? pieces[i].with : pieces[i].without);
                p.damp = pieces[i].damp;
                llmq_quantized *q = solve(method_find("gptq"), &p, &report);
                error[with] = error_of(f, q);
                quantized_destroy(q);
            }
            if (!(error[1] <= pieces[i].factor * error[0]))
                fail_msg("%s: %s gives %g, %s gives %g", t->name, pieces[i].without, error[0], pieces[i].with,
                         error[1]);
        }
    }
    team_destroy(team);
}

/* When the passes have ended, no other code for a single weight is better. */
static void sweeps_end_where_no_code_can_improve(void **state) {
    const fixture *f = *state;
    const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q4_1, LLMQ_TYPE_IQ4_NL, LLMQ_TYPE_Q2_K};
    llmq_team *team;
    assert_int_equal(team_create(1, &team, NULL), LLMQ_OK);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        llmq_quant_problem p = problem(f->w, f->gram, type_info(types[i]), team);
        llmq_quant_report report;
        p.rows = 6;
        p.solver = solver_of("order=group,grid=corrected,weight=pivot,refit=1,sweeps=100");
        p.damp = 0;
        llmq_quantized *q = solve(method_find("gptq"), &p, &report);
        for (int64_t r = 0; r < p.rows; r++) {
            float back[COLS];
            double e[COLS], g[COLS], total = 0;
            quantized_row_to_f32(q, r, back);
            for (int k = 0; k < COLS; k++) e[k] = (double)back[k] - f->w[r * COLS + k];
            for (int k = 0; k < COLS; k++) {
                g[k] = 0;
                for (int j = 0; j < COLS; j++) g[k] += e[j] * f->gram[j > k ? j * COLS + k : k * COLS + j];
                total += g[k] * e[k];
            }
            for (int k = 0; k < COLS; k++) {
                const llmq_grid *grid = &q->grids[(r * COLS + k) / p.type->block_len];
                int group = k % p.type->block_len / p.type->group_len;
                for (int code = 0; code < p.type->n_levels; code++) {
                    double step = (double)type_value(p.type, grid, group, (uint8_t)code) - back[k];
                    double change = step * (2 * g[k] + step * f->gram[k * COLS + k]);
                    if (change < -2e-5 * total)
                        fail_msg("%s row %d column %d: %g of %g", p.type->name, (int)r, k, change, total);
                }
            }
        }
        quantized_destroy(q);
    }
    team_destroy(team);
}

static void solver_lists_are_checked(void **state) {
    (void)state;
    llmq_solver s;
    llmq_err err;
    assert_int_equal(solver_parse(NULL, true, &s, &err), LLMQ_OK);
    assert_true(s.order == ORDER_STATIC && !s.corrected && !s.pivots && s.refit && s.sweeps > 0 && s.mean > 0);
    assert_int_equal(solver_parse("", false, &s, &err), LLMQ_OK);
    assert_true(s.order == ORDER_NONE && !s.corrected);
    assert_int_equal(solver_parse("order=group,grid=corrected,weight=pivot,refit=1,sweeps=3", true, &s, &err), LLMQ_OK);
    assert_true(s.order == ORDER_GROUP && s.corrected && s.pivots && s.refit && s.sweeps == 3);
    assert_int_equal(solver_parse("order=static,sweeps=7,refit=0,weight=diag,mean=0.5", false, &s, &err), LLMQ_OK);
    assert_true(s.order == ORDER_STATIC && !s.corrected && !s.pivots && !s.refit && s.sweeps == 7 && s.mean == 0.5);
    const char *wrong[] = {"sweeps",    "sweeps=", "sweeps=x", "sweeps=-1", "sweeps=1000",  "refit=2",
                           "grid=new",  ",",       "order=",   "weight=",   "order=groups", "Refit=1",
                           "refit=0,,", "mean=-1", "mean=nan", "mean=1e9"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (solver_parse(wrong[i], true, &s, &err) != LLMQ_E_ARG) fail_msg("'%s' was taken", wrong[i]);
        assert_non_null(strstr(err.msg, "--solver"));
    }
}

static void dead_columns_are_rounded_plainly(void **state) {
    const fixture *f = *state;
    llmq_team *team;
    llmq_quant_report report;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    float *gram = array(COLS * COLS, sizeof *gram);
    fill_gram(gram, 200, 45); /* of rank 200, too */
    llmq_quant_problem p = problem(f->w, gram, type_info(LLMQ_TYPE_Q4_0), team);
    p.n_tokens = 200;
    llmq_quantized *q = solve(method_find("gptq"), &p, &report);
    assert_int_equal(report.dead_columns, 1);
    assert_false(report.fell_back);
    assert_true(report.note[0] != 0);
    for (int r = 0; r < ROWS; r++) {
        const llmq_grid *grid = &q->grids[(r * COLS + 45) / 32];
        assert_int_equal(q->codes[r * COLS + 45], type_code(q->type, grid, 0, f->w[r * COLS + 45]));
    }
    assert_true(report.error < report.rtn_error);
    quantized_destroy(q);
    mem_free(gram);
    team_destroy(team);
}

static void hopeless_hessians_never_end_the_run(void **state) {
    const fixture *f = *state;
    llmq_team *team;
    llmq_quant_report report;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    float *gram = array(COLS * COLS, sizeof *gram);
    for (int kind = 0; kind < 7; kind++) {
        memcpy(gram, f->gram, COLS * COLS * sizeof *gram);
        if (kind == 0) memset(gram, 0, COLS * COLS * sizeof *gram); /* nothing was seen */
        if (kind == 1) gram[300 * COLS + 20] = NAN;                 /* off the diagonal */
        if (kind == 2) gram[300 * COLS + 300] = NAN;
        if (kind == 3) gram[77 * COLS + 77] = INFINITY;
        if (kind == 4)
            gram[300 * COLS + 20] = 1e6f * (gram[300 * COLS + 300] + gram[20 * COLS + 20]); /* indefinite for good */
        if (kind == 5) { /* two average inputs more alike than possible: damping helps */
            float mean = 0;
            for (int c = 0; c < COLS; c++) mean += gram[c * COLS + c] / COLS;
            int near[2] = {0, 1};
            for (int c = 2; c < COLS; c++)
                if (fabsf(gram[c * COLS + c] - mean) < fabsf(gram[near[0] * COLS + near[0]] - mean))
                    near[1] = near[0], near[0] = c;
            int i = near[0] > near[1] ? near[0] : near[1], j = near[0] + near[1] - i;
            gram[i * COLS + j] = 1.1f * sqrtf(gram[i * COLS + i] * gram[j * COLS + j]);
        }
        llmq_quant_problem p = problem(f->w, gram, type_info(LLMQ_TYPE_Q4_0), team);
        if (kind == 6) p.n_tokens = 0;
        llmq_quantized *q = solve(method_find("gptq"), &p, &report);
        if (report.fell_back != (kind != 5)) fail_msg("kind %d: fell_back %d", kind, report.fell_back);
        if (kind == 5) assert_true(report.damp_used > 0.05);
        if (report.fell_back) assert_true(report.note[0] != 0);
        if (kind <= 3) assert_true(report.error == -1);
        float row[COLS];
        for (int r = 0; r < ROWS; r++) {
            quantized_row_to_f32(q, r, row);
            for (int c = 0; c < COLS; c++) assert_true(fabsf(row[c] - f->w[r * COLS + c]) < 0.12f);
        }
        quantized_destroy(q);
    }
    mem_free(gram);
    team_destroy(team);
}

static void damaged_weights_are_an_error(void **state) {
    const fixture *f = *state;
    llmq_team *team;
    llmq_quant_report report;
    llmq_quantized *q;
    assert_int_equal(team_create(1, &team, NULL), LLMQ_OK);
    float *w = array(ROWS * COLS, sizeof *w);
    memcpy(w, f->w, ROWS * COLS * sizeof *w);
    w[ROWS * COLS - 1] = NAN;
    const llmq_method *m;
    for (size_t i = 0; (m = method_at(i)) != NULL; i++) {
        llmq_quant_problem p =
            problem(w, f->gram, m->emit ? nf4_grid(m->fp4, 64, false) : type_info(LLMQ_TYPE_Q4_0), team);
        llmq_err err = {0};
        assert_int_equal(quantized_create(p.type, ROWS, COLS, &q, NULL), LLMQ_OK);
        assert_int_equal(m->solve(&p, q, &report, &err), LLMQ_E_NUMERIC);
        assert_non_null(strstr(err.msg, "test"));
        quantized_destroy(q);
    }
    mem_free(w);
    team_destroy(team);
}

/* The n-th allocation fails: an error, nothing leaked (under ASan), nothing crashed. */
static void running_out_of_memory_is_an_error(void **state) {
    const fixture *f = *state;
    llmq_team *team;
    llmq_quant_report report;
    llmq_quantized *q;
    assert_int_equal(team_create(2, &team, NULL), LLMQ_OK);
    llmq_quant_problem p = problem(f->w, f->gram, type_info(LLMQ_TYPE_Q4_0), team);
    p.rows = 8;
    assert_int_equal(quantized_create(p.type, p.rows, COLS, &q, NULL), LLMQ_OK);
    int failures = 0;
    for (long n = 1; n < 100; n++) {
        llmq_err err = {0};
        mem_fail_after(n);
        llmq_status status = method_find("gptq")->solve(&p, q, &report, &err);
        mem_fail_after(0);
        if (status == LLMQ_OK) break;
        assert_int_equal(status, LLMQ_E_MEMORY);
        assert_true(err.msg[0] != 0);
        failures++;
    }
    assert_in_range(failures, 5, 98);
    quantized_destroy(q);
    team_destroy(team);
}

static void tables_answer(void **state) {
    (void)state;
    assert_null(method_find("nothing"));
    assert_string_equal(method_find("gptq")->name, "gptq");
    llmq_quantized *q;
    llmq_err err;
    assert_int_equal(quantized_create(type_info(LLMQ_TYPE_Q4_0), 4, 172, &q, &err), LLMQ_E_ARG);
    llmq_team *team;
    llmq_quant_report report;
    assert_int_equal(team_create(1, &team, NULL), LLMQ_OK);
    float w[64] = {0};
    llmq_quant_problem p = {.name = "x",
                            .w = w,
                            .rows = 2,
                            .cols = 32,
                            .type = type_info(LLMQ_TYPE_Q4_0),
                            .damp = -1,
                            .ops = backend_cpu(),
                            .team = team};
    assert_int_equal(quantized_create(p.type, 2, 32, &q, NULL), LLMQ_OK);
    assert_int_equal(method_find("gptq")->solve(&p, q, &report, &err), LLMQ_E_ARG);
    assert_int_equal(method_find("rtn")->solve(&p, q, &report, &err), LLMQ_OK);
    assert_true(report.error == -1 && report.rtn_error == -1);
    quantized_destroy(q);
    team_destroy(team);
}

/* What forecasts go by: more rows and columns are more work, more workers less time; rows that stand for a larger matrix
 * are worked on in its slabs. */
static void work_grows_with_the_matrix(void **state) {
    (void)state;
    const llmq_method *m;
    llmq_team *one, *three;
    assert_int_equal(team_create(1, &one, NULL), LLMQ_OK);
    assert_int_equal(team_create(3, &three, NULL), LLMQ_OK);
    for (size_t i = 0; (m = method_at(i)) != NULL; i++) {
        llmq_quant_problem p = {.rows = 256, .cols = 512, .team = one}, q = p;
        solver_parse(NULL, true, &p.solver, NULL);
        q = p;
        q.rows *= 2;
        assert_true(method_work(m, &q) > method_work(m, &p) && method_work(m, &q) <= 2.01 * method_work(m, &p));
        q = p, q.cols *= 2;
        assert_true(method_work(m, &q) >= 2 * method_work(m, &p));
        q = p, q.team = three;
        assert_true(method_work(m, &q) < method_work(m, &p));
        q = p, q.gram = (const float *)&p;
        assert_true(method_work(m, &q) > method_work(m, &p));
        for (int wide = 0; wide < 2; wide++) { /* half a slab takes as long as a whole one */
            p.cols = wide ? 4096 : 512;
            p.part_of = 1024;
            p.rows = wide ? 64 : 32;
            q = p, q.rows = p.rows / 2;
            if (m->needs_gram) assert_true(method_work(m, &q) == method_work(m, &p));
        }
    }
    team_destroy(one);
    team_destroy(three);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_method_and_type, setup, teardown),
        cmocka_unit_test_setup_teardown(gptq_is_the_textbook, setup, teardown),
        cmocka_unit_test_setup_teardown(hqq_lets_far_weights_go, setup, teardown),
        cmocka_unit_test_setup_teardown(every_method_on_nf4, setup, teardown),
        cmocka_unit_test_setup_teardown(every_piece_pays, setup, teardown),
        cmocka_unit_test_setup_teardown(sweeps_end_where_no_code_can_improve, setup, teardown),
        cmocka_unit_test(solver_lists_are_checked),
        cmocka_unit_test_setup_teardown(dead_columns_are_rounded_plainly, setup, teardown),
        cmocka_unit_test_setup_teardown(hopeless_hessians_never_end_the_run, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_weights_are_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(running_out_of_memory_is_an_error, setup, teardown),
        cmocka_unit_test(tables_answer),
        cmocka_unit_test(work_grows_with_the_matrix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
