/* GGUF reader, versions 2 and 3, single files and splits.
 *
 * Layout: "GGUF", u32 version, i64 n_tensors, i64 n_kv; n_kv times {string key, i32 type, value}; n_tensors times
 * {string name, u32 n_dims, i64 dims[n_dims], i32 type, u64 offset}; zeros up to a multiple of general.alignment
 * (default 32); tensor data, each tensor at its offset from there. A string is u64 length and bytes without NUL; an
 * array is i32 element type, u64 count, elements. dims[0] is contiguous. Version 2 differs from 3 in nothing that a
 * little-endian reader sees.
 *
 * A model may be split: NAME-00001-of-00003.gguf and so on, with split.no (from 0), split.count and
 * split.tensors.count. The first part has all the metadata. Opening any part opens all, and the split.* keys do not
 * show in the result.
 *
 * Every count is bounded by the bytes left in the file before memory is asked for. */
#include "formats/gguf.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/source.h"
#include "types/type.h"

/* What is being read, for messages: `what` is a key or a tensor name, or a static phrase. */
typedef struct cursor {
    const uint8_t *data;
    size_t size, at;
    const char *path, *what;
    llmq_err *err;
} cursor;

static llmq_status fail_short(cursor *c) {
    return llmq_fail(c->err, LLMQ_E_FORMAT,
                     "%s: the file ends inside %s (%zu bytes long): an incomplete download? get it again", c->path,
                     c->what, c->size);
}

static llmq_status take(cursor *c, void *out, size_t n) {
    if (n > c->size - c->at) return fail_short(c);
    memcpy(out, c->data + c->at, n);
    c->at += n;
    return LLMQ_OK;
}

static llmq_status take_string(cursor *c, llmq_str *out) {
    uint64_t len = 0;
    *out = (llmq_str){"", 0};
    LLMQ_TRY(take(c, &len, sizeof len));
    if (len > c->size - c->at) return fail_short(c);
    *out = (llmq_str){(const char *)c->data + c->at, (size_t)len};
    c->at += (size_t)len;
    return LLMQ_OK;
}

/* ---- metadata ---- */

static llmq_status read_strings(cursor *c, llmq_meta *meta, const char *key, size_t n) {
    llmq_str *strs = mem_alloc(n, sizeof *strs); /* n is bounded by the caller: 8 bytes of file each */
    llmq_status status = LLMQ_OK;
    if (!strs) return mem_error(c->err, n * sizeof *strs, c->path);
    for (size_t i = 0; i < n && status == LLMQ_OK; i++) status = take_string(c, &strs[i]);
    if (status == LLMQ_OK) status = meta_set_strs(meta, key, strs, n, c->err);
    mem_free(strs);
    return status;
}

static llmq_status read_array(cursor *c, llmq_meta *meta, const char *key) {
    uint32_t type = 0;
    uint64_t n = 0;
    LLMQ_TRY(take(c, &type, sizeof type));
    LLMQ_TRY(take(c, &n, sizeof n));
    size_t size = type == META_STR ? sizeof(uint64_t) : meta_type_size((llmq_meta_type)type);
    if (size == 0)
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED,
                         "%s: key %s is an array of elements of type %u, which llmq does not read%s", c->path, key,
                         type, type == META_ARRAY ? " (arrays of arrays)" : "");
    if (n > (c->size - c->at) / size)
        return llmq_fail(c->err, LLMQ_E_FORMAT,
                         "%s: key %s says %llu elements, more than the file has bytes for: cut off or damaged", c->path,
                         key, (unsigned long long)n);
    if (type == META_STR) return read_strings(c, meta, key, (size_t)n);
    const uint8_t *data = c->data + c->at;
    size_t bytes = (size_t)n * size;
    if (type == META_BOOL)
        for (size_t i = 0; i < bytes; i++)
            if (data[i] > 1)
                return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: key %s has a truth value %u: the file is damaged", c->path,
                                 key, data[i]);
    c->at += bytes;
    return meta_set_array(meta, key, (llmq_meta_type)type, data, (size_t)n, c->err);
}

static int64_t sign_extend(uint64_t u, size_t size) {
    unsigned shift = (unsigned)(64 - 8 * size);
    return (int64_t)(u << shift) >> shift; /* gcc and clang shift arithmetically */
}

