#include <stdio.h>
#include <string.h>

#include "engine/calib.h"
#include "train/adam.h"
#include "train/tune_stages.h"

typedef struct tuner {
    const llmq_tune_job *job;
    const tune_settings *set;
    tune_head *head;
    student s;
    teacher t;
    net_f32 *net;
    int64_t n_windows; /* to train on */
    int32_t *tokens;   /* of a batch */
    float *held;       /* the teacher's states of held-out windows */
} tuner;

static const int32_t *batch_tokens(tuner *t) {
    const llmq_calib *c = t->job->calib;
    for (int64_t i = 0; i < t->set->batch; i++) {
        int64_t window = tune_window(t->n_windows, t->head->step * t->set->batch + i);
        memcpy(t->tokens + i * c->ctx, c->tokens + window * c->ctx, (size_t)c->ctx * sizeof *t->tokens);
    }
    return t->tokens;
}

static llmq_status judge(tuner *t, bool first, double *kl, llmq_err *err) {
    const llmq_calib *c = t->job->calib;
    net_source_f32 from = student_source(&t->s), to = teacher_source(&t->t);
    int64_t n = t->set->batch * c->ctx, batches = t->set->held_out / t->set->batch;
    size_t cells = (size_t)(n * t->job->model->hp.n_embd);
    *kl = 0;
    for (int64_t i = 0; i < batches; i++) {
        const int32_t *tokens = c->tokens + (t->n_windows + i * t->set->batch) * c->ctx;
        net_loss what = {.teacher = true, .weight = 1.0 / (double)(n * batches)};
        double loss;
        if (first) {
            LLMQ_TRY(net_teach_f32(t->net, &to, tokens, err));
            memcpy(t->held + (size_t)i * cells, net_taught_f32(t->net), cells * sizeof(float));
        }
        memcpy(net_taught_f32(t->net), t->held + (size_t)i * cells, cells * sizeof(float));
        LLMQ_TRY(net_step_f32(t->net, &from, tokens, &what, false, &loss, err));
        *kl += loss;
    }
    return LLMQ_OK;
}

static llmq_status judge_now(tuner *t, llmq_err *err) {
    double kl;
    LLMQ_TRY(judge(t, false, &kl, err));
    llmq_log(LLMQ_LOG_INFO, "tuning: KL divergence on held-out windows %.5f", kl);
    if (!(kl < t->head->best)) return LLMQ_OK;
    t->head->best = kl;
    student_keep_best(&t->s, false);
    return LLMQ_OK;
}

static llmq_status save(tuner *t, bool now, llmq_err *err) {
    if (!t->head->storing) student_save(&t->s);
    return t->job->save(t->job->user, false, now, err);
}

static void set_rate(tuner *t) {
    t->s.rate = adam_schedule(t->head->step, (int64_t)t->set->warmup, t->head->total, t->set->floor);
}

static void set_total(tuner *t, double step_seconds) {
    t->head->total = tune_steps_in(60 * t->set->minutes, step_seconds, t->set);
    llmq_log(LLMQ_LOG_INFO, "tuning: %lld steps in %g minutes", (long long)t->head->total, t->set->minutes);
}

static llmq_status train_step(tuner *t, double *loss, llmq_err *err) {
    const tune_settings *s = t->set;
    net_source_f32 from = student_source(&t->s), to = teacher_source(&t->t);
    net_loss what = {.teacher = true, .weight = 1.0 / (double)(s->batch * t->job->calib->ctx)};
    const int32_t *tokens = batch_tokens(t);
    double begin = time_seconds();
    set_rate(t);
    LLMQ_TRY(net_teach_f32(t->net, &to, tokens, err));
    LLMQ_TRY(net_step_f32(t->net, &from, tokens, &what, true, loss, err));
    if (!t->head->total) set_total(t, time_seconds() - begin);
    set_rate(t);
    student_update(&t->s);
    t->head->step++;
    mem_note_peak();
    llmq_log(LLMQ_LOG_INFO, "tuning: step %lld of %lld: KL divergence %.5f, %.1f s", (long long)t->head->step,
             (long long)t->head->total, *loss, time_seconds() - begin);
    return LLMQ_OK;
}

static llmq_status train(tuner *t, llmq_err *err) {
    const tune_settings *s = t->set;
    double kl;
    LLMQ_TRY(judge(t, true, &kl, err));
    if (t->head->step == 0) t->head->first = t->head->best = kl;
    llmq_log(LLMQ_LOG_INFO, "tuning: KL divergence on held-out windows %.5f", kl);
    if (s->minutes <= 0) t->head->total = s->steps;
    while (t->head->step < t->head->total || !t->head->total) {
        char text[64];
        LLMQ_TRY(train_step(t, &kl, err));
        int64_t step = t->head->step, n = t->head->total;
        snprintf(text, sizeof text, "tuning %lld/%lld: KL %.4f", (long long)step, (long long)n, kl);
        if (step * s->judge / n != (step - 1) * s->judge / n) LLMQ_TRY(judge_now(t, err));
        bool go_on = t->job->tick(t->job->user, 1.0 / (double)n, text);
        LLMQ_TRY(save(t, !go_on, err));
        if (!go_on) return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    }
    return LLMQ_OK;
}

