/* A sequence's keys and values as kernels see them (cuda_kv of cuda/kernels.h). */
#ifndef LLMQ_CUDA_CACHE_CUH
#define LLMQ_CUDA_CACHE_CUH

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace {

constexpr int PAGE_KEYS = CUDA_PAGE_KEYS;

struct cache_f16 {
    static constexpr int bytes = 2; /* of an element */
};
struct cache_q8 {
    static constexpr int bytes = 1;
};

__device__ __forceinline__ unsigned page_of(int position) {
    return static_cast<unsigned>(position) / PAGE_KEYS;
}

/* Where one head's rows of a page begin, head_dim elements each, and their scales. */
struct head_rows {
    gptr<uint8_t> data;
    gptr<uint16_t> scales; /* of 32 elements, in a cache of 8 bits */
};

/* layer: a page's keys or values of a layer. */
template <class C>
__device__ __forceinline__ head_rows rows_of_head(gptr<uint8_t> layer, int head, int n_head, int head_dim) {
    const int row = head * PAGE_KEYS, codes = n_head * PAGE_KEYS * head_dim;
    return {layer + row * head_dim * C::bytes, as<uint16_t>(layer + codes) + row * (head_dim / 32)};
}

} // namespace

#endif
