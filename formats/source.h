/* What the readers of this room share: growing a source, checking shapes, names and byte ranges. */
#ifndef LLMQ_FORMATS_SOURCE_H
#define LLMQ_FORMATS_SOURCE_H

#include "formats/format.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "all containers are little-endian and are read in place"
#endif

#define SOURCE_MAX_PATH 4096

/* Element types of safetensors that are no storage types of weights: of members of quantized matrices
 * (formats/schemes/). No opened source has them. */
#define MEMBER_I8 ((llmq_type)24)
#define MEMBER_I32 ((llmq_type)26)
#define MEMBER_I64 ((llmq_type)27)
#define MEMBER_U8 ((llmq_type)61)
/* Bytes of an element; 0 for other types. */
static inline int source_member_bytes(llmq_type type) {
    return type == MEMBER_I32 ? 4 : type == MEMBER_I64 ? 8 : type == MEMBER_I8 || type == MEMBER_U8 ? 1 : 0;
}

/* Maps one more file; *map_out is valid until the next call. */
llmq_status source_add_map(llmq_source *src, const char *path, llmq_map *map_out, llmq_err *err);
/* Room for n more tensors, zeroed, counted in n_tensors. The caller has bounded n by the size of the file. */
llmq_status source_add_tensors(llmq_source *src, size_t n, llmq_tensor **out, llmq_err *err);

/* Sets bytes from type and dims after checking every product; unused dims become 1. file: for the message. */
llmq_status source_size_tensor(llmq_tensor *t, const char *file, llmq_err *err);
/* Copies a name out of a file: not empty, short enough for llmq_tensor, no control characters (names end up on
 * terminals). */
llmq_status source_name_tensor(llmq_tensor *t, const char *name, size_t len, const char *file, llmq_err *err);
bool source_text_is_clean(const char *s, size_t len);

/* A byte range that belongs to a tensor. */
typedef struct source_span {
    uint64_t begin, end;
    size_t index;
} source_span;
void source_sort_spans(source_span *spans, size_t n); /* by begin, then end */

/* Finds tensors by name in O(1). */
typedef struct source_index source_index;
/* A name that occurs twice is LLMQ_E_FORMAT. */
llmq_status source_index_create(const llmq_tensor *tensors, size_t n, const char *file, source_index **out,
                                llmq_err *err);
void source_index_destroy(source_index *index);
/* The tensor's number; n if absent. */
size_t source_index_find(const source_index *index, const llmq_tensor *tensors, size_t n, const char *name);

/* The first n bytes of a regular file; false when it is shorter or cannot be read. */
bool source_peek(const char *path, void *out, size_t n, int64_t *file_size_out);

#endif
