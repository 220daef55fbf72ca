/* tokenizer.json (Hugging Face "tokenizers") to GGUF's metadata keys.
 *
 * Two kinds are read. Byte-level BPE: the pre_tokenizer is a chain of isolated splits that ends in ByteLevel; the
 * chain's patterns are looked up in the table of pretok.c. SentencePiece BPE (byte_fallback, spaces as U+2581): the
 * list of merges becomes scores, the score of a token being minus the rank of the first merge that makes it, which is
 * how such files were made from SentencePiece models in the first place.
 *
 * Where a tokenizer.json says something that GGUF's keys cannot say, keys of our own carry it: llmq.tokenizer.nfc and
 * llmq.tokenizer.ignore_merges (where they differ from the pre-tokenizer's row), llmq.tokenizer.metaspace ("first",
 * "always": Metaspace's places for the space before a text differ from SentencePiece's), llmq.token_strip (added tokens
 * that eat spaces: bit 0 before, bit 1 after). */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "tokenizer/hf.h"
#include "tokenizer/internal.h"

#define MAX_JSON_BYTES ((size_t)1 << 28)

typedef struct hf_vocab {
    const char *path;
    llmq_meta *meta;
    llmq_arena *arena;
    json_t *root, *model;
    llmq_str *tokens; /* (n) */
    int32_t *types;
    uint8_t *strip;
    size_t n;
    tok_index index; /* over tokens */
    bool spm, any_strip;
} hf_vocab;

