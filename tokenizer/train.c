/* A byte-level BPE vocabulary from a text.
 *
 * The text is cut into pieces by a pre-tokenizer, and only different pieces, with their counts, are worked on: words.
 * All their symbols stand in one array of places, linked within each word. A pair of symbols has its count over the
 * text and a list of the places where it begins. Learning takes the most frequent pair, makes a token of it, replaces
 * it at each of its places, and corrects the counts of the pairs beside those; so a merge costs as much as it changes,
 * not as much as the text.
 *
 * Two things are done late. A place stays in the list of a pair that was broken up there: whoever walks a list looks
 * whether the pair still stands at the place. A pair stays in the heap with the count that it had when it was put
 * there. The count grows only while the newer of its two tokens is made, and the pair is put into the heap after that;
 * so that count is an upper bound, corrected when the pair comes to the top.
 *
 * Each merge makes a new token: no token comes from two pairs. For where it is about to be made, no merge so far has
 * crossed its edges, so those inside went as they go in its text alone, to the same two parts everywhere.
 *
 * Order: of equal counts the pair whose left token has the lower id, then the lower right one. Ids: special tokens, the
 * 256 bytes in the order of their characters in the byte alphabet, then tokens as they are learned. So the same text
 * gives the same tokenizer everywhere, and the same as Hugging Face's BpeTrainer (initial_alphabet: all bytes,
 * min_frequency 2) gives after ByteLevel, its GPT-2 pre-tokenizer. */
#include <string.h>

#include "tokenizer/internal.h"

/* Every reader of GGUF knows it, and it does not normalize, so decoding gives back every byte. "smollm", which differs
 * in having digits one by one, takes 6 % more tokens for a text full of years (WikiText). */
#define PRE "gpt-2"
#define N_BYTES 256
#define MIN_COUNT 2         /* what occurs once is no pattern */
#define MAX_TOKEN_CHARS 256 /* of a token in the byte alphabet; no longer merges than bpe.c reads */
#define NONE UINT32_MAX

/* All begin with '<'; none could be made by merges, for the pre-tokenizer cuts between letters and punctuation. */
static const llmq_str specials[] = {{"<|endoftext|>", 13}};
#define N_SPECIALS (sizeof specials / sizeof *specials)
#define END_OF_TEXT 0

typedef struct word {
    const char *s; /* in the text */
    size_t len;
    int64_t count;
} word;

typedef struct place {
    int32_t sym;         /* -1: swallowed by its left neighbour */
    uint32_t prev, next; /* NONE: the word ends there */
    uint32_t word;
} place;

typedef struct pair {
    uint64_t key; /* left << 32 | right */
    int64_t count;
    uint32_t head, tail; /* nodes, NONE: empty */
    bool is_new;         /* is in the list of those to be put into the heap */
} pair;

typedef struct node {
    uint32_t place, next;
} node;

typedef struct candidate {
    int64_t count;
    uint32_t pair;
} candidate;

typedef struct trainer {
    llmq_arena *arena; /* texts of tokens and merges */
    word *words;       /* (n_words) */
    size_t n_words, cap_words;
    uint32_t *word_slots; /* index + 1; 0: free */
    size_t word_mask;
    place *places;
    pair *pairs; /* (n_pairs) */
    size_t n_pairs, cap_pairs;
    uint32_t *pair_slots; /* as word_slots */
    size_t pair_mask;
    node *nodes; /* (n_nodes) */
    size_t n_nodes, cap_nodes;
    uint32_t free_nodes; /* a list */
    candidate *heap;     /* (n_heap) */
    size_t n_heap, cap_heap;
    uint32_t *fresh; /* (n_fresh) pairs that are not in the heap yet */
    size_t n_fresh, cap_fresh;
    llmq_str *tokens, *merges; /* (n_tokens), (n_merges) "left right"; room for the vocabulary asked for */
    size_t n_tokens, n_merges;
    int32_t byte_id[N_BYTES];
} trainer;

