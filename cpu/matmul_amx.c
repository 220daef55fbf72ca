/* Many tokens by tiles of bf16 (amx.h): one product for every type of weight. Up to 8 tokens stay with
 * AVX-512, some more go to few_amx.c, counted twice if inputs are split.
 *
 * Activations are rounded to bf16 into tiles when they are filled. Weights of a panel of 32 rows x 256 columns are
 * taken apart into bf16 in the L1 cache, while those of the next are asked for (a panel is too short for what the
 * processor fetches by itself), and multiplied by up to 512 tokens: 2 x 2 tiles of sums, so that each tile that is
 * loaded takes part in two products. Between panels of columns the sums of 128 rows wait in the L2 cache, as
 * tiles: where results go, a token's rows lie so far apart that they would compete for the same few sets of it. Beside
 * groups of 8-bit inputs this has no scales to apply between products, and rounds inputs to their own magnitude instead
 * of to that of the largest of 32.
 *
 * A result's order of sums depends on the shape only. */
#include "cpu/amx_square.h"

#include <string.h>

#include "cpu/codes_avx512.h"
#include "cpu/cpu.h"
#include "cpu/fetch.h"
#include "cpu/layout.h"
#include "cpu/nf4.h"

#define PANEL_ROWS (2 * AMX_SIDE)
#define BLOCK_PANELS 4   /* of rows whose sums are kept, */
#define BLOCK_TOKENS 512 /* for so many tokens: 256 KB */
#define FEW_LEAST 9      /* rows from which on tiles of bytes are faster than vectors */

/* ---- activations: for each panel of columns its tiles, (tiles of tokens, tiles of columns); tokens past the last and
 * columns past the last are zero. Where a form has two parts the second lies behind the first */

static bool many(int64_t n_tok) {
    return n_tok > ACT_FEW;
}

static int64_t part_bytes(int64_t n_tok, int64_t cols) {
    return tiles_of(n_tok, AMX_SIDE) * tiles_of(cols, AMX_DEPTH) * AMX_TILE;
}

static size_t acts_bytes(llmq_act_form form, int64_t n_tok, int64_t cols) {
    if (!many(n_tok) && form != ACT_DENSE) return cpu_acts_bytes(form, n_tok, cols);
    if (form == ACT_Q8 || form == ACT_Q8_SPLIT || form == ACT_Q16) return (size_t)part_bytes(n_tok, cols);
    if (form == ACT_BF16 || form == ACT_DENSE) return 2 * (size_t)part_bytes(n_tok, cols); /* one buffer for both */
    return cpu_acts_bytes(form, n_tok, cols);
}

/* What is left of x when its bf16 is taken off. */
INLINE __m512 residue(__m512 x) {
    __m256i high = (__m256i)_mm512_cvtneps_pbh(x);
    return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
}

/* rest: NULL, or where the second part goes. */
static void fill_tiles(const llmq_worker *worker, const llmq_acts *a, uint8_t *tiles, uint8_t *rest) {
    int64_t depth = act_groups(a->cols), n = tiles_of(a->n_tok, AMX_SIDE), begin, end;
    act_share(worker, a, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t t = i / depth, k = i % depth, left = a->cols - 32 * k;
        int64_t at = tile_offset(t / AMX_SIDE, k, n, depth) + t % AMX_SIDE * 64;
        size_t tail = t == a->n_tok - 1 ? (size_t)(AMX_SIDE - 1 - t % AMX_SIDE) * 64 : 0;
        const float *x = a->x + t * a->cols + 32 * k;
        __m512 lo = _mm512_maskz_loadu_ps(mask_of(left), x),
               hi = left > 16 ? _mm512_maskz_loadu_ps(mask_of(left - 16), x + 16) : _mm512_setzero_ps();
        _mm512_storeu_si512(tiles + at, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
        memset(tiles + at + 64, 0, tail);
        if (!rest) continue;
        _mm512_storeu_si512(rest + at, (__m512i)_mm512_cvtne2ps_pbh(residue(hi), residue(lo)));
        memset(rest + at + 64, 0, tail);
    }
}

/* ---- weights */

/* A word of a tile of bf16 holds two neighbouring columns of a row. So two vectors of floats are made of 8 rows each,
 * whose two columns lie side by side: rounding both to one vector leaves them where they belong. */

/* For each of 16 lanes the byte of its column and row, four times, in a vector of 16 rows x 4 columns: columns 2 * pair
 * and the next, rows 8 * half .. 8 * half + 7. */
INLINE __m512i column_pair(int pair, int half) {
    const __m512i first = _mm512_set_epi32(29, 28, 25, 24, 21, 20, 17, 16, 13, 12, 9, 8, 5, 4, 1, 0);
    return _mm512_mullo_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(32 * half + 2 * pair)),
                              _mm512_set1_epi32(0x01010101));
}

