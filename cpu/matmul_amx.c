/* Many tokens by tiles of bf16 (amx.h): one product for every type of weight. Up to 8 tokens stay with
 * AVX-512, some more go to few_amx.c, counted twice if inputs are split.
 *
 * Activations are rounded to bf16 into tiles when they are filled. Weights of a panel of 32 rows x 256 columns are
 * taken apart into bf16 in the L1 cache, and multiplied by up to 512 tokens: 2 x 2 tiles of sums, so that each tile
 * that is loaded takes part in two products. Between panels of columns the sums of 128 rows wait in the L2 cache, as
 * tiles: where results go, a token's rows lie so far apart that they would compete for the same few sets of it. Beside
 * groups of 8-bit inputs this has no scales to apply between products, and rounds inputs to their own magnitude instead
 * of to that of the largest of 32.
 *
 * A result's order of sums depends on the shape only. */
#include "cpu/amx_square.h"

#include <string.h>

#include "cpu/codes_avx512.h"
#include "cpu/cpu.h"
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

INLINE __m512 byte_of(__m512i words, int b, __m512 scale, __m512 offset) {
    __m512i v = b == 3 ? _mm512_srli_epi32(words, 24)
                       : _mm512_and_si512(b ? _mm512_srli_epi32(words, 8 * b) : words, _mm512_set1_epi32(255));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), scale, offset);
}

/* Columns k0 .. k0+n of one tile as tiles of bf16. */
INLINE void unpack_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t k0, int64_t n, __m512i table, uint8_t *out) {
    super_scale super = {0};
    const __m512 lowest = _mm512_set1_ps((float)-zero);
    for (int64_t g = 0; g < n / 32; g++) {
        const layout_place at = layout_at(bits, group, two_level, mins, k0 / 32 + g);
        __m512i u[8];
        __m512 w[2], m[2];
        decode(bits, codebook, table, tile + at.code, u);
        next_scales(group, two_level, mins, tile, &at, &super, w, m);
        UNROLL for (int h = 0; h < 32 / group; h++) {
            if (!mins) m[h] = _mm512_mul_ps(w[h], lowest);
            if (mins && zero) m[h] = _mm512_fmadd_ps(w[h], lowest, m[h]);
        }
        UNROLL for (int j = 0; j < 8; j++, out += 128) {
            int h = j * 4 / group;
            vf_store((float *)(void *)out, vf_pair_bf16(byte_of(u[j], 0, w[h], m[h]), byte_of(u[j], 1, w[h], m[h])));
            vf_store((float *)(void *)(out + 64),
                     vf_pair_bf16(byte_of(u[j], 2, w[h], m[h]), byte_of(u[j], 3, w[h], m[h])));
        }
    }
}

typedef void unpack_fn(const uint8_t *tile, int64_t k0, int64_t n, __m512i table, uint8_t *out);

#define X(type, bits, group, two_level, mins, codebook, zero)                                                          \
    static void unpack_##type(const uint8_t *tile, int64_t k0, int64_t n, __m512i table, uint8_t *out) {               \
        unpack_tile(bits, group, two_level, mins, codebook, zero, tile, k0, n, table, out);                            \
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

/* n columns of one tile of NF4 or FP4 as tiles of bf16. */
static void unpack_nf4(const nf4_tile_block *w, int64_t n, __m512 table, uint8_t *out) {
    for (int64_t k = 0; k < n / QK_NF4; k++, w++) {
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

/* Tiles of 32 rows from r on, of the panel of columns that begins with tile k, where they are, or made in `room`. A
 * missing second half repeats the first and is not stored. */
typedef void rows_fn(const llmq_weight *w, int64_t r, int64_t k, panel_room room, rows_tiles *out);

static void quantized_rows(const llmq_weight *w, int64_t r, int64_t k, panel_room room, rows_tiles *out) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    int64_t tile_bytes = layout_tile_bytes(l, w->cols), n = panel_tiles(k, w->cols / AMX_DEPTH);
    const uint8_t *tile = (const uint8_t *)w->packed + r / 16 * tile_bytes;
    bool pair = w->rows - r > 16;
    __m512i table = code_table(l);
    for (int i = 0; i <= pair; i++)
        unpack_fns[w->layout](tile + i * tile_bytes, k * AMX_DEPTH, n * AMX_DEPTH, table, room[0][i]);
    out->part[0][0] = room[0][0];
    out->part[0][1] = room[0][pair];
}

static void nf4_rows(const llmq_weight *w, int64_t r, int64_t k, panel_room room, rows_tiles *out) {
    int64_t n = panel_tiles(k, w->cols / AMX_DEPTH) * AMX_DEPTH;
    bool pair = w->rows - r > 16;
    float level[16];
    nf4_levels(w->native.type, level);
    __m512 table = _mm512_loadu_ps(level);
    for (int i = 0; i <= pair; i++) unpack_nf4(nf4_tile(w, r + 16 * i) + k * AMX_DEPTH / QK_NF4, n, table, room[0][i]);
    out->part[0][0] = room[0][0];
    out->part[0][1] = room[0][pair];
}

static void bf16_rows(const llmq_weight *w, int64_t r, int64_t k, panel_room room, rows_tiles *out) {
    int64_t tile_bytes = layout_bf16_tile_bytes(w->cols);
    (void)room;
    out->part[0][0] = (const uint8_t *)w->packed + r / 16 * tile_bytes + k * AMX_TILE;
    out->part[0][1] = out->part[0][0] + (w->rows - r > 16 ? tile_bytes : 0);
}

static void native_rows(const llmq_weight *w, int64_t r, int64_t k, panel_room room, rows_tiles *out) {
    bool half = w->native.type == LLMQ_TYPE_F16, pair = w->rows - r > 16;
    int64_t n = panel_tiles(k, tiles_of(w->cols, AMX_DEPTH));
    for (int i = 0; i <= pair; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t col = (k + j) * AMX_DEPTH, left = w->cols - col, rows = w->rows - r - 16 * i;
            const uint16_t *from = (const uint16_t *)w->native.data + (r + 16 * i) * w->cols + col;
            uint8_t *to = room[0][i] + j * AMX_TILE, *rest = room[1][i] + j * AMX_TILE;
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
                    rows_tiles made;
                    rows(w, r0 + i * PANEL_ROWS, k, room, &made);
                    amx_fence();
                    times_tokens(&p, &made, r0 + i * PANEL_ROWS, k, sums + i * SUMS);
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
