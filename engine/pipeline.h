/* What the files of the quantization job share: pipeline.c (the job), plan.c (which tensor becomes what, and what that
 * costs), outputs, journal and transforms as they come. Nobody else includes it. */
#ifndef LLMQ_ENGINE_PIPELINE_H
#define LLMQ_ENGINE_PIPELINE_H

#include "engine/calib_run.h"
#include "engine/export.h"
#include "engine/int8.h"
#include "engine/jobs.h"
#include "engine/journal.h"
#include "engine/outputs.h"
#include "engine/sensitivity.h"
#include "engine/transform.h"
#include "quant/policy.h"
#include "quant/quant.h"

/* What work costs here, in nanoseconds of the whole team (probe.c). */
typedef struct pipeline_costs {
    double pass[CALIB_KINDS]; /* the calibration's work by kinds */
    double
        dense_pass[CALIB_KINDS];  /* the same through weights as the source has them: for AWQ and the choice of types */
    double *tensor;               /* [ex->n] of making what is written of a tensor: solving it, or copying */
    double search;                /* a unit of AWQ's search */
    double errors;                /* a unit of the errors that types are chosen by */
    double tune;                  /* of training what was written */
    double self_open, self_token; /* text that the model writes: its weights made ready, each token */
    double source_byte;           /* of reading the source through once */
} pipeline_costs;

/* Of resume.c. Layers are counted: `done` 3 means 0, 1 and 2. */
typedef struct pipeline_resume {
    llmq_journal *journal;
    bool tuning;                     /* the layers are all done, and the tuning behind them has begun */
    bool found;                      /* there is a journal of the same run, not read yet */
    int64_t begin, done, saved;      /* layers: taken over, finished, in the last checkpoint */
    double saved_at, save_seconds;   /* when that was, and how long it took */
    void *tune_state, *tune_streams; /* what a checkpoint of the tuning keeps; the streams may be the journal's */
    struct row_record *records;
    journal_part parts[3];
    size_t n_parts;
} pipeline_resume;

typedef struct pipeline {
    const llmq_quant_params *params;
    const llmq_method *method;
    const llmq_tuner *tuner; /* NULL: none */
    const llmq_device_ops *device_ops; /* --device; NULL: the CPU alone */
    llmq_device_solver *device;        /* made there */
    llmq_tune_plan tune_plan;
    llmq_solver solver; /* the pieces of params->solver */
    llmq_model *model;
    llmq_export *ex;
    llmq_team *team;
    llmq_outputs_spec spec; /* set by pipeline_plan, its paths by pipeline_output_path */
    char gguf_name[256];    /* of the file among several outputs */
    llmq_outputs *outputs;
    llmq_calib calib;
    int64_t self_tokens; /* of it that the model writes */
    llmq_calib_run *run;
    llmq_transform *transform;  /* NULL: layers are quantized as they are */
    struct int8_ranges *ranges; /* of inputs, and their smoothing; NULL: pipeline_finds_ranges is false */
    llmq_quant_result *result;
    llmq_policy_rules rules;
    float *gram;                             /* the largest site's (cols, cols) */
    llmq_weight *ready;                      /* [ROLE_COUNT] of the layer under way, made for the forward pass */
    llmq_type ready_type[ROLE_COUNT];        /* what they are made from, where that is not the source */
    void *ready_data[ROLE_COUNT];            /* its rows */
    llmq_calib_memory memory, scales_memory; /* by budget.c: of run, and of the transform's */
    int64_t choice_chunk;                    /* of the measurements that types are chosen by */
    bool mapped;                             /* hidden states lie in the journal's file, scratch_bytes of it */
    size_t scratch_bytes;
    void *scratch;
    size_t base_bytes, model_bytes; /* of memory: what the job begins with; of it the model's directory */
    pipeline_costs costs;
    char *settings; /* for the journal: lines of all that decides about the result's bytes */
    pipeline_resume resume;
    double start;              /* of the job, in seconds */
    double begun, done, total; /* of the work that the bar shows: when it began, how far it is in nanoseconds */
    double skipped;            /* of done: by an earlier run */
    double mark;               /* when the stage under way began */
    char what[64];
} pipeline;

