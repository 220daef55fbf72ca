/* GGUF's tokenizer keys to tokenizer.json and tokenizer_config.json.
 *
 * Byte-level BPE: the pre-tokenizer's row becomes a chain of isolated splits that ends in ByteLevel, which is how
 * hf_json.c reads it. SentencePiece BPE: scores become a list of merges, as transformers converts such models: the
 * pieces by falling score, and for each the ways to put it together from two others. Ids that only fill the vocabulary
 * ("[PAD17]", unused) are left out: config.json's vocab_size has room for them. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "tokenizer/hf.h"
#include "tokenizer/internal.h"

typedef struct vocab {
    const llmq_meta *meta;
    const llmq_str *tokens; /* [n] */
    const int32_t *types;   /* [n] or NULL: all normal */
    const float *scores;    /* [n] or NULL */
    size_t n;
} vocab;

static const llmq_meta_value *array_of(const llmq_meta *meta, const char *key, llmq_meta_type type) {
    const llmq_meta_value *v = meta_find(meta, key);
    return v && v->type == META_ARRAY && v->arr.type == type ? v : NULL;
}

static int type_of(const vocab *v, size_t id) {
    return v->types ? v->types[id] : TOKEN_NORMAL;
}

static json_t *text_of(const llmq_str *s) {
    return json_stringn(s->s, s->len);
}

static llmq_status open_vocab(const llmq_meta *meta, vocab *v, llmq_err *err) {
    const llmq_meta_value *tokens = array_of(meta, "tokenizer.ggml.tokens", META_STR);
    const llmq_meta_value *types = array_of(meta, "tokenizer.ggml.token_type", META_I32);
    const llmq_meta_value *scores = array_of(meta, "tokenizer.ggml.scores", META_F32);
    if (!tokens || !tokens->arr.n)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "the model has no tokenizer; copy its tokenizer.json into the folder");
    *v = (vocab){.meta = meta, .tokens = tokens->arr.data, .n = tokens->arr.n};
    if (types && types->arr.n == v->n) v->types = types->arr.data;
    if (scores && scores->arr.n == v->n) v->scores = scores->arr.data;
    for (size_t i = 0; i < v->n; i++)
        if (utf8_valid(v->tokens[i].s, v->tokens[i].len) != v->tokens[i].len)
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "token %zu is not UTF-8, which tokenizer.json cannot hold", i);
    return LLMQ_OK;
}

/* {"piece": id}; ids that fill are left out. */
static json_t *vocab_json(const vocab *v) {
    json_t *map = json_object();
    for (size_t i = 0; i < v->n; i++)
        if (type_of(v, i) != TOKEN_UNUSED)
            json_object_setn_new(map, v->tokens[i].s, v->tokens[i].len, json_integer((json_int_t)i));
    return map;
}

static json_t *added_tokens(const vocab *v) {
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++) {
        int type = type_of(v, i);
        bool special = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
        if (!special && type != TOKEN_USER_DEFINED) continue;
        json_array_append_new(list, json_pack("{s:I, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i, "content",
                                              text_of(&v->tokens[i]), "single_word", 0, "lstrip", 0, "rstrip", 0,
                                              "normalized", 0, "special", (int)special));
    }
    return list;
}

static json_t *regex_split(const char *pattern) {
    return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern, "behavior", "Isolated",
                     "invert", 0);
}

static json_t *byte_level(void) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex",
                     0);
}

static json_t *pre_tokenizer(const struct pretok_row *row) {
    json_t *steps = json_array();
    for (size_t i = 0; pretok_row_step(row, i); i++) json_array_append_new(steps, regex_split(pretok_row_step(row, i)));
    json_array_append_new(steps, byte_level());
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", steps);
}

/* "<bos> text", or nothing to be added. */
static json_t *post_processor(const vocab *v, bool adds_bos) {
    int64_t bos = -1;
    meta_get_bool(v->meta, "tokenizer.ggml.add_bos_token", &adds_bos);
    meta_get_i64(v->meta, "tokenizer.ggml.bos_token_id", &bos);
    if (!adds_bos || bos < 0 || (size_t)bos >= v->n) return json_null();
    json_t *name = text_of(&v->tokens[bos]);
    json_t *special = json_pack("{s:{s:O, s:i}}", "SpecialToken", "id", name, "type_id", 0);
    json_t *a = json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0);
    json_t *b = json_pack("{s:{s:s, s:i}}", "Sequence", "id", "B", "type_id", 1);
    json_t *tokens = json_object();
    json_object_set_new(tokens, json_string_value(name),
                        json_pack("{s:O, s:[I], s:[O]}", "id", name, "ids", (json_int_t)bos, "tokens", name));
    json_t *out = json_pack("{s:s, s:[O, O], s:[O, O, O, O], s:o}", "type", "TemplateProcessing", "single", special, a,
                            "pair", special, a, special, b, "special_tokens", tokens);
    json_decref(special);
    json_decref(a);
    json_decref(b);
    json_decref(name);
    return out;
}

