/* What the files of the tokenizer share: the vocabulary, the merge engine, pre-tokenizers, and the state of one call of
 * encode. Everything in llmq_tokenizer is constant after tokenizer_create, so that calls from many threads need no
 * lock. */
#ifndef LLMQ_TOKENIZER_INTERNAL_H
#define LLMQ_TOKENIZER_INTERNAL_H

#include "core/mem.h"
#include "tokenizer/tokenizer.h"

#define TOK_NO_RANK UINT32_MAX
#define TOK_MAX_TOKENS (1 << 22) /* of a vocabulary that comes from JSON or from a text */
#define TOK_MAX_TEXT ((size_t)1 << 30) /* bytes of one text: positions are 32-bit */
#define SPM_SPACE "\xe2\x96\x81"       /* U+2581, SentencePiece's visible space */

/* ---- string -> id (vocab.c): open addressing over an array of strings that belongs to somebody else */
typedef struct tok_index {
    uint32_t *slots; /* id + 1; 0: free */
    size_t mask;
    const llmq_str *strs;
} tok_index;

llmq_status tok_index_create(tok_index *index, size_t n_max, llmq_err *err);
void tok_index_destroy(tok_index *index);
int32_t tok_index_find(const tok_index *index, const char *s, size_t len);
/* Keeps the first id of equal strings. */
void tok_index_add(tok_index *index, int32_t id);

uint64_t tok_hash(const char *s, size_t len);

/* ---- UTF-8 (vocab.c) */
/* Length of the valid character at s (1..4), 0 if there is none: RFC 3629, without surrogates. */
size_t utf8_char(const char *s, size_t len);
/* Length of the longest valid prefix. */
size_t utf8_valid(const char *s, size_t len);
size_t utf8_write(uint32_t codepoint, char out[4]);
uint32_t utf8_codepoint(const char *s, size_t len); /* of a valid character */

/* The GPT-2 byte alphabet: every byte as a printable character. text -> bytes; false (nothing written) if a character
 * is not in the alphabet. out has room for len bytes. */
bool byte_alphabet_decode(const char *text, size_t len, char *out, size_t *len_out);
size_t byte_alphabet_char(uint8_t byte, char out[4]);

/* ---- merges (merge.c): (left id, right id) -> (rank, merged id) */
typedef struct tok_merge {
    uint64_t key; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank;
    int32_t id;
} tok_merge;

typedef struct tok_merges {
    tok_merge *slots;
    size_t mask;
    int shift;
} tok_merges;

/* Reused between the pieces of one call. */
typedef struct merge_scratch {
    uint32_t *rank, *prev, *next; /* (cap) */
    int32_t *merged;              /* (cap) */
    uint64_t *heap;               /* (3 cap) */
    size_t cap;
} merge_scratch;

