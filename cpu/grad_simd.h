/* The training ops in vectors; included by the file of each ISA. Every element is summed in an order of its own, so
 * results do not depend on the team. */
#include "cpu/causal_simd.h"
#include "cpu/ops.h"
#include "cpu/tile_simd.h"

/* ---- transpose ---- */

static void transpose_edge(const float *x, int64_t ldx, int64_t rows, int64_t cols, float *y, int64_t ldy) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) y[c * ldy + r] = x[r * ldx + c];
}

SIMD_FN void transpose_tile(const float *x, int64_t ldx, float *y, int64_t ldy) {
    vf r[VF_N];
    UNROLL_FOR(i, VF_N) r[i] = vf_load(x + i * ldx);
    vf_transpose(r);
    UNROLL_FOR(i, VF_N) vf_store(y + i * ldy, r[i]);
}

/* Columns [begin, end) of x. */
static void transpose_cols(const float *x, int64_t rows, int64_t begin, int64_t end, int64_t ldx, float *y,
                           int64_t ldy) {
    for (int64_t c = begin; c < end; c += VF_N)
        for (int64_t r = 0; r < rows; r += VF_N) {
            if (rows - r >= VF_N && end - c >= VF_N)
                transpose_tile(x + r * ldx + c, ldx, y + c * ldy + r, ldy);
            else
                transpose_edge(x + r * ldx + c, ldx, lanes_left(rows, r), lanes_left(end, c), y + c * ldy + r, ldy);
        }
}

static void transpose_simd(const llmq_worker *w, const float *x, int64_t rows, int64_t cols, int64_t ldx, float *y,
                           int64_t ldy) {
    int64_t begin, end;
    worker_range(w, cols, VF_N, &begin, &end);
    transpose_cols(x, rows, begin, end, ldx, y, ldy);
}

/* ---- norm ---- */

static void norm_row_back(const float *x, const float *gain, float eps, const float *dy, float *dx, bool add,
                          float *inv, int64_t n) {
    vf sum = vf_zero(), dot = vf_zero();
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t m = lanes_left(n, i);
        vf v = vf_load_n(x + i, m), u = vf_mul(vf_load_n(dy + i, m), vf_load_n(gain + i, m));
        sum = vf_fma(v, v, sum);
        dot = vf_fma(u, v, dot);
    }
    double s = 1.0 / sqrt((double)vf_sum(sum) / (double)n + eps), c = s * s * s * (double)vf_sum(dot) / (double)n;
    vf vs = vf_set1((float)s), vc = vf_set1((float)c);
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t m = lanes_left(n, i);
        vf u = vf_mul(vf_load_n(dy + i, m), vf_load_n(gain + i, m));
        vf d = vf_fnma(vc, vf_load_n(x + i, m), vf_mul(vs, u));
        vf_store_n(dx + i, add ? vf_add(vf_load_n(dx + i, m), d) : d, m);
    }
    *inv = (float)s;
}

static void rms_norm_back_simd(const llmq_worker *w, const float *x, const float *gain, float eps, const float *dy,
                               float *dx, bool add, float *inv, int64_t n_rows, int64_t n) {
    int64_t begin, end;
    worker_range(w, n_rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) norm_row_back(x + r * n, gain, eps, dy + r * n, dx + r * n, add, inv + r, n);
}

static void rms_gain_back_simd(const llmq_worker *w, const float *x, const float *inv, const float *dy, float *dgain,
                               int64_t n_rows, int64_t n) {
    int64_t begin, end;
    worker_range(w, n, VF_N, &begin, &end);
    for (int64_t r = 0; r < n_rows; r++) {
        vf s = vf_set1(inv[r]);
        for (int64_t i = begin; i < end; i += VF_N) {
            int64_t m = lanes_left(end, i);
            vf v = vf_mul(vf_mul(vf_load_n(x + r * n + i, m), s), vf_load_n(dy + r * n + i, m));
            vf_store_n(dgain + i, vf_add(vf_load_n(dgain + i, m), v), m);
        }
    }
}

