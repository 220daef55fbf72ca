/* The likeliest token, so that a decode step ends with 8 bytes over the bus instead of all logits. */
#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace {

constexpr int THREADS = 256, BLOCKS_MOST = 64;

/* The larger one, the lower index of equals; NaN and -infinity are never taken. index -1: none yet. */
struct best {
    float value;
    int32_t index;
};
__device__ __forceinline__ best better(best a, best b) {
    if (b.index < 0) return a;
    if (a.index < 0) return b;
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

__device__ __forceinline__ best warp_best(best x) {
    for (int step = 16; step > 0; step /= 2) {
        const best other = {__shfl_xor_sync(WARP_ALL, x.value, step), __shfl_xor_sync(WARP_ALL, x.index, step)};
        x = better(x, other);
    }
    return x;
}

/* Of all threads, in thread 0. */
__device__ __forceinline__ best block_best(best x) {
    SHARED(float, values, THREADS / 32);
    SHARED(int32_t, indices, THREADS / 32);
    x = warp_best(x);
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = x.value;
        indices[threadIdx.x / 32] = x.index;
    }
    __syncthreads();
    for (int w = 1; threadIdx.x == 0 && w < THREADS / 32; w++) x = better(x, {values[w], indices[w]});
    return x;
}

/* grid: as many blocks as parts are wanted. parts [grid] */
__global__ void __launch_bounds__(THREADS)
    argmax_parts(gptr<const float> x, int n, gptr<float> values, gptr<int32_t> indices) {
    best mine = {-INFINITY, -1};
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) {
        const float v = x[i];
        if (v > mine.value) mine = {v, static_cast<int32_t>(i)};
    }
    mine = block_best(mine);
    if (threadIdx.x != 0) return;
    values[blockIdx.x] = mine.value;
    indices[blockIdx.x] = mine.index;
}

/* One block. out: the value's bits, then the index. */
__global__ void __launch_bounds__(THREADS)
    argmax_of_parts(gptr<const float> values, gptr<const int32_t> indices, int n_parts, gptr<uint32_t> out) {
    const int i = threadIdx.x;
    const best mine = block_best(i < n_parts ? best{values[i], indices[i]} : best{-INFINITY, -1});
    if (i != 0) return;
    out[0] = __float_as_uint(mine.value);
    out[1] = static_cast<uint32_t>(mine.index);
}

static_assert(CUDA_ARGMAX_BYTES == (BLOCKS_MOST + 1) * 8, "the result, and two words a part");

} // namespace

void cuda_argmax(gpu_stream *stream, const float *x, int64_t n, void *scratch) {
    const int64_t wanted = (n + THREADS - 1) / THREADS;
    const int parts = static_cast<int>(wanted < BLOCKS_MOST ? wanted : BLOCKS_MOST), count = static_cast<int>(n);
    gptr<uint32_t> out = device_pointer(static_cast<uint32_t *>(scratch));
    gptr<float> values = as<float>(out + 2);
    gptr<int32_t> indices = as<int32_t>(out + (2 + BLOCKS_MOST));
    gptr<const float> in = device_pointer(x), read_values = values;
    gptr<const int32_t> read_indices = indices;
    const stream_t s = reinterpret_cast<stream_t>(stream);
    LAUNCH(argmax_parts, static_cast<unsigned>(parts), THREADS, 0, s, in, count, values, indices);
    LAUNCH(argmax_of_parts, 1, THREADS, 0, s, read_values, read_indices, parts, out);
}
