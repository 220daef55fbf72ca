/* The small ops of a forward pass, f32. */
#include "cuda/acts.cuh"
#include "cuda/cache.cuh"
#include "cuda/dequant.cuh"

namespace {

constexpr int THREADS = 256;

/* ---- embedding: rows of a packed matrix. grid (parts of a row, tokens); a thread takes the columns that one lane
 * holds of one tile (cuda/layout.h). Levels are exact in f16. */

template <class W>
__global__ void __launch_bounds__(THREADS)
    embed(gptr<const uint8_t> table, gptr<const int32_t> tokens, gptr<float> y, int64_t cols, int n_tiles) {
    const int item = blockIdx.x * THREADS + threadIdx.x, n = item / 4, t = item % 4;
    if (n >= n_tiles) return;
    const int token = tokens[blockIdx.y], row = token % TILE_ROWS, high = row / 8;
    const int64_t tile = static_cast<int64_t>(token / TILE_ROWS) * n_tiles + n;
    const typename W::tile w = W::load(table + tile * W::bytes, row % 8 * 4 + t);
    UNROLL
    for (int j = 0; j < W::columns / 32; j++) {
        uint32_t a[2][4];
        W::halves(w, j, a);
        UNROLL
        for (int half = 0; half < 2; half++) {
            float s[2], m[2] = {0, 0};
            W::scales(w, W::group == 16 ? 2 * j + half : j, s);
            if constexpr (W::has_mins) W::mins(w, j, m);
            const float scale = high ? s[1] : s[0], min = high ? m[1] : m[0];
            const uint32_t even = high ? a[half][1] : a[half][0], odd = high ? a[half][3] : a[half][2];
            const float level[4] = {h2_low(even), h2_low(odd), h2_high(even), h2_high(odd)};
            UNROLL
            for (int e = 0; e < 4; e++) {
                const int64_t column = static_cast<int64_t>(n) * W::columns + 32 * j + 16 * half + 4 * t + e;
                if (column < cols) y[blockIdx.y * cols + column] = scale * (level[e] * (1.0f / W::unit_f16)) + min;
            }
        }
    }
}

/* ---- norm: one block a row. In place is allowed: each thread reads back only what it will write. */

__global__ void __launch_bounds__(THREADS)
    rms_norm(gptr<const float> x, gptr<const float> gain, float eps, gptr<float> y, int64_t n, int64_t stride) {
    SHARED(float, part, 32);
    const int64_t row = blockIdx.x * stride;
    const norm_values values = norm_values{x, gain, eps, 0.0f}.row(row, n, part);
    for (int64_t i = threadIdx.x; i < n; i += THREADS) y[row + i] = values.at(i);
}

/* ---- element by element */

__global__ void __launch_bounds__(THREADS) add(gptr<float> y, gptr<const float> x, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i < n) y[i] += x[i];
}

__global__ void __launch_bounds__(THREADS)
    silu_mul(gptr<const float> gate, gptr<const float> up, gptr<float> y, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i < n) y[i] = swiglu(gate[i], up[i]);
}

/* ---- rotation and cache */

struct rope_args {
    gptr<float> q;
    gptr<const float> k, v, cos_sin;
    gptr<const int32_t> pos;
    gptr<const uint64_t> pages;
    int64_t k_at, v_at; /* of this layer in a page */
    int64_t ldq, ldk, ldv;
    int n_head, n_head_kv, head_dim, n_rot;
    bool neox;
};

/* Dims 2i, 2i + 1 of the rotated part (neox: i, i + n_rot / 2), then the others in pairs; head_dim is even. */
__device__ __forceinline__ void pair_of(const rope_args &r, int i, int &first, int &second) {
    const bool rotated = 2 * i < r.n_rot;
    first = rotated && r.neox ? i : 2 * i;
    second = rotated && r.neox ? i + r.n_rot / 2 : 2 * i + 1;
}

/* A row of head_dim floats in shared memory as codes with a scale for each 32, by 128 threads: the CPU's q8_0 bits. NaN
 * and infinite values make their scale NaN. */
__device__ __forceinline__ void store_q8(sptr<const float> x, int head_dim, gptr<uint8_t> codes,
                                         gptr<uint16_t> scales) {
    for (int d = threadIdx.x; d < head_dim; d += 128) { /* whole warps: head_dim is a multiple of 32 */
        const float v = x[d];
        const uint32_t most = __reduce_max_sync(WARP_ALL, __float_as_uint(fabsf(v))); /* NaN above infinity */
        const bool finite = most < 0x7f800000u;
        const uint16_t half =
            finite ? static_cast<uint16_t>(h2_from_floats(__uint_as_float(most) / 127.0f, 0.0f)) : uint16_t{0x7fff};
        const float scale = h_to_float(half);
        const float inverse = scale > 0.0f && scale < INFINITY ? 1.0f / scale : 0.0f;
        const int code = inverse > 0.0f ? max(-127, min(127, __float2int_rn(v * inverse))) : 0;
        codes[d] = static_cast<uint8_t>(code);
        if (d % 32 == 0) scales[d / 32] = half;
    }
}

