/* cpu: the training ops of every ISA against double precision, on teams of 1 to 3 workers that must give the same
 * bytes. Tolerances are those of an error analysis: TOL times the sum of what was added up, each term taken by its
 * absolute value. */
#include "ops_util.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FENCE(p, bytes) ASAN_POISON_MEMORY_REGION(p, bytes)
#define UNFENCE(p, bytes) ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#else
#define FENCE(p, bytes) ((void)(p), (void)(bytes))
#define UNFENCE(p, bytes) ((void)(p), (void)(bytes))
#endif

/* A float rounds by 2^-24 = 6e-8. A sum of some hundred of them by vectors, each of which was rounded two or three
 * times, is off by about 2e-7 of the absolute sum; exp is off by 1e-7, and by its argument times 6e-8. */
#define TOL 1e-6
#define TOL_BF16 0x1p-7 /* two inputs of a product round by 2^-9 each, and what they are computed from did too */
/* exp of less than -87 is 0 or subnormal. */
#define TINY 1e-36

/* ---- buffers ---- */

static void fence(float *p, size_t n) {
    FENCE(p - CANARY, CANARY * sizeof(float));
    FENCE(p + n, CANARY * sizeof(float));
}
static void unfence(float *p, size_t n) {
    UNFENCE(p - CANARY, CANARY * sizeof(float));
    UNFENCE(p + n, CANARY * sizeof(float));
}

/* Canaries which under ASan may not be read either. */
static float *input(size_t n, double scale) {
    float *p = guarded(n);
    for (size_t i = 0; i < n; i++) p[i] = (float)(scale * rng_normal());
    fence(p, n);
    return p;
}
static void input_free(float *p, size_t n) {
    if (!p) return;
    unfence(p, n);
    assert_guard(p, n);
    guarded_free(p);
}

/* What an op writes: NaN before, unless there is something to begin with. */
typedef struct result {
    const char *name;
    size_t n; /* floats; a double is two */
    const float *init;
    const double *want, *alt; /* NULL: not compared; alt: all of want or all of this */
    const double *tol;        /* NULL: exactly */
    bool doubles;
    float *got, *first; /* of this team; of one worker */
} result;

#define MAX_RESULTS 4
typedef struct call {
    const llmq_backend_ops *ops;
    int64_t rows, cols, n_tok, ldx, ldy;
    bool add, bf16;
    float eps;
    const float *x, *gain, *dy, *q, *k, *v;
    llmq_causal attn;
    llmq_loss loss;
    result r[MAX_RESULTS];
    size_t (*scratch_bytes)(const struct call *c, int n_workers);
    float *scratch;
} call;

static void result_begin(result *r) {
    r->got = guarded(r->n);
    memset(r->got, 0xff, r->n * sizeof(float));
    if (r->init) memcpy(r->got, r->init, r->n * sizeof(float));
    fence(r->got, r->n);
}

/* The first element that is off, or -1. */
static int64_t first_off(const result *r, const double *want) {
    size_t n = r->doubles ? r->n / 2 : r->n;
    for (size_t i = 0; i < n; i++) {
        double got = r->doubles ? ((const double *)(const void *)r->got)[i] : r->got[i];
        if (!(fabs(got - want[i]) <= (r->tol ? r->tol[i] : 0))) return (int64_t)i;
    }
    return -1;
}

static void result_check(result *r, const char *what) {
    unfence(r->got, r->n);
    assert_guard(r->got, r->n);
    if (r->want) {
        int64_t i = first_off(r, r->want);
        if (i >= 0 && (!r->alt || first_off(r, r->alt) >= 0))
            fail_msg("%s: %s[%lld] is %.9g, expected %.9g +- %.3g", what, r->name, (long long)i,
                     r->doubles ? ((double *)(void *)r->got)[i] : (double)r->got[i], r->want[i],
                     r->tol ? r->tol[i] : 0.0);
        if (r->first && memcmp(r->first, r->got, r->n * sizeof(float)) != 0)
            fail_msg("%s: %s differs from one worker's", what, r->name);
    }
    if (r->first)
        guarded_free(r->got);
    else
        r->first = r->got;
}

