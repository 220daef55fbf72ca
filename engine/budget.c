/* What memory a job takes, and how it is cut to --max-ram. The sums follow the allocations of pipeline.c, calib_run.c
 * and quant/: a matrix is worked on alone, the matrices of its layer that are solved already wait for the next pass,
 * and the tokens' activations are there all the time. */
#include "engine/pipeline.h"
#include "quant/hessian.h"

#define SLACK ((size_t)1 << 20) /* stacks, the allocator's own, small things */

static size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

/* What the method takes beside the matrix and its result (quant/hessian.c, quant/methods/gptq.c). */
static size_t method_bytes(const pipeline *p, size_t rows, size_t cols) {
    size_t n_workers = (size_t)team_size(p->team), lanes = 128,
           measured = rows < HESSIAN_ERROR_ROWS ? rows : HESSIAN_ERROR_ROWS;
    if (!p->method->needs_gram) return 0;
    size_t factor = cols * cols * sizeof(float), slabs = n_workers * cols * lanes * sizeof(float);
    return factor + slabs + 7 * measured * cols * sizeof(float);
}

static size_t quantized_bytes(const llmq_type_info *t, size_t rows, size_t cols) {
    return rows * cols + rows * (size_t)type_blocks(t, (int64_t)cols) * sizeof(llmq_grid);
}

/* The most that a layer's matrices take at once. */
static size_t layer_bytes(const pipeline *p, size_t first, size_t last) {
    size_t ready = 0, most = 0;
    for (int site = 0; site < SITE_COUNT; site++) {
        for (size_t i = first; i < last; i++) {
            const llmq_tensor *t = &p->ex->tensors[i];
            if (arch_rule(p->model->arch, p->ex->entries[i].role)->site != (llmq_site_id)site) continue;
            size_t rows = (size_t)tensor_rows(t), cols = (size_t)tensor_cols(t), floats = rows * cols * sizeof(float);
            size_t in_pass = pipeline_calibrates(p) ? floats / 2 : 0; /* bf16, or the blocks of a type with kernels */
            if (pipeline_is_solved(p, i)) {
                size_t q = 0, packed = (size_t)p->result->rows[i].bytes;
                const llmq_type_info *grid = outputs_grid(&p->spec, p->ex, i, 0);
                if (in_pass && pipeline_runs_packed(p, grid))
                    in_pass = rows * (size_t)type_row_bytes(grid->id, (int64_t)cols);
                for (size_t k = 0; (grid = outputs_grid(&p->spec, p->ex, i, k)) != NULL; k++)
                    q = max_size(q, quantized_bytes(grid, rows, cols));
                most = max_size(most, ready + floats + q + method_bytes(p, rows, cols));
                most = max_size(most, ready + q + max_size(packed, in_pass));
            }
            most = max_size(most, ready + 2 * in_pass); /* rows and their packed copy */
            ready += in_pass;
        }
    }
    return most;
}

/* Rows of the embedding or the head on their way (engine/export.c). */
static size_t copy_bytes(const llmq_tensor *t) {
    int64_t cols = tensor_cols(t), n = EXPORT_CHUNK_FLOATS / (cols ? cols : 1), rows = tensor_rows(t);
    return (size_t)((n < 1 ? 1 : n < rows ? n : rows) * type_row_bytes(t->type, cols));
}

static size_t matrices_bytes(const pipeline *p) {
    size_t most = 0;
    for (size_t i = 0, last; i < p->ex->n; i = last) {
        int layer = p->ex->entries[i].layer;
        if (layer < 0) most = max_size(most, copy_bytes(&p->ex->tensors[i]));
        for (last = i + 1; last < p->ex->n && p->ex->entries[last].layer == layer;) last++;
        if (layer >= 0) most = max_size(most, layer_bytes(p, i, last));
    }
    return most;
}

size_t pipeline_gram_bytes(const pipeline *p) {
    size_t most = 0;
    for (int site = 0; pipeline_calibrates(p) && site < SITE_COUNT; site++) {
        size_t cols = (size_t)calib_site_cols(&p->model->hp, (llmq_site_id)site), bytes;
        if (!size_mul(cols, cols, &bytes) || !size_mul(bytes, sizeof(float), &bytes)) return SIZE_MAX / 4;
        most = max_size(most, bytes);
    }
    return most;
}

/* With the chunk halved so often; mapped: the hidden states lie in the journal's file. */
static size_t peak_bytes(const pipeline *p, int64_t chunk, bool mapped) {
    size_t bytes = (size_t)mem_note_peak() + SLACK + matrices_bytes(p) + pipeline_gram_bytes(p);
    if (!pipeline_calibrates(p)) return bytes;
    llmq_calib_need need = calib_run_need(p->model, &p->calib, chunk, team_size(p->team));
    return bytes + need.rest + (mapped ? 0 : need.hidden + need.mid);
}

static void set_plan(pipeline *p, int64_t chunk, bool mapped) {
    size_t scratch = 0;
    if (mapped) {
        llmq_calib_need need = calib_run_need(p->model, &p->calib, chunk, team_size(p->team));
        scratch = size_align(need.hidden, MEM_ALIGN) + need.mid;
    }
    p->memory.chunk = chunk;
    p->scratch_bytes = scratch;
    p->result->planned_peak_bytes = (int64_t)peak_bytes(p, chunk, mapped);
    p->result->planned_disk_bytes =
        p->result->out_bytes + (int64_t)journal_file_bytes(pipeline_checkpoint_bytes(p), scratch);
}

llmq_status pipeline_budget(pipeline *p, llmq_err *err) {
    int64_t limit = p->params->max_ram;
    bool fits = limit <= 0 || (int64_t)peak_bytes(p, 0, false) <= limit;
    set_plan(p, 0, false);
    if (!fits && pipeline_calibrates(p)) {
        int64_t chunk;
        for (int halvings = 0; !fits && (chunk = calib_run_chunk(&p->calib, halvings)) > 0; halvings++) {
            set_plan(p, chunk, true);
            fits = p->result->planned_peak_bytes <= limit;
        }
    }
    if (fits) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG,
                     "--max-ram: this job cannot do with %.1f MB; %.1f MB is the least, with %d threads",
                     (double)limit / 1e6, (double)p->result->planned_peak_bytes / 1e6, team_size(p->team));
}

llmq_status pipeline_take_scratch(pipeline *p, llmq_err *err) {
    void *scratch;
    if (!p->scratch_bytes) return LLMQ_OK;
    llmq_calib_need need = calib_run_need(p->model, &p->calib, p->memory.chunk, team_size(p->team));
    LLMQ_TRY(journal_scratch(p->resume.journal, p->scratch_bytes, &scratch, err));
    p->memory.hidden = scratch;
    p->memory.mid = (uint8_t *)scratch + size_align(need.hidden, MEM_ALIGN);
    return LLMQ_OK;
}
