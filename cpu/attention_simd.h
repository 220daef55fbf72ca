/* Attention in vectors; included by the file of each ISA. attention_plan.h says how the work is cut. Rows are the
 * queries of all heads of one KV head, token by token, so that keys and values are read (and converted to f32) once for
 * all of them. */
#include <math.h>

#include "cpu/attention_plan.h"
#include "cpu/kv_simd.h"
#include "cpu/ops.h"
#include "cpu/tile_simd.h"

_Static_assert(TILE_M <= ATTN_TILE_MOST, "attn_rows leaves too little room");
#define NO_SCORE (-1e30f) /* finite, so that differences are numbers: 2^(NO_SCORE - m) is 0 */

typedef struct attn_call {
    const llmq_attn *a;
    const llmq_kv *kv;
    attn_plan plan;
    const float *q;
    int64_t ldq;
    float *out;
    float *parts; /* (n_splits, n_tok * n_head, part_len) */
    bool bf16;  /* products of bf16, where the kernels have such */
    bool tiles; /* of AMX (attention_tiles.h) */
} attn_call;

typedef struct attn_item {
    int head;           /* KV head */
    int64_t tok, n_tok; /* queries */
    int64_t key, key_end;
    int64_t part; /* index of the split, from 0 */
    int64_t n_rows;
} attn_item;

/* A worker's memory: rows are rounded up to a register tile's. */
typedef struct attn_space {
    float *q, *o; /* (rows, head_dim); q times scale log2(e) */
    float *m;     /* (rows) */
    float *l;     /* (rows, VF_N): lanes are added at the end */
    float *k, *v; /* tiles: (head_dim, ATTN_KEYS), (ATTN_KEYS, head_dim) */
    float *s;     /* scores: (TILE_M, ATTN_KEYS), or (rows, ATTN_FEW_SPLIT) */
} attn_space;

/* ---- items ---- */

static attn_space space_make(const llmq_attn *a, float *at) {
    int64_t rows = attn_rows(a), dim = a->head_dim;
    attn_space sp;
    sp.q = at;
    sp.o = sp.q + rows * dim;
    sp.l = sp.o + rows * dim;
    sp.m = sp.l + rows * 16;
    sp.s = sp.m + rows * 16;
    sp.k = sp.s + 16 * ATTN_KEYS;
    sp.v = sp.k + ATTN_KEYS * dim;
    return sp;
}

static const float *item_row_q(const attn_call *c, const attn_item *it, int64_t row) {
    int64_t ratio = c->plan.ratio;
    return c->q + (it->tok + row / ratio) * c->ldq + (it->head * ratio + row % ratio) * c->a->head_dim;
}

/* Index of a row among all (token, head). */
static int64_t item_row_out(const attn_call *c, const attn_item *it, int64_t row) {
    int64_t ratio = c->plan.ratio;
    return (it->tok + row / ratio) * c->a->n_head + it->head * ratio + row % ratio;
}

static int64_t padded_rows(const attn_call *c, const attn_item *it) {
    int64_t side = c->tiles ? 16 : TILE_M;
    return attn_div_up(it->n_rows, side) * side;
}

static void rows_start(const attn_call *c, const attn_item *it, const attn_space *sp) {
    int64_t dim = c->a->head_dim, padded = padded_rows(c, it);
    vf scale = vf_set1(c->a->scale * 1.44269504088896340736f);
    for (int64_t r = 0; r < padded; r++) {
        const float *q = r < it->n_rows ? item_row_q(c, it, r) : NULL;
        for (int64_t i = 0; i < dim; i += VF_N) {
            vf_store(sp->q + r * dim + i, q ? vf_mul(vf_load(q + i), scale) : vf_zero());
            vf_store(sp->o + r * dim + i, vf_zero());
        }
        sp->m[r] = NO_SCORE;
        vf_store(sp->l + r * VF_N, vf_zero());
    }
}