static void check(call c, team_fn *fn, const char *what) {
    for (int i = 0; i < N_ISAS; i++) {
        c.ops = backend_cpu_isa(all_isas[i]);
        if (!c.ops) continue;
        for (int n = 1; n <= MAX_TEAM; n++) {
            size_t scratch = c.scratch_bytes ? c.scratch_bytes(&c, n) / sizeof(float) : 0;
            char name[200];
            snprintf(name, sizeof name, "%s on %s, %d workers", what, all_isas[i], n);
            c.scratch = guarded(scratch);
            memset(c.scratch, 0xff, scratch * sizeof(float));
            fence(c.scratch, scratch);
            for (result *r = c.r; r < c.r + MAX_RESULTS && r->name; r++) result_begin(r);
            team_run(teams[n], fn, &c);
            for (result *r = c.r; r < c.r + MAX_RESULTS && r->name; r++) result_check(r, name);
            unfence(c.scratch, scratch);
            assert_guard(c.scratch, scratch);
            guarded_free(c.scratch);
        }
        for (result *r = c.r; r < c.r + MAX_RESULTS && r->name; r++) {
            guarded_free(r->first);
            r->first = NULL;
        }
    }
}

static double *zeros(size_t n) {
    double *p = mem_zalloc(n, sizeof *p);
    assert_non_null(p);
    return p;
}
static int64_t any_of(int64_t low, int64_t high) {
    return low + (int64_t)(rng_uniform() * (double)(high - low + 1));
}

/* ---- transpose ---- */

static void run_transpose(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->transpose(w, c->x, c->rows, c->cols, c->ldx, c->r[0].got, c->ldy);
}

static void check_transpose(int64_t rows, int64_t cols, int64_t gap_x, int64_t gap_y) {
    call c = {.rows = rows, .cols = cols, .ldx = cols + gap_x, .ldy = rows + gap_y};
    size_t n_x = (size_t)((rows - 1) * c.ldx + cols), n_y = (size_t)((cols - 1) * c.ldy + rows);
    float *x = input(n_x, 1), *before = input(n_y, 1);
    double *want = zeros(n_y);
    for (size_t i = 0; i < n_y; i++) want[i] = before[i]; /* nothing is written between the rows */
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < cols; i++) want[i * c.ldy + r] = x[r * c.ldx + i];
    c.x = x;
    c.r[0] = (result){.name = "y", .n = n_y, .init = before, .want = want};
    char what[160];
    snprintf(what, sizeof what, "transpose %lld x %lld, gaps %lld, %lld", (long long)rows, (long long)cols,
             (long long)gap_x, (long long)gap_y);
    check(c, run_transpose, what);
    mem_free(want);
    input_free(x, n_x);
    input_free(before, n_y);
}

static void test_transpose(void **state) {
    (void)state;
    rng_state = 51;
    check_transpose(1, 1, 0, 0);
    check_transpose(16, 16, 0, 0);
    check_transpose(1, 100, 0, 3);
    check_transpose(100, 1, 1, 0);
    check_transpose(576, 130, 0, 0);
    for (int i = 0; i < 30; i++) check_transpose(any_of(1, 70), any_of(1, 70), any_of(0, 5), any_of(0, 5));
}

/* ---- norm ---- */

static void run_norm_back(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->rms_norm_back(w, c->x, c->gain, c->eps, c->dy, c->r[0].got, c->add, c->r[1].got, c->rows, c->cols);
}
static void run_gain_back(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->rms_gain_back(w, c->x, c->gain, c->dy, c->r[0].got, c->rows, c->cols);
}

/* From y_i = inv x_i gain_i and d inv / d x_j = -inv^3 x_j / n. before: dx, or NULL. */
static void norm_row(const float *x, const float *gain, double eps, const float *dy, const float *before, int64_t n,
                     double *dx, double *tol, double *inv) {
    double sum = 0, dot = 0, abs_dot = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i] * x[i];
        dot += (double)dy[i] * gain[i] * x[i];
        abs_dot += fabs((double)dy[i] * gain[i] * x[i]);
    }
    *inv = 1 / sqrt(sum / (double)n + eps);
    for (int64_t i = 0; i < n; i++) {
        double by = *inv * *inv * *inv * x[i] / (double)n, d = *inv * dy[i] * gain[i], old = before ? before[i] : 0;
        dx[i] = old + d - by * dot;
        tol[i] = TOL * (fabs(old) + fabs(d) + fabs(by) * abs_dot);
    }
}

