/* Caches of the CPU with contents, and their bytes as the GPU has them. */
#ifndef LLMQ_TESTS_CUDA_CACHES_H
#define LLMQ_TESTS_CUDA_CACHES_H

#include "gpu.h"

#include "cpu/kv.h"

/* Random rows on the CPU, as earlier tokens leave them. */
static inline void fill_cache(const llmq_kv *kv, void *rows) {
    const size_t n = (size_t)kv->head_dim, n_rows = (size_t)(kv->n_head_kv * kv->n_ctx);
    uint8_t *row = rows;
    for (size_t r = 0; r < n_rows; r++, row += kv_row_bytes(kv->type, kv->head_dim)) {
        uint16_t *halves = (uint16_t *)row;
        for (size_t i = 0; i < n && kv->type == KV_F16; i++) halves[i] = f32_to_f16(uniform(-1, 1));
        if (kv->type == KV_F16) continue;
        for (size_t i = 0; i < n; i++) row[i] = (uint8_t)(int8_t)uniform(-127, 127);
        for (size_t g = 0; g < n / KV_GROUP; g++) halves[n / 2 + g] = f32_to_f16(uniform(0.001f, 0.01f));
    }
}

/* ---- the same in pages of the GPU. Each page is a buffer of its own, made in another order than the positions have: a
 * kernel that does not look into the table leaves its page. Before this layer's keys comes another layer, which nobody
 * has written. */

enum { PAGES_MOST = 8 };

typedef struct paged {
    cuda_kv kv;
    uint8_t *pages[PAGES_MOST];
    int n_pages;
} paged;

static inline paged make_pages(const llmq_kv *kv) {
    paged p = {.kv = {.n_head_kv = kv->n_head_kv, .head_dim = kv->head_dim, .q8 = kv->type == KV_Q8}};
    uint64_t table[PAGES_MOST];
    const size_t bytes = cuda_kv_bytes(&p.kv);
    p.n_pages = (int)((kv->n_ctx + CUDA_PAGE_KEYS - 1) / CUDA_PAGE_KEYS);
    assert_true(p.n_pages <= PAGES_MOST && bytes % GPU_ALIGN == 0);
    assert_int_equal(bytes, CUDA_PAGE_KEYS * (size_t)kv->n_head_kv * kv_row_bytes(kv->type, kv->head_dim));
    p.kv.k = 2 * bytes, p.kv.v = 3 * bytes;
    for (int i = p.n_pages - 1; i >= 0; i--) {
        p.pages[i] = output_of("page", 4 * bytes);
        table[i] = (uint64_t)(uintptr_t)p.pages[i];
    }
    p.kv.pages = input_of("pages", table, (size_t)p.n_pages * sizeof *table);
    return p;
}

static inline void drop_pages(paged *p) {
    for (int i = 0; i < p->n_pages; i++) gpu_free(p->pages[i]);
    gpu_free((void *)p->kv.pages);
}

/* Position `pos` of a head in the pages, from or to the CPU's rows. */
static inline void move_row(const paged *p, const llmq_kv *kv, uint8_t *rows, bool values, int head, int64_t pos,
                            bool to_gpu) {
    const size_t row_bytes = kv_row_bytes(kv->type, kv->head_dim), at = values ? p->kv.v : p->kv.k;
    const size_t codes = kv->type == KV_F16 ? row_bytes : (size_t)kv->head_dim, scales = row_bytes - codes;
    const size_t row = (size_t)(head * CUDA_PAGE_KEYS + pos % CUDA_PAGE_KEYS);
    uint8_t *here = rows + (size_t)(head * kv->n_ctx + pos) * row_bytes, *page = p->pages[pos / CUDA_PAGE_KEYS] + at;
    uint8_t *there[2] = {page + row * codes, page + (size_t)(kv->n_head_kv * CUDA_PAGE_KEYS) * codes + row * scales};
    for (int i = 0; i < (scales ? 2 : 1); i++) {
        llmq_err err;
        uint8_t *part = here + (i ? codes : 0);
        const size_t bytes = i ? scales : codes;
        const llmq_status status =
            to_gpu ? gpu_upload(there[i], part, bytes, &err) : gpu_download(part, there[i], bytes, &err);
        if (status != LLMQ_OK) fail_msg("%s", err.msg);
    }
}

/* The first n positions of keys or values, to the pages and back. */
static inline void put_rows(const paged *p, const llmq_kv *kv, void *rows, bool values, int64_t n) {
    for (int h = 0; h < kv->n_head_kv; h++)
        for (int64_t pos = 0; pos < n; pos++) move_row(p, kv, rows, values, h, pos, true);
}
static inline void get_rows(const paged *p, const llmq_kv *kv, void *rows, bool values, int64_t n) {
    for (int h = 0; h < kv->n_head_kv; h++)
        for (int64_t pos = 0; pos < n; pos++) move_row(p, kv, rows, values, h, pos, false);
}

#endif
