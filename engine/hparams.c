/* Hyper-parameters from metadata under GGUF's keys. A file is untrusted, and these numbers size everything that
 * follows: each is checked against a range, so that products of any three of them stay far below 2^63. */
#include <math.h>
#include <string.h>

#include "engine/model.h"

typedef struct hp_reader {
    const llmq_meta *meta;
    const char *path, *arch;
    llmq_err *err;
} hp_reader;

#define CURE "the file is damaged or its conversion went wrong: convert or download the model again"

static llmq_status read_int(const hp_reader *r, const char *suffix, int64_t min, int64_t max, bool required,
                            int64_t *out) {
    char key[128];
    const llmq_meta_value *v = meta_find(r->meta, meta_key(key, "%s.%s", r->arch, suffix));
    if (!v) {
        if (!required) return LLMQ_OK;
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: metadata key '%s' is missing; " CURE, r->path, key);
    }
    if (v->type == META_ARRAY)
        return llmq_fail(r->err, LLMQ_E_UNSUPPORTED,
                         "%s: '%s' differs from layer to layer; llmq runs models whose layers are alike", r->path, key);
    int64_t x;
    if (!meta_get_i64(r->meta, key, &x))
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: '%s' is not an integer; " CURE, r->path, key);
    if (x < min || x > max)
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: '%s' is %lld, must be %lld to %lld; " CURE, r->path, key,
                         (long long)x, (long long)min, (long long)max);
    *out = x;
    return LLMQ_OK;
}

static llmq_status read_float(const hp_reader *r, const char *suffix, double min, double max, bool required,
                              double *out) {
    char key[128];
    if (!meta_find(r->meta, meta_key(key, "%s.%s", r->arch, suffix))) {
        if (!required) return LLMQ_OK;
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: metadata key '%s' is missing; " CURE, r->path, key);
    }
    double x;
    if (!meta_get_f64(r->meta, key, &x))
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: '%s' is not a number; " CURE, r->path, key);
    if (!(x >= min && x <= max)) /* NaN too */
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: '%s' is %g, must be %g to %g; " CURE, r->path, key, x, min, max);
    *out = x;
    return LLMQ_OK;
}

/* Keys that change the forward pass in a way that llmq does not compute: better no answer than a wrong one. */
static llmq_status refuse_unknown_features(const hp_reader *r) {
    static const struct {
        const char *suffix, *what;
    } features[] = {
        {"expert_count", "a mixture of experts"},
        {"logit_scale", "scaled logits"},
        {"residual_scale", "scaled residuals"},
        {"embedding_scale", "scaled embeddings"},
        {"attention.scale", "an attention scale of its own"},
        {"attn_logit_softcapping", "capped attention scores"},
        {"final_logit_softcapping", "capped logits"},
    };
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        char key[128];
        double x = 0;
        if (meta_get_f64(r->meta, meta_key(key, "%s.%s", r->arch, features[i].suffix), &x) && x != 0)
            return llmq_fail(r->err, LLMQ_E_UNSUPPORTED,
                             "%s: '%s' is %g: the model has %s, which llmq does not run for architecture '%s'", r->path,
                             key, x, features[i].what, r->arch);
    }
    return LLMQ_OK;
}

static llmq_status read_heads(const hp_reader *r, llmq_hparams *hp) {
    LLMQ_TRY(read_int(r, "attention.head_count", 1, 1024, true, &hp->n_head));
    hp->n_head_kv = hp->n_head;
    LLMQ_TRY(read_int(r, "attention.head_count_kv", 1, 1024, false, &hp->n_head_kv));
    if (hp->n_head % hp->n_head_kv != 0)
        return llmq_fail(r->err, LLMQ_E_FORMAT,
                         "%s: '%s.attention.head_count' (%lld) is not a multiple of head_count_kv (%lld); " CURE,
                         r->path, r->arch, (long long)hp->n_head, (long long)hp->n_head_kv);
    char key[128];
    if (!meta_find(r->meta, meta_key(key, "%s.attention.key_length", r->arch)) && hp->n_embd % hp->n_head != 0)
        return llmq_fail(r->err, LLMQ_E_FORMAT,
                         "%s: '%s.embedding_length' (%lld) is not a multiple of attention.head_count (%lld); " CURE,
                         r->path, r->arch, (long long)hp->n_embd, (long long)hp->n_head);
    hp->head_dim = hp->n_embd / hp->n_head;
    LLMQ_TRY(read_int(r, "attention.key_length", 1, 1024, false, &hp->head_dim));
    int64_t value_dim = hp->head_dim;
    LLMQ_TRY(read_int(r, "attention.value_length", 1, 1024, false, &value_dim));
    if (hp->head_dim < 2 || hp->head_dim > 1024 || hp->head_dim % 2 != 0)
        return llmq_fail(r->err, LLMQ_E_FORMAT,
                         "%s: heads of %lld dimensions ('%s.embedding_length' / attention.head_count, or "
                         "attention.key_length) must be an even number up to 1024; " CURE,
                         r->path, (long long)hp->head_dim, r->arch);
    if (value_dim != hp->head_dim)
        return llmq_fail(r->err, LLMQ_E_UNSUPPORTED,
                         "%s: '%s.attention.key_length' is %lld but value_length is %lld; llmq runs models "
                         "where they are equal",
                         r->path, r->arch, (long long)hp->head_dim, (long long)value_dim);
    hp->n_rot = hp->head_dim;
    LLMQ_TRY(read_int(r, "rope.dimension_count", 2, hp->head_dim, false, &hp->n_rot));
    if (hp->n_rot % 2 != 0)
        return llmq_fail(r->err, LLMQ_E_FORMAT, "%s: '%s.rope.dimension_count' is %lld, must be even; " CURE, r->path,
                         r->arch, (long long)hp->n_rot);
    return LLMQ_OK;
}

