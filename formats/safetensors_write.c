#include "formats/safetensors_write.h"

#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "formats/coverage.h"
#include "formats/source.h"

#define INDEX_NAME "model.safetensors.index.json"
#define MAX_SHARDS 99999
#define METADATA "{\"__metadata__\":{\"format\":\"pt\"}"

typedef struct placed {
    size_t index; /* of the caller's tensor */
    int rank;     /* of the dtype: higher ones come first */
    uint64_t offset;
} placed;

typedef struct shard {
    size_t first, n; /* of plan.order */
    char *header;
    size_t header_bytes;
    uint64_t total;
} shard;

typedef struct plan {
    llmq_st_tensor *tensors;
    size_t n;
    placed *order;    /* n: by shard, then as they lie in the file */
    uint64_t *offset; /* n, of tensor i from the start of its file */
    size_t *shard_of; /* n */
    shard *shards;
    size_t n_shards;
} plan;

/* The official library's order of dtypes, narrowest first. */
static int dtype_rank(const char *dtype, int *width) {
    static const struct {
        const char *name;
        int width;
    } known[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"I16", 2}, {"U16", 2}, {"F16", 2}, {"BF16", 2},
                 {"I32", 4},  {"U32", 4}, {"F32", 4}, {"F64", 8}, {"I64", 8}, {"U64", 8}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, dtype)) {
            *width = known[i].width;
            return (int)i;
        }
    return -1;
}

static void plan_free(plan *p) {
    for (size_t i = 0; p->shards && i < p->n_shards; i++) mem_free(p->shards[i].header);
    mem_free(p->shards);
    mem_free(p->shard_of);
    mem_free(p->offset);
    mem_free(p->order);
    mem_free(p->tensors);
}

static llmq_status check_tensor(const llmq_st_tensor *t, int *rank, llmq_err *err) {
    int width;
    int64_t numel = 1, bytes;
    size_t len = strlen(t->name);
    *rank = dtype_rank(t->dtype, &width);
    if (*rank < 0)
        return llmq_fail(err, LLMQ_E_ARG, "tensor %s: dtype %s cannot be written to safetensors", t->name, t->dtype);
    if (!len || strpbrk(t->name, "\"\\") || !source_text_is_clean(t->name, len))
        return llmq_fail(err, LLMQ_E_ARG, "tensor name \"%s\" cannot be written to safetensors", t->name);
    for (int d = 0; d < t->n_dims; d++)
        if (t->dims[d] < 0 || !i64_mul(numel, t->dims[d], &numel)) numel = INT64_MAX;
    if (!i64_mul(numel, width, &bytes) || bytes != t->bytes)
        return llmq_fail(err, LLMQ_E_ARG, "tensor %s: %" PRId64 " bytes do not fit its shape", t->name, t->bytes);
    return LLMQ_OK;
}

/* More bytes than the tensor's entry in the header takes. */
static uint64_t entry_bytes(const llmq_st_tensor *t) {
    return strlen(t->name) + 80 + 20 * (uint64_t)(t->n_dims + 2);
}

/* Tensors to files: the next file begins where a tensor would make this one too large. */
static llmq_status assign_shards(plan *p, int64_t shard_bytes, llmq_err *err) {
    const uint64_t room = shard_bytes > 0 ? (uint64_t)shard_bytes : UINT64_MAX, empty = sizeof METADATA + 16;
    uint64_t used = empty;
    size_t last = 0;
    for (size_t i = 0; i < p->n; i++) {
        uint64_t bytes = (uint64_t)p->tensors[i].bytes + entry_bytes(&p->tensors[i]);
        if (used > empty && (bytes > room || used > room - bytes)) {
            last++;
            used = empty;
        }
        used += bytes;
        p->shard_of[i] = last;
    }
    p->n_shards = last + 1;
    if (p->n_shards > MAX_SHARDS)
        return llmq_fail(err, LLMQ_E_ARG, "--shard-size makes %zu files; choose a larger one", p->n_shards);
    p->shards = mem_zalloc(p->n_shards, sizeof *p->shards);
    return p->shards ? LLMQ_OK : mem_error(err, p->n_shards * sizeof *p->shards, "safetensors files");
}