/* Room for one more element: the block, perhaps a new one; NULL (the old one stays) without memory. */
static void *room_for_one(void *block, size_t n, size_t *cap, size_t size) {
    if (n < *cap) return block;
    size_t grown_cap = *cap ? 2 * *cap : 256;
    void *grown = grown_cap < NONE ? mem_grow(block, n, grown_cap, size) : NULL;
    if (grown) *cap = grown_cap;
    return grown;
}

static llmq_status no_memory(size_t n, size_t size, llmq_err *err) {
    return mem_error(err, 2 * n * size, "training a tokenizer");
}

/* ---- words ------------------------------------------------------------------------------------------------------- */

static uint32_t *word_slot(const trainer *t, const char *s, size_t len) {
    size_t i = tok_hash(s, len) & t->word_mask;
    for (; t->word_slots[i]; i = (i + 1) & t->word_mask) {
        const word *w = &t->words[t->word_slots[i] - 1];
        if (w->len == len && !memcmp(w->s, s, len)) break;
    }
    return &t->word_slots[i];
}

/* Twice as many slots as words, or more. */
static llmq_status grow_word_slots(trainer *t, llmq_err *err) {
    size_t cap = t->word_slots ? 2 * (t->word_mask + 1) : 1024;
    uint32_t *slots = mem_zalloc(cap, sizeof *slots);
    if (!slots) return no_memory(cap, sizeof *slots, err);
    mem_free(t->word_slots);
    t->word_slots = slots;
    t->word_mask = cap - 1;
    for (size_t i = 0; i < t->n_words; i++) *word_slot(t, t->words[i].s, t->words[i].len) = (uint32_t)i + 1;
    return LLMQ_OK;
}

static llmq_status count_piece(void *arg, const char *piece, size_t len, llmq_err *err) {
    trainer *t = arg;
    if (len < 2) return LLMQ_OK; /* has no pairs */
    if (!t->word_slots || t->n_words > t->word_mask / 2) LLMQ_TRY(grow_word_slots(t, err));
    uint32_t *slot = word_slot(t, piece, len);
    if (!*slot) {
        word *words = room_for_one(t->words, t->n_words, &t->cap_words, sizeof *words);
        if (!words) return no_memory(t->n_words, sizeof *words, err);
        t->words = words;
        t->words[t->n_words++] = (word){piece, len, 0};
        *slot = (uint32_t)t->n_words;
    }
    t->words[*slot - 1].count++;
    return LLMQ_OK;
}

/* As bpe_encode sees it: bytes that belong to no character are pieces of their own. */
static llmq_status count_plain(trainer *t, const tok_pretok *pretok, const char *text, size_t len, llmq_err *err) {
    while (len) {
        size_t valid = utf8_valid(text, len), step = valid ? valid : 1;
        if (valid) LLMQ_TRY(pretok_split(pretok, text, valid, count_piece, t, err));
        text += step;
        len -= step;
    }
    return LLMQ_OK;
}

static size_t special_len(const char *s, size_t len) {
    for (size_t i = 0; i < N_SPECIALS; i++)
        if (specials[i].len <= len && !memcmp(specials[i].s, s, specials[i].len)) return specials[i].len;
    return 0;
}

static llmq_status count_words(trainer *t, const char *text, size_t len, llmq_err *err) {
    tok_pretok *pretok = NULL;
    llmq_status status = LLMQ_OK;
    const char *begin = text, *end = text + len;
    LLMQ_TRY(pretok_create(pretok_find(PRE), &pretok, err));
    for (const char *at = begin; (at = memchr(at, '<', (size_t)(end - at)));) {
        size_t n = special_len(at, (size_t)(end - at));
        if (n) {
            LLMQ_TRY_GOTO(count_plain(t, pretok, begin, (size_t)(at - begin), err));
            begin = at + n;
        }
        at += n ? n : 1;
    }
    LLMQ_TRY_GOTO(count_plain(t, pretok, begin, (size_t)(end - begin), err));
done:
    pretok_destroy(pretok);
    return status;
}

