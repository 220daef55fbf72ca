/* What activations are made of, and how those of a token come into the range of f16: all of them times a power of two,
 * which results are divided by when their sums are made. Neither rounds, and a token's bits do not depend on the tokens
 * beside it. */
#ifndef LLMQ_CUDA_ACTS_CUH
#define LLMQ_CUDA_ACTS_CUH

#include "cuda/ptx.cuh"

/* ---- values of a row, a column at a time */

/* By all threads of a block of whole warps: the same order of addition for blocks of one size. part: 32 words of shared
 * memory. */
__device__ __forceinline__ float inverse_rms(gptr<const float> row, int64_t n, float eps, sptr<float> part) {
    const int threads = static_cast<int>(blockDim.x);
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += threads) {
        const float v = row[i];
        sum = fmaf(v, v, sum);
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(WARP_ALL, sum, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < threads / 32; w++) sum += part[w];
    return 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
}

__device__ __forceinline__ float swiglu(float gate, float up) {
    return gate / (1.0f + expf(-gate)) * up;
}

/* row(first, n, part), by all threads of a block, is what has the values of the n columns from x[first] on. */
struct plain_values {
    gptr<const float> x;
    __device__ __forceinline__ float at(int64_t column) const { return x[column]; }
    __device__ __forceinline__ plain_values row(int64_t first, int64_t, sptr<float>) const { return {x + first}; }
};
struct norm_values {
    gptr<const float> x, gain;
    float eps, inverse; /* inverse: of one row */
    __device__ __forceinline__ float at(int64_t column) const { return x[column] * inverse * gain[column]; }
    __device__ __forceinline__ norm_values row(int64_t first, int64_t n, sptr<float> part) const {
        return {x + first, gain, eps, inverse_rms(x + first, n, eps, part)};
    }
};
struct swiglu_values {
    gptr<const float> gate, up;
    __device__ __forceinline__ float at(int64_t column) const { return swiglu(gate[column], up[column]); }
    __device__ __forceinline__ swiglu_values row(int64_t first, int64_t, sptr<float>) const {
        return {gate + first, up + first};
    }
};

/* ---- into the range of f16 */

/* A grid of (tokens, shares): every block finds the largest magnitude of a whole row and converts its share of the
 * groups of 32 columns, a warp one at a time. */
constexpr int ROW_THREADS = 1024; /* of a block, at most */

inline unsigned row_threads(int64_t groups) {
    return static_cast<unsigned>(groups * 32 < ROW_THREADS ? groups * 32 : ROW_THREADS);
}
/* So many that a single token's row is converted in one go, fewer where tokens make blocks enough. */
inline unsigned row_shares(int64_t groups, int64_t n_tok) {
    const int64_t most = (groups * 32 + ROW_THREADS - 1) / ROW_THREADS, room = 256 / n_tok;
    return static_cast<unsigned>(most < room ? most : room > 1 ? room : 1);
}

/* halves = x * by, x = halves * back. Rows whose largest magnitude is 2^-4 or more and less than 2^15 stay as they are,
 * in others it comes to 2^14 and more: what is denormal then is less than 2^-28 of it. (Rows below 2^-112 stay smaller:
 * both factors are normal numbers.) NaN and infinity stay what they are. */
struct row_factors {
    float by, back;
};
__device__ __forceinline__ row_factors factors_for(uint32_t largest) {
    const int exponent = static_cast<int>(largest >> 23) - 127;
    if (exponent >= -4 && exponent < 15) return {1.0f, 1.0f};
    const int up = min(14 - exponent, 126);
    return {__uint_as_float(static_cast<uint32_t>(127 + up) << 23),
            __uint_as_float(static_cast<uint32_t>(127 - up) << 23)};
}

/* By all threads of a block of whole warps, of the values of n columns; part: 32 words of shared memory. */
template <class VALUES>
__device__ __forceinline__ row_factors factors_of_row(const VALUES &values, int64_t n, sptr<uint32_t> part) {
    constexpr int IN_FLIGHT = 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = static_cast<int>(blockDim.x) / 32;
    const int64_t threads = blockDim.x;
    uint32_t most = 0; /* NaN above infinity above numbers */
    for (int64_t first = threadIdx.x; first < n; first += IN_FLIGHT * threads) {
        UNROLL
        for (int i = 0; i < IN_FLIGHT; i++) {
            const int64_t column = first + i * threads;
            if (column < n) most = max(most, __float_as_uint(fabsf(values.at(column))));
        }
    }
    most = __reduce_max_sync(WARP_ALL, most);
    if (lane == 0) part[warp] = most;
    __syncthreads();
    return factors_for(__reduce_max_sync(WARP_ALL, lane < warps ? part[lane] : 0u));
}

#endif
