#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "formats/hfconfig.h"

typedef struct maker {
    const llmq_meta *meta;
    const hfconfig_facts *facts;
    const char *arch;
    json_t *root;
} maker;

static int64_t get_i64(const maker *m, const char *name, int64_t fallback) {
    char key[128];
    meta_get_i64(m->meta, meta_key(key, "%s.%s", m->arch, name), &fallback);
    return fallback;
}

static double get_f64(const maker *m, const char *name, double fallback) {
    char key[128];
    meta_get_f64(m->meta, meta_key(key, "%s.%s", m->arch, name), &fallback);
    return fallback;
}

static void set_int(const maker *m, const char *key, int64_t x) {
    json_object_set_new(m->root, key, json_integer(x));
}

/* GGUF holds floats: 1e-05 is written as that and not as 9.999999747378752e-06. */
static double shortest(double x) {
    char text[32];
    double back = x;
    for (int digits = 1; digits < 10; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (sscanf(text, "%lf", &back) == 1 && (float)back == (float)x) return back;
    }
    return x;
}

static void set_sizes(const maker *m) {
    int64_t n_head = get_i64(m, "attention.head_count", 1), n_embd = get_i64(m, "embedding_length", 0);
    set_int(m, "hidden_size", n_embd);
    set_int(m, "intermediate_size", get_i64(m, "feed_forward_length", 0));
    set_int(m, "num_hidden_layers", get_i64(m, "block_count", 0));
    set_int(m, "num_attention_heads", n_head);
    set_int(m, "num_key_value_heads", get_i64(m, "attention.head_count_kv", n_head));
    set_int(m, "head_dim", get_i64(m, "attention.key_length", n_embd / n_head));
    set_int(m, "max_position_embeddings", get_i64(m, "context_length", 0));
    set_int(m, "vocab_size", get_i64(m, "vocab_size", 0));
    json_object_set_new(m->root, "rms_norm_eps",
                        json_real(shortest(get_f64(m, "attention.layer_norm_rms_epsilon", 1e-6))));
}

/* transformers: the divisor of pair j by the rules of llama3 scaling. */
static double llama3_divisor(double base, int64_t n_rot, int64_t j, double factor, double ctx) {
    const double low = 1, high = 4;
    double wavelength = 2 * 3.14159265358979323846 * pow(base, 2.0 * (double)j / (double)n_rot);
    if (wavelength < ctx / high) return 1;
    if (wavelength > ctx / low) return factor;
    double smooth = (ctx / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
}

/* GGUF keeps the divisors and not the settings that they came from; those of all models so far are tried. */
static llmq_status set_llama3(const maker *m, double base, int64_t n_rot, llmq_err *err) {
    const float *divisors = m->facts->divisors;
    double factor = 1;
    for (int64_t j = 0; j < n_rot / 2; j++) factor = divisors[j] > factor ? (double)divisors[j] : factor;
    for (int64_t j = 0; j < n_rot / 2; j++)
        if (fabs(llama3_divisor(base, n_rot, j, factor, 8192) / (double)divisors[j] - 1) > 1e-3)
            return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                             "rope_freqs.weight: these divisors are not those of llama3 rope scaling from 8192 tokens, "
                             "which is all that config.json can say; start from the Hugging Face folder");
    json_object_set_new(m->root, "rope_scaling",
                        json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", factor,
                                  "low_freq_factor", 1.0, "high_freq_factor", 4.0, "original_max_position_embeddings",
                                  8192));
    return LLMQ_OK;
}

static void set_yarn(const maker *m, double factor) {
    double attn = get_f64(m, "rope.scaling.attn_factor", 1);
    json_t *rope = json_pack(
        "{s:s, s:f, s:I, s:f, s:f}", "rope_type", "yarn", "factor", factor, "original_max_position_embeddings",
        (json_int_t)get_i64(m, "rope.scaling.original_context_length", 0), "beta_fast",
        get_f64(m, "rope.scaling.yarn_beta_fast", 32), "beta_slow", get_f64(m, "rope.scaling.yarn_beta_slow", 1));
    if (attn != 1) json_object_set_new(rope, "attention_factor", json_real(attn * (0.1 * log(factor) + 1)));
    json_object_set_new(m->root, "rope_scaling", rope);
}