/* grid (n_head + 2 n_head_kv, tokens): q heads in place, then k heads to the cache, then v heads. */
template <class C> __global__ void __launch_bounds__(128) rope_store(rope_args r) {
    constexpr bool Q8 = C::bytes == 1;
    SHARED(float, row, Q8 ? 256 : 1);
    const int head = blockIdx.x, t = blockIdx.y, at = r.pos[0] + t, dim = r.head_dim;
    const bool is_q = head < r.n_head, is_k = !is_q && head < r.n_head + r.n_head_kv;
    const int head_kv = head - r.n_head - (is_k ? 0 : r.n_head_kv);
    head_rows cache = {};
    if (!is_q) {
        const gptr<uint8_t> page = global_pointer<uint8_t>(r.pages[page_of(at)]);
        cache = rows_of_head<C>(page + (is_k ? r.k_at : r.v_at), head_kv, r.n_head_kv, dim);
    }
    const int cache_row = at % PAGE_KEYS;
    for (int i = threadIdx.x; i < dim / 2; i += 128) {
        int first, second;
        float a, b;
        pair_of(r, i, first, second);
        if (is_q) {
            a = r.q[t * r.ldq + head * dim + first];
            b = r.q[t * r.ldq + head * dim + second];
        } else {
            gptr<const float> in = is_k ? r.k + (t * r.ldk + head_kv * dim) : r.v + (t * r.ldv + head_kv * dim);
            a = in[first];
            b = in[second];
        }
        if ((is_q || is_k) && 2 * i < r.n_rot) {
            gptr<const float> cs = r.cos_sin + (static_cast<int64_t>(at) * r.n_rot + 2 * i);
            const float c = cs[0], s = cs[1], x = a;
            a = x * c - b * s;
            b = b * c + x * s;
        }
        if (is_q) {
            r.q[t * r.ldq + head * dim + first] = a;
            r.q[t * r.ldq + head * dim + second] = b;
        } else if (Q8) {
            row[first] = a;
            row[second] = b;
        } else {
            gptr<uint16_t> out = as<uint16_t>(cache.data) + cache_row * dim;
            const uint32_t halves = h2_from_floats(a, b);
            out[first] = static_cast<uint16_t>(halves);
            out[second] = static_cast<uint16_t>(halves >> 16);
        }
    }
    if (!Q8 || is_q) return; /* the whole block */
    __syncthreads();
    store_q8(row, dim, cache.data + cache_row * dim, cache.scales + cache_row * (dim / 32));
}

unsigned blocks_of(int64_t n) {
    return static_cast<unsigned>((n + THREADS - 1) / THREADS);
}

template <class W>
void launch_embed(stream_t stream, const cuda_matrix *table, const int32_t *tokens, int n_tok, float *y) {
    const int n_tiles = static_cast<int>((table->cols + W::columns - 1) / W::columns);
    const int64_t cols = table->cols;
    gptr<const uint8_t> packed = device_pointer(static_cast<const uint8_t *>(table->packed));
    gptr<const int32_t> ids = device_pointer(tokens);
    gptr<float> out = device_pointer(y);
    LAUNCH(embed<W>, dim3(blocks_of(n_tiles * 4), static_cast<unsigned>(n_tok)), THREADS, 0, stream, packed, ids, out,
           cols, n_tiles);
}

} // namespace

void cuda_embed(gpu_stream *stream, const cuda_matrix *table, const int32_t *tokens, int n_tok, float *y) {
    with_weights(table, [&](auto type) {
        launch_embed<decltype(type)>(reinterpret_cast<stream_t>(stream), table, tokens, n_tok, y);
    });
}

void cuda_rms_norm(gpu_stream *stream, const float *x, const float *gain, float eps, float *y, int64_t n_rows,
                   int64_t n, int64_t stride) {
    gptr<const float> in = device_pointer(x), g = device_pointer(gain);
    gptr<float> out = device_pointer(y);
    LAUNCH(rms_norm, static_cast<unsigned>(n_rows), THREADS, 0, reinterpret_cast<stream_t>(stream), in, g, eps, out, n,
           stride);
}

void cuda_add(gpu_stream *stream, float *y, const float *x, int64_t n) {
    gptr<float> out = device_pointer(y);
    gptr<const float> in = device_pointer(x);
    LAUNCH(add, blocks_of(n), THREADS, 0, reinterpret_cast<stream_t>(stream), out, in, n);
}

void cuda_silu_mul(gpu_stream *stream, const float *gate, const float *up, float *y, int64_t n) {
    gptr<const float> g = device_pointer(gate), u = device_pointer(up);
    gptr<float> out = device_pointer(y);
    LAUNCH(silu_mul, blocks_of(n), THREADS, 0, reinterpret_cast<stream_t>(stream), g, u, out, n);
}

void cuda_rope_store(gpu_stream *stream, const cuda_rope *rope, float *q, int64_t ldq, const float *k, int64_t ldk,
                     const float *v, int64_t ldv, int n_tok, const cuda_kv *kv) {
    rope_args r = {device_pointer(q),
                   device_pointer(k),
                   device_pointer(v),
                   device_pointer(rope->cos_sin),
                   device_pointer(rope->pos),
                   device_pointer(kv->pages),
                   static_cast<int64_t>(kv->k),
                   static_cast<int64_t>(kv->v),
                   ldq,
                   ldk,
                   ldv,
                   rope->n_head,
                   kv->n_head_kv,
                   kv->head_dim,
                   rope->n_rot,
                   rope->neox};
    const unsigned heads = static_cast<unsigned>(rope->n_head + 2 * kv->n_head_kv);
    const dim3 grid(heads, static_cast<unsigned>(n_tok));
    if (kv->q8)
        LAUNCH(rope_store<cache_q8>, grid, 128, 0, reinterpret_cast<stream_t>(stream), r);
    else
        LAUNCH(rope_store<cache_f16>, grid, 128, 0, reinterpret_cast<stream_t>(stream), r);
}

size_t cuda_kv_bytes(const cuda_kv *kv) {
    const size_t n = static_cast<size_t>(PAGE_KEYS * kv->n_head_kv * kv->head_dim);
    return kv->q8 ? n + n / 32 * 2 : n * 2;
}