static void rows_finish(const attn_call *c, const attn_item *it, const attn_space *sp) {
    int64_t dim = c->a->head_dim;
    for (int64_t r = 0; r < it->n_rows; r++) {
        int64_t index = item_row_out(c, it, r);
        float sum = vf_sum(vf_load(sp->l + r * VF_N));
        bool last = c->plan.n_splits == 1;
        float *to =
            last ? c->out + index * dim : c->parts + (it->part * c->a->n_tok * c->a->n_head + index) * c->plan.part_len;
        vf scale = vf_set1(last ? 1.0f / sum : 1.0f);
        for (int64_t i = 0; i < dim; i += VF_N) vf_store(to + i, vf_mul(vf_load(sp->o + r * dim + i), scale));
        if (!last) {
            to[dim] = sp->m[r];
            to[dim + 1] = sum;
        }
    }
}

/* The keys [*lo, *hi) of a step (n keys from `key`) that a row sees, relative to key. */
SIMD_FN void row_window(const attn_call *c, const attn_item *it, int64_t row, int64_t key, int64_t n, int64_t *lo,
                        int64_t *hi) {
    int64_t pos = c->a->pos + it->tok + row / c->plan.ratio, first = attn_first_key(c->a, pos) - key,
            end = pos + 1 - key;
    *lo = first < 0 ? 0 : first;
    *hi = end > n ? n : end;
}

SIMD_FN int64_t clamp_lane(int64_t x) {
    return x < 0 ? 0 : x > VF_N ? VF_N : x;
}

/* One online step of a row: scores s[n] (n a multiple of VF_N) become weights, 0 outside [lo, hi); whole: nothing is
 * outside. Returns the factor of what was summed before. */
SIMD_FN float softmax_step(bool whole, float *s, int64_t n, int64_t lo, int64_t hi, float *m, float *l) {
    vf top = vf_set1(NO_SCORE);
    for (int64_t i = 0; i < n; i += VF_N) {
        vf x = vf_load(s + i);
        if (!whole) x = vf_window(x, clamp_lane(lo - i), clamp_lane(hi - i), vf_set1(NO_SCORE));
        top = vf_max(x, top);
    }
    float old = *m, max = vf_top(top);
    max = max > old ? max : old;
    vf shift = vf_set1(max), factor = vf_exp2(vf_set1(old - max)), sum = vf_load(l);
    for (int64_t i = 0; i < n; i += VF_N) {
        vf p = vf_exp2(vf_sub(vf_load(s + i), shift));
        if (!whole) p = vf_window(p, clamp_lane(lo - i), clamp_lane(hi - i), vf_zero());
        sum = i == 0 ? vf_fma(sum, factor, p) : vf_add(sum, p);
        vf_store(s + i, p);
    }
    vf_store(l, sum);
    *m = max;
    float back[VF_N];
    vf_store(back, factor);
    return back[0];
}

/* ---- loading keys and values as f32 ---- */

/* VF_N values of a cache row from dimension i on. */
SIMD_FN vf kv_load(int type, const uint8_t *row, int64_t dim, int64_t i) {
    if (type == KV_F16) return vf_load_f16(row + 2 * i);
    if (type == KV_F32) return vf_load((const float *)row + i);
    uint16_t half;
    memcpy(&half, row + dim + 2 * (i / KV_GROUP), sizeof half);
    return vf_mul(vf_load_i8(row + i), vf_set1_f16(half));
}

SIMD_FN void load_keys(int type, const attn_call *c, const attn_item *it, int64_t key, int64_t n, float *k) {
    int64_t dim = c->a->head_dim, stride = (int64_t)kv_row_bytes(type, (int)dim);
    const uint8_t *rows = kv_row(c->kv->k, c->kv, it->head, key);
    for (int64_t j = 0; j < n; j += VF_N)
        for (int64_t i = 0; i < dim; i += VF_N) {
            vf r[VF_N];
            UNROLL_FOR(b, VF_N) {
                int64_t at = j + b < n ? j + b : n - 1; /* columns past the end are masked later */
                r[b] = kv_load(type, rows + at * stride, dim, i);
            }
            vf_transpose(r);
            UNROLL_FOR(b, VF_N) vf_store(k + (i + b) * ATTN_KEYS + j, r[b]);
        }
}

