/* llmq: INT8 building blocks. Affine parameters, observers that find them from data, quantize, dequantize, requantize,
 * and the layers that run on 8-bit integers: linear, 2-d convolution, max pooling; the same layers in f32 beside them.
 *
 * The mapping (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
 * Inference"): real = scale * (q - zero_point), where zero_point is one of the integers of q, so that 0.0 is exactly
 * representable. Rounding is to nearest, ties to even. The arithmetic is that of PyTorch's
 * quantized operators (fbgemm), step by step in f32, so results are the same integers.
 *
 * Ownership: what a *_create or *_pack function returns belongs to the caller, who gives it to the *_destroy function
 * (NULL allowed). Nothing else is kept: pointers in arguments are read or written during the call only.
 * Errors: every function with a status checks its arguments first. LLMQ_E_ARG: NULL, negative or overflowing shapes,
 * unknown enum values; LLMQ_E_NUMERIC: NaN or Inf where a finite number is needed; LLMQ_E_MEMORY. Outputs are then
 * undefined, objects as they were. A pointer to no elements may be NULL.
 * Threads: an object may be used by one thread at a time, except packed weights, which any number may read. Results do
 * not depend on the number of threads. */
#ifndef LLMQ_AFFINE_H
#define LLMQ_AFFINE_H

#include "llmq_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- parameters ---- */

typedef enum llmq_q8_type { LLMQ_Q8_UNSIGNED, LLMQ_Q8_SIGNED } llmq_q8_type; /* uint8_t, int8_t */

/* Which integers may be used and how a range becomes parameters. */
typedef struct llmq_affine_spec {
    llmq_q8_type type;
    bool symmetric; /* zero_point is 0 (signed) or the middle of the range (unsigned) */
    /* The integers used, with quant_min <= 0 <= quant_max inside the type, quant_min < quant_max. Both 0: all of the
     * type. A reduced range: 0..127 or -64..63 (PyTorch's reduce_range), or -127..127 for weights. */
    int32_t quant_min, quant_max;
    float eps; /* the least scale; 0: 2^-23, PyTorch's */
} llmq_affine_spec;

typedef struct llmq_affine_params {
    float scale; /* > 0, finite */
    int32_t zero_point;
} llmq_affine_params;

/* How parameters are spread over data seen as (outer, channels, inner), row-major: one pair of parameters for each
 * channel, or with a group for each `group` consecutive elements of a row of inner (the last may be shorter; outer must
 * be 1). Per tensor: {1, 1, n, 0}. Per output channel of weights (rows, cols): {1, rows, cols, 0}; in groups of 32 of
 * its columns: {1, rows, cols, 32}. Per channel of NHWC: {n*h*w, c, 1, 0}; of NCHW: {n, c, h*w, 0}. */
typedef struct llmq_affine_layout {
    int64_t outer, channels, inner, group;
} llmq_affine_layout;

/* Elements and pairs of parameters of a layout; -1 if it is not valid. */
LLMQ_API int64_t llmq_affine_elements(const llmq_affine_layout *layout);
LLMQ_API int64_t llmq_affine_n_params(const llmq_affine_layout *layout);

/* params[n] from ranges min[n] <= max[n], as PyTorch's UniformQuantizationObserverBase._calculate_qparams. The range is
 * widened to contain 0; width below eps * (quant_max - quant_min) gives eps as scale. LLMQ_E_NUMERIC: a NaN, an Inf, or
 * a width that is no finite float; LLMQ_E_ARG: min > max. */
LLMQ_API llmq_status llmq_affine_from_ranges(const llmq_affine_spec *spec, int64_t n, const float *min,
                                             const float *max, llmq_affine_params *params, llmq_err *err);

/* min and max (llmq_affine_n_params each) of data. NaN anywhere or Inf: LLMQ_E_NUMERIC. A layout without elements is
 * LLMQ_E_ARG: there is no range. */
LLMQ_API llmq_status llmq_affine_ranges(const float *data, const llmq_affine_layout *layout, float *min, float *max,
                                        llmq_err *err);

/* ---- elements ---- */

/* q = clamp(round(x * (1 / scale)) + zero_point), as torch.quantize_per_tensor and _per_channel. q: uint8_t or int8_t
 * as spec says, clamped to its range. Any float is allowed: NaN gives zero_point, +-Inf an end of the range.
 * LLMQ_E_ARG: a scale that is not positive and finite, a zero_point outside the range. */