static void silu_mul_back_simd(const llmq_worker *w, float *gate, float *up, const float *dact, int64_t n) {
    int64_t begin, end;
    const vf one = vf_set1(1);
    worker_range(w, n, VF_N, &begin, &end);
    for (int64_t i = begin; i < end; i += VF_N) {
        int64_t m = lanes_left(end, i);
        vf g = vf_load_n(gate + i, m), u = vf_load_n(up + i, m), d = vf_load_n(dact + i, m);
        vf s = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), g))));
        vf_store_n(up + i, vf_mul(d, vf_mul(g, s)), m);
        vf slope = vf_mul(s, vf_fma(g, vf_sub(one, s), one));
        vf_store_n(gate + i, vf_mul(vf_mul(d, u), slope), m);
    }
}

static void adam_simd(const llmq_worker *w, const llmq_adam *a, float *x, const float *g, float *m, float *v,
                      int64_t n) {
    const vf b1 = vf_set1(1 - a->beta1), b2 = vf_set1(1 - a->beta2), eps = vf_set1(a->eps), keep = vf_set1(a->keep);
    const vf rate = vf_set1(a->rate), inv = vf_set1(a->inv), scale = vf_set1(a->scale);
    int64_t begin, end;
    worker_range(w, n, VF_N, &begin, &end);
    for (int64_t i = begin; i < end; i += VF_N) {
        int64_t k = lanes_left(end, i);
        vf h = vf_mul(vf_load_n(g + i, k), scale), m0 = vf_load_n(m + i, k), v0 = vf_load_n(v + i, k);
        vf m1 = vf_fma(b1, vf_sub(h, m0), m0), v1 = vf_fma(b2, vf_sub(vf_mul(h, h), v0), v0);
        vf step = vf_div(vf_mul(rate, m1), vf_add(vf_sqrt(vf_mul(v1, inv)), eps));
        vf_store_n(m + i, m1, k);
        vf_store_n(v + i, v1, k);
        vf_store_n(x + i, vf_sub(vf_mul(vf_load_n(x + i, k), keep), step), k);
    }
}

/* ---- codes ---- */

typedef struct code_table {
    const llmq_code_run *run;
    vf first;       /* uniform */
    vf_table table; /* else */
} code_table;

static code_table code_table_of(const llmq_code_run *c) {
    code_table t = {.run = c, .first = vf_set1(c->levels[0])};
    for (int i = 0; !c->uniform && i < 16 / VF_N; i++)
        t.table.at[i] = vf_load_n(c->levels + i * VF_N, lanes_left(c->n_levels, i * VF_N));
    return t;
}

/* The levels of m <= VF_N codes from k on; lanes behind them hold anything finite. */
SIMD_FN vf code_levels(const code_table *t, int64_t k, int64_t m) {
    uint8_t few[16] = {0};
    const uint8_t *codes = t->run->codes + k;
    if (m < VF_N) {
        memcpy(few, codes, (size_t)m);
        codes = few;
    }
    return t->run->uniform ? vf_add(vf_load_u8(codes), t->first) : vf_look_up(&t->table, codes);
}

static void code_values_simd(const llmq_code_run *c, const float *scale, const float *offset, float *y) {
    const code_table t = code_table_of(c);
    for (int64_t at = 0, g = 0; at < c->n; at += c->group_len, g++) {
        int64_t end = c->n - at < c->group_len ? c->n : at + c->group_len;
        vf s = vf_set1(scale[g]), o = vf_set1(offset[g]);
        for (int64_t k = at; k < end; k += VF_N) {
            int64_t m = lanes_left(end, k);
            vf_store_n(y + k, vf_fma(s, code_levels(&t, k, m), o), m);
        }
    }
}

static void code_sums_simd(const llmq_code_run *c, const float *g, float *sums) {
    const code_table t = code_table_of(c);
    for (int64_t at = 0; at < c->n; at += c->group_len, sums += 2) {
        int64_t end = c->n - at < c->group_len ? c->n : at + c->group_len;
        vf with = vf_zero(), alone = vf_zero();
        for (int64_t k = at; k < end; k += VF_N) {
            int64_t m = lanes_left(end, k);
            vf v = vf_load_n(g + k, m);
            with = vf_fma(v, code_levels(&t, k, m), with);
            alone = vf_add(alone, v);
        }
        sums[0] = vf_sum(with);
        sums[1] = vf_sum(alone);
    }
}

