/* One file or folder of a quantization run: what outputs.c keeps a list of. One file a kind (output_gguf.c, ...);
 * nobody else includes it. */
#ifndef LLMQ_ENGINE_OUTPUT_H
#define LLMQ_ENGINE_OUTPUT_H

#include "engine/outputs.h"

typedef struct llmq_output llmq_output;

typedef struct llmq_output_kind {
    const char *name; /* "gguf", "folder" */
    /* outputs.h's functions of the same names, for this output alone. */
    llmq_status (*put)(llmq_output *o, size_t index, const llmq_quantized *q, llmq_team *team, llmq_err *err);
    llmq_status (*put_plain)(llmq_output *o, size_t index, const float *values, llmq_team *team, bool *exact_out,
                             export_tick_fn *tick, void *user, llmq_err *err);
    llmq_status (*get)(llmq_output *o, size_t index, llmq_quantized **out, llmq_err *err);
    llmq_status (*get_plain)(llmq_output *o, size_t index, llmq_tensor *out, llmq_err *err);
    llmq_status (*have)(llmq_output *o, size_t index, llmq_err *err);
    llmq_status (*sync)(llmq_output *o, llmq_err *err);
    llmq_status (*finish)(llmq_output *o, int64_t *bytes_out, llmq_err *err); /* o is gone afterwards */
    void (*drop)(llmq_output *o, bool keep);
} llmq_output_kind;

struct llmq_output {
    const llmq_output_kind *kind;
    const llmq_export *ex;      /* the run's, with GGUF's names and order of rows */
    const llmq_type_info *grid; /* what matrices inside layers come on; NULL: each tensor's own type */
};

llmq_status output_gguf_open(const llmq_outputs_spec *spec, const char *path, const llmq_export *ex, llmq_output **out,
                             llmq_err *err);
/* The folder dir is there and is filled. name: gptq, awq, ct, bnb or hf. */
llmq_status output_hf_open(const llmq_outputs_spec *spec, const char *name, const char *dir, const llmq_export *ex,
                           llmq_output **out, llmq_err *err);
llmq_status output_hf_plan_bytes(const llmq_outputs_spec *spec, const char *name, const llmq_export *ex, int64_t *bytes,
                                 llmq_err *err);
const llmq_scheme_spec *output_scheme_spec(const llmq_outputs_spec *spec, const char *name);
/* The same for matrix `index` of ex. */
llmq_scheme_spec output_matrix_spec(const llmq_outputs_spec *spec, const char *name, const llmq_export *ex,
                                    size_t index);

#define HF_FILES_MARK "written_by" /* in the config.json of a folder with nothing quantized: --force may replace it */
/* hf_files.c: config.json and all that lies beside the weights. scheme NULL: all tensors are of the type `plain`. */
llmq_status hf_files_write(const char *dir, const llmq_export *ex, const llmq_scheme *scheme,
                           const llmq_scheme_spec *spec, llmq_type plain, llmq_err *err);
/* NAME is one that hf_files_write or the writer of weights makes. */
bool hf_files_has(const char *name);

#endif
