/* A small CNN on 8x8 digits with llmq's INT8 building blocks: f32, dynamic INT8 and static INT8.
 *
 *   8x8x1 -> conv 3x3, 32 -> ReLU -> conv 3x3, 64 -> ReLU -> max pooling 2x2 -> linear 1024 to 128 -> ReLU -> linear to
 * 10
 *
 * Everything is NHWC. This is a client of include/llmq_affine.h, like any other program. */
#ifndef TINYCNN_H
#define TINYCNN_H

#include <llmq_affine.h>

enum { SIDE = 8, PIXELS = SIDE * SIDE, CLASSES = 10, CHANNELS1 = 32, CHANNELS2 = 64, HIDDEN = 128 };
enum { POOLED = PIXELS / 4 * CHANNELS2, BATCH = 64 };

/* The four layers with weights, in order. */
typedef enum layer_id { CONV1, CONV2, FC1, FC2, LAYERS } layer_id;
extern const char *const layer_names[LAYERS];
/* Output channels; products of a sum; output values of one image. */
extern const int64_t layer_rows[LAYERS], layer_cols[LAYERS], layer_out[LAYERS];
llmq_conv2d layer_conv(layer_id l); /* CONV1, CONV2 */

/* Ends the program with a message if a call failed. */
void must(llmq_status status, const llmq_err *err);
void *allocate(size_t n, size_t size); /* zeros */

/* ---- data.c */
typedef struct digits {
    int n;
    float *x; /* (n, 64), 0..1 */
    uint8_t *label;
} digits;
/* Every fifth image is for testing. */
void digits_load(const char *path, digits *train, digits *test);

/* ---- weights */
typedef struct weights {
    float *w[LAYERS]; /* (rows, cols): OHWI; a linear layer's columns are in the order of its NHWC input */
    float *b[LAYERS];
} weights;
weights weights_create(void);
void weights_save(const weights *w, const char *path); /* "TCNN1\n", then w and b of each layer, little-endian f32 */
void weights_load(const weights *w, const char *path);

/* ---- train.c: Adam, cross entropy; the forward pass is the library's */
void train(const weights *w, const digits *data, int epochs, llmq_q8_context *ctx);

/* ---- net.c: the three networks. Up to BATCH images a call. */
typedef struct net_f32 {
    llmq_f32_weights *layer[LAYERS];
    float *out[LAYERS], *pooled; /* after ReLU; FC2: the logits */
} net_f32;
net_f32 net_f32_create(const weights *w);
void net_f32_run(const net_f32 *net, llmq_q8_context *ctx, const float *x, int n);
void net_f32_destroy(net_f32 *net);

/* Linear layers have INT8 weights, their inputs are quantized on the fly; convolutions are f32. */
typedef struct net_dynamic {
    llmq_f32_weights *conv[2];
    llmq_q8_weights *fc[2];
    float *out[LAYERS], *pooled;
    int64_t bytes; /* of weights, scales and biases */
} net_dynamic;
net_dynamic net_dynamic_create(const weights *w);
void net_dynamic_run(const net_dynamic *net, llmq_q8_context *ctx, const float *x, int n);
void net_dynamic_destroy(net_dynamic *net);

/* Where activations are observed: the input, and what each layer gives. */
enum { SITES = LAYERS + 1 };
typedef struct prepared {
    llmq_observer *site[SITES];
} prepared;
prepared static_prepare(llmq_observer_kind kind);
void static_calibrate(const prepared *p, const net_f32 *net, llmq_q8_context *ctx, const digits *data, int n);
void prepared_destroy(prepared *p);

/* INT8 from the quantized input to the logits. */
typedef struct net_static {
    llmq_q8_weights *layer[LAYERS];
    llmq_affine_params site[SITES];
    float min[SITES], max[SITES];
    uint8_t *in, *out[LAYERS], *pooled;
    int64_t bytes;
} net_static;
net_static static_convert(const weights *w, const prepared *p);
void net_static_run(const net_static *net, llmq_q8_context *ctx, const float *x, int n);
void net_static_destroy(net_static *net);

#endif
