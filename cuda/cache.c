#include "cuda/cache.h"

#include <string.h>

#include "core/mem.h"
#include "cuda/work.h"

/* What is allocated at a time: enough that it happens seldom, and no more than a part of the cache that asks for it. */
enum { PIECE_BYTES = 16 << 20, PIECES = 8 };

static int64_t pages_of(int64_t n_positions) {
    return (n_positions + CUDA_PAGE_KEYS - 1) / CUDA_PAGE_KEYS;
}

size_t gpu_cache_layer_bytes(const llmq_device_desc *d, int64_t n_ctx, bool q8) {
    const cuda_kv kv = gpu_kv_of(d, q8);
    return 2 * cuda_kv_bytes(&kv) * (size_t)pages_of(n_ctx);
}

size_t gpu_cache_table_bytes(int64_t n_ctx) {
    return size_align((size_t)pages_of(n_ctx) * sizeof(uint64_t), GPU_ALIGN);
}

cuda_kv gpu_cache_layer(const llmq_device_cache *c, int64_t l) {
    cuda_kv kv = c->kv;
    kv.k += 2 * cuda_kv_bytes(&kv) * (size_t)l;
    kv.v += 2 * cuda_kv_bytes(&kv) * (size_t)l;
    return kv;
}

void gpu_cache_drop_recordings(llmq_device_cache *c) {
    for (int n = 0; n < ACT_TOKENS; n++)
        for (int i = 0; i < GPU_RECORDINGS; i++) {
            gpu_recording_destroy(c->recordings[n][i]);
            c->recordings[n][i] = NULL;
        }
}

void gpu_cache_destroy(llmq_device_cache *c) {
    if (!c) return;
    gpu_use(c->m->device);
    gpu_cache_drop_recordings(c);
    gpu_free((void *)c->kv.pages); /* waits: nothing uses the pages any more */
    gpu_pool_drop(c->pool, c->pages, c->n_pages);
    gpu_pool_trim(c->pool);
    mem_free(c->pages);
    mem_free(c->table);
    mem_free(c);
}

static llmq_status create_table(llmq_device_cache *c, llmq_err *err) {
    const size_t n = (size_t)pages_of(c->n_ctx), bytes = n * sizeof *c->table;
    c->pages = mem_zalloc(n, sizeof(*c->pages));
    c->table = mem_zalloc(n, sizeof *c->table);
    if (!c->pages || !c->table) return mem_error(err, bytes, "the KV cache");
    LLMQ_TRY(gpu_alloc("the KV cache", bytes, (void **)&c->kv.pages, err));
    return gpu_upload((void *)c->kv.pages, c->table, bytes, err);
}

llmq_status gpu_cache_create(const llmq_device_model *m, int64_t n_ctx, int kv_type, llmq_device_cache **out,
                             size_t *bytes, llmq_err *err) {
    static _Atomic uint64_t caches;
    *out = NULL;
    if (kv_type != 0 && kv_type != 1)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--kv-type f32: on a GPU the cache is f16 or q8_0");
    gpu_use(m->device);
    llmq_device_cache *c = mem_zalloc(1, sizeof *c);
    if (!c) return mem_error(err, sizeof *c, "the KV cache");
    *c = (llmq_device_cache){
        .m = m, .pool = &m->pools[kv_type], .id = ++caches, .n_ctx = n_ctx, .kv = gpu_kv_of(&m->d, kv_type == 1)};
    c->kv.v = cuda_kv_bytes(&c->kv);
    *bytes = c->pool->page_bytes / CUDA_PAGE_KEYS * (size_t)n_ctx;
    const llmq_status status = create_table(c, err);
    if (status == LLMQ_OK)
        *out = c;
    else
        gpu_cache_destroy(c);
    return status;
}

/* ---- pages */

static void set_page(llmq_device_cache *c, int64_t i, gpu_page *page) {
    c->pages[i] = page;
    c->table[i] = (uint64_t)(uintptr_t)page->memory;
    if (i < c->n_known) c->n_known = i;
}