/* ---- pairs ------------------------------------------------------------------------------------------------------- */

static uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static uint32_t *pair_slot(const trainer *t, uint64_t key) {
    uint64_t h = (key ^ key >> 29) * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h >> 32 ^ h) & t->pair_mask;
    while (t->pair_slots[i] && t->pairs[t->pair_slots[i] - 1].key != key) i = (i + 1) & t->pair_mask;
    return &t->pair_slots[i];
}

static llmq_status grow_pair_slots(trainer *t, llmq_err *err) {
    size_t cap = t->pair_slots ? 2 * (t->pair_mask + 1) : 1024;
    uint32_t *slots = mem_zalloc(cap, sizeof *slots);
    if (!slots) return no_memory(cap, sizeof *slots, err);
    mem_free(t->pair_slots);
    t->pair_slots = slots;
    t->pair_mask = cap - 1;
    for (size_t i = 0; i < t->n_pairs; i++) *pair_slot(t, t->pairs[i].key) = (uint32_t)i + 1;
    return LLMQ_OK;
}

static llmq_status get_pair(trainer *t, uint64_t key, uint32_t *out, llmq_err *err) {
    if (!t->pair_slots || t->n_pairs > t->pair_mask / 2) LLMQ_TRY(grow_pair_slots(t, err));
    uint32_t *slot = pair_slot(t, key);
    if (!*slot) {
        pair *pairs = room_for_one(t->pairs, t->n_pairs, &t->cap_pairs, sizeof *pairs);
        if (!pairs) return no_memory(t->n_pairs, sizeof *pairs, err);
        t->pairs = pairs;
        t->pairs[t->n_pairs++] = (pair){.key = key, .head = NONE, .tail = NONE};
        *slot = (uint32_t)t->n_pairs;
    }
    *out = *slot - 1;
    return LLMQ_OK;
}

static llmq_status new_node(trainer *t, uint32_t *out, llmq_err *err) {
    if (t->free_nodes != NONE) {
        *out = t->free_nodes;
        t->free_nodes = t->nodes[*out].next;
        return LLMQ_OK;
    }
    node *nodes = room_for_one(t->nodes, t->n_nodes, &t->cap_nodes, sizeof *nodes);
    if (!nodes) return no_memory(t->n_nodes, sizeof *nodes, err);
    t->nodes = nodes;
    *out = (uint32_t)t->n_nodes++;
    return LLMQ_OK;
}

static void free_list(trainer *t, uint32_t head, uint32_t tail) {
    if (head == NONE) return;
    t->nodes[tail].next = t->free_nodes;
    t->free_nodes = head;
}

static bool too_long(const trainer *t, int32_t left, int32_t right) {
    return t->tokens[left].len + t->tokens[right].len > MAX_TOKEN_CHARS;
}

/* The pair begins at one place more, `count` times in the text. */
static llmq_status add_pair(trainer *t, int32_t left, int32_t right, uint32_t at, int64_t count, llmq_err *err) {
    uint32_t i = NONE, n = NONE;
    if (too_long(t, left, right)) return LLMQ_OK;
    LLMQ_TRY(get_pair(t, pair_key(left, right), &i, err));
    LLMQ_TRY(new_node(t, &n, err));
    pair *p = &t->pairs[i];
    t->nodes[n] = (node){at, NONE};
    if (p->head == NONE)
        p->head = n;
    else
        t->nodes[p->tail].next = n;
    p->tail = n;
    p->count += count;
    if (p->is_new) return LLMQ_OK;
    uint32_t *fresh = room_for_one(t->fresh, t->n_fresh, &t->cap_fresh, sizeof *fresh);
    if (!fresh) return no_memory(t->n_fresh, sizeof *fresh, err);
    t->fresh = fresh;
    t->fresh[t->n_fresh++] = i;
    p->is_new = true;
    return LLMQ_OK;
}

