/* Byte-level BPE ("gpt2" in GGUF): pieces of the pre-tokenizer, as bytes, are merged by rank. The vocabulary stores
 * tokens in the GPT-2 byte alphabet; here they are turned into bytes once, when the tokenizer is made. */
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "tokenizer/internal.h"

static llmq_status decode_tokens(llmq_tokenizer *tok, llmq_err *err) {
    for (size_t i = 0; i < tok->n_vocab; i++) {
        tok->bytes[i] = tok->text[i];
        if (tok->type[i] == TOKEN_CONTROL || tok->type[i] == TOKEN_USER_DEFINED || tok->type[i] == TOKEN_UNUSED)
            continue;
        size_t n = 0;
        char *bytes = arena_alloc(tok->arena, tok->text[i].len + 1, 1);
        if (!bytes) return mem_error(err, tok->text[i].len, "a vocabulary");
        if (!byte_alphabet_decode(tok->text[i].s, tok->text[i].len, bytes, &n)) continue;
        bytes[n] = 0;
        tok->bytes[i] = (llmq_str){bytes, n};
    }
    return LLMQ_OK;
}

/* tokenizer.ggml.merges: "left right" in order of rank. Lines whose parts or whole are no tokens can never apply. */
static llmq_status read_merges(llmq_tokenizer *tok, const tok_index *by_text, const llmq_meta *meta, llmq_err *err) {
    const llmq_meta_value *v = meta_find(meta, "tokenizer.ggml.merges");
    if (!v || v->type != META_ARRAY || v->arr.type != META_STR)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "tokenizer.ggml.merges is missing or no array of strings, so a \"gpt2\" "
                         "tokenizer cannot be built; convert the model again");
    if (v->arr.n >= TOK_NO_RANK)
        return llmq_fail(err, LLMQ_E_FORMAT, "tokenizer.ggml.merges has %zu entries", v->arr.n);
    LLMQ_TRY(tok_merges_create(&tok->merges, v->arr.n, err));
    const llmq_str *lines = v->arr.data;
    char whole[1024];
    for (size_t i = 0; i < v->arr.n; i++) {
        const char *s = lines[i].s, *space = lines[i].len > 1 ? memchr(s + 1, ' ', lines[i].len - 1) : NULL;
        if (!space || lines[i].len > sizeof whole) continue;
        size_t left = (size_t)(space - s), right = lines[i].len - left - 1;
        memcpy(whole, s, left);
        memcpy(whole + left, space + 1, right);
        int32_t a = tok_index_find(by_text, s, left), b = tok_index_find(by_text, space + 1, right);
        int32_t id = a < 0 || b < 0 ? -1 : tok_index_find(by_text, whole, left + right);
        if (id >= 0) tok_merges_add(&tok->merges, a, b, (uint32_t)i, id);
    }
    return LLMQ_OK;
}

static llmq_status choose_pretok(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    const char *name = meta_get_str(meta, "tokenizer.ggml.pre");
    if (!name) {
        llmq_log(LLMQ_LOG_WARN,
                 "tokenizer.ggml.pre is missing: the text may be split into other tokens than the model knows");
        name = "default";
    }
    const struct pretok_row *row = pretok_find(name);
    if (!row)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "llmq does not know the pre-tokenizer '%.100s' (tokenizer.ggml.pre); "
                         "a tokenizer.json of a known kind can be given instead",
                         name);
    tok->traits = pretok_row_traits(row);
    meta_get_bool(meta, "llmq.tokenizer.nfc", &tok->traits.nfc);
    meta_get_bool(meta, "llmq.tokenizer.ignore_merges", &tok->traits.ignore_merges);
    snprintf(tok->describe, sizeof tok->describe, "bpe %.50s", name);
    return pretok_create(row, &tok->pretok, err);
}

