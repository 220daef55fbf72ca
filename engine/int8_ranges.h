/* INT8: smoothing of every matrix's input, and for static INT8 its range, found before anything is quantized in one
 * pass of the calibration tokens through the full-precision layers. */
#ifndef LLMQ_ENGINE_INT8_RANGES_H
#define LLMQ_ENGINE_INT8_RANGES_H

#include "engine/calib_run.h"
#include "engine/export.h"
#include "engine/transform.h"
#include "llmq_quant.h"

/* Of the layers' multiply-adds at most so much may be kept in higher precision. */
#define INT8_KEPT_SHARE 0.05

typedef struct int8_ranges {
    size_t n_layer;
    llmq_quant_input *inputs;  /* (n_layer, SITE_COUNT) */
    llmq_act_range *range;     /* likewise; scale 0: kept */
    llmq_layer_scales *scales; /* [n_layer] smoothing */
    llmq_layer_scales *token;  /* [n_layer] likewise, of what may be kept: the best with a scale for each token */
} int8_ranges;

typedef struct int8_ranges_job {
    llmq_model *model; /* opened, possibly with no_weights */
    const llmq_export *ex;
    const llmq_calib *calib;
    llmq_team *team;
    bool fixed; /* ranges are to be found, else each token has its own */
    bool smooth;
    const llmq_type_info *(*grid)(void *user, size_t index); /* what a matrix will be rounded to, NULL: not at all */
    calib_tick_fn *tick;
    bool (*tick_search)(void *user, double work); /* int8_ranges_work of a site just done; false stops */
    void *user;                                   /* of all three */
} int8_ranges_job;

llmq_status int8_ranges_create(size_t n_layer, int8_ranges **out, llmq_err *err); /* all kept, no smoothing */
void int8_ranges_destroy(int8_ranges *r);                                         /* NULL allowed */
llmq_status int8_ranges_find(const int8_ranges_job *job, int8_ranges *r, llmq_err *err);

/* Tokens that pass, and for forecasts: nanoseconds of some machine for a site's search on so many sampled rows. */
int64_t int8_ranges_tokens(const llmq_hparams *hp, const llmq_calib *calib);
int64_t int8_ranges_rows(int64_t rows); /* of a matrix, sampled */
double int8_ranges_work(int64_t rows, int64_t cols, int64_t n_tok, bool fixed, bool smooth, int n_workers);
/* Bytes beside those of the run. */
size_t int8_ranges_bytes(const llmq_export *ex, const llmq_calib *calib);

#endif
