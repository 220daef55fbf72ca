/* Products with 9 to some hundred tokens: prompts and batches. What the decode kernels do, with more columns: weights
 * are the A operand of mma and come in the same tiles, tokens are its columns. Each weight is unpacked once for all
 * tokens of a block.
 *
 * A block has ROW_WARPS * TILES * 16 rows and up to TOKENS tokens. Stages of 128 columns, weights as they are packed
 * and activations as f16, are copied to shared memory while earlier ones are multiplied; of each stage one half of the
 * warps takes the first 64 columns and the other half the rest, and at the end their sums are added. Where rows and
 * tokens do not make enough blocks, several share the columns (split) and a second launch adds what they found: always
 * in one order, so that results do not depend on scheduling. */
#include "cuda/acts.cuh"
#include "cuda/dequant.cuh"
#include "cuda/gemm.h"

namespace {

constexpr int WARPS = 8, ROW_WARPS = 4, THREADS = WARPS * 32;
constexpr int STAGE_COLUMNS = 128, STAGE_GROUPS = STAGE_COLUMNS / 32, ROW_BYTES = STAGE_COLUMNS * 2;
constexpr int SHARED_LIMIT = 101376; /* of a block on sm_86, 89 and 120 */

/* Activations (cuda/gemm.h). */
struct acts_rows {
    gptr<const uint8_t> halves;
    gptr<const float> sums, back;
    int row_bytes, padded, n_tok;
};

/* Packed weights (row tiles, n_tiles, W::bytes). */
struct weight_rows {
    gptr<const uint8_t> packed;
    int row_tiles, n_tiles;
};

/* How a stage of a weight type lies in shared memory: weights of each row tile, f16 rows of tokens, sums of groups. */
template <class W, int TOKENS> struct shape {
    static constexpr int stage_tiles = STAGE_COLUMNS / W::columns; /* 0: half a tile */
    static constexpr int tiles = W::is_halves ? 1 : 2;             /* row tiles of a warp */
    static constexpr int row_tiles = ROW_WARPS * tiles, rows = row_tiles * TILE_ROWS;
    /* Two warps have the same rows: with few tokens they share the columns, with many the tokens. */
    static constexpr int k_warps = TOKENS == 16 ? 2 : 1;
    static constexpr int warp_tokens = TOKENS * k_warps * ROW_WARPS / WARPS;
    static constexpr int weights = row_tiles * W::stage_bytes, acts = TOKENS * ROW_BYTES;
    static constexpr int sums = W::has_mins ? STAGE_GROUPS * TOKENS * 4 : 0, bytes = weights + acts + sums;
    static constexpr int stages = TOKENS < 64 && 4 * bytes <= SHARED_LIMIT ? 4 : 3;
    static constexpr int blocks = TOKENS == 64 ? 1 : 2; /* that a multiprocessor has to have registers for */
    static constexpr int total = stages * bytes;        /* the sums of half of the warps fit in as well */
    static_assert(total <= SHARED_LIMIT && total >= THREADS / 2 * tiles * warp_tokens / 2 * 4, "for every target");
};

/* ---- copies to shared memory, 16 bytes a thread at a time. A thread's sources move on from stage to stage, so that
 * all it has to remember are three addresses. */

constexpr int ACTS_CHUNKS = ROW_BYTES / 16, ACTS_STEP = THREADS / ACTS_CHUNKS; /* tokens that are copied at once */

/* Chunks of 16 bytes of a row change places by the token's lower bits, so that ldmatrix meets no bank twice. */
__device__ __forceinline__ int acts_place(int token, int chunk) {
    return token * ROW_BYTES + (chunk ^ (token & 7)) * 16;
}

struct sources {
    gptr<const uint8_t> weights; /* this warp's row tile, the tile of the next stage */
    gptr<const uint8_t> acts;    /* this thread's token and chunk of the next stage */
    gptr<const float> sums;
    int row_bytes;  /* of activations */
    int half;       /* of a tile of 256 columns */
    int tiles_left; /* of columns; 0 or less: none, or the matrix has no such row tile */
};

template <class W, int TOKENS>
__device__ __forceinline__ sources sources_of(const weight_rows &w, const acts_rows &x, int warp, int first_tile,
                                              int first_token, int stage) {
    using S = shape<W, TOKENS>;
    const int row_tile = first_tile + warp % S::row_tiles, tile = stage * STAGE_COLUMNS / W::columns;
    const bool there = row_tile < w.row_tiles;
    const int64_t at = (there ? static_cast<int64_t>(row_tile) * w.n_tiles : 0) + tile;
    const int token = first_token + static_cast<int>(threadIdx.x) / ACTS_CHUNKS, chunk = threadIdx.x % ACTS_CHUNKS;
    gptr<const float> sums = x.sums + (static_cast<int64_t>(stage) * STAGE_GROUPS * x.padded + first_token);
    return {w.packed + at * W::bytes,
            x.halves + (static_cast<int64_t>(token) * x.row_bytes + stage * ROW_BYTES + chunk * 16),
            sums + (static_cast<int>(threadIdx.x) / (TOKENS / 4) * x.padded + threadIdx.x % (TOKENS / 4) * 4),
            x.row_bytes,
            stage % 2,
            there ? w.n_tiles - tile : 0};
}

/* Each warp one row tile, or a part of one; zeros for tiles that are not there. */
template <class W, int TOKENS>
__device__ __forceinline__ void copy_weights(sptr<uint8_t> to, const sources &from, int thread) {
    using S = shape<W, TOKENS>;
    const int warp = thread / 32, lane = thread % 32;
    constexpr int CHUNKS = W::stage_bytes / 16, SHARE = WARPS / S::row_tiles * 32;
    to += warp % S::row_tiles * W::stage_bytes;
    UNROLL
    for (int first = 0; first < CHUNKS; first += SHARE) {
        const int chunk = first + warp / S::row_tiles * 32 + lane;
        if (first + SHARE > CHUNKS && chunk >= CHUNKS) break;
        int at = chunk * 16;
        bool there = from.tiles_left > 0;
        if constexpr (S::stage_tiles > 0) {
            there = (at >= W::bytes) < from.tiles_left;
            if (!there) at = 0; /* an address has to be good even if nothing is read */
        } else {
            at = W::stage_source(chunk, from.half);
        }
        cp_async_16(to + chunk * 16, from.weights + at, there ? 16 : 0);
    }
}

template <class W, int TOKENS> __device__ __forceinline__ void copy_stage(sptr<uint8_t> to, const sources &from) {
    using S = shape<W, TOKENS>;
    const int thread = static_cast<int>(threadIdx.x), token = thread / ACTS_CHUNKS, chunk = thread % ACTS_CHUNKS;
    copy_weights<W, TOKENS>(to, from, thread);
    UNROLL
    for (int i = 0; i < TOKENS; i += ACTS_STEP)
        cp_async_16(to + (S::weights + i * ROW_BYTES + acts_place(token, chunk)),
                    from.acts + static_cast<int64_t>(i) * from.row_bytes);
    if constexpr (W::has_mins) {
        if (thread < S::sums / 16) cp_async_16(to + (S::weights + S::acts + thread * 16), from.sums);
    }
}

/* To the next stage's. */
template <class W> __device__ __forceinline__ void advance(sources &from, int padded) {
    constexpr int stage_tiles = STAGE_COLUMNS / W::columns;
    const int tiles = stage_tiles > 0 ? stage_tiles : from.half;
    from.weights += tiles * W::bytes;
    from.tiles_left -= tiles;
    from.half ^= 1;
    from.acts += ROW_BYTES;
    from.sums += STAGE_GROUPS * padded;
}

/* ---- products */

/* A warp's sums: of row tiles and 8 tokens each. */
template <class W, int TOKENS> using warp_sums = float[shape<W, TOKENS>::tiles][shape<W, TOKENS>::warp_tokens / 8][4];

/* acc += 64 columns of a stage; without scales and minimums if those come later (scaled_later). acts: the warp's first
 * token. */
template <class W, int TOKENS>
__device__ __forceinline__ void multiply_part(sptr<const uint8_t> weights, sptr<const uint8_t> acts,
                                              sptr<const float2> sums, int part, int lane, warp_sums<W, TOKENS> &acc) {
    constexpr bool mins_now = W::has_mins && !scaled_later<W>;
    using S = shape<W, TOKENS>;
    typename W::tile tiles[S::tiles];
    UNROLL
    for (int r = 0; r < S::tiles; r++) tiles[r] = W::load_part(weights + r * W::stage_bytes, part, lane);
    UNROLL
    for (int j = 0; j < 2; j++) {
        uint32_t a[S::tiles][2][4];
        float m[S::tiles][2];
        UNROLL
        for (int r = 0; r < S::tiles; r++) {
            W::halves(tiles[r], j, a[r]);
            if constexpr (mins_now) W::mins(tiles[r], j, m[r]);
        }
        sptr<const uint8_t> mine = acts + acts_place(lane % 8, part * 8 + j * 4 + lane / 8);
        UNROLL
        for (int n = 0; n < S::warp_tokens / 8; n++) {
            uint32_t b[4];
            ldmatrix_x4(b, mine + n * 8 * ROW_BYTES);
            UNROLL
            for (int r = 0; r < S::tiles; r++) multiply<W>(tiles[r], j, a[r], b, acc[r][n]);
            if constexpr (mins_now) {
                const float2 sum = sums[((part * 2 + j) * TOKENS + n * 8) / 2 + lane % 4];
                UNROLL
                for (int r = 0; r < S::tiles; r++) add_mins(acc[r][n], m[r], sum);
            }
        }
    }
}

/* acc += products * scale + minimum * sums, where both are those of PARTS times 64 columns from `part` on. */
template <class W, int TOKENS, int PARTS>
__device__ __forceinline__ void scale_parts(sptr<const uint8_t> weights, sptr<const float2> sums, int part, int lane,
                                            const warp_sums<W, TOKENS> &products, warp_sums<W, TOKENS> &acc) {
    using S = shape<W, TOKENS>;
    float s[S::tiles][2], m[S::tiles][2];
    UNROLL
    for (int r = 0; r < S::tiles; r++) {
        const auto tile = W::load_part(weights + r * W::stage_bytes, part, lane);
        W::scales(tile, 0, s[r]);
        if constexpr (W::has_mins) W::mins(tile, 0, m[r]);
    }
    UNROLL
    for (int n = 0; n < S::warp_tokens / 8; n++) {
        UNROLL
        for (int r = 0; r < S::tiles; r++) add_scaled(acc[r][n], products[r][n], s[r]);
        if constexpr (W::has_mins) {
            float2 all = {0, 0};
            UNROLL
            for (int j = 0; j < 2 * PARTS; j++) {
                const float2 sum = sums[((part * 2 + j) * TOKENS + n * 8) / 2 + lane % 4];
                all = {all.x + sum.x, all.y + sum.y};
            }
            UNROLL
            for (int r = 0; r < S::tiles; r++) add_mins(acc[r][n], m[r], all);
        }
    }
}

/* acc += what the warp has of a stage: all of it, or half number k_warp. */
template <class W, int TOKENS>
__device__ __forceinline__ void multiply_stage(sptr<const uint8_t> weights, sptr<const uint8_t> acts,
                                               sptr<const float2> sums, int k_warp, int lane,
                                               warp_sums<W, TOKENS> &acc) {
    constexpr int MINE = 2 / shape<W, TOKENS>::k_warps, SHARE = W::group == STAGE_COLUMNS ? MINE : 1;
    for (int first = k_warp; first < k_warp + MINE; first += SHARE) {
        if constexpr (scaled_later<W>) {
            warp_sums<W, TOKENS> products = {};
            for (int part = first; part < first + SHARE; part++)
                multiply_part<W, TOKENS>(weights, acts, sums, part, lane, products);
            scale_parts<W, TOKENS, SHARE>(weights, sums, first, lane, products, acc);
        } else {
            multiply_part<W, TOKENS>(weights, acts, sums, first, lane, acc);
        }
    }
}

/* The sums of the second half of the warps go to the first, through shared memory that the stages no longer need. */
template <int TILES, int EIGHTS>
__device__ __forceinline__ void add_halves(sptr<float> part, int row_warp, int k_warp, int lane,
                                           float (&acc)[TILES][EIGHTS][4]) {
    sptr<float4> mine = as<float4>(part) + row_warp * TILES * EIGHTS * 32 + lane;
    if (k_warp == 1) {
        UNROLL
        for (int i = 0; i < TILES * EIGHTS; i++) {
            const float(&c)[4] = acc[i / EIGHTS][i % EIGHTS];
            mine[i * 32] = float4{c[0], c[1], c[2], c[3]};
        }
    }
    __syncthreads();
    if (k_warp == 0) {
        UNROLL
        for (int i = 0; i < TILES * EIGHTS; i++) {
            const float4 other = mine[i * 32];
            float(&c)[4] = acc[i / EIGHTS][i % EIGHTS];
            c[0] += other.x, c[1] += other.y, c[2] += other.z, c[3] += other.w;
        }
    }
}

/* y (n_tok, ldy), bias [rows] or NULL. grid: blocks of rows, blocks of tokens, splits: split z has stages z * each ..
 * and writes its own (n_tok, ldy) of y. */
template <class W, int TOKENS>
__global__ void __launch_bounds__(THREADS, (shape<W, TOKENS>::blocks))
    gemm(weight_rows w, acts_rows x, gptr<const float> bias, gptr<float> y, int64_t ldy, int rows, int n_stages,
         int each) {
    using S = shape<W, TOKENS>;
    DYNAMIC_SHARED(uint8_t, stages);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row_warp = warp % ROW_WARPS;
    const int k_warp = S::k_warps == 2 ? warp / ROW_WARPS : 0;
    const int warp_token = S::k_warps == 2 ? 0 : warp / ROW_WARPS * S::warp_tokens;
    const int first_tile = blockIdx.x * S::row_tiles, first_token = blockIdx.y * TOKENS;
    const int first = blockIdx.z * each;
    sources from = sources_of<W, TOKENS>(w, x, warp, first_tile, first_token, first);
    const auto copy_next = [&](int to, bool is_there) {
        if (is_there) copy_stage<W, TOKENS>(stages + to, from);
        advance<W>(from, x.padded);
        cp_async_commit();
    };
    warp_sums<W, TOKENS> acc = {};
    int left = min(each, n_stages - first), place = 0;
    UNROLL
    for (int i = 0; i < S::stages - 1; i++) copy_next(i * S::bytes, i < left);
    for (; left > 0; left--) {
        cp_async_wait<S::stages - 2>();
        __syncthreads(); /* this stage is there for all, and all are done with the one before, which is filled next */
        copy_next((place ? place : S::total) - S::bytes, left >= S::stages);
        sptr<const uint8_t> weights = stages + place, acts = weights + S::weights;
        multiply_stage<W, TOKENS>(weights + row_warp * S::tiles * W::stage_bytes, acts + warp_token * ROW_BYTES,
                                  as<const float2>(acts + S::acts) + warp_token / 2, k_warp, lane, acc);
        place = place + S::bytes < S::total ? place + S::bytes : 0;
    }
    if constexpr (S::k_warps == 2) { /* the last groups of copies were empty: nothing is in flight */
        __syncthreads();
        add_halves(as<float>(stages), row_warp, k_warp, lane, acc);
        if (k_warp == 1) return;
    }
    float2 back[S::warp_tokens / 8]; /* before the stores: for all that the compiler knows they might change it */
    UNROLL
    for (int n = 0; n < S::warp_tokens / 8; n++)
        back[n] = as<const float2>(x.back)[(first_token + warp_token) / 2 + n * 4 + lane % 4];
    const int64_t split = static_cast<int64_t>(blockIdx.z) * x.n_tok * ldy;
    UNROLL
    for (int i = 0; i < S::tiles * S::warp_tokens / 2; i++) {
        const int r = i / (S::warp_tokens / 2), n = i / 4 % (S::warp_tokens / 8);
        const int token = first_token + warp_token + n * 8 + lane % 4 * 2 + i % 2;
        const int row = (first_tile + row_warp * S::tiles + r) * TILE_ROWS + lane / 4 + i / 2 % 2 * 8;
        if (row >= rows || token >= x.n_tok) continue;
        const float sum = acc[r][n][i % 4] * (1.0f / W::unit_f16) * (i % 2 ? back[n].y : back[n].x);
        y[split + token * ldy + row] = bias ? sum + bias[row] : sum;
    }
}

/* y (n_tok, ldy) = bias + parts (splits, n_tok, rows), the first split first. grid: rows / 256, n_tok */
__global__ void __launch_bounds__(256)
    add_splits(gptr<const float> parts, int splits, int rows, gptr<const float> bias, gptr<float> y, int64_t ldy) {
    const int row = blockIdx.x * 256 + threadIdx.x, token = blockIdx.y;
    if (row >= rows) return;
    float sum = 0;
    for (int s = 0; s < splits; s++) sum += parts[(static_cast<int64_t>(s) * gridDim.y + token) * rows + row];
    y[token * ldy + row] = bias ? sum + bias[row] : sum;
}

/* y (n_tok, ldy) = y * back[token] + bias; bias [rows] or NULL. grid: n_tok. Most tokens have nothing to do. */
__global__ void __launch_bounds__(256)
    bring_back(gptr<const float> back, gptr<const float> bias, int rows, gptr<float> y, int64_t ldy) {
    const float by = back[blockIdx.x];
    if (by == 1.0f && !bias) return;
    for (int row = threadIdx.x; row < rows; row += 256) {
        const float sum = y[blockIdx.x * ldy + row] * by;
        y[blockIdx.x * ldy + row] = bias ? sum + bias[row] : sum;
    }
}

/* ---- what goes in */

/* grid: tokens with those that pad, shares (cuda/acts.cuh). */
__global__ void __launch_bounds__(ROW_THREADS)
    fill_rows(gptr<const float> x, int64_t cols, int n_tok, gptr<uint16_t> rows, gptr<float> sums, gptr<float> back,
              int groups) {
    SHARED(uint32_t, part, 32);
    const int lane = threadIdx.x % 32, token = blockIdx.x, warps = static_cast<int>(blockDim.x) / 32;
    const int first = static_cast<int>(blockIdx.y) * warps + static_cast<int>(threadIdx.x) / 32;
    const int64_t row = token * cols, n = token < n_tok ? cols : 0;
    const plain_values values = {x + row};
    const row_factors factors = factors_of_row(values, n, part);
    const int place = lane / 16 * 16 + lane % 16 / 2 + lane % 2 * 8; /* cuda/gemm.h */
    for (int group = first; group < groups; group += static_cast<int>(gridDim.y) * warps) {
        const int64_t column = static_cast<int64_t>(group) * 32 + lane;
        const half_of_group rounded = round_group(column < n ? values.at(column) * factors.by : 0.0f);
        rows[(static_cast<int64_t>(token) * groups + group) * 32 + place] = rounded.half;
        if (lane == 0) sums[static_cast<int64_t>(group) * gridDim.x + token] = rounded.sum;
    }
    if (first == 0 && lane == 0) back[token] = factors.back;
}

/* Weights as f16 rows (rows, ld), columns in the order of fill_rows: scales and minimums applied in f32, rounded once.
 * One warp a tile; grid: tiles / 8, row tiles. */
template <class W>
__global__ void __launch_bounds__(256)
    unpack_rows(gptr<const uint8_t> packed, int n_tiles, int rows, gptr<uint16_t> out, int64_t ld) {
    const int lane = threadIdx.x % 32, tile = blockIdx.x * 8 + threadIdx.x / 32, t = lane % 4;
    if (tile >= n_tiles) return; /* a whole warp */
    const auto w = W::load(packed + (static_cast<int64_t>(blockIdx.y) * n_tiles + tile) * W::bytes, lane);
    UNROLL
    for (int j = 0; j < W::columns / 32; j++) {
        uint32_t a[2][4];
        float s[2], m[2] = {0, 0};
        W::halves(w, j, a);
        if constexpr (W::has_mins) W::mins(w, j, m);
        UNROLL
        for (int i = 0; i < 4; i++) { /* rows g and g + 8 of the first and of the last 16 columns */
            const int row = blockIdx.y * TILE_ROWS + lane / 4 + i % 2 * 8, column = j * 32 + i / 2 * 16 + (t & 1) * 8;
            if (i % 2 == 0) W::scales(w, W::group == 16 ? 2 * j + i / 2 : j, s);
            const float by = s[i % 2] * (1.0f / W::unit_f16);
            const auto scaled = [&](uint32_t h2) {
                return h2_from_floats(fmaf(h2_low(h2), by, m[i % 2]), fmaf(h2_high(h2), by, m[i % 2]));
            };
            const uint32_t first = scaled(a[i / 2][i % 2]), second = scaled(a[i / 2][i % 2 + 2]);
            /* Lanes with even t take two words of the first eight columns, those with odd t of the second: then a store
             * fills whole sectors. */
            const uint32_t other = __shfl_xor_sync(WARP_ALL, t & 1 ? first : second, 1);
            const uint2 both = {t & 1 ? other : first, t & 1 ? second : other};
            const int64_t at = row * ld + static_cast<int64_t>(tile) * W::columns + column + t / 2 * 4;
            if (row < rows) as<uint2>(out + at)[0] = both;
        }
    }
}

/* ---- launches */

constexpr int WANTED_BLOCKS =
    256; /* two for each multiprocessor of the larger GPUs. The same for all, so that all sum alike */
constexpr int MOST_SPLITS = 16, SPLIT_STAGES = 4;

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
int64_t acts_groups(int64_t cols) {
    return ceil_div(cols, 256) * 8; /* no weight type has wider tiles */
}
/* Tokens of a block, and of all blocks together. */
int block_tokens(int64_t n_tok) {
    return n_tok <= 16 ? 16 : n_tok <= 32 ? 32 : 64;
}
int64_t padded_tokens(int64_t n_tok) {
    return ceil_div(n_tok, block_tokens(n_tok)) * block_tokens(n_tok);
}
/* Where sums and what brings tokens back are in a buffer of activations, and its end. */
struct acts_places {
    int64_t sums, back, end;
};
acts_places places_of(int64_t n_tok, int64_t cols) {
    const int64_t padded = padded_tokens(n_tok), sums = padded * acts_groups(cols) * 64;
    const int64_t back = sums + padded * acts_groups(cols) * 4;
    return {sums, back, back + padded * 4};
}
int most_splits(int64_t cols) {
    return static_cast<int>(min(max(ceil_div(cols, STAGE_COLUMNS) / SPLIT_STAGES, int64_t{1}), int64_t{MOST_SPLITS}));
}

acts_rows rows_of(const void *acts, int n_tok, int64_t cols) {
    gptr<const uint8_t> base = device_pointer(static_cast<const uint8_t *>(acts));
    const acts_places at = places_of(n_tok, cols);
    return {base,
            as<const float>(base + at.sums),
            as<const float>(base + at.back),
            static_cast<int>(acts_groups(cols) * 64),
            static_cast<int>(padded_tokens(n_tok)),
            n_tok};
}

void launch_add_splits(stream_t stream, const float *parts, int splits, const cuda_matrix *w, int n_tok, float *y,
                       int64_t ldy) {
    const dim3 grid(static_cast<unsigned>(ceil_div(w->rows, 256)), static_cast<unsigned>(n_tok));
    const int rows = static_cast<int>(w->rows);
    gptr<const float> from = device_pointer(parts), bias = device_pointer(w->bias);
    gptr<float> out = device_pointer(y);
    LAUNCH(add_splits, grid, 256, 0, stream, from, splits, rows, bias, out, ldy);
}

template <class W, int TOKENS>
void launch_gemm(stream_t stream, const cuda_matrix *m, const void *acts, int n_tok, float *y, int64_t ldy,
                 float *parts, size_t parts_bytes) {
    using S = shape<W, TOKENS>;
    const int rows = static_cast<int>(m->rows), n_stages = static_cast<int>(ceil_div(m->cols, STAGE_COLUMNS));
    const int64_t blocks = ceil_div(rows, S::rows) * ceil_div(n_tok, TOKENS);
    const int64_t fit = static_cast<int64_t>(parts_bytes / sizeof(float)) / (static_cast<int64_t>(rows) * n_tok);
    const int64_t wanted = max(min(min(WANTED_BLOCKS / blocks, int64_t{most_splits(m->cols)}), fit), int64_t{1});
    const int each = static_cast<int>(ceil_div(n_stages, wanted)), splits = static_cast<int>(ceil_div(n_stages, each));
    const dim3 grid(static_cast<unsigned>(ceil_div(rows, S::rows)), static_cast<unsigned>(ceil_div(n_tok, TOKENS)),
                    static_cast<unsigned>(splits));
    const weight_rows w = {device_pointer(static_cast<const uint8_t *>(m->packed)),
                           static_cast<int>(ceil_div(rows, TILE_ROWS)),
                           static_cast<int>(ceil_div(m->cols, W::columns))};
    const acts_rows x = rows_of(acts, n_tok, m->cols);
    gptr<const float> bias = splits == 1 ? device_pointer(m->bias) : gptr<const float>(nullptr);
    gptr<float> out = splits == 1 ? device_pointer(y) : device_pointer(parts);
    const int64_t ld = splits == 1 ? ldy : rows;
    ALLOW_SHARED((gemm<W, TOKENS>), S::total);
    LAUNCH((gemm<W, TOKENS>), grid, THREADS, S::total, stream, w, x, bias, out, ld, rows, n_stages, each);
    if (splits > 1) launch_add_splits(stream, parts, splits, m, n_tok, y, ldy);
}

} // namespace

