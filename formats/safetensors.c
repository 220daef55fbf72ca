/* Hugging Face folders: config.json and safetensors files (one, shards with an index, or whatever *.safetensors is
 * there).
 *
 * A safetensors file: u64 n <= 100,000,000; n bytes of JSON that start with '{' and may end in spaces; the data. The
 * JSON has "name": {"dtype", "shape", "data_offsets": [begin, end]} for each tensor, offsets from the start of the
 * data, and maybe
 * "__metadata__", strings that do not matter here. Sorted by offset the tensors cover the data without hole or overlap,
 * and the data ends with the file. The shape's last number is contiguous, so dims are the shape reversed.
 *
 * Nothing promises alignment: a tensor's bytes may begin at any address. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "formats/json.h"
#include "formats/schemes/read.h"
#include "formats/source.h"
#include "types/type.h"

#define MAX_HEADER 100000000u
#define MAX_INDEX ((size_t)64 << 20)
#define MAX_FILES 4096
#define INDEX_NAME "model.safetensors.index.json"
#define SUFFIX ".safetensors"

/* ---- one file ---- */

/* quantized: the folder has matrices of several tensors, some of them integers (formats/schemes/). */
static llmq_status read_dtype(const char *path, const char *name, const json_t *entry, bool quantized, llmq_type *out,
                              llmq_err *err) {
    static const struct {
        const char *dtype;
        llmq_type type;
    } known[] = {{"F32", LLMQ_TYPE_F32}, {"F16", LLMQ_TYPE_F16}, {"BF16", LLMQ_TYPE_BF16}, {"I8", MEMBER_I8},
                 {"I32", MEMBER_I32},    {"I64", MEMBER_I64},    {"U8", MEMBER_U8}};
    const char *dtype = NULL;
    LLMQ_TRY(json_get_str(entry, "dtype", path, &dtype, err));
    if (!dtype) return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s has no dtype: the file is damaged", path, name);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        *out = known[i].type;
        if (!strcmp(dtype, known[i].dtype) && (quantized || !source_member_bytes(*out))) return LLMQ_OK;
    }
    return llmq_fail(
        err, LLMQ_E_UNSUPPORTED,
        "%s: tensor %s has dtype %.20s; llmq reads F32, F16 and BF16, and integers where config.json has a "
        "quantization_config",
        path, name, dtype);
}

static llmq_status read_shape(const char *path, const json_t *entry, llmq_tensor *t, llmq_err *err) {
    const json_t *shape = json_get(entry, "shape");
    size_t n = json_array_size(shape);
    if (!json_is_array(shape))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s has no shape: the file is damaged", path, t->name);
    if (n > TENSOR_MAX_DIMS)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: tensor %s has %zu dimensions; llmq reads up to %d", path,
                         t->name, n, TENSOR_MAX_DIMS);
    t->n_dims = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, n - 1 - i);
        if (!json_is_integer(dim))
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s: its shape has something that is no number", path,
                             t->name);
        t->dims[i] = json_integer_value(dim);
    }
    return source_size_tensor(t, path, err);
}

static llmq_status read_offsets(const char *path, const json_t *entry, const llmq_tensor *t, size_t data_bytes,
                                source_span *span, llmq_err *err) {
    const json_t *offsets = json_get(entry, "data_offsets"), *a = json_array_get(offsets, 0),
                 *b = json_array_get(offsets, 1);
    json_int_t begin = json_integer_value(a), end = json_integer_value(b);
    if (json_array_size(offsets) != 2 || !json_is_integer(a) || !json_is_integer(b) || begin < 0 || end < begin)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: tensor %s: data_offsets must be two rising numbers: the file is damaged", path, t->name);
    if (end - begin != t->bytes)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: tensor %s: %lld bytes of data where dtype and shape need %lld: the file is damaged", path,
                         t->name, (long long)(end - begin), (long long)t->bytes);
    if ((uint64_t)end > data_bytes)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: tensor %s lies beyond the end of the file: an incomplete download? get it again", path,
                         t->name);
    span->begin = (uint64_t)begin;
    span->end = (uint64_t)end;
    return LLMQ_OK;
}

static llmq_status read_entry(const char *path, const char *name, const json_t *entry, size_t data_bytes,
                              bool quantized, llmq_tensor *t, source_span *span, llmq_err *err) {
    LLMQ_TRY(source_name_tensor(t, name, strlen(name), path, err));
    if (!json_is_object(entry))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s: its entry is not an object: the file is damaged", path,
                         name);
    LLMQ_TRY(read_dtype(path, t->name, entry, quantized, &t->type, err));
    LLMQ_TRY(read_shape(path, entry, t, err));
    return read_offsets(path, entry, t, data_bytes, span, err);
}

