/* Grid searches by weighted least squares.
 *
 * Scaled grids, value = s q. For fixed codes q the best scale is s = <xq> / <qq>, where <.> is the sum of w(.) over the
 * group, and the error left is <xx> - <xq>^2 / <qq>. So a guess of the scale is worth <xq>^2 / <qq> for the codes that
 * it rounds to: the search takes a fan of guesses of both signs (the levels are not symmetric), keeps the best, looks
 * closer around it, and alternates between codes and scale until nothing improves.
 *
 * Affine grids, value = s q + m. With <1>, <q>, <x> the centred sums var = <qq> - <q>^2 / <1> and
 * cov = <xq> - <q><x> / <1> give s = cov / var, m = (<x> - s <q>) / <1>, explained <x>^2 / <1> + cov^2 / var. The
 * guesses are pairs of ends of the range. Super-blocks store -m as a product of non-negative numbers: where m would be
 * positive it is 0 and the group is a scaled one.
 *
 * Super-blocks, value = d sc q - dmin mn. First every group by itself; then d and dmin from the largest group; then, in
 * turns, the best integers sc and mn near the wanted ones (by true error), and d, dmin again by least squares with all
 * codes and integers fixed.
 *
 * Whatever is kept at the end was judged by its true error with the numbers rounded as stored. Blocks are worked on
 * divided by a power of two near their largest weight, so that no sum over- or underflows.
 *
 * Most of the time goes into the sums of guesses, which are made for several of them at once (search_rests.c) where
 * levels are uniform. The grids are the same bits on every machine. */
#include "types/search.h"

#include <math.h>

#include "types/bits.h"
#include "types/search_rests.h"

#define F16_MAX 65504.0f
#define X_MAX 268435456.0f /* 2^28: no grid reaches further */
#define X_MIN 1e-12f       /* far below half of the smallest f16 */
#define W_FLOOR 1e-6f      /* weights that do not matter still get sensible codes */
#define GROUP_MIN 1e-9f    /* in units: a group this much smaller than its block is zero */
#define TABLE_LEVELS 16

typedef float v4 __attribute__((vector_size(16)));
typedef int16_t v8i __attribute__((vector_size(16)));

typedef struct block_search {
    const llmq_search *s;
    search_rests_fn *sum_rests;
    float lo, hi, reach;                                       /* first, last, largest magnitude of the levels */
    float fan_ratio;                                           /* from one guess of the fan to the next */
    v8i first, mid2[TABLE_LEVELS - 1], step[TABLE_LEVELS - 1]; /* tables: twice the midpoints; distances */
    float unit;                                                /* power of two; x is in units of it */
    float x[TYPE_MAX_BLOCK];                                   /* finite */
    float w[TYPE_MAX_BLOCK];                                   /* (0, 1] */
} block_search;

static inline v4 v4_load(const float *p) {
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float v4_sum(v4 v) {
    return (v[0] + v[1]) + (v[2] + v[3]);
}

/* q[i] = level of the table nearest to x[i] * inv + bias. Twice the midpoints are integers, so that v > mid is
 * ceil(2 v) > 2 mid, and 16-bit integers do for the comparisons. */
static void nearest_table(const block_search *b, const float *x, int n, float inv, float bias, float *q) {
    _Alignas(16) int16_t t[TYPE_MAX_BLOCK];
    float lo = 2.0f * b->lo, hi = 2.0f * b->hi;
    for (int i = 0; i < n; i++) {
        float v = 2.0f * (x[i] * inv + bias);
        v = v > lo ? v : lo;
        v = v < hi ? v : hi;
        t[i] = (int16_t)(512 - (int)(512.0f - v)); /* ceil, for v < 512 */
    }
    for (int i = 0; i < n; i += 16) {
        v8i va, vb, qa = b->first, qb = qa;
        memcpy(&va, t + i, sizeof va);
        memcpy(&vb, t + i + 8, sizeof vb);
        for (int k = 0; k < TABLE_LEVELS - 1; k++) {
            qa += (va > b->mid2[k]) & b->step[k];
            qb += (vb > b->mid2[k]) & b->step[k];
        }
        memcpy(t + i, &qa, sizeof qa);
        memcpy(t + i + 8, &qb, sizeof qb);
    }
    for (int i = 0; i < n; i++) q[i] = (float)t[i];
}

/* q[i] = level nearest to x[i] * inv + bias. n is a multiple of 16. */
static void nearest(const block_search *b, const float *x, int n, float inv, float bias, float *q) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves no bits after the point */
    float lo = b->lo, hi = b->hi;
    if (!b->s->uniform) {
        nearest_table(b, x, n, inv, bias, q);
        return;
    }
    for (int i = 0; i < n; i++) {
        float v = x[i] * inv + bias;
        v = v > lo ? v : lo;
        v = v < hi ? v : hi;
        q[i] = (v + round) - round;
    }
}

