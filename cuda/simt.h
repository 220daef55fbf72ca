/* The words that kernels are written in, for nvcc and for the emulator (emu/simt.h): a kernel includes this and ptx.cuh
 * and nothing of CUDA's own. What differs from plain CUDA:
 *
 *   gptr<T>, sptr<T>      pointers to global and shared memory: T * on the device. Memory is touched as p[i] only
 *   as<U>(p)              the same address as a pointer to U
 *   SHARED(T, name, n)    T name[n] in shared memory, 16-byte aligned;  DYNAMIC_SHARED(T, name) what the launch gave
 *   LAUNCH(kernel, grid, threads, shared_bytes, stream, arguments...)
 *   ALLOW_SHARED(kernel, bytes)   before a launch where static and dynamic shared memory may be more than 48 KB
 *   UNROLL                before a loop
 *   device_pointer(p)     what a launcher makes of an address that it was given
 *   global_pointer<T>(n)  what a kernel makes of an address of global memory that it has read
 */
#ifndef LLMQ_CUDA_SIMT_H
#define LLMQ_CUDA_SIMT_H

#ifdef __CUDACC__
#include <cstddef>
#include <cstdint>

#define SITE
#define SITE_ONLY
#define UNROLL _Pragma("unroll")

template <class T> using gptr = T *;
template <class T> using sptr = T *;
template <class U, class T> __host__ __device__ __forceinline__ U *as(T *p) {
    return reinterpret_cast<U *>(p);
}
template <class T> T *device_pointer(T *p) {
    return p;
}
template <class T> __device__ __forceinline__ T *global_pointer(uint64_t address) {
    T *p = reinterpret_cast<T *>(address);
    __builtin_assume(__isGlobal(p)); /* LDG, not LD */
    return p;
}

#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];                                              \
    type *name = reinterpret_cast<type *>(dynamic_shared_bytes)

using stream_t = cudaStream_t;
#define LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                                       \
    kernel<<<grid, threads, shared_bytes, stream>>>(__VA_ARGS__)
/* If it fails, so does the launch. */
#define ALLOW_SHARED(kernel, bytes)                                                                                    \
    ((void)((bytes) > 32768 && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)))

#else
#include "cuda/emu/simt.h"
#endif

#define WARP_ALL 0xffffffffu

#endif
