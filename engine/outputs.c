/* The outputs of one run: every call goes to all of them. */
#include "engine/output.h"

#define MAX_OUTPUTS 8

struct llmq_outputs {
    llmq_output *list[MAX_OUTPUTS];
    size_t n;
};

const llmq_type_info *outputs_grid(const llmq_outputs_spec *spec, const llmq_export *ex, size_t index, size_t k) {
    (void)spec; /* a GGUF file is all there is */
    return k == 0 ? type_info(ex->tensors[index].type) : NULL;
}

llmq_status outputs_open(const llmq_outputs_spec *spec, const llmq_export *ex, llmq_outputs **out, llmq_err *err) {
    llmq_outputs *o = mem_zalloc(1, sizeof *o);
    if (!o) return mem_error(err, sizeof *o, spec->out);
    llmq_status status = output_gguf_open(spec, spec->out, ex, &o->list[o->n], err);
    if (status == LLMQ_OK) {
        o->n++;
        *out = o;
    } else
        outputs_abort(o, false);
    return status;
}

llmq_status outputs_plan_bytes(const llmq_outputs_spec *spec, const llmq_export *ex, int64_t *bytes, llmq_err *err) {
    (void)spec; /* a GGUF file is all there is */
    return gguf_plan_bytes(ex->meta, ex->tensors, ex->n, bytes, err);
}

llmq_status outputs_put(llmq_outputs *o, size_t index, const llmq_quantized *q, llmq_team *team, llmq_err *err) {
    for (size_t i = 0; i < o->n; i++) LLMQ_TRY(o->list[i]->kind->put(o->list[i], index, q, team, err));
    return LLMQ_OK;
}

llmq_status outputs_put_plain(llmq_outputs *o, size_t index, const float *values, llmq_team *team, bool *exact_out,
                              export_tick_fn *tick, void *user, llmq_err *err) {
    *exact_out = true;
    for (size_t i = 0; i < o->n; i++) {
        bool exact;
        LLMQ_TRY(o->list[i]->kind->put_plain(o->list[i], index, values, team, &exact, i ? NULL : tick, user, err));
        *exact_out = *exact_out && exact;
    }
    return LLMQ_OK;
}

llmq_status outputs_have(llmq_outputs *o, size_t index, llmq_err *err) {
    for (size_t i = 0; i < o->n; i++) LLMQ_TRY(o->list[i]->kind->have(o->list[i], index, err));
    return LLMQ_OK;
}

llmq_status outputs_sync(llmq_outputs *o, llmq_err *err) {
    for (size_t i = 0; i < o->n; i++) LLMQ_TRY(o->list[i]->kind->sync(o->list[i], err));
    return LLMQ_OK;
}

llmq_status outputs_finish(llmq_outputs *o, int64_t *bytes_out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    *bytes_out = 0;
    for (size_t i = 0; i < o->n; i++) {
        int64_t bytes = 0;
        llmq_output *output = o->list[i];
        if (status == LLMQ_OK)
            status = output->kind->finish(output, &bytes, err);
        else
            output->kind->drop(output, false);
        *bytes_out += bytes;
    }
    mem_free(o);
    return status;
}

void outputs_abort(llmq_outputs *o, bool keep) {
    if (!o) return;
    for (size_t i = 0; i < o->n; i++) o->list[i]->kind->drop(o->list[i], keep);
    mem_free(o);
}