SIMD_FN void load_values(int type, const attn_call *c, const attn_item *it, int64_t key, int64_t n, float *v) {
    int64_t dim = c->a->head_dim, stride = (int64_t)kv_row_bytes(type, (int)dim);
    const uint8_t *rows = kv_row(c->kv->v, c->kv, it->head, key);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < dim; i += VF_N) vf_store(v + j * dim + i, kv_load(type, rows + j * stride, dim, i));
}

/* ---- bf16: a float becomes two neighbours of what the product sums over ----
 * Everything is done in place: pair i lies where value i was, so it never overtakes what is still to be read. */

#if VF_HAS_BF16 || VF_HAS_TILES
/* Rows of n floats, stride apart: columns 2i and 2i + 1 side by side. */
static void pair_columns(float *x, int64_t rows, int64_t n, int64_t stride) {
    for (int64_t r = 0; r < rows; r++, x += stride)
        for (int64_t i = 0; i < n; i += 16)
            _mm256_storeu_si256((__m256i *)(x + i / 2), (__m256i)_mm512_cvtneps_pbh(vf_load(x + i)));
}
#endif

#if VF_HAS_BF16
/* Rows of n floats, as far apart: rows 2i and 2i + 1 side by side; rows is even. */
static void pair_rows(float *x, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t i = 0; i < n; i += 16)
            vf_store(x + r / 2 * n + i, vf_pair_bf16(vf_load(x + r * n + i), vf_load(x + (r + 1) * n + i)));
}

/* tile_fma on k pairs. */
SIMD_FN void tile_pairs(int m, int nv, int64_t k, const float *a, int64_t a_row, const float *b, int64_t ldb,
                        vf acc[][4]) {
    for (int64_t l = 0; l < k; l++) {
        __m512bh col[4];
        UNROLL_FOR(j, nv) col[j] = (__m512bh)vf_load(b + l * ldb + j * VF_N);
        UNROLL_FOR(i, m) {
            __m512bh x = (__m512bh)vf_set1(a[i * a_row + l]);
            UNROLL_FOR(j, nv) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], x, col[j]);
        }
    }
}
#endif

/* ---- many queries: tiles ---- */

SIMD_FN void tile_product(bool bf16, int nv, int64_t k, const float *a, int64_t a_row, const float *b, int64_t ldb,
                          vf acc[][4]) {
#if VF_HAS_BF16
    if (bf16) {
        tile_pairs(TILE_M, nv, (k + 1) / 2, a, a_row, b, ldb, acc);
        return;
    }
#endif
    (void)bf16;
    tile_fma(TILE_M, nv, k, a, a_row, 1, b, ldb, acc);
}

SIMD_FN void tile_scores(bool bf16, int nv, const attn_space *sp, int64_t row, int64_t dim, int64_t j) {
    vf acc[TILE_M][4];
    UNROLL_FOR(i, TILE_M)
    UNROLL_FOR(b, nv) acc[i][b] = vf_zero();
    tile_product(bf16, nv, dim, sp->q + row * dim, dim, sp->k + j, ATTN_KEYS, acc);
    UNROLL_FOR(i, TILE_M)
    UNROLL_FOR(b, nv) vf_store(sp->s + i * ATTN_KEYS + j + b * VF_N, acc[i][b]);
}

/* Scores with n keys and some after them; returns how many. */
SIMD_FN int64_t score_rows(bool bf16, const attn_space *sp, int64_t row, int64_t dim, int64_t n) {
    int64_t j = 0;
    for (; j + (TILE_NV - 2) * VF_N < n; j += TILE_N) tile_scores(bf16, TILE_NV, sp, row, dim, j);
#if TILE_NV == 4
    if (j < n) {
        tile_scores(bf16, 2, sp, row, dim, j);
        j += 2 * VF_N;
    }
#endif
    return j;
}

