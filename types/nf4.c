/* NF4 and FP4 as bitsandbytes has them (bitsandbytes/functional.py: get_4bit_type, create_dynamic_map, quantize_4bit;
 * QLoRA, arXiv 2305.14314). Loaders only multiply a table by a float32 for every block, so that number need not be the
 * largest magnitude of the block, as bitsandbytes has it: fit searches the one with the least squared error. */
#include "types/nf4.h"

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "types/bits.h"

#define MAX_BLOCK 4096
#define TINY 1e-30f
#define W_FLOOR 1e-6f /* weights that do not matter still count a little */

/* ---- tables ---- */

static const float nf4_levels[16] = {-1.0f,
                                     -0.6961928009986877f,
                                     -0.5250730514526367f,
                                     -0.39491748809814453f,
                                     -0.28444138169288635f,
                                     -0.18477343022823334f,
                                     -0.09105003625154495f,
                                     0.0f,
                                     0.07958029955625534f,
                                     0.16093020141124725f,
                                     0.24611230194568634f,
                                     0.33791524171829224f,
                                     0.44070982933044434f,
                                     0.5626170039176941f,
                                     0.7229568362236023f,
                                     1.0f};

static const float fp4_levels[15] = {-12.0f / 12, -8.0f / 12,    -6.0f / 12, -4.0f / 12,   -3.0f / 12,
                                     -2.0f / 12,  -0.0625f / 12, 0.0f,       0.0625f / 12, 2.0f / 12,
                                     3.0f / 12,   4.0f / 12,     6.0f / 12,  8.0f / 12,    12.0f / 12};
const uint8_t nf4_fp4_codes[15] = {11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3};
static const float fp4_table[16] = {0.0f,       0.0625f / 12, 8.0f / 12,  12.0f / 12,    4.0f / 12,  6.0f / 12,
                                    2.0f / 12,  3.0f / 12,    0.0f,       -0.0625f / 12, -8.0f / 12, -12.0f / 12,
                                    -4.0f / 12, -6.0f / 12,   -2.0f / 12, -3.0f / 12};

const float *nf4_table(bool fp4) {
    return fp4 ? fp4_table : nf4_levels;
}

bool nf4_is(const llmq_type_info *t, bool fp4) {
    return t->levels == (fp4 ? fp4_levels : nf4_levels);
}

/* For e = 0..6 the middles of 2^e equal parts of [0.1, 1], times 10^(e-6), with both signs; 0 and 1. In float32, with
 * the points as torch.linspace rounds them (once each; the second half counted from the end): the values are
 * bitsandbytes' bit for bit. */
