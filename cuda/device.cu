/* cuda/device.h on the CUDA runtime. */
#include "cuda/device.h"

#include <cstdio>
#include <cuda_runtime.h>

extern "C" {
#include "core/mem.h"
}

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

void gpu_name(char *out, size_t cap) {
    cudaDeviceProp device;
    const cudaError_t status = cudaGetDeviceProperties(&device, gpu_current());
    snprintf(out, cap, "%s", status == cudaSuccess ? device.name : "a GPU");
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

static llmq_status judge(cudaError_t status, const char *what, llmq_err *err) {
    return status == cudaSuccess ? LLMQ_OK : fail_cuda(status, what, err);
}

/* cudaMemcpy may return before the last bytes have arrived, and other streams do not wait for its own. */
llmq_status gpu_upload(void *to, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(judge(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "upload", err));
    return judge(cudaStreamSynchronize(cudaStreamLegacy), "upload", err);
}

llmq_status gpu_download(void *to, const void *from, size_t bytes, llmq_err *err) {
    return judge(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download", err);
}

void gpu_seal(const void *) {}

llmq_status gpu_wait(llmq_err *err) {
    LLMQ_TRY(judge(cudaGetLastError(), "launch", err));
    return judge(cudaDeviceSynchronize(), "kernel", err);
}

llmq_status gpu_launched(llmq_err *err) {
    return judge(cudaGetLastError(), "launch", err);
}

/* ---- streams */

static cudaStream_t native(gpu_stream *s) {
    return reinterpret_cast<cudaStream_t>(s);
}

/* Non-blocking: the default stream, which cannot be recorded, does not get in its way. */
llmq_status gpu_stream_create(gpu_stream **out, llmq_err *err) {
    cudaStream_t s = nullptr;
    *out = nullptr;
    LLMQ_TRY(judge(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "making a stream", err));
    *out = reinterpret_cast<gpu_stream *>(s);
    return LLMQ_OK;
}

void gpu_stream_destroy(gpu_stream *s) {
    if (!s) return;
    cudaStreamSynchronize(native(s));
    cudaStreamDestroy(native(s));
}

/* The host's memory is pageable. Up to 64 KB have been copied when the call returns; of more CUDA only says that it may
 * be so. */
llmq_status gpu_stream_upload(gpu_stream *s, void *to, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(judge(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(s)), "upload", err));
    return bytes <= 65536 ? LLMQ_OK : judge(cudaStreamSynchronize(native(s)), "kernel", err);
}

llmq_status gpu_stream_download(gpu_stream *s, void *to, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(judge(cudaGetLastError(), "launch", err));
    LLMQ_TRY(judge(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(s)), "download", err));
    return judge(cudaStreamSynchronize(native(s)), "kernel", err);
}

llmq_status gpu_stream_copy(gpu_stream *s, void *to, const void *from, size_t bytes, llmq_err *err) {
    return judge(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(s)), "copy", err);
}

llmq_status gpu_stream_wait(gpu_stream *s, llmq_err *err) {
    return judge(cudaStreamSynchronize(native(s)), "kernel", err);
}

/* ---- recordings: graphs */

llmq_status gpu_record_begin(gpu_stream *s, llmq_err *err) {
    return judge(cudaStreamBeginCapture(native(s), cudaStreamCaptureModeThreadLocal), "recording", err);
}

llmq_status gpu_record_end(gpu_stream *s, gpu_recording **out, llmq_err *err) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    *out = nullptr;
    const cudaError_t launched = cudaGetLastError();
    cudaError_t status = cudaStreamEndCapture(native(s), &graph);
    if (launched != cudaSuccess) status = launched;
    if (status == cudaSuccess) status = cudaGraphInstantiate(&ready, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (status != cudaSuccess) cudaGetLastError(); /* of the recording: launches may go on without one */
    LLMQ_TRY(judge(status, "recording", err));
    *out = reinterpret_cast<gpu_recording *>(ready);
    return LLMQ_OK;
}

llmq_status gpu_replay(const gpu_recording *r, gpu_stream *s, llmq_err *err) {
    const cudaGraphExec_t ready = reinterpret_cast<cudaGraphExec_t>(const_cast<gpu_recording *>(r));
    return judge(cudaGraphLaunch(ready, native(s)), "launch", err);
}

void gpu_recording_destroy(gpu_recording *r) {
    if (r) cudaGraphExecDestroy(reinterpret_cast<cudaGraphExec_t>(r));
}

/* ---- staging */

struct gpu_staging {
    cudaStream_t stream;
    void *host[2]; /* pinned */
    cudaEvent_t sent[2];
    int turn;
};

static cudaError_t fill_staging(gpu_staging *s, size_t bytes) {
    cudaError_t status = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && status == cudaSuccess; i++) {
        status = cudaHostAlloc(&s->host[i], bytes, cudaHostAllocDefault);
        if (status == cudaSuccess) status = cudaEventCreateWithFlags(&s->sent[i], cudaEventDisableTiming);
    }
    return status;
}

llmq_status gpu_staging_create(size_t bytes, gpu_staging **out, llmq_err *err) {
    *out = nullptr;
    gpu_staging *s = static_cast<gpu_staging *>(mem_zalloc(1, sizeof *s));
    if (!s) return mem_error(err, sizeof *s, "uploads");
    const cudaError_t status = fill_staging(s, bytes);
    if (status == cudaSuccess) {
        *out = s;
        return LLMQ_OK;
    }
    gpu_staging_destroy(s);
    cudaGetLastError();
    return fail_cuda(status, "pinned memory for uploads", err);
}

void gpu_staging_destroy(gpu_staging *s) {
    if (!s) return;
    if (s->stream) cudaStreamSynchronize(s->stream);
    for (int i = 0; i < 2; i++) {
        if (s->sent[i]) cudaEventDestroy(s->sent[i]);
        if (s->host[i]) cudaFreeHost(s->host[i]);
    }
    if (s->stream) cudaStreamDestroy(s->stream);
    mem_free(s);
}

llmq_status gpu_staging_next(gpu_staging *s, void **out, llmq_err *err) {
    *out = s->host[s->turn];
    return judge(cudaEventSynchronize(s->sent[s->turn]), "upload", err); /* at once if nothing was sent */
}

llmq_status gpu_staging_send(gpu_staging *s, void *to, size_t bytes, llmq_err *err) {
    LLMQ_TRY(judge(cudaMemcpyAsync(to, s->host[s->turn], bytes, cudaMemcpyHostToDevice, s->stream), "upload", err));
    LLMQ_TRY(judge(cudaEventRecord(s->sent[s->turn], s->stream), "upload", err));
    s->turn ^= 1;
    return LLMQ_OK;
}

llmq_status gpu_staging_finish(gpu_staging *s, llmq_err *err) {
    return judge(cudaStreamSynchronize(s->stream), "upload", err);
}
