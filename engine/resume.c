/* How a run that was killed, stopped or out of disk goes on: the journal's checkpoints, what is taken from them, and
 * what is left behind when a run ends early.
 *
 * A checkpoint is taken between two layers: the tokens' hidden states, the tokens dropped, the rows of the report. What
 * the outputs hold of the layers before it is on the disk by then. Taking one costs the writing of the hidden states,
 * so it is done only when that is a small part of the time since the last one: large models get one every layer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pipeline.h"

#define CHECKPOINT_SHARE 0.01     /* of the time may go into checkpoints */
#define DISK_BYTES_SECOND 200e6   /* until the first one tells */
#define ALWAYS "LLMQ_CHECKPOINTS" /* environment: "all" takes one after every layer, for tests */

/* What a finished layer adds to a row of the report. */
typedef struct row_record {
    double error, rtn_error, awq_alpha, awq_ratio;
    int64_t n_tokens;
    int32_t fallback;
    char method[20], note[120];
} row_record;

/* ---- rows ---- */

static void save_rows(pipeline *p) {
    row_record *records = p->resume.records;
    memset(records, 0, p->result->n_rows * sizeof *records);
    for (size_t i = 0; i < p->result->n_rows; i++) {
        const llmq_quant_row *row = &p->result->rows[i];
        records[i] = (row_record){.error = row->error,
                                  .rtn_error = row->rtn_error,
                                  .awq_alpha = row->awq_alpha,
                                  .awq_ratio = row->awq_ratio,
                                  .n_tokens = row->n_tokens,
                                  .fallback = row->fallback};
        snprintf(records[i].method, sizeof records[i].method, "%s", row->method);
        snprintf(records[i].note, sizeof records[i].note, "%s", row->note);
    }
}

/* Of the layers that are done; the records come from a file. */
static void load_rows(pipeline *p) {
    const row_record *records = p->resume.records;
    p->result->n_fallback = 0;
    for (size_t i = 0; i < p->result->n_rows; i++) {
        llmq_quant_row *row = &p->result->rows[i];
        const row_record *record = &records[i];
        if (row->layer < p->resume.begin) {
            char method[sizeof record->method + 1] = "";
            memcpy(method, record->method, sizeof record->method);
            const llmq_method *known = method_find(method);
            row->error = record->error;
            row->rtn_error = record->rtn_error;
            row->awq_alpha = record->awq_alpha;
            row->awq_ratio = record->awq_ratio;
            row->n_tokens = record->n_tokens;
            row->fallback = record->fallback != 0;
            if (known) row->method = known->name;
            memcpy(row->note, record->note, sizeof row->note);
            row->note[sizeof row->note - 1] = 0;
        }
        p->result->n_fallback += row->fallback;
    }
}

/* ---- the journal ---- */

static void set_parts(pipeline *p) {
    pipeline_resume *r = &p->resume;
    r->parts[0] = (journal_part){r->records, p->result->n_rows * sizeof(row_record)};
    r->n_parts = 1;
    if (!p->run) return;
    calib_run_state(p->run, &r->parts[1].data, &r->parts[1].bytes, &r->parts[2].data, &r->parts[2].bytes);
    r->n_parts = 3;
}

static llmq_tune_need tune_need(pipeline *p) {
    llmq_tune_job job = pipeline_tune_job(p);
    return p->params->tune ? p->tuner->need(&job) : (llmq_tune_need){0};
}

/* The larger of those between layers and those of the tuning behind them. */
size_t pipeline_checkpoint_bytes(pipeline *p) {
    size_t n_tok = pipeline_calibrates(p) ? (size_t)(p->calib.n_windows * p->calib.ctx) : 0;
    llmq_tune_need need = tune_need(p);
    size_t layers = calib_run_state_bytes(&p->model->hp, n_tok), tuning = need.state + need.streams;
    return p->result->n_rows * sizeof(row_record) + (layers > tuning ? layers : tuning);
}

static llmq_status check_disk(const pipeline *p, const char *tmp, const char *journal, llmq_err *err) {
    uint64_t need = (uint64_t)p->result->planned_disk_bytes;
    uint64_t have = file_disk_bytes(tmp) + file_disk_bytes(journal);
    return file_check_space(p->result->out, need > have ? need - have : 0, err);
}