/* Spans sorted by offset must follow each other from 0 to the end. */
static llmq_status check_tiling(const char *path, const llmq_tensor *tensors, const source_span *spans, size_t n,
                                size_t data_bytes, llmq_err *err) {
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (spans[i].begin != at)
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: tensor %s: %s before it in the data: the file is damaged", path,
                             tensors[spans[i].index].name, spans[i].begin > at ? "a hole" : "an overlap");
        at = spans[i].end;
    }
    if (at != data_bytes)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: its tensors end at byte %llu of %zu bytes of data: cut off or damaged", path,
                         (unsigned long long)at, data_bytes);
    return LLMQ_OK;
}

/* Tensors of one header in the order of their data, appended to src. */
static llmq_status read_entries(const char *path, const json_t *root, const uint8_t *data, size_t data_bytes,
                                llmq_source *src, llmq_err *err) {
    const char *name;
    json_t *entry;
    size_t n = json_object_size(root) - (json_object_get(root, "__metadata__") ? 1 : 0), i = 0;
    llmq_tensor *sorted = NULL, *unsorted = mem_zalloc(n, sizeof *unsorted);
    source_span *spans = mem_alloc(n, sizeof *spans);
    llmq_status status = LLMQ_OK;
    if (!unsorted || !spans) {
        status = mem_error(err, n * sizeof *unsorted, path);
        goto done;
    }
    json_object_foreach((json_t *)(uintptr_t)root, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        spans[i].index = i;
        LLMQ_TRY_GOTO(read_entry(path, name, entry, data_bytes, src->owned != NULL, &unsorted[i], &spans[i], err));
        i++;
    }
    source_sort_spans(spans, n);
    LLMQ_TRY_GOTO(check_tiling(path, unsorted, spans, n, data_bytes, err));
    LLMQ_TRY_GOTO(source_add_tensors(src, n, &sorted, err));
    for (i = 0; i < n; i++) {
        sorted[i] = unsorted[spans[i].index];
        sorted[i].data = data + spans[i].begin;
    }
done:
    mem_free(spans);
    mem_free(unsorted);
    return status;
}

static llmq_status read_file(const char *path, llmq_source *src, llmq_err *err) {
    llmq_map map;
    uint64_t n;
    json_t *root = NULL;
    LLMQ_TRY(source_add_map(src, path, &map, err));
    if (map.size < sizeof n)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %zu bytes are no safetensors file: get it again", path, map.size);
    memcpy(&n, map.data, sizeof n);
    if (n > MAX_HEADER)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: says its header has %llu bytes; %u are allowed: not a safetensors file, or damaged", path,
                         (unsigned long long)n, MAX_HEADER);
    if (n > map.size - sizeof n)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "%s: the file ends inside its header: an incomplete download? get it again", path);
    const char *header = (const char *)map.data + sizeof n;
    const uint8_t *data = map.data + sizeof n + n;
    if (n == 0 || *header != '{')
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: its header does not begin with {: the file is damaged", path);
    LLMQ_TRY(json_parse_object(header, (size_t)n, path, &root, err));
    llmq_status status = read_entries(path, root, data, map.size - sizeof n - (size_t)n, src, err);
    json_decref(root);
    return status;
}

/* ---- the folder ---- */

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && !strcmp(s + n - k, suffix);
}

static llmq_status join(char out[SOURCE_MAX_PATH], const char *dir, const char *name, llmq_err *err) {
    if (path_join(out, SOURCE_MAX_PATH, dir, name)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", dir);
}

static llmq_status read_named(const char *dir, const char *name, llmq_source *src, llmq_err *err) {
    char path[SOURCE_MAX_PATH];
    LLMQ_TRY(join(path, dir, name, err));
    return read_file(path, src, err);
}

typedef struct name_list {
    char **names;
    size_t n, cap;
} name_list;

static llmq_status add_name(name_list *list, const char *name, llmq_err *err) {
    if (list->n == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 16;
        char **grown = mem_grow(list->names, list->n, cap, sizeof *grown);
        if (!grown) return mem_error(err, cap * sizeof *grown, name);
        list->names = grown;
        list->cap = cap;
    }
    list->names[list->n] = mem_strdup(name);
    return list->names[list->n++] ? LLMQ_OK : mem_error(err, strlen(name), name);
}

static void free_names(name_list *list) {
    for (size_t i = 0; i < list->n; i++) mem_free(list->names[i]);
    mem_free(list->names);
}

static int name_order(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Reads files in the order of their names, each once. */
static llmq_status read_list(const char *dir, name_list *list, llmq_source *src, llmq_err *err) {
    if (list->n > 1) qsort(list->names, list->n, sizeof *list->names, name_order);
    for (size_t i = 0; i < list->n; i++) {
        if (i && !strcmp(list->names[i], list->names[i - 1])) continue;
        LLMQ_TRY(read_named(dir, list->names[i], src, err));
    }
    return LLMQ_OK;
}

/* The distinct files of weight_map. Neighbours in the map mostly share a file, so one comparison drops most repeats. */
static llmq_status index_files(const char *path, const json_t *map, name_list *files, llmq_err *err) {
    const char *tensor, *last = "";
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value) {
        const char *file = json_string_value(value);
        bool known = file && !strcmp(file, last);
        if (!file || !*file || strchr(file, '/') || !source_text_is_clean(file, strlen(file)) ||
            !ends_with(file, SUFFIX))
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: weight_map must name %s files beside it", path, "*" SUFFIX);
        for (size_t i = 0; i < files->n && !known; i++) known = !strcmp(files->names[i], file);
        last = file;
        if (known) continue;
        if (files->n == MAX_FILES)
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: names more than %d files", path, MAX_FILES);
        LLMQ_TRY(add_name(files, file, err));
    }
    return LLMQ_OK;
}

static llmq_status check_weight_map(const char *path, const json_t *map, const llmq_source *src, llmq_err *err) {
    const char *tensor;
    json_t *value;
    source_index *index = NULL;
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(source_index_create(src->tensors, src->n_tensors, path, &index, err));
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value) {
        if (source_index_find(index, src->tensors, src->n_tensors, tensor) < src->n_tensors) continue;
        status = llmq_fail(err, LLMQ_E_FORMAT,
                           "%s: tensor %.127s should be in %.127s, but is not: files of different downloads?", path,
                           tensor, json_string_value(value));
        break;
    }
    source_index_destroy(index);
    return status;
}