void nf4_nested_map(float map[NF4_MAP]) {
    static const float tens[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int at = NF4_MAP / 2;
    map[NF4_MAP / 2 - 1] = 0.0f;
    map[NF4_MAP - 1] = 1.0f;
    for (int e = 0; e < 7; e++) {
        int n = 1 << e;
        float step = (1.0f - 0.1f) / (float)n, before = 0.1f;
        for (int i = 1; i <= n; i++) {
            float point = (float)(i < (n + 1) / 2 ? 0.1f + (double)step * i : 1.0 - (double)step * (n - i));
            float value = tens[e] * ((before + point) / 2.0f);
            map[at] = value;
            map[NF4_MAP - 2 - at] = -value;
            before = point;
            at++;
        }
    }
}

/* ---- the scale of a block ----
 *
 * For fixed codes the best scale is <xq> / <qq> (<.> sums w(.)), and what it explains of <xx> is <xq>^2 / <qq>. A fan
 * of guesses around the largest magnitude, then codes and scale in turns from the best. */

typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

typedef struct scale_search {
    const llmq_type_info *t;
    int64_t n; /* a multiple of 4, padded by weights of no importance */
    _Alignas(16) float x[MAX_BLOCK], w[MAX_BLOCK];
    double explained; /* best so far */
    float scale;
} scale_search;

static void scale_try(scale_search *s, float guess) {
    const float *levels = s->t->levels;
    int n_levels = s->t->n_levels;
    v4 inv = (v4){0} + 1.0f / guess, sxq = {0}, sqq = {0};
    for (int64_t i = 0; i < s->n; i += 4) {
        v4 x, w, q = (v4){0} + levels[0];
        memcpy(&x, s->x + i, sizeof x);
        memcpy(&w, s->w + i, sizeof w);
        v4 u = x * inv;
        for (int k = 1; k < n_levels; k++) {
            i4 above = u > (v4){0} + 0.5f * (levels[k - 1] + levels[k]);
            q += (v4)(above & (i4)((v4){0} + (levels[k] - levels[k - 1])));
        }
        v4 wq = w * q;
        sxq += wq * x;
        sqq += wq * q;
    }
    double xq = (double)sxq[0] + sxq[1] + sxq[2] + sxq[3], qq = (double)sqq[0] + sqq[1] + sqq[2] + sqq[3];
    if (!(qq > 0) || !(xq > 0) || xq * xq / qq <= s->explained) return;
    s->explained = xq * xq / qq;
    s->scale = (float)(xq / qq);
}

static void scale_search_run(scale_search *s, float amax) {
    enum { FAN = 14 };
    for (int k = 0; k < FAN; k++) scale_try(s, amax * (0.66f + 0.04f * (float)k)); /* to 1.18: no clipping */
    for (int k = 0; k < 4 && s->scale > 0.0f; k++) {
        double before = s->explained;
        scale_try(s, s->scale);
        if (s->explained <= before) break;
    }
    float centre = s->scale;
    if (!(centre > 0.0f)) return;
    scale_try(s, centre * 1.01f);
    scale_try(s, centre * 0.99f);
}

static float finite_or_zero(float x) {
    return isfinite(x) ? x : 0.0f;
}

static void fit(const llmq_type_info *t, const float *x, const float *importance, int64_t n, llmq_grid *grid) {
    scale_search s;
    float amax = 0.0f, w_max = 0.0f;
    memset(grid, 0, sizeof *grid);
    for (int64_t i = 0; i < n; i++) {
        amax = fmaxf(amax, fabsf(finite_or_zero(x[i])));
        if (importance) w_max = fmaxf(w_max, finite_or_zero(importance[i]));
    }
    grid->scale[0] = grid->d = amax;
    if (amax < TINY) return;
    float unit = f32_from_bits(f32_bits(amax) & 0x7f800000u); /* a power of two: no sum over- or underflows */
    s.t = t;
    s.n = (n + 3) / 4 * 4;
    s.explained = 0;
    s.scale = 0;
    for (int64_t i = 0; i < s.n; i++) {
        float w = i >= n ? 0.0f : w_max > 0.0f ? importance[i] / w_max : 1.0f;
        s.x[i] = i < n ? finite_or_zero(x[i]) / unit : 0.0f;
        s.w[i] = i >= n || (w > W_FLOOR && w <= 1.0f) ? w : W_FLOOR;
    }
    scale_search_run(&s, amax / unit);
    float scale = s.scale * unit;
    if (isfinite(scale) && scale > 0.0f) grid->scale[0] = grid->d = scale;
}

/* ---- double quantization ---- */

static int nearest_code(const float *map, float x) {
    int lo = 0, hi = NF4_MAP - 1;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (2.0f * x > map[mid] + map[mid + 1])
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Scales to what a loader makes of their codes: map[code] * absmax + offset, never below zero. */
static void settle(llmq_quantized *q) {
    llmq_nested *nested = q->nested;
    int64_t n = quantized_grids(q);
    float map[NF4_MAP];
    double sum = 0;
    nf4_nested_map(map);
    for (int64_t i = 0; i < n; i++) sum += q->grids[i].scale[0];
    nested->offset = (float)(sum / (double)n);
    for (int64_t b = 0; b < nf4_nested_blocks(n); b++) {
        int64_t begin = b * NF4_NESTED_BLOCK, end = begin + NF4_NESTED_BLOCK < n ? begin + NF4_NESTED_BLOCK : n;
        float absmax = 0.0f;
        for (int64_t i = begin; i < end; i++) absmax = fmaxf(absmax, fabsf(q->grids[i].scale[0] - nested->offset));
        nested->absmax[b] = absmax;
        for (int64_t i = begin; i < end; i++) {
            int code = absmax > 0.0f ? nearest_code(map, (q->grids[i].scale[0] - nested->offset) / absmax) : 0;
            while (code < NF4_MAP - 1 && map[code] * absmax + nested->offset < 0.0f) code++;
            float scale = map[code] * absmax;
            scale += nested->offset;
            nested->codes[i] = (uint8_t)code;
            q->grids[i].scale[0] = q->grids[i].d = scale;
        }
    }
}

/* ---- blocks in memory ---- */

/* As block_nf4 places them: the place of element e of 8 in their word. */
static int nibble_of(int e) {
    return 4 * (e % 2) + e / 2;
}

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_nf4 *b = block;
    float d;
    memcpy(&d, b->d, sizeof d);
    grid_single(grid, d, 0.0f);
    for (int e = 0; e < QK_NF4; e++) {
        int at = nibble_of(e % 8);
        codes[e] = b->qs[e / 8 * 4 + at / 2] >> at % 2 * 4 & 15;
    }
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_nf4 *b = block;
    memcpy(b->d, &grid->d, sizeof b->d);
    memset(b->qs, 0, sizeof b->qs);
    for (int e = 0; e < QK_NF4; e++) {
        int at = nibble_of(e % 8);
        uint8_t *byte = &b->qs[e / 8 * 4 + at / 2];
        *byte = (uint8_t)(*byte | (codes[e] & 15) << at % 2 * 4);
    }
}

#define IN_MEMORY(kind, type_id, n)                                                                                    \
    const llmq_type_info type_##kind = {.id = type_id,                                                                 \
                                        .name = #kind,                                                                 \
                                        .bits = 4,                                                                     \
                                        .block_len = QK_NF4,                                                           \
                                        .block_bytes = sizeof(block_nf4),                                              \
                                        .group_len = QK_NF4,                                                           \
                                        .in_memory = true,                                                             \
                                        .levels = kind##_levels,                                                       \
                                        .n_levels = n,                                                                 \
                                        .unpack = unpack,                                                              \
                                        .pack = pack}
