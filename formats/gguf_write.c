/* GGUF v3 writer. The layout is in gguf.c. The whole directory is built in memory first, so every tensor's place is
 * known before the first byte of data: puts may then come in any order and from any thread, and a model never has to
 * fit in memory.
 *
 * Written so that llama.cpp's strict reader accepts it: general.architecture is the first key, offsets are the running
 * sum of padded sizes in directory order, names are shorter than 64 bytes and unique, trailing dimensions of 1 are
 * dropped, the last tensor is padded too. Not written: hf.* (private), split.*; and rope.scaling.* of type "llama3",
 * which GGUF expresses by the tensor rope_freqs.weight. general.file_type and general.quantization_version are added
 * where meta lacks them. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/coverage.h"
#include "formats/gguf.h"
#include "formats/source.h"
#include "types/type.h"

/* ---- a growing block of bytes; after a failed allocation it only remembers that ---- */

typedef struct buffer {
    uint8_t *data;
    size_t n, cap;
    bool failed;
} buffer;

static void put(buffer *b, const void *data, size_t n) {
    if (b->failed || n == 0) return;
    if (n > b->cap - b->n) {
        size_t need, cap = b->cap ? b->cap * 2 : 4096;
        if (!size_add(b->n, n, &need)) need = SIZE_MAX;
        if (cap < need) cap = need;
        uint8_t *grown = mem_grow(b->data, b->n, cap, 1);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->data = grown;
        b->cap = cap;
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_u32(buffer *b, uint32_t x) {
    put(b, &x, sizeof x);
}
static void put_u64(buffer *b, uint64_t x) {
    put(b, &x, sizeof x);
}

static void put_str(buffer *b, const char *s, size_t len) {
    put_u64(b, len);
    put(b, s, len);
}

/* ---- metadata ---- */

static void put_scalar(buffer *b, const llmq_meta_value *v) {
    float f = (float)v->f;
    switch (v->type) {
    case META_F32: put(b, &f, sizeof f); break;
    case META_F64: put(b, &v->f, sizeof v->f); break;
    case META_I8:
    case META_I16:
    case META_I32:
    case META_I64: put(b, &v->i, meta_type_size(v->type)); break;
    default: put(b, &v->u, meta_type_size(v->type));
    }
}

static void put_value(buffer *b, const llmq_meta_value *v) {
    put_str(b, v->key, strlen(v->key));
    put_u32(b, (uint32_t)v->type);
    if (v->type == META_STR)
        put_str(b, v->str.s, v->str.len);
    else if (v->type == META_ARRAY) {
        put_u32(b, (uint32_t)v->arr.type);
        put_u64(b, v->arr.n);
        const llmq_str *strs = v->arr.data;
        if (v->arr.type != META_STR)
            put(b, v->arr.data, v->arr.n * meta_type_size(v->arr.type));
        else
            for (size_t i = 0; i < v->arr.n; i++) put_str(b, strs[i].s, strs[i].len);
    } else
        put_scalar(b, v);
}

static bool starts_with(const char *s, const char *prefix) {
    return !strncmp(s, prefix, strlen(prefix));
}

static bool is_skipped(const llmq_meta *meta, const char *key) {
    const char *arch = meta_get_str(meta, "general.architecture"), *scaling;
    char name[128], prefix[128];
    if (starts_with(key, "hf.") || starts_with(key, "split.") || !strcmp(key, "general.alignment") ||
        !strcmp(key, "general.architecture"))
        return true;
    scaling = meta_get_str(meta, meta_key(name, "%s.rope.scaling.type", arch));
    return scaling && !strcmp(scaling, "llama3") && starts_with(key, meta_key(prefix, "%s.rope.scaling.", arch));
}

/* The type that holds most weights, among quantized ones if there are any: what general.file_type tells. */
static const llmq_type_info *main_type(const llmq_tensor *tensors, size_t n) {
    int64_t weights[LLMQ_TYPE_COUNT] = {0};
    const llmq_type_info *best = NULL;
    for (size_t i = 0; i < n; i++) weights[tensors[i].type] += tensors[i].n_dims > 1 ? tensor_numel(&tensors[i]) : 0;
    for (int i = 0; i < LLMQ_TYPE_COUNT; i++) {
        const llmq_type_info *info = weights[i] ? type_info((llmq_type)i) : NULL;
        if (!info) continue;
        bool better = !best || (type_is_float(best) && !type_is_float(info)) ||
                      (type_is_float(best) == type_is_float(info) && weights[i] > weights[best->id]);
        if (better) best = info;
    }
    return best;
}

static void put_u32_key(buffer *b, const char *key, uint32_t x) {
    const llmq_meta_value v = {.key = key, .type = META_U32, .u = x};
    put_value(b, &v);
}

static uint64_t put_metadata(buffer *b, const llmq_meta *meta, const llmq_tensor *tensors, size_t n) {
    const llmq_type_info *info = main_type(tensors, n);
    uint64_t n_kv = 2;
    put_value(b, meta_find(meta, "general.architecture"));
    put_u32_key(b, "general.alignment", GGUF_ALIGNMENT);
    if (info && !meta_find(meta, "general.file_type")) {
        put_u32_key(b, "general.file_type", (uint32_t)info->ftype);
        n_kv++;
    }
    if (info && !type_is_float(info) && !meta_find(meta, "general.quantization_version")) {
        put_u32_key(b, "general.quantization_version", 2);
        n_kv++;
    }
    for (size_t i = 0; i < meta_count(meta); i++) {
        const llmq_meta_value *v = meta_at(meta, i);
        if (is_skipped(meta, v->key)) continue;
        put_value(b, v);
        n_kv++;
    }
    return n_kv;
}

/* ---- the plan: header bytes and the place of every tensor ---- */

typedef struct planned {
    uint64_t offset; /* from the start of the file */
    coverage put;
} planned;

typedef struct plan {
    llmq_tensor *tensors;
    planned *places;
    size_t n;
    buffer header;
    uint64_t total;
} plan;

static void plan_free(plan *p) {
    for (size_t i = 0; p->places && i < p->n; i++) coverage_clear(&p->places[i].put);
    mem_free(p->places);
    mem_free(p->tensors);
    mem_free(p->header.data);
}

static llmq_status check_meta(const char *path, const llmq_meta *meta, const source_index *index, const plan *p,
                              llmq_err *err) {
    const char *arch = meta_get_str(meta, "general.architecture"), *scaling;
    char key[128];
    if (!arch || !*arch || strlen(arch) > 64)
        return llmq_fail(err, LLMQ_E_ARG, "%s: the metadata to write lack general.architecture", path);
    for (size_t i = 0; i < meta_count(meta); i++)
        if (strlen(meta_at(meta, i)->key) >= GGUF_MAX_KEY)
            return llmq_fail(err, LLMQ_E_ARG, "%s: key %.40s... is too long to be written", path,
                             meta_at(meta, i)->key);
    scaling = meta_get_str(meta, meta_key(key, "%s.rope.scaling.type", arch));
    if (scaling && !strcmp(scaling, "llama3") &&
        source_index_find(index, p->tensors, p->n, "rope_freqs.weight") == p->n)
        return llmq_fail(err, LLMQ_E_ARG,
                         "%s: rope scaling llama3 is written as the tensor rope_freqs.weight, which the plan lacks",
                         path);
    return LLMQ_OK;
}

static llmq_status plan_tensors(const char *path, plan *p, llmq_err *err) {
    uint64_t at = 0;
    for (size_t i = 0; i < p->n; i++) {
        llmq_tensor *t = &p->tensors[i];
        const char *nul = memchr(t->name, 0, sizeof t->name);
        size_t len = nul ? (size_t)(nul - t->name) : sizeof t->name;
        if (len == 0 || len >= GGUF_MAX_NAME || !source_text_is_clean(t->name, len))
            return llmq_fail(err, LLMQ_E_ARG,
                             "%s: tensor name \"%.70s\" cannot be written: GGUF allows 1 to %d plain bytes", path,
                             t->name, GGUF_MAX_NAME - 1);
        if (t->n_dims < 0 || t->n_dims > TENSOR_MAX_DIMS)
            return llmq_fail(err, LLMQ_E_ARG, "%s: tensor %s: %d dimensions cannot be written", path, t->name,
                             t->n_dims);
        if (type_info(t->type) && type_info(t->type)->in_memory)
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: tensor %s is of type %s, which GGUF does not have", path,
                             t->name, llmq_type_name(t->type));
        LLMQ_TRY(source_size_tensor(t, path, err));
        while (t->n_dims > 1 && t->dims[t->n_dims - 1] == 1) t->n_dims--;
        p->places[i].offset = at; /* from the start of the data until the header's size is known */
        if ((uint64_t)t->bytes > (uint64_t)INT64_MAX - at - 2 * GGUF_ALIGNMENT)
            return llmq_fail(err, LLMQ_E_ARG, "%s: the file would be larger than any disk", path);
        at = size_align(at + (uint64_t)t->bytes, GGUF_ALIGNMENT);
    }
    p->total = at;
    return LLMQ_OK;
}

static llmq_status plan_header(const char *path, const llmq_meta *meta, plan *p, llmq_err *err) {
    static const uint8_t zeros[GGUF_ALIGNMENT];
    buffer *b = &p->header;
    put_u32(b, GGUF_MAGIC);
    put_u32(b, GGUF_VERSION);
    put_u64(b, p->n);
    put_u64(b, 0); /* the number of keys, set below */
    uint64_t n_kv = put_metadata(b, meta, p->tensors, p->n);
    for (size_t i = 0; i < p->n; i++) {
        const llmq_tensor *t = &p->tensors[i];
        put_str(b, t->name, strlen(t->name));
        put_u32(b, (uint32_t)t->n_dims);
        put(b, t->dims, (size_t)t->n_dims * sizeof *t->dims);
        put_u32(b, (uint32_t)t->type);
        put_u64(b, p->places[i].offset);
    }
    put(b, zeros, size_align(b->n, GGUF_ALIGNMENT) - b->n);
    if (b->failed) return mem_error(err, b->cap, path);
    memcpy(b->data + 16, &n_kv, sizeof n_kv);
    for (size_t i = 0; i < p->n; i++) p->places[i].offset += b->n;
    p->total += b->n;
    return LLMQ_OK;
}

static llmq_status plan_make(const char *path, const llmq_meta *meta, const llmq_tensor *tensors, size_t n, plan *p,
                             llmq_err *err) {
    source_index *index = NULL;
    llmq_status status = LLMQ_OK;
    p->n = n;
    p->tensors = mem_alloc(n, sizeof *p->tensors);
    p->places = mem_zalloc(n, sizeof *p->places);
    if (!p->tensors || !p->places) return mem_error(err, n * sizeof *p->tensors, path);
    if (n) memcpy(p->tensors, tensors, n * sizeof *tensors);
    LLMQ_TRY(plan_tensors(path, p, err));
    LLMQ_TRY(source_index_create(p->tensors, n, path, &index, err));
    status = check_meta(path, meta, index, p, err);
    if (status == LLMQ_OK) status = plan_header(path, meta, p, err);
    source_index_destroy(index);
    return status;
}

llmq_status gguf_plan_bytes(const llmq_meta *meta, const llmq_tensor *tensors, size_t n, int64_t *bytes_out,
                            llmq_err *err) {
    plan p = {0};
    llmq_status status = plan_make("GGUF plan", meta, tensors, n, &p, err);
    if (status == LLMQ_OK) *bytes_out = (int64_t)p.total;
    plan_free(&p);
    return status;
}

/* ---- writing ---- */

struct llmq_gguf_writer {
    plan plan;
    llmq_out *out;
    char *path;
    pthread_mutex_t lock; /* of what was put; the data itself is written outside of it */
};

static void writer_free(llmq_gguf_writer *w) {
    if (!w) return;
    pthread_mutex_destroy(&w->lock);
    plan_free(&w->plan);
    mem_free(w->path);
    mem_free(w);
}

/* A new PATH.tmp: the header, and what lies behind the last tensor. Padding between tensors is what the file system
 * reads in holes: zeros. */
static llmq_status begin_file(llmq_gguf_writer *w, bool force, llmq_err *err) {
    static const uint8_t zeros[GGUF_ALIGNMENT];
    const plan *p = &w->plan;
    LLMQ_TRY(out_open(w->path, force, p->total, &w->out, err));
    LLMQ_TRY(out_write_at(w->out, p->header.data, p->header.n, 0, err));
    if (!p->n) return LLMQ_OK;
    uint64_t end = p->places[p->n - 1].offset + (uint64_t)p->tensors[p->n - 1].bytes;
    return out_write_at(w->out, zeros, (size_t)(p->total - end), end, err);
}

/* PATH.tmp of an earlier writer: its size and header must be those of this plan. */
static llmq_status continue_file(llmq_gguf_writer *w, bool force, llmq_err *err) {
    const buffer *header = &w->plan.header;
    uint8_t there[4096];
    LLMQ_TRY(out_reopen(w->path, force, w->plan.total, &w->out, err));
    for (size_t at = 0, n; at < header->n; at += n) {
        n = header->n - at < sizeof there ? header->n - at : sizeof there;
        LLMQ_TRY(out_read_at(w->out, there, n, at, err));
        if (memcmp(there, header->data + at, n) != 0)
            return llmq_fail(err, LLMQ_E_FORMAT, "%s.tmp: its header is not that of this run", w->path);
    }
    return LLMQ_OK;
}

static llmq_status writer_open(const char *path, bool force, bool resume, const llmq_meta *meta,
                               const llmq_tensor *tensors, size_t n, llmq_gguf_writer **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    *out = NULL;
    llmq_gguf_writer *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, path);
    pthread_mutex_init(&w->lock, NULL);
    w->path = mem_strdup(path);
    if (!w->path) {
        status = mem_error(err, strlen(path), path);
        goto done;
    }
    LLMQ_TRY_GOTO(plan_make(path, meta, tensors, n, &w->plan, err));
    LLMQ_TRY_GOTO(resume ? continue_file(w, force, err) : begin_file(w, force, err));
    *out = w;
    w = NULL;
done:
    if (w && resume)
        out_keep(w->out);
    else if (w)
        out_abort(w->out);
    writer_free(w);
    return status;
}

