/* Which device a model is opened on. */
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

#ifdef LLMQ_HAVE_CUDA
extern const llmq_device_ops cuda_device_ops;
#endif

/* "cuda" or "cuda:N", N at most 99; -1 for anything else. */
static int cuda_index(const char *spec) {
    char *end;
    if (strcmp(spec, "cuda") == 0) return 0;
    if (strncmp(spec, "cuda:", 5) != 0 || spec[5] < '0' || spec[5] > '9') return -1;
    long n = strtol(spec + 5, &end, 10);
    return *end == '\0' && n <= 99 ? (int)n : -1;
}

/* "auto" is the CPU: no GPU has run the kernels yet (docs/cuda.md), so nobody gets them without asking. */
llmq_status device_select(const char *spec, const llmq_device_ops **out, llmq_err *err) {
    *out = NULL;
    if (!spec || strcmp(spec, "cpu") == 0 || strcmp(spec, "auto") == 0) return LLMQ_OK;
    int index = cuda_index(spec);
    if (index < 0) return llmq_fail(err, LLMQ_E_ARG, "--device '%.40s': it takes cpu, auto, cuda or cuda:N", spec);
#ifdef LLMQ_HAVE_CUDA
    LLMQ_TRY(cuda_device_ops.open(index, err));
    *out = &cuda_device_ops;
    return LLMQ_OK;
#else
    return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                     "--device %.40s: this llmq was built without CUDA; build it where nvcc is (docs/cuda.md), or use "
                     "--device cpu",
                     spec);
#endif
}
