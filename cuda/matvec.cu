/* Products with 1 to 8 tokens: the decode step. Memory-bound, so all is about reading each weight once, 16 bytes a lane
 * and many of them in flight, and about few instructions between two loads.
 *
 * Weights are the A operand of mma (16 rows of output), tokens its 8 columns: what a lane loads are its own operands,
 * and weights never see shared memory. A block has 16 rows of output; its warps take turns along the columns, so that
 * together they read one stream, and add up in shared memory at the end, always in the same order. */
#include "cuda/acts.cuh"
#include "cuda/dequant.cuh"

namespace {

constexpr int WARPS = 8;

/* An integer up to 2^22 in magnitude, plus this, is a float's bits: conversion by one subtraction. It is where the
 * accumulators of integer products start. */
constexpr int32_t MAGIC = 0x4b400000;
constexpr float MAGIC_FLOAT = 12582912.0f; /* 1.5 * 2^23 */

/* Operand B and scales (cuda/layout.h). Lane l holds token l / 4 of B and tokens 2t, 2t + 1 of the results. */
struct acts_q8 {
    static constexpr bool integers = true;
    gptr<const uint2> codes;
    gptr<const float2> d, sums;
    int n_tok;
};
struct acts_f16 {
    static constexpr bool integers = false;
    gptr<const uint4> halves;
    gptr<const float2> sums;
    gptr<const float> back; /* [8] */
    int n_tok;
};

/* What a warp needs of the activations for one group of 32 columns. */
struct operand_q8 {
    uint2 b;
    float2 d;
};
struct operand_f16 {
    uint4 b;
};
__device__ __forceinline__ operand_q8 fetch(const acts_q8 &x, int group, int lane) {
    const int token = lane / 4, t = lane % 4;
    operand_q8 o = {{0, 0}, x.d[group * 4 + t]};
    if (token < x.n_tok) o.b = x.codes[(group * x.n_tok + token) * 4 + t];
    return o;
}
__device__ __forceinline__ operand_f16 fetch(const acts_f16 &x, int group, int lane) {
    const int token = lane / 4, t = lane % 4;
    operand_f16 o = {{0, 0, 0, 0}};
    if (token < x.n_tok) o.b = x.halves[(group * x.n_tok + token) * 4 + t];
    return o;
}

/* acc[i] += c[i] * s[row] * d[token]; i: rows g, g, g + 8, g + 8, tokens 2t, 2t + 1, 2t, 2t + 1. */
__device__ __forceinline__ void add_integers(float (&acc)[4], const int32_t (&c)[4], const float (&s)[2], float2 d) {
    acc[0] = fmaf(__int_as_float(c[0]) - MAGIC_FLOAT, s[0] * d.x, acc[0]);
    acc[1] = fmaf(__int_as_float(c[1]) - MAGIC_FLOAT, s[0] * d.y, acc[1]);
    acc[2] = fmaf(__int_as_float(c[2]) - MAGIC_FLOAT, s[1] * d.x, acc[2]);
    acc[3] = fmaf(__int_as_float(c[3]) - MAGIC_FLOAT, s[1] * d.y, acc[3]);
}
/* acc[i] += c[i] * d[token] */
__device__ __forceinline__ void add_integers(float (&acc)[4], const int32_t (&c)[4], float2 d) {
    acc[0] = fmaf(__int_as_float(c[0]) - MAGIC_FLOAT, d.x, acc[0]);
    acc[1] = fmaf(__int_as_float(c[1]) - MAGIC_FLOAT, d.y, acc[1]);
    acc[2] = fmaf(__int_as_float(c[2]) - MAGIC_FLOAT, d.x, acc[2]);
    acc[3] = fmaf(__int_as_float(c[3]) - MAGIC_FLOAT, d.y, acc[3]);
}

/* Group j of a tile times 8-bit activations, scaled or not (scaled_later). */
template <class W>
__device__ __forceinline__ void multiply(const typename W::tile &w, int j, const operand_q8 &x, float (&acc)[4]) {
    uint32_t a[4];
    float s[2];
    int32_t c[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
    W::codes(w, j, a);
    if constexpr (scaled_later<W>) {
        mma_s8(c, a, {x.b.x, x.b.y});
        add_integers(acc, c, x.d);
    } else if constexpr (W::group == 32) {
        mma_s8(c, a, {x.b.x, x.b.y});
        W::scales(w, j, s);
        add_integers(acc, c, s, x.d);
    } else {
        int32_t e[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
        mma_s8_k16(c, {a[0], a[1]}, x.b.x);
        mma_s8_k16(e, {a[2], a[3]}, x.b.y);
        W::scales(w, 2 * j, s);
        add_integers(acc, c, s, x.d);
        W::scales(w, 2 * j + 1, s);
        add_integers(acc, e, s, x.d);
    }
}

/* ... times f16 activations. */
template <class W>
__device__ __forceinline__ void multiply(const typename W::tile &w, int j, const operand_f16 &x, float (&acc)[4]) {
    uint32_t a[2][4];
    W::halves(w, j, a);
    multiply<W>(w, j, a, {x.b.x, x.b.y, x.b.z, x.b.w}, acc);
}

/* acc[r] += tiles of rows side by side times activations, whose first group of 32 is `first`. */
template <class W, class ACTS, int TILES>
__device__ __forceinline__ void multiply_tiles(const typename W::tile (&w)[TILES], const ACTS &x, int first, int lane,
                                               float (&acc)[TILES][4]) {
    constexpr int GROUPS = W::columns / 32, SHARE = scaled_later<W> ? GROUPS : 1; /* groups of one scale */
    UNROLL
    for (int j = 0; j < GROUPS; j += SHARE) {
        float products[TILES][4] = {};
        float2 sums;
        UNROLL
        for (int i = j; i < j + SHARE; i++) {
            const auto operand = fetch(x, first + i, lane);
            UNROLL
            for (int r = 0; r < TILES; r++) multiply<W>(w[r], i, operand, scaled_later<W> ? products[r] : acc[r]);
            if constexpr (W::has_mins) {
                const float2 more = x.sums[(first + i) * 4 + lane % 4];
                sums = i == j ? more : float2{sums.x + more.x, sums.y + more.y};
            }
        }
        UNROLL
        for (int r = 0; r < TILES; r++) {
            float by[2];
            if constexpr (scaled_later<W>) {
                W::scales(w[r], j, by);
                add_scaled(acc[r], products[r], by);
            }
            if constexpr (W::has_mins) {
                W::mins(w[r], j, by);
                add_mins(acc[r], by, sums);
            }
        }
    }
}

/* How a weight type is worked on: tiles of rows that a warp has side by side, so that activations are fetched once for
 * all of them; tiles along the columns that are in flight before the first is multiplied; blocks that a multiprocessor
 * has to have room for, which bounds the registers. Chosen by instruction counts (scripts/check_cuda_code.py), not by
 * running it: UNTUNED. */
template <class W> struct plan {
    static constexpr int row_tiles = W::columns < 256 ? 2 : 1, ahead = W::columns == 64 && W::bytes < 2048 ? 2 : 1;
    static constexpr int blocks = 3;
};

/* weights (row tiles, n_tiles, W::bytes), y (n_tok, ldy), bias [rows] or NULL. A block has plan::row_tiles * 16 rows.
 */
template <class W, class ACTS>
__global__ void __launch_bounds__(WARPS * 32, plan<W>::blocks)
    matvec(gptr<const uint8_t> weights, ACTS x, gptr<const float> bias, gptr<float> y, int64_t ldy, int rows,
           int n_tiles) {
    constexpr int TILES = plan<W>::row_tiles, AHEAD = plan<W>::ahead;
    static_assert(TILES * 4 <= WARPS && TILES <= 2 && (!W::has_mins || W::unit_f16 == 1), "as the code below has it");
    SHARED(float, part, WARPS *TILES * 128);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = blockIdx.x * TILES * TILE_ROWS;
    const int64_t row_bytes = static_cast<int64_t>(n_tiles) * W::bytes; /* of a row of tiles */
    gptr<const uint8_t> mine = weights + blockIdx.x * TILES * row_bytes;
    /* The last block may have fewer: it reads its first tiles again. */
    const int64_t step = first_row + TILE_ROWS < rows ? row_bytes : 0;
    float acc[TILES][4] = {};
    for (int first = warp; first < n_tiles; first += WARPS * AHEAD) {
        typename W::tile tiles[AHEAD][TILES];
        UNROLL
        for (int u = 0; u < AHEAD; u++) {
            const int n = first + u * WARPS;
            UNROLL
            for (int r = 0; r < TILES; r++)
                if (n < n_tiles) tiles[u][r] = W::load(mine + (n * static_cast<int64_t>(W::bytes) + r * step), lane);
        }
        UNROLL
        for (int u = 0; u < AHEAD; u++) {
            const int n = first + u * WARPS;
            if (n >= n_tiles) break;
            multiply_tiles<W>(tiles[u], x, n * (W::columns / 32), lane, acc);
        }
    }
    UNROLL
    for (int i = 0; i < 4 * TILES; i++) part[(warp * TILES * 4 + i) * 32 + lane] = acc[i / 4][i % 4];
    __syncthreads();

    const int i = threadIdx.x / 32, row = first_row + i / 4 * TILE_ROWS + lane / 4 + 8 * (i >> 1 & 1);
    const int token = lane % 4 * 2 + (i & 1);
    if (i >= 4 * TILES || row >= rows || token >= x.n_tok) return;
    float sum = 0;
    for (int w = 0; w < WARPS; w++) sum += part[(w * TILES * 4 + i) * 32 + lane];
    if constexpr (ACTS::integers)
        sum *= 1.0f / W::unit;
    else
        sum *= 1.0f / W::unit_f16 * x.back[token];
    y[token * ldy + row] = bias ? sum + bias[row] : sum;
}

/* ---- activations */

constexpr int ACT_PAD = 256; /* columns: no weight type has wider tiles */

__device__ __forceinline__ int byte_place(int column) { /* in the 32 bytes of a group (cuda/layout.h) */
    return column % 16 / 4 * 8 + column / 16 * 4 + column % 4;
}

/* grid: one block a group of 32 columns, one warp a token, all 8 of them: scales of tokens that are not there are zero.
 */
__global__ void __launch_bounds__(ACT_TOKENS * 32)
    fill_q8(gptr<const float> x, int64_t cols, int n_tok, gptr<uint8_t> codes, gptr<float> scales, gptr<float> sums) {
    const int lane = threadIdx.x % 32, token = threadIdx.x / 32, group = blockIdx.x;
    const int64_t column = static_cast<int64_t>(group) * 32 + lane;
    float v = 0;
    if (token < n_tok && column < cols) v = x[token * cols + column];
    const uint32_t most = __reduce_max_sync(WARP_ALL, __float_as_uint(fabsf(v))); /* NaN above infinity above numbers */
    const float amax = __uint_as_float(most);
    const bool finite = most < 0x7f800000u;
    const float inverse = finite && amax > 1e-30f ? 127.0f / amax : 0.0f;
    const int q = finite ? __float2int_rn(v * inverse) : 0;
    const int sum = static_cast<int>(__reduce_add_sync(WARP_ALL, static_cast<unsigned>(q)));
    if (token < n_tok) codes[(group * n_tok + token) * 32 + byte_place(lane)] = static_cast<uint8_t>(q);
    if (lane == 0) {
        const float d = !finite || amax > 1e-30f ? amax / 127.0f : 0.0f;
        scales[group * ACT_TOKENS + token] = d;
        sums[group * ACT_TOKENS + token] = d * static_cast<float>(sum);
    }
}

/* grid: 8 tokens, shares (cuda/acts.cuh); source: of (n_tok, cols). Tokens that are not there have sums of zero. Few
 * blocks: a multiprocessor need not have room for two, for which norms would spill. */
template <class VALUES>
__global__ void __launch_bounds__(ROW_THREADS, 1) fill_f16(VALUES source, int64_t cols, int n_tok, gptr<uint16_t> out,
                                                           gptr<float> sums, gptr<float> back, int groups) {
    SHARED(float, sum_part, 32);
    SHARED(uint32_t, part, 32);
    const int lane = threadIdx.x % 32, token = blockIdx.x, warps = static_cast<int>(blockDim.x) / 32;
    const int first = static_cast<int>(blockIdx.y) * warps + static_cast<int>(threadIdx.x) / 32;
    const int64_t n = token < n_tok ? cols : 0;
    const VALUES values = source.row(token * cols, n, sum_part);
    const row_factors factors = factors_of_row(values, n, part);
    /* bytes e of a word become pairs (0, 2), (1, 3) */
    const int e = lane % 4, place = lane % 16 / 4 * 8 + lane / 16 * 4 + (e >> 1 | (e & 1) << 1);
    for (int group = first; group < groups; group += static_cast<int>(gridDim.y) * warps) {
        const int64_t column = static_cast<int64_t>(group) * 32 + lane;
        const half_of_group rounded = round_group(column < n ? values.at(column) * factors.by : 0.0f);
        if (token < n_tok) out[(group * n_tok + token) * 32 + place] = rounded.half;
        if (lane == 0) sums[group * ACT_TOKENS + token] = rounded.sum;
    }
    if (first == 0 && lane == 0) back[token] = factors.back;
}

int64_t act_groups(int64_t cols) {
    return (cols + ACT_PAD - 1) / ACT_PAD * (ACT_PAD / 32);
}

/* Where the parts of an activation buffer are, in bytes; scales: of groups, or what brings tokens back. */
struct act_places {
    int64_t groups, scales, sums, end;
};
act_places places_q8(int n_tok, int64_t cols) {
    const int64_t groups = act_groups(cols), scales = groups * n_tok * 32, each = groups * ACT_TOKENS * 4;
    return {groups, scales, scales + each, scales + 2 * each};
}
act_places places_f16(int n_tok, int64_t cols) {
    const int64_t groups = act_groups(cols), sums = groups * n_tok * 64, back = sums + groups * ACT_TOKENS * 4;
    return {groups, back, sums, back + ACT_TOKENS * 4};
}

acts_q8 acts_q8_of(const void *acts, int n_tok, int64_t cols) {
    gptr<const uint8_t> base = device_pointer(static_cast<const uint8_t *>(acts));
    const act_places at = places_q8(n_tok, cols);
    return {as<const uint2>(base), as<const float2>(base + at.scales), as<const float2>(base + at.sums), n_tok};
}

acts_f16 acts_f16_of(const void *acts, int n_tok, int64_t cols) {
    gptr<const uint8_t> base = device_pointer(static_cast<const uint8_t *>(acts));
    const act_places at = places_f16(n_tok, cols);
    return {as<const uint4>(base), as<const float2>(base + at.sums), as<const float>(base + at.scales), n_tok};
}

template <class VALUES>
void launch_fill(gpu_stream *stream, const VALUES &source, int n_tok, int64_t cols, void *acts) {
    const act_places at = places_f16(n_tok, cols);
    gptr<uint8_t> base = device_pointer(static_cast<uint8_t *>(acts));
    gptr<uint16_t> halves = as<uint16_t>(base);
    gptr<float> sums = as<float>(base + at.sums), back = as<float>(base + at.scales);
    const dim3 grid(ACT_TOKENS, row_shares(at.groups, ACT_TOKENS));
    LAUNCH(fill_f16<VALUES>, grid, row_threads(at.groups), 0, reinterpret_cast<stream_t>(stream), source, cols, n_tok,
           halves, sums, back, static_cast<int>(at.groups));
}

template <class W, class ACTS>
void launch_matvec(stream_t stream, const cuda_matrix *w, const ACTS &x, float *y, int64_t ldy) {
    constexpr int rows_a_block = plan<W>::row_tiles * TILE_ROWS;
    const unsigned blocks = static_cast<unsigned>((w->rows + rows_a_block - 1) / rows_a_block);
    const int n_tiles = static_cast<int>((w->cols + W::columns - 1) / W::columns), rows = static_cast<int>(w->rows);
    gptr<const uint8_t> packed = device_pointer(static_cast<const uint8_t *>(w->packed));
    gptr<const float> bias = device_pointer(w->bias);
    gptr<float> out = device_pointer(y);
    LAUNCH((matvec<W, ACTS>), blocks, WARPS * 32, 0, stream, packed, x, bias, out, ldy, rows, n_tiles);
}

template <class ACTS> void matvec_of(gpu_stream *stream, const cuda_matrix *w, const ACTS &x, float *y, int64_t ldy) {
    with_weights(w, [&](auto type) {
        using weights = decltype(type);
        if constexpr (!ACTS::integers || weights::has_codes)
            launch_matvec<weights>(reinterpret_cast<stream_t>(stream), w, x, y, ldy);
    });
}

} // namespace

size_t cuda_acts_q8_bytes(int n_tok, int64_t cols) {
    return static_cast<size_t>(places_q8(n_tok, cols).end);
}
size_t cuda_acts_f16_bytes(int n_tok, int64_t cols) {
    return static_cast<size_t>(places_f16(n_tok, cols).end);
}

void cuda_acts_q8(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts) {
    const act_places at = places_q8(n_tok, cols);
    gptr<uint8_t> codes = device_pointer(static_cast<uint8_t *>(acts));
    gptr<float> scales = as<float>(codes + at.scales), sums = as<float>(codes + at.sums);
    gptr<const float> in = device_pointer(x);
    LAUNCH(fill_q8, static_cast<unsigned>(at.groups), ACT_TOKENS * 32, 0, reinterpret_cast<stream_t>(stream), in, cols,
           n_tok, codes, scales, sums);
}

void cuda_acts_f16(gpu_stream *stream, const cuda_source *source, int n_tok, int64_t cols, void *acts) {
    gptr<const float> x = device_pointer(source->x);
    if (source->gain)
        launch_fill(stream, norm_values{x, device_pointer(source->gain), source->eps, 0.0f}, n_tok, cols, acts);
    else if (source->up)
        launch_fill(stream, swiglu_values{x, device_pointer(source->up)}, n_tok, cols, acts);
    else
        launch_fill(stream, plain_values{x}, n_tok, cols, acts);
}

void cuda_matvec_q8(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy) {
    matvec_of(stream, w, acts_q8_of(acts, n_tok, w->cols), y, ldy);
}

void cuda_matvec_f16(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy) {
    matvec_of(stream, w, acts_f16_of(acts, n_tok, w->cols), y, ldy);
}
