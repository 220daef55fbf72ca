/* llmq train. A new model is written as a GGUF file first and then opened like any other, so that training from scratch
 * and training on are one path: all tensors become f32 parameters, learn, and go through the export into a Hugging Face
 * folder.
 *
 * OUT.journal holds parameters and moments between two steps. Nothing else decides about the bytes of the result: the
 * windows of a step follow from its number, so a run that goes on from there ends where an undisturbed one ends. */
#include "train/train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/hash.h"
#include "engine/jobs.h"
#include "engine/journal.h"
#include "engine/outputs.h"
#include "train/adam.h"
#include "train/corpus.h"
#include "train/scratch.h"
#include "train/weights.h"

#define MEASUREMENTS 20              /* of the held-out text while training */
#define WARMUP 0.05                  /* of the run */
#define KEEP_BYTES ((size_t)2 << 30) /* for activations */
#define CHECKPOINT_SHARE 0.05        /* of the time may go into checkpoints */
#define DISK_BYTES_SECOND 200e6      /* until the first one tells */
#define ALWAYS "LLMQ_CHECKPOINTS"    /* environment: "all" takes one after every step, for tests */

static const adam_settings adam = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .clip = 1};

/* In front of parameters and moments in the journal. */
typedef struct train_state {
    int64_t step;
    double seconds;  /* of training and measuring, by all runs */
    double loss_sum; /* of the steps since the last point */
    int64_t loss_n, n_points;
    llmq_train_point points[LLMQ_TRAIN_POINTS];
} train_state;

typedef struct trainer {
    llmq_train_params p; /* defaults filled in */
    llmq_train_result *result;
    llmq_type type;
    llmq_model *model;
    llmq_export *ex;
    llmq_team *team;
    llmq_outputs_spec spec;
    corpus corpus;
    weights w;
    net_f32 *net;
    int32_t *tokens, *labels; /* (batch, ctx) */
    llmq_journal *journal;
    char *settings;
    train_state state;
    double began;        /* of this run's training, in seconds */
    double step_seconds; /* of this run's steps alone */
    int64_t run_steps;   /* of this run */
    double saved_at, save_seconds;
    int64_t saved; /* the step of the last checkpoint, -1: none */
} trainer;

/* ---- parameters ---- */

