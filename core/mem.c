#define _GNU_SOURCE
#include "core/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)

static atomic_long fail_countdown; /* 0: off; tests only */

void mem_fail_after(long n) {
    atomic_store(&fail_countdown, n);
}

static bool must_fail(void) {
    long n = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    if (n == 0) return false;
    if (n == 1) return true; /* stays at 1: every later allocation fails too */
    atomic_fetch_sub(&fail_countdown, 1);
    return false;
}

void *mem_alloc(size_t n, size_t size) {
    size_t bytes;
    if (!size_mul(n, size, &bytes) || bytes > SIZE_MAX / 2 || must_fail()) return NULL;
    return aligned_alloc(MEM_ALIGN, size_align(bytes ? bytes : 1, MEM_ALIGN));
}

void *mem_zalloc(size_t n, size_t size) {
    void *p = mem_alloc(n, size);
    if (p) memset(p, 0, size_align(n * size, MEM_ALIGN));
    return p;
}

void *mem_zalloc_huge(size_t n, size_t size) {
    size_t bytes;
    if (!size_mul(n, size, &bytes) || bytes < 2 * HUGE_PAGE) return mem_zalloc(n, size);
    if (bytes > SIZE_MAX / 2 || must_fail()) return NULL;
    void *p = aligned_alloc(HUGE_PAGE, size_align(bytes, HUGE_PAGE));
    if (!p) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return memset(p, 0, size_align(bytes, MEM_ALIGN));
}

void *mem_grow(void *p, size_t old_n, size_t new_n, size_t size) {
    void *q = mem_alloc(new_n, size);
    if (!q) return NULL;
    if (p) memcpy(q, p, (old_n < new_n ? old_n : new_n) * size);
    mem_free(p);
    return q;
}

void mem_free(void *p) {
    free(p);
}

char *mem_strdup(const char *s) {
    size_t n = strlen(s) + 1;
    char *copy = mem_alloc(n, 1);
    if (copy) memcpy(copy, s, n);
    return copy;
}

