/* SentencePiece BPE ("llama" in GGUF): spaces become U+2581, characters are merged to the token of highest score, and
 * what is no token in the end is spelled by byte tokens.
 *
 * Merging by "the text of both, joined, is a token" is turned into merging by pairs of ids when the tokenizer is made:
 * each token is cut everywhere into two parts that are tokens or single characters. A character that is no token
 * itself, but a part of one, gets an id beyond the vocabulary. The rank of a pair is the place of its token's score
 * among all different scores, so equal scores stay equal and the leftmost wins, as in SentencePiece. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/internal.h"

#define MAX_PIECE 512 /* bytes of a token that may come about by merging; longer ones are only found as added tokens   \
                       */

static bool mergeable(uint8_t type) {
    return type == TOKEN_NORMAL || type == TOKEN_USER_DEFINED || type == TOKEN_UNUSED;
}

/* "<0x0A>" -> 10; -1 for other texts. */
static int byte_of_text(llmq_str text) {
    static const char digits[] = "0123456789ABCDEF0123456789abcdef";
    if (text.len != 6 || memcmp(text.s, "<0x", 3) || text.s[5] != '>') return -1;
    const char *hi = memchr(digits, text.s[3], 32), *lo = memchr(digits, text.s[4], 32);
    return hi && lo ? (int)((hi - digits) % 16 * 16 + (lo - digits) % 16) : -1;
}

/* What tokens decode to: U+2581 is a space, byte tokens are their byte. */
static llmq_status decode_tokens(llmq_tokenizer *tok, llmq_err *err) {
    for (int b = 0; b < 256; b++) tok->byte_id[b] = -1;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        llmq_str text = tok->text[i];
        char *out = arena_alloc(tok->arena, text.len + 1, 1);
        size_t n = 0;
        if (!out) return mem_error(err, text.len, "a vocabulary");
        int byte = tok->type[i] == TOKEN_BYTE ? byte_of_text(text) : -1;
        if (byte >= 0) {
            out[n++] = (char)byte;
            if (tok->byte_id[byte] < 0) tok->byte_id[byte] = (int32_t)i;
        } else {
            for (size_t j = 0; j < text.len;) {
                bool space = text.len - j >= 3 && !memcmp(text.s + j, SPM_SPACE, 3);
                out[n++] = space ? ' ' : text.s[j];
                j += space ? 3 : 1;
            }
        }
        out[n] = 0;
        tok->bytes[i] = (llmq_str){out, n};
    }
    return LLMQ_OK;
}

typedef struct pair_builder {
    llmq_tokenizer *tok;
    const uint32_t *rank; /* (n_vocab) */
    size_t n_strs, cap_strs;
} pair_builder;

/* The symbol of a part of a token: a token, or a character that is none (it gets an id, while there is room). -1: not
 * reachable by merging. */
static int32_t part_symbol(pair_builder *b, const char *s, size_t len) {
    llmq_tokenizer *tok = b->tok;
    int32_t id = tok_index_find(&tok->index, s, len);
    if (id >= 0 || utf8_char(s, len) != len || b->n_strs == b->cap_strs) return id;
    tok->text[b->n_strs] = (llmq_str){s, len};
    id = (int32_t)b->n_strs++;
    tok_index_add(&tok->index, id);
    return id;
}

static void add_pairs_of(pair_builder *b, int32_t id) {
    llmq_str t = b->tok->text[id];
    for (size_t cut = utf8_char(t.s, t.len); cut && cut < t.len;) {
        int32_t left = part_symbol(b, t.s, cut), right = part_symbol(b, t.s + cut, t.len - cut);
        if (left >= 0 && right >= 0) tok_merges_add(&b->tok->merges, left, right, b->rank[id], id);
        size_t c = utf8_char(t.s + cut, t.len - cut);
        if (!c) break;
        cut += c;
    }
}

typedef struct scored {
    float score;
    uint32_t id;
} scored;

static int by_score(const void *a, const void *b) {
    float x = ((const scored *)a)->score, y = ((const scored *)b)->score;
    return x > y ? -1 : x < y;
}

