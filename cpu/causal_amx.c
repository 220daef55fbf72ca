/* Attention of training by tiles of bf16, where its products may round their inputs.
 *
 * One head of one window at a time, 64 queries against the keys before them: scores, their softmax in floats, and the
 * products with values or of gradients. Operands are rounded into tiles, results go to buffers of whole squares. */
#include "cpu/amx_square.h"
#include <string.h>

#include "cpu/causal_simd.h"
#include "cpu/cpu.h"

#define SQUARE (2 * AMX_SIDE)
#define BLOCK 64 /* queries */
#define BLOCK_DEPTH (BLOCK / AMX_DEPTH)

/* Tiles of an operand: those of 16 rows (or columns, of a right one) over the whole depth after each other. */
typedef struct operand {
    uint8_t *tiles;
    int64_t depth;
} operand;

typedef struct buffers {
    int64_t width, keys;      /* head_dim and n_tok, rounded up to whole squares */
    int64_t lds;              /* of scores: an odd number of lines */
    operand kt, vt;           /* right: depth head_dim, columns keys */
    operand rows;             /* right: depth keys, columns head_dim; v forward, k backward */
    operand q, g;             /* left, of a block: queries and what comes back, depth head_dim */
    operand q_pairs, g_pairs; /* right: depth queries, columns head_dim */
    operand p;                /* left: depth keys, rows queries */
    operand p_t;              /* left: depth queries, rows keys */
    float *s, *ds;            /* (BLOCK, lds) */
    float *y;                 /* (BLOCK, width) */
    float *dk, *dv;           /* (keys, width) */
} buffers;

/* ---- scratch */

typedef struct carver {
    char *at;
    size_t bytes;
} carver;

static void *carve(carver *c, int64_t bytes) {
    char *p = c->at ? c->at + c->bytes : NULL;
    c->bytes += (size_t)tiles_of(bytes, 64) * 64;
    return p;
}

static operand carve_operand(carver *c, int64_t n, int64_t depth) {
    return (operand){carve(c, n / AMX_SIDE * (depth / AMX_DEPTH) * AMX_TILE), depth / AMX_DEPTH};
}

static buffers carve_all(carver *c, const llmq_causal *a) {
    buffers b = {.width = tiles_of(a->head_dim, SQUARE) * SQUARE, .keys = tiles_of(a->n_tok, BLOCK) * BLOCK};
    b.lds = (b.keys / 16 | 1) * 16;
    b.kt = carve_operand(c, b.keys, b.width);
    b.vt = carve_operand(c, b.keys, b.width);
    b.rows = carve_operand(c, b.width, b.keys);
    b.q = carve_operand(c, BLOCK, b.width);
    b.g = carve_operand(c, BLOCK, b.width);
    b.q_pairs = carve_operand(c, b.width, BLOCK);
    b.g_pairs = carve_operand(c, b.width, BLOCK);
    b.p = carve_operand(c, BLOCK, b.keys);
    b.p_t = carve_operand(c, b.keys, BLOCK);
    b.s = carve(c, BLOCK * b.lds * 4);
    b.ds = carve(c, BLOCK * b.lds * 4);
    b.y = carve(c, BLOCK * b.width * 4);
    b.dk = carve(c, b.keys * b.width * 4);
    b.dv = carve(c, b.keys * b.width * 4);
    return b;
}

static size_t worker_bytes(const llmq_causal *a) {
    carver c = {NULL, 0};
    carve_all(&c, a);
    return c.bytes;
}

static buffers buffers_of(const llmq_causal *a, void *scratch, int id) {
    carver c = {(char *)scratch + (size_t)id * worker_bytes(a), 0};
    return carve_all(&c, a);
}

/* ---- operands */

/* Rows of x (n_rows, n_cols; ldx), those up to n as zeros; depth: columns. */
static void fill_rows(const operand *o, const float *x, int64_t ldx, int64_t n_rows, int64_t n_cols, int64_t n,
                      bool right) {
    for (int64_t r = 0; r < n; r += AMX_SIDE)
        for (int64_t k = 0; k < o->depth; k++)
            pack_rows(x, ldx, n_rows, n_cols, r, k * AMX_DEPTH, right,
                      o->tiles + (r / AMX_SIDE * o->depth + k) * AMX_TILE);
}

/* Columns of x up to n; depth: rows. */
static void fill_pairs(const operand *o, const float *x, int64_t ldx, int64_t n_rows, int64_t n_cols, int64_t n) {
    for (int64_t k = 0; k < o->depth; k++)
        for (int64_t c = 0; c < n; c += AMX_SIDE)
            pack_pairs(x, ldx, n_rows, n_cols, k * AMX_DEPTH, c, false,
                       o->tiles + (c / AMX_SIDE * o->depth + k) * AMX_TILE);
}

