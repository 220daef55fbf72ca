/* One layer's keys or values as kernels see them (cuda_kv of cuda/kernels.h). Offsets are in elements, rows lie
 * head_dim apart. */
#ifndef LLMQ_CUDA_CACHE_CUH
#define LLMQ_CUDA_CACHE_CUH

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace {

struct cache_f16 {
    static constexpr int bytes = 2; /* of an element */
    gptr<const uint8_t> data;
    gptr<const uint16_t> scales; /* none */
};
struct cache_q8 {
    static constexpr int bytes = 1;
    gptr<const uint8_t> data;
    gptr<const uint16_t> scales; /* of 32 elements */
};

template <class C> C cache_of(const void *data, const cuda_kv *kv) {
    gptr<const uint8_t> bytes = device_pointer(static_cast<const uint8_t *>(data));
    return {bytes, as<const uint16_t>(bytes + kv->n_ctx * kv->n_head_kv * kv->head_dim)};
}

} // namespace

#endif
