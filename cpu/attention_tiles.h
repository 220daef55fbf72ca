/* Many queries by tiles of bf16 (amx.h), 16 rows at a time; included by attention_simd.h. A word is two neighbours of
 * what a product sums over: q (rows, head_dim / 2 words in the front of each row), keys (head_dim / 2, ATTN_KEYS),
 * values (ATTN_KEYS / 2, head_dim); weights take the place of the scores that they come from. */

#define TILES_VECTORS (ATTN_KEYS / VF_N)

/* Prompts that may be rounded to bf16. A single token keeps the bits of AVX-512. */
static bool tiles_take(const attn_call *c) {
    return !c->plan.few && c->a->n_tok > 1 && c->a->head_dim % AMX_DEPTH == 0 && c->bf16;
}

/* ---- keys and values; what lies past the n-th is 0 */

/* Neighbours stay side by side. */
SIMD_FN vf tiles_pair(vf first, vf second) {
    return (vf)_mm512_cvtne2ps_pbh(second, first);
}

SIMD_FN void tiles_keys(int type, const attn_call *c, const attn_item *it, int64_t key, int64_t n, float *k) {
    int64_t dim = c->a->head_dim, stride = (int64_t)kv_row_bytes(type, (int)dim);
    const uint8_t *rows = kv_row(c->kv->k, c->kv, it->head, key);
    for (int64_t j = 0; j < ATTN_KEYS; j += VF_N)
        for (int64_t i = 0; i < dim; i += AMX_DEPTH) {
            vf r[VF_N];
            UNROLL_FOR(b, VF_N) {
                const uint8_t *row = rows + (j + b) * stride;
                r[b] = j + b < n ? tiles_pair(kv_load(type, row, dim, i), kv_load(type, row, dim, i + 16)) : vf_zero();
            }
            vf_transpose(r);
            UNROLL_FOR(b, VF_N) vf_store(k + (i / 2 + b) * ATTN_KEYS + j, r[b]);
        }
}

SIMD_FN void tiles_values(int type, const attn_call *c, const attn_item *it, int64_t key, int64_t n, float *v) {
    int64_t dim = c->a->head_dim, stride = (int64_t)kv_row_bytes(type, (int)dim);
    const uint8_t *row = kv_row(c->kv->v, c->kv, it->head, key);
    for (int64_t j = 0; j < ATTN_KEYS; j += 2, row += 2 * stride, v += dim)
        for (int64_t i = 0; i < dim; i += VF_N) {
            vf even = j < n ? kv_load(type, row, dim, i) : vf_zero();
            vf odd = j + 1 < n ? kv_load(type, row + stride, dim, i) : vf_zero();
            vf_store(v + i, vf_pair_bf16(even, odd));
        }
}

/* ---- products */

/* Scores of 16 rows with ATTN_KEYS keys. */
static void tiles_scores(const attn_space *sp, int64_t row, int64_t dim) {
    const float *q = sp->q + row * dim, *k = sp->k;
    int64_t key_bytes = ATTN_KEYS * sizeof *k, row_bytes = dim * (int64_t)sizeof *q;
    _Static_assert(ATTN_KEYS == 4 * AMX_SIDE, "four tiles of scores");
    amx_fence();
    zero_sums();
    for (int64_t d = 0; d < dim; d += AMX_DEPTH, q += AMX_DEPTH / 2, k += AMX_DEPTH / 2 * ATTN_KEYS) {
        _tile_loadd(4, q, row_bytes);
        _tile_loadd(5, k, key_bytes);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, k + 16, key_bytes);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(5, k + 32, key_bytes);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(6, k + 48, key_bytes);
        _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, sp->s, key_bytes);
    _tile_stored(1, sp->s + 16, key_bytes);
    _tile_stored(2, sp->s + 32, key_bytes);
    _tile_stored(3, sp->s + 48, key_bytes);
    amx_fence();
}

/* o (16 rows, dim) += weights of n keys * values. */
static void tiles_sums(const attn_space *sp, int64_t row, int64_t n, int64_t dim) {
    int64_t key_bytes = ATTN_KEYS * sizeof(float), row_bytes = dim * (int64_t)sizeof(float);
    amx_fence();
    for (int64_t d = 0; d < dim; d += 2 * AMX_SIDE) {
        float *o = sp->o + row * dim + d;
        const float *v = sp->v + d;
        _tile_loadd(0, o, row_bytes);
        _tile_loadd(1, o + 16, row_bytes);
        for (int64_t j = 0; j < n; j += AMX_DEPTH, v += AMX_DEPTH / 2 * dim) {
            _tile_loadd(4, sp->s + j / 2, key_bytes);
            _tile_loadd(5, v, row_bytes);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(6, v + 16, row_bytes);
            _tile_dpbf16ps(1, 4, 6);
        }
        _tile_stored(0, o, row_bytes);
        _tile_stored(1, o + 16, row_bytes);
    }
    amx_fence();
}

/* ---- softmax: as softmax_step, all 16 rows side by side where they can be */

