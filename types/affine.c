/* The search is the one of search.c (see there for the algebra) for groups of any length: a guess of scale and zero is
 * worth what is left with the best scale for the codes that it rounds to. With the zero z fixed an asymmetric grid is a
 * scaled one whose levels go from -z to 2^b-1-z, so one search serves both kinds. Long groups go through in chunks. */
#include "types/affine.h"

#include <math.h>
#include <string.h>

#include "types/bits.h"

#define F16_MAX 65504.0f
#define X_MAX 268435456.0f /* 2^28: no grid reaches further */
#define X_MIN 1e-12f       /* far below half of the smallest f16 */
#define W_FLOOR 1e-6f      /* weights that do not matter still get sensible codes */
#define CHUNK 512
#define LONG_GROUP 512 /* from here on the tails are so long that more of them is clipped */

typedef float v4 __attribute__((vector_size(16)));

/* A group's weights in units of a power of two near the largest, CHUNK at a time. */
typedef struct group_search {
    const float *src, *importance;
    int64_t n, loaded; /* loaded: start of the chunk in x and w, -1: none */
    int len;           /* of the chunk, filled up with zeros to a multiple of 16 */
    float unit, w_inv;
    float x[CHUNK], w[CHUNK], q[CHUNK];
} group_search;

/* Scale (in units) and levels lo..hi of a grid, and the error that it leaves. */
typedef struct affine_guess {
    float error, scale, lo, hi;
} affine_guess;

static inline v4 v4_load(const float *p) {
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float v4_sum(v4 v) {
    return (v[0] + v[1]) + (v[2] + v[3]);
}

static void chunk_load(group_search *g, int64_t at) {
    if (g->loaded == at) return;
    int len = g->n - at < CHUNK ? (int)(g->n - at) : CHUNK;
    float inv = 1.0f / g->unit;
    for (int i = 0; i < len; i++) {
        float v = g->src[at + i];
        v = (f32_bits(v) & 0x7f800000u) == 0x7f800000u ? 0.0f : v;
        v = v > X_MAX ? X_MAX : v < -X_MAX ? -X_MAX : v;
        g->x[i] = v * inv;
    }
    for (int i = 0; i < len; i++) {
        float w = g->w_inv > 0.0f ? g->importance[at + i] * g->w_inv : 1.0f;
        g->w[i] = w > W_FLOOR && w <= 1.0f ? w : W_FLOOR; /* negative, NaN, infinite: as good as none */
    }
    for (g->len = len; g->len % 16; g->len++) g->x[g->len] = g->w[g->len] = 0.0f;
    g->loaded = at;
}

/* False if every weight is as good as zero. *lo, *hi: the ends of the weights' range, in units. */
static bool group_prepare(group_search *g, const float *x, const float *importance, int64_t n, float *lo, float *hi) {
    float x_max = 0.0f, w_max = 0.0f;
    *lo = *hi = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(x[i])) {
            if (x[i] < *lo) *lo = x[i];
            if (x[i] > *hi) *hi = x[i];
        }
        if (importance && isfinite(importance[i]) && importance[i] > w_max) w_max = importance[i];
    }
    x_max = -*lo > *hi ? -*lo : *hi;
    if (x_max < X_MIN) return false;
    if (x_max > X_MAX) x_max = X_MAX;
    g->src = x;
    g->importance = importance;
    g->n = n;
    g->loaded = -1;
    g->w_inv = w_max > 0.0f ? 1.0f / w_max : 0.0f;
    g->unit = f32_from_bits(f32_bits(x_max) & 0x7f800000u);
    *lo = (*lo < -X_MAX ? -X_MAX : *lo) / g->unit;
    *hi = (*hi > X_MAX ? X_MAX : *hi) / g->unit;
    return true;
}

/* scale (in units) as F16 holds it, back in units. */
static float stored(const group_search *g, float scale) {
    scale *= g->unit;
    scale = scale > F16_MAX ? F16_MAX : scale;
    return f16_to_f32(f32_to_f16(scale)) / g->unit;
}

