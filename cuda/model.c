/* Weights to the GPU: packed on the host, and uploaded beside it. */
#include "cuda/model.h"

#include <limits.h>
#include <string.h>

#include "core/mem.h"
#include "cuda/layout.h"
#include "types/type.h"

llmq_status gpu_upload_new(const char *what, const void *data, size_t bytes, void *out, llmq_err *err) {
    void *p = NULL;
    LLMQ_TRY(gpu_alloc(what, bytes, &p, err));
    memcpy(out, &p, sizeof p); /* from now on somebody's, even if the upload fails */
    LLMQ_TRY(gpu_upload(p, data, bytes, err));
    gpu_seal(p);
    return LLMQ_OK;
}

static llmq_status upload_vector(const char *what, const float *x, int64_t n, float **out, llmq_err *err) {
    *out = NULL;
    return x ? gpu_upload_new(what, x, (size_t)n * sizeof *x, out, err) : LLMQ_OK;
}

/* With every `shared` columns in one group. */
static cuda_matrix packed_shape(const llmq_tensor *t, int64_t shared) {
    const int group = cuda_group_of(t->type, shared, tensor_cols(t));
    return (cuda_matrix){.type = group ? t->type : cuda_packed_type(t->type),
                         .group = group,
                         .rows = tensor_rows(t),
                         .cols = tensor_cols(t)};
}

static size_t packed_bytes(const cuda_matrix *w, int64_t rows) {
    return cuda_pack_bytes(w->type, w->group, rows, w->cols);
}

/* ---- matrices: slabs of rows are packed by a team into one buffer while the one before is uploaded. Before that the
 * team reads them to see whether groups have one scale, for which there are smaller layouts; most matrices that do not
 * show it in their first rows. */

enum { STAGING_BYTES = 16 << 20 };

typedef struct loader {
    const llmq_device_desc *d;
    llmq_team *team;
    gpu_staging *staging;
} loader;

typedef struct pack_job {
    const llmq_tensor *from;
    cuda_matrix *to;
    int64_t first, n_rows; /* first: a multiple of TILE_ROWS */
    size_t tile_row_bytes;
    uint8_t *packed;
    int shared[LLMQ_THREADS_MAX];
    llmq_status status[LLMQ_THREADS_MAX];
    llmq_err err[LLMQ_THREADS_MAX];
} pack_job;

static const uint8_t *native_row(const pack_job *job, int64_t row) {
    return (const uint8_t *)job->from->data + row * type_row_bytes(job->from->type, job->to->cols);
}

static void compare_worker(const llmq_worker *w, void *arg) {
    pack_job *job = arg;
    int64_t begin, end;
    worker_range(w, job->to->rows, TILE_ROWS, &begin, &end);
    job->shared[w->id] = INT_MAX;
    if (begin < end)
        job->shared[w->id] = cuda_shared_columns(job->from->type, end - begin, job->to->cols, native_row(job, begin));
}

/* The layout is that of the groups that all rows have. */
static void choose_layout(const loader *l, pack_job *job) {
    int shared = INT_MAX;
    team_run(l->team, compare_worker, job);
    for (int i = 0; i < team_size(l->team); i++) shared = job->shared[i] < shared ? job->shared[i] : shared;
    *job->to = packed_shape(job->from, shared);
    job->tile_row_bytes = packed_bytes(job->to, TILE_ROWS);
    LLMQ_ASSERT(job->tile_row_bytes > 0);
}

static void pack_worker(const llmq_worker *w, void *arg) {
    pack_job *job = arg;
    int64_t begin, end;
    worker_range(w, job->n_rows, TILE_ROWS, &begin, &end);
    job->status[w->id] = LLMQ_OK;
    if (begin == end) return;
    job->status[w->id] =
        cuda_pack(job->from->type, job->to->group, end - begin, job->to->cols, native_row(job, job->first + begin),
                  job->packed + (size_t)(begin / TILE_ROWS) * job->tile_row_bytes, &job->err[w->id]);
}

static llmq_status pack_slab(const loader *l, pack_job *job, llmq_err *err) {
    team_run(l->team, pack_worker, job);
    for (int i = 0; i < team_size(l->team); i++)
        if (job->status[i] != LLMQ_OK)
            return llmq_fail(err, job->status[i], "%s: %s", job->from->name, job->err[i].msg);
    return LLMQ_OK;
}

