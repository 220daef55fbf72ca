/* config.json of a Hugging Face folder to metadata under GGUF's keys.
 *
 * transformers leaves keys out that have the class's default, so an absent key means the default of that model type;
 * the table below has the ones that differ. null means "not set", which for head counts is "as many as query heads" and
 * for a sliding window "none". Rope settings come in two forms: rope_theta and rope_scaling {"type" or "rope_type",
 * ...} beside each other, or (newer) all in rope_parameters {"rope_theta", "rope_type", ...}.
 *
 * YaRN's attention factor: transformers gives the whole multiplier of cos and sin, with 0.1 ln(factor) + 1 when absent;
 * GGUF's attn_factor is multiplied onto that default. So attn_factor = attention_factor / (0.1 ln(factor) + 1), absent
 * when 1. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/format.h"
#include "formats/json.h"

#define CONFIG_MAX_BYTES ((size_t)16 << 20)
#define MAX_DIM ((int64_t)1 << 30)

/* Where a config says whether layers use its sliding window. */
typedef enum window_rule { WINDOW_NONE, WINDOW_ALWAYS, WINDOW_FLAG } window_rule;

typedef struct model_kind {
    const char *model_type, *arch;      /* config.json's word, GGUF's word */
    int64_t n_ctx, n_head_kv, head_dim; /* defaults; 0: n_head_kv = n_head, head_dim = hidden_size / n_head */
    window_rule window;
} model_kind;

static const model_kind kinds[] = {
    {"llama", "llama", 2048, 0, 0, WINDOW_NONE},
    {"mistral", "llama", 131072, 8, 0, WINDOW_ALWAYS},
    {"qwen2", "qwen2", 32768, 32, 0, WINDOW_FLAG},
    {"qwen3", "qwen3", 32768, 32, 128, WINDOW_FLAG},
};

typedef struct config {
    const char *path;
    const json_t *root;
    const model_kind *kind;
    llmq_meta *meta;
    llmq_err *err;
    int64_t n_layer, n_head, head_dim, n_ctx;
} config;

static llmq_status find_kind(config *c) {
    const char *type = NULL;
    char known[128] = "";
    LLMQ_TRY(json_get_str(c->root, "model_type", c->path, &type, c->err));
    if (!type)
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: has no model_type: not the config.json of a model", c->path);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (!strcmp(kinds[i].model_type, type)) c->kind = &kinds[i];
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", kinds[i].model_type);
    }
    if (c->kind) return LLMQ_OK;
    return llmq_fail(c->err, LLMQ_E_UNSUPPORTED, "%s: model_type \"%.60s\" is not known to llmq; it knows %s", c->path,
                     type, known);
}

/* What changes the computation in ways that llmq has no code for. */
static llmq_status refuse_oddities(const config *c) {
    const char *act = "silu";
    bool mlp_bias = false;
    LLMQ_TRY(json_get_str(c->root, "hidden_act", c->path, &act, c->err));
    if (strcmp(act, "silu") && strcmp(act, "swish"))
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED, "%s: hidden_act \"%.40s\": llmq computes silu only", c->path, act);
    LLMQ_TRY(json_get_bool(c->root, "mlp_bias", c->path, &mlp_bias, c->err));
    if (mlp_bias)
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED, "%s: mlp_bias: llmq knows no biases in the feed-forward part",
                         c->path);
    return LLMQ_OK;
}

static llmq_status set_u32(const config *c, const char *name, int64_t x) {
    char key[128];
    return meta_set_u32(c->meta, meta_key(key, "%s.%s", c->kind->arch, name), (uint32_t)x, c->err);
}

static llmq_status set_f32(const config *c, const char *name, double x) {
    char key[128];
    return meta_set_f32(c->meta, meta_key(key, "%s.%s", c->kind->arch, name), (float)x, c->err);
}

static llmq_status need_i64(const config *c, const char *key, int64_t max, int64_t *out) {
    *out = 0;
    LLMQ_TRY(json_get_i64(c->root, key, 1, max, c->path, out, c->err));
    if (*out == 0) return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: %s is missing", c->path, key);
    return LLMQ_OK;
}

