/* The chain of engine/sampler.c, so that a decode step ends with 4 bytes a token over the bus instead of all logits.
 * Few tokens of a vocabulary are worth sorting, and passes over the vocabulary by many blocks find them: the best logit
 * of each part; how many logits lie how far below the best of all, in bins; then the candidates, which are the logits
 * of the first bins. One block a row sorts them and does the rest, with the CPU's sums in the CPU's order. */
extern "C" {
#include "core/device.h"
}
#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace {

constexpr int THREADS = 256, PART = 1024, PARTS_MOST = 128; /* logits of a part at least; parts of a row */
constexpr int BINS = 2048;
constexpr int LIST = LLMQ_DEVICE_CANDIDATES; /* that are sorted, by as many threads */
constexpr int ROWS = CUDA_SAMPLE_ROWS;

/* A row's settings, as kernels want them. */
struct chain {
    double uniform;
    float reach, inverse_temperature, top_p, min_p; /* reach: how far below the best a candidate may lie */
    int k;                                          /* candidates at most; 0: greedy */
};
struct chains {
    chain of[ROWS];
};

/* What a row's kernels tell each other, in scratch memory. */
struct notes {
    gptr<uint64_t> list;                     /* [LIST] candidates, in any order */
    gptr<double> totals;                     /* [PARTS_MOST] sums of e^(logit - best) over candidates, where k > LIST */
    gptr<uint32_t> bins, listed, candidates; /* [BINS], then how many there are in the list, and at all */
    gptr<float> values;                      /* [PARTS_MOST] the best of each part, and */
    gptr<int32_t> indices;                   /* where they are */
};
constexpr int64_t TOKENS_BYTES = 256, BINS_AT = 8 * (LIST + PARTS_MOST), VALUES_AT = BINS_AT + 4 * (BINS + 64),
                  NOTES_BYTES = VALUES_AT + 8 * PARTS_MOST;
static_assert(CUDA_SAMPLE_BYTES(1) == TOKENS_BYTES + NOTES_BYTES && ROWS * 4 <= TOKENS_BYTES, "cuda/kernels.h");

__device__ __forceinline__ notes notes_of(gptr<uint8_t> scratch, int row) {
    const gptr<uint8_t> at = scratch + (TOKENS_BYTES + row * NOTES_BYTES);
    const gptr<uint32_t> bins = as<uint32_t>(at + BINS_AT);
    const gptr<float> values = as<float>(at + VALUES_AT);
    return {as<uint64_t>(at), as<double>(at + 8 * LIST),       bins, bins + BINS, bins + (BINS + 1),
            values,           as<int32_t>(values + PARTS_MOST)};
}

/* ---- the best logit */