/* ---- products ---- */

/* Rows of C = A B, or C += A B: an element of A is a[row * a_row + l * a_k], rows of B and C are ldb and ldc apart. All
 * TILE_M rows of A and whole vectors of B must be readable, whatever is in them; C is written exactly. */
typedef struct product {
    int64_t k;
    const float *a;
    int64_t a_row, a_k;
    const float *b;
    int64_t ldb;
    bool add;
    float *c;
    int64_t ldc;
} product;

/* m rows and nv vectors of columns from col on; the last holds `last` columns. */
SIMD_FN void product_tile(int nv, const product *p, int64_t m, int64_t col, int64_t last) {
    vf acc[TILE_M][4];
    UNROLL_FOR(i, TILE_M)
    UNROLL_FOR(j, nv) acc[i][j] = vf_zero();
    for (int64_t i = 0; p->add && i < m; i++) /* the sums so far may lie far away */
        UNROLL_FOR(j, nv) __builtin_prefetch(p->c + i * p->ldc + col + j * VF_N);
    tile_fma(TILE_M, nv, p->k, p->a, p->a_row, p->a_k, p->b + col, p->ldb, acc);
    UNROLL_FOR(i, TILE_M) {
        if (i >= m) break;
        UNROLL_FOR(j, nv) {
            int64_t len = j == nv - 1 ? last : VF_N;
            float *to = p->c + i * p->ldc + col + j * VF_N;
            vf_store_n(to, p->add ? vf_add(vf_load_n(to, len), acc[i][j]) : acc[i][j], len);
        }
    }
}

/* m <= TILE_M rows, n columns. */
static void product_rows(const product *p, int64_t m, int64_t n) {
    for (int64_t col = 0, nv; col < n; col += nv * VF_N) {
        int64_t left = (n - col + VF_N - 1) / VF_N;
        nv = left < TILE_NV ? left : left == 5 && TILE_NV == 4 ? 3 : TILE_NV; /* 5 are 3 and 2, not 4 and 1 */
        int64_t last = n - col - (nv - 1) * VF_N;
        last = last < VF_N ? last : VF_N;
        if (nv == 1) product_tile(1, p, m, col, last);
        if (nv == 2) product_tile(2, p, m, col, last);
#if TILE_NV == 4
        if (nv == 3) product_tile(3, p, m, col, last);
        if (nv == 4) product_tile(4, p, m, col, last);
#endif
    }
}

/* n rows of `cols` numbers side by side, with zeros up to n_all rows and to width columns. */
static void padded_rows(const float *x, int64_t ldx, int64_t n, int64_t n_all, int64_t cols, int64_t width,
                        float *out) {
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < width; i += VF_N) {
            int64_t m = i < cols ? lanes_left(cols, i) : 0;
            vf_store(out + r * width + i, vf_load_n(x + r * ldx + i, m));
        }
    if (n_all > n) memset(out + n * width, 0, (size_t)((n_all - n) * width) * sizeof *out);
}

/* ---- causal attention ----
 *
 * One head of one window at a time, CAUSAL_BLOCK queries against the keys before them. Everything is copied so that
 * rows of one head lie side by side, since those of all heads are often a power of two apart and would fight for the
 * same sets of the caches. TILE_M queries at a time take only the keys that the last of them sees. */
#define CAUSAL_BLOCK 60 /* a multiple of TILE_M */

typedef struct causal_buffers {
    int64_t width, keys;   /* head_dim and n_tok, rounded up to whole lines */
    float *kt, *vt;        /* (head_dim, keys) */
    float *rows;           /* (n_tok, width): v forward, k backward */
    float *q, *g, *s, *ds; /* of a block of queries: (CAUSAL_BLOCK, width) and (CAUSAL_BLOCK, keys) */
} causal_buffers;

