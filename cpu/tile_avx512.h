/* What the AVX-512 products of packed weights share: broadcasts of activations, and the sums of a register tile of 32
 * rows x some tokens where they begin and end. */
#ifndef LLMQ_CPU_TILE_AVX512_H
#define LLMQ_CPU_TILE_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "core/backend.h"
#include "cpu/inline.h"

/* 4 bytes of activations in every word. Kept in a register: gcc would otherwise fold the broadcast into each of its
 * uses and then spend more loads than products. */
INLINE __m512i bcast4(const void *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm512_set1_epi32(v);
}
INLINE __m512i bcast4_reg(const void *q) {
    __m512i v = bcast4(q);
    IN_REGISTER(v);
    return v;
}

/* y of 32 rows x nt tokens: starts at `bias` (first) or at what earlier columns gave. Of split inputs (layout.h) the
 * second half of the sums belongs to the first half's tokens. */
typedef struct tile_out {
    float *y; /* row r of token 0 */
    int64_t ldy;
    __mmask16 mask[2];
    const float *bias; /* of row r, or NULL */
    bool first, split;
} tile_out;

/* Of rows from r on; y is for the caller. */
static inline tile_out tile_out_of(const llmq_weight *w, int64_t r, int64_t ldy, bool first) {
    return (tile_out){
        .ldy = ldy,
        .mask = {mask_of(w->rows - r), mask_of(w->rows - r - 16)},
        .bias = w->bias ? w->bias + r : NULL,
        .first = first,
        .split = w->act == ACT_Q8_SPLIT,
    };
}

INLINE void tile_begin(int nt, const tile_out *o, __m512 f[][2]) {
    UNROLL for (int t = 0; t < nt; t++) {
        UNROLL for (int i = 0; i < 2; i++) {
            if (t >= nt / 2 && o->split)
                f[t][i] = _mm512_setzero_ps();
            else if (!o->first)
                f[t][i] = _mm512_maskz_loadu_ps(o->mask[i], o->y + t * o->ldy + 16 * i);
            else
                f[t][i] = o->bias ? _mm512_maskz_loadu_ps(o->mask[i], o->bias + 16 * i) : _mm512_setzero_ps();
        }
    }
}

INLINE void tile_end(int nt, const tile_out *o, __m512 f[][2]) {
    const int split = nt / 2;
    if (o->split) UNROLL for (int t = 0; t < split; t++) {
            UNROLL for (int i = 0; i < 2; i++) f[t][i] = _mm512_add_ps(f[t][i], f[split + t][i]);
        }
    UNROLL for (int t = 0; t < nt; t++) {
        if (t >= split && o->split) continue;
        UNROLL for (int i = 0; i < 2; i++) _mm512_mask_storeu_ps(o->y + t * o->ldy + 16 * i, o->mask[i], f[t][i]);
    }
}

/* Tokens lie far apart in y: fetches the lines of tokens [t, end) of 32 rows from r on while others are worked on. */
INLINE void tile_fetch(const float *y, int64_t ldy, int64_t r, int64_t t, int64_t end) {
    for (; t < end; t++) {
        _mm_prefetch((const char *)(y + t * ldy + r), _MM_HINT_T0);
        _mm_prefetch((const char *)(y + t * ldy + r + 16), _MM_HINT_T0);
    }
}

#endif
