/* AVX-512 VNNI kernels for the interleaved quantized layouts (layout.h).
 *
 * Codes are the unsigned operand of vpdpbusd, activations the signed one. A zero point costs nothing: the integer sum
 * starts at -zero * sum(activations) instead of 0.
 *
 * Few tokens (decode, memory-bound): codes are taken apart in registers, one tile of 16 rows = one vector of results.
 * More tokens: a panel of 32 rows x up to 4096 columns is taken apart once into L2, as bytes 128 too large with one
 * scale for 32 columns for every type alike, and multiplied by all tokens, 6 at a time: 12 integer and 12 float sums in
 * registers.
 *
 * Every result is computed in its own lane in an order that depends on the shape only, never on the number of workers.
 */
#include <immintrin.h>
#include <string.h>

#include "cpu/act_q8.h"
#include "cpu/codes_avx512.h"
#include "cpu/cpu.h"
#include "cpu/dense.h"
#include "cpu/fetch.h"
#include "cpu/few_avx512.h"
#include "cpu/inline.h"
#include "cpu/int8.h"
#include "cpu/layout.h"
#include "cpu/nf4.h"
#include "cpu/tile_avx512.h"

#define PANEL_ROWS 32
/* 256 KB with scales, of the L2 cache, from where it comes in time. The fewer panels, the less often sums come and go,
 * which lie far apart in y. */
#define PANEL_COLS 4096
#define FEW_TOKENS 8 /* that share the codes of a tile as they are taken apart */

/* ---- few tokens */

INLINE int log2_of(int zero) {
    return zero == 4 ? 2 : zero == 8 ? 3 : zero == 16 ? 4 : zero == 32 ? 5 : 7;
}

/* Where a sum begins, so that a zero point costs nothing; start: -128 * sum of the inputs. */
INLINE __m512i start_of(int bits, int zero, int32_t start) {
    __m512i v = _mm512_set1_epi32(start);
    return RAISED(bits, zero) ? v : _mm512_srai_epi32(v, 7 - log2_of(zero));
}

/* Integer sums lo and hi (groups of 16 columns: of both halves) of 16 rows and a token go to its float sum. */
INLINE __m512 add_group(int group, bool mins, __m512i lo, __m512i hi, const __m512 w[2], const __m512 m[2],
                        const act_group *ag, __m512 sum) {
    const __m512 d = _mm512_set1_ps(ag->d);
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(lo), _mm512_mul_ps(w[0], d), sum);
    if (group == 32) return mins ? _mm512_fmadd_ps(m[0], _mm512_set1_ps(ag->dsum), sum) : sum;
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(hi), _mm512_mul_ps(w[1], d), sum);
    if (mins) {
        float dsum_lo = ag->d * (float)ag->sum[0];
        sum = _mm512_fmadd_ps(m[0], _mm512_set1_ps(dsum_lo), sum);
        sum = _mm512_fmadd_ps(m[1], _mm512_set1_ps(ag->dsum - dsum_lo), sum);
    }
    return sum;
}

/* f[t] += group g of a tile times nt tokens, whose inputs begin at q, and ag. Scales are wanted before codes, as they
 * lie: what the processor fetches by itself follows lines upwards. */
INLINE void gemv_group(LAYOUT_PARAMS, int nt, const uint8_t *tile, int64_t g, __m512i table, const int8_t *q,
                       const act_group *ag, super_scale *super, __m512 *f) {
    const layout_place at = layout_at(bits, group, two_level, mins, g);
    const bool one = group == 32 && nt >= 5; /* sum a token: two wait half as long, but take registers */
    __m512i u[8], lo[FEW_TOKENS], hi[FEW_TOKENS];
    __m512 w[2], m[2];
    next_scales(group, two_level, mins, tile, &at, super, w, m);
    w[0] = scale_raised(bits, zero, w[0]);
    IN_REGISTER(w[0]);
    decode_raised(bits, codebook, zero, table, tile + at.code, u);
    UNROLL for (int t = 0; t < nt; t++) {
        lo[t] = hi[t] = _mm512_setzero_si512();
        if (zero && group == 32) lo[t] = start_of(bits, zero, ag[t].start);
        if (zero && group == 16) {
            lo[t] = start_of(bits, zero, -128 * ag[t].sum[0]);
            hi[t] = start_of(bits, zero, -128 * ag[t].sum[1]);
        }
    }
    UNROLL for (int j = 0; j < 4; j++) {
        UNROLL for (int t = 0; t < nt; t++) lo[t] = _mm512_dpbusd_epi32(lo[t], u[j], bcast4(q + 32 * t + 4 * j));
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i x = bcast4(q + 32 * t + 16 + 4 * j);
            if (one) lo[t] = _mm512_dpbusd_epi32(lo[t], u[j + 4], x);
            if (!one) hi[t] = _mm512_dpbusd_epi32(hi[t], u[j + 4], x);
        }
    }
    UNROLL for (int t = 0; t < nt; t++) {
        if (group == 32 && !one) lo[t] = _mm512_add_epi32(lo[t], hi[t]);
        f[t] = add_group(group, mins, lo[t], hi[t], w, m, &ag[t], f[t]);
    }
}

