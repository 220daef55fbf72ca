/* Tokenizers from metadata: what both kinds share. Encoding goes special tokens -> runs of plain text -> BPE or SPM. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmq.h"
#include "tokenizer/internal.h"

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static llmq_status read_texts(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    const llmq_meta_value *v = meta_find(meta, "tokenizer.ggml.tokens");
    if (!v || v->type != META_ARRAY || v->arr.type != META_STR || !v->arr.n)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "tokenizer.ggml.tokens is missing, empty or no array of strings; convert the "
                         "model again or give its tokenizer.json");
    if (v->arr.n > INT32_MAX / 4)
        return llmq_fail(err, LLMQ_E_FORMAT, "tokenizer.ggml.tokens has %zu entries", v->arr.n);
    size_t n = v->arr.n, extra = tok->kind == TOK_SPM ? n : 0;
    const llmq_str *strs = v->arr.data;
    tok->n_vocab = n;
    tok->text = mem_alloc(n + extra, sizeof *tok->text);
    tok->bytes = mem_alloc(n, sizeof *tok->bytes);
    tok->type = mem_alloc(n, 1);
    tok->is_end = mem_zalloc(n, sizeof *tok->is_end);
    if (!tok->text || !tok->bytes || !tok->type || !tok->is_end) return mem_error(err, n * 40, "a vocabulary");
    for (size_t i = 0; i < n; i++) {
        const char *s = arena_strndup(tok->arena, strs[i].s, strs[i].len);
        if (!s) return mem_error(err, strs[i].len, "a vocabulary");
        tok->text[i] = (llmq_str){s, strs[i].len};
    }
    return LLMQ_OK;
}

static llmq_status read_types(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    memset(tok->type, TOKEN_NORMAL, tok->n_vocab);
    const llmq_meta_value *v = meta_find(meta, "tokenizer.ggml.token_type");
    if (!v) return LLMQ_OK;
    bool fits =
        v->type == META_ARRAY && (v->arr.type == META_I32 || v->arr.type == META_U32) && v->arr.n == tok->n_vocab;
    if (!fits)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "tokenizer.ggml.token_type must hold one i32 for each of the %zu tokens; "
                         "convert the model again",
                         tok->n_vocab);
    const int32_t *types = v->arr.data;
    for (size_t i = 0; i < tok->n_vocab; i++)
        if (types[i] > 0 && types[i] <= TOKEN_BYTE) tok->type[i] = (uint8_t)types[i];
    return LLMQ_OK;
}

/* A token id under a key; -1 where it is absent or -1. fallback where absent. */
static llmq_status read_id(const llmq_tokenizer *tok, const llmq_meta *meta, const char *key, int32_t fallback,
                           int32_t *out, llmq_err *err) {
    int64_t id = fallback;
    meta_get_i64(meta, key, &id);
    if (id == UINT32_MAX) id = -1; /* -1 written as u32 */
    if (id < -1 || id >= (int64_t)tok->n_vocab)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s is %lld, but the vocabulary has %zu tokens", key, (long long)id,
                         tok->n_vocab);
    *out = (int32_t)id;
    return LLMQ_OK;
}

/* Tokens that end a turn or a text in every model that has them. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<|endofturn|>",
    "<|eos|>",
    ("<\xef\xbd\x9c"
     "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"), /* DeepSeek, with U+FF5C and U+2581 */
};

static bool ends_by_text(const llmq_tokenizer *tok, size_t id) {
    llmq_str s = tok->text[id];
    if (tok->type[id] != TOKEN_CONTROL && tok->type[id] != TOKEN_USER_DEFINED) return false;
    for (size_t i = 0; i < sizeof end_texts / sizeof *end_texts; i++)
        if (strlen(end_texts[i]) == s.len && !memcmp(end_texts[i], s.s, s.len)) return true;
    return false;
}

static llmq_status read_ends(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    int32_t id = -1;
    if (tok->eos >= 0) tok->is_end[tok->eos] = true;
    LLMQ_TRY(read_id(tok, meta, "tokenizer.ggml.eot_token_id", -1, &id, err));
    if (id >= 0) tok->is_end[id] = true;
    LLMQ_TRY(read_id(tok, meta, "tokenizer.ggml.eom_token_id", -1, &id, err));
    if (id >= 0) tok->is_end[id] = true;
    const llmq_meta_value *v = meta_find(meta, "llmq.eos_token_ids");
    if (v && v->type == META_ARRAY && (v->arr.type == META_I32 || v->arr.type == META_U32)) {
        const int32_t *ids = v->arr.data;
        for (size_t i = 0; i < v->arr.n; i++)
            if (ids[i] >= 0 && (size_t)ids[i] < tok->n_vocab) tok->is_end[ids[i]] = true;
    }
    for (size_t i = 0; i < tok->n_vocab; i++)
        if (ends_by_text(tok, i)) tok->is_end[i] = true;
    return LLMQ_OK;
}