typedef struct moments {
    float q, qq, xq;
} moments;

static moments moments_of(const float *x, const float *w, const float *q, int n) {
    v4 sq = {0}, sqq = {0}, sxq = {0};
    for (int i = 0; i < n; i += 4) {
        v4 vq = v4_load(q + i), t = v4_load(w + i) * vq;
        sq += t;
        sqq += t * vq;
        sxq += t * v4_load(x + i);
    }
    return (moments){v4_sum(sq), v4_sum(sqq), v4_sum(sxq)};
}

/* The sums of guess k by itself. */
static void sum_table(const block_search *b, const float *x, const float *w, int n, search_guesses *g, int k) {
    float q[TYPE_MAX_BLOCK], scale = g->scale[k], offset = g->offset[k];
    v4 sq = {0}, sqq = {0}, sr = {0}, srq = {0}, srr = {0};
    nearest(b, x, n, g->inv[k], -offset * g->inv[k], q);
    for (int i = 0; i < n; i += 4) {
        v4 vq = v4_load(q + i), vw = v4_load(w + i);
        v4 r = v4_load(x + i) - vq * scale - offset, wq = vw * vq, wr = vw * r;
        sq += wq;
        sqq += wq * vq;
        sr += wr;
        srq += wr * vq;
        srr += wr * r;
    }
    g->rests[k] = (search_rests){v4_sum(sq), v4_sum(sqq), v4_sum(sr), v4_sum(srq), v4_sum(srr)};
}

/* sum w (x - scale q - offset)^2 with the nearest levels, which it leaves in q. */
static float residual(const block_search *b, const float *x, const float *w, int n, float scale, float offset,
                      float *q) {
    float inv = scale != 0.0f ? 1.0f / scale : 0.0f;
    nearest(b, x, n, inv, -offset * inv, q);
    v4 sum = {0};
    for (int i = 0; i < n; i += 4) {
        v4 e = v4_load(x + i) - v4_load(q + i) * scale - offset;
        sum += v4_load(w + i) * e * e;
    }
    return v4_sum(sum);
}

static inline v8i v8i_splat(int x) {
    int16_t h = (int16_t)x;
    return (v8i){h, h, h, h, h, h, h, h};
}

static void levels_prepare(block_search *b) {
    const float *levels = b->s->levels;
    int n = b->s->n_levels;
    b->lo = levels[0];
    b->hi = levels[n - 1];
    b->reach = -b->lo > b->hi ? -b->lo : b->hi;
    if (b->s->uniform) return;
    b->first = v8i_splat((int)levels[0]);
    for (int k = 0; k < TABLE_LEVELS - 1; k++) {
        b->mid2[k] = v8i_splat((int)(levels[k] + levels[k + 1]));
        b->step[k] = v8i_splat((int)(levels[k + 1] - levels[k]));
    }
}

