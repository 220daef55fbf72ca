/* The layers: arguments are checked, the input is laid out with its padding where the kernels need it so, and the
 * backend's ops do the rest. Nothing is allocated once the context's scratch has grown to what a call needs. */
#include <math.h>
#include <string.h>

#include "affine/layers.h"
#include "core/mem.h"

/* ---- context ---- */

llmq_status llmq_q8_context_create(int n_threads, llmq_q8_context **out, llmq_err *err) {
    if (!out) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_context_create: NULL");
    llmq_q8_context *ctx = mem_zalloc(1, sizeof *ctx);
    if (!ctx) return mem_error(err, sizeof *ctx, "a context");
    llmq_status status = team_create(n_threads, &ctx->team, err);
    if (status == LLMQ_OK)
        *out = ctx;
    else
        mem_free(ctx);
    return status;
}

void llmq_q8_context_destroy(llmq_q8_context *ctx) {
    if (!ctx) return;
    team_destroy(ctx->team);
    mem_free(ctx->scratch);
    mem_free(ctx);
}

llmq_status affine_scratch(llmq_q8_context *ctx, size_t bytes, llmq_err *err) {
    if (bytes <= ctx->scratch_bytes) return LLMQ_OK;
    char *p = mem_alloc(bytes, 1);
    if (!p) return mem_error(err, bytes, "a layer's scratch");
    mem_free(ctx->scratch);
    ctx->scratch = p;
    ctx->scratch_bytes = bytes;
    return LLMQ_OK;
}

void affine_team_run(llmq_q8_context *ctx, double work, team_fn *fn, void *arg) {
    if (work >= AFFINE_WORK_TEAM)
        team_run(ctx->team, fn, arg);
    else
        fn(&(llmq_worker){0, 1, ctx->team}, arg);
}

/* ---- one call ---- */

/* Scratch of a call is cut from one block: sizes first, then addresses. */
typedef struct carve {
    size_t at;
    bool overflow;
} carve;

static size_t carve_take(carve *c, int64_t n, size_t size) {
    size_t begin = c->at, bytes;
    if (n < 0 || !size_mul((size_t)n, size, &bytes) || bytes > SIZE_MAX / 4 || !size_add(begin, bytes, &c->at) ||
        c->at > SIZE_MAX / 4)
        c->overflow = true, c->at = begin;
    c->at = size_align(c->at, MEM_ALIGN);
    return begin;
}

/* Everything that the workers of a call read. */
typedef struct call {
    const affine_ops *ops;
    const affine_shape *shape;
    size_t elem; /* bytes of an input */
    const char *x;
    int64_t n, in_h, in_w, out_h, out_w;
    /* The input with its padding, where the kernels read another than the caller's. */
    char *image;
    int64_t image_h, image_w;
    uint8_t flip, fill; /* signed bytes become unsigned ones; what padding is */
    /* dynamic, rows of a linear layer: quantized here */
    const float *dynamic;
    float *row_scale;
    int32_t *row_zero;
    affine_range range;
    bool *bad; /* [workers] */
    int64_t *seg_off;
    const void *w;
    const float *bias;
    affine_epilogue epi;
    bool relu;
    char *y;
    size_t y_elem;
} call;

static double call_work(const call *c) {
    const llmq_conv2d *v = &c->shape->conv;
    return (double)c->n * (double)c->out_h * (double)c->out_w * (double)v->out_channels *
           (double)(v->kernel_h * v->kernel_w * c->shape->group_in);
}

/* Sizes of input and output; an empty batch is fine. */
static llmq_status call_sizes(call *c, const void *y, llmq_err *err) {
    const llmq_conv2d *v = &c->shape->conv;
    LLMQ_TRY(llmq_conv2d_out(v, c->in_h, c->in_w, &c->out_h, &c->out_w, err));
    int64_t in, out;
    c->image_h = c->in_h + 2 * v->pad_h;
    c->image_w = c->in_w + 2 * v->pad_w;
    if (c->n < 0 || !i64_mul(c->image_h, c->image_w, &in) || !i64_mul(in, v->in_channels, &in) ||
        !i64_mul(in, c->n > 0 ? c->n : 1, &in) || !i64_mul(c->out_h, c->out_w, &out) ||
        !i64_mul(out, v->out_channels, &out) || !i64_mul(out, c->n > 0 ? c->n : 1, &out) || in > INT64_MAX / 16 ||
        out > INT64_MAX / 16)
        return llmq_fail(err, LLMQ_E_ARG, "conv2d: %lld images of %lld x %lld are too large", (long long)c->n,
                         (long long)c->in_h, (long long)c->in_w);
    if (c->n > 0 && ((!c->x && !c->dynamic) || !y))
        return llmq_fail(err, LLMQ_E_ARG, "conv2d: input or output is NULL");
    return LLMQ_OK;
}

