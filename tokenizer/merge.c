/* The merge engine of both kinds of BPE: repeatedly replaces the adjacent pair of lowest rank by its merged token.
 * Pairs are keyed by ids, so no strings are built while merging.
 *
 * A few symbols (nearly every word): ranks of all adjacent pairs in an array, a linear search for the least, memmove.
 * Many symbols (a long run without a boundary, SentencePiece on a whole text): a doubly linked list over the symbols
 * and a heap of rank << 32 | position. An entry is stale, and skipped, when its position's pair has another rank by
 * now. A symbol that was swallowed by its left neighbour has rank TOK_NO_RANK, so its entries are stale too. */
#include <string.h>

#include "tokenizer/internal.h"

#define SMALL 40

llmq_status tok_merges_create(tok_merges *merges, size_t n_max, llmq_err *err) {
    size_t cap = 64;
    int shift = 58;
    while (cap < n_max + n_max / 2) {
        cap *= 2;
        shift--;
    }
    merges->slots = mem_alloc(cap, sizeof *merges->slots);
    if (!merges->slots) return mem_error(err, cap * sizeof *merges->slots, "the merges of a tokenizer");
    memset(merges->slots, 0xff, cap * sizeof *merges->slots);
    merges->mask = cap - 1;
    merges->shift = shift;
    return LLMQ_OK;
}

void tok_merges_destroy(tok_merges *merges) {
    mem_free(merges->slots);
    merges->slots = NULL;
}

static inline uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static inline size_t pair_slot(const tok_merges *m, uint64_t key) {
    return (size_t)((key ^ key >> 29) * 0x9e3779b97f4a7c15u >> m->shift);
}

void tok_merges_add(tok_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    uint64_t key = pair_key(left, right);
    size_t i = pair_slot(m, key);
    while (m->slots[i].key != UINT64_MAX && m->slots[i].key != key) i = (i + 1) & m->mask;
    if (m->slots[i].key == key && m->slots[i].rank <= rank) return;
    m->slots[i] = (tok_merge){key, rank, id};
}

/* The rank of a pair and, if it has one, what it becomes. Symbols without a token (-1) never merge. */
static inline uint32_t find(const tok_merges *m, int32_t left, int32_t right, int32_t *id_out) {
    if ((left | right) < 0) return TOK_NO_RANK;
    uint64_t key = pair_key(left, right);
    for (size_t i = pair_slot(m, key);; i = (i + 1) & m->mask) {
        const tok_merge *slot = &m->slots[i];
        if (slot->key == key) {
            *id_out = slot->id;
            return slot->rank;
        }
        if (slot->key == UINT64_MAX) return TOK_NO_RANK;
    }
}

static size_t apply_small(const tok_merges *m, int32_t *ids, size_t n) {
    uint32_t rank[SMALL];
    int32_t merged[SMALL];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = find(m, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == TOK_NO_RANK) break;
        ids[best] = merged[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            rank[i] = rank[i + 1];
            merged[i] = merged[i + 1];
        }
        if (best + 1 < n) rank[best] = find(m, ids[best], ids[best + 1], &merged[best]);
        if (best > 0) rank[best - 1] = find(m, ids[best - 1], ids[best], &merged[best - 1]);
    }
    return n;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t x) {
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > x; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0], x = heap[--*n];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
    return top;
}

void merge_scratch_destroy(merge_scratch *s) {
    mem_free(s->rank);
    mem_free(s->prev);
    mem_free(s->next);
    mem_free(s->merged);
    mem_free(s->heap);
    memset(s, 0, sizeof *s);
}

static llmq_status scratch_reserve(merge_scratch *s, size_t n, llmq_err *err) {
    if (n <= s->cap) return LLMQ_OK;
    merge_scratch_destroy(s);
    s->rank = mem_alloc(n, sizeof *s->rank);
    s->prev = mem_alloc(n, sizeof *s->prev);
    s->next = mem_alloc(n, sizeof *s->next);
    s->merged = mem_alloc(n, sizeof *s->merged);
    s->heap = mem_alloc(n, 3 * sizeof *s->heap); /* n - 1 pairs, and two more for each of at most n - 1 merges */
    if (!s->rank || !s->prev || !s->next || !s->merged || !s->heap)
        return mem_error(err, n * 40, "merging a long piece");
    s->cap = n;
    return LLMQ_OK;
}

static void update_pair(const tok_merges *m, merge_scratch *s, const int32_t *ids, size_t n, uint32_t i,
                        size_t *n_heap) {
    s->rank[i] = s->next[i] < n ? find(m, ids[i], ids[s->next[i]], &s->merged[i]) : TOK_NO_RANK;
    if (s->rank[i] != TOK_NO_RANK) heap_push(s->heap, n_heap, (uint64_t)s->rank[i] << 32 | i);
}

static size_t apply_large(const tok_merges *m, merge_scratch *s, int32_t *ids, size_t n) {
    size_t n_heap = 0, kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        s->prev[i] = i - 1; /* of 0: UINT32_MAX, never < n */
        s->next[i] = i + 1;
        update_pair(m, s, ids, n, i, &n_heap);
    }
    while (n_heap) {
        uint64_t top = heap_pop(s->heap, &n_heap);
        uint32_t i = (uint32_t)top;
        if (s->rank[i] != top >> 32) continue;
        uint32_t right = s->next[i];
        ids[i] = s->merged[i];
        s->rank[right] = TOK_NO_RANK;
        s->next[i] = s->next[right];
        if (s->next[i] < n) s->prev[s->next[i]] = i;
        update_pair(m, s, ids, n, i, &n_heap);
        if (s->prev[i] < n) update_pair(m, s, ids, n, s->prev[i], &n_heap);
    }
    for (uint32_t i = 0; i < n; i = s->next[i]) ids[kept++] = ids[i];
    return kept;
}

llmq_status tok_merges_apply(const tok_merges *merges, merge_scratch *scratch, int32_t *ids, size_t n, size_t *n_out,
                             llmq_err *err) {
    if (n <= SMALL) {
        *n_out = n ? apply_small(merges, ids, n) : 0;
        return LLMQ_OK;
    }
    LLMQ_TRY(scratch_reserve(scratch, n, err));
    *n_out = apply_large(merges, scratch, ids, n);
    return LLMQ_OK;
}
