/* A histogram whose bins are a power of two wide and begin at multiples of that, so that twice the width is pairs of
 * bins added up and nothing is smeared; and the searches for a range in it. */
#include <math.h>
#include <string.h>

#include "affine/affine.h"
#include "core/backend.h"

#define EXPONENT_MIN (-126)

static int64_t bin_of(double x, int exponent) {
    return (int64_t)floor(ldexp(x, -exponent));
}

/* Bins from a to b inclusive fit. Doubles, since a narrow bin far from 0 has a number that no integer holds. */
static bool fits(double a, double b, int exponent, int64_t cap) {
    return floor(ldexp(b, -exponent)) - floor(ldexp(a, -exponent)) < (double)cap;
}

/* Bins twice as wide. */
static void histogram_halve(affine_histogram *h) {
    int64_t first = h->first >= 0 ? h->first / 2 : -((1 - h->first) / 2); /* floor */
    int64_t shift = h->first - 2 * first, used = (h->used + shift + 1) / 2;
    for (int64_t i = 0; i < used; i++) {
        affine_bin sum = {0};
        for (int64_t j = 2 * i - shift; j <= 2 * i + 1 - shift; j++) {
            if (j < 0 || j >= h->used) continue;
            sum.n += h->bin[j].n;
            sum.sum += h->bin[j].sum;
            sum.square += h->bin[j].square;
        }
        h->bin[i] = sum; /* reads are at 2i - 1 or later: i = 0 reads bin 0 before it is written */
    }
    memset(h->bin + used, 0, (size_t)(h->used - used) * sizeof *h->bin);
    h->first = first;
    h->used = used;
    h->exponent++;
}

/* The range of numbers of bins becomes first..last, which holds what it was. */
static void histogram_extend(affine_histogram *h, int64_t first, int64_t last) {
    int64_t shift = h->first - first;
    memmove(h->bin + shift, h->bin, (size_t)h->used * sizeof *h->bin);
    memset(h->bin, 0, (size_t)shift * sizeof *h->bin);
    h->first = first;
    h->used = last - first + 1;
}

void affine_histogram_clear(affine_histogram *h) {
    memset(h->bin, 0, (size_t)h->cap * sizeof *h->bin);
    h->first = h->used = 0;
    h->min = h->max = h->zeros = 0;
}

void affine_histogram_add(affine_histogram *h, const float *x, int64_t n, float min, float max) {
    double lo = min < 0 ? min : 0, hi = max > 0 ? max : 0;
    if (h->used == 0) {
        int exponent = 0;
        frexp(hi - lo, &exponent); /* bins of hi - lo would do: go down from there */
        h->exponent = exponent < EXPONENT_MIN ? EXPONENT_MIN : exponent;
        while (h->exponent > EXPONENT_MIN && fits(lo, hi, h->exponent - 1, h->cap)) h->exponent--;
        h->first = bin_of(lo, h->exponent);
        h->used = bin_of(hi, h->exponent) - h->first + 1;
    } else {
        double before_lo = ldexp((double)h->first, h->exponent);
        double before_hi = ldexp((double)(h->first + h->used - 1), h->exponent);
        double a = lo < before_lo ? lo : before_lo, b = hi > before_hi ? hi : before_hi;
        while (!fits(a, b, h->exponent, h->cap)) histogram_halve(h);
        histogram_extend(h, bin_of(a, h->exponent), bin_of(b, h->exponent));
    }
    h->min = lo < h->min ? lo : h->min;
    h->max = hi > h->max ? hi : h->max;
    double per = ldexp(1, -h->exponent);
    for (int64_t i = 0; i < n; i++) {
        affine_bin *bin = &h->bin[(int64_t)floor(x[i] * per) - h->first];
        bin->n++;
        h->zeros += x[i] == 0;
        bin->sum += x[i];
        bin->square += (double)x[i] * x[i];
    }
}

/* ---- least squared error ---- */

#define MSE_STEPS 64
#define MSE_TOP 6 /* ranges from which a search by the values themselves sets out */

/* Sums of a histogram's bins below i, i <= used, three to each (count, sum, sum of squares): below (used + 1, 3). */
static void sums_below(const affine_histogram *h, double *below) {
    memset(below, 0, AFFINE_PREFIX * sizeof *below);
    for (int64_t i = 0; i < h->used; i++, below += AFFINE_PREFIX) {
        below[3] = below[0] + h->bin[i].n;
        below[4] = below[1] + h->bin[i].sum;
        below[5] = below[2] + h->bin[i].square;
    }
}

/* Squared error of all values when quantized with the parameters of a range. A bin belongs to the level that its middle
 * is nearest to. */
