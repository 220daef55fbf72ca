/* Shapes of layers, and weights in the order that the kernels read (core/affine.h). */
#include <math.h>
#include <string.h>

#include "affine/layers.h"
#include "core/mem.h"

#define SIDE_MAX (1 << 20) /* of kernels, strides, paddings, dilations: sums of a few products of them fit int64 */

llmq_conv2d llmq_conv2d_same(int64_t in_channels, int64_t out_channels, int64_t k) {
    return (llmq_conv2d){in_channels, out_channels, 1, k, k, 1, 1, k / 2, k / 2, 1, 1};
}

static bool between(int64_t x, int64_t lo, int64_t hi) {
    return x >= lo && x <= hi;
}

llmq_status affine_shape_check(const llmq_conv2d *c, affine_shape *out, llmq_err *err) {
    if (!c) return llmq_fail(err, LLMQ_E_ARG, "conv2d: NULL");
    if (!between(c->in_channels, 1, INT32_MAX) || !between(c->out_channels, 1, INT32_MAX) || c->groups < 1 ||
        c->in_channels % c->groups || c->out_channels % c->groups)
        return llmq_fail(err, LLMQ_E_ARG, "conv2d: %lld to %lld channels in %lld groups", (long long)c->in_channels,
                         (long long)c->out_channels, (long long)c->groups);
    if (!between(c->kernel_h, 1, SIDE_MAX) || !between(c->kernel_w, 1, SIDE_MAX) ||
        !between(c->stride_h, 1, SIDE_MAX) || !between(c->stride_w, 1, SIDE_MAX) || !between(c->pad_h, 0, SIDE_MAX) ||
        !between(c->pad_w, 0, SIDE_MAX) || !between(c->dilation_h, 1, SIDE_MAX) || !between(c->dilation_w, 1, SIDE_MAX))
        return llmq_fail(err, LLMQ_E_ARG, "conv2d: kernel, stride and dilation are 1..%d, padding 0..%d", SIDE_MAX,
                         SIDE_MAX);
    affine_shape s = {.conv = *c, .group_in = c->in_channels / c->groups, .group_out = c->out_channels / c->groups};
    int64_t taps = c->kernel_h * c->kernel_w, products;
    if (!i64_mul(taps, s.group_in, &products) || !i64_mul(products, c->out_channels, &products) ||
        products > INT64_MAX / 1024)
        return llmq_fail(err, LLMQ_E_ARG, "conv2d: the weights are too large");
    s.depthwise = c->groups > 1 && c->groups == c->in_channels && c->groups == c->out_channels;
    bool whole_rows = c->groups == 1 && (c->dilation_w == 1 || c->kernel_w == 1);
    s.n_seg = whole_rows ? c->kernel_h : taps;
    s.seg_len = s.depthwise ? c->in_channels : whole_rows ? c->kernel_w * c->in_channels : s.group_in;
    int64_t channels = s.depthwise ? c->out_channels : s.group_out;
    s.padded = (channels + AFFINE_PANEL - 1) / AFFINE_PANEL * AFFINE_PANEL;
    *out = s;
    return LLMQ_OK;
}

llmq_status llmq_conv2d_out(const llmq_conv2d *conv, int64_t in_h, int64_t in_w, int64_t *out_h, int64_t *out_w,
                            llmq_err *err) {
    affine_shape s;
    LLMQ_TRY(affine_shape_check(conv, &s, err));
    if (!out_h || !out_w) return llmq_fail(err, LLMQ_E_ARG, "llmq_conv2d_out: NULL");
    int64_t span_h = conv->dilation_h * (conv->kernel_h - 1) + 1, span_w = conv->dilation_w * (conv->kernel_w - 1) + 1;
    if (!between(in_h, 0, INT32_MAX) || !between(in_w, 0, INT32_MAX) || in_h + 2 * conv->pad_h < span_h ||
        in_w + 2 * conv->pad_w < span_w)
        return llmq_fail(err, LLMQ_E_ARG, "conv2d: an input of %lld x %lld is smaller than the kernel, %lld x %lld",
                         (long long)in_h, (long long)in_w, (long long)span_h, (long long)span_w);
    *out_h = (in_h + 2 * conv->pad_h - span_h) / conv->stride_h + 1;
    *out_w = (in_w + 2 * conv->pad_w - span_w) / conv->stride_w + 1;
    return LLMQ_OK;
}

/* ---- packing ---- */

