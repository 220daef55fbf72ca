/* Training in plain C: Adam with a falling rate, batches of 32, a fixed seed. The passes forward and the gradient that
 * conv2 passes back are the library's f32 layers; gradients of weights are sums of outer products, written out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tinycnn.h"

#define TRAIN_BATCH 32
#define RATE 2e-3

static uint64_t state = 20;
static double uniform(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(state >> 11) + 0.5) * 0x1p-53;
}
static float normal(void) {
    return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

/* Gradients and Adam's moments. */
typedef struct trainer {
    weights g, m, v;
    int step;
} trainer;

static void adam(float *w, const float *g, float *m, float *v, int64_t n, double rate, int step) {
    const float b1 = 0.9f, b2 = 0.999f;
    float r = (float)(rate * sqrt(1 - pow(b2, step)) / (1 - pow(b1, step)));
    for (int64_t i = 0; i < n; i++) {
        m[i] += (1 - b1) * (g[i] - m[i]);
        v[i] += (1 - b2) * (g[i] * g[i] - v[i]);
        w[i] -= r * m[i] / (sqrtf(v[i]) + 1e-8f);
    }
}

/* dz = (softmax - one hot) / n, in place of the logits. */
static void loss_back(float *z, const uint8_t *label, int n) {
    for (int i = 0; i < n; i++, z += CLASSES) {
        float most = z[0], sum = 0;
        for (int c = 1; c < CLASSES; c++) most = fmaxf(most, z[c]);
        for (int c = 0; c < CLASSES; c++) sum += z[c] = expf(z[c] - most);
        for (int c = 0; c < CLASSES; c++) z[c] = (z[c] / sum - (c == label[i])) / (float)n;
    }
}

/* Of y = relu?(x) w' + b with dy (n, rows): gradients of w and b, and dx (n, cols), 0 where x (after its ReLU) is 0. */
static void linear_back(const float *w, const float *x, const float *dy, int n, int64_t rows, int64_t cols, float *dw,
                        float *db, float *dx) {
    memset(dx, 0, (size_t)(n * cols) * sizeof *dx);
    for (int i = 0; i < n; i++, x += cols, dy += rows, dx += cols) {
        for (int64_t r = 0; r < rows; r++) {
            float d = dy[r];
            if (d == 0) continue;
            db[r] += d;
            for (int64_t c = 0; c < cols; c++) dw[r * cols + c] += d * x[c];
            for (int64_t c = 0; c < cols; c++) dx[c] += d * w[r * cols + c];
        }
        for (int64_t c = 0; c < cols; c++) dx[c] = x[c] > 0 ? dx[c] : 0;
    }
}

/* The gradient of a window's maximum goes to the first pixel that has it. x (n, 8, 8, 64) after ReLU. */
static void pool_back(const float *x, const float *dy, int n, float *dx) {
    memset(dx, 0, (size_t)(n * layer_out[CONV2]) * sizeof *dx);
    for (int p = 0; p < n * PIXELS / 4; p++) {
        int image = p / (PIXELS / 4), y = p % (PIXELS / 4) / (SIDE / 2), col = p % (SIDE / 2);
        int64_t at = ((int64_t)(image * SIDE + 2 * y) * SIDE + 2 * col) * CHANNELS2;
        const int64_t to[4] = {0, CHANNELS2, SIDE * CHANNELS2, (SIDE + 1) * CHANNELS2};
        for (int c = 0; c < CHANNELS2; c++) {
            int best = 0;
            for (int k = 1; k < 4; k++) best = x[at + to[k] + c] > x[at + to[best] + c] ? k : best;
            dx[at + to[best] + c] = dy[(int64_t)p * CHANNELS2 + c];
        }
    }
}

/* Gradients of a 3x3 convolution's weights (rows, 3, 3, in) and bias. */
static void conv_back(const float *x, const float *dy, int n, int64_t rows, int64_t in, float *dw, float *db) {
    for (int64_t p = 0; p < (int64_t)n * PIXELS; p++, dy += rows) {
        int64_t y = p / SIDE % SIDE, col = p % SIDE;
        for (int64_t r = 0; r < rows; r++) {
            float d = dy[r];
            if (d == 0) continue; /* three of four, behind max pooling */
            db[r] += d;
            for (int64_t t = 0; t < 9; t++) {
                int64_t iy = y + t / 3 - 1, ix = col + t % 3 - 1;
                if (iy < 0 || iy >= SIDE || ix < 0 || ix >= SIDE) continue;
                const float *from = x + (p + (t / 3 - 1) * SIDE + t % 3 - 1) * in;
                float *to = dw + (r * 9 + t) * in;
                for (int64_t i = 0; i < in; i++) to[i] += d * from[i];
            }
        }
    }
}