/* YaRN multiplies cos and sin by 0.1 ln(factor) + 1. GGUF's attn_factor is a further multiplier, and
 * yarn_log_multiplier m divides by 0.1 m ln(factor) + 1 (DeepSeek's mscale_all_dim). */
static llmq_status read_yarn(const hp_reader *r, llmq_hparams *hp) {
    double ext = 1, multiplier = 1, log_multiplier = 0;
    hp->yarn_beta_fast = 32;
    hp->yarn_beta_slow = 1;
    LLMQ_TRY(read_float(r, "rope.scaling.yarn_beta_fast", 1e-6, 1e6, false, &hp->yarn_beta_fast));
    LLMQ_TRY(read_float(r, "rope.scaling.yarn_beta_slow", 1e-6, 1e6, false, &hp->yarn_beta_slow));
    LLMQ_TRY(read_float(r, "rope.scaling.attn_factor", 1e-6, 1e6, false, &multiplier));
    LLMQ_TRY(read_float(r, "rope.scaling.yarn_log_multiplier", -1e6, 1e6, false, &log_multiplier));
    LLMQ_TRY(read_float(r, "rope.scaling.yarn_ext_factor", -1, 1e6, false, &ext));
    if (ext >= 0 && ext != 1)
        return llmq_fail(r->err, LLMQ_E_UNSUPPORTED, "%s: '%s.rope.scaling.yarn_ext_factor' is %g; llmq knows only 1",
                         r->path, r->arch, ext);
    double log_factor = hp->rope_factor > 1 ? log(hp->rope_factor) : 0;
    double divisor = 0.1 * log_multiplier * log_factor + 1;
    if (!(divisor > 1e-6))
        return llmq_fail(r->err, LLMQ_E_FORMAT,
                         "%s: '%s.rope.scaling.yarn_log_multiplier' is %g, which makes the attention factor "
                         "negative; " CURE,
                         r->path, r->arch, log_multiplier);
    hp->rope_attn_factor = multiplier * (0.1 * log_factor + 1) / divisor;
    return LLMQ_OK;
}

static llmq_status read_llama3(const hp_reader *r, llmq_hparams *hp) {
    hp->llama3_low = 1;
    hp->llama3_high = 4;
    LLMQ_TRY(read_float(r, "rope.scaling.low_freq_factor", 1e-6, 1e6, false, &hp->llama3_low));
    LLMQ_TRY(read_float(r, "rope.scaling.high_freq_factor", 1e-6, 1e6, false, &hp->llama3_high));
    if (hp->llama3_low >= hp->llama3_high)
        return llmq_fail(r->err, LLMQ_E_FORMAT,
                         "%s: llama3 RoPE scaling needs low_freq_factor (%g) < high_freq_factor (%g); " CURE, r->path,
                         hp->llama3_low, hp->llama3_high);
    return LLMQ_OK;
}

static llmq_status read_rope(const hp_reader *r, llmq_hparams *hp) {
    char key[128];
    hp->rope_base = 10000;
    hp->rope_factor = hp->rope_attn_factor = 1;
    hp->rope_ctx_orig = hp->n_ctx_train;
    LLMQ_TRY(read_float(r, "rope.freq_base", 1e-3, 1e15, false, &hp->rope_base));
    double factor = 0; /* llama.cpp: 0 means none */
    LLMQ_TRY(read_float(r, "rope.scale_linear", 0, 1e6, false, &factor));
    LLMQ_TRY(read_float(r, "rope.scaling.factor", 0, 1e6, false, &factor));
    LLMQ_TRY(read_int(r, "rope.scaling.original_context_length", 1, INT32_MAX, false, &hp->rope_ctx_orig));
    const char *type = meta_get_str(r->meta, meta_key(key, "%s.rope.scaling.type", r->arch));
    if (factor > 0) hp->rope_factor = factor;
    if (!type) type = factor > 0 && factor != 1 ? "linear" : "none";
    if (strcmp(type, "none") == 0 || strcmp(type, "default") == 0) return LLMQ_OK;
    if (strcmp(type, "linear") == 0) {
        hp->scaling = ROPE_LINEAR;
        return LLMQ_OK;
    }
    if (strcmp(type, "yarn") == 0) {
        hp->scaling = ROPE_YARN;
        return read_yarn(r, hp);
    }
    if (strcmp(type, "llama3") == 0) {
        hp->scaling = ROPE_LLAMA3;
        return read_llama3(r, hp);
    }
    return llmq_fail(r->err, LLMQ_E_UNSUPPORTED, "%s: '%s' is '%.40s'; llmq knows none, linear, yarn and llama3",
                     r->path, key, type);
}

