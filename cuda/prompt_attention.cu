/* Attention of a prompt's queries, on tensor cores: a block has 64 of them, and goes through the keys that any of them
 * sees in tiles, with the softmax carried along (its maximum so far, its sum so far). All query heads that share a head
 * of the cache are queries of it alike, so a tile of keys and values serves all of them.
 *
 * A warp has 16 queries: the A operand. Scores are q (f16) times keys; what softmax makes of them is, as it lies in
 * registers, the A operand of the product with the values (ptx.md 1.1). While scores are computed the values are on
 * their way to shared memory, while those are multiplied the next keys are. A cache of 8 bits becomes f16 there.
 * Rounded to f16 are q, the weights of softmax, and of 8-bit caches the values of codes; sums are f32, in one order. */
#include "cuda/cache.cuh"

namespace {

constexpr int WARPS = 4, THREADS = WARPS * 32, QUERIES = WARPS * 16;

struct prompt_args {
    gptr<const float> q;
    gptr<const uint64_t> pages;
    int64_t k_at, v_at; /* of this layer in a page */
    gptr<const int32_t> pos;
    gptr<float> out;
    int64_t ldq;
    int n_tok, n_head, n_head_kv, head_dim, window;
    int group; /* heads that share a cache head */
    uint64_t group_inverse;
    float scale; /* of scores as exponents of two */
};

/* n / a.group, exact for n < 2^24: a product instead of a division. */
__device__ __forceinline__ int token_of(const prompt_args &a, int n) {
    return static_cast<int>(static_cast<uint64_t>(n) * a.group_inverse >> 40);
}

/* DIM: head_dim, or more; what is more is zeros. */
template <class C, int DIM> struct shape {
    static constexpr int keys = DIM > 128 ? 32 : 64; /* of a tile */
    static constexpr int steps = DIM / 16;           /* of mma */
    /* Bytes from row to row, 16 times an odd number: eight rows' chunks of 16 bytes meet all banks once. */
    static constexpr int stride = DIM * 2 + 16, coded_stride = DIM + 16;
    static constexpr bool coded = C::bytes == 1;
    static constexpr int tile = keys * stride, codes = coded ? keys * coded_stride : 0;
    /* So many registers for queries beside those for sums are too many for heads of 256. */
    static constexpr bool parks_queries = DIM > 128;
    static constexpr int queries = parks_queries ? WARPS * steps * 512 : 0;
    static constexpr int total = 2 * (tile + codes) + queries;
    static constexpr int blocks = DIM > 64 || coded ? 2 : 3; /* that a multiprocessor has to have registers for */
    static constexpr int pieces = keys * DIM / 16 / THREADS; /* of 16 codes, of a thread */
    static_assert(total <= 101376 && keys * DIM / 16 % THREADS == 0, "for every target");
    static_assert(PAGE_KEYS % keys == 0, "a tile is in one page");
};

/* ---- tiles of keys or values */

/* Begins the copy of the first n_keys rows of a tile; the others become zeros. Two threads copy 32 bytes of a row, a
 * whole sector; eight do so of every other row, which again meet all banks once. */
template <class C, int DIM>
__device__ __forceinline__ void fetch_rows(gptr<const uint8_t> rows, int n_keys, int row_bytes, sptr<uint8_t> to) {
    using S = shape<C, DIM>;
    constexpr int CHUNKS = DIM * C::bytes / 16, STRIDE = S::coded ? S::coded_stride : S::stride;
    UNROLL
    for (int i = 0; i < S::keys * CHUNKS / THREADS; i++) {
        const int n = i * THREADS + threadIdx.x, rows_at = n / 16 / (CHUNKS / 2) * 8;
        const int key = rows_at + n / 2 % 4 * 2 + n / 8 % 2, at = (n / 16 % (CHUNKS / 2) * 2 + n % 2) * 16;
        const bool there = key < n_keys;
        if (at < row_bytes)
            cp_async_16(to + (key * STRIDE + at), rows + (there ? key * row_bytes + at : 0), there ? 16 : 0);
    }
    cp_async_commit();
}

/* Piece i of a thread: 16 codes of a row. Neighbouring threads have neighbouring rows. */
template <int DIM> __device__ __forceinline__ void piece_of(int i, int &key, int &column) {
    constexpr int KEYS = shape<cache_q8, DIM>::keys;
    const int n = i * THREADS + threadIdx.x;
    key = n % KEYS;
    column = n / KEYS * 16;
}

/* The scales of a thread's pieces, in registers until the codes are there. */
template <int DIM>
__device__ __forceinline__ void load_scales(gptr<const uint16_t> scales, int n_keys, int head_dim,
                                            uint16_t (&to)[shape<cache_q8, DIM>::pieces]) {
    UNROLL
    for (int i = 0; i < shape<cache_q8, DIM>::pieces; i++) {
        int key, column;
        piece_of<DIM>(i, key, column);
        to[i] = key < n_keys && column < head_dim ? scales[key * (head_dim / 32) + column / 32] : uint16_t{0};
    }
}

/* Four codes times their scale: a byte in the lower half of 0x6400 is 1024 and itself, so 1152 more than its code. */
__device__ __forceinline__ uint2 halves_of(uint32_t codes, uint32_t scale) {
    const uint32_t bytes = codes ^ 0x80808080u;
    return {h2_mul(h2_sub(prmt(bytes, 0x64646464u, 0x4140u), 0x64806480u), scale),
            h2_mul(h2_sub(prmt(bytes, 0x64646464u, 0x4342u), 0x64806480u), scale)};
}

template <int DIM>
__device__ __forceinline__ void decode_rows(sptr<const uint8_t> codes, int head_dim,
                                            const uint16_t (&scales)[shape<cache_q8, DIM>::pieces], sptr<uint8_t> to) {
    using S = shape<cache_q8, DIM>;
    UNROLL
    for (int i = 0; i < S::pieces; i++) {
        int key, column;
        piece_of<DIM>(i, key, column);
        if (column >= head_dim) continue;
        const uint4 c = as<const uint4>(codes + (key * S::coded_stride + column))[0];
        const uint32_t scale = scales[i] * 0x10001u;
        const uint2 x = halves_of(c.x, scale), y = halves_of(c.y, scale);
        const uint2 z = halves_of(c.z, scale), w = halves_of(c.w, scale);
        sptr<uint4> out = as<uint4>(to + (key * S::stride + column * 2));
        out[0] = uint4{x.x, x.y, y.x, y.y};
        out[1] = uint4{z.x, z.y, w.x, w.y};
    }
}

/* Keys or values: where a tile of them is. */
template <class C, int DIM> struct stream_of {
    using S = shape<C, DIM>;
    sptr<uint8_t> tile, codes;
    uint16_t scales[S::coded ? S::pieces : 1];

    /* page: the address of the one that has position `first`; at: where in a page the layer's keys, or values, are. */
    __device__ __forceinline__ void fetch(const prompt_args &a, uint64_t page, int64_t at, int first, int n_keys) {
        const int row_bytes = a.head_dim * C::bytes, row = first % PAGE_KEYS;
        const head_rows from = rows_of_head<C>(global_pointer<uint8_t>(page) + at, blockIdx.y, a.n_head_kv, a.head_dim);
        fetch_rows<C, DIM>(from.data + row * row_bytes, n_keys, row_bytes, S::coded ? codes : tile);
        if constexpr (S::coded) load_scales<DIM>(from.scales + row * (a.head_dim / 32), n_keys, a.head_dim, scales);
    }
    /* Until all threads have the tile, and are done with what was read before. */
    __device__ __forceinline__ void arrive() {
        cp_async_wait<0>();
        __syncthreads();
    }
    __device__ __forceinline__ void decode(const prompt_args &a) {
        if constexpr (S::coded) {
            decode_rows<DIM>(codes, a.head_dim, scales, tile);
            __syncthreads();
        }
    }
    /* Columns that heads do not have. */
    __device__ __forceinline__ void clear_padding(int head_dim) {
        for (int key = threadIdx.x; key < S::keys; key += THREADS)
            for (int chunk = head_dim / 8; chunk < DIM / 8; chunk++)
                as<uint4>(tile + key * S::stride)[chunk] = uint4{0, 0, 0, 0};
    }
};

/* ---- queries: rows lane / 4 and lane / 4 + 8 of a warp's 16. Row r of a block's launch is head r % group of the heads
 * that share a cache head, of token r / group. */

struct query_rows {
    int64_t q[2];             /* where they are; -1: there is none */
    int newest[2], oldest[2]; /* the keys that they see */
    int all_from, all_to;     /* that all rows of the warp see, from..to - 1 */
    int any_from, any_to;     /* that any of them sees */
};

__device__ __forceinline__ int oldest_of(const prompt_args &a, int newest) {
    return a.window > 0 ? max(newest + 1 - a.window, 0) : 0;
}

__device__ __forceinline__ query_rows rows_of(const prompt_args &a, int first, int head_kv, int pos, int lane) {
    query_rows r;
    const int n_rows = a.n_tok * a.group;
    UNROLL
    for (int i = 0; i < 2; i++) {
        const int n = first + lane / 4 + i * 8, token = token_of(a, n), head = head_kv * a.group + n - token * a.group;
        const bool there = n < n_rows;
        r.q[i] = there ? token * a.ldq + head * a.head_dim : -1;
        r.newest[i] = there ? pos + token : -1;
        r.oldest[i] = oldest_of(a, r.newest[i]);
    }
    const int last = pos + token_of(a, min(first + 15, n_rows - 1));
    r.all_from = oldest_of(a, last);
    r.all_to = pos + token_of(a, first) + 1;
    r.any_from = oldest_of(a, r.all_to - 1);
    r.any_to = first < n_rows ? last + 1 : 0;
    return r;
}

/* Two dims as f16. */
__device__ __forceinline__ uint32_t query_pair(const prompt_args &a, int64_t row, int dim) {
    if (row < 0 || dim >= a.head_dim) return 0;
    const float2 x = as<const float2>(a.q + (row + dim))[0];
    return h2_from_floats(x.x, x.y);
}

/* A warp's queries as operands: in registers, or each lane's own in shared memory. */
template <class C, int DIM> struct queries_of {
    using S = shape<C, DIM>;
    sptr<uint4> parked;
    uint32_t kept[S::parks_queries ? 1 : S::steps][4];

    __device__ __forceinline__ void load(const prompt_args &a, const query_rows &r, int lane) {
        UNROLL
        for (int k = 0; k < S::steps; k++) {
            uint32_t x[4];
            UNROLL
            for (int i = 0; i < 4; i++) x[i] = query_pair(a, r.q[i % 2], k * 16 + i / 2 * 8 + lane % 4 * 2);
            if constexpr (S::parks_queries) {
                parked[k * 32] = uint4{x[0], x[1], x[2], x[3]};
            } else {
                UNROLL
                for (int i = 0; i < 4; i++) kept[k][i] = x[i];
            }
        }
    }
    __device__ __forceinline__ void get(int k, uint32_t (&x)[4]) const {
        if constexpr (S::parks_queries) {
            const uint4 v = parked[k * 32];
            x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        } else {
            UNROLL
            for (int i = 0; i < 4; i++) x[i] = kept[k][i];
        }
    }
};

/* ---- a tile */

/* scores[8 keys][..] = q . keys */
template <class C, int DIM>
__device__ __forceinline__ void score(const queries_of<C, DIM> &q, sptr<const uint8_t> keys, int lane,
                                      float (&scores)[shape<C, DIM>::keys / 8][4]) {
    using S = shape<C, DIM>;
    sptr<const uint8_t> mine = keys + (lane % 8 * S::stride + lane / 8 * 16);
    UNROLL
    for (int k = 0; k < S::steps; k += 2) {
        uint32_t a[2][4];
        q.get(k, a[0]), q.get(k + 1, a[1]);
        UNROLL
        for (int n = 0; n < S::keys / 8; n++) {
            uint32_t b[4];
            ldmatrix_x4(b, mine + (n * 8 * S::stride + k * 32));
            mma_f16(scores[n], a[0], {b[0], b[1]});
            mma_f16(scores[n], a[1], {b[2], b[3]});
        }
    }
}

/* Where a row's softmax is: its largest score, and the sum of this lane's share. */
struct softmax_of_rows {
    float most[2], sum[2];
};

/* Keys that a row does not see get no weight. */
template <int N> __device__ __forceinline__ void hide(const query_rows &r, int first, int lane, float (&scores)[N][4]) {
    UNROLL
    for (int i = 0; i < N * 4; i++) {
        const int key = first + i / 4 * 8 + lane % 4 * 2 + i % 2, row = i / 2 % 2;
        if (key > r.newest[row] || key < r.oldest[row]) scores[i / 4][i % 4] = -INFINITY;
    }
}

/* Scores become weights; shrink: what earlier sums are worth by the new maximum. */
template <int N>
__device__ __forceinline__ void weigh(float scale, softmax_of_rows &s, float (&scores)[N][4], float (&shrink)[2]) {
    UNROLL
    for (int row = 0; row < 2; row++) {
        float most = s.most[row];
        UNROLL
        for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(scores[n][2 * row], scores[n][2 * row + 1]));
        most = fmaxf(most, __shfl_xor_sync(WARP_ALL, most, 1));
        most = fmaxf(most, __shfl_xor_sync(WARP_ALL, most, 2));
        const float base = most == -INFINITY ? 0.0f : most * scale; /* none seen yet */
        shrink[row] = exp2f(fmaf(s.most[row], scale, -base));
        float sum = 0;
        UNROLL
        for (int i = 0; i < N * 2; i++) {
            float &x = scores[i / 2][2 * row + i % 2];
            x = exp2f(fmaf(x, scale, -base));
            sum += x;
        }
        s.most[row] = most;
        s.sum[row] = fmaf(s.sum[row], shrink[row], sum);
    }
}

