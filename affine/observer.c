/* Observers: what of each channel is kept, from batch to batch, and the range that it gives. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "affine/affine.h"
#include "core/backend.h"
#include "core/mem.h"

#define MSE_VALUES 16384 /* up to so many the last steps of the search are made with the values themselves */

/* Values of a channel: all of them, or of more than max_values a uniform sample. */
typedef struct value_list {
    float *x;
    int64_t n, cap; /* kept, room */
    int64_t seen;
    uint64_t random;
} value_list;

struct llmq_observer {
    llmq_observer_params p;
    affine_range range;
    float *min, *max; /* [channels]; seen tells whether they mean anything */
    bool seen;
    value_list *lists;           /* PERCENTILE, MSE: [channels] */
    int64_t max_values;          /* of a list */
    affine_histogram *histogram; /* MSE, ENTROPY: [channels] */
    affine_bin *bins;            /* (channels, bins), of the histograms */
    float *row;                  /* one channel's values of a batch that has them apart; grown */
    int64_t row_cap;
};

void llmq_observer_params_default(llmq_observer_params *params, llmq_observer_kind kind) {
    if (!params) return;
    *params = (llmq_observer_params){.kind = kind,
                                     .spec = {.type = LLMQ_Q8_UNSIGNED},
                                     .channels = 1,
                                     .averaging = 0.01,
                                     .percentile = 99.99,
                                     .max_values = 4 << 20,
                                     .bins = kind == LLMQ_OBSERVE_MSE ? 16384 : 4096};
}

static bool has_histogram(const llmq_observer *o) {
    return o->p.kind == LLMQ_OBSERVE_MSE || o->p.kind == LLMQ_OBSERVE_ENTROPY;
}

static llmq_status observer_check(const llmq_observer_params *p, llmq_err *err) {
    if (p->kind < LLMQ_OBSERVE_MINMAX || p->kind > LLMQ_OBSERVE_ENTROPY)
        return llmq_fail(err, LLMQ_E_ARG, "observer: unknown kind %d", (int)p->kind);
    if (p->channels < 1 || p->channels > INT32_MAX)
        return llmq_fail(err, LLMQ_E_ARG, "observer: %lld channels", (long long)p->channels);
    if (p->kind == LLMQ_OBSERVE_MOVING_AVERAGE && !(p->averaging > 0 && p->averaging <= 1))
        return llmq_fail(err, LLMQ_E_ARG, "observer: averaging %g is not in (0, 1]", p->averaging);
    if (p->kind == LLMQ_OBSERVE_PERCENTILE && !(p->percentile > 50 && p->percentile <= 100))
        return llmq_fail(err, LLMQ_E_ARG, "observer: percentile %g is not in (50, 100]", p->percentile);
    if (p->kind == LLMQ_OBSERVE_PERCENTILE && (p->max_values < 1 || p->max_values > INT64_MAX / 64))
        return llmq_fail(err, LLMQ_E_ARG, "observer: max_values %lld", (long long)p->max_values);
    if ((p->kind == LLMQ_OBSERVE_MSE || p->kind == LLMQ_OBSERVE_ENTROPY) && (p->bins < 64 || p->bins > 65536))
        return llmq_fail(err, LLMQ_E_ARG, "observer: %lld bins are not in 64..65536", (long long)p->bins);
    return LLMQ_OK;
}

static llmq_status observer_alloc(llmq_observer *o, llmq_err *err) {
    size_t n = (size_t)o->p.channels;
    o->min = mem_zalloc(n, sizeof *o->min);
    o->max = mem_zalloc(n, sizeof *o->max);
    if (!o->min || !o->max) return mem_error(err, n * sizeof *o->min, "an observer's ranges");
    if (o->p.kind == LLMQ_OBSERVE_PERCENTILE || o->p.kind == LLMQ_OBSERVE_MSE) {
        o->max_values = o->p.kind == LLMQ_OBSERVE_MSE ? MSE_VALUES : o->p.max_values;
        o->lists = mem_zalloc(n, sizeof *o->lists);
        if (!o->lists) return mem_error(err, n * sizeof *o->lists, "an observer's values");
    }
    if (!has_histogram(o)) return LLMQ_OK;
    size_t bytes = n * (size_t)o->p.bins * sizeof *o->bins; /* channels < 2^31, bins <= 2^16: no overflow */
    o->histogram = mem_zalloc(n, sizeof *o->histogram);
    o->bins = mem_zalloc(n * (size_t)o->p.bins, sizeof *o->bins);
    if (!o->histogram || !o->bins) return mem_error(err, bytes, "an observer's histograms");
    for (size_t c = 0; c < n; c++)
        o->histogram[c] = (affine_histogram){.bin = o->bins + c * (size_t)o->p.bins, .cap = o->p.bins};
    return LLMQ_OK;
}