/* Ids and flags with the defaults that readers of GGUF use. */
static llmq_status read_ids(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    bool spm = tok->kind == TOK_SPM;
    int32_t one = spm && tok->n_vocab > 1 ? 1 : -1, two = spm && tok->n_vocab > 2 ? 2 : -1;
    LLMQ_TRY(read_id(tok, meta, "tokenizer.ggml.bos_token_id", one, &tok->bos, err));
    LLMQ_TRY(read_id(tok, meta, "tokenizer.ggml.eos_token_id", two, &tok->eos, err));
    LLMQ_TRY(read_id(tok, meta, "tokenizer.ggml.unknown_token_id", spm ? 0 : -1, &tok->unk, err));
    tok->add_bos = spm ? true : tok->traits.add_bos;
    bool prefix = spm;
    const char *metaspace = meta_get_str(meta, "llmq.tokenizer.metaspace");
    meta_get_bool(meta, "tokenizer.ggml.add_bos_token", &tok->add_bos);
    meta_get_bool(meta, "tokenizer.ggml.add_eos_token", &tok->add_eos);
    meta_get_bool(meta, "tokenizer.ggml.add_space_prefix", &prefix);
    tok->space_prefix = !prefix || !spm               ? PREFIX_NONE
                        : !metaspace                  ? PREFIX_RUNS
                        : !strcmp(metaspace, "first") ? PREFIX_FIRST
                                                      : PREFIX_WORDS;
    return read_ends(tok, meta, err);
}

static int by_first_byte_and_length(const void *a, const void *b) {
    const tok_special *x = a, *y = b;
    int d = (int)(uint8_t)x->match.s[0] - (int)(uint8_t)y->match.s[0];
    if (d) return d;
    if (x->match.len != y->match.len) return x->match.len > y->match.len ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Tokens that are found in a text before anything else. In GGUF files SPM's added tokens may have U+2581 for a space.
 */
static llmq_status build_specials(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    const llmq_meta_value *v = meta_find(meta, "llmq.token_strip");
    bool has_strip = v && v->type == META_ARRAY && v->arr.type == META_U8 && v->arr.n == tok->n_vocab;
    size_t n = 0;
    for (size_t i = 0; i < tok->n_vocab; i++)
        n += tok->type[i] == TOKEN_CONTROL || tok->type[i] == TOKEN_USER_DEFINED || tok->type[i] == TOKEN_UNKNOWN;
    tok->specials = mem_alloc(n, sizeof *tok->specials);
    if (!tok->specials) return mem_error(err, n * sizeof *tok->specials, "special tokens");
    for (size_t i = 0; i < tok->n_vocab; i++) {
        uint8_t type = tok->type[i];
        llmq_str match = tok->bytes[i];
        if ((type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED && type != TOKEN_UNKNOWN) || !match.len) continue;
        uint8_t strip = has_strip ? ((const uint8_t *)v->arr.data)[i] : 0;
        tok->specials[tok->n_specials++] = (tok_special){match, (int32_t)i, strip, type != TOKEN_USER_DEFINED};
    }
    qsort(tok->specials, tok->n_specials, sizeof *tok->specials, by_first_byte_and_length);
    for (size_t b = 0, i = 0; b <= 256; b++) {
        while (i < tok->n_specials && (uint8_t)tok->specials[i].match.s[0] < b) i++;
        tok->special_first[b] = (uint32_t)i;
    }
    return LLMQ_OK;
}

static llmq_status choose_kind(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    const char *model = meta_get_str(meta, "tokenizer.ggml.model");
    if (!model || !strcmp(model, "none"))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "the model has no tokenizer (tokenizer.ggml.model is %s); give one with a "
                         "tokenizer.json or tokenizer.bin",
                         model ? "\"none\"" : "absent");
    if (!strcmp(model, "gpt2"))
        tok->kind = TOK_BPE;
    else if (!strcmp(model, "llama"))
        tok->kind = TOK_SPM;
    else
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "tokenizer.ggml.model is \"%.60s\"; llmq knows \"gpt2\" (byte-level BPE) "
                         "and \"llama\" (SentencePiece BPE)",
                         model);
    return LLMQ_OK;
}