/* Keys [lo, hi) of a block's scores, as b->p and, if wanted, as b->p_t. */
static void fill_scores(const buffers *b, const float *s, int64_t lo, int64_t hi, bool transposed) {
    for (int64_t i = 0; i < BLOCK; i += AMX_SIDE)
        for (int64_t j = lo; j < hi; j += AMX_DEPTH)
            pack_rows(s, b->lds, BLOCK, hi, i, j, false,
                      b->p.tiles + (i / AMX_SIDE * b->p.depth + j / AMX_DEPTH) * AMX_TILE);
    for (int64_t j = lo; transposed && j < hi; j += AMX_SIDE)
        for (int64_t k = 0; k < BLOCK_DEPTH; k++)
            pack_pairs(s, b->lds, BLOCK, hi, k * AMX_DEPTH, j, true,
                       b->p_t.tiles + (j / AMX_SIDE * BLOCK_DEPTH + k) * AMX_TILE);
}

/* ---- products */

/* c (rows [r0, r1), columns [c0, c1); ldc) = or += left times right over depth [k0, k1), all in whole squares (depth:
 * tiles). */
typedef struct product {
    const operand *left, *right;
    int64_t r0, r1, c0, c1, k0, k1;
    bool add;
    float *c;
    int64_t ldc;
} product;

static void run_product(const product *p) {
    int64_t down = p->left->depth * AMX_TILE, across = p->right->depth * AMX_TILE;
    amx_fence();
    for (int64_t j = p->c0; j < p->c1; j += SQUARE) {
        const uint8_t *b = p->right->tiles + j / AMX_SIDE * across + p->k0 * AMX_TILE;
        for (int64_t i = p->r0; i < p->r1; i += SQUARE) {
            const uint8_t *a = p->left->tiles + i / AMX_SIDE * down + p->k0 * AMX_TILE;
            float *c = p->c + i * p->ldc + j;
            if (p->add)
                load_sums(c, p->ldc * 4);
            else
                zero_sums();
            multiply_bf16(a, a + down, b, b + across, p->k1 - p->k0, c, 0);
            store_sums(c, p->ldc * 4);
        }
    }
    amx_fence();
}

/* ---- one block of m queries from i0 on; keys [lo, hi) are those that one of them sees, in whole squares */

typedef struct range {
    int64_t i0, m, lo, hi;
} range;

static range block_range(const llmq_causal *a, int64_t i0) {
    int64_t m = a->n_tok - i0 < BLOCK ? a->n_tok - i0 : BLOCK;
    return (range){i0, m, first_key(a, i0) / SQUARE * SQUARE, tiles_of(i0 + m, SQUARE) * SQUARE};
}

static void scores(const buffers *b, const range *r, const operand *x, const operand *keys, float *s) {
    run_product(&(product){x, keys, 0, BLOCK, r->lo, r->hi, 0, x->depth, false, s, b->lds});
}

/* Rows past the last query are zero, in all keys that are multiplied. */
static void no_rows(const buffers *b, const range *r, float *s) {
    for (int64_t i = r->m; i < BLOCK; i++) memset(s + i * b->lds, 0, (size_t)r->hi * sizeof *s);
}

/* The queries from q on against b->kt: probabilities in b->s. */
static void probabilities(const llmq_causal *a, const buffers *b, const range *r, const float *q, int64_t ldq) {
    fill_rows(&b->q, q, ldq, r->m, a->head_dim, BLOCK, false);
    scores(b, r, &b->q, &b->kt, b->s);
    for (int64_t i = 0; i < r->m; i++)
        softmax_row(b->s + i * b->lds, first_key(a, r->i0 + i), r->i0 + i, r->hi, a->scale);
    no_rows(b, r, b->s);
}

/* to (m, head_dim; ldy) = b->p times b->rows. */
static void values(const llmq_causal *a, const buffers *b, const range *r, float *to, int64_t ldy) {
    run_product(&(product){&b->p, &b->rows, 0, BLOCK, 0, b->width, r->lo / AMX_DEPTH, r->hi / AMX_DEPTH, false, b->y,
                           b->width});
    for (int64_t i = 0; i < r->m; i++) memcpy(to + i * ldy, b->y + i * b->width, sizeof(float) * (size_t)a->head_dim);
}

/* to (keys, width) += b->p_t times what belongs to the queries. */
static void keys_back(const buffers *b, const range *r, const operand *x, float *to) {
    run_product(&(product){&b->p_t, x, r->lo, r->hi, 0, b->width, 0, BLOCK_DEPTH, true, to, b->width});
}

