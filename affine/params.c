/* Parameters from ranges, layouts, and the element-wise functions. */
#include <float.h>
#include <math.h>

#include "affine/affine.h"
#include "core/backend.h"
#include "core/mem.h"

llmq_status affine_spec_check(const llmq_affine_spec *spec, affine_range *out, llmq_err *err) {
    if (!spec) return llmq_fail(err, LLMQ_E_ARG, "affine spec: NULL");
    if (spec->type != LLMQ_Q8_UNSIGNED && spec->type != LLMQ_Q8_SIGNED)
        return llmq_fail(err, LLMQ_E_ARG, "affine spec: unknown type %d", (int)spec->type);
    bool is_signed = spec->type == LLMQ_Q8_SIGNED, whole = spec->quant_min == 0 && spec->quant_max == 0;
    int32_t least = is_signed ? -128 : 0, most = is_signed ? 127 : 255;
    *out = (affine_range){.lo = whole ? least : spec->quant_min,
                          .hi = whole ? most : spec->quant_max,
                          .symmetric = spec->symmetric,
                          .is_signed = is_signed,
                          .eps = spec->eps == 0 ? FLT_EPSILON : spec->eps};
    if (out->lo < least || out->hi > most || out->lo > 0 || out->hi < 0 || out->lo >= out->hi)
        return llmq_fail(err, LLMQ_E_ARG, "affine spec: quant_min %d and quant_max %d do not enclose 0 within %d..%d",
                         out->lo, out->hi, least, most);
    if (!(out->eps > 0) || !isfinite(out->eps))
        return llmq_fail(err, LLMQ_E_ARG, "affine spec: eps must be positive and finite");
    out->middle = is_signed ? 0 : whole ? 128 : (out->lo + out->hi) / 2;
    return LLMQ_OK;
}

/* The steps and their order are PyTorch's, all in f32. */
llmq_affine_params affine_params_of(const affine_range *r, float min, float max) {
    float lo = min < 0 ? min : 0, hi = max > 0 ? max : 0, width = (float)(r->hi - r->lo);
    if (r->symmetric) {
        float scale = (-lo > hi ? -lo : hi) / (width / 2);
        return (llmq_affine_params){scale > r->eps ? scale : r->eps, r->middle};
    }
    float scale = (hi - lo) / width;
    scale = scale > r->eps ? scale : r->eps;
    int32_t zero = r->lo - (int32_t)rintf(lo / scale);
    return (llmq_affine_params){scale, zero < r->lo ? r->lo : zero > r->hi ? r->hi : zero};
}

llmq_status affine_params_check(const affine_range *r, const llmq_affine_params *p, llmq_err *err) {
    if (!(p->scale > 0) || !isfinite(p->scale))
        return llmq_fail(err, LLMQ_E_ARG, "affine parameters: scale %g is not positive and finite", (double)p->scale);
    if (p->zero_point < r->lo || p->zero_point > r->hi)
        return llmq_fail(err, LLMQ_E_ARG, "affine parameters: zero point %d lies outside %d..%d", p->zero_point, r->lo,
                         r->hi);
    return LLMQ_OK;
}

llmq_status llmq_affine_from_ranges(const llmq_affine_spec *spec, int64_t n, const float *min, const float *max,
                                    llmq_affine_params *params, llmq_err *err) {
    affine_range r;
    LLMQ_TRY(affine_spec_check(spec, &r, err));
    if (n < 0 || (n > 0 && (!min || !max || !params)))
        return llmq_fail(err, LLMQ_E_ARG, "llmq_affine_from_ranges: %lld ranges, or NULL", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        float lo = min[i] < 0 ? min[i] : 0, hi = max[i] > 0 ? max[i] : 0;
        if (!isfinite(min[i]) || !isfinite(max[i]) || !isfinite(hi - lo))
            return llmq_fail(err, LLMQ_E_NUMERIC, "range %lld, %g to %g, is not finite", (long long)i, (double)min[i],
                             (double)max[i]);
        if (min[i] > max[i])
            return llmq_fail(err, LLMQ_E_ARG, "range %lld: min %g is above max %g", (long long)i, (double)min[i],
                             (double)max[i]);
        params[i] = affine_params_of(&r, min[i], max[i]);
    }
    return LLMQ_OK;
}

/* ---- layouts ---- */

int64_t llmq_affine_elements(const llmq_affine_layout *l) {
    int64_t n;
    if (!l || l->outer < 0 || l->channels < 1 || l->inner < 0 || l->group < 0 || (l->group > 0 && l->outer > 1))
        return -1;
    if (!i64_mul(l->outer, l->channels, &n) || !i64_mul(n, l->inner, &n) || n > INT64_MAX / 8) return -1;
    return n;
}