/* The largest lane of each of 16 vectors, in their order. */
SIMD_FN vf tiles_tops(vf t[16]) {
    UNROLL_FOR(i, 8)
    t[i] = vf_max(_mm512_unpacklo_ps(t[2 * i], t[2 * i + 1]), _mm512_unpackhi_ps(t[2 * i], t[2 * i + 1]));
    UNROLL_FOR(i, 4) {
        vf a = t[2 * i], b = t[2 * i + 1]; /* two rows each in every quarter */
        t[i] = vf_max(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    UNROLL_FOR(i, 2) {
        vf a = t[2 * i], b = t[2 * i + 1]; /* four rows */
        t[i] = vf_max(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    return vf_max(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
}

/* Scores outside a row's keys [lo, hi) become NO_SCORE. */
static void tiles_mask(float *s, const int64_t *lo, const int64_t *hi) {
    for (int r = 0; r < 16; r++, s += ATTN_KEYS)
        for (int64_t i = 0; i < ATTN_KEYS; i += VF_N)
            vf_store(s + i, vf_window(vf_load(s + i), clamp_lane(lo[r] - i), clamp_lane(hi[r] - i), vf_set1(NO_SCORE)));
}

/* Scores become weights; m, l and o of the rows follow. */
static void tiles_softmax(const attn_space *sp, int64_t row, int64_t dim) {
    _Alignas(64) float shift[16], factor[16];
    float *s = sp->s, *l = sp->l + row * VF_N, *o = sp->o + row * dim;
    vf top[16];
    UNROLL_FOR(r, 16) {
        vf a = vf_max(vf_load(s + r * ATTN_KEYS), vf_load(s + r * ATTN_KEYS + 16));
        vf b = vf_max(vf_load(s + r * ATTN_KEYS + 32), vf_load(s + r * ATTN_KEYS + 48));
        top[r] = vf_max(a, b);
    }
    vf old = vf_load(sp->m + row), max = vf_max(tiles_tops(top), old);
    vf_store(sp->m + row, max);
    vf_store(shift, vf_max(vf_set1(NO_SCORE / 16), max)); /* without a score yet: weights are 0, not 1 */
    vf_store(factor, vf_exp2(vf_sub(old, max)));
    for (int r = 0; r < 16; r++, s += ATTN_KEYS, l += VF_N, o += dim) {
        vf p[TILES_VECTORS], to = vf_set1(shift[r]), sum = vf_mul(vf_load(l), vf_set1(factor[r]));
        UNROLL_FOR(i, TILES_VECTORS) p[i] = vf_exp2(vf_sub(vf_load(s + i * VF_N), to));
        vf_store(l, vf_add(sum, vf_add(vf_add(p[0], p[1]), vf_add(p[2], p[3]))));
        vf_store(s, tiles_pair(p[0], p[1]));
        vf_store(s + VF_N, tiles_pair(p[2], p[3]));
        if (factor[r] == 1.0f) continue;
        for (int64_t d = 0; d < dim; d += VF_N) vf_store(o + d, vf_mul(vf_load(o + d), vf_set1(factor[r])));
    }
}

/* ---- an item */

/* 16 rows times the n keys and values that sp holds. */
static void tiles_rows(const attn_call *c, const attn_item *it, const attn_space *sp, int64_t row, int64_t key,
                       int64_t n) {
    int64_t dim = c->a->head_dim, lo[16], hi[16], last = 0;
    int64_t end = row + 15 < it->n_rows ? row + 15 : it->n_rows - 1;
    row_window(c, it, row, key, n, &lo[0], &hi[0]);
    row_window(c, it, end, key, n, &lo[15], &hi[15]);
    bool whole = hi[0] == ATTN_KEYS && lo[15] == 0; /* positions only rise */
    if (hi[15] <= 0 || lo[0] >= n) return;
    tiles_scores(sp, row, dim);
    if (!whole) {
        for (int i = 0; i < 16; i++) row_window(c, it, row + i < end ? row + i : end, key, n, &lo[i], &hi[i]);
        tiles_mask(sp->s, lo, hi);
    }
    last = hi[15] < n ? hi[15] : n;
    tiles_softmax(sp, row, dim);
    tiles_sums(sp, row, last, dim);
}

static void attend_amx(const attn_call *c, const attn_item *it, const attn_space *sp) {
    rows_start(c, it, sp);
    pair_columns(sp->q, padded_rows(c, it), c->a->head_dim, c->a->head_dim);
    for (int64_t key = it->key; key < it->key_end; key += ATTN_KEYS) {
        int64_t n = it->key_end - key < ATTN_KEYS ? it->key_end - key : ATTN_KEYS;
        if (c->kv->type == KV_F16) {
            tiles_keys(KV_F16, c, it, key, n, sp->k);
            tiles_values(KV_F16, c, it, key, n, sp->v);
        } else if (c->kv->type == KV_F32) {
            tiles_keys(KV_F32, c, it, key, n, sp->k);
            tiles_values(KV_F32, c, it, key, n, sp->v);
        } else {
            tiles_keys(KV_Q8, c, it, key, n, sp->k);
            tiles_values(KV_Q8, c, it, key, n, sp->v);
        }
        for (int64_t row = 0; row < it->n_rows; row += AMX_SIDE) tiles_rows(c, it, sp, row, key, n);
    }
    rows_finish(c, it, sp);
}
