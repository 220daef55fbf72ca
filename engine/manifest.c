/* What a result was made from and with, as JSON under llmq.manifest in the file's metadata and as lines in the journal.
 * All that decides about the bytes of the result is in it, and nothing else: no time, no path, no number of threads. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "engine/pipeline.h"

#define PIECE ((size_t)8 << 20) /* of the source between two looks at whether to stop */

static json_t *hex(uint64_t sum) {
    return json_sprintf("%016llx", (unsigned long long)sum);
}

/* Every byte is read: size and time would miss a file that was put back in place, and reading is what the job does with
 * these bytes anyway. XXH64 costs less than the disk. */
static llmq_status hash_map(pipeline *p, const llmq_map *map, uint64_t *sum_out, llmq_err *err) {
    llmq_hash h;
    hash_init(&h);
    for (size_t at = 0, n; at < map->size; at += n) {
        n = map->size - at < PIECE ? map->size - at : PIECE;
        hash_add(&h, map->data + at, n);
        file_map_release(map, map->data + at, n);
        if (p->params->progress && !p->params->progress(p->params->user, 0, 0, "reading the source", -1))
            return llmq_fail(err, LLMQ_E_INTERRUPTED, "stopped");
    }
    *sum_out = hash_sum(&h);
    return LLMQ_OK;
}

/* A plan does not read the source: its sums are zeros of the same length. */
static llmq_status add_source(pipeline *p, json_t *manifest, llmq_err *err) {
    const llmq_source *source = p->model->source;
    json_t *files = json_array();
    json_object_set_new(manifest, "source", files);
    for (size_t i = 0; i < source->n_maps; i++) {
        uint64_t sum = 0;
        if (!p->params->plan_only) LLMQ_TRY(hash_map(p, &source->maps[i], &sum, err));
        json_array_append_new(files,
                              json_pack("{s:I, s:o}", "bytes", (json_int_t)source->maps[i].size, "xxh64", hex(sum)));
    }
    return LLMQ_OK;
}

static void add_calibration(const pipeline *p, json_t *manifest) {
    const llmq_calib *calib = &p->calib;
    int64_t n = calib->n_windows * calib->ctx;
    if (!pipeline_needs_text(p)) return;
    json_object_set_new(manifest, "calibration",
                        json_pack("{s:I, s:I, s:o}", "tokens", (json_int_t)n, "ctx", (json_int_t)calib->ctx, "xxh64",
                                  hex(hash_bytes(calib->tokens, (size_t)n * sizeof *calib->tokens))));
}

/* A new setting of llmq_quant_params that changes the result gets a line here. Types are in the directory of tensors,
 * wherever they come from. */
static void add_settings(const pipeline *p, json_t *manifest) {
    const llmq_quant_params *params = p->params;
    json_object_set_new(manifest, "method", json_string(p->method->name));
    if (p->device) json_object_set_new(manifest, "device", json_string(p->device->name));
    if (params->awq) json_object_set_new(manifest, "awq", json_true());
    if (params->int8) json_object_set_new(manifest, "int8", json_string(pipeline_int8_name(p)));
    if (params->int8) json_object_set_new(manifest, "smooth", json_boolean(!params->no_smooth));
    if (outputs_have_folder(&p->spec))
        json_object_set_new(manifest, "emit",
                            json_pack("{s:s, s:i, s:I, s:b, s:b, s:I}", "outputs", p->spec.emit, "bits",
                                      p->spec.integer.bits, "group", (json_int_t)p->spec.integer.group, "sym",
                                      (int)p->spec.integer.sym, "double_quant", (int)p->spec.bnb.double_quant,
                                      "shard_bytes", (json_int_t)p->spec.shard_bytes));
    if (params->tune)
        json_object_set_new(manifest, "tune",
                            json_pack("{s:s, s:b, s:f, s:b, s:b}", "settings",
                                      params->tune_settings ? params->tune_settings : "default", "codes",
                                      (int)params->tune_codes, "minutes", params->tune_minutes, "blocks",
                                      (int)p->tune_plan.blocks, "whole", (int)p->tune_plan.whole));
    if (pipeline_calibrates(p)) /* acts= is for every calibration */
        json_object_set_new(manifest, "solver", json_string(params->solver ? params->solver : "default"));
    if (!p->method->needs_gram) return;
    json_object_set_new(manifest, "act_order",
                        json_boolean(params->act_order < 0 ? p->method->act_order_default : params->act_order > 0));
    json_object_set_new(manifest, "damp", params->damp < 0 ? json_string("default") : json_real(params->damp));
    json_object_set_new(manifest, "seed", json_integer((json_int_t)params->seed));
}