/* A compare function of qsort has no argument for the names: they are told apart by sorting pointers to records. */
typedef struct sort_key {
    const char *name;
    placed at;
} sort_key;

static int place_order(const void *a, const void *b) {
    const sort_key *x = a, *y = b;
    if (x->at.rank != y->at.rank) return x->at.rank > y->at.rank ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Tensors of one file in order, with their places from the start of its data. */
static llmq_status order_shard(plan *p, shard *s, llmq_err *err) {
    uint64_t at = 0;
    sort_key *keys = mem_alloc(s->n, sizeof *keys);
    if (!keys) return mem_error(err, s->n * sizeof *keys, "a safetensors header");
    for (size_t i = 0; i < s->n; i++) {
        placed *place = &p->order[s->first + i];
        keys[i] = (sort_key){p->tensors[place->index].name, *place};
    }
    if (s->n > 1) qsort(keys, s->n, sizeof *keys, place_order);
    for (size_t i = 0; i < s->n; i++) {
        p->order[s->first + i] = keys[i].at;
        p->order[s->first + i].offset = at;
        at += (uint64_t)p->tensors[keys[i].at.index].bytes;
        if (i && !strcmp(keys[i].name, keys[i - 1].name)) {
            llmq_status status = llmq_fail(err, LLMQ_E_ARG, "tensor %s is there twice", keys[i].name);
            mem_free(keys);
            return status;
        }
    }
    s->total = at;
    mem_free(keys);
    return LLMQ_OK;
}

static llmq_status make_header(plan *p, shard *s, llmq_err *err) {
    size_t cap = sizeof METADATA + 32, n = 8;
    for (size_t i = 0; i < s->n; i++) cap += entry_bytes(&p->tensors[p->order[s->first + i].index]);
    s->header = mem_alloc(cap, 1);
    if (!s->header) return mem_error(err, cap, "a safetensors header");
    n += (size_t)snprintf(s->header + n, cap - n, METADATA);
    for (size_t i = 0; i < s->n; i++) {
        const placed *place = &p->order[s->first + i];
        const llmq_st_tensor *t = &p->tensors[place->index];
        n += (size_t)snprintf(s->header + n, cap - n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->dtype);
        for (int d = 0; d < t->n_dims; d++)
            n += (size_t)snprintf(s->header + n, cap - n, "%s%" PRId64, d ? "," : "", t->dims[d]);
        n += (size_t)snprintf(s->header + n, cap - n, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", place->offset,
                              place->offset + (uint64_t)t->bytes);
    }
    s->header[n++] = '}';
    while (n % 8) s->header[n++] = ' ';
    uint64_t json_bytes = n - 8;
    memcpy(s->header, &json_bytes, sizeof json_bytes);
    s->header_bytes = n;
    s->total += n;
    for (size_t i = 0; i < s->n; i++) {
        placed *place = &p->order[s->first + i];
        p->offset[place->index] = place->offset + n;
    }
    return LLMQ_OK;
}

static llmq_status plan_make(const llmq_st_tensor *tensors, size_t n, int64_t shard_bytes, plan *p, llmq_err *err) {
    p->n = n;
    p->tensors = mem_alloc(n, sizeof *p->tensors);
    p->order = mem_alloc(n, sizeof *p->order);
    p->offset = mem_alloc(n, sizeof *p->offset);
    p->shard_of = mem_alloc(n, sizeof *p->shard_of);
    if (!p->tensors || !p->order || !p->offset || !p->shard_of)
        return mem_error(err, n * sizeof *p->tensors, "the safetensors directory");
    if (n) memcpy(p->tensors, tensors, n * sizeof *tensors);
    for (size_t i = 0; i < n; i++) {
        p->order[i] = (placed){.index = i};
        LLMQ_TRY(check_tensor(&tensors[i], &p->order[i].rank, err));
    }
    LLMQ_TRY(assign_shards(p, shard_bytes, err));
    for (size_t k = 0, at = 0; k < p->n_shards; k++) {
        shard *s = &p->shards[k];
        s->first = at;
        while (at < n && p->shard_of[at] == k) at++;
        s->n = at - s->first;
        LLMQ_TRY(order_shard(p, s, err));
        LLMQ_TRY(make_header(p, s, err));
    }
    return LLMQ_OK;
}

static uint64_t plan_total(const plan *p) {
    uint64_t total = 0;
    for (size_t k = 0; k < p->n_shards; k++) total += p->shards[k].total;
    return total;
}

llmq_status st_plan_bytes(const llmq_st_tensor *tensors, size_t n, int64_t shard_bytes, int64_t *bytes_out,
                          llmq_err *err) {
    plan p = {0};
    llmq_status status = plan_make(tensors, n, shard_bytes, &p, err);
    if (status == LLMQ_OK) *bytes_out = (int64_t)plan_total(&p);
    plan_free(&p);
    return status;
}

/* ---- writing ---- */

struct llmq_st_writer {
    plan plan;
    char *dir;
    llmq_out **out; /* [n_shards] */
    coverage *put;  /* [n] */
    pthread_mutex_t lock;
};

static void shard_name(const plan *p, size_t k, char out[64]) {
    if (p->n_shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05zu-of-%05zu.safetensors", k + 1, p->n_shards);
}

static void writer_free(llmq_st_writer *w, bool keep) {
    if (!w) return;
    for (size_t k = 0; w->out && k < w->plan.n_shards; k++) (keep ? out_keep : out_abort)(w->out[k]);
    for (size_t i = 0; w->put && i < w->plan.n; i++) coverage_clear(&w->put[i]);
    pthread_mutex_destroy(&w->lock);
    mem_free(w->out);
    mem_free(w->put);
    mem_free(w->dir);
    plan_free(&w->plan);
    mem_free(w);
}

/* The last byte gives the file its size, by which a later run knows it. */
static llmq_status open_shard(llmq_st_writer *w, size_t k, uint64_t room, bool resume, llmq_err *err) {
    char name[64], path[SOURCE_MAX_PATH];
    const shard *s = &w->plan.shards[k];
    shard_name(&w->plan, k, name);
    if (!path_join(path, sizeof path, w->dir, name))
        return llmq_fail(err, LLMQ_E_ARG, "%s: the path is too long", w->dir);
    if (resume) return out_reopen(path, true, s->total, &w->out[k], err);
    LLMQ_TRY(out_open(path, true, room, &w->out[k], err));
    LLMQ_TRY(out_write_at(w->out[k], "", 1, s->total - 1, err));
    return out_write_at(w->out[k], s->header, s->header_bytes, 0, err);
}

llmq_status st_writer_open(const char *dir, const llmq_st_tensor *tensors, size_t n, int64_t shard_bytes, bool resume,
                           llmq_st_writer **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_st_writer *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, dir);
    pthread_mutex_init(&w->lock, NULL);
    w->dir = mem_strdup(dir);
    w->put = mem_zalloc(n, sizeof *w->put);
    if (!w->dir || !w->put) LLMQ_TRY_GOTO(mem_error(err, n * sizeof *w->put, dir));
    LLMQ_TRY_GOTO(plan_make(tensors, n, shard_bytes, &w->plan, err));
    w->out = mem_zalloc(w->plan.n_shards, sizeof(llmq_out *));
    if (!w->out) LLMQ_TRY_GOTO(mem_error(err, w->plan.n_shards * sizeof(llmq_out *), dir));
    for (size_t k = 0; k < w->plan.n_shards; k++) /* the room for all is asked for once */
        LLMQ_TRY_GOTO(open_shard(w, k, k ? 0 : plan_total(&w->plan), resume, err));
    *out = w;
    w = NULL;
done:
    writer_free(w, resume);
    return status;
}

static llmq_status check_index(const llmq_st_writer *w, size_t index, llmq_err *err) {
    if (index < w->plan.n) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG, "%s: tensor %zu of %zu does not exist", w->dir, index, w->plan.n);
}