/* out[i][t] = 16 rows of tile i times tokens t0 .. t0+nt of the block. */
INLINE void gemv_tiles(LAYOUT_PARAMS, int nt, const few_tiles *tiles, int64_t cols, __m512i table, const act_block *b,
                       int t0, const few_way *way, __m512 (*out)[ACT_FEW]) {
    const int64_t groups = cols / 32, group_bytes = LAYOUT_GROUP_BYTES(bits, group, two_level, mins);
    const int64_t run = LAYOUT_RUN_BYTES(bits, group, two_level, mins);
    const bool twice = way->fetch == FEW_FETCH_TWICE;
    const int64_t distance = twice ? FEW_RUNS(FETCH_PART, run) : FEW_RUNS(FETCH_AHEAD, run);
    super_scale super[FEW_PARTS];
    for (int64_t first = 0; first < groups; first += way->slice) {
        const int64_t end = first + way->slice < groups ? first + way->slice : groups;
        for (int i = 0; i < tiles->n; i++) {
            __m512 f[FEW_TOKENS];
            const int64_t at = first * group_bytes;
            const uint8_t *far = few_ahead(tiles, i, at + distance),
                          *soon = few_ahead(tiles, i, at + FEW_RUNS(FETCH_SOON, run));
            UNROLL for (int t = 0; t < nt; t++) f[t] = first ? out[i][t0 + t] : _mm512_setzero_ps();
            for (int64_t g = first; g < end; g++) {
                if (way->fetch != FEW_FETCH_NONE) fetch(far + g * group_bytes - at, group_bytes);
                if (twice) fetch_soon(soon + g * group_bytes - at, group_bytes);
                gemv_group(LAYOUT_ARGS, nt, tiles->tile[i], g, table, b->q + (g * b->n + t0) * 32,
                           b->group + g * b->n + t0, &super[i], f);
            }
            UNROLL for (int t = 0; t < nt; t++) out[i][t0 + t] = f[t];
        }
    }
}

typedef void gemv_fn(const few_tiles *tiles, int64_t cols, __m512i table, const act_block *b, int t0,
                     const few_way *way, __m512 (*out)[ACT_FEW]);

#define GEMV(nt, type, ...)                                                                                            \
    static void gemv##nt##_##type(const few_tiles *tiles, int64_t cols, __m512i table, const act_block *b, int t0,     \
                                  const few_way *way, __m512(*out)[ACT_FEW]) {                                         \
        gemv_tiles(__VA_ARGS__, nt, tiles, cols, table, b, t0, way, out);                                              \
    }
