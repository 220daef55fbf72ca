/* Block layouts of the quantized storage types (GGUF / ggml, but for the last), for C and CUDA: the only definition in
 * the project. Little-endian, no padding. f16 fields are raw bits (core/half.h). Blocks lie at 2-byte aligned
 * addresses. How the bits are placed is said beside each field: "elem" is the index of a weight inside the block. */
#ifndef LLMQ_TYPES_BLOCKS_H
#define LLMQ_TYPES_BLOCKS_H

#include <assert.h>
#include <stdint.h>

#define QK 32    /* weights in a small block */
#define QK_K 256 /* weights in a super-block */

/* The small blocks: qs[j] holds elem j in its low nibble and elem j + 16 in its high nibble. */
typedef struct block_q4_0 { /* d * (q - 8) */
    uint16_t d;
    uint8_t qs[QK / 2];
} block_q4_0;

typedef struct block_q4_1 { /* d * q + m */
    uint16_t d, m;
    uint8_t qs[QK / 2];
} block_q4_1;

typedef struct block_q5_0 { /* d * (q - 16); bit i of the little-endian word qh is bit 4 of elem i */
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[QK / 2];
} block_q5_0;

typedef struct block_q5_1 { /* d * q + m; qh as in q5_0 */
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[QK / 2];
} block_q5_1;

typedef struct block_q8_0 { /* d * q */
    uint16_t d;
    int8_t qs[QK];
} block_q8_0;

typedef struct block_iq4_nl { /* d * iq4_nl level[q] */
    uint16_t d;
    uint8_t qs[QK / 2];
} block_iq4_nl;

/* 8 groups of 32, each with nibbles as a small block. Scale of group g: ls - 32, the low 4 bits of ls in nibble g of
 * scales_l, the high 2 in bits 2g of scales_h. */
typedef struct block_iq4_xs { /* d * (ls - 32) * iq4_nl level[q] */
    uint16_t d, scales_h;
    uint8_t scales_l[QK_K / 64];
    uint8_t qs[QK_K / 2];
} block_iq4_xs;

/* q2_k and q3_k: 16 groups of 16. Bits 2j of qs[32h + l] hold elem 128h + 32j + l. */
typedef struct block_q2_k { /* d * (scales & 15) * q - dmin * (scales >> 4) */
    uint8_t scales[QK_K / 16];
    uint8_t qs[QK_K / 4];
    uint16_t d, dmin;
} block_q2_k;

/* Bit 4h + j of hmask[l] is bit 2 of elem 128h + 32j + l. Six-bit scale of group s: low nibble of scales[s] (s < 8) or
 * high nibble of scales[s - 8], then bits 2(s / 4) of scales[8 + s % 4]. */
typedef struct block_q3_k { /* d * (sc - 32) * (q - 4) */
    uint8_t hmask[QK_K / 8];
    uint8_t qs[QK_K / 4];
    uint8_t scales[12];
    uint16_t d;
} block_q3_k;

/* q4_k and q5_k: 8 groups of 32. Low nibble of qs[32c + l]: elem 64c + l; high nibble: elem 64c + 32 + l.
 * scales: six-bit scales and minimums, placed as bits6_get of types/bits.h says. */
typedef struct block_q4_k { /* d * sc * q - dmin * mn */
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[QK_K / 2];
} block_q4_k;

/* Bit g of qh[l] is bit 4 of elem 32g + l. */
typedef struct block_q5_k { /* d * sc * q - dmin * mn */
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[QK_K / 8];
    uint8_t qs[QK_K / 2];
} block_q5_k;

/* 16 groups of 16. Half h: the low nibbles of ql[64h + 0..63] are elems 128h + 0..63, the high ones 128h + 64..127;
 * bits 2j of qh[32h + l] are bits 4 and 5 of elem 128h + 32j + l. */
typedef struct block_q6_k { /* d * scales * (q - 32) */
    uint8_t ql[QK_K / 2];
    uint8_t qh[QK_K / 4];
    int8_t scales[QK_K / 16];
    uint16_t d;
} block_q6_k;

#define QK_NF4 64

/* llmq's own, for memory only: nf4 and fp4. Nibble i (from the low end) of the little-endian word qs[4j..4j+3]: elem
 * 8j + 2i for i < 4, 8j + 2(i - 4) + 1 for the others, so that a word's halves have the neighbours of every pair. */
typedef struct block_nf4 { /* d * level[q] */
    uint8_t d[4];          /* a little-endian f32: blocks lie at any address */
    uint8_t qs[QK_NF4 / 2];
} block_nf4;

static_assert(sizeof(block_nf4) == 36, "nf4");
static_assert(sizeof(block_q4_0) == 18, "q4_0");
static_assert(sizeof(block_q4_1) == 20, "q4_1");
static_assert(sizeof(block_q5_0) == 22, "q5_0");
static_assert(sizeof(block_q5_1) == 24, "q5_1");
static_assert(sizeof(block_q8_0) == 34, "q8_0");
static_assert(sizeof(block_iq4_nl) == 18, "iq4_nl");
static_assert(sizeof(block_iq4_xs) == 136, "iq4_xs");
static_assert(sizeof(block_q2_k) == 84, "q2_k");
static_assert(sizeof(block_q3_k) == 110, "q3_k");
static_assert(sizeof(block_q4_k) == 144, "q4_k");
static_assert(sizeof(block_q5_k) == 176, "q5_k");
static_assert(sizeof(block_q6_k) == 210, "q6_k");

#endif
