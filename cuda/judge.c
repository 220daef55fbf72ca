/* What is wrong with a GPU that was asked for, in words; apart from the runtime's calls, so that tests reach all of it.
 */
#include "cuda/device.h"

static int major_of(int version) {
    return version / 1000;
}
static int minor_of(int version) {
    return version % 1000 / 10;
}

llmq_status gpu_judge(const gpu_facts *f, int index, llmq_err *err) {
    if (f->driver == 0)
        return llmq_fail(
            err, LLMQ_E_UNSUPPORTED,
            "--device cuda: this machine has no NVIDIA driver; install one for CUDA %d.%d or later, or use "
            "--device cpu",
            major_of(f->runtime), minor_of(f->runtime));
    if (f->too_old)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "--device cuda: the NVIDIA driver is for CUDA %d.%d, and this llmq needs %d.%d; update the "
                         "driver, or use --device cpu",
                         major_of(f->driver), minor_of(f->driver), major_of(f->runtime), minor_of(f->runtime));
    if (f->problem)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED,
                         "--device cuda: the NVIDIA driver cannot be used: %s; nvidia-smi may tell more; use --device "
                         "cpu until then",
                         f->problem);
    if (f->count == 0)
        return llmq_fail(
            err, LLMQ_E_UNSUPPORTED,
            "--device cuda: the NVIDIA driver finds no GPU; see nvidia-smi, and CUDA_VISIBLE_DEVICES if it "
            "is set; or use --device cpu");
    if (index < 0 || index >= f->count)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "--device cuda:%d: this machine has %d GPU%s, counted from 0", index,
                         f->count, f->count == 1 ? "" : "s");
    return LLMQ_OK;
}

llmq_status gpu_judge_device(int index, const char *name, int major, int minor, llmq_err *err) {
    if (major >= 8) return LLMQ_OK;
    return llmq_fail(
        err, LLMQ_E_UNSUPPORTED,
        "--device cuda:%d: %.60s has compute capability %d.%d, and the kernels need 8.0 (Ampere) or later; "
        "use another device",
        index, name, major, minor);
}

llmq_status gpu_no_memory(const char *what, size_t bytes, llmq_err *err) {
    return llmq_fail(
        err, LLMQ_E_MEMORY,
        "the GPU has no %.1f MB left for %s; close other programs that use it, give fewer --gpu-layers or a smaller "
        "--ctx where layers run there, or --device cpu",
        (double)bytes * 1e-6, what);
}
