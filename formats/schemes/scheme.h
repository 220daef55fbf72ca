/* Hugging Face weight schemes: how a quantized matrix is laid out over several tensors of a safetensors file. One file
 * a scheme, one line in schemes.def. A scheme knows bytes and config.json's quantization_config, nothing of methods.
 * Layouts: docs/formats.md; sources in each file. */
#ifndef LLMQ_FORMATS_SCHEME_H
#define LLMQ_FORMATS_SCHEME_H

#include <jansson.h>

#include "formats/source.h"
#include "types/quantized.h"

#define SCHEME_MAX_MEMBERS 10

/* What the matrices of one model have in common. */
typedef struct llmq_scheme_spec {
    int bits;             /* 2, 3, 4, 8 (reading ct: 1 to 8; 0: not the same for all matrices) */
    int64_t group;        /* weights of a row that share a scale; -1: the whole row. bnb: the block */
    bool sym;             /* no zero points (the levels are centred) */
    bool double_quant;    /* bnb: the scales are quantized too */
    bool fp4;             /* bnb: FP4 instead of NF4 */
    bool zero_plus_one;   /* gptq: zeros are stored as they are (checkpoint_format gptq_v2), not less one (v1) */
    bool act_quant;       /* ct: int-quantized (int8 weights of whole rows, 8-bit inputs of all matrices), */
    bool act_static;      /* in fixed ranges, at least some; else each token's in a range of its own */
    bool act_zero;        /* the fixed ranges have zero points */
    llmq_act_range input; /* writing: of the matrix at hand */
    const char *const *token_names; /* writing: n_token_names matrices ("P") that are not in fixed ranges after all */
    size_t n_token_names;
    double damp; /* gptq, writing: goes on record in config.json; 0: nothing to say */
} llmq_scheme_spec;

/* One tensor of a matrix to write: "P.weight" is stored as P + suffix. */
typedef struct llmq_scheme_member {
    const char *suffix; /* ".qweight" */
    const char *dtype;  /* as safetensors spells it: "I32", "F16", ... */
    int n_dims;
    int64_t dims[2]; /* outermost first, as safetensors lists them */
    int64_t bytes;
} llmq_scheme_member;

/* One matrix to read. value(r, c) = scale * (level - zero) of the group that (r, c) lies in. */
typedef struct llmq_scheme_matrix {
    const char *file, *name; /* of the container and the matrix ("P.weight"), for messages */
    llmq_scheme_spec spec;
    const llmq_tensor *members[SCHEME_MAX_MEMBERS]; /* by llmq_scheme.suffixes; NULL: absent */

    /* Set by llmq_scheme.open. */
    int64_t rows, cols;
    int bits;             /* of a code */
    const float *levels;  /* [1 << bits]; NULL: the code itself */
    llmq_type type;       /* with levels: the storage type that has them in blocks; LLMQ_TYPE_NONE: there is none */
    int64_t n_groups;     /* of a row; of all rows together if flat */
    int64_t group;        /* weights that share a scale; the last group of a row may have less */
    int32_t *group_of;    /* [cols] by mem_alloc where groups do not follow the order of the columns, else NULL */
    bool flat;            /* groups are counted over the ends of rows; the first of a slab may begin before it */
    int layout;           /* the scheme's own */
    llmq_act_range input; /* ct, with act_quant */
    int64_t nested_group; /* bnb: scales that share a number of the second level; 0: there is none */
    float nested_offset;  /* bnb */
} llmq_scheme_matrix;

typedef struct llmq_scheme {
    const char *name;         /* as --emit names it: "gptq", "awq", "ct", "bnb" */
    const char *quant_method; /* config.json's word */

    /* ---- writing ---- */
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
    /* quantization_config of config.json for a model whose matrices inside layers are all of spec, the head not. NULL:
     * out of memory. */
    json_t *(*config)(const llmq_scheme_spec *spec);

    /* ---- reading ---- */
    /* All members that a matrix may have, NULL at the end. A tensor of integers whose name ends in one of the first
     * n_keys is where a matrix begins. */
    const char *const *suffixes;
    int n_keys;
    /* Reads quantization_config into spec. LLMQ_E_UNSUPPORTED names the field that llmq cannot read. */
    llmq_status (*read_config)(const json_t *config, const char *file, llmq_scheme_spec *spec, llmq_err *err);
    /* From the members (untrusted: every dtype and shape is checked here) to the fields below them. */
    llmq_status (*open)(llmq_scheme_matrix *m, llmq_err *err);
    /* Rows [row, row + n): scale and zero (n, n_groups), or of the groups from row * cols / group on if flat. flat: row
     * is a multiple of 64. */
    void (*scales)(const llmq_scheme_matrix *m, int64_t row, int64_t n, float *scale, int16_t *zero);
    /* Rows [row, row + n): codes (n, cols), all below 1 << bits. */
    void (*codes)(const llmq_scheme_matrix *m, int64_t row, int64_t n, uint8_t *codes);
} llmq_scheme;

const llmq_scheme *scheme_at(size_t index);                     /* NULL past the end */
const llmq_scheme *scheme_find(const char *name);               /* by --emit's name; NULL if unknown */
const llmq_scheme *scheme_for_config(const char *quant_method); /* NULL if unknown */

#define MEMBER_FLOAT ((llmq_type)-2) /* for scheme_need: F16, BF16 or F32 */

/* The inverse of split: q (created on grid(spec), rows x cols) from the members' bytes, data[i] of members()[i]. */
llmq_status scheme_join(const llmq_scheme *scheme, const llmq_scheme_spec *spec, const char *name, void *const *data,
                        llmq_quantized *q, llmq_err *err);

/* For readers: member number i is there with this type and shape (outermost first; cols -1: one dimension; a 0 takes
 * any size). */
llmq_status scheme_need(const llmq_scheme_matrix *m, const llmq_scheme *scheme, int i, llmq_type type, int64_t rows,
                        int64_t cols, llmq_err *err);
/* The number in type's levels of each of m's codes. */
void scheme_map_codes(const llmq_scheme_matrix *m, const llmq_type_info *type, uint8_t map[256]);
/* n numbers from number `at` on of a float member, as floats. */
void scheme_floats(const llmq_tensor *t, int64_t at, int64_t n, float *out);

#endif
