/* llmq inspect: what is in a file, and what it would take in memory. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/json.h"

typedef struct inspect_opts {
    int64_t ctx;
    int json, tensors, meta;
    const char *engines;
} inspect_opts;

static const opt_def inspect_defs[] = {
    OPT_ROW_HEAD("options"),
    OPT_ROW_FLAG("--json", NULL, inspect_opts, json, 1, "one JSON document"),
    OPT_ROW_FLAG("--tensors", NULL, inspect_opts, tensors, 1, "list every tensor"),
    OPT_ROW_FLAG("--meta", NULL, inspect_opts, meta, 1, "list the metadata"),
    OPT_ROW_INT("--ctx", "-c", "N", inspect_opts, ctx, 1, 1 << 30,
                "context for the memory table (default: the model's own, at most 4096)"),
    OPT_ROW_TEXT(
        "--for", NULL, "ENGINES", inspect_opts, engines,
        "instead: what would refuse the model and why; some of llama.cpp,vllm,transformers,sglang. Exit status "
        "1 if one of them refuses"),
    OPT_ROW_END,
};

typedef struct type_sum {
    int64_t tensors, params, bytes;
} type_sum;

static int64_t tensor_params(const llmq_tensor_info *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->dims[i];
    return n;
}

static void sum_types(const llmq_model *model, type_sum sums[LLMQ_TYPE_COUNT]) {
    llmq_tensor_info t;
    for (size_t i = 0; i < llmq_model_n_tensors(model); i++) {
        if (llmq_model_tensor(model, i, &t) || t.type < 0 || t.type >= LLMQ_TYPE_COUNT) continue;
        sums[t.type].tensors++;
        sums[t.type].params += tensor_params(&t);
        sums[t.type].bytes += t.bytes;
    }
}

static double bits_per(int64_t bytes, int64_t params) {
    return params > 0 ? 8.0 * (double)bytes / (double)params : 0;
}
/* ---- JSON */

static json_t *memory_row_json(int64_t weights, int64_t kv, const char *kv_name) {
    return json_pack("{s:I, s:I, s:s, s:I}", "weights", (json_int_t)weights, "kv", (json_int_t)kv, "kv_type", kv_name,
                     "both", (json_int_t)(weights + kv));
}

static json_t *memory_json(const llmq_model_info *m, int64_t ctx) {
    json_t *memory = json_object();
    llmq_memory_row rows[LLMQ_MEMORY_ROWS];
    llmq_memory_table(m->n_params, m->kv_bytes_per_token, ctx, rows);
    for (int i = 0; i < LLMQ_MEMORY_ROWS; i++) {
        json_t *row = memory_row_json(rows[i].weights, rows[i].kv, rows[i].kv_name);
        json_object_set_new(row, "bits", cli_json_real(rows[i].bits));
        json_object_set_new(memory, rows[i].key, row);
    }
    json_t *file = memory_row_json(m->weight_bytes, m->kv_bytes_per_token * ctx, "f16");
    json_object_set_new(file, "bits", cli_json_real(bits_per(m->weight_bytes, m->n_params)));
    json_object_set_new(memory, "file", file);
    return memory;
}

static json_t *tensors_json(const llmq_model *model) {
    json_t *list = json_array();
    llmq_tensor_info t;
    for (size_t i = 0; i < llmq_model_n_tensors(model); i++) {
        if (llmq_model_tensor(model, i, &t)) continue;
        json_t *dims = json_array();
        for (int d = 0; d < t.n_dims; d++) json_array_append_new(dims, json_integer(t.dims[d]));
        json_t *row = json_object();
        json_object_set_new(row, "name", json_stringn_nocheck(t.name, strlen(t.name)));
        json_object_set_new(row, "type", json_string(llmq_type_name(t.type)));
        json_object_set_new(row, "dims", dims);
        json_object_set_new(row, "bytes", json_integer(t.bytes));
        json_array_append_new(list, row);
    }
    return list;
}

