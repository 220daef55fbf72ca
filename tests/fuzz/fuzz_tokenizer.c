/* libFuzzer target: any bytes as tokenizer.json ('{' first) or tokenizer.bin. What opens as a tokenizer encodes and decodes
 * the same bytes, and what it streams must be UTF-8. Seeds: tests/data/stories260K/tok512.bin and the tokenizer.json files
 * in tests/data/tokenizers/hf_cases.json.xz.
 *
 * The bytes live in a memfd, so that no run writes to a disk. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "llmq.h"
#include "tokenizer/internal.h"

static void use(const llmq_tokenizer *tok, const char *text, size_t len, int flags) {
    int32_t *ids = NULL;
    char *back = NULL;
    const char *s;
    size_t n = 0, len_back = 0, len_s = 0;
    if (tokenizer_encode(tok, text, len, flags, &ids, &n, NULL) != LLMQ_OK) return;
    llmq_detok *d = detok_create(tok);
    for (size_t i = 0; d && i < n; i++) {
        if (ids[i] < 0 || ids[i] >= tokenizer_n_vocab(tok)) abort();
        detok_put(d, ids[i], &s, &len_s);
        if (utf8_valid(s, len_s) != len_s) abort();
    }
    detok_destroy(d);
    if (tokenizer_decode(tok, ids, n, flags, &back, &len_back, NULL) == LLMQ_OK && back[len_back]) abort();
    mem_free(back);
    mem_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), fd);
    }
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    llmq_meta *meta = meta_create();
    llmq_tokenizer *tok = NULL;
    llmq_err err = {0};
    if (!meta) return 0;
    bool json = size && data[0] == '{';
    llmq_status status = json ? tokenizer_read_json(path, 0, meta, &err) : tokenizer_read_bin(path, 0, meta, &err);
    if (status != LLMQ_OK && (err.status != status || !*err.msg)) abort();
    if (status == LLMQ_OK && tokenizer_create(meta, &tok, NULL) == LLMQ_OK) {
        use(tok, (const char *)data, size < 4096 ? size : 4096, 0);
        use(tok, (const char *)data, size < 4096 ? size : 4096, LLMQ_TOK_BOS | LLMQ_TOK_SPECIAL);
    }
    tokenizer_destroy(tok);
    meta_destroy(meta);
    return 0;
}