/* x of 16 rows for such vectors. */
INLINE void spread_rows(__m512 x, __m512 out[2]) {
    const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    out[0] = _mm512_permutex2var_ps(x, low, x);
    out[1] = _mm512_permutex2var_ps(x, _mm512_add_epi32(low, _mm512_set1_epi32(8)), x);
}

INLINE void store_pair(const __m512 half[2], uint8_t *out) {
    _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(half[1], half[0]));
}

/* A group of 4-bit codes that stand for themselves, scale * (code - zero) + offset. A code becomes a float by bits of
 * an exponent before it: 128 + code of the lower four bits of a byte at bit 16, 2048 + code of the upper at bit 8.
 * Exact without offsets; these lose up to 2^-13 of the scale when 2048 scales are taken off, where bf16 has steps of
 * 2^-8 and more unless the weight is nearly 0. */
INLINE void unpack_nibbles(int zero, const uint8_t *p, __m512 w, __m512 m, uint8_t *out) {
    __m512 scale[2], low[2], high[2];
    spread_rows(w, scale);
    spread_rows(_mm512_fmadd_ps(w, _mm512_set1_ps((float)(-128 - zero)), m), low);
    spread_rows(_mm512_fmadd_ps(w, _mm512_set1_ps((float)(-2048 - zero)), m), high);
    UNROLL for (int j = 0; j < 4; j++) {
        const __m512i raw = load_once(p + 64 * j);
        UNROLL for (int pair = 0; pair < 2; pair++) {
            __m512 l[2], h[2];
            UNROLL for (int half = 0; half < 2; half++) {
                __m512i codes = _mm512_permutexvar_epi8(column_pair(pair, half), raw);
                l[half] = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
                    codes, _mm512_set1_epi32(0x000f0000), _mm512_set1_epi32(0x43000000), 0xea)); /* a & b | c */
                h[half] = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(0x0000f000),
                                                                        _mm512_set1_epi32(0x45000000), 0xea));
                l[half] = _mm512_fmadd_ps(l[half], scale[half], low[half]);
                h[half] = _mm512_fmadd_ps(h[half], scale[half], high[half]);
            }
            store_pair(l, out + (2 * j + pair) * 64);
            store_pair(h, out + (2 * j + 8 + pair) * 64);
        }
    }
}

/* A group whose codes have been taken apart. */
INLINE void unpack_codes(int group, const __m512i u[8], const __m512 w[2], const __m512 m[2], uint8_t *out) {
    UNROLL for (int part = 0; part < 32 / group; part++) {
        __m512 scale[2], offset[2];
        spread_rows(w[part], scale);
        spread_rows(m[part], offset);
        UNROLL for (int i = 0; i < group / 4; i++) {
            const int j = part * 4 + i;
            UNROLL for (int pair = 0; pair < 2; pair++) {
                __m512 x[2];
                UNROLL for (int half = 0; half < 2; half++) {
                    __m512i code =
                        _mm512_maskz_permutexvar_epi8(UINT64_C(0x1111111111111111), column_pair(pair, half), u[j]);
                    x[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), scale[half], offset[half]);
                }
                store_pair(x, out + (2 * j + pair) * 64);
            }
        }
    }
}