static llmq_status prepare(tuner *t, llmq_err *err) {
    const llmq_tune_job *job = t->job;
    const llmq_calib *c = job->calib;
    size_t held = (size_t)(t->set->held_out * c->ctx * job->model->hp.n_embd);
    student_room need = student_need(job, t->set, 0, job->ex->n);
    char *numbers = tune_numbers_of(job);
    bool filled = job->restored && t->head->whole;
    t->n_windows = c->n_windows - t->set->held_out;
    t->tokens = mem_alloc((size_t)(t->set->batch * c->ctx), sizeof *t->tokens);
    t->held = mem_alloc(held, sizeof *t->held);
    if (!t->tokens || !t->held) return mem_error(err, held * sizeof *t->held, "tuning");
    student_memory memory = {.result = numbers, .rest = numbers + need.result, .filled = filled};
    if (!filled) { /* the blocks left something */
        memset(numbers, 0, need.result + need.rest);
        t->head->total = 0;
    }
    LLMQ_TRY(teacher_open(&t->t, job->model, true, err));
    LLMQ_TRY(student_open(&t->s, job, t->set, 0, job->ex->n, &memory, err));
    t->s.step = t->head->step;
    t->head->whole = 1;
    if (!filled || t->head->storing) return LLMQ_OK;
    student_load(&t->s);
    llmq_log(LLMQ_LOG_NOTE, "going on with tuning after step %lld", (long long)t->head->step);
    return LLMQ_OK;
}

llmq_status tune_whole(const llmq_tune_job *job, const tune_settings *set, llmq_err *err) {
    tuner t = {.job = job, .set = set, .head = tune_head_of(job)};
    llmq_status status = LLMQ_OK;
    LLMQ_TRY_GOTO(prepare(&t, err));
    if (!t.head->storing) {
        LLMQ_TRY_GOTO(student_net(job, set->batch, false, &t.net, err));
        LLMQ_TRY_GOTO(train(&t, err));
        student_finish(&t.s);
        t.head->storing = 1; /* a run that goes on has to store again instead of reading the outputs */
        LLMQ_TRY_GOTO(save(&t, true, err));
    }
    LLMQ_TRY_GOTO(student_store(&t.s, err));
    job->result->tune_steps = t.head->step;
    job->result->tune_before = t.head->first;
    job->result->tune_after = t.head->best;
done:
    student_clear(&t.s);
    teacher_clear(&t.t);
    mem_free(t.tokens);
    mem_free(t.held);
    net_destroy_f32(t.net);
    return status;
}

/* ---- what it takes ---- */

/* A step: the teacher forward, the student forward, once more with the way back, and the head for both of them and
 * back. Judging: the student forward and both heads; the first time the teacher too. */
double tune_whole_cost(const llmq_tune_job *job, const tune_settings *s, const llmq_tune_costs *costs) {
    const llmq_hparams *hp = &job->model->hp;
    double layers = tune_layers_size(job), head = costs->dense * (double)(hp->n_vocab * hp->n_embd);
    double trained = (double)(s->steps * s->batch * job->calib->ctx), judges = (double)(s->judge + 1);
    double judged = (double)(s->held_out * job->calib->ctx);
    return trained * (layers * (costs->dense + costs->forward + costs->step) + 3 * head) +
           judged * (judges * (layers * costs->forward + 2 * head) + layers * costs->dense);
}

/* The student, the optimizer, one layer made ready both ways, both heads, and the net. */
llmq_tune_need tune_whole_need(const llmq_tune_job *job, const tune_settings *s) {
    const llmq_hparams *hp = &job->model->hp;
    student_room room = student_need(job, s, 0, job->ex->n);
    size_t head = (size_t)(hp->n_vocab * hp->n_embd);
    llmq_tune_need need = {.state = TUNE_HEAD_BYTES + room.result + room.rest};
    need.work = student_bytes(job, 0, job->ex->n) + student_layer_bytes(job, 0, job->ex->n);
    need.work += head * (2 + 2 + 1); /* of the teacher; back and forward of the student */
    need.work += (size_t)(s->held_out * job->calib->ctx * hp->n_embd) * sizeof(float);
    need.work += student_net_bytes(job, s->batch, false);
    return need;
}