static int64_t groups_of(const llmq_affine_layout *l) {
    return l->group ? l->inner / l->group + (l->inner % l->group != 0) : 1;
}

int64_t llmq_affine_n_params(const llmq_affine_layout *l) {
    int64_t n;
    return llmq_affine_elements(l) < 0 || !i64_mul(l->channels, groups_of(l), &n) ? -1 : n;
}

int64_t affine_parts(const llmq_affine_layout *l) {
    return l->outer * l->channels * groups_of(l);
}

affine_part affine_part_at(const llmq_affine_layout *l, int64_t k) {
    int64_t groups = groups_of(l), row = k / groups, g = k % groups;
    int64_t at = l->group ? g * l->group : 0, len = l->group && l->group < l->inner - at ? l->group : l->inner - at;
    return (affine_part){row * l->inner + at, len, row % l->channels * groups + g};
}

static llmq_status layout_check(const llmq_affine_layout *l, const void *a, const void *b, const void *params,
                                const char *what, llmq_err *err) {
    int64_t n = llmq_affine_elements(l);
    if (n < 0 || llmq_affine_n_params(l) < 0) return llmq_fail(err, LLMQ_E_ARG, "%s: the layout is not valid", what);
    if (!params || (n > 0 && (!a || !b))) return llmq_fail(err, LLMQ_E_ARG, "%s: a pointer is NULL", what);
    return LLMQ_OK;
}

llmq_status llmq_affine_ranges(const float *data, const llmq_affine_layout *layout, float *min, float *max,
                               llmq_err *err) {
    LLMQ_TRY(layout_check(layout, data, max, min, "llmq_affine_ranges", err));
    if (llmq_affine_elements(layout) == 0) return llmq_fail(err, LLMQ_E_ARG, "llmq_affine_ranges: no elements");
    const affine_ops *ops = backend_cpu()->affine;
    int64_t n_params = llmq_affine_n_params(layout), parts = affine_parts(layout);
    for (int64_t k = 0; k < parts; k++) {
        affine_part p = affine_part_at(layout, k);
        float lo, hi;
        if (!ops->range(data + p.at, p.len, &lo, &hi))
            return llmq_fail(err, LLMQ_E_NUMERIC, "llmq_affine_ranges: NaN or Inf in channel or group %lld",
                             (long long)p.param);
        if (k < n_params || lo < min[p.param]) min[p.param] = lo;
        if (k < n_params || hi > max[p.param]) max[p.param] = hi;
    }
    return LLMQ_OK;
}

/* ---- elements ---- */

llmq_status llmq_affine_quantize(const float *x, const llmq_affine_layout *layout, const llmq_affine_spec *spec,
                                 const llmq_affine_params *params, void *q, llmq_err *err) {
    affine_range r;
    LLMQ_TRY(affine_spec_check(spec, &r, err));
    LLMQ_TRY(layout_check(layout, x, q, params, "llmq_affine_quantize", err));
    int64_t n_params = llmq_affine_n_params(layout), parts = affine_parts(layout);
    for (int64_t i = 0; i < n_params; i++) LLMQ_TRY(affine_params_check(&r, &params[i], err));
    const affine_ops *ops = backend_cpu()->affine;
    uint8_t *out = q;
    for (int64_t k = 0; k < parts; k++) {
        affine_part p = affine_part_at(layout, k);
        const llmq_affine_params *a = &params[p.param];
        ops->quantize(x + p.at, p.len, 1 / a->scale, a->zero_point, r.lo, r.hi, out + p.at);
    }
    return LLMQ_OK;
}

llmq_status llmq_affine_dequantize(const void *q, llmq_q8_type type, const llmq_affine_layout *layout,
                                   const llmq_affine_params *params, float *x, llmq_err *err) {
    affine_range r;
    LLMQ_TRY(affine_spec_check(&(llmq_affine_spec){.type = type}, &r, err));
    LLMQ_TRY(layout_check(layout, q, x, params, "llmq_affine_dequantize", err));
    int64_t n_params = llmq_affine_n_params(layout), parts = affine_parts(layout);
    for (int64_t i = 0; i < n_params; i++) LLMQ_TRY(affine_params_check(&r, &params[i], err));
    const affine_ops *ops = backend_cpu()->affine;
    for (int64_t k = 0; k < parts; k++) {
        affine_part p = affine_part_at(layout, k);
        const llmq_affine_params *a = &params[p.param];
        ops->dequantize((const uint8_t *)q + p.at, r.is_signed, p.len, a->scale, a->zero_point, x + p.at);
    }
    return LLMQ_OK;
}
