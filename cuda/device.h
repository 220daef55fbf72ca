/* Device memory and streams, for C. Two bodies: device.cu (the CUDA runtime) and emu/device.cpp. */
#ifndef LLMQ_CUDA_DEVICE_H
#define LLMQ_CUDA_DEVICE_H

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_ALIGN 256 /* of memory */

/* What a machine says about its GPUs. Versions as 1000 * major + 10 * minor. */
typedef struct gpu_facts {
    int runtime, driver; /* this program's CUDA, the driver's; driver 0: there is none */
    bool too_old;        /* the runtime refuses the driver */
    int count;           /* of devices; 0 also where the runtime says why: */
    const char *problem; /* or NULL */
} gpu_facts;
/* Can device `index` be used? The error names what is missing, and the cure. */
llmq_status gpu_judge(const gpu_facts *facts, int index, llmq_err *err);
/* ... and this one, which was found there? */
llmq_status gpu_judge_device(int index, const char *name, int major, int minor, llmq_err *err);

/* Makes device `index` this thread's. LLMQ_E_UNSUPPORTED: no driver, an old one, no such device, too old a device. */
llmq_status gpu_open(int index, llmq_err *err);
/* This thread's device; and back to it, in a function that may be called from another thread. */
int gpu_current(void);
void gpu_use(int index);
/* "NVIDIA H200": of this thread's device. */
void gpu_name(char *out, size_t cap);
/* Bytes that are free now. */
llmq_status gpu_memory(size_t *available, llmq_err *err);
/* GPU_ALIGN-byte aligned memory; `what` names it in errors. gpu_free(NULL) is allowed. */
llmq_status gpu_no_memory(const char *what, size_t bytes, llmq_err *err); /* the error */
llmq_status gpu_alloc(const char *what, size_t bytes, void **out, llmq_err *err);
void gpu_free(void *p); /* waits for all that was queued anywhere */
/* Host to device and back, beside all streams; both return when the copy is over. */
llmq_status gpu_upload(void *to, const void *from, size_t bytes, llmq_err *err);
llmq_status gpu_download(void *to, const void *from, size_t bytes, llmq_err *err);
/* No kernel writes this buffer from now on: the emulator sees to it. */
void gpu_seal(const void *p);
/* Waits for all that was queued anywhere; here errors of launches and kernels come to light. */
llmq_status gpu_wait(llmq_err *err);

/* This thread's launches were accepted so far; does not wait for them. */
llmq_status gpu_launched(llmq_err *err);

/* ---- streams: what is queued on one runs in that order, beside other streams and the default one */

llmq_status gpu_stream_create(gpu_stream **out, llmq_err *err);
void gpu_stream_destroy(gpu_stream *s); /* waits; NULL allowed, as in all that follow */
/* Copies in the stream's order. The host's memory may be reused when it returns; what was downloaded is there. */
llmq_status gpu_stream_upload(gpu_stream *s, void *to, const void *from, size_t bytes, llmq_err *err);
llmq_status gpu_stream_download(gpu_stream *s, void *to, const void *from, size_t bytes, llmq_err *err);
/* On the device. */
llmq_status gpu_stream_copy(gpu_stream *s, void *to, const void *from, size_t bytes, llmq_err *err);
/* Until all that was queued on it is over. */
llmq_status gpu_stream_wait(gpu_stream *s, llmq_err *err);

/* ---- recordings: launches that are sent to the device together, again and again, with the same arguments */

typedef struct gpu_recording gpu_recording;
/* From now on launches on s (not NULL) are recorded and not run; nothing else may be asked of the GPU meanwhile. A
 * kernel that is recorded has to have been run before: the first launch loads it. */
llmq_status gpu_record_begin(gpu_stream *s, llmq_err *err);
llmq_status gpu_record_end(gpu_stream *s, gpu_recording **out, llmq_err *err);
llmq_status gpu_replay(const gpu_recording *r, gpu_stream *s, llmq_err *err);
void gpu_recording_destroy(gpu_recording *r);

/* ---- staging: two buffers of the host, one uploaded while the other is filled */

typedef struct gpu_staging gpu_staging;
llmq_status gpu_staging_create(size_t bytes, gpu_staging **out, llmq_err *err); /* bytes of each */
void gpu_staging_destroy(gpu_staging *s);                                       /* waits */
/* The buffer whose turn it is, once its last upload is over. */
llmq_status gpu_staging_next(gpu_staging *s, void **out, llmq_err *err);
/* Begins its upload; the turn is the other one's. */
llmq_status gpu_staging_send(gpu_staging *s, void *to, size_t bytes, llmq_err *err);
/* All uploads are over. */
llmq_status gpu_staging_finish(gpu_staging *s, llmq_err *err);

#ifdef __cplusplus
}
#endif

#endif