static void check_norm(int64_t rows, int64_t n, double scale, bool add) {
    size_t len = (size_t)(rows * n);
    float *x = input(len, scale), *gain = input((size_t)n, 1), *dy = input(len, 1), *before = input(len, 1),
          *inv = input((size_t)rows, 1), *dgain = input((size_t)n, 1);
    double *dx = zeros(len), *dx_tol = zeros(len), *want_inv = zeros((size_t)rows), *inv_tol = zeros((size_t)rows),
           *want = zeros((size_t)n), *tol = zeros((size_t)n);
    call c = {.rows = rows, .cols = n, .x = x, .gain = gain, .dy = dy, .eps = 1e-5f, .add = add};
    for (int64_t r = 0; r < rows; r++) {
        norm_row(x + r * n, gain, c.eps, dy + r * n, add ? before + r * n : NULL, n, dx + r * n, dx_tol + r * n,
                 want_inv + r);
        inv_tol[r] = TOL * want_inv[r];
        inv[r] = (float)want_inv[r];
    }
    c.r[0] = (result){.name = "dx", .n = len, .init = add ? before : NULL, .want = dx, .tol = dx_tol};
    c.r[1] = (result){.name = "inv", .n = (size_t)rows, .want = want_inv, .tol = inv_tol};
    char what[160];
    snprintf(what, sizeof what, "norm of %lld x %lld, %g, add %d", (long long)rows, (long long)n, scale, add);
    check(c, run_norm_back, what);

    for (int64_t i = 0; i < n; i++) {
        double sum = fabs(dgain[i]);
        want[i] = dgain[i];
        for (int64_t r = 0; r < rows; r++) {
            double d = (double)dy[r * n + i] * x[r * n + i] * inv[r];
            want[i] += d;
            sum += fabs(d);
        }
        tol[i] = TOL * sum;
    }
    call g = {.rows = rows, .cols = n, .x = x, .gain = inv, .dy = dy};
    g.r[0] = (result){.name = "dgain", .n = (size_t)n, .init = dgain, .want = want, .tol = tol};
    check(g, run_gain_back, what);
    double *doubles[] = {dx, dx_tol, want_inv, inv_tol, want, tol};
    for (int i = 0; i < 6; i++) mem_free(doubles[i]);
    input_free(x, len), input_free(dy, len), input_free(before, len), input_free(gain, (size_t)n);
    input_free(inv, (size_t)rows), input_free(dgain, (size_t)n);
}

static void test_norm(void **state) {
    (void)state;
    rng_state = 52;
    const int64_t shapes[][2] = {{1, 1}, {1, 576}, {3, 15}, {7, 64}, {2, 4099}, {130, 16}, {300, 33}, {9, 128}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int add = 0; add < 2; add++) check_norm(shapes[i][0], shapes[i][1], 1, add);
    check_norm(3, 100, 1e-4, false); /* eps counts more than x */
    check_norm(3, 100, 1e4, true);
    for (int i = 0; i < 20; i++) check_norm(any_of(1, 20), any_of(1, 100), 1, i % 2);
}

/* ---- silu ---- */

static void run_silu_back(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->silu_mul_back(w, c->r[0].got, c->r[1].got, c->dy, c->cols);
}

/* The slope is s (1 + g (1 - s)): near its zero, g = -1.28, what counts is the size of both terms. */
static void check_silu(int64_t n, double scale) {
    size_t len = (size_t)n;
    float *gate = input(len, scale), *up = input(len, 1), *dy = input(len, 1);
    double *dg = zeros(len), *dg_tol = zeros(len), *du = zeros(len), *du_tol = zeros(len);
    const float ends[] = {0, -0.0f, 100, -100, 87, -87, 88.5f, -88.5f, 1e30f, -1e30f, -1.278f, 1e-30f};
    for (size_t i = 0; scale > 10 && i < len && i < sizeof ends / sizeof *ends; i++) gate[i] = ends[i];
    for (size_t i = 0; i < len; i++) {
        double g = gate[i], s = 1 / (1 + exp(-g)), rest = 1 / (1 + exp(g)), d = dy[i];
        du[i] = d * g * s;
        du_tol[i] = TOL * fabs(du[i]) + TINY * fabs(d * g);
        dg[i] = d * up[i] * s * (1 + g * rest);
        /* 1 - s is off by a float's rounding of 1 */
        dg_tol[i] = fabs(d * up[i]) * (s * (TOL * (1 + fabs(g) * rest) + 1e-7 * fmin(fabs(g), 30)) + TINY);
    }
    call c = {.cols = n, .dy = dy};
    c.r[0] = (result){.name = "gate", .n = len, .init = gate, .want = dg, .tol = dg_tol};
    c.r[1] = (result){.name = "up", .n = len, .init = up, .want = du, .tol = du_tol};
    char what[160];
    snprintf(what, sizeof what, "silu of %lld, %g", (long long)n, scale);
    check(c, run_silu_back, what);
    mem_free(dg), mem_free(dg_tol), mem_free(du), mem_free(du_tol);
    input_free(gate, len), input_free(up, len), input_free(dy, len);
}