static llmq_status read_sizes(config *c) {
    int64_t n_embd, n_ff, n_vocab, n_head_kv;
    double eps = 1e-6;
    LLMQ_TRY(need_i64(c, "num_hidden_layers", 1 << 16, &c->n_layer));
    LLMQ_TRY(need_i64(c, "hidden_size", MAX_DIM, &n_embd));
    LLMQ_TRY(need_i64(c, "intermediate_size", MAX_DIM, &n_ff));
    LLMQ_TRY(need_i64(c, "vocab_size", MAX_DIM, &n_vocab));
    LLMQ_TRY(need_i64(c, "num_attention_heads", 1 << 16, &c->n_head));
    c->n_ctx = c->kind->n_ctx;
    LLMQ_TRY(json_get_i64(c->root, "max_position_embeddings", 1, MAX_DIM, c->path, &c->n_ctx, c->err));
    bool given =
        json_object_get(c->root, "num_key_value_heads") != NULL; /* null: as many as query heads, for every kind */
    n_head_kv = given || !c->kind->n_head_kv ? c->n_head : c->kind->n_head_kv;
    LLMQ_TRY(json_get_i64(c->root, "num_key_value_heads", 1, 1 << 16, c->path, &n_head_kv, c->err));
    if (c->n_head % n_head_kv != 0)
        return llmq_fail(c->err, LLMQ_E_FORMAT,
                         "%s: num_attention_heads %lld is not a multiple of num_key_value_heads %lld", c->path,
                         (long long)c->n_head, (long long)n_head_kv);
    c->head_dim = json_object_get(c->root, "head_dim") ? 0 : c->kind->head_dim;
    LLMQ_TRY(json_get_i64(c->root, "head_dim", 1, 1 << 16, c->path, &c->head_dim, c->err));
    if (c->head_dim == 0) {
        if (n_embd % c->n_head != 0)
            return llmq_fail(
                c->err, LLMQ_E_FORMAT,
                "%s: hidden_size %lld is not a multiple of num_attention_heads %lld, and head_dim is missing", c->path,
                (long long)n_embd, (long long)c->n_head);
        c->head_dim = n_embd / c->n_head;
    }
    LLMQ_TRY(json_get_f64(c->root, "rms_norm_eps", 0, 1, c->path, &eps, c->err));
    LLMQ_TRY(set_u32(c, "block_count", c->n_layer));
    LLMQ_TRY(set_u32(c, "context_length", c->n_ctx));
    LLMQ_TRY(set_u32(c, "embedding_length", n_embd));
    LLMQ_TRY(set_u32(c, "feed_forward_length", n_ff));
    LLMQ_TRY(set_u32(c, "vocab_size", n_vocab));
    LLMQ_TRY(set_u32(c, "attention.head_count", c->n_head));
    LLMQ_TRY(set_u32(c, "attention.head_count_kv", n_head_kv));
    LLMQ_TRY(set_u32(c, "attention.key_length", c->head_dim));
    LLMQ_TRY(set_u32(c, "attention.value_length", c->head_dim));
    return set_f32(c, "attention.layer_norm_rms_epsilon", eps);
}

/* Newer configs list every layer's kind; *sliding_out: how many use the window, -1 without such a list. */
static llmq_status count_sliding(const config *c, int64_t *sliding_out) {
    const json_t *types = json_get(c->root, "layer_types");
    *sliding_out = -1;
    if (!types) return LLMQ_OK;
    if (!json_is_array(types) || json_array_size(types) != (size_t)c->n_layer)
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: layer_types must list %lld layers", c->path,
                         (long long)c->n_layer);
    *sliding_out = 0;
    for (size_t i = 0; i < (size_t)c->n_layer; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type && !strcmp(type, "sliding_attention"))
            ++*sliding_out;
        else if (!type || strcmp(type, "full_attention"))
            return llmq_fail(c->err, LLMQ_E_UNSUPPORTED,
                             "%s: layer_types has \"%.40s\"; llmq knows full_attention and sliding_attention", c->path,
                             type ? type : "?");
    }
    return LLMQ_OK;
}