#define X(type, ...)                                                                                                   \
    GEMV(1, type, __VA_ARGS__)                                                                                         \
    GEMV(2, type, __VA_ARGS__)                                                                                         \
    GEMV(3, type, __VA_ARGS__)                                                                                         \
    GEMV(4, type, __VA_ARGS__)                                                                                         \
    GEMV(5, type, __VA_ARGS__)                                                                                         \
    GEMV(6, type, __VA_ARGS__)                                                                                         \
    GEMV(7, type, __VA_ARGS__)                                                                                         \
    GEMV(8, type, __VA_ARGS__)                                                                                         \
    static void few_##type(const few_tiles *tiles, int64_t cols, __m512i table, const act_block *b,                    \
                           const few_way *way, __m512(*out)[ACT_FEW]) {                                                \
        static gemv_fn *const fns[FEW_TOKENS] = {gemv1_##type, gemv2_##type, gemv3_##type, gemv4_##type,               \
                                                 gemv5_##type, gemv6_##type, gemv7_##type, gemv8_##type};              \
        for (int t = 0; t < b->n; t += FEW_TOKENS)                                                                     \
            fns[(b->n - t < FEW_TOKENS ? b->n - t : FEW_TOKENS) - 1](tiles, cols, table, b, t, way, out);              \
    }
CPU_LAYOUTS(X)
#undef X

static few_fn *const few_fns[LAYOUT_BF16] = {CPU_LAYOUTS(FEW_FN)};

static void matmul_few(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const __m512i codes = code_table(cpu_layout_of(w->layout));
    few_rows(worker, w, a, few_fns[w->layout], true, codes, codes, y, ldy);
}

/* ---- many tokens */

/* 32 rows of weights ready for the register tile; rows r and r + 16 of a word lie side by side.
 *
 * A sum of a group is scaled by a weight's scale times d of its inputs. That product would take a turn at the two ports
 * of vpdpbusd; but d has ACT_SCALES fractions, 1 + i / 8, each times a power of two. So the panel holds the weight's
 * scale times each of them (exact: 4 bits more than the scale's 11 or 18), less the fraction itself as bits; to add the
 * bits of d then adds the exponents, at any port. A scale of 0 has no exponent: its codes become 128 and it becomes 1.
 * Nor have infinity and NaN, which damaged files hold: the sums of their rows become NaN. */
typedef struct panel {
    _Alignas(64) uint8_t code[PANEL_COLS / 4 * 128];                     /* (words, 2, 64), 128 too large */
    _Alignas(64) int32_t scale[PANEL_COLS / 32][ACT_SCALES][PANEL_ROWS]; /* per group */
    _Alignas(64) float offset[PANEL_COLS / 16][PANEL_ROWS];              /* per group, or half of one */
    __mmask16 damaged[2];                                                /* rows with a scale that is not finite */
} panel;

/* The bits of 1 + i / 8. */
INLINE __m512i fraction_bits(int i) {
    return _mm512_set1_epi32((127 << 23) + (i << 20));
}

/* Scales w of a group of 16 rows into the panel, and its words, 128 bytes apart, where they are 0. Returns which are
 * not finite. */
INLINE __mmask16 unpack_scales(__m512 w, int32_t out[ACT_SCALES][PANEL_ROWS], uint8_t *words) {
    __mmask16 none = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_EQ_OQ);
    if (none) {
        for (int j = 0; j < 8; j++) _mm512_mask_storeu_epi32(words + 128 * j, none, _mm512_set1_epi8((char)128));
        w = _mm512_mask_mov_ps(w, none, _mm512_set1_ps(1));
    }
    UNROLL for (int i = 0; i < ACT_SCALES; i++) {
        __m512i fraction = fraction_bits(i);
        __m512i bits = _mm512_castps_si512(_mm512_mul_ps(w, _mm512_castsi512_ps(fraction)));
        _mm512_store_si512(out[i], _mm512_sub_epi32(bits, fraction));
    }
    return _mm512_cmp_ps_mask(_mm512_sub_ps(w, w), _mm512_setzero_ps(), _CMP_UNORD_Q);
}

/* The scale that two halves of 16 columns get in common (layout.h), from theirs and the d of both. */
INLINE __m512 common_scale(int bits, const __m512 w[2], __m512 d) {
    if (bits < 6) return _mm512_sub_ps(_mm512_setzero_ps(), d);
    __mmask16 second = _mm512_cmp_ps_mask(_mm512_abs_ps(w[1]), _mm512_abs_ps(w[0]), _CMP_GT_OQ);
    return _mm512_mul_ps(_mm512_mask_mov_ps(w[0], second, w[1]), _mm512_set1_ps(1.0f / LAYOUT_FINER));
}

/* Codes u of a half, as words, become levels of the common scale, as bytes 128 too large; w: the scale of the half.
 *
 * (code - zero) * w / scale in 16 bits, of which 8 are a fraction. What levels of a scale of 0 become does not matter.
 * Those of 6 bits begin at -128: a ratio near -LAYOUT_FINER becomes a little less. */
