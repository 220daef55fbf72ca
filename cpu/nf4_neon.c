/* NEON kernels of NF4 and FP4 (nf4.h). Few tokens: the two bytes of a level are looked up by tbl, and products of 16
 * bits added to 32 by smlal. Many tokens: floats of a panel for the product of dense_simd.h, as on AVX2. */
#include "cpu/act16_simd.h"
#include "cpu/nf4.h"
#include "cpu/simd.h"

/* ---- activations */

/* The bytes of a word of codes (block_nf4) hold columns 0 4 1 5 in their low nibbles, 2 6 3 7 in the high ones. */
INLINE void nibble_order(int16_t *q) {
    static const uint8_t order[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
    UNROLL for (int i = 0; i < 32; i += 8) {
        uint8x16_t eight = vreinterpretq_u8_s16(vld1q_s16(q + i));
        vst1q_s16(q + i, vreinterpretq_s16_u8(vqtbl1q_u8(eight, vld1q_u8(order))));
    }
}

void nf4_fill_neon(const llmq_worker *worker, llmq_acts *a) {
    if (a->n_tok <= MATMUL_ALIKE) act16_fill(worker, a, a->q16, nibble_order); /* otherwise nobody reads them */
}

/* ---- few tokens */

typedef struct level_bytes {
    uint8x16_t low, high;
} level_bytes;

static level_bytes level_table(llmq_type type) {
    int16_t level[16];
    nf4_levels16(type, level);
    uint8x16x2_t bytes = vld2q_u8((const uint8_t *)level);
    return (level_bytes){bytes.val[0], bytes.val[1]};
}

/* acc[t][r] += 4 columns of row r of four, of codes in bytes, times q[32 t]. */
INLINE void add_products(int nt, const level_bytes *table, uint8x16_t codes, const int16_t *q, int32x4_t acc[2][4]) {
    uint8x16_t low = vqtbl1q_u8(table->low, codes), high = vqtbl1q_u8(table->high, codes);
    int16x8_t w[2] = {vreinterpretq_s16_u8(vzip1q_u8(low, high)), vreinterpretq_s16_u8(vzip2q_u8(low, high))};
    UNROLL for (int t = 0; t < nt; t++) {
        int16x8_t x = vreinterpretq_s16_s64(vld1q_dup_s64((const int64_t *)(const void *)(q + 32 * t)));
        UNROLL for (int i = 0; i < 2; i++) {
            acc[t][2 * i] = vmlal_s16(acc[t][2 * i], vget_low_s16(w[i]), vget_low_s16(x));
            acc[t][2 * i + 1] = vmlal_high_s16(acc[t][2 * i + 1], w[i], x);
        }
    }
}

/* out[t] = 16 rows of the tile times tokens t0 .. t0+nt of the block. Quarters of the rows are a loop, or gcc keeps the
 * activations of all of them in memory. */
INLINE void gemv_tile(int nt, const nf4_tile_block *w, int64_t n_blocks, const level_bytes *table, act16_block b,
                      int t0, float out[2][16]) {
    const int16_t *q = b.q + 32 * t0;
    const float *d = b.d + t0;
    memset(out, 0, (size_t)nt * sizeof *out);
    for (int64_t g = 0; g < 2 * n_blocks; g++, q += 32 * b.n, d += b.n) {
        const nf4_tile_block *block = w + g / 2;
        nf4_fetch(block, g);
        for (int h = 0; h < 4; h++) {
            int32x4_t acc[2][4];
            UNROLL for (int t = 0; t < nt; t++) {
                UNROLL for (int r = 0; r < 4; r++) acc[t][r] = vdupq_n_s32(0);
            }
            UNROLL for (int j = 0; j < 4; j++) {
                uint8x16_t raw = vld1q_u8((const uint8_t *)(block->code[g % 2 * 4 + j] + 4 * h));
                add_products(nt, table, vandq_u8(raw, vdupq_n_u8(15)), q + 8 * j, acc);
                add_products(nt, table, vshrq_n_u8(raw, 4), q + 8 * j + 4, acc);
            }
            float32x4_t scale = vld1q_f32(block->scale + 4 * h);
            UNROLL for (int t = 0; t < nt; t++) {
                int32x4_t sum = vpaddq_s32(vpaddq_s32(acc[t][0], acc[t][1]), vpaddq_s32(acc[t][2], acc[t][3]));
                float32x4_t f = vld1q_f32(out[t] + 4 * h);
                vst1q_f32(out[t] + 4 * h, vfmaq_f32(f, vcvtq_f32_s32(sum), vmulq_n_f32(scale, d[t])));
            }
        }
    }
}

#include "cpu/nf4_few.h"

/* ---- many tokens */

void nf4_panel_neon(const llmq_weight *w, int64_t r, int64_t k, int64_t n, float *panel) {
    const nf4_tile_block *block = nf4_tile(w, r) + k / QK_NF4;
    float level[16];
    nf4_levels(w->native.type, level);
    vf_table levels = {{vf_load(level), vf_load(level + 8)}};
    uint8x16x4_t table = vf4_table(&levels);
    for (int64_t j = 0; j < n / 8; j++, panel += 8 * 16) {
        const nf4_tile_block *from = block + j / 8;
        UNROLL for (int h = 0; h < 4; h++) {
            uint32x4_t raw = vld1q_u32(from->code[j % 8] + 4 * h);
            float32x4_t scale = vld1q_f32(from->scale + 4 * h);
            UNROLL for (int i = 0; i < 8; i++) {
                float32x4_t v = vf4_look_up(table, vandq_u32(raw >> (4 * i), vdupq_n_u32(15)));
                int column = i < 4 ? 2 * i : 2 * i - 7;
                vst1q_f32(panel + column * 16 + 4 * h, vmulq_f32(v, scale));
            }
        }
    }
}