IN_MEMORY(nf4, LLMQ_TYPE_NF4, 16);
IN_MEMORY(fp4, LLMQ_TYPE_FP4, 15);

/* ---- the grids ---- */

#define GRID(kind, n, len, second)                                                                                     \
    {                                                                                                                  \
        .id = LLMQ_TYPE_NONE, .name = #kind, .bits = 4, .block_len = len, .group_len = len, .ragged = true,            \
        .flat = true, .levels = kind##_levels, .n_levels = n, .fit_ragged = fit, .settle = second                      \
    }
#define GRIDS(kind, n, len)                                                                                            \
    { GRID(kind, n, len, NULL), GRID(kind, n, len, settle) }
#define KIND(kind, n)                                                                                                  \
    {                                                                                                                  \
        GRIDS(kind, n, 32), GRIDS(kind, n, 64), GRIDS(kind, n, 128), GRIDS(kind, n, 256), GRIDS(kind, n, 512),         \
            GRIDS(kind, n, 1024), GRIDS(kind, n, 2048), GRIDS(kind, n, 4096)                                           \
    }

const llmq_type_info *nf4_grid(bool fp4, int64_t block, bool nested) {
    static const llmq_type_info grids[2][8][2] = {KIND(nf4, 16), KIND(fp4, 15)};
    for (int i = 0; i < 8; i++)
        if (block == 32 << i) return &grids[fp4][i][nested];
    return NULL;
}