INLINE void to_scale(int bits, int zero, __m512 w, __m512 scale, __m512i u[4]) {
    __m512i r = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_div_ps(w, scale), _mm512_set1_ps(256)));
    if (bits == 6) r = _mm512_max_epi32(r, _mm512_set1_epi32(-32639 / zero));
    r = _mm512_or_si512(_mm512_and_si512(r, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(r, 16));
    const __m512i minus = _mm512_set1_epi32((int)((uint32_t)(uint16_t)-zero * 0x10001u));
    const __m512i start = _mm512_add_epi16(_mm512_set1_epi32((int)0x80808080), _mm512_mullo_epi16(r, minus));
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i even = _mm512_and_si512(u[j], _mm512_set1_epi32(0x00ff00ff)), odd = _mm512_srli_epi16(u[j], 8);
        even = _mm512_add_epi16(_mm512_mullo_epi16(even, r), start);
        odd = _mm512_add_epi16(_mm512_mullo_epi16(odd, r), start);
        u[j] = _mm512_mask_blend_epi8(UINT64_C(0xaaaaaaaaaaaaaaaa), _mm512_srli_epi16(even, 8), odd);
    }
}

/* Columns k0 .. k0+n of one tile into half `half` of the panel. */
INLINE void unpack_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t k0, int64_t n, __m512i table, panel *out,
                        int half) {
    super_scale super = {0};
    out->damaged[half] = 0;
    __m512i shift = _mm512_set1_epi8((char)(128 - zero));
    int halves = 32 / group;
    for (int64_t g = 0; g < n / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, k0 / 32 + g);
        __m512i u[8];
        __m512 w[2], m[2];
        uint8_t *words = out->code + g * 8 * 128 + half * 64;
        decode(bits, bits == 4, table, tile + at.code, u);
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        UNROLL for (int h = 0; mins && h < halves; h++) {
            _mm512_store_ps(&out->offset[g * halves + h][half * 16], m[h]);
        }
        if (halves == 2) {
            __m512 scale = common_scale(bits, w, super.d);
            to_scale(bits, zero, w[0], scale, u);
            to_scale(bits, zero, w[1], scale, u + 4);
            w[0] = scale;
        }
        UNROLL for (int j = 0; j < 8; j++) {
            if (halves == 1 && bits != 4 && zero != 128) u[j] = _mm512_add_epi8(u[j], shift);
            _mm512_store_si512(words + j * 128, u[j]);
        }
        out->damaged[half] |= unpack_scales(w[0], (int32_t(*)[PANEL_ROWS])(out->scale[g][0] + half * 16), words);
    }
    (void)codebook;
}

typedef void unpack_fn(const uint8_t *tile, int64_t k0, int64_t n, __m512i table, panel *out, int half);

#define X(type, bits, group, two_level, mins, codebook, zero)                                                          \
    static void unpack_##type(const uint8_t *tile, int64_t k0, int64_t n, __m512i table, panel *out, int half) {       \
        unpack_tile(bits, group, two_level, mins, codebook, zero, tile, k0, n, table, out, half);                      \
    }
CPU_LAYOUTS(X)
#undef X

static unpack_fn *const unpack_fns[LAYOUT_BF16] = {
#define X(type, bits, group, two_level, mins, codebook, zero) [LAYOUT_##type] = unpack_##type,
    CPU_LAYOUTS(X)
#undef X
};

/* A weight's scale times d, from its bits. */
INLINE __m512 scaled(const int32_t *scale, __m512i d) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_load_si512(scale), d));
}

/* Which of ACT_SCALES fractions d has. A load of its own: gcc would else broadcast d from an integer register, which
 * takes a turn at the products' ports. */
INLINE int fraction_of(const float *d) {
    uint16_t upper;
    memcpy(&upper, (const char *)d + 2, 2);
    return upper >> 4 & (ACT_SCALES - 1);
}