static llmq_status set_rope(const maker *m, llmq_err *err) {
    char key[128];
    const char *type = meta_get_str(m->meta, meta_key(key, "%s.rope.scaling.type", m->arch));
    double base = get_f64(m, "rope.freq_base", 10000), factor = get_f64(m, "rope.scaling.factor", 1);
    int64_t n_rot = get_i64(m, "rope.dimension_count", 0), head_dim = get_i64(m, "attention.key_length", n_rot);
    json_object_set_new(m->root, "rope_theta", json_real(shortest(base)));
    if (n_rot != head_dim)
        json_object_set_new(m->root, "partial_rotary_factor", json_real((double)n_rot / (double)head_dim));
    if (m->facts->divisors) return set_llama3(m, base, n_rot, err);
    if (type && !strcmp(type, "linear"))
        json_object_set_new(m->root, "rope_scaling", json_pack("{s:s, s:f}", "rope_type", "linear", "factor", factor));
    else if (type && !strcmp(type, "yarn"))
        set_yarn(m, factor);
    else if (type && strcmp(type, "none") != 0)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "rope scaling \"%.40s\" cannot be written to config.json", type);
    return LLMQ_OK;
}

static llmq_status set_kind(const maker *m, llmq_err *err) {
    const hfconfig_facts *facts = m->facts;
    int64_t window = get_i64(m, "attention.sliding_window", 0);
    bool llama = !strcmp(m->arch, "llama"), qwen2 = !strcmp(m->arch, "qwen2"), qwen3 = !strcmp(m->arch, "qwen3");
    const char *type = llama && window ? "mistral" : m->arch;
    const char *class_name = qwen3    ? "Qwen3ForCausalLM"
                             : qwen2  ? "Qwen2ForCausalLM"
                             : window ? "MistralForCausalLM"
                                      : "LlamaForCausalLM";
    if (!llama && !qwen2 && !qwen3)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "architecture %s: llmq writes config.json of llama, qwen2 and qwen3",
                         m->arch);
    /* Qwen2 has biases at q, k and v and never at o; the others have all four or none, Mistral none. */
    if (qwen2 ? facts->o_bias : facts->qkv_bias != facts->o_bias || (facts->qkv_bias && !strcmp(type, "mistral")))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "the biases of its attention cannot be told in a config.json of %s",
                         type);
    json_object_set_new(m->root, "architectures", json_pack("[s]", class_name));
    json_object_set_new(m->root, "model_type", json_string(type));
    json_object_set_new(m->root, "hidden_act", json_string("silu"));
    if (!qwen2) json_object_set_new(m->root, "attention_bias", json_boolean(facts->qkv_bias));
    if (llama && !window) json_object_set_new(m->root, "mlp_bias", json_false());
    if (llama && !window) return LLMQ_OK;
    json_object_set_new(m->root, "sliding_window", window ? json_integer(window) : json_null());
    if (!llama) json_object_set_new(m->root, "use_sliding_window", json_boolean(window > 0));
    if (!llama && window) set_int(m, "max_window_layers", 0);
    return LLMQ_OK;
}

static void set_ids(const maker *m) {
    int64_t id;
    if (meta_get_i64(m->meta, "tokenizer.ggml.bos_token_id", &id)) set_int(m, "bos_token_id", id);
    if (meta_get_i64(m->meta, "tokenizer.ggml.eos_token_id", &id)) set_int(m, "eos_token_id", id);
}

llmq_status hfconfig_make(const llmq_meta *meta, const hfconfig_facts *facts, json_t **out, llmq_err *err) {
    maker m = {.meta = meta, .facts = facts, .arch = meta_get_str(meta, "general.architecture"), .root = json_object()};
    if (!m.root) return mem_error(err, 4096, "config.json");
    llmq_status status = set_kind(&m, err);
    if (status == LLMQ_OK) {
        set_sizes(&m);
        status = set_rope(&m, err);
        json_object_set_new(m.root, "tie_word_embeddings", json_boolean(facts->tied));
        set_ids(&m);
    }
    if (status == LLMQ_OK)
        *out = m.root;
    else
        json_decref(m.root);
    return status;
}