static llmq_status read_scalar(cursor *c, llmq_meta *meta, const char *key, llmq_meta_type type) {
    llmq_meta_value v = {.key = key, .type = type};
    size_t size = meta_type_size(type);
    uint64_t raw = 0;
    float f;
    if (size == 0)
        return llmq_fail(c->err, LLMQ_E_FORMAT,
                         "%s: key %s has a value of unknown type %u: damaged, or newer than this llmq", c->path, key,
                         (unsigned)type);
    LLMQ_TRY(take(c, &raw, size));
    switch (type) {
    case META_F32:
        memcpy(&f, &raw, sizeof f);
        v.f = (double)f;
        break;
    case META_F64: memcpy(&v.f, &raw, sizeof v.f); break;
    case META_I8:
    case META_I16:
    case META_I32:
    case META_I64: v.i = sign_extend(raw, size); break;
    case META_BOOL:
        if (raw > 1)
            return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: key %s has a truth value %u: the file is damaged", c->path,
                             key, (unsigned)raw);
        v.u = raw;
        break;
    default: v.u = raw;
    }
    return meta_set_value(meta, NULL, &v, c->err);
}

static llmq_status read_key(cursor *c, llmq_meta *meta) {
    llmq_str name, text;
    char key[GGUF_MAX_KEY];
    uint32_t type = 0;
    c->what = "the name of a key";
    LLMQ_TRY(take_string(c, &name));
    if (name.len == 0 || name.len >= sizeof key || !source_text_is_clean(name.s, name.len))
        return llmq_fail(
            c->err, LLMQ_E_FORMAT,
            "%s: a key's name is empty, longer than %zu bytes or has control characters: the file is damaged", c->path,
            sizeof key - 1);
    memcpy(key, name.s, name.len);
    key[name.len] = 0;
    if (meta_find(meta, key))
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: key %s occurs twice: the file is damaged", c->path, key);
    c->what = key;
    LLMQ_TRY(take(c, &type, sizeof type));
    if (type == META_ARRAY)
        LLMQ_TRY(read_array(c, meta, key));
    else if (type == META_STR) {
        LLMQ_TRY(take_string(c, &text));
        LLMQ_TRY(meta_set_strn(meta, key, text.s, text.len, c->err));
    } else
        LLMQ_TRY(read_scalar(c, meta, key, (llmq_meta_type)type));
    c->what = "the directory"; /* key goes out of scope */
    return LLMQ_OK;
}

/* ---- tensors ---- */

/* Names of ggml types that llmq does not read, so that the message says more than a number. */
static const char *foreign_type_name(uint32_t type) {
    static const struct {
        uint32_t id;
        const char *name;
    } names[] = {
        {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {21, "IQ3_S"},
        {22, "IQ2_S"}, {24, "I8"},    {25, "I16"},     {26, "I32"},    {27, "I64"},     {28, "F64"},   {29, "IQ1_M"},
        {34, "TQ1_0"}, {35, "TQ2_0"}, {39, "MXFP4"},   {40, "NVFP4"},  {41, "Q1_0"},    {42, "Q2_0"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].id == type) return names[i].name;
    return "unknown";
}

static llmq_status read_tensor(cursor *c, llmq_tensor *t, uint64_t *offset_out) {
    llmq_str name;
    uint32_t n_dims = 0, type = 0;
    c->what = "the list of tensors";
    LLMQ_TRY(take_string(c, &name));
    LLMQ_TRY(source_name_tensor(t, name.s, name.len, c->path, c->err));
    LLMQ_TRY(take(c, &n_dims, sizeof n_dims));
    if (n_dims > TENSOR_MAX_DIMS)
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: tensor %s has %u dimensions; GGUF allows %d: the file is damaged",
                         c->path, t->name, n_dims, TENSOR_MAX_DIMS);
    t->n_dims = (int)n_dims;
    LLMQ_TRY(take(c, t->dims, n_dims * sizeof *t->dims));
    LLMQ_TRY(take(c, &type, sizeof type));
    LLMQ_TRY(take(c, offset_out, sizeof *offset_out));
    t->type = type < LLMQ_TYPE_COUNT ? (llmq_type)type : LLMQ_TYPE_NONE;
    if (!type_info(t->type) || type_info(t->type)->in_memory)
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED,
                         "%s: tensor %s is of GGUF type %u (%s), which llmq does not read; use a file in F16, BF16, "
                         "Q8_0, Q4_0, Q4_K_M or a "
                         "similar type",
                         c->path, t->name, type, foreign_type_name(type));
    return source_size_tensor(t, c->path, c->err);
}