static void *map_anonymous(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Large blocks come from slabs, one behind the other, so that huge pages cover them all: a mapping of its own would
 * keep a block's first and last pages small. The first of them have small pages: what a small model takes may not be a
 * multiple of huge ones. */
#define SMALL_PAGES ((size_t)8 << 20) /* live blocks up to which pages are small */
#define SLAB_BYTES ((size_t)64 << 20)
#define SLAB_MOST (SLAB_BYTES / 4) /* of a block: larger ones lose little by mappings of their own */

typedef struct slab {
    struct slab *next;
    char *base;
    size_t used;  /* bytes handed out, including blocks that came back since */
    int64_t live; /* blocks */
    bool huge;
} slab;

static slab *slabs;       /* the newest first */
static size_t slabs_live; /* bytes of blocks */
static pthread_mutex_t slabs_lock = PTHREAD_MUTEX_INITIALIZER;

static slab *slab_new(bool huge) {
    slab *s = malloc(sizeof *s);
    char *p = s ? map_anonymous(SLAB_BYTES + HUGE_PAGE) : NULL;
    if (!p) {
        free(s);
        return NULL;
    }
    char *base = p + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    if (base > p) munmap(p, (size_t)(base - p));
    munmap(base + SLAB_BYTES, (size_t)(p + HUGE_PAGE - base));
    madvise(base, SLAB_BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    *s = (slab){.next = slabs, .base = base, .huge = huge};
    return slabs = s;
}

static void *slab_alloc(size_t size) {
    pthread_mutex_lock(&slabs_lock);
    bool huge = slabs_live + size > SMALL_PAGES;
    slab *s = slabs;
    while (s && (s->huge != huge || SLAB_BYTES - s->used < size)) s = s->next;
    if (!s) s = slab_new(huge);
    void *p = s ? s->base + s->used : NULL;
    if (s) {
        slabs_live += size;
        s->used += size;
        s->live++;
    }
    pthread_mutex_unlock(&slabs_lock);
    return p;
}

/* False: p is of no slab. What comes back takes no memory any more; its place is used again if nothing lies behind it.
 */
static bool slab_free(char *p, size_t size) {
    pthread_mutex_lock(&slabs_lock);
    slab **at = &slabs;
    while (*at && !(p >= (*at)->base && p < (*at)->base + SLAB_BYTES)) at = &(*at)->next;
    slab *s = *at;
    if (s) slabs_live -= size;
    if (s && --s->live == 0) {
        *at = s->next;
        munmap(s->base, SLAB_BYTES);
        free(s);
    } else if (s) {
        if (madvise(p, size, MADV_DONTNEED) == 0 && p + size == s->base + s->used) s->used -= size;
    }
    pthread_mutex_unlock(&slabs_lock);
    return s != NULL;
}

void *mem_alloc_big(size_t bytes) {
    if (bytes == 0 || bytes > SIZE_MAX / 2 || must_fail()) return NULL;
    size_t size = size_align(bytes, 4096);
    void *p = size <= SLAB_MOST ? slab_alloc(size) : NULL;
    if (p) return p;
    p = map_anonymous(size); /* a limit may leave room for the block, but not for a slab */
    if (p) madvise(p, size, MADV_HUGEPAGE);
    return p;
}

void *mem_alloc_lazy(size_t bytes) {
    if (bytes == 0 || bytes > SIZE_MAX / 2 || must_fail()) return NULL;
    size_t size = size_align(bytes, 4096);
    void *p = map_anonymous(size);
    if (p && size >= HUGE_PAGE) madvise(p, size, MADV_NOHUGEPAGE);
    return p;
}

void mem_zero_lazy(void *p, size_t bytes) {
    if (madvise(p, size_align(bytes, 4096), MADV_DONTNEED) != 0) memset(p, 0, bytes);
}

void mem_free_big(void *p, size_t bytes) {
    size_t size = size_align(bytes, 4096);
    if (p && !(size <= SLAB_MOST && slab_free(p, size))) munmap(p, size);
}

llmq_status mem_error(llmq_err *err, size_t bytes, const char *what) {
    return llmq_fail(err, LLMQ_E_MEMORY,
                     "out of memory: %.1f MB for %s; close other programs or use a smaller model, context or batch",
                     (double)bytes / 1e6, what);
}

static _Atomic int64_t peak_anon;

int64_t mem_note_peak(void) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long long kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %lld kB", &kb) == 1) break;
    if (f) fclose(f);
    int64_t now = (int64_t)kb * 1024, old = atomic_load(&peak_anon);
    while (now > old && !atomic_compare_exchange_weak(&peak_anon, &old, now)) {
    }
    return now;
}

int64_t mem_peak(void) {
    mem_note_peak();
    return atomic_load(&peak_anon);
}

/* The number in a file of a control group; 0: none, or no limit. */
static int64_t group_limit(const char *path) {
    FILE *f = fopen(path, "r");
    long long bytes = 0;
    if (f && fscanf(f, "%lld", &bytes) != 1) bytes = 0;
    if (f) fclose(f);
    return bytes;
}

int64_t mem_machine_bytes(void) {
    static const char *const files[] = {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    for (int i = 0; i < 2; i++) {
        int64_t limit = group_limit(files[i]);
        if (limit > 0 && (bytes <= 0 || limit < bytes)) bytes = limit;
    }
    return bytes > 0 ? bytes : 0;
}

/* ---- arena ---- */

typedef struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    _Alignas(MEM_ALIGN) char data[];
} arena_block;

struct llmq_arena {
    arena_block *head;
};

llmq_arena *arena_create(void) {
    return mem_zalloc(1, sizeof(llmq_arena));
}

void arena_destroy(llmq_arena *arena) {
    if (!arena) return;
    for (arena_block *b = arena->head; b;) {
        arena_block *next = b->next;
        mem_free(b);
        b = next;
    }
    mem_free(arena);
}

void *arena_alloc(llmq_arena *arena, size_t bytes, size_t align) {
    LLMQ_ASSERT(align <= MEM_ALIGN);
    arena_block *b = arena->head;
    size_t at = b ? size_align(b->used, align) : 0;
    if (!b || at > b->cap || bytes > b->cap - at) {
        size_t cap = (size_t)256 << 10, total;
        if (bytes > cap) cap = bytes;
        if (!size_add(cap, sizeof *b, &total)) return NULL;
        b = mem_alloc(1, total);
        if (!b) return NULL;
        b->next = arena->head;
        b->used = 0;
        b->cap = cap;
        arena->head = b;
        at = 0;
    }
    b->used = at + bytes;
    return b->data + at;
}

char *arena_strndup(llmq_arena *arena, const char *s, size_t len) {
    if (len == SIZE_MAX) return NULL;
    char *copy = arena_alloc(arena, len + 1, 1);
    if (!copy) return NULL;
    memcpy(copy, s, len);
    copy[len] = 0;
    return copy;
}
