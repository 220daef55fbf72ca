/* The way of a few tokens through packed weights, for the kernels of AVX-512 and of AMX: up to FEW_PARTS tiles of 16
 * rows at a time. */
#ifndef LLMQ_CPU_FEW_AVX512_H
#define LLMQ_CPU_FEW_AVX512_H

#include <immintrin.h>

#include "cpu/codes_avx512.h"
#include "cpu/cpu.h"
#include "cpu/fetch.h"
#include "cpu/inline.h"
#include "cpu/layout.h"

/* Codes of Q4_0 stay in the upper half of their byte, 16 times as large: -128 * sum, which comes with the activations,
 * is then where their sums start, without a shift for each token. The scales make up for it. */
#define RAISED(bits, zero) ((bits) == 4 && (zero) == 8)

INLINE void decode_raised(int bits, bool use_table, int zero, __m512i table, const uint8_t *p, __m512i u[8]) {
    if (!RAISED(bits, zero)) {
        decode(bits, use_table, table, p, u);
        return;
    }
    const __m512i high = _mm512_set1_epi8((char)0xf0);
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i raw = load_once(p + 64 * j);
        u[j] = _mm512_and_si512(_mm512_slli_epi16(raw, 4), high);
        u[j + 4] = _mm512_and_si512(raw, high);
    }
}

INLINE __m512 scale_raised(int bits, int zero, __m512 scale) {
    return RAISED(bits, zero) ? _mm512_mul_ps(scale, _mm512_set1_ps(1.0f / 16)) : scale;
}

/* ---- outliers */

/* Levels of column `col` of a group, of 16 rows; table: that of code_table. */
INLINE __m512i level_at(int bits, bool codebook, int zero, __m512i table, const uint8_t *p, int col) {
    const uint8_t *planes = bits >= 4 ? p + 256 : p;
    const int j = col / 4, from = col % 4 * 8; /* its word, and where its bits begin there */
    __m512i u = _mm512_setzero_si512();
#define BITS(vector, at, mask)                                                                                         \
    _mm512_and_si512(_mm512_srlv_epi32(load_i(vector), _mm512_set1_epi32(from + (at))), _mm512_set1_epi32(mask))
    if (bits == 8) u = BITS(p + 64 * j, 0, 255);
    if (bits >= 4 && bits < 8) u = BITS(p + 64 * (j % 4), j / 4 * 4, 15);
    if (bits == 6) u = _mm512_or_si512(u, _mm512_slli_epi32(BITS(planes + 64 * (j % 2), j / 2 * 2, 3), 4));
    if (bits <= 3) u = BITS(planes + 64 * (j % 2), j / 2 * 2, 3);
    if (bits == 5) u = _mm512_or_si512(u, _mm512_slli_epi32(BITS(planes, j, 1), 4));
    if (bits == 3) u = _mm512_or_si512(u, _mm512_slli_epi32(BITS(planes + 128, j, 1), 2));
#undef BITS
    if (codebook) u = _mm512_and_si512(_mm512_permutexvar_epi8(u, table), _mm512_set1_epi32(255));
    return _mm512_sub_epi32(u, _mm512_set1_epi32(zero));
}

/* An outlier, and where every tile has its group. */
typedef struct few_outlier {
    layout_place at;
    float x;
    uint8_t row, col; /* of the block; of the group */
} few_outlier;

#define FEW_OUTLIERS 128 /* that are listed at once: usually all */

typedef struct few_outliers {
    int n;
    int64_t next; /* place of the first that is not listed, or after all */
    few_outlier list[FEW_OUTLIERS];
} few_outliers;

/* The next outliers, from out->next on, of a block of so many columns. */
static inline void few_outliers_find(const cpu_layout *l, int64_t cols, const act_block *b, few_outliers *out) {
    const int64_t end = cols / 32 * b->n;
    out->n = 0;
    out->next = act_next_outlier(b, out->next, end);
    while (out->next < end && out->n < FEW_OUTLIERS) {
        const int64_t i = out->next, g = i / b->n;
        out->list[out->n++] = (few_outlier){
            .at = layout_place_of(l, g), .x = b->outlier[i], .row = (uint8_t)(i - g * b->n), .col = b->outlier_at[i]};
        out->next = act_next_outlier(b, i + 1, end);
    }
}

