/* The column sweep of GPTQ. Rows do not know of each other, so a thread has one; the columns come in steps, whose
 * errors so far are one matrix product, and inside a step in panels: a panel first takes the errors of the step's
 * columns before it with its sums in registers, then its own columns follow one by one. The sums are those of
 * cpu/round.h, in the same order. */
#include "cuda/ptx.cuh"
#include "cuda/quant.h"

namespace {

constexpr int STEP = 64, ROWS = 128, PANEL = 8; /* columns of a launch, rows of a block, columns of a panel */

/* Where the factor that column j's error has in column k lies in shared memory: four columns k in a chunk of 16 bytes,
 * and chunks change places by j, so that neither writing nor reading meets a bank twice. */
__device__ __forceinline__ int factor_chunk(int j, int k) {
    return j * (STEP / 4) + (k / 4 ^ (j & 7));
}

struct grid_of_rows {
    gptr<const float> grids, levels;
    gptr<const int32_t> group;
    int n_levels;
    bool uniform;
};

/* The level nearest to t, and its code. A NaN gets the first level. */
__device__ __forceinline__ float nearest(const grid_of_rows &g, float t, int *code) {
    const float lo = g.levels[0];
    if (g.uniform) {
        const float hi = g.levels[g.n_levels - 1];
        t = t > lo ? t : lo;
        t = rintf(t < hi ? t : hi);
        *code = __float2int_rn(t - lo);
        return t;
    }
    float level = lo;
    *code = 0;
    for (int i = 1; i < g.n_levels; i++) {
        const float next = g.levels[i];
        if (!(t > 0.5f * (level + next))) break;
        level = next;
        *code = i;
    }
    return level;
}

/* Columns k0.. k0 + n of a step; at, e, w, codes and g.group begin there. grid: rows / ROWS */
__global__ void __launch_bounds__(ROWS)
    round_columns(gptr<const float> at, int64_t ldat, gptr<float> e, gptr<const float> w, grid_of_rows g, int n,
                  int64_t rows, gptr<uint8_t> codes) {
    SHARED(float, factors, STEP *STEP);
    SHARED(float, errors, STEP *ROWS);
    const int thread = threadIdx.x;
    for (int i = thread; i < STEP * STEP; i += ROWS) { /* 8 columns j of 4 rows k a warp: whole sectors, all banks */
        const int k = i / 32 % (STEP / 4) * 4 + i % 4, j = i / 32 / (STEP / 4) * 8 + i / 4 % 8;
        factors[factor_chunk(j, k) * 4 + k % 4] = k < n && j < k ? at[k * ldat + j] : 0.0f;
    }
    __syncthreads();
    const int64_t row = static_cast<int64_t>(blockIdx.x) * ROWS + thread;
    if (row >= rows) return;
    for (int k0 = 0; k0 < n; k0 += PANEL) {
        float s[PANEL];
        UNROLL
        for (int i = 0; i < PANEL; i++) s[i] = k0 + i < n ? e[(k0 + i) * rows + row] : 0.0f;
        for (int j = 0; j < k0; j++) {
            const float x = errors[j * ROWS + thread];
            const float4 a = as<float4>(factors)[factor_chunk(j, k0)], b = as<float4>(factors)[factor_chunk(j, k0 + 4)];
            s[0] -= x * a.x, s[1] -= x * a.y, s[2] -= x * a.z, s[3] -= x * a.w;
            s[4] -= x * b.x, s[5] -= x * b.y, s[6] -= x * b.z, s[7] -= x * b.w;
        }
        float own[PANEL];
        UNROLL
        for (int i = 0; i < PANEL; i++) {
            const int k = k0 + i;
            own[i] = 0;
            if (k >= n) continue;
            UNROLL
            for (int j = 0; j < i; j++) s[i] -= own[j] * factors[factor_chunk(k0 + j, k) * 4 + k % 4];
            const int64_t grid = g.group[k] * 3 * rows + row;
            const float scale = g.grids[grid], inverse = g.grids[grid + rows], offset = g.grids[grid + 2 * rows];
            int code;
            const float level = nearest(g, (s[i] - offset) * inverse, &code);
            own[i] = scale * level + offset - w[k * rows + row];
            errors[k * ROWS + thread] = own[i];
            e[k * rows + row] = own[i];
            codes[k * rows + row] = static_cast<uint8_t>(code);
        }
    }
}

/* ---- orders of columns: tiles of 32 x 32 through shared memory; grid: columns / 32, rows / 32; 32 x 8 threads */

constexpr int TILE = 32;

__global__ void __launch_bounds__(256)
    gather(gptr<const float> from, int64_t rows, int64_t cols, gptr<const int32_t> perm, gptr<float> to) {
    SHARED(float, tile, TILE *(TILE + 1));
    const int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * TILE, row = static_cast<int64_t>(blockIdx.y) * TILE;
    for (int i = y; i < TILE; i += 8)
        if (row + i < rows && column + x < cols) tile[i * (TILE + 1) + x] = from[(row + i) * cols + perm[column + x]];
    __syncthreads();
    for (int i = y; i < TILE; i += 8)
        if (row + x < rows && column + i < cols) to[(column + i) * rows + row + x] = tile[x * (TILE + 1) + i];
}

__global__ void __launch_bounds__(256)
    scatter(gptr<const uint8_t> from, int64_t rows, int64_t cols, gptr<const int32_t> perm, gptr<uint8_t> to) {
    SHARED(uint8_t, tile, TILE * (TILE + 4));
    const int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * TILE, row = static_cast<int64_t>(blockIdx.y) * TILE;
    for (int i = y; i < TILE; i += 8)
        if (row + x < rows && column + i < cols) tile[i * (TILE + 4) + x] = from[(column + i) * rows + row + x];
    __syncthreads();
    for (int i = y; i < TILE; i += 8)
        if (row + i < rows && column + x < cols) to[(row + i) * cols + perm[column + x]] = tile[x * (TILE + 4) + i];
}

/* n floats; of an odd number the last one is alone. */
__global__ void __launch_bounds__(256)
    to_bf16(gptr<const float2> x, int64_t n, gptr<uint32_t> y, gptr<const float> singles, gptr<uint16_t> y_singles) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (i < n / 2) {
        const float2 v = x[i];
        y[i] = b2_from_floats(v.x, v.y);
    } else if (2 * i + 1 == n) {
        y_singles[2 * i] = static_cast<uint16_t>(b2_from_floats(singles[2 * i], 0.0f));
    }
}