/* out[8 dims][..] = out * shrink + weights . values */
template <class C, int DIM>
__device__ __forceinline__ void add_values(const float (&weights)[shape<C, DIM>::keys / 8][4], const float (&shrink)[2],
                                           sptr<const uint8_t> values, int lane, float (&out)[DIM / 8][4]) {
    using S = shape<C, DIM>;
    UNROLL
    for (int i = 0; i < DIM / 2; i++) out[i / 4][i % 4] *= shrink[i / 2 % 2];
    sptr<const uint8_t> mine = values + (lane % 16 * S::stride + lane / 16 * 16);
    UNROLL
    for (int j = 0; j < S::keys / 16; j++) {
        uint32_t a[4];
        UNROLL
        for (int i = 0; i < 4; i++) {
            const float(&w)[4] = weights[2 * j + i / 2];
            a[i] = h2_from_floats(w[i % 2 * 2], w[i % 2 * 2 + 1]);
        }
        UNROLL
        for (int n = 0; n < DIM / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, mine + (j * 16 * S::stride + n * 16));
            mma_f16(out[n], a, {b[0], b[1]});
            mma_f16(out[n + 1], a, {b[2], b[3]});
        }
    }
}

/* Where results go is found out again: during the loop registers are short. */
template <int DIM>
__device__ __forceinline__ void store(const prompt_args &a, int first, int head_kv, softmax_of_rows &s, int lane,
                                      const float (&out)[DIM / 8][4]) {
    UNROLL
    for (int row = 0; row < 2; row++) {
        const int query = first + lane / 4 + row * 8, token = token_of(a, query);
        const int head = head_kv * a.group + query - token * a.group;
        float sum = s.sum[row];
        sum += __shfl_xor_sync(WARP_ALL, sum, 1);
        sum += __shfl_xor_sync(WARP_ALL, sum, 2);
        if (query >= a.n_tok * a.group) continue;
        gptr<float> to = a.out + ((static_cast<int64_t>(token) * a.n_head + head) * a.head_dim + lane % 4 * 2);
        UNROLL
        for (int n = 0; n < DIM / 8; n++)
            if (n * 8 < a.head_dim)
                as<float2>(to + n * 8)[0] = float2{out[n][2 * row] / sum, out[n][2 * row + 1] / sum};
    }
}

