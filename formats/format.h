/* Containers of model weights. A source is an opened container: typed metadata under GGUF's keys plus views of tensors.
 * A file is untrusted: every length, offset and count is checked before use; each error names file, field and cure.
 *
 * tensor->data may lie at any address (safetensors and llama2.c promise no alignment): read numbers by memcpy or
 * unaligned loads, never through a float *. The bytes are mapped, not read: nothing is in memory before it is touched.
 */
#ifndef LLMQ_FORMATS_FORMAT_H
#define LLMQ_FORMATS_FORMAT_H

#include "core/file.h"
#include "core/meta.h"
#include "core/tensor.h"

/* Metadata of models whose matrices of 8-bit rows take 8-bit inputs (engine/int8.h): "dynamic" or "static"; then for
 * each site of each layer its range: scales (0: none, each token has its own) and zero points. */
#define FORMAT_INT8_KEY "llmq.int8.activations"
#define FORMAT_INT8_SCALES "llmq.int8.input_scale"
#define FORMAT_INT8_ZEROS "llmq.int8.input_zero"

typedef struct llmq_source llmq_source;
typedef struct llmq_format llmq_format;

/* How tensors are named and how q/k rows are ordered. */
typedef enum llmq_naming {
    NAMING_GGUF, /* GGUF names; q/k rows of arch "llama" interleaved (pairs 2i, 2i+1), NeoX order elsewhere */
    NAMING_HF    /* Hugging Face names; q/k rows in NeoX order (two halves) for every architecture */
} llmq_naming;

/* Weights that others quantized, in a layout that llmq does not run as it is (formats/schemes/). */
typedef struct llmq_source_quant {
    char text[96];                 /* "gptq, 4 bits, groups of 128, symmetric" */
    int64_t n_matrices, n_rounded; /* rounded: not exactly held by the storage type that stands for them here */
    char note[128];                /* what was rounded; "" */
} llmq_source_quant;

struct llmq_source {
    const llmq_format *format;
    char *path;      /* as given */
    llmq_meta *meta; /* GGUF keys: general.architecture, llama.block_count, ...; tokenizer.* only from GGUF; without
                      * split.* and general.alignment, which are of the file and not of the model */
    llmq_naming naming;
    llmq_tensor *tensors; /* n_tensors views, in file order */
    size_t n_tensors;
    int64_t file_bytes; /* of all files */
    llmq_map *maps;     /* n_maps */
    size_t n_maps;
    void *owned;                    /* the format's own (dequantized llama2.c v2 weights) */
    const llmq_source_quant *quant; /* NULL: everything is as the container stores it */
    void *index;                    /* name lookup, formats/format.c's own */
};

struct llmq_format {
    const char *name;                /* "gguf", "huggingface", "llama2c" */
    bool (*probe)(const char *path); /* looks at the first bytes or the folder; never fails loudly */
    llmq_status (*open)(const char *path, llmq_source *src, llmq_err *err); /* src zeroed, path, format and meta set */
    /* Where tensors may be made on demand, else NULL; see source_load, source_release, source_exact. */
    llmq_status (*load)(llmq_source *src, const llmq_tensor *t, bool keep, llmq_err *err);
    void (*release)(const llmq_source *src, const llmq_tensor *t);
    bool (*exact)(const llmq_source *src, const llmq_tensor *t);
    /* Where containers say how each matrix takes its inputs, else NULL; see source_input. */
    bool (*input)(const llmq_source *src, const llmq_tensor *t, llmq_act_range *out);
    void (*close)(llmq_source *src); /* frees owned only; maps, tensors and meta are freed by source_close */
};

/* Opens whatever is at path: formats are probed in order; nothing fits: an error that says what llmq reads. Any part of
 * a split GGUF opens all of it; for a Hugging Face model name the folder, its index file, or one *.safetensors file in
 * it. */
llmq_status source_open(const char *path, llmq_source **out, llmq_err *err);
void source_close(llmq_source *src);                                      /* NULL allowed */
const llmq_tensor *source_find(const llmq_source *src, const char *name); /* NULL if absent */
/* path is one of the source's files: of its weights, a tokenizer.bin beside them, or anything in a Hugging Face folder
 * but GGUF files, which are no part of it. */
bool source_has_file(const llmq_source *src, const char *path);
/* Makes the bytes behind t->data be there; before it, those of quantized folders are zeros. Nothing to do for most
 * sources. keep: source_release does not take them away. One thread at a time. */
