/* How fast memory can be read: what the benchmark measures kernels against. */
#include "read_probe.h"

#include "cuda/ptx.cuh"

namespace {

/* Every thread reads 4 x 16 bytes at a time, a grid apart. What it read goes to out, so that it has to be read. */
__global__ void __launch_bounds__(256) read_all(gptr<const uint4> x, int64_t n, gptr<uint32_t> out) {
    const int64_t me = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    const int64_t all = static_cast<int64_t>(gridDim.x) * 256;
    uint32_t sum = 0;
    for (int64_t i = me; i < n; i += 4 * all) {
        uint4 v[4];
        UNROLL
        for (int j = 0; j < 4; j++) v[j] = i + j * all < n ? x[i + j * all] : uint4{0, 0, 0, 0};
        UNROLL
        for (int j = 0; j < 4; j++) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    out[me] = sum;
}

} // namespace

void probe_read(gpu_stream *stream, const void *x, size_t bytes, int n_blocks, uint32_t *out) {
    gptr<const uint4> from = as<const uint4>(device_pointer(static_cast<const uint8_t *>(x)));
    gptr<uint32_t> to = device_pointer(out);
    const int64_t n = static_cast<int64_t>(bytes / 16);
    LAUNCH(read_all, static_cast<unsigned>(n_blocks), 256, 0, reinterpret_cast<stream_t>(stream), from, n, to);
}