static llmq_status read_sharded(const char *dir, const char *path, llmq_source *src, llmq_err *err) {
    json_t *root = NULL;
    name_list files = {0};
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(json_read_object(path, MAX_INDEX, &root, err));
    const json_t *map = json_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: has no weight_map: get it again", path);
        goto done;
    }
    LLMQ_TRY_GOTO(index_files(path, map, &files, err));
    LLMQ_TRY_GOTO(read_list(dir, &files, src, err));
    LLMQ_TRY_GOTO(check_weight_map(path, map, src, err));
done:
    free_names(&files);
    json_decref(root);
    return status;
}

static llmq_status read_any(const char *dir, llmq_source *src, llmq_err *err) {
    name_list files = {0};
    llmq_status status = LLMQ_OK;
    DIR *d = opendir(dir);
    if (!d) return llmq_fail(err, LLMQ_E_IO, "%s: cannot list the folder: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (ends_with(e->d_name, SUFFIX) && e->d_name[0] != '.') LLMQ_TRY_GOTO(add_name(&files, e->d_name, err));
    if (files.n == 0)
        status = llmq_fail(
            err, LLMQ_E_FORMAT,
            "%s: has no *.safetensors files; for pytorch_model.bin first save the model with safe_serialization=True",
            dir);
    else
        status = read_list(dir, &files, src, err);
done:
    free_names(&files);
    closedir(d);
    return status;
}

static llmq_status read_weights(const char *dir, llmq_source *src, llmq_err *err) {
    char path[SOURCE_MAX_PATH];
    LLMQ_TRY(join(path, dir, "model" SUFFIX, err));
    if (file_exists(path)) return read_file(path, src, err);
    LLMQ_TRY(join(path, dir, INDEX_NAME, err));
    if (file_exists(path)) return read_sharded(dir, path, src, err);
    return read_any(dir, src, err);
}

static bool is_index(const char *path) {
    return ends_with(path, INDEX_NAME);
}

static bool probe(const char *path) {
    return file_is_dir(path) || ends_with(path, SUFFIX) || is_index(path);
}

/* A folder, or a file in it: a *.safetensors file alone (a model or an adapter), its index for all shards. */
static llmq_status open_folder(const char *path, llmq_source *src, llmq_err *err) {
    char config[SOURCE_MAX_PATH], dir[SOURCE_MAX_PATH];
    bool is_dir = file_is_dir(path);
    size_t n = is_dir ? strlen(path) : (size_t)(path_base(path) - path);
    src->naming = NAMING_HF;
    if (n >= sizeof dir) return llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", path);
    memcpy(dir, n ? path : ".", n ? n : 1);
    dir[n ? n : 1] = 0;
    LLMQ_TRY(join(config, dir, "config.json", err));
    if (!file_exists(config))
        return llmq_fail(err, LLMQ_E_IO, "%s: is missing: a Hugging Face folder has it beside its *.safetensors files",
                         config);
    LLMQ_TRY(hfconfig_read(config, src->meta, err));
    LLMQ_TRY(schemes_begin(src, dir, err));
    if (is_dir)
        LLMQ_TRY(read_weights(dir, src, err));
    else
        LLMQ_TRY(is_index(path) ? read_sharded(dir, path, src, err) : read_file(path, src, err));
    return schemes_attach(src, err);
}

const llmq_format format_safetensors = {.name = "huggingface",
                                        .probe = probe,
                                        .open = open_folder,
                                        .load = schemes_load,
                                        .release = schemes_release,
                                        .exact = schemes_exact,
                                        .input = schemes_input,
                                        .close = schemes_close};