/* out[row] += 16 rows of the tile times the outliers that are listed. */
INLINE void outliers_tile(LAYOUT_PARAMS, const uint8_t *tile, __m512i table, const few_outliers *outliers,
                          __m512 *out) {
    for (const few_outlier *o = outliers->list; o < outliers->list + outliers->n; o++) {
        super_scale super = {0};
        __m512 w[2], m[2];
        const int part = group == 16 ? o->col / 16 : 0;
        if (two_level) load_super(mins, tile + o->at.super, &super);
        load_scales(group, two_level, mins, tile + o->at.scale, &super, w, m);
        __m512i level = level_at(bits, codebook, zero, table, tile + o->at.code, o->col);
        __m512 value = _mm512_mul_ps(w[part], _mm512_cvtepi32_ps(level));
        if (mins) value = _mm512_add_ps(value, m[part]);
        out[o->row] = _mm512_fmadd_ps(value, _mm512_set1_ps(o->x), out[o->row]);
    }
}

typedef void outliers_fn(const uint8_t *tile, __m512i table, const few_outliers *outliers, __m512 *out);

#define X(type, ...)                                                                                                   \
    static void outliers_##type(const uint8_t *tile, __m512i table, const few_outliers *outliers, __m512 *out) {       \
        outliers_tile(__VA_ARGS__, tile, table, outliers, out);                                                        \
    }
CPU_LAYOUTS(X)
#undef X

static outliers_fn *const outliers_fns[LAYOUT_BF16] = {
#define X(type, ...) [LAYOUT_##type] = outliers_##type,
    CPU_LAYOUTS(X)
#undef X
};

/* ---- several tiles at a time */

#define FEW_PARTS 4 /* tiles at most */

/* How tiles are read. `parts` of them, far from each other, take turns by `slice` groups, so that each is a stream to
 * the processor's own fetching. Which requests help besides is a matter of the processor (few_way_of). */
typedef enum few_fetch { FEW_FETCH_NONE, FEW_FETCH_ONCE, FEW_FETCH_TWICE } few_fetch;
typedef struct few_way {
    int parts;
    int64_t slice;
    few_fetch fetch;
} few_way;

/* n tiles of so many bytes, and for each what is read after it, as far as that is known. */
typedef struct few_tiles {
    int n;
    int64_t bytes;
    const uint8_t *tile[FEW_PARTS], *next[FEW_PARTS];
} few_tiles;

/* At least so many bytes in whole runs. */
#define FEW_RUNS(bytes, run) (((bytes) + (run) - 1) / (run) * (run))

/* Place `at` of tile i, or beyond its end of what is read after it: what requests go for. With slices and distances of
 * whole runs hardly a line is left out at the end of a tile. */
INLINE const uint8_t *few_ahead(const few_tiles *t, int i, int64_t at) {
    return at < t->bytes ? t->tile[i] + at : t->next[i] + (at - t->bytes);
}

/* out[i][t] = 16 rows of tile i times row t of the block, all of its at most ACT_FEW rows, without their outliers. The
 * block goes by address: a copy of it for each tile had its parts stored and loaded in other sizes, which waits until
 * the tile before is done. */
typedef void few_fn(const few_tiles *tiles, int64_t cols, __m512i table, const act_block *b, const few_way *way,
                    __m512 (*out)[ACT_FEW]);

#define FEW_FN(type, ...) [LAYOUT_##type] = few_##type, /* of a table by layout */

typedef struct few_job {
    const llmq_weight *w;
    int64_t tile_bytes;
    act_block b;
    few_outliers outliers; /* the first of them */
    few_fn *fn;
    __m512i table, codes; /* for fn; code_table's */
    bool turns;           /* whether fn lets tiles take turns */
    float *y;
    int64_t ldy;
} few_job;

