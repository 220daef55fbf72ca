/* Transforms of a layer before it is quantized: scales of its sites' inputs, found by AWQ on a part of the calibration
 * tokens with the layer's full-precision weights (or given: INT8's smoothing), and taken up by the op before each site
 * (engine/arch: folds). */
#ifndef LLMQ_ENGINE_TRANSFORM_H
#define LLMQ_ENGINE_TRANSFORM_H

#include "engine/calib_run.h"
#include "engine/export.h"
#include "quant/transforms/transform.h"

/* The scales of a layer. s[site] [scales_channels]: the columns of the site's matrices are multiplied by them, the
 * outputs of the op before divided. NULL: the site stays as it is. */
typedef struct llmq_layer_scales {
    float *s[SITE_COUNT];
} llmq_layer_scales;

/* Scales of a site: one for each output of the op before it. *channel_out [columns of the site]: whose scale a column
 * has, by mem_alloc; NULL when that is its own. */
llmq_status scales_channels(const llmq_model *model, llmq_site_id site, int64_t *n_out, int32_t **channel_out,
                            llmq_err *err);
/* Some scale changes tensors of this role. */
bool scales_touch(const llmq_model *model, const llmq_layer_scales *scales, llmq_role role);
/* Changes values (rows, cols) of the layer's tensor of a role, rows in the source's order; a vector has one row. */
void scales_apply(const llmq_model *model, const llmq_layer_scales *scales, llmq_role role, int64_t rows, int64_t cols,
                  float *values);

/* ---- the job's transforms */

typedef struct llmq_transform llmq_transform;

/* What the job tells a transform about a layer's tensors: for entries of ex. */
typedef struct llmq_transform_params {
    llmq_model *model;
    const llmq_export *ex;
    const llmq_calib *calib;
    llmq_calib_memory memory; /* of its run over transform_tokens of them */
    llmq_team *team;
    const llmq_type_info *(*grid)(void *user, size_t index); /* what a matrix will be rounded to, NULL: not at all */
    bool feedback; /* with error feedback, with this damping (as in llmq_quant_problem) */
    double damp;
    bool q8; /* Gram matrices of 8-bit inputs, as the calibration's */
    calib_tick_fn *tick;
    bool (*tick_search)(void *user, double work); /* transform_search_work just done; false stops */
    void *user;                                   /* of all three */
} llmq_transform_params;

llmq_status transform_create(const llmq_transform_params *params, llmq_transform **out, llmq_err *err);
/* Scales that were found before, [n_layer], borrowed: transform_layer then needs neither run nor gram. Of params model,
 * ex and team are read. */
llmq_status transform_create_given(const llmq_transform_params *params, const llmq_layer_scales *layers,
                                   llmq_transform **out, llmq_err *err);
void transform_destroy(llmq_transform *t); /* NULL allowed */
/* Finds the scales of a layer, entries [first, last) of ex. run: the calibration's, where the layer begins; its tokens
 * stay as they are. gram: room for the largest site's. reports [SITE_COUNT]: after 0 where nothing was searched. */
llmq_status transform_layer(llmq_transform *t, const llmq_calib_run *run, int layer, size_t first, size_t last,
                            float *gram, llmq_site_report *reports, llmq_err *err);
/* Of the layer last found; borrowed until the next. */
const llmq_layer_scales *transform_scales(const llmq_transform *t);
/* The layer's vector of a role as the scales change it, NULL if they do not. Borrowed until the next layer. */
const float *transform_vector(const llmq_transform *t, llmq_role role);

/* Bytes beside the calibration run's, while scales are found for a layer, entries [first, last) of ex. */
size_t transform_layer_bytes(const llmq_export *ex, size_t first, size_t last);

/* For forecasts: tokens that pass through the layers once more, and what the search of a site's scales takes on `rows`
 * sampled rows of its matrices together, in a unit that only ratios of mean something. */
int64_t transform_tokens(const llmq_calib *calib);
int64_t transform_sample_rows(int64_t rows); /* of a matrix */
double transform_search_work(int64_t rows, int64_t cols, bool feedback, int n_workers);

#endif
