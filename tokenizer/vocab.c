/* Strings of a vocabulary: hashing, UTF-8, the GPT-2 byte alphabet. */
#include <string.h>

#include "tokenizer/internal.h"

uint64_t tok_hash(const char *s, size_t len) {
    const uint64_t mul = 0x9e3779b97f4a7c15u;
    uint64_t h = len * mul, word;
    for (; len >= 8; s += 8, len -= 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * mul;
        h ^= h >> 29;
    }
    word = 0;
    for (size_t i = 0; i < len; i++) word |= (uint64_t)(uint8_t)s[i] << (8 * i);
    h = (h ^ word) * mul;
    return h ^ (h >> 32);
}

llmq_status tok_index_create(tok_index *index, size_t n_max, llmq_err *err) {
    size_t cap = 64;
    while (cap < n_max * 2) cap *= 2;
    index->slots = mem_zalloc(cap, sizeof *index->slots);
    if (!index->slots) return mem_error(err, cap * sizeof *index->slots, "the index of a vocabulary");
    index->mask = cap - 1;
    return LLMQ_OK;
}

void tok_index_destroy(tok_index *index) {
    mem_free(index->slots);
    index->slots = NULL;
}

int32_t tok_index_find(const tok_index *index, const char *s, size_t len) {
    for (size_t i = tok_hash(s, len) & index->mask; index->slots[i]; i = (i + 1) & index->mask) {
        const llmq_str *str = &index->strs[index->slots[i] - 1];
        if (str->len == len && !memcmp(str->s, s, len)) return (int32_t)(index->slots[i] - 1);
    }
    return -1;
}

void tok_index_add(tok_index *index, int32_t id) {
    const llmq_str *str = &index->strs[id];
    size_t i = tok_hash(str->s, str->len) & index->mask;
    for (; index->slots[i]; i = (i + 1) & index->mask) {
        const llmq_str *other = &index->strs[index->slots[i] - 1];
        if (other->len == str->len && !memcmp(other->s, str->s, str->len)) return;
    }
    index->slots[i] = (uint32_t)id + 1;
}

static bool is_continuation(char c) {
    return ((uint8_t)c & 0xc0) == 0x80;
}

size_t utf8_char(const char *s, size_t len) {
    if (!len) return 0;
    uint8_t a = (uint8_t)s[0];
    if (a < 0x80) return 1;
    if (a < 0xc2 || a > 0xf4 || len < 2 || !is_continuation(s[1])) return 0;
    if (a < 0xe0) return 2;
    uint8_t b = (uint8_t)s[1];
    if (len < 3 || !is_continuation(s[2])) return 0;
    if (a < 0xf0) return (a == 0xe0 && b < 0xa0) || (a == 0xed && b > 0x9f) ? 0 : 3;
    if (len < 4 || !is_continuation(s[3])) return 0;
    return (a == 0xf0 && b < 0x90) || (a == 0xf4 && b > 0x8f) ? 0 : 4;
}

size_t utf8_valid(const char *s, size_t len) {
    size_t i = 0;
    while (i < len) {
        uint64_t word;
        if (len - i >= 8) {
            memcpy(&word, s + i, 8);
            if (!(word & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        size_t n = utf8_char(s + i, len - i);
        if (!n) break;
        i += n;
    }
    return i;
}

size_t utf8_write(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}

uint32_t utf8_codepoint(const char *s, size_t len) {
    static const uint8_t mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t c = (uint8_t)s[0] & mask[len];
    for (size_t i = 1; i < len; i++) c = c << 6 | ((uint8_t)s[i] & 0x3f);
    return c;
}

/* Printable bytes stand for themselves; the 68 others, in order, are U+0100, U+0101, ... */
static bool is_printable(uint32_t b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xff && b != 0xad);
}

size_t byte_alphabet_char(uint8_t byte, char out[4]) {
    if (is_printable(byte)) return utf8_write(byte, out);
    uint32_t rank = byte <= 0x20 ? byte : byte == 0xad ? 67 : byte - 0x7fu + 0x21;
    return utf8_write(0x100 + rank, out);
}

/* The byte of a character, -1 if it is not in the alphabet. */
static int alphabet_byte(uint32_t c) {
    if (c < 0x100) return is_printable(c) ? (int)c : -1;
    c -= 0x100;
    if (c <= 0x20) return (int)c;
    if (c <= 0x42) return (int)(c - 0x21 + 0x7f);
    return c == 67 ? 0xad : -1;
}

bool byte_alphabet_decode(const char *text, size_t len, char *out, size_t *len_out) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        size_t c = utf8_char(text + i, len - i);
        int byte = c ? alphabet_byte(utf8_codepoint(text + i, c)) : -1;
        if (byte < 0) return false;
        out[n++] = (char)byte;
        i += c;
    }
    *len_out = n;
    return true;
}