static void copy_rows(const llmq_worker *worker, const call *c) {
    const llmq_conv2d *v = &c->shape->conv;
    size_t pixel = (size_t)v->in_channels * c->elem, side = (size_t)v->pad_w * pixel, row = (size_t)c->in_w * pixel;
    int64_t begin, end;
    worker_range(worker, c->n * c->image_h, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        char *to = c->image + (size_t)r * (row + 2 * side);
        int64_t y = r % c->image_h - v->pad_h;
        if (y < 0 || y >= c->in_h) {
            memset(to, c->fill, row + 2 * side);
            continue;
        }
        const char *from = c->x + (size_t)(r / c->image_h * c->in_h + y) * row;
        memset(to, c->fill, side);
        if (c->flip)
            for (size_t i = 0; i < row; i++) to[side + i] = (char)(from[i] ^ 0x80);
        else
            memcpy(to + side, from, row);
        memset(to + side + row, c->fill, side);
    }
}

/* Each row of a linear layer's input by its own range. */
static void quantize_rows(const llmq_worker *worker, const call *c) {
    int64_t cols = c->shape->seg_len, ld = c->image_w, begin, end;
    worker_range(worker, c->n, 1, &begin, &end);
    c->bad[worker->id] = false;
    for (int64_t r = begin; r < end; r++) {
        const float *x = c->dynamic + r * cols;
        float lo = 0, hi = 0;
        if (!c->ops->range(x, cols, &lo, &hi) || !isfinite((hi > 0 ? hi : 0) - (lo < 0 ? lo : 0))) {
            c->bad[worker->id] = true;
            lo = hi = 0; /* the call fails; its rows still get parameters that the kernels can use */
        }
        llmq_affine_params p = affine_params_of(&c->range, lo, hi);
        c->row_scale[r] = p.scale;
        c->row_zero[r] = p.zero_point;
        c->ops->quantize(x, cols, 1 / p.scale, p.zero_point, c->range.lo, c->range.hi, (uint8_t *)c->image + r * ld);
    }
}

static void call_worker(const llmq_worker *worker, void *arg) {
    const call *c = arg;
    const affine_shape *s = c->shape;
    const llmq_conv2d *v = &s->conv;
    if (c->dynamic)
        quantize_rows(worker, c);
    else if (c->image)
        copy_rows(worker, c);
    if (c->image) worker_barrier(worker);
    int64_t line = (c->dynamic ? c->image_w : c->image_w * v->in_channels);
    affine_rows rows = {.x = c->image ? c->image : c->x,
                        .n_img = c->n,
                        .out_h = c->out_h,
                        .out_w = c->out_w,
                        .img = c->image_h * line,
                        .step_h = v->stride_h * line,
                        .step_w = v->stride_w * v->in_channels,
                        .n_seg = s->n_seg,
                        .seg_len = s->seg_len,
                        .seg_off = c->seg_off};
    bool q8 = c->elem == 1;
    if (s->depthwise) {
        affine_depthwise d = {.rows = rows,
                              .w8 = c->w,
                              .w32 = c->w,
                              .ldw = s->padded,
                              .y = c->y,
                              .ldy = v->out_channels,
                              .epi = &c->epi,
                              .bias = c->bias,
                              .relu = c->relu};
        (q8 ? c->ops->depthwise_q8 : c->ops->depthwise_f32)(worker, &d);
        return;
    }
    for (int64_t g = 0; g < v->groups; g++) {
        affine_gemm m = {.rows = rows,
                         .w = (const char *)c->w + (size_t)(g * s->panels) * c->elem,
                         .channels = s->group_out,
                         .y = c->y + (size_t)(g * s->group_out) * c->y_elem,
                         .ldy = v->out_channels,
                         .relu = c->relu};
        m.rows.x = (const char *)rows.x + (size_t)(g * s->group_in) * c->elem;
        affine_epilogue e = c->epi;
        int64_t at = g * s->padded;
        if (q8) {
            e.offset += at, e.mult += at, e.add += at, e.wsum += at, e.fix += at, e.shift += at;
            m.epi = &e;
            c->ops->gemm_q8(worker, &m);
        } else {
            m.bias = c->bias + at;
            c->ops->gemm_f32(worker, &m);
        }
    }
}

