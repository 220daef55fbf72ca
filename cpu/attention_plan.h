/* How an attention call is cut into items. The cuts depend on the shape only, never on the number of workers, so
 * neither do results. An item is (KV head, block of queries, split of keys); a split is a range of key positions. With
 * one split an item writes its part of the output, otherwise it leaves (m, l, o) of softmax in the scratch and the
 * splits are merged in order:
 *
 *     m = max s,  l = sum 2^(s - m),  o = sum 2^(s - m) v,   s = scale log2(e) q.k
 *
 * Few queries (decoding) stream the keys through a dot-product kernel; many are multiplied in tiles. */
#ifndef LLMQ_CPU_ATTENTION_PLAN_H
#define LLMQ_CPU_ATTENTION_PLAN_H

#include "core/backend.h"
#include "core/mem.h"

#define ATTN_FEW 8         /* rows (queries times heads of the group) up to which keys are streamed */
#define ATTN_FEW_SPLIT 128 /* keys at least in a split, streamed; also the keys of one online step */
#define ATTN_FEW_SPLITS 64 /* splits at most, streamed */
#define ATTN_TILE_SPLIT 512
#define ATTN_TILE_SPLITS 16
#define ATTN_TILE_ITEMS 8  /* with so many items keys are not split */
#ifndef ATTN_TILE_ROWS
#define ATTN_TILE_ROWS 96  /* rows of an item, about */
#endif
#define ATTN_TILE_MOST 8   /* at least the rows of a register tile */
#define ATTN_KEYS 64       /* keys of one online step in tiles */
#define ATTN_PART_EXTRA 16 /* m and l behind the o of a part */

typedef struct attn_plan {
    int ratio; /* query heads of one KV head */
    bool few;
    int64_t q_block, n_q_blocks; /* tokens of an item */
    int64_t split;               /* keys */
    int64_t first_split, n_splits;
    int64_t part_len; /* floats of one row's part */
} attn_plan;

static inline int64_t attn_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* First key that position p sees. */
static inline int64_t attn_first_key(const llmq_attn *a, int64_t p) {
    return a->window > 0 && p >= a->window ? p + 1 - a->window : 0;
}

static inline int64_t attn_q_block(int ratio) {
    int64_t tokens = ATTN_TILE_ROWS / ratio;
    return tokens < 1 ? 1 : tokens < 64 ? tokens : 64;
}

static inline attn_plan attn_plan_make(const llmq_attn *a) {
    attn_plan p = {.ratio = a->n_head / a->n_head_kv, .part_len = a->head_dim + ATTN_PART_EXTRA};
    int64_t n_keys = a->pos + a->n_tok, least, splits;
    p.few = a->n_tok * p.ratio <= ATTN_FEW;
    p.q_block = p.few ? a->n_tok : attn_q_block(p.ratio);
    p.n_q_blocks = attn_div_up(a->n_tok, p.q_block);
    least = p.few ? ATTN_FEW_SPLIT : ATTN_TILE_SPLIT;
    splits = p.few ? ATTN_FEW_SPLITS : p.n_q_blocks * a->n_head_kv >= ATTN_TILE_ITEMS ? 1 : ATTN_TILE_SPLITS;
    p.split = attn_div_up(attn_div_up(n_keys, splits), least) * least;
    p.first_split = attn_first_key(a, a->pos) / p.split;
    p.n_splits = (n_keys - 1) / p.split + 1 - p.first_split;
    return p;
}

/* Rows that an item has at most, with room for a whole last register tile. Independent of n_tok. */
static inline int64_t attn_rows(const llmq_attn *a) {
    int64_t ratio = a->n_head / a->n_head_kv, rows = attn_q_block((int)ratio) * ratio;
    return attn_div_up((rows > ATTN_FEW ? rows : ATTN_FEW) + ATTN_TILE_MOST - 1, 16) * 16;
}

/* Floats that one worker needs for its item: as space_make in attention_simd.h lays them out. */
static inline int64_t attn_worker_len(const llmq_attn *a) {
    int64_t rows = attn_rows(a), dim = a->head_dim;
    int64_t steps = 2 * ATTN_KEYS * dim + 16 * ATTN_KEYS; /* K, V; scores of a tile */
    if (steps < ATTN_FEW * ATTN_FEW_SPLIT) steps = ATTN_FEW * ATTN_FEW_SPLIT;
    return rows * (2 * dim + 32) + steps; /* q, o, m and l (a vector) */
}

/* Floats of all parts, for any call with at most this many tokens and keys. */
static inline int64_t attn_parts_len(const llmq_attn *a) {
    int64_t ratio = a->n_head / a->n_head_kv, n_keys = a->pos + a->n_tok;
    int64_t few = attn_div_up(n_keys, ATTN_FEW_SPLIT), tile = attn_div_up(n_keys, ATTN_TILE_SPLIT);
    int64_t few_tok = ATTN_FEW / ratio, tile_tok = attn_q_block((int)ratio) * ((ATTN_TILE_ITEMS - 1) / a->n_head_kv);
    few = few > ATTN_FEW_SPLITS ? ATTN_FEW_SPLITS : few < 2 ? 0 : few;
    tile = tile > ATTN_TILE_SPLITS ? ATTN_TILE_SPLITS : tile < 2 ? 0 : tile;
    few *= a->n_tok < few_tok ? a->n_tok : few_tok;
    tile *= a->n_tok < tile_tok ? a->n_tok : tile_tok;
    return (few > tile ? few : tile) * a->n_head * (a->head_dim + ATTN_PART_EXTRA);
}

#endif
