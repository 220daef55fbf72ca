/* Products with 1 to 8 tokens: the decode step. Memory-bound, so all is about reading each weight once, 16 bytes a lane
 * and many of them in flight, and about few instructions between two loads.
 *
 * Weights are the A operand of mma (16 rows of output), tokens its 8 columns: what a lane loads are its own operands,
 * and weights never see shared memory. A block has 16 rows of output; its warps take turns along the columns, so that
 * together they read one stream, and add up in shared memory at the end, always in the same order. */
#include "cuda/dequant.cuh"
#include "cuda/kernels.h"

namespace {

constexpr int WARPS = 8;

/* An integer up to 2^22 in magnitude, plus this, is a float's bits: conversion by one subtraction. It is where the
 * accumulators of integer products start. */
constexpr int32_t MAGIC = 0x4b400000;
constexpr float MAGIC_FLOAT = 12582912.0f; /* 1.5 * 2^23 */

/* Operand B and scales (cuda/layout.h). Lane l holds token l / 4 of B and tokens 2t, 2t + 1 of the results. */
struct acts_q8 {
    gptr<const uint8_t> codes;
    gptr<const act_scale> scales;
    gptr<const act_sums> sums;
    int n_tok;
};
struct acts_f16 {
    gptr<const uint8_t> x;
    gptr<const float> sums;
    int n_tok;
};

/* acc[i] += d[token] * s[row] * (c[i] - MAGIC); i: rows g, g, g + 8, g + 8, tokens 2t, 2t + 1, 2t, 2t + 1. */
__device__ __forceinline__ void add_scaled(float (&acc)[4], const int32_t (&c)[4], const float (&s)[2], float d0,
                                           float d1) {
    acc[0] = fmaf(__int_as_float(c[0]) - MAGIC_FLOAT, s[0] * d0, acc[0]);
    acc[1] = fmaf(__int_as_float(c[1]) - MAGIC_FLOAT, s[0] * d1, acc[1]);
    acc[2] = fmaf(__int_as_float(c[2]) - MAGIC_FLOAT, s[1] * d0, acc[2]);
    acc[3] = fmaf(__int_as_float(c[3]) - MAGIC_FLOAT, s[1] * d1, acc[3]);
}
__device__ __forceinline__ void add_outer(float (&acc)[4], const float (&c)[4], const float (&s)[2]) {
    acc[0] = fmaf(c[0], s[0], acc[0]);
    acc[1] = fmaf(c[1], s[0], acc[1]);
    acc[2] = fmaf(c[2], s[1], acc[2]);
    acc[3] = fmaf(c[3], s[1], acc[3]);
}
__device__ __forceinline__ void add_mins(float (&acc)[4], const float (&m)[2], float sum0, float sum1) {
    acc[0] = fmaf(m[0], sum0, acc[0]);
    acc[1] = fmaf(m[0], sum1, acc[1]);
    acc[2] = fmaf(m[1], sum0, acc[2]);
    acc[3] = fmaf(m[1], sum1, acc[3]);
}

/* One tile times 8-bit activations; groups of 32 columns from `group` on. The zero point is folded into the start of
 * the sum: sum (q - z) x = sum q x - z sum x. */
template <class W>
__device__ __forceinline__ void add_tile(const typename W::tile &w, const acts_q8 &x, int group, int lane,
                                         float (&acc)[4]) {
    const int token = lane / 4, t = lane % 4;
    UNROLL
    for (int j = 0; j < W::columns / 32; j++) {
        const int at = group + j;
        uint32_t a[4];
        uint2 b = {0, 0};
        if (token < x.n_tok) b = as<const uint2>(x.codes)[(at * x.n_tok + token) * 4 + t];
        const uint4 ds = as<const uint4>(x.scales)[at * 4 + t]; /* d, sum of token 2t; of 2t + 1 */
        const float d0 = __uint_as_float(ds.x), d1 = __uint_as_float(ds.z);
        const int32_t sum0 = static_cast<int32_t>(ds.y), sum1 = static_cast<int32_t>(ds.w);
        uint4 more = {0, 0, 0, 0}; /* d * sum, sum of the first half */
        if (W::has_mins || W::group == 16) more = as<const uint4>(x.sums)[at * 4 + t];
        W::codes(w, j, a);
        float s[2];
        if constexpr (W::group == 32) {
            const int32_t start0 = MAGIC - W::zero * sum0, start1 = MAGIC - W::zero * sum1;
            int32_t c[4] = {start0, start1, start0, start1};
            mma_s8(c, a, {b.x, b.y});
            W::scales(w, j, s);
            add_scaled(acc, c, s, d0, d1);
        } else {
            const int32_t low0 = static_cast<int32_t>(more.y), low1 = static_cast<int32_t>(more.w);
            const int32_t start0 = MAGIC - W::zero * low0, start1 = MAGIC - W::zero * low1;
            const int32_t next0 = MAGIC - W::zero * (sum0 - low0), next1 = MAGIC - W::zero * (sum1 - low1);
            int32_t c[4] = {start0, start1, start0, start1}, e[4] = {next0, next1, next0, next1};
            mma_s8_k16(c, {a[0], a[1]}, b.x);
            mma_s8_k16(e, {a[2], a[3]}, b.y);
            W::scales(w, 2 * j, s);
            add_scaled(acc, c, s, d0, d1);
            W::scales(w, 2 * j + 1, s);
            add_scaled(acc, e, s, d0, d1);
        }
        if constexpr (W::has_mins) {
            float m[2];
            W::mins(w, j, m);
            add_mins(acc, m, __uint_as_float(more.x), __uint_as_float(more.z));
        }
    }
}

/* ... times f16 activations, f32 sums of 32 products each. */
template <class W>
__device__ __forceinline__ void add_tile(const typename W::tile &w, const acts_f16 &x, int group, int lane,
                                         float (&acc)[4]) {
    const int token = lane / 4, t = lane % 4;
    UNROLL
    for (int j = 0; j < W::columns / 32; j++) {
        const int at = group + j;
        uint32_t a[2][4];
        uint4 b = {0, 0, 0, 0};
        if (token < x.n_tok) b = as<const uint4>(x.x)[(at * x.n_tok + token) * 4 + t];
        codes_to_h2<W>(w, j, a);
        float c[4] = {0, 0, 0, 0}, s[2];
        mma_f16(c, a[0], {b.x, b.y});
        if constexpr (W::group == 32) {
            mma_f16(c, a[1], {b.z, b.w});
            W::scales(w, j, s);
            add_outer(acc, c, s);
        } else {
            float e[4] = {0, 0, 0, 0};
            mma_f16(e, a[1], {b.z, b.w});
            W::scales(w, 2 * j, s);
            add_outer(acc, c, s);
            W::scales(w, 2 * j + 1, s);
            add_outer(acc, e, s);
        }
        if constexpr (W::has_mins) {
            float m[2];
            const float2 sums = as<const float2>(x.sums)[at * 4 + t];
            W::mins(w, j, m);
            add_mins(acc, m, sums.x, sums.y);
        }
    }
}

/* weights (row tiles, n_tiles, W::bytes), y (n_tok, ldy), bias [rows] or NULL. grid: one block for 16 rows. AHEAD:
 * tiles that a warp has in flight before it multiplies the first. */
template <class W, class ACTS, int AHEAD>
__global__ void __launch_bounds__(WARPS * 32) matvec(gptr<const uint8_t> weights, ACTS x, gptr<const float> bias,
                                                     gptr<float> y, int64_t ldy, int rows, int n_tiles) {
    SHARED(float, part, WARPS * 128);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    gptr<const uint8_t> mine = weights + static_cast<int64_t>(blockIdx.x) * n_tiles * W::bytes;
    float acc[4] = {0, 0, 0, 0};
    for (int first = warp; first < n_tiles; first += WARPS * AHEAD) {
        typename W::tile tiles[AHEAD];
        UNROLL
        for (int u = 0; u < AHEAD; u++) {
            const int n = first + u * WARPS;
            if (n < n_tiles) tiles[u] = W::load(mine + static_cast<int64_t>(n) * W::bytes, lane);
        }
        UNROLL
        for (int u = 0; u < AHEAD; u++) {
            const int n = first + u * WARPS;
            if (n < n_tiles) add_tile<W>(tiles[u], x, n * (W::columns / 32), lane, acc);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) part[(warp * 4 + i) * 32 + lane] = acc[i];
    __syncthreads();

    const int i = threadIdx.x / 32, row = blockIdx.x * TILE_ROWS + lane / 4 + 8 * (i >> 1),
              token = lane % 4 * 2 + (i & 1);
    if (i >= 4 || row >= rows || token >= x.n_tok) return;
    float sum = bias ? bias[row] : 0.0f;
    for (int w = 0; w < WARPS; w++) sum += part[(w * 4 + i) * 32 + lane];
    y[token * ldy + row] = sum;
}

/* ---- activations */

constexpr int ACT_PAD = 256; /* columns: no weight type has wider tiles */

__device__ __forceinline__ int byte_place(int column) { /* in the 32 bytes of a group (cuda/layout.h) */
    return column % 16 / 4 * 8 + column / 16 * 4 + column % 4;
}

/* grid: one block a group of 32 columns, one warp a token, all 8 of them: scales of tokens that are not there are zero.
 */
__global__ void __launch_bounds__(ACT_TOKENS * 32)
    fill_q8(gptr<const float> x, int64_t cols, int n_tok, gptr<uint8_t> codes, gptr<act_scale> scales,
            gptr<act_sums> sums) {
    const int lane = threadIdx.x % 32, token = threadIdx.x / 32, group = blockIdx.x;
    const int64_t column = static_cast<int64_t>(group) * 32 + lane;
    float v = 0;
    if (token < n_tok && column < cols) v = x[token * cols + column];
    const uint32_t most = __reduce_max_sync(WARP_ALL, __float_as_uint(fabsf(v))); /* NaN above infinity above numbers */
    const float amax = __uint_as_float(most);
    const bool finite = most < 0x7f800000u;
    const float inverse = finite && amax > 1e-30f ? 127.0f / amax : 0.0f;
    const int q = finite ? __float2int_rn(v * inverse) : 0;
    const int sum = static_cast<int>(__reduce_add_sync(WARP_ALL, static_cast<unsigned>(q)));
    const int low = static_cast<int>(__reduce_add_sync(WARP_ALL, lane < 16 ? static_cast<unsigned>(q) : 0u));
    if (token < n_tok) codes[(group * n_tok + token) * 32 + byte_place(lane)] = static_cast<uint8_t>(q);
    if (lane == 0) {
        const float d = !finite || amax > 1e-30f ? amax / 127.0f : 0.0f;
        scales[group * ACT_TOKENS + token] = act_scale{d, sum};
        sums[group * ACT_TOKENS + token] = act_sums{d * static_cast<float>(sum), low};
    }
}

__global__ void __launch_bounds__(ACT_TOKENS * 32)
    fill_f16(gptr<const float> x, int64_t cols, int n_tok, gptr<uint16_t> out, gptr<float> sums) {
    const int lane = threadIdx.x % 32, token = threadIdx.x / 32, group = blockIdx.x;
    const int64_t column = static_cast<int64_t>(group) * 32 + lane;
    float v = 0;
    if (token < n_tok && column < cols) v = x[token * cols + column];
    const uint16_t half = static_cast<uint16_t>(h2_from_floats(v, 0.0f));
    float sum = h_to_float(half);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(WARP_ALL, sum, step);
    /* bytes e of a word become pairs (0, 2), (1, 3) */
    const int e = lane % 4, place = lane % 16 / 4 * 8 + lane / 16 * 4 + (e >> 1 | (e & 1) << 1);
    if (token < n_tok) out[(group * n_tok + token) * 32 + place] = half;
    if (lane == 0) sums[group * ACT_TOKENS + token] = sum;
}

int64_t act_groups(int64_t cols) {
    return (cols + ACT_PAD - 1) / ACT_PAD * (ACT_PAD / 32);
}
size_t align_16(size_t n) {
    return (n + 15) / 16 * 16;
}

acts_q8 acts_q8_of(const void *acts, int n_tok, int64_t cols) {
    gptr<const uint8_t> base = device_pointer(static_cast<const uint8_t *>(acts));
    const size_t groups = static_cast<size_t>(act_groups(cols)),
                 codes = align_16(groups * static_cast<size_t>(n_tok) * 32);
    gptr<const uint8_t> scales = base + static_cast<int64_t>(codes);
    return {base, as<const act_scale>(scales),
            as<const act_sums>(scales + static_cast<int64_t>(groups * ACT_TOKENS * sizeof(act_scale))), n_tok};
}

acts_f16 acts_f16_of(const void *acts, int n_tok, int64_t cols) {
    gptr<const uint8_t> base = device_pointer(static_cast<const uint8_t *>(acts));
    return {base, as<const float>(base + act_groups(cols) * n_tok * 64), n_tok};
}

template <class W, int AHEAD, class ACTS>
void launch_matvec(stream_t stream, const cuda_matrix *w, const ACTS &x, float *y, int64_t ldy) {
    const unsigned blocks = static_cast<unsigned>((w->rows + TILE_ROWS - 1) / TILE_ROWS);
    const int n_tiles = static_cast<int>((w->cols + W::columns - 1) / W::columns), rows = static_cast<int>(w->rows);
    gptr<const uint8_t> packed = device_pointer(static_cast<const uint8_t *>(w->packed));
    gptr<const float> bias = device_pointer(w->bias);
    gptr<float> out = device_pointer(y);
    LAUNCH((matvec<W, ACTS, AHEAD>), blocks, WARPS * 32, 0, stream, packed, x, bias, out, ldy, rows, n_tiles);
}

template <class ACTS> void matvec_of(stream_t stream, const cuda_matrix *w, const ACTS &x, float *y, int64_t ldy) {
    switch (w->type) {
    case LLMQ_TYPE_Q4_0: return launch_matvec<weights_q4_0, 4>(stream, w, x, y, ldy);
    case LLMQ_TYPE_Q4_1: return launch_matvec<weights_q4_1, 4>(stream, w, x, y, ldy);
    case LLMQ_TYPE_IQ4_NL: return launch_matvec<weights_iq4_nl, 4>(stream, w, x, y, ldy);
    case LLMQ_TYPE_Q8_0: return launch_matvec<weights_q8_0, 4>(stream, w, x, y, ldy);
    case LLMQ_TYPE_Q4_K: return launch_matvec<weights_q4_k, 1>(stream, w, x, y, ldy);
    case LLMQ_TYPE_Q6_K: return launch_matvec<weights_q6_k, 1>(stream, w, x, y, ldy);
    default: return;
    }
}

} // namespace

size_t cuda_acts_q8_bytes(int n_tok, int64_t cols) {
    const size_t groups = static_cast<size_t>(act_groups(cols));
    return align_16(groups * static_cast<size_t>(n_tok) * 32) +
           groups * ACT_TOKENS * (sizeof(act_scale) + sizeof(act_sums));
}

size_t cuda_acts_f16_bytes(int n_tok, int64_t cols) {
    const size_t groups = static_cast<size_t>(act_groups(cols));
    return groups * (static_cast<size_t>(n_tok) * 64 + ACT_TOKENS * sizeof(float));
}

void cuda_acts_q8(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts) {
    const int64_t groups = act_groups(cols);
    gptr<uint8_t> codes = device_pointer(static_cast<uint8_t *>(acts));
    gptr<uint8_t> after = codes + static_cast<int64_t>(align_16(static_cast<size_t>(groups * n_tok * 32)));
    gptr<act_scale> scales = as<act_scale>(after);
    gptr<act_sums> sums = as<act_sums>(after + groups * ACT_TOKENS * static_cast<int64_t>(sizeof(act_scale)));
    gptr<const float> in = device_pointer(x);
    LAUNCH(fill_q8, static_cast<unsigned>(groups), ACT_TOKENS * 32, 0, reinterpret_cast<stream_t>(stream), in, cols,
           n_tok, codes, scales, sums);
}

void cuda_acts_f16(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts) {
    const int64_t groups = act_groups(cols);
    gptr<uint8_t> base = device_pointer(static_cast<uint8_t *>(acts));
    gptr<uint16_t> halves = as<uint16_t>(base);
    gptr<float> sums = as<float>(base + groups * n_tok * 64);
    gptr<const float> in = device_pointer(x);
    LAUNCH(fill_f16, static_cast<unsigned>(groups), ACT_TOKENS * 32, 0, reinterpret_cast<stream_t>(stream), in, cols,
           n_tok, halves, sums);
}

void cuda_matvec_q8(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy) {
    matvec_of(reinterpret_cast<stream_t>(stream), w, acts_q8_of(acts, n_tok, w->cols), y, ldy);
}

void cuda_matvec_f16(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy) {
    matvec_of(reinterpret_cast<stream_t>(stream), w, acts_f16_of(acts, n_tok, w->cols), y, ldy);
}