/* The pair is broken up at one of its places. A pair that is just being merged has given up its count before. */
static void drop_pair(trainer *t, int32_t left, int32_t right, int64_t count) {
    uint32_t slot = *pair_slot(t, pair_key(left, right));
    pair *p = slot ? &t->pairs[slot - 1] : NULL;
    if (!p || !p->count) return;
    p->count -= count;
    if (p->count) return;
    free_list(t, p->head, p->tail);
    p->head = p->tail = NONE;
}

static llmq_status make_places(trainer *t, llmq_err *err) {
    size_t total = 0, n = 0;
    for (size_t i = 0; i < t->n_words; i++) total += t->words[i].len;
    if (total >= NONE)
        return llmq_fail(err, LLMQ_E_ARG,
                         "the text has %zu bytes of different words, too many to make a tokenizer of (at most %u); "
                         "give a part of it",
                         total, NONE);
    t->places = mem_alloc(total, sizeof *t->places);
    if (!t->places) return mem_error(err, total * sizeof *t->places, "training a tokenizer");
    for (size_t i = 0; i < t->n_words; i++) {
        const word *w = &t->words[i];
        for (size_t k = 0; k < w->len; k++, n++) {
            uint32_t at = (uint32_t)n, prev = k ? at - 1 : NONE, next = k + 1 < w->len ? at + 1 : NONE;
            t->places[n] = (place){t->byte_id[(uint8_t)w->s[k]], prev, next, (uint32_t)i};
            if (k) LLMQ_TRY(add_pair(t, t->places[prev].sym, t->places[n].sym, prev, w->count, err));
        }
    }
    return LLMQ_OK;
}

/* ---- the heap ---------------------------------------------------------------------------------------------------- */

static bool goes_before(const trainer *t, candidate a, candidate b) {
    if (a.count != b.count) return a.count > b.count;
    return t->pairs[a.pair].key < t->pairs[b.pair].key;
}

static void sift_down(trainer *t, candidate x) {
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < t->n_heap; i = child) {
        if (child + 1 < t->n_heap && goes_before(t, t->heap[child + 1], t->heap[child])) child++;
        if (!goes_before(t, t->heap[child], x)) break;
        t->heap[i] = t->heap[child];
    }
    t->heap[i] = x;
}

