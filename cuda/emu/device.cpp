/* cuda/device.h on the emulator: device addresses are host addresses of known buffers. */
#include "cuda/device.h"

#include <cstring>

#include "cuda/emu/block.h"

llmq_status gpu_open(int index, llmq_err *err) {
    const gpu_facts facts = {13000, 13000, false, 1, nullptr};
    return gpu_judge(&facts, index, err);
}

static constexpr size_t all_memory = size_t{1} << 40;
static size_t memory_limit = all_memory;

void emu_set_memory(size_t bytes) {
    memory_limit = bytes ? bytes : all_memory;
}

size_t emu_memory_used(void) {
    return emu::memory_used();
}

llmq_status gpu_memory(size_t *available, llmq_err *) {
    const size_t used = emu::memory_used();
    *available = memory_limit > used ? memory_limit - used : 0;
    return LLMQ_OK;
}

int gpu_current(void) {
    return 0;
}
void gpu_use(int) {}

llmq_status gpu_alloc(const char *what, size_t bytes, void **out, llmq_err *err) {
    size_t available;
    *out = nullptr;
    LLMQ_TRY(gpu_memory(&available, err));
    if (bytes > available) return gpu_no_memory(what, bytes, err);
    *out = emu::memory_create(what, bytes)->data;
    return LLMQ_OK;
}

void gpu_free(void *p) {
    if (emu::buffer *b = p ? emu::memory_find(p) : nullptr) emu::memory_destroy(b);
}

static llmq_status check(const emu::buffer *b, const void *at, size_t bytes, llmq_err *err) {
    size_t offset = b ? static_cast<size_t>(static_cast<const uint8_t *>(at) - b->data) : 0;
    if (b && offset <= b->bytes && bytes <= b->bytes - offset) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_ARG, "%zu bytes do not fit into %s", bytes, b ? b->name.c_str() : "no buffer");
}

llmq_status gpu_upload(void *to, const void *from, size_t bytes, llmq_err *err) {
    emu::buffer *b = emu::memory_find(to);
    LLMQ_TRY(check(b, to, bytes, err));
    memcpy(to, from, bytes);
    memset(b->state.data() + (static_cast<uint8_t *>(to) - b->data), emu::WRITTEN, bytes);
    return LLMQ_OK;
}

llmq_status gpu_download(void *to, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(check(emu::memory_find(from), from, bytes, err));
    memcpy(to, from, bytes);
    return LLMQ_OK;
}

void gpu_seal(const void *p) {
    emu::memory_find(p)->read_only = true;
}

llmq_status gpu_wait(llmq_err *err) {
    emu_report report;
    if (!emu_take_report(&report)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_IO, "%s", report.text);
}