/* The lines of a row of scores are an odd number. */
static int64_t causal_keys(const llmq_causal *a) {
    return ((a->n_tok + 15) / 16 | 1) * 16;
}
static int64_t causal_width(const llmq_causal *a) {
    return (a->head_dim + 15) / 16 * 16;
}

/* Transposed tiles of the last row of scores read TILE_M - 1 numbers after it. */
static size_t causal_floats(const llmq_causal *a) {
    int64_t width = causal_width(a), keys = causal_keys(a);
    return (size_t)(2 * a->head_dim * keys + a->n_tok * width + 2 * CAUSAL_BLOCK * (width + keys) + 16);
}

static size_t causal_scratch_simd(const llmq_causal *a, int n_workers) {
    return (size_t)n_workers * causal_floats(a) * sizeof(float);
}

static causal_buffers causal_part(const llmq_causal *a, void *scratch, int id) {
    causal_buffers b = {.width = causal_width(a), .keys = causal_keys(a)};
    b.kt = (float *)scratch + (size_t)id * causal_floats(a);
    b.vt = b.kt + a->head_dim * b.keys;
    b.rows = b.vt + a->head_dim * b.keys;
    b.q = b.rows + a->n_tok * b.width;
    b.g = b.q + CAUSAL_BLOCK * b.width;
    b.s = b.g + CAUSAL_BLOCK * b.width;
    b.ds = b.s + CAUSAL_BLOCK * b.keys;
    return b;
}

/* s = x kt: rows of a block, from query i0 on, with the keys that they see (and more, up to TILE_M queries on). */
static void causal_scores(const llmq_causal *a, const causal_buffers *b, const float *x, const float *kt, int64_t i0,
                          int64_t m, float *s) {
    for (int64_t r = 0; r < m; r += TILE_M) {
        int64_t end = r + TILE_M < m ? r + TILE_M : m, lo = first_key(a, i0 + r) / VF_N * VF_N;
        product p = {.k = a->head_dim,
                     .a = x + r * b->width,
                     .a_row = b->width,
                     .a_k = 1,
                     .b = kt + lo,
                     .ldb = b->keys,
                     .c = s + r * b->keys + lo,
                     .ldc = b->keys};
        product_rows(&p, TILE_M, i0 + end - lo);
    }
}

/* y = s rows, the same keys; y is at query i0. */
static void causal_values(const llmq_causal *a, const causal_buffers *b, const float *s, int64_t i0, int64_t m,
                          float *y, int64_t ldy) {
    for (int64_t r = 0; r < m; r += TILE_M) {
        int64_t end = r + TILE_M < m ? r + TILE_M : m, lo = first_key(a, i0 + r);
        product p = {.k = i0 + end - lo,
                     .a = s + r * b->keys + lo,
                     .a_row = b->keys,
                     .a_k = 1,
                     .b = b->rows + lo * b->width,
                     .ldb = b->width,
                     .c = y + r * ldy,
                     .ldc = ldy};
        product_rows(&p, end - r, a->head_dim);
    }
}

/* y += s' x, the queries that see TILE_M keys at a time; y is at key 0. */
static void causal_keys_back(const llmq_causal *a, const causal_buffers *b, const float *s, const float *x, int64_t i0,
                             int64_t m, float *y, int64_t ldy) {
    int64_t n = i0 + m;
    for (int64_t j = first_key(a, i0) / TILE_M * TILE_M; j < n; j += TILE_M) {
        int64_t begin = j > i0 ? j - i0 : 0, end = n - j < TILE_M ? n : j + TILE_M;
        int64_t until = a->window > 0 && end - 1 + a->window - i0 < m ? end - 1 + a->window - i0 : m;
        product p = {.k = until - begin,
                     .a = s + begin * b->keys + j,
                     .a_row = 1,
                     .a_k = b->keys,
                     .b = x + begin * b->width,
                     .ldb = b->width,
                     .add = true,
                     .c = y + j * ldy,
                     .ldc = ldy};
        if (p.k > 0) product_rows(&p, end - j, a->head_dim);
    }
}

