#include "engine/speculate.h"

#include <string.h>

#include "engine/batch.h"

#define MATCH_MOST 16 /* tokens of an earlier occurrence that are compared */
#define WEIGHT 0.1    /* of the newest value in a running mean */

/* What is believed before anything is known; a share that made guessing stop wanders back to it, so that guessing is
 * tried again. */
static const double accept_prior[GUESS_KINDS] = {0.3, 0.5, 0.7, 0.85, 0.6};

void speculation_destroy(speculation *sp) {
    if (!sp) return;
    llmq_session_destroy(sp->draft);
    mem_free(sp->logits);
    mem_free(sp);
}

/* ---- setting up ---- */

/* Are the tokens of both the same texts? A padded vocabulary may be longer. */
static llmq_status check_vocabulary(const llmq_model *model, const llmq_model *draft, llmq_err *err) {
    const llmq_tokenizer *a = model->tok, *b = draft->tok;
    int64_t n = model->hp.n_vocab < draft->hp.n_vocab ? model->hp.n_vocab : draft->hp.n_vocab;
    int64_t n_a = a ? tokenizer_n_vocab(a) : n, n_b = b ? tokenizer_n_vocab(b) : n;
    if (!draft->layers)
        return llmq_fail(err, LLMQ_E_ARG, "--draft %s: it was opened without its weights", draft->info.path);
    bool same = n_a == n_b && (a || model->hp.n_vocab == draft->hp.n_vocab);
    for (int64_t i = 0; same && a && b && i < n_a; i++) {
        const char *x, *y;
        size_t n_x, n_y;
        tokenizer_token_bytes(a, (int32_t)i, true, &x, &n_x);
        tokenizer_token_bytes(b, (int32_t)i, true, &y, &n_y);
        same = n_x == n_y && memcmp(x, y, n_x) == 0;
    }
    if (same) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG,
                     "--draft %s: its vocabulary is not that of %s; a draft model needs the same tokens",
                     draft->info.path, model->info.path);
}

static llmq_status create_draft(const llmq_session *s, llmq_model *draft, speculation *sp, llmq_err *err) {
    LLMQ_TRY(check_vocabulary(s->model, draft, err));
    llmq_session_params p = {.n_ctx = s->n_ctx, .n_threads = team_size(s->team), .kv_type = LLMQ_KV_F16};
    return llmq_session_create(draft, &p, &sp->draft, err);
}

/* What has been run ahead does not count any more; the token that was handed out and the logits it came from stay. */
static void stop(llmq_session *s) {
    const speculation *sp = s->spec;
    if (!sp) return;
    size_t n_vocab = (size_t)s->model->hp.n_vocab;
    for (int i = 0; i < SPEC_ROWS; i++)
        if (s->last == sp->logits + i * n_vocab) s->last = memcpy(s->logits, s->last, n_vocab * sizeof *s->logits);
    speculation_destroy(s->spec);
    s->spec = NULL;
}

llmq_status llmq_session_set_speculation(llmq_session *s, const llmq_speculation_params *p, llmq_err *err) {
    stop(s);
    if (!p || (!p->lookup && !p->draft)) return LLMQ_OK;
    if (p->n_guess < 0 || p->n_guess >= SPEC_ROWS)
        return llmq_fail(err, LLMQ_E_ARG, "n_guess %d: must be 1 to %d, or 0 for %d", p->n_guess, SPEC_ROWS - 1,
                         SPEC_ROWS - 1);
    speculation *sp = mem_zalloc(1, sizeof *sp);
    if (!sp) return mem_error(err, sizeof *sp, "speculation");
    sp->most = p->n_guess ? p->n_guess : SPEC_ROWS - 1;
    sp->lookup = p->lookup;
    memcpy(sp->accept, accept_prior, sizeof sp->accept);
    size_t n = SPEC_ROWS * (size_t)s->model->hp.n_vocab;
    llmq_status status = LLMQ_OK;
    sp->logits = mem_alloc(n, sizeof *sp->logits);
    if (!sp->logits) status = mem_error(err, n * sizeof *sp->logits, "speculation");
    if (!status && p->draft) status = create_draft(s, p->draft, sp, err);
    if (status)
        speculation_destroy(sp);
    else
        s->spec = sp;
    return status;
}

void llmq_session_get_speculation_stats(const llmq_session *s, llmq_speculation_stats *out) {
    *out = s->spec ? s->spec->stats : (llmq_speculation_stats){0};
}

/* ---- guessing ---- */

int64_t speculation_lookup(const int32_t *text, int64_t n, int64_t most, int32_t *out) {
    int64_t best = 0, at = 0;
    for (int64_t end = n - 1; end > 0 && best < MATCH_MOST; end--) { /* an occurrence before position end */
        int64_t len = 0;
        while (len < MATCH_MOST && len < end && text[end - 1 - len] == text[n - 1 - len]) len++;
        if (len > best) best = len, at = end;
    }
    /* What was found may reach the end of the text: it then goes on with the guesses themselves. */
    for (int64_t i = 0; best && i < most; i++) out[i] = at + i < n ? text[at + i] : out[at + i - n];
    return best;
}

static int lookup_kind(int64_t match) {
    return GUESS_LOOKUP + (match >= 8 ? 3 : match >= 4 ? 2 : match >= 2 ? 1 : 0);
}

/* A pass that lost its core to another program tells little of what passes cost. */
static double running(double mean, double value) {
    if (mean > 0 && value > 2 * mean) value = 2 * mean;
    return mean > 0 ? mean + WEIGHT * (value - mean) : value;
}