static double square_error(const affine_histogram *h, const double *below, const affine_range *r, double min,
                           double max) {
    llmq_affine_params p = affine_params_of(r, (float)min, (float)max);
    double per = (double)p.scale * ldexp(1, -h->exponent), error = 0;
    int64_t begin = 0;
    for (int32_t q = r->lo; q <= r->hi && begin < h->used; q++) {
        double v = (double)p.scale * (q - p.zero_point), end = (double)h->used;
        double bound = ceil((q - p.zero_point + 0.5) * per - 0.5) - (double)h->first; /* first bin of the next level */
        if (q < r->hi && bound < end) end = bound;
        if (end <= (double)begin) continue;
        const double *a = below + AFFINE_PREFIX * begin, *b = below + AFFINE_PREFIX * (int64_t)end;
        error += (b[2] - a[2]) - 2 * v * (b[1] - a[1]) + v * v * (b[0] - a[0]);
        begin = (int64_t)end;
    }
    return error;
}

/* The same of values that are at hand. */
static double exact_error(const affine_values *v, const affine_range *r, double min, double max) {
    enum { BLOCK = 1024 };
    llmq_affine_params p = affine_params_of(r, (float)min, (float)max);
    const affine_ops *ops = backend_cpu()->affine;
    double error = 0;
    for (int64_t i = 0; i < v->n; i += BLOCK) {
        int64_t n = v->n - i < BLOCK ? v->n - i : BLOCK;
        uint8_t q[BLOCK];
        float back[BLOCK];
        ops->quantize(v->x + i, n, 1 / p.scale, p.zero_point, r->lo, r->hi, q);
        ops->dequantize(q, r->is_signed, n, p.scale, p.zero_point, back);
        for (int64_t k = 0; k < n; k++) error += ((double)back[k] - v->x[i + k]) * ((double)back[k] - v->x[i + k]);
    }
    return error;
}

/* What a search works on. The ends of a range are parts, in 0..1, of those of the data. */
typedef struct mse_search {
    const affine_histogram *h;
    const double *below;
    const affine_range *r;
    const affine_values *exact; /* NULL: by the histogram */
    bool low, high;             /* which ends may move */
} mse_search;

typedef struct mse_range {
    double lo, hi, error;
} mse_range;

static bool mse_try(const mse_search *s, double lo, double hi, mse_range *best) {
    if (lo < 0 || hi < 0 || lo > 1 || hi > 1) return false;
    double a = lo * s->h->min, b = hi * s->h->max;
    double error = s->exact ? exact_error(s->exact, s->r, a, b) : square_error(s->h, s->below, s->r, a, b);
    if (!(error < best->error)) return false;
    *best = (mse_range){lo, hi, error};
    return true;
}

/* The error is jagged, since every step of scale or zero point moves all levels: it is not followed downhill but looked
 * at on a grid around the best so far, three times with a finer one. */
static void mse_zoom(const mse_search *s, mse_range *best) {
    int half = s->low && s->high ? 8 : 64;
    for (double radius = 1.0 / MSE_STEPS; radius > 1e-4; radius /= 8) {
        mse_range centre = *best;
        for (int i = s->low ? -half : 0; i <= (s->low ? half : 0); i++)
            for (int j = s->high ? -half : 0; j <= (s->high ? half : 0); j++) {
                double lo = centre.lo + i * radius / half, hi = centre.hi + j * radius / half;
                mse_try(s, s->r->symmetric ? hi : lo, hi, best);
            }
    }
}

void affine_histogram_mse(const affine_histogram *h, const affine_range *r, const affine_values *exact, double *scratch,
                          float *min, float *max) {
    sums_below(h, scratch);
    /* With one end at 0, or a symmetric spec, there is but one number to find. */
    mse_search s = {h, scratch, r, NULL, h->min < 0 && !r->symmetric, h->max > 0 || r->symmetric};
    mse_range top[MSE_TOP];
    int n_top = 0;
    for (int i = 0; i < (s.low ? MSE_STEPS : 1); i++)
        for (int j = 0; j < (s.high ? MSE_STEPS : 1); j++) {
            double hi = 1 - (double)j / MSE_STEPS, lo = r->symmetric ? hi : 1 - (double)i / MSE_STEPS;
            mse_range x = {lo, hi, INFINITY};
            mse_try(&s, lo, hi, &x);
            if (n_top == MSE_TOP && !(x.error < top[MSE_TOP - 1].error)) continue;
            int at = n_top < MSE_TOP ? n_top++ : MSE_TOP - 1; /* the best few, in order */
            while (at > 0 && x.error < top[at - 1].error) top[at] = top[at - 1], at--;
            top[at] = x;
        }
    mse_range best = {1, 1, INFINITY};
    s.exact = exact;
    for (int k = 0; k < (exact ? n_top : 1); k++) {
        mse_range x = {top[k].lo, top[k].hi, INFINITY};
        mse_try(&s, x.lo, x.hi, &x);
        mse_zoom(&s, &x);
        if (x.error < best.error) best = x;
    }
    *min = (float)(best.lo * h->min);
    *max = (float)(best.hi * h->max);
}

