/* What kernels are measured against: how fast memory can be read, and a product as one would first write it. */
#include "baselines.h"

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

/* Rows of Q4_0 as a file has them, times one token. A warp has a row, a lane a block of 18 bytes at a time, taken apart
 * one weight after the other: bytes are loaded, converted and multiplied each by itself. */
__global__ void __launch_bounds__(256)
    naive_q4_0(gptr<const uint8_t> w, gptr<const float> x, int64_t n_rows, int n_blocks, gptr<float> y) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    float sum = 0;
    if (row >= n_rows) return;
    for (int b = lane; b < n_blocks; b += 32) {
        gptr<const uint8_t> block = w + (row * n_blocks + b) * 18;
        gptr<const float> in = x + static_cast<int64_t>(b) * 32;
        float part = 0;
        UNROLL
        for (int i = 0; i < 16; i++) {
            const int code = block[2 + i];
            part += static_cast<float>((code & 15) - 8) * in[i];
            part += static_cast<float>((code >> 4) - 8) * in[16 + i];
        }
        sum += h_to_float(static_cast<uint16_t>(block[0] | block[1] << 8)) * part;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(WARP_ALL, sum, step);
    if (lane == 0) y[row] = sum;
}

} // namespace

void naive_product(gpu_stream *stream, const void *w, int64_t rows, int64_t cols, const float *x, float *y) {
    gptr<const uint8_t> from = device_pointer(static_cast<const uint8_t *>(w));
    gptr<const float> in = device_pointer(x);
    gptr<float> to = device_pointer(y);
    const unsigned n = static_cast<unsigned>((rows + 7) / 8);
    LAUNCH(naive_q4_0, n, 256, 0, reinterpret_cast<stream_t>(stream), from, in, rows, static_cast<int>(cols / 32), to);
}

void probe_read(gpu_stream *stream, const void *x, size_t bytes, int n_blocks, uint32_t *out) {
    gptr<const uint4> from = as<const uint4>(device_pointer(static_cast<const uint8_t *>(x)));
    gptr<uint32_t> to = device_pointer(out);
    const int64_t n = static_cast<int64_t>(bytes / 16);
    LAUNCH(read_all, static_cast<unsigned>(n_blocks), 256, 0, reinterpret_cast<stream_t>(stream), from, n, to);
}
