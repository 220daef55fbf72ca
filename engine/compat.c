/* Facts about a model that decide whether other engines load it, and the report of all rules that hold. */
#include "engine/compat.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/json.h"
#include "formats/source.h"

#define MAX_CONFIG ((size_t)16 << 20)

static const char *const engine_names[N_ENGINES] = {"llama.cpp", "vllm", "transformers", "sglang"};

/* ---- a folder's matrices ---- */

static bool ends_with(const char *s, const char *suffix, size_t *stem) {
    size_t n = strlen(s), k = strlen(suffix);
    if (n <= k || strcmp(s + n - k, suffix) != 0) return false;
    *stem = n - k;
    return true;
}

/* P + suffix, where P are the first stem bytes of name. */
static const llmq_listed_tensor *sibling(const compat_facts *f, const char *name, size_t stem, const char *suffix) {
    char full[512];
    if ((size_t)snprintf(full, sizeof full, "%.*s%s", (int)stem, name, suffix) >= sizeof full) return NULL;
    return safetensors_list_find(&f->list, full);
}

/* Shapes by the layouts of docs/formats.md: gptq packs inputs, awq packs outputs, ct packs inputs. */
static bool read_matrix(const compat_facts *f, const llmq_listed_tensor *t, compat_matrix *m) {
    const llmq_listed_tensor *scales;
    int64_t per_word = f->bits > 0 ? 32 / f->bits : 0;
    *m = (compat_matrix){.name = t->name, .quantized = true};
    if (ends_with(t->name, ".qweight", &m->stem) && t->n_dims == 2) {
        bool awq = f->method == METHOD_AWQ;
        m->rows = awq ? t->dims[1] * per_word : t->dims[1];
        m->cols = awq ? t->dims[0] : f->bits > 0 ? t->dims[0] * 32 / f->bits : 0;
        scales = sibling(f, t->name, m->stem, ".scales");
        m->groups = scales && scales->n_dims == 2 ? scales->dims[0] : 0;
        return true;
    }
    if (ends_with(t->name, ".weight_packed", &m->stem) && t->n_dims == 2) {
        m->rows = t->dims[0];
        m->cols = t->dims[1] * per_word;
        scales = sibling(f, t->name, m->stem, ".weight_scale");
        m->groups = scales && scales->n_dims == 2 ? scales->dims[1] : 0;
        return true;
    }
    if (!ends_with(t->name, ".weight", &m->stem) || t->n_dims != 2) return false;
    m->quantized = strchr("IU", t->dtype[0]) != NULL;
    m->rows = t->dims[0];
    m->cols = f->method == METHOD_BNB && m->quantized ? 0 : t->dims[1];
    return true;
}

static llmq_status read_matrices(compat_facts *f, llmq_err *err) {
    f->matrices = mem_alloc(f->list.n, sizeof *f->matrices);
    if (!f->matrices) return mem_error(err, f->list.n * sizeof *f->matrices, f->path);
    for (size_t i = 0; i < f->list.n; i++)
        f->n_matrices += read_matrix(f, &f->list.tensors[i], &f->matrices[f->n_matrices]);
    return LLMQ_OK;
}

/* ---- a folder's config.json ---- */

static int64_t number(const json_t *obj, const char *key) {
    const json_t *v = json_get(obj, key);
    return json_is_integer(v) ? json_integer_value(v) : 0;
}

static void read_quant(compat_facts *f) {
    static const struct {
        const char *name;
        compat_method method;
    } methods[] = {
        {"gptq", METHOD_GPTQ}, {"awq", METHOD_AWQ}, {"compressed-tensors", METHOD_CT}, {"bitsandbytes", METHOD_BNB}};
    f->quant = json_get(f->config, "quantization_config");
    f->dtype = json_string_value(json_get(f->config, "torch_dtype"));
    if (!f->dtype) f->dtype = json_string_value(json_get(f->config, "dtype"));
    f->tied = json_is_true(json_get(f->config, "tie_word_embeddings"));
    if (!json_is_object(f->quant)) {
        f->quant = NULL;
        return;
    }
    f->method = METHOD_OTHER;
    f->method_name = json_string_value(json_get(f->quant, "quant_method"));
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (f->method_name && !strcmp(f->method_name, methods[i].name)) f->method = methods[i].method;
    const json_t *fields = f->quant;
    if (f->method == METHOD_CT) {
        const char *key;
        json_t *first;
        json_object_foreach(json_get(f->quant, "config_groups"), key, first) {
            f->ct = fields = json_get(first, "weights");
            break;
        }
    }
    f->bits = number(fields, f->method == METHOD_CT ? "num_bits" : "bits");
    if (!f->bits) f->bits = number(fields, "w_bit");
    if (f->bits < 0 || f->bits > 32) f->bits = 0;
    f->group = number(fields, "group_size");
    if (!f->group) f->group = number(fields, "q_group_size");
    f->sym = !json_is_false(json_get(fields, f->method == METHOD_CT ? "symmetric" : "sym"));
}