/* Columns k0 .. k0+n of one tile as tiles of bf16; next: what will be taken apart after it, and is asked for. */
INLINE void unpack_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t k0, int64_t n, __m512i table, const uint8_t *next,
                        uint8_t *out) {
    const int64_t group_bytes = LAYOUT_GROUP_BYTES(bits, group, two_level, mins);
    super_scale super = {0};
    const __m512 lowest = _mm512_set1_ps((float)-zero);
    for (int64_t g = 0; g < n / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, k0 / 32 + g);
        __m512i u[8];
        __m512 w[2], m[2];
        fetch(next + g * group_bytes, group_bytes);
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        if (bits == 4 && group == 32 && !codebook) {
            unpack_nibbles(zero, tile + at.code, w[0], mins ? m[0] : _mm512_setzero_ps(), out + g * 1024);
            continue;
        }
        decode(bits, codebook, table, tile + at.code, u);
        UNROLL for (int h = 0; h < 32 / group; h++) {
            if (!mins) m[h] = _mm512_mul_ps(w[h], lowest);
            if (mins && zero) m[h] = _mm512_fmadd_ps(w[h], lowest, m[h]);
        }
        unpack_codes(group, u, w, m, out + g * 1024);
    }
}

typedef void unpack_fn(const uint8_t *tile, int64_t k0, int64_t n, __m512i table, const uint8_t *next, uint8_t *out);

#define X(type, bits, group, two_level, mins, codebook, zero)                                                          \
    static void unpack_##type(const uint8_t *tile, int64_t k0, int64_t n, __m512i table, const uint8_t *next,          \
                              uint8_t *out) {                                                                          \
        unpack_tile(bits, group, two_level, mins, codebook, zero, tile, k0, n, table, next, out);                      \
    }
CPU_LAYOUTS(X)
#undef X

static unpack_fn *const unpack_fns[LAYOUT_BF16] = {
#define X(type, bits, group, two_level, mins, codebook, zero) [LAYOUT_##type] = unpack_##type,
    CPU_LAYOUTS(X)
#undef X
};

/* 16 rows of one column, by codes in the low bits of words. */
INLINE __m512 nf4_column(__m512 table, __m512i codes, __m512 scale) {
    return _mm512_mul_ps(_mm512_permutex2var_ps(table, codes, table), scale); /* bit 4 says which: the same twice */
}

/* n columns of one tile of NF4 or FP4 as tiles of bf16; next: as for others. */
static void unpack_nf4(const nf4_tile_block *w, int64_t n, __m512 table, const nf4_tile_block *next, uint8_t *out) {
    for (int64_t k = 0; k < n / QK_NF4; k++, w++, next++) {
        fetch(next, sizeof *next);
        __m512 scale = _mm512_loadu_ps(w->scale);
        for (int j = 0; j < QK_NF4 / 8; j++) {
            __m512i raw = load_i(w->code[j]);
            UNROLL for (int i = 0; i < 4; i++, out += 64) {
                __m512 even = nf4_column(table, _mm512_srli_epi32(raw, 4 * i), scale),
                       odd = nf4_column(table, _mm512_srli_epi32(raw, 16 + 4 * i), scale);
                vf_store((float *)(void *)out, vf_pair_bf16(even, odd));
            }
        }
    }
}

