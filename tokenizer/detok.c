/* Ids to text, at once and as a stream. */
#include <string.h>

#include "llmq.h"
#include "tokenizer/internal.h"

void tokenizer_token_bytes(const llmq_tokenizer *tok, int32_t id, bool special, const char **bytes, size_t *len) {
    *bytes = "";
    *len = 0;
    if (id < 0 || (size_t)id >= tok->n_vocab) return;
    uint8_t type = tok->type[id];
    if (!special && (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_UNUSED)) return;
    *bytes = tok->bytes[id].s;
    *len = tok->bytes[id].len;
}

/* SentencePiece puts a space before a text and takes it away again. */
static bool drops_space(const llmq_tokenizer *tok, const char *s, size_t len) {
    return tok->space_prefix != PREFIX_NONE && len && s[0] == ' ';
}

llmq_status tokenizer_decode(const llmq_tokenizer *tok, const int32_t *ids, size_t n, int flags, char **out,
                             size_t *len_out, llmq_err *err) {
    bool special = flags & LLMQ_TOK_SPECIAL;
    const char *s;
    size_t len, total = 0, at = 0;
    for (size_t i = 0; i < n; i++) {
        tokenizer_token_bytes(tok, ids[i], special, &s, &len);
        if (!size_add(total, len, &total)) return mem_error(err, total, "a decoded text");
    }
    char *text = mem_alloc(total + 1, 1);
    if (!text) return mem_error(err, total + 1, "a decoded text");
    bool at_start = true;
    for (size_t i = 0; i < n; i++) {
        tokenizer_token_bytes(tok, ids[i], special, &s, &len);
        size_t skip = at_start && drops_space(tok, s, len);
        memcpy(text + at, s + skip, len - skip);
        at += len - skip;
        if (ids[i] != tok->bos) at_start = false;
    }
    text[at] = 0;
    *out = text;
    *len_out = at;
    return LLMQ_OK;
}

/* held: the beginning of a character whose other bytes have not come yet. text: what the last call handed out. */
struct llmq_detok {
    const llmq_tokenizer *tok;
    char held[4];
    size_t n_held;
    bool after_bos;
    char text[]; /* three bytes for each that a token can have: each may become U+FFFD */
};

llmq_detok *detok_create(const llmq_tokenizer *tok) {
    size_t longest = 0;
    for (size_t i = 0; i < tok->n_vocab; i++)
        if (tok->bytes[i].len > longest) longest = tok->bytes[i].len;
    llmq_detok *d = mem_alloc(1, sizeof *d + 3 * (longest + 4));
    if (!d) return NULL;
    memset(d, 0, sizeof *d);
    d->tok = tok;
    return d;
}

void detok_destroy(llmq_detok *d) {
    mem_free(d);
}

/* Bytes that a character with these first bytes still lacks; 0 if they cannot begin one. */
static bool may_become_char(const char *s, size_t len) {
    char full[4];
    uint8_t a = (uint8_t)s[0];
    size_t want = a >= 0xf0 ? 4 : a >= 0xe0 ? 3 : 2;
    if (a < 0xc2 || a > 0xf4 || len >= want) return false;
    memcpy(full, s, len);
    for (size_t i = len; i < want; i++) full[i] = (char)0x80;
    if (utf8_char(full, want)) return true;
    for (size_t i = len; i < want; i++) full[i] = (char)0xbf; /* after E0, F0: 80 is too low for the second byte */
    return utf8_char(full, want) != 0;
}

static void put_byte(llmq_detok *d, char c, size_t *n) {
    d->held[d->n_held++] = c;
    for (;;) {
        size_t whole = utf8_char(d->held, d->n_held);
        if (whole) { /* one character: longer sequences cannot be held */
            memcpy(d->text + *n, d->held, whole);
            *n += whole;
            d->n_held = 0;
            return;
        }
        if (may_become_char(d->held, d->n_held)) return;
        /* The bytes before the last began a character that will not be: U+FFFD; the last may begin another. */
        memcpy(d->text + *n, "\xef\xbf\xbd", 3);
        *n += 3;
        if (d->n_held == 1) {
            d->n_held = 0;
            return;
        }
        d->held[0] = d->held[d->n_held - 1];
        d->n_held = 1;
    }
}

void detok_put(llmq_detok *d, int32_t id, const char **text, size_t *len) {
    const char *s;
    size_t n_bytes, n = 0;
    tokenizer_token_bytes(d->tok, id, false, &s, &n_bytes);
    size_t skip = d->after_bos && drops_space(d->tok, s, n_bytes);
    d->after_bos = id == d->tok->bos;
    for (size_t i = skip; i < n_bytes; i++) put_byte(d, s[i], &n);
    d->text[n] = 0;
    *text = d->text;
    *len = n;
}

void detok_finish(llmq_detok *d, const char **text, size_t *len) {
    size_t n = 0;
    if (d->n_held) {
        memcpy(d->text, "\xef\xbf\xbd", 3);
        n = 3;
    }
    d->n_held = 0;
    d->text[n] = 0;
    *text = d->text;
    *len = n;
}