/* ---- byte-level BPE ---- */

static llmq_status bpe_json(const vocab *v, json_t *root, llmq_err *err) {
    const char *pre = meta_get_str(v->meta, "tokenizer.ggml.pre");
    const struct pretok_row *row = pretok_find(pre ? pre : "gpt-2");
    const llmq_meta_value *merges = array_of(v->meta, "tokenizer.ggml.merges", META_STR);
    if (!row || !merges)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "pre-tokenizer \"%.40s\" is not known, or its merges are missing",
                         pre ? pre : "gpt-2");
    pretok_traits traits = pretok_row_traits(row);
    meta_get_bool(v->meta, "llmq.tokenizer.nfc", &traits.nfc);
    meta_get_bool(v->meta, "llmq.tokenizer.ignore_merges", &traits.ignore_merges);
    json_t *list = json_array();
    const llmq_str *strs = merges->arr.data;
    for (size_t i = 0; i < merges->arr.n; i++)
        if (json_array_append_new(list, text_of(&strs[i])) != 0) {
            json_decref(list);
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "merge %zu is not UTF-8, which tokenizer.json cannot hold", i);
        }
    json_object_set_new(root, "normalizer", traits.nfc ? json_pack("{s:s}", "type", "NFC") : json_null());
    json_object_set_new(root, "pre_tokenizer", pre_tokenizer(row));
    json_object_set_new(root, "post_processor", post_processor(v, traits.add_bos));
    json_object_set_new(root, "decoder", byte_level());
    json_object_set_new(root, "model",
                        json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                                  "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                                  "byte_fallback", 0, "ignore_merges", (int)traits.ignore_merges, "vocab",
                                  vocab_json(v), "merges", list));
    return LLMQ_OK;
}

/* ---- SentencePiece BPE ---- */

typedef struct piece {
    float score;
    uint32_t id;
} piece;

