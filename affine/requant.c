/* Real multipliers by integers alone (gemmlowp, TFLite), and requantization of plain accumulators. */
#include <math.h>

#include "affine/affine.h"
#include "core/backend.h"
#include "core/mem.h"

llmq_status llmq_fixed_from_real(double real, llmq_fixed_multiplier *out, llmq_err *err) {
    if (!out) return llmq_fail(err, LLMQ_E_ARG, "llmq_fixed_from_real: NULL");
    if (!(real >= 0) || real >= 2147483648.0)
        return llmq_fail(err, LLMQ_E_ARG, "multiplier %g is not in 0..2^31", real);
    int shift;
    int64_t q = llround(frexp(real, &shift) * 2147483648.0);
    if (q == (int64_t)1 << 31) { /* rounded up to 1.0 */
        q /= 2;
        shift++;
    }
    if (q == 0 || shift < -31) q = shift = 0;
    if (shift > 31) return llmq_fail(err, LLMQ_E_ARG, "multiplier %g is not in 0..2^31", real);
    *out = (llmq_fixed_multiplier){(int32_t)q, shift};
    return LLMQ_OK;
}

int32_t llmq_fixed_multiply(int32_t x, llmq_fixed_multiplier m) {
    if (m.multiplier < 0 || m.shift < -31 || m.shift > 31) return 0;
    return affine_fixed_times(x, m.multiplier, m.shift);
}

/* The epilogue of a channel: zeros, then its multiplier in the form asked for. */
typedef struct requant_arrays {
    int32_t *offset, *fix, *shift;
    float *mult, *add;
} requant_arrays;

static llmq_status arrays_fill(const double *real, int64_t channels, bool fixed, requant_arrays *a, llmq_err *err) {
    for (int64_t c = 0; c < channels; c++) {
        llmq_fixed_multiplier m;
        LLMQ_TRY(llmq_fixed_from_real(real[c], &m, err));
        a->mult[c] = (float)real[c];
        if (fixed) a->fix[c] = m.multiplier, a->shift[c] = m.shift;
    }
    return LLMQ_OK;
}

llmq_status llmq_affine_requantize(const int32_t *acc, int64_t rows, int64_t channels, const double *real,
                                   llmq_requant how, const llmq_affine_spec *spec, const llmq_affine_params *out,
                                   bool relu, void *q, llmq_err *err) {
    affine_range r;
    int64_t n;
    LLMQ_TRY(affine_spec_check(spec, &r, err));
    if (!out || !real || rows < 0 || channels < 1 || !i64_mul(rows, channels, &n) || (n > 0 && (!acc || !q)))
        return llmq_fail(err, LLMQ_E_ARG, "llmq_affine_requantize: NULL, or %lld rows of %lld channels",
                         (long long)rows, (long long)channels);
    if (how != LLMQ_REQUANT_FLOAT && how != LLMQ_REQUANT_FIXED)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_affine_requantize: unknown way %d", (int)how);
    LLMQ_TRY(affine_params_check(&r, out, err));
    size_t bytes;
    int32_t *block = size_mul((size_t)channels, 5, &bytes) ? mem_zalloc(bytes, sizeof *block) : NULL;
    if (!block) return mem_error(err, (size_t)channels * 20, "the multipliers");
    requant_arrays a = {block, block + channels, block + 2 * channels, (float *)block + 3 * channels,
                        (float *)block + 4 * channels};
    llmq_status status = arrays_fill(real, channels, how == LLMQ_REQUANT_FIXED, &a, err);
    affine_epilogue e = {.output = LLMQ_OUT_Q8,
                         .fixed = how == LLMQ_REQUANT_FIXED,
                         .offset = a.offset,
                         .mult = a.mult,
                         .add = a.add,
                         .fix = a.fix,
                         .shift = a.shift,
                         .zero = out->zero_point,
                         .lo = relu ? out->zero_point : r.lo,
                         .hi = r.hi};
    const affine_ops *ops = backend_cpu()->affine;
    for (int64_t row = 0; row < rows && status == LLMQ_OK; row++)
        ops->finish(&e, acc + row * channels, 0, channels, row, (uint8_t *)q + row * channels);
    mem_free(block);
    return status;
}