/* Gives back all pages but the first `keep`. Somebody else may write them at once, on another stream. */
static llmq_status give_back(llmq_device_cache *c, gpu_stream *stream, int64_t keep, llmq_err *err) {
    if (c->n_pages <= keep) return LLMQ_OK;
    LLMQ_TRY(gpu_stream_wait(stream, err));
    gpu_pool_drop(c->pool, c->pages + keep, c->n_pages - keep);
    c->n_pages = keep;
    if (c->n_known > keep) c->n_known = keep;
    return LLMQ_OK;
}

static llmq_status take(const llmq_device_cache *c, int64_t n, gpu_page **out, llmq_err *err) {
    int64_t piece = PIECE_BYTES / (int64_t)c->pool->page_bytes, most = pages_of(c->n_ctx) / PIECES;
    if (piece > most) piece = most;
    const llmq_status status = gpu_pool_take(c->pool, n, piece > 1 ? piece : 1, out, err);
    if (status != LLMQ_E_MEMORY) return status;
    return llmq_fail(err, LLMQ_E_MEMORY,
                     "the GPU has no %.1f MB left for %lld more tokens of a KV cache; give a smaller --ctx, run fewer "
                     "sessions, or take --kv-type q8_0",
                     (double)c->pool->page_bytes * (double)n * 1e-6, (long long)(n * CUDA_PAGE_KEYS));
}

/* Pages that others have, too, are replaced from the one of position pos on. What that page has before pos stays. */
static llmq_status own_pages(llmq_device_cache *c, gpu_stream *stream, int64_t pos, llmq_err *err) {
    for (int64_t i = pos / CUDA_PAGE_KEYS; i < c->n_pages; i++) {
        gpu_page *old = c->pages[i], *own;
        if (!gpu_pool_shared(c->pool, old)) continue;
        LLMQ_TRY(take(c, 1, &own, err));
        llmq_status status = LLMQ_OK;
        if (i * CUDA_PAGE_KEYS < pos)
            status = gpu_stream_copy(stream, own->memory, old->memory, c->pool->page_bytes, err);
        if (status == LLMQ_OK) set_page(c, i, own);
        gpu_pool_drop(c->pool, status == LLMQ_OK ? &old : &own, 1);
        LLMQ_TRY(status);
    }
    return LLMQ_OK;
}

static llmq_status extend(llmq_device_cache *c, int64_t n_pages, llmq_err *err) {
    const int64_t had = c->n_pages;
    if (n_pages <= had) return LLMQ_OK;
    LLMQ_TRY(take(c, n_pages - had, c->pages + had, err));
    for (int64_t i = had; i < n_pages; i++) set_page(c, i, c->pages[i]);
    c->n_pages = n_pages;
    return LLMQ_OK;
}

llmq_status gpu_cache_reserve(llmq_device_cache *c, gpu_stream *stream, int64_t pos, int64_t n, llmq_err *err) {
    const int64_t n_pages = pages_of(pos + n);
    LLMQ_ASSERT(pos >= 0 && n >= 1 && pos + n <= c->n_ctx);
    LLMQ_TRY(give_back(c, stream, n_pages, err));
    LLMQ_TRY(own_pages(c, stream, pos, err));
    LLMQ_TRY(extend(c, n_pages, err));
    if (c->n_known == c->n_pages) return LLMQ_OK;
    LLMQ_TRY(gpu_stream_upload(stream, (uint64_t *)c->kv.pages + c->n_known, c->table + c->n_known,
                               (size_t)(c->n_pages - c->n_known) * sizeof *c->table, err));
    c->n_known = c->n_pages;
    return LLMQ_OK;
}

/* The last page, of which only a part may be wanted, is shared as well: whoever writes to it first copies it. */
llmq_status gpu_cache_share(llmq_device_work *w, llmq_device_cache *to, const llmq_device_cache *from, int64_t n,
                            llmq_err *err) {
    const int64_t n_pages = pages_of(n);
    LLMQ_ASSERT(to != from && to->pool == from->pool && n >= 0 && n <= to->n_ctx && n_pages <= from->n_pages);
    gpu_use(to->m->device);
    LLMQ_TRY(give_back(to, w->stream, 0, err));
    gpu_pool_hold(to->pool, from->pages, n_pages);
    for (int64_t i = 0; i < n_pages; i++) set_page(to, i, from->pages[i]);
    to->n_pages = n_pages;
    return LLMQ_OK;
}