static const char *string_of(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

static bool has_type(const json_t *object, const char *type) {
    const char *t = string_of(object, "type");
    return t && !strcmp(t, type);
}

llmq_status hf_load_json(const char *path, json_t **out, llmq_err *err) {
    llmq_map map = {0};
    json_error_t at;
    LLMQ_TRY(file_map(path, &map, err));
    json_t *root = NULL;
    llmq_status status = LLMQ_OK;
    if (!map.size || map.size > MAX_JSON_BYTES) {
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: %zu bytes are no JSON file that llmq reads", path, map.size);
        goto done;
    }
    root = json_loadb((const char *)map.data, map.size, JSON_ALLOW_NUL, &at);
    /* transformers writes model_max_length 10^30 where a tokenizer has no limit. */
    if (!root && json_error_code(&at) == json_error_numeric_overflow)
        root = json_loadb((const char *)map.data, map.size, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &at);
    if (!root)
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: line %d: %s", path, at.line, at.text);
    else if (!json_is_object(root))
        status = llmq_fail(err, LLMQ_E_FORMAT, "%s: this is no JSON object", path);
done:
    file_unmap(&map);
    if (status)
        json_decref(root);
    else
        *out = root;
    return status;
}

/* A part of the file that llmq cannot do, shown as it stands there. */
static llmq_status unsupported(const hf_vocab *v, const char *what, const json_t *part, llmq_err *err) {
    char *text = part ? json_dumps(part, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    llmq_status status =
        llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: llmq does not know this %s: %.500s", v->path, what, text ? text : "");
    free(text);
    return status;
}

/* ---- vocabulary -------------------------------------------------------------------------------------------------- */

static bool valid_id(json_int_t id) {
    return id >= 0 && id < TOK_MAX_TOKENS;
}

/* The number of tokens: the model's, or as many as the file has ids for. */
static llmq_status count_tokens(hf_vocab *v, const json_t *vocab, const json_t *added, int64_t n_vocab, llmq_err *err) {
    const char *piece;
    json_t *id;
    json_int_t max = -1;
    size_t i;
    json_object_foreach((json_t *)vocab, piece, id) {
        json_int_t x = json_is_integer(id) ? json_integer_value(id) : -1;
        if (!valid_id(x) || (n_vocab > 0 && x >= n_vocab))
            return llmq_fail(err, LLMQ_E_FORMAT,
                             "%s: model.vocab: token '%.60s' has id %lld, but there are %lld tokens; is it "
                             "the tokenizer of another model?",
                             v->path, piece, (long long)x, (long long)(n_vocab > 0 ? n_vocab : TOK_MAX_TOKENS));
        if (x > max) max = x;
    }
    json_array_foreach((json_t *)added, i, id) {
        json_int_t x = json_integer_value(json_object_get(id, "id"));
        if (!json_is_integer(json_object_get(id, "id")) || !valid_id(x) || !string_of(id, "content"))
            return llmq_fail(err, LLMQ_E_FORMAT, "%s: added_tokens[%zu] lacks a usable id or content", v->path, i);
        if (x > max) max = x;
    }
    v->n = n_vocab > 0 ? (size_t)n_vocab : (size_t)(max + 1);
    if (!v->n || v->n > TOK_MAX_TOKENS)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: a vocabulary of %zu tokens", v->path, v->n);
    return LLMQ_OK;
}

static bool looks_like_byte(const char *s) {
    return strlen(s) == 6 && !strncmp(s, "<0x", 3) && s[5] == '>';
}

static llmq_status add_added_tokens(hf_vocab *v, const json_t *added, llmq_err *err) {
    json_t *t;
    size_t i, beyond = 0;
    json_array_foreach((json_t *)added, i, t) {
        size_t id = (size_t)json_integer_value(json_object_get(t, "id"));
        const json_t *content = json_object_get(t, "content");
        if (id >= v->n) {
            beyond++;
            continue;
        }
        const char *s = arena_strndup(v->arena, json_string_value(content), json_string_length(content));
        if (!s) return mem_error(err, json_string_length(content), "a vocabulary");
        v->tokens[id] = (llmq_str){s, json_string_length(content)};
        if (v->types[id] != TOKEN_UNKNOWN && v->types[id] != TOKEN_BYTE)
            v->types[id] = is_true(t, "special") ? TOKEN_CONTROL : TOKEN_USER_DEFINED;
        v->strip[id] =
            (uint8_t)((is_true(t, "lstrip") ? TOK_STRIP_LEFT : 0) | (is_true(t, "rstrip") ? TOK_STRIP_RIGHT : 0));
        if (v->strip[id]) v->any_strip = true;
    }
    if (beyond)
        llmq_log(LLMQ_LOG_WARN, "%s: %zu added tokens have no row in the model and are left out", v->path, beyond);
    return LLMQ_OK;
}

static llmq_status read_vocab(hf_vocab *v, int64_t n_vocab, llmq_err *err) {
    json_t *vocab = json_object_get(v->model, "vocab"), *added = json_object_get(v->root, "added_tokens"), *id;
    const char *piece, *unk = string_of(v->model, "unk_token");
    if (!json_is_object(vocab))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: model.vocab is missing or no object", v->path);
    LLMQ_TRY(count_tokens(v, vocab, added, n_vocab, err));
    v->tokens = mem_zalloc(v->n, sizeof *v->tokens);
    v->types = mem_zalloc(v->n, sizeof *v->types);
    v->strip = mem_zalloc(v->n, 1);
    if (!v->tokens || !v->types || !v->strip) return mem_error(err, v->n * 21, "a vocabulary");
    json_object_foreach(vocab, piece, id) {
        size_t i = (size_t)json_integer_value(id);
        v->tokens[i] = (llmq_str){piece, strlen(piece)};
        v->types[i] = unk && v->spm && !strcmp(piece, unk) ? TOKEN_UNKNOWN
                      : v->spm && looks_like_byte(piece)   ? TOKEN_BYTE
                                                           : TOKEN_NORMAL;
    }
    LLMQ_TRY(add_added_tokens(v, added, err));
    for (size_t i = 0; i < v->n; i++) {
        if (v->tokens[i].s) continue;
        char name[32];
        int len = snprintf(name, sizeof name, "[PAD%zu]", i);
        char *s = arena_strndup(v->arena, name, (size_t)len);
        if (!s) return mem_error(err, sizeof name, "a vocabulary");
        v->tokens[i] = (llmq_str){s, (size_t)len};
        v->types[i] = TOKEN_UNUSED;
    }
    v->index.strs = v->tokens;
    LLMQ_TRY(tok_index_create(&v->index, v->n, err));
    for (size_t i = 0; i < v->n; i++) tok_index_add(&v->index, (int32_t)i);
    return LLMQ_OK;
}

/* ---- merges ------------------------------------------------------------------------------------------------------ */

/* One merge, "a b" or ["a", "b"], as its two parts. */
static bool merge_parts(const json_t *m, llmq_str *a, llmq_str *b) {
    const json_t *left = m, *right = json_array_get(m, 1);
    if (json_is_array(m)) {
        left = json_array_get(m, 0);
        *a = (llmq_str){json_string_value(left), json_string_length(left)};
        *b = (llmq_str){json_string_value(right), json_string_length(right)};
        return a->s && b->s && json_array_size(m) == 2;
    }
    const char *s = json_string_value(m);
    size_t len = json_string_length(m);
    const char *space = len > 1 ? memchr(s + 1, ' ', len - 1) : NULL;
    if (!space) return false;
    *a = (llmq_str){s, (size_t)(space - s)};
    *b = (llmq_str){space + 1, len - a->len - 1};
    return true;
}

static llmq_status bad_merge(const hf_vocab *v, size_t i, llmq_err *err) {
    return llmq_fail(err, LLMQ_E_FORMAT, "%s: model.merges[%zu] is neither \"a b\" nor [\"a\", \"b\"]", v->path, i);
}

static llmq_status write_merges(hf_vocab *v, const json_t *merges, llmq_err *err) {
    size_t n = json_array_size(merges);
    llmq_status status = LLMQ_OK;
    llmq_str *lines = mem_alloc(n, sizeof *lines), a, b;
    if (!lines) return mem_error(err, n * sizeof *lines, "merges");
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(merges, i);
        if (!merge_parts(m, &a, &b)) {
            status = bad_merge(v, i, err);
            goto done;
        }
        if (json_is_string(m)) {
            lines[i] = (llmq_str){json_string_value(m), json_string_length(m)};
            continue;
        }
        char *line = arena_alloc(v->arena, a.len + b.len + 2, 1);
        if (!line) {
            status = mem_error(err, a.len + b.len, "merges");
            goto done;
        }
        memcpy(line, a.s, a.len);
        line[a.len] = ' ';
        memcpy(line + a.len + 1, b.s, b.len + 1);
        lines[i] = (llmq_str){line, a.len + b.len + 1};
    }
    status = meta_set_strs(v->meta, "tokenizer.ggml.merges", lines, n, err);
done:
    mem_free(lines);
    return status;
}

static llmq_status write_scores(hf_vocab *v, const json_t *merges, llmq_err *err) {
    size_t n = json_array_size(merges);
    llmq_status status = LLMQ_OK;
    float *scores = mem_alloc(v->n, sizeof *scores);
    char *whole = mem_alloc(1024, 1);
    llmq_str a, b;
    if (!scores || !whole) {
        status = mem_error(err, v->n * sizeof *scores, "scores");
        goto done;
    }
    for (size_t i = 0; i < v->n; i++) scores[i] = v->types[i] == TOKEN_NORMAL ? -(float)n - 1 : 0;
    for (size_t i = n; i-- > 0;) { /* backwards: the first merge that makes a token has the last word */
        if (!merge_parts(json_array_get(merges, i), &a, &b)) {
            status = bad_merge(v, i, err);
            goto done;
        }
        if (a.len + b.len > 1024) continue;
        memcpy(whole, a.s, a.len);
        memcpy(whole + a.len, b.s, b.len);
        int32_t id = tok_index_find(&v->index, whole, a.len + b.len);
        if (id >= 0) scores[id] = -(float)i;
    }
    status = meta_set_array(v->meta, "tokenizer.ggml.scores", META_F32, scores, v->n, err);
done:
    mem_free(whole);
    mem_free(scores);
    return status;
}

/* ---- normalizer and pre_tokenizer -------------------------------------------------------------------------------- */

typedef struct text_rules {
    const char *patterns[8];
    size_t n_patterns;
    bool byte_level, nfc;
    bool spaces_replaced, prefix; /* SentencePiece: U+2581 for spaces, and one before the text */
    const char *metaspace;        /* "first", "always": prefix as Metaspace puts it; NULL: as SentencePiece does */
} text_rules;

static llmq_status read_normalizer(const hf_vocab *v, const json_t *n, text_rules *rules, llmq_err *err) {
    json_t *part;
    size_t i;
    if (!n || json_is_null(n)) return LLMQ_OK;
    if (has_type(n, "Sequence")) {
        json_array_foreach(json_object_get(n, "normalizers"), i, part) {
            if (has_type(part, "Sequence")) return unsupported(v, "normalizer", part, err);
            LLMQ_TRY(read_normalizer(v, part, rules, err));
        }
        return LLMQ_OK;
    }
    if (has_type(n, "NFC") && !v->spm) {
        rules->nfc = true;
        return LLMQ_OK;
    }
    const char *prepend = string_of(n, "prepend"), *from = string_of(json_object_get(n, "pattern"), "String");
    const char *to = string_of(n, "content");
    if (v->spm && has_type(n, "Prepend") && prepend && !strcmp(prepend, SPM_SPACE)) {
        rules->prefix = true;
        return LLMQ_OK;
    }
    if (v->spm && has_type(n, "Replace") && from && to && !strcmp(from, " ") && !strcmp(to, SPM_SPACE)) {
        rules->spaces_replaced = true;
        return LLMQ_OK;
    }
    return unsupported(v, "normalizer", n, err);
}

static llmq_status add_pattern(const hf_vocab *v, const json_t *p, const char *pattern, text_rules *rules,
                               llmq_err *err) {
    if (rules->n_patterns == sizeof rules->patterns / sizeof *rules->patterns)
        return unsupported(v, "pre_tokenizer", p, err);
    rules->patterns[rules->n_patterns++] = pattern;
    return LLMQ_OK;
}

static llmq_status read_split(const hf_vocab *v, const json_t *p, text_rules *rules, llmq_err *err) {
    const json_t *pattern = json_object_get(p, "pattern");
    const char *regex = string_of(pattern, "Regex"), *behavior = string_of(p, "behavior");
    if (v->spm) { /* Gemma splits at spaces, of which its normalizer has left none */
        const char *s = string_of(pattern, "String");
        return rules->spaces_replaced && s && !strcmp(s, " ") ? LLMQ_OK : unsupported(v, "pre_tokenizer", p, err);
    }
    bool inverted = is_true(p, "invert");
    bool isolated =
        behavior && ((!strcmp(behavior, "Isolated") && !inverted) || (!strcmp(behavior, "Removed") && inverted));
    if (!regex || !isolated) return unsupported(v, "pre_tokenizer", p, err);
    return add_pattern(v, p, regex, rules, err);
}

static llmq_status read_pre_tokenizer(const hf_vocab *v, const json_t *p, text_rules *rules, llmq_err *err) {
    json_t *part;
    size_t i;
    if (!p || json_is_null(p)) return LLMQ_OK;
    if (has_type(p, "Sequence")) {
        json_array_foreach(json_object_get(p, "pretokenizers"), i, part) {
            if (has_type(part, "Sequence")) return unsupported(v, "pre_tokenizer", part, err);
            LLMQ_TRY(read_pre_tokenizer(v, part, rules, err));
        }
        return LLMQ_OK;
    }
    if (has_type(p, "Split")) return read_split(v, p, rules, err);
    if (has_type(p, "Metaspace") && v->spm) {
        const char *scheme = string_of(p, "prepend_scheme");
        rules->spaces_replaced = true;
        rules->prefix = scheme ? strcmp(scheme, "never") != 0 : is_true(p, "add_prefix_space");
        rules->metaspace = rules->prefix ? scheme && !strcmp(scheme, "first") ? "first" : "always" : NULL;
        return LLMQ_OK;
    }
    if (rules->byte_level || v->spm) return unsupported(v, "pre_tokenizer", p, err); /* nothing may follow ByteLevel */
    if (has_type(p, "Digits"))
        return add_pattern(v, p, is_true(p, "individual_digits") ? PRETOK_DIGITS_PATTERN : "\\p{N}+", rules, err);
    if (has_type(p, "ByteLevel") && !is_true(p, "add_prefix_space")) {
        rules->byte_level = true;
        if (json_is_false(json_object_get(p, "use_regex"))) return LLMQ_OK;
        return add_pattern(v, p, PRETOK_GPT2_PATTERN, rules, err);
    }
    return unsupported(v, "pre_tokenizer", p, err);
}

static llmq_status write_pre(const hf_vocab *v, const text_rules *rules, llmq_err *err) {
    pretok_traits want = {.nfc = rules->nfc, .ignore_merges = is_true(v->model, "ignore_merges")};
    const char *name = pretok_detect(rules->patterns, rules->n_patterns, want);
    if (!rules->byte_level || !name)
        return unsupported(v, "pre_tokenizer", json_object_get(v->root, "pre_tokenizer"), err);
    pretok_traits traits = pretok_row_traits(pretok_find(name));
    LLMQ_TRY(meta_set_str(v->meta, "tokenizer.ggml.pre", name, err));
    if (traits.nfc != want.nfc) LLMQ_TRY(meta_set_bool(v->meta, "llmq.tokenizer.nfc", want.nfc, err));
    if (traits.ignore_merges != want.ignore_merges)
        LLMQ_TRY(meta_set_bool(v->meta, "llmq.tokenizer.ignore_merges", want.ignore_merges, err));
    return LLMQ_OK;
}

/* ---- special ids of tokenizer.json itself ------------------------------------------------------------------------ */

static llmq_status set_id(const hf_vocab *v, const char *key, int64_t id, llmq_err *err) {
    if (id < 0 || (size_t)id >= v->n) return LLMQ_OK;
    return meta_set_u32(v->meta, key, (uint32_t)id, err);
}

/* The id that TemplateProcessing puts at one end of a text, -1: none. */
static int64_t template_token(const json_t *processor, size_t at) {
    const json_t *item = json_object_get(json_array_get(json_object_get(processor, "single"), at), "SpecialToken");
    const char *name = string_of(item, "id");
    const json_t *token = name ? json_object_get(json_object_get(processor, "special_tokens"), name) : NULL;
    const json_t *id = json_array_get(json_object_get(token, "ids"), 0);
    return json_is_integer(id) ? json_integer_value(id) : -1;
}

static llmq_status read_post_processor(const hf_vocab *v, const json_t *p, llmq_err *err) {
    json_t *part;
    size_t i;
    json_array_foreach(json_object_get(p, "processors"), i,
                       part) if (has_type(part, "TemplateProcessing")) return read_post_processor(v, part, err);
    size_t n = json_array_size(json_object_get(p, "single"));
    bool is_template = has_type(p, "TemplateProcessing") && n > 0;
    int64_t first = is_template ? template_token(p, 0) : -1,
            last = is_template && n > 1 ? template_token(p, n - 1) : -1;
    LLMQ_TRY(meta_set_bool(v->meta, "tokenizer.ggml.add_bos_token", first >= 0, err));
    LLMQ_TRY(meta_set_bool(v->meta, "tokenizer.ggml.add_eos_token", last >= 0, err));
    LLMQ_TRY(set_id(v, "tokenizer.ggml.bos_token_id", first, err));
    return set_id(v, "tokenizer.ggml.eos_token_id", last, err);
}

static llmq_status write_eot(const hf_vocab *v, llmq_err *err) {
    static const char *const names[] = {"<|eot_id|>", "<|im_end|>",    "<end_of_turn>",
                                        "<|end|>",    "<|endofturn|>", "<EOT>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = tok_index_find(&v->index, names[i], strlen(names[i]));
        if (id >= 0 && (v->types[id] == TOKEN_CONTROL || v->types[id] == TOKEN_USER_DEFINED))
            return set_id(v, "tokenizer.ggml.eot_token_id", id, err);
    }
    return LLMQ_OK;
}

/* ---- the whole file ---------------------------------------------------------------------------------------------- */

static llmq_status check_model(hf_vocab *v, llmq_err *err) {
    v->model = json_object_get(v->root, "model");
    const char *type = string_of(v->model, "type");
    if (!json_is_object(v->model)) return llmq_fail(err, LLMQ_E_FORMAT, "%s: model is missing or no object", v->path);
    if (type ? strcmp(type, "BPE") != 0 : !json_is_array(json_object_get(v->model, "merges")))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s: model.type is \"%.60s\"; llmq reads BPE", v->path,
                         type ? type : "?");
    const char *prefix = string_of(v->model, "continuing_subword_prefix"),
               *suffix = string_of(v->model, "end_of_word_suffix");
    if ((prefix && *prefix) || (suffix && *suffix))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "%s: model.continuing_subword_prefix and end_of_word_suffix are not "
                         "supported",
                         v->path);
    if (!json_is_array(json_object_get(v->model, "merges")))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: model.merges is missing or no array", v->path);
    json_t *pre = json_object_get(v->root, "pre_tokenizer"), *part;
    size_t i;
    bool byte_level = has_type(pre, "ByteLevel");
    json_array_foreach(json_object_get(pre, "pretokenizers"), i, part) byte_level |= has_type(part, "ByteLevel");
    v->spm = is_true(v->model, "byte_fallback") && !byte_level;
    return LLMQ_OK;
}