size_t cuda_acts_rows_bytes(int64_t n_tok, int64_t cols) {
    return static_cast<size_t>(places_of(n_tok, cols).end);
}
int64_t cuda_acts_rows_ld(int64_t cols) {
    return acts_groups(cols) * 32;
}

void cuda_acts_rows(gpu_stream *stream, const float *x, int n_tok, int64_t cols, void *acts) {
    const int groups = static_cast<int>(acts_groups(cols));
    const acts_places at = places_of(n_tok, cols);
    gptr<uint8_t> base = device_pointer(static_cast<uint8_t *>(acts));
    gptr<uint16_t> rows = as<uint16_t>(base);
    gptr<float> sums = as<float>(base + at.sums), back = as<float>(base + at.back);
    gptr<const float> in = device_pointer(x);
    const int64_t padded = padded_tokens(n_tok);
    const dim3 grid(static_cast<unsigned>(padded), row_shares(groups, padded));
    LAUNCH(fill_rows, grid, row_threads(groups), 0, reinterpret_cast<stream_t>(stream), in, cols, n_tok, rows, sums,
           back, groups);
}

size_t cuda_gemm_bytes(int64_t n_tok, int64_t rows, int64_t cols) {
    const int splits = most_splits(cols);
    if (splits == 1) return 0;
    const int64_t most = int64_t{WANTED_BLOCKS} * ROW_WARPS * 2 * TILE_ROWS * 64;
    return static_cast<size_t>(min(splits * n_tok * rows, most)) * sizeof(float);
}

