/* What lies beside the weights of a Hugging Face folder. From a folder: its own files, with the quantization written
 * into config.json. From other containers: made from the metadata (formats/hfconfig_write.c, tokenizer/hf_write.c). */
#include <string.h>

#include "engine/output.h"
#include "formats/hfconfig.h"
#include "formats/json.h"
#include "tokenizer/hf.h"

#define MAX_CONFIG ((size_t)16 << 20)
#define MAX_SIDE_FILE ((size_t)1 << 30)

static const char *const copied[] = {"generation_config.json",
                                     "tokenizer.json",
                                     "tokenizer_config.json",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "vocab.json",
                                     "merges.txt",
                                     "tokenizer.model",
                                     "chat_template.jinja"};
static const char *const made[] = {"config.json", "quantize_config.json", "model.safetensors",
                                   "model.safetensors.index.json"};

/* model-00001-of-00002.safetensors */
static bool is_shard(const char *name) {
    size_t n = strlen(name), k = strlen(".safetensors");
    return n > k + 6 && !strncmp(name, "model-", 6) && !strcmp(name + n - k, ".safetensors") &&
           strspn(name + 6, "0123456789-of") == n - k - 6;
}

bool hf_files_has(const char *name) {
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++)
        if (!strcmp(copied[i], name)) return true;
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        if (!strcmp(made[i], name)) return true;
    return is_shard(name);
}

static llmq_status write_text(const char *dir, const char *name, const char *text, size_t len, llmq_err *err) {
    char path[4096];
    if (!path_join(path, sizeof path, dir, name)) return llmq_fail(err, LLMQ_E_ARG, "%s: the path is too long", dir);
    return file_write(path, text, len, err);
}

/* config.json as the source says it, without what it said of quantization. */
static llmq_status source_config(const llmq_export *ex, bool from_folder, json_t **out, llmq_err *err) {
    char path[4096];
    const llmq_model *model = ex->model;
    if (!from_folder) {
        const llmq_tensor *const *first = model->layer_tensors[0].by_role;
        hfconfig_facts facts = {.tied = !model->by_role[ROLE_OUTPUT],
                                .qkv_bias = first[ROLE_Q_BIAS] != NULL,
                                .o_bias = first[ROLE_O_BIAS] != NULL,
                                .divisors = model->freq_factors};
        return hfconfig_make(ex->meta, &facts, out, err);
    }
    if (!source_side_file(model->source, "config.json", path, sizeof path))
        return llmq_fail(err, LLMQ_E_IO, "%s: config.json went away", model->source->path);
    return json_read_object(path, MAX_CONFIG, out, err);
}

/* Newer versions of transformers call it dtype, older ones torch_dtype; each reads its own. */
static void set_dtype(json_t *root, const char *dtype) {
    bool newer = json_object_get(root, "dtype") != NULL;
    json_object_set_new(root, newer ? "dtype" : "torch_dtype", json_string(dtype));
}

static llmq_status write_plain_config(const char *dir, const llmq_export *ex, bool from_folder, llmq_type type,
                                      llmq_err *err) {
    json_t *root = NULL;
    LLMQ_TRY(source_config(ex, from_folder, &root, err));
    set_dtype(root, type == LLMQ_TYPE_F32 ? "float32" : type == LLMQ_TYPE_BF16 ? "bfloat16" : "float16");
    json_object_del(root, "quantization_config");
    json_object_del(root, "compression_config");
    json_object_set_new(root, HF_FILES_MARK, json_sprintf("llmq %s", llmq_version()));
    llmq_status status = hf_save_json(dir, "config.json", root, err);
    json_decref(root);
    return status;
}

static llmq_status write_config(const char *dir, const llmq_export *ex, bool from_folder, const llmq_scheme *scheme,
                                const llmq_scheme_spec *spec, llmq_err *err) {
    json_t *root = NULL, *quant = scheme->config(spec);
    llmq_status status = quant ? source_config(ex, from_folder, &root, err) : mem_error(err, 4096, "config.json");
    if (status == LLMQ_OK && !strcmp(scheme->name, "gptq"))
        status = hf_save_json(dir, "quantize_config.json", quant, err);
    if (status == LLMQ_OK) {
        set_dtype(root, "float16");
        json_object_set(root, "quantization_config", quant);
        status = hf_save_json(dir, "config.json", root, err);
    }
    json_decref(quant);
    json_decref(root);
    return status;
}

static llmq_status copy_files(const char *dir, const llmq_source *source, llmq_err *err) {
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++) {
        char path[4096], *text = NULL;
        size_t len = 0;
        if (!source_side_file(source, copied[i], path, sizeof path)) continue;
        LLMQ_TRY(file_read(path, MAX_SIDE_FILE, &text, &len, err));
        llmq_status status = write_text(dir, copied[i], text, len, err);
        mem_free(text);
        if (status != LLMQ_OK) return status;
    }
    return LLMQ_OK;
}

static json_t *id_of(const llmq_meta *meta, const char *key) {
    int64_t id = -1;
    return meta_get_i64(meta, key, &id) && id >= 0 ? json_integer(id) : NULL;
}

static llmq_status write_generation_config(const char *dir, const llmq_meta *meta, llmq_err *err) {
    const llmq_meta_value *all = meta_find(meta, "llmq.eos_token_ids");
    json_t *root =
        json_pack("{s:b, s:o*}", "_from_model_config", 1, "bos_token_id", id_of(meta, "tokenizer.ggml.bos_token_id"));
    json_t *eos = id_of(meta, "tokenizer.ggml.eos_token_id");
    if (all && all->type == META_ARRAY && all->arr.type == META_I32) {
        const int32_t *ids = all->arr.data;
        json_decref(eos);
        eos = json_array();
        for (size_t i = 0; i < all->arr.n; i++) json_array_append_new(eos, json_integer(ids[i]));
    }
    if (eos) json_object_set_new(root, "eos_token_id", eos);
    llmq_status status = hf_save_json(dir, "generation_config.json", root, err);
    json_decref(root);
    return status;
}

/* Weights are of use without a tokenizer: what tokenizer.json cannot say is a warning. */
static llmq_status make_files(const char *dir, const llmq_export *ex, llmq_err *err) {
    llmq_err why = {0};
    LLMQ_TRY(write_generation_config(dir, ex->meta, err));
    llmq_status status = hf_tokenizer_write(dir, ex->meta, &why);
    if (status == LLMQ_OK) return LLMQ_OK;
    if (status != LLMQ_E_UNSUPPORTED) return llmq_fail(err, status, "%s", why.msg);
    llmq_log(LLMQ_LOG_WARN, "the folder has no tokenizer.json: %s", why.msg);
    return LLMQ_OK;
}

llmq_status hf_files_write(const char *dir, const llmq_export *ex, const llmq_scheme *scheme,
                           const llmq_scheme_spec *spec, llmq_type plain, llmq_err *err) {
    const llmq_source *source = ex->model->source;
    bool from_folder = !strcmp(source->format->name, "huggingface");
    LLMQ_TRY(scheme ? write_config(dir, ex, from_folder, scheme, spec, err)
                    : write_plain_config(dir, ex, from_folder, plain, err));
    return from_folder ? copy_files(dir, source, err) : make_files(dir, ex, err);
}
