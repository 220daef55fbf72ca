/* Products of bf16 by vdpbf16ps, on pairs of columns, 32 rows x 8 tokens, inputs rounded to bf16; for processors that
 * do it at the rate of vpdpbusd (cpu.h).
 *
 * BF16 and more than ACT_FEW tokens, unless the inputs are exact: rows as stored are transposed once for all tokens, up
 * to 2048 columns at a time, into the L2 cache.
 * LAYOUT_BF16 (calibration): the same product straight from the packed tiles, for any number of tokens. */
#include <immintrin.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/inline.h"
#include "cpu/layout.h"
#include "cpu/simd.h"
#include "cpu/tile_avx512.h"

#define X_BYTES (384 << 10) /* of inputs, in the L2 cache */
#define PANEL_ROWS 32
#define PANEL_PAIRS 1024 /* of columns of native rows: 128 KB */
#define TILE 8           /* tokens of a register tile of PANEL_ROWS rows */

/* ---- products */

/* w0, w1 (n pairs, 16 rows) pairs of bf16; x (nt, n pairs) with stride ldx pairs. */
INLINE void gemm_bf16(int nt, const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n,
                      const tile_out *o) {
    __m512 f[TILE][2];
    tile_begin(nt, o, f);
    for (int64_t k = 0; k < n; k++) {
        __m512bh v0 = (__m512bh)_mm512_loadu_si512(w0 + 16 * k), v1 = (__m512bh)_mm512_loadu_si512(w1 + 16 * k);
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i v = _mm512_set1_epi32((int)x[t * ldx + k]);
            IN_REGISTER(v);
            f[t][0] = _mm512_dpbf16_ps(f[t][0], v0, (__m512bh)v);
            f[t][1] = _mm512_dpbf16_ps(f[t][1], v1, (__m512bh)v);
        }
    }
    tile_end(nt, o, f);
}

typedef void gemm_bf16_fn(const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n,
                          const tile_out *o);

#define WIDTHS(Y) Y(1) Y(2) Y(3) Y(4) Y(5) Y(6) Y(7) Y(8)
#define BF16_DEFINE(nt)                                                                                                \
    static void gemm_bf16_##nt(const uint32_t *w0, const uint32_t *w1, const uint32_t *x, int64_t ldx, int64_t n,      \
                               const tile_out *o) {                                                                    \
        gemm_bf16(nt, w0, w1, x, ldx, n, o);                                                                           \
    }
#define BF16_NAME(nt) gemm_bf16_##nt,
WIDTHS(BF16_DEFINE)
static gemm_bf16_fn *const gemm_bf16_fns[TILE] = {WIDTHS(BF16_NAME)};

/* Tokens [t, end) times the 32 rows at w0 and w1, over n pairs of columns from pair k on. */
static void times_tokens(const llmq_acts *a, int64_t t, int64_t end, const uint32_t *w0, const uint32_t *w1, int64_t k,
                         int64_t n, float *y, tile_out *o) {
    int64_t stride = act_bf16_stride(a->cols) / 2;
    for (; t < end; t += TILE) {
        o->y = y + t * o->ldy;
        gemm_bf16_fns[(end - t < TILE ? end - t : TILE) - 1](w0, w1, (const uint32_t *)a->bf16 + t * stride + k, stride,
                                                             n, o);
    }
}

/* Tokens (whole tiles) whose inputs, pairs of columns, stay in the L2 cache while all rows pass by. */
static int64_t tokens_at_once(int64_t pairs) {
    int64_t n = X_BYTES / 4 / pairs / TILE * TILE;
    return n > TILE ? n : TILE;
}

static void packed_bf16(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t tile_words = layout_bf16_tile_bytes(w->cols) / 4, begin, end;
    int64_t pairs = (w->cols + 31) / 32 * 16; /* padded with zeros on both sides */
    int64_t step = tokens_at_once(act_bf16_stride(w->cols) / 2);
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t t0 = 0; t0 < a->n_tok; t0 += step) {
        int64_t stop = a->n_tok - t0 < step ? a->n_tok : t0 + step;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint32_t *w0 = (const uint32_t *)w->packed + r / 16 * tile_words;
            const uint32_t *w1 =
                w->rows - r > 16 ? w0 + tile_words : w0; /* a missing half repeats the first and is not stored */
            tile_out o = tile_out_of(w, r, ldy, true);
            times_tokens(a, t0, stop, w0, w1, 0, pairs, y + r, &o);
        }
    }
}