llmq_status bpe_init(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    tok_index by_text = {.strs = tok->text};
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(choose_pretok(tok, meta, err));
    LLMQ_TRY(decode_tokens(tok, err));
    LLMQ_TRY_GOTO(tok_index_create(&by_text, tok->n_vocab, err));
    for (size_t i = 0; i < tok->n_vocab; i++) tok_index_add(&by_text, (int32_t)i);
    LLMQ_TRY_GOTO(read_merges(tok, &by_text, meta, err));
    for (int b = 0; b < 256; b++) {
        char c[4];
        tok->byte_id[b] = tok_index_find(&by_text, c, byte_alphabet_char((uint8_t)b, c));
    }
    if (tok->traits.ignore_merges) {
        tok->index.strs = tok->bytes;
        LLMQ_TRY_GOTO(tok_index_create(&tok->index, tok->n_vocab, err));
        for (size_t i = 0; i < tok->n_vocab; i++)
            if (tok->type[i] == TOKEN_NORMAL) tok_index_add(&tok->index, (int32_t)i);
    }
done:
    tok_index_destroy(&by_text);
    return status;
}

/* One piece to ids at the end of enc->ids. Bytes that are no token vanish, as in the other implementations: SmolLM2,
 * for one, has no carriage return. */
static llmq_status encode_piece(void *arg, const char *piece, size_t len, llmq_err *err) {
    tok_encoder *enc = arg;
    const llmq_tokenizer *tok = enc->tok;
    tok_cached *slot = NULL;
    bool hit = false;
    LLMQ_TRY(encoder_from_cache(enc, piece, len, &slot, &hit, err));
    if (hit) return LLMQ_OK;
    size_t begin = enc->n, n = 0;
    int32_t whole = tok->traits.ignore_merges ? tok_index_find(&tok->index, piece, len) : -1;
    if (whole >= 0) {
        LLMQ_TRY(encoder_push(enc, whole, err));
        encoder_remember(enc, slot, piece, len, begin);
        return LLMQ_OK;
    }
    LLMQ_TRY(encoder_reserve(enc, len, err));
    int32_t *ids = enc->ids + begin;
    for (size_t i = 0; i < len; i++) {
        int32_t id = tok->byte_id[(uint8_t)piece[i]];
        if (id >= 0) ids[n++] = id;
    }
    LLMQ_TRY(tok_merges_apply(&tok->merges, &enc->scratch, ids, n, &n, err));
    enc->n = begin + n;
    encoder_remember(enc, slot, piece, len, begin);
    return LLMQ_OK;
}

/* text in NFC, in the encoder's arena; the text itself where it is NFC already (ASCII is). */
static llmq_status normalize(tok_encoder *enc, const char **text, size_t *len, llmq_err *err) {
    bool ascii = true;
    for (size_t i = 0; i < *len && ascii; i++) ascii = (uint8_t)(*text)[i] < 0x80;
    if (ascii) return LLMQ_OK;
    uint8_t *nfc = NULL;
    utf8proc_ssize_t n =
        utf8proc_map((const uint8_t *)*text, (utf8proc_ssize_t)*len, &nfc, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return n == UTF8PROC_ERROR_NOMEM ? mem_error(err, *len * 4, "normalizing a text")
                                         : llmq_fail(err, LLMQ_E_FORMAT, "utf8proc: %s", utf8proc_errmsg(n));
    char *copy = NULL;
    bool changed = (size_t)n != *len || memcmp(nfc, *text, *len) != 0;
    if (changed && !enc->arena) enc->arena = arena_create();
    if (changed && enc->arena) copy = arena_strndup(enc->arena, (const char *)nfc, (size_t)n);
    free(nfc);
    if (!changed) return LLMQ_OK;
    if (!copy) return mem_error(err, (size_t)n, "normalizing a text");
    *text = copy;
    *len = (size_t)n;
    return LLMQ_OK;
}

llmq_status bpe_encode(tok_encoder *enc, const char *text, size_t len, llmq_err *err) {
    while (len) {
        size_t valid = utf8_valid(text, len);
        if (valid) {
            const char *run = text;
            size_t run_len = valid;
            if (enc->tok->traits.nfc) LLMQ_TRY(normalize(enc, &run, &run_len, err));
            LLMQ_TRY(pretok_split(enc->tok->pretok, run, run_len, encode_piece, enc, err));
        } else {
            valid = 1; /* a byte that belongs to no character is a piece of its own */
            LLMQ_TRY(encode_piece(enc, text, 1, err));
        }
        text += valid;
        len -= valid;
    }
    return LLMQ_OK;
}
