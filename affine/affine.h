/* What the files of this room share. Its functions are those of include/llmq_affine.h. */
#ifndef LLMQ_AFFINE_AFFINE_H
#define LLMQ_AFFINE_AFFINE_H

#include "core/affine.h"
#include "core/err.h"

/* A spec that was checked, with its defaults filled in. */
typedef struct affine_range {
    int32_t lo, hi;
    int32_t middle; /* zero point of a symmetric spec */
    bool symmetric, is_signed;
    float eps;
} affine_range;
llmq_status affine_spec_check(const llmq_affine_spec *spec, affine_range *out, llmq_err *err);
/* As llmq_affine_from_ranges for one finite range, without checks. */
llmq_affine_params affine_params_of(const affine_range *r, float min, float max);
llmq_status affine_params_check(const affine_range *r, const llmq_affine_params *p, llmq_err *err);

/* One pass over a layout: part k is the k-th run of `len` elements with parameters `param`, at element `at`. */
typedef struct affine_part {
    int64_t at, len, param;
} affine_part;
int64_t affine_parts(const llmq_affine_layout *l);
affine_part affine_part_at(const llmq_affine_layout *l, int64_t k);

/* ---- histogram.c: bins of a power of two, filled by an observer */
typedef struct affine_bin {
    double n, sum, square; /* of the values in it */
} affine_bin;
typedef struct affine_histogram {
    affine_bin *bin; /* [cap] */
    int64_t cap;
    int64_t first, used; /* bin i holds values in [(first + i) w, (first + i + 1) w), i < used; 0.0 is at or inside */
    int exponent;        /* w = 2^exponent */
    double min, max;     /* of the values and 0 */
    double zeros;        /* values that are 0.0 */
} affine_histogram;
void affine_histogram_clear(affine_histogram *h);
/* Widens bins until min..max and 0 fit, then adds n values that lie in min..max. */
void affine_histogram_add(affine_histogram *h, const float *x, int64_t n, float min, float max);
/* Scratch: AFFINE_SCRATCH doubles for each of cap + 1 bins. Of an empty histogram: 0, 0. */
#define AFFINE_PREFIX 3
#define AFFINE_SCRATCH (AFFINE_PREFIX + 1)
/* exact: all values of the histogram, where they are few enough to be at hand; or NULL. */
typedef struct affine_values {
    const float *x;
    int64_t n;
} affine_values;
void affine_histogram_mse(const affine_histogram *h, const affine_range *r, const affine_values *exact, double *scratch,
                          float *min, float *max);
void affine_histogram_entropy(const affine_histogram *h, const affine_range *r, double *scratch, float *min,
                              float *max);

#endif
