/* A model as the directory of a GGUF file or a Hugging Face folder: names, order, metadata, and rows in the order that
 * its readers want. */
#ifndef LLMQ_ENGINE_EXPORT_H
#define LLMQ_ENGINE_EXPORT_H

#include "engine/model.h"
#include "types/type.h"

#define EXPORT_CHUNK_FLOATS ((int64_t)2 << 20) /* of a matrix on its way, in whole rows */

typedef struct llmq_export_entry {
    const llmq_tensor *src; /* NULL: the divisors of llama3 rope scaling, which the source has as settings only */
    llmq_role role;
    int layer;          /* -1: of the model */
    bool matrix;        /* embedding, head and what multiplies; else a vector */
    int64_t interleave; /* heads whose rows (elements of a bias) are interleaved in GGUF or in the source, not in both
                         * (or, for a folder, that the source interleaves); 0: rows stay in order */
} llmq_export_entry;

typedef struct llmq_export {
    const llmq_model *model;
    llmq_naming naming;
    llmq_meta *meta;            /* of GGUF; NULL for a folder */
    llmq_tensor *tensors;       /* n; type and bytes of matrices may be changed by export_set_type before writing */
    llmq_export_entry *entries; /* n, parallel */
    size_t n;
} llmq_export;

/* Matrices get the source's types, vectors F32. model may be opened with no_weights and must outlive the export. */
llmq_status export_create(const llmq_model *model, llmq_export **out, llmq_err *err);
/* The same entries, number by number, under Hugging Face names, with two halves of rows a head; all F16. */
llmq_status export_create_hf(const llmq_model *model, llmq_export **out, llmq_err *err);
void export_destroy(llmq_export *ex); /* NULL allowed */
llmq_status export_set_type(llmq_export *ex, size_t index, llmq_type type, llmq_err *err);
/* general.file_type from the type of most of the layers' weights. To be called after the last export_set_type. */
llmq_status export_seal(llmq_export *ex, llmq_err *err);
/* The source's row that is row r of tensor `index` in the file. */
int64_t export_source_row(const llmq_export *ex, size_t index, int64_t r);
/* Where the bytes of a tensor go, and who hears of it. tick(user, share of the tensor just done) false:
 * LLMQ_E_INTERRUPTED; NULL allowed. */
typedef bool export_tick_fn(void *user, double share);
typedef struct export_sink {
    llmq_status (*put)(void *to, size_t index, const void *data, size_t bytes, size_t offset, llmq_err *err);
    void *to;
    export_tick_fn *tick;
    void *user;
} export_sink;
/* Writes tensor `index` by plain rounding where types differ, a few rows at a time: from the source, or from values
 * [rows * cols] in the source's order that take its place. *exact_out: every value is what it was. */
llmq_status export_write(const llmq_export *ex, size_t index, const float *values, const export_sink *sink,
                         llmq_team *team, bool *exact_out, llmq_err *err);

#endif
