/* Perplexity of a text, and with a base model the distance of one model's predictions from the other's.
 *
 * Rule of llama.cpp's llama-perplexity: the encoded text is cut into windows of n_ctx tokens; each starts from an empty
 * cache, with its first token replaced by BOS where the tokenizer adds one; positions n_ctx/2 .. n_ctx-2 are scored by
 * the probability of the token after them. ppl = exp(mean nll); its standard error is ppl * sd(nll) / sqrt(n - 1)
 * (delta method). With `full` all positions 0 .. n_ctx-2 are scored.
 *
 * Both models run on the same windows, so differences are paired: the standard error of ppl - base_ppl comes from the
 * tokens' z_i = ppl * (nll_i - mean) - base_ppl * (base_nll_i - base_mean). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "engine/eval.h"
#include "engine/session.h"

typedef struct ppl_job {
    llmq_session *session, *base;             /* base NULL: none */
    int64_t n_ctx, first, n_chunks, n_scored; /* positions scored in a window */
    int32_t *window;                          /* [n_ctx] */
    double *nll, *base_nll, *kl;              /* [n_chunks * n_scored]; the last two only with a base */
    uint8_t *same;                            /* top-1 agreement */
    int64_t done;                             /* tokens scored so far */
    const llmq_ppl_params *params;
    double start;
} ppl_job;

void llmq_ppl_params_default(llmq_ppl_params *params) {
    *params = (llmq_ppl_params){.n_ctx = 512};
}

/* exp(x) for x <= 0 to 2 ulp, without branches so that compilers vectorize the loops over a vocabulary: x = k ln2 + r,
 * |r| <= ln2/2, exp(r) by a polynomial. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer in the low bits */
    float k = shifted - 12582912.0f;
    float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * f32_from_bits((f32_bits(shifted) - 0x4b400000u + 127u) << 23);
}

enum { SUM_BLOCK = 512 }; /* floats are summed in float over this many, then in double */

static int64_t best_token(const float *l, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (l[i] > l[best]) best = i;
    return best;
}

/* log of the sum of exp(l), given the largest. */
static double log_sum_exp(const float *l, int64_t n, float max) {
    double total = 0;
    for (int64_t at = 0; at < n; at += SUM_BLOCK) {
        int64_t end = at + SUM_BLOCK < n ? at + SUM_BLOCK : n;
        float part[16] = {0};
        int64_t i = at;
        for (; i + 16 <= end; i += 16)
            for (int j = 0; j < 16; j++) part[j] += exp_negative(l[i + j] - max);
        for (; i < end; i++) part[0] += exp_negative(l[i] - max);
        for (int j = 0; j < 16; j++) total += (double)part[j];
    }
    return (double)max + log(total);
}

/* sum p (log p - log q) with p of the base's logits b, q of l; lse: their log_sum_exp. */
static double kl_divergence(const float *b, double b_lse, const float *l, double l_lse, int64_t n) {
    double total = 0;
    float shift = (float)(l_lse - b_lse), b_max = (float)b_lse;
    for (int64_t at = 0; at < n; at += SUM_BLOCK) {
        int64_t end = at + SUM_BLOCK < n ? at + SUM_BLOCK : n;
        float part[16] = {0};
        int64_t i = at;
        for (; i + 16 <= end; i += 16)
            for (int j = 0; j < 16; j++) part[j] += exp_negative(b[i + j] - b_max) * (b[i + j] - l[i + j] + shift);
        for (; i < end; i++) part[0] += exp_negative(b[i] - b_max) * (b[i] - l[i] + shift);
        for (int j = 0; j < 16; j++) total += (double)part[j];
    }
    return total > 0 ? total : 0; /* rounding may leave a tiny negative */
}

double eval_kl(const float *base, const float *logits, int64_t n) {
    double b_lse = log_sum_exp(base, n, base[best_token(base, n)]);
    return kl_divergence(base, b_lse, logits, log_sum_exp(logits, n, logits[best_token(logits, n)]), n);
}

typedef struct score_block {
    const ppl_job *job;
    int64_t position, n_rows; /* in the window; rows are positions position.. */
} score_block;

static void score_rows(const llmq_worker *w, void *arg) {
    const score_block *block = arg;
    const ppl_job *job = block->job;
    int64_t n_vocab = job->session->model->hp.n_vocab, begin, end;
    worker_range(w, block->n_rows, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *l = job->session->logit_rows + i * n_vocab;
        int32_t target = job->window[block->position + i + 1];
        int64_t top = best_token(l, n_vocab), at = job->done + i;
        double lse = log_sum_exp(l, n_vocab, l[top]);
        job->nll[at] = lse - (double)l[target];
        if (!job->base) continue;
        const float *b = job->base->logit_rows + i * n_vocab;
        int64_t base_top = best_token(b, n_vocab);
        double base_lse = log_sum_exp(b, n_vocab, b[base_top]);
        job->base_nll[at] = base_lse - (double)b[target];
        job->kl[at] = kl_divergence(b, base_lse, l, lse, n_vocab);
        job->same[at] = top == base_top;
    }
}

