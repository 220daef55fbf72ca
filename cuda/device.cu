/* cuda/device.h on the CUDA runtime. */
#include "cuda/device.h"

#include <cuda_runtime.h>

static llmq_status fail_cuda(cudaError_t status, const char *what, llmq_err *err) {
    const bool memory = status == cudaErrorMemoryAllocation;
    return llmq_fail(err, memory ? LLMQ_E_MEMORY : LLMQ_E_IO, "GPU: %s: %s", what, cudaGetErrorString(status));
}

/* Without a driver the version is 0, and every other call fails with an error that names no cure. */
llmq_status gpu_open(int index, llmq_err *err) {
    int driver = 0, count = 0;
    cudaDeviceProp device;
    cudaDriverGetVersion(&driver);
    if (driver == 0)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--device cuda: this machine has no NVIDIA driver; use --device cpu");
    if (cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "--device cuda: the NVIDIA driver is for CUDA %d.%d, and this llmq needs %d.%d; update the driver",
                         driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (index < 0 || index >= count)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--device cuda:%d: this machine has %d CUDA devices", index, count);
    cudaError_t status = cudaGetDeviceProperties(&device, index);
    if (status == cudaSuccess) status = cudaSetDevice(index);
    if (status != cudaSuccess) return fail_cuda(status, "opening the device", err);
    if (device.major < 8)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "--device cuda:%d: %s has compute capability %d.%d, and the kernels need 8.0 (Ampere) or later",
                         index, device.name, device.major, device.minor);
    return LLMQ_OK;
}

int gpu_current(void) {
    int index = 0;
    cudaGetDevice(&index);
    return index;
}

void gpu_use(int index) {
    cudaSetDevice(index); /* of a device that was opened: it cannot fail without what follows failing too */
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
