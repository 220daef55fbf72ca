#include "train/scratch.h"

#include <math.h>
#include <string.h>

#include "core/hash.h"
#include "core/mem.h"
#include "engine/arch/arch.h"
#include "formats/format.h"
#include "tokenizer/tokenizer.h"
#include "train/random.h"

/* ---- the shape ---- */

/* The largest number of heads not above n_embd / 64 that gives whole heads of even width. */
static int64_t default_heads(int64_t n_embd) {
    int64_t n = n_embd / 64 > 1 ? n_embd / 64 : 1;
    while (n > 1 && (n_embd % n || n_embd / n % 2)) n--;
    return n;
}

static llmq_status check_range(const char *option, int64_t x, int64_t min, int64_t max, llmq_err *err) {
    if (x >= min && x <= max) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG, "%s %lld: it takes %lld to %lld", option, (long long)x, (long long)min,
                     (long long)max);
}

llmq_status scratch_check(llmq_train_params *p, llmq_err *err) {
    if (!p->n_layer) p->n_layer = 6;
    if (!p->n_embd) p->n_embd = 256;
    if (!p->n_head) p->n_head = default_heads(p->n_embd);
    if (!p->n_head_kv) p->n_head_kv = p->n_head;
    if (!p->n_ff) p->n_ff = (p->n_embd * 8 / 3 + 63) / 64 * 64;
    if (!p->n_vocab) p->n_vocab = 4096;
    LLMQ_TRY(check_range("--layers", p->n_layer, 1, 256, err));
    LLMQ_TRY(check_range("--dim", p->n_embd, 8, 8192, err));
    LLMQ_TRY(check_range("--heads", p->n_head, 1, 256, err));
    LLMQ_TRY(check_range("--kv-heads", p->n_head_kv, 1, p->n_head, err));
    LLMQ_TRY(check_range("--ff", p->n_ff, 8, 32768, err));
    LLMQ_TRY(check_range("--vocab", p->n_vocab, 257, 1 << 17, err));
    if (p->n_embd % p->n_head || p->n_embd / p->n_head % 2)
        return llmq_fail(err, LLMQ_E_ARG, "--heads %lld: a width of %lld does not give that many heads of even width",
                         (long long)p->n_head, (long long)p->n_embd);
    if (p->n_head % p->n_head_kv)
        return llmq_fail(err, LLMQ_E_ARG, "--kv-heads %lld: it must divide the number of heads, %lld",
                         (long long)p->n_head_kv, (long long)p->n_head);
    return LLMQ_OK;
}

/* ---- metadata ---- */

