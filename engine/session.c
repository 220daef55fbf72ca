#include "engine/session.h"

#include <string.h>

#include "engine/batch.h"
#include "engine/speculate.h"

void llmq_session_params_default(llmq_session_params *params) {
    *params = (llmq_session_params){.kv_type = LLMQ_KV_F16};
}

llmq_status session_params_check(const llmq_model *model, const llmq_session_params *params, llmq_session_params *out,
                                 llmq_err *err) {
    const llmq_hparams *hp = &model->hp;
    llmq_session_params_default(out);
    if (params) *out = *params;
    if (!model->layers)
        return llmq_fail(err, LLMQ_E_ARG,
                         "%s was opened without its weights (vocab_only or no_weights); open it with them to run it",
                         model->info.path);
    if (!out->n_ctx) out->n_ctx = hp->n_ctx_train < SESSION_CTX_USUAL ? hp->n_ctx_train : SESSION_CTX_USUAL;
    if (!out->n_batch) out->n_batch = SESSION_BATCH_USUAL;
    if (out->n_ctx < 1 || out->n_ctx > 1 << 24)
        return llmq_fail(err, LLMQ_E_ARG, "--ctx %lld: must be 1 to %d", (long long)out->n_ctx, 1 << 24);
    if (out->n_batch < 1 || out->n_batch > 1 << 16)
        return llmq_fail(err, LLMQ_E_ARG, "n_batch %lld: must be 1 to %d", (long long)out->n_batch, 1 << 16);
    if (out->n_batch > out->n_ctx) out->n_batch = out->n_ctx;
    if (out->kv_type != LLMQ_KV_F16 && out->kv_type != LLMQ_KV_Q8_0 && out->kv_type != LLMQ_KV_F32)
        return llmq_fail(err, LLMQ_E_ARG, "--kv-type %d: must be f16, q8_0 or f32", (int)out->kv_type);
    if (out->kv_type == LLMQ_KV_Q8_0 && hp->head_dim % 32 != 0)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--kv-type q8_0 needs heads of a multiple of 32 dimensions; this model's have %lld: use f16",
                         (long long)hp->head_dim);
    if (out->n_ctx > hp->n_ctx_train)
        llmq_log(LLMQ_LOG_WARN, "--ctx %lld is more than the %lld tokens that the model was trained with",
                 (long long)out->n_ctx, (long long)hp->n_ctx_train);
    return LLMQ_OK;
}

llmq_status session_init(llmq_session *s, const llmq_model *model, llmq_team *team, llmq_forward *fwd,
                         const llmq_session_params *p, llmq_err *err) {
    s->model = model;
    s->team = team;
    s->fwd = fwd;
    s->n_ctx = p->n_ctx;
    s->tokens = mem_alloc((size_t)s->n_ctx, sizeof *s->tokens);
    s->logits = mem_alloc((size_t)model->hp.n_vocab, sizeof *s->logits);
    if (!s->tokens || !s->logits) return mem_error(err, (size_t)model->hp.n_vocab * sizeof *s->logits, "a session");
    LLMQ_TRY(sampler_create(model->hp.n_vocab, &s->sampler, err));
    return forward_cache_create(model, s->n_ctx, p->kv_type, &s->cache, err);
}

static llmq_status create_body(llmq_session *s, const llmq_model *model, const llmq_session_params *params,
                               llmq_err *err) {
    llmq_session_params p;
    LLMQ_TRY(session_params_check(model, params, &p, err));
    LLMQ_TRY(team_create(p.n_threads, &s->team, err));
    s->fwd = mem_zalloc(1, sizeof *s->fwd);
    if (!s->fwd) return mem_error(err, sizeof *s->fwd, "a session");
    LLMQ_TRY(session_init(s, model, s->team, s->fwd, &p, err));
    return forward_create(model, s->team, p.n_ctx, p.n_batch, SPEC_ROWS, s->fwd, err);
}

llmq_status llmq_session_create(llmq_model *model, const llmq_session_params *params, llmq_session **out,
                                llmq_err *err) {
    *out = NULL;
    llmq_session *s = mem_zalloc(1, sizeof *s);
    if (!s) return mem_error(err, sizeof *s, "a session");
    llmq_status status = create_body(s, model, params, err);
    if (status == LLMQ_OK)
        *out = s;
    else
        llmq_session_destroy(s);
    return status;
}