llmq_status pipeline_open_journal(pipeline *p, llmq_err *err) {
    char tmp[1100], journal[1100], why[256];
    pipeline_resume *r = &p->resume;
    snprintf(tmp, sizeof tmp, "%s.tmp", p->result->out);
    snprintf(journal, sizeof journal, "%s.journal", p->result->out);
    r->records = mem_zalloc(p->result->n_rows, sizeof(row_record));
    if (!r->records) return mem_error(err, p->result->n_rows * sizeof(row_record), "the journal");
    LLMQ_TRY(check_disk(p, tmp, journal, err));
    LLMQ_TRY(journal_open(journal, p->settings, pipeline_checkpoint_bytes(p), &r->journal, err));
    bool found = journal_matches(r->journal, why, sizeof why);
    if (found && !p->params->no_resume && file_exists(tmp)) {
        r->found = true;
        return LLMQ_OK;
    }
    if (why[0] && !p->params->no_resume) llmq_log(LLMQ_LOG_WARN, "%s: %s; starting anew", journal, why);
    return journal_start(r->journal, err);
}

/* ---- going on ---- */

static llmq_status open_outputs(pipeline *p, bool resume, llmq_err *err) {
    p->spec.resume = resume;
    LLMQ_TRY(outputs_open(&p->spec, p->ex, &p->outputs, err));
    for (size_t i = 0; resume && i < p->ex->n; i++)
        if (pipeline_is_there(p, i)) LLMQ_TRY(outputs_have(p->outputs, i, err));
    return LLMQ_OK;
}

static void go_on(pipeline *p, int64_t done) {
    pipeline_resume *r = &p->resume;
    int64_t n_layer = p->model->hp.n_layer;
    r->begin = r->done = r->saved = done;
    load_rows(p);
    p->skipped = (p->total - p->done) * (double)done / (double)n_layer;
    p->done += p->skipped;
    p->result->planned_seconds -= 1e-9 * p->skipped;
    p->result->resumed_layers = done;
    llmq_log(LLMQ_LOG_NOTE, "going on after layer %lld of %lld", (long long)done, (long long)n_layer);
}

/* Of a checkpoint, what its number of layers says: the tuning's, with the streams of one layer after the other or
 * without. */
#define DONE_TUNING(p, streams) ((p)->model->hp.n_layer + ((streams) ? 2 : 1))

static void set_tuning_parts(pipeline *p, bool streams) {
    pipeline_resume *r = &p->resume;
    llmq_tune_need need = tune_need(p);
    r->parts[0] = (journal_part){r->records, p->result->n_rows * sizeof(row_record)};
    r->parts[1] = (journal_part){r->tune_state, need.state};
    r->parts[2] = (journal_part){r->tune_streams, need.streams};
    r->n_parts = streams ? 3 : 2;
}

/* Room for a checkpoint of the tuning. */
static llmq_status make_room_for_tuning(pipeline *p, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    llmq_tune_need need = tune_need(p);
    if (!r->tune_state) r->tune_state = mem_zalloc(need.state, 1);
    if (!r->tune_streams && need.streams) r->tune_streams = p->mapped ? p->scratch : mem_alloc(need.streams, 1);
    if (!r->tune_state || (need.streams && !r->tune_streams))
        return mem_error(err, need.state + need.streams, "the state of the tuning");
    return LLMQ_OK;
}

static void drop_tuning(pipeline *p) {
    pipeline_resume *r = &p->resume;
    mem_free(r->tune_state);
    if (!p->mapped) mem_free(r->tune_streams);
    r->tune_state = r->tune_streams = NULL;
    r->tuning = false;
}

/* What an earlier run left: *done_out layers, or -1. Where the tuning had begun, the outputs are no longer what a
 * checkpoint of the layers says. */
static llmq_status load_checkpoint(pipeline *p, int64_t *done_out, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    int64_t n_layer = p->model->hp.n_layer, done = journal_done(r->journal);
    if (done > n_layer && p->params->tune) {
        LLMQ_TRY(make_room_for_tuning(p, err));
        set_tuning_parts(p, done == DONE_TUNING(p, true));
        LLMQ_TRY(journal_load(r->journal, r->parts, r->n_parts, done_out, err));
        r->tuning = *done_out > n_layer;
        if (r->tuning) *done_out = n_layer;
        if (!r->tuning) llmq_log(LLMQ_LOG_WARN, "the journal is damaged; starting anew");
        return LLMQ_OK;
    }
    LLMQ_TRY(pipeline_create_calibration(p, err));
    set_parts(p);
    return journal_load(r->journal, r->parts, r->n_parts, done_out, err);
}

/* Goes on with what was loaded; *found false: there is nothing to go on with. */
static llmq_status try_to_go_on(pipeline *p, bool *found, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    llmq_err why = {0};
    int64_t done;
    *found = false;
    LLMQ_TRY(load_checkpoint(p, &done, err));
    r->found = false; /* what follows knows better what is worth keeping */
    if (done <= 0 || done > p->model->hp.n_layer) return LLMQ_OK;
    r->begin = r->saved = done;
    llmq_status status = open_outputs(p, true, &why);
    if (status == LLMQ_OK) {
        *found = true;
        go_on(p, done);
        return LLMQ_OK;
    }
    outputs_abort(p->outputs, true);
    p->outputs = NULL;
    if (status == LLMQ_E_MEMORY || status == LLMQ_E_EXISTS) return llmq_fail(err, status, "%s", why.msg);
    llmq_log(LLMQ_LOG_WARN, "%s; starting anew", why.msg);
    return LLMQ_OK;
}

