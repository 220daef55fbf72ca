#include "train/tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/calib.h"
#include "train/tune_stages.h"

/* ---- settings ---- */

static const tune_settings defaults[2] = {
    /* steps and lr: suit_grids */
    {.steps = -1, .batch = 1, .warmup = 5, .norm_lr = 1, .held_out = 6, .judge = 3, .blocks = -1},
    /* codes too */
    {.steps = 300,
     .batch = 3,
     .lr = 7e-4,
     .code_lr = 0.02,
     .warmup = 10,
     .norm_lr = 1,
     .held_out = 6,
     .judge = 10,
     .blocks = -1}};
/* Of a block: its loss is of one layer's outputs, so larger steps hold. */
static const tune_settings block_defaults[2] = {
    {.steps = 135, .batch = 1, .lr = 2e-3, .warmup = 5, .norm_lr = 1, .held_out = 6, .judge = 3, .blocks = -1},
    {.steps = 300,
     .batch = 3,
     .lr = 7e-4,
     .code_lr = 0.02,
     .warmup = 10,
     .norm_lr = 1,
     .held_out = 6,
     .judge = 10,
     .blocks = -1}};

llmq_status tune_settings_parse(const char *list, bool codes, bool blocks, tune_settings *s, llmq_err *err) {
    struct {
        const char *name;
        int64_t *whole;
        double *real;
        double max;
    } const items[] = {
        {"steps", &s->steps, NULL, 1e6}, {"batch", &s->batch, NULL, 1024},  {"held", &s->held_out, NULL, 4096},
        {"judge", &s->judge, NULL, 1e6}, {"blocks", &s->blocks, NULL, 1},   {"code", NULL, &s->code_lr, 10},
        {"lr", NULL, &s->lr, 1},         {"warmup", NULL, &s->warmup, 1e6}, {"floor", NULL, &s->floor, 1},
        {"norm", NULL, &s->norm_lr, 1e3}};
    *s = blocks ? block_defaults[codes] : defaults[codes];
    while (list && *list) {
        size_t name = strcspn(list, "="), i = 0, n = sizeof items / sizeof *items;
        char *end = NULL;
        double x = list[name] ? strtod(list + name + 1, &end) : -1;
        while (i < n && (strlen(items[i].name) != name || strncmp(items[i].name, list, name) != 0)) i++;
        if (i == n || !end || end == list + name + 1 || (*end && *end != ',') || !(x >= 0 && x <= items[i].max))
            return llmq_fail(err, LLMQ_E_ARG,
                             "--tune-set: '%.40s': a list of NAME=NUMBER of steps, batch, held, judge, lr, warmup, "
                             "floor, norm, code and blocks is wanted",
                             list);
        if (items[i].whole)
            *items[i].whole = (int64_t)x;
        else
            *items[i].real = x;
        list = end + (*end == ',');
    }
    if (s->batch < 1) s->batch = 1;
    return LLMQ_OK;
}

static bool has_minimums(const llmq_tune_job *job) {
    for (size_t i = 0; i < job->ex->n; i++) {
        const llmq_type_info *grid = job->grid(job->user, i);
        if (grid && (grid->form == GRID_AFFINE || grid->form == GRID_SUPER_AFFINE)) return true;
    }
    return false;
}

/* What was not set, of scales and norms of the whole model. A step of a minimum moves all weights of its group the same
 * way, and 8-bit rows have little error to win back: larger steps lead away from where both begin. More of the small
 * ones help with minimums. */
static void suit_grids(const llmq_tune_job *job, tune_settings *s) {
    bool int8 = job->params->int8, minimums = !int8 && has_minimums(job);
    if (s->lr == 0) s->lr = int8 ? 1e-4 : minimums ? 3e-4 : 1e-3;
    if (s->steps < 0) s->steps = minimums ? 270 : 135;
}

/* Settings for this job's text. */
static llmq_status read_settings(const llmq_tune_job *job, bool codes, bool blocks, tune_settings *s, llmq_err *err) {
    int64_t n = job->calib->n_windows;
    LLMQ_TRY(tune_settings_parse(job->params->tune_settings, codes, blocks, s, err));
    suit_grids(job, s);
    s->held_out = s->held_out / s->batch * s->batch;
    if (s->held_out < s->batch) s->held_out = s->batch;
    if (n > s->held_out) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG,
                     "--tune: %lld windows of text are too few: %lld judge the result, and others must be there to "
                     "train on; give more with --tokens",
                     (long long)n, (long long)s->held_out);
}

/* ---- what the two ways share ---- */

int64_t tune_window(int64_t n, int64_t i) {
    int64_t stride = n * 5 / 8 | 1;
    for (int64_t a = stride, b = n; b;) { /* coprime to n, so that all windows come */
        int64_t r = a % b;
        a = b;
        b = r;
        if (!b && a != 1) a = stride += 2, b = n;
    }
    return i * stride % n;
}

double tune_layers_size(const llmq_tune_job *job) {
    double size = 0;
    for (size_t i = 0; i < job->ex->n; i++)
        if (job->ex->entries[i].matrix && job->ex->entries[i].layer >= 0)
            size += (double)tensor_numel(&job->ex->tensors[i]);
    return size;
}

int64_t tune_steps_in(double seconds, double step_seconds, const tune_settings *s) {
    double n = seconds / step_seconds - (double)(s->judge * s->held_out) / (4.0 * (double)s->batch);
    return n > 1e6 ? 1000000 : n < 1 ? 1 : (int64_t)n;
}