llmq_status llmq_observer_create(const llmq_observer_params *params, llmq_observer **out, llmq_err *err) {
    if (!params || !out) return llmq_fail(err, LLMQ_E_ARG, "llmq_observer_create: NULL");
    affine_range range;
    LLMQ_TRY(affine_spec_check(&params->spec, &range, err));
    LLMQ_TRY(observer_check(params, err));
    llmq_observer *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, "an observer");
    o->p = *params;
    o->range = range;
    llmq_status status = observer_alloc(o, err);
    if (status == LLMQ_OK) {
        llmq_observer_reset(o);
        *out = o;
    } else {
        llmq_observer_destroy(o);
    }
    return status;
}

void llmq_observer_destroy(llmq_observer *o) {
    if (!o) return;
    for (int64_t c = 0; o->lists && c < o->p.channels; c++) mem_free(o->lists[c].x);
    mem_free(o->lists);
    mem_free(o->histogram);
    mem_free(o->bins);
    mem_free(o->min);
    mem_free(o->max);
    mem_free(o->row);
    mem_free(o);
}

void llmq_observer_reset(llmq_observer *o) {
    if (!o) return;
    o->seen = false;
    for (int64_t c = 0; c < o->p.channels; c++) {
        if (o->lists) {
            o->lists[c].n = o->lists[c].seen = 0;
            o->lists[c].random = 0x9e3779b97f4a7c15u;
        }
        if (o->histogram) affine_histogram_clear(&o->histogram[c]);
    }
}

/* ---- observing ---- */

static llmq_status list_reserve(const llmq_observer *o, value_list *l, int64_t more, llmq_err *err) {
    int64_t want = l->n + more < o->max_values ? l->n + more : o->max_values;
    if (want <= l->cap) return LLMQ_OK;
    int64_t cap = l->cap * 2 > want ? (l->cap * 2 < o->max_values ? l->cap * 2 : o->max_values) : want;
    float *x = mem_grow(l->x, (size_t)l->n, (size_t)cap, sizeof *x);
    if (!x) return mem_error(err, (size_t)cap * sizeof *x, "an observer's values");
    l->x = x;
    l->cap = cap;
    return LLMQ_OK;
}

/* Algorithm R: after any number of values each of them is kept with the same probability. */
static void list_add(const llmq_observer *o, value_list *l, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        l->seen++;
        if (l->n < o->max_values) {
            l->x[l->n++] = x[i];
            continue;
        }
        l->random = l->random * 6364136223846793005u + 1442695040888963407u;
        int64_t at = (int64_t)((double)(l->random >> 11) * 0x1p-53 * (double)l->seen);
        if (at < l->n) l->x[at] = x[i];
    }
}

/* Values of channel c of a batch, one behind the other. */
static const float *channel_values(llmq_observer *o, const float *data, int64_t outer, int64_t inner, int64_t c) {
    int64_t channels = o->p.channels;
    if (outer == 1 || channels == 1) return data + c * inner;
    for (int64_t i = 0; i < outer; i++)
        memcpy(o->row + i * inner, data + (i * channels + c) * inner, (size_t)inner * sizeof *data);
    return o->row;
}

/* All that can fail, before anything changes. */
static llmq_status observe_prepare(llmq_observer *o, const float *data, int64_t n, int64_t per_channel, llmq_err *err) {
    float lo, hi;
    if (!backend_cpu()->affine->range(data, n, &lo, &hi))
        return llmq_fail(err, LLMQ_E_NUMERIC, "observer: NaN or Inf among the values");
    if (o->p.channels > 1 && per_channel > o->row_cap) {
        float *row = mem_alloc((size_t)per_channel, sizeof *row);
        if (!row) return mem_error(err, (size_t)per_channel * sizeof *row, "a channel's values");
        mem_free(o->row);
        o->row = row;
        o->row_cap = per_channel;
    }
    for (int64_t c = 0; o->lists && c < o->p.channels; c++) LLMQ_TRY(list_reserve(o, &o->lists[c], per_channel, err));
    return LLMQ_OK;
}

