/* The small files beside tokenizer.json: tokenizer_config.json, special_tokens_map.json, generation_config.json,
 * chat_template.jinja. What they say about special tokens and BOS goes before tokenizer.json's own post_processor. */
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "tokenizer/hf.h"
#include "tokenizer/internal.h"

#define MAX_TEMPLATE_BYTES ((size_t)1 << 22)

/* "<s>", {"content": "<s>"}, or null. */
static const char *token_text(const json_t *object, const char *key) {
    const json_t *t = json_object_get(object, key);
    return json_string_value(json_is_object(t) ? json_object_get(t, "content") : t);
}

/* The id of a special token; searched backwards, because added tokens stand at the end. */
static int64_t find_token(const llmq_meta *meta, const char *text) {
    const llmq_meta_value *v = meta_find(meta, "tokenizer.ggml.tokens");
    if (!v || !text) return -1;
    const llmq_str *tokens = v->arr.data;
    size_t len = strlen(text);
    for (size_t i = v->arr.n; i-- > 0;)
        if (tokens[i].len == len && !memcmp(tokens[i].s, text, len)) return (int64_t)i;
    return -1;
}

static llmq_status read_token_names(const json_t *config, llmq_meta *meta, llmq_err *err) {
    static const struct {
        const char *json, *key;
    } names[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                 {"eos_token", "tokenizer.ggml.eos_token_id"},
                 {"unk_token", "tokenizer.ggml.unknown_token_id"},
                 {"pad_token", "tokenizer.ggml.padding_token_id"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int64_t id = find_token(meta, token_text(config, names[i].json));
        if (id >= 0) LLMQ_TRY(meta_set_u32(meta, names[i].key, (uint32_t)id, err));
    }
    return LLMQ_OK;
}

static llmq_status read_templates(const json_t *config, llmq_meta *meta, llmq_err *err) {
    const json_t *t = json_object_get(config, "chat_template");
    json_t *item;
    size_t i;
    char buf[128];
    if (json_is_string(t))
        return meta_set_strn(meta, "tokenizer.chat_template", json_string_value(t), json_string_length(t), err);
    json_array_foreach((json_t *)t, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        if (!name || !json_is_string(text) || strlen(name) > 64) continue;
        bool is_default = !strcmp(name, "default");
        const char *key = is_default ? "tokenizer.chat_template" : meta_key(buf, "tokenizer.chat_template.%s", name);
        LLMQ_TRY(meta_set_strn(meta, key, json_string_value(text), json_string_length(text), err));
    }
    return LLMQ_OK;
}

static llmq_status read_tokenizer_config(const char *path, llmq_meta *meta, llmq_err *err) {
    json_t *config = NULL;
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(hf_load_json(path, &config, err));
    LLMQ_TRY_GOTO(read_token_names(config, meta, err));
    const json_t *add_bos = json_object_get(config, "add_bos_token"),
                 *add_eos = json_object_get(config, "add_eos_token");
    if (json_is_boolean(add_bos))
        LLMQ_TRY_GOTO(meta_set_bool(meta, "tokenizer.ggml.add_bos_token", json_is_true(add_bos), err));
    if (json_is_boolean(add_eos))
        LLMQ_TRY_GOTO(meta_set_bool(meta, "tokenizer.ggml.add_eos_token", json_is_true(add_eos), err));
    LLMQ_TRY_GOTO(read_templates(config, meta, err));
done:
    json_decref(config);
    return status;
}

static llmq_status read_special_tokens_map(const char *path, llmq_meta *meta, llmq_err *err) {
    json_t *map = NULL;
    LLMQ_TRY(hf_load_json(path, &map, err));
    llmq_status status = read_token_names(map, meta, err);
    json_decref(map);
    return status;
}

/* eos_token_id: a number or a list. */
static llmq_status read_generation_config(const char *path, llmq_meta *meta, llmq_err *err) {
    json_t *config = NULL;
    int32_t ids[64];
    size_t n = 0;
    LLMQ_TRY(hf_load_json(path, &config, err));
    const json_t *eos = json_object_get(config, "eos_token_id");
    size_t n_eos = json_is_array(eos) ? json_array_size(eos) : 1;
    for (size_t i = 0; i < n_eos && n < 64; i++) {
        const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;
        json_int_t x = json_is_integer(id) ? json_integer_value(id) : -1;
        if (x >= 0 && x <= INT32_MAX) ids[n++] = (int32_t)x;
    }
    llmq_status status = n ? meta_set_array(meta, "llmq.eos_token_ids", META_I32, ids, n, err) : LLMQ_OK;
    json_decref(config);
    return status;
}

static llmq_status read_template_file(const char *path, llmq_meta *meta, llmq_err *err) {
    char *text = NULL;
    size_t len = 0;
    LLMQ_TRY(file_read(path, MAX_TEMPLATE_BYTES, &text, &len, err));
    llmq_status status = meta_set_strn(meta, "tokenizer.chat_template", text, len, err);
    mem_free(text);
    return status;
}

llmq_status tokenizer_read_hf(const char *dir, int64_t n_vocab, llmq_meta *meta, llmq_err *err) {
    static const struct {
        const char *name;
        llmq_status (*read)(const char *path, llmq_meta *meta, llmq_err *err);
    } files[] = {{"special_tokens_map.json", read_special_tokens_map}, /* tokenizer_config.json knows better */
                 {"tokenizer_config.json", read_tokenizer_config},
                 {"generation_config.json", read_generation_config},
                 {"chat_template.jinja", read_template_file}};
    char path[4096];
    if (!path_join(path, sizeof path, dir, "tokenizer.json"))
        return llmq_fail(err, LLMQ_E_ARG, "%.200s...: the path is too long", dir);
    if (!file_exists(path))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s has no tokenizer.json, the only form of Hugging Face tokenizer that llmq "
                         "reads; save it with transformers' AutoTokenizer (use_fast) to get one",
                         dir);
    LLMQ_TRY(tokenizer_read_json(path, n_vocab, meta, err));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (path_join(path, sizeof path, dir, files[i].name) && file_exists(path))
            LLMQ_TRY(files[i].read(path, meta, err));
    return LLMQ_OK;
}
