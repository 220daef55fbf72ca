/* Plain rounding: the yardstick of every other method, and what a matrix gets when nothing better works. Needs no data.
 */
#include "core/mem.h"
#include "quant/methods/methods.h"

#include "quant/hessian.h"

typedef struct rtn_job {
    const llmq_quant_problem *p;
    const float *importance;
    llmq_quantized *out;
} rtn_job;

void rtn_fit_blocks(const llmq_quant_problem *p, const float *importance, int64_t begin, int64_t end,
                    llmq_quantized *out) {
    int64_t n_blocks = type_blocks(p->type, p->cols);
    for (int64_t i = begin; i < end; i++) {
        int64_t col = i % n_blocks * p->type->block_len;
        type_fit(p->type, p->w + i / n_blocks * p->cols + col, importance ? importance + col : NULL,
                 type_block_cols(p->type, p->cols, i % n_blocks), &out->grids[i]);
    }
}

void rtn_round_blocks(const llmq_quant_problem *p, int64_t begin, int64_t end, llmq_quantized *out) {
    int64_t n_blocks = type_blocks(p->type, p->cols);
    for (int64_t i = begin; i < end; i++) {
        int64_t at = i / n_blocks * p->cols + i % n_blocks * p->type->block_len;
        type_codes(p->type, &out->grids[i], p->w + at, type_block_cols(p->type, p->cols, i % n_blocks),
                   out->codes + at);
    }
}

void rtn_rows(const llmq_quant_problem *p, const float *importance, int64_t begin, int64_t end, llmq_quantized *out) {
    int64_t n_blocks = type_blocks(p->type, p->cols);
    rtn_fit_blocks(p, importance, begin * n_blocks, end * n_blocks, out);
    rtn_round_blocks(p, begin * n_blocks, end * n_blocks, out);
}

static void rtn_worker(const llmq_worker *worker, void *arg) {
    const rtn_job *job = arg;
    int64_t begin, end;
    worker_range(worker, job->p->rows * type_blocks(job->p->type, job->p->cols), 1, &begin, &end);
    rtn_fit_blocks(job->p, job->importance, begin, end, job->out);
    quantized_settle(worker, job->out);
    rtn_round_blocks(job->p, begin, end, job->out);
}

void rtn_matrix(const llmq_quant_problem *p, const float *importance, llmq_quantized *out) {
    rtn_job job = {p, importance, out};
    team_run(p->team, rtn_worker, &job);
}

llmq_status method_importance(const llmq_quant_problem *p, float **out, llmq_err *err) {
    *out = NULL;
    if (!p->weighted) return LLMQ_OK;
    float *importance = mem_alloc((size_t)p->cols, sizeof *importance);
    if (!importance) return mem_error(err, (size_t)p->cols * sizeof *importance, p->name);
    if (hessian_importance(p, importance))
        *out = importance;
    else
        mem_free(importance);
    return LLMQ_OK;
}

llmq_status rtn_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report, llmq_err *err) {
    float *importance;
    *report = (llmq_quant_report){.error = -1, .rtn_error = -1};
    LLMQ_TRY(hessian_check_weights(p, err));
    LLMQ_TRY(method_importance(p, &importance, err));
    rtn_matrix(p, importance, out);
    mem_free(importance);
    return hessian_errors(p, out, report, err);
}

const llmq_method method_rtn = {.name = "rtn", .solve = rtn_solve};