/* Integer sums (tokens, 2) of a group go to the float sums; offsets: of one, for 32 columns or 16 each. */
INLINE void flush(int offsets, int nt, __m512i acc[6][2], __m512 f[6][2], const int32_t scale[ACT_SCALES][PANEL_ROWS],
                  const float *offset, const act_group *ag) {
    UNROLL for (int t = 0; t < nt; t++) {
        const int32_t *row = scale[fraction_of(&ag[t].d)];
        const __m512i d = bcast4_reg(&ag[t].d);
        UNROLL for (int i = 0; i < 2; i++) f[t][i] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][i]), scaled(row + 16 * i, d), f[t][i]);
        const float lower = offsets == 2 ? ag[t].d * (float)ag[t].sum[0] : 0;
        UNROLL for (int h = 0; h < offsets; h++) {
            const __m512 dsum = _mm512_set1_ps(h == 0 && offsets == 2 ? lower : ag[t].dsum - lower);
            UNROLL for (int i = 0; i < 2; i++) f[t][i] =
                _mm512_fmadd_ps(_mm512_load_ps(offset + h * PANEL_ROWS + 16 * i), dsum, f[t][i]);
        }
    }
}

/* f (tokens, 2) += panel x nt tokens of the block, over n columns. */
INLINE void gemm_tile(int offsets, int nt, const panel *w, const act_block *b, int64_t n, __m512 f[6][2]) {
    const uint8_t *code = w->code;
    const float *offset = w->offset[0];
    const int8_t *q = b->q;
    const act_group *ag = b->group;
    for (int64_t g = 0; g < n / 32; g++, code += 8 * 128, offset += offsets * PANEL_ROWS, q += nt * 32, ag += nt) {
        __m512i acc[6][2];
        UNROLL for (int t = 0; t < nt; t++) acc[t][0] = acc[t][1] = _mm512_set1_epi32(ag[t].start);
        UNROLL for (int j = 0; j < 8; j++) {
            __m512i w0 = load_i(code + j * 128), w1 = load_i(code + j * 128 + 64);
            UNROLL for (int t = 0; t < nt; t++) {
                __m512i x = bcast4_reg(q + t * 32 + 4 * j);
                acc[t][0] = _mm512_dpbusd_epi32(acc[t][0], w0, x);
                acc[t][1] = _mm512_dpbusd_epi32(acc[t][1], w1, x);
            }
        }
        flush(offsets, nt, acc, f, w->scale[g], offset, ag);
    }
}

/* Of the 64 places (group * nt + token) from `from` on those below end that have an outlier. */
INLINE uint64_t outliers_from(const act_block *b, int64_t from, int64_t end) {
    uint64_t some = _mm512_cmpneq_epi8_mask(load_i(b->outlier_at + from), _mm512_set1_epi8((char)ACT_NO_OUTLIER));
    return end - from < 64 ? some & ((UINT64_C(1) << (end - from)) - 1) : some;
}

/* f (tokens, 2) += panel x the outliers that `some` has from place `from` on. */
INLINE void gemm_outliers(int offsets, int nt, const panel *w, const act_block *b, int64_t from, uint64_t some,
                          __m512 f[6][2]) {
    for (; some; some &= some - 1) {
        const uint32_t i = (uint32_t)from + (uint32_t)__builtin_ctzll(some), g = i / (uint32_t)nt,
                       t = i - g * (uint32_t)nt;
        const int col = b->outlier_at[i];
        const int64_t part = offsets == 2 ? 2 * g + (uint32_t)col / 16 : g;
        const uint8_t *code = w->code + (g * 8 + col / 4) * 128;
        const __m512 x = _mm512_set1_ps(b->outlier[i]);
        UNROLL for (int h = 0; h < 2; h++) {
            __m512i u = _mm512_srlv_epi32(load_i(code + 64 * h), _mm512_set1_epi32(col % 4 * 8));
            u = _mm512_sub_epi32(_mm512_and_si512(u, _mm512_set1_epi32(255)), _mm512_set1_epi32(128));
            __m512 scale = scaled(w->scale[g][0] + 16 * h, fraction_bits(0));
            f[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(u), _mm512_mul_ps(scale, x), f[t][h]);
            if (offsets) f[t][h] = _mm512_fmadd_ps(_mm512_load_ps(w->offset[part] + 16 * h), x, f[t][h]);
        }
    }
}

