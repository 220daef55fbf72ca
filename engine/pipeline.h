/* What the files of the quantization job share: pipeline.c (the job), plan.c (which tensor becomes what, and what that
 * costs), outputs, journal and transforms as they come. Nobody else includes it. */
#ifndef LLMQ_ENGINE_PIPELINE_H
#define LLMQ_ENGINE_PIPELINE_H

#include "engine/calib_run.h"
#include "engine/export.h"
#include "engine/jobs.h"
#include "engine/journal.h"
#include "engine/outputs.h"
#include "engine/transform.h"
#include "quant/policy.h"
#include "quant/quant.h"

/* Nominal costs in nanoseconds of one thread: only their ratios matter, for the time left. */
#define COST_WEIGHT_MAC 0.005
#define COST_SELF_MAC 0.03
#define COST_GRAM_MAC 0.006
#define COST_FEEDBACK_MAC 0.012
#define COST_FACTOR_MAC 0.012
#define COST_FIT 150.0
#define COST_COPY 2.0

/* Of resume.c. Layers are counted: `done` 3 means 0, 1 and 2. */
typedef struct pipeline_resume {
    llmq_journal *journal;
    bool found;                    /* there is a journal of the same run, not read yet */
    int64_t begin, done, saved;    /* layers: taken over, finished, in the last checkpoint */
    double saved_at, save_seconds; /* when that was, and how long it took */
    struct row_record *records;
    journal_part parts[3];
    size_t n_parts;
} pipeline_resume;

typedef struct pipeline {
    const llmq_quant_params *params;
    const llmq_method *method;
    llmq_solver solver; /* the pieces of params->solver */
    llmq_model *model;
    llmq_export *ex;
    llmq_team *team;
    llmq_outputs_spec spec; /* set by pipeline_plan, its paths by pipeline_output_path */
    char gguf_name[256];    /* of the file among several outputs */
    llmq_outputs *outputs;
    llmq_calib calib;
    llmq_calib_run *run;
    llmq_transform *transform; /* NULL: layers are quantized as they are */
    llmq_quant_result *result;
    llmq_policy_rules rules;
    float *gram;                      /* the largest site's (cols, cols) */
    llmq_weight *ready;               /* [ROLE_COUNT] of the layer under way, made for the forward pass */
    llmq_type ready_type[ROLE_COUNT]; /* what they are made from, where that is not the source */
    void *ready_data[ROLE_COUNT];     /* its rows */
    llmq_calib_memory memory;         /* of budget.c */
    size_t scratch_bytes;             /* of it in the journal's file */
    char *settings;                   /* for the journal: lines of all that decides about the result's bytes */
    pipeline_resume resume;
    double skipped;            /* of done: by an earlier run */
    double start, done, total; /* start in seconds; done of total in nominal nanoseconds */
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
/* A solved matrix on this grid is multiplied in its own blocks by the calibration's forward pass; else in bf16. */
bool pipeline_runs_packed(const pipeline *p, const llmq_type_info *grid);
/* Nominal nanoseconds: of solving a matrix, and of the whole job once the calibration text is known. */
double pipeline_solve_cost(const pipeline *p, size_t index);
/* Calibration tokens run through the model: for the method, or for what comes before it. */
bool pipeline_calibrates(const pipeline *p);
double pipeline_total_cost(const pipeline *p);

/* ---- budget.c */

/* The most memory and disk the job will take, into result; cut to --max-ram in this order: the hidden states in the
 * journal's file, then fewer tokens at a time. The result's bytes stay the same. After the sizes. */
llmq_status pipeline_budget(pipeline *p, llmq_err *err);
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
size_t pipeline_checkpoint_bytes(const pipeline *p);
/* ---- pipeline.c */

bool pipeline_tick(void *user, double weight_macs, double gram_macs); /* calib_tick_fn, user: the pipeline */

/* ---- mixed.c */

/* A size is given and the types are to be chosen for it. */
bool pipeline_has_target(const pipeline *p);
/* After pipeline_plan and with calib: measures the layers and chooses the types that no rule fixes. */
llmq_status pipeline_choose_types(pipeline *p, llmq_err *err);
/* Nominal nanoseconds of that. */
double pipeline_choose_cost(const pipeline *p);

#endif
