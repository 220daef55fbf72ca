/* Memory of KV caches: pages (cuda_kv of cuda/kernels.h) of one size, which sequences take as they grow and may share.
 * Memory comes in pieces of several pages, since the device stands still meanwhile. Any thread may call. */
#ifndef LLMQ_CUDA_POOL_H
#define LLMQ_CUDA_POOL_H

#include <pthread.h>

#include "cuda/device.h"

typedef struct gpu_page {
    uint8_t *memory;
    int n_users; /* sequences that have it; 0: free */
} gpu_page;

typedef struct gpu_piece {
    struct gpu_piece *next;
    uint8_t *memory;
    int64_t n_pages;
    gpu_page pages[];
} gpu_piece;

typedef struct gpu_pool {
    pthread_mutex_t lock;
    size_t page_bytes; /* a multiple of GPU_ALIGN */
    gpu_piece *pieces; /* the oldest first: they are filled again first, and the last ones become empty */
} gpu_pool;

/* page_bytes: there is one pool for each size. */
void gpu_pool_init(gpu_pool *p, size_t page_bytes);
/* All of its pages are free. */
void gpu_pool_clear(gpu_pool *p);

/* n pages with one user each, or none of them: LLMQ_E_MEMORY. What is missing is allocated n_piece at a time, where
 * there is memory for so many. */
llmq_status gpu_pool_take(gpu_pool *p, int64_t n, int64_t n_piece, gpu_page **out, llmq_err *err);
/* One more user for each of them; one less. Nothing that is queued for the device reads or writes a page that its last
 * user drops. */
void gpu_pool_hold(gpu_pool *p, gpu_page *const *pages, int64_t n);
void gpu_pool_drop(gpu_pool *p, gpu_page *const *pages, int64_t n);
bool gpu_pool_shared(gpu_pool *p, const gpu_page *page); /* has more than one user */
/* Gives memory back: pieces of which no page is in use. */
void gpu_pool_trim(gpu_pool *p);

#endif