static void test_silu(void **state) {
    (void)state;
    rng_state = 53;
    const int64_t lens[] = {1, 7, 8, 9, 15, 16, 17, 48, 1000, 4099};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++)
        for (int k = 0; k < 2; k++) check_silu(lens[i], k ? 20 : 1);
}

/* ---- attention ---- */

static void run_causal(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->causal(w, &c->attn, c->q, c->k, c->v, c->r[0].got, c->scratch);
}
static void run_causal_back(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->causal_back(w, &c->attn, c->q, c->k, c->v, c->dy, c->r[0].got, c->r[1].got, c->r[2].got, c->scratch);
}
static size_t causal_scratch(const call *c, int n_workers) {
    return c->ops->causal_scratch_bytes(&c->attn, n_workers);
}

/* Values and the absolute sums that tell how exactly floats can know them. */
typedef struct attention_sums {
    double *out, *dq, *dk, *dv, *abs_out, *abs_dq, *abs_dk, *abs_dv;
} attention_sums;

/* Probabilities of query q over keys [first, last], and by what part of themselves floats may miss them: a score's
 * error is that of its sum of |q k|, and exp makes it a relative one. */
static double query_probabilities(const call *c, const float *q, const float *k, int64_t first, int64_t last,
                                  double *p) {
    int64_t ldk = (int64_t)c->attn.n_head_kv * c->attn.head_dim;
    double top = -INFINITY, sum = 0, most = 0;
    for (int64_t j = first; j <= last; j++) {
        double score = 0, all = 0;
        for (int d = 0; d < c->attn.head_dim; d++) {
            score += (double)q[d] * k[j * ldk + d];
            all += fabs((double)q[d] * k[j * ldk + d]);
        }
        p[j] = score * c->attn.scale;
        most = fmax(most, all * c->attn.scale);
        top = fmax(top, p[j]);
    }
    for (int64_t j = first; j <= last; j++) sum += p[j] = exp(p[j] - top);
    for (int64_t j = first; j <= last; j++) p[j] /= sum;
    return (c->attn.allow_bf16 ? TOL_BF16 : TOL) * (1 + most);
}

/* One query i of one head; everything begins at its window and head. */
static void query_sums(const call *c, int64_t i, const float *q, const float *k, const float *v, const float *g,
                       const attention_sums *s, int64_t at, int64_t from, double *p) {
    const llmq_causal *a = &c->attn;
    int64_t ldk = (int64_t)a->n_head_kv * a->head_dim, first = a->window > 0 && i >= a->window ? i + 1 - a->window : 0;
    double tol = query_probabilities(c, q, k, first, i, p), mean = 0, abs_mean = 0, *dp = p + a->n_tok,
           *abs_dp = dp + a->n_tok;
    for (int64_t j = first; j <= i; j++) {
        dp[j] = abs_dp[j] = 0;
        for (int d = 0; d < a->head_dim; d++) {
            s->out[at + d] += p[j] * v[j * ldk + d];
            s->abs_out[at + d] += (tol * p[j] + TINY) * fabs(v[j * ldk + d]);
            dp[j] += (double)g[d] * v[j * ldk + d];
            abs_dp[j] += fabs((double)g[d] * v[j * ldk + d]);
        }
        mean += p[j] * dp[j];
        abs_mean += p[j] * abs_dp[j];
    }
    for (int64_t j = first; j <= i; j++) {
        double ds = p[j] * (dp[j] - mean) * a->scale, abs_ds = (tol * p[j] + TINY) * (abs_dp[j] + abs_mean) * a->scale;
        for (int d = 0; d < a->head_dim; d++) {
            int64_t kv = from + j * ldk + d;
            s->dq[at + d] += ds * k[j * ldk + d];
            s->abs_dq[at + d] += abs_ds * fabs(k[j * ldk + d]);
            s->dk[kv] += ds * q[d];
            s->abs_dk[kv] += abs_ds * fabs(q[d]);
            s->dv[kv] += p[j] * g[d];
            s->abs_dv[kv] += (tol * p[j] + TINY) * fabs(g[d]);
        }
    }
}