/* Tensors must lie inside the data and not over each other. Fills data. */
static llmq_status place_tensors(cursor *c, llmq_tensor *tensors, source_span *spans, size_t n, uint64_t alignment) {
    size_t base = c->at + (size_t)((alignment - c->at % alignment) % alignment);
    for (size_t i = 0; i < n; i++) {
        uint64_t offset = spans[i].begin, bytes = (uint64_t)tensors[i].bytes;
        if (offset % alignment != 0)
            return llmq_fail(c->err, LLMQ_E_FORMAT,
                             "%s: tensor %s: offset %llu is not a multiple of the alignment %llu: the file is damaged",
                             c->path, tensors[i].name, (unsigned long long)offset, (unsigned long long)alignment);
        if (base > c->size || offset > c->size - base || bytes > c->size - base - offset)
            return llmq_fail(
                c->err, LLMQ_E_FORMAT,
                "%s: tensor %s lies beyond the end of the file (%zu bytes): an incomplete download? get it again",
                c->path, tensors[i].name, c->size);
        spans[i].end = offset + bytes;
        spans[i].index = i;
        tensors[i].data = c->data + base + (size_t)offset;
    }
    source_sort_spans(spans, n);
    for (size_t i = 1; i < n; i++)
        if (spans[i].begin < spans[i - 1].end)
            return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: tensors %s and %s overlap: the file is damaged", c->path,
                             tensors[spans[i - 1].index].name, tensors[spans[i].index].name);
    return LLMQ_OK;
}

static llmq_status read_tensors(cursor *c, llmq_source *src, const llmq_meta *meta, size_t n) {
    int64_t alignment = GGUF_ALIGNMENT;
    llmq_tensor *tensors = NULL;
    source_span *spans = NULL;
    llmq_status status = LLMQ_OK;
    if (meta_find(meta, "general.alignment") && (!meta_get_i64(meta, "general.alignment", &alignment) ||
                                                 alignment < 1 || alignment > 1 << 30 || (alignment & (alignment - 1))))
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: general.alignment must be a power of two: the file is damaged",
                         c->path);
    c->what = "the list of tensors";
    /* The least bytes of an entry: name 8 + 1, n_dims 4, type 4, offset 8. */
    if (n > (c->size - c->at) / 25) return fail_short(c);
    if (n == 0) return LLMQ_OK;
    LLMQ_TRY(source_add_tensors(src, n, &tensors, c->err));
    spans = mem_alloc(n, sizeof *spans);
    if (!spans) return mem_error(c->err, n * sizeof *spans, c->path);
    for (size_t i = 0; i < n && status == LLMQ_OK; i++) status = read_tensor(c, &tensors[i], &spans[i].begin);
    if (status == LLMQ_OK) status = place_tensors(c, tensors, spans, n, (uint64_t)alignment);
    mem_free(spans);
    return status;
}

/* ---- files ---- */

static llmq_status read_header(cursor *c, uint64_t *n_tensors_out, uint64_t *n_kv_out) {
    uint32_t magic = 0, version = 0;
    c->what = "the header";
    LLMQ_TRY(take(c, &magic, sizeof magic));
    LLMQ_TRY(take(c, &version, sizeof version));
    LLMQ_TRY(take(c, n_tensors_out, sizeof *n_tensors_out));
    LLMQ_TRY(take(c, n_kv_out, sizeof *n_kv_out));
    if (magic != GGUF_MAGIC)
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: does not begin with GGUF: not a GGUF file", c->path);
    if ((version & 0xffff) == 0)
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED,
                         "%s: a big-endian GGUF file; llmq reads little-endian ones: convert it again", c->path);
    if (version < 2 || version > GGUF_VERSION)
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED, "%s: GGUF version %u; llmq reads 2 and 3: convert the model again",
                         c->path, version);
    return LLMQ_OK;
}

