/* libFuzzer target: any bytes as any container. What the bytes look like decides how they are opened:
 * '{' first: config.json, and the index of a sharded folder; '{' at 8: a safetensors file in a folder; else a file by itself
 * (GGUF, llama2.c). Whatever opens is read to its end and planned as a GGUF file. Seeds: tests/data/formats.
 *
 * The bytes live in a memfd; the folders have links to it, so that no run writes to a disk. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/mem.h"
#include "formats/format.h"

typedef struct stage {
    int fd;
    char file[64], single[64], sharded[64];
} stage;

static void link_in(const char *dir, const char *name, const char *target) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (symlink(target, path) != 0) abort();
}

static void write_config(const char *dir) {
    static const char config[] = "{\"model_type\":\"llama\",\"hidden_size\":8,\"intermediate_size\":8,\"num_hidden_layers\":1,"
                                 "\"num_attention_heads\":1,\"vocab_size\":8}";
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(config, 1, sizeof config - 1, f) != sizeof config - 1 || fclose(f) != 0) abort();
}

static stage *setup(void) {
    static stage s;
    if (s.file[0]) return &s;
    s.fd = memfd_create("fuzz", 0);
    snprintf(s.file, sizeof s.file, "/proc/%d/fd/%d", (int)getpid(), s.fd);
    snprintf(s.single, sizeof s.single, "/tmp/fuzz-single-XXXXXX");
    snprintf(s.sharded, sizeof s.sharded, "/tmp/fuzz-sharded-XXXXXX");
    if (s.fd < 0 || !mkdtemp(s.single) || !mkdtemp(s.sharded)) abort();
    write_config(s.single);
    write_config(s.sharded);
    link_in(s.single, "model.safetensors", s.file);
    link_in(s.sharded, "model.safetensors.index.json", s.file);
    return &s;
}

static uint64_t use(llmq_source *src) {
    uint64_t sum = 0;
    int64_t bytes;
    for (size_t i = 0; i < src->n_tensors; i++) {
        const llmq_tensor *t = &src->tensors[i];
        if (source_load(src, t, false, NULL) != LLMQ_OK) continue;
        for (int64_t j = 0; j < t->bytes; j++) sum += ((const uint8_t *)t->data)[j];
        if (source_find(src, t->name) != t) abort();
        source_release(src, t);
    }
    if (gguf_plan_bytes(src->meta, src->tensors, src->n_tensors, &bytes, NULL) == LLMQ_OK) sum += (uint64_t)bytes;
    return sum;
}

static void try_source(const char *path) {
    llmq_source *src = NULL;
    llmq_err err = {0};
    static volatile uint64_t sink;
    llmq_status status = source_open(path, &src, &err);
    if ((status == LLMQ_OK) != (src != NULL) || (status != LLMQ_OK && (!*err.msg || err.status != status))) abort();
    if (src) sink = use(src);
    (void)sink;
    source_close(src);
}

static void try_config(const char *path) {
    llmq_meta *meta = meta_create();
    if (meta) (void)hfconfig_read(path, meta, NULL);
    meta_destroy(meta);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const stage *s = setup();
    if (ftruncate(s->fd, 0) != 0 || pwrite(s->fd, data, size, 0) != (ssize_t)size) abort();
    if (size > 0 && data[0] == '{') {
        try_config(s->file);
        try_source(s->sharded);
    } else if (size > 8 && data[8] == '{') try_source(s->single);
    else try_source(s->file);
    return 0;
}