llmq_status tokenizer_create(const llmq_meta *meta, llmq_tokenizer **out, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    llmq_tokenizer *tok = mem_zalloc(1, sizeof *tok);
    if (!tok) return mem_error(err, sizeof *tok, "a tokenizer");
    tok->arena = arena_create();
    if (!tok->arena) {
        status = mem_error(err, 0, "a tokenizer");
        goto done;
    }
    LLMQ_TRY_GOTO(choose_kind(tok, meta, err));
    LLMQ_TRY_GOTO(read_texts(tok, meta, err));
    LLMQ_TRY_GOTO(read_types(tok, meta, err));
    LLMQ_TRY_GOTO(tok->kind == TOK_BPE ? bpe_init(tok, meta, err) : spm_init(tok, meta, err));
    LLMQ_TRY_GOTO(read_ids(tok, meta, err));
    LLMQ_TRY_GOTO(build_specials(tok, meta, err));
    *out = tok;
    return LLMQ_OK;
done:
    tokenizer_destroy(tok);
    return status;
}

void tokenizer_destroy(llmq_tokenizer *tok) {
    if (!tok) return;
    pretok_destroy(tok->pretok);
    mem_free(tok->specials);
    tok_index_destroy(&tok->index);
    tok_merges_destroy(&tok->merges);
    mem_free(tok->is_end);
    mem_free(tok->type);
    mem_free(tok->bytes);
    mem_free(tok->text);
    arena_destroy(tok->arena);
    mem_free(tok);
}