/* Probabilities of queries [i0, i0 + m) of a head, whose rows become b->q, over keys [0, i0 + m) into b->s. */
static void causal_block(const llmq_causal *a, const causal_buffers *b, const float *q, int64_t ldq, int64_t i0,
                         int64_t m) {
    int64_t all = (m + TILE_M - 1) / TILE_M * TILE_M;
    padded_rows(q + i0 * ldq, ldq, m, all, a->head_dim, b->width, b->q);
    causal_scores(a, b, b->q, b->kt, i0, m, b->s);
    for (int64_t i = 0; i < m; i++) softmax_row(b->s + i * b->keys, first_key(a, i0 + i), i0 + i, i0 + m, a->scale);
}

static int64_t causal_block_rows(const llmq_causal *a, int64_t i0) {
    return a->n_tok - i0 < CAUSAL_BLOCK ? a->n_tok - i0 : CAUSAL_BLOCK;
}

static void causal_simd(const llmq_worker *w, const llmq_causal *a, const float *q, const float *k, const float *v,
                        float *out, void *scratch) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd, begin, end;
    causal_buffers b = causal_part(a, scratch, w->id);
    worker_range(w, a->n_windows * a->n_head, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t row = item / a->n_head * a->n_tok, h = item % a->n_head, kv = h / (a->n_head / a->n_head_kv);
        int64_t at = row * ldq + h * hd, from = row * ldk + kv * hd;
        transpose_cols(k + from, a->n_tok, 0, hd, ldk, b.kt, b.keys);
        padded_rows(v + from, ldk, a->n_tok, a->n_tok, hd, b.width, b.rows);
        for (int64_t i0 = 0; i0 < a->n_tok; i0 += CAUSAL_BLOCK) {
            int64_t m = causal_block_rows(a, i0);
            causal_block(a, &b, q + at, ldq, i0, m);
            causal_values(a, &b, b.s, i0, m, out + at + i0 * ldq, ldq);
        }
    }
}

/* One head: q, dout and dq begin at it; dk and dv at its kv head, whose kt, vt and rows of k are in b. */
static void causal_head_back(const llmq_causal *a, const causal_buffers *b, const float *q, const float *dout,
                             float *dq, float *dk, float *dv) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd;
    for (int64_t i0 = 0; i0 < a->n_tok; i0 += CAUSAL_BLOCK) {
        int64_t m = causal_block_rows(a, i0), all = (m + TILE_M - 1) / TILE_M * TILE_M;
        causal_block(a, b, q, ldq, i0, m);
        padded_rows(dout + i0 * ldq, ldq, m, all, hd, b->width, b->g);
        causal_scores(a, b, b->g, b->vt, i0, m, b->ds);
        for (int64_t i = 0; i < m; i++)
            score_row_back(b->s + i * b->keys, b->ds + i * b->keys, first_key(a, i0 + i), i0 + i, i0 + m, a->scale);
        causal_values(a, b, b->ds, i0, m, dq + i0 * ldq, ldq);
        causal_keys_back(a, b, b->ds, b->q, i0, m, dk, ldk);
        causal_keys_back(a, b, b->s, b->g, i0, m, dv, ldk);
    }
}

static void causal_back_simd(const llmq_worker *w, const llmq_causal *a, const float *q, const float *k, const float *v,
                             const float *dout, float *dq, float *dk, float *dv, void *scratch) {
    int64_t hd = a->head_dim, ldq = a->n_head * hd, ldk = a->n_head_kv * hd, begin, end;
    int64_t group = a->n_head / a->n_head_kv;
    causal_buffers b = causal_part(a, scratch, w->id);
    worker_range(w, a->n_windows * a->n_head_kv, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        int64_t row = item / a->n_head_kv * a->n_tok, kv = item % a->n_head_kv, from = row * ldk + kv * hd;
        transpose_cols(k + from, a->n_tok, 0, hd, ldk, b.kt, b.keys);
        transpose_cols(v + from, a->n_tok, 0, hd, ldk, b.vt, b.keys);
        padded_rows(k + from, ldk, a->n_tok, a->n_tok, hd, b.width, b.rows);
        for (int64_t i = 0; i < a->n_tok; i++) {
            memset(dk + from + i * ldk, 0, (size_t)hd * sizeof *dk);
            memset(dv + from + i * ldk, 0, (size_t)hd * sizeof *dv);
        }
        for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
            int64_t at = row * ldq + h * hd;
            causal_head_back(a, &b, q + at, dout + at, dq + at, dk + from, dv + from);
        }
    }
}