/* Rows of F16 or BF16 as stored. */
INLINE __m512 load_native(bool half, const uint16_t *p, int64_t left) {
    __m256i raw = _mm256_maskz_loadu_epi16(mask_of(left), p);
    return half ? _mm512_cvtph_ps(raw) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

/* 16 rows x 32 columns, `left` of them there, of a matrix of cols columns; rows past n are 0. F16 has more bits than
 * bf16: rest takes what rounding leaves. */
INLINE void unpack_native(bool half, const uint16_t *from, int64_t cols, int64_t n, int64_t left, uint8_t *out,
                          uint8_t *rest) {
    vf high[16], low[16];
    UNROLL_FOR(r, 16) {
        high[r] = low[r] = vf_zero();
        if (r >= n) continue;
        const uint16_t *p = from + r * cols;
        vf even = load_native(half, p, left), odd = left > 16 ? load_native(half, p + 16, left - 16) : vf_zero();
        high[r] = (vf)_mm512_cvtne2ps_pbh(odd, even); /* a word is two neighbouring columns */
        if (half) low[r] = (vf)_mm512_cvtne2ps_pbh(residue(odd), residue(even));
    }
    vf_transpose(high);
    UNROLL_FOR(j, 16) _mm512_store_ps(out + 64 * j, high[j]);
    if (!half) return;
    vf_transpose(low);
    UNROLL_FOR(j, 16) _mm512_store_ps(rest + 64 * j, low[j]);
}

/* ---- products */

/* y of up to 32 tokens x 32 rows, where results go. */
typedef struct square {
    float *y; /* row 0 of token 0; stride ldy */
    int64_t ldy, n_tok, n_rows;
    const float *bias; /* of row 0, or NULL */
} square;

/* Sums begin with the bias, the same for every token. */
static void begin_sums(const square *s) {
    if (!s->bias) {
        zero_sums();
        return;
    }
    _Alignas(64) float bias[PANEL_ROWS];
    for (int i = 0; i < 2; i++)
        _mm512_store_ps(bias + 16 * i, _mm512_maskz_loadu_ps(mask_of(s->n_rows - 16 * i), s->bias + 16 * i));
    amx_fence();
    load_sums(bias, 0);
}

/* Which parts of inputs and weights are multiplied: all but the rests with each other. */
typedef struct product {
    int a, b;
} product;
static const product products[] = {{0, 0}, {1, 0}, {0, 1}};

/* Tiles of 32 rows of weights: their parts, of two times 16 rows. */
typedef struct rows_tiles {
    const uint8_t *part[2][2];
} rows_tiles;

typedef struct block {
    const llmq_weight *w;
    const llmq_acts *a;
    const uint8_t *tiles; /* the activations' */
    int n_products;
    float *y;
    int64_t ldy;
    int64_t t, n_tok; /* tokens of the block */
    float *sums;      /* (panels of rows, 32 tokens), 4 tiles each */
} block;

/* The tokens of a block times 32 rows from r on, over the panel of columns that begins with tile k. */
static void times_tokens(const block *p, const rows_tiles *rows, int64_t r, int64_t k, float *sums) {
    int64_t depth = tiles_of(p->w->cols, AMX_DEPTH), n = panel_tiles(k, depth), step = n * AMX_TILE,
            all = tiles_of(p->a->n_tok, AMX_SIDE), part = part_bytes(p->a->n_tok, p->w->cols);
    bool last = k + n == depth;
    for (int64_t t = p->t; t < p->t + p->n_tok; t += PANEL_ROWS, sums += 4 * AMX_SIDE * AMX_SIDE) {
        const uint8_t *a0 = p->tiles + tile_offset(t / AMX_SIDE, k, all, depth);
        square s = {p->y + t * p->ldy + r, p->ldy, p->a->n_tok - t, p->w->rows - r, p->w->bias ? p->w->bias + r : NULL};
        if (k == 0)
            begin_sums(&s);
        else
            load_sums(sums, 128);
        for (int i = 0; i < p->n_products; i++) {
            const uint8_t *a = a0 + products[i].a * part, *const *b = rows->part[products[i].b];
            multiply_bf16(a, s.n_tok > AMX_SIDE ? a + step : a, b[0], b[1], n, sums + 4 * AMX_SIDE * AMX_SIDE, 128);
        }
        if (last)
            finish_sums(s.y, s.ldy, s.n_tok, s.n_rows);
        else
            store_sums(sums, 128);
    }
}

/* Room for the tiles of 32 rows over a panel of columns, (parts, halves). */
typedef uint8_t panel_room[2][2][PANEL_TILES * AMX_TILE];

/* A panel: 32 rows from r on, of the columns that begin with tile k. */
typedef struct panel_at {
    int64_t r, k;
} panel_at;

/* Its tiles, where they are, or made in `room`. A missing second half repeats the first and is not stored. next: the
 * panel that is wanted after it. */
typedef void rows_fn(const llmq_weight *w, panel_at at, panel_at next, panel_room room, rows_tiles *out);

static void quantized_rows(const llmq_weight *w, panel_at at, panel_at next, panel_room room, rows_tiles *out) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    int64_t tile_bytes = layout_tile_bytes(l, w->cols), n = panel_tiles(at.k, w->cols / AMX_DEPTH);
    const uint8_t *tile = (const uint8_t *)w->packed + at.r / 16 * tile_bytes,
                  *then = (const uint8_t *)w->packed + next.r / 16 * tile_bytes + layout_place_of(l, next.k).super;
    bool pair = w->rows - at.r > 16;
    __m512i table = code_table(l);
    for (int i = 0; i <= pair; i++)
        unpack_fns[w->layout](tile + i * tile_bytes, at.k * AMX_DEPTH, n * AMX_DEPTH, table, then + i * tile_bytes,
                              room[0][i]);
    out->part[0][0] = room[0][0];
    out->part[0][1] = room[0][pair];
}