/* ---- the job ---- */

/* Of both ways, as far as they are planned: the whole model keeps its codes after the blocks had theirs trained, and
 * takes half of the time. */
typedef struct stages {
    tune_settings blocks, whole;
} stages;

static llmq_status read_stages(const llmq_tune_job *job, const llmq_tune_plan *plan, stages *out, llmq_err *err) {
    bool codes = job->params->tune_codes;
    LLMQ_TRY(read_settings(job, codes, true, &out->blocks, err));
    LLMQ_TRY(read_settings(job, codes && !plan->blocks, false, &out->whole, err));
    if (plan->blocks) out->whole.code_lr = 0;
    out->blocks.minutes = out->whole.minutes = job->params->tune_minutes / (plan->blocks && plan->whole ? 2 : 1);
    return LLMQ_OK;
}

static size_t bytes_of(llmq_tune_need need, bool with_streams) {
    return need.state + need.work + (with_streams ? need.streams : 0);
}

static llmq_tune_need need_of(const llmq_tune_job *job) {
    stages s;
    llmq_tune_need need = {0}, whole = {0};
    if (read_stages(job, &job->plan, &s, NULL) != LLMQ_OK) return need;
    if (job->plan.blocks) need = tune_blocks_need(job, &s.blocks);
    if (job->plan.whole) whole = tune_whole_need(job, &s.whole);
    if (whole.state > need.state) need.state = whole.state;
    if (whole.work > need.work) need.work = whole.work;
    return need;
}

/* For the user. need: of the whole model. */
static void describe(const llmq_tune_job *job, const tune_settings *s, size_t need, const llmq_tune_plan *plan) {
    char why[100], *how = job->result->tune_how;
    snprintf(why, sizeof why, "the whole model at once would take %.1f MB", (double)need / 1e6);
    snprintf(how, sizeof job->result->tune_how, "block by block (%s)%s", s->blocks > 0 ? "blocks=1 in --tune-set" : why,
             s->code_lr == 0 ? ""
             : plan->whole   ? ", then the scales of the whole model"
                             : "; its scales alone do not fit either, so they are not trained together behind");
}

static llmq_status make_plan(const llmq_tune_job *job, size_t room, llmq_tune_plan *out, llmq_err *err) {
    llmq_tune_plan whole = {.whole = true}, both = {true, true};
    stages s;
    for (size_t i = 0; i < job->ex->n; i++) {
        const llmq_type_info *grid = job->grid(job->user, i);
        if (grid && student_count(job, i) == 0)
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--tune: %s has no scales that can be trained", grid->name);
    }
    *out = whole;
    LLMQ_TRY(read_stages(job, &whole, &s, err));
    size_t need = bytes_of(tune_whole_need(job, &s.whole), true);
    bool fits = need <= room;
    snprintf(job->result->tune_how, sizeof job->result->tune_how, "the whole model at once");
    if (s.blocks.blocks == 0 && !fits && job->params->max_ram > 0)
        return llmq_fail(err, LLMQ_E_ARG,
                         "--max-ram: tuning the whole model takes %.1f MB more than there is; without blocks=0 in "
                         "--tune-set it is tuned block by block",
                         (double)(need - room) / 1e6);
    if (s.blocks.blocks == 0 || (fits && s.blocks.blocks < 0)) return LLMQ_OK;
    LLMQ_TRY(read_stages(job, &both, &s, err));
    out->blocks = true;
    out->whole = s.blocks.code_lr > 0 && bytes_of(tune_whole_need(job, &s.whole), true) <= room;
    describe(job, &s.blocks, need, out);
    return LLMQ_OK;
}

/* Norms, attention and sums, beside products of weights. */
#define DENSE_REST 1.2

static llmq_status cost(const llmq_tune_job *job, double dense, double *out, llmq_err *err) {
    stages s;
    llmq_tune_costs costs = {.dense = DENSE_REST * dense};
    *out = 0;
    LLMQ_TRY(read_stages(job, &job->plan, &s, err));
    if (job->plan.blocks) {
        LLMQ_TRY(tune_probe(job, &s.blocks, &costs, err));
        *out += tune_blocks_cost(job, &s.blocks, &costs);
    }
    if (job->plan.whole) {
        LLMQ_TRY(tune_probe(job, &s.whole, &costs, err));
        *out += tune_whole_cost(job, &s.whole, &costs);
    }
    return LLMQ_OK;
}

static llmq_status run(const llmq_tune_job *job, llmq_err *err) {
    stages s;
    tune_head *head = tune_head_of(job);
    LLMQ_TRY(read_stages(job, &job->plan, &s, err));
    if (job->plan.blocks && !head->whole) LLMQ_TRY(tune_blocks(job, &s.blocks, err));
    if (job->plan.whole) LLMQ_TRY(tune_whole(job, &s.whole, err));
    if (job->plan.blocks) {
        job->result->tune_blocks = head->blocks;
        job->result->block_steps = head->block_steps;
        job->result->block_before = head->block_first / (double)head->blocks;
        job->result->block_after = head->block_best / (double)head->blocks;
    }
    return LLMQ_OK;
}

static const llmq_tuner tuner_of_outputs = {.plan = make_plan, .need = need_of, .cost = cost, .run = run};

const llmq_tuner *tune_tuner(void) {
    return &tuner_of_outputs;
}