static llmq_status read_folder(compat_facts *f, const char *dir, llmq_err *err) {
    static const char *const tokenizers[] = {"tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"};
    char path[SOURCE_MAX_PATH];
    if (!path_join(path, sizeof path, dir, "config.json"))
        return llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", dir);
    LLMQ_TRY(json_read_object(path, MAX_CONFIG, &f->config, err));
    read_quant(f);
    for (size_t i = 0; i < sizeof tokenizers / sizeof *tokenizers; i++)
        f->has_tokenizer = f->has_tokenizer || (path_join(path, sizeof path, dir, tokenizers[i]) && file_exists(path));
    LLMQ_TRY(safetensors_list_read(dir, &f->list, err));
    return read_matrices(f, err);
}

/* ---- gathering ---- */

static llmq_status gather(const char *path, compat_facts *f, llmq_source **source, llmq_err *err) {
    char dir[SOURCE_MAX_PATH];
    size_t stem, n = strlen(path);
    *f = (compat_facts){.path = path};
    if (ends_with(path, ".safetensors", &stem) || ends_with(path, ".safetensors.index.json", &stem))
        n = (size_t)(path_base(path) - path); /* a file of a folder stands for the folder */
    f->is_hf = file_is_dir(path) || n < strlen(path);
    if (n >= sizeof dir) return llmq_fail(err, LLMQ_E_IO, "%.200s...: the path is too long", path);
    memcpy(dir, n ? path : ".", n ? n : 1);
    dir[n ? n : 1] = 0;
    if (f->is_hf) return read_folder(f, dir, err);
    LLMQ_TRY(source_open(path, source, err));
    f->source = *source;
    f->is_gguf = !strcmp((*source)->format->name, "gguf");
    f->is_llama2c = !strcmp((*source)->format->name, "llama2c");
    return LLMQ_OK;
}

/* ---- the report ---- */

static bool same_word(const char *a, const char *b, size_t n) {
    return strlen(b) == n && !strncmp(a, b, n);
}

static llmq_status choose_engines(const char *list, llmq_compat_report *out, llmq_err *err) {
    if (!list) list = "llama.cpp,vllm,transformers,sglang";
    for (const char *at = list, *end; *at; at = *end ? end + 1 : end) {
        int k = 0;
        end = at + strcspn(at, ",");
        while (k < N_ENGINES && !same_word(at, engine_names[k], (size_t)(end - at))) k++;
        if (k == N_ENGINES)
            return llmq_fail(err, LLMQ_E_ARG, "--for '%.*s': the engines are llama.cpp, vllm, transformers, sglang",
                             (int)(end - at < 40 ? end - at : 40), at);
        bool known = false;
        for (size_t i = 0; i < out->n_engines; i++) known = known || out->engines[i].name == engine_names[k];
        if (!known) out->engines[out->n_engines++].name = engine_names[k];
    }
    if (out->n_engines) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG, "--for: names one or more of llama.cpp, vllm, transformers, sglang");
}

static bool rule_is_for(const compat_rule *rule, const char *engine) {
    for (int k = 0; k < N_ENGINES; k++)
        if (engine_names[k] == engine) return (rule->engines >> k & 1) != 0;
    return false;
}

static llmq_status judge(const compat_facts *f, llmq_compat_report *out, llmq_err *err) {
    out->findings = mem_zalloc(out->n_engines * compat_n_rules, sizeof *out->findings);
    if (!out->findings) return mem_error(err, compat_n_rules * sizeof *out->findings, "the check");
    for (size_t e = 0; e < out->n_engines; e++) {
        for (size_t i = 0; i < compat_n_rules; i++) {
            const compat_rule *rule = &compat_rules[i];
            char detail[COMPAT_DETAIL] = "";
            if (!rule_is_for(rule, out->engines[e].name) || !rule->holds(f, detail)) continue;
            llmq_compat_finding *finding = &out->findings[out->n_findings++];
            *finding = (llmq_compat_finding){.engine = out->engines[e].name, .cure = rule->cure};
            finding->verdict = rule->refuses ? LLMQ_COMPAT_REFUSES : LLMQ_COMPAT_WARNS;
            snprintf(finding->field, sizeof finding->field, "%s", rule->field);
            snprintf(finding->reason, sizeof finding->reason, "%s%s%s", detail, *detail ? ": " : "", rule->reason);
            if (finding->verdict > out->engines[e].verdict) out->engines[e].verdict = finding->verdict;
        }
    }
    return LLMQ_OK;
}

llmq_status compat_check(const char *path, const char *engines, llmq_compat_report *out, llmq_err *err) {
    compat_facts facts;
    llmq_source *source = NULL;
    *out = (llmq_compat_report){0};
    LLMQ_TRY(choose_engines(engines, out, err));
    llmq_status status = gather(path, &facts, &source, err);
    if (status == LLMQ_OK) status = judge(&facts, out, err);
    mem_free(facts.matrices);
    safetensors_list_clear(&facts.list);
    json_decref(facts.config);
    source_close(source);
    if (status != LLMQ_OK) {
        mem_free(out->findings);
        *out = (llmq_compat_report){0};
    }
    return status;
}