static llmq_status set_meta(const char *name, const llmq_train_params *p, llmq_meta *meta, llmq_err *err) {
    const llmq_meta_value *tokens = meta_find(meta, "tokenizer.ggml.tokens");
    if (!tokens || tokens->type != META_ARRAY) return llmq_fail(err, LLMQ_E_FORMAT, "the new tokenizer has no tokens");
    const struct {
        const char *key;
        int64_t value;
    } counts[] = {
        {"llama.vocab_size", (int64_t)tokens->arr.n},    {"llama.context_length", p->n_ctx},
        {"llama.embedding_length", p->n_embd},           {"llama.block_count", p->n_layer},
        {"llama.feed_forward_length", p->n_ff},          {"llama.attention.head_count", p->n_head},
        {"llama.attention.head_count_kv", p->n_head_kv}, {"llama.rope.dimension_count", p->n_embd / p->n_head}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        LLMQ_TRY(meta_set_u32(meta, counts[i].key, (uint32_t)counts[i].value, err));
    LLMQ_TRY(meta_set_str(meta, "general.architecture", "llama", err));
    LLMQ_TRY(meta_set_str(meta, "general.name", name, err));
    LLMQ_TRY(meta_set_f32(meta, "llama.attention.layer_norm_rms_epsilon", 1e-5f, err));
    return meta_set_f32(meta, "llama.rope.freq_base", 10000, err);
}

/* ---- weights ---- */

typedef struct scratch {
    llmq_tensor *tensors; /* n */
    llmq_role *roles;
    size_t n;
} scratch;

/* Rows 0: a vector. */
static void role_shape(const llmq_train_params *p, int64_t n_vocab, llmq_role role, int64_t *rows, int64_t *cols) {
    *rows = 0;
    *cols = p->n_embd;
    switch (role) {
    case ROLE_TOKEN_EMBD: *rows = n_vocab; break;
    case ROLE_Q:
    case ROLE_O: *rows = p->n_embd; break;
    case ROLE_K:
    case ROLE_V: *rows = p->n_embd / p->n_head * p->n_head_kv; break;
    case ROLE_GATE:
    case ROLE_UP: *rows = p->n_ff; break;
    case ROLE_DOWN: *rows = p->n_embd, *cols = p->n_ff; break;
    default: break;
    }
}

static void add_tensor(scratch *s, const llmq_arch_rule *rule, int layer, int64_t rows, int64_t cols) {
    llmq_tensor *t = &s->tensors[s->n];
    *t = (llmq_tensor){.type = LLMQ_TYPE_F32, .n_dims = rows ? 2 : 1, .dims = {cols, rows ? rows : 1, 1, 1}};
    t->bytes = tensor_numel(t) * (int64_t)sizeof(float);
    arch_tensor_name(rule, NAMING_GGUF, layer, t->name);
    s->roles[s->n++] = rule->role;
}

static void plan_tensors(const llmq_train_params *p, int64_t n_vocab, scratch *s) {
    for (const llmq_arch_rule *r = arch_find("llama")->rules; r->role != ROLE_COUNT; r++) {
        int64_t rows, cols;
        if (r->optional) continue;
        role_shape(p, n_vocab, r->role, &rows, &cols);
        for (int l = 0; l < (r->role < ROLE_ATTN_NORM ? 1 : (int)p->n_layer); l++) add_tensor(s, r, l, rows, cols);
    }
}

static void fill_tensor(const llmq_train_params *p, const llmq_tensor *t, llmq_role role, float *x) {
    double spread = 0.02;
    if (role == ROLE_O || role == ROLE_DOWN) spread /= sqrt(2.0 * (double)p->n_layer);
    random_state r = random_begin(p->seed, hash_bytes(t->name, strlen(t->name)));
    for (int64_t i = 0, n = tensor_numel(t); i < n; i++)
        x[i] = t->n_dims == 1 ? 1 : (float)(spread * random_normal(&r));
}

static llmq_status write_tensors(const char *path, const llmq_train_params *p, const llmq_meta *meta, const scratch *s,
                                 llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_gguf_writer *w = NULL;
    int64_t most = 0;
    for (size_t i = 0; i < s->n; i++) most = s->tensors[i].bytes > most ? s->tensors[i].bytes : most;
    float *x = mem_alloc((size_t)most, 1);
    if (!x) return mem_error(err, (size_t)most, "a new model");
    LLMQ_TRY_GOTO(gguf_writer_open(path, true, meta, s->tensors, s->n, &w, err));
    for (size_t i = 0; i < s->n; i++) {
        fill_tensor(p, &s->tensors[i], s->roles[i], x);
        LLMQ_TRY_GOTO(gguf_writer_put(w, i, x, (size_t)s->tensors[i].bytes, 0, err));
    }
    status = gguf_writer_finish(w, NULL, err);
    w = NULL;
done:
    if (w) gguf_writer_abort(w, false);
    mem_free(x);
    return status;
}

llmq_status scratch_write(const char *path, const char *name, const llmq_train_params *p, const char *text, size_t len,
                          llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_meta *meta = meta_create();
    size_t cap = (size_t)(p->n_layer + 1) * ROLE_COUNT;
    scratch s = {.tensors = mem_alloc(cap, sizeof *s.tensors), .roles = mem_alloc(cap, sizeof *s.roles)};
    if (!meta || !s.tensors || !s.roles) LLMQ_TRY_GOTO(mem_error(err, cap * sizeof *s.tensors, "a new model"));
    LLMQ_TRY_GOTO(tokenizer_train(text, len, p->n_vocab, meta, err));
    LLMQ_TRY_GOTO(set_meta(name, p, meta, err));
    plan_tensors(p, (int64_t)meta_find(meta, "tokenizer.ggml.tokens")->arr.n, &s);
    status = write_tensors(path, p, meta, &s, err);
done:
    mem_free(s.tensors);
    mem_free(s.roles);
    meta_destroy(meta);
    return status;
}