/* grid (blocks of 64 queries, n_head_kv). The last queries see most keys: they begin first. */
template <class C, int DIM>
__global__ void __launch_bounds__(THREADS, (shape<C, DIM>::blocks)) attend_prompt(prompt_args a) {
    using S = shape<C, DIM>;
    DYNAMIC_SHARED(uint8_t, memory);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head_kv = blockIdx.y;
    const int pos = a.pos[0];
    const int first_query = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const int end = pos + token_of(a, min(first_query + QUERIES, a.n_tok * a.group) - 1) + 1; /* of the block's keys */

    sptr<uint8_t> codes = memory + 2 * S::tile;
    stream_of<C, DIM> keys = {memory, codes, {}}, values = {memory + S::tile, codes + S::codes, {}};
    const int first_row = first_query + warp * 16;
    const query_rows r = rows_of(a, first_row, head_kv, pos, lane);
    queries_of<C, DIM> q;
    q.parked = as<uint4>(codes + 2 * S::codes) + (warp * S::steps * 32 + lane);
    q.load(a, r, lane);
    keys.clear_padding(a.head_dim);
    values.clear_padding(a.head_dim);

    softmax_of_rows s = {{-INFINITY, -INFINITY}, {0, 0}};
    float out[DIM / 8][4] = {};
    int first = oldest_of(a, pos + token_of(a, first_query)) / S::keys * S::keys;
    uint64_t page = a.pages[page_of(first)];
    keys.fetch(a, page, a.k_at, first, end - first);
    for (; first < end; first += S::keys) {
        const bool seen = first < r.any_to && first + S::keys > r.any_from; /* by the warp */
        float scores[S::keys / 8][4] = {}, shrink[2];
        keys.arrive();
        values.fetch(a, page, a.v_at, first, end - first);
        keys.decode(a);
        if (seen) score(q, keys.tile, lane, scores);
        if (first + S::keys < end) page = a.pages[page_of(first + S::keys)]; /* is there when values are */
        values.arrive();
        if (first + S::keys < end) keys.fetch(a, page, a.k_at, first + S::keys, end - first - S::keys);
        values.decode(a);
        if (!seen) continue;
        if (first < r.all_from || first + S::keys > r.all_to) hide(r, first, lane, scores);
        weigh(a.scale, s, scores, shrink);
        add_values<C, DIM>(scores, shrink, values.tile, lane, out);
    }
    store<DIM>(a, first_row, head_kv, s, lane, out);
}