llmq_status tok_merges_create(tok_merges *merges, size_t n_max, llmq_err *err);
void tok_merges_destroy(tok_merges *merges);
/* Keeps the lower rank where a pair comes twice. */
void tok_merges_add(tok_merges *merges, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* Merges ids[0..n) in place: always the pair of lowest rank, the leftmost of equals. *n_out ids remain. O(n log n). */
llmq_status tok_merges_apply(const tok_merges *merges, merge_scratch *scratch, int32_t *ids, size_t n, size_t *n_out,
                             llmq_err *err);
void merge_scratch_destroy(merge_scratch *scratch);

/* ---- pre-tokenizers (pretok.c) */
typedef struct tok_pretok tok_pretok;
typedef struct pretok_traits {
    bool nfc;           /* text is normalized to NFC before it is split */
    bool ignore_merges; /* a piece that is a token as a whole is not merged */
    bool add_bos;       /* what readers of GGUF assume where add_bos_token is absent */
} pretok_traits;

#define PRETOK_MAX_STEPS 4
/* A row of the table by its GGUF name; NULL if unknown. */
const struct pretok_row *pretok_find(const char *name);
/* The name of the row whose steps are these patterns, with the best fitting traits; NULL if none. */
const char *pretok_detect(const char *const *patterns, size_t n, pretok_traits want);
pretok_traits pretok_row_traits(const struct pretok_row *row);
/* Pattern of step i, NULL past the last. */
const char *pretok_row_step(const struct pretok_row *row, size_t i);
extern const char PRETOK_GPT2_PATTERN[], PRETOK_DIGITS_PATTERN[];

llmq_status pretok_create(const struct pretok_row *row, tok_pretok **out, llmq_err *err);
void pretok_destroy(tok_pretok *pretok);
typedef llmq_status pretok_fn(void *arg, const char *piece, size_t len, llmq_err *err);
/* Splits valid UTF-8; every byte of text is in exactly one piece. */
llmq_status pretok_split(const tok_pretok *pretok, const char *text, size_t len, pretok_fn *fn, void *arg,
                         llmq_err *err);

/* ---- the tokenizer */
typedef enum tok_kind { TOK_BPE, TOK_SPM } tok_kind;
enum { TOK_STRIP_LEFT = 1, TOK_STRIP_RIGHT = 2 }; /* an added token that eats the spaces before, after it */

typedef struct tok_special {
    llmq_str match; /* as it stands in a text */
    int32_t id;
    uint8_t strip;
    bool control; /* only with LLMQ_TOK_SPECIAL */
} tok_special;

/* Where SPM puts a space before the text: before each run between special tokens (SentencePiece, and what GGUF can
 * say); only where the run does not begin with a space (Metaspace "always"); and of these only at the very beginning
 * ("first"). */
struct llmq_tokenizer {
    tok_kind kind;
    llmq_arena *arena;
    size_t n_vocab;
    llmq_str
        *text; /* (n_vocab + n_extra) as in the metadata; SPM: then characters that are no token, only parts of some */
    llmq_str *bytes; /* (n_vocab) what a token decodes to */
    uint8_t *type;   /* (n_vocab) */
    bool *is_end;    /* (n_vocab) */
    int32_t bos, eos, unk;
    bool add_bos, add_eos;
    enum { PREFIX_NONE, PREFIX_RUNS, PREFIX_WORDS, PREFIX_FIRST } space_prefix;
    char describe[64];

    tok_merges merges;
    tok_index index;      /* BPE: whole pieces as bytes (ignore_merges); SPM: characters and tokens as text */
    int32_t byte_id[256]; /* BPE: the token of one byte; SPM: the byte token. -1: none */

    tok_special *specials; /* (n_specials) sorted by first byte, then longest first */
    size_t n_specials;
    uint32_t special_first[257]; /* where the specials of a first byte begin */

    tok_pretok *pretok; /* BPE */
    pretok_traits traits;
    bool spm_splittable;    /* no token has a space after a non-space: text may be cut before each word */
    int32_t spm_ascii[128]; /* SPM: symbol of an ASCII character, -1: none */
};

/* One earlier piece of this call and where its ids lie in the output. */
typedef struct tok_cached {
    const char *piece; /* NULL: free */
    uint32_t len, n_ids;
    size_t ids_off;
} tok_cached;

typedef struct tok_encoder {
    const llmq_tokenizer *tok;
    int32_t *ids;
    size_t n, cap;
    merge_scratch scratch;
    tok_cached *cache; /* NULL for short texts */
    size_t cache_mask;
    llmq_arena *arena; /* normalized texts: the cache points into them, so they live as long as the call */
} tok_encoder;

llmq_status encoder_reserve(tok_encoder *enc, size_t n, llmq_err *err);
llmq_status encoder_push(tok_encoder *enc, int32_t id, llmq_err *err);
/* Ids of a piece seen before in this call are copied: true. Else *slot_out is where to remember it (may be NULL). */
llmq_status encoder_from_cache(tok_encoder *enc, const char *piece, size_t len, tok_cached **slot_out, bool *hit_out,
                               llmq_err *err);
void encoder_remember(tok_encoder *enc, tok_cached *slot, const char *piece, size_t len, size_t ids_off);

llmq_status bpe_init(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err);
llmq_status bpe_encode(tok_encoder *enc, const char *text, size_t len, llmq_err *err);
llmq_status spm_init(llmq_tokenizer *tok, const llmq_meta *meta, llmq_err *err);
/* space_prefix: this text begins a run, and a space goes before it. */
llmq_status spm_encode(tok_encoder *enc, const char *text, size_t len, bool space_prefix, llmq_err *err);

/* ---- chat templates: chat_template_render at a given time (seconds since 1970), for templates that print the date */
llmq_status chat_template_render_at(const llmq_chat_template *t, const chat_message *messages, size_t n,
                                    bool add_assistant, const char *bos, const char *eos, int64_t now, char **out,
                                    bool *has_bos_out, llmq_err *err);

#endif