/* ---- plan_outputs.c: what --emit and the options of its grids ask for */

/* p->spec from the parameters, and whether they make sense together. */
llmq_status pipeline_plan_outputs(pipeline *p, llmq_err *err);
/* The type of matrices inside the layers in a run with an integer scheme or without a GGUF file: what holds their grid
 * in the GGUF file, or F16 (a placeholder) where none is written. */
llmq_status pipeline_folder_type(const pipeline *p, llmq_type *out, llmq_err *err);
/* The planned types are what a run with Hugging Face outputs can write. type: of the matrices inside the layers. */
llmq_status pipeline_check_folders(const pipeline *p, llmq_type type, llmq_err *err);
/* row->to, to_name and bytes of tensor `index`. */
void pipeline_plan_row(const pipeline *p, size_t index, llmq_quant_row *row);
/* STEM-METHOD-TYPE.gguf, STEM-METHOD-gptq, or for several STEM-METHOD, and the name of the GGUF file among those. */
llmq_status pipeline_name_outputs(pipeline *p, const char *stem, const char *method, llmq_type type, char *out,
                                  size_t cap, llmq_err *err);

/* ---- int8_job.c: params->int8 */

const char *pipeline_int8_name(const pipeline *p); /* "int8-dynamic", "int8-static", NULL: neither */
bool pipeline_finds_ranges(const pipeline *p);     /* of inputs, or their smoothing, in a pass before the layers */
/* What it cannot be asked for with; after spec is set. Then the types: rules may keep matrices as floats, not on other
 * grids. */
llmq_status pipeline_check_int8(const pipeline *p, llmq_err *err);
llmq_status pipeline_check_int8_kept(const pipeline *p, llmq_type type, llmq_err *err);
/* What says so in the GGUF file's metadata, and nothing of what the source was. After ex is there. */
llmq_status pipeline_plan_int8(pipeline *p, llmq_err *err);
/* Static: p->ranges, and all that follows from them. With calib, before the manifest. */
llmq_status pipeline_find_ranges(pipeline *p, llmq_err *err);
double forecast_ranges(const pipeline *p);
size_t pipeline_ranges_bytes(const pipeline *p);
/* Of a solved matrix's input; scale 0: each token its own. */
llmq_act_range pipeline_input_range(const pipeline *p, size_t index);

/* ---- plan.c */

/* Fills ex and result->rows: the whole directory of what will be written. *type_out: the type of the matrices inside
 * the layers. */
llmq_status pipeline_plan(pipeline *p, llmq_type *type_out, llmq_err *err);
/* Rows' types and the sizes in result, once types and metadata are what they will be. */
llmq_status pipeline_sizes(pipeline *p, llmq_err *err);
llmq_status pipeline_output_path(pipeline *p, const char *path, llmq_type type, char *out, size_t cap, llmq_err *err);
/* Entry `index` becomes what choice says. The sizes in result do not follow. */
llmq_status pipeline_set_type(pipeline *p, size_t index, const llmq_policy_choice *choice, llmq_err *err);
bool pipeline_is_quantized(llmq_type type);
/* The method works on matrices inside layers that leave float for a quantized type (or one quantized type for
 * another). */
bool pipeline_is_solved(const pipeline *p, size_t index);
/* The type in which the calibration's forward pass multiplies a solved matrix on this grid: its own blocks, or BF16. */
llmq_type pipeline_pass_type(const pipeline *p, const llmq_type_info *grid);
/* Calibration tokens run through the model: for the method, or for what comes before it. */
bool pipeline_calibrates(const pipeline *p);
/* The job needs calibration text: for that, for the choice of types, or for tuning. */
bool pipeline_needs_text(const pipeline *p);

/* ---- probe.c: fills costs. A plan must be there, and the calibration's windows counted. */

llmq_status probe_passes(pipeline *p, llmq_err *err);
llmq_status probe_tensors(pipeline *p, llmq_err *err);
llmq_status probe_search(pipeline *p, llmq_err *err);
llmq_status probe_errors(pipeline *p, llmq_err *err);
llmq_status probe_self(pipeline *p, llmq_err *err);
void probe_source(pipeline *p);

