/* The backend's ops on 8-bit integers and their f32 twins (include/llmq_affine.h): a second struct of functions,
 * reached through llmq_backend_ops.affine, under the same SPMD rule. Plain C is the oracle. */
#ifndef LLMQ_CORE_AFFINE_H
#define LLMQ_CORE_AFFINE_H

#include "core/parallel.h"
#include "llmq_affine.h"

#define AFFINE_PANEL 16  /* output channels that lie side by side in packed weights */
#define AFFINE_K 4       /* 8-bit inputs of one dword */
#define AFFINE_SLACK 64  /* bytes behind the last input of a gemm that may be read (and count for nothing) */
#define AFFINE_SUM 65536 /* products of a sum: 255 * 128 * 65536 < 2^31 */

/* Rows of a matrix that is never built: row r is an output position of a convolution, its columns are n_seg pieces of
 * the input, seg_len elements each, seg_off[s] elements behind the row's first element. A plain matrix is one piece.
 * Position (i, y, x) of n_img * out_h * out_w begins at i * img + y * step_h + x * step_w elements. */
typedef struct affine_rows {
    const void *x; /* uint8_t or float */
    int64_t n_img, out_h, out_w;
    int64_t img, step_h, step_w;
    int64_t n_seg, seg_len;
    const int64_t *seg_off; /* [n_seg] */
} affine_rows;

/* Packed weights. 8 bits: panel by panel, (n_seg * seg4, 16, 4) where seg4 = ceil(seg_len / 4): four inputs of each of
 * 16 channels, zeros where there are none. f32: (n_seg * seg_len, 16). Arrays of a channel are padded to whole panels.
 */

/* What becomes of an accumulator acc of row r, channel c. v = acc + offset[c], where offset holds -zero_point * sum of
 * weights and an i32 bias; with row_zero also - row_zero[r] * wsum[c]; all modulo 2^32.
 * I32: v. F32: float(v) * (mult[c] * row_scale[r] where there is one) + add[c], relu.
 * Q8 float: round((float(v) + add[c]) * mult[c]) + zero; fixed: llmq_fixed_multiply(v, {fix[c], shift[c]}) + zero;
 * then clamped to lo..hi and, when the type is signed, stored as such. */
typedef struct affine_epilogue {
    llmq_q8_output output;
    bool fixed, relu;
    const int32_t *offset;          /* [channels] */
    const int32_t *row_zero, *wsum; /* [rows], [channels] or NULL */
    const float *row_scale;         /* [rows] or NULL */
    const float *mult, *add;        /* [channels]; add is zeros without a bias */
    const int32_t *fix, *shift;     /* [channels], fixed */
    int32_t zero, lo, hi;
} affine_epilogue;

typedef struct affine_gemm {
    affine_rows rows;
    const void *w; /* packed: of channel 0 */
    int64_t channels;
    void *y;                    /* of row 0, channel 0; int32_t, float or bytes */
    int64_t ldy;                /* elements */
    const affine_epilogue *epi; /* 8 bits */
    const float *bias;          /* f32: [channels], padded */
    bool relu;                  /* f32 */
} affine_gemm;

/* Depthwise: channel c of position p is the sum over taps of x[begin(p) + seg_off[tap] + c] * w[tap * ldw + c]. */
typedef struct affine_depthwise {
    affine_rows rows; /* seg_len: channels */
    const int8_t *w8; /* (n_seg, ldw) */
    const float *w32;
    int64_t ldw;
    void *y;
    int64_t ldy;
    const affine_epilogue *epi;
    const float *bias;
    bool relu;
} affine_depthwise;

typedef struct affine_ops {
    /* Rows are dealt in eights, or channels in panels where there are few rows. */
    void (*gemm_q8)(const llmq_worker *, const affine_gemm *g);
    void (*gemm_f32)(const llmq_worker *, const affine_gemm *g);
    void (*depthwise_q8)(const llmq_worker *, const affine_depthwise *d);
    void (*depthwise_f32)(const llmq_worker *, const affine_depthwise *d);
    /* One thread. q = clamp(round(x * inv) + zero, lo, hi), NaN as 0; bytes (two's complement when signed). */
    void (*quantize)(const float *x, int64_t n, float inv, int32_t zero, int32_t lo, int32_t hi, uint8_t *q);
    void (*dequantize)(const uint8_t *q, bool is_signed, int64_t n, float scale, int32_t zero, float *x);
    /* min and max of n >= 1 floats; false if one of them is NaN or Inf (they are then undefined). */
    bool (*range)(const float *x, int64_t n, float *min, float *max);
    /* Accumulators [n] of row r, channels c0.., by the epilogue; y: of channel c0. */
    void (*finish)(const affine_epilogue *e, const int32_t *acc, int64_t c0, int64_t n, int64_t row, void *y);
    /* y[c] = max of k rows of k pixels; x: the first, stride ld from row to row; bytes are unsigned or signed. */
    void (*max_u8)(const uint8_t *x, int64_t ld, int64_t k, int64_t channels, bool is_signed, uint8_t *y);
    void (*max_f32)(const float *x, int64_t ld, int64_t k, int64_t channels, float *y);
} affine_ops;

/* llmq_fixed_multiply. Ties of the product go up, which is what gemmlowp's nudge and truncation come to; those of the
 * shift to the right away from 0. */
static inline int32_t affine_fixed_times(int32_t x, int32_t multiplier, int32_t shift) {
    int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    int64_t a = (int64_t)x * ((int64_t)1 << left);
    a = a > INT32_MAX ? INT32_MAX : a < INT32_MIN ? INT32_MIN : a;
    int32_t high = (int32_t)((a * multiplier + (1 << 30)) >> 31);
    int32_t mask = (int32_t)((1u << right) - 1), rest = high & mask;
    return (high >> right) + (rest > (mask >> 1) + (high < 0));
}

/* Begin of row r in elements. */
static inline int64_t affine_row_begin(const affine_rows *m, int64_t r) {
    int64_t x = r % m->out_w, y = r / m->out_w % m->out_h, i = r / m->out_w / m->out_h;
    return i * m->img + y * m->step_h + x * m->step_w;
}

#endif