static llmq_status rank_tokens(const llmq_tokenizer *tok, const llmq_meta *meta, uint32_t *rank, llmq_err *err) {
    const llmq_meta_value *v = meta_find(meta, "tokenizer.ggml.scores");
    if (!v || v->type != META_ARRAY || v->arr.type != META_F32 || v->arr.n != tok->n_vocab)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "tokenizer.ggml.scores must hold one f32 for each of the %zu tokens; convert "
                         "the model again",
                         tok->n_vocab);
    scored *order = mem_alloc(tok->n_vocab, sizeof *order);
    if (!order) return mem_error(err, tok->n_vocab * sizeof *order, "a vocabulary");
    const float *scores = v->arr.data;
    for (size_t i = 0; i < tok->n_vocab; i++)
        order[i] = (scored){scores[i] == scores[i] ? scores[i] : -1e30f, (uint32_t)i}; /* NaN would break the order */
    qsort(order, tok->n_vocab, sizeof *order, by_score);
    uint32_t r = 0;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        if (i && order[i].score != order[i - 1].score) r++;
        rank[order[i].id] = r;
    }
    mem_free(order);
    return LLMQ_OK;
}

/* No merge can join a space to something before it that is not a space, so words may be merged one by one. */
static bool is_splittable(const llmq_tokenizer *tok) {
    for (size_t i = 0; i < tok->n_vocab; i++) {
        if (!mergeable(tok->type[i]) || tok->text[i].len > MAX_PIECE) continue;
        const char *s = tok->bytes[i].s;
        for (size_t j = 1; j < tok->bytes[i].len; j++)
            if (s[j] == ' ' && s[j - 1] != ' ') return false;
    }
    return true;
}

llmq_status spm_init(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err) {
    llmq_status status = LLMQ_OK;
    size_t n_splits = 0, cap = tok->n_vocab * 2;
    uint32_t *rank = mem_alloc(tok->n_vocab, sizeof *rank);
    if (!rank) return mem_error(err, tok->n_vocab * sizeof *rank, "a vocabulary");
    snprintf(tok->describe, sizeof tok->describe, "spm");
    LLMQ_TRY_GOTO(rank_tokens(tok, meta, rank, err));
    LLMQ_TRY_GOTO(decode_tokens(tok, err));
    tok->index.strs = tok->text;
    LLMQ_TRY_GOTO(tok_index_create(&tok->index, cap, err));
    for (size_t i = 0; i < tok->n_vocab; i++) {
        if (!mergeable(tok->type[i]) || tok->text[i].len > MAX_PIECE) continue;
        tok_index_add(&tok->index, (int32_t)i);
        n_splits += tok->text[i].len;
    }
    LLMQ_TRY_GOTO(tok_merges_create(&tok->merges, n_splits, err));
    pair_builder b = {tok, rank, tok->n_vocab, cap};
    for (size_t i = 0; i < tok->n_vocab; i++)
        if (mergeable(tok->type[i]) && tok->text[i].len <= MAX_PIECE) add_pairs_of(&b, (int32_t)i);
    tok->spm_splittable = is_splittable(tok);
    for (int c = 0; c < 128; c++) tok->spm_ascii[c] = tok_index_find(&tok->index, (char[1]){(char)c}, 1);
    tok->spm_ascii[' '] = tok_index_find(&tok->index, SPM_SPACE, 3);
done:
    mem_free(rank);
    return status;
}

static llmq_status push_bytes(tok_encoder *enc, const char *s, size_t len, llmq_err *err) {
    const llmq_tokenizer *tok = enc->tok;
    for (size_t i = 0; i < len; i++) {
        int32_t id = tok->byte_id[(uint8_t)s[i]];
        if (id < 0) { /* no byte tokens: one unknown for the character */
            if (tok->unk < 0) return LLMQ_OK;
            return encoder_push(enc, tok->unk, err);
        }
        LLMQ_TRY(encoder_push(enc, id, err));
    }
    return LLMQ_OK;
}