/* o = o * factor + weights * v for TILE_M rows and nv vectors of dimensions. */
SIMD_FN void tile_values(bool bf16, int nv, const float *p, int64_t n, const float *v, int64_t dim, const float *factor,
                         float *o) {
    vf acc[TILE_M][4];
    UNROLL_FOR(i, TILE_M)
    UNROLL_FOR(b, nv) acc[i][b] = vf_mul(vf_load(o + i * dim + b * VF_N), vf_set1(factor[i]));
    tile_product(bf16, nv, n, p, ATTN_KEYS, v, dim, acc);
    UNROLL_FOR(i, TILE_M)
    UNROLL_FOR(b, nv) vf_store(o + i * dim + b * VF_N, acc[i][b]);
}

SIMD_FN void tile_rows(bool bf16, const attn_call *c, const attn_item *it, const attn_space *sp, int64_t row,
                       int64_t key, int64_t n) {
    int64_t dim = c->a->head_dim, lo[TILE_M], hi[TILE_M];
    float factor[TILE_M];
    bool seen = false;
    int64_t last = 0; /* no row sees more keys */
    for (int i = 0; i < TILE_M; i++) {
        row_window(c, it, row + i < it->n_rows ? row + i : it->n_rows - 1, key, n, &lo[i], &hi[i]);
        seen = seen || lo[i] < hi[i];
        last = hi[i] > last ? hi[i] : last;
    }
    if (!seen) return;
    int64_t scored = score_rows(bf16, sp, row, dim, last);
    for (int i = 0; i < TILE_M; i++) {
        float *s = sp->s + i * ATTN_KEYS, *m = sp->m + row + i, *l = sp->l + (row + i) * VF_N;
        bool whole = lo[i] == 0 && hi[i] == ATTN_KEYS;
        factor[i] = whole ? softmax_step(true, s, ATTN_KEYS, 0, ATTN_KEYS, m, l)
                          : softmax_step(false, s, scored, lo[i], hi[i], m, l);
    }
    n = last; /* the weights of the others are 0 */
#if VF_HAS_BF16
    if (bf16) pair_columns(sp->s, TILE_M, scored, ATTN_KEYS);
#endif
    float *o = sp->o + row * dim;
    int64_t i = 0;
    for (; i + TILE_N <= dim; i += TILE_N) tile_values(bf16, TILE_NV, sp->s, n, sp->v + i, dim, factor, o + i);
#if TILE_NV == 4
    if (i + 2 * VF_N <= dim) {
        tile_values(bf16, 2, sp->s, n, sp->v + i, dim, factor, o + i);
        i += 2 * VF_N;
    }
#endif
    if (i < dim) tile_values(bf16, 1, sp->s, n, sp->v + i, dim, factor, o + i);
}

/* Rows times the keys in sp->k, the values in sp->v. */
static void step_rows(const attn_call *c, const attn_item *it, const attn_space *sp, int64_t key, int64_t n) {
#if VF_HAS_BF16
    if (c->bf16) {
        int64_t dim = c->a->head_dim;
        if (n % 2) memset(sp->v + n * dim, 0, (size_t)dim * sizeof *sp->v); /* the partner of the last value */
        pair_rows(sp->k, dim, ATTN_KEYS);
        pair_rows(sp->v, (n + 1) / 2 * 2, dim);
        for (int64_t row = 0; row < it->n_rows; row += TILE_M) tile_rows(true, c, it, sp, row, key, n);
        return;
    }
#endif
    for (int64_t row = 0; row < it->n_rows; row += TILE_M) tile_rows(false, c, it, sp, row, key, n);
}