LLMQ_API llmq_status llmq_affine_quantize(const float *x, const llmq_affine_layout *layout,
                                          const llmq_affine_spec *spec, const llmq_affine_params *params, void *q,
                                          llmq_err *err);
/* x = (q - zero_point) * scale, as torch.dequantize. */
LLMQ_API llmq_status llmq_affine_dequantize(const void *q, llmq_q8_type type, const llmq_affine_layout *layout,
                                            const llmq_affine_params *params, float *x, llmq_err *err);

/* A positive real multiplier as an integer in [2^30, 2^31) and a power of two: real ~ multiplier * 2^(shift - 31).
 * TFLite's QuantizeMultiplier: below 2^-32 it is 0; 2^31 or more (or not finite, or negative) is LLMQ_E_ARG. */
typedef struct llmq_fixed_multiplier {
    int32_t multiplier, shift;
} llmq_fixed_multiplier;
LLMQ_API llmq_status llmq_fixed_from_real(double real, llmq_fixed_multiplier *out, llmq_err *err);
/* x times the multiplier by integers alone, TFLite's MultiplyByQuantizedMultiplier with double rounding: x * 2^shift
 * (shift > 0; saturated to int32, where TFLite overflows), gemmlowp's SaturatingRoundingDoublingHighMul, then
 * RoundingDivideByPOT by -shift. 0 if multiplier < 0 or shift is not in -31..31. */
LLMQ_API int32_t llmq_fixed_multiply(int32_t x, llmq_fixed_multiplier m);

/* Accumulators (rows, channels) to 8 bits: channel c is multiplied by real[c], then out->zero_point is added and the
 * result clamped to spec's range, or with relu to [zero_point, quant_max]. LLMQ_REQUANT_FLOAT: round(float(acc) *
 * float(real)), PyTorch's; LLMQ_REQUANT_FIXED: llmq_fixed_multiply. real[c] as for llmq_fixed_from_real. */
typedef enum llmq_requant { LLMQ_REQUANT_FLOAT, LLMQ_REQUANT_FIXED } llmq_requant;
LLMQ_API llmq_status llmq_affine_requantize(const int32_t *acc, int64_t rows, int64_t channels, const double *real,
                                            llmq_requant how, const llmq_affine_spec *spec,
                                            const llmq_affine_params *out, bool relu, void *q, llmq_err *err);

/* ---- observers: what range a tensor takes, from the batches that they are shown ---- */

typedef enum llmq_observer_kind {
    LLMQ_OBSERVE_MINMAX,         /* torch.ao MinMaxObserver, PerChannelMinMaxObserver */
    LLMQ_OBSERVE_MOVING_AVERAGE, /* MovingAverageMinMaxObserver: min += averaging * (min of the batch - min) */
    LLMQ_OBSERVE_PERCENTILE,     /* the percentiles 100 - p and p of all values, NumPy's linear interpolation */
    LLMQ_OBSERVE_MSE,            /* the range of least squared error, searched in a histogram */
    LLMQ_OBSERVE_ENTROPY         /* the range of least KL divergence (Migacz 2017, "8-bit Inference with TensorRT") */
} llmq_observer_kind;

typedef struct llmq_observer_params {
    llmq_observer_kind kind;
    llmq_affine_spec spec;
    int64_t channels;   /* 1: per tensor; every kind may be per channel (weights; activations only where that helps) */
    double averaging;   /* MOVING_AVERAGE: in (0, 1], 0.01 */
    double percentile;  /* PERCENTILE: in (50, 100], 99.99 */
    int64_t max_values; /* PERCENTILE: values kept of a channel, 4 bytes each, 4194304. It is exact up to so many; of
                         * more a uniform sample is kept (reservoir, fixed seed) */
    int64_t bins;       /* MSE, ENTROPY: 64..65536 bins a channel of 24 bytes each, 16384 and 4096 */
} llmq_observer_params;
LLMQ_API void llmq_observer_params_default(llmq_observer_params *params, llmq_observer_kind kind);

typedef struct llmq_observer llmq_observer;
/* Allocates all but the values of PERCENTILE, which grow. */
LLMQ_API llmq_status llmq_observer_create(const llmq_observer_params *params, llmq_observer **out, llmq_err *err);
LLMQ_API void llmq_observer_destroy(llmq_observer *observer);
/* Takes in a batch (outer, channels, inner) of finite values; an empty one is ignored. A NaN or Inf is LLMQ_E_NUMERIC
 * (PyTorch's histogram observer drops Inf, others keep it in the range), and the observer stays as it was.
 * Bins of a histogram are a power of two wide, the least that fits all values, so that widening them adds pairs of bins
 * and loses nothing: the result does not depend on the order of batches. */
