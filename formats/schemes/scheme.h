/* Hugging Face weight schemes: how a quantized matrix is laid out over several tensors of a safetensors file. One file
 * a scheme, one line in schemes.def. A scheme knows bytes and config.json's quantization_config, nothing of methods.
 * Layouts: docs/formats.md; sources in each file. */
#ifndef LLMQ_FORMATS_SCHEME_H
#define LLMQ_FORMATS_SCHEME_H

#include <jansson.h>

#include "formats/format.h"
#include "types/quantized.h"

#define SCHEME_MAX_MEMBERS 8

/* What the matrices of one model have in common. */
typedef struct llmq_scheme_spec {
    int bits;           /* 2, 3, 4, 8 */
    int64_t group;      /* weights of a row that share a scale; -1: the whole row. bnb: the block */
    bool sym;           /* no zero points (the levels are centred) */
    bool double_quant;  /* bnb: the scales are quantized too */
    bool fp4;           /* bnb: FP4 instead of NF4 */
    bool zero_plus_one; /* gptq: zeros are stored as they are (checkpoint_format gptq_v2), not less one (v1) */
    bool act_quant;     /* ct: int-quantized (int8 weights of whole rows, activations quantized at run time) */
} llmq_scheme_spec;

/* One tensor of a matrix: "P.weight" is stored as P + suffix. */
typedef struct llmq_scheme_member {
    const char *suffix; /* ".qweight" */
    const char *dtype;  /* as safetensors spells it: "I32", "F16", ... */
    int n_dims;
    int64_t dims[2]; /* outermost first, as safetensors lists them */
    int64_t bytes;
    bool optional; /* reading: may be absent */
} llmq_scheme_member;

typedef struct llmq_scheme {
    const char *name;         /* as --emit names it: "gptq", "awq", "ct", "bnb" */
    const char *quant_method; /* config.json's word */

    /* The grid that a matrix must have been quantized on to be split (types/affine.h, types/nf4.c). */
    const llmq_type_info *(*grid)(const llmq_scheme_spec *spec);
    /* LLMQ_E_UNSUPPORTED with what would fit, if the scheme or the engines that read it cannot hold a matrix of rows x
     * cols. name: for the message. */
    llmq_status (*check)(const llmq_scheme_spec *spec, const char *name, int64_t rows, int64_t cols, llmq_err *err);
    /* The tensors of a matrix of rows x cols into out; returns how many. */
    int (*members)(const llmq_scheme_spec *spec, int64_t rows, int64_t cols,
                   llmq_scheme_member out[SCHEME_MAX_MEMBERS]);
    /* q to the bytes of its members, data[i] of members()[i].bytes. One thread; exact for a q on grid(spec). */
    llmq_status (*split)(const llmq_scheme_spec *spec, const llmq_quantized *q, void *const *data, llmq_err *err);
    /* quantization_config of config.json for a model whose matrices inside layers are all of spec, the head not. */
    json_t *(*config)(const llmq_scheme_spec *spec);

    /* Reads quantization_config into spec. LLMQ_E_UNSUPPORTED names the field that llmq cannot read. */
    llmq_status (*read_config)(const json_t *config, const char *file, llmq_scheme_spec *spec, llmq_err *err);
    /* The matrix whose members are data[i] (NULL: absent): checks shapes and sizes, then gives codes and grids.
     * *group_of (by mem_alloc, [cols]) is set where groups do not follow the order of the columns (act-order), else
     * NULL. q may be one row of rows*cols weights where blocks run over the ends of rows. */
    llmq_status (*join)(const llmq_scheme_spec *spec, const char *name, const llmq_tensor *const members[],
                        int64_t rows, int64_t cols, llmq_quantized **q, int32_t **group_of, llmq_err *err);
} llmq_scheme;

const llmq_scheme *scheme_at(size_t index);                     /* NULL past the end */
const llmq_scheme *scheme_find(const char *name);               /* by --emit's name; NULL if unknown */
const llmq_scheme *scheme_for_config(const char *quant_method); /* NULL if unknown */

#endif