static llmq_status push(trainer *t, candidate x, llmq_err *err) {
    candidate *heap = room_for_one(t->heap, t->n_heap, &t->cap_heap, sizeof *heap);
    if (!heap) return no_memory(t->n_heap, sizeof *heap, err);
    t->heap = heap;
    size_t i = t->n_heap++;
    for (; i > 0 && goes_before(t, x, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
    return LLMQ_OK;
}

static llmq_status push_fresh(trainer *t, llmq_err *err) {
    for (size_t i = 0; i < t->n_fresh; i++) {
        pair *p = &t->pairs[t->fresh[i]];
        p->is_new = false;
        if (p->count >= MIN_COUNT) LLMQ_TRY(push(t, (candidate){p->count, t->fresh[i]}, err));
    }
    t->n_fresh = 0;
    return LLMQ_OK;
}

/* The most frequent pair; NONE: no pair occurs twice. */
static uint32_t pop_best(trainer *t) {
    while (t->n_heap) {
        candidate top = t->heap[0];
        int64_t count = t->pairs[top.pair].count;
        if (count >= MIN_COUNT && count < top.count) {
            sift_down(t, (candidate){count, top.pair});
            continue;
        }
        if (--t->n_heap) sift_down(t, t->heap[t->n_heap]);
        if (count >= MIN_COUNT) return top.pair;
    }
    return NONE;
}

/* ---- merging ----------------------------------------------------------------------------------------------------- */

static bool stands_at(const trainer *t, uint32_t at, int32_t left, int32_t right) {
    const place *p = &t->places[at];
    return p->sym == left && p->next != NONE && t->places[p->next].sym == right;
}

/* Replaces the pair that begins here. */
static llmq_status merge_at(trainer *t, uint32_t at, int32_t id, llmq_err *err) {
    place *a = &t->places[at], *b = &t->places[a->next];
    int64_t count = t->words[a->word].count;
    if (a->prev != NONE) {
        int32_t before = t->places[a->prev].sym;
        drop_pair(t, before, a->sym, count);
        LLMQ_TRY(add_pair(t, before, id, a->prev, count, err));
    }
    if (b->next != NONE) {
        int32_t after = t->places[b->next].sym;
        drop_pair(t, b->sym, after, count);
        LLMQ_TRY(add_pair(t, id, after, at, count, err));
        t->places[b->next].prev = at;
    }
    a->sym = id;
    a->next = b->next;
    b->sym = -1;
    return LLMQ_OK;
}

/* The token of two others, and the line of merges. */
static llmq_status join(trainer *t, llmq_str a, llmq_str b, int32_t *id_out, llmq_err *err) {
    size_t len = a.len + b.len;
    char *whole = arena_alloc(t->arena, len + 1, 1), *line = arena_alloc(t->arena, len + 2, 1);
    if (!whole || !line) return no_memory(len, 2, err);
    memcpy(whole, a.s, a.len);
    memcpy(whole + a.len, b.s, b.len + 1);
    memcpy(line, a.s, a.len);
    line[a.len] = ' ';
    memcpy(line + a.len + 1, b.s, b.len + 1);
    t->merges[t->n_merges++] = (llmq_str){line, len + 1};
    *id_out = (int32_t)t->n_tokens++;
    t->tokens[*id_out] = (llmq_str){whole, len};
    return LLMQ_OK;
}

/* In a run of equal symbols (aaaa) pairs overlap: they are merged from the run's beginning, as encoding does. */
static llmq_status merge_pair(trainer *t, uint32_t index, llmq_err *err) {
    pair *p = &t->pairs[index];
    int32_t left = (int32_t)(p->key >> 32), right = (int32_t)(uint32_t)p->key, id = -1;
    uint32_t head = p->head, tail = p->tail;
    p->head = p->tail = NONE;
    p->count = 0;
    LLMQ_TRY(join(t, t->tokens[left], t->tokens[right], &id, err));
    for (uint32_t n = head; n != NONE; n = t->nodes[n].next) {
        uint32_t at = t->nodes[n].place, prev;
        if (!stands_at(t, at, left, right)) continue;
        if (left == right)
            while ((prev = t->places[at].prev) != NONE && t->places[prev].sym == left) at = prev;
        for (; at != NONE && stands_at(t, at, left, right); at = t->places[at].next) LLMQ_TRY(merge_at(t, at, id, err));
    }
    free_list(t, head, tail);
    return LLMQ_OK;
}

static llmq_status learn(trainer *t, size_t n_vocab, llmq_err *err) {
    LLMQ_TRY(make_places(t, err));
    LLMQ_TRY(push_fresh(t, err));
    while (t->n_tokens < n_vocab) {
        uint32_t best = pop_best(t);
        if (best == NONE) break;
        LLMQ_TRY(merge_pair(t, best, err));
        LLMQ_TRY(push_fresh(t, err));
    }
    return LLMQ_OK;
}

/* ---- the vocabulary ---------------------------------------------------------------------------------------------- */

/* Special tokens and bytes: first those that are their own characters, then those with characters from U+0100 on. */
static llmq_status begin_vocab(trainer *t, size_t n_vocab, llmq_err *err) {
    t->tokens = mem_alloc(n_vocab, sizeof *t->tokens);
    t->merges = mem_alloc(n_vocab, sizeof *t->merges);
    if (!t->tokens || !t->merges) return mem_error(err, 2 * n_vocab * sizeof *t->tokens, "a vocabulary");
    for (size_t i = 0; i < N_SPECIALS; i++) t->tokens[t->n_tokens++] = specials[i];
    for (int other = 0; other < 2; other++)
        for (uint32_t b = 0; b < N_BYTES; b++) {
            char c[4];
            size_t n = byte_alphabet_char((uint8_t)b, c);
            if ((utf8_codepoint(c, n) != b) != other) continue;
            const char *kept = arena_strndup(t->arena, c, n);
            if (!kept) return no_memory(n, 1, err);
            t->byte_id[b] = (int32_t)t->n_tokens;
            t->tokens[t->n_tokens++] = (llmq_str){kept, n};
        }
    return LLMQ_OK;
}

static llmq_status write_meta(const trainer *t, llmq_meta *meta, llmq_err *err) {
    int32_t *types = mem_alloc(t->n_tokens, sizeof *types);
    if (!types) return mem_error(err, t->n_tokens * sizeof *types, "a vocabulary");
    for (size_t i = 0; i < t->n_tokens; i++) types[i] = i < N_SPECIALS ? TOKEN_CONTROL : TOKEN_NORMAL;
    llmq_status status;
    LLMQ_TRY_GOTO(meta_set_str(meta, "tokenizer.ggml.model", "gpt2", err));
    LLMQ_TRY_GOTO(meta_set_str(meta, "tokenizer.ggml.pre", PRE, err));
    LLMQ_TRY_GOTO(meta_set_strs(meta, "tokenizer.ggml.tokens", t->tokens, t->n_tokens, err));
    LLMQ_TRY_GOTO(meta_set_array(meta, "tokenizer.ggml.token_type", META_I32, types, t->n_tokens, err));
    LLMQ_TRY_GOTO(meta_set_strs(meta, "tokenizer.ggml.merges", t->merges, t->n_merges, err));
    LLMQ_TRY_GOTO(meta_set_u32(meta, "tokenizer.ggml.bos_token_id", END_OF_TEXT, err));
    LLMQ_TRY_GOTO(meta_set_u32(meta, "tokenizer.ggml.eos_token_id", END_OF_TEXT, err));
    LLMQ_TRY_GOTO(meta_set_bool(meta, "tokenizer.ggml.add_bos_token", false, err));
done:
    mem_free(types);
    return status;
}

llmq_status tokenizer_train(const char *text, size_t len, int64_t n_vocab, llmq_meta *meta, llmq_err *err) {
    trainer t = {.free_nodes = NONE};
    llmq_status status = LLMQ_OK;
    if (n_vocab < (int64_t)(N_SPECIALS + N_BYTES) || n_vocab > TOK_MAX_TOKENS)
        return llmq_fail(err, LLMQ_E_ARG,
                         "a vocabulary of %lld tokens cannot be made; it has %d to %d (%d bytes, %d special, and what "
                         "is learned)",
                         (long long)n_vocab, (int)N_SPECIALS + N_BYTES, TOK_MAX_TOKENS, N_BYTES, (int)N_SPECIALS);
    if (!len) return llmq_fail(err, LLMQ_E_ARG, "a tokenizer cannot be made from an empty text");
    t.arena = arena_create();
    if (!t.arena) return mem_error(err, 0, "training a tokenizer");
    LLMQ_TRY_GOTO(begin_vocab(&t, (size_t)n_vocab, err));
    LLMQ_TRY_GOTO(count_words(&t, text, len, err));
    LLMQ_TRY_GOTO(learn(&t, (size_t)n_vocab, err));
    LLMQ_TRY_GOTO(write_meta(&t, meta, err));
    if (t.n_tokens < (size_t)n_vocab)
        llmq_log(LLMQ_LOG_WARN,
                 "the vocabulary has %zu tokens, not %lld: nothing else occurs twice in a text of %zu bytes",
                 t.n_tokens, (long long)n_vocab, len);
done:
    mem_free(t.merges);
    mem_free(t.tokens);
    mem_free(t.fresh);
    mem_free(t.heap);
    mem_free(t.nodes);
    mem_free(t.pair_slots);
    mem_free(t.pairs);
    mem_free(t.places);
    mem_free(t.word_slots);
    mem_free(t.words);
    arena_destroy(t.arena);
    return status;
}
