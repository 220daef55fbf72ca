/* cuda/device.h on the CUDA runtime. */
#include "cuda/device.h"

#include <cuda_runtime.h>

static llmq_status fail_cuda(cudaError_t status, const char *what, llmq_err *err) {
    const bool memory = status == cudaErrorMemoryAllocation;
    return llmq_fail(err, memory ? LLMQ_E_MEMORY : LLMQ_E_IO, "GPU: %s: %s", what, cudaGetErrorString(status));
}

llmq_status gpu_alloc(const char *what, size_t bytes, void **out, llmq_err *err) {
    const cudaError_t status = cudaMalloc(out, bytes);
    if (status == cudaSuccess) return LLMQ_OK;
    if (status != cudaErrorMemoryAllocation) return fail_cuda(status, what, err);
    return llmq_fail(err, LLMQ_E_MEMORY, "GPU: no %zu bytes for %s", bytes, what);
}

void gpu_free(void *p) {
    cudaFree(p);
}

llmq_status gpu_upload(void *to, const void *from, size_t bytes, llmq_err *err) {
    const cudaError_t status = cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
    return status == cudaSuccess ? LLMQ_OK : fail_cuda(status, "upload", err);
}

llmq_status gpu_download(void *to, const void *from, size_t bytes, llmq_err *err) {
    const cudaError_t status = cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost);
    return status == cudaSuccess ? LLMQ_OK : fail_cuda(status, "download", err);
}

void gpu_seal(const void *) {}

llmq_status gpu_wait(llmq_err *err) {
    cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) return fail_cuda(status, "launch", err);
    status = cudaDeviceSynchronize();
    return status == cudaSuccess ? LLMQ_OK : fail_cuda(status, "kernel", err);
}
