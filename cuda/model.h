/* The weights of a model on a GPU. */
#ifndef LLMQ_CUDA_MODEL_H
#define LLMQ_CUDA_MODEL_H

#include "core/device.h"
#include "cuda/device.h"
#include "cuda/pool.h"

typedef struct gpu_layer {
    float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    cuda_matrix q, k, v, o, gate, up, down;
} gpu_layer;

struct llmq_device_model {
    int device;
    llmq_device_desc d; /* dims; its pointers are not kept */
    gpu_layer *layers;
    cuda_matrix embd, head; /* embd without memory: runs begin with hidden states */
    bool tied;              /* embd and head are the same memory */
    float *output_norm;
    gpu_pool *pools; /* [2]: pages of caches of f16, of 8 bits */
};

/* A new buffer with these contents, which no kernel writes. *out (the address of a pointer) is somebody's to free even
 * if the upload failed. */
llmq_status gpu_upload_new(const char *what, const void *data, size_t bytes, void *out, llmq_err *err);

llmq_status gpu_model_create(const llmq_device_desc *d, llmq_device_model **out, llmq_err *err);
void gpu_model_destroy(llmq_device_model *m);
/* What the kernels cannot do: LLMQ_E_UNSUPPORTED. */
llmq_status gpu_model_check(const llmq_device_desc *d, llmq_err *err);
/* Heads and type of a cache; pages are for gpu_cache_create. */
cuda_kv gpu_kv_of(const llmq_device_desc *d, bool q8);
/* Device memory of a matrix, or a little more where it has groups that its container does not know of; and of all
 * matrices, norms and biases of a layer (about). */
size_t gpu_matrix_bytes(const llmq_tensor *t);
size_t gpu_layer_bytes(const llmq_device_desc *d, const llmq_device_layer *l);

#endif