static llmq_status write_model(hf_vocab *v, llmq_err *err) {
    text_rules rules = {0};
    const json_t *merges = json_object_get(v->model, "merges");
    LLMQ_TRY(read_normalizer(v, json_object_get(v->root, "normalizer"), &rules, err));
    LLMQ_TRY(read_pre_tokenizer(v, json_object_get(v->root, "pre_tokenizer"), &rules, err));
    if (v->spm && !rules.spaces_replaced)
        return unsupported(v, "normalizer", json_object_get(v->root, "normalizer"), err);
    LLMQ_TRY(meta_set_str(v->meta, "tokenizer.ggml.model", v->spm ? "llama" : "gpt2", err));
    if (v->spm)
        LLMQ_TRY(meta_set_str(v->meta, "tokenizer.ggml.pre", "default", err));
    else
        LLMQ_TRY(write_pre(v, &rules, err));
    LLMQ_TRY(meta_set_strs(v->meta, "tokenizer.ggml.tokens", v->tokens, v->n, err));
    if (v->spm) LLMQ_TRY(write_scores(v, merges, err));
    LLMQ_TRY(meta_set_array(v->meta, "tokenizer.ggml.token_type", META_I32, v->types, v->n, err));
    if (!v->spm) LLMQ_TRY(write_merges(v, merges, err));
    if (v->any_strip) LLMQ_TRY(meta_set_array(v->meta, "llmq.token_strip", META_U8, v->strip, v->n, err));
    LLMQ_TRY(meta_set_bool(v->meta, "tokenizer.ggml.add_space_prefix", rules.prefix, err));
    if (rules.metaspace) LLMQ_TRY(meta_set_str(v->meta, "llmq.tokenizer.metaspace", rules.metaspace, err));
    const char *unk = string_of(v->model, "unk_token");
    if (unk) LLMQ_TRY(set_id(v, "tokenizer.ggml.unknown_token_id", tok_index_find(&v->index, unk, strlen(unk)), err));
    LLMQ_TRY(read_post_processor(v, json_object_get(v->root, "post_processor"), err));
    return write_eot(v, err);
}

llmq_status tokenizer_read_json(const char *path, int64_t n_vocab, llmq_meta *meta, llmq_err *err) {
    hf_vocab v = {.path = path, .meta = meta};
    llmq_status status = LLMQ_OK;
    v.arena = arena_create();
    if (!v.arena) return mem_error(err, 0, "a vocabulary");
    LLMQ_TRY_GOTO(hf_load_json(path, &v.root, err));
    LLMQ_TRY_GOTO(check_model(&v, err));
    LLMQ_TRY_GOTO(read_vocab(&v, n_vocab, err));
    LLMQ_TRY_GOTO(write_model(&v, err));
done:
    tok_index_destroy(&v.index);
    mem_free(v.strip);
    mem_free(v.types);
    mem_free(v.tokens);
    json_decref(v.root);
    arena_destroy(v.arena);
    return status;
}
