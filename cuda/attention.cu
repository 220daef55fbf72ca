/* Attention of few queries over a long cache (decode), of f16 or of 8-bit codes. Keys are split in parts of 128: a
 * block has one part, one head of the cache with all the query heads that share it, and one token; so each key and
 * value is read once for its group of heads. A second kernel puts the parts together in their order. All sums are f32.
 */
#include "cuda/cache.cuh"

namespace {

constexpr int KEYS = CUDA_ATTENTION_KEYS; /* of a part; a thread each */
static_assert(KEYS == PAGE_KEYS, "a part is a page");
constexpr int HEADS_MOST = 4; /* query heads that are worked on at a time */

struct attention_args {
    gptr<const float> q;
    gptr<const uint64_t> pages;
    int64_t k_at, v_at; /* of this layer in a page */
    gptr<const int32_t> pos;
    gptr<float> out, parts;
    int64_t ldq, window;
    int n_head, n_head_kv, head_dim, n_parts;
    float scale;
};

/* A part's result for one head and token: maximum, sum, then head_dim sums. */
__device__ __forceinline__ int64_t part_at(const attention_args &a, int token, int head, int part) {
    return (static_cast<int64_t>(token * a.n_head + head) * a.n_parts + part) * (a.head_dim + 2);
}

/* Bytes from one row of keys to the next in shared memory: 16 more than its data. Eight lanes that read 16 bytes at the
 * same place of their rows then meet all banks once. */
__device__ __host__ __forceinline__ int key_stride(int row_bytes) {
    return row_bytes + 16;
}

/* n_keys rows of keys to shared memory. */
__device__ __forceinline__ void fetch_keys(gptr<const uint8_t> rows, int row_bytes, int n_keys, sptr<uint8_t> keys) {
    const int chunks = row_bytes / 16;
    for (int i = threadIdx.x; i < n_keys * chunks; i += KEYS) {
        const int key = i / chunks, c = i % chunks;
        cp_async_16(keys + (key * key_stride(row_bytes) + c * 16), rows + (key * row_bytes + c * 16));
    }
    cp_async_commit();
}

/* Four codes of one byte as floats, without conversions: a byte under 2^23 is a float's last digits. */
__device__ __forceinline__ void floats_of(uint32_t codes, float (&x)[4]) {
    UNROLL
    for (int i = 0; i < 4; i++)
        x[i] = __uint_as_float(prmt(codes ^ 0x80808080u, 0x4b000000u, 0x7440u + static_cast<uint32_t>(i))) - 8388736.0f;
}

/* sums[h] += q[h] . key for 8 dims, for HEADS_MOST heads; q in shared memory, all lanes read the same of it. */
__device__ __forceinline__ void add_dots(const float (&key)[8], sptr<const float> q, int head_dim, int n_heads,
                                         float (&sums)[HEADS_MOST]) {
    UNROLL
    for (int h = 0; h < HEADS_MOST; h++) {
        if (h >= n_heads) break;
        const float4 x = as<const float4>(q + h * head_dim)[0], y = as<const float4>(q + (h * head_dim + 4))[0];
        sums[h] = fmaf(x.x, key[0], fmaf(x.y, key[1], fmaf(x.z, key[2], fmaf(x.w, key[3], sums[h]))));
        sums[h] = fmaf(y.x, key[4], fmaf(y.y, key[5], fmaf(y.z, key[6], fmaf(y.w, key[7], sums[h]))));
    }
}

/* scores[h] = q[h] . key, which has these scales */
__device__ __forceinline__ void dot_heads(cache_f16, gptr<const uint16_t>, sptr<const uint8_t> key, sptr<const float> q,
                                          int head_dim, int n_heads, float (&scores)[HEADS_MOST]) {
    for (int d = 0; d < head_dim; d += 8) {
        const uint4 k = as<const uint4>(key + d * 2)[0];
        const float kf[8] = {h2_low(k.x), h2_high(k.x), h2_low(k.y), h2_high(k.y),
                             h2_low(k.z), h2_high(k.z), h2_low(k.w), h2_high(k.w)};
        add_dots(kf, q + d, head_dim, n_heads, scores);
    }
}
__device__ __forceinline__ void dot_heads(cache_q8, gptr<const uint16_t> scales, sptr<const uint8_t> key,
                                          sptr<const float> q, int head_dim, int n_heads, float (&scores)[HEADS_MOST]) {
    for (int g = 0; g < head_dim / 32; g++) {
        const float scale = h_to_float(scales[g]);
        float sums[HEADS_MOST] = {};
        for (int d = g * 32; d < g * 32 + 32; d += 16) {
            const uint4 k = as<const uint4>(key + d)[0];
            float x[4], y[4], z[4], w[4];
            floats_of(k.x, x), floats_of(k.y, y), floats_of(k.z, z), floats_of(k.w, w);
            add_dots({x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]}, q + d, head_dim, n_heads, sums);
            add_dots({z[0], z[1], z[2], z[3], w[0], w[1], w[2], w[3]}, q + (d + 8), head_dim, n_heads, sums);
        }
        UNROLL
        for (int h = 0; h < HEADS_MOST; h++) scores[h] = fmaf(scale, sums[h], scores[h]);
    }
}