/* Where weight (channel o of group g, tap t, input i) lies in packed 8-bit (four = true) or f32 weights. */
static int64_t packed_at(const affine_shape *s, bool four, int64_t g, int64_t o, int64_t t, int64_t i) {
    if (s->depthwise) return t * s->padded + g;
    int64_t k = t * s->group_in + i, seg = k / s->seg_len, at = k % s->seg_len; /* place in the sum */
    if (four) {
        int64_t seg4 = (s->seg_len + AFFINE_K - 1) / AFFINE_K, panel = o / AFFINE_PANEL, lane = o % AFFINE_PANEL;
        return g * s->panels + ((panel * s->n_seg + seg) * seg4 + at / AFFINE_K) * AFFINE_PANEL * AFFINE_K +
               lane * AFFINE_K + at % AFFINE_K;
    }
    return g * s->panels + (o / AFFINE_PANEL * s->n_seg * s->seg_len + k) * AFFINE_PANEL + o % AFFINE_PANEL;
}

/* Elements of packed weights; panels of the shape is set. */
static int64_t packed_size(affine_shape *s, bool four) {
    if (s->depthwise) return s->n_seg * s->padded;
    s->panels = s->padded * s->n_seg * (four ? (s->seg_len + AFFINE_K - 1) / AFFINE_K * AFFINE_K : s->seg_len);
    return s->panels * s->conv.groups;
}

static int64_t n_slots(const affine_shape *s) {
    return s->depthwise ? s->padded : s->padded * s->conv.groups;
}

/* Slot of output channel c in the arrays of channels. */
static int64_t slot_of(const affine_shape *s, int64_t c) {
    return s->depthwise ? c : c / s->group_out * s->padded + c % s->group_out;
}

/* Calls for each weight: where it is in the order given, and where it goes. */
#define EACH_WEIGHT(s, four, from, to)                                                                                 \
    for (int64_t c_ = 0, from = 0; c_ < (s)->conv.out_channels; c_++)                                                  \
        for (int64_t t_ = 0; t_ < (s)->conv.kernel_h * (s)->conv.kernel_w; t_++)                                       \
            for (int64_t i_ = 0, to;                                                                                   \
                 i_ < (s)->group_in &&                                                                                 \
                 (to = packed_at(s, four, c_ / (s)->group_out, c_ % (s)->group_out, t_, i_), true);                    \
                 i_++, from++)

static llmq_status pack_check(const affine_shape *s, const llmq_q8_pack *p, llmq_err *err) {
    if (!p || !p->weights || !p->scales) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_pack: weights or scales are NULL");
    if (p->bias && p->bias_i32) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_pack: one kind of bias, not both");
    int64_t sum = s->conv.kernel_h * s->conv.kernel_w * s->group_in;
    if (sum > AFFINE_SUM)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_pack: sums of %lld products; int32 is safe up to %d", (long long)sum,
                         AFFINE_SUM);
    for (int64_t c = 0; c < s->conv.out_channels; c++) {
        if (!(p->scales[c] > 0) || !isfinite(p->scales[c]))
            return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_pack: scale %g of channel %lld is not positive and finite",
                             (double)p->scales[c], (long long)c);
        if (p->bias && !isfinite(p->bias[c]))
            return llmq_fail(err, LLMQ_E_NUMERIC, "llmq_q8_pack: bias of channel %lld is not finite", (long long)c);
    }
    return LLMQ_OK;
}

static llmq_status q8_pack(affine_shape *s, const llmq_q8_pack *p, llmq_q8_weights **out, llmq_err *err) {
    LLMQ_TRY(pack_check(s, p, err));
    int64_t size = packed_size(s, true), slots = n_slots(s);
    llmq_q8_weights *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, "weights");
    w->shape = *s;
    w->w = mem_zalloc((size_t)size, 1);
    w->wsum = mem_zalloc((size_t)slots, sizeof *w->wsum);
    w->bias_i32 = mem_zalloc((size_t)slots, sizeof *w->bias_i32);
    w->scale = mem_zalloc((size_t)slots, sizeof *w->scale);
    w->bias = mem_zalloc((size_t)slots, sizeof *w->bias);
    w->has_i32 = p->bias_i32 != NULL;
    w->bytes = (int64_t)sizeof *w + size + 16 * slots;
    if (!w->w || !w->wsum || !w->bias_i32 || !w->scale || !w->bias) {
        llmq_q8_weights_destroy(w);
        return mem_error(err, (size_t)(size + 16 * slots), "packed weights");
    }
    EACH_WEIGHT(s, true, from, to) {
        w->w[to] = p->weights[from];
        w->wsum[slot_of(s, c_)] += p->weights[from];
    }
    for (int64_t k = 0; k < slots; k++) w->scale[k] = p->scales[0]; /* one that is no trouble, in the padding */
    for (int64_t c = 0; c < s->conv.out_channels; c++) {
        int64_t k = slot_of(s, c);
        w->scale[k] = p->scales[c];
        if (p->bias) w->bias[k] = p->bias[c];
        if (p->bias_i32) w->bias_i32[k] = p->bias_i32[c];
    }
    *out = w;
    return LLMQ_OK;
}

