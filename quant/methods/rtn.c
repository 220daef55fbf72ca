/* Plain rounding: the yardstick of every other method, and what a matrix gets when nothing better works. Needs no data.
 */
#include "quant/methods/methods.h"

#include "quant/hessian.h"

void rtn_rows(const llmq_quant_problem *p, const float *importance, int64_t begin, int64_t end, llmq_quantized *out) {
    const llmq_type_info *t = p->type;
    int64_t n_blocks = type_blocks(t, p->cols);
    for (int64_t r = begin; r < end; r++) {
        for (int64_t b = 0; b < n_blocks; b++) {
            const float *x = p->w + r * p->cols + b * t->block_len;
            uint8_t *codes = out->codes + r * p->cols + b * t->block_len;
            llmq_grid *grid = &out->grids[r * n_blocks + b];
            int64_t n = type_block_cols(t, p->cols, b);
            type_fit(t, x, importance ? importance + b * t->block_len : NULL, n, grid);
            type_codes(t, grid, x, n, codes);
        }
    }
}

typedef struct rtn_job {
    const llmq_quant_problem *p;
    const float *importance;
    llmq_quantized *out;
} rtn_job;

static void rtn_worker(const llmq_worker *worker, void *arg) {
    const rtn_job *job = arg;
    int64_t begin, end;
    worker_range(worker, job->p->rows, 1, &begin, &end);
    rtn_rows(job->p, job->importance, begin, end, job->out);
}

void rtn_matrix(const llmq_quant_problem *p, const float *importance, llmq_quantized *out) {
    rtn_job job = {p, importance, out};
    team_run(p->team, rtn_worker, &job);
}

static llmq_status rtn_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report,
                             llmq_err *err) {
    *report = (llmq_quant_report){.error = -1, .rtn_error = -1};
    LLMQ_TRY(hessian_check_weights(p, err));
    rtn_matrix(p, NULL, out);
    return hessian_errors(p, out, report, err);
}

const llmq_method method_rtn = {"rtn", false, false, rtn_solve};
