/* bitsandbytes' 4-bit grids: NF4 and FP4, one scale (its "absmax") a block, without offset. With double quantization
 * ("nested") the scales themselves are 8-bit codes into a fixed map, times a number for every NF4_NESTED_BLOCK of
 * them, plus one offset for the matrix: llmq_nested in types/quantized.h. Matrices that are read have blocks of
 * QK_NF4 weights with their scales as floats (LLMQ_TYPE_NF4, LLMQ_TYPE_FP4), however large the blocks of the file. */
#ifndef LLMQ_TYPES_NF4_H
#define LLMQ_TYPES_NF4_H

#include "types/quantized.h"

#define NF4_BLOCK 64 /* what is written; 32 to 4096 are read */
#define NF4_NESTED_BLOCK 256
#define NF4_MAP 256

/* NULL unless block is a power of two from 32 to 4096. Codes are numbers of levels in ascending order: 0..15 for NF4,
 * 0..14 for FP4, whose two zeros are one level. */
const llmq_type_info *nf4_grid(bool fp4, int64_t block, bool nested);
bool nf4_is(const llmq_type_info *t, bool fp4);

/* bitsandbytes' code of each level of a grid (FP4's have the sign in bit 3 and are not in order), and the table of
 * values by that code. */
extern const uint8_t nf4_fp4_codes[15];
const float *nf4_table(bool fp4); /* [16] */

/* The map of 8-bit codes ("dynamic" map) that nested scales are stored in, ascending, -0.99.. to 1. */
void nf4_nested_map(float map[NF4_MAP]);
/* Numbers of grids in the second level. */
static inline int64_t nf4_nested_blocks(int64_t n_grids) {
    return (n_grids + NF4_NESTED_BLOCK - 1) / NF4_NESTED_BLOCK;
}

#endif