/* Fills b; false if every weight is as good as zero. */
static bool block_prepare(block_search *b, const llmq_search *s, const float *x, const float *importance, int n) {
    float x_max = 0.0f, w_max = 0.0f;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (isfinite(a) && a > x_max) x_max = a;
        if (importance && isfinite(importance[i]) && importance[i] > w_max) w_max = importance[i];
    }
    if (x_max < X_MIN) return false;
    if (x_max > X_MAX) x_max = X_MAX;
    b->s = s;
    b->sum_rests = search_rests_best();
    b->fan_ratio = powf(s->fan_to / s->fan_from, 1.0f / (float)(s->n_fan - 1));
    levels_prepare(b);
    b->unit = f32_from_bits(f32_bits(x_max) & 0x7f800000u);
    float inv = 1.0f / b->unit;
    for (int i = 0; i < n; i++) {
        float v = isfinite(x[i]) ? x[i] : 0.0f;
        v = v > X_MAX ? X_MAX : v < -X_MAX ? -X_MAX : v;
        b->x[i] = v * inv;
        float w = w_max > 0.0f ? importance[i] / w_max : 1.0f;
        b->w[i] = w > W_FLOOR && w <= 1.0f ? w : W_FLOOR; /* negative, NaN, infinite: as good as none */
    }
    return true;
}

/* v (in units) as the block stores it, back in units. */
static float stored(const block_search *b, float v) {
    v *= b->unit;
    v = v > F16_MAX ? F16_MAX : v < -F16_MAX ? -F16_MAX : v;
    return f16_to_f32(f32_to_f16(v)) / b->unit;
}

static void grid_zero(llmq_grid *grid) {
    memset(grid, 0, sizeof *grid);
}

/* ---- one scaled group ---- */

typedef struct guess {
    float error, scale; /* of the codes: what is left with their best scale */
    float inv;          /* the guess that gave the codes */
} guess;

/* A group's weights and their importances, and both as several guesses are summed at once. */
typedef struct group_data {
    const float *x, *w;
    int n;
    float xs[SEARCH_GUESSES * TYPE_MAX_BLOCK], ws[SEARCH_GUESSES * TYPE_MAX_BLOCK]; /* uniform levels only */
} group_data;

static void group_prepare(const block_search *b, const float *x, const float *w, int n, group_data *group) {
    group->x = x;
    group->w = w;
    group->n = n;
    if (!b->s->uniform) return;
    search_repeat(x, n, group->xs);
    search_repeat(w, n, group->ws);
}

/* The sums of the first n guesses. Levels from a table are found faster for one guess at a time. */
static void sum_guesses(const block_search *b, const group_data *group, bool offsets, int n, search_guesses *g) {
    if (b->s->uniform)
        b->sum_rests(b->s, offsets, group->xs, group->ws, group->n, g);
    else
        for (int k = 0; k < n; k++) sum_table(b, group->x, group->w, group->n, g, k);
}

/* The guesses inv[n] in their order; n is at most SEARCH_GUESSES. */
static void guess_try(const block_search *b, const group_data *group, const float *inv, int n, guess *best) {
    search_guesses g = {0};
    for (int k = 0; k < n; k++) {
        g.inv[k] = inv[k];
        g.scale[k] = 1.0f / inv[k];
    }
    sum_guesses(b, group, false, n, &g);
    for (int k = 0; k < n; k++) {
        search_rests m = g.rests[k];
        if (!(m.qq > 0.0f)) continue;
        float error = m.rr - m.rq * m.rq / m.qq;
        if (error < best->error) *best = (guess){error, g.scale[k] + m.rq / m.qq, g.inv[k]};
    }
}

