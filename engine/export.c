/* Directories of models from any container, and tensors written into them without quantizing by a method.
 *
 * Rows: GGUF files of arch "llama" hold q and k with each head's rows interleaved (row 2i is what row i of the first
 * half was, row 2i+1 what row i of the second half was). Sources in Hugging Face order are brought to that by moving
 * whole rows, which quantized blocks survive, since they run along a row. */
#define _XOPEN_SOURCE 700
#include "engine/export.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- metadata ---- */

/* "dir/SmolLM2.gguf" and "dir/SmolLM2/" are both called SmolLM2; "." is called what the folder is. */
static void model_stem(const char *path, char *out, size_t cap) {
    const char *given = path_base(path);
    char *real = !strcmp(given, ".") || !strcmp(given, "..") ? realpath(path, NULL) : NULL;
    if (real) path = real;
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--;
    size_t begin = len;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    snprintf(out, cap, "%.*s", (int)(len - begin), path + begin);
    char *dot = strrchr(out, '.');
    if (dot && dot != out && (!strcmp(dot, ".gguf") || !strcmp(dot, ".bin"))) *dot = 0;
    free(real);
}

static llmq_status set_general(const llmq_model *model, llmq_meta *meta, llmq_err *err) {
    char stem[256];
    const char *name = meta_get_str(model->meta, "general.name");
    model_stem(model->source->path, stem, sizeof stem);
    LLMQ_TRY(meta_set_str(meta, "general.architecture", model->arch->name, err));
    LLMQ_TRY(meta_set_str(meta, "general.type", "model", err));
    LLMQ_TRY(meta_set_str(meta, "general.name", name && *name ? name : stem, err));
    LLMQ_TRY(meta_set_u32(meta, "general.file_type", 0, err));
    return meta_set_u32(meta, "general.quantization_version", 2, err);
}

/* What readers of GGUF need and a source may have left out or given in other number types. */
static llmq_status set_hparams(const llmq_model *model, llmq_meta *meta, llmq_err *err) {
    const llmq_hparams *hp = &model->hp;
    const char *arch = model->arch->name;
    char key[128];
    const struct {
        const char *name;
        int64_t value;
    } counts[] = {{"vocab_size", hp->n_vocab},
                  {"context_length", hp->n_ctx_train},
                  {"embedding_length", hp->n_embd},
                  {"block_count", hp->n_layer},
                  {"feed_forward_length", hp->n_ff},
                  {"attention.head_count", hp->n_head},
                  {"attention.head_count_kv", hp->n_head_kv},
                  {"attention.key_length", hp->head_dim},
                  {"attention.value_length", hp->head_dim},
                  {"rope.dimension_count", hp->n_rot}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const llmq_meta_value *old = meta_find(meta, meta_key(key, "%s.%s", arch, counts[i].name));
        if (!old || old->type != META_ARRAY) LLMQ_TRY(meta_set_u32(meta, key, (uint32_t)counts[i].value, err));
    }
    LLMQ_TRY(meta_set_f32(meta, meta_key(key, "%s.attention.layer_norm_rms_epsilon", arch), hp->eps, err));
    return meta_set_f32(meta, meta_key(key, "%s.rope.freq_base", arch), (float)hp->rope_base, err);
}

/* The source's keys behind those set already; the writer leaves out what is of no use in a GGUF file. */
static llmq_status build_meta(const llmq_model *model, llmq_meta *meta, llmq_err *err) {
    LLMQ_TRY(set_general(model, meta, err));
    for (size_t i = 0; i < meta_count(model->meta); i++) {
        const llmq_meta_value *v = meta_at(model->meta, i);
        if (!meta_find(meta, v->key)) LLMQ_TRY(meta_set_value(meta, NULL, v, err));
    }
    if (!meta_find(meta, "tokenizer.ggml.model")) LLMQ_TRY(meta_set_str(meta, "tokenizer.ggml.model", "none", err));
    return set_hparams(model, meta, err);
}

/* ---- the directory ---- */

