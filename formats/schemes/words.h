/* Codes of 1 to 8 bits in 32-bit words, dense from the lowest bit of the first word on: 32 codes fill exactly `bits`
 * words, and a code may lie across two. GPTQ, AWQ and compressed-tensors pack so; where 32 is a multiple of the bits
 * this is the usual "32 / bits lanes a word". Words of a file may lie at any address. */
#ifndef LLMQ_FORMATS_WORDS_H
#define LLMQ_FORMATS_WORDS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t word_at(const void *words, int64_t index) {
    uint32_t w;
    memcpy(&w, (const uint8_t *)words + 4 * index, 4);
    return w;
}

static inline void word_set(void *words, int64_t index, uint32_t w) {
    memcpy((uint8_t *)words + 4 * index, &w, 4);
}

/* Words that n codes take. */
static inline int64_t words_for(int64_t n, int bits) {
    return (n * bits + 31) / 32;
}

/* n (at most 32) codes from words w[bits + 1], of which the last may be anything. */
static inline void words_unpack(const uint32_t *w, int bits, int n, uint8_t *codes) {
    uint32_t mask = (1u << bits) - 1;
    for (int i = 0; i < n; i++) {
        int at = i * bits;
        uint64_t pair = w[at >> 5] | (uint64_t)w[(at >> 5) + 1] << 32;
        codes[i] = (uint8_t)((uint32_t)(pair >> (at & 31)) & mask);
    }
}

/* 8 codes of 4 bits. */
static inline void word_unpack4(uint32_t w, uint8_t *codes) {
    uint64_t v = w;
    v = (v | v << 16) & UINT64_C(0x0000ffff0000ffff);
    v = (v | v << 8) & UINT64_C(0x00ff00ff00ff00ff);
    v = (v | v << 4) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    memcpy(codes, &v, 8);
}

/* n (at most 32) codes into words w[bits + 1], which are overwritten. */
static inline void words_pack(const uint8_t *codes, int bits, int n, uint32_t *w) {
    memset(w, 0, (size_t)(bits + 1) * sizeof *w);
    for (int i = 0; i < n; i++) {
        int at = i * bits;
        uint64_t pair = (uint64_t)codes[i] << (at & 31);
        w[at >> 5] |= (uint32_t)pair;
        w[(at >> 5) + 1] |= (uint32_t)(pair >> 32);
    }
}

#endif