void cuda_gemm(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy,
               void *parts, size_t parts_bytes) {
    const auto s = reinterpret_cast<stream_t>(stream);
    const auto p = static_cast<float *>(parts);
    with_weights(w, [&](auto type) {
        using W = decltype(type);
        switch (block_tokens(n_tok)) {
        case 16: return launch_gemm<W, 16>(s, w, acts, n_tok, y, ldy, p, parts_bytes);
        case 32: return launch_gemm<W, 32>(s, w, acts, n_tok, y, ldy, p, parts_bytes);
        default: return launch_gemm<W, 64>(s, w, acts, n_tok, y, ldy, p, parts_bytes);
        }
    });
}

void cuda_unpack_rows(gpu_stream *stream, const cuda_matrix *m, uint16_t *out) {
    with_weights(m, [&](auto type) {
        using W = decltype(type);
        const int n_tiles = static_cast<int>(ceil_div(m->cols, W::columns)), rows = static_cast<int>(m->rows);
        const dim3 grid(static_cast<unsigned>(ceil_div(n_tiles, 8)), static_cast<unsigned>(ceil_div(rows, TILE_ROWS)));
        gptr<const uint8_t> packed = device_pointer(static_cast<const uint8_t *>(m->packed));
        gptr<uint16_t> to = device_pointer(out);
        const int64_t ld = cuda_acts_rows_ld(m->cols);
        LAUNCH(unpack_rows<W>, grid, 256, 0, reinterpret_cast<stream_t>(stream), packed, n_tiles, rows, to, ld);
    });
}

void cuda_bring_back(gpu_stream *stream, const cuda_matrix *w, const void *acts, int n_tok, float *y, int64_t ldy) {
    const int rows = static_cast<int>(w->rows);
    gptr<const float> back = rows_of(acts, n_tok, w->cols).back, bias = device_pointer(w->bias);
    gptr<float> out = device_pointer(y);
    LAUNCH(bring_back, static_cast<unsigned>(n_tok), 256, 0, reinterpret_cast<stream_t>(stream), back, bias, rows, out,
           ldy);
}
