/* cuda/device.h on the emulator: device addresses are host addresses of known buffers. */
#include "cuda/device.h"

#include <cstdio>
#include <cstring>
#include <vector>

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
void gpu_name(char *out, size_t cap) {
    snprintf(out, cap, "emulated");
}

/* While launches are recorded the device takes nothing else. */
static llmq_status busy(llmq_err *err) {
    return emu::recording_on() ? llmq_fail(err, LLMQ_E_IO, "GPU: not while launches are recorded") : LLMQ_OK;
}

llmq_status gpu_alloc(const char *what, size_t bytes, void **out, llmq_err *err) {
    size_t available;
    *out = nullptr;
    LLMQ_TRY(busy(err));
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
    LLMQ_TRY(busy(err));
    LLMQ_TRY(check(b, to, bytes, err));
    memcpy(to, from, bytes);
    memset(b->state.data() + (static_cast<uint8_t *>(to) - b->data), emu::WRITTEN, bytes);
    return LLMQ_OK;
}

llmq_status gpu_download(void *to, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(busy(err));
    LLMQ_TRY(check(emu::memory_find(from), from, bytes, err));
    memcpy(to, from, bytes);
    return LLMQ_OK;
}

void gpu_seal(const void *p) {
    emu::memory_find(p)->read_only = true;
}

llmq_status gpu_wait(llmq_err *err) {
    emu_report report;
    LLMQ_TRY(busy(err));
    if (!emu_take_report(&report)) return LLMQ_OK;
    return llmq_fail(err, LLMQ_E_IO, "%s", report.text);
}

llmq_status gpu_launched(llmq_err *err) {
    return gpu_wait(err);
}

/* ---- streams: everything is run as it is queued */

struct gpu_stream {
    int unused;
};

llmq_status gpu_stream_create(gpu_stream **out, llmq_err *) {
    *out = new gpu_stream{};
    return LLMQ_OK;
}

void gpu_stream_destroy(gpu_stream *s) {
    delete s;
}

llmq_status gpu_stream_upload(gpu_stream *, void *to, const void *from, size_t bytes, llmq_err *err) {
    return gpu_upload(to, from, bytes, err);
}

llmq_status gpu_stream_download(gpu_stream *, void *to, const void *from, size_t bytes, llmq_err *err) {
    LLMQ_TRY(gpu_wait(err));
    return gpu_download(to, from, bytes, err);
}

llmq_status gpu_stream_copy(gpu_stream *, void *to, const void *from, size_t bytes, llmq_err *err) {
    emu::buffer *into = emu::memory_find(to), *of = emu::memory_find(from);
    LLMQ_TRY(busy(err));
    LLMQ_TRY(check(into, to, bytes, err));
    LLMQ_TRY(check(of, from, bytes, err));
    memcpy(to, from, bytes);
    memcpy(into->state.data() + (static_cast<uint8_t *>(to) - into->data),
           of->state.data() + (static_cast<const uint8_t *>(from) - of->data), bytes);
    return LLMQ_OK;
}

llmq_status gpu_stream_wait(gpu_stream *, llmq_err *err) {
    return gpu_wait(err);
}

/* ---- recordings */

struct gpu_recording {
    emu::launches list;
};

llmq_status gpu_record_begin(gpu_stream *s, llmq_err *err) {
    LLMQ_TRY(gpu_wait(err));
    if (!s) return llmq_fail(err, LLMQ_E_ARG, "GPU: the default stream cannot be recorded");
    emu::record_begin(s);
    return LLMQ_OK;
}

llmq_status gpu_record_end(gpu_stream *s, gpu_recording **out, llmq_err *err) {
    *out = nullptr;
    if (emu::recording_on() != s) return llmq_fail(err, LLMQ_E_ARG, "GPU: this stream is not recorded");
    gpu_recording *r = new gpu_recording{emu::record_end()};
    const llmq_status status = gpu_wait(err);
    if (status == LLMQ_OK)
        *out = r;
    else
        delete r;
    return status;
}

static int64_t replays;

int64_t emu_replays(void) {
    return replays;
}

llmq_status gpu_replay(const gpu_recording *r, gpu_stream *s, llmq_err *err) {
    LLMQ_TRY(busy(err));
    replays++;
    for (const emu::recorded &l : r->list) emu::queue(s, l.kernel, l.grid, l.threads, l.dynamic_shared, l.body);
    return LLMQ_OK;
}

void gpu_recording_destroy(gpu_recording *r) {
    delete r;
}

/* ---- staging: uploads happen as late as they may, so that a buffer that is filled too early is seen in its result */

struct gpu_staging {
    struct {
        std::vector<uint8_t> host;
        void *to = nullptr;
        size_t bytes = 0;
    } half[2];
    int turn = 0;
};

static llmq_status settle(gpu_staging *s, int i, llmq_err *err) {
    void *to = s->half[i].to;
    s->half[i].to = nullptr;
    return to ? gpu_upload(to, s->half[i].host.data(), s->half[i].bytes, err) : LLMQ_OK;
}

llmq_status gpu_staging_create(size_t bytes, gpu_staging **out, llmq_err *) {
    *out = new gpu_staging;
    for (auto &half : (*out)->half) half.host.resize(bytes);
    return LLMQ_OK;
}

void gpu_staging_destroy(gpu_staging *s) {
    if (s) gpu_staging_finish(s, nullptr);
    delete s;
}

llmq_status gpu_staging_next(gpu_staging *s, void **out, llmq_err *err) {
    *out = s->half[s->turn].host.data();
    return settle(s, s->turn, err);
}

llmq_status gpu_staging_send(gpu_staging *s, void *to, size_t bytes, llmq_err *err) {
    if (bytes > s->half[s->turn].host.size()) return llmq_fail(err, LLMQ_E_ARG, "GPU: more than the buffer has");
    s->half[s->turn].to = to;
    s->half[s->turn].bytes = bytes;
    s->turn ^= 1;
    return LLMQ_OK;
}

llmq_status gpu_staging_finish(gpu_staging *s, llmq_err *err) {
    LLMQ_TRY(settle(s, s->turn, err));
    return settle(s, s->turn ^ 1, err);
}