static llmq_status send_slabs(const loader *l, pack_job *job, llmq_err *err) {
    const int64_t most = (int64_t)(STAGING_BYTES / job->tile_row_bytes) * TILE_ROWS, rows = job->to->rows;
    if (most == 0)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: rows of %lld columns are too long for the GPU; use --device cpu",
                         job->from->name, (long long)job->to->cols);
    for (int64_t at = 0; at < rows; at += most) {
        void *buffer;
        LLMQ_TRY(gpu_staging_next(l->staging, &buffer, err));
        job->packed = buffer;
        job->first = at;
        job->n_rows = rows - at < most ? rows - at : most;
        LLMQ_TRY(pack_slab(l, job, err));
        uint8_t *to = (uint8_t *)job->to->packed + (size_t)(at / TILE_ROWS) * job->tile_row_bytes;
        LLMQ_TRY(gpu_staging_send(l->staging, to, packed_bytes(job->to, job->n_rows), err));
    }
    return LLMQ_OK;
}

static llmq_status upload_matrix(const loader *l, const char *what, const llmq_device_matrix *from, cuda_matrix *out,
                                 llmq_err *err) {
    *out = (cuda_matrix){.rows = tensor_rows(from->w), .cols = tensor_cols(from->w)};
    pack_job *job = mem_zalloc(1, sizeof *job);
    if (!job) return mem_error(err, sizeof *job, "packing weights for the GPU");
    *job = (pack_job){.from = from->w, .to = out};
    llmq_status status = l->d->load(l->d->user, from->w, err);
    if (status == LLMQ_OK) choose_layout(l, job);
    if (status == LLMQ_OK) status = gpu_alloc(what, packed_bytes(out, out->rows), (void **)&out->packed, err);
    if (status == LLMQ_OK) status = send_slabs(l, job, err);
    mem_free(job);
    if (status != LLMQ_OK) return status;
    gpu_seal(out->packed);
    l->d->release(l->d->user, from->w);
    return upload_vector("bias", from->bias, out->rows, (float **)&out->bias, err);
}

static llmq_status upload_layer(const loader *l, const llmq_device_layer *from, gpu_layer *to, llmq_err *err) {
    const llmq_device_desc *d = l->d;
    const struct {
        const char *what;
        const llmq_device_matrix *from;
        cuda_matrix *to;
    } matrices[] = {{"q", &from->q, &to->q},         {"k", &from->k, &to->k},          {"v", &from->v, &to->v},
                    {"o", &from->o, &to->o},         {"gate", &from->gate, &to->gate}, {"up", &from->up, &to->up},
                    {"down", &from->down, &to->down}};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        LLMQ_TRY(upload_matrix(l, matrices[i].what, matrices[i].from, matrices[i].to, err));
    LLMQ_TRY(upload_vector("norm", from->attn_norm, d->n_embd, &to->attn_norm, err));
    LLMQ_TRY(upload_vector("norm", from->ffn_norm, d->n_embd, &to->ffn_norm, err));
    LLMQ_TRY(upload_vector("norm", from->q_norm, d->head_dim, &to->q_norm, err));
    return upload_vector("norm", from->k_norm, d->head_dim, &to->k_norm, err);
}

static void drop_matrix(cuda_matrix *w) {
    gpu_free((void *)w->packed);
    gpu_free((void *)w->bias);
}

void gpu_model_destroy(llmq_device_model *m) {
    if (!m) return;
    gpu_use(m->device);
    for (int64_t l = 0; m->layers && l < m->d.n_layer; l++) {
        gpu_layer *layer = &m->layers[l];
        cuda_matrix *matrices[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
        float *norms[] = {layer->attn_norm, layer->ffn_norm, layer->q_norm, layer->k_norm};
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) drop_matrix(matrices[i]);
        for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) gpu_free(norms[i]);
    }
    drop_matrix(&m->head);
    if (!m->tied) drop_matrix(&m->embd);
    gpu_free(m->output_norm);
    for (int i = 0; m->pools && i < 2; i++) gpu_pool_clear(&m->pools[i]);
    mem_free(m->pools);
    mem_free(m->layers);
    mem_free(m);
}

