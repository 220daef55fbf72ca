#include "core/meta.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"

struct llmq_meta {
    llmq_arena *arena; /* keys, strings, arrays; replaced values stay until the end */
    llmq_meta_value *values;
    size_t n, cap;
};

llmq_meta *meta_create(void) {
    llmq_meta *meta = mem_zalloc(1, sizeof *meta);
    if (!meta) return NULL;
    meta->arena = arena_create();
    if (!meta->arena) {
        mem_free(meta);
        return NULL;
    }
    return meta;
}

void meta_destroy(llmq_meta *meta) {
    if (!meta) return;
    arena_destroy(meta->arena);
    mem_free(meta->values);
    mem_free(meta);
}

size_t meta_type_size(llmq_meta_type type) {
    switch (type) {
    case META_U8:
    case META_I8:
    case META_BOOL: return 1;
    case META_U16:
    case META_I16: return 2;
    case META_U32:
    case META_I32:
    case META_F32: return 4;
    case META_U64:
    case META_I64:
    case META_F64: return 8;
    default: return 0;
    }
}

static llmq_meta_value *find(const llmq_meta *meta, const char *key) {
    for (size_t i = 0; i < meta->n; i++)
        if (!strcmp(meta->values[i].key, key)) return &meta->values[i];
    return NULL;
}

static llmq_status no_memory(llmq_err *err) {
    return mem_error(err, 0, "metadata");
}

/* The slot of key with everything but the key cleared. */
static llmq_meta_value *slot(llmq_meta *meta, const char *key, llmq_meta_type type) {
    llmq_meta_value *v = find(meta, key);
    if (!v) {
        if (meta->n == meta->cap) {
            size_t cap = meta->cap ? meta->cap * 2 : 64;
            llmq_meta_value *grown = mem_grow(meta->values, meta->n, cap, sizeof *grown);
            if (!grown) return NULL;
            meta->values = grown;
            meta->cap = cap;
        }
        char *copy = arena_strndup(meta->arena, key, strlen(key));
        if (!copy) return NULL;
        v = &meta->values[meta->n++];
        memset(v, 0, sizeof *v);
        v->key = copy;
    }
    const char *k = v->key;
    memset(v, 0, sizeof *v);
    v->key = k;
    v->type = type;
    return v;
}

#define SET_SCALAR(fn, ctype, mtype, field)                                                                            \
    llmq_status fn(llmq_meta *meta, const char *key, ctype x, llmq_err *err) {                                         \
        llmq_meta_value *v = slot(meta, key, mtype);                                                                   \
        if (!v) return no_memory(err);                                                                                 \
        v->field = x;                                                                                                  \
        return LLMQ_OK;                                                                                                \
    }
SET_SCALAR(meta_set_u32, uint32_t, META_U32, u)
SET_SCALAR(meta_set_u64, uint64_t, META_U64, u)
SET_SCALAR(meta_set_i32, int32_t, META_I32, i)
SET_SCALAR(meta_set_f32, float, META_F32, f)
SET_SCALAR(meta_set_bool, bool, META_BOOL, u)

llmq_status meta_set_strn(llmq_meta *meta, const char *key, const char *s, size_t len, llmq_err *err) {
    char *copy = arena_strndup(meta->arena, s, len);
    llmq_meta_value *v = copy ? slot(meta, key, META_STR) : NULL;
    if (!v) return no_memory(err);
    v->str = (llmq_str){copy, len};
    return LLMQ_OK;
}

llmq_status meta_set_str(llmq_meta *meta, const char *key, const char *s, llmq_err *err) {
    return meta_set_strn(meta, key, s, strlen(s), err);
}