/* Dims 2 pair and 2 pair + 1 of row `row`. */
__device__ __forceinline__ float2 value_pair(cache_f16, const head_rows &v, int row, int head_dim, int pair) {
    const uint32_t two = as<const uint32_t>(v.data + row * head_dim * 2)[pair];
    return {h2_low(two), h2_high(two)};
}
__device__ __forceinline__ float2 value_pair(cache_q8, const head_rows &v, int row, int head_dim, int pair) {
    const float scale = h_to_float(v.scales[row * (head_dim / 32) + pair / 16]);
    float x[4];
    floats_of(as<const uint16_t>(v.data + row * head_dim)[pair], x);
    return {scale * x[0], scale * x[1]};
}

__device__ __forceinline__ float block_max(float x, sptr<float> part) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(WARP_ALL, x, step));
    __syncthreads(); /* the last result has been read */
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
}
__device__ __forceinline__ float block_sum(float x, sptr<float> part) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(WARP_ALL, x, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return (part[0] + part[1]) + (part[2] + part[3]);
}

/* out[h][d] = sum over keys of p[h][key] * v[key][d], v from row `first` on. Threads take pairs of dims and every
 * slices-th key. */
template <class C>
__device__ __forceinline__ void add_values(const head_rows &values, int first, int head_dim, sptr<const float> p,
                                           int n_keys, int n_heads, sptr<float> sums) {
    const int pairs = head_dim / 2, slices = KEYS / pairs;
    const int pair = threadIdx.x % pairs, slice = threadIdx.x / pairs;
    float acc[HEADS_MOST][2] = {};
    if (slice < slices) {
        for (int key = slice; key < n_keys; key += slices) {
            const float2 v = value_pair(C(), values, first + key, head_dim, pair);
            UNROLL
            for (int h = 0; h < HEADS_MOST; h++) {
                if (h >= n_heads) break;
                const float weight = p[h * KEYS + key];
                acc[h][0] = fmaf(weight, v.x, acc[h][0]);
                acc[h][1] = fmaf(weight, v.y, acc[h][1]);
            }
        }
        for (int h = 0; h < n_heads; h++) {
            sums[(slice * HEADS_MOST + h) * head_dim + 2 * pair] = acc[h][0];
            sums[(slice * HEADS_MOST + h) * head_dim + 2 * pair + 1] = acc[h][1];
        }
    }
    __syncthreads();
}

/* grid (parts, n_head_kv, tokens), 128 threads. Dynamic shared memory: keys, later the slices of values (cuda_attention
 * has the size). */
template <class C> __global__ void __launch_bounds__(KEYS) attend_part(attention_args a) {
    DYNAMIC_SHARED(uint8_t, keys);
    SHARED(float, q, HEADS_MOST * 256);
    SHARED(float, p, HEADS_MOST *KEYS);
    SHARED(float, warps, KEYS / 32);
    const int part = blockIdx.x, head_kv = blockIdx.y, token = blockIdx.z, i = threadIdx.x;
    const gptr<uint8_t> page = global_pointer<uint8_t>(a.pages[part]); /* does not wait for pos */
    const int64_t last = a.pos[0] + token;
    const int64_t oldest = a.window > 0 && last + 1 > a.window ? last + 1 - a.window : 0;
    const int64_t begin = max(oldest, static_cast<int64_t>(part) * KEYS);
    const int64_t end = min(last + 1, static_cast<int64_t>(part + 1) * KEYS);
    const int n_keys = end > begin ? static_cast<int>(end - begin) : 0;
    const int first = static_cast<int>(begin) % KEYS; /* row of the page */
    const int group = a.n_head / a.n_head_kv, row_bytes = a.head_dim * C::bytes, groups = a.head_dim / 32;
    const head_rows k = rows_of_head<C>(page + a.k_at, head_kv, a.n_head_kv, a.head_dim);
    const head_rows v = rows_of_head<C>(page + a.v_at, head_kv, a.n_head_kv, a.head_dim);

    for (int h0 = 0; h0 < group; h0 += HEADS_MOST) {
        const int n_heads = min(HEADS_MOST, group - h0), head = head_kv * group + h0;
        fetch_keys(k.data + first * row_bytes, row_bytes, n_keys, keys);
        for (int d = i; d < n_heads * a.head_dim; d += KEYS)
            q[d] = a.q[token * a.ldq + head * a.head_dim + d] * a.scale;
        cp_async_wait<0>();
        __syncthreads();

        float scores[HEADS_MOST] = {};
        if (i < n_keys)
            dot_heads(C(), k.scales + (first + i) * groups, keys + i * key_stride(row_bytes), q, a.head_dim, n_heads,
                      scores);
        for (int h = 0; h < n_heads; h++) {
            const float most = block_max(i < n_keys ? scores[h] : -INFINITY, warps);
            const float weight = i < n_keys ? expf(scores[h] - most) : 0.0f;
            const float sum = block_sum(weight, warps);
            p[h * KEYS + i] = weight;
            if (i == 0) {
                gptr<float> result = a.parts + part_at(a, token, head + h, part);
                result[0] = most;
                result[1] = sum;
            }
        }
        __syncthreads(); /* p is there, and nobody reads keys any more */

        sptr<float> sums = as<float>(keys);
        add_values<C>(v, first, a.head_dim, p, n_keys, n_heads, sums);
        const int slices = KEYS / (a.head_dim / 2);
        for (int d = i; d < n_heads * a.head_dim; d += KEYS) {
            const int h = d / a.head_dim, dim = d % a.head_dim;
            float sum = 0;
            for (int s = 0; s < slices; s++) sum += sums[(s * HEADS_MOST + h) * a.head_dim + dim];
            a.parts[part_at(a, token, head + h, part) + 2 + dim] = sum;
        }
        __syncthreads(); /* the next heads' keys go where the sums are */
    }
}

