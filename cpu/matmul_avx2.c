/* AVX2 kernels for the interleaved quantized layouts, and activations in the forms that weights want. */
#define VNNI 0
#include "cpu/act_q8.h"
#include "cpu/matmul_256.h"

/* ---- activations */

INLINE uint32_t peak(const float *x, int64_t n) {
    float padded[32];
    x = act_whole(x, n, padded);
    const __m256i abs_mask = _mm256_set1_epi32(0x7fffffff);
    __m256i mag = _mm256_setzero_si256();
    UNROLL for (int k = 0; k < 4; k++) mag =
        _mm256_max_epi32(mag, _mm256_and_si256(load_i(x + 8 * k), abs_mask)); /* magnitudes order as integers */
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(mag), _mm256_extracti128_si256(mag, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

INLINE void round_group(const float *x, int64_t n, float inverse, int8_t *q, int32_t sum[2]) {
    float padded[32];
    x = act_whole(x, n, padded);
    __m256i i[4];
    UNROLL for (int k = 0; k < 4; k++) i[k] =
        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * k), _mm256_set1_ps(inverse)));
    __m256i v = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    v = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, v);
    v = _mm256_sad_epu8(_mm256_xor_si256(v, _mm256_set1_epi8((char)128)), _mm256_setzero_si256()); /* of 8, 128 each */
    v = _mm256_add_epi64(v, _mm256_shuffle_epi32(v, 0x4e));
    sum[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(v)) - 16 * 128;
    sum[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(v, 1)) - 16 * 128;
}

#include "cpu/matmul_entries.h"
