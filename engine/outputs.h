/* Where quantized models go: a GGUF file, Hugging Face folders of one scheme each, or several of them from one run. The
 * whole directory of every output is known before the first byte; tensors then come in any order. */
#ifndef LLMQ_ENGINE_OUTPUTS_H
#define LLMQ_ENGINE_OUTPUTS_H

#include "engine/export.h"
#include "types/quantized.h"

typedef struct llmq_outputs llmq_outputs;

/* What the matrices inside layers are quantized to, and what is written of them. */
typedef struct llmq_outputs_spec {
    const char *emit;    /* "gguf", "gptq,ct", ...: NULL is gguf */
    const char *out;     /* the file, the folder, or for several the folder above them */
    int64_t shard_bytes; /* of safetensors files; 0: one file */
    bool force;
    bool resume; /* OUT.tmp of a run with the same directory is there and goes on; what it holds stays */
} llmq_outputs_spec;

/* What matrix `index` of ex is to be quantized on: the k-th distinct grid that the outputs need, the first output's
 * first; NULL past the end. */
const llmq_type_info *outputs_grid(const llmq_outputs_spec *spec, const llmq_export *ex, size_t index, size_t k);

/* Types of ex are set. Checks what the schemes can hold; creates OUT.tmp. With resume an OUT.tmp that is not there or
 * of another directory is LLMQ_E_IO or LLMQ_E_FORMAT and stays as it is. */
llmq_status outputs_open(const llmq_outputs_spec *spec, const llmq_export *ex, llmq_outputs **out, llmq_err *err);
/* Bytes of all finished files, without writing. */
llmq_status outputs_plan_bytes(const llmq_outputs_spec *spec, const llmq_export *ex, int64_t *bytes, llmq_err *err);
/* Matrix `index` of ex as solved, rows in the source's order. By the calling thread, with the team's help. */
llmq_status outputs_put(llmq_outputs *o, size_t index, const llmq_quantized *q, llmq_team *team, llmq_err *err);
/* Tensor `index` from values [rows * cols] in the source's order instead of the source itself (a transform changed
 * them), or from the source (values NULL). */
llmq_status outputs_put_plain(llmq_outputs *o, size_t index, const float *values, llmq_team *team, bool *exact_out,
                              export_tick_fn *tick, void *user, llmq_err *err);
/* After opening with resume: tensor `index` was put before the outputs_sync that the run goes on from. */
llmq_status outputs_have(llmq_outputs *o, size_t index, llmq_err *err);
/* All bytes put so far are on the disk (fdatasync). */
llmq_status outputs_sync(llmq_outputs *o, llmq_err *err);
/* What tensor `index` means as it was put, read back from OUT.tmp for a run that goes on: values [rows * cols] in the
 * source's order. */
llmq_status outputs_read_back(llmq_outputs *o, size_t index, float *values, llmq_team *team, llmq_err *err);
/* Side files, sync, rename. o is gone afterwards, also on failure. */
llmq_status outputs_finish(llmq_outputs *o, int64_t *bytes_out, llmq_err *err);
/* keep: OUT.tmp stays for a run that goes on. */
void outputs_abort(llmq_outputs *o, bool keep); /* NULL allowed */

#endif
