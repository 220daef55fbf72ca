/* The body of refine_block (core/backend.h), written once with vector types and compiled for each ISA by
 * cpu/refine_*.c, which define REFINE_FN and LANES first. Derivations: docs/quantization.md.
 *
 * Everything is a step along a direction: x is added to a row's values of this block (zero elsewhere), which changes
 * e H e' by 2 x g' + x h x' and g by x h. A code's direction is one column; a scale's are the levels of its group. */
#include <string.h>

#include "cpu/lanes.h"

#define PANEL 8

static inline lanes_f *at(float *matrix, int64_t lanes, int64_t k, int64_t lane) {
    return (lanes_f *)(matrix + k * lanes + lane);
}

/* y[i] = sum over k in [k0, k0 + n) of h[i][k] * x[k - k0], for all rows i of the block. */
static void product(const llmq_refine_block *b, int64_t k0, int64_t n, lanes_f *x, lanes_f *y) {
    int64_t i = 0, ld = b->n;
    for (; i + PANEL <= b->n; i += PANEL) {
        const float *h = b->h + i * ld + k0;
        lanes_f s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0};
        for (int64_t k = 0; k < n; k++) {
            lanes_f v = x[k];
            s0 += v * h[k];
            s1 += v * h[ld + k];
            s2 += v * h[2 * ld + k];
            s3 += v * h[3 * ld + k];
            s4 += v * h[4 * ld + k];
            s5 += v * h[5 * ld + k];
            s6 += v * h[6 * ld + k];
            s7 += v * h[7 * ld + k];
        }
        y[i] = s0, y[i + 1] = s1, y[i + 2] = s2, y[i + 3] = s3;
        y[i + 4] = s4, y[i + 5] = s5, y[i + 6] = s6, y[i + 7] = s7;
    }
    for (; i < b->n; i++) {
        y[i] = (lanes_f){0};
        for (int64_t k = 0; k < n; k++) y[i] += x[k] * b->h[i * ld + k0 + k];
    }
}

/* ---- codes ---- */

static inline void sweep_column(const llmq_refine_block *b, int64_t k, lanes_f scale, lanes_f inv, int64_t lane) {
    int64_t lanes = b->lanes;
    float hkk = b->h[k * b->n + k];
    if (!(hkk > 0)) return;
    lanes_f *level = at(b->level, lanes, k, lane), *e = at(b->e, lanes, k, lane), g = *at(b->g, lanes, k, lane);
    lanes_i code;
    lanes_f to = lanes_nearest(b->levels, b->n_levels, b->uniform, *level - g * (1.0f / hkk) * inv, &code);
    lanes_f step = scale * (to - *level), change = step * (2.0f * g + step * hkk);
    lanes_i better = change < 0.0f;
    if (!lanes_any(better)) return;
    step = PICK(better, step, SPLAT(0.0f));
    *level = PICK(better, to, *level);
    *e += step;
    *at(b->gain, lanes, 0, lane) -= PICK(better, change, SPLAT(0.0f));
    const float *h = b->h + k * b->n;
    for (int64_t i = 0; i < b->n; i++) *at(b->g, lanes, i, lane) += step * h[i];
}

static void sweep_group(const llmq_refine_block *b, int64_t group, int64_t k0, int64_t n, int64_t lane) {
    lanes_f scale = *at(b->scale, b->lanes, group, lane);
    lanes_f inv = PICK(scale == 0.0f, SPLAT(0.0f), 1.0f / scale);
    for (int64_t k = k0; k < k0 + n; k++) sweep_column(b, k, scale, inv, lane);
}

/* ---- grids ---- */

/* Two directions x and y (scale and offset; d and dmin): what a step s x + t y changes is
 * 2 (s p + t q) + s s xx + 2 s t xy + t t yy. With one direction q, xy and yy are 0. */
typedef struct plane {
    lanes_f p, q, xx, xy, yy;
} plane;

static inline lanes_f plane_change(const plane *v, lanes_f s, lanes_f t) {
    return 2.0f * (s * v->p + t * v->q) + s * (s * v->xx + 2.0f * t * v->xy) + t * t * v->yy;
}

/* The best s with the t that suits it; the best t for a given s. 0 where a direction is none. */
static inline lanes_f plane_best_s(const plane *v) {
    lanes_f det = v->xx * v->yy - v->xy * v->xy;
    lanes_i both = det > 1e-5f * v->xx * v->yy;
    lanes_f top = PICK(both, v->xy * v->q - v->yy * v->p, -v->p), bottom = PICK(both, det, v->xx);
    return PICK(bottom > 0.0f, top / bottom, SPLAT(0.0f));
}