/* dx of conv2: the convolution of dy with the kernels turned round and channels exchanged. */
static void conv2_input(const float *w, const float *a, const float *dy, int n, llmq_q8_context *ctx, float *dx) {
    static float turned[CHANNELS1 * 9 * CHANNELS2];
    llmq_err err;
    for (int o = 0; o < CHANNELS2; o++)
        for (int t = 0; t < 9; t++)
            for (int i = 0; i < CHANNELS1; i++)
                turned[(i * 9 + 8 - t) * CHANNELS2 + o] = w[(o * 9 + t) * CHANNELS1 + i];
    llmq_conv2d conv = llmq_conv2d_same(CHANNELS2, CHANNELS1, 3);
    llmq_f32_weights *packed;
    must(llmq_f32_pack_conv2d(&conv, turned, NULL, &packed, &err), &err);
    must(llmq_f32_run(ctx, packed, dy, n, SIDE, SIDE, false, dx, &err), &err);
    llmq_f32_weights_destroy(packed);
    for (int64_t i = 0; i < n * layer_out[CONV1]; i++) dx[i] = a[i] > 0 ? dx[i] : 0;
}

static void train_step(const weights *w, trainer *t, const float *x, const uint8_t *label, int n, double rate,
                       llmq_q8_context *ctx) {
    static float dhidden[TRAIN_BATCH * HIDDEN], dpooled[TRAIN_BATCH * POOLED];
    static float dconv2[TRAIN_BATCH * PIXELS * CHANNELS2], dconv1[TRAIN_BATCH * PIXELS * CHANNELS1];
    net_f32 net = net_f32_create(w);
    net_f32_run(&net, ctx, x, n);
    for (int l = 0; l < LAYERS; l++) {
        memset(t->g.w[l], 0, (size_t)(layer_rows[l] * layer_cols[l]) * sizeof(float));
        memset(t->g.b[l], 0, (size_t)layer_rows[l] * sizeof(float));
    }
    float *dz = net.out[FC2];
    loss_back(dz, label, n);
    linear_back(w->w[FC2], net.out[FC1], dz, n, CLASSES, HIDDEN, t->g.w[FC2], t->g.b[FC2], dhidden);
    linear_back(w->w[FC1], net.pooled, dhidden, n, HIDDEN, POOLED, t->g.w[FC1], t->g.b[FC1], dpooled);
    pool_back(net.out[CONV2], dpooled, n, dconv2);
    conv_back(net.out[CONV1], dconv2, n, CHANNELS2, CHANNELS1, t->g.w[CONV2], t->g.b[CONV2]);
    conv2_input(w->w[CONV2], net.out[CONV1], dconv2, n, ctx, dconv1);
    conv_back(x, dconv1, n, CHANNELS1, 1, t->g.w[CONV1], t->g.b[CONV1]);
    t->step++;
    for (int l = 0; l < LAYERS; l++) {
        adam(w->w[l], t->g.w[l], t->m.w[l], t->v.w[l], layer_rows[l] * layer_cols[l], rate, t->step);
        adam(w->b[l], t->g.b[l], t->m.b[l], t->v.b[l], layer_rows[l], rate, t->step);
    }
    net_f32_destroy(&net);
}

static void weights_drop(weights *w) {
    for (int l = 0; l < LAYERS; l++) {
        free(w->w[l]);
        free(w->b[l]);
    }
}

void train(const weights *w, const digits *data, int epochs, llmq_q8_context *ctx) {
    trainer t = {weights_create(), weights_create(), weights_create(), 0};
    int *order = allocate((size_t)data->n, sizeof *order), steps = epochs * (data->n / TRAIN_BATCH);
    for (int l = 0; l < LAYERS; l++)
        for (int64_t i = 0; i < layer_rows[l] * layer_cols[l]; i++)
            w->w[l][i] = normal() * sqrtf(2.0f / (float)layer_cols[l]);
    for (int i = 0; i < data->n; i++) order[i] = i;
    for (int e = 0; e < epochs; e++) {
        for (int i = data->n - 1; i > 0; i--) {
            int j = (int)(uniform() * (i + 1)), k = order[i];
            order[i] = order[j], order[j] = k;
        }
        for (int b = 0; b + TRAIN_BATCH <= data->n; b += TRAIN_BATCH) {
            float x[TRAIN_BATCH * PIXELS];
            uint8_t label[TRAIN_BATCH];
            for (int i = 0; i < TRAIN_BATCH; i++) {
                memcpy(x + i * PIXELS, data->x + order[b + i] * PIXELS, PIXELS * sizeof *x);
                label[i] = data->label[order[b + i]];
            }
            double rate = RATE * 0.5 * (1 + cos(3.141592653589793 * t.step / steps));
            train_step(w, &t, x, label, TRAIN_BATCH, rate, ctx);
        }
    }
    free(order);
    weights_drop(&t.g);
    weights_drop(&t.m);
    weights_drop(&t.v);
}