LLMQ_API llmq_status llmq_observer_observe(llmq_observer *observer, const float *data, int64_t outer, int64_t inner,
                                           llmq_err *err);
/* Range and parameters of each channel [channels]; any of the three may be NULL. Before any value: min 0, max 0,
 * scale 1, zero point 0 (PyTorch's), with LLMQ_OK.
 *
 * MSE: ends of the range are moved over all bins (64 x 64 steps, then ever finer ones around the best); the error of a
 * range is exact up to bins that a rounding boundary splits, and of up to 16384 values a channel, which are kept, the
 * search ends with their own errors. With a symmetric spec |min| = max.
 * ENTROPY: bins from the first used one (or 0.0) to the last are numbered 0..n-1; [a, b) of them, with 0.0 inside and
 * b - a >= levels L = quant_max - quant_min + 1, are cut into L runs, run j beginning at a + floor(j (b - a) / L). P:
 * the counts of [a, b), those outside added to the bins a and b - 1; Q: those of [a, b) alone, each run's sum spread
 * evenly over its bins that are not empty. Of all a = i * step, b = n - j * step with step = max(1, n / 64) the least
 * KL(P || Q) wins, of equal ones the widest range (least i + j, then least i); where Q is 0 and P is not it is
 * infinite. Symmetric: the histogram is folded at 0.0 (bins -1 and 0 become one), a = 0, L = quant_max - zero_point +
 * 1, step 1. n < L: the whole range. Values that are 0.0 do not count, since every range has 0.0: the many zeros behind
 * a ReLU would else decide alone. */
LLMQ_API llmq_status llmq_observer_result(const llmq_observer *observer, float *min, float *max,
                                          llmq_affine_params *params, llmq_err *err);
LLMQ_API void llmq_observer_reset(llmq_observer *observer); /* forgets all values */

/* ---- layers ---- */

/* Workers and scratch memory of the layers. One call at a time. Scratch grows to what the largest call needs. */
typedef struct llmq_q8_context llmq_q8_context;
LLMQ_API llmq_status llmq_q8_context_create(int n_threads, llmq_q8_context **out, llmq_err *err);
LLMQ_API void llmq_q8_context_destroy(llmq_q8_context *context);

/* A 2-d convolution, NHWC: input (n, in_h, in_w, in_channels), weights (out_channels, kernel_h, kernel_w, in_channels /
 * groups), output (n, out_h, out_w, out_channels); PyTorch's channels_last. out_h = (in_h + 2 pad_h - dilation_h
 * (kernel_h - 1) - 1) / stride_h + 1. groups = in_channels = out_channels is depthwise and has kernels of its own.
 * Padding is 0.0, which is the zero point. */
typedef struct llmq_conv2d {
    int64_t in_channels, out_channels, groups;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
} llmq_conv2d;
/* Kernel k x k, stride 1, padding k/2, one group. */
LLMQ_API llmq_conv2d llmq_conv2d_same(int64_t in_channels, int64_t out_channels, int64_t k);
/* Output size; LLMQ_E_ARG where there is none. */
LLMQ_API llmq_status llmq_conv2d_out(const llmq_conv2d *conv, int64_t in_h, int64_t in_w, int64_t *out_h,
                                     int64_t *out_w, llmq_err *err);

/* Weights in the order that the kernels read. Immutable. */
typedef struct llmq_q8_weights llmq_q8_weights;
typedef struct llmq_f32_weights llmq_f32_weights;

/* Biases are one of two, or none: bias (f32), added as fbgemm does, float(acc) + bias / (input scale * weight scale),
 * or bias_i32, added to the accumulator (TFLite's: a value of input scale * weight scale). */
typedef struct llmq_q8_pack {
    const int8_t *weights;   /* symmetric, any int8; (out_channels, kernel_h, kernel_w, in_channels / groups) */
    const float *scales;     /* [out_channels], positive and finite */
    const float *bias;       /* [out_channels] finite, or NULL */
    const int32_t *bias_i32; /* [out_channels] or NULL */
} llmq_q8_pack;
/* At most 65536 products a sum (LLMQ_E_ARG), so that the accumulator cannot overflow; with bias_i32 it may, and then
 * wraps as PyTorch's does. */
LLMQ_API llmq_status llmq_q8_pack_conv2d(const llmq_conv2d *conv, const llmq_q8_pack *pack, llmq_q8_weights **out,
                                         llmq_err *err);
