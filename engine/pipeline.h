/* What the files of the quantization job share: pipeline.c (the job), plan.c (which tensor becomes what, and what that
 * costs), outputs, journal and transforms as they come. Nobody else includes it. */
#ifndef LLMQ_ENGINE_PIPELINE_H
#define LLMQ_ENGINE_PIPELINE_H

#include "engine/calib_run.h"
#include "engine/export.h"
#include "engine/jobs.h"
#include "engine/outputs.h"
#include "engine/transform.h"
#include "quant/policy.h"
#include "quant/quant.h"

/* Nominal costs in nanoseconds of one thread: only their ratios matter, for the time left. */
#define COST_WEIGHT_MAC 0.005
#define COST_GRAM_MAC 0.006
#define COST_FEEDBACK_MAC 0.012
#define COST_FACTOR_MAC 0.012
#define COST_FIT 150.0
#define COST_COPY 2.0

typedef struct pipeline {
    const llmq_quant_params *params;
    const llmq_method *method;
    llmq_model *model;
    llmq_export *ex;
    llmq_team *team;
    llmq_outputs_spec spec; /* set by pipeline_plan, its path by pipeline_output_path */
    llmq_outputs *outputs;
    llmq_calib calib;
    llmq_calib_run *run;
    llmq_transform *transform; /* NULL: layers are quantized as they are */
    llmq_quant_result *result;
    llmq_policy_rules rules;
    float *gram;                  /* the largest site's (cols, cols) */
    llmq_weight *ready;           /* [ROLE_COUNT] of the layer under way, made for the forward pass */
    void *ready_bf16[ROLE_COUNT]; /* what they view, where that is not the source */
    double start, done, total;    /* start in seconds; done of total in nominal nanoseconds */
    double mark;                  /* when the stage under way began */
    char what[64];
} pipeline;

/* ---- plan.c */

/* Fills ex, result->rows and the sizes: the whole directory of what will be written. *type_out: the type of the
 * matrices inside the layers. */
llmq_status pipeline_plan(pipeline *p, llmq_type *type_out, llmq_err *err);
llmq_status pipeline_output_path(const pipeline *p, const char *path, llmq_type type, char *out, size_t cap,
                                 llmq_err *err);
bool pipeline_is_quantized(llmq_type type);
/* The method works on matrices inside layers that leave float for a quantized type (or one quantized type for
 * another). */
bool pipeline_is_solved(const pipeline *p, size_t index);
/* Nominal nanoseconds: of solving a matrix, and of the whole job once the calibration text is known. */
double pipeline_solve_cost(const pipeline *p, size_t index);
/* Calibration tokens run through the model: for the method, or for what comes before it. */
bool pipeline_calibrates(const pipeline *p);
double pipeline_total_cost(const pipeline *p);

#endif