/* Where the pieces of a sum lie in the input. */
static void segments_fill(const call *c, int64_t *off) {
    const affine_shape *s = c->shape;
    const llmq_conv2d *v = &s->conv;
    int64_t per_row = s->n_seg / v->kernel_h; /* 1: whole kernel rows */
    for (int64_t k = 0; k < s->n_seg; k++)
        off[k] = (k / per_row * v->dilation_h * c->image_w + k % per_row * v->dilation_w) * v->in_channels;
}

/* ---- 8 bits ---- */

static llmq_status q8_check(const llmq_q8_args *a, affine_range *x, affine_range *y, llmq_err *err) {
    LLMQ_TRY(affine_spec_check(&(llmq_affine_spec){.type = a->x_type}, x, err));
    LLMQ_TRY(affine_params_check(x, &a->x_params, err));
    if (a->output < LLMQ_OUT_I32 || a->output > LLMQ_OUT_Q8)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run: unknown output %d", (int)a->output);
    if (a->output == LLMQ_OUT_I32 && a->relu)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run: accumulators have no relu");
    if (a->output != LLMQ_OUT_Q8) return LLMQ_OK;
    if (a->requant != LLMQ_REQUANT_FLOAT && a->requant != LLMQ_REQUANT_FIXED)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run: unknown way %d to requantize", (int)a->requant);
    LLMQ_TRY(affine_spec_check(&a->y_spec, y, err));
    return affine_params_check(y, &a->y_params, err);
}

/* The multipliers of all channels. x_scale 1 and output F32 for rows with scales of their own. */
typedef struct epilogue_arrays {
    int32_t *offset, *fix, *shift;
    float *mult, *add;
} epilogue_arrays;

static llmq_status epilogue_fill(const llmq_q8_weights *w, const llmq_q8_args *a, int32_t x_zero, int64_t slots,
                                 const epilogue_arrays *e, llmq_err *err) {
    bool fixed = a->output == LLMQ_OUT_Q8 && a->requant == LLMQ_REQUANT_FIXED;
    for (int64_t c = 0; c < slots; c++) {
        float unit = a->x_params.scale * w->scale[c]; /* what 1 in the accumulator stands for */
        e->offset[c] = (int32_t)((uint32_t)w->bias_i32[c] - (uint32_t)x_zero * (uint32_t)w->wsum[c]);
        e->mult[c] = a->output == LLMQ_OUT_Q8 ? unit / a->y_params.scale : unit;
        e->add[c] = a->output == LLMQ_OUT_Q8 ? w->bias[c] / unit : w->bias[c];
        if (a->output == LLMQ_OUT_I32) continue;
        if (!(unit > 0) || !isfinite(e->mult[c]) || !isfinite(e->add[c]))
            return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run: scales of input, weights and output lie too far apart");
        if (!fixed) continue;
        llmq_fixed_multiplier m;
        LLMQ_TRY(llmq_fixed_from_real((double)a->x_params.scale * w->scale[c] / a->y_params.scale, &m, err));
        e->fix[c] = m.multiplier;
        e->shift[c] = m.shift;
        float bias = rintf(e->add[c]); /* beyond int32 it ends there */
        int32_t b = bias >= 2147483648.0f ? INT32_MAX : bias < -2147483648.0f ? INT32_MIN : (int32_t)bias;
        e->offset[c] = (int32_t)((uint32_t)e->offset[c] + (uint32_t)b);
    }
    return LLMQ_OK;
}

