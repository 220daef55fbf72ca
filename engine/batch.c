#include "engine/batch.h"

#include <string.h>

#include "engine/speculate.h"

enum { SHARE_LEAST = 8 /* tokens that are worth copying */ };

static llmq_status create_body(llmq_batch *b, const llmq_session_params *params, llmq_err *err) {
    llmq_session_params p;
    LLMQ_TRY(session_params_check(b->model, params, &p, err));
    LLMQ_TRY(team_create(p.n_threads, &b->team, err));
    size_t n = (size_t)b->n_sessions, n_logits = n * (size_t)b->model->hp.n_vocab;
    b->sessions = mem_zalloc(n, sizeof *b->sessions);
    b->rows = mem_alloc(n, sizeof *b->rows);
    b->running = mem_alloc(n, sizeof *b->running);
    b->logits = mem_alloc(n_logits, sizeof *b->logits);
    b->draws = mem_alloc(n, sizeof *b->draws);
    b->drawn = mem_alloc(n, sizeof *b->drawn);
    if (!b->sessions || !b->rows || !b->running || !b->logits || !b->draws || !b->drawn)
        return mem_error(err, n_logits * sizeof *b->logits, "a batch");
    for (size_t i = 0; i < n; i++) {
        b->sessions[i].batch = b;
        LLMQ_TRY(session_init(&b->sessions[i], b->model, b->team, &b->fwd, &p, err));
    }
    return forward_create(b->model, b->team, p.n_ctx, p.n_batch, b->n_sessions > SPEC_ROWS ? b->n_sessions : SPEC_ROWS,
                          &b->fwd, err);
}

llmq_status llmq_batch_create(llmq_model *model, int64_t n_sessions, const llmq_session_params *params,
                              llmq_batch **out, llmq_err *err) {
    *out = NULL;
    if (n_sessions < 1 || n_sessions > LLMQ_BATCH_MAX)
        return llmq_fail(err, LLMQ_E_ARG, "a batch of %lld sessions: must be 1 to %d", (long long)n_sessions,
                         LLMQ_BATCH_MAX);
    llmq_batch *b = mem_zalloc(1, sizeof *b);
    if (!b) return mem_error(err, sizeof *b, "a batch");
    b->model = model;
    b->n_sessions = n_sessions;
    llmq_status status = create_body(b, params, err);
    if (status == LLMQ_OK)
        *out = b;
    else
        llmq_batch_destroy(b);
    return status;
}

void llmq_batch_destroy(llmq_batch *b) {
    if (!b) return;
    for (int64_t i = 0; b->sessions && i < b->n_sessions; i++) session_clear(&b->sessions[i]);
    mem_free(b->sessions);
    mem_free(b->rows);
    mem_free(b->running);
    mem_free(b->logits);
    mem_free(b->draws);
    mem_free(b->drawn);
    forward_destroy(&b->fwd);
    if (b->team) team_destroy(b->team);
    mem_free(b);
}

llmq_session *llmq_batch_session(llmq_batch *b, int64_t i) {
    return i >= 0 && i < b->n_sessions ? &b->sessions[i] : NULL;
}

/* ---- shared prefixes ---- */

typedef struct copy_job {
    const llmq_batch *batch;
    forward_cache *to;
    const forward_cache *from;
    int64_t pos, n;
} copy_job;

static void copy_worker(const llmq_worker *w, void *arg) {
    const copy_job *job = arg;
    for (int64_t l = 0; l < model_cpu_layers(job->batch->model); l++)
        job->batch->model->ops->kv_copy(w, &job->to->kv[l], &job->from->kv[l], job->pos, job->n);
}

/* The first n positions, of which s has s->n_past. */
static llmq_status share(llmq_session *s, const llmq_session *from, int64_t n, llmq_err *err) {
    const llmq_batch *b = s->batch;
    if (model_cpu_layers(b->model) > 0)
        team_run(b->team, copy_worker, &(copy_job){b, &s->cache, &from->cache, s->n_past, n - s->n_past});
    if (!b->model->on_device) return LLMQ_OK;
    return b->model->device->cache_share(b->fwd.on_device, s->cache.on_device, from->cache.on_device, n, err);
}

llmq_status batch_share_prefix(llmq_session *s, const int32_t *tokens, int64_t n, llmq_err *err) {
    llmq_batch *b = s->batch;
    int64_t best = s->n_past;
    llmq_session *from = NULL;
    for (int64_t i = 0; i < b->n_sessions; i++) {
        llmq_session *other = &b->sessions[i];
        int64_t common = 0;
        while (common < n && common < other->n_past && other->tokens[common] == tokens[common]) common++;
        if (other != s && common > best) best = common, from = other;
    }
    if (!from || best - s->n_past < SHARE_LEAST) return LLMQ_OK;
    const llmq_status status = share(s, from, best, err);
    if (status != LLMQ_OK) {
        llmq_session_truncate(s, 0);
        return status;
    }
    memcpy(s->tokens + s->n_past, tokens + s->n_past, (size_t)(best - s->n_past) * sizeof *tokens);
    s->n_past = best;
    s->last = NULL;
    return LLMQ_OK;
}

/* ---- passes ---- */