static llmq_status add_entry(llmq_export *ex, const llmq_arch_rule *rule, int layer, const llmq_tensor *src,
                             llmq_err *err) {
    const llmq_model *model = ex->model;
    llmq_tensor *t = &ex->tensors[ex->n];
    llmq_export_entry *entry = &ex->entries[ex->n];
    *entry =
        (llmq_export_entry){.src = src, .role = rule->role, .layer = layer, .matrix = arch_role_is_matrix(rule->role)};
    bool from_pairs = !model->rope_neox, to_pairs = ex->naming == NAMING_GGUF && !model->arch->gguf_neox;
    if (rule->permute && from_pairs != to_pairs)
        entry->interleave = rule->permute == 1 ? model->hp.n_head : model->hp.n_head_kv;
    arch_tensor_name(rule, (int)ex->naming, layer, t->name);
    t->n_dims = src ? src->n_dims : 1;
    for (int d = 0; d < TENSOR_MAX_DIMS; d++) t->dims[d] = src ? src->dims[d] : d ? 1 : model->hp.n_rot / 2;
    llmq_type type = ex->naming == NAMING_HF ? LLMQ_TYPE_F16 : entry->matrix ? src->type : LLMQ_TYPE_F32;
    if (type_info(type)->in_memory) type = LLMQ_TYPE_F16;
    return export_set_type(ex, ex->n++, type, err);
}

/* Entries of roles [from, to) in the order of the architecture's table. */
static llmq_status add_roles(llmq_export *ex, int layer, llmq_role from, llmq_role to, llmq_err *err) {
    const llmq_model *model = ex->model;
    for (const llmq_arch_rule *rule = model->arch->rules; rule->role != ROLE_COUNT; rule++) {
        if (rule->role < from || rule->role >= to) continue;
        const llmq_tensor *src =
            layer < 0 ? model->by_role[rule->role] : model->layer_tensors[layer].by_role[rule->role];
        if (src || (rule->role == ROLE_ROPE_FREQS && model->freq_factors))
            LLMQ_TRY(add_entry(ex, rule, layer, src, err));
    }
    return LLMQ_OK;
}

static llmq_status create(const llmq_model *model, llmq_naming naming, llmq_export **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t cap = ((size_t)model->hp.n_layer + 1) * ROLE_COUNT;
    llmq_export *ex = mem_zalloc(1, sizeof *ex);
    if (!ex) return mem_error(err, sizeof *ex, "the output's directory");
    ex->model = model;
    ex->naming = naming;
    ex->meta = naming == NAMING_GGUF ? meta_create() : NULL;
    ex->tensors = mem_zalloc(cap, sizeof *ex->tensors);
    ex->entries = mem_zalloc(cap, sizeof *ex->entries);
    if ((naming == NAMING_GGUF && !ex->meta) || !ex->tensors || !ex->entries) {
        status = mem_error(err, cap * sizeof *ex->tensors, "the output's directory");
        goto done;
    }
    if (ex->meta) LLMQ_TRY_GOTO(build_meta(model, ex->meta, err));
    LLMQ_TRY_GOTO(add_roles(ex, -1, ROLE_TOKEN_EMBD, ROLE_OUTPUT_NORM, err));
    LLMQ_TRY_GOTO(add_roles(ex, -1, ROLE_ROPE_FREQS, ROLE_ATTN_NORM, err));
    for (int l = 0; l < (int)model->hp.n_layer; l++) LLMQ_TRY_GOTO(add_roles(ex, l, ROLE_ATTN_NORM, ROLE_COUNT, err));
    LLMQ_TRY_GOTO(add_roles(ex, -1, ROLE_OUTPUT_NORM, ROLE_ROPE_FREQS, err));
    *out = ex;
done:
    if (status != LLMQ_OK) export_destroy(ex);
    return status;
}

llmq_status export_create(const llmq_model *model, llmq_export **out, llmq_err *err) {
    return create(model, NAMING_GGUF, out, err);
}

llmq_status export_create_hf(const llmq_model *model, llmq_export **out, llmq_err *err) {
    return create(model, NAMING_HF, out, err);
}

void export_destroy(llmq_export *ex) {
    if (!ex) return;
    meta_destroy(ex->meta);
    mem_free(ex->tensors);
    mem_free(ex->entries);
    mem_free(ex);
}

llmq_status export_set_type(llmq_export *ex, size_t index, llmq_type type, llmq_err *err) {
    llmq_tensor *t = &ex->tensors[index];
    int64_t row_bytes = type_row_bytes(type, tensor_cols(t));
    t->type = type;
    if (row_bytes < 0 || !i64_mul(row_bytes, tensor_rows(t), &t->bytes))
        return llmq_fail(err, LLMQ_E_ARG, "%s: rows of %lld weights cannot be %s", t->name, (long long)tensor_cols(t),
                         llmq_type_name(type));
    return LLMQ_OK;
}

