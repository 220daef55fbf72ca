#include "core/hash.h"

#include <string.h>

#define P1 0x9E3779B185EBCA87u
#define P2 0xC2B2AE3D27D4EB4Fu
#define P3 0x165667B19E3779F9u
#define P4 0x85EBCA77C2B2AE63u
#define P5 0x27D4EB2F165667C5u

static uint64_t rotate(uint64_t x, int n) {
    return x << n | x >> (64 - n);
}

static uint64_t load64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static uint32_t load32(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static uint64_t mix(uint64_t lane, uint64_t x) {
    return rotate(lane + x * P2, 31) * P1;
}

void hash_init(llmq_hash *h) {
    *h = (llmq_hash){.lane = {P1 + P2, P2, 0, 0 - P1}};
}

/* Whole stripes of 32 bytes. */
static void add_stripes(llmq_hash *h, const uint8_t *p, size_t n) {
    uint64_t a = h->lane[0], b = h->lane[1], c = h->lane[2], d = h->lane[3];
    for (; n; n--, p += 32) {
        a = mix(a, load64(p));
        b = mix(b, load64(p + 8));
        c = mix(c, load64(p + 16));
        d = mix(d, load64(p + 24));
    }
    h->lane[0] = a, h->lane[1] = b, h->lane[2] = c, h->lane[3] = d;
}

void hash_add(llmq_hash *h, const void *data, size_t len) {
    const uint8_t *p = data;
    size_t held = (size_t)(h->total % 32);
    h->total += len;
    if (held) {
        size_t take = 32 - held < len ? 32 - held : len;
        memcpy(h->held + held, p, take);
        if (held + take < 32) return;
        add_stripes(h, h->held, 1);
        p += take;
        len -= take;
    }
    add_stripes(h, p, len / 32);
    if (len % 32) memcpy(h->held, p + len / 32 * 32, len % 32);
}

uint64_t hash_sum(const llmq_hash *h) {
    const uint8_t *p = h->held;
    size_t left = (size_t)(h->total % 32);
    uint64_t x = P5;
    if (h->total >= 32) {
        x = rotate(h->lane[0], 1) + rotate(h->lane[1], 7) + rotate(h->lane[2], 12) + rotate(h->lane[3], 18);
        for (int i = 0; i < 4; i++) x = (x ^ mix(0, h->lane[i])) * P1 + P4;
    }
    x += h->total;
    for (; left >= 8; left -= 8, p += 8) x = rotate(x ^ mix(0, load64(p)), 27) * P1 + P4;
    for (; left >= 4; left -= 4, p += 4) x = rotate(x ^ load32(p) * P1, 23) * P2 + P3;
    for (; left; left--, p++) x = rotate(x ^ *p * P5, 11) * P1;
    x = (x ^ x >> 33) * P2;
    x = (x ^ x >> 29) * P3;
    return x ^ x >> 32;
}

uint64_t hash_bytes(const void *data, size_t len) {
    llmq_hash h;
    hash_init(&h);
    hash_add(&h, data, len);
    return hash_sum(&h);
}