/* ---- losses ---- */

static float row_top(const float *x, int64_t n) {
    vf top = vf_set1(-INFINITY);
    for (int64_t i = 0; i < n; i += VF_N) {
        int64_t m = lanes_left(n, i);
        top = vf_max(top, vf_window(vf_load_n(x + i, m), 0, m, vf_set1(-INFINITY)));
    }
    return vf_top(top);
}

/* exp(x - top) into y, and their sum: floats over LOSS_RUN numbers, doubles over the row. */
#define LOSS_RUN 1024
static double row_exp(const float *x, float top, int64_t n, float *y) {
    double total = 0;
    vf shift = vf_set1(top);
    for (int64_t at = 0; at < n; at += LOSS_RUN) {
        int64_t end = n - at < LOSS_RUN ? n : at + LOSS_RUN;
        vf sum = vf_zero();
        for (int64_t i = at; i < end; i += VF_N) {
            int64_t m = lanes_left(end, i);
            vf e = vf_window(vf_exp(vf_sub(vf_load_n(x + i, m), shift)), 0, m, vf_zero());
            vf_store_n(y + i, e, m);
            sum = vf_add(sum, e);
        }
        total += vf_sum(sum);
    }
    return total;
}

/* Where the columns of row r from `at` on go in dz, and how many of them lie side by side. */
static float *row_slice(const llmq_loss *l, int64_t r, int64_t at, int64_t *len) {
    *len = l->n_vocab - at < l->slice ? l->n_vocab - at : l->slice;
    return l->dz + at * l->n + r * *len;
}

/* exp(z - top) of row r into its slices of dz, and their sum. */
static double slices_exp(const llmq_loss *l, int64_t r, const float *z, float top) {
    double total = 0;
    for (int64_t at = 0, len; at < l->n_vocab; at += l->slice) {
        float *to = row_slice(l, r, at, &len);
        total += row_exp(z + at, top, len, to);
    }
    return total;
}

/* There: exp(z - top), whose sum is `sum`, becomes the gradient; want (or NULL) holds the teacher's, with sum
 * want_sum. */
static void slices_gradient(const llmq_loss *l, int64_t r, double sum, const float *want, double want_sum,
                            double weight) {
    vf a = vf_set1((float)(weight / sum)), b = vf_set1(want ? (float)(weight / want_sum) : 0.0f);
    for (int64_t at = 0, len; at < l->n_vocab; at += l->slice) {
        float *to = row_slice(l, r, at, &len);
        for (int64_t i = 0; i < len; i += VF_N) {
            int64_t m = lanes_left(len, i);
            vf d = vf_mul(a, vf_load_n(to + i, m));
            if (want) d = vf_fnma(b, vf_load_n(want + at + i, m), d);
            vf_store_n(to + i, d, m);
        }
    }
}

/* sum want * (t - z), the logits less their tops, which is exact where it counts; exp(t) is in want. */
static double row_cross(const float *t, float t_top, const float *z, float z_top, const float *want, int64_t n) {
    double total = 0;
    vf t_shift = vf_set1(t_top), z_shift = vf_set1(z_top);
    for (int64_t at = 0; at < n; at += LOSS_RUN) {
        int64_t end = n - at < LOSS_RUN ? n : at + LOSS_RUN;
        vf sum = vf_zero();
        for (int64_t i = at; i < end; i += VF_N) {
            int64_t m = lanes_left(end, i);
            vf d = vf_sub(vf_sub(vf_load_n(t + i, m), t_shift), vf_sub(vf_load_n(z + i, m), z_shift));
            sum = vf_fma(vf_load_n(want + i, m), d, sum);
        }
        total += vf_sum(sum);
    }
    return total;
}

