/* What memory a job takes, and how it is cut to --max-ram. The sums follow the allocations of pipeline.c, calib_run.c
 * and quant/: a matrix is worked on alone, the matrices of its layer that are solved already wait for the next pass,
 * and the tokens' activations are there all the time. */
#include "engine/pipeline.h"
#include "quant/hessian.h"

#define SLACK ((size_t)5 << 18) /* stacks, the allocator's own, small things: they differ by 0.3 MB from run to run */

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
    size_t ready = 0, most = p->params->awq ? transform_layer_bytes(p->ex, first, last) : 0;
    for (int site = 0; site < SITE_COUNT; site++) {
        for (size_t i = first; i < last; i++) {
            const llmq_tensor *t = &p->ex->tensors[i];
            if (arch_rule(p->model->arch, p->ex->entries[i].role)->site != (llmq_site_id)site) continue;
            size_t rows = (size_t)tensor_rows(t), cols = (size_t)tensor_cols(t), floats = rows * cols * sizeof(float);
            size_t in_pass = pipeline_calibrates(p) ? floats / 2 : 0; /* bf16, or the blocks of a type with kernels */
            if (pipeline_is_solved(p, i)) {
                size_t q = 0, packed = (size_t)p->result->rows[i].bytes;
                const llmq_type_info *grid = outputs_grid(&p->spec, p->ex, i, 0);
                if (in_pass) in_pass = rows * (size_t)type_row_bytes(pipeline_pass_type(p, grid), (int64_t)cols);
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

/* ---- the parts of a job, one after the other */

/* AWQ's own run over some of the tokens works in the other one's buffers. */
static llmq_calib scales_calib(const pipeline *p) {
    return (llmq_calib){.ctx = p->calib.ctx, .n_windows = transform_tokens(&p->calib) / p->calib.ctx};
}

static llmq_calib_need scales_need(const pipeline *p) {
    const llmq_calib part = scales_calib(p);
    return p->params->awq ? calib_run_need(p->model, &part, 0, team_size(p->team)) : (llmq_calib_need){0};
}

/* mapped: what there is of every token lies in the journal's file. */
static size_t layers_bytes(const pipeline *p, int64_t chunk, bool mapped) {
    size_t bytes = matrices_bytes(p) + pipeline_gram_bytes(p);
    if (!pipeline_calibrates(p)) return bytes;
    llmq_calib_need need = calib_run_need(p->model, &p->calib, chunk, team_size(p->team)), scales = scales_need(p);
    bytes += need.chunk + need.bad + scales.bad;
    return mapped ? bytes : bytes + need.hidden + need.mid + scales.hidden + scales.mid;
}

static size_t choice_bytes(pipeline *p, int64_t chunk) {
    if (!pipeline_has_target(p)) return 0;
    llmq_sensitivity_job job = pipeline_sensitivity_job(p);
    job.chunk = chunk;
    return sensitivity_bytes(&job);
}

static size_t self_bytes(const pipeline *p) {
    if (p->self_tokens <= 0) return 0;
    return p->model_bytes + calib_self_bytes(p->model, p->calib.ctx, team_size(p->team));
}

/* What the calibration takes is gone by then. */
static size_t tune_bytes(pipeline *p, bool mapped) {
    llmq_tune_job job = pipeline_tune_job(p);
    llmq_tune_need need = p->params->tune ? p->tuner->need(&job) : (llmq_tune_need){0};
    return need.state + need.work + (mapped ? 0 : need.streams);
}

/* The most of what comes before the layers, of them, and of what comes behind. */
static int64_t peak_bytes(pipeline *p, int64_t chunk, int64_t choice_chunk, bool mapped) {
    size_t before = max_size(max_size(self_bytes(p), choice_bytes(p, choice_chunk)),
                             max_size(tune_bytes(p, mapped), pipeline_ranges_bytes(p)));
    return (int64_t)(p->base_bytes + SLACK + max_size(before, layers_bytes(p, chunk, mapped)));
}

/* ---- cutting */

static size_t calib_scratch_bytes(const pipeline *p, int64_t chunk) {
    if (!pipeline_calibrates(p)) return 0;
    llmq_calib_need need = calib_run_need(p->model, &p->calib, chunk, team_size(p->team)), scales = scales_need(p);
    return size_align(need.hidden, MEM_ALIGN) + size_align(need.mid, MEM_ALIGN) + size_align(scales.hidden, MEM_ALIGN) +
           scales.mid;
}

/* The tuning's streams come when the calibration's are gone. */
static size_t scratch_bytes(pipeline *p, int64_t chunk) {
    llmq_tune_job job = pipeline_tune_job(p);
    size_t streams = p->params->tune ? p->tuner->need(&job).streams : 0;
    return max_size(calib_scratch_bytes(p, chunk), streams);
}

static void set_plan(pipeline *p, int64_t chunk, bool mapped) {
    p->memory.chunk = chunk;
    p->mapped = mapped;
    p->scratch_bytes = mapped ? scratch_bytes(p, chunk) : 0;
    p->result->planned_peak_bytes = peak_bytes(p, chunk, p->choice_chunk, mapped);
    p->result->planned_disk_bytes =
        p->result->out_bytes + (int64_t)journal_file_bytes(pipeline_checkpoint_bytes(p), p->scratch_bytes);
}

static llmq_status refuse(const pipeline *p, llmq_err *err) {
    return llmq_fail(err, LLMQ_E_ARG,
                     "--max-ram: this job cannot do with %.1f MB; %.1f MB is the least, with %d threads",
                     (double)p->params->max_ram / 1e6, (double)p->result->planned_peak_bytes / 1e6, team_size(p->team));
}

llmq_status pipeline_plan_tuning(pipeline *p, llmq_err *err) {
    llmq_tune_job job = pipeline_tune_job(p);
    int64_t limit = p->params->max_ram > 0 ? p->params->max_ram : mem_machine_bytes(),
            room = limit - (int64_t)(p->base_bytes + SLACK);
    if (limit <= 0) return p->tuner->plan(&job, SIZE_MAX, &p->tune_plan, err);
    return p->tuner->plan(&job, room > 0 ? (size_t)room : 0, &p->tune_plan, err);
}

llmq_status pipeline_budget_before(pipeline *p, llmq_err *err) {
    int64_t limit = p->params->max_ram, chunk, fixed = (int64_t)(p->base_bytes + SLACK);
    if (limit <= 0 || p->calib.n_windows <= 0) return LLMQ_OK;
    if (p->params->tune) (void)pipeline_plan_tuning(p, NULL); /* for the least; what is wrong is told later */
    size_t first = max_size(self_bytes(p), pipeline_ranges_bytes(p));
    bool fits = fixed + (int64_t)max_size(first, choice_bytes(p, 0)) <= limit;
    for (int halvings = 0; !fits && (chunk = calib_run_chunk(&p->calib, halvings)) > 0; halvings++) {
        p->choice_chunk = chunk;
        p->result->planned_peak_bytes = peak_bytes(p, chunk, chunk, true);
        fits = fixed + (int64_t)max_size(first, choice_bytes(p, chunk)) <= limit;
    }
    return fits ? LLMQ_OK : refuse(p, err);
}

llmq_status pipeline_budget(pipeline *p, llmq_err *err) {
    int64_t limit = p->params->max_ram;
    bool fits = limit <= 0 || peak_bytes(p, 0, p->choice_chunk, false) <= limit;
    set_plan(p, 0, false);
    if (!fits && pipeline_needs_text(p)) {
        int64_t chunk;
        for (int halvings = 0; !fits && (chunk = calib_run_chunk(&p->calib, halvings)) > 0; halvings++) {
            set_plan(p, chunk, true);
            fits = p->result->planned_peak_bytes <= limit;
        }
    }
    return fits ? LLMQ_OK : refuse(p, err);
}

/* The next `bytes` of the journal's room. */
static void *take(uint8_t **at, size_t bytes) {
    void *p = *at;
    *at += size_align(bytes, MEM_ALIGN);
    return p;
}

llmq_status pipeline_take_scratch(pipeline *p, llmq_err *err) {
    if (!p->scratch_bytes) return LLMQ_OK;
    llmq_calib_need need = calib_run_need(p->model, &p->calib, p->memory.chunk, team_size(p->team)),
                    scales = scales_need(p);
    LLMQ_TRY(journal_scratch(p->resume.journal, p->scratch_bytes, &p->scratch, err));
    if (!pipeline_calibrates(p)) return LLMQ_OK;
    uint8_t *at = p->scratch;
    p->memory.hidden = take(&at, need.hidden);
    p->memory.mid = take(&at, need.mid);
    if (!p->params->awq) return LLMQ_OK;
    p->scales_memory.hidden = take(&at, scales.hidden);
    p->scales_memory.mid = take(&at, scales.mid);
    return LLMQ_OK;
}
