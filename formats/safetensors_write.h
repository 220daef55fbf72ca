/* Writing safetensors: the weights of a Hugging Face folder, in one file or in shards with their index. The whole
 * directory is known up front; tensor data may then come in any order, in pieces, from any thread. Layout: formats.md
 * of docs and safetensors.c.
 *
 * The folder is there already (core/folder.h makes it appear whole). Files are as the official library writes them,
 * byte for byte: tensors by the width of their dtype, widest first, then by name; the header padded to 8 bytes. */
#ifndef LLMQ_FORMATS_SAFETENSORS_WRITE_H
#define LLMQ_FORMATS_SAFETENSORS_WRITE_H

#include "core/file.h"
#include "core/tensor.h"

typedef struct llmq_st_tensor {
    char name[TENSOR_MAX_NAME + 64]; /* a member's suffix may follow a name */
    const char *dtype;               /* as safetensors spells it */
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS]; /* outermost first */
    int64_t bytes;
} llmq_st_tensor;

typedef struct llmq_st_writer llmq_st_writer;

/* shard_bytes: no file becomes larger, header included, unless one tensor does alone; 0: one file. Tensors stay in
 * their order over the files, and are copied. resume: the files are there as st_writer_abort(keep) or a killed process
 * left them. */
llmq_status st_writer_open(const char *dir, const llmq_st_tensor *tensors, size_t n, int64_t shard_bytes, bool resume,
                           llmq_st_writer **out, llmq_err *err);
/* data goes to bytes [offset, offset + len) of tensor number index. Putting bytes again replaces them. */
llmq_status st_writer_put(llmq_st_writer *w, size_t index, const void *data, size_t len, size_t offset, llmq_err *err);
/* What was put there. */
llmq_status st_writer_get(const llmq_st_writer *w, size_t index, void *data, size_t len, size_t offset, llmq_err *err);
/* After opening with resume: the tensor was put by the earlier run. */
llmq_status st_writer_have(llmq_st_writer *w, size_t index, llmq_err *err);
llmq_status st_writer_sync(llmq_st_writer *w, llmq_err *err);
/* Every byte of every tensor must have been put. Writes the index of shards; w is gone afterwards, also on failure. */
llmq_status st_writer_finish(llmq_st_writer *w, int64_t *bytes_out, llmq_err *err);
void st_writer_abort(llmq_st_writer *w, bool keep); /* NULL allowed; keep: files stay for a run that goes on */
/* Bytes of all files for this directory, without writing. */
llmq_status st_plan_bytes(const llmq_st_tensor *tensors, size_t n, int64_t shard_bytes, int64_t *bytes_out,
                          llmq_err *err);

#endif