static void loss_rows_simd(const llmq_worker *w, const llmq_loss *l) {
    int64_t begin, end, n = l->n_vocab;
    worker_range(w, l->n, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *z = l->z + r * n, *t = l->teacher ? l->teacher + r * n : NULL;
        int32_t label = l->labels ? l->labels[r] : 0;
        double weight = label < 0 ? 0 : l->weight;
        float top = row_top(z, n);
        double sum = slices_exp(l, r, z, top);
        if (t) {
            float *want = l->scratch + w->id * n, t_top = row_top(t, n);
            double t_sum = row_exp(t, t_top, n, want), cross = row_cross(t, t_top, z, top, want, n) / t_sum;
            l->loss[r] = weight * (cross - log(t_sum) + log(sum));
            slices_gradient(l, r, sum, want, t_sum, weight);
            continue;
        }
        l->loss[r] = weight * (top + log(sum) - z[label < 0 ? 0 : label]);
        slices_gradient(l, r, sum, NULL, 0, weight);
        if (label < 0) continue;
        int64_t at = label / l->slice * l->slice, len;
        row_slice(l, r, at, &len)[label - at] -= (float)weight;
    }
}

/* ---- the gradient of a matrix ---- */

/* Columns of a strip, kept in the cache for all rows, and tokens of a pass over it. */
#define OUTER_TOKENS 256

/* Rows [begin, end). A strip of x is copied so that its lines lie side by side. */
static void outer_f32(const float *dy, int64_t rows, int64_t begin, int64_t end, const float *x, int64_t cols,
                      int64_t n_tok, bool add, float *g) {
    _Alignas(64) float strip[OUTER_TOKENS * TILE_N];
    float few[OUTER_TOKENS * TILE_M] = {0}; /* of the last rows, so that nothing behind them is read */
    for (int64_t t = 0; t < n_tok; t += OUTER_TOKENS) {
        int64_t n = n_tok - t < OUTER_TOKENS ? n_tok - t : OUTER_TOKENS, rest = (end - begin) % TILE_M;
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < rest; i++) few[k * TILE_M + i] = dy[(t + k) * rows + end - rest + i];
        for (int64_t c = 0; c < cols; c += TILE_N) {
            int64_t len = cols - c < TILE_N ? cols - c : TILE_N;
            padded_rows(x + t * cols + c, cols, n, n, len, TILE_N, strip);
            for (int64_t r = begin; r < end; r += TILE_M) {
                bool whole = end - r >= TILE_M;
                product p = {.k = n,
                             .a = whole ? dy + t * rows + r : few,
                             .a_row = 1,
                             .a_k = whole ? rows : TILE_M,
                             .b = strip,
                             .ldb = TILE_N,
                             .add = add || t > 0,
                             .c = g + r * cols + c,
                             .ldc = cols};
                product_rows(&p, whole ? TILE_M : rest, len);
            }
        }
    }
}

static void outer_simd(const llmq_worker *w, const float *dy, int64_t rows, const float *x, int64_t cols, int64_t n_tok,
                       bool add, bool allow_bf16, float *g, void *scratch) {
    int64_t begin, end;
    (void)allow_bf16, (void)scratch;
    worker_range(w, rows, TILE_M, &begin, &end);
    outer_f32(dy, rows, begin, end, x, cols, n_tok, add, g);
}

void SIMD_NAME(cpu_fill_grad)(llmq_backend_ops *ops) {
    ops->outer = outer_simd;
    ops->transpose = transpose_simd;
    ops->rms_norm_back = rms_norm_back_simd;
    ops->rms_gain_back = rms_gain_back_simd;
    ops->silu_mul_back = silu_mul_back_simd;
    ops->causal_scratch_bytes = causal_scratch_simd;
    ops->causal = causal_simd;
    ops->causal_back = causal_back_simd;
    ops->loss_rows = loss_rows_simd;
    ops->adam = adam_simd;
    ops->code_values = code_values_simd;
    ops->code_sums = code_sums_simd;
}
