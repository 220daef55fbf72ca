/* What the emulator's own tests share: cmocka for C++, buffers with contents, a warp that runs a lambda. */
#ifndef LLMQ_TESTS_CUDA_EMU_H
#define LLMQ_TESTS_CUDA_EMU_H

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
extern "C" {
#include <cmocka.h>
}
#include <cstring>
#include <functional>
#include <vector>

#include "cuda/ptx.cuh"

/* Global memory for one test. An input is written by the host and by nobody else. */
template <class T> class array {
  public:
    explicit array(const char *name, size_t n) : b(emu::memory_create(name, n * sizeof(T))) {}
    array(const char *name, const std::vector<T> &contents, bool input = true) : array(name, contents.size()) {
        memcpy(b->data, contents.data(), b->bytes);
        std::fill(b->state.begin(), b->state.end(), uint8_t{emu::WRITTEN});
        b->read_only = input;
    }
    ~array() { emu::memory_destroy(b); }
    array(const array &) = delete;
    operator gptr<T>() const { return {b, 0}; }
    operator gptr<const T>() const { return {b, 0}; }
    T *address() const { return reinterpret_cast<T *>(b->data); }
    T host(size_t i) const {
        T value;
        memcpy(&value, b->data + i * sizeof(T), sizeof value);
        return value;
    }

  private:
    emu::buffer *b;
};

/* Runs body(lane) on the 32 lanes of one warp; no fault may come of it. */
static inline void warp(const std::function<void(int)> &body) {
    emu::launch("warp", 1, 32, 0, [&] { body(static_cast<int>(threadIdx.x)); });
    emu_report report;
    if (emu_take_report(&report)) fail_msg("%s", report.text);
}

#endif