llmq_status export_seal(llmq_export *ex, llmq_err *err) {
    int64_t weights[LLMQ_TYPE_COUNT] = {0};
    llmq_type main_type = LLMQ_TYPE_F32;
    for (size_t i = 0; i < ex->n; i++)
        if (ex->entries[i].matrix && ex->entries[i].layer >= 0)
            weights[ex->tensors[i].type] += tensor_numel(&ex->tensors[i]);
    for (int type = 0; type < LLMQ_TYPE_COUNT; type++)
        if (weights[type] > weights[main_type]) main_type = (llmq_type)type;
    return meta_set_u32(ex->meta, "general.file_type", (uint32_t)type_info(main_type)->ftype, err);
}

int64_t export_source_row(const llmq_export *ex, size_t index, int64_t r) {
    const llmq_export_entry *entry = &ex->entries[index];
    if (!entry->interleave) return r;
    const llmq_tensor *t = &ex->tensors[index];
    int64_t n = entry->matrix ? tensor_rows(t) : tensor_cols(t), head_dim = n / entry->interleave;
    int64_t head = r / head_dim, i = r % head_dim, n_rot = ex->model->hp.n_rot;
    if (i >= n_rot) return r; /* what RoPE does not turn stays */
    int64_t half = n_rot / 2, pair = i / 2 + i % 2 * half, place = i < half ? 2 * i : 2 * (i - half) + 1;
    return head * head_dim + (ex->naming == NAMING_GGUF ? pair : place);
}

/* ---- writing ---- */

/* The first weight that f16 would make infinite, 0: none. */
static float f16_overflow(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i]) && fabsf(x[i]) >= 65520.0f) return x[i];
    return 0;
}

/* x [n] to dst as a float type. *exact_out: the values are the same. */
static llmq_status encode_vector(const llmq_tensor *t, const float *x, void *dst, int64_t n, bool *exact_out,
                                 llmq_err *err) {
    float back, over = t->type == LLMQ_TYPE_F16 ? f16_overflow(x, n) : 0;
    if (over != 0)
        return llmq_fail(err, LLMQ_E_NUMERIC, "tensor '%s': a value of %g does not fit f16", t->name, (double)over);
    LLMQ_TRY(type_from_f32(t->type, x, NULL, dst, n, err));
    *exact_out = true;
    for (int64_t i = 0; i < n && *exact_out; i++) {
        type_to_f32(t->type, (const uint8_t *)dst + type_row_bytes(t->type, i), &back, 1);
        *exact_out = memcmp(&back, &x[i], sizeof back) == 0;
    }
    return LLMQ_OK;
}

static llmq_status write_vector(const llmq_export *ex, size_t index, const float *values, const export_sink *sink,
                                bool *exact_out, llmq_err *err) {
    const llmq_tensor *t = &ex->tensors[index], *src = ex->entries[index].src;
    int64_t n = tensor_numel(t);
    float *x = mem_alloc(2 * (size_t)n, sizeof *x), *y = x + n;
    if (!x) return mem_error(err, 2 * (size_t)n * sizeof *x, t->name);
    if (values)
        memcpy(x, values, (size_t)n * sizeof *x);
    else if (src)
        type_to_f32(src->type, src->data, x, n);
    else
        memcpy(x, ex->model->freq_factors, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) y[i] = x[export_source_row(ex, index, i)];
    llmq_status status = encode_vector(t, y, x, n, exact_out, err);
    if (status == LLMQ_OK) status = sink->put(sink->to, index, x, (size_t)t->bytes, 0, err);
    mem_free(x);
    return status;
}

typedef struct rows_job {
    const llmq_export *ex;
    size_t index;
    const float *values; /* instead of the source's, or NULL */
    int64_t begin, n;    /* rows of the file, of this chunk */
    uint8_t *bytes;      /* as they are written */
    float *scratch;      /* (workers, 2, cols) */
    atomic_int inexact;
    atomic_int failed;
    llmq_err err; /* of the worker that set failed first */
} rows_job;

