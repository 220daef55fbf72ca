#include "engine/quant_report.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

/* -1 stands for "not measured" in the structs and for null here. */
static json_t *measured(double x) {
    return x < 0 ? json_null() : json_real(x);
}

/* Names come from files: what is not UTF-8 becomes null rather than an error. */
static json_t *text(const char *s) {
    json_t *j = s && *s ? json_string(s) : NULL;
    return j ? j : json_null();
}

static json_t *row_json(const llmq_quant_row *row) {
    return json_pack("{s:o, s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:b, s:o}", "name", text(row->name),
                     "from", llmq_type_name(row->from), "to", row->to_name, "method", row->method, "rows",
                     (json_int_t)row->rows, "cols", (json_int_t)row->cols, "bytes", (json_int_t)row->bytes, "error",
                     measured(row->error), "rtn_error", measured(row->rtn_error), "awq_alpha", measured(row->awq_alpha),
                     "awq_ratio", measured(row->awq_ratio), "fallback", (int)row->fallback, "note", text(row->note));
}

static json_t *tuning_json(const llmq_quant_result *r) {
    bool whole = r->tune_steps > 0, blocks = r->tune_blocks > 0;
    return json_pack("{s:o, s:I, s:o, s:o, s:I, s:I, s:o, s:o}", "how", text(r->tune_how), "steps",
                     (json_int_t)r->tune_steps, "kl_before", measured(whole ? r->tune_before : -1), "kl_after",
                     measured(whole ? r->tune_after : -1), "blocks", (json_int_t)r->tune_blocks, "block_steps",
                     (json_int_t)r->block_steps, "block_error_before", measured(blocks ? r->block_before : -1),
                     "block_error_after", measured(blocks ? r->block_after : -1));
}

static json_t *memory_row(int64_t weights, int64_t kv, const char *kv_name) {
    return json_pack("{s:I, s:I, s:s}", "weights", (json_int_t)weights, "kv", (json_int_t)kv, "kv_type", kv_name);
}

/* What the model takes in each kind of number, and what was written: of the first output where there are several. */
static json_t *memory_json(const llmq_quant_result *r) {
    json_t *memory = json_pack("{s:I}", "ctx", (json_int_t)r->memory_ctx);
    llmq_memory_row rows[LLMQ_MEMORY_ROWS];
    int64_t bytes = 0;
    llmq_memory_table(r->f32_bytes / 4, r->kv_bytes_per_token, r->memory_ctx, rows);
    for (int i = 0; i < LLMQ_MEMORY_ROWS; i++)
        json_object_set_new(memory, rows[i].key, memory_row(rows[i].weights, rows[i].kv, rows[i].kv_name));
    for (size_t i = 0; i < r->n_rows; i++) bytes += r->rows[i].bytes;
    json_object_set_new(memory, "file", memory_row(bytes, r->kv_bytes_per_token * r->memory_ctx, "f16"));
    return memory;
}

/* Inputs in fixed ranges; what was not measured is null. */
static json_t *inputs_json(const llmq_quant_result *r) {
    json_t *list = json_array();
    for (size_t i = 0; i < r->n_inputs; i++) {
        const llmq_quant_input *in = &r->inputs[i];
        double low = (double)in->scale * (-128 - in->zero), high = (double)in->scale * (127 - in->zero);
        json_array_append_new(
            list, json_pack("{s:i, s:s, s:b, s:f, s:f, s:f, s:i, s:f, s:f, s:o, s:f, s:o, s:o, s:o, s:I, s:o}", "layer",
                            in->layer, "site", in->site, "kept", (int)in->kept, "min", (double)in->min, "max",
                            (double)in->max, "scale", (double)in->scale, "zero", in->zero, "low", low, "high", high,
                            "observer", text(in->observer), "alpha", in->alpha, "error", measured(in->error),
                            "plain_error", measured(in->plain_error), "token_error", measured(in->token_error), "macs",
                            (json_int_t)in->macs, "note", text(in->note)));
    }
    return list;
}