/* Runs a call of 8-bit weights whose input (x, or dynamic), sizes and range are set. */
static llmq_status q8_call(llmq_q8_context *ctx, const llmq_q8_weights *w, const llmq_q8_args *a, call *c,
                           const affine_range *y, llmq_err *err) {
    const affine_shape *s = c->shape = &w->shape;
    const llmq_conv2d *v = &s->conv;
    c->ops = backend_cpu()->affine;
    c->elem = 1;
    c->n = a->n, c->in_h = a->in_h, c->in_w = a->in_w;
    LLMQ_TRY(call_sizes(c, a->y, err));
    if (c->n == 0) return LLMQ_OK;
    bool is_signed = a->x_type == LLMQ_Q8_SIGNED;
    int32_t x_zero = a->x_params.zero_point + (is_signed ? 128 : 0);
    /* Whole dwords are read: the kernels may go AFFINE_K - 1 bytes past a piece, so past the end of the input. */
    bool ragged = !s->depthwise && s->seg_len % AFFINE_K != 0;
    bool image = c->dynamic || is_signed || v->pad_h || v->pad_w || ragged;
    if (c->dynamic) c->image_w = (s->seg_len + AFFINE_K - 1) / AFFINE_K * AFFINE_K;
    int64_t slots = s->depthwise ? s->padded : s->padded * v->groups, n_dynamic = c->dynamic ? c->n : 0;
    int64_t image_bytes = c->n * c->image_h * c->image_w * (c->dynamic ? 1 : v->in_channels);
    carve k = {0};
    size_t off = carve_take(&k, s->n_seg, sizeof(int64_t)), array[5];
    for (int i = 0; i < 5; i++) array[i] = carve_take(&k, slots, 4);
    size_t scale = carve_take(&k, n_dynamic, 4), zero = carve_take(&k, n_dynamic, 4);
    size_t bad = carve_take(&k, team_size(ctx->team), sizeof(bool));
    size_t pixels = carve_take(&k, image ? image_bytes : 0, 1);
    carve_take(&k, AFFINE_SLACK, 1);
    if (k.overflow) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run: the input is too large");
    LLMQ_TRY(affine_scratch(ctx, k.at, err));
    char *m = ctx->scratch;
    epilogue_arrays e = {(int32_t *)(m + array[0]), (int32_t *)(m + array[1]), (int32_t *)(m + array[2]),
                         (float *)(m + array[3]), (float *)(m + array[4])};
    LLMQ_TRY(epilogue_fill(w, a, c->dynamic ? 0 : x_zero, slots, &e, err));
    c->image = image ? m + pixels : NULL;
    c->flip = is_signed ? 0x80 : 0;
    c->fill = (uint8_t)x_zero;
    c->row_scale = (float *)(m + scale);
    c->row_zero = (int32_t *)(m + zero);
    c->bad = (bool *)(m + bad);
    memset(c->bad, 0, (size_t)team_size(ctx->team) * sizeof *c->bad);
    c->seg_off = (int64_t *)(m + off);
    segments_fill(c, c->seg_off);
    c->w = w->w;
    c->y = a->y;
    c->y_elem = a->output == LLMQ_OUT_Q8 ? 1 : 4;
    c->epi = (affine_epilogue){.output = a->output,
                               .fixed = a->output == LLMQ_OUT_Q8 && a->requant == LLMQ_REQUANT_FIXED,
                               .relu = a->relu,
                               .offset = e.offset,
                               .row_zero = c->dynamic ? c->row_zero : NULL,
                               .wsum = w->wsum,
                               .row_scale = c->dynamic ? c->row_scale : NULL,
                               .mult = e.mult,
                               .add = e.add,
                               .fix = e.fix,
                               .shift = e.shift};
    if (a->output == LLMQ_OUT_Q8) {
        c->epi.zero = a->y_params.zero_point;
        c->epi.lo = a->relu ? a->y_params.zero_point : y->lo;
        c->epi.hi = y->hi;
    }
    affine_team_run(ctx, call_work(c), call_worker, c);
    for (int i = 0; i < team_size(ctx->team); i++)
        if (c->bad[i]) return llmq_fail(err, LLMQ_E_NUMERIC, "llmq_q8_run_dynamic: NaN or Inf in the input");
    return LLMQ_OK;
}

llmq_status llmq_q8_run(llmq_q8_context *ctx, const llmq_q8_weights *w, const llmq_q8_args *args, llmq_err *err) {
    if (!ctx || !w || !args) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run: NULL");
    affine_range x, y = {0};
    LLMQ_TRY(q8_check(args, &x, &y, err));
    call c = {.x = args->x};
    return q8_call(ctx, w, args, &c, &y, err);
}

