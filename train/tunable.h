/* A quantized matrix whose scales are trained, and its codes if wanted.
 *
 * A weight is D * a * level + o. D belongs to a parameter (a block's scale, a super-block's d, the numbers of NF4's
 * second level), a to a group of weights that share a scale (1, a super-block's integer scale, or what the second
 * level's code means). The parameter is a factor f of D, so that one step means alike to large and small scales.
 * Offsets are of the type's form: -M * mn with a factor of M, a minimum with a parameter of its own, or -D * zero,
 * which follows D. What is computed with is always what the type can store. */
#ifndef LLMQ_TRAIN_TUNABLE_H
#define LLMQ_TRAIN_TUNABLE_H

#include "core/backend.h"
#include "types/quantized.h"

typedef enum tunable_offset { OFFSET_NONE, OFFSET_ZERO, OFFSET_MIN, OFFSET_SUPER } tunable_offset;

typedef struct tunable {
    const llmq_type_info *type;
    int64_t rows, cols; /* as blocks lie: flat types that cross rows are one row */
    int64_t n_blocks;   /* of all rows; per_block groups each */
    int64_t per_block, n_groups;
    int64_t tie, n_params; /* blocks of a parameter; parameters of the scales */
    tunable_offset offset;
    bool f16; /* D and M are stored as */
    uint8_t *codes;
    float *a, *m;   /* [n_groups] or NULL: 1; the mn or zero of a group */
    float *d0, *m0; /* [n_params] as found; m0: M, or the minimum's middle */
    float *x; /* parameters: [n_params] factors of d0; where there is an offset to train as many of m0; and factors
               * of whole rows, so that what all groups of a row have in common is one number (not with a second
               * level, which knows no rows) */
    int64_t n_numbers, n_x; /* without, and with, those of rows */
    float *sums;            /* [2 * n_groups] of the gradients: with the level, alone */
    float shift;            /* nested: the matrix's offset of scales */
    float *z, *zm,
        *zv; /* codes are trained: [cells], borrowed: where each weight would be, in levels, and Adam's moments; NULL */
} tunable;

/* Parameters (n_x) of a matrix on this grid; 0: there are none to train. */
int64_t tunable_count(const llmq_type_info *type, int64_t rows, int64_t cols);
/* What a tunable of it takes. */
size_t tunable_bytes(const llmq_type_info *type, int64_t rows, int64_t cols);
/* From q, which may go afterwards. LLMQ_E_UNSUPPORTED: nothing of its type can be trained. */
llmq_status tunable_create(const llmq_quantized *q, tunable *out, llmq_err *err);
void tunable_clear(tunable *t); /* zeroed allowed */

/* The weights as floats, (rows, cols): rows [begin, end). */
void tunable_values(const tunable *t, const llmq_backend_ops *ops, int64_t begin, int64_t end, float *out);
/* The same rows as blocks of the type (type_row_bytes each), of types that have any. */
bool tunable_can_pack(const tunable *t);
/* The same as Q8_0 whose blocks of a row all have the row's one scale, which weight_prepare_int8 takes. */
bool tunable_can_pack_q8(const tunable *t);
void tunable_pack_q8(const tunable *t, int64_t begin, int64_t end, uint8_t *out);
void tunable_pack(const tunable *t, int64_t begin, int64_t end, uint8_t *out);
/* From the gradient of the weights: sums of rows [begin, end), then of the same rows their part of g [n_x]: with any
 * rows by any worker where rows have parameters of their own, else of all rows at once. */
void tunable_sums(const tunable *t, const llmq_backend_ops *ops, const float *grad, int64_t begin, int64_t end);
void tunable_gradient(const tunable *t, int64_t begin, int64_t end, float *g);
bool tunable_rows_apart(const tunable *t);
/* From now on codes are trained too: by straight-through estimation (Bengio et al. 2013), a weight's gradient moves a
 * real number z, and its code is the level nearest to it. filled: z and the moments are there already. */
void tunable_free_codes(tunable *t, bool filled, float *z, float *zm, float *zv);
/* A step of rows [begin, end) by the gradient of the weights; after tunable_sums. */
void tunable_update_codes(tunable *t, const llmq_backend_ops *ops, const llmq_adam *adam, const float *grad,
                          int64_t begin, int64_t end);
/* codes as z says. */
void tunable_settle_codes(tunable *t);
/* What the parameters have become, as it is stored: [n_numbers] values of D, then those of M or the minimum. */
void tunable_numbers(const tunable *t, float *numbers);
/* Such numbers into q, of the matrix that t was made from. */
void tunable_store(const tunable *t, const float *numbers, llmq_quantized *q);

#endif
