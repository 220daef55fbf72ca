/* Memory: checked sizes, zeroed and aligned blocks, arenas. Every allocation of the library goes through here, so that
 * tests can make the n-th one fail (mem_fail_after). */
#ifndef LLMQ_CORE_MEM_H
#define LLMQ_CORE_MEM_H

#include "core/err.h"

#define MEM_ALIGN 64 /* cache line and zmm */

/* *out = a * b (a + b); false on overflow. */
static inline bool size_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool size_add(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
static inline bool i64_mul(int64_t a, int64_t b, int64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool i64_add(int64_t a, int64_t b, int64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
static inline size_t size_align(size_t n, size_t align) {
    return (n + align - 1) / align * align;
}

/* n * size bytes aligned to MEM_ALIGN; the size is padded to a multiple of MEM_ALIGN, so that vector loads of the last
 * element stay inside. NULL when out of memory, on overflow; never NULL for 0 bytes. mem_alloc leaves bytes undefined.
 */
void *mem_alloc(size_t n, size_t size);
void *mem_zalloc(size_t n, size_t size);
/* For large blocks whose rows are far apart: in huge pages where the system gives them. */
void *mem_zalloc_huge(size_t n, size_t size);
/* As realloc for blocks of mem_alloc (old_n elements are kept). */
void *mem_grow(void *p, size_t old_n, size_t new_n, size_t size);
void mem_free(void *p); /* NULL allowed */
char *mem_strdup(const char *s);
/* Large blocks for weights: huge pages where the system gives them. Freed by mem_free_big with the same size. */
void *mem_alloc_big(size_t bytes);
/* Zeros of which only small pages that are touched take memory: for what may stay mostly unused. Freed by mem_free_big.
 */
void *mem_alloc_lazy(size_t bytes);
/* A block of mem_alloc_lazy becomes zeros that take no memory again. */
void mem_zero_lazy(void *p, size_t bytes);
void mem_free_big(void *p, size_t bytes);

/* The usual error for a failed allocation. */
llmq_status mem_error(llmq_err *err, size_t bytes, const char *what);

/* Tests: the n-th allocation from now on fails (n >= 1), and all after it; 0 turns it off. */
void mem_fail_after(long n);
/* Peak anonymous resident bytes of this process since start (Linux VmHWM counts file pages too, so RssAnon is sampled
 * by mem_note_peak, which long jobs call at their high points). */
int64_t mem_note_peak(void);
int64_t mem_peak(void);
/* What this machine has, or what the control group of this process may take if that is less; 0: not known. */
int64_t mem_machine_bytes(void);

/* A growing region freed at once. */
typedef struct llmq_arena llmq_arena;
llmq_arena *arena_create(void);
void arena_destroy(llmq_arena *arena);
void *arena_alloc(llmq_arena *arena, size_t bytes, size_t align);  /* NULL when out of memory */
char *arena_strndup(llmq_arena *arena, const char *s, size_t len); /* adds a NUL */

#endif