llmq_status gguf_writer_open(const char *path, bool force, const llmq_meta *meta, const llmq_tensor *tensors, size_t n,
                             llmq_gguf_writer **out, llmq_err *err) {
    return writer_open(path, force, false, meta, tensors, n, out, err);
}

llmq_status gguf_writer_reopen(const char *path, bool force, const llmq_meta *meta, const llmq_tensor *tensors,
                               size_t n, llmq_gguf_writer **out, llmq_err *err) {
    return writer_open(path, force, true, meta, tensors, n, out, err);
}

llmq_status gguf_writer_have(llmq_gguf_writer *w, size_t index, llmq_err *err) {
    pthread_mutex_lock(&w->lock);
    bool ok = coverage_add(&w->plan.places[index].put, 0, (uint64_t)w->plan.tensors[index].bytes);
    pthread_mutex_unlock(&w->lock);
    return ok ? LLMQ_OK : mem_error(err, sizeof(coverage_run), w->path);
}

llmq_status gguf_writer_sync(const llmq_gguf_writer *w, llmq_err *err) {
    return out_sync(w->out, err);
}

static llmq_status check_range(const llmq_gguf_writer *w, size_t index, size_t len, size_t offset, llmq_err *err) {
    if (index >= w->plan.n)
        return llmq_fail(err, LLMQ_E_ARG, "%s: tensor %zu of %zu does not exist", w->path, index, w->plan.n);
    const llmq_tensor *t = &w->plan.tensors[index];
    size_t bytes = (size_t)t->bytes;
    if (offset > bytes || len > bytes - offset)
        return llmq_fail(err, LLMQ_E_ARG, "%s: tensor %s: %zu bytes at %zu do not fit into its %zu", w->path, t->name,
                         len, offset, bytes);
    return LLMQ_OK;
}

