/* The three networks: f32; dynamic INT8; and static INT8 in its three steps, prepare, calibrate and convert. */
#include <stdlib.h>
#include <string.h>

#include "tinycnn.h"

static const llmq_affine_spec activations = {.type = LLMQ_Q8_UNSIGNED};
static const llmq_affine_spec symmetric_weights = {
    .type = LLMQ_Q8_SIGNED, .symmetric = true, .quant_min = -127, .quant_max = 127};

static llmq_f32_weights *pack_f32(const weights *w, layer_id l) {
    llmq_f32_weights *out;
    llmq_err err;
    llmq_conv2d conv = layer_conv(l);
    must(l <= CONV2 ? llmq_f32_pack_conv2d(&conv, w->w[l], w->b[l], &out, &err)
                    : llmq_f32_pack_linear(layer_rows[l], layer_cols[l], w->w[l], w->b[l], &out, &err),
         &err);
    return out;
}

/* Weights to 8 bits with a scale for each output channel, from the channel's own range. */
static llmq_q8_weights *pack_q8(const weights *w, layer_id l, int64_t *bytes) {
    llmq_affine_layout layout = {1, layer_rows[l], layer_cols[l], 0};
    int64_t rows = layer_rows[l], n = rows * layer_cols[l];
    float min[HIDDEN], max[HIDDEN], scales[HIDDEN];
    llmq_affine_params params[HIDDEN];
    int8_t *q = allocate((size_t)n, 1);
    llmq_q8_weights *out;
    llmq_err err;
    must(llmq_affine_ranges(w->w[l], &layout, min, max, &err), &err);
    must(llmq_affine_from_ranges(&symmetric_weights, rows, min, max, params, &err), &err);
    must(llmq_affine_quantize(w->w[l], &layout, &symmetric_weights, params, q, &err), &err);
    for (int64_t r = 0; r < rows; r++) scales[r] = params[r].scale;
    llmq_q8_pack pack = {q, scales, w->b[l], NULL};
    llmq_conv2d conv = layer_conv(l);
    must(l <= CONV2 ? llmq_q8_pack_conv2d(&conv, &pack, &out, &err)
                    : llmq_q8_pack_linear(rows, layer_cols[l], &pack, &out, &err),
         &err);
    *bytes += n + 8 * rows; /* a scale and a bias for each channel */
    free(q);
    return out;
}

/* ---- f32 ---- */

net_f32 net_f32_create(const weights *w) {
    net_f32 net;
    for (int l = 0; l < LAYERS; l++) {
        net.layer[l] = pack_f32(w, l);
        net.out[l] = allocate((size_t)(BATCH * layer_out[l]), sizeof(float));
    }
    net.pooled = allocate(BATCH * POOLED, sizeof(float));
    return net;
}

void net_f32_run(const net_f32 *net, llmq_q8_context *ctx, const float *x, int n) {
    llmq_err err;
    must(llmq_f32_run(ctx, net->layer[CONV1], x, n, SIDE, SIDE, true, net->out[CONV1], &err), &err);
    must(llmq_f32_run(ctx, net->layer[CONV2], net->out[CONV1], n, SIDE, SIDE, true, net->out[CONV2], &err), &err);
    must(llmq_f32_maxpool(ctx, net->out[CONV2], n, SIDE, SIDE, CHANNELS2, 2, net->pooled, &err), &err);
    must(llmq_f32_run(ctx, net->layer[FC1], net->pooled, n, 1, 1, true, net->out[FC1], &err), &err);
    must(llmq_f32_run(ctx, net->layer[FC2], net->out[FC1], n, 1, 1, false, net->out[FC2], &err), &err);
}

void net_f32_destroy(net_f32 *net) {
    for (int l = 0; l < LAYERS; l++) {
        llmq_f32_weights_destroy(net->layer[l]);
        free(net->out[l]);
    }
    free(net->pooled);
}

/* ---- dynamic ---- */

net_dynamic net_dynamic_create(const weights *w) {
    net_dynamic net = {.bytes = 0};
    for (int l = 0; l < LAYERS; l++) net.out[l] = allocate((size_t)(BATCH * layer_out[l]), sizeof(float));
    net.pooled = allocate(BATCH * POOLED, sizeof(float));
    for (int l = CONV1; l <= CONV2; l++) {
        net.conv[l] = pack_f32(w, l);
        net.bytes += 4 * layer_rows[l] * (layer_cols[l] + 1);
    }
    for (int l = FC1; l <= FC2; l++) net.fc[l - FC1] = pack_q8(w, l, &net.bytes);
    return net;
}

