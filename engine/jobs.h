/* The two jobs behind llmq_quant.h. */
#ifndef LLMQ_ENGINE_JOBS_H
#define LLMQ_ENGINE_JOBS_H

#include "core/device.h"
#include "formats/format.h"
#include "llmq_quant.h"

/* What the quantization job gives to a stage that trains what it has written, before the outputs are finished. */
struct llmq_calib;
struct llmq_outputs;
/* How: one layer after the other, each against the outputs of the full-precision one; the whole model against its
 * distributions; or first the one and then the other. */
typedef struct llmq_tune_plan {
    bool blocks, whole;
} llmq_tune_plan;

typedef struct llmq_tune_need { /* bytes */
    size_t state;               /* of a checkpoint */
    size_t streams;             /* of one block by block, besides: may lie in the journal's file */
    size_t work;                /* beside both */
} llmq_tune_need;

typedef struct llmq_tune_job {
    struct llmq_model *model; /* the full-precision source, opened with no_weights */
    const struct llmq_export *ex;
    struct llmq_outputs *outputs; /* hold every tensor */
    const struct llmq_calib *calib;
    struct llmq_team *team;
    const llmq_quant_params *params;
    llmq_quant_result *result;
    llmq_tune_plan plan;
    /* As large as need says, MEM_ALIGN; zeros, or what an earlier run saved last. Streams hold anything if that run
     * saved none. */
    void *state, *streams;
    bool restored;
    /* The grid of a quantized matrix; NULL: the tensor is not quantized. */
    const struct llmq_type_info *(*grid)(void *user, size_t index);
    /* Are a quantized matrix's inputs 8 bits, and in which range? */
    bool (*input)(void *user, size_t index, llmq_act_range *range);
    bool (*tick)(void *user, double share, const char *what); /* of the stage just done; false stops */
    /* State, and streams if asked for, into the journal, so that a killed run goes on from there; now, or only if it is
     * time for that. */
    llmq_status (*save)(void *user, bool streams, bool now, llmq_err *err);
    void (*skip)(void *user, double share); /* of the stage: an earlier run did it */
    void *user;
} llmq_tune_job;

/* Nanoseconds of the team for a token and a weight inside layers. */
typedef struct llmq_tune_costs {
    double dense;         /* the full-precision model's layers, forward */
    double forward, step; /* the quantized model's, forward; forward and back, with what is trained */
} llmq_tune_costs;

/* The stage of params->tune, which a room above knows. */
typedef struct llmq_tuner {
    /* Once there is a plan of the job: that it can be done, and how, with so many bytes of memory. */
    llmq_status (*plan)(const llmq_tune_job *job, size_t room, llmq_tune_plan *out, llmq_err *err);
    llmq_tune_need (*need)(const llmq_tune_job *job);
    /* Nanoseconds that run will take, by trying its parts here; dense: of a float matrix's weight and a token. */
    llmq_status (*cost)(const llmq_tune_job *job, double dense, double *out, llmq_err *err);
    llmq_status (*run)(const llmq_tune_job *job, llmq_err *err);
} llmq_tuner;

/* pipeline.c. *result is zeroed; on failure its rows are freed. device: opened by this thread, or NULL. */
llmq_status job_quantize_on(const char *path, const llmq_quant_params *params, const llmq_tuner *tuner,
                            const llmq_device_ops *device, llmq_quant_result *result, llmq_err *err);
/* On the device that params name. */
llmq_status job_quantize_with(const char *path, const llmq_quant_params *params, const llmq_tuner *tuner,
                              llmq_quant_result *result, llmq_err *err);
static inline llmq_status job_quantize(const char *path, const llmq_quant_params *params, llmq_quant_result *result,
                                       llmq_err *err) {
    return job_quantize_with(path, params, NULL, result, err);
}
/* convert.c */
llmq_status job_convert(const char *path, const char *out, const llmq_convert_params *params,
                        llmq_convert_result *result, llmq_err *err);

/* convert_hf.c: params->emit of Hugging Face folders. */
struct llmq_export;
struct llmq_team;
llmq_status convert_to_folders(const struct llmq_export *ex, const char *out, const llmq_convert_params *params,
                               struct llmq_team *team, llmq_convert_result *result, llmq_err *err);

/* Refuses to write over what is being read, and over anything else without force (LLMQ_E_EXISTS). option: what named
 * out, for the message. */
llmq_status job_check_output(const llmq_source *source, const char *out, const char *option, bool force, llmq_err *err);

#endif