unsigned blocks_of(int64_t n, int64_t each) {
    return static_cast<unsigned>((n + each - 1) / each);
}

/* What gather and scatter are launched with. */
struct places_of_tiles {
    dim3 grid;
    stream_t stream;
    gptr<const int32_t> perm;
};
places_of_tiles places(gpu_stream *stream, int64_t rows, int64_t cols, const int32_t *perm) {
    return {dim3(blocks_of(cols, TILE), blocks_of(rows, TILE)), reinterpret_cast<stream_t>(stream),
            device_pointer(perm)};
}

void launch_round(stream_t stream, const cuda_sweep *s, int64_t k0, int n) {
    gptr<const float> at = device_pointer(s->at) + (k0 * s->cols + k0), w = device_pointer(s->w) + k0 * s->rows;
    gptr<float> e = device_pointer(s->e) + k0 * s->rows;
    gptr<uint8_t> codes = device_pointer(s->codes) + k0 * s->rows;
    const grid_of_rows g = {device_pointer(s->grids), device_pointer(s->levels), device_pointer(s->group) + k0,
                            s->n_levels, s->uniform};
    const int64_t rows = s->rows, ld = s->cols;
    LAUNCH(round_columns, blocks_of(rows, ROWS), ROWS, 0, stream, at, ld, e, w, g, n, rows, codes);
}

} // namespace

llmq_status cuda_quant_sweep(gpu_stream *stream, const cuda_sweep *s, cuda_blas *blas, llmq_err *err) {
    for (int64_t k0 = 0; k0 < s->cols; k0 += STEP) {
        const int64_t n = min(s->cols - k0, int64_t{STEP});
        if (k0 > 0)
            LLMQ_TRY(cuda_blas_gemm_sub(blas, stream, n, s->rows, k0, s->at + k0 * s->cols, s->cols, s->e, s->rows,
                                        s->e + k0 * s->rows, s->rows, err));
        launch_round(reinterpret_cast<stream_t>(stream), s, k0, static_cast<int>(n));
    }
    return LLMQ_OK;
}

void cuda_quant_gather(gpu_stream *stream, const float *from, int64_t rows, int64_t cols, const int32_t *perm,
                       float *to) {
    const places_of_tiles at = places(stream, rows, cols, perm);
    gptr<const float> in = device_pointer(from);
    gptr<float> out = device_pointer(to);
    LAUNCH(gather, at.grid, 256, 0, at.stream, in, rows, cols, at.perm, out);
}

void cuda_quant_scatter(gpu_stream *stream, const uint8_t *from, int64_t rows, int64_t cols, const int32_t *perm,
                        uint8_t *to) {
    const places_of_tiles at = places(stream, rows, cols, perm);
    gptr<const uint8_t> in = device_pointer(from);
    gptr<uint8_t> out = device_pointer(to);
    LAUNCH(scatter, at.grid, 256, 0, at.stream, in, rows, cols, at.perm, out);
}

void cuda_quant_to_bf16(gpu_stream *stream, const float *x, int64_t n, uint16_t *y) {
    gptr<const float> singles = device_pointer(x);
    gptr<uint16_t> y_singles = device_pointer(y);
    gptr<const float2> in = as<const float2>(singles);
    gptr<uint32_t> out = as<uint32_t>(y_singles);
    LAUNCH(to_bf16, blocks_of(n, 512), 256, 0, reinterpret_cast<stream_t>(stream), in, n, out, singles, y_singles);
}