llmq_status hparams_read(const llmq_source *source, const char *arch, int64_t n_vocab_hint, llmq_hparams *out,
                         llmq_err *err) {
    hp_reader reader = {source->meta, source->path, arch, err}, *r = &reader;
    llmq_hparams hp = {0};
    double eps = 0;
    LLMQ_TRY(refuse_unknown_features(r));
    LLMQ_TRY(read_int(r, "block_count", 1, 4096, true, &hp.n_layer));
    LLMQ_TRY(read_int(r, "embedding_length", 1, 1 << 18, true, &hp.n_embd));
    LLMQ_TRY(read_int(r, "feed_forward_length", 1, 1 << 20, true, &hp.n_ff));
    LLMQ_TRY(read_int(r, "context_length", 1, INT32_MAX, true, &hp.n_ctx_train));
    LLMQ_TRY(read_float(r, "attention.layer_norm_rms_epsilon", 0, 1, true, &eps));
    hp.eps = (float)eps;
    LLMQ_TRY(read_int(r, "attention.sliding_window", 0, INT32_MAX, false, &hp.window));
    LLMQ_TRY(read_heads(r, &hp));
    LLMQ_TRY(read_rope(r, &hp));
    hp.n_vocab = n_vocab_hint;
    const llmq_meta_value *tokens = meta_find(source->meta, "tokenizer.ggml.tokens");
    if (hp.n_vocab <= 0 && tokens && tokens->type == META_ARRAY && tokens->arr.n < 1 << 24)
        hp.n_vocab = (int64_t)tokens->arr.n;
    LLMQ_TRY(read_int(r, "vocab_size", 1, 1 << 24, false, &hp.n_vocab));
    if (hp.n_vocab <= 0 || hp.n_vocab > 1 << 24)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: a vocabulary of %lld tokens ('%s.vocab_size'); " CURE, source->path,
                         (long long)hp.n_vocab, arch);
    *out = hp;
    return LLMQ_OK;
}

/* ---- shapes */

void hparams_role_shape(const llmq_hparams *hp, llmq_role role, int64_t *rows, int64_t *cols) {
    int64_t q_dim = hp->n_head * hp->head_dim, kv_dim = hp->n_head_kv * hp->head_dim;
    *rows = 1;
    *cols = hp->n_embd;
    switch (role) {
    case ROLE_TOKEN_EMBD:
    case ROLE_OUTPUT: *rows = hp->n_vocab; break;
    case ROLE_ROPE_FREQS: *cols = hp->n_rot / 2; break;
    case ROLE_Q: *rows = q_dim; break;
    case ROLE_K:
    case ROLE_V: *rows = kv_dim; break;
    case ROLE_O: *rows = hp->n_embd, *cols = q_dim; break;
    case ROLE_Q_BIAS: *cols = q_dim; break;
    case ROLE_K_BIAS:
    case ROLE_V_BIAS: *cols = kv_dim; break;
    case ROLE_Q_NORM:
    case ROLE_K_NORM: *cols = hp->head_dim; break;
    case ROLE_GATE:
    case ROLE_UP: *rows = hp->n_ff; break;
    case ROLE_DOWN: *rows = hp->n_embd, *cols = hp->n_ff; break;
    default: break; /* norms and o's bias: n_embd */
    }
}

#define SMALL_EMBD 768 /* multiples of every block */
#define SMALL_FF 1536

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

llmq_hparams hparams_small(const llmq_hparams *hp) {
    llmq_hparams s = *hp;
    int64_t heads = SMALL_EMBD / hp->head_dim > 1 ? SMALL_EMBD / hp->head_dim : 1,
            group = least(hp->n_head / hp->n_head_kv, heads);
    s.n_layer = 1;
    s.n_embd = least(hp->n_embd, SMALL_EMBD);
    s.n_ff = least(hp->n_ff, SMALL_FF);
    s.n_head_kv = least(hp->n_head_kv, heads / group);
    s.n_head = s.n_head_kv * group;
    return s;
}