/* y = W x + b, W (rows, cols): the 1 x 1 convolution of cols to rows channels. */
LLMQ_API llmq_status llmq_q8_pack_linear(int64_t rows, int64_t cols, const llmq_q8_pack *pack, llmq_q8_weights **out,
                                         llmq_err *err);
LLMQ_API void llmq_q8_weights_destroy(llmq_q8_weights *weights);
LLMQ_API int64_t llmq_q8_weights_bytes(const llmq_q8_weights *weights); /* of memory, everything included */

/* What comes out. I32: accumulators, sum of (q - zero_point) * weight (+ bias_i32). F32: scaled, with bias. Q8: 8 bits
 * with params out, spec and requant; the multiplier is input scale * weight scale / output scale. With FIXED a f32 bias
 * is rounded to the accumulator's scale first. */
typedef enum llmq_q8_output { LLMQ_OUT_I32, LLMQ_OUT_F32, LLMQ_OUT_Q8 } llmq_q8_output;
typedef struct llmq_q8_args {
    const void *x; /* (n, in_h, in_w, in_channels) uint8_t or int8_t; a linear layer: in_h = in_w = 1 */
    int64_t n, in_h, in_w;
    llmq_q8_type x_type;
    llmq_affine_params x_params;
    llmq_q8_output output;
    bool relu;                   /* max(0, y); not with I32 */
    llmq_requant requant;        /* Q8 */
    llmq_affine_spec y_spec;     /* Q8 */
    llmq_affine_params y_params; /* Q8 */
    void *y;                     /* (n, out_h, out_w, out_channels) of the output's type; may not overlap x */
} llmq_q8_args;
/* Static: all parameters were found beforehand. */
LLMQ_API llmq_status llmq_q8_run(llmq_q8_context *context, const llmq_q8_weights *weights, const llmq_q8_args *args,
                                 llmq_err *err);
/* Dynamic: x f32 is quantized on the fly to 8 unsigned bits, asymmetric; y f32. Weights of a linear
 * layer: each row of x with its own range (per token); of a convolution, and with per_tensor: one range for all of x,
 * as torch.ao's quantize_dynamic has it. NaN or Inf in x: LLMQ_E_NUMERIC. */
LLMQ_API llmq_status llmq_q8_run_dynamic(llmq_q8_context *context, const llmq_q8_weights *weights, const float *x,
                                         int64_t n, int64_t in_h, int64_t in_w, bool per_tensor, bool relu, float *y,
                                         llmq_err *err);

/* The same layers in f32: what the others are compared with. bias [out_channels] or NULL. Any float is allowed. */
LLMQ_API llmq_status llmq_f32_pack_conv2d(const llmq_conv2d *conv, const float *weights, const float *bias,
                                          llmq_f32_weights **out, llmq_err *err);
LLMQ_API llmq_status llmq_f32_pack_linear(int64_t rows, int64_t cols, const float *weights, const float *bias,
                                          llmq_f32_weights **out, llmq_err *err);
LLMQ_API void llmq_f32_weights_destroy(llmq_f32_weights *weights);
LLMQ_API int64_t llmq_f32_weights_bytes(const llmq_f32_weights *weights);
LLMQ_API llmq_status llmq_f32_run(llmq_q8_context *context, const llmq_f32_weights *weights, const float *x, int64_t n,
                                  int64_t in_h, int64_t in_w, bool relu, float *y, llmq_err *err);

/* Max pooling k x k with stride k, without padding, NHWC: x (n, h, w, channels) to y (n, h / k, w / k, channels).
 * Parameters stay as they are. A NaN in a f32 window may or may not come through. */
LLMQ_API llmq_status llmq_q8_maxpool(llmq_q8_context *context, const void *x, llmq_q8_type type, int64_t n, int64_t h,
                                     int64_t w, int64_t channels, int64_t k, void *y, llmq_err *err);
LLMQ_API llmq_status llmq_f32_maxpool(llmq_q8_context *context, const float *x, int64_t n, int64_t h, int64_t w,
                                      int64_t channels, int64_t k, float *y, llmq_err *err);
/* llmq_affine_quantize per tensor on the context's workers: the entry of a quantized network. */
LLMQ_API llmq_status llmq_q8_quantize(llmq_q8_context *context, const float *x, int64_t n, const llmq_affine_spec *spec,
                                      llmq_affine_params params, void *q, llmq_err *err);

#ifdef __cplusplus
}
#endif
#endif
