/* The way of a few tokens through packed weights, for the kernels of AVX-512 and of tiles: 16 rows at a time. */
#ifndef LLMQ_CPU_FEW_AVX512_H
#define LLMQ_CPU_FEW_AVX512_H

#include <immintrin.h>

#include "cpu/codes_avx512.h"
#include "cpu/inline.h"
#include "cpu/layout.h"

/* Codes of Q4_0 stay in the upper half of their byte, 16 times as large: -128 * sum, which comes with the activations,
 * is then where their sums start, without a shift for each token. The scales make up for it. */
#define RAISED(bits, zero) ((bits) == 4 && (zero) == 8)

INLINE void decode_raised(int bits, bool use_table, int zero, __m512i table, const uint8_t *p, __m512i u[8]) {
    if (!RAISED(bits, zero)) {
        decode(bits, use_table, table, p, u);
        return;
    }
    const __m512i high = _mm512_set1_epi8((char)0xf0);
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i raw = load_i(p + 64 * j);
        u[j] = _mm512_and_si512(_mm512_slli_epi16(raw, 4), high);
        u[j + 4] = _mm512_and_si512(raw, high);
    }
}

INLINE __m512 scale_raised(int bits, int zero, __m512 scale) {
    return RAISED(bits, zero) ? _mm512_mul_ps(scale, _mm512_set1_ps(1.0f / 16)) : scale;
}

/* out[t] = 16 rows of the tile times token t of the block, all of its at most ACT_FEW tokens. The block goes by
 * address: a copy of it for each tile had its parts stored and loaded in other sizes, which waits until the tile before
 * is done. */
typedef void few_fn(const uint8_t *tile, int64_t cols, __m512i table, const act_block *b, __m512 *out);

#define FEW_FN(type, ...) [LAYOUT_##type] = few_##type, /* of a table by layout */

static inline void few_rows(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, few_fn *fn,
                            __m512i table, float *y, int64_t ldy) {
    int64_t tile_bytes = layout_tile_bytes(cpu_layout_of(w->layout), w->cols), begin, end;
    act_block b = act_block_at(a, 0);
    for (worker_share s = worker_share_begin(worker, w->rows, 16); worker_share_next(&s, &begin, &end);) {
        for (int64_t r = begin; r < end; r += 16) {
            __mmask16 mask = mask_of(w->rows - r);
            __m512 bias = w->bias ? _mm512_maskz_loadu_ps(mask, w->bias + r) : _mm512_setzero_ps(), out[ACT_FEW];
            fn((const uint8_t *)w->packed + r / 16 * tile_bytes, w->cols, table, &b, out);
            for (int t = 0; t < b.n; t++) _mm512_mask_storeu_ps(y + t * ldy + r, mask, _mm512_add_ps(out[t], bias));
        }
    }
}

#endif
