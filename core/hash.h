/* XXH64: a fast 64-bit checksum. It finds damage and tells inputs apart; it is no defence against somebody who wants
 * two inputs to look alike. `xxhsum -H1 FILE` prints the same number for the same bytes. */
#ifndef LLMQ_CORE_HASH_H
#define LLMQ_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct llmq_hash {
    uint64_t lane[4];
    uint64_t total;
    uint8_t held[32]; /* the last total % 32 bytes, not mixed in yet */
} llmq_hash;

void hash_init(llmq_hash *h);
void hash_add(llmq_hash *h, const void *data, size_t len); /* any cuts of the same bytes give the same sum */
uint64_t hash_sum(const llmq_hash *h);                     /* of what was added so far */
uint64_t hash_bytes(const void *data, size_t len);

#endif