llmq_status llmq_observer_observe(llmq_observer *o, const float *data, int64_t outer, int64_t inner, llmq_err *err) {
    if (!o) return llmq_fail(err, LLMQ_E_ARG, "llmq_observer_observe: NULL");
    int64_t n = llmq_affine_elements(&(llmq_affine_layout){outer, o->p.channels, inner, 0});
    if (n < 0 || (n > 0 && !data))
        return llmq_fail(err, LLMQ_E_ARG, "llmq_observer_observe: a batch of %lld x %lld x %lld, or NULL",
                         (long long)outer, (long long)o->p.channels, (long long)inner);
    if (n == 0) return LLMQ_OK;
    int64_t per_channel = n / o->p.channels;
    LLMQ_TRY(observe_prepare(o, data, n, per_channel, err));
    for (int64_t c = 0; c < o->p.channels; c++) {
        const float *x = channel_values(o, data, outer, inner, c);
        float lo, hi, average = (float)o->p.averaging;
        backend_cpu()->affine->range(x, per_channel, &lo, &hi);
        if (!o->seen)
            o->min[c] = lo, o->max[c] = hi;
        else if (o->p.kind == LLMQ_OBSERVE_MOVING_AVERAGE)
            o->min[c] += average * (lo - o->min[c]), o->max[c] += average * (hi - o->max[c]);
        else
            o->min[c] = lo < o->min[c] ? lo : o->min[c], o->max[c] = hi > o->max[c] ? hi : o->max[c];
        if (o->lists) list_add(o, &o->lists[c], x, per_channel);
        if (o->histogram) affine_histogram_add(&o->histogram[c], x, per_channel, lo, hi);
    }
    o->seen = true;
    return LLMQ_OK;
}

/* ---- results ---- */

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* NumPy's "linear": the value at (n - 1) * p / 100, between neighbours by their distance. */
static float percentile_of(const float *sorted, int64_t n, double p) {
    double at = (double)(n - 1) * (p / 100);
    int64_t i = (int64_t)at;
    if (i >= n - 1) return sorted[n - 1];
    double a = sorted[i], b = sorted[i + 1], t = at - (double)i;
    return (float)(t < 0.5 ? a + (b - a) * t : b - (b - a) * (1 - t));
}

static void channel_range(const llmq_observer *o, int64_t c, double *scratch, float *lo, float *hi) {
    *lo = o->min[c], *hi = o->max[c];
    if (o->p.kind == LLMQ_OBSERVE_PERCENTILE) {
        value_list *l = &o->lists[c];
        qsort(l->x, (size_t)l->n, sizeof *l->x, by_value); /* the order of kept values means nothing */
        *lo = percentile_of(l->x, l->n, 100 - o->p.percentile);
        *hi = percentile_of(l->x, l->n, o->p.percentile);
    } else if (o->p.kind == LLMQ_OBSERVE_MSE) {
        const value_list *l = &o->lists[c];
        affine_values all = {l->x, l->n};
        affine_histogram_mse(&o->histogram[c], &o->range, l->seen == l->n ? &all : NULL, scratch, lo, hi);
    } else if (o->p.kind == LLMQ_OBSERVE_ENTROPY) {
        affine_histogram_entropy(&o->histogram[c], &o->range, scratch, lo, hi);
    }
}

llmq_status llmq_observer_result(const llmq_observer *o, float *min, float *max, llmq_affine_params *params,
                                 llmq_err *err) {
    if (!o) return llmq_fail(err, LLMQ_E_ARG, "llmq_observer_result: NULL");
    size_t n = has_histogram(o) && o->seen ? ((size_t)o->p.bins + 1) * AFFINE_SCRATCH : 0;
    double *scratch = n ? mem_alloc(n, sizeof *scratch) : NULL;
    if (n && !scratch) return mem_error(err, n * sizeof *scratch, "a search for a range");
    llmq_status status = LLMQ_OK;
    for (int64_t c = 0; c < o->p.channels && status == LLMQ_OK; c++) {
        float lo = 0, hi = 0;
        llmq_affine_params p = {1, 0};
        if (o->seen) {
            channel_range(o, c, scratch, &lo, &hi);
            status = llmq_affine_from_ranges(&o->p.spec, 1, &lo, &hi, &p, err);
        }
        if (min) min[c] = lo;
        if (max) max[c] = hi;
        if (params) params[c] = p;
    }
    mem_free(scratch);
    return status;
}