/* ---- least Kullback-Leibler divergence ---- */

#define ENTROPY_STEPS 64

/* Prefix sums for the divergence of [a, b): values, bins that are not empty, sum of n log n. */
static void entropy_below(const double *n, int64_t used, double *below) {
    memset(below, 0, AFFINE_PREFIX * sizeof *below);
    for (int64_t i = 0; i < used; i++, below += AFFINE_PREFIX) {
        below[3] = below[0] + n[i];
        below[4] = below[1] + (n[i] > 0);
        below[5] = below[2] + (n[i] > 0 ? n[i] * log(n[i]) : 0);
    }
}

/* n log n of a bin that outliers are added to, less what it was. */
static double edge_gain(double n, double outliers) {
    return outliers > 0 ? (n + outliers) * log(n + outliers) - n * log(n) : 0;
}

/* KL(P || Q) of include/llmq_affine.h. With N values in all and M in [a, b), P's counts n', a run's sum m (with
 * outliers m') over k bins that are not empty: sum n'/N log((n'/N) / (m / (k M))) = (sum n' log n' - sum over runs m'
 * log(m / k)) / N + log M - log N. */
static double divergence(const double *n, const double *below, int64_t used, int64_t a, int64_t b, int64_t levels) {
    double total = below[AFFINE_PREFIX * used], left = below[AFFINE_PREFIX * a];
    double right = total - below[AFFINE_PREFIX * b], inside = total - left - right;
    if ((left > 0 && n[a] == 0) || (right > 0 && n[b - 1] == 0) || inside <= 0) return INFINITY;
    double sum = below[AFFINE_PREFIX * b + 2] - below[AFFINE_PREFIX * a + 2];
    /* levels <= b - a, so that the two edges are one bin only if there is one level, which no spec has */
    sum += edge_gain(n[a], left) + edge_gain(n[b - 1], right);
    for (int64_t j = 0; j < levels; j++) {
        const double *p = below + AFFINE_PREFIX * (a + j * (b - a) / levels);
        const double *q = below + AFFINE_PREFIX * (a + (j + 1) * (b - a) / levels);
        double m = q[0] - p[0], k = q[1] - p[1], outliers = (j == 0 ? left : 0) + (j == levels - 1 ? right : 0);
        if (m > 0) sum -= (m + outliers) * log(m / k);
    }
    return sum / total + log(inside) - log(total);
}

/* Counts folded at 0.0 for a symmetric spec: bin k and bin -1 - k; how many there are. */
static int64_t fold(const affine_histogram *h, double *n) {
    int64_t below = -h->first, above = h->used - below, used = below > above ? below : above;
    for (int64_t k = 0; k < used; k++)
        n[k] = (k < above ? h->bin[below + k].n : 0) + (k < below ? h->bin[below - 1 - k].n : 0);
    return used;
}

void affine_histogram_entropy(const affine_histogram *h, const affine_range *r, double *scratch, float *min,
                              float *max) {
    double *n = scratch, *below = scratch + h->cap;
    int64_t zero = r->symmetric ? 0 : -h->first, used = h->used;
    int64_t levels = r->symmetric ? r->hi - r->middle + 1 : r->hi - r->lo + 1;
    if (r->symmetric)
        used = fold(h, n);
    else
        for (int64_t i = 0; i < used; i++) n[i] = h->bin[i].n;
    n[zero] -= h->zeros; /* 0.0 lies at the lower end of its bin */
    entropy_below(n, used, below);
    int64_t step = r->symmetric ? 1 : used / ENTROPY_STEPS > 1 ? used / ENTROPY_STEPS : 1;
    int64_t best_a = 0, best_b = used, least = 0;
    double best = INFINITY;
    for (int64_t i = 0; i * step <= zero; i++)
        for (int64_t j = 0, a = i * step, b; (b = used - j * step) >= zero && b - a >= levels; j++) {
            double kl = divergence(n, below, used, a, b, levels);
            if (!(kl < best || (kl == best && i + j < least))) continue;
            best = kl;
            best_a = a, best_b = b, least = i + j;
        }
    double hi = ldexp((double)(best_b - zero), h->exponent), lo = ldexp((double)(best_a - zero), h->exponent);
    double most = h->max > -h->min ? h->max : -h->min;
    if (r->symmetric) most = hi < most ? hi : most;
    *min = (float)(r->symmetric ? -most : lo > h->min ? lo : h->min);
    *max = (float)(r->symmetric ? most : hi < h->max ? hi : h->max);
}
