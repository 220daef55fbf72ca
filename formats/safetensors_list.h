/* The directory of a Hugging Face folder as it is written: names, dtypes and shapes, whatever the dtypes mean. For
 * looking at folders that llmq does not have to be able to run. */
#ifndef LLMQ_FORMATS_SAFETENSORS_LIST_H
#define LLMQ_FORMATS_SAFETENSORS_LIST_H

#include "core/err.h"

#define LIST_MAX_DIMS 4

typedef struct llmq_listed_tensor {
    const char *name, *dtype; /* owned by the list */
    int n_dims;
    int64_t dims[LIST_MAX_DIMS]; /* outermost first, as safetensors has them */
} llmq_listed_tensor;

typedef struct llmq_safetensors_list {
    llmq_listed_tensor *tensors; /* n, sorted by name, each name once */
    size_t n;
    size_t n_files, n_without_format; /* files whose __metadata__ does not say {"format": ...} */
    void **owned;                     /* parsed headers */
} llmq_safetensors_list;

/* model.safetensors, or else every *.safetensors file in the folder. Reads headers only. */
llmq_status safetensors_list_read(const char *dir, llmq_safetensors_list *out, llmq_err *err);
void safetensors_list_clear(llmq_safetensors_list *list); /* zeroed allowed */
/* NULL if absent. */
const llmq_listed_tensor *safetensors_list_find(const llmq_safetensors_list *list, const char *name);

#endif
