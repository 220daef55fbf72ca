/* The range of a site's inputs: each observer of llmq_affine.h proposes one, the channels' own cuts some, and the one
 * that the outputs lose least in is taken. */
#include <math.h>

#include "core/mem.h"
#include "llmq_affine.h"
#include "quant/int8_site.h"

#define ZERO_GAIN 0.95 /* a zero point is taken where it leaves no more of the error than this */

/* Which observers there are. Those whose range does not depend on whether it is to be symmetric give two. */
static const struct {
    llmq_observer_kind kind;
    const char *name;
    bool symmetric, both;
} kinds[] = {{LLMQ_OBSERVE_MINMAX, "min-max", false, true},
             {LLMQ_OBSERVE_PERCENTILE, "percentile", false, true},
             {LLMQ_OBSERVE_MSE, "mse", true, false},
             {LLMQ_OBSERVE_MSE, "mse", false, false},
             {LLMQ_OBSERVE_ENTROPY, "entropy", false, true}};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

struct int8_observers {
    llmq_observer *of[N_KINDS];
};

static llmq_affine_spec spec_of(bool symmetric) {
    return (llmq_affine_spec){.type = LLMQ_Q8_SIGNED, .symmetric = symmetric};
}

llmq_status int8_observers_create(int8_observers **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    int8_observers *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, "observers");
    for (int i = 0; i < N_KINDS && status == LLMQ_OK; i++) {
        llmq_observer_params params;
        llmq_observer_params_default(&params, kinds[i].kind);
        params.spec = spec_of(kinds[i].symmetric);
        params.max_values = 1 << 17;
        status = llmq_observer_create(&params, &o->of[i], err);
    }
    if (status == LLMQ_OK)
        *out = o;
    else
        int8_observers_destroy(o);
    return status;
}

void int8_observers_destroy(int8_observers *o) {
    for (int i = 0; o && i < N_KINDS; i++) llmq_observer_destroy(o->of[i]);
    mem_free(o);
}

llmq_status int8_observers_add(int8_observers *o, const float *x, int64_t n, bool all, llmq_err *err) {
    for (int i = 0; i < (all ? N_KINDS : 1); i++) LLMQ_TRY(llmq_observer_observe(o->of[i], x, 1, n, err));
    return LLMQ_OK;
}

static llmq_status try_range(const float ends[2], bool symmetric, const char *name, int8_trial *t,
                             int8_range_report *best, llmq_err *err) {
    llmq_affine_params params;
    llmq_affine_spec spec = spec_of(symmetric);
    int8_range_report r = *best;
    LLMQ_TRY(llmq_affine_from_ranges(&spec, 1, &ends[0], &ends[1], &params, err));
    r.range = (llmq_act_range){int8_scale_f16((double)params.scale), params.zero_point};
    r.observer = name;
    LLMQ_TRY(int8_trial_error(t, r.range, &r.error, err));
    if (r.error < best->error * (symmetric ? 1 : ZERO_GAIN)) *best = r;
    return LLMQ_OK;
}

llmq_status int8_observers_choose(int8_observers *o, int8_trial *t, double limit, int8_range_report *report,
                                  llmq_err *err) {
    static const double kept[] = {1.5, 1.25, 1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3}; /* of limit */
    float ends[N_KINDS][2];
    for (int i = 0; i < N_KINDS; i++) LLMQ_TRY(llmq_observer_result(o->of[i], &ends[i][0], &ends[i][1], NULL, err));
    *report = (int8_range_report){.min = ends[0][0], .max = ends[0][1], .error = INFINITY};
    for (int symmetric = 1; symmetric >= 0; symmetric--)
        for (int i = 0; i < N_KINDS; i++)
            if (kinds[i].both || kinds[i].symmetric == (bool)symmetric)
                LLMQ_TRY(try_range(ends[i], symmetric, kinds[i].name, t, report, err));
    for (size_t i = 0; limit > 0 && i < sizeof kept / sizeof *kept; i++) {
        float most = (float)(kept[i] * limit);
        LLMQ_TRY(try_range((float[2]){-most, most}, true, "channels", t, report, err));
    }
    return LLMQ_OK;
}