#define FEW_ALONE (256 << 10) /* bytes of a stream that are worth its start, where it comes alone */
#define FEW_SLICE_ALONE 8     /* groups of a tile before the next has its turn, there */
#define FEW_SLICE 2           /* and elsewhere: most types have the scales of two in a cache line */

/* Of tiles of `bytes` in all.
 *
 * Where streams come alone (cpu.h), long rows of a worker are read as two: the processor goes ahead of each of them,
 * and so twice as far in all. It does not go far enough ahead of several tokens, whose products take their time: these
 * are asked for, as are short matrices and the pieces that workers share at the end. Elsewhere, which was measured on an
 * Intel Xeon with AMX, there are four streams in short turns, asked for twice, into L2 and then into L1. */
static inline few_way few_way_of(int64_t bytes, int64_t n_tok, bool turns) {
    if (!turns) return (few_way){1, FEW_SLICE_ALONE, FEW_FETCH_ONCE};
    if (!cpu_streams_alone()) return (few_way){FEW_PARTS, FEW_SLICE, FEW_FETCH_TWICE};
    return (few_way){.parts = bytes >= 2 * FEW_ALONE ? 2 : 1,
                     .slice = FEW_SLICE_ALONE,
                     .fetch = n_tok > 1 || bytes < FEW_ALONE ? FEW_FETCH_ONCE : FEW_FETCH_NONE};
}

/* Rows of a piece of a share: as many tiles as there are streams, unless that leaves too few pieces (64 steps are what
 * core/parallel.c shares) or parts of workers that differ by more than an eighth. */
static inline int64_t few_step(const llmq_worker *worker, int64_t rows, bool turns) {
    const int64_t least = 8 * worker->n > 64 ? 8 * worker->n : 64;
    int64_t step = turns && !cpu_streams_alone() ? 16 * FEW_PARTS : 16;
    while (step > 16 && rows < step * least) step /= 2;
    return step;
}

/* Tiles that are done together: n, `apart` from each other. */
typedef struct few_turn {
    int64_t first, apart;
    int n;
    few_way way;
} few_turn;

/* Tiles begin..end as turns: `many` of way.parts tiles, and one of those left. */
typedef struct few_range {
    int64_t begin, end, many, done;
    few_way way;
} few_range;

static inline few_range few_range_of(int64_t begin, int64_t end, int64_t tile_bytes, int64_t n_tok, bool turns) {
    const few_way way = few_way_of((end - begin) * tile_bytes, n_tok, turns);
    return (few_range){.begin = begin, .end = end, .many = (end - begin) / way.parts, .way = way};
}

static inline bool few_range_next(few_range *r, few_turn *out) {
    const int64_t rest = r->end - r->begin - r->many * r->way.parts;
    *out = (few_turn){r->begin + r->done, r->many, r->way.parts, r->way};
    if (r->done == r->many) *out = (few_turn){r->end - rest, 1, (int)rest, r->way};
    return r->done++ < r->many + (rest > 0);
}

/* Where a worker's tiles of the next matrix begin, if vectors multiply it: what is likely to be read after its last
 * tiles here. False: not known. */
static inline bool few_after(const llmq_worker *worker, const llmq_weight *w, int64_t n_tok, few_tiles *out) {
    const cpu_layout *l = w && w->packed ? cpu_layout_of(w->layout) : NULL;
    int64_t begin, end;
    few_turn turn;
    if (!l) return false;
    worker_share_own(worker, w->rows, few_step(worker, w->rows, true), &begin, &end);
    const int64_t tile_bytes = layout_tile_bytes(l, w->cols);
    few_range range = few_range_of(begin / 16, (end + 15) / 16, tile_bytes, n_tok, true);
    if (!few_range_next(&range, &turn)) return false;
    out->n = turn.n;
    for (int i = 0; i < turn.n; i++)
        out->tile[i] = (const uint8_t *)w->packed + (turn.first + i * turn.apart) * tile_bytes;
    return true;
}