static llmq_status report_progress(const ppl_job *job, double chunks_done, llmq_err *err) {
    if (!job->params->progress) return LLMQ_OK;
    double spent = time_seconds() - job->start, total = (double)job->n_chunks;
    double left = chunks_done > 0 ? spent / chunks_done * (total - chunks_done) : -1;
    if (job->params->progress(job->params->user, chunks_done, total, "perplexity", left)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_INTERRUPTED, "interrupted");
}

static llmq_status score_window(ppl_job *job, int64_t chunk, llmq_err *err) {
    llmq_session *sessions[2] = {job->session, job->base};
    int n_sessions = job->base ? 2 : 1;
    int64_t n_batch = job->session->fwd->n_batch, n_scored_end = job->n_ctx - 1;
    for (int i = 0; i < n_sessions; i++) llmq_session_truncate(sessions[i], 0);
    for (int64_t at = 0; at < job->n_ctx; at += n_batch) {
        int64_t end = at + n_batch < job->n_ctx ? at + n_batch : job->n_ctx, begin = job->first > at ? job->first : at;
        int64_t n_out = begin < end ? end - begin : 0, n_rows = end < n_scored_end ? n_out : n_out - 1;
        for (int i = 0; i < n_sessions; i++)
            LLMQ_TRY(session_run(sessions[i], job->window + at, end - at, n_out, NULL, err));
        for (int64_t row = 0; row < n_rows; row += SESSION_LOGIT_ROWS) {
            int64_t n = n_rows - row < SESSION_LOGIT_ROWS ? n_rows - row : SESSION_LOGIT_ROWS;
            for (int i = 0; i < n_sessions; i++)
                LLMQ_TRY(forward_head(sessions[i]->fwd, row, n, sessions[i]->logit_rows, err));
            team_run(job->session->team, score_rows, &(score_block){job, begin + row, n});
            job->done += n;
        }
        LLMQ_TRY(report_progress(job, (double)chunk + (double)end / (double)job->n_ctx, err));
    }
    return LLMQ_OK;
}

/* ---- the figures ---- */