static void nf4_rows(const llmq_weight *w, panel_at at, panel_at next, panel_room room, rows_tiles *out) {
    const int64_t n = panel_tiles(at.k, w->cols / AMX_DEPTH) * AMX_DEPTH;
    const bool pair = w->rows - at.r > 16;
    float level[16];
    nf4_levels(w->native.type, level);
    __m512 table = _mm512_loadu_ps(level);
    for (int i = 0; i <= pair; i++)
        unpack_nf4(nf4_tile(w, at.r + 16 * i) + at.k * AMX_DEPTH / QK_NF4, n, table,
                   nf4_tile(w, next.r + 16 * i) + next.k * AMX_DEPTH / QK_NF4, room[0][i]);
    out->part[0][0] = room[0][0];
    out->part[0][1] = room[0][pair];
}

static void bf16_rows(const llmq_weight *w, panel_at at, panel_at next, panel_room room, rows_tiles *out) {
    const int64_t tile_bytes = layout_bf16_tile_bytes(w->cols);
    (void)next; /* calibration reads them for thousands of tokens */
    (void)room;
    out->part[0][0] = (const uint8_t *)w->packed + at.r / 16 * tile_bytes + at.k * AMX_TILE;
    out->part[0][1] = out->part[0][0] + (w->rows - at.r > 16 ? tile_bytes : 0);
}

static void native_rows(const llmq_weight *w, panel_at at, panel_at next, panel_room room, rows_tiles *out) {
    const bool half = w->native.type == LLMQ_TYPE_F16, pair = w->rows - at.r > 16;
    const int64_t n = panel_tiles(at.k, tiles_of(w->cols, AMX_DEPTH));
    const uint16_t *base = w->native.data;
    for (int i = 0; i <= pair; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t col = (at.k + j) * AMX_DEPTH, left = w->cols - col, rows = w->rows - at.r - 16 * i;
            const uint16_t *from = base + (at.r + 16 * i) * w->cols + col;
            uint8_t *to = room[0][i] + j * AMX_TILE, *rest = room[1][i] + j * AMX_TILE;
            int64_t then_col = (next.k + j) * AMX_DEPTH, then = next.r + 16 * i;
            for (int r = 0; r < 16 && then + r < w->rows && then_col < w->cols; r++)
                fetch(base + (then + r) * w->cols + then_col, 1);
            if (half)
                unpack_native(true, from, w->cols, rows, left, to, rest);
            else
                unpack_native(false, from, w->cols, rows, left, to, NULL);
        }
    }
    for (int part = 0; part < 2; part++) {
        out->part[part][0] = room[part][0];
        out->part[part][1] = room[part][pair];
    }
}

/* The panel after one of the block of rows from r0 on, of rows begin to end: the last one has itself. */
static panel_at panel_after(panel_at at, int64_t r0, int64_t end, int64_t depth) {
    if (at.r + PANEL_ROWS < end && at.r + PANEL_ROWS < r0 + BLOCK_PANELS * PANEL_ROWS)
        return (panel_at){at.r + PANEL_ROWS, at.k};
    if (at.k + PANEL_TILES < depth) return (panel_at){r0, at.k + PANEL_TILES};
    return at.r + PANEL_ROWS < end ? (panel_at){at.r + PANEL_ROWS, 0} : at;
}