/* The larger one, the lower index of equals; NaN and -infinity are never taken. index -1: none yet. */
struct best {
    float value;
    int32_t index;
};
__device__ __forceinline__ best better(best a, best b) {
    if (b.index < 0) return a;
    if (a.index < 0) return b;
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

/* In all lanes. */
__device__ __forceinline__ best warp_best(best x) {
    for (int step = 16; step > 0; step /= 2) {
        const best other = {__shfl_xor_sync(WARP_ALL, x.value, step), __shfl_xor_sync(WARP_ALL, x.index, step)};
        x = better(x, other);
    }
    return x;
}

/* grid (parts, rows). Also clears the bins. */
__global__ void __launch_bounds__(THREADS) best_parts(gptr<const float> logits, int n, gptr<uint8_t> scratch) {
    SHARED(float, values, THREADS / 32);
    SHARED(int32_t, indices, THREADS / 32);
    const int thread = threadIdx.x, first = blockIdx.x * THREADS + thread, step = gridDim.x * THREADS;
    const gptr<const float> x = logits + static_cast<int64_t>(blockIdx.y) * n;
    const notes to = notes_of(scratch, blockIdx.y);
    best mine = {-INFINITY, -1};
    for (int64_t i = first; i < n; i += step) {
        const float v = x[i];
        if (v > mine.value) mine = {v, static_cast<int32_t>(i)};
    }
    for (int i = first; i < BINS + 1; i += step) to.bins[i] = 0; /* and `listed` */
    mine = warp_best(mine);
    if (thread % 32 == 0) {
        values[thread / 32] = mine.value;
        indices[thread / 32] = mine.index;
    }
    __syncthreads();
    if (thread != 0) return;
    for (int w = 1; w < THREADS / 32; w++) mine = better(mine, {values[w], indices[w]});
    to.values[blockIdx.x] = mine.value;
    to.indices[blockIdx.x] = mine.index;
}

/* Of all parts, in all threads. */
__device__ __forceinline__ best best_of_parts(const notes &from, int n_parts) {
    best x = {-INFINITY, -1};
    for (int i = threadIdx.x % 32; i < n_parts; i += 32) x = better(x, {from.values[i], from.indices[i]});
    return warp_best(x);
}

__device__ __forceinline__ bool is_finite(best x) {
    return x.index >= 0 && x.value < INFINITY;
}

/* ---- candidates. NaN is none. */

/* By how far a candidate lies below the best: below 2^-8 in the first bin, then 128 bins an octave, from 2^8 on in the
 * last. -infinity, a candidate at an infinite reach, is there too. */
__device__ __forceinline__ int bin_of(float below) {
    constexpr int first = (127 - 8) << 7;
    return min(max(static_cast<int>(__float_as_uint(fabsf(below)) >> 16) - first, 0), BINS - 1); /* -0 is 0 */
}

/* grid (parts, rows): fills the bins. */
__global__ void __launch_bounds__(THREADS)
    count_candidates(gptr<const float> logits, int n, chains all, gptr<uint8_t> scratch) {
    SHARED(uint32_t, counts, BINS);
    SHARED(double, sums, THREADS);
    const chain &c = all.of[blockIdx.y];
    const notes to = notes_of(scratch, blockIdx.y);
    const best top = best_of_parts(to, gridDim.x);
    if (c.k == 0 || !is_finite(top)) return;
    const int thread = threadIdx.x;
    const gptr<const float> x = logits + static_cast<int64_t>(blockIdx.y) * n;
    for (int i = thread; i < BINS; i += THREADS) counts[i] = 0;
    __syncthreads();
    double sum = 0;
    for (int64_t i = blockIdx.x * THREADS + thread; i < n; i += gridDim.x * THREADS) {
        const float v = x[i];
        if (!(v >= top.value - c.reach)) continue;
        atomicAdd(counts + bin_of(top.value - v), 1u);
        if (c.k > LIST) sum += static_cast<double>(expf(v - top.value));
    }
    sums[thread] = sum;
    __syncthreads();
    for (int i = thread; i < BINS; i += THREADS) {
        const uint32_t count = counts[i];
        if (count > 0) atomicAdd(to.bins + i, count);
    }
    if (thread >= 32 || c.k <= LIST) return;
    for (int i = thread + 32; i < THREADS; i += 32) sum += sums[i];
    sums[thread] = sum;
    __syncwarp();
    if (thread != 0) return;
    for (int i = 1; i < 32; i++) sum += sums[i];
    to.totals[blockIdx.x] = sum;
}

/* The list ends with a bin: the one that holds the last candidate wanted if the list takes it whole, else the one
 * before. In all threads; -1 if not even the first bin fits. */
__device__ __forceinline__ int last_bin(const notes &from, int k, uint32_t *candidates) {
    constexpr int OWN = BINS / THREADS;
    SHARED(uint32_t, warps, THREADS / 32);
    SHARED(int, found, 1);
    const int thread = threadIdx.x;
    uint32_t own[OWN], upto = 0;
    UNROLL
    for (int j = 0; j < OWN; j += 4) {
        const uint4 four = as<uint4>(from.bins)[(thread * OWN + j) / 4];
        own[j] = four.x, own[j + 1] = four.y, own[j + 2] = four.z, own[j + 3] = four.w;
        upto += four.x + four.y + four.z + four.w;
    }
    const uint32_t mine = upto;
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t before = __shfl_up_sync(WARP_ALL, upto, step);
        if (thread % 32 >= step) upto += before;
    }
    if (thread % 32 == 31) warps[thread / 32] = upto;
    __syncthreads();
    uint32_t sum = 0;
    for (int w = 0; w < THREADS / 32; w++) {
        const uint32_t count = warps[w];
        if (w < thread / 32) upto += count;
        sum += count;
    }
    const uint32_t wanted = min(min(static_cast<uint32_t>(k), sum), static_cast<uint32_t>(LIST));
    uint32_t at = upto - mine;
    if (at < wanted && wanted <= upto) {
        int last = thread * OWN - 1;
        UNROLL
        for (int j = 0; j < OWN; j++)
            if (at < wanted) at += own[j], last++;
        found[0] = at > LIST ? last - 1 : last;
    }
    __syncthreads();
    *candidates = sum;
    return found[0];
}

