/* Makes a tokenizer of a text and writes it in both forms, for scripts/check_bpe_train.py.
 * usage: train_tokenizer TEXT N_VOCAB FOLDER: FOLDER/tokenizer.json, tokenizer_config.json, and vocab.gguf without
 * weights. Prints seconds of training and the number of tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/file.h"
#include "core/mem.h"
#include "formats/format.h"
#include "tokenizer/hf.h"
#include "tokenizer/tokenizer.h"

static llmq_status write_gguf(const char *dir, llmq_meta *meta, llmq_err *err) {
    char path[4096];
    int64_t bytes;
    llmq_gguf_writer *w = NULL;
    if (!path_join(path, sizeof path, dir, "vocab.gguf")) return llmq_fail(err, LLMQ_E_ARG, "%s is too long", dir);
    LLMQ_TRY(meta_set_str(meta, "general.architecture", "llama", err));
    LLMQ_TRY(gguf_writer_open(path, true, meta, NULL, 0, &w, err));
    return gguf_writer_finish(w, &bytes, err);
}

static llmq_status make(char **argv, llmq_meta *meta, llmq_err *err) {
    llmq_map text = {0};
    LLMQ_TRY(file_map(argv[1], &text, err));
    clock_t begin = clock();
    llmq_status status = tokenizer_train((const char *)text.data, text.size, atoll(argv[2]), meta, err);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    if (!status) printf("%.3f %zu\n", seconds, meta_find(meta, "tokenizer.ggml.tokens")->arr.n);
    file_unmap(&text);
    LLMQ_TRY(status);
    LLMQ_TRY(hf_tokenizer_write(argv[3], meta, err));
    return write_gguf(argv[3], meta, err);
}

int main(int argc, char **argv) {
    llmq_err err = {0};
    llmq_meta *meta = meta_create();
    if (argc != 4 || !meta) return fprintf(stderr, "usage: train_tokenizer TEXT N_VOCAB FOLDER\n"), 2;
    llmq_status status = make(argv, meta, &err);
    if (status) fprintf(stderr, "train_tokenizer: %s\n", err.msg);
    meta_destroy(meta);
    return status ? 1 : 0;
}