/* Characters to symbols: ids at sym[0..), what has no id by its place in the text. */
static size_t to_symbols(const llmq_tokenizer *tok, const char *text, size_t len, int32_t *sym) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        size_t c = utf8_char(text + i, len - i);
        if (c == 1)
            sym[n] = tok->spm_ascii[(uint8_t)text[i]];
        else
            sym[n] = c ? tok_index_find(&tok->index, text + i, c) : -1;
        if (sym[n] < 0) sym[n] = -2 - (int32_t)i;
        n++;
        i += c ? c : 1;
    }
    return n;
}

/* Merges one word (or a whole text) and appends its ids. Symbols without a token are spelled by bytes. */
static llmq_status encode_word(tok_encoder *enc, const char *text, size_t len, llmq_err *err) {
    const llmq_tokenizer *tok = enc->tok;
    tok_cached *slot = NULL;
    bool hit = false;
    llmq_status status = LLMQ_OK;
    LLMQ_TRY(encoder_from_cache(enc, text, len, &slot, &hit, err));
    if (hit) return LLMQ_OK;
    int32_t few[64], *sym = few;
    if (len > 64 && !(sym = mem_alloc(len, sizeof *sym))) return mem_error(err, len * sizeof *sym, "encoding a text");
    size_t begin = enc->n, n = to_symbols(tok, text, len, sym);
    LLMQ_TRY_GOTO(tok_merges_apply(&tok->merges, &enc->scratch, sym, n, &n, err));
    LLMQ_TRY_GOTO(encoder_reserve(enc, n, err));
    for (size_t i = 0; i < n; i++) {
        if (sym[i] >= 0 && (size_t)sym[i] < tok->n_vocab) {
            LLMQ_TRY_GOTO(encoder_push(enc, sym[i], err));
        } else if (sym[i] >= 0) {
            LLMQ_TRY_GOTO(push_bytes(enc, tok->text[sym[i]].s, tok->text[sym[i]].len, err));
        } else {
            size_t at = (size_t)(-2 - sym[i]), c = utf8_char(text + at, len - at);
            bool space = text[at] == ' ';
            LLMQ_TRY_GOTO(push_bytes(enc, space ? SPM_SPACE : text + at, space ? 3 : c ? c : 1, err));
        }
    }
    encoder_remember(enc, slot, text, len, begin);
done:
    if (sym != few) mem_free(sym);
    return status;
}

static bool ends_in_space(const char *text, size_t len) {
    return text[len - 1] == ' ' || (len >= 3 && !memcmp(text + len - 3, SPM_SPACE, 3));
}

/* Words begin where a space follows a non-space. */
static llmq_status encode_run(tok_encoder *enc, const char *text, size_t len, llmq_err *err) {
    if (!enc->tok->spm_splittable) return encode_word(enc, text, len, err);
    size_t begin = 0;
    for (size_t i = 1; i <= len; i++) {
        if (i < len && !(text[i] == ' ' && !ends_in_space(text, i))) continue;
        LLMQ_TRY(encode_word(enc, text + begin, i - begin, err));
        begin = i;
    }
    return LLMQ_OK;
}

llmq_status spm_encode(tok_encoder *enc, const char *text, size_t len, bool space_prefix, llmq_err *err) {
    if (!len) return LLMQ_OK;
    if (!space_prefix) return encode_run(enc, text, len, err);
    /* The prefix belongs to the first word only: that word is copied, the rest is encoded where it stands. */
    size_t first = enc->tok->spm_splittable ? 0 : len;
    while (first < len && !(first && text[first] == ' ' && !ends_in_space(text, first))) first++;
    if (!enc->arena) enc->arena = arena_create();
    char *word = enc->arena ? arena_alloc(enc->arena, first + 1, 1) : NULL;
    if (!word) return mem_error(err, first + 1, "encoding a text");
    word[0] = ' ';
    memcpy(word + 1, text, first);
    LLMQ_TRY(encode_run(enc, word, first + 1, err));
    return first < len ? encode_run(enc, text + first, len - first, err) : LLMQ_OK;
}
