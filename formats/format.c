/* Opening whatever is at a path, and what all readers need: maps, tensor lists, names, byte ranges. */
#include "formats/format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/mem.h"
#include "formats/source.h"
#include "types/type.h"

#define FORMAT(name) extern const llmq_format format_##name;
#include "formats/formats.def"
#undef FORMAT
#define FORMAT(name) &format_##name,
static const llmq_format *const formats[] = {
#include "formats/formats.def"
};
#undef FORMAT

/* ---- maps and tensors ---- */

llmq_status source_add_map(llmq_source *src, const char *path, llmq_map *map_out, llmq_err *err) {
    llmq_map *grown = mem_grow(src->maps, src->n_maps, src->n_maps + 1, sizeof *grown);
    if (!grown) return mem_error(err, sizeof *grown, path);
    src->maps = grown;
    LLMQ_TRY(file_map(path, &grown[src->n_maps], err));
    *map_out = grown[src->n_maps++];
    src->file_bytes += (int64_t)map_out->size;
    return LLMQ_OK;
}

llmq_status source_add_tensors(llmq_source *src, size_t n, llmq_tensor **out, llmq_err *err) {
    size_t total;
    llmq_tensor *grown =
        size_add(src->n_tensors, n, &total) ? mem_grow(src->tensors, src->n_tensors, total, sizeof *grown) : NULL;
    if (!grown) return mem_error(err, n * sizeof *grown, src->path);
    src->tensors = grown;
    *out = grown + src->n_tensors;
    memset(*out, 0, n * sizeof *grown);
    src->n_tensors = total;
    return LLMQ_OK;
}

llmq_status source_size_tensor(llmq_tensor *t, const char *file, llmq_err *err) {
    const llmq_type_info *info = type_info(t->type);
    int64_t numel = 1, bytes;
    int member = source_member_bytes(t->type);
    if (!info && !member)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: tensor %s is of type %d, which llmq does not know", file,
                         t->name, t->type);
    for (int i = 0; i < TENSOR_MAX_DIMS; i++) {
        if (i >= t->n_dims) t->dims[i] = 1;
        if (t->dims[i] < 1)
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: tensor %s: dimension %d is %lld; it must be at least 1: the file is damaged", file,
                             t->name, i, (long long)t->dims[i]);
        if (!i64_mul(numel, t->dims[i], &numel))
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: tensor %s: the product of its dimensions overflows: the file is damaged", file,
                             t->name);
    }
    if (t->n_dims < 1) t->n_dims = 1;
    if (info && t->dims[0] % info->block_len != 0)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s: rows of %lld weights do not divide into %s blocks of %d",
                         file, t->name, (long long)t->dims[0], info->name, info->block_len);
    bytes = info ? type_row_bytes(t->type, t->dims[0]) : i64_mul(t->dims[0], member, &bytes) ? bytes : -1;
    if (bytes < 0 || !i64_mul(bytes, numel / t->dims[0], &bytes))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s: its size in bytes overflows: the file is damaged", file,
                         t->name);
    t->bytes = bytes;
    return LLMQ_OK;
}

bool source_text_is_clean(const char *s, size_t len) {
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f) return false;
    return true;
}

llmq_status source_name_tensor(llmq_tensor *t, const char *name, size_t len, const char *file, llmq_err *err) {
    if (len == 0) return llmq_fail(err, LLMQ_E_FORMAT, "%s: a tensor without a name: the file is damaged", file);
    if (len >= sizeof t->name)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: a tensor name of %zu bytes is longer than the %zu that llmq keeps", file, len,
                         sizeof t->name - 1);
    if (!source_text_is_clean(name, len))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: a tensor name has control characters: the file is damaged", file);
    memcpy(t->name, name, len);
    t->name[len] = 0;
    return LLMQ_OK;
}

static int span_order(const void *a, const void *b) {
    const source_span *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

void source_sort_spans(source_span *spans, size_t n) {
    if (n > 1) qsort(spans, n, sizeof *spans, span_order);
}

/* ---- lookup by name: open addressing, at most half full ---- */

struct source_index {
    size_t mask;
    uint32_t *slots; /* 0: free, else number + 1 */
};

static uint64_t hash_name(const char *s) { /* FNV-1a */
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h ^ h >> 29;
}

llmq_status source_index_create(const llmq_tensor *tensors, size_t n, const char *file, source_index **out,
                                llmq_err *err) {
    size_t cap = 16;
    if (n > UINT32_MAX / 4) return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: too many tensors (%zu)", file, n);
    while (cap < n * 2) cap *= 2;
    source_index *index = mem_zalloc(1, sizeof *index);
    if (index) index->slots = mem_zalloc(cap, sizeof *index->slots);
    if (!index || !index->slots) {
        source_index_destroy(index);
        return mem_error(err, cap * sizeof *index->slots, file);
    }
    index->mask = cap - 1;
    for (size_t i = 0; i < n; i++) {
        size_t at = hash_name(tensors[i].name) & index->mask;
        for (; index->slots[at]; at = (at + 1) & index->mask) {
            if (strcmp(tensors[index->slots[at] - 1].name, tensors[i].name)) continue;
            source_index_destroy(index);
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s occurs twice: the file is damaged", file,
                             tensors[i].name);
        }
        index->slots[at] = (uint32_t)i + 1;
    }
    *out = index;
    return LLMQ_OK;
}

void source_index_destroy(source_index *index) {
    if (!index) return;
    mem_free(index->slots);
    mem_free(index);
}