/* ---- forecast.c: nanoseconds from work and costs */

double forecast_pass(const double costs[CALIB_KINDS], const llmq_calib_work *work);
double forecast_search(const pipeline *p, double work); /* transform_search_work */
double forecast_errors(const pipeline *p, double work); /* sensitivity_error_work */
/* All tensors, and the calibration between them; its parts by what they count as, NULL allowed. */
double forecast_layers(const pipeline *p, double stages[LLMQ_STAGE_COUNT]);
double forecast_choice(const pipeline *p); /* pipeline_choose_types */
double forecast_self(const pipeline *p);   /* the text that the model writes */
double forecast_source(const pipeline *p); /* the manifest's sums */
llmq_status forecast_tuning(pipeline *p, llmq_err *err); /* sets costs.tune */

/* ---- budget.c */

/* The most memory and disk the job will take, into result; cut to --max-ram in this order: the hidden states in the
 * journal's file, then fewer tokens at a time. The result's bytes stay the same. After the sizes. */
llmq_status pipeline_budget(pipeline *p, llmq_err *err);
/* How a job with tuning does that within --max-ram, or what this machine has: decides about the result's bytes. */
llmq_status pipeline_plan_tuning(pipeline *p, llmq_err *err);
/* Before the calibration text and the choice of types: that these can do with --max-ram. */
llmq_status pipeline_budget_before(pipeline *p, llmq_err *err);
llmq_status pipeline_take_scratch(pipeline *p, llmq_err *err); /* as planned, once the journal is open */
size_t pipeline_gram_bytes(const pipeline *p);                 /* the widest site's; 0: none */

/* ---- manifest.c: llmq.manifest into the metadata, and settings. After the plan and the calibration. */
llmq_status pipeline_manifest(pipeline *p, llmq_err *err);

/* ---- resume.c */

/* Locks OUT.journal and checks the room on the disk. After the manifest. */
llmq_status pipeline_open_journal(pipeline *p, llmq_err *err);
/* Takes over what an earlier run did, or begins anew, and opens the outputs. Right before the layers. */
llmq_status pipeline_begin(pipeline *p, llmq_err *err);
/* An earlier run wrote this tensor. */
bool pipeline_is_there(const pipeline *p, size_t index);
/* After a layer, before anything of the next: takes a checkpoint if it is time. */
llmq_status pipeline_layer_done(pipeline *p, int layer, llmq_err *err);
/* The end of the job however it ends; after outputs_finish when it went well. Decides what stays for the next run. */
void pipeline_end(pipeline *p, llmq_status status);
size_t pipeline_checkpoint_bytes(pipeline *p);
/* After the layers: the calibration's memory goes, the tuning's is there. */
llmq_status pipeline_begin_tuning(pipeline *p, llmq_err *err);
llmq_status pipeline_save_tuning(void *user, bool streams, bool now, llmq_err *err); /* llmq_tune_job's */
/* ---- pipeline.c */

/* calib_tick_fn, user: the pipeline. Of the calibration's passes, and of those through the source's weights. */
bool pipeline_tick(void *user, const llmq_calib_work *done);
bool pipeline_tick_dense(void *user, const llmq_calib_work *done);
bool pipeline_advance(pipeline *p, double cost); /* so many nanoseconds of work are done; false stops */

/* What the layers need, unless they are all done: the calibration's run, the transform. */
llmq_status pipeline_create_calibration(pipeline *p, llmq_err *err);
llmq_tune_job pipeline_tune_job(pipeline *p);
/* What the calibration's passes took into the result; their memory goes. NULL run allowed. */
void pipeline_drop_calibration(pipeline *p);

/* ---- mixed.c */

/* A size is given and the types are to be chosen for it. */
bool pipeline_has_target(const pipeline *p);
/* All of it but what is open. */
llmq_sensitivity_job pipeline_sensitivity_job(pipeline *p);
/* After pipeline_plan and with calib: measures the layers and chooses the types that no rule fixes. */
llmq_status pipeline_choose_types(pipeline *p, llmq_err *err);

#endif
