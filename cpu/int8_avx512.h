/* How sums of 8-bit rows become results, in vectors of AVX-512: one place, so that all kernels give the same bits. */
#ifndef LLMQ_CPU_INT8_AVX512_H
#define LLMQ_CPU_INT8_AVX512_H

#include <immintrin.h>

#include "cpu/inline.h"
#include "cpu/int8_simd.h"

/* Sums of a token times 16 rows become results: token t, i-th tile of rows. */
INLINE void store(const product *p, __m512i sum, int t, int i) {
    const int8_tile_end *end = (const int8_tile_end *)(const void *)(p->w + i * p->tile_bytes + p->cols * 16);
    const int8_token *token = p->token + t;
    __mmask16 m = mask_of(p->rows - 16 * i);
    sum = _mm512_add_epi32(sum, _mm512_add_epi32(_mm512_loadu_si512(end->start), _mm512_set1_epi32(token->start)));
    __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(end->scale), _mm512_set1_ps(token->d));
    __m512 bias = p->bias ? _mm512_maskz_loadu_ps(m, p->bias + 16 * i) : _mm512_setzero_ps();
    _mm512_mask_storeu_ps(p->y + t * p->ldy + 16 * i, m, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias));
}

#endif