INLINE void gemm_block(int offsets, int nt, const panel *w, const act_block *b, int64_t n, const tile_out *o) {
    __m512 f[6][2];
    const int64_t end = n / 32 * nt;
    int64_t i = 0;
    tile_begin(nt, o, f);
    gemm_tile(offsets, nt, w, b, n, f);
    while (i < end && !outliers_from(b, i, end)) i += 64;
    if (i < end) { /* a copy, so that f itself stays in registers */
        __m512 sum[6][2];
        UNROLL for (int t = 0; t < nt; t++) sum[t][0] = f[t][0], sum[t][1] = f[t][1];
        for (; i < end; i += 64) gemm_outliers(offsets, nt, w, b, i, outliers_from(b, i, end), sum);
        UNROLL for (int t = 0; t < nt; t++) f[t][0] = sum[t][0], f[t][1] = sum[t][1];
    }
    if (w->damaged[0] | w->damaged[1]) UNROLL for (int t = 0; t < nt; t++) {
            UNROLL for (int h = 0; h < 2; h++) f[t][h] =
                _mm512_mask_mov_ps(f[t][h], w->damaged[h], _mm512_set1_ps(NAN));
        }
    tile_end(nt, o, f);
}

typedef void gemm_fn(const panel *w, const act_block *b, int64_t n, const tile_out *o);

#define GEMM_WIDTHS(Y, offsets) Y(offsets, 1) Y(offsets, 2) Y(offsets, 3) Y(offsets, 4) Y(offsets, 5) Y(offsets, 6)
#define GEMM_DEFINE(offsets, nt)                                                                                       \
    static void gemm_##offsets##_##nt(const panel *w, const act_block *b, int64_t n, const tile_out *o) {              \
        gemm_block(offsets, nt, w, b, n, o);                                                                           \
    }
#define GEMM_NAME(offsets, nt) gemm_##offsets##_##nt,
GEMM_WIDTHS(GEMM_DEFINE, 0)
GEMM_WIDTHS(GEMM_DEFINE, 1)
GEMM_WIDTHS(GEMM_DEFINE, 2)
static gemm_fn *const gemm_fns[3][6] = {
    {GEMM_WIDTHS(GEMM_NAME, 0)}, {GEMM_WIDTHS(GEMM_NAME, 1)}, {GEMM_WIDTHS(GEMM_NAME, 2)}};

/* While block i of n is multiplied by a panel: some of what the next one is taken from, columns k .. k+n_cols of a pair
 * of tiles. Unpacking waits for memory otherwise; the products do not need it. Only by the last blocks, since the
 * activations of all push out of the caches what came before. (With a hint for L2 it did not come on Zen 5.) */
INLINE void fetch_next(const cpu_layout *l, const uint8_t *tile, int64_t tile_bytes, int64_t k, int64_t n_cols,
                       int64_t i, int64_t n) {
    const int64_t bytes = layout_span(l, k, n_cols), parts = n / 4 + 1, part = i - (n - parts);
    const uint8_t *p = tile + layout_place_of(l, k / 32).super;
    if (part < 0) return;
    for (int64_t at = bytes * part / parts / 64 * 64; at < bytes * (part + 1) / parts; at += 64) {
        _mm_prefetch((const char *)p + at, _MM_HINT_T0);
        _mm_prefetch((const char *)p + tile_bytes + at, _MM_HINT_T0);
    }
}

static void matmul_many(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    int64_t tile_bytes = layout_tile_bytes(l, w->cols), step = layout_panel_cols(l, w->cols, PANEL_COLS), begin, end;
    const int parts = act_parts(w->act);
    const int64_t rows = parts * a->n_tok;
    unpack_fn *unpack = unpack_fns[w->layout];
    gemm_fn *const *gemm = gemm_fns[l->mins ? 32 / l->group : 0];
    __m512i table = code_table(l);
    panel p;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t k = 0; k < w->cols; k += step) {
        int64_t n = w->cols - k < step ? w->cols - k : step;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint8_t *tile = (const uint8_t *)w->packed + r / 16 * tile_bytes;
            bool pair = w->rows - r > 16; /* otherwise the second half repeats the first and is not stored */
            unpack(tile, k, n, table, &p, 0);
            unpack(pair ? tile + tile_bytes : tile, k, n, table, &p, 1);
            tile_out o = tile_out_of(w, r, ldy, k == 0);
            for (int64_t i = 0; i < rows; i += ACT_BLOCK) {
                act_block b = act_block_from(act_block_at(a, rows, i), k);
                o.y = y + i / parts * ldy + r;
                if (end - r >= 2 * PANEL_ROWS)
                    fetch_next(l, tile + 2 * tile_bytes, tile_bytes, k, n, i / ACT_BLOCK,
                               (rows + ACT_BLOCK - 1) / ACT_BLOCK);
                int64_t next = i + ACT_BLOCK, last = next + ACT_BLOCK;
                tile_fetch(y, ldy, r, next / parts, (last < rows ? last : rows) / parts);
                gemm[b.n - 1](&p, &b, n, &o);
            }
        }
    }
}