static void attention_reference(const call *c, const attention_sums *s) {
    const llmq_causal *a = &c->attn;
    int64_t ldq = (int64_t)a->n_head * a->head_dim, ldk = (int64_t)a->n_head_kv * a->head_dim;
    double *p = zeros((size_t)(3 * a->n_tok));
    for (int64_t win = 0; win < a->n_windows; win++)
        for (int h = 0; h < a->n_head; h++)
            for (int64_t i = 0; i < a->n_tok; i++) {
                int64_t at = (win * a->n_tok + i) * ldq + h * a->head_dim,
                        from = win * a->n_tok * ldk + h / (a->n_head / a->n_head_kv) * a->head_dim;
                query_sums(c, i, c->q + at, c->k + from, c->v + from, c->dy + at, s, at, from, p);
            }
    mem_free(p);
}

static void check_attention_by(llmq_causal a, double scale) {
    size_t n_q = (size_t)(a.n_windows * a.n_tok * a.n_head * a.head_dim),
           n_k = (size_t)(a.n_windows * a.n_tok * a.n_head_kv * a.head_dim);
    a.scale = 1.3f / sqrtf((float)a.head_dim);
    float *q = input(n_q, scale), *k = input(n_k, scale), *v = input(n_k, 1), *dy = input(n_q, 1);
    attention_sums s = {zeros(n_q), zeros(n_q), zeros(n_k), zeros(n_k), zeros(n_q), zeros(n_q), zeros(n_k), zeros(n_k)};
    call c = {.attn = a, .q = q, .k = k, .v = v, .dy = dy, .scratch_bytes = causal_scratch};
    attention_reference(&c, &s);
    char what[160];
    snprintf(what, sizeof what, "attention, %d/%d heads of %d, %lld windows of %lld, window %lld, scale %g, bf16 %d",
             a.n_head, a.n_head_kv, a.head_dim, (long long)a.n_windows, (long long)a.n_tok, (long long)a.window, scale,
             a.allow_bf16);
    c.r[0] = (result){.name = "out", .n = n_q, .want = s.out, .tol = s.abs_out};
    check(c, run_causal, what);
    c.r[0] = (result){.name = "dq", .n = n_q, .want = s.dq, .tol = s.abs_dq};
    c.r[1] = (result){.name = "dk", .n = n_k, .want = s.dk, .tol = s.abs_dk};
    c.r[2] = (result){.name = "dv", .n = n_k, .want = s.dv, .tol = s.abs_dv};
    check(c, run_causal_back, what);
    double *sums[] = {s.out, s.dq, s.dk, s.dv, s.abs_out, s.abs_dq, s.abs_dk, s.abs_dv};
    for (int i = 0; i < 8; i++) mem_free(sums[i]);
    input_free(q, n_q), input_free(k, n_k), input_free(v, n_k), input_free(dy, n_q);
}

/* q and k of `scale`; 0: all scores are equal. */
static void check_attention(llmq_causal a, double scale) {
    check_attention_by(a, scale);
    a.allow_bf16 = true;
    check_attention_by(a, scale);
}