static size_t rows_bytes(const llmq_session *s) {
    return SESSION_LOGIT_ROWS * (size_t)s->model->hp.n_vocab * sizeof(float);
}

void session_clear(llmq_session *s) {
    speculation_destroy(s->spec);
    forward_cache_destroy(&s->cache);
    sampler_destroy(&s->sampler);
    if (s->logit_rows) mem_free_big(s->logit_rows, rows_bytes(s));
    mem_free(s->logits);
    mem_free(s->tokens);
}

void llmq_session_destroy(llmq_session *s) {
    if (!s || s->batch) return; /* a batch destroys its own */
    session_clear(s);
    if (s->fwd) forward_destroy(s->fwd);
    mem_free(s->fwd);
    if (s->team) team_destroy(s->team);
    mem_free(s);
}

int64_t llmq_session_n_ctx(const llmq_session *s) {
    return s->n_ctx;
}
int64_t llmq_session_n_past(const llmq_session *s) {
    return s->n_past;
}
int64_t llmq_session_kv_bytes(const llmq_session *s) {
    return (int64_t)s->cache.bytes;
}
llmq_status session_read(llmq_session *s, llmq_err *err) {
    if (!s->unread) return LLMQ_OK;
    LLMQ_TRY(forward_head(s->fwd, s->row, 1, s->logits, err));
    s->last = s->logits;
    s->unread = false;
    return LLMQ_OK;
}
const float *llmq_session_logits(const llmq_session *s) {
    llmq_session *mine = (llmq_session *)s; /* a caller sees no change */
    return session_read(mine, NULL) == LLMQ_OK ? s->last : NULL;
}
void llmq_session_set_sampler(llmq_session *s, const llmq_sampler_params *params) {
    sampler_set(&s->sampler, params);
}

/* ---- running ---- */

llmq_status session_check_tokens(const llmq_session *s, const int32_t *tokens, size_t n, int64_t n_past,
                                 llmq_err *err) {
    if (n == 0) return llmq_fail(err, LLMQ_E_ARG, "no tokens to run: the text is empty");
    if (n > (size_t)(s->n_ctx - n_past))
        return llmq_fail(err, LLMQ_E_CONTEXT,
                         "the context is full: %lld tokens are in it and %zu more do not fit into %lld; give a larger "
                         "--ctx (the model was trained with %lld) or a shorter text",
                         (long long)n_past, n, (long long)s->n_ctx, (long long)s->model->hp.n_ctx_train);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->model->hp.n_vocab)
            return llmq_fail(
                err, LLMQ_E_ARG,
                "token %d at position %zu is outside the model's vocabulary of %lld; is the tokenizer this "
                "model's own?",
                (int)tokens[i], i, (long long)s->model->hp.n_vocab);
    return LLMQ_OK;
}

void session_forget_next(llmq_session *s) {
    s->has_next = false;
    if (s->spec) s->spec->ahead = 0;
}

/* After session_check_tokens. */
static llmq_status run(llmq_session *s, const int32_t *tokens, int64_t n, int64_t n_out, float *logits, llmq_err *err) {
    session_forget_next(s);
    s->last = NULL;
    s->unread = false;
    LLMQ_TRY(batch_read(s->batch, err));
    LLMQ_TRY(forward_run(s->fwd, &s->cache, tokens, n, s->n_past, n_out, logits, err));
    memcpy(s->tokens + s->n_past, tokens, (size_t)n * sizeof *tokens);
    s->n_past += n;
    return LLMQ_OK;
}

llmq_status session_run(llmq_session *s, const int32_t *tokens, int64_t n, int64_t n_out, float *logits,
                        llmq_err *err) {
    LLMQ_ASSERT(n <= s->fwd->n_batch);
    LLMQ_TRY(session_check_tokens(s, tokens, (size_t)n, s->n_past, err));
    return run(s, tokens, n, n_out, logits, err);
}

llmq_status session_need_rows(llmq_session *s, llmq_err *err) {
    if (!s->logit_rows) s->logit_rows = mem_alloc_big(rows_bytes(s));
    return s->logit_rows ? LLMQ_OK : mem_error(err, rows_bytes(s), "logits");
}