static json_t *report_json(const char *source, const llmq_quant_params *params, const llmq_quant_result *r) {
    json_t *rows = json_array();
    for (size_t i = 0; i < r->n_rows; i++) {
        const llmq_quant_row *row = &r->rows[i];
        json_t *j = row_json(row);
        json_object_set_new(j, "layer", row->layer < 0 ? json_null() : json_integer(row->layer));
        json_object_set_new(j, "role", text(row->role));
        json_object_set_new(j, "site", text(row->site));
        json_object_set_new(j, "tokens", json_integer(row->n_tokens));
        json_object_set_new(j, "fixed", json_boolean(row->fixed));
        json_object_set_new(j, "expected_kl", measured(row->expected_kl));
        json_array_append_new(rows, j);
    }
    json_t *root = json_pack("{s:o, s:o, s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o}", "source", text(source),
                             "out", text(r->out), "method", params->method, "version", llmq_version(), "f32_bytes",
                             (json_int_t)r->f32_bytes, "f16_bytes", (json_int_t)r->f16_bytes, "in_bytes",
                             (json_int_t)r->in_bytes, "out_bytes", (json_int_t)r->out_bytes, "bits_per_weight",
                             r->bits_per_weight, "matrix_bits_per_weight", r->matrix_bits_per_weight, "mean_error",
                             measured(r->mean_error), "mean_rtn_error", measured(r->mean_rtn_error));
    if (!root) {
        json_decref(rows);
        return NULL;
    }
    json_object_set_new(root, "memory", memory_json(r));
    json_object_set_new(root, "awq", json_boolean(params->awq));
    json_object_set_new(root, "activations",
                        text(params->int8 == LLMQ_INT8_STATIC    ? "int8, fixed ranges"
                             : params->int8 == LLMQ_INT8_DYNAMIC ? "int8, a scale for each token"
                                                                 : NULL));
    if (r->n_inputs) json_object_set_new(root, "inputs", inputs_json(r));
    json_object_set_new(root, "calib_tokens", json_integer(r->calib_tokens));
    json_object_set_new(root, "dropped_tokens", json_integer(r->dropped_tokens));
    if (params->tune) json_object_set_new(root, "tuning", tuning_json(r));
    json_object_set_new(root, "seconds", json_real(r->seconds));
    json_object_set_new(root, "planned_seconds", json_real(r->planned_seconds));
    json_object_set_new(root, "peak_bytes", json_integer(r->peak_bytes));
    json_object_set_new(root, "planned_peak_bytes", json_integer(r->planned_peak_bytes));
    json_object_set_new(root, "planned_disk_bytes", json_integer(r->planned_disk_bytes));
    json_object_set_new(root, "n_fallback", json_integer(r->n_fallback));
    json_t *stages = json_object();
    for (int i = 0; i < LLMQ_STAGE_COUNT; i++)
        json_object_set_new(stages, llmq_quant_stage_name((llmq_quant_stage)i), json_real(r->stage_seconds[i]));
    json_object_set_new(root, "stage_seconds", stages);
    json_object_set_new(root, "command", text(params->command));
    json_object_set_new(root, "tensors", rows);
    return root;
}

llmq_status quant_report_write(const char *source, const llmq_quant_params *params, const llmq_quant_result *result,
                               llmq_out *out, llmq_err *err) {
    json_t *root = report_json(source, params, result);
    char *body = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(7)) : NULL;
    json_decref(root);
    if (!body) {
        out_abort(out);
        return mem_error(err, 0, "the report");
    }
    llmq_status status = out_write_at(out, body, strlen(body), 0, err);
    if (status == LLMQ_OK) status = out_write_at(out, "\n", 1, strlen(body), err);
    free(body);
    if (status != LLMQ_OK) {
        out_abort(out);
        return status;
    }
    return out_finish(out, err);
}