static int piece_order(const void *a, const void *b) {
    const piece *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* All ways to put a piece together from two. */
static void piece_merges(const vocab *v, const tok_index *index, const llmq_str *s, json_t *list) {
    for (size_t at = utf8_char(s->s, s->len); at && at < s->len; at += utf8_char(s->s + at, s->len - at)) {
        int32_t left = tok_index_find(index, s->s, at), right = tok_index_find(index, s->s + at, s->len - at);
        if (left < 0 || right < 0) continue;
        json_array_append_new(list, json_pack("[o, o]", text_of(&v->tokens[left]), text_of(&v->tokens[right])));
    }
}

static llmq_status spm_merges(const vocab *v, json_t **out, llmq_err *err) {
    tok_index index = {0};
    llmq_status status = LLMQ_OK;
    size_t n = 0;
    piece *pieces = mem_alloc(v->n, sizeof *pieces);
    json_t *list = json_array();
    if (!pieces) LLMQ_TRY_GOTO(mem_error(err, v->n * sizeof *pieces, "tokenizer.json"));
    LLMQ_TRY_GOTO(tok_index_create(&index, v->n, err));
    index.strs = v->tokens;
    for (size_t i = 0; i < v->n; i++) {
        if (type_of(v, i) != TOKEN_NORMAL) continue;
        tok_index_add(&index, (int32_t)i);
        pieces[n++] = (piece){v->scores[i], (uint32_t)i};
    }
    if (n > 1) qsort(pieces, n, sizeof *pieces, piece_order);
    for (size_t i = 0; i < n; i++) piece_merges(v, &index, &v->tokens[pieces[i].id], list);
    *out = list;
    list = NULL;
done:
    json_decref(list);
    tok_index_destroy(&index);
    mem_free(pieces);
    return status;
}

static json_t *replace(const char *from, const char *to) {
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content", to);
}

static llmq_status spm_json(const vocab *v, json_t *root, llmq_err *err) {
    bool prefix = true;
    int64_t unk = 0;
    json_t *merges = NULL;
    if (!v->scores) return llmq_fail(err, LLMQ_E_UNSUPPORTED, "its pieces have no scores");
    if (meta_get_str(v->meta, "llmq.tokenizer.metaspace"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "its places for spaces are those of another tokenizer.json: copy that");
    meta_get_bool(v->meta, "tokenizer.ggml.add_space_prefix", &prefix);
    meta_get_i64(v->meta, "tokenizer.ggml.unknown_token_id", &unk);
    LLMQ_TRY(spm_merges(v, &merges, err));
    json_t *normalizers = json_array(), *decoders = json_array();
    if (prefix) json_array_append_new(normalizers, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", SPM_SPACE));
    json_array_append_new(normalizers, replace(" ", SPM_SPACE));
    json_array_append_new(decoders, replace(SPM_SPACE, " "));
    json_array_append_new(decoders, json_pack("{s:s}", "type", "ByteFallback"));
    json_array_append_new(decoders, json_pack("{s:s}", "type", "Fuse"));
    if (prefix)
        json_array_append_new(
            decoders, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    json_object_set_new(root, "normalizer", json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", normalizers));
    json_object_set_new(root, "pre_tokenizer", json_null());
    json_object_set_new(root, "post_processor", post_processor(v, true));
    json_object_set_new(root, "decoder", json_pack("{s:s, s:o}", "type", "Sequence", "decoders", decoders));
    json_object_set_new(root, "model",
                        json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                                  "unk_token", unk >= 0 && (size_t)unk < v->n ? text_of(&v->tokens[unk]) : json_null(),
                                  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 1, "byte_fallback", 1,
                                  "ignore_merges", 0, "vocab", vocab_json(v), "merges", merges));
    return LLMQ_OK;
}

/* ---- the files ---- */

llmq_status hf_tokenizer_json(const llmq_meta *meta, json_t **out, llmq_err *err) {
    vocab v;
    const char *model = meta_get_str(meta, "tokenizer.ggml.model");
    bool bpe = model && !strcmp(model, "gpt2"), spm = model && !strcmp(model, "llama");
    if (!bpe && !spm)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "a tokenizer \"%.40s\" cannot be written", model ? model : "none");
    LLMQ_TRY(open_vocab(meta, &v, err));
    json_t *root =
        json_pack("{s:s, s:n, s:n, s:o}", "version", "1.0", "truncation", "padding", "added_tokens", added_tokens(&v));
    llmq_status status = root ? (bpe ? bpe_json : spm_json)(&v, root, err) : mem_error(err, v.n, "tokenizer.json");
    if (status == LLMQ_OK && !json_object_get(root, "model")) status = mem_error(err, v.n, "tokenizer.json");
    if (status == LLMQ_OK)
        *out = root;
    else
        json_decref(root);
    return status;
}

llmq_status hf_tokenizer_config(const llmq_meta *meta, json_t **out, llmq_err *err) {
    static const struct {
        const char *key, *name;
    } ids[] = {{"tokenizer.ggml.bos_token_id", "bos_token"},
               {"tokenizer.ggml.eos_token_id", "eos_token"},
               {"tokenizer.ggml.unknown_token_id", "unk_token"},
               {"tokenizer.ggml.padding_token_id", "pad_token"}};
    vocab v;
    bool adds_bos;
    const char *chat = meta_get_str(meta, "tokenizer.chat_template");
    LLMQ_TRY(open_vocab(meta, &v, err));
    json_t *root = json_pack("{s:s, s:b, s:s*}", "tokenizer_class", "PreTrainedTokenizerFast",
                             "clean_up_tokenization_spaces", 0, "chat_template", chat);
    if (!root) return mem_error(err, 4096, "tokenizer_config.json");
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        int64_t id = -1;
        if (meta_get_i64(meta, ids[i].key, &id) && id >= 0 && (size_t)id < v.n)
            json_object_set_new(root, ids[i].name, text_of(&v.tokens[id]));
    }
    if (meta_get_bool(meta, "tokenizer.ggml.add_bos_token", &adds_bos))
        json_object_set_new(root, "add_bos_token", json_boolean(adds_bos));
    *out = root;
    return LLMQ_OK;
}

llmq_status hf_save_json(const char *dir, const char *name, const json_t *json, llmq_err *err) {
    char path[4096], *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
    if (!text) return mem_error(err, 4096, name);
    llmq_status status = path_join(path, sizeof path, dir, name)
                             ? file_write(path, text, strlen(text), err)
                             : llmq_fail(err, LLMQ_E_ARG, "%s: the path is too long", dir);
    free(text);
    return status;
}

llmq_status hf_tokenizer_write(const char *dir, const llmq_meta *meta, llmq_err *err) {
    json_t *tokenizer = NULL, *config = NULL;
    llmq_status status = LLMQ_OK;
    LLMQ_TRY_GOTO(hf_tokenizer_json(meta, &tokenizer, err));
    LLMQ_TRY_GOTO(hf_tokenizer_config(meta, &config, err));
    LLMQ_TRY_GOTO(hf_save_json(dir, "tokenizer.json", tokenizer, err));
    LLMQ_TRY_GOTO(hf_save_json(dir, "tokenizer_config.json", config, err));
done:
    json_decref(config);
    json_decref(tokenizer);
    return status;
}