/* Best scale of a group, not rounded; 0 for a group of zeros. */
static float scale_search(const block_search *b, const float *x, const float *w, int n) {
    float amax = 0.0f;
    for (int i = 0; i < n; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    if (amax < GROUP_MIN) return 0.0f;
    guess best = {.error = INFINITY};
    group_data group;
    group_prepare(b, x, w, n, &group);
    float inv = b->s->fan_from * b->reach / amax;
    bool symmetric = b->s->uniform && b->lo == -b->hi;
    float fan[SEARCH_GUESSES];
    int n_tries = 0;
    for (int k = 0; k < b->s->n_fan; k++, inv *= b->fan_ratio) {
        fan[n_tries++] = inv;
        if (!symmetric) fan[n_tries++] = -inv;
        if (n_tries + 1 < SEARCH_GUESSES && k + 1 < b->s->n_fan) continue;
        guess_try(b, &group, fan, n_tries, &best);
        n_tries = 0;
    }
    for (int k = 1; k < 3; k++) {
        float turn = 1.0f + (b->fan_ratio - 1.0f) / (float)(1 << k);
        guess_try(b, &group, (float[]){best.inv * turn, best.inv / turn}, 2, &best);
    }
    for (int k = 0; k < 4 && best.scale != 0.0f; k++) {
        float before = best.error;
        guess_try(b, &group, (float[]){1.0f / best.scale}, 1, &best);
        if (best.error >= before) break;
    }
    return best.scale;
}

/* Judges the stored scale d by its true error. */
static bool scale_judge(const block_search *b, float d, float *best_d, float *best_error, float *q) {
    float error = residual(b, b->x, b->w, QK, d, 0.0f, q);
    if (!(error < *best_error)) return false;
    *best_error = error;
    *best_d = d;
    return true;
}

void search_fit_scaled(const llmq_search *s, const float *x, const float *importance, llmq_grid *grid) {
    block_search b;
    float q[QK], best_d = 0.0f, best_error = INFINITY;
    grid_zero(grid);
    if (!block_prepare(&b, s, x, importance, QK)) return;
    float want = scale_search(&b, b.x, b.w, QK);
    for (int k = 0; k < 3; k++) {
        if (!scale_judge(&b, stored(&b, want), &best_d, &best_error, q)) break;
        moments m = moments_of(b.x, b.w, q, QK);
        if (!(m.qq > 0.0f)) break;
        want = m.xq / m.qq;
    }
    /* With many levels the steps of f16 are as wide as the dips of the error: look at the neighbours. */
    float centre = best_d;
    for (int k = 1; k <= s->n_levels / 32; k++) {
        float turn = (float)k / 1024.0f;
        scale_judge(&b, stored(&b, centre + centre * turn), &best_d, &best_error, q);
        scale_judge(&b, stored(&b, centre - centre * turn), &best_d, &best_error, q);
    }
    grid_single(grid, best_d * b.unit, 0.0f);
}

/* ---- one affine group ---- */

typedef struct affine {
    float error, scale, offset; /* of the codes: what is left with their best scale and offset */
    float lo, hi;               /* the guess that gave the codes: values of the first and last level */
} affine;

typedef struct affine_group {
    group_data data;
    float sum_w;
    bool below_zero; /* the offset must not be positive */
} affine_group;

/* Guesses wait until there are as many as are summed at once. */
typedef struct affine_queue {
    const block_search *b;
    const affine_group *g;
    affine *best;
    int n;
    float hi[SEARCH_GUESSES];
    search_guesses guesses;
} affine_queue;

static void affine_judge(const affine_group *g, const search_rests *m, float scale, float lo, float hi, affine *best) {
    float var = m->qq - m->q * m->q / g->sum_w, cov = m->rq - m->q * m->r / g->sum_w;
    if (!(var > 0.0f)) return;
    affine a = {.scale = scale + cov / var, .lo = lo, .hi = hi};
    a.offset = lo + (m->r - (a.scale - scale) * m->q) / g->sum_w;
    a.error = m->rr - m->r * m->r / g->sum_w - cov * cov / var;
    if (g->below_zero && a.offset > 0.0f) { /* the best with offset 0, whose rest is r + lo */
        float rr = m->rr + 2.0f * lo * m->r + lo * lo * g->sum_w, rq = m->rq + lo * m->q;
        a.scale = scale + rq / m->qq;
        a.offset = 0.0f;
        a.error = rr - rq * rq / m->qq;
    }
    if (a.error < best->error && a.scale > 0.0f) *best = a;
}

static void affine_flush(affine_queue *u) {
    search_guesses *s = &u->guesses;
    if (u->n) sum_guesses(u->b, &u->g->data, true, u->n, s);
    for (int k = 0; k < u->n; k++) affine_judge(u->g, &s->rests[k], s->scale[k], s->offset[k], u->hi[k], u->best);
    u->n = 0;
}

static void affine_try(affine_queue *u, float lo, float hi) {
    float scale = (hi - lo) / (u->b->hi - u->b->lo);
    if (!(scale > 0.0f)) return;
    u->guesses.scale[u->n] = scale;
    u->guesses.inv[u->n] = 1.0f / scale;
    u->guesses.offset[u->n] = lo;
    u->hi[u->n++] = hi;
    if (u->n == SEARCH_GUESSES) affine_flush(u);
}

/* From the best guess so far: move either end by parts of a level, ever smaller ones; then codes and grid in turns. */
static void affine_refine(affine_queue *u) {
    affine *best = u->best;
    float span = u->b->hi - u->b->lo;
    for (float part = 1.0f; part > 0.2f; part *= 0.5f) {
        float lo = best->lo, hi = best->hi, h = part * (hi - lo) / span;
        for (int i = -1; i <= 1; i++)
            for (int j = -1; j <= 1; j++)
                if (i || j) affine_try(u, lo + (float)i * h, hi + (float)j * h);
        affine_flush(u);
    }
    for (int k = 0; k < 4; k++) {
        float before = best->error;
        affine_try(u, best->offset, best->offset + best->scale * span);
        affine_flush(u);
        if (best->error >= before) break;
    }
}

/* Best scale and offset of a group, not rounded. */
static affine affine_search(const block_search *b, const float *x, const float *w, int n, bool below_zero) {
    affine_group g;
    g.sum_w = 0.0f;
    g.below_zero = below_zero;
    group_prepare(b, x, w, n, &g.data);
    float lo = x[0], hi = x[0], sum_x = 0.0f;
    for (int i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        g.sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (below_zero && lo > 0.0f) lo = 0.0f;
    float mean = sum_x / g.sum_w;
    affine best = {.error = INFINITY, .offset = below_zero && mean > 0.0f ? 0.0f : mean};
    if (hi - lo < GROUP_MIN) return best;
    affine_queue queue = {.b = b, .g = &g, .best = &best};
    float centre = 0.5f * (lo + hi), half = 0.5f * (hi - lo), low = half / b->s->fan_from;
    for (int i = 0; i < b->s->n_fan; i++, low /= b->fan_ratio) {
        float high = half / b->s->fan_from;
        for (int j = 0; j < b->s->n_fan; j++, high /= b->fan_ratio) affine_try(&queue, centre - low, centre + high);
    }
    affine_flush(&queue);
    if (best.scale > 0.0f) affine_refine(&queue);
    return best;
}

void search_fit_affine(const llmq_search *s, const float *x, const float *importance, llmq_grid *grid) {
    block_search b;
    float q[QK], best_d = 0.0f, best_m = 0.0f, best_error = INFINITY, sum_w = 0.0f, sum_x = 0.0f;
    grid_zero(grid);
    if (!block_prepare(&b, s, x, importance, QK)) return;
    affine want = affine_search(&b, b.x, b.w, QK, false);
    for (int i = 0; i < QK; i++) {
        sum_w += b.w[i];
        sum_x += b.w[i] * b.x[i];
    }
    for (int k = 0; k < 4; k++) {
        float d = stored(&b, want.scale), m = stored(&b, want.offset);
        float error = residual(&b, b.x, b.w, QK, d, m, q);
        if (!(error < best_error)) break;
        best_error = error;
        best_d = d;
        best_m = m;
        moments p = moments_of(b.x, b.w, q, QK);
        float var = p.qq - p.q * p.q / sum_w;
        if (k > 0 && var > 0.0f) want.scale = (p.xq - p.q * sum_x / sum_w) / var;
        want.offset = (sum_x - stored(&b, want.scale) * p.q) / sum_w;
    }
    grid_single(grid, best_d * b.unit, best_m * b.unit);
}

/* ---- super-blocks ---- */

static int clamp_int(float v, int lo, int hi) {
    if (!(v > (float)lo)) return lo;
    return v < (float)hi ? (int)lrintf(v) : hi;
}

/* A super-block's numbers, and the sums from which its d (and dmin) are fitted anew. */
typedef struct super {
    float d, dmin, error;
    int8_t sc[TYPE_MAX_GROUPS];
    uint8_t mn[TYPE_MAX_GROUPS];
    double aa, ab, bb, xa, xb; /* a = sc q, b = -mn */
} super;

static void super_keep(const super *best, const block_search *b, int n_groups, bool has_min, llmq_grid *grid) {
    grid->d = best->d * b->unit;
    grid->dmin = has_min ? best->dmin * b->unit : 0.0f;
    memcpy(grid->sc, best->sc, sizeof grid->sc);
    memcpy(grid->mn, best->mn, sizeof grid->mn);
    grid_expand(grid, n_groups, has_min);
}

/* The best integer scales for d. */
static void super_scaled_choose(const block_search *b, int n_groups, const float *want, float d, super *out) {
    int len = TYPE_MAX_BLOCK / n_groups;
    float q[TYPE_MAX_BLOCK];
    *out = (super){.d = d};
    for (int g = 0; g < n_groups; g++) {
        const float *x = b->x + g * len, *w = b->w + g * len;
        int first = clamp_int(want[g] / d, b->s->sc_min, b->s->sc_max);
        float best = INFINITY;
        moments m = {0};
        for (int sc = first - 1; sc <= first + 1; sc++) {
            if (sc < b->s->sc_min || sc > b->s->sc_max) continue;
            float error = residual(b, x, w, len, d * (float)sc, 0.0f, q);
            if (!(error < best)) continue;
            best = error;
            out->sc[g] = (int8_t)sc;
            m = moments_of(x, w, q, len);
        }
        float sc = out->sc[g];
        out->error += best;
        out->aa += sc * sc * m.qq;
        out->xa += sc * m.xq;
    }
}

void search_fit_super_scaled(const llmq_search *s, int n_groups, const float *x, const float *importance,
                             llmq_grid *grid) {
    block_search b;
    float want[TYPE_MAX_GROUPS], largest = 0.0f;
    int len = TYPE_MAX_BLOCK / n_groups;
    grid_zero(grid);
    if (!block_prepare(&b, s, x, importance, TYPE_MAX_BLOCK)) return;
    for (int g = 0; g < n_groups; g++) {
        want[g] = scale_search(&b, b.x + g * len, b.w + g * len, len);
        if (fabsf(want[g]) > fabsf(largest)) largest = want[g];
    }
    super best = {.error = INFINITY};
    int n_starts = s->sc_max < 64 ? 3 : 1;
    for (int start = 0; start < n_starts; start++) {
        float d = stored(&b, largest / (float)(s->sc_min + start));
        for (int k = 0; k < 3 && d != 0.0f; k++) {
            super t;
            super_scaled_choose(&b, n_groups, want, d, &t);
            bool better = t.error < best.error;
            if (better) best = t;
            if (!(t.aa > 0.0)) break;
            float next = stored(&b, (float)(t.xa / t.aa));
            if (next == d || (k > 0 && !better)) break;
            d = next;
        }
    }
    if (isfinite(best.error)) super_keep(&best, &b, n_groups, false, grid);
}

/* Tries scale integer sc for a group: its codes with the minimum so far, the minimum that suits them, then the truth.
 */
static float super_affine_try(const block_search *b, const float *x, const float *w, int len, float sum_w, float sum_x,
                              float scale, float offset, float dmin, int *mn_out, float *q) {
    float inv = scale != 0.0f ? 1.0f / scale : 0.0f, sum_q = 0.0f;
    nearest(b, x, len, inv, -offset * inv, q);
    for (int i = 0; i < len; i++) sum_q += w[i] * q[i];
    float m = (scale * sum_q - sum_x) / sum_w;
    *mn_out = dmin > 0.0f ? clamp_int(m / dmin, 0, b->s->sc_max) : 0;
    return residual(b, x, w, len, scale, -dmin * (float)*mn_out, q);
}

static void super_affine_choose(const block_search *b, int n_groups, const affine *want, float d, float dmin,
                                super *out) {
    int len = TYPE_MAX_BLOCK / n_groups;
    float q[TYPE_MAX_BLOCK];
    *out = (super){.d = d, .dmin = dmin};
    for (int g = 0; g < n_groups; g++) {
        const float *x = b->x + g * len, *w = b->w + g * len;
        float sum_w = 0.0f, sum_x = 0.0f, best = INFINITY;
        for (int i = 0; i < len; i++) {
            sum_w += w[i];
            sum_x += w[i] * x[i];
        }
        int first = d > 0.0f ? clamp_int(want[g].scale / d, 0, b->s->sc_max) : 0;
        moments m = {0};
        for (int sc = first - 1; sc <= first + 1; sc++) {
            if (sc < 0 || sc > b->s->sc_max) continue;
            int mn;
            float error = super_affine_try(b, x, w, len, sum_w, sum_x, d * (float)sc, want[g].offset, dmin, &mn, q);
            if (!(error < best)) continue;
            best = error;
            out->sc[g] = (int8_t)sc;
            out->mn[g] = (uint8_t)mn;
            m = moments_of(x, w, q, len);
        }
        float sc = out->sc[g], mn = out->mn[g];
        out->error += best;
        out->aa += sc * sc * m.qq;
        out->ab -= sc * mn * m.q;
        out->bb += mn * mn * sum_w;
        out->xa += sc * m.xq;
        out->xb -= mn * sum_x;
    }
}

/* d and dmin by least squares from the sums of t; false if nothing new comes out. */
static bool super_affine_refit(const block_search *b, const super *t, float *d, float *dmin) {
    double det = t->aa * t->bb - t->ab * t->ab, new_d = *d, new_dmin = *dmin;
    if (det > 1e-9 * t->aa * t->bb) {
        new_d = (t->xa * t->bb - t->xb * t->ab) / det;
        new_dmin = (t->xb * t->aa - t->xa * t->ab) / det;
    } else if (t->aa > 0.0) {
        new_d = t->xa / t->aa;
    }
    if (!(new_d > 0.0) || !(new_dmin >= 0.0)) return false;
    float d2 = stored(b, (float)new_d), dmin2 = stored(b, (float)new_dmin);
    if (d2 == *d && dmin2 == *dmin) return false;
    *d = d2;
    *dmin = dmin2;
    return true;
}

void search_fit_super_affine(const llmq_search *s, int n_groups, const float *x, const float *importance,
                             llmq_grid *grid) {
    block_search b;
    affine want[TYPE_MAX_GROUPS];
    float max_scale = 0.0f, max_min = 0.0f;
    int len = TYPE_MAX_BLOCK / n_groups;
    grid_zero(grid);
    if (!block_prepare(&b, s, x, importance, TYPE_MAX_BLOCK)) return;
    for (int g = 0; g < n_groups; g++) {
        want[g] = affine_search(&b, b.x + g * len, b.w + g * len, len, true);
        if (want[g].scale > max_scale) max_scale = want[g].scale;
        if (-want[g].offset > max_min) max_min = -want[g].offset;
    }
    super best = {.error = INFINITY};
    int n_starts = s->sc_max < 63 ? 3 : 1;
    for (int start = 0; start < n_starts; start++) {
        float d = stored(&b, max_scale / (float)(s->sc_max - start)), dmin = stored(&b, max_min / (float)s->sc_max);
        for (int k = 0; k < 3; k++) {
            super t;
            super_affine_choose(&b, n_groups, want, d, dmin, &t);
            bool better = t.error < best.error;
            if (better) best = t;
            if ((k > 0 && !better) || !super_affine_refit(&b, &t, &d, &dmin)) break;
        }
    }
    if (isfinite(best.error)) super_keep(&best, &b, n_groups, true, grid);
}