static inline lanes_f plane_best_t(const plane *v, lanes_f s) {
    return PICK(v->yy > 0.0f, -(v->q + s * v->xy) / v->yy, SPLAT(0.0f));
}

/* The best step found, with the integers that it comes from. */
typedef struct grid_step {
    lanes_f change, scale, offset, sc, mn;
} grid_step;

static inline void grid_try(const plane *v, lanes_i allowed, lanes_f scale0, lanes_f offset0, grid_step a,
                            grid_step *best) {
    a.change = plane_change(v, a.scale - scale0, a.offset - offset0);
    lanes_i better = (a.change < best->change) & allowed;
    best->change = PICK(better, a.change, best->change);
    best->scale = PICK(better, a.scale, best->scale);
    best->offset = PICK(better, a.offset, best->offset);
    best->sc = PICK(better, a.sc, best->sc);
    best->mn = PICK(better, a.mn, best->mn);
}

static inline lanes_f clamp(lanes_f x, float lo, float hi) {
    x = PICK(x > lo, x, SPLAT(lo)); /* a NaN too */
    return PICK(x < hi, x, SPLAT(hi));
}

/* The integer zero of GRID_ZERO, else 0. */
static inline lanes_f grid_zero(const llmq_refine_block *b, lanes_f scale, lanes_f offset) {
    lanes_f zero = {0};
    if (b->form == GRID_ZERO) zero = PICK(scale == 0.0f, zero, lanes_round(-offset / scale));
    return zero;
}

/* Scale and offset as f16. A scale never changes its sign: not every reader of a format takes negative ones. */
static inline void refit_f16(const llmq_refine_block *b, const plane *v, grid_step now, grid_step *best) {
    bool affine = b->form == GRID_AFFINE;
    lanes_f zero = grid_zero(b, now.scale, now.offset);
    for (int i = 0; i < 1 + affine; i++) {
        grid_step a = now;
        if (i == 0) a.scale = lanes_f16(now.scale + plane_best_s(v));
        if (affine) a.offset = lanes_f16(now.offset + plane_best_t(v, a.scale - now.scale));
        if (b->form == GRID_ZERO) a.offset = -(a.scale * zero);
        lanes_i allowed = a.scale * now.scale > 0.0f;
        if (b->form == GRID_ZERO) { /* its offset is no direction of its own */
            a.change = plane_change(v, a.scale - now.scale, SPLAT(0.0f));
            lanes_i better = (a.change < best->change) & allowed;
            best->change = PICK(better, a.change, best->change);
            best->scale = PICK(better, a.scale, best->scale);
            best->offset = PICK(better, a.offset, best->offset);
        } else {
            grid_try(v, allowed, now.scale, now.offset, a, best);
        }
    }
}

/* Scale and offset as multiples of d and dmin: the integers on both sides of the best scale, each with its offset. */
static inline void refit_integers(const llmq_refine_block *b, const plane *v, int64_t lane, grid_step now,
                                  grid_step *best) {
    lanes_f d = *at(b->d, b->lanes, 0, lane), dmin = *at(b->dmin, b->lanes, 0, lane);
    float max = (float)b->sc_max;
    lanes_f want = clamp((now.scale + plane_best_s(v)) / d, (float)b->sc_min - 1.0f, max + 1.0f);
    lanes_f below = lanes_round(want);
    below = PICK(below > want, below - 1.0f, below);
    for (int i = 0; i < 2; i++) {
        grid_step a = now;
        a.sc = clamp(below + (float)i, (float)b->sc_min, max);
        a.scale = d * a.sc;
        if (b->form == GRID_SUPER_AFFINE) {
            lanes_f mn = -(now.offset + plane_best_t(v, a.scale - now.scale)) / dmin;
            a.mn = lanes_round(clamp(mn, 0.0f, max));
            a.offset = -(dmin * a.mn);
        }
        grid_try(v, (lanes_i){0} - 1, now.scale, now.offset, a, best);
    }
}