llmq_status gpu_model_check(const llmq_device_desc *d, llmq_err *err) {
    if (d->head_dim % 8 || d->head_dim > 256 || d->n_rot % 2 || d->n_rot > d->head_dim)
        return llmq_fail(
            err, LLMQ_E_UNSUPPORTED,
            "heads of %lld dimensions: the GPU's attention takes multiples of 8 up to 256; use --device cpu",
            (long long)d->head_dim);
    if (d->n_vocab > INT32_MAX || d->n_ff > INT32_MAX)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "a matrix of more than 2^31 rows; use --device cpu");
    return LLMQ_OK;
}

static llmq_status upload_weights(const loader *from, llmq_device_model *m, llmq_err *err) {
    const llmq_device_desc *d = from->d;
    for (int64_t l = 0; l < d->n_layer; l++) LLMQ_TRY(upload_layer(from, &d->layers[l], &m->layers[l], err));
    LLMQ_TRY(upload_vector("norm", d->output_norm, d->n_embd, &m->output_norm, err));
    LLMQ_TRY(upload_matrix(from, "head", &(llmq_device_matrix){.w = d->head}, &m->head, err));
    m->tied = d->head == d->embd;
    if (m->tied)
        m->embd = m->head;
    else if (d->embd)
        LLMQ_TRY(upload_matrix(from, "embedding", &(llmq_device_matrix){.w = d->embd}, &m->embd, err));
    return gpu_staging_finish(from->staging, err);
}

cuda_kv gpu_kv_of(const llmq_device_desc *d, bool q8) {
    return (cuda_kv){.n_head_kv = (int)d->n_head_kv, .head_dim = (int)d->head_dim, .q8 = q8};
}

static size_t page_bytes(const llmq_device_desc *d, bool q8) {
    const cuda_kv kv = gpu_kv_of(d, q8);
    return 2 * cuda_kv_bytes(&kv) * (size_t)d->n_layer;
}

static llmq_status upload_model(const llmq_device_desc *d, llmq_device_model *m, llmq_err *err) {
    loader from = {.d = d};
    m->layers = mem_zalloc((size_t)d->n_layer, sizeof *m->layers);
    m->pools = mem_zalloc(2, sizeof *m->pools);
    for (int i = 0; m->pools && i < 2; i++) gpu_pool_init(&m->pools[i], page_bytes(d, i == 1));
    if (!m->layers || !m->pools) return mem_error(err, (size_t)d->n_layer * sizeof *m->layers, "the layers");
    llmq_status status = team_create(d->n_threads, &from.team, err);
    if (status == LLMQ_OK) status = gpu_staging_create(STAGING_BYTES, &from.staging, err);
    if (status == LLMQ_OK) status = upload_weights(&from, m, err);
    gpu_staging_destroy(from.staging);
    if (from.team) team_destroy(from.team);
    return status;
}

llmq_status gpu_model_create(const llmq_device_desc *d, llmq_device_model **out, llmq_err *err) {
    *out = NULL;
    LLMQ_TRY(gpu_model_check(d, err));
    llmq_device_model *m = mem_zalloc(1, sizeof *m);
    if (!m) return mem_error(err, sizeof *m, "a model");
    m->device = gpu_current();
    m->d = *d;
    llmq_status status = upload_model(d, m, err);
    m->d.layers = NULL, m->d.embd = NULL, m->d.head = NULL, m->d.output_norm = NULL, m->d.user = NULL;
    if (status == LLMQ_OK)
        *out = m;
    else
        gpu_model_destroy(m);
    return status;
}

/* ---- sizes */

size_t gpu_matrix_bytes(const llmq_tensor *t) {
    const cuda_matrix w = packed_shape(t, t->group);
    return size_align(packed_bytes(&w, w.rows), GPU_ALIGN);
}

size_t gpu_layer_bytes(const llmq_device_desc *d, const llmq_device_layer *l) {
    const llmq_tensor *matrices[] = {l->q.w, l->k.w, l->v.w, l->o.w, l->gate.w, l->up.w, l->down.w};
    size_t bytes = (size_t)(4 * d->n_embd + d->n_ff) * sizeof(float); /* norms and biases: about */
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) bytes += gpu_matrix_bytes(matrices[i]);
    return bytes;
}