llmq_status meta_set_array(llmq_meta *meta, const char *key, llmq_meta_type type, const void *data, size_t n,
                           llmq_err *err) {
    size_t bytes, size = meta_type_size(type);
    LLMQ_ASSERT(size > 0);
    if (!size_mul(n, size, &bytes)) return no_memory(err);
    void *copy = arena_alloc(meta->arena, bytes ? bytes : 1, 8);
    llmq_meta_value *v = copy ? slot(meta, key, META_ARRAY) : NULL;
    if (!v) return no_memory(err);
    if (bytes) memcpy(copy, data, bytes);
    v->arr.type = type;
    v->arr.n = n;
    v->arr.data = copy;
    return LLMQ_OK;
}

llmq_status meta_set_strs(llmq_meta *meta, const char *key, const llmq_str *strs, size_t n, llmq_err *err) {
    size_t bytes;
    if (!size_mul(n, sizeof *strs, &bytes)) return no_memory(err);
    llmq_str *copy = arena_alloc(meta->arena, bytes ? bytes : 1, 8);
    if (!copy) return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        copy[i].len = strs[i].len;
        copy[i].s = arena_strndup(meta->arena, strs[i].s, strs[i].len);
        if (!copy[i].s) return no_memory(err);
    }
    llmq_meta_value *v = slot(meta, key, META_ARRAY);
    if (!v) return no_memory(err);
    v->arr.type = META_STR;
    v->arr.n = n;
    v->arr.data = copy;
    return LLMQ_OK;
}

llmq_status meta_set_value(llmq_meta *meta, const char *key, const llmq_meta_value *value, llmq_err *err) {
    if (!key) key = value->key;
    if (value->type == META_STR) return meta_set_strn(meta, key, value->str.s, value->str.len, err);
    if (value->type == META_ARRAY) {
        if (value->arr.type == META_STR) return meta_set_strs(meta, key, value->arr.data, value->arr.n, err);
        return meta_set_array(meta, key, value->arr.type, value->arr.data, value->arr.n, err);
    }
    llmq_meta_value copy = *value, *v = slot(meta, key, value->type);
    if (!v) return no_memory(err);
    copy.key = v->key;
    *v = copy;
    return LLMQ_OK;
}

void meta_remove(llmq_meta *meta, const char *key) {
    llmq_meta_value *v = find(meta, key);
    if (!v) return;
    size_t index = (size_t)(v - meta->values);
    memmove(v, v + 1, (meta->n - index - 1) * sizeof *v);
    meta->n--;
}

size_t meta_count(const llmq_meta *meta) {
    return meta->n;
}
const llmq_meta_value *meta_at(const llmq_meta *meta, size_t index) {
    return index < meta->n ? &meta->values[index] : NULL;
}
const llmq_meta_value *meta_find(const llmq_meta *meta, const char *key) {
    return find(meta, key);
}

bool meta_get_i64(const llmq_meta *meta, const char *key, int64_t *out) {
    const llmq_meta_value *v = find(meta, key);
    if (!v) return false;
    switch (v->type) {
    case META_U8:
    case META_U16:
    case META_U32:
    case META_U64:
    case META_BOOL:
        if (v->u > INT64_MAX) return false;
        *out = (int64_t)v->u;
        return true;
    case META_I8:
    case META_I16:
    case META_I32:
    case META_I64: *out = v->i; return true;
    default: return false;
    }
}

bool meta_get_f64(const llmq_meta *meta, const char *key, double *out) {
    const llmq_meta_value *v = find(meta, key);
    if (v && (v->type == META_F32 || v->type == META_F64)) {
        *out = v->f;
        return true;
    }
    int64_t i;
    if (!meta_get_i64(meta, key, &i)) return false;
    *out = (double)i;
    return true;
}

bool meta_get_bool(const llmq_meta *meta, const char *key, bool *out) {
    const llmq_meta_value *v = find(meta, key);
    if (!v || v->type != META_BOOL) return false;
    *out = v->u != 0;
    return true;
}

const char *meta_get_str(const llmq_meta *meta, const char *key) {
    const llmq_meta_value *v = find(meta, key);
    return v && v->type == META_STR ? v->str.s : NULL;
}

const char *meta_key(char buf[128], const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(buf, 128, fmt, args);
    va_end(args);
    return buf;
}