/* Codes nearest on (scale, lo, hi), and sums with the rest r = x - scale q over the group. */
static void sums_of(group_search *g, float scale, float lo, float hi, float *qq_out, float *rq_out, float *rr_out) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves no bits after the point */
    float inv = scale > 0.0f ? 1.0f / scale : 0.0f;
    double qq = 0, rq = 0, rr = 0;
    for (int64_t at = 0; at < g->n; at += CHUNK) {
        chunk_load(g, at);
        v4 sqq = {0}, srq = {0}, srr = {0};
        for (int i = 0; i < g->len; i++) {
            float v = g->x[i] * inv;
            v = v > lo ? v : lo;
            v = v < hi ? v : hi;
            g->q[i] = (v + round) - round;
        }
        for (int i = 0; i < g->len; i += 4) {
            v4 q = v4_load(g->q + i), r = v4_load(g->x + i) - q * scale, w = v4_load(g->w + i), wr = w * r;
            sqq += w * q * q;
            srq += wr * q;
            srr += wr * r;
        }
        qq += v4_sum(sqq);
        rq += v4_sum(srq);
        rr += v4_sum(srr);
    }
    *qq_out = (float)qq;
    *rq_out = (float)rq;
    *rr_out = (float)rr;
}

/* Judges codes by what is left with their best scale. */
static void guess_try(group_search *g, float scale, float lo, float hi, affine_guess *best) {
    float qq, rq, rr;
    if (!(scale > 0.0f)) return;
    sums_of(g, scale, lo, hi, &qq, &rq, &rr);
    if (!(qq > 0.0f)) return;
    float better = scale + rq / qq, error = rr - rq * rq / qq;
    if (better > 0.0f && error < best->error) *best = (affine_guess){error, better, lo, hi};
}

/* Judges a scale as stored by its true error. */
static bool stored_try(group_search *g, float scale, float lo, float hi, affine_guess *best) {
    float qq, rq, rr;
    scale = stored(g, scale);
    if (!(scale > 0.0f)) return false;
    sums_of(g, scale, lo, hi, &qq, &rq, &rr);
    if (!(rr < best->error)) return false;
    *best = (affine_guess){rr, scale, lo, hi};
    return true;
}

/* A fan of scales from above the one that spans the weights down to one that clips their tails, for zero points next to
 * the one that follows from the range; symmetric grids have just the one. */
static void fan_search(group_search *g, int bits, bool sym, float x_lo, float x_hi, affine_guess *best) {
    float top = (float)((1 << bits) - 1), ratio = bits == 8 ? 1.004f : 1.08f;
    float clip = bits == 8 ? 1.03f : bits == 4 ? 1.9f : bits == 3 ? 2.3f : 3.0f;
    if (g->n >= LONG_GROUP) clip *= bits == 8 ? 1.02f : 1.7f;
    float half = 0.5f * (top + 1.0f), reach = sym ? half : top;
    float span = sym ? (-x_lo > x_hi ? -x_lo : x_hi) : x_hi - x_lo;
    float widest = sym ? half / (half - 1.0f) : 1.0f;
    int zero = sym ? (int)half : (int)(top * -x_lo / span + 0.5f);
    for (float scale = span / reach * widest * ratio; scale > span / reach / clip; scale /= ratio)
        for (int z = sym ? zero : zero - 1; z <= (sym ? zero : zero + 1); z++)
            if (z >= 0 && z <= (int)top) guess_try(g, scale, (float)-z, top - (float)z, best);
}