static json_t *types_json(const type_sum *sums) {
    json_t *types = json_object();
    for (int i = 0; i < LLMQ_TYPE_COUNT; i++) {
        if (!sums[i].tensors) continue;
        json_t *row = json_object();
        json_object_set_new(row, "tensors", json_integer(sums[i].tensors));
        json_object_set_new(row, "params", json_integer(sums[i].params));
        json_object_set_new(row, "bytes", json_integer(sums[i].bytes));
        json_object_set_new(types, llmq_type_name((llmq_type)i), row);
    }
    return types;
}

static void set_text(json_t *doc, const char *key, const char *value) {
    json_t *text = value ? json_string(value) : json_null();
    json_object_set_new(doc, key, text ? text : json_null()); /* text that is not UTF-8 */
}

static int print_json(const llmq_model *model, const llmq_model_info *m, const type_sum *sums, const inspect_opts *o) {
    json_t *doc = json_object();
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {{"n_vocab", m->n_vocab},
                   {"n_embd", m->n_embd},
                   {"n_layer", m->n_layer},
                   {"n_head", m->n_head},
                   {"n_head_kv", m->n_head_kv},
                   {"head_dim", m->head_dim},
                   {"n_ff", m->n_ff},
                   {"n_ctx_train", m->n_ctx_train},
                   {"n_params", m->n_params},
                   {"weight_bytes", m->weight_bytes},
                   {"matrix_params", m->matrix_params},
                   {"matrix_bytes", m->matrix_bytes},
                   {"kv_bytes_per_token", m->kv_bytes_per_token},
                   {"bytes_per_token", m->bytes_per_token},
                   {"n_tensors", (int64_t)llmq_model_n_tensors(model)},
                   {"ctx", o->ctx}};
    set_text(doc, "path", m->path);
    set_text(doc, "container", m->container);
    set_text(doc, "arch", m->arch);
    set_text(doc, "name", m->name);
    set_text(doc, "tokenizer", m->tokenizer);
    set_text(doc, "chat_template", m->chat_template);
    set_text(doc, "quantization", m->quantization);
    set_text(doc, "activations", m->activations);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_object_set_new(doc, numbers[i].key, json_integer(numbers[i].value));
    json_object_set_new(doc, "rope_theta", cli_json_real(m->rope_theta));
    json_object_set_new(doc, "tied_head", json_boolean(m->tied_head));
    json_object_set_new(doc, "bits_per_weight", cli_json_real(bits_per(m->weight_bytes, m->n_params)));
    json_object_set_new(doc, "matrix_bits_per_weight", cli_json_real(bits_per(m->matrix_bytes, m->matrix_params)));
    json_object_set_new(doc, "main_type", json_string(llmq_type_name(m->main_type)));
    json_object_set_new(doc, "types", types_json(sums));
    json_object_set_new(doc, "memory", memory_json(m, o->ctx));
    if (o->tensors) json_object_set_new(doc, "tensors", tensors_json(model));
    if (o->meta) {
        json_t *meta = json_object();
        const char *key, *value;
        for (size_t i = 0; llmq_model_meta(model, i, &key, &value); i++) set_text(meta, key, value);
        json_object_set_new(doc, "meta", meta);
    }
    return cli_json_print(doc, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
}

/* ---- text */

static void print_types(const type_sum *sums) {
    char bytes[32], params[32];
    printf("\n%-10s %8s %16s %12s %8s\n", "type", "tensors", "weights", "bytes", "bits");
    for (int i = 0; i < LLMQ_TYPE_COUNT; i++)
        if (sums[i].tensors)
            printf("%-10s %8lld %16s %12s %8.3f\n", llmq_type_name((llmq_type)i), (long long)sums[i].tensors,
                   cli_count(sums[i].params, params), cli_bytes((double)sums[i].bytes, bytes),
                   bits_per(sums[i].bytes, sums[i].params));
}

static void print_tensors(const llmq_model *model) {
    llmq_tensor_info t;
    char bytes[32], dims[96];
    printf("\n%-44s %-8s %22s %12s\n", "tensor", "type", "dims", "bytes");
    for (size_t i = 0; i < llmq_model_n_tensors(model); i++) {
        if (llmq_model_tensor(model, i, &t)) continue;
        int o = 0;
        for (int d = 0; d < t.n_dims; d++)
            o += snprintf(dims + o, sizeof dims - (size_t)o, "%s%lld", d ? " x " : "", (long long)t.dims[d]);
        printf("%-44s %-8s %22s %12s\n", t.name, llmq_type_name(t.type), dims, cli_bytes((double)t.bytes, bytes));
    }
}

static void print_meta(const llmq_model *model) {
    const char *key, *value;
    putchar('\n');
    for (size_t i = 0; llmq_model_meta(model, i, &key, &value); i++) printf("%-44s %s\n", key, value);
}

static int print_text(const llmq_model *model, const llmq_model_info *m, const type_sum *sums, const inspect_opts *o) {
    char a[32], b[32];
    printf("%s\n", m->path);
    printf("container     %s\n", m->container);
    if (llmq_model_n_tensors(model) == 0) {
        printf("model         %s, no weights: a vocabulary only\n", m->arch ? m->arch : "?");
        printf("vocabulary    %s tokens\n", cli_count(m->n_vocab, a));
        printf("tokenizer     %s\n", m->tokenizer);
        if (o->meta) print_meta(model);
        return EXIT_OK;
    }
    printf("model         %s%s%s, %s weights\n", m->arch, m->name && *m->name ? ", " : "", m->name ? m->name : "",
           cli_count(m->n_params, a));
    printf("shape         %lld layers, width %lld, %lld heads (%lld for keys and values) of %lld, feed-forward %lld\n",
           (long long)m->n_layer, (long long)m->n_embd, (long long)m->n_head, (long long)m->n_head_kv,
           (long long)m->head_dim, (long long)m->n_ff);
    printf("vocabulary    %s tokens, %s head\n", cli_count(m->n_vocab, a), m->tied_head ? "tied" : "separate");
    printf("context       %s tokens in training, rope base %g\n", cli_count(m->n_ctx_train, a), m->rope_theta);
    printf("tokenizer     %s\n", m->tokenizer);
    printf("template      %s\n", m->chat_template ? m->chat_template : "none that llmq knows");
    printf("weights       %s, %.3f bits per weight (%.3f inside the layers)\n", cli_bytes((double)m->weight_bytes, a),
           bits_per(m->weight_bytes, m->n_params), bits_per(m->matrix_bytes, m->matrix_params));
    if (m->quantization)
        printf("quantized     %s; %lld matrices rounded to a type that llmq runs\n", m->quantization,
               (long long)m->n_rounded);
    if (m->activations)
        printf("activations   8 bits inside the layers, %s\n",
               strcmp(m->activations, "dynamic") ? "in ranges found when quantizing" : "a scale for each token");
    printf("generation    reads %s of weights a token; the f16 cache grows by %s a token\n",
           cli_bytes((double)m->bytes_per_token, a), cli_bytes((double)m->kv_bytes_per_token, b));
    print_types(sums);
    putchar('\n');
    cli_print_memory(m->n_params, m->kv_bytes_per_token, o->ctx, m->weight_bytes);
    if (o->tensors) print_tensors(model);
    if (o->meta) print_meta(model);
    return EXIT_OK;
}

/* ---- other engines */

static int print_compat_json(const char *path, const llmq_compat_report *r) {
    json_t *doc = json_object(), *engines = json_object();
    bool ok = true;
    for (size_t e = 0; e < r->n_engines; e++) {
        json_t *engine = json_object(), *findings = json_array();
        for (size_t i = 0; i < r->n_findings; i++) {
            const llmq_compat_finding *f = &r->findings[i];
            if (f->engine != r->engines[e].name) continue;
            json_t *row = json_object();
            json_object_set_new(row, "refuses", json_boolean(f->verdict == LLMQ_COMPAT_REFUSES));
            set_text(row, "field", f->field);
            set_text(row, "reason", f->reason);
            set_text(row, "cure", f->cure);
            json_array_append_new(findings, row);
        }
        bool loads = r->engines[e].verdict != LLMQ_COMPAT_REFUSES;
        ok = ok && loads;
        json_object_set_new(engine, "ok", json_boolean(loads));
        set_text(engine, "verdict", llmq_compat_verdict_name(r->engines[e].verdict));
        json_object_set_new(engine, "findings", findings);
        json_object_set_new(engines, r->engines[e].name, engine);
    }
    set_text(doc, "path", path);
    json_object_set_new(doc, "ok", json_boolean(ok));
    json_object_set_new(doc, "engines", engines);
    return cli_json_print(doc, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
}

static void print_compat_text(const char *path, const llmq_compat_report *r) {
    printf("%s\n", path);
    for (size_t e = 0; e < r->n_engines; e++) {
        printf("%-13s %s\n", r->engines[e].name, llmq_compat_verdict_name(r->engines[e].verdict));
        for (size_t i = 0; i < r->n_findings; i++) {
            const llmq_compat_finding *f = &r->findings[i];
            if (f->engine != r->engines[e].name) continue;
            printf("  %-11s %s: %s\n", f->verdict == LLMQ_COMPAT_REFUSES ? "refused" : "warning", f->field, f->reason);
            printf("  %-11s %s\n", "  cure", f->cure);
        }
    }
}

static int inspect_for(const char *path, const inspect_opts *opts) {
    llmq_err err = {0};
    llmq_compat_report report;
    if (llmq_compat_check(path, opts->engines, &report, &err)) return cli_fail_err(&err);
    int rc = EXIT_OK;
    if (opts->json)
        rc = print_compat_json(path, &report);
    else
        print_compat_text(path, &report);
    for (size_t e = 0; e < report.n_engines; e++)
        if (report.engines[e].verdict == LLMQ_COMPAT_REFUSES) rc = EXIT_FAILED;
    llmq_compat_report_clear(&report);
    return rc;
}

/* A file that holds a tokenizer and no weights is worth a look too. */
static llmq_status open_model(const char *path, const common_opts *common, llmq_model **out, llmq_err *err) {
    llmq_model_params params;
    llmq_model_params_default(&params);
    params.no_weights = true;
    params.tokenizer = common->tokenizer;
    llmq_status status = llmq_model_open(path, &params, out, err);
    if (status != LLMQ_E_FORMAT) return status;
    llmq_model *vocab = NULL;
    params.vocab_only = true;
    if (llmq_model_open(path, &params, &vocab, NULL)) return status;
    if (llmq_model_n_tensors(vocab) > 0) {
        llmq_model_close(vocab);
        return status;
    }
    *out = vocab;
    return LLMQ_OK;
}

static int run(const cli_command *cmd, int argc, char **argv) {
    inspect_opts opts = {0};
    common_opts common = {0};
    const opt_set sets[] = {{inspect_defs, &opts}, {common_defs, &common}};
    const char *path;
    int rc = opt_parse(cmd, sets, 2, argc, argv, &path);
    if (rc == CLI_GO_ON) rc = cli_start(cmd, &common);
    if (rc != CLI_GO_ON) return rc;
    if (opts.engines) return inspect_for(path, &opts);
    llmq_err err = {0};
    llmq_model *model = NULL;
    if (open_model(path, &common, &model, &err)) return cli_fail_err(&err);
    llmq_model_info info;
    llmq_model_get_info(model, &info);
    type_sum sums[LLMQ_TYPE_COUNT] = {{0}};
    sum_types(model, sums);
    if (!opts.ctx) opts.ctx = llmq_memory_ctx(info.n_ctx_train);
    rc = opts.json ? print_json(model, &info, sums, &opts) : print_text(model, &info, sums, &opts);
    llmq_model_close(model);
    return rc;
}

const cli_command cmd_inspect = {
    .name = "inspect",
    .usage = "MODEL [--tensors] [--meta] [--ctx N] [--for ENGINES] [--json]",
    .summary = "what is in a model file",
    .about = "Prints architecture, tokenizer, storage types, bits per weight, and the memory that weights and KV cache "
             "take at 32, "
             "16, 8, 4, 3 and 2 bits.",
    .examples = "  llmq inspect model.gguf --ctx 8192\n  llmq inspect ./SmolLM2-135M-Instruct --tensors --json\n"
                "  llmq inspect ./model-gptq --for vllm,transformers && upload ./model-gptq\n",
    .run = run,
};
