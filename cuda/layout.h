/* How weights and activations lie on the GPU; for C (cuda/pack.c) and CUDA.
 *
 * Weights come in tiles of 16 rows x 64, 128 or 256 columns, so that what a lane loads at once are its own operands of
 * the tensor cores' mma (weights are the A operand; cuda/emu/tensor_core.cpp has the rule). Lane l of a warp, with g =
 * l / 4, t = l % 4, needs of every 32 columns the rows g and g + 8 at columns 4t..4t+3 and 16+4t..16+4t+3: for e = 0..3
 *     a[0] byte e: row g,     column 4t + e         a[2] byte e: row g,     column 16 + 4t + e
 *     a[1] byte e: row g + 8, column 4t + e         a[3] byte e: row g + 8, column 16 + 4t + e
 * Columns come in groups of 32. A tile's bytes:
 *     nibbles   for every 64 columns (two groups), for each lane 16 bytes: the words of a[0] and a[2] of the first
 *               group in one word, those of a[1] and a[3] in the next, then the second group. Low nibble of byte e:
 *               a[0] byte e; high nibble: a[2] byte e. IQ4_NL, IQ4_XS, NF4 and FP4: nibble e is a[0] byte e, nibble 4 + e is a[2]
 *               byte e, as the table lookup of four nibbles wants them
 *     bytes     (Q8_0) for every group, for each lane 16 bytes: a[0..3], signed
 *     pairs     (Q6_K) for every 64 columns, for each lane 8 bytes: a word for each group, bits 4 and 5 of its codes:
 *               of a[i] byte e at bits 8 e + 2 i
 *     scales    for each g, of the rows g and g + 8: see the table
 * Rows that the matrix does not have are zero scales. So are columns, but for those of a last group of 64 or 128 that
 * ends early: they have its scale and any level. Activations are zero there. */
#ifndef LLMQ_CUDA_LAYOUT_H
#define LLMQ_CUDA_LAYOUT_H

#include <stdint.h>

#define TILE_ROWS 16

/*  type    group  tile columns, bytes   codes                scales of rows g and g + 8, for each g; f16 unless said
 *  Q4_0           64            576     512 nibbles          d, d of group 0; d, d of group 1
 *  Q4_0    64     64            544     512 nibbles          d, d of the tile
 *  Q4_0    128    128           1056    1024 nibbles         d, d of the tile
 *  Q4_1           64            640     512 nibbles          d, d, m, m of group 0; of group 1
 *  Q4_1    64     64            576     512 nibbles          d, d, m, m of the tile
 *  Q4_1    128    128           1088    1024 nibbles         d, d, m, m of the tile
 *  Q5_0    32     64            640     512 nibbles          d, d, z, z of group 0; of group 1. A level is nibble + z
 *  Q5_0    64     64            576     512 nibbles          d, d, z, z of the tile
 *  Q5_0    128    128           1088    1024 nibbles         d, d, z, z of the tile
 *  IQ4_NL         64            576     512 nibbles          as Q4_0
 *  Q8_0           64            1088    1024 bytes           as Q4_0
 *  F16            64            2048    2048 halves          none. Any type without a layout of its own becomes this
 *  Q4_K           256           2368    2048 nibbles         for 4 groups 4 bytes: sc, sc, mn, mn; after all g the
 *                                                            other 4 groups; after all g: d, d, dmin, dmin
 *  Q6_K           256           3360    2048 nibbles,        for 8 groups of 16 columns 2 signed bytes: sc, sc; after
 *                                       1024 pairs           all g the other 8 groups; after all g: d, d
 *  IQ4_XS         256           2208    2048 nibbles         for 4 groups 2 signed bytes: sc, sc; after all g the other
 *                                                            4 groups; after all g: d, d
 *  NF4            64            576     512 nibbles          d, d as f32. FP4 likewise
 *
 * group: the layout is for matrices all of whose rows have one scale (and minimum) for so many columns, and there no more
 * than 16 neighbouring levels, as those of most Hugging Face schemes do: 4 bits with zero points, which the scheme's
 * reader hands on as Q5_0, are 4 bits again. 0: for any. */
#define CUDA_LAYOUTS(X)                                                                                                \
    X(Q4_0, 0, 64, 576)                                                                                                \
    X(Q4_0, 64, 64, 544)                                                                                               \
    X(Q4_0, 128, 128, 1056)                                                                                            \
    X(Q4_1, 0, 64, 640)                                                                                                \
    X(Q4_1, 64, 64, 576)                                                                                               \
    X(Q4_1, 128, 128, 1088)                                                                                            \
    X(Q5_0, 32, 64, 640)                                                                                               \
    X(Q5_0, 64, 64, 576)                                                                                               \
    X(Q5_0, 128, 128, 1088)                                                                                            \
    X(IQ4_NL, 0, 64, 576)                                                                                              \
    X(Q8_0, 0, 64, 1088)                                                                                               \
    X(F16, 0, 64, 2048)                                                                                                \
    X(Q4_K, 0, 256, 2368)                                                                                              \
    X(Q6_K, 0, 256, 3360)                                                                                              \
    X(IQ4_XS, 0, 256, 2208)                                                                                            \
    X(NF4, 0, 64, 576)                                                                                                 \
    X(FP4, 0, 64, 576)

/* Activations of up to 8 tokens (the B operand), in groups of 32 columns, zeros up to the end of the last tile.
 *     8 bits    codes (groups, n_tok, 32 bytes): columns 4t..4t+3 and 16+4t..16+4t+3 for each t;
 *               d (groups, 8) f32: x = d * code; sums (groups, 8) f32: d * the sum of the 32 codes
 *     f16       (groups, n_tok, 4 t, 16 bytes): columns 4t, 4t+2, 4t+1, 4t+3 and the same 16 further on: the order in
 *               which nibbles become f16 in pairs; sums (groups, 8) f32; what brings results back, (8) f32
 * Scales and sums are there for all eight tokens, zero for those that are not. */
#define ACT_TOKENS 8

#endif