static llmq_status check_range(const llmq_st_writer *w, size_t index, size_t len, size_t offset, llmq_err *err) {
    LLMQ_TRY(check_index(w, index, err));
    const llmq_st_tensor *t = &w->plan.tensors[index];
    size_t bytes = (size_t)t->bytes;
    if (offset > bytes || len > bytes - offset)
        return llmq_fail(err, LLMQ_E_ARG, "%s: tensor %s: %zu bytes at %zu do not fit into its %zu", w->dir, t->name,
                         len, offset, bytes);
    return LLMQ_OK;
}

llmq_status st_writer_get(const llmq_st_writer *w, size_t index, void *data, size_t len, size_t offset, llmq_err *err) {
    LLMQ_TRY(check_range(w, index, len, offset, err));
    return out_read_at(w->out[w->plan.shard_of[index]], data, len, w->plan.offset[index] + offset, err);
}

llmq_status st_writer_put(llmq_st_writer *w, size_t index, const void *data, size_t len, size_t offset, llmq_err *err) {
    LLMQ_TRY(check_range(w, index, len, offset, err));
    LLMQ_TRY(out_write_at(w->out[w->plan.shard_of[index]], data, len, w->plan.offset[index] + offset, err));
    pthread_mutex_lock(&w->lock);
    bool ok = coverage_add(&w->put[index], offset, offset + len);
    pthread_mutex_unlock(&w->lock);
    return ok ? LLMQ_OK : mem_error(err, sizeof(coverage_run), w->dir);
}