static void refit_group(const llmq_refine_block *b, int64_t group, int64_t k0, int64_t n, int64_t lane) {
    int64_t lanes = b->lanes;
    bool offsets = b->form == GRID_AFFINE || b->form == GRID_SUPER_AFFINE;
    bool super = b->form == GRID_SUPER || b->form == GRID_SUPER_AFFINE;
    lanes_f x[REFINE_MAX], y[REFINE_MAX];
    lanes_f *scale = at(b->scale, lanes, group, lane), *offset = at(b->offset, lanes, group, lane);
    lanes_f shift = grid_zero(b, *scale, *offset);
    const float *ones = b->ones + group * b->n;
    plane v = {0};
    for (int64_t k = 0; k < n; k++) x[k] = *at(b->level, lanes, k0 + k, lane) - shift;
    product(b, k0, n, x, y);
    for (int64_t k = 0; k < n; k++) {
        lanes_f g = *at(b->g, lanes, k0 + k, lane);
        v.p += x[k] * g;
        v.xx += x[k] * y[k0 + k];
        if (!offsets) continue;
        v.q += g;
        v.xy += x[k] * ones[k0 + k];
        v.yy += ones[k0 + k];
    }
    grid_step now = {.scale = *scale, .offset = *offset};
    if (super) now.sc = *at(b->sc, lanes, group, lane), now.mn = *at(b->mn, lanes, group, lane);
    grid_step best = now;
    if (super)
        refit_integers(b, &v, lane, now, &best);
    else
        refit_f16(b, &v, now, &best);
    if (!lanes_any(best.change < 0.0f)) return;
    lanes_f s = best.scale - now.scale, t = {0};
    if (offsets) t = best.offset - now.offset;
    *scale = best.scale, *offset = best.offset;
    if (super) *at(b->sc, lanes, group, lane) = best.sc, *at(b->mn, lanes, group, lane) = best.mn;
    *at(b->gain, lanes, 0, lane) -= best.change;
    for (int64_t k = 0; k < n; k++) *at(b->e, lanes, k0 + k, lane) += s * x[k] + t;
    for (int64_t i = 0; i < b->n; i++) *at(b->g, lanes, i, lane) += s * y[i] + t * ones[i];
}

/* d and dmin of a super-block, with codes, sc and mn as they are. */
static void refit_super(const llmq_refine_block *b, int64_t lane) {
    int64_t lanes = b->lanes, n = b->n;
    bool offsets = b->form == GRID_SUPER_AFFINE;
    lanes_f x[REFINE_MAX], y[REFINE_MAX], z[REFINE_MAX], w[REFINE_MAX];
    lanes_f *d = at(b->d, lanes, 0, lane), *dmin = at(b->dmin, lanes, 0, lane);
    plane v = {0};
    for (int64_t k = 0; k < n; k++) {
        x[k] = *at(b->sc, lanes, k / b->group_len, lane) * *at(b->level, lanes, k, lane);
        z[k] = -*at(b->mn, lanes, k / b->group_len, lane);
    }
    product(b, 0, n, x, y);
    if (offsets)
        product(b, 0, n, z, w);
    else
        memset(w, 0, sizeof w);
    for (int64_t k = 0; k < n; k++) {
        lanes_f g = *at(b->g, lanes, k, lane);
        v.p += x[k] * g;
        v.xx += x[k] * y[k];
        if (!offsets) continue;
        v.q += z[k] * g;
        v.xy += z[k] * y[k];
        v.yy += z[k] * w[k];
    }
    grid_step now = {.scale = *d, .offset = *dmin}, best = now, a = now;
    for (int i = 0; i < 1 + offsets; i++) {
        if (i == 0) a.scale = lanes_f16(now.scale + plane_best_s(&v));
        if (offsets) a.offset = lanes_f16(now.offset + plane_best_t(&v, a.scale - now.scale));
        grid_try(&v, (a.scale * now.scale > 0.0f) & (a.offset >= 0.0f), now.scale, now.offset, a, &best);
        a = now;
    }
    if (!lanes_any(best.change < 0.0f)) return;
    lanes_f s = best.scale - now.scale, t = best.offset - now.offset;
    *d = best.scale, *dmin = best.offset;
    *at(b->gain, lanes, 0, lane) -= best.change;
    for (int64_t group = 0; group * b->group_len < n; group++) {
        *at(b->scale, lanes, group, lane) = *d * *at(b->sc, lanes, group, lane);
        if (offsets) *at(b->offset, lanes, group, lane) = -(*dmin * *at(b->mn, lanes, group, lane));
    }
    for (int64_t k = 0; k < n; k++) {
        *at(b->e, lanes, k, lane) += s * x[k] + t * z[k];
        *at(b->g, lanes, k, lane) += s * y[k] + t * w[k];
    }
}

void REFINE_FN(const llmq_refine_block *b) {
    bool super = b->form == GRID_SUPER || b->form == GRID_SUPER_AFFINE, refit = b->refit && b->form != GRID_FIXED;
    for (int64_t lane = 0; lane < b->lanes; lane += LANES) {
        for (int64_t group = 0; group * b->group_len < b->n; group++) {
            int64_t k0 = group * b->group_len, n = b->n - k0 < b->group_len ? b->n - k0 : b->group_len;
            if (refit) refit_group(b, group, k0, n, lane);
            if (b->sweep) sweep_group(b, group, k0, n, lane);
        }
        if (refit && super) refit_super(b, lane);
    }
}
