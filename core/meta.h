/* Typed key/values: the neutral ground between containers, tokenizers and the engine. Keys and value types are GGUF's.
 * The object owns copies of everything put into it. Order of insertion is kept (writers rely on it). */
#ifndef LLMQ_CORE_META_H
#define LLMQ_CORE_META_H

#include "core/err.h"

typedef enum llmq_meta_type { /* numbers as in GGUF files */
                              META_U8 = 0,
                              META_I8 = 1,
                              META_U16 = 2,
                              META_I16 = 3,
                              META_U32 = 4,
                              META_I32 = 5,
                              META_F32 = 6,
                              META_BOOL = 7,
                              META_STR = 8,
                              META_ARRAY = 9,
                              META_U64 = 10,
                              META_I64 = 11,
                              META_F64 = 12
} llmq_meta_type;

typedef struct llmq_str {
    const char *s; /* NUL-terminated, but may contain NULs: len counts */
    size_t len;
} llmq_str;

typedef struct llmq_meta_value {
    const char *key;
    llmq_meta_type type;
    union {
        uint64_t u; /* U8 U16 U32 U64 BOOL */
        int64_t i;  /* I8 I16 I32 I64 */
        double f;   /* F32 F64 */
        llmq_str str;
        struct {
            llmq_meta_type type; /* element type, never META_ARRAY */
            size_t n;
            const void *data; /* packed little-endian elements; for META_STR: const llmq_str * */
        } arr;
    };
} llmq_meta_value;

typedef struct llmq_meta llmq_meta;

llmq_meta *meta_create(void); /* NULL when out of memory */
void meta_destroy(llmq_meta *meta);

/* Setters replace an existing key in place. */
llmq_status meta_set_u32(llmq_meta *meta, const char *key, uint32_t x, llmq_err *err);
llmq_status meta_set_u64(llmq_meta *meta, const char *key, uint64_t x, llmq_err *err);
llmq_status meta_set_i32(llmq_meta *meta, const char *key, int32_t x, llmq_err *err);
llmq_status meta_set_f32(llmq_meta *meta, const char *key, float x, llmq_err *err);
llmq_status meta_set_bool(llmq_meta *meta, const char *key, bool x, llmq_err *err);
llmq_status meta_set_str(llmq_meta *meta, const char *key, const char *s, llmq_err *err);
llmq_status meta_set_strn(llmq_meta *meta, const char *key, const char *s, size_t len, llmq_err *err);
/* n elements of a numeric type, packed little-endian as in memory. */
llmq_status meta_set_array(llmq_meta *meta, const char *key, llmq_meta_type type, const void *data, size_t n,
                           llmq_err *err);
llmq_status meta_set_strs(llmq_meta *meta, const char *key, const llmq_str *strs, size_t n, llmq_err *err);
/* A copy of any value under the same key (or another key, if key is not NULL). */
llmq_status meta_set_value(llmq_meta *meta, const char *key, const llmq_meta_value *value, llmq_err *err);
void meta_remove(llmq_meta *meta, const char *key);

size_t meta_count(const llmq_meta *meta);
const llmq_meta_value *meta_at(const llmq_meta *meta, size_t index);
const llmq_meta_value *meta_find(const llmq_meta *meta, const char *key); /* NULL if absent */

/* Readers convert between integer types (range-checked) and from integers to floats; false if absent or of another
 * kind, *out is then untouched, so a default set before stays. */
bool meta_get_i64(const llmq_meta *meta, const char *key, int64_t *out);
bool meta_get_f64(const llmq_meta *meta, const char *key, double *out);
bool meta_get_bool(const llmq_meta *meta, const char *key, bool *out);
const char *meta_get_str(const llmq_meta *meta, const char *key); /* NULL if absent */
/* Bytes of one element of a numeric type; 0 for META_STR, META_ARRAY and unknown numbers. */
size_t meta_type_size(llmq_meta_type type);
/* As the readers above with a formatted key: meta_key(buf, "%s.block_count", arch). */
const char *meta_key(char buf[128], const char *fmt, ...) LLMQ_PRINTF(2, 3);

#endif
