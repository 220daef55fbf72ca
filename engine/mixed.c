/* Mixed bits: the type of every matrix that no rule fixes, chosen by what each type costs the model, so that the file
 * is no larger than it may be. */
#include <math.h>
#include <string.h>

#include "engine/pipeline.h"
#include "quant/allocate.h"

#define TENSOR_ALIGN 32 /* bytes, of tensors in the file */
/* At most what the manifest, written after the choice, adds to the file: in all, and for each file of the source. */
#define MANIFEST_BYTES 512
#define MANIFEST_FILE_BYTES 96

static int64_t padded(int64_t bytes) {
    return (bytes + TENSOR_ALIGN - 1) / TENSOR_ALIGN * TENSOR_ALIGN;
}

bool pipeline_has_target(const pipeline *p) {
    return p->params->target_bpw > 0 || p->params->target_bytes > 0;
}

/* What a tensor adds to the figure that is limited: bytes of the file, or of weights. */
static int64_t counted(const pipeline *p, int64_t bytes) {
    return p->params->target_bytes > 0 ? padded(bytes) : bytes;
}

typedef struct choice_table {
    bool *open;   /* [ex->n] */
    double *loss; /* [ex->n * LLMQ_TYPE_COUNT] */
    size_t n_items;
    size_t *entry; /* [n_items] of ex */
    llmq_alloc_item *items;
    llmq_alloc_option *options; /* [n_items * LLMQ_TYPE_COUNT] */
    llmq_type *types;           /* parallel */
} choice_table;

static void table_clear(choice_table *t) {
    void *blocks[] = {t->open, t->loss, t->entry, t->items, t->options, t->types};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
}

static llmq_status table_create(const pipeline *p, choice_table *t, llmq_err *err) {
    size_t n = p->ex->n;
    *t = (choice_table){0};
    t->open = mem_zalloc(n, sizeof *t->open);
    t->loss = mem_alloc(n * LLMQ_TYPE_COUNT, sizeof *t->loss);
    t->entry = mem_alloc(n, sizeof *t->entry);
    t->items = mem_alloc(n, sizeof *t->items);
    t->options = mem_alloc(n * LLMQ_TYPE_COUNT, sizeof *t->options);
    t->types = mem_alloc(n * LLMQ_TYPE_COUNT, sizeof *t->types);
    if (t->open && t->loss && t->entry && t->items && t->options && t->types) return LLMQ_OK;
    return mem_error(err, n * LLMQ_TYPE_COUNT * sizeof *t->options, "the choice of types");
}

/* Open: no rule fixes the matrix and there is something to choose. */
static void find_open(const pipeline *p, choice_table *t) {
    for (size_t i = 0; i < p->ex->n; i++) {
        int candidates = 0;
        for (int type = 0; type < LLMQ_TYPE_COUNT; type++)
            candidates += p->ex->entries[i].matrix && sensitivity_is_candidate(p->ex, i, (llmq_type)type);
        t->open[i] = candidates > 1 && !p->result->rows[i].fixed;
    }
}

static void fill_items(const pipeline *p, choice_table *t) {
    for (size_t i = 0; i < p->ex->n; i++) {
        if (!t->open[i]) continue;
        const llmq_tensor *tensor = &p->ex->tensors[i];
        llmq_alloc_item *item = &t->items[t->n_items];
        llmq_alloc_option *options = t->options + t->n_items * LLMQ_TYPE_COUNT;
        *item = (llmq_alloc_item){.options = options};
        for (int type = 0; type < LLMQ_TYPE_COUNT; type++) {
            double loss = t->loss[i * LLMQ_TYPE_COUNT + (size_t)type];
            if (loss < 0) continue;
            t->types[t->n_items * LLMQ_TYPE_COUNT + item->n] = (llmq_type)type;
            options[item->n++] = (llmq_alloc_option){
                .bytes = counted(p, type_row_bytes((llmq_type)type, tensor_cols(tensor)) * tensor_rows(tensor)),
                .loss = loss};
        }
        t->entry[t->n_items++] = i;
    }
}