static llmq_status check_sessions(const llmq_batch *b, llmq_session *const *sessions, size_t n, llmq_err *err) {
    if (n < 1 || n > (size_t)b->n_sessions)
        return llmq_fail(err, LLMQ_E_ARG, "%zu sessions in a pass: must be 1 to %lld", n, (long long)b->n_sessions);
    for (size_t i = 0; i < n; i++) {
        if (!sessions[i] || sessions[i]->batch != b)
            return llmq_fail(err, LLMQ_E_ARG, "session %zu of the pass is not one of this batch", i);
        for (size_t j = 0; j < i; j++)
            if (sessions[j] == sessions[i])
                return llmq_fail(err, LLMQ_E_ARG, "session %zu of the pass is also its session %zu", i, j);
    }
    return LLMQ_OK;
}

static llmq_status check_token(const llmq_session *s, int32_t token, size_t i, llmq_err *err) {
    llmq_err e = {0};
    if (session_check_tokens(s, &token, 1, s->n_past, &e) == LLMQ_OK) return LLMQ_OK;
    return llmq_fail(err, e.status, "session %zu of the pass: %s", i, e.msg);
}

llmq_status batch_read(llmq_batch *b, llmq_err *err) {
    for (int64_t i = 0; b && i < b->n_sessions; i++) LLMQ_TRY(session_read(&b->sessions[i], err));
    return LLMQ_OK;
}

/* Runs b->rows[0..n) of these sessions, which are checked. Each keeps its own logits, or they stay on the device. */
static llmq_status run_rows(llmq_batch *b, llmq_session *const *sessions, size_t n, bool stay, llmq_err *err) {
    int64_t n_vocab = b->model->hp.n_vocab;
    float *logits = stay ? NULL : n == 1 ? sessions[0]->logits : b->logits;
    for (size_t i = 0; i < n; i++) sessions[i]->unread = false;
    LLMQ_TRY(batch_read(b, err));
    LLMQ_TRY(forward_rows(&b->fwd, b->rows, (int64_t)n, logits, err));
    for (size_t i = 0; i < n; i++) {
        llmq_session *s = sessions[i];
        session_forget_next(s);
        s->tokens[s->n_past++] = b->rows[i].token;
        if (!stay && n > 1) memcpy(s->logits, logits + (int64_t)i * n_vocab, (size_t)n_vocab * sizeof *s->logits);
        s->last = stay ? NULL : s->logits;
        s->unread = stay;
        s->row = (int64_t)i;
    }
    return LLMQ_OK;
}

/* Draws after the n rows that b->running has just run, on the device: to b->drawn. */
static llmq_status draw_there(llmq_batch *b, size_t n, llmq_err *err) {
    for (size_t i = 0; i < n; i++) {
        const llmq_session *s = b->running[i];
        b->draws[i] = sampler_on_device(&s->sampler, s->tokens, s->n_past);
    }
    return forward_sample(&b->fwd, 0, (int64_t)n, b->draws, b->drawn, err);
}

llmq_status llmq_batch_append(llmq_batch *b, llmq_session *const *sessions, const int32_t *tokens, size_t n,
                              llmq_err *err) {
    LLMQ_TRY(check_sessions(b, sessions, n, err));
    for (size_t i = 0; i < n; i++) {
        LLMQ_TRY(check_token(sessions[i], tokens[i], i, err));
        b->rows[i] = (forward_row){tokens[i], sessions[i]->n_past, &sessions[i]->cache};
    }
    return run_rows(b, sessions, n, false, err);
}

llmq_status llmq_batch_next(llmq_batch *b, llmq_session *const *sessions, int32_t *tokens_out, size_t n,
                            llmq_err *err) {
    LLMQ_TRY(check_sessions(b, sessions, n, err));
    for (size_t i = 0; i < n; i++) { /* all of them before any runs: an error loses no token */
        if (sessions[i]->has_next) LLMQ_TRY(check_token(sessions[i], sessions[i]->next, i, err));
        if (!sessions[i]->has_next && !sessions[i]->last && !sessions[i]->unread)
            return llmq_fail(err, LLMQ_E_ARG, "session %zu of the batch has no text yet; llmq_session_sync it first",
                             i);
    }
    size_t n_rows = 0;
    for (size_t i = 0; i < n; i++) {
        llmq_session *s = sessions[i];
        if (!s->has_next) continue;
        b->rows[n_rows] = (forward_row){s->next, s->n_past, &s->cache};
        b->running[n_rows++] = s;
    }
    bool there = b->model->on_device; /* one whose settings do not suit brings all logits here, by one head */
    for (size_t i = 0; i < n_rows; i++) there = there && sampler_suits_device(&b->running[i]->sampler);
    if (n_rows) LLMQ_TRY(run_rows(b, b->running, n_rows, there, err));
    if (n_rows && there) LLMQ_TRY(draw_there(b, n_rows, err));
    for (size_t i = 0, k = 0; i < n; i++) { /* k: of the rows that were run, in the same order */
        llmq_session *s = sessions[i];
        bool drawn = there && k < n_rows && b->running[k] == s;
        LLMQ_TRY(drawn ? session_take_drawn(s, b->drawn[k++], &s->next, err) : session_draw(s, &s->next, err));
        s->has_next = true;
        tokens_out[i] = s->next;
    }
    return LLMQ_OK;
}