llmq_status gguf_writer_get(const llmq_gguf_writer *w, size_t index, void *data, size_t len, size_t offset,
                            llmq_err *err) {
    LLMQ_TRY(check_range(w, index, len, offset, err));
    return out_read_at(w->out, data, len, w->plan.places[index].offset + offset, err);
}

llmq_status gguf_writer_put(llmq_gguf_writer *w, size_t index, const void *data, size_t len, size_t offset,
                            llmq_err *err) {
    LLMQ_TRY(check_range(w, index, len, offset, err));
    LLMQ_TRY(out_write_at(w->out, data, len, w->plan.places[index].offset + offset, err));
    pthread_mutex_lock(&w->lock);
    bool ok = coverage_add(&w->plan.places[index].put, offset, offset + len);
    pthread_mutex_unlock(&w->lock);
    return ok ? LLMQ_OK : mem_error(err, sizeof(coverage_run), w->path);
}

static llmq_status check_coverage(const llmq_gguf_writer *w, llmq_err *err) {
    for (size_t i = 0; i < w->plan.n; i++) {
        uint64_t bytes = (uint64_t)w->plan.tensors[i].bytes;
        uint64_t missing = coverage_missing(&w->plan.places[i].put, bytes);
        if (missing == bytes) continue;
        return llmq_fail(err, LLMQ_E_ARG,
                         "%s: not all of tensor %s was written: byte %llu of %llu is missing; the file is dropped",
                         w->path, w->plan.tensors[i].name, (unsigned long long)missing, (unsigned long long)bytes);
    }
    return LLMQ_OK;
}

llmq_status gguf_writer_finish(llmq_gguf_writer *w, int64_t *bytes_out, llmq_err *err) {
    llmq_status status = check_coverage(w, err);
    if (status == LLMQ_OK)
        status = out_finish(w->out, err);
    else
        out_abort(w->out);
    if (status == LLMQ_OK && bytes_out) *bytes_out = (int64_t)w->plan.total;
    writer_free(w);
    return status;
}

void gguf_writer_abort(llmq_gguf_writer *w, bool keep) {
    if (!w) return;
    if (keep)
        out_keep(w->out);
    else
        out_abort(w->out);
    writer_free(w);
}