/* One file: its keys into meta, its tensors appended to src. */
static llmq_status read_file(const char *path, llmq_source *src, llmq_meta *meta, llmq_err *err) {
    llmq_map map;
    uint64_t n_tensors = 0, n_kv = 0;
    LLMQ_TRY(source_add_map(src, path, &map, err));
    cursor c = {.data = map.data, .size = map.size, .path = path, .err = err};
    LLMQ_TRY(read_header(&c, &n_tensors, &n_kv));
    if (n_kv > GGUF_MAX_KEYS)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: the header says %llu keys; at most %d are sensible: the file is damaged", path,
                         (unsigned long long)n_kv, GGUF_MAX_KEYS);
    if (n_tensors > c.size)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: the header says %llu tensors, more than the file has bytes for: the file is damaged",
                         path, (unsigned long long)n_tensors);
    for (uint64_t i = 0; i < n_kv; i++) LLMQ_TRY(read_key(&c, meta));
    return read_tensors(&c, src, meta, (size_t)n_tensors);
}

/* ---- splits ---- */

/* The prefix before -00001-of-00003.gguf; false if the name is not of that form. */
static bool split_name(const char *path, size_t *prefix_out, int *no_out, int *count_out) {
    static const char form[] = "-00000-of-00000.gguf";
    size_t len = strlen(path), n = sizeof form - 1;
    if (len <= n) return false;
    const char *tail = path + len - n;
    for (size_t i = 0; i < n; i++)
        if (form[i] == '0' ? tail[i] < '0' || tail[i] > '9' : tail[i] != form[i]) return false;
    if (sscanf(tail, "-%5d-of-%5d", no_out, count_out) != 2) return false;
    *prefix_out = len - n;
    return true;
}

static llmq_status read_part(const char *path, llmq_source *src, int no, int count, llmq_err *err) {
    int64_t said_no = -1, said_count = -1;
    llmq_meta *meta = no == 0 ? src->meta : meta_create(); /* later parts repeat a few keys at most */
    if (!meta) return mem_error(err, 0, path);
    llmq_status status = read_file(path, src, meta, err);
    if (status == LLMQ_OK && (!meta_get_i64(meta, "split.no", &said_no) || said_no != no ||
                              !meta_get_i64(meta, "split.count", &said_count) || said_count != count))
        status = llmq_fail(
            err, LLMQ_E_FORMAT,
            "%s: is named part %d of %d, but split.no and split.count say part %lld of %lld: rename it or get it again",
            path, no + 1, count, (long long)said_no + 1, (long long)said_count);
    if (meta != src->meta) meta_destroy(meta);
    return status;
}

static llmq_status read_split(const char *path, size_t prefix, int count, llmq_source *src, llmq_err *err) {
    char part[SOURCE_MAX_PATH];
    int64_t total;
    if (count < 1) return llmq_fail(err, LLMQ_E_FORMAT, "%s: part of a model of %d files: rename it", path, count);
    for (int no = 0; no < count; no++) {
        int len = snprintf(part, sizeof part, "%.*s-%05d-of-%05d.gguf", (int)prefix, path, no + 1, count);
        if (len < 0 || (size_t)len >= sizeof part)
            return llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", path);
        if (!file_exists(part))
            return llmq_fail(err, LLMQ_E_IO,
                             "%s: is missing: the model is split over %d files, and all must be in one folder", part,
                             count);
        LLMQ_TRY(read_part(part, src, no, count, err));
    }
    if (meta_get_i64(src->meta, "split.tensors.count", &total) && total != (int64_t)src->n_tensors)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: split.tensors.count says %lld tensors, the %d parts have %zu: parts of different models?",
                         path, (long long)total, count, src->n_tensors);
    return LLMQ_OK;
}

static bool probe(const char *path) {
    uint32_t magic;
    return source_peek(path, &magic, sizeof magic, NULL) && magic == GGUF_MAGIC;
}

static llmq_status open_gguf(const char *path, llmq_source *src, llmq_err *err) {
    size_t prefix;
    int no, count;
    int64_t said_count = 1;
    src->naming = NAMING_GGUF;
    if (split_name(path, &prefix, &no, &count))
        LLMQ_TRY(read_split(path, prefix, count, src, err));
    else {
        LLMQ_TRY(read_file(path, src, src->meta, err));
        if (meta_get_i64(src->meta, "split.count", &said_count) && said_count > 1)
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: is one of %lld parts: give the parts their names NAME-00001-of-%05lld.gguf back",
                             path, (long long)said_count, (long long)said_count);
    }
    meta_remove(src->meta, "split.no");
    meta_remove(src->meta, "split.count");
    meta_remove(src->meta, "split.tensors.count");
    meta_remove(src->meta, "general.alignment"); /* of this file, not of the model */
    return LLMQ_OK;
}

const llmq_format format_gguf = {.name = "gguf", .probe = probe, .open = open_gguf};
