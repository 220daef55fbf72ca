/* cuda/blas.h on cuBLAS, opened at run time: its ABI is that of the headers that this was compiled with. */
#include "cuda/blas.h"

#include <cstdlib>

#if __has_include(<cublas_v2.h>)

#include <cublas_v2.h>
#include <dlfcn.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcublas.so." TEXT(CUBLAS_VER_MAJOR)

struct cuda_blas {
    void *library;
    cublasHandle_t handle;
    decltype(&cublasDestroy_v2) destroy;
    decltype(&cublasSetStream_v2) set_stream;
    decltype(&cublasGetStatusString) status_string;
    cublasStatus_t (*gemm_ex)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                              const void *, cudaDataType, int, const void *, cudaDataType, int, const void *, void *,
                              cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);
};

template <class F> static bool find(void *library, const char *name, F *out) {
    *out = reinterpret_cast<F>(dlsym(library, name));
    return *out != nullptr;
}

llmq_status cuda_blas_create(cuda_blas **out, llmq_err *err) {
    *out = nullptr;
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s is not there: long prompts go without cuBLAS (%s)", LIBRARY, dlerror());
    decltype(&cublasCreate_v2) create;
    cuda_blas found = {};
    found.library = library;
    if (!find(library, "cublasCreate_v2", &create) || !find(library, "cublasDestroy_v2", &found.destroy) ||
        !find(library, "cublasSetStream_v2", &found.set_stream) ||
        !find(library, "cublasGetStatusString", &found.status_string) ||
        !find(library, "cublasGemmEx", &found.gemm_ex)) {
        dlclose(library);
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s lacks functions that llmq calls", LIBRARY);
    }
    const cublasStatus_t status = create(&found.handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        llmq_status failed = llmq_fail(err, LLMQ_E_UNSUPPORTED, "cuBLAS does not start: %s", found.status_string(status));
        dlclose(library);
        return failed;
    }
    *out = static_cast<cuda_blas *>(malloc(sizeof found));
    if (!*out) {
        found.destroy(found.handle);
        dlclose(library);
        return llmq_fail(err, LLMQ_E_MEMORY, "no memory for cuBLAS");
    }
    **out = found;
    return LLMQ_OK;
}

void cuda_blas_destroy(cuda_blas *blas) {
    if (!blas) return;
    blas->destroy(blas->handle);
    dlclose(blas->library);
    free(blas);
}

/* cuBLAS counts by columns: our y (n, ldy) is its (m, n), our rows are its columns. */
llmq_status cuda_blas_gemm_f16(cuda_blas *blas, gpu_stream *stream, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                               int64_t lda, const uint16_t *b, int64_t ldb, float *y, int64_t ldy, llmq_err *err) {
    const float one = 1, zero = 0;
    cublasStatus_t status = blas->set_stream(blas->handle, reinterpret_cast<cudaStream_t>(stream));
    if (status == CUBLAS_STATUS_SUCCESS)
        status = blas->gemm_ex(blas->handle, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(m), static_cast<int>(n),
                               static_cast<int>(k), &one, a, CUDA_R_16F, static_cast<int>(lda), b, CUDA_R_16F,
                               static_cast<int>(ldb), &zero, y, CUDA_R_32F, static_cast<int>(ldy), CUBLAS_COMPUTE_32F,
                               CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_SUCCESS) return LLMQ_OK;
    return llmq_fail(err, status == CUBLAS_STATUS_ALLOC_FAILED ? LLMQ_E_MEMORY : LLMQ_E_IO, "GPU: cuBLAS: %s",
                     blas->status_string(status));
}

#else /* compiled without cuBLAS's headers */

llmq_status cuda_blas_create(cuda_blas **out, llmq_err *err) {
    *out = nullptr;
    return llmq_fail(err, LLMQ_E_UNSUPPORTED, "this llmq was built without cuBLAS: long prompts go without it");
}
void cuda_blas_destroy(cuda_blas *) {}
llmq_status cuda_blas_gemm_f16(cuda_blas *, gpu_stream *, int64_t, int64_t, int64_t, const uint16_t *, int64_t,
                               const uint16_t *, int64_t, float *, int64_t, llmq_err *err) {
    return llmq_fail(err, LLMQ_E_UNSUPPORTED, "this llmq was built without cuBLAS");
}

#endif
