/* Storage types. One file a type; one line in types/types.def. A block's grid is the same thing for every quantized
 * type:
 *
 *     value(code) = scale[g] * levels[code] + offset[g],   g = index / group_len
 *
 * with `levels` a sorted table that belongs to the type (Q4_0: -8..7, Q4_1: 0..15, IQ4_NL: its codebook, Q6_K:
 * -32..31, NF4: its quantiles, ...). So a quantization method works on any type: fit a grid, choose codes, pack. Scales
 * may be negative. Layouts: docs/formats.md; sources in each file. */
#ifndef LLMQ_TYPES_TYPE_H
#define LLMQ_TYPES_TYPE_H

#include "core/grid.h"
#include "core/tensor.h"

#define TYPE_MAX_BLOCK 256
#define TYPE_MAX_GROUPS 16       /* groups of one block */
#define TYPE_WHOLE_ROW INT32_MAX /* block_len and group_len of ragged grids with one group a row */

/* The grid of one block, with every number already rounded as it is stored: pack(unpack(block)) is the identity. */
typedef struct llmq_grid {
    float scale[TYPE_MAX_GROUPS];  /* effective, e.g. d * sc for K-quants */
    float offset[TYPE_MAX_GROUPS]; /* effective, e.g. -(dmin * mn); 0 for symmetric types */
    float d, dmin;                 /* block scales as stored (exact f16 values) */
    int8_t sc[TYPE_MAX_GROUPS];    /* second-level integer scales and minimums (K-quants, IQ4_XS) */
    uint8_t mn[TYPE_MAX_GROUPS];
} llmq_grid;

typedef struct llmq_type_info llmq_type_info;
struct llmq_quantized;
struct llmq_type_info {
    llmq_type id;
    const char *name; /* lower case: "q4_k" */
    int ftype;        /* general.file_type of a GGUF that is mostly of this type */
    int bits;         /* of a code; 16 and 32 for float types */
    int block_len, block_bytes;
    int group_len; /* weights sharing scale[g]; block_len / group_len <= TYPE_MAX_GROUPS */
    bool ragged;   /* a grid of Hugging Face schemes: one group a block of any length (TYPE_WHOLE_ROW too), the last
                    * block of a row may be shorter; no bytes of its own (formats/schemes/ lay them out) */
    bool flat;     /* ragged, and blocks run over the ends of rows: where block_len does not divide cols, a matrix is
                    * quantized as one row of rows * cols weights */
    /* What matrices of a folder become when they are read (formats/schemes/): no file has such blocks, and there is no
     * fit, but pack. */
    bool in_memory;
    const float *levels; /* n_levels, ascending; NULL for float types */
    int n_levels;
    bool uniform;                     /* levels are consecutive integers */
    llmq_grid_form form;              /* how the numbers of a grid are stored; encoders only */
    const struct llmq_search *search; /* what fit searches with, and the bounds of sc and mn; NULL: no super-blocks */

    /* Float types: whole rows. */
    void (*to_f32)(const void *src, float *dst, int64_t n);
    void (*from_f32)(const float *src, void *dst, int64_t n);

    /* Quantized types. unpack: every type; fit and pack: encoders (NULL otherwise). */
    void (*unpack)(const void *block, llmq_grid *grid, uint8_t *codes);
    void (*pack)(const llmq_grid *grid, const uint8_t *codes, void *block);
    /* Chooses the grid of block x [block_len] that minimizes sum importance * (x - nearest value)^2, by search.
     * importance NULL: all one. All-zero and tiny blocks give a finite grid. */
    void (*fit)(const float *x, const float *importance, llmq_grid *grid);
    /* The same for blocks of n weights; ragged types only, which have no fit. */
    void (*fit_ragged)(const llmq_type_info *t, const float *x, const float *importance, int64_t n, llmq_grid *grid);
    /* Ragged types whose scales are stored in terms of each other (NULL otherwise): rounds the scales of a whole matrix
     * as they are stored. By quantized_settle, when all grids are fitted and before codes are chosen; from then on the
     * grids stay. */
    void (*settle)(struct llmq_quantized *q);
};

/* NULL for ids that llmq does not know. */
const llmq_type_info *type_info(llmq_type type);
/* All types in order; NULL past the end. */
const llmq_type_info *type_at(size_t index);

static inline bool type_is_float(const llmq_type_info *t) {
    return t->levels == NULL;
}
static inline bool type_can_encode(const llmq_type_info *t) {
    return type_is_float(t) || t->fit != NULL;
}

/* Blocks of a row of cols weights, and the length of block b. */
static inline int64_t type_blocks(const llmq_type_info *t, int64_t cols) {
    return (cols + t->block_len - 1) / t->block_len;
}
static inline int64_t type_block_cols(const llmq_type_info *t, int64_t cols, int64_t b) {
    return cols - b * t->block_len < t->block_len ? cols - b * t->block_len : t->block_len;
}
static inline void type_fit(const llmq_type_info *t, const float *x, const float *importance, int64_t n,
                            llmq_grid *grid) {
    if (t->ragged)
        t->fit_ragged(t, x, importance, n, grid);
    else
        t->fit(x, importance, grid);
}

/* Nearest level of x on group g of a grid (ties go to the lower level; non-finite x gives the level nearest to 0). */
uint8_t type_code(const llmq_type_info *t, const llmq_grid *grid, int g, float x);
static inline float type_value(const llmq_type_info *t, const llmq_grid *grid, int g, uint8_t code) {
    return grid->scale[g] * t->levels[code] + grid->offset[g];
}

/* The same for the n weights of a block: x to codes, and codes to values. */
void type_codes(const llmq_type_info *t, const llmq_grid *grid, const float *x, int64_t n, uint8_t *codes);
void type_values(const llmq_type_info *t, const llmq_grid *grid, const uint8_t *codes, int64_t n, float *x);

/* Bytes of n weights; -1 if n is not a multiple of the block or too large. */
int64_t type_row_bytes(llmq_type type, int64_t n);
/* n weights (a multiple of the block) to floats, and from floats by fit + nearest code (importance [n] or NULL). */
void type_to_f32(llmq_type type, const void *src, float *dst, int64_t n);
llmq_status type_from_f32(llmq_type type, const float *src, const float *importance, void *dst, int64_t n,
                          llmq_err *err);

#endif