/* Around the best guess: scales between the fan's, zeros beside its own, then codes and scale in turns. */
static void refine(group_search *g, int bits, bool sym, affine_guess *best) {
    float turn = bits == 8 ? 1.002f : 1.04f;
    for (int k = 0; k < 2; k++, turn = sqrtf(turn)) {
        affine_guess centre = *best;
        guess_try(g, centre.scale * turn, centre.lo, centre.hi, best);
        guess_try(g, centre.scale / turn, centre.lo, centre.hi, best);
        for (int z = -1; z <= 1 && !sym; z += 2)
            if (centre.lo - (float)z <= 0.0f && centre.hi - (float)z >= 0.0f)
                guess_try(g, centre.scale, centre.lo - (float)z, centre.hi - (float)z, best);
    }
    for (int k = 0; k < 4; k++) {
        float before = best->error;
        guess_try(g, best->scale, best->lo, best->hi, best);
        if (best->error >= before) break;
    }
}

void affine_grid_set(llmq_grid *grid, float scale, int zero) {
    memset(grid, 0, sizeof *grid);
    scale = scale > F16_MAX ? F16_MAX : scale < -F16_MAX ? -F16_MAX : scale;
    grid->scale[0] = grid->d = f16_to_f32(f32_to_f16(scale));
    grid->offset[0] = zero ? -(grid->d * (float)zero) : 0.0f;
    grid->sc[0] = 1;
    grid->mn[0] = (uint8_t)zero;
}

static void fit_ragged(const llmq_type_info *t, const float *x, const float *importance, int64_t n, llmq_grid *grid) {
    group_search g;
    float lo, hi;
    bool sym = t->levels[0] < 0.0f;
    affine_grid_set(grid, 0.0f, 0);
    if (!group_prepare(&g, x, importance, n, &lo, &hi)) return;
    affine_guess want = {.error = INFINITY}, best = {.error = INFINITY};
    fan_search(&g, t->bits, sym, lo, hi, &want);
    if (!(want.scale > 0.0f)) return;
    refine(&g, t->bits, sym, &want);
    stored_try(&g, want.scale, want.lo, want.hi, &best);
    for (int k = 1; k <= (t->bits == 8 ? 4 : 1); k++) { /* the steps of f16 are wide where levels are many */
        float turn = 1.0f + (float)k / 1024.0f;
        stored_try(&g, want.scale * turn, want.lo, want.hi, &best);
        stored_try(&g, want.scale / turn, want.lo, want.hi, &best);
    }
    if (best.scale > 0.0f) affine_grid_set(grid, best.scale * g.unit, sym ? 0 : (int)-best.lo);
}

/* ---- the table ---- */

#define AFFINE(b, len, group, is_sym, kind)                                                                            \
    {                                                                                                                  \
        .id = LLMQ_TYPE_NONE, .name = "int" #b "-" group "-" kind, .bits = b, .block_len = len, .group_len = len,      \
        .ragged = true, .levels = BITS_RAMP(is_sym ? -(1 << (b - 1)) : 0), .n_levels = 1 << b, .uniform = true,        \
        .form = is_sym ? GRID_SCALE : GRID_ZERO, .fit_ragged = fit_ragged                                              \
    }
#define AFFINE_GROUPS(b, is_sym, kind)                                                                                 \
    AFFINE(b, 32, "g32", is_sym, kind), AFFINE(b, 64, "g64", is_sym, kind), AFFINE(b, 128, "g128", is_sym, kind),      \
        AFFINE(b, TYPE_WHOLE_ROW, "row", is_sym, kind)
#define AFFINE_BITS(b) AFFINE_GROUPS(b, true, "sym"), AFFINE_GROUPS(b, false, "asym")

static const llmq_type_info types[] = {AFFINE_BITS(2), AFFINE_BITS(3), AFFINE_BITS(4), AFFINE_BITS(8)};

const llmq_type_info *type_affine(int bits, int64_t group, bool sym) {
    if (group == -1) group = TYPE_WHOLE_ROW;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const llmq_type_info *t = &types[i];
        if (t->bits == bits && (t->levels[0] < 0.0f) == sym && t->block_len == group) return t;
    }
    return NULL;
}

bool type_is_affine(const llmq_type_info *t) {
    return t->fit_ragged == fit_ragged;
}