static void attend_tiles(const attn_call *c, const attn_item *it, const attn_space *sp) {
    rows_start(c, it, sp);
#if VF_HAS_BF16
    if (c->bf16) pair_columns(sp->q, padded_rows(c, it), c->a->head_dim, c->a->head_dim);
#endif
    for (int64_t key = it->key; key < it->key_end; key += ATTN_KEYS) {
        int64_t n = it->key_end - key < ATTN_KEYS ? it->key_end - key : ATTN_KEYS;
        if (c->kv->type == KV_F16) {
            load_keys(KV_F16, c, it, key, n, sp->k);
            load_values(KV_F16, c, it, key, n, sp->v);
        } else if (c->kv->type == KV_F32) {
            load_keys(KV_F32, c, it, key, n, sp->k);
            load_values(KV_F32, c, it, key, n, sp->v);
        } else {
            load_keys(KV_Q8, c, it, key, n, sp->k);
            load_values(KV_Q8, c, it, key, n, sp->v);
        }
        step_rows(c, it, sp, key, n);
    }
    rows_finish(c, it, sp);
}

#if VF_HAS_TILES
#include "cpu/amx_square.h"
#include "cpu/attention_tiles.h"
#endif

/* ---- few queries: keys are streamed ---- */

#if VF_N == 16
#define FEW_M 4
#else
#define FEW_M 2
#endif

/* Scores of m rows with n keys, four keys at a time: s (m, ATTN_FEW_SPLIT), padded to a multiple of 4 by repeating the
 * last. */