static llmq_status read_window(const config *c) {
    int64_t window = json_object_get(c->root, "sliding_window") ? 0 : 4096, sliding, max_window_layers = 28;
    bool used = c->kind->window == WINDOW_ALWAYS;
    if (c->kind->window == WINDOW_NONE) return LLMQ_OK;
    LLMQ_TRY(json_get_i64(c->root, "sliding_window", 0, MAX_DIM, c->path, &window, c->err));
    if (c->kind->window == WINDOW_FLAG) LLMQ_TRY(json_get_bool(c->root, "use_sliding_window", c->path, &used, c->err));
    if (!used || window == 0) return LLMQ_OK;
    LLMQ_TRY(count_sliding(c, &sliding));
    if (sliding < 0 && c->kind->window == WINDOW_FLAG) { /* layers from max_window_layers on use it */
        LLMQ_TRY(json_get_i64(c->root, "max_window_layers", 0, MAX_DIM, c->path, &max_window_layers, c->err));
        sliding = max_window_layers < c->n_layer ? c->n_layer - max_window_layers : 0;
    }
    if (sliding == 0) return LLMQ_OK;
    if (sliding > 0 && sliding < c->n_layer)
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED,
                         "%s: only %lld of %lld layers have the sliding window; llmq needs it in all or in none",
                         c->path, (long long)sliding, (long long)c->n_layer);
    return set_u32(c, "attention.sliding_window", window);
}

static llmq_status need_factor(const config *c, const json_t *rope, const char *key, double fallback, double *out) {
    *out = fallback;
    LLMQ_TRY(json_get_f64(rope, key, 1e-3, 1e9, c->path, out, c->err));
    if (*out == 0) return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: the rope scaling has no %s", c->path, key);
    return LLMQ_OK;
}

/* transformers: the multiplier of cos and sin that DeepSeek-like configs give by two scales. */
static double yarn_mscale(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static llmq_status read_yarn(const config *c, const json_t *rope, double factor) {
    double fast = 32, slow = 1, attention = 0, mscale = 0, mscale_all = 0;
    LLMQ_TRY(json_get_f64(rope, "beta_fast", 1e-3, 1e6, c->path, &fast, c->err));
    LLMQ_TRY(json_get_f64(rope, "beta_slow", 1e-3, 1e6, c->path, &slow, c->err));
    LLMQ_TRY(json_get_f64(rope, "attention_factor", 1e-3, 1e3, c->path, &attention, c->err));
    LLMQ_TRY(json_get_f64(rope, "mscale", 0, 1e3, c->path, &mscale, c->err));
    LLMQ_TRY(json_get_f64(rope, "mscale_all_dim", 0, 1e3, c->path, &mscale_all, c->err));
    LLMQ_TRY(set_f32(c, "rope.scaling.yarn_beta_fast", fast));
    LLMQ_TRY(set_f32(c, "rope.scaling.yarn_beta_slow", slow));
    if (attention == 0 && mscale > 0 && mscale_all > 0)
        attention = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all);
    if (attention == 0) return LLMQ_OK;
    return set_f32(c, "rope.scaling.attn_factor", attention / yarn_mscale(factor, 1));
}

static llmq_status read_llama3(const config *c, const json_t *rope) {
    double low, high;
    LLMQ_TRY(need_factor(c, rope, "low_freq_factor", 1, &low));
    LLMQ_TRY(need_factor(c, rope, "high_freq_factor", 4, &high));
    if (high <= low)
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: rope scaling: high_freq_factor must be above low_freq_factor",
                         c->path);
    LLMQ_TRY(set_f32(c, "rope.scaling.low_freq_factor", low));
    return set_f32(c, "rope.scaling.high_freq_factor", high);
}

static llmq_status read_scaling(const config *c, const json_t *rope) {
    const char *type = "default";
    char key[128];
    double factor;
    LLMQ_TRY(json_get_str(rope, "type", c->path, &type, c->err));
    LLMQ_TRY(json_get_str(rope, "rope_type", c->path, &type, c->err));
    if (!strcmp(type, "default")) return LLMQ_OK;
    bool yarn = !strcmp(type, "yarn"), llama3 = !strcmp(type, "llama3");
    if (!yarn && !llama3 && strcmp(type, "linear"))
        return llmq_fail(c->err, LLMQ_E_UNSUPPORTED,
                         "%s: rope scaling \"%.40s\"; llmq knows default, linear, yarn and llama3", c->path, type);
    int64_t n_ctx_orig = c->n_ctx;
    LLMQ_TRY(json_get_i64(c->root, "original_max_position_embeddings", 1, MAX_DIM, c->path, &n_ctx_orig, c->err));
    LLMQ_TRY(json_get_i64(rope, "original_max_position_embeddings", 1, MAX_DIM, c->path, &n_ctx_orig, c->err));
    LLMQ_TRY(
        need_factor(c, rope, "factor", n_ctx_orig != c->n_ctx ? (double)c->n_ctx / (double)n_ctx_orig : 0, &factor));
    LLMQ_TRY(meta_set_str(c->meta, meta_key(key, "%s.rope.scaling.type", c->kind->arch), type, c->err));
    LLMQ_TRY(set_f32(c, "rope.scaling.factor", factor));
    if (yarn || llama3) LLMQ_TRY(set_u32(c, "rope.scaling.original_context_length", n_ctx_orig));
    if (yarn) return read_yarn(c, rope, factor);
    return llama3 ? read_llama3(c, rope) : LLMQ_OK;
}