llmq_status pipeline_begin(pipeline *p, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    bool found = false;
    p->result->n_layers = p->model->hp.n_layer;
    r->saved_at = time_seconds();
    if (r->found) {
        LLMQ_TRY(try_to_go_on(p, &found, err));
        if (found) return LLMQ_OK;
        r->begin = r->saved = 0;
        drop_tuning(p);
        LLMQ_TRY(journal_start(r->journal, err));
    }
    if (p->run)
        calib_run_restart(p->run);
    else
        LLMQ_TRY(pipeline_create_calibration(p, err));
    set_parts(p);
    return open_outputs(p, false, err);
}

bool pipeline_is_there(const pipeline *p, size_t index) {
    return p->resume.begin > 0 && p->ex->entries[index].layer < p->resume.begin;
}

/* ---- checkpoints ---- */

/* What outputs cannot put on the disk is an error; a journal that cannot be written costs no more than itself. */
static llmq_status checkpoint(pipeline *p, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    llmq_err why = {0};
    double begin = time_seconds();
    LLMQ_TRY(outputs_sync(p->outputs, err));
    save_rows(p);
    if (journal_save(r->journal, r->parts, r->n_parts, r->done, &why) != LLMQ_OK) {
        llmq_log(LLMQ_LOG_WARN, "%s: a run that is stopped would go on after layer %lld", why.msg, (long long)r->saved);
    } else {
        r->saved = r->done;
    }
    r->saved_at = time_seconds();
    r->save_seconds = r->saved_at - begin;
    return LLMQ_OK;
}

static bool wants_all(void) {
    const char *always = getenv(ALWAYS);
    return always && !strcmp(always, "all");
}

llmq_status pipeline_layer_done(pipeline *p, int layer, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    double cost = r->save_seconds > 0 ? r->save_seconds : (double)pipeline_checkpoint_bytes(p) / DISK_BYTES_SECOND;
    r->done = layer + 1;
    if (!wants_all() && cost > CHECKPOINT_SHARE * (time_seconds() - r->saved_at)) return LLMQ_OK;
    return checkpoint(p, err);
}

/* ---- tuning ---- */

llmq_status pipeline_begin_tuning(pipeline *p, llmq_err *err) {
    pipeline_resume *r = &p->resume;
    if (r->saved < r->done) LLMQ_TRY(checkpoint(p, err));
    r->done = r->saved; /* what could not be saved is not tried again without its state */
    pipeline_drop_calibration(p);
    return make_room_for_tuning(p, err);
}

llmq_status pipeline_save_tuning(void *user, bool streams, bool now, llmq_err *err) {
    pipeline *p = user;
    pipeline_resume *r = &p->resume;
    llmq_tune_need need = tune_need(p);
    size_t bytes = need.state + (streams ? need.streams : 0);
    double cost = r->save_seconds > 0 ? r->save_seconds : (double)bytes / DISK_BYTES_SECOND;
    if (!now && !wants_all() && cost > CHECKPOINT_SHARE * (time_seconds() - r->saved_at)) return LLMQ_OK;
    set_tuning_parts(p, streams);
    r->done = DONE_TUNING(p, streams);
    llmq_status status = checkpoint(p, err);
    r->done = r->saved;
    return status;
}

void pipeline_end(pipeline *p, llmq_status status) {
    pipeline_resume *r = &p->resume;
    /* Another try of the same command may get further after these, and only after these. */
    bool curable = status == LLMQ_E_INTERRUPTED || status == LLMQ_E_IO || status == LLMQ_E_MEMORY;
    if (curable && p->outputs && r->done > r->saved && (!p->run || calib_run_settled(p->run)))
        (void)checkpoint(p, NULL); /* the last one is there in any case */
    bool keep = curable && (r->found || (p->outputs && r->saved > 0));
    outputs_abort(p->outputs, keep);
    p->outputs = NULL;
    p->result->kept = keep;
    int64_t n_layer = p->model ? p->model->hp.n_layer : 0; /* tuning counts on from there */
    p->result->kept_layers = !keep ? 0 : r->saved < n_layer ? r->saved : n_layer;
    drop_tuning(p);
    journal_close(r->journal, !keep);
    mem_free(r->records);
    mem_free(p->settings);
}