size_t source_index_find(const source_index *index, const llmq_tensor *tensors, size_t n, const char *name) {
    for (size_t at = hash_name(name) & index->mask; index->slots[at]; at = (at + 1) & index->mask)
        if (!strcmp(tensors[index->slots[at] - 1].name, name)) return index->slots[at] - 1;
    return n;
}

/* ---- opening ---- */

bool source_peek(const char *path, void *out, size_t n, int64_t *file_size_out) {
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return false; /* a pipe would block */
    FILE *f = fopen(path, "rb");
    if (!f) return false;
    bool ok = fread(out, 1, n, f) == n;
    fclose(f);
    if (file_size_out) *file_size_out = (int64_t)st.st_size;
    return ok;
}

static llmq_status choose_format(const char *path, const llmq_format **out, llmq_err *err) {
    struct stat st;
    if (stat(path, &st) != 0)
        return llmq_fail(err, LLMQ_E_IO,
                         "%s: cannot open: %s; name a .gguf file, a Hugging Face folder or a llama2.c .bin file", path,
                         strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return llmq_fail(err, LLMQ_E_IO, "%s: is neither a file nor a folder", path);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (!formats[i]->probe(path)) continue;
        *out = formats[i];
        return LLMQ_OK;
    }
    return llmq_fail(err, LLMQ_E_FORMAT,
                     "%s: is no model that llmq reads: GGUF files, Hugging Face folders with safetensors, llama2.c "
                     ".bin files; a broken "
                     "download looks like this too",
                     path);
}

llmq_status source_open(const char *path, llmq_source **out, llmq_err *err) {
    const llmq_format *format = NULL;
    source_index *index = NULL;
    *out = NULL;
    LLMQ_TRY(choose_format(path, &format, err));
    llmq_source *src = mem_zalloc(1, sizeof *src);
    if (!src) return mem_error(err, sizeof *src, path);
    llmq_status status = LLMQ_OK;
    src->format = format;
    src->path = mem_strdup(path);
    src->meta = meta_create();
    if (!src->path || !src->meta) status = mem_error(err, strlen(path), path);
    if (status == LLMQ_OK) status = format->open(path, src, err);
    if (status == LLMQ_OK) status = source_index_create(src->tensors, src->n_tensors, path, &index, err);
    src->index = index;
    if (status == LLMQ_OK)
        *out = src;
    else
        source_close(src);
    return status;
}

void source_close(llmq_source *src) {
    if (!src) return;
    if (src->format && src->format->close) src->format->close(src);
    source_index_destroy(src->index);
    for (size_t i = 0; i < src->n_maps; i++) file_unmap(&src->maps[i]);
    mem_free(src->maps);
    mem_free(src->tensors);
    meta_destroy(src->meta);
    mem_free(src->path);
    mem_free(src);
}

const llmq_tensor *source_find(const llmq_source *src, const char *name) {
    size_t i = source_index_find(src->index, src->tensors, src->n_tensors, name);
    return i < src->n_tensors ? &src->tensors[i] : NULL;
}

llmq_status source_load(llmq_source *src, const llmq_tensor *t, bool keep, llmq_err *err) {
    return src->format->load ? src->format->load(src, t, keep, err) : LLMQ_OK;
}

bool source_exact(const llmq_source *src, const llmq_tensor *t) {
    return !src->format->exact || src->format->exact(src, t);
}

bool source_input(const llmq_source *src, const llmq_tensor *t, llmq_act_range *out) {
    return src->format->input && src->format->input(src, t, out);
}

void source_release(const llmq_source *src, const llmq_tensor *tensor) {
    if (src->format->release) src->format->release(src, tensor);
    const uint8_t *p = tensor->data;
    for (size_t i = 0; i < src->n_maps; i++) {
        const llmq_map *map = &src->maps[i];
        if (!map->data || (uintptr_t)p < (uintptr_t)map->data || (uintptr_t)p >= (uintptr_t)map->data + map->size)
            continue;
        file_map_release(map, p, (size_t)tensor->bytes);
        return;
    }
}

static bool ends_in_gguf(const char *path) {
    size_t n = strlen(path);
    return n >= 5 && !strcmp(path + n - 5, ".gguf");
}

bool source_has_file(const llmq_source *src, const char *path) {
    struct stat st;
    char beside[SOURCE_MAX_PATH];
    const char *name = path_base(path);
    bool has_side_files = !strcmp(src->format->name, "huggingface") || !strcmp(name, "tokenizer.bin");
    if (stat(path, &st) != 0) return false;
    for (size_t i = 0; i < src->n_maps; i++)
        if (src->maps[i].inode == (uint64_t)st.st_ino && src->maps[i].device == (uint64_t)st.st_dev) return true;
    return has_side_files && !ends_in_gguf(path) && source_side_file(src, name, beside, sizeof beside) &&
           file_is_same(beside, path);
}

bool source_side_file(const llmq_source *src, const char *name, char *out, size_t cap) {
    char dir[SOURCE_MAX_PATH];
    const char *folder = src->path;
    if (!file_is_dir(src->path)) {
        size_t n = (size_t)(path_base(src->path) - src->path);
        if (n >= sizeof dir) return false;
        memcpy(dir, src->path, n);
        dir[n] = 0;
        folder = n ? dir : ".";
    }
    return path_join(out, cap, folder, name) && file_exists(out) && !file_is_dir(out);
}