static uint64_t hash_meta(const llmq_meta *meta) {
    llmq_hash h;
    hash_init(&h);
    for (size_t i = 0; i < meta_count(meta); i++) {
        const llmq_meta_value *v = meta_at(meta, i);
        if (!strcmp(v->key, "llmq.manifest")) continue; /* of a model that llmq made */
        hash_add(&h, v->key, strlen(v->key) + 1);
        hash_add(&h, &v->type, sizeof v->type);
        if (v->type == META_STR)
            hash_add(&h, v->str.s, v->str.len);
        else if (v->type != META_ARRAY)
            hash_add(&h, &v->u, sizeof v->u);
        else if (v->arr.type != META_STR)
            hash_add(&h, v->arr.data, v->arr.n * meta_type_size(v->arr.type));
        else
            for (size_t k = 0; k < v->arr.n; k++) {
                const llmq_str *s = (const llmq_str *)v->arr.data + k;
                hash_add(&h, s->s, s->len);
                hash_add(&h, "", 1);
            }
    }
    return hash_sum(&h);
}

static uint64_t hash_directory(const llmq_export *ex) {
    llmq_hash h;
    hash_init(&h);
    for (size_t i = 0; i < ex->n; i++) {
        const llmq_tensor *t = &ex->tensors[i];
        hash_add(&h, t->name, strlen(t->name) + 1);
        hash_add(&h, &t->type, sizeof t->type);
        hash_add(&h, t->dims, sizeof t->dims);
    }
    return hash_sum(&h);
}

/* NAME VALUE lines; values are JSON. */
static char *as_lines(const json_t *manifest) {
    size_t n = 0, cap = 1;
    const char *key;
    const json_t *value;
    char *lines = NULL;
    for (int pass = 0; pass < 2; pass++) {
        json_object_foreach((json_t *)(uintptr_t)manifest, key, value) {
            char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
            if (text && lines)
                n += (size_t)snprintf(lines + n, cap - n, "%s %s\n", key, text);
            else if (text)
                cap += strlen(key) + strlen(text) + 2;
            free(text);
        }
        if (!lines && !(lines = mem_zalloc(cap, 1))) return NULL;
    }
    return lines;
}

static llmq_status publish(pipeline *p, json_t *manifest, llmq_err *err) {
    char *text = json_dumps(manifest, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (!text) return mem_error(err, 0, "the manifest");
    llmq_status status = meta_set_str(p->ex->meta, "llmq.manifest", text, err);
    free(text);
    if (status != LLMQ_OK) return status;
    /* For the journal alone: what the result holds for all to see, or what follows from the rest. */
    json_object_set_new(manifest, "metadata", hex(hash_meta(p->model->meta)));
    json_object_set_new(manifest, "types", hex(hash_directory(p->ex)));
    p->settings = as_lines(manifest);
    return p->settings ? LLMQ_OK : mem_error(err, 0, "the settings");
}

llmq_status pipeline_manifest(pipeline *p, llmq_err *err) {
    json_t *manifest = json_pack("{s:s, s:s}", "llmq", llmq_version(), "isa", p->model->ops->isa);
    if (!manifest) return mem_error(err, 0, "the manifest");
    add_settings(p, manifest);
    add_calibration(p, manifest);
    llmq_status status = add_source(p, manifest, err);
    if (status == LLMQ_OK) status = publish(p, manifest, err);
    json_decref(manifest);
    return status;
}