static void block_back(const llmq_causal *a, const buffers *b, const range *r, const float *q, const float *dout,
                       float *dq) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd;
    probabilities(a, b, r, q, ldq);
    fill_rows(&b->g, dout, ldq, r->m, hd, BLOCK, false);
    fill_pairs(&b->q_pairs, q, ldq, r->m, hd, b->width);
    fill_pairs(&b->g_pairs, dout, ldq, r->m, hd, b->width);
    scores(b, r, &b->g, &b->vt, b->ds);
    for (int64_t i = 0; i < r->m; i++)
        score_row_back(b->s + i * b->lds, b->ds + i * b->lds, first_key(a, r->i0 + i), r->i0 + i, r->hi, a->scale);
    no_rows(b, r, b->ds);
    fill_scores(b, b->s, r->lo, r->hi, true);
    keys_back(b, r, &b->g_pairs, b->dv);
    fill_scores(b, b->ds, r->lo, r->hi, true);
    keys_back(b, r, &b->q_pairs, b->dk);
    values(a, b, r, dq, ldq);
}

/* ---- heads */

static void head(const llmq_causal *a, const buffers *b, const float *q, const float *k, const float *v, float *out) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd;
    fill_rows(&b->kt, k, ldk, a->n_tok, hd, b->keys, true);
    fill_pairs(&b->rows, v, ldk, a->n_tok, hd, b->width);
    for (int64_t i0 = 0; i0 < a->n_tok; i0 += BLOCK) {
        range r = block_range(a, i0);
        probabilities(a, b, &r, q + i0 * ldq, ldq);
        fill_scores(b, b->s, r.lo, r.hi, false);
        values(a, b, &r, out + i0 * ldq, ldq);
    }
}

/* The query heads of one kv head; q, dout and dq begin at the first. */
static void heads_back(const llmq_causal *a, const buffers *b, const float *q, const float *k, const float *v,
                       const float *dout, float *dq, float *dk, float *dv) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd;
    size_t bytes = (size_t)(b->keys * b->width) * sizeof(float);
    fill_rows(&b->kt, k, ldk, a->n_tok, hd, b->keys, true);
    fill_rows(&b->vt, v, ldk, a->n_tok, hd, b->keys, true);
    fill_pairs(&b->rows, k, ldk, a->n_tok, hd, b->width);
    memset(b->dk, 0, bytes);
    memset(b->dv, 0, bytes);
    for (int64_t h = 0; h < a->n_head / a->n_head_kv; h++)
        for (int64_t i0 = 0; i0 < a->n_tok; i0 += BLOCK) {
            range r = block_range(a, i0);
            int64_t at = i0 * ldq + h * hd;
            block_back(a, b, &r, q + at, dout + at, dq + at);
        }
    for (int64_t i = 0; i < a->n_tok; i++) {
        memcpy(dk + i * ldk, b->dk + i * b->width, sizeof(float) * (size_t)hd);
        memcpy(dv + i * ldk, b->dv + i * b->width, sizeof(float) * (size_t)hd);
    }
}

/* ---- entries */

static llmq_backend_ops avx512; /* exact products */

static size_t scratch_bytes(const llmq_causal *a, int n_workers) {
    size_t tiles = (size_t)n_workers * worker_bytes(a), exact = avx512.causal_scratch_bytes(a, n_workers);
    return tiles > exact ? tiles : exact;
}

static void causal(const llmq_worker *w, const llmq_causal *a, const float *q, const float *k, const float *v,
                   float *out, void *scratch) {
    if (!a->allow_bf16) {
        avx512.causal(w, a, q, k, v, out, scratch);
        return;
    }
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd, begin, end;
    buffers b = buffers_of(a, scratch, w->id);
    amx_begin();
    worker_range(w, a->n_windows * a->n_head, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t row = item / a->n_head * a->n_tok, h = item % a->n_head, kv = h / (a->n_head / a->n_head_kv);
        int64_t at = row * ldq + h * hd, from = row * ldk + kv * hd;
        head(a, &b, q + at, k + from, v + from, out + at);
    }
    amx_end();
}

static void causal_back(const llmq_worker *w, const llmq_causal *a, const float *q, const float *k, const float *v,
                        const float *dout, float *dq, float *dk, float *dv, void *scratch) {
    if (!a->allow_bf16) {
        avx512.causal_back(w, a, q, k, v, dout, dq, dk, dv, scratch);
        return;
    }
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd, begin, end;
    buffers b = buffers_of(a, scratch, w->id);
    amx_begin();
    worker_range(w, a->n_windows * a->n_head_kv, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t row = item / a->n_head_kv * a->n_tok, kv = item % a->n_head_kv;
        int64_t at = row * ldq + kv * (a->n_head / a->n_head_kv) * hd, from = row * ldk + kv * hd;
        heads_back(a, &b, q + at, k + from, v + from, dout + at, dq + at, dk + from, dv + from);
    }
    amx_end();
}

void cpu_fill_causal_amx(llmq_backend_ops *ops) {
    avx512 = *ops;
    ops->causal_scratch_bytes = scratch_bytes;
    ops->causal = causal;
    ops->causal_back = causal_back;
}