llmq_status llmq_session_append(llmq_session *s, const int32_t *tokens, size_t n, llmq_err *err) {
    LLMQ_TRY(session_check_tokens(s, tokens, n, s->n_past, err));
    int64_t n_all = (int64_t)n, n_batch = s->fwd->n_batch;
    for (int64_t at = 0; at < n_all; at += n_batch) {
        bool last = n_all - at <= n_batch;
        LLMQ_TRY(run(s, tokens + at, last ? n_all - at : n_batch, last ? 1 : 0, last ? s->logits : NULL, err));
    }
    s->last = s->logits;
    return LLMQ_OK;
}

llmq_status llmq_session_sync(llmq_session *s, const int32_t *tokens, size_t n, llmq_err *err) {
    LLMQ_TRY(session_check_tokens(s, tokens, n, 0, err));
    int64_t keep = 0, n_all = (int64_t)n;
    while (keep < s->n_past && keep < n_all - 1 && s->tokens[keep] == tokens[keep]) keep++;
    llmq_session_truncate(s, keep);
    if (s->batch) LLMQ_TRY(batch_share_prefix(s, tokens, n_all - 1, err));
    return llmq_session_append(s, tokens + s->n_past, (size_t)(n_all - s->n_past), err);
}

void llmq_session_truncate(llmq_session *s, int64_t n_keep) {
    session_forget_next(s);
    if (n_keep < 0) n_keep = 0;
    if (n_keep >= s->n_past) return;
    s->n_past = n_keep;
    s->last = NULL;
    s->unread = false;
}

llmq_status llmq_session_append_all(llmq_session *s, const int32_t *tokens, size_t n, size_t from, llmq_logits_fn *fn,
                                    void *user, llmq_err *err) {
    LLMQ_TRY(session_check_tokens(s, tokens, n, s->n_past, err));
    LLMQ_TRY(session_need_rows(s, err));
    int64_t n_all = (int64_t)n, first = from < n ? (int64_t)from : n_all - 1, n_vocab = s->model->hp.n_vocab;
    for (int64_t at = 0; at < n_all; at += s->fwd->n_batch) {
        int64_t end = at + s->fwd->n_batch < n_all ? at + s->fwd->n_batch : n_all, begin = first > at ? first : at;
        int64_t n_out = begin < end ? end - begin : 0;
        LLMQ_TRY(run(s, tokens + at, end - at, n_out, NULL, err));
        for (int64_t row = 0; row < n_out; row += SESSION_LOGIT_ROWS) {
            int64_t n_rows = n_out - row < SESSION_LOGIT_ROWS ? n_out - row : SESSION_LOGIT_ROWS;
            LLMQ_TRY(forward_head(s->fwd, row, n_rows, s->logit_rows, err));
            s->last = s->logit_rows + (n_rows - 1) * n_vocab;
            for (int64_t i = 0; i < n_rows && from < n; i++)
                fn(user, (size_t)(begin + row + i), s->logit_rows + i * n_vocab);
        }
    }
    return LLMQ_OK;
}

llmq_status session_step(llmq_session *s, int32_t token, llmq_err *err) {
    if (!session_draws_there(s)) return llmq_session_append(s, &token, 1, err);
    LLMQ_TRY(session_run(s, &token, 1, 1, NULL, err));
    s->unread = true;
    s->row = 0;
    return LLMQ_OK;
}

llmq_status session_take_drawn(llmq_session *s, int32_t drawn, int32_t *token_out, llmq_err *err) {
    if (drawn == LLMQ_DEVICE_TOO_MANY) {
        LLMQ_TRY(session_read(s, err));
        return sampler_sample(&s->sampler, s->last, s->tokens, s->n_past, token_out, err);
    }
    LLMQ_TRY(sampler_drew(&s->sampler, drawn, err));
    *token_out = drawn;
    return LLMQ_OK;
}

llmq_status session_draw(llmq_session *s, int32_t *token_out, llmq_err *err) {
    if (s->unread) {
        llmq_device_draw draw = sampler_on_device(&s->sampler, s->tokens, s->n_past);
        int32_t drawn;
        LLMQ_TRY(forward_sample(s->fwd, s->row, 1, &draw, &drawn, err));
        return session_take_drawn(s, drawn, token_out, err);
    }
    if (!s->last)
        return llmq_fail(err, LLMQ_E_ARG,
                         "nothing has been run since the session was made or truncated; run tokens before sampling");
    return sampler_sample(&s->sampler, s->last, s->tokens, s->n_past, token_out, err);
}

llmq_status llmq_session_sample(llmq_session *s, int32_t *token_out, llmq_err *err) {
    session_forget_next(s);
    return session_draw(s, token_out, err);
}