llmq_status source_load(llmq_source *src, const llmq_tensor *t, bool keep, llmq_err *err);
/* The tensor's values are those of the container; false: they were rounded to its type. */
bool source_exact(const llmq_source *src, const llmq_tensor *t);
/* The container itself says in what range the matrix takes 8-bit inputs (scale 0: each token in its own). */
bool source_input(const llmq_source *src, const llmq_tensor *t, llmq_act_range *out);
/* The pages behind a tensor may leave memory (they can be read again; after source_load where that is needed). */
void source_release(const llmq_source *src, const llmq_tensor *tensor);

/* Side files (tokenizer.json, tokenizer.bin): NAME in the model's folder, or beside a model that is a file, if it
 * exists. */
bool source_side_file(const llmq_source *src, const char *name, char *out, size_t cap);

/* ---- writing GGUF v3. The directory is known up front; tensor data may then come in any order, in pieces, from any
 * thread. */
typedef struct llmq_gguf_writer llmq_gguf_writer;
/* meta is written in its order, after general.architecture and general.alignment; tensors: name, type, dims (bytes
 * computed); copied. Left out: hf.*, split.*, and rope scaling "llama3" with its factors, for which the tensor
 * rope_freqs.weight must be there. Added where meta lacks them: general.file_type (of the type with most weights) and
 * general.quantization_version, so metadata taken over from another file need general.file_type removed or set. */
llmq_status gguf_writer_open(const char *path, bool force, const llmq_meta *meta, const llmq_tensor *tensors, size_t n,
                             llmq_gguf_writer **out, llmq_err *err);
/* data goes to bytes [offset, offset + len) of tensor number index. Putting bytes again replaces them. */
llmq_status gguf_writer_put(llmq_gguf_writer *w, size_t index, const void *data, size_t len, size_t offset,
                            llmq_err *err);
/* What was put there. */
llmq_status gguf_writer_get(const llmq_gguf_writer *w, size_t index, void *data, size_t len, size_t offset,
                            llmq_err *err);
/* Every byte of every tensor must have been put. Syncs and renames; w is gone afterwards, also on failure. */
llmq_status gguf_writer_finish(llmq_gguf_writer *w, int64_t *bytes_out, llmq_err *err);
void gguf_writer_abort(llmq_gguf_writer *w, bool keep); /* keep: PATH.tmp stays for gguf_writer_reopen */
/* Goes on with the PATH.tmp that a writer of the same directory left; one of another directory is LLMQ_E_FORMAT and
 * stays as it is. Tensors that are whole in it are told by gguf_writer_have. */
llmq_status gguf_writer_reopen(const char *path, bool force, const llmq_meta *meta, const llmq_tensor *tensors,
                               size_t n, llmq_gguf_writer **out, llmq_err *err);
llmq_status gguf_writer_have(llmq_gguf_writer *w, size_t index, llmq_err *err);
/* What was put so far is on the disk. */
llmq_status gguf_writer_sync(const llmq_gguf_writer *w, llmq_err *err);
/* Bytes of the finished file for this directory, without writing. */
llmq_status gguf_plan_bytes(const llmq_meta *meta, const llmq_tensor *tensors, size_t n, int64_t *bytes_out,
                            llmq_err *err);

/* config.json to metadata under GGUF's keys (hfconfig.c). Sets general.architecture to the GGUF architecture name
 * ("mistral" becomes "llama" with llama.attention.sliding_window) and hf.model_type to config.json's own word, besides:
 *   {a}.block_count .context_length .embedding_length .feed_forward_length .vocab_size
 * .attention.head_count(.head_count_kv) .attention.key_length/.value_length .attention.layer_norm_rms_epsilon
 * .attention.sliding_window .rope.freq_base .rope.dimension_count; rope scaling: {a}.rope.scaling.type
 * linear|yarn|llama3, .factor, .original_context_length, yarn: .yarn_beta_fast .yarn_beta_slow .attn_factor (GGUF's
 * meaning: a multiplier of 0.1*ln(factor)+1, so config.json's attention_factor A is stored as A/(0.1*ln(factor)+1);
 * likewise mscale/mscale_all_dim); llama3: .low_freq_factor .high_freq_factor (hf.* keys are private and not written to
 * GGUF files). hf.tie_word_embeddings (bool), bos/eos ids as tokenizer.ggml.*_token_id where given. */
llmq_status hfconfig_read(const char *path, llmq_meta *meta, llmq_err *err);

#endif