/* One range for the whole input: it is quantized beside the scratch that the call itself carves. */
static llmq_status dynamic_tensor(llmq_q8_context *ctx, const llmq_q8_weights *w, const float *x, llmq_q8_args *a,
                                  llmq_err *err) {
    call sizes = {.shape = &w->shape, .x = (const char *)x, .n = a->n, .in_h = a->in_h, .in_w = a->in_w};
    LLMQ_TRY(call_sizes(&sizes, a->y, err));
    int64_t n = a->n * a->in_h * a->in_w * w->shape.conv.in_channels;
    float lo = 0, hi = 0;
    if (n > 0 && !backend_cpu()->affine->range(x, n, &lo, &hi))
        return llmq_fail(err, LLMQ_E_NUMERIC, "llmq_q8_run_dynamic: NaN or Inf in the input");
    llmq_affine_spec spec = {.type = LLMQ_Q8_UNSIGNED};
    LLMQ_TRY(llmq_affine_from_ranges(&spec, 1, &lo, &hi, &a->x_params, err));
    uint8_t *q = mem_alloc((size_t)n, 1);
    if (!q) return mem_error(err, (size_t)n, "the quantized input");
    llmq_status status = llmq_q8_quantize(ctx, x, n, &spec, a->x_params, q, err);
    a->x = q;
    if (status == LLMQ_OK) status = llmq_q8_run(ctx, w, a, err);
    mem_free(q);
    return status;
}

llmq_status llmq_q8_run_dynamic(llmq_q8_context *ctx, const llmq_q8_weights *w, const float *x, int64_t n, int64_t in_h,
                                int64_t in_w, bool per_tensor, bool relu, float *y, llmq_err *err) {
    if (!ctx || !w) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run_dynamic: NULL");
    if (w->has_i32) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run_dynamic: an int32 bias belongs to one input scale");
    if (n > 0 && (!x || !y)) return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run_dynamic: input or output is NULL");
    llmq_q8_args a = {.n = n,
                      .in_h = in_h,
                      .in_w = in_w,
                      .x_type = LLMQ_Q8_UNSIGNED,
                      .x_params = {1, 0},
                      .output = LLMQ_OUT_F32,
                      .relu = relu,
                      .y = y};
    if (per_tensor || !w->shape.linear) return dynamic_tensor(ctx, w, x, &a, err);
    if (in_h != 1 || in_w != 1)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_run_dynamic: a linear layer's in_h and in_w are 1");
    call c = {.dynamic = x};
    LLMQ_TRY(affine_spec_check(&(llmq_affine_spec){.type = LLMQ_Q8_UNSIGNED}, &c.range, err));
    return q8_call(ctx, w, &a, &c, NULL, err);
}

/* ---- f32 ---- */

llmq_status llmq_f32_run(llmq_q8_context *ctx, const llmq_f32_weights *w, const float *x, int64_t n, int64_t in_h,
                         int64_t in_w, bool relu, float *y, llmq_err *err) {
    if (!ctx || !w) return llmq_fail(err, LLMQ_E_ARG, "llmq_f32_run: NULL");
    const llmq_conv2d *v = &w->shape.conv;
    call c = {.ops = backend_cpu()->affine,
              .shape = &w->shape,
              .elem = sizeof *x,
              .x = (const char *)x,
              .n = n,
              .in_h = in_h,
              .in_w = in_w,
              .w = w->w,
              .bias = w->bias,
              .relu = relu,
              .y = (char *)y,
              .y_elem = sizeof *y};
    LLMQ_TRY(call_sizes(&c, y, err));
    if (n == 0) return LLMQ_OK;
    bool image = v->pad_h || v->pad_w;
    carve k = {0};
    size_t off = carve_take(&k, w->shape.n_seg, sizeof(int64_t));
    size_t pixels = carve_take(&k, image ? n * c.image_h * c.image_w * v->in_channels : 0, sizeof *x);
    if (k.overflow) return llmq_fail(err, LLMQ_E_ARG, "llmq_f32_run: the input is too large");
    LLMQ_TRY(affine_scratch(ctx, k.at, err));
    c.seg_off = (int64_t *)(ctx->scratch + off);
    c.image = image ? ctx->scratch + pixels : NULL;
    segments_fill(&c, c.seg_off);
    affine_team_run(ctx, 4 * call_work(&c), call_worker, &c);
    return LLMQ_OK;
}

/* ---- pooling and the entry ---- */

typedef struct pool_job {
    const affine_ops *ops;
    const char *x;
    char *y;
    int64_t n, h, w, channels, k;
    size_t elem;
    bool is_signed;
} pool_job;