static double mean(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum / (double)n;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void finish_base(const ppl_job *job, double nll, llmq_ppl_result *out) {
    int64_t n = job->done, same = 0;
    double base_nll = mean(job->base_nll, n), z2 = 0;
    out->has_base = true;
    out->base_ppl = exp(base_nll);
    out->dppl = out->ppl - out->base_ppl;
    for (int64_t i = 0; i < n; i++) {
        double z = out->ppl * (job->nll[i] - nll) - out->base_ppl * (job->base_nll[i] - base_nll);
        z2 += z * z;
        same += job->same[i];
    }
    out->dppl_ci95 = n > 1 ? 1.959964 * sqrt(z2 / (double)n / (double)(n - 1)) : 0;
    out->top1 = (double)same / (double)n;
    out->kl_mean = mean(job->kl, n);
    qsort(job->kl, (size_t)n, sizeof *job->kl, compare_doubles);
    int64_t rank = (int64_t)ceil(0.99 * (double)n) - 1;
    out->kl_p99 = job->kl[rank < 0 ? 0 : rank];
}

static llmq_status finish(const ppl_job *job, llmq_ppl_result *out, llmq_err *err) {
    int64_t n = job->done;
    double nll = mean(job->nll, n), s2 = 0;
    for (int64_t i = 0; i < n; i++) s2 += (job->nll[i] - nll) * (job->nll[i] - nll);
    if (!isfinite(nll))
        return llmq_fail(
            err, LLMQ_E_NUMERIC,
            "%s: the model's logits are not finite; its weights are damaged: download or quantize it again",
            job->session->model->info.path);
    out->ppl = exp(nll);
    out->ppl_stderr = n > 1 ? out->ppl * sqrt(s2 / (double)n / (double)(n - 1)) : 0;
    out->tokens = n;
    out->chunks = job->n_chunks;
    if (job->base) finish_base(job, nll, out);
    return LLMQ_OK;
}

/* ---- the job ---- */

static llmq_status check_models(const llmq_model *model, const llmq_model *base, const llmq_ppl_params *p,
                                llmq_err *err) {
    if (p->n_ctx < 4 || p->n_ctx > 1 << 20)
        return llmq_fail(err, LLMQ_E_ARG, "--ctx %lld: must be 4 to %d", (long long)p->n_ctx, 1 << 20);
    if (p->n_chunks < 0)
        return llmq_fail(err, LLMQ_E_ARG, "--chunks %lld: must not be negative", (long long)p->n_chunks);
    if (base && base->hp.n_vocab != model->hp.n_vocab)
        return llmq_fail(err, LLMQ_E_ARG,
                         "%s has %lld tokens and %s %lld: --base needs a model with the same vocabulary",
                         model->info.path, (long long)model->hp.n_vocab, base->info.path, (long long)base->hp.n_vocab);
    return LLMQ_OK;
}

static llmq_status create_session(const ppl_job *job, llmq_model *model, llmq_session **out, llmq_err *err) {
    llmq_session_params p = {.n_ctx = job->n_ctx, .n_threads = job->params->n_threads, .kv_type = LLMQ_KV_F16};
    LLMQ_TRY(llmq_session_create(model, &p, out, err));
    return session_need_rows(*out, err);
}

static llmq_status create_job(ppl_job *job, llmq_model *model, llmq_model *base, llmq_err *err) {
    LLMQ_TRY(create_session(job, model, &job->session, err));
    if (base) LLMQ_TRY(create_session(job, base, &job->base, err));
    size_t n = (size_t)job->n_chunks * (size_t)job->n_scored;
    job->window = mem_alloc((size_t)job->n_ctx, sizeof *job->window);
    job->nll = mem_alloc(n, sizeof *job->nll);
    job->base_nll = mem_alloc(base ? n : 0, sizeof *job->base_nll);
    job->kl = mem_alloc(base ? n : 0, sizeof *job->kl);
    job->same = mem_alloc(base ? n : 0, 1);
    if (!job->window || !job->nll || !job->base_nll || !job->kl || !job->same)
        return mem_error(err, n * sizeof *job->nll, "perplexity");
    return LLMQ_OK;
}

static llmq_status plan_job(ppl_job *job, const llmq_model *model, const llmq_ppl_params *p, const int32_t *tokens,
                            size_t n_tokens, llmq_err *err) {
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || tokens[i] >= model->hp.n_vocab)
            return llmq_fail(
                err, LLMQ_E_ARG,
                "%s: the tokenizer gives token %d, outside the model's vocabulary of %lld; is it this model's own?",
                model->info.path, (int)tokens[i], (long long)model->hp.n_vocab);
    job->params = p;
    job->n_ctx = p->n_ctx;
    job->first = p->full ? 0 : p->n_ctx / 2;
    job->n_scored = p->n_ctx - 1 - job->first;
    job->n_chunks = (int64_t)n_tokens / p->n_ctx;
    if (job->n_chunks == 0)
        return llmq_fail(
            err, LLMQ_E_ARG,
            "the text has only %zu tokens, less than one window of %lld; give a longer text or a smaller --ctx",
            n_tokens, (long long)p->n_ctx);
    if (p->n_chunks > 0 && p->n_chunks < job->n_chunks) job->n_chunks = p->n_chunks;
    return LLMQ_OK;
}

llmq_status llmq_perplexity(llmq_model *model, llmq_model *base, const char *text, size_t len,
                            const llmq_ppl_params *params, llmq_ppl_result *out, llmq_err *err) {
    llmq_ppl_params defaults;
    llmq_ppl_params_default(&defaults);
    if (!params) params = &defaults;
    *out = (llmq_ppl_result){0};
    const llmq_tokenizer *tok;
    LLMQ_TRY(model_tokenizer(model, &tok, err));
    LLMQ_TRY(check_models(model, base, params, err));
    ppl_job job = {.start = time_seconds()};
    int32_t *tokens = NULL;
    size_t n_tokens = 0;
    llmq_status status = tokenizer_encode(tok, text, len, LLMQ_TOK_BOS, &tokens, &n_tokens, err);
    if (status != LLMQ_OK) return status;
    LLMQ_TRY_GOTO(plan_job(&job, model, params, tokens, n_tokens, err));
    LLMQ_TRY_GOTO(create_job(&job, model, base, err));
    job.start = time_seconds();
    for (int64_t chunk = 0; chunk < job.n_chunks; chunk++) {
        memcpy(job.window, tokens + chunk * job.n_ctx, (size_t)job.n_ctx * sizeof *tokens);
        if (tokenizer_adds_bos(tok)) job.window[0] = tokenizer_bos(tok);
        LLMQ_TRY_GOTO(score_window(&job, chunk, err));
    }
    status = finish(&job, out, err);
done:
    mem_free(tokens);
    mem_free(job.window);
    mem_free(job.nll);
    mem_free(job.base_nll);
    mem_free(job.kl);
    mem_free(job.same);
    llmq_session_destroy(job.session);
    llmq_session_destroy(job.base);
    return status;
}