static void matmul_many(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, const uint8_t *tiles,
                        rows_fn *rows, int n_products, float *y, int64_t ldy) {
    enum { SUMS = PANEL_ROWS * BLOCK_TOKENS };
    _Alignas(64) panel_room room;
    _Alignas(64) float sums[BLOCK_PANELS * SUMS];
    block p = {.w = w, .a = a, .tiles = tiles, .n_products = n_products, .y = y, .ldy = ldy};
    int64_t depth = tiles_of(w->cols, AMX_DEPTH), begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    amx_begin();
    for (p.t = 0; p.t < a->n_tok; p.t += BLOCK_TOKENS) {
        p.n_tok = a->n_tok - p.t < BLOCK_TOKENS ? a->n_tok - p.t : BLOCK_TOKENS;
        for (int64_t r0 = begin; r0 < end; r0 += BLOCK_PANELS * PANEL_ROWS) {
            for (int64_t k = 0; k < depth; k += PANEL_TILES) {
                for (int i = 0; i < BLOCK_PANELS && r0 + i * PANEL_ROWS < end; i++) {
                    const panel_at at = {r0 + i * PANEL_ROWS, k};
                    rows_tiles made;
                    rows(w, at, panel_after(at, r0, end, depth), room, &made);
                    amx_fence();
                    times_tokens(&p, &made, at.r, k, sums + i * SUMS);
                    amx_fence(); /* before `room` is written again */
                }
            }
        }
    }
    amx_end();
}

/* ---- entries: what tiles do not do goes to the ops as AVX-512 filled them */

static llmq_backend_ops avx512;

/* Rows of F16 and BF16 keep their precision, and so their inputs, though avx512bf16, whose BF16 has ACT_BF16, rounds
 * them. */
static llmq_status weight_prepare(llmq_weight *w, const llmq_tensor *t, int flags, llmq_team *team, llmq_err *err) {
    LLMQ_TRY(avx512.weight_prepare(w, t, flags, team, err));
    if (w->act == ACT_BF16 && w->layout == LAYOUT_NATIVE) w->act = ACT_DENSE;
    return LLMQ_OK;
}

static void acts_fill(const llmq_worker *worker, llmq_acts *a, llmq_act_form form) {
    if (form == ACT_DENSE && many(a->n_tok))
        fill_tiles(worker, a, a->bf16, (uint8_t *)a->bf16 + part_bytes(a->n_tok, a->cols));
    else if (form != ACT_F32 && form != ACT_INT8 && many(a->n_tok))
        fill_tiles(worker, a, form == ACT_BF16 ? a->bf16 : form == ACT_Q16 ? a->q16 : a->q8, NULL);
    else
        avx512.acts_fill(worker, a, form); /* nothing for few tokens of ACT_DENSE */
}

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const int64_t rows = act_parts(w->act) * a->n_tok;
    const bool few = !many(a->n_tok);
    if (rows >= FEW_LEAST && rows <= ACT_FEW && cpu_layout_of(w->layout))
        few_matmul_amx(worker, w, a, y, ldy);
    else if (few || w->layout == LAYOUT_INT8 || w->act == ACT_F32)
        avx512.matmul(worker, w, a, y, ldy);
    else if (w->act == ACT_DENSE)
        matmul_many(worker, w, a, a->bf16, native_rows, w->native.type == LLMQ_TYPE_F16 ? 3 : 2, y, ldy);
    else if (w->layout == LAYOUT_BF16)
        matmul_many(worker, w, a, a->bf16, bf16_rows, 1, y, ldy);
    else if (w->layout == LAYOUT_NF4)
        matmul_many(worker, w, a, a->q16, nf4_rows, 1, y, ldy);
    else
        matmul_many(worker, w, a, a->q8, quantized_rows, 1, y, ldy);
}

void cpu_fill_matmul_amx(llmq_backend_ops *ops) {
    avx512 = *ops;
    ops->weight_prepare = weight_prepare;
    ops->acts_bytes = acts_bytes;
    ops->acts_fill = acts_fill;
    ops->matmul = matmul;
}
