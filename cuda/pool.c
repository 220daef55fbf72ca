#include "cuda/pool.h"

#include "core/mem.h"

void gpu_pool_init(gpu_pool *p, size_t page_bytes) {
    *p = (gpu_pool){.page_bytes = page_bytes};
    pthread_mutex_init(&p->lock, NULL);
}

void gpu_pool_clear(gpu_pool *p) {
    gpu_pool_trim(p);
    LLMQ_ASSERT(!p->pieces);
    pthread_mutex_destroy(&p->lock);
}

static llmq_status add_piece(gpu_pool *p, int64_t n, llmq_err *err) {
    const size_t bytes = sizeof(gpu_piece) + (size_t)n * sizeof(gpu_page);
    void *memory;
    gpu_piece *piece = mem_zalloc(1, bytes), **end = &p->pieces;
    if (!piece) return mem_error(err, bytes, "the KV cache");
    const llmq_status status = gpu_alloc("the KV cache", (size_t)n * p->page_bytes, &memory, err);
    if (status != LLMQ_OK) {
        mem_free(piece);
        return status;
    }
    piece->memory = memory;
    piece->n_pages = n;
    for (int64_t i = 0; i < n; i++) piece->pages[i].memory = piece->memory + (size_t)i * p->page_bytes;
    while (*end) end = &(*end)->next;
    *end = piece;
    return LLMQ_OK;
}

/* A piece of n pages, or of fewer where memory does not allow for so many. */
static llmq_status grow(gpu_pool *p, int64_t n, llmq_err *err) {
    for (;; n /= 2) {
        const llmq_status status = add_piece(p, n, err);
        if (status != LLMQ_E_MEMORY || n == 1) return status;
    }
}

static gpu_page *find_free(const gpu_pool *p) {
    for (gpu_piece *piece = p->pieces; piece; piece = piece->next)
        for (int64_t i = 0; i < piece->n_pages; i++)
            if (piece->pages[i].n_users == 0) return &piece->pages[i];
    return NULL;
}

static bool in_use(const gpu_piece *piece) {
    for (int64_t i = 0; i < piece->n_pages; i++)
        if (piece->pages[i].n_users > 0) return true;
    return false;
}

static void free_unused(gpu_pool *p) {
    for (gpu_piece **at = &p->pieces; *at;) {
        gpu_piece *piece = *at;
        if (in_use(piece)) {
            at = &piece->next;
            continue;
        }
        *at = piece->next;
        gpu_free(piece->memory);
        mem_free(piece);
    }
}

llmq_status gpu_pool_take(gpu_pool *p, int64_t n, int64_t n_piece, gpu_page **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    int64_t taken = 0;
    pthread_mutex_lock(&p->lock);
    while (taken < n && status == LLMQ_OK) {
        gpu_page *page = find_free(p);
        if (!page) {
            status = grow(p, n - taken > n_piece ? n - taken : n_piece, err);
            continue;
        }
        page->n_users = 1;
        out[taken++] = page;
    }
    for (int64_t i = 0; i < taken && status != LLMQ_OK; i++) out[i]->n_users = 0;
    if (status != LLMQ_OK) free_unused(p); /* others may need what was not enough here */
    pthread_mutex_unlock(&p->lock);
    return status;
}

static void count_users(gpu_pool *p, gpu_page *const *pages, int64_t n, int by) {
    pthread_mutex_lock(&p->lock);
    for (int64_t i = 0; i < n; i++) pages[i]->n_users += by;
    pthread_mutex_unlock(&p->lock);
}

void gpu_pool_hold(gpu_pool *p, gpu_page *const *pages, int64_t n) {
    count_users(p, pages, n, 1);
}

void gpu_pool_drop(gpu_pool *p, gpu_page *const *pages, int64_t n) {
    count_users(p, pages, n, -1);
}

bool gpu_pool_shared(gpu_pool *p, const gpu_page *page) {
    pthread_mutex_lock(&p->lock);
    const bool shared = page->n_users > 1;
    pthread_mutex_unlock(&p->lock);
    return shared;
}

void gpu_pool_trim(gpu_pool *p) {
    pthread_mutex_lock(&p->lock);
    free_unused(p);
    pthread_mutex_unlock(&p->lock);
}
