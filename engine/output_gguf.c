/* A GGUF file as an output: matrices packed in the file's order of rows. Beside Hugging Face folders of an integer
 * scheme, and in INT8 models, it holds the codes and scales of an integer grid: a minimum is -scale * zero rounded to
 * F16. */
#include <string.h>

#include "engine/output.h"
#include "types/affine.h"

typedef struct gguf_output {
    llmq_output base;
    llmq_gguf_writer *writer;
} gguf_output;

typedef struct pack_job {
    const llmq_export *ex;
    size_t index;
    const llmq_quantized *q; /* rows in the source's order */
    uint8_t *bytes;          /* in the file's */
} pack_job;

static void pack_worker(const llmq_worker *w, void *arg) {
    const pack_job *job = arg;
    const llmq_type_info *type = type_info(job->ex->tensors[job->index].type);
    int64_t row_bytes = type_row_bytes(type->id, job->q->cols), begin, end;
    worker_range(w, job->q->rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int64_t from = export_source_row(job->ex, job->index, r);
        if (job->q->type == type)
            quantized_pack_row(job->q, from, job->bytes + r * row_bytes);
        else
            quantized_pack_row_as(job->q, from, type, job->bytes + r * row_bytes);
    }
}

static llmq_status put(llmq_output *base, size_t index, const llmq_quantized *q, llmq_team *team, llmq_err *err) {
    gguf_output *o = (gguf_output *)base;
    const llmq_tensor *t = &o->base.ex->tensors[index];
    pack_job job = {.ex = o->base.ex, .index = index, .q = q, .bytes = mem_alloc((size_t)t->bytes, 1)};
    if (!job.bytes) return mem_error(err, (size_t)t->bytes, t->name);
    team_run(team, pack_worker, &job);
    llmq_status status = gguf_writer_put(o->writer, index, job.bytes, (size_t)t->bytes, 0, err);
    mem_free(job.bytes);
    return status;
}

static llmq_status put_bytes(void *to, size_t index, const void *data, size_t bytes, size_t offset, llmq_err *err) {
    return gguf_writer_put(to, index, data, bytes, offset, err);
}

static llmq_status put_plain(llmq_output *base, size_t index, const float *values, llmq_team *team, bool *exact_out,
                             export_tick_fn *tick, void *user, llmq_err *err) {
    export_sink sink = {.put = put_bytes, .to = ((gguf_output *)base)->writer, .tick = tick, .user = user};
    return export_write(base->ex, index, values, &sink, team, exact_out, err);
}

/* Tensor `index` in the source's order of rows, by mem_alloc. */
static llmq_status read_rows(gguf_output *o, size_t index, uint8_t **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    const llmq_export *ex = o->base.ex;
    const llmq_tensor *t = &ex->tensors[index];
    bool matrix = ex->entries[index].matrix;
    int64_t rows = matrix ? tensor_rows(t) : tensor_numel(t);
    size_t row_bytes = (size_t)(t->bytes / rows);
    uint8_t *file = mem_alloc((size_t)t->bytes, 1), *to = mem_alloc((size_t)t->bytes, 1);
    if (!file || !to) LLMQ_TRY_GOTO(mem_error(err, (size_t)t->bytes, t->name));
    LLMQ_TRY_GOTO(gguf_writer_get(o->writer, index, file, (size_t)t->bytes, 0, err));
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + (size_t)export_source_row(ex, index, r) * row_bytes, file + (size_t)r * row_bytes, row_bytes);
    *out = to;
    to = NULL;
done:
    mem_free(file);
    mem_free(to);
    return status;
}

/* Blocks of a row as the row of an integer grid that put packed into them: they all have its scale, and codes differ by
 * where levels begin. */
static void join_row(const llmq_type_info *type, const uint8_t *row, int64_t r, llmq_quantized *q) {
    int shift = (int)type->levels[0] - (int)q->type->levels[0];
    for (int64_t i = 0; i < type_blocks(type, q->cols); i++) {
        uint8_t *codes = q->codes + r * q->cols + i * type->block_len;
        llmq_grid grid;
        type->unpack(row + i * type->block_bytes, &grid, codes);
        for (int k = 0; k < type->block_len; k++) codes[k] = (uint8_t)(codes[k] + shift);
        q->grids[r].d = q->grids[r].scale[0] = grid.scale[0];
    }
}

static llmq_status get(llmq_output *base, size_t index, llmq_quantized **out, llmq_err *err) {
    const llmq_tensor *t = &base->ex->tensors[index];
    const llmq_type_info *type = type_info(t->type), *grid = base->grid;
    bool joined = grid && grid->group_len == TYPE_WHOLE_ROW && grid->form == GRID_SCALE;
    int64_t cols = tensor_cols(t), rows = tensor_rows(t), blocks = type_blocks(type, cols);
    uint8_t *bytes = NULL;
    LLMQ_TRY(quantized_create(joined ? grid : type, rows, cols, out, err));
    llmq_status status = read_rows((gguf_output *)base, index, &bytes, err);
    for (int64_t r = 0; status == LLMQ_OK && r < rows; r++) {
        const uint8_t *row = bytes + r * blocks * type->block_bytes;
        if (joined) join_row(type, row, r, *out);
        for (int64_t i = r * blocks; !joined && i < (r + 1) * blocks; i++)
            type->unpack(bytes + i * type->block_bytes, &(*out)->grids[i], (*out)->codes + i * type->block_len);
    }
    mem_free(bytes);
    if (status != LLMQ_OK) quantized_destroy(*out);
    return status;
}

static llmq_status get_plain(llmq_output *base, size_t index, llmq_tensor *out, llmq_err *err) {
    uint8_t *bytes = NULL;
    LLMQ_TRY(read_rows((gguf_output *)base, index, &bytes, err));
    *out = base->ex->tensors[index];
    out->data = bytes;
    return LLMQ_OK;
}

static llmq_status have(llmq_output *base, size_t index, llmq_err *err) {
    return gguf_writer_have(((gguf_output *)base)->writer, index, err);
}

static llmq_status sync_output(llmq_output *base, llmq_err *err) {
    return gguf_writer_sync(((gguf_output *)base)->writer, err);
}

static llmq_status finish(llmq_output *base, int64_t *bytes_out, llmq_err *err) {
    llmq_status status = gguf_writer_finish(((gguf_output *)base)->writer, bytes_out, err);
    mem_free(base);
    return status;
}

static void drop(llmq_output *base, bool keep) {
    gguf_writer_abort(((gguf_output *)base)->writer, keep);
    mem_free(base);
}

static const llmq_output_kind kind_gguf = {.name = "gguf",
                                           .put = put,
                                           .put_plain = put_plain,
                                           .get = get,
                                           .get_plain = get_plain,
                                           .have = have,
                                           .sync = sync_output,
                                           .finish = finish,
                                           .drop = drop};

llmq_status output_gguf_open(const llmq_outputs_spec *spec, const char *path, const llmq_export *ex, llmq_output **out,
                             llmq_err *err) {
    gguf_output *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, path);
    o->base = (llmq_output){.kind = &kind_gguf, .ex = ex};
    if (outputs_have_integer(spec))
        o->base.grid = type_affine(spec->integer.bits, spec->integer.group, spec->integer.sym);
    llmq_status status = (spec->resume ? gguf_writer_reopen : gguf_writer_open)(path, spec->force, ex->meta,
                                                                                ex->tensors, ex->n, &o->writer, err);
    if (status == LLMQ_OK)
        *out = &o->base;
    else
        mem_free(o);
    return status;
}