static llmq_status check_model_options(const llmq_train_params *p, llmq_err *err) {
    const struct {
        const char *option;
        int64_t value;
    } shape[] = {{"--layers", p->n_layer},     {"--dim", p->n_embd}, {"--heads", p->n_head},
                 {"--kv-heads", p->n_head_kv}, {"--ff", p->n_ff},    {"--vocab", p->n_vocab}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        if (shape[i].value)
            return llmq_fail(err, LLMQ_E_ARG, "%s is for a new model; the one of --from has a shape of its own",
                             shape[i].option);
    return LLMQ_OK;
}

static llmq_status check_params(trainer *t, llmq_err *err) {
    llmq_train_params *p = &t->p;
    if (!p->n_ctx) p->n_ctx = 256;
    if (!p->batch) p->batch = 16;
    if (!p->lr) p->lr = p->from ? 3e-4 : 3e-3;
    if (!p->type) p->type = "bf16";
    t->type = llmq_type_from_name(p->type);
    if (t->type != LLMQ_TYPE_F32 && t->type != LLMQ_TYPE_F16 && t->type != LLMQ_TYPE_BF16)
        return llmq_fail(err, LLMQ_E_ARG, "--type %s: it takes f32, f16 or bf16", p->type);
    if (p->n_ctx < 8 || p->n_ctx > 65536)
        return llmq_fail(err, LLMQ_E_ARG, "--ctx %lld: it takes 8 to 65536", (long long)p->n_ctx);
    if (p->batch < 1 || p->batch > 4096)
        return llmq_fail(err, LLMQ_E_ARG, "--batch %lld: it takes 1 to 4096", (long long)p->batch);
    if (p->steps < 0 || !(p->minutes >= 0) || !(p->lr > 0 && p->lr <= 1))
        return llmq_fail(err, LLMQ_E_ARG, "steps and minutes cannot be below 0, and --lr is above 0 and at most 1");
    if (!p->from && p->tokenizer)
        return llmq_fail(err, LLMQ_E_ARG, "--tokenizer is for --from; a new model's tokenizer is made from the text");
    return p->from ? check_model_options(p, err) : scratch_check(p, err);
}

static bool report(const trainer *t, double done, double total, const char *what, double left) {
    return !t->p.progress || t->p.progress(t->p.user, done, total, what, left);
}

/* ---- the model ---- */

/* Before the work of making a tokenizer: what outputs_check_path will say of a path that is taken. */
static llmq_status check_free(const trainer *t, llmq_err *err) {
    if (t->p.force || !file_exists(t->p.out)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_EXISTS, "%s is there already; give --force to replace it, or another name with -o",
                     t->p.out);
}

static llmq_status open_scratch(trainer *t, const char *text, size_t len, llmq_err *err) {
    char path[4096];
    llmq_model_params open = {.n_threads = t->p.n_threads, .no_weights = true};
    if ((size_t)snprintf(path, sizeof path, "%s.tmp.gguf", t->p.out) >= sizeof path)
        return llmq_fail(err, LLMQ_E_ARG, "-o: the path is too long");
    if (!report(t, 0, 0, "making a tokenizer", -1)) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    LLMQ_TRY(scratch_write(path, path_base(t->p.out), &t->p, text, len, err));
    llmq_status status = model_open(path, &open, &t->model, err);
    unlink(path); /* what is mapped stays */
    return status;
}

static llmq_status open_from(trainer *t, llmq_err *err) {
    llmq_model_params open = {.tokenizer = t->p.tokenizer, .n_threads = t->p.n_threads, .no_weights = true};
    LLMQ_TRY(model_open(t->p.from, &open, &t->model, err));
    const llmq_hparams *hp = &t->model->hp;
    if (t->p.n_ctx > hp->n_ctx_train)
        return llmq_fail(err, LLMQ_E_ARG, "--ctx %lld: %s was made for %lld tokens", (long long)t->p.n_ctx, t->p.from,
                         (long long)hp->n_ctx_train);
    return LLMQ_OK;
}

static llmq_status open_model(trainer *t, const char *text, size_t len, llmq_err *err) {
    const llmq_tokenizer *tok;
    LLMQ_TRY(t->p.from ? open_from(t, err) : open_scratch(t, text, len, err));
    t->spec = (llmq_outputs_spec){
        .emit = "hf", .out = t->p.out, .plain = t->type, .shard_bytes = 5000000000, .force = t->p.force};
    LLMQ_TRY(outputs_check_path(&t->spec, t->model->source, t->p.force, err));
    LLMQ_TRY(export_create(t->model, &t->ex, err));
    LLMQ_TRY(model_tokenizer(t->model, &tok, err));
    if (!report(t, 0, 0, "reading the text", -1)) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    LLMQ_TRY(corpus_create(&t->corpus, tok, t->model->hp.n_vocab, text, len, t->p.n_ctx, t->p.seed, err));
    return weights_create(&t->w, t->model, t->team, err);
}

static void fill_result(trainer *t) {
    const llmq_hparams *hp = &t->model->hp;
    llmq_train_result *r = t->result;
    r->n_params = weights_count(&t->w);
    r->n_layer = hp->n_layer;
    r->n_embd = hp->n_embd;
    r->n_head = hp->n_head;
    r->n_head_kv = hp->n_head_kv;
    r->n_ff = hp->n_ff;
    r->n_vocab = hp->n_vocab;
    r->n_ctx = t->p.n_ctx;
    r->batch = t->p.batch;
    r->text_tokens = t->corpus.n + t->corpus.n_held;
    r->held_tokens = t->corpus.n_held;
    r->unigram = corpus_unigram(&t->corpus, hp->n_vocab);
}

static llmq_status create_net(trainer *t, llmq_err *err) {
    const llmq_model *model = t->model;
    size_t n_rope = (size_t)(t->p.n_ctx * model->hp.n_rot), n_tok = (size_t)(t->p.batch * t->p.n_ctx);
    float *rope = mem_alloc(n_rope, sizeof *rope);
    t->tokens = mem_alloc(n_tok, sizeof *t->tokens);
    t->labels = mem_alloc(n_tok, sizeof *t->labels);
    if (!rope || !t->tokens || !t->labels) {
        mem_free(rope);
        return mem_error(err, n_rope * sizeof *rope + 2 * n_tok * sizeof *t->tokens, "training");
    }
    rope_table(model, 0, t->p.n_ctx, rope);
    net_shape shape = {.hp = model->hp,
                       .neox = model->rope_neox,
                       .n_windows = t->p.batch,
                       .n_tok = t->p.n_ctx,
                       .rope = rope,
                       .keep_bytes = KEEP_BYTES};
    net_wants wants = weights_wants(&t->w);
    llmq_status status = net_create_f32(&shape, &wants, false, false, model->ops, t->team, &t->net, err);
    mem_free(rope);
    return status;
}

/* ---- the journal ---- */

enum { N_PARTS = 4 };

static void journal_parts(trainer *t, journal_part parts[N_PARTS]) {
    size_t bytes = (size_t)t->w.n * sizeof(float);
    parts[0] = (journal_part){&t->state, sizeof t->state};
    parts[1] = (journal_part){t->w.x, bytes};
    parts[2] = (journal_part){t->w.m, bytes};
    parts[3] = (journal_part){t->w.v, bytes};
}

static size_t checkpoint_bytes(const trainer *t) {
    return sizeof t->state + 3 * (size_t)t->w.n * sizeof(float);
}

/* All that decides about the parameters at every step: a new setting that does gets a line here. */
static llmq_status make_settings(trainer *t, llmq_err *err) {
    size_t cap = 1024, n_tok = (size_t)(t->corpus.n + t->corpus.n_held);
    t->settings = mem_alloc(cap, 1);
    if (!t->settings) return mem_error(err, cap, "the settings");
    snprintf(t->settings, cap,
             "llmq %s\nisa %s\ntext %016llx\nmodel %016llx\nctx %lld\nbatch %lld\nsteps %lld\nminutes %.9g\nlr "
             "%.9g\nseed %llu\n",
             llmq_version(), t->model->ops->isa,
             (unsigned long long)hash_bytes(t->corpus.tokens, n_tok * sizeof *t->corpus.tokens),
             (unsigned long long)hash_bytes(t->w.x, (size_t)t->w.n * sizeof(float)), (long long)t->p.n_ctx,
             (long long)t->p.batch, (long long)(t->p.minutes > 0 ? 0 : t->p.steps), t->p.minutes, t->p.lr,
             (unsigned long long)t->p.seed);
    return LLMQ_OK;
}

/* Checksums hold the journal's bytes together, not its meaning. */
static bool state_is_sound(const trainer *t) {
    const train_state *s = &t->state;
    bool in_time = t->p.minutes > 0 ? s->step < INT64_MAX / 2 : s->step <= t->p.steps;
    return s->step >= 0 && in_time && s->seconds >= 0 && s->loss_n >= 0 && s->n_points > 0 &&
           s->n_points <= LLMQ_TRAIN_POINTS;
}

static llmq_status load_checkpoint(trainer *t, bool *found, llmq_err *err) {
    journal_part parts[N_PARTS];
    int64_t done = -1;
    *found = false;
    journal_parts(t, parts);
    if (journal_done(t->journal) < 0) return LLMQ_OK;
    LLMQ_TRY(journal_load(t->journal, parts, N_PARTS, &done, err));
    *found = done >= 0 && state_is_sound(t);
    if (*found) return LLMQ_OK;
    /* Parameters may be overwritten by now. */
    t->state = (train_state){0};
    weights_clear(&t->w);
    return weights_create(&t->w, t->model, t->team, err);
}

static llmq_status open_journal(trainer *t, llmq_err *err) {
    char path[4096], why[256];
    bool found = false;
    if ((size_t)snprintf(path, sizeof path, "%s.journal", t->p.out) >= sizeof path)
        return llmq_fail(err, LLMQ_E_ARG, "-o: the path is too long");
    LLMQ_TRY(make_settings(t, err));
    LLMQ_TRY(file_check_space(path, 2 * checkpoint_bytes(t) + 4 * (uint64_t)t->w.n, err));
    LLMQ_TRY(journal_open(path, t->settings, checkpoint_bytes(t), &t->journal, err));
    bool matches = journal_matches(t->journal, why, sizeof why);
    t->saved = -1;
    if (matches && !t->p.no_resume) LLMQ_TRY(load_checkpoint(t, &found, err));
    if (!matches && why[0] && !t->p.no_resume) llmq_log(LLMQ_LOG_WARN, "%s: %s; starting anew", path, why);
    if (!found) return journal_start(t->journal, err);
    t->saved = t->result->resumed_steps = t->state.step;
    llmq_log(LLMQ_LOG_NOTE, "going on after step %lld", (long long)t->state.step);
    return LLMQ_OK;
}

/* A journal that cannot be written costs no more than itself. */
static void save(trainer *t) {
    journal_part parts[N_PARTS];
    llmq_err why = {0};
    double begin = time_seconds();
    journal_parts(t, parts);
    if (journal_save(t->journal, parts, N_PARTS, t->state.step, &why) == LLMQ_OK)
        t->saved = t->state.step;
    else
        llmq_log(LLMQ_LOG_WARN, "%s: a run that is stopped would go on after step %lld", why.msg,
                 (long long)(t->saved > 0 ? t->saved : 0));
    t->saved_at = time_seconds();
    t->save_seconds = t->saved_at - begin;
}

static void save_if_time(trainer *t) {
    const char *always = getenv(ALWAYS);
    double cost = t->save_seconds > 0 ? t->save_seconds : (double)checkpoint_bytes(t) / DISK_BYTES_SECOND;
    if ((always && !strcmp(always, "all")) || cost <= CHECKPOINT_SHARE * (time_seconds() - t->saved_at)) save(t);
}

/* ---- measuring ---- */

/* Window `slot` of the batch from tokens and what follows each of them. */
static void put_window(trainer *t, int64_t slot, const int32_t *tokens) {
    size_t bytes = (size_t)t->p.n_ctx * sizeof *tokens;
    memcpy(t->tokens + slot * t->p.n_ctx, tokens, bytes);
    memcpy(t->labels + slot * t->p.n_ctx, tokens + 1, bytes);
}

static llmq_status measure(trainer *t, double *loss, llmq_err *err) {
    net_source_f32 source = weights_source(&t->w);
    int64_t windows = corpus_held_windows(&t->corpus), ctx = t->p.n_ctx;
    net_loss what = {.labels = t->labels, .weight = 1.0 / (double)(windows * ctx)};
    *loss = 0;
    for (int64_t i = 0; i < windows; i += t->p.batch) {
        double one;
        for (int64_t k = 0; k < t->p.batch; k++) {
            bool there = i + k < windows;
            put_window(t, k, corpus_held_window(&t->corpus, there ? i + k : 0));
            for (int64_t j = 0; j < ctx && !there; j++) t->labels[k * ctx + j] = -1;
        }
        LLMQ_TRY(net_step_f32(t->net, &source, t->tokens, &what, false, &one, err));
        *loss += one;
    }
    return LLMQ_OK;
}

static double elapsed(const trainer *t) {
    return t->state.seconds + (time_seconds() - t->began);
}

/* The share of the run that is done, in [0, 1]. */
static double share_done(const trainer *t) {
    double share = t->p.minutes > 0 ? elapsed(t) / (60 * t->p.minutes)
                   : t->p.steps     ? (double)t->state.step / (double)t->p.steps
                                    : 1;
    return share < 1 ? share : 1;
}

static double rate_now(const trainer *t) {
    if (t->p.minutes > 0)
        return t->p.lr * adam_schedule((int64_t)(share_done(t) * 10000), (int64_t)(WARMUP * 10000), 10000, 0);
    int64_t warmup = (int64_t)ceil(WARMUP * (double)t->p.steps);
    return t->p.lr * adam_schedule(t->state.step, warmup, t->p.steps, 0);
}

static double tokens_per_second(const trainer *t) {
    return t->step_seconds > 0 ? (double)(t->run_steps * t->p.batch * t->p.n_ctx) / t->step_seconds : 0;
}

static llmq_status add_point(trainer *t, llmq_err *err) {
    train_state *s = &t->state;
    llmq_train_point *at = &s->points[s->n_points < LLMQ_TRAIN_POINTS ? s->n_points++ : LLMQ_TRAIN_POINTS - 1];
    *at = (llmq_train_point){.step = s->step, .tokens = s->step * t->p.batch * t->p.n_ctx};
    at->loss = s->loss_n ? s->loss_sum / (double)s->loss_n : -1;
    at->lr = rate_now(t);
    LLMQ_TRY(measure(t, &at->held_out, err));
    at->seconds = elapsed(t);
    at->tokens_per_second = tokens_per_second(t);
    s->loss_sum = 0;
    s->loss_n = 0;
    if (t->p.point) t->p.point(t->p.user, at);
    return LLMQ_OK;
}

/* ---- training ---- */

static double seconds_left(const trainer *t) {
    double share = share_done(t);
    if (t->p.minutes > 0) return 60 * t->p.minutes * (1 - share);
    return t->run_steps ? t->step_seconds / (double)t->run_steps * (double)(t->p.steps - t->state.step) : -1;
}

static llmq_status train_step(trainer *t, llmq_err *err) {
    train_state *s = &t->state;
    net_source_f32 source = weights_source(&t->w);
    int64_t n_tok = t->p.batch * t->p.n_ctx;
    net_loss what = {.labels = t->labels, .weight = 1.0 / (double)n_tok};
    double begin = time_seconds(), lr = rate_now(t), loss;
    char text[80];
    for (int64_t i = 0; i < t->p.batch; i++) put_window(t, i, corpus_window(&t->corpus, s->step * t->p.batch + i));
    weights_set_tokens(&t->w, t->tokens, n_tok);
    LLMQ_TRY(net_step_f32(t->net, &source, t->tokens, &what, true, &loss, err));
    double length = weights_update(&t->w, &adam, lr, s->step + 1);
    if (!isfinite(loss) || !isfinite(length))
        return llmq_fail(err, LLMQ_E_NUMERIC, "the loss is no longer a number at step %lld; try a lower --lr than %g",
                         (long long)s->step + 1, t->p.lr);
    s->step++;
    s->loss_sum += loss;
    s->loss_n++;
    t->run_steps++;
    t->step_seconds += time_seconds() - begin;
    double done = (double)(s->step * n_tok), share = share_done(t);
    double total = t->p.minutes > 0 ? done / (share > 0 ? share : 1) : (double)(t->p.steps * n_tok);
    snprintf(text, sizeof text, "step %lld, loss %.3f, %.0f tokens/s", (long long)s->step, loss, tokens_per_second(t));
    if (report(t, done, total, text, seconds_left(t))) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
}

/* The clock of earlier runs, for a checkpoint between two steps. */
static void settle_clock(trainer *t) {
    double now = time_seconds();
    t->state.seconds += now - t->began;
    t->began = now;
}

static llmq_status train(trainer *t, llmq_err *err) {
    t->began = t->saved_at = time_seconds();
    if (!t->state.n_points) LLMQ_TRY(add_point(t, err));
    double mark = floor(share_done(t) * MEASUREMENTS);
    while (share_done(t) < 1) {
        llmq_status status = train_step(t, err);
        if (status == LLMQ_E_INTERRUPTED) {
            settle_clock(t);
            save(t);
        }
        LLMQ_TRY(status);
        double now = floor(share_done(t) * MEASUREMENTS);
        if (now > mark) LLMQ_TRY(add_point(t, err));
        mark = now;
        settle_clock(t);
        save_if_time(t);
    }
    settle_clock(t);
    if (t->saved != t->state.step && t->saved >= 0) save(t); /* so long as it was, its end is worth keeping too */
    return LLMQ_OK;
}

static llmq_status write_folder(trainer *t, llmq_err *err) {
    llmq_outputs *outputs = NULL;
    LLMQ_TRY(outputs_open(&t->spec, t->ex, &outputs, err));
    llmq_status status = weights_write(&t->w, t->ex, outputs, err);
    if (status == LLMQ_OK) return outputs_finish(outputs, &t->result->out_bytes, err);
    outputs_abort(outputs, false);
    return status;
}

/* ---- the job ---- */

static void finish(trainer *t, llmq_status status) {
    llmq_train_result *r = t->result;
    r->kept = status != LLMQ_OK && status != LLMQ_E_NUMERIC && t->journal && t->saved >= 0;
    r->steps = r->kept ? t->saved : t->state.step;
    r->n_points = t->state.n_points;
    memcpy(r->points, t->state.points, sizeof r->points);
    r->tokens_per_second = tokens_per_second(t);
    journal_close(t->journal, !r->kept);
    mem_free(t->settings);
    mem_free(t->tokens);
    mem_free(t->labels);
    net_destroy_f32(t->net);
    weights_clear(&t->w);
    corpus_clear(&t->corpus);
    export_destroy(t->ex);
    model_close(t->model);
    team_destroy(t->team);
}

static llmq_status run(trainer *t, const char *const *texts, size_t n_texts, llmq_err *err) {
    char *text = NULL;
    size_t len = 0;
    LLMQ_TRY(check_params(t, err));
    LLMQ_TRY(check_free(t, err));
    LLMQ_TRY(team_create(t->p.n_threads, &t->team, err));
    LLMQ_TRY(corpus_read(texts, n_texts, &text, &len, err));
    llmq_status status = open_model(t, text, len, err);
    mem_free(text);
    LLMQ_TRY(status);
    fill_result(t);
    LLMQ_TRY(open_journal(t, err));
    LLMQ_TRY(create_net(t, err));
    LLMQ_TRY(train(t, err));
    return write_folder(t, err);
}

llmq_status train_run(const char *const *texts, size_t n_texts, const llmq_train_params *params,
                      llmq_train_result *result, llmq_err *err) {
    double begin = time_seconds();
    char out[4096];
    trainer t = {.p = *params, .result = result, .saved = -1};
    *result = (llmq_train_result){0};
    size_t len = strlen(params->out);
    while (len > 1 && params->out[len - 1] == '/') len--; /* "out/" works in out.tmp */
    if (len == 0 || len >= sizeof out) return llmq_fail(err, LLMQ_E_ARG, "-o: give the name of a folder");
    memcpy(out, params->out, len);
    out[len] = 0;
    t.p.out = out;
    llmq_status status = run(&t, texts, n_texts, err);
    finish(&t, status);
    result->seconds = time_seconds() - begin;
    return status;
}
