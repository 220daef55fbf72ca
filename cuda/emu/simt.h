/* What cuda/simt.h is without nvcc: CUDA's words for kernels, on top of the emulator. Test-only. */
#ifndef LLMQ_CUDA_EMU_SIMT_H
#define LLMQ_CUDA_EMU_SIMT_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/emu/block.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emu::now.running->index)
#define blockIdx (emu::now.index)
#define blockDim (emu::now.size)
#define gridDim (emu::now.grid)

/* An extra last argument of functions that touch memory or synchronize: where they were called. */
#define SITE , emu::site at = {}
#define SITE_ONLY emu::site at = {}
#define UNROLL

/* ---- vectors */

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) int2 {
    int32_t x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

/* ---- pointers. p[i] is checked and remembers its line; nothing else reaches memory. */

namespace emu {

struct index {
    int64_t i;
    site at;
    template <class I, class = std::enable_if_t<std::is_integral<I>::value>>
    index(I value, const char *file = __builtin_FILE(), int line = __builtin_LINE())
        : i(static_cast<int64_t>(value)), at(file, line) {}
};

template <class T> T load(buffer *b, int64_t offset, site at) {
    static_assert((sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) <= 16, "no instruction loads this at once");
    T value;
    memory_access(b, offset, sizeof(T), access::read, at);
    memcpy(&value, b->data + offset, sizeof value);
    return value;
}

template <class T> void store(buffer *b, int64_t offset, T value, site at) {
    static_assert((sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) <= 16, "no instruction stores this at once");
    memory_access(b, offset, sizeof(T), access::write, at);
    memcpy(b->data + offset, &value, sizeof value);
}

/* The left side of an assignment. */
template <class T> struct element {
    buffer *b;
    int64_t offset;
    site at;
    operator T() const { return load<T>(b, offset, at); }
    void operator=(T value) const { store<T>(b, offset, value, at); }
    void operator=(const element &other) const { store<T>(b, offset, static_cast<T>(other), at); }
    void operator+=(T value) const { store<T>(b, offset, static_cast<T>(load<T>(b, offset, at) + value), at); }
    void operator*=(T value) const { store<T>(b, offset, static_cast<T>(load<T>(b, offset, at) * value), at); }
};

template <class T, bool SHARED> struct pointer {
    buffer *b = nullptr;
    int64_t offset = 0;

    pointer() = default;
    pointer(std::nullptr_t) {}
    pointer(buffer *owner, int64_t at) : b(owner), offset(at) {}
    operator pointer<const T, SHARED>() const { return {b, offset}; }
    template <class U, class = std::enable_if_t<std::is_void<U>::value && (std::is_const_v<U> || !std::is_const_v<T>)>>
    operator pointer<U, SHARED>() const {
        return {b, offset};
    }
    explicit operator bool() const { return b != nullptr; }

    auto operator[](index i) const {
        using value = std::remove_const_t<T>;
        int64_t at = offset + i.i * static_cast<int64_t>(sizeof(T));
        if constexpr (std::is_const_v<T>)
            return load<value>(b, at, i.at);
        else
            return element<value>{b, at, i.at};
    }
    pointer operator+(int64_t n) const { return {b, offset + n * static_cast<int64_t>(sizeof(T))}; }
    pointer operator-(int64_t n) const { return *this + -n; }
    pointer &operator+=(int64_t n) { return *this = *this + n; }
};

} // namespace emu

template <class T> using gptr = emu::pointer<T, false>;
template <class T> using sptr = emu::pointer<T, true>;

template <class U, class T, bool SHARED> emu::pointer<U, SHARED> as(emu::pointer<T, SHARED> p) {
    static_assert(std::is_const_v<U> || !std::is_const_v<T>, "as<> keeps const");
    return {p.b, p.offset};
}

/* An address of the host program as launchers get it (cuda/device.h): NULL stays NULL. */
template <class T> gptr<T> device_pointer(T *p) {
    emu::buffer *b = p ? emu::memory_find(p) : nullptr;
    if (p && !b) {
        emu::fail_launch("a launcher", "an argument is not a device address");
        return nullptr;
    }
    return {b, b ? reinterpret_cast<const uint8_t *>(p) - b->data : 0};
}

/* An address that a kernel has read: NULL, at fault once it is used, if there is no buffer. */
template <class T> gptr<T> global_pointer(uint64_t address) {
    const uint8_t *p = reinterpret_cast<const uint8_t *>(address);
    emu::buffer *b = emu::memory_find(p);
    return {b, b ? p - b->data : 0};
}

#define SHARED(type, name, count)                                                                                      \
    static const char name##_key = 0;                                                                                  \
    sptr<type> name(emu::shared_slice(&name##_key, #name, sizeof(type) * (count), 16), 0)
#define DYNAMIC_SHARED(type, name) sptr<type> name(&emu::now.dynamic, 0)

/* ---- launches. A kernel's arguments are copied, as the driver does. */

using stream_t = void *;
#define LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                                       \
    emu::queue(stream, #kernel, grid, threads, shared_bytes, [=] { kernel(__VA_ARGS__); })
#define ALLOW_SHARED(kernel, bytes) emu::allow_shared(#kernel, bytes)

/* ---- synchronization */

inline void __syncthreads(SITE_ONLY) {
    emu::barrier_meet(0, 0, at);
}
inline void barrier_sync(int id, int n_threads SITE) {
    emu::barrier_meet(id, n_threads, at);
}
void __syncwarp(unsigned mask = 0xffffffffu SITE);

/* ---- warps: 32-bit values */

namespace emu {
uint32_t shuffle(int mode, unsigned mask, uint32_t value, int b, int width, site at);
unsigned vote(int mode, unsigned mask, bool predicate, site at);
unsigned reduce(int mode, unsigned mask, unsigned value, site at);
unsigned match(unsigned mask, uint32_t value, site at);
enum { SHFL_UP, SHFL_DOWN, SHFL_XOR, SHFL_IDX };
enum { VOTE_BALLOT, VOTE_ANY, VOTE_ALL };
enum { REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_AND, REDUCE_OR, REDUCE_XOR };

template <class T> T shuffle_as(int mode, unsigned mask, T value, int b, int width, site at) {
    static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = shuffle(mode, mask, bits, b, width, at);
    memcpy(&value, &bits, 4);
    return value;
}
} // namespace emu

template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32 SITE) {
    return emu::shuffle_as(emu::SHFL_UP, mask, v, static_cast<int>(delta), width, at);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32 SITE) {
    return emu::shuffle_as(emu::SHFL_DOWN, mask, v, static_cast<int>(delta), width, at);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32 SITE) {
    return emu::shuffle_as(emu::SHFL_XOR, mask, v, lane_mask, width, at);
}
template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32 SITE) {
    return emu::shuffle_as(emu::SHFL_IDX, mask, v, lane, width, at);
}
inline unsigned __ballot_sync(unsigned mask, bool p SITE) {
    return emu::vote(emu::VOTE_BALLOT, mask, p, at);
}
inline bool __any_sync(unsigned mask, bool p SITE) {
    return emu::vote(emu::VOTE_ANY, mask, p, at);
}
inline bool __all_sync(unsigned mask, bool p SITE) {
    return emu::vote(emu::VOTE_ALL, mask, p, at);
}
inline unsigned __match_any_sync(unsigned mask, unsigned v SITE) {
    return emu::match(mask, v, at);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned v SITE) {
    return emu::reduce(emu::REDUCE_ADD, mask, v, at);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned v SITE) { /* unsigned order: the sign bit turned over */
    return emu::reduce(emu::REDUCE_MAX, mask, v ^ 0x80000000u, at) ^ 0x80000000u;
}
inline int __reduce_max_sync(unsigned mask, int v SITE) {
    return static_cast<int>(emu::reduce(emu::REDUCE_MAX, mask, static_cast<unsigned>(v), at));
}
inline int __reduce_min_sync(unsigned mask, int v SITE) {
    return static_cast<int>(emu::reduce(emu::REDUCE_MIN, mask, static_cast<unsigned>(v), at));
}

/* ---- atomics */

template <class T, bool S> T atomicAdd(emu::pointer<T, S> p, std::common_type_t<T> value SITE) {
    emu::memory_access(p.b, p.offset, sizeof(T), emu::access::atomic, at);
    T old, sum;
    memcpy(&old, p.b->data + p.offset, sizeof old);
    sum = static_cast<T>(old + value);
    memcpy(p.b->data + p.offset, &sum, sizeof sum);
    return old;
}
template <class T, bool S> T atomicMax(emu::pointer<T, S> p, std::common_type_t<T> value SITE) {
    static_assert(std::is_integral<T>::value, "no float atomicMax");
    emu::memory_access(p.b, p.offset, sizeof(T), emu::access::atomic, at);
    T old, most;
    memcpy(&old, p.b->data + p.offset, sizeof old);
    most = old > value ? old : value;
    memcpy(p.b->data + p.offset, &most, sizeof most);
    return old;
}

/* ---- arithmetic that the host's headers do not have. fmaf, fabsf, expf, sqrtf, rintf and friends are the host's. */

inline float __uint_as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
inline float __int_as_float(int32_t i) {
    return __uint_as_float(static_cast<uint32_t>(i));
}
inline uint32_t __float_as_uint(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __expf(float x) {
    return expf(x);
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
int __float2int_rn(float x); /* ties to even, clamped, NaN gives 0 (ptx.md 6) */
template <class T> T min(T a, T b) {
    return b < a ? b : a;
}
template <class T> T max(T a, T b) {
    return a < b ? b : a;
}

#endif