int64_t tokenizer_n_vocab(const llmq_tokenizer *tok) {
    return (int64_t)tok->n_vocab;
}
const char *tokenizer_describe(const llmq_tokenizer *tok) {
    return tok->describe;
}
int32_t tokenizer_bos(const llmq_tokenizer *tok) {
    return tok->bos;
}
bool tokenizer_adds_bos(const llmq_tokenizer *tok) {
    return tok->add_bos && tok->bos >= 0;
}
bool tokenizer_is_end(const llmq_tokenizer *tok, int32_t id) {
    return id >= 0 && (size_t)id < tok->n_vocab && tok->is_end[id];
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

llmq_status encoder_reserve(tok_encoder *enc, size_t n, llmq_err *err) {
    if (enc->cap - enc->n >= n) return LLMQ_OK;
    size_t cap = enc->cap * 2 > enc->n + n ? enc->cap * 2 : enc->n + n;
    int32_t *grown = mem_grow(enc->ids, enc->n, cap, sizeof *grown);
    if (!grown) return mem_error(err, cap * sizeof *grown, "the tokens of a text");
    enc->ids = grown;
    enc->cap = cap;
    return LLMQ_OK;
}

llmq_status encoder_push(tok_encoder *enc, int32_t id, llmq_err *err) {
    if (enc->n == enc->cap) LLMQ_TRY(encoder_reserve(enc, 1, err));
    enc->ids[enc->n++] = id;
    return LLMQ_OK;
}

llmq_status encoder_from_cache(tok_encoder *enc, const char *piece, size_t len, tok_cached **slot_out, bool *hit_out,
                               llmq_err *err) {
    if (!enc->cache || len > UINT32_MAX) return LLMQ_OK;
    tok_cached *slot = &enc->cache[tok_hash(piece, len) & enc->cache_mask];
    *slot_out = slot;
    if (!slot->piece || slot->len != len || memcmp(slot->piece, piece, len)) return LLMQ_OK;
    LLMQ_TRY(encoder_reserve(enc, slot->n_ids, err));
    for (uint32_t i = 0; i < slot->n_ids; i++) enc->ids[enc->n + i] = enc->ids[slot->ids_off + i];
    enc->n += slot->n_ids;
    *hit_out = true;
    return LLMQ_OK;
}

void encoder_remember(tok_encoder *enc, tok_cached *slot, const char *piece, size_t len, size_t ids_off) {
    if (slot) *slot = (tok_cached){piece, (uint32_t)len, (uint32_t)(enc->n - ids_off), ids_off};
}

/* The special token that begins at s, the longest there; NULL: none. */
static const tok_special *special_at(const llmq_tokenizer *tok, const char *s, size_t len, bool with_control) {
    uint8_t first = (uint8_t)s[0];
    for (size_t i = tok->special_first[first]; i < tok->special_first[first + 1]; i++) {
        const tok_special *sp = &tok->specials[i];
        if (sp->match.len <= len && (with_control || !sp->control) && !memcmp(sp->match.s, s, sp->match.len)) return sp;
    }
    return NULL;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Plain text between special tokens; first: the text begins with it. */
static llmq_status encode_plain(tok_encoder *enc, const char *s, size_t len, bool first, llmq_err *err) {
    if (!len) return LLMQ_OK;
    if (enc->tok->kind == TOK_BPE) return bpe_encode(enc, s, len, err);
    bool begins_with_space = s[0] == ' ' || (len >= 3 && !memcmp(s, SPM_SPACE, 3)), prefix = false;
    switch (enc->tok->space_prefix) {
    case PREFIX_NONE: break;
    case PREFIX_RUNS: prefix = true; break;
    case PREFIX_WORDS: prefix = !begins_with_space; break;
    case PREFIX_FIRST: prefix = !begins_with_space && first; break;
    }
    return spm_encode(enc, s, len, prefix, err);
}

static llmq_status encode_text(tok_encoder *enc, const char *text, size_t len, int flags, llmq_err *err) {
    const llmq_tokenizer *tok = enc->tok;
    size_t begin = 0;
    for (size_t i = 0; i < len;) {
        uint8_t first = (uint8_t)text[i];
        const tok_special *sp = NULL;
        if (tok->special_first[first] != tok->special_first[first + 1])
            sp = special_at(tok, text + i, len - i, flags & LLMQ_TOK_SPECIAL);
        if (!sp) {
            i++;
            continue;
        }
        size_t end = i;
        if (sp->strip & TOK_STRIP_LEFT)
            while (end > begin && is_space(text[end - 1])) end--;
        LLMQ_TRY(encode_plain(enc, text + begin, end - begin, begin == 0, err));
        LLMQ_TRY(encoder_push(enc, sp->id, err));
        i += sp->match.len;
        if (sp->strip & TOK_STRIP_RIGHT)
            while (i < len && is_space(text[i])) i++;
        begin = i;
    }
    return encode_plain(enc, text + begin, len - begin, begin == 0, err);
}

/* Texts of more than a few words repeat themselves: about a third of the words of a book is ever new. */
static llmq_status create_cache(tok_encoder *enc, size_t len, llmq_err *err) {
    if (len < 2048) return LLMQ_OK;
    size_t cap = 256;
    while (cap < len / 16 && cap < 32768) cap *= 2;
    enc->cache = mem_zalloc(cap, sizeof *enc->cache);
    if (!enc->cache) return mem_error(err, cap * sizeof *enc->cache, "encoding a text");
    enc->cache_mask = cap - 1;
    return LLMQ_OK;
}

llmq_status tokenizer_encode(const llmq_tokenizer *tok, const char *text, size_t len, int flags, int32_t **out,
                             size_t *n_out, llmq_err *err) {
    tok_encoder enc = {.tok = tok};
    llmq_status status = LLMQ_OK;
    if (len > TOK_MAX_TEXT)
        return llmq_fail(err, LLMQ_E_ARG, "a text of %zu bytes is too long to encode at once (at most %zu)", len,
                         TOK_MAX_TEXT);
    LLMQ_TRY_GOTO(create_cache(&enc, len, err));
    LLMQ_TRY_GOTO(encoder_reserve(&enc, len / 4 + 8, err));
    if ((flags & LLMQ_TOK_BOS) && tokenizer_adds_bos(tok)) LLMQ_TRY_GOTO(encoder_push(&enc, tok->bos, err));
    LLMQ_TRY_GOTO(encode_text(&enc, text, len, flags, err));
    if ((flags & LLMQ_TOK_BOS) && tok->add_eos && tok->eos >= 0) LLMQ_TRY_GOTO(encoder_push(&enc, tok->eos, err));
    *out = enc.ids;
    *n_out = enc.n;
    enc.ids = NULL;
done:
    mem_free(enc.ids);
    mem_free(enc.cache);
    merge_scratch_destroy(&enc.scratch);
    arena_destroy(enc.arena);
    return status;
}