static void rows_worker(const llmq_worker *worker, void *arg) {
    rows_job *job = arg;
    const llmq_tensor *t = &job->ex->tensors[job->index], *src = job->ex->entries[job->index].src;
    int64_t cols = tensor_cols(t), begin, end;
    size_t from_bytes = (size_t)type_row_bytes(src->type, cols), to_bytes = (size_t)type_row_bytes(t->type, cols);
    float *x = job->scratch + worker->id * 2 * cols, *back = x + cols;
    worker_range(worker, job->n, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t row = export_source_row(job->ex, job->index, job->begin + i);
        uint8_t *to = job->bytes + (size_t)i * to_bytes;
        if (!job->values && src->type == t->type) {
            memcpy(to, (const uint8_t *)src->data + (size_t)row * from_bytes, to_bytes);
            continue;
        }
        llmq_err err;
        if (job->values)
            memcpy(x, job->values + row * cols, (size_t)cols * sizeof *x);
        else
            type_to_f32(src->type, (const uint8_t *)src->data + (size_t)row * from_bytes, x, cols);
        float over = t->type == LLMQ_TYPE_F16 ? f16_overflow(x, cols) : 0;
        if ((over != 0 ? llmq_fail(&err, LLMQ_E_NUMERIC, "a weight of %g does not fit f16; bf16 and f32 hold it",
                                   (double)over)
                       : type_from_f32(t->type, x, NULL, to, cols, &err)) != LLMQ_OK) {
            if (!atomic_exchange(&job->failed, 1)) job->err = err;
            return;
        }
        if (atomic_load_explicit(&job->inexact, memory_order_relaxed)) continue;
        type_to_f32(t->type, to, back, cols);
        if (memcmp(x, back, (size_t)cols * sizeof *x) != 0) atomic_store(&job->inexact, 1);
    }
}

static llmq_status write_matrix(const llmq_export *ex, size_t index, const float *values, const export_sink *sink,
                                llmq_team *team, bool *exact_out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_tensor *t = &ex->tensors[index];
    int64_t cols = tensor_cols(t), rows = tensor_rows(t), row_bytes = type_row_bytes(t->type, cols);
    int64_t chunk = EXPORT_CHUNK_FLOATS / cols;
    if (chunk < 1) chunk = 1;
    if (chunk > rows) chunk = rows;
    rows_job job = {.ex = ex, .index = index, .values = values};
    job.bytes = mem_alloc((size_t)chunk, (size_t)row_bytes);
    job.scratch = mem_alloc((size_t)team_size(team) * 2 * (size_t)cols, sizeof *job.scratch);
    if (!job.bytes || !job.scratch) {
        status = mem_error(err, (size_t)chunk * (size_t)row_bytes, t->name);
        goto done;
    }
    for (job.begin = 0; job.begin < rows; job.begin += chunk) {
        job.n = rows - job.begin < chunk ? rows - job.begin : chunk;
        team_run(team, rows_worker, &job);
        if (atomic_load(&job.failed))
            LLMQ_TRY_GOTO(
                llmq_fail(err, job.err.status, "%s: tensor '%s': %s", ex->model->source->path, t->name, job.err.msg));
        LLMQ_TRY_GOTO(
            sink->put(sink->to, index, job.bytes, (size_t)(job.n * row_bytes), (size_t)(job.begin * row_bytes), err));
        if (sink->tick && !sink->tick(sink->user, (double)job.n / (double)rows))
            LLMQ_TRY_GOTO(llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped"));
    }
    *exact_out = !atomic_load(&job.inexact);
done:
    mem_free(job.scratch);
    mem_free(job.bytes);
    return status;
}

llmq_status export_write(const llmq_export *ex, size_t index, const float *values, const export_sink *sink,
                         llmq_team *team, bool *exact_out, llmq_err *err) {
    *exact_out = true;
    if (!ex->entries[index].matrix) return write_vector(ex, index, values, sink, exact_out, err);
    if (!values) LLMQ_TRY(source_load(ex->model->source, ex->entries[index].src, false, err));
    llmq_status status = write_matrix(ex, index, values, sink, team, exact_out, err);
    *exact_out = *exact_out && (values || source_exact(ex->model->source, ex->entries[index].src));
    source_release(ex->model->source, ex->entries[index].src);
    return status;
}