/* 16 rows (n_rows of them there) of a matrix of BF16 as stored, n pairs of columns (a multiple of 16) from k on:
 * (n, 16 rows), zeros for what is not there. */
static void transpose_pairs(const uint16_t *row, int64_t cols, int64_t n_rows, int64_t k, int64_t n, uint32_t *out) {
    for (int64_t p = 0; p < n; p += 16, out += 256) {
        int64_t left = cols - 2 * (k + p);
        vf word[16];
        UNROLL_FOR(r, 16) {
            uint16_t some[32] = {0};
            word[r] = vf_zero();
            if (r >= n_rows) continue;
            const uint16_t *from = row + r * cols + 2 * (k + p);
            if (left < 32) from = memcpy(some, from, (size_t)left * sizeof *from);
            word[r] = vf_load((const float *)(const void *)from);
        }
        vf_transpose(word);
        UNROLL_FOR(j, 16) vf_store((float *)out + 16 * j, word[j]);
    }
}

static void native_bf16(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    _Alignas(64) uint32_t panel[2][PANEL_PAIRS * 16];
    int64_t pairs = (w->cols + 31) / 32 * 16, step = panel_step(pairs, 16, PANEL_PAIRS), begin, end;
    worker_range(worker, w->rows, PANEL_ROWS, &begin, &end);
    for (int64_t k = 0; k < pairs; k += step) {
        int64_t n = pairs - k < step ? pairs - k : step;
        for (int64_t r = begin; r < end; r += PANEL_ROWS) {
            const uint16_t *row = (const uint16_t *)w->native.data + r * w->cols;
            bool pair = w->rows - r > 16;
            for (int i = 0; i <= pair; i++)
                transpose_pairs(row + 16 * i * w->cols, w->cols, w->rows - r - 16 * i, k, n, panel[i]);
            tile_out o = tile_out_of(w, r, ldy, k == 0);
            times_tokens(a, 0, a->n_tok, panel[0], panel[pair], k, n, y + r, &o);
        }
    }
}

/* ---- rounding */

/* n elements of F16 or F32. */
INLINE void to_bf16(bool half, const char *src, uint16_t *dst, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = mask_of(n - i);
        __m512 x =
            half ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, src + 2 * i)) : _mm512_maskz_loadu_ps(m, src + 4 * i);
        _mm256_mask_storeu_epi16(dst + i, m, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

static void type_to_bf16(llmq_type type, const void *src, uint16_t *dst, int64_t n) {
    if (type == LLMQ_TYPE_BF16)
        memcpy(dst, src, (size_t)n * 2);
    else
        to_bf16(type == LLMQ_TYPE_F16, src, dst, n);
}

static void fill_bf16(const llmq_worker *worker, const llmq_acts *a) {
    int64_t stride = act_bf16_stride(a->cols), begin, end;
    worker_range(worker, a->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        uint16_t *out = (uint16_t *)a->bf16 + t * stride;
        to_bf16(false, (const char *)(a->x + t * a->cols), out, a->cols);
        memset(out + a->cols, 0, (size_t)(stride - a->cols) * 2);
    }
}

/* ---- entries: what they do not do goes to the ops as AVX-512 filled them */

static llmq_backend_ops avx512;

static llmq_status weight_prepare(llmq_weight *w, const llmq_tensor *t, int flags, llmq_team *team, llmq_err *err) {
    if (flags & PREP_BF16) return cpu_weight_pack(w, t, type_to_bf16, team, err);
    LLMQ_TRY(avx512.weight_prepare(w, t, flags, team, err));
    if (w->layout == LAYOUT_NATIVE && t->type == LLMQ_TYPE_BF16) w->act = ACT_BF16;
    return LLMQ_OK;
}

static void acts_fill(const llmq_worker *worker, llmq_acts *a, llmq_act_form form) {
    if (form == ACT_BF16)
        fill_bf16(worker, a);
    else
        avx512.acts_fill(worker, a, form);
}

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    if (w->layout == LAYOUT_BF16)
        packed_bf16(worker, w, a, y, ldy);
    else if (w->act == ACT_BF16 && a->n_tok > ACT_FEW && !a->exact)
        native_bf16(worker, w, a, y, ldy);
    else
        avx512.matmul(worker, w, a, y, ldy);
}

void cpu_fill_matmul_avx512bf16(llmq_backend_ops *ops) {
    avx512 = *ops;
    ops->weight_prepare = weight_prepare;
    ops->acts_fill = acts_fill;
    ops->matmul = matmul;
}