/* ---- activations */

INLINE __m512 upper16(const float *x, int64_t n) {
    return n > 16 ? _mm512_maskz_loadu_ps(mask_of(n - 16), x + 16) : _mm512_setzero_ps();
}

/* Magnitudes of floats order as integers; NaN is above infinity. */
INLINE uint32_t peak(const float *x, int64_t n) {
    const __m512i abs_mask = _mm512_set1_epi32(0x7fffffff);
    __m512i x0 = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask_of(n), x)), x1 = _mm512_castps_si512(upper16(x, n));
    return _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_and_si512(x0, abs_mask), _mm512_and_si512(x1, abs_mask)));
}

INLINE void round_group(const float *x, int64_t n, float inverse, int8_t *q, int32_t sum[2]) {
    __m512 times = _mm512_set1_ps(inverse);
    __m512i i0 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask_of(n), x), times));
    __m512i i1 = _mm512_cvtps_epi32(_mm512_mul_ps(upper16(x, n), times));
    __m256i v = _mm256_set_m128i(_mm512_cvtepi32_epi8(i1), _mm512_cvtepi32_epi8(i0));
    _mm256_storeu_si256((__m256i *)q, v);
    v = _mm256_sad_epu8(_mm256_xor_si256(v, _mm256_set1_epi8((char)128)), _mm256_setzero_si256()); /* of 8, 128 each */
    v = _mm256_add_epi64(v, _mm256_shuffle_epi32(v, 0x4e));
    sum[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(v)) - 16 * 128;
    sum[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(v, 1)) - 16 * 128;
}

static size_t acts_bytes(llmq_act_form form, int64_t n_tok, int64_t cols) {
    if (form != ACT_BF16 && form != ACT_DENSE) return cpu_acts_bytes(form, n_tok, cols);
    return act_dense_offset(n_tok, cols) + (n_tok > ACT_FEW ? act16_bytes(n_tok, cols) : 0); /* one buffer for both */
}

static void acts_fill(const llmq_worker *worker, llmq_acts *a, llmq_act_form form) {
    if (form == ACT_Q8 || form == ACT_Q8_SPLIT) act_fill_q8(worker, a, form, peak, round_group);
    if (form == ACT_DENSE) dense_fill_avx512(worker, a);
    if (form == ACT_INT8) int8_fill_avx512(worker, a);
    if (form == ACT_Q16) nf4_fill_avx512(worker, a);
}

/* ---- entries */

static llmq_status weight_prepare(llmq_weight *w, const llmq_tensor *t, int flags, llmq_team *team, llmq_err *err) {
    (void)flags; /* without bf16 products there is nothing to gain from PREP_BF16 */
    LLMQ_TRY(cpu_weight_pack(w, t, NULL, team, err));
    if (w->layout == LAYOUT_NATIVE && t->type != LLMQ_TYPE_F32) w->act = ACT_DENSE;
    return LLMQ_OK;
}

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout == LAYOUT_INT8)
        int8_matmul_avx512(worker, w, a, y, ldy);
    else if (w->layout == LAYOUT_NF4)
        nf4_matmul_avx512(worker, w, a, y, ldy);
    else if (!cpu_layout_of(w->layout))
        dense_matmul_avx512(worker, w, a, y, ldy);
    else if (act_parts(w->act) * a->n_tok <= ACT_FEW)
        matmul_few(worker, w, a, y, ldy);
    else
        matmul_many(worker, w, a, y, ldy);
}

void cpu_fill_matmul_avx512(llmq_backend_ops *ops) {
    ops->weight_prepare = weight_prepare;
    ops->weight_prepare_int8 = int8_pack;
    ops->weight_release = cpu_weight_release;
    ops->acts_bytes = acts_bytes;
    ops->acts_fill = acts_fill;
    ops->matmul = matmul;
}