void net_dynamic_run(const net_dynamic *net, llmq_q8_context *ctx, const float *x, int n) {
    llmq_err err;
    must(llmq_f32_run(ctx, net->conv[0], x, n, SIDE, SIDE, true, net->out[CONV1], &err), &err);
    must(llmq_f32_run(ctx, net->conv[1], net->out[CONV1], n, SIDE, SIDE, true, net->out[CONV2], &err), &err);
    must(llmq_f32_maxpool(ctx, net->out[CONV2], n, SIDE, SIDE, CHANNELS2, 2, net->pooled, &err), &err);
    must(llmq_q8_run_dynamic(ctx, net->fc[0], net->pooled, n, 1, 1, false, true, net->out[FC1], &err), &err);
    must(llmq_q8_run_dynamic(ctx, net->fc[1], net->out[FC1], n, 1, 1, false, false, net->out[FC2], &err), &err);
}

void net_dynamic_destroy(net_dynamic *net) {
    for (int i = 0; i < 2; i++) {
        llmq_f32_weights_destroy(net->conv[i]);
        llmq_q8_weights_destroy(net->fc[i]);
    }
    for (int l = 0; l < LAYERS; l++) free(net->out[l]);
    free(net->pooled);
}

/* ---- static ---- */

/* Prepare: an observer where a tensor will be 8 bits. */
prepared static_prepare(llmq_observer_kind kind) {
    prepared p;
    llmq_observer_params params;
    llmq_err err;
    llmq_observer_params_default(&params, kind);
    params.spec = activations;
    for (int s = 0; s < SITES; s++) must(llmq_observer_create(&params, &p.site[s], &err), &err);
    return p;
}

/* Calibrate: the f32 network runs on some images, and the observers look on. */
void static_calibrate(const prepared *p, const net_f32 *net, llmq_q8_context *ctx, const digits *data, int n) {
    llmq_err err;
    for (int i = 0; i < n; i += BATCH) {
        int m = n - i < BATCH ? n - i : BATCH;
        const float *x = data->x + i * PIXELS;
        net_f32_run(net, ctx, x, m);
        must(llmq_observer_observe(p->site[0], x, 1, (int64_t)m * PIXELS, &err), &err);
        for (int l = 0; l < LAYERS; l++)
            must(llmq_observer_observe(p->site[l + 1], net->out[l], 1, m * layer_out[l], &err), &err);
    }
}

void prepared_destroy(prepared *p) {
    for (int s = 0; s < SITES; s++) llmq_observer_destroy(p->site[s]);
}

/* Convert: weights to 8 bits, and the observed ranges become parameters for good. */
net_static static_convert(const weights *w, const prepared *p) {
    net_static net = {.bytes = SITES * (int64_t)sizeof(llmq_affine_params)};
    llmq_err err;
    for (int s = 0; s < SITES; s++)
        must(llmq_observer_result(p->site[s], &net.min[s], &net.max[s], &net.site[s], &err), &err);
    for (int l = 0; l < LAYERS; l++) {
        net.layer[l] = pack_q8(w, l, &net.bytes);
        net.out[l] = allocate((size_t)(BATCH * layer_out[l]), 1);
    }
    net.in = allocate(BATCH * PIXELS, 1);
    net.pooled = allocate(BATCH * POOLED, 1);
    return net;
}

static void static_layer(const net_static *net, llmq_q8_context *ctx, layer_id l, const uint8_t *x, int n, int side) {
    llmq_err err;
    llmq_q8_args args = {.x = x,
                         .n = n,
                         .in_h = side,
                         .in_w = side,
                         .x_params = net->site[l], /* pooling leaves conv2's as they are */
                         .output = LLMQ_OUT_Q8,
                         .relu = l != FC2, /* fused: a clamp at the zero point */
                         .y_spec = activations,
                         .y_params = net->site[l + 1],
                         .y = net->out[l]};
    must(llmq_q8_run(ctx, net->layer[l], &args, &err), &err);
}

void net_static_run(const net_static *net, llmq_q8_context *ctx, const float *x, int n) {
    llmq_err err;
    must(llmq_q8_quantize(ctx, x, (int64_t)n * PIXELS, &activations, net->site[0], net->in, &err), &err);
    static_layer(net, ctx, CONV1, net->in, n, SIDE);
    static_layer(net, ctx, CONV2, net->out[CONV1], n, SIDE);
    must(llmq_q8_maxpool(ctx, net->out[CONV2], LLMQ_Q8_UNSIGNED, n, SIDE, SIDE, CHANNELS2, 2, net->pooled, &err), &err);
    static_layer(net, ctx, FC1, net->pooled, n, 1);
    static_layer(net, ctx, FC2, net->out[FC1], n, 1);
}

void net_static_destroy(net_static *net) {
    for (int l = 0; l < LAYERS; l++) {
        llmq_q8_weights_destroy(net->layer[l]);
        free(net->out[l]);
    }
    free(net->in);
    free(net->pooled);
}