static llmq_status read_rope(const config *c) {
    const json_t *old = json_get(c->root, "rope_scaling"), *rope = json_get(c->root, "rope_parameters");
    double theta = 10000, partial = 1;
    if ((rope && !json_is_object(rope)) || (old && !json_is_object(old)))
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: rope_parameters or rope_scaling must be an object", c->path);
    LLMQ_TRY(json_get_f64(c->root, "rope_theta", 1, 1e15, c->path, &theta, c->err));
    LLMQ_TRY(json_get_f64(c->root, "partial_rotary_factor", 0, 1, c->path, &partial, c->err));
    if (rope) {
        LLMQ_TRY(json_get_f64(rope, "rope_theta", 1, 1e15, c->path, &theta, c->err));
        LLMQ_TRY(json_get_f64(rope, "partial_rotary_factor", 0, 1, c->path, &partial, c->err));
    } else
        rope = old;
    int64_t n_rot = (int64_t)((double)c->head_dim * partial);
    if (n_rot < 2 || n_rot % 2 != 0)
        return llmq_fail(c->err, LLMQ_E_FORMAT,
                         "%s: %lld rotated dimensions a head (head_dim %lld); the number must be even", c->path,
                         (long long)n_rot, (long long)c->head_dim);
    LLMQ_TRY(set_f32(c, "rope.freq_base", theta));
    LLMQ_TRY(set_u32(c, "rope.dimension_count", n_rot));
    return rope ? read_scaling(c, rope) : LLMQ_OK;
}

/* An id or, for eos, a list of them: the first is the id, all go to llmq.eos_token_ids. Negative ids mean none. */
static llmq_status read_id(const config *c, const char *key) {
    const json_t *v = json_get(c->root, key);
    int32_t ids[64];
    size_t n = 0, count = json_is_array(v) ? json_array_size(v) : 1;
    char name[128];
    if (!v) return LLMQ_OK;
    if (count > sizeof ids / sizeof *ids)
        return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: %s lists %zu ids", c->path, key, count);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) > INT32_MAX)
            return llmq_fail(c->err, LLMQ_E_FORMAT, "%s: %s must be a token id or a list of them", c->path, key);
        if (json_integer_value(id) >= 0) ids[n++] = (int32_t)json_integer_value(id);
    }
    if (n == 0) return LLMQ_OK;
    LLMQ_TRY(meta_set_u32(c->meta, meta_key(name, "tokenizer.ggml.%s", key), (uint32_t)ids[0], c->err));
    if (n == 1 || strcmp(key, "eos_token_id")) return LLMQ_OK;
    return meta_set_array(c->meta, "llmq.eos_token_ids", META_I32, ids, n, c->err);
}

static llmq_status read_all(config *c) {
    bool tied = false;
    LLMQ_TRY(find_kind(c));
    LLMQ_TRY(refuse_oddities(c));
    LLMQ_TRY(meta_set_str(c->meta, "general.architecture", c->kind->arch, c->err));
    LLMQ_TRY(meta_set_str(c->meta, "hf.model_type", c->kind->model_type, c->err));
    LLMQ_TRY(read_sizes(c));
    LLMQ_TRY(read_window(c));
    LLMQ_TRY(read_rope(c));
    LLMQ_TRY(json_get_bool(c->root, "tie_word_embeddings", c->path, &tied, c->err));
    LLMQ_TRY(meta_set_bool(c->meta, "hf.tie_word_embeddings", tied, c->err));
    LLMQ_TRY(read_id(c, "bos_token_id"));
    return read_id(c, "eos_token_id");
}

llmq_status hfconfig_read(const char *path, llmq_meta *meta, llmq_err *err) {
    json_t *root = NULL;
    LLMQ_TRY(json_read_object(path, CONFIG_MAX_BYTES, &root, err));
    config c = {.path = path, .root = root, .meta = meta, .err = err};
    llmq_status status = read_all(&c);
    json_decref(root);
    return status;
}