static void test_attention(void **state) {
    (void)state;
    const llmq_causal cases[] = {
        {.n_head = 1, .n_head_kv = 1, .head_dim = 1, .n_tok = 1, .n_windows = 1},
        {.n_head = 4, .n_head_kv = 2, .head_dim = 6, .n_tok = 7, .n_windows = 2},
        {.n_head = 3, .n_head_kv = 1, .head_dim = 64, .n_tok = 257, .n_windows = 1},
        {.n_head = 9, .n_head_kv = 3, .head_dim = 64, .n_tok = 65, .n_windows = 2},
        {.n_head = 2, .n_head_kv = 2, .head_dim = 128, .n_tok = 130, .n_windows = 1, .window = 50},
        {.n_head = 2, .n_head_kv = 1, .head_dim = 80, .n_tok = 200, .n_windows = 1, .window = 1},
        {.n_head = 2, .n_head_kv = 1, .head_dim = 80, .n_tok = 1, .n_windows = 5, .window = 7},
        {.n_head = 1, .n_head_kv = 1, .head_dim = 8, .n_tok = 64, .n_windows = 3, .window = 64},
        {.n_head = 1, .n_head_kv = 1, .head_dim = 8, .n_tok = 64, .n_windows = 3, .window = 63}};
    const int dims[] = {6, 8, 20, 64, 80, 128};
    rng_state = 54;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_attention(cases[i], 1);
    for (int i = 0; i < 12; i++) {
        int kv = (int)any_of(1, 2);
        check_attention((llmq_causal){.n_head = kv * (int)any_of(1, 4),
                                      .n_head_kv = kv,
                                      .head_dim = dims[i % 6],
                                      .n_tok = any_of(1, 100),
                                      .n_windows = any_of(1, 2),
                                      .window = i % 3 ? 0 : any_of(1, 60)},
                        i % 4 == 3 ? 3 : 1);
    }
    check_attention(cases[3], 0);
    check_attention(cases[3], 100); /* all probabilities 0 or 1, but for ties */
}

/* A NaN among the keys must be seen, not swallowed by a maximum. */
static void test_attention_nan(void **state) {
    (void)state;
    enum { DIM = 16, N = 70 };
    for (int i = 0; i < 2 * N_ISAS; i++) {
        call c = {.ops = backend_cpu_isa(all_isas[i / 2])};
        if (!c.ops) continue;
        static float k[N * DIM], q[N * DIM], out[3][N * DIM];
        for (int j = 0; j < N * DIM; j++) q[j] = k[j] = (float)rng_normal();
        k[5 * DIM + 3] = NAN;
        c.attn = (llmq_causal){.n_head = 1, .n_head_kv = 1, .head_dim = DIM, .scale = 1, .n_tok = N, .n_windows = 1};
        c.attn.allow_bf16 = i % 2;
        c.q = c.v = c.dy = q, c.k = k;
        c.scratch = mem_alloc(c.ops->causal_scratch_bytes(&c.attn, 1), 1);
        for (int o = 0; o < 3; o++) c.r[o].got = out[o];
        team_run(teams[1], run_causal, &c);
        assert_true(isnan(out[0][69 * DIM]) && isnan(out[0][5 * DIM]) && !isnan(out[0][0]));
        team_run(teams[1], run_causal_back, &c);
        assert_true(isnan(out[0][69 * DIM]) && isnan(out[1][0]) && isnan(out[2][0]));
        mem_free(c.scratch);
    }
}

/* ---- losses ---- */

static void run_loss(const llmq_worker *w, void *arg) {
    const call *c = arg;
    llmq_loss l = c->loss;
    l.dz = c->r[0].got;
    l.loss = (double *)(void *)c->r[1].got;
    l.z = c->r[2].got;
    l.scratch = c->scratch;
    c->ops->loss_rows(w, &l);
}
static size_t loss_scratch(const call *c, int n_workers) {
    return c->loss.teacher ? (size_t)(n_workers * c->loss.n_vocab) * sizeof(float) : 0;
}