SIMD_FN void few_scores(int type, int m, const uint8_t *keys, int64_t dim, int64_t n, const float *q, float *s) {
    int64_t stride = (int64_t)kv_row_bytes(type, (int)dim);
    for (int64_t j = 0; j < n; j += 4) {
        const uint8_t *row[4];
        vf acc[FEW_M][4];
        UNROLL_FOR(b, 4) row[b] = keys + (j + b < n ? j + b : n - 1) * stride;
        UNROLL_FOR(i, m)
        UNROLL_FOR(b, 4) acc[i][b] = vf_zero();
        for (int64_t d = 0; d < dim; d += VF_N) {
            vf k[4];
            UNROLL_FOR(b, 4) k[b] = kv_load(type, row[b], dim, d);
            UNROLL_FOR(i, m) {
                vf x = vf_load(q + i * dim + d);
                UNROLL_FOR(b, 4) acc[i][b] = vf_fma(x, k[b], acc[i][b]);
            }
        }
        UNROLL_FOR(i, m)
        vf_store_sums(s + i * ATTN_FEW_SPLIT + j, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    }
}

/* o (m, dim) = o * factor + weights s (m, n) * values. */
SIMD_FN void few_values(int type, int m, int nv, const uint8_t *values, int64_t dim, int64_t d, int64_t n,
                        const float *s, const float *factor, float *o) {
    int64_t stride = (int64_t)kv_row_bytes(type, (int)dim);
    vf acc[FEW_M][4];
    UNROLL_FOR(i, m)
    UNROLL_FOR(b, nv) acc[i][b] = vf_mul(vf_load(o + i * dim + d + b * VF_N), vf_set1(factor[i]));
    for (int64_t j = 0; j < n; j++) {
        vf v[4];
        UNROLL_FOR(b, nv) v[b] = kv_load(type, values + j * stride, dim, d + b * VF_N);
        UNROLL_FOR(i, m) {
            vf x = vf_set1(s[i * ATTN_FEW_SPLIT + j]);
            UNROLL_FOR(b, nv) acc[i][b] = vf_fma(x, v[b], acc[i][b]);
        }
    }
    UNROLL_FOR(i, m)
    UNROLL_FOR(b, nv) vf_store(o + i * dim + d + b * VF_N, acc[i][b]);
}

/* n keys from `key` on for m rows from `row` on. */
SIMD_FN void few_rows(int type, int m, const attn_call *c, const attn_item *it, const attn_space *sp, int64_t row,
                      int64_t key, int64_t n) {
    int64_t dim = c->a->head_dim, padded = attn_div_up(n, VF_N) * VF_N;
    float factor[FEW_M], *o = sp->o + row * dim;
    few_scores(type, m, kv_row(c->kv->k, c->kv, it->head, key), dim, n, sp->q + row * dim, sp->s);
    for (int i = 0; i < m; i++) {
        int64_t lo, hi;
        row_window(c, it, row + i, key, n, &lo, &hi);
        factor[i] =
            softmax_step(false, sp->s + i * ATTN_FEW_SPLIT, padded, lo, hi, sp->m + row + i, sp->l + (row + i) * VF_N);
    }
    const uint8_t *values = kv_row(c->kv->v, c->kv, it->head, key);
    int64_t d = 0;
    for (; d + 4 * VF_N <= dim; d += 4 * VF_N) few_values(type, m, 4, values, dim, d, n, sp->s, factor, o);
    for (; d < dim; d += VF_N) few_values(type, m, 1, values, dim, d, n, sp->s, factor, o);
}

SIMD_FN void few_step(int type, const attn_call *c, const attn_item *it, const attn_space *sp, int64_t key, int64_t n) {
    int64_t row = 0;
    for (; row + FEW_M <= it->n_rows; row += FEW_M) few_rows(type, FEW_M, c, it, sp, row, key, n);
    switch (it->n_rows - row) {
    case 1: few_rows(type, 1, c, it, sp, row, key, n); break;
#if FEW_M == 4
    case 2: few_rows(type, 2, c, it, sp, row, key, n); break;
    case 3: few_rows(type, 3, c, it, sp, row, key, n); break;
#endif
    default: break;
    }
}

static void attend_few(const attn_call *c, const attn_item *it, const attn_space *sp) {
    rows_start(c, it, sp);
    for (int64_t key = it->key; key < it->key_end; key += ATTN_FEW_SPLIT) {
        int64_t n = it->key_end - key < ATTN_FEW_SPLIT ? it->key_end - key : ATTN_FEW_SPLIT;
        if (c->kv->type == KV_F16)
            few_step(KV_F16, c, it, sp, key, n);
        else if (c->kv->type == KV_F32)
            few_step(KV_F32, c, it, sp, key, n);
        else
            few_step(KV_Q8, c, it, sp, key, n);
    }
    rows_finish(c, it, sp);
}

/* ---- the call ---- */

/* False if no query of the block sees the split. */
static bool item_make(const attn_call *c, int64_t index, attn_item *it) {
    const attn_plan *p = &c->plan;
    const llmq_attn *a = c->a;
    int64_t heads = a->n_head_kv, block = p->n_q_blocks - 1 - index / (heads * p->n_splits); /* the long ones first */
    it->part = index % p->n_splits;
    it->head = (int)(index / p->n_splits % heads);
    it->tok = block * p->q_block;
    it->n_tok = a->n_tok - it->tok < p->q_block ? a->n_tok - it->tok : p->q_block;
    it->n_rows = it->n_tok * p->ratio;
    int64_t from = (p->first_split + it->part) * p->split, first = attn_first_key(a, a->pos + it->tok),
            end = a->pos + it->tok + it->n_tok;
    it->key = from > first ? from : first;
    it->key_end = from + p->split < end ? from + p->split : end;
    return it->key < it->key_end;
}

/* k_new and v_new of an item's head are stored by whoever attends to its last keys: no other item reads them. */
static void item_store(const attn_call *c, const attn_item *it) {
    const llmq_attn *a = c->a;
    int64_t at = (int64_t)it->head * a->head_dim;
    if (a->k_new && it->key_end > a->pos) kv_head_store_simd(c->kv, it->head, a->pos, a->k_new + at, a->v_new + at);
}

static void merge_row(const attn_call *c, int64_t index) {
    const attn_plan *p = &c->plan;
    int64_t dim = c->a->head_dim, rows = c->a->n_tok * c->a->n_head, pos = c->a->pos + index / c->a->n_head;
    int64_t first = attn_first_key(c->a, pos) / p->split - p->first_split, last = pos / p->split - p->first_split;
    const float *part = c->parts + index * p->part_len;
    int64_t step = rows * p->part_len;
    float *out = c->out + index * dim, max = NO_SCORE, sum = 0;
    for (int64_t s = first; s <= last; s++) max = part[s * step + dim] > max ? part[s * step + dim] : max;
    for (int64_t i = 0; i < dim; i += VF_N) vf_store(out + i, vf_zero());
    for (int64_t s = first; s <= last; s++) {
        const float *from = part + s * step;
        float factor = exp2f(from[dim] - max);
        sum += factor * from[dim + 1];
        for (int64_t i = 0; i < dim; i += VF_N)
            vf_store(out + i, vf_fma(vf_load(from + i), vf_set1(factor), vf_load(out + i)));
    }
    for (int64_t i = 0; i < dim; i += VF_N) vf_store(out + i, vf_mul(vf_load(out + i), vf_set1(1.0f / sum)));
}

static void run_few(const llmq_worker *w, const attn_call *c, const attn_space *sp) {
    attn_item it;
    int64_t begin, end;
    worker_range(w, c->a->n_head_kv * c->plan.n_splits, 1, &begin, &end);
    for (int64_t index = begin; index < end; index++) {
        if (!item_make(c, index, &it)) continue;
        item_store(c, &it);
        attend_few(c, &it, sp);
    }
}

/* Items differ in cost: they are handed out one by one. Nobody else counts here: a barrier stands before attention
 * (core/backend.h). */
static void run_tiles(const llmq_worker *w, const attn_call *c, const attn_space *sp) {
    attn_item it;
    int64_t n = c->plan.n_q_blocks * c->a->n_head_kv * c->plan.n_splits, index = 0;
    if (w->n > 1 && w->id == 0) worker_counter_reset(w);
    worker_barrier(w);
    for (int64_t i = 0; (index = w->n > 1 ? worker_counter_next(w) : i) < n; i++) {
        if (!item_make(c, index, &it)) continue;
        item_store(c, &it);
#if VF_HAS_TILES
        if (c->tiles) {
            attend_amx(c, &it, sp);
            continue;
        }
#endif
        attend_tiles(c, &it, sp);
    }
}

static void attention_simd(const llmq_worker *w, const llmq_attn *a, const float *q, int64_t ldq, const llmq_kv *kv,
                           float *out, void *scratch) {
    if (a->head_dim % 16 != 0) {
        attention_c(w, a, q, ldq, kv, out, scratch);
        return;
    }
    int64_t own = attn_worker_len(a);
    /* A single token has the bits that it has among others (attention_rows), however many heads share its keys. */
    bool bf16 = a->allow_bf16 || (kv->type != KV_F32 && a->n_tok > 1);
    attn_call c = {a, kv, attn_plan_make(a), q, ldq, out, (float *)scratch + own * w->n, bf16, false};
    attn_space sp = space_make(a, (float *)scratch + own * w->id);
#if VF_HAS_TILES
    c.tiles = tiles_take(&c);
    if (c.tiles) amx_begin();
#endif
    if (c.plan.few)
        run_few(w, &c, &sp);
    else
        run_tiles(w, &c, &sp);
#if VF_HAS_TILES
    if (c.tiles) amx_end();
#endif
    if (c.plan.n_splits == 1) return;
    /* Of one token a worker merges heads that it attended to itself, if none is shared. */
    if (!c.plan.few || a->n_tok > 1 || a->n_head_kv % w->n != 0) worker_barrier(w);
    int64_t begin, end;
    worker_range(w, a->n_tok * a->n_head, 1, &begin, &end);
    for (int64_t index = begin; index < end; index++) merge_row(&c, index);
}

static size_t attn_scratch_simd(const llmq_attn *a, int n_workers) {
    if (a->head_dim % 16 != 0) return attention_scratch_c(a, n_workers);
    return sizeof(float) * (size_t)(attn_worker_len(a) * n_workers + attn_parts_len(a));
}

#include "cpu/attention_rows.h"

void SIMD_NAME(attention_fill)(llmq_backend_ops *ops) {
    ops->attn_scratch_bytes = attn_scratch_simd;
    ops->attention = attention_simd;
    ops->attn_rows_scratch_bytes = attn_rows_scratch_simd;
    ops->attention_rows = attention_rows_simd;
}
