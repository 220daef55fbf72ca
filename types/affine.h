/* Integer grids of the Hugging Face schemes (GPTQ, AWQ, compressed-tensors): groups of a row share an F16 scale.
 *
 * Symmetric: levels -2^(b-1)..2^(b-1)-1, value = scale * level, scale > 0 (a negative one, natural in Q4_0, is not
 * proven with the loaders of these formats). Asymmetric: levels 0..2^b-1 and an integer zero point of the same range,
 * value = scale * (level - zero): scale[0] and offset[0] = -scale * zero are exact in a float, zero itself is mn[0].
 * The last group of a row may be shorter; a group of zeros has scale 0. The bytes are the schemes' business
 * (formats/schemes/). */
#ifndef LLMQ_TYPES_AFFINE_H
#define LLMQ_TYPES_AFFINE_H

#include "types/type.h"

/* bits 2, 3, 4, 8; group 32, 64, 128, or -1 and TYPE_WHOLE_ROW for the whole row; NULL for others. Static: never freed.
 */
const llmq_type_info *type_affine(int bits, int64_t group, bool sym);
bool type_is_affine(const llmq_type_info *t);

/* The grid of a scale (rounded to F16 here, held inside its range) and a zero point (0 for symmetric types). */
void affine_grid_set(llmq_grid *grid, float scale, int zero);

#endif
