/* cuda/device.h on the CUDA runtime. */
#include "cuda/device.h"

#include <cuda_runtime.h>

static llmq_status fail_cuda(cudaError_t status, const char *what, llmq_err *err) {
    const bool memory = status == cudaErrorMemoryAllocation;
    return llmq_fail(err, memory ? LLMQ_E_MEMORY : LLMQ_E_IO, "GPU: %s: %s", what, cudaGetErrorString(status));
}

/* Without a driver the version is 0, and every other call fails with an error that names no cure. */
llmq_status gpu_open(int index, llmq_err *err) {
    gpu_facts facts = {};
    cudaDeviceProp device;
    facts.runtime = CUDART_VERSION;
    if (cudaDriverGetVersion(&facts.driver) != cudaSuccess) facts.driver = 0;
    if (facts.driver != 0) {
        const cudaError_t counted = cudaGetDeviceCount(&facts.count);
        facts.too_old = counted == cudaErrorInsufficientDriver;
        if (counted != cudaSuccess) facts.count = 0;
        if (counted != cudaSuccess && counted != cudaErrorNoDevice) facts.problem = cudaGetErrorString(counted);
    }
    LLMQ_TRY(gpu_judge(&facts, index, err));
    cudaError_t status = cudaGetDeviceProperties(&device, index);
    if (status != cudaSuccess) return fail_cuda(status, "asking the device", err);
    LLMQ_TRY(gpu_judge_device(index, device.name, device.major, device.minor, err));
    status = cudaSetDevice(index);
    return status == cudaSuccess ? LLMQ_OK : fail_cuda(status, "opening the device", err);
}

int gpu_current(void) {
    int index = 0;
    cudaGetDevice(&index);
    return index;
}

void gpu_use(int index) {
    cudaSetDevice(index); /* of a device that was opened: it cannot fail without what follows failing too */
}

llmq_status gpu_memory(size_t *available, llmq_err *err) {
    size_t total;
    const cudaError_t status = cudaMemGetInfo(available, &total);
    return status == cudaSuccess ? LLMQ_OK : fail_cuda(status, "asking for free memory", err);
}

/* A failed allocation is no error of the device: the next call must not find it. */
llmq_status gpu_alloc(const char *what, size_t bytes, void **out, llmq_err *err) {
    const cudaError_t status = cudaMalloc(out, bytes);
    if (status == cudaSuccess) return LLMQ_OK;
    *out = nullptr;
    if (status != cudaErrorMemoryAllocation) return fail_cuda(status, what, err);
    cudaGetLastError();
    return gpu_no_memory(what, bytes, err);
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