/* out[t] += 16 rows of the tile times the outliers of row t of the block. */
static inline void few_outliers_add(const few_job *job, const uint8_t *tile, __m512 *out) {
    const llmq_weight *w = job->w;
    const int64_t end = w->cols / 32 * job->b.n;
    outliers_fns[w->layout](tile, job->codes, &job->outliers, out);
    few_outliers more; /* no initializer: it would be zeroed for every tile */
    more.next = job->outliers.next;
    while (more.next < end) {
        few_outliers_find(cpu_layout_of(w->layout), w->cols, &job->b, &more);
        outliers_fns[w->layout](tile, job->codes, &more, out);
    }
}

/* next: of this matrix or NULL; after: then comes this, or NULL. */
static inline void few_store(const few_job *job, const few_turn *turn, const few_turn *next, const few_tiles *after) {
    const llmq_weight *w = job->w;
    const int rows = job->b.n, n_tok = rows / act_parts(w->act);
    const uint8_t *base = w->packed;
    few_tiles tiles = {.n = turn->n, .bytes = job->tile_bytes};
    __m512 out[FEW_PARTS][ACT_FEW];
    for (int i = 0; i < turn->n; i++) {
        tiles.tile[i] = base + (turn->first + i * turn->apart) * job->tile_bytes;
        tiles.next[i] = tiles.tile[i] + job->tile_bytes;
        if (next) tiles.next[i] = base + (next->first + i % next->n * next->apart) * job->tile_bytes;
        if (!next && after) tiles.next[i] = after->tile[i % after->n];
    }
    job->fn(&tiles, w->cols, job->table, &job->b, &turn->way, out);
    for (int i = 0; i < turn->n; i++) {
        const int64_t r = (turn->first + i * turn->apart) * 16;
        const __mmask16 mask = mask_of(w->rows - r);
        const __m512 bias = w->bias ? _mm512_maskz_loadu_ps(mask, w->bias + r) : _mm512_setzero_ps();
        few_outliers_add(job, tiles.tile[i], out[i]);
        for (int t = n_tok; t < rows; t++) out[i][t - n_tok] = _mm512_add_ps(out[i][t - n_tok], out[i][t]);
        for (int t = 0; t < n_tok; t++)
            _mm512_mask_storeu_ps(job->y + t * job->ldy + r, mask, _mm512_add_ps(out[i][t], bias));
    }
}

/* The next turn of a worker's share. */
static inline bool few_next(const few_job *job, worker_share *share, few_range *range, few_turn *out) {
    const int n_tok = job->b.n / act_parts(job->w->act);
    int64_t begin, end;
    while (!few_range_next(range, out)) {
        if (!worker_share_next(share, &begin, &end)) return false;
        *range = few_range_of(begin / 16, (end + 15) / 16, job->tile_bytes, n_tok, job->turns);
    }
    return true;
}

/* A turn knows the one after it, so that requests go on there: a piece is taken one turn before it is begun. */
static inline void few_rows(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, few_fn *fn, bool turns,
                            __m512i table, __m512i codes, float *y, int64_t ldy) {
    const cpu_layout *l = cpu_layout_of(w->layout);
    few_job job; /* no initializer: it would be zeroed for every matrix */
    job.w = w;
    job.tile_bytes = layout_tile_bytes(l, w->cols);
    job.b = act_block_at(a, act_parts(w->act) * a->n_tok, 0);
    job.outliers.next = 0;
    few_outliers_find(l, w->cols, &job.b, &job.outliers);
    job.fn = fn;
    job.table = table;
    job.codes = codes;
    job.turns = turns;
    job.y = y;
    job.ldy = ldy;
    worker_share share = worker_share_begin(worker, w->rows, few_step(worker, w->rows, turns));
    few_range range = {.way.parts = 1};
    few_turn turn, next;
    few_tiles after;
    const bool known = turns && few_after(worker, w->after, a->n_tok, &after);
    for (bool more = few_next(&job, &share, &range, &turn); more; turn = next) {
        more = few_next(&job, &share, &range, &next);
        few_store(&job, &turn, more ? &next : NULL, known ? &after : NULL);
    }
}

#endif