static void pool_worker(const llmq_worker *worker, void *arg) {
    const pool_job *p = arg;
    int64_t out_h = p->h / p->k, out_w = p->w / p->k, ld = p->w * p->channels, begin, end;
    worker_range(worker, p->n * out_h, 1, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        for (int64_t x = 0; x < out_w; x++) {
            int64_t from = ((r / out_h * p->h + r % out_h * p->k) * p->w + x * p->k) * p->channels;
            int64_t to = (r * out_w + x) * p->channels;
            if (p->elem == 1)
                p->ops->max_u8((const uint8_t *)p->x + from, ld, p->k, p->channels, p->is_signed, (uint8_t *)p->y + to);
            else
                p->ops->max_f32((const float *)(const void *)p->x + from, ld, p->k, p->channels,
                                (float *)(void *)p->y + to);
        }
}

static llmq_status pool(llmq_q8_context *ctx, pool_job *p, llmq_err *err) {
    int64_t n;
    if (!ctx || p->n < 0 || p->h < 0 || p->w < 0 || p->channels < 1 || p->k < 1 || p->k > INT32_MAX ||
        !i64_mul(p->n, p->h, &n) || !i64_mul(n, p->w, &n) || !i64_mul(n, p->channels, &n) || n > INT64_MAX / 16)
        return llmq_fail(err, LLMQ_E_ARG, "maxpool: %lld images of %lld x %lld x %lld, windows of %lld",
                         (long long)p->n, (long long)p->h, (long long)p->w, (long long)p->channels, (long long)p->k);
    if (p->h / p->k == 0 || p->w / p->k == 0 || n == 0) return LLMQ_OK;
    if (!p->x || !p->y) return llmq_fail(err, LLMQ_E_ARG, "maxpool: input or output is NULL");
    p->ops = backend_cpu()->affine;
    /* Worth more than its arithmetic: each worker has the images in its cache that it will read next. */
    affine_team_run(ctx, 16 * (double)n * (double)p->elem, pool_worker, p);
    return LLMQ_OK;
}

llmq_status llmq_q8_maxpool(llmq_q8_context *ctx, const void *x, llmq_q8_type type, int64_t n, int64_t h, int64_t w,
                            int64_t channels, int64_t k, void *y, llmq_err *err) {
    affine_range r;
    LLMQ_TRY(affine_spec_check(&(llmq_affine_spec){.type = type}, &r, err));
    return pool(ctx, &(pool_job){NULL, x, y, n, h, w, channels, k, 1, r.is_signed}, err);
}

llmq_status llmq_f32_maxpool(llmq_q8_context *ctx, const float *x, int64_t n, int64_t h, int64_t w, int64_t channels,
                             int64_t k, float *y, llmq_err *err) {
    return pool(ctx, &(pool_job){NULL, (const char *)x, (char *)y, n, h, w, channels, k, sizeof *x, false}, err);
}

typedef struct quantize_job {
    const affine_ops *ops;
    const float *x;
    int64_t n;
    affine_range range;
    llmq_affine_params params;
    uint8_t *q;
} quantize_job;

static void quantize_worker(const llmq_worker *worker, void *arg) {
    const quantize_job *j = arg;
    int64_t begin, end;
    worker_range(worker, j->n, MEM_ALIGN, &begin, &end);
    j->ops->quantize(j->x + begin, end - begin, 1 / j->params.scale, j->params.zero_point, j->range.lo, j->range.hi,
                     j->q + begin);
}

llmq_status llmq_q8_quantize(llmq_q8_context *ctx, const float *x, int64_t n, const llmq_affine_spec *spec,
                             llmq_affine_params params, void *q, llmq_err *err) {
    quantize_job j = {.ops = backend_cpu()->affine, .x = x, .n = n, .params = params, .q = q};
    LLMQ_TRY(affine_spec_check(spec, &j.range, err));
    LLMQ_TRY(affine_params_check(&j.range, &params, err));
    if (!ctx || n < 0 || n > INT64_MAX / 16 || (n > 0 && (!x || !q)))
        return llmq_fail(err, LLMQ_E_ARG, "llmq_q8_quantize: %lld values, or NULL", (long long)n);
    if (n > 0) affine_team_run(ctx, 16 * (double)n, quantize_worker, &j);
    return LLMQ_OK;
}