/* Largest logit and the logarithm of the sum of all exp(z - top). */
static void row_sum(const float *z, int64_t n, double *top, double *log_sum) {
    double sum = 0;
    *top = -INFINITY;
    for (int64_t i = 0; i < n; i++) *top = fmax(*top, z[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(z[i] - *top);
    *log_sum = log(sum);
}

/* exp of a difference d of floats is off by TOL and by d's rounding. */
static double exp_tol(double p, double d) {
    return p * (TOL + fabs(d) * 2e-7) + TINY;
}

static void loss_reference(const llmq_loss *l, int64_t r, double *dz, double *dz_tol, double *loss, double *tol) {
    const float *z = l->z + r * l->n_vocab, *t = l->teacher ? l->teacher + r * l->n_vocab : NULL;
    int32_t label = l->labels ? l->labels[r] : 0;
    double top, log_sum, t_top = 0, t_log = 0, weight = label < 0 ? 0 : l->weight, sum = 0, abs_sum = 0;
    row_sum(z, l->n_vocab, &top, &log_sum);
    if (t) row_sum(t, l->n_vocab, &t_top, &t_log);
    for (int64_t i = 0; i < l->n_vocab; i++) {
        double p = exp(z[i] - top - log_sum), want = i == label, off = exp_tol(p, z[i] - top);
        if (t) {
            want = exp(t[i] - t_top - t_log);
            off += exp_tol(want, t[i] - t_top);
            sum += want * ((t[i] - t_top - t_log) - (z[i] - top - log_sum));
            abs_sum += exp_tol(want, t[i] - t_top) * (fabs(t[i] - t_top) + fabs(z[i] - top));
        } else if (i == label) {
            sum = top + log_sum - z[i];
        }
        int64_t at = i / l->slice * l->slice, len = l->n_vocab - at < l->slice ? l->n_vocab - at : l->slice;
        dz[at * l->n + r * len + i - at] = weight * (p - want);
        dz_tol[at * l->n + r * len + i - at] = fabs(weight) * (off + TOL * (t ? 0 : want));
    }
    loss[r] = weight * sum;
    tol[r] = fabs(weight) * (abs_sum + TOL * (1 + fabs(log_sum) + fabs(t_log)));
}

enum { PLAIN, WIDE, FAR, EQUAL, PEAK, N_KINDS };
static void logits(float *z, int64_t n, int kind) {
    int64_t peak = any_of(0, n - 1);
    for (int64_t i = 0; i < n; i++) {
        if (kind == WIDE) z[i] *= 40;
        if (kind == FAR) z[i] += 10000;
        if (kind == EQUAL) z[i] = -3;
        if (kind == PEAK) z[i] = i == peak ? 1e6f : -1e6f;
    }
}

/* kind of the teacher: -1 none, N_KINDS: the same as the student. */
static void check_loss(int64_t n, int64_t n_vocab, int64_t slice, int kind, int teacher, bool labelled) {
    size_t len = (size_t)(n * n_vocab), rows = (size_t)n;
    float *z = input(len, 2), *t = teacher < 0 ? NULL : input(len, 2);
    int32_t *labels = labelled ? mem_alloc(rows, sizeof *labels) : NULL;
    for (int64_t r = 0; r < n; r++) {
        logits(z + r * n_vocab, n_vocab, kind);
        if (t) logits(t + r * n_vocab, n_vocab, teacher);
        if (labels) labels[r] = r % 3 == 2 ? -1 - (int32_t)any_of(0, 99) : (int32_t)any_of(0, n_vocab - 1);
    }
    if (teacher == N_KINDS) memcpy(t, z, len * sizeof *t);
    double *dz = zeros(len), *dz_tol = zeros(len), *loss = zeros(rows), *tol = zeros(rows);
    call c = {
        .loss = {.n = n, .n_vocab = n_vocab, .z = z, .teacher = t, .labels = labels, .weight = 0.37, .slice = slice},
        .scratch_bytes = loss_scratch};
    for (int64_t r = 0; r < n; r++) loss_reference(&c.loss, r, dz, dz_tol, loss, tol);
    c.r[0] = (result){.name = "dz", .n = len, .want = dz, .tol = dz_tol};
    c.r[1] = (result){.name = "loss", .n = 2 * rows, .want = loss, .tol = tol, .doubles = true};
    c.r[2] = (result){.name = "z", .n = len, .init = z};
    char what[160];
    snprintf(what, sizeof what, "loss of %lld rows of %lld, slices of %lld, logits %d, teacher %d, labels %d",
             (long long)n, (long long)n_vocab, (long long)slice, kind, teacher, labelled);
    check(c, run_loss, what);
    mem_free(dz), mem_free(dz_tol), mem_free(loss), mem_free(tol), mem_free(labels);
    input_free(z, len), input_free(t, len);
}

static void test_loss(void **state) {
    (void)state;
    rng_state = 55;
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int teacher = -1; teacher <= N_KINDS; teacher++) {
            check_loss(4, 100, 100, kind, teacher, true);
            if (teacher >= 0) check_loss(3, 1037, 256, kind, teacher, false);
        }
    check_loss(1, 1, 1, PLAIN, -1, true);
    check_loss(2, 5003, 2048, PLAIN, PLAIN, true); /* the last slice is short and odd */
    check_loss(7, 2049, 2048, WIDE, -1, true);
    check_loss(5, 33, 1, PLAIN, PLAIN, true);
    for (int i = 0; i < 30; i++) {
        int64_t n_vocab = any_of(1, 300);
        check_loss(any_of(1, 9), n_vocab, any_of(1, n_vocab), PLAIN, i % 2 ? PLAIN : -1, true);
    }
}

/* ---- the gradient of a matrix ---- */

static void run_outer(const llmq_worker *w, void *arg) {
    call *c = arg;
    c->ops->outer(w, c->dy, c->rows, c->x, c->cols, c->n_tok, c->add, c->bf16, c->r[0].got, c->scratch);
}
static size_t outer_scratch(const call *c, int n_workers) {
    (void)n_workers;
    return c->ops->outer_scratch_bytes(c->rows, c->cols, c->n_tok);
}

/* With allow_bf16 the result is that of the inputs as they are or of inputs rounded to bf16, in either case with sums
 * in floats. Each input rounds by at most 2^-8 of itself, so the two lie within 2^-7 of the absolute sum of each other.
 */
static void check_outer(int64_t rows, int64_t cols, int64_t n_tok, bool add, bool bf16) {
    size_t n_dy = (size_t)(n_tok * rows), n_x = (size_t)(n_tok * cols), len = (size_t)(rows * cols);
    float *dy = input(n_dy, 1), *x = input(n_x, 1), *before = input(len, 1);
    double *want = zeros(len), *alt = zeros(len), *tol = zeros(len);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < cols; i++) {
            double exact = add ? before[r * cols + i] : 0, rounded = exact, sum = fabs(exact);
            for (int64_t t = 0; t < n_tok; t++) {
                float a = dy[t * rows + r], b = x[t * cols + i];
                exact += (double)a * b;
                rounded += (double)bf16_to_f32(f32_to_bf16(a)) * bf16_to_f32(f32_to_bf16(b));
                sum += fabs((double)a * b);
            }
            want[r * cols + i] = exact;
            alt[r * cols + i] = rounded;
            tol[r * cols + i] = TOL * sum;
            assert_true(fabs(exact - rounded) <= 0x1p-7 * 1.01 * sum);
        }
    call c = {.rows = rows, .cols = cols, .n_tok = n_tok, .add = add, .bf16 = bf16, .dy = dy, .x = x};
    c.scratch_bytes = outer_scratch;
    c.r[0] = (result){
        .name = "g", .n = len, .init = add ? before : NULL, .want = want, .alt = bf16 ? alt : NULL, .tol = tol};
    char what[160];
    snprintf(what, sizeof what, "outer %lld x %lld of %lld tokens, add %d, bf16 %d", (long long)rows, (long long)cols,
             (long long)n_tok, add, bf16);
    check(c, run_outer, what);
    mem_free(want), mem_free(alt), mem_free(tol);
    input_free(dy, n_dy), input_free(x, n_x), input_free(before, len);
}

