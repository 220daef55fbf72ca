/* Where quantized models go: a GGUF file, Hugging Face folders of one scheme each, or several of them from one run. The
 * whole directory of every output is known before the first byte; tensors then come in any order. */
#ifndef LLMQ_ENGINE_OUTPUTS_H
#define LLMQ_ENGINE_OUTPUTS_H

#include "engine/export.h"
#include "formats/schemes/scheme.h"
#include "types/quantized.h"

typedef struct llmq_outputs llmq_outputs;

/* Every name that --emit takes. */
#define OUTPUTS_MAX 6

/* What the matrices inside layers are quantized to, and what is written of them. */
typedef struct llmq_outputs_spec {
    const char *emit;         /* "gguf", "gptq,ct", ...: NULL is gguf; "hf", alone: nothing is quantized */
    const char *out;          /* the file, the folder, or for several the folder above them */
    const char *gguf_name;    /* for several: of the GGUF file in OUT/gguf/ */
    llmq_scheme_spec integer; /* of gptq, awq and ct, and then of the GGUF file too; with act_quant always */
    llmq_scheme_spec bnb;
    const llmq_act_range *inputs; /* (n_layer, SITE_COUNT) of integer.act_static; borrowed */
    llmq_type plain;              /* of hf: F32, F16 or BF16, of every tensor */
    int64_t shard_bytes;          /* of safetensors files; 0: one file */
    bool force;
    bool resume; /* OUT.tmp of a run with the same directory is there and goes on; what it holds stays */
} llmq_outputs_spec;

/* LLMQ_E_ARG for names that are unknown or there twice, and for hf, which holds nothing quantized. */
llmq_status outputs_check_emit(const char *emit, llmq_err *err);
bool outputs_emits(const llmq_outputs_spec *spec, const char *name);
size_t outputs_count(const llmq_outputs_spec *spec);
/* INT8, or gptq, awq or ct is among them: one integer grid for all that can have it. */
bool outputs_have_integer(const llmq_outputs_spec *spec);
/* Something else than a GGUF file is: matrices inside layers must all be quantized. */
bool outputs_have_folder(const llmq_outputs_spec *spec);
/* The first output's name. */
const char *outputs_first(const llmq_outputs_spec *spec);
/* The GGUF type that holds the integer grid without change of codes and scales; LLMQ_TYPE_NONE: none does. */
llmq_type outputs_integer_type(const llmq_scheme_spec *integer);
/* Every matrix inside layers fits every output; before any work. */
llmq_status outputs_check(const llmq_outputs_spec *spec, const llmq_export *ex, llmq_err *err);
/* OUT may be written: it is no part of the source, and absent or (with replace) one that such a run wrote. */
llmq_status outputs_check_path(const llmq_outputs_spec *spec, const llmq_source *source, bool replace, llmq_err *err);
/* Bytes of tensor `index` in the first output. */
int64_t outputs_tensor_bytes(const llmq_outputs_spec *spec, const llmq_export *ex, size_t index);

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
/* Matrix `index` as it was put last, rows in the source's order; of the first output whose grid it is, a folder before
 * a GGUF file. */
llmq_status outputs_get(llmq_outputs *o, size_t index, llmq_quantized **out, llmq_err *err);
/* Tensor `index` that was put plainly, in the first output's type and the source's order of rows. out->data by
 * mem_alloc; NULL where the output has no such tensor. */
llmq_status outputs_get_plain(llmq_outputs *o, size_t index, llmq_tensor *out, llmq_err *err);
/* After opening with resume: tensor `index` was put before the outputs_sync that the run goes on from. */
llmq_status outputs_have(llmq_outputs *o, size_t index, llmq_err *err);
/* All bytes put so far are on the disk (fdatasync). */
llmq_status outputs_sync(llmq_outputs *o, llmq_err *err);
/* Side files, sync, rename. o is gone afterwards, also on failure. */
llmq_status outputs_finish(llmq_outputs *o, int64_t *bytes_out, llmq_err *err);
/* keep: OUT.tmp stays for a run that goes on. */
void outputs_abort(llmq_outputs *o, bool keep); /* NULL allowed */

#endif
