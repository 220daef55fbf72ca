/* Data-free grids for weights with heavy tails, after HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization"): not
 * the squared error of a block is made small but sum |x - value|^p with p < 2, which a few far weights do not dominate.
 *
 * Half-quadratic, in its multiplicative form: for the rests r of the grid so far, sum w r^2 with w = (r^2 + eps^2)^(p/2
 * - 1) touches the sum of |r|^p from above, so the best grid under these weights has a smaller one. Every type has the
 * search for that (type_fit with an importance), whatever its grids can express: scale alone, scale and offset, or the
 * coupled scales of a super-block. Codes are nearest levels throughout. The grid with the smallest sum is kept, plain
 * rounding's among them. */
#include <math.h>

#include "core/mem.h"
#include "quant/hessian.h"
#include "quant/methods/methods.h"

#define HQQ_P 0.7f
#define HQQ_ROUNDS 20
#define HQQ_EPS 0.1f /* of the root mean square of the rests: weights stay below EPS^(p - 2) */

typedef struct hqq_job {
    const llmq_quant_problem *p;
    const float *importance; /* [cols] or NULL */
    llmq_quantized *out;
    int64_t block_cols; /* of the longest block */
    float *scratch;     /* (workers, 2, block_cols) */
    uint8_t *codes;     /* (workers, block_cols) */
} hqq_job;

typedef struct hqq_block {
    const llmq_type_info *t;
    const float *x, *importance; /* [n]; importance or NULL */
    int64_t n;
    float *weight, *rest; /* [n] */
    uint8_t *codes;       /* [n] */
} hqq_block;

/* sum importance |r|^p of a block on a grid, and the weights that follow from its rests. */
static double block_loss(const hqq_block *b, const llmq_grid *grid) {
    double loss = 0, square = 0;
    type_codes(b->t, grid, b->x, b->n, b->codes);
    type_values(b->t, grid, b->codes, b->n, b->rest);
    for (int64_t i = 0; i < b->n; i++) {
        b->rest[i] -= b->x[i];
        square += (double)b->rest[i] * b->rest[i];
    }
    float mean = (float)(square / (double)b->n);
    if (!(mean > 0.0f) || !isfinite(mean)) return 0;
    for (int64_t i = 0; i < b->n; i++) {
        float r2 = b->rest[i] * b->rest[i] / mean, important = b->importance ? b->importance[i] : 1.0f;
        loss += important * powf(r2, HQQ_P / 2);
        b->weight[i] = important * powf(r2 + HQQ_EPS * HQQ_EPS, HQQ_P / 2 - 1);
    }
    return loss * pow(mean, HQQ_P / 2);
}

static void fit_block(const hqq_block *b, llmq_grid *grid) {
    llmq_grid next;
    type_fit(b->t, b->x, b->importance, b->n, grid);
    double best = block_loss(b, grid);
    for (int k = 0; k < HQQ_ROUNDS && best > 0; k++) {
        type_fit(b->t, b->x, b->weight, b->n, &next);
        double loss = block_loss(b, &next);
        if (!(loss < best)) break;
        best = loss;
        *grid = next;
    }
}

static void hqq_worker(const llmq_worker *worker, void *arg) {
    const hqq_job *job = arg;
    const llmq_quant_problem *p = job->p;
    int64_t n_blocks = type_blocks(p->type, p->cols), stride = job->block_cols, begin, end;
    hqq_block b = {.t = p->type, .codes = job->codes + worker->id * stride};
    b.weight = job->scratch + worker->id * 2 * stride;
    b.rest = b.weight + stride;
    worker_range(worker, p->rows * n_blocks, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t col = i % n_blocks * p->type->block_len;
        b.x = p->w + i / n_blocks * p->cols + col;
        b.importance = job->importance ? job->importance + col : NULL;
        b.n = type_block_cols(p->type, p->cols, i % n_blocks);
        fit_block(&b, &job->out->grids[i]);
    }
    quantized_settle(worker, job->out);
    rtn_round_blocks(p, begin, end, job->out);
}

static llmq_status hqq_solve(const llmq_quant_problem *p, llmq_quantized *out, llmq_quant_report *report,
                             llmq_err *err) {
    llmq_status status = LLMQ_OK;
    float *importance;
    *report = (llmq_quant_report){.error = -1, .rtn_error = -1};
    LLMQ_TRY(hessian_check_weights(p, err));
    LLMQ_TRY(method_importance(p, &importance, err));
    size_t n = (size_t)team_size(p->team);
    hqq_job job = {.p = p, .importance = importance, .out = out, .block_cols = type_block_cols(p->type, p->cols, 0)};
    job.scratch = mem_alloc(n * 2 * (size_t)job.block_cols, sizeof *job.scratch);
    job.codes = mem_alloc(n * (size_t)job.block_cols, 1);
    if (!job.scratch || !job.codes) {
        status = mem_error(err, n * 9 * (size_t)job.block_cols, "fitting grids");
        goto done;
    }
    team_run(p->team, hqq_worker, &job);
    status = hessian_errors(p, out, report, err);
done:
    mem_free(importance);
    mem_free(job.scratch);
    mem_free(job.codes);
    return status;
}

static double hqq_work(const llmq_quant_problem *p) {
    return (double)p->rows * (double)p->cols * HQQ_ROUNDS * WORK_FIT / team_size(p->team);
}

const llmq_method method_hqq = {.name = "hqq", .solve = hqq_solve, .work = hqq_work};