static void test_outer(void **state) {
    (void)state;
    const int64_t shapes[][3] = {{1, 1, 1},   {6, 64, 2},   {8, 48, 256},  {7, 65, 257},  {9, 49, 513},
                                 {64, 17, 3}, {5, 130, 40}, {130, 47, 31}, {48, 96, 128}, {1, 200, 600}};
    rng_state = 56;
    for (int k = 0; k < 4; k++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_outer(shapes[i][0], shapes[i][1], shapes[i][2], k & 1, k & 2);
        for (int i = 0; i < 12; i++) check_outer(any_of(1, 70), any_of(1, 140), any_of(1, 50), k & 1, k & 2);
    }
}

/* The net asks once, for its widest matrices and all tokens, and then makes smaller calls. */
static void test_scratch_is_monotone(void **state) {
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        if (!ops) continue;
        size_t most = ops->outer_scratch_bytes(600, 600, 300);
        for (int64_t rows = 1; rows <= 600; rows += 37)
            for (int64_t cols = 600; cols >= 1; cols -= 41)
                for (int64_t n_tok = 1; n_tok <= 300; n_tok += 23)
                    assert_true(ops->outer_scratch_bytes(rows, cols, n_tok) <= most);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transpose),     cmocka_unit_test(test_norm),
        cmocka_unit_test(test_silu),          cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_nan), cmocka_unit_test(test_loss),
        cmocka_unit_test(test_outer),         cmocka_unit_test(test_scratch_is_monotone)};
    return cmocka_run_group_tests_name("grad", tests, make_teams, drop_teams);
}