/* Keys of candidates order as the candidates do: by logit, then the lower index; both zeros are one. 0: none. */
__device__ __forceinline__ uint64_t key_of(float v, int32_t index) {
    const uint32_t bits = __float_as_uint(v + 0.0f), order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(index);
}
__device__ __forceinline__ float key_logit(uint64_t key) {
    const uint32_t order = static_cast<uint32_t>(key >> 32);
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}
__device__ __forceinline__ int32_t key_index(uint64_t key) {
    return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

/* grid (parts, rows): fills the list. */
__global__ void __launch_bounds__(THREADS)
    list_candidates(gptr<const float> logits, int n, chains all, gptr<uint8_t> scratch) {
    const chain &c = all.of[blockIdx.y];
    const notes to = notes_of(scratch, blockIdx.y);
    const best top = best_of_parts(to, gridDim.x);
    if (c.k == 0 || !is_finite(top)) return;
    uint32_t candidates;
    const int last = last_bin(to, c.k, &candidates);
    if (blockIdx.x == 0 && threadIdx.x == 0) to.candidates[0] = candidates;
    const gptr<const float> x = logits + static_cast<int64_t>(blockIdx.y) * n;
    for (int64_t i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) {
        const float v = x[i];
        if (v >= top.value - c.reach && bin_of(top.value - v) <= last)
            to.list[atomicAdd(to.listed, 1u)] = key_of(v, static_cast<int32_t>(i));
    }
}

/* ---- the draw: one block a row, a candidate a thread */

/* The i-th largest in thread i, of keys of which only the first n are not 0. Bitonic: stages inside a warp by shuffles.
 */
__device__ __forceinline__ uint64_t sort_keys(uint64_t key, int n) {
    SHARED(uint64_t, keys, LIST);
    const int i = threadIdx.x;
    for (int size = 2; size / 2 < n; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            uint64_t other;
            if (step < 32) {
                const uint32_t low = __shfl_xor_sync(WARP_ALL, static_cast<uint32_t>(key), step);
                const uint32_t high = __shfl_xor_sync(WARP_ALL, static_cast<uint32_t>(key >> 32), step);
                other = static_cast<uint64_t>(high) << 32 | low;
            } else {
                keys[i] = key;
                __syncthreads();
                other = keys[i ^ step];
                __syncthreads();
            }
            const bool larger = ((i & step) == 0) == ((i & size) == 0);
            if ((other > key) == larger) key = other;
        }
    return key;
}

/* sums[i] of the first i + 1 threads' terms, one by one as the CPU adds them; n of them, behind which terms are 0. */
__device__ __forceinline__ void add_up(sptr<double> sums, float term, int n) {
    SHARED(float, terms, LIST);
    terms[threadIdx.x] = term;
    __syncthreads();
    double sum = 0;
    for (int i = 0; threadIdx.x == 0 && i < n; i += 4) {
        const float4 four = as<float4>(terms)[i / 4];
        sums[i] = sum += static_cast<double>(four.x);
        sums[i + 1] = sum += static_cast<double>(four.y);
        sums[i + 2] = sum += static_cast<double>(four.z);
        sums[i + 3] = sum += static_cast<double>(four.w);
    }
    __syncthreads();
}

/* The sum of what the parts have added up. */
__device__ __forceinline__ void add_totals(sptr<double> to, const notes &from, int n_parts) {
    double sum = 0;
    for (int i = 0; threadIdx.x == 0 && i < n_parts; i++) sum += from.totals[i];
    if (threadIdx.x == 0) to[0] = sum;
    __syncthreads();
}

__device__ __forceinline__ float share(float e, double of) {
    return static_cast<float>(static_cast<double>(e) / of);
}

/* The largest of all threads' numbers, in all of them. */
__device__ __forceinline__ int block_max(int x) {
    SHARED(int, most, LIST / 32);
    x = __reduce_max_sync(WARP_ALL, x);
    if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = x;
    __syncthreads();
    x = __reduce_max_sync(WARP_ALL, most[threadIdx.x % 32]);
    __syncthreads();
    return x;
}

/* How many of the n sorted candidates top_p and min_p leave: top_p looks at `summand`, which is 0 from n on, min_p
 * compares p. */
__device__ __forceinline__ int filter(sptr<double> sums, const chain &c, float summand, float p, float least, int n) {
    const int i = threadIdx.x;
    if (c.top_p < 1) {
        add_up(sums, summand, n);
        n = -block_max(i < n && !(sums[i] < static_cast<double>(c.top_p)) ? -(i + 1) : -n);
    }
    if (c.min_p > 0) n = block_max(i > 0 && i < n && !(p < least) ? i + 1 : 1);
    return n;
}

/* How many candidates of n in the list the filters leave. The list may be but the head of `candidates` (then more than
 * LIST were wanted): the sum of all is then known up to the order in which it was added, so p lies between two bounds,
 * and what is left is known if both leave the same. Otherwise 0. e: e^(logit - best), 0 from n on. */
__device__ __forceinline__ int filtered(sptr<double> sums, const chain &c, const notes &from, int n_parts, float e,
                                        int n, uint32_t candidates) {
    SHARED(float, first, 2);
    const int i = threadIdx.x;
    const bool whole = static_cast<uint32_t>(n) >= min(static_cast<uint32_t>(c.k), candidates);
    /* Of a sum of positive numbers two orders are 2^-53 a term off each, at most; twice that. */
    const double slack = whole ? 0.0 : static_cast<double>(candidates) * 0x1p-51;
    if (whole)
        add_up(sums, e, n);
    else
        add_totals(sums + (n - 1), from, n_parts);
    const double total = sums[n - 1];
    const float low = i < n ? share(e, total + total * slack) : 0.0f;
    const float high = i < n ? share(e, total - total * slack) : 0.0f;
    if (i == 0) first[0] = low, first[1] = high;
    __syncthreads();
    const int fewest = filter(sums, c, high, low, c.min_p * first[1], n);
    if (whole) return fewest;
    /* What is behind the list is not above its last one but for the last bits of an exponential. */
    const int most = filter(sums, c, low, high, c.min_p * first[0] * (1.0f - 0x1p-20f), n);
    return fewest == most && most < n ? most : 0;
}

/* The token by the uniform number, of the first n candidates with these logits below the best; in all threads: whose
 * candidate it is. */
__device__ __forceinline__ int pick(sptr<double> sums, const chain &c, float below, int n) {
    const int i = threadIdx.x;
    const float e = i < n ? expf(below * c.inverse_temperature) : 0.0f;
    add_up(sums, e, n);
    const double total = sums[n - 1];
    add_up(sums, i < n ? share(e, total) : 0.0f, n);
    return -block_max(i < n - 1 && c.uniform < sums[i] ? -i : -(n - 1));
}

/* grid: rows */
__global__ void __launch_bounds__(LIST, 1) draw(chains all, int n_parts, gptr<uint8_t> scratch) {
    SHARED(double, sums, LIST);
    const int i = threadIdx.x;
    const chain &c = all.of[blockIdx.x];
    const notes from = notes_of(scratch, blockIdx.x);
    const gptr<int32_t> token = as<int32_t>(scratch) + blockIdx.x;
    const best top = best_of_parts(from, n_parts);
    if (c.k == 0 || !is_finite(top)) {
        if (i == 0) token[0] = is_finite(top) ? top.index : LLMQ_DEVICE_NOT_FINITE;
        return;
    }
    const uint32_t listed = from.listed[0], candidates = from.candidates[0], k = static_cast<uint32_t>(c.k);
    if (listed == 0 || (listed < candidates && listed < k && k < candidates)) {
        if (i == 0) token[0] = LLMQ_DEVICE_TOO_MANY;
        return;
    }
    uint64_t key = 0;
    if (static_cast<uint32_t>(i) < listed) key = from.list[i];
    key = sort_keys(key, static_cast<int>(listed));
    const int n = static_cast<int>(min(listed, k));
    const float below = key_logit(key) - top.value;
    const int left = filtered(sums, c, from, n_parts, i < n ? expf(below) : 0.0f, n, candidates);
    const int drawn = left > 0 ? pick(sums, c, below, left) : 0;
    if (i == drawn) token[0] = left > 0 ? key_index(key) : LLMQ_DEVICE_TOO_MANY;
}

/* ---- penalties */

__global__ void __launch_bounds__(THREADS) penalize(gptr<float> logits, gptr<const int32_t> tokens, int n, float by) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const int32_t token = tokens[i];
    const float x = logits[token];
    logits[token] = x > 0 ? x / by : x * by;
}

