/* Packed weights and the context: what pack.c makes and run.c reads. */
#ifndef LLMQ_AFFINE_LAYERS_H
#define LLMQ_AFFINE_LAYERS_H

#include "affine/affine.h"
#include "core/backend.h"

/* A convolution that was checked, and how its sums are cut into pieces that lie together in the input: whole kernel
 * rows where nothing comes between their pixels, else single pixels of one group. */
typedef struct affine_shape {
    llmq_conv2d conv;
    bool depthwise, linear;
    int64_t group_in, group_out; /* channels of a group */
    int64_t n_seg, seg_len;
    int64_t padded; /* output channels of a group, whole panels; depthwise: all channels */
    int64_t panels; /* bytes or floats of a group's packed weights */
} affine_shape;

struct llmq_q8_weights {
    affine_shape shape;
    int8_t *w;
    /* (groups, padded) each; depthwise: [padded] */
    int32_t *wsum, *bias_i32; /* bias_i32 is zeros without one */
    float *scale, *bias;      /* bias likewise; scale of channel 0 in the padding */
    bool has_i32;
    int64_t bytes;
};

struct llmq_f32_weights {
    affine_shape shape;
    float *w, *bias;
    int64_t bytes;
};

struct llmq_q8_context {
    llmq_team *team;
    char *scratch;
    size_t scratch_bytes;
};

llmq_status affine_shape_check(const llmq_conv2d *conv, affine_shape *out, llmq_err *err);
/* The context's scratch holds `bytes`; its contents are lost. */
llmq_status affine_scratch(llmq_q8_context *ctx, size_t bytes, llmq_err *err);
/* On the whole team where the work is worth waking it, else on this thread. The unit is an 8-bit product. */
void affine_team_run(llmq_q8_context *ctx, double work, team_fn *fn, void *arg);
#define AFFINE_WORK_TEAM 4e6 /* 8-bit products: about 20 us of one core */

#endif