/* Bytes that the open matrices may have: the target less everything else. */
static int64_t open_budget(const pipeline *p, const choice_table *t) {
    int64_t weights = 0, closed = 0;
    if (p->params->target_bytes > 0) /* of the whole file with the open ones at their present types: */
        closed = p->result->out_bytes + MANIFEST_BYTES + (int64_t)p->model->source->n_maps * MANIFEST_FILE_BYTES;
    for (size_t i = 0; i < p->ex->n; i++) {
        weights += tensor_numel(&p->ex->tensors[i]);
        if (p->params->target_bytes > 0)
            closed -= t->open[i] ? counted(p, p->ex->tensors[i].bytes) : 0;
        else
            closed += t->open[i] ? 0 : p->ex->tensors[i].bytes;
    }
    double target = p->params->target_bytes > 0 ? (double)p->params->target_bytes
                                                : floor(p->params->target_bpw * (double)weights / 8);
    return (int64_t)fmin(target, 1e18) - closed;
}

static llmq_status refuse(const pipeline *p, int64_t missing, llmq_err *err) {
    int64_t weights = 0;
    for (size_t i = 0; i < p->ex->n; i++) weights += tensor_numel(&p->ex->tensors[i]);
    if (p->params->target_bytes > 0)
        return llmq_fail(err, LLMQ_E_ARG, "--target-size %lld: the smallest file that is possible has %lld bytes",
                         (long long)p->params->target_bytes, (long long)(p->params->target_bytes + missing));
    return llmq_fail(err, LLMQ_E_ARG, "--target-bpw %g: the smallest that is possible is %.4f, all tensors counted",
                     p->params->target_bpw,
                     ceil((p->params->target_bpw + 8.0 * (double)missing / (double)weights) * 1e4) / 1e4);
}

static bool tick_errors(void *user, double work) {
    return pipeline_advance(user, forecast_errors(user, work));
}

llmq_sensitivity_job pipeline_sensitivity_job(pipeline *p) {
    int act_order = p->params->act_order;
    return (llmq_sensitivity_job){.model = p->model,
                                  .ex = p->ex,
                                  .team = p->team,
                                  .calib = &p->calib,
                                  .chunk = p->choice_chunk,
                                  .feedback = p->method->needs_gram,
                                  .act_order = act_order < 0 ? p->method->act_order_default : act_order > 0,
                                  .tick = pipeline_tick_dense,
                                  .tick_errors = tick_errors,
                                  .user = p};
}

static llmq_status choose(pipeline *p, choice_table *t, llmq_err *err) {
    llmq_sensitivity_job job = pipeline_sensitivity_job(p);
    job.open = t->open;
    find_open(p, t);
    LLMQ_TRY(sensitivity_measure(&job, t->loss, err));
    fill_items(p, t);
    LLMQ_TRY(pipeline_sizes(p, err));
    int64_t budget = open_budget(p, t);
    if (allocate(t->items, t->n_items, budget) != LLMQ_OK)
        return refuse(p, allocate_bytes(t->items, t->n_items) - budget, err);
    for (size_t k = 0; k < t->n_items; k++) {
        llmq_type type = t->types[k * LLMQ_TYPE_COUNT + t->items[k].chosen];
        LLMQ_TRY(pipeline_set_type(p, t->entry[k], &(llmq_policy_choice){.type = type}, err));
        p->result->rows[t->entry[k]].expected_kl = t->items[k].options[t->items[k].chosen].loss;
    }
    return export_seal(p->ex, err);
}

llmq_status pipeline_choose_types(pipeline *p, llmq_err *err) {
    choice_table table;
    strcpy(p->what, "measuring layers");
    llmq_status status = table_create(p, &table, err);
    if (status == LLMQ_OK) status = choose(p, &table, err);
    table_clear(&table);
    return status;
}
