/* A tensor: a typed view of bytes that somebody else owns (a mapped file, an arena). */
#ifndef LLMQ_CORE_TENSOR_H
#define LLMQ_CORE_TENSOR_H

#include "core/err.h"

#define TENSOR_MAX_DIMS 4
#define TENSOR_MAX_NAME 128

typedef struct llmq_tensor {
    char name[TENSOR_MAX_NAME];
    llmq_type type;
    int n_dims;
    int64_t dims[TENSOR_MAX_DIMS]; /* dims[0] is contiguous (input features); unused ones are 1 */
    int64_t bytes;                 /* size of data */
    int64_t group; /* columns of a row that have one scale and 16 levels at most, where the container says so; or 0 */
    const void *data; /* NULL in a plan (a tensor yet to be written) */
} llmq_tensor;

/* How the inputs of a matrix become integers from -128 to 127: x = scale * (q - zero). */
typedef struct llmq_act_range {
    float scale; /* 0: each token has its own, its largest magnitude / 127.5, and zero is 0 */
    int32_t zero;
} llmq_act_range;

static inline int64_t tensor_numel(const llmq_tensor *t) {
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}
static inline int64_t tensor_rows(const llmq_tensor *t) {
    return t->dims[1] * t->dims[2] * t->dims[3];
}
static inline int64_t tensor_cols(const llmq_tensor *t) {
    return t->dims[0];
}

#endif