template <class C, int DIM> void launch(stream_t stream, const prompt_args &a) {
    const int queries = a.n_tok * a.group;
    const dim3 grid(static_cast<unsigned>((queries + QUERIES - 1) / QUERIES), static_cast<unsigned>(a.n_head_kv));
    constexpr int shared = shape<C, DIM>::total;
    ALLOW_SHARED((attend_prompt<C, DIM>), shared);
    LAUNCH((attend_prompt<C, DIM>), grid, THREADS, shared, stream, a);
}

template <class C>
void launch_any(stream_t stream, const cuda_attn *attn, const float *q, int64_t ldq, const cuda_kv *kv, int n_tok,
                float *out) {
    const float log2_e = 1.44269504f;
    const int group = attn->n_head / kv->n_head_kv;
    const prompt_args a = {device_pointer(q),
                           device_pointer(kv->pages),
                           static_cast<int64_t>(kv->k),
                           static_cast<int64_t>(kv->v),
                           device_pointer(attn->pos),
                           device_pointer(out),
                           ldq,
                           n_tok,
                           attn->n_head,
                           kv->n_head_kv,
                           kv->head_dim,
                           attn->window <= INT32_MAX ? static_cast<int>(attn->window) : 0,
                           group,
                           ((uint64_t{1} << 40) + static_cast<uint64_t>(group) - 1) / static_cast<uint64_t>(group),
                           attn->scale * log2_e};
    if (kv->head_dim <= 64) return launch<C, 64>(stream, a);
    if (kv->head_dim <= 96) return launch<C, 96>(stream, a);
    if (kv->head_dim <= 128) return launch<C, 128>(stream, a);
    launch<C, 256>(stream, a);
}

} // namespace

void cuda_prompt_attention(gpu_stream *stream, const cuda_attn *attn, const float *q, int64_t ldq, const cuda_kv *kv,
                           int n_tok, float *out) {
    const stream_t s = reinterpret_cast<stream_t>(stream);
    if (kv->q8)
        launch_any<cache_q8>(s, attn, q, ldq, kv, n_tok, out);
    else
        launch_any<cache_f16>(s, attn, q, ldq, kv, n_tok, out);
}