static llmq_status f32_pack(affine_shape *s, const float *weights, const float *bias, llmq_f32_weights **out,
                            llmq_err *err) {
    if (!weights) return llmq_fail(err, LLMQ_E_ARG, "llmq_f32_pack: weights are NULL");
    int64_t size = packed_size(s, false), slots = n_slots(s);
    llmq_f32_weights *w = mem_zalloc(1, sizeof *w);
    if (!w) return mem_error(err, sizeof *w, "weights");
    w->shape = *s;
    w->w = mem_zalloc((size_t)size, sizeof *w->w);
    w->bias = mem_zalloc((size_t)slots, sizeof *w->bias);
    w->bytes = (int64_t)sizeof *w + 4 * (size + slots);
    if (!w->w || !w->bias) {
        llmq_f32_weights_destroy(w);
        return mem_error(err, (size_t)(4 * (size + slots)), "packed weights");
    }
    EACH_WEIGHT(s, false, from, to) w->w[to] = weights[from];
    for (int64_t c = 0; bias && c < s->conv.out_channels; c++) w->bias[slot_of(s, c)] = bias[c];
    *out = w;
    return LLMQ_OK;
}

static llmq_status linear_shape(int64_t rows, int64_t cols, affine_shape *s, llmq_err *err) {
    llmq_conv2d conv = llmq_conv2d_same(cols, rows, 1);
    LLMQ_TRY(affine_shape_check(&conv, s, err));
    s->linear = true;
    return LLMQ_OK;
}

llmq_status llmq_q8_pack_conv2d(const llmq_conv2d *conv, const llmq_q8_pack *pack, llmq_q8_weights **out,
                                llmq_err *err) {
    affine_shape s;
    if (!out) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_pack_conv2d: NULL");
    LLMQ_TRY(affine_shape_check(conv, &s, err));
    return q8_pack(&s, pack, out, err);
}

llmq_status llmq_q8_pack_linear(int64_t rows, int64_t cols, const llmq_q8_pack *pack, llmq_q8_weights **out,
                                llmq_err *err) {
    affine_shape s;
    if (!out) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_pack_linear: NULL");
    LLMQ_TRY(linear_shape(rows, cols, &s, err));
    return q8_pack(&s, pack, out, err);
}

llmq_status llmq_f32_pack_conv2d(const llmq_conv2d *conv, const float *weights, const float *bias,
                                 llmq_f32_weights **out, llmq_err *err) {
    affine_shape s;
    if (!out) return llmq_fail(err, LLMQ_E_ARG, "llmq_f32_pack_conv2d: NULL");
    LLMQ_TRY(affine_shape_check(conv, &s, err));
    return f32_pack(&s, weights, bias, out, err);
}

llmq_status llmq_f32_pack_linear(int64_t rows, int64_t cols, const float *weights, const float *bias,
                                 llmq_f32_weights **out, llmq_err *err) {
    affine_shape s;
    if (!out) return llmq_fail(err, LLMQ_E_ARG, "llmq_f32_pack_linear: NULL");
    LLMQ_TRY(linear_shape(rows, cols, &s, err));
    return f32_pack(&s, weights, bias, out, err);
}

void llmq_q8_weights_destroy(llmq_q8_weights *w) {
    if (!w) return;
    mem_free(w->w);
    mem_free(w->wsum);
    mem_free(w->bias_i32);
    mem_free(w->scale);
    mem_free(w->bias);
    mem_free(w);
}

void llmq_f32_weights_destroy(llmq_f32_weights *w) {
    if (!w) return;
    mem_free(w->w);
    mem_free(w->bias);
    mem_free(w);
}

int64_t llmq_q8_weights_bytes(const llmq_q8_weights *w) {
    return w ? w->bytes : 0;
}
int64_t llmq_f32_weights_bytes(const llmq_f32_weights *w) {
    return w ? w->bytes : 0;
}