llmq_status st_writer_have(llmq_st_writer *w, size_t index, llmq_err *err) {
    LLMQ_TRY(check_index(w, index, err));
    bool ok = coverage_add(&w->put[index], 0, (uint64_t)w->plan.tensors[index].bytes);
    return ok ? LLMQ_OK : mem_error(err, sizeof(coverage_run), w->dir);
}

llmq_status st_writer_sync(llmq_st_writer *w, llmq_err *err) {
    for (size_t k = 0; k < w->plan.n_shards; k++) LLMQ_TRY(out_sync(w->out[k], err));
    return LLMQ_OK;
}

static llmq_status check_coverage(const llmq_st_writer *w, llmq_err *err) {
    for (size_t i = 0; i < w->plan.n; i++) {
        uint64_t bytes = (uint64_t)w->plan.tensors[i].bytes, missing = coverage_missing(&w->put[i], bytes);
        if (missing < bytes)
            return llmq_fail(err, LLMQ_E_ARG, "%s: not all of tensor %s was written: byte %llu of %llu is missing",
                             w->dir, w->plan.tensors[i].name, (unsigned long long)missing, (unsigned long long)bytes);
    }
    return LLMQ_OK;
}

static char *index_text(const plan *p) {
    json_int_t total = 0;
    json_t *map = json_object();
    for (size_t i = 0; i < p->n; i++) {
        char name[64];
        shard_name(p, p->shard_of[i], name);
        total += p->tensors[i].bytes;
        json_object_set_new(map, p->tensors[i].name, json_string(name));
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(root);
    return text;
}

static llmq_status write_index(const llmq_st_writer *w, llmq_err *err) {
    char path[SOURCE_MAX_PATH];
    if (w->plan.n_shards == 1) return LLMQ_OK;
    if (!path_join(path, sizeof path, w->dir, INDEX_NAME))
        return llmq_fail(err, LLMQ_E_ARG, "%s: the path is too long", w->dir);
    char *text = index_text(&w->plan);
    llmq_status status = text ? file_write(path, text, strlen(text), err) : mem_error(err, w->plan.n * 64, path);
    free(text);
    return status;
}

llmq_status st_writer_finish(llmq_st_writer *w, int64_t *bytes_out, llmq_err *err) {
    llmq_status status = check_coverage(w, err);
    for (size_t k = 0; status == LLMQ_OK && k < w->plan.n_shards; k++) {
        llmq_out *out = w->out[k];
        w->out[k] = NULL;
        status = out_finish(out, err);
    }
    if (status == LLMQ_OK) status = write_index(w, err);
    if (status == LLMQ_OK && bytes_out) *bytes_out = (int64_t)plan_total(&w->plan);
    writer_free(w, false);
    return status;
}

void st_writer_abort(llmq_st_writer *w, bool keep) {
    writer_free(w, keep);
}
