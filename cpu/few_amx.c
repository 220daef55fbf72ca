/* 9 to 16 tokens times packed weights by tiles of bytes: the bits of matmul_avx512.c, since what tiles add up are whole
 * numbers.
 *
 * Of each group of 32 columns vectors take the codes of 16 rows apart, once for all tokens, and put the scales to the
 * sums; the products cost them nothing. But to store a tile of sums costs as much as two tiles' products, whatever it
 * holds: with fewer tokens vectors alone are as fast (measured for 4 and 8; with two groups sharing a tile, too).
 *
 * A group goes through three stages, taken apart, multiplied, added up. Tiles do not see what stores have not brought
 * to the cache, nor do vectors a tile's, so each stage works on what the one before wrote some rounds ago. Where scales
 * are of 16 columns there are two products, each with zeros in place of the other half's levels. */
#include "cpu/amx.h"

#include <string.h>

#include "cpu/codes_avx512.h"
#include "cpu/cpu.h"
#include "cpu/fetch.h"
#include "cpu/few_avx512.h"

#define DELAY 3 /* rounds from one stage to the next */
#define RING 8  /* a power of two above both delays */

/* Sums are tile 0, activations 1, weights 2. */
static void begin_tiles(int n_rows) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1, .bytes = {64, 32, 64}, .rows = {(uint8_t)n_rows, (uint8_t)n_rows, 8}};
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* gcc 12 believes that 8 bytes of it are read */
    _tile_loadconfig(&shape);
}

/* What a stage leaves for the next. */
typedef struct stage {
    _Alignas(64) int8_t level[2][8][64];      /* (halves of 16 columns, words of 4 columns, 16 rows) */
    _Alignas(64) int32_t sum[2][ACT_FEW][16]; /* (halves, tokens, 16 rows) */
} stage;

/* What a code stands for, as a signed byte (tiles need no start value for that), 16 times where vectors have it so. */
static __m512i level_table(const cpu_layout *l) {
    __m512i level = _mm512_xor_si512(code_table(l), _mm512_set1_epi8((char)0x80));
    if (RAISED(l->bits, l->zero)) level = _mm512_slli_epi16(_mm512_and_si512(level, _mm512_set1_epi8(15)), 4);
    return level;
}

/* Levels of a group, whose codes are at p. Where it has two halves, words of the other one keep their zeros. */
INLINE void take_apart(int bits, int group, int zero, const uint8_t *p, __m512i table, stage *out) {
    __m512i u[8];
    decode(bits, bits == 4, table, p, u);
    UNROLL for (int j = 0; j < 8; j++) {
        if (bits != 4 && zero) u[j] = _mm512_add_epi8(u[j], _mm512_set1_epi8((char)-zero));
        _mm512_store_si512(out->level[group == 16 ? j / 4 : 0][j], u[j]);
    }
}

/* q: 32 inputs of each token. */
INLINE void multiply(int group, const int8_t *q, stage *p) {
    _tile_loadd(1, q, 32);
    UNROLL for (int h = 0; h < 32 / group; h++) {
        _tile_zero(0);
        _tile_loadd(2, p->level[h], 64);
        _tile_dpbssd(0, 1, 2);
        _tile_stored(0, p->sum[h], 64);
    }
}

/* Sums of group g go to f (tokens), in the order of add_group. */
INLINE void add_up(LAYOUT_PARAMS, const uint8_t *tile, super_scale *super, int64_t g, act_block b, const stage *p,
                   __m512 *f) {
    const layout_place at = layout_at(bits, group, two_level, mins, g);
    __m512 w[2], m[2];
    const act_group *ag = b.group + g * b.n;
    next_scales(group, two_level, mins, tile, &at, super, w, m);
    w[0] = scale_raised(bits, zero, w[0]);
    UNROLL for (int t = 0; t < ACT_FEW; t++, ag++) { /* f stays in registers */
        if (t >= b.n) break;
        __m512 d = _mm512_set1_ps(ag->d), sum = f[t];
        UNROLL for (int h = 0; h < 32 / group; h++) sum =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(load_i(p->sum[h][t])), _mm512_mul_ps(w[h], d), sum);
        if (mins && group == 32) sum = _mm512_fmadd_ps(m[0], _mm512_set1_ps(ag->dsum), sum);
        if (mins && group == 16) {
            float dsum_lo = ag->d * (float)ag->sum[0];
            sum = _mm512_fmadd_ps(m[0], _mm512_set1_ps(dsum_lo), sum);
            sum = _mm512_fmadd_ps(m[1], _mm512_set1_ps(ag->dsum - dsum_lo), sum);
        }
        f[t] = sum;
    }
    (void)codebook;
}

INLINE void few_tile(LAYOUT_PARAMS, const uint8_t *tile, int64_t cols, __m512i table, act_block b, __m512 *out) {
    stage ring[RING];
    const int64_t groups = cols / 32;
    const int64_t group_bytes = LAYOUT_GROUP_BYTES(bits, group, two_level, mins);
    super_scale super = {0};
    __m512 f[ACT_FEW];
    UNROLL for (int t = 0; t < ACT_FEW; t++) f[t] = _mm512_setzero_ps();
    for (int i = 0; group == 16 && i < RING; i++) memset(ring[i].level, 0, sizeof ring[i].level);
    for (int64_t g = 0; g < groups + 2 * DELAY; g++) {
        int64_t to_multiply = g - DELAY, to_add = g - 2 * DELAY;
        amx_fence();
        if (to_multiply >= 0 && to_multiply < groups)
            multiply(group, b.q + to_multiply * b.n * 32, &ring[to_multiply % RING]);
        amx_fence();
        if (to_add >= 0) add_up(LAYOUT_ARGS, tile, &super, to_add, b, &ring[to_add % RING], f);
        if (g < groups) {
            fetch_ahead(tile + g * group_bytes, group_bytes);
            take_apart(bits, group, zero, tile + layout_at(bits, group, two_level, mins, g).code, table,
                       &ring[g % RING]);
        }
    }
    UNROLL for (int t = 0; t < ACT_FEW; t++) out[t] = f[t];
}

#define X(type, bits, group, two_level, mins, codebook, zero)                                                          \
    static void few_##type(const few_tiles *tiles, int64_t cols, __m512i table, const act_block *b,                    \
                           const few_way *way, __m512(*out)[ACT_FEW]) {                                                \
        (void)way;                                                                                                     \
        for (int i = 0; i < tiles->n; i++)                                                                             \
            few_tile(bits, group, two_level, mins, codebook, zero, tiles->tile[i], cols, table, *b, out[i]);           \
    }
CPU_LAYOUTS(X)
#undef X

static few_fn *const few_fns[LAYOUT_BF16] = {CPU_LAYOUTS(FEW_FN)};

void few_matmul_amx(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    begin_tiles(act_parts(w->act) * (int)a->n_tok);
    const cpu_layout *l = cpu_layout_of(w->layout);
    few_rows(worker, w, a, few_fns[w->layout], false, level_table(l), code_table(l), y, ldy);
    amx_end();
}
