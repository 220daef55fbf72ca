#include "formats/safetensors_list.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mem.h"
#include "formats/json.h"
#include "formats/source.h"

#define MAX_HEADER 100000000u
#define MAX_FILES 4096
#define SUFFIX ".safetensors"

static bool is_weights_file(const char *name) {
    size_t n = strlen(name), k = sizeof SUFFIX - 1;
    return n > k && name[0] != '.' && !strcmp(name + n - k, SUFFIX);
}

/* The header's JSON. Only what is in front of the weights is touched. */
static llmq_status read_header(const char *path, json_t **out, llmq_err *err) {
    llmq_map map;
    uint64_t n;
    LLMQ_TRY(file_map(path, &map, err));
    llmq_status status = LLMQ_OK;
    if (map.size >= sizeof n) memcpy(&n, map.data, sizeof n);
    if (map.size < sizeof n || n > MAX_HEADER || n > map.size - sizeof n)
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: its header does not fit the file: incomplete or damaged", path);
    else
        status = json_parse_object((const char *)map.data + sizeof n, (size_t)n, path, out, err);
    file_unmap(&map);
    return status;
}

static llmq_status read_tensor(const char *path, const char *name, const json_t *entry, llmq_listed_tensor *t,
                               llmq_err *err) {
    const json_t *shape = json_get(entry, "shape");
    *t = (llmq_listed_tensor){.name = name, .dtype = json_string_value(json_get(entry, "dtype"))};
    size_t n = json_array_size(shape);
    bool sound = t->dtype && json_is_array(shape) && source_text_is_clean(name, strlen(name)) &&
                 source_text_is_clean(t->dtype, strlen(t->dtype));
    for (size_t i = 0; i < n && sound; i++) {
        const json_t *dim = json_array_get(shape, i);
        sound = json_is_integer(dim) && json_integer_value(dim) >= 0 && json_integer_value(dim) < INT64_MAX / 64;
        if (i < LIST_MAX_DIMS) t->dims[i] = json_integer_value(dim);
    }
    if (!sound)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: an entry of its header has no sound name, dtype and shape: damaged",
                         path);
    t->n_dims = n < LIST_MAX_DIMS ? (int)n : LIST_MAX_DIMS;
    return LLMQ_OK;
}

static llmq_status add_file(const char *path, llmq_safetensors_list *list, llmq_err *err) {
    json_t *root = NULL, *entry;
    const char *name;
    if (list->n_files == MAX_FILES)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: more than %d files in the folder", path, MAX_FILES);
    LLMQ_TRY(read_header(path, &root, err));
    list->owned[list->n_files++] = root;
    size_t n = json_object_size(root);
    llmq_listed_tensor *grown = mem_grow(list->tensors, list->n, list->n + n, sizeof *grown);
    if (!grown) return mem_error(err, (list->n + n) * sizeof *grown, path);
    list->tensors = grown;
    if (!json_string_value(json_get(json_get(root, "__metadata__"), "format"))) list->n_without_format++;
    json_object_foreach(root, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        LLMQ_TRY(read_tensor(path, name, entry, &list->tensors[list->n], err));
        list->n++;
    }
    return LLMQ_OK;
}

static llmq_status add_folder(const char *dir, llmq_safetensors_list *list, llmq_err *err) {
    char path[SOURCE_MAX_PATH];
    llmq_status status = LLMQ_OK;
    DIR *d = opendir(dir);
    if (!d) return llmq_fail(err, LLMQ_E_IO, "%s: cannot list the folder: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (!is_weights_file(e->d_name)) continue;
        if (!path_join(path, sizeof path, dir, e->d_name))
            LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", dir));
        LLMQ_TRY_GOTO(add_file(path, list, err));
    }
    if (!list->n_files) status = llmq_fail(err, LLMQ_E_FORMAT, "%s: has no *.safetensors files", dir);
done:
    closedir(d);
    return status;
}

static int by_name(const void *pa, const void *pb) {
    return strcmp(((const llmq_listed_tensor *)pa)->name, ((const llmq_listed_tensor *)pb)->name);
}

llmq_status safetensors_list_read(const char *dir, llmq_safetensors_list *out, llmq_err *err) {
    char path[SOURCE_MAX_PATH];
    *out = (llmq_safetensors_list){0};
    if (!path_join(path, sizeof path, dir, "model" SUFFIX))
        return llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", dir);
    out->owned = mem_zalloc(MAX_FILES, sizeof *out->owned);
    if (!out->owned) return mem_error(err, MAX_FILES * sizeof *out->owned, dir);
    llmq_status status = file_exists(path) ? add_file(path, out, err) : add_folder(dir, out, err);
    if (status != LLMQ_OK) {
        safetensors_list_clear(out);
        return status;
    }
    if (out->n) qsort(out->tensors, out->n, sizeof *out->tensors, by_name);
    size_t kept = 0; /* a name in two files counts once */
    for (size_t i = 0; i < out->n; i++)
        if (!i || by_name(&out->tensors[i], &out->tensors[kept - 1])) out->tensors[kept++] = out->tensors[i];
    out->n = kept;
    return LLMQ_OK;
}

void safetensors_list_clear(llmq_safetensors_list *list) {
    for (size_t i = 0; i < list->n_files; i++) json_decref(list->owned[i]);
    mem_free(list->owned);
    mem_free(list->tensors);
    *list = (llmq_safetensors_list){0};
}

const llmq_listed_tensor *safetensors_list_find(const llmq_safetensors_list *list, const char *name) {
    if (!list->n) return NULL;
    const llmq_listed_tensor key = {.name = name};
    return bsearch(&key, list->tensors, list->n, sizeof key, by_name);
}
