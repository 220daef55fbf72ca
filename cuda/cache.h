/* The cache of one sequence: pages of keys and values, and the table by which kernels find them. */
#ifndef LLMQ_CUDA_CACHE_H
#define LLMQ_CUDA_CACHE_H

#include "cuda/layout.h"
#include "cuda/model.h"

/* A recording of a step of n tokens over up to 128 * 2^i keys (cuda/forward.c): a context has less than 2^24 parts. */
enum { GPU_RECORDINGS = 24 };

struct llmq_device_cache {
    const llmq_device_model *m;
    gpu_pool *pool;
    uint64_t id; /* another for each cache of the process */
    int64_t n_ctx;
    cuda_kv kv;       /* the first layer */
    gpu_page **pages; /* [pages of n_ctx positions]: those that the sequence has, */
    uint64_t *table;  /* where they are: what kv.pages holds */
    int64_t n_pages;  /* so many */
    int64_t n_known;  /* of them kv.pages has on the device */
    uint64_t used_by; /* the work whose buffers the recordings know */
    gpu_recording *recordings[ACT_TOKENS][GPU_RECORDINGS];
};

/* ---- of core/device.h */

llmq_status gpu_cache_create(const llmq_device_model *m, int64_t n_ctx, int kv_type, llmq_device_cache **out,
                             size_t *bytes, llmq_err *err);
void gpu_cache_destroy(llmq_device_cache *c);
llmq_status gpu_cache_share(llmq_device_work *w, llmq_device_cache *to, const llmq_device_cache *from, int64_t n,
                            llmq_err *err);

/* ---- for passes */

/* Positions pos.. of n tokens, which are written next on this stream, get pages that no other sequence has; those
 * before are as they were, those behind are gone. LLMQ_E_MEMORY: there is not enough of it, and what is before pos is
 * still there. */
llmq_status gpu_cache_reserve(llmq_device_cache *c, gpu_stream *stream, int64_t pos, int64_t n, llmq_err *err);
cuda_kv gpu_cache_layer(const llmq_device_cache *c, int64_t l);
void gpu_cache_drop_recordings(llmq_device_cache *c);

/* ---- sizes */

/* Device memory of a whole cache of n_ctx positions, of a layer; and of its table. */
size_t gpu_cache_layer_bytes(const llmq_device_desc *d, int64_t n_ctx, bool q8);
size_t gpu_cache_table_bytes(int64_t n_ctx);

#endif