/* Seconds of a pass with n tokens: measured, or a little more than the next smaller one that was. */
static double pass_cost(const speculation *sp, int64_t n) {
    int64_t known = n;
    while (known > 1 && sp->pass_seconds[known] == 0) known--;
    return sp->pass_seconds[known] + 0.1 * sp->pass_seconds[1] * (double)(n - known);
}

/* How many of at most `most` guesses give the most tokens a second. */
static int64_t best_count(speculation *sp, int kind, int64_t most) {
    if (sp->always) return most;
    if (sp->pass_seconds[1] == 0) return 0; /* the first pass tells what one costs */
    double each = kind == GUESS_DRAFT ? sp->draft_seconds : 0, right = 1, tokens = 1, best = 1 / pass_cost(sp, 1);
    int64_t count = 0;
    for (int64_t n = 1; n <= most; n++) {
        right *= sp->accept[kind];
        tokens += right;
        double rate = tokens / (pass_cost(sp, n + 1) + each * (double)n);
        if (rate > best) best = rate, count = n;
    }
    if (!count) sp->accept[kind] += 0.02 * (accept_prior[kind] - sp->accept[kind]);
    return count;
}

/* The draft model's tokens after text[n], drawn with the session's settings and its next random numbers: where both
 * models think alike, they draw alike. An error of the draft model (its context is full) only means no guess. */
static int64_t draft_tokens(llmq_session *s, int64_t n, int64_t most, int32_t *out) {
    speculation *sp = s->spec;
    llmq_session *d = sp->draft;
    bool behind = n - d->n_past > SPEC_ROWS; /* by a prompt, say: that is not what a guess costs */
    double start = time_seconds();
    int64_t count = 0;
    sampler_follow(&d->sampler, &s->sampler);
    llmq_status status = llmq_session_sync(d, s->tokens, (size_t)n, NULL);
    if (behind) start = time_seconds();
    while (!status && count < most) {
        status = session_draw(d, &out[count], NULL);
        if (status || out[count] >= s->model->hp.n_vocab) break;
        if (++count < most) status = session_step(d, out[count - 1], NULL);
    }
    if (count) sp->draft_seconds = running(sp->draft_seconds, (time_seconds() - start) / (double)count);
    return count;
}

/* Guesses of what follows text[n] to out; returns how many. */
static int64_t guess(llmq_session *s, int64_t n, int32_t *out) {
    speculation *sp = s->spec;
    int64_t room = s->n_ctx - n, most = sp->most < room ? sp->most : room, match = 0;
    if (sp->lookup) match = speculation_lookup(s->tokens, n, most, out);
    if (match) {
        sp->kind = lookup_kind(match);
        int64_t count = best_count(sp, sp->kind, most);
        if (count || !sp->draft) return count;
    }
    if (!sp->draft) return 0;
    sp->kind = GUESS_DRAFT;
    int64_t count = best_count(sp, sp->kind, most);
    return count ? draft_tokens(s, n, count, out) : 0;
}

/* ---- running ---- */

/* Was the token that was handed out the guess that has been run already? Then its logits are there. */
static bool take_ahead(llmq_session *s) {
    speculation *sp = s->spec;
    bool right = s->tokens[s->n_past] == s->next;
    sp->accept[sp->kind] += WEIGHT * ((right ? 1 : 0) - sp->accept[sp->kind]);
    if (!right) {
        sp->ahead = 0;
        return false;
    }
    sp->stats.accepted++;
    sp->ahead--;
    s->n_past++;
    s->last += s->model->hp.n_vocab;
    return true;
}

/* Runs the token that was handed out, with guesses: those need the logits of each here. */
static llmq_status run_next(llmq_session *s, llmq_err *err) {
    speculation *sp = s->spec;
    if (!sp && session_draws_there(s)) return session_step(s, s->next, err);
    LLMQ_TRY(session_check_tokens(s, &s->next, 1, s->n_past, err));
    int32_t *text = s->tokens + s->n_past;
    text[0] = s->next;
    s->unread = false;
    LLMQ_TRY(batch_read(s->batch, err));
    int64_t n = 1 + (sp ? guess(s, s->n_past + 1, text + 1) : 0);
    forward_row rows[SPEC_ROWS];
    for (int64_t i = 0; i < n; i++) rows[i] = (forward_row){text[i], s->n_past + i, &s->cache};
    double start = time_seconds();
    float *logits = n > 1 ? sp->logits : s->logits;
    llmq_status status = forward_rows(s->fwd, rows, n, logits, err);
    if (status == LLMQ_E_MEMORY && n > 1) { /* of a device: the guesses may be what is too much */
        n = 1;
        logits = s->logits;
        status = forward_rows(s->fwd, rows, n, logits, err);
    }
    LLMQ_TRY(status);
    s->last = logits;
    s->n_past++;
    if (!sp) return LLMQ_OK;
    sp->pass_seconds[n] = running(sp->pass_seconds[n], time_seconds() - start);
    sp->ahead = n - 1;
    sp->stats.passes++;
    sp->stats.guessed += n - 1;
    return LLMQ_OK;
}

llmq_status session_run_next(llmq_session *s, llmq_err *err) {
    if (!s->has_next) return LLMQ_OK;
    llmq_status status = LLMQ_OK;
    if (!(s->spec && s->spec->ahead > 0 && take_ahead(s))) status = run_next(s, err);
    s->has_next = status != LLMQ_OK; /* an error loses no token */
    return status;
}

llmq_status llmq_session_next(llmq_session *s, int32_t *token_out, llmq_err *err) {
    LLMQ_TRY(session_run_next(s, err));
    LLMQ_TRY(session_draw(s, &s->next, err));
    s->has_next = true;
    if (s->spec) s->spec->stats.tokens++;
    *token_out = s->next;
    return LLMQ_OK;
}