chain chain_of(const cuda_draw *d, int64_t n) {
    const llmq_sampler_params *p = d->params;
    const int64_t k = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    const bool greedy = !(p->temperature > 0);
    return {d->uniform, 40 * fmaxf(1, p->temperature),   1 / p->temperature, p->top_p,
            p->min_p,   greedy ? 0 : static_cast<int>(k)};
}

} // namespace

void cuda_penalize(gpu_stream *stream, float *logits, const int32_t *tokens, int n, float penalty) {
    gptr<float> x = device_pointer(logits);
    gptr<const int32_t> of = device_pointer(tokens);
    const unsigned blocks = static_cast<unsigned>((n + THREADS - 1) / THREADS);
    LAUNCH(penalize, blocks, THREADS, 0, reinterpret_cast<stream_t>(stream), x, of, n, penalty);
}

void cuda_sample(gpu_stream *stream, const float *logits, int64_t n, int n_rows, const cuda_draw *draws,
                 void *scratch) {
    const int64_t wanted = (n + PART - 1) / PART;
    const int parts = static_cast<int>(wanted < PARTS_MOST ? wanted : PARTS_MOST), count = static_cast<int>(n);
    const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(n_rows));
    gptr<const float> x = device_pointer(logits);
    gptr<uint8_t> to = device_pointer(static_cast<uint8_t *>(scratch));
    const stream_t s = reinterpret_cast<stream_t>(stream);
    chains all = {};
    bool greedy = true;
    for (int i = 0; i < n_rows; i++) {
        all.of[i] = chain_of(&draws[i], n);
        greedy = greedy && all.of[i].k == 0;
    }
    LAUNCH(best_parts, grid, THREADS, 0, s, x, count, to);
    if (!greedy) LAUNCH(count_candidates, grid, THREADS, 0, s, x, count, all, to);
    if (!greedy) LAUNCH(list_candidates, grid, THREADS, 0, s, x, count, all, to);
    LAUNCH(draw, static_cast<unsigned>(n_rows), LIST, 0, s, all, parts, to);
}