/* grid (n_head, tokens): parts that hold no key of this token have maximum -infinity. NaN scores stay NaN. */
__global__ void __launch_bounds__(128) attend_merge(attention_args a) {
    const int head = blockIdx.x, token = blockIdx.y;
    float most = -INFINITY, sum = 0;
    for (int part = 0; part < a.n_parts; part++) {
        const float m = a.parts[part_at(a, token, head, part)];
        if (!(m <= most)) most = m;
    }
    for (int part = 0; part < a.n_parts; part++) {
        gptr<const float> result = a.parts + part_at(a, token, head, part);
        if (result[1] != 0.0f) sum += result[1] * expf(result[0] - most);
    }
    for (int d = threadIdx.x; d < a.head_dim; d += 128) {
        float o = 0;
        for (int part = 0; part < a.n_parts; part++) {
            gptr<const float> result = a.parts + part_at(a, token, head, part);
            if (result[1] != 0.0f) o = fmaf(result[2 + d], expf(result[0] - most), o);
        }
        a.out[(static_cast<int64_t>(token) * a.n_head + head) * a.head_dim + d] = o / sum;
    }
}

int parts_of(const cuda_attn *a) {
    return static_cast<int>((a->n_keys + KEYS - 1) / KEYS);
}

size_t shared_bytes(int head_dim, int element_bytes) {
    const size_t keys = static_cast<size_t>(KEYS * key_stride(head_dim * element_bytes));
    const size_t slices = static_cast<size_t>(KEYS / (head_dim / 2) * HEADS_MOST * head_dim) * sizeof(float);
    return keys > slices ? keys : slices;
}

template <class C>
void launch_attention(stream_t stream, const cuda_attn *attn, const float *q, int64_t ldq, const cuda_kv *kv, int n_tok,
                      float *out, void *scratch) {
    attention_args a = {device_pointer(q),
                        device_pointer(kv->pages),
                        static_cast<int64_t>(kv->k),
                        static_cast<int64_t>(kv->v),
                        device_pointer(attn->pos),
                        device_pointer(out),
                        device_pointer(static_cast<float *>(scratch)),
                        ldq,
                        attn->window,
                        attn->n_head,
                        kv->n_head_kv,
                        kv->head_dim,
                        parts_of(attn),
                        attn->scale};
    const unsigned tokens = static_cast<unsigned>(n_tok), parts = static_cast<unsigned>(a.n_parts);
    const size_t shared = shared_bytes(kv->head_dim, C::bytes);
    ALLOW_SHARED(attend_part<C>, static_cast<int>(shared));
    LAUNCH(attend_part<C>, dim3(parts, static_cast<unsigned>(kv->n_head_kv), tokens), KEYS, shared, stream, a);
    LAUNCH(attend_merge, dim3(static_cast<unsigned>(attn->n_head), tokens), 128, 0, stream, a);
}

} // namespace

size_t cuda_attention_scratch_bytes(const cuda_attn *a, const cuda_kv *kv, int n_tok) {
    return static_cast<size_t>(n_tok * a->n_head) * static_cast<size_t>(parts_of(a)) *
           static_cast<size_t>(kv->head_dim + 2) * sizeof(float);
}

void cuda_attention(gpu_stream *stream, const cuda_attn *attn, const float *q, int64_t ldq, const cuda_kv *kv,
                    int n_tok, float *out, void *scratch) {
    const stream_t s = reinterpret_cast<stream_t>(stream);
    if (kv->q8)
        launch_attention<cache_q8>(s, attn, q, ldq, kv, n_tok, out, scratch);
    else
        launch_attention<cache_f16>(s, attn, q, ldq, kv, n_tok, out, scratch);
}
