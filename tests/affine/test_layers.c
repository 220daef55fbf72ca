/* Layers of 8 bits: PyTorch's integers (linear and convolutions of every kind, u8 and s8 alike), fixed-point
 * requantization by 64-bit integers and within 1 of PyTorch, f32 and dynamic outputs by double precision, pooling, and
 * what is refused. */
#include "cases.h"

static llmq_q8_context *ctx[2]; /* 1 and 3 threads */

static int make_contexts(void **state) {
    (void)state;
    return llmq_q8_context_create(1, &ctx[0], NULL) || llmq_q8_context_create(3, &ctx[1], NULL);
}
static int drop_contexts(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) llmq_q8_context_destroy(ctx[i]);
    return 0;
}

/* One record of layers.bin with the weights and inputs of its seed. */
typedef struct layer {
    int seed;
    bool linear, relu, has_bias;
    int64_t n, h, w, out_h, out_w, per; /* per: products of a sum */
    llmq_conv2d conv;
    llmq_affine_params x_params, y_params;
    uint8_t *x;
    int8_t *weights;
    float *scales, *bias;
    int64_t n_x, n_y;
    const uint8_t *want;
} layer;

static layer take_layer(records *r) {
    layer l = {.seed = take_int(r), .linear = take_int(r)};
    l.n = take_int(r), l.h = take_int(r), l.w = take_int(r);
    int64_t v[11];
    for (int i = 0; i < 11; i++) v[i] = take_int(r);
    l.conv = (llmq_conv2d){v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10]};
    l.relu = take_int(r), l.has_bias = take_int(r);
    l.x_params.scale = take_float(r), l.x_params.zero_point = take_int(r);
    l.y_params.scale = take_float(r), l.y_params.zero_point = take_int(r);
    assert_int_equal(llmq_conv2d_out(&l.conv, l.h, l.w, &l.out_h, &l.out_w, NULL), LLMQ_OK);
    l.per = l.conv.in_channels / l.conv.groups * l.conv.kernel_h * l.conv.kernel_w;
    l.n_x = l.n * l.h * l.w * l.conv.in_channels;
    l.n_y = l.n * l.out_h * l.out_w * l.conv.out_channels;
    l.want = take(r, (size_t)l.n_y);
    int64_t oc = l.conv.out_channels;
    uint32_t seed = (uint32_t)l.seed * 8;
    l.x = exact((size_t)l.n_x, 1);
    l.weights = exact((size_t)(oc * l.per), 1);
    l.scales = exact((size_t)oc, sizeof(float));
    l.bias = exact((size_t)oc, sizeof(float));
    for (int64_t i = 0; i < l.n_x; i++) l.x[i] = (uint8_t)(word_at(seed + 1, (uint64_t)i) >> 56);
    for (int64_t i = 0; i < oc * l.per; i++) l.weights[i] = (int8_t)(word_at(seed + 2, (uint64_t)i) >> 56);
    for (int64_t i = 0; i < oc; i++) l.scales[i] = (float)(fabs(unit_at(seed + 3, (uint64_t)i)) * 0.02 + 0.001);
    for (int64_t i = 0; i < oc; i++) l.bias[i] = (float)(unit_at(seed + 4, (uint64_t)i) * 20);
    return l;
}

static void drop_layer(layer *l) {
    free(l->x);
    free(l->weights);
    free(l->scales);
    free(l->bias);
}

static llmq_q8_weights *pack(const layer *l, const int32_t *bias_i32) {
    llmq_q8_pack p = {l->weights, l->scales, !bias_i32 && l->has_bias ? l->bias : NULL, bias_i32};
    llmq_q8_weights *w = NULL;
    llmq_status s = l->linear ? llmq_q8_pack_linear(l->conv.out_channels, l->conv.in_channels, &p, &w, NULL)
                              : llmq_q8_pack_conv2d(&l->conv, &p, &w, NULL);
    assert_int_equal(s, LLMQ_OK);
    assert_true(llmq_q8_weights_bytes(w) >= l->conv.out_channels * l->per);
    return w;
}

/* Sum of output o (of n_y) by its definition, the input through value(i), weights through weight(i). */
typedef double at_fn(const layer *l, int64_t i);
static double sum_of(const layer *l, int64_t o, at_fn *value, at_fn *weight) {
    const llmq_conv2d *v = &l->conv;
    int64_t c = o % v->out_channels, x = o / v->out_channels % l->out_w, y = o / v->out_channels / l->out_w % l->out_h;
    int64_t image = o / v->out_channels / l->out_w / l->out_h, in = v->in_channels / v->groups;
    int64_t first = c / (v->out_channels / v->groups) * in;
    double sum = 0;
    for (int64_t ky = 0; ky < v->kernel_h; ky++)
        for (int64_t kx = 0; kx < v->kernel_w; kx++) {
            int64_t iy = y * v->stride_h - v->pad_h + ky * v->dilation_h,
                    ix = x * v->stride_w - v->pad_w + kx * v->dilation_w;
            if (iy < 0 || iy >= l->h || ix < 0 || ix >= l->w) continue;
            for (int64_t i = 0; i < in; i++)
                sum += value(l, ((image * l->h + iy) * l->w + ix) * v->in_channels + first + i) *
                       weight(l, ((c * v->kernel_h + ky) * v->kernel_w + kx) * in + i);
        }
    return sum;
}
static double x_integer(const layer *l, int64_t i) {
    return l->x[i] - l->x_params.zero_point;
}
static double w_integer(const layer *l, int64_t i) {
    return l->weights[i];
}

static llmq_q8_args args_of(const layer *l, void *y) {
    return (llmq_q8_args){.x = l->x,
                          .n = l->n,
                          .in_h = l->h,
                          .in_w = l->w,
                          .x_params = l->x_params,
                          .output = LLMQ_OUT_Q8,
                          .relu = l->relu,
                          .y_params = l->y_params,
                          .y = y};
}

/* The input and the output as signed bytes: all integers are 128 less. */
static void check_signed(const layer *l, const llmq_q8_weights *w, uint8_t *y) {
    int8_t *x = exact((size_t)l->n_x, 1);
    for (int64_t i = 0; i < l->n_x; i++) x[i] = (int8_t)(l->x[i] - 128);
    llmq_q8_args a = args_of(l, y);
    a.x = x;
    a.x_type = a.y_spec.type = LLMQ_Q8_SIGNED;
    a.x_params.zero_point -= 128;
    a.y_params.zero_point -= 128;
    assert_int_equal(llmq_q8_run(ctx[1], w, &a, NULL), LLMQ_OK);
    for (int64_t i = 0; i < l->n_y; i++) assert_int_equal((int8_t)y[i] + 128, l->want[i]);
    free(x);
}

static void check_fixed(const layer *l, const llmq_q8_weights *w, const int32_t *acc, uint8_t *y) {
    llmq_q8_args a = args_of(l, y);
    a.requant = LLMQ_REQUANT_FIXED;
    assert_int_equal(llmq_q8_run(ctx[0], w, &a, NULL), LLMQ_OK);
    for (int64_t i = 0; i < l->n_y; i++) {
        int64_t c = i % l->conv.out_channels;
        float unit = l->x_params.scale * l->scales[c];
        double real = (double)l->x_params.scale * l->scales[c] / l->y_params.scale;
        int shift, right;
        int64_t m = llround(frexp(real, &shift) * 2147483648.0);
        assert_true(m < 1LL << 31 && shift <= 8);
        int64_t v = acc[i] + (l->has_bias ? (int64_t)rintf(l->bias[c] / unit) : 0), left = shift > 0 ? shift : 0;
        int64_t high = (v * (1 << left) * m + (1 << 30)) >> 31;
        right = shift < 0 ? -shift : 0;
        int64_t half = right ? 1LL << (right - 1) : 0;
        int64_t q = (high >= 0 ? (high + half) >> right : -((-high + half) >> right)) + l->y_params.zero_point;
        int64_t lo = l->relu ? l->y_params.zero_point : 0;
        assert_int_equal(y[i], q < lo ? lo : q > 255 ? 255 : q);
        assert_in_range(y[i] - l->want[i] + 1, 0, 2);
    }
}

/* An f32 bias rounded to the accumulator's scale by the caller is what FIXED does by itself. */
static void check_bias_i32(const layer *l, const uint8_t *fixed, uint8_t *y) {
    int32_t *b = mem_zalloc((size_t)l->conv.out_channels, sizeof *b);
    for (int64_t c = 0; c < l->conv.out_channels && l->has_bias; c++)
        b[c] = (int32_t)rintf(l->bias[c] / (l->x_params.scale * l->scales[c]));
    llmq_q8_weights *w = pack(l, b);
    llmq_q8_args a = args_of(l, y);
    a.requant = LLMQ_REQUANT_FIXED;
    assert_int_equal(llmq_q8_run(ctx[1], w, &a, NULL), LLMQ_OK);
    assert_memory_equal(y, fixed, (size_t)l->n_y);
    llmq_q8_weights_destroy(w);
    mem_free(b);
}

static void test_torch(void **state) {
    (void)state;
    records r = records_open("layers.bin");
    int linear = 0, conv = 0, depthwise = 0;
    while (records_more(&r)) {
        layer l = take_layer(&r);
        if (l.linear)
            linear++;
        else
            conv++;
        depthwise += l.conv.groups > 1 && l.conv.groups == l.conv.out_channels && l.conv.groups == l.conv.in_channels;
        llmq_q8_weights *w = pack(&l, NULL);
        uint8_t *y = exact((size_t)l.n_y, 1), *z = exact((size_t)l.n_y, 1);
        int32_t *acc = exact((size_t)l.n_y, sizeof *acc);
        float *f = exact((size_t)l.n_y, sizeof *f);
        llmq_q8_args a = args_of(&l, y);
        for (int k = 0; k < 2; k++) {
            memset(y, 0xaa, (size_t)l.n_y);
            assert_int_equal(llmq_q8_run(ctx[k], w, &a, NULL), LLMQ_OK);
            for (int64_t i = 0; i < l.n_y; i++)
                if (y[i] != l.want[i])
                    fail_msg("case %d, output %d: %d, PyTorch has %d", l.seed, (int)i, y[i], l.want[i]);
        }
        check_signed(&l, w, y);
        a.output = LLMQ_OUT_I32, a.relu = false, a.y = acc;
        assert_int_equal(llmq_q8_run(ctx[0], w, &a, NULL), LLMQ_OK);
        a.output = LLMQ_OUT_F32, a.relu = l.relu, a.y = f;
        assert_int_equal(llmq_q8_run(ctx[0], w, &a, NULL), LLMQ_OK);
        for (int64_t i = 0; i < l.n_y; i++) {
            int64_t c = i % l.conv.out_channels;
            assert_true(acc[i] == sum_of(&l, i, x_integer, w_integer));
            double v = (double)l.x_params.scale * l.scales[c] * acc[i] + (l.has_bias ? l.bias[c] : 0);
            v = l.relu && v < 0 ? 0 : v;
            assert_true(fabs(f[i] - v) <= 1e-6 * (fabs(v) + fabs(l.bias[c])));
        }
        check_fixed(&l, w, acc, y);
        check_bias_i32(&l, y, z);
        llmq_q8_weights_destroy(w);
        free(y);
        free(z);
        free(acc);
        free(f);
        drop_layer(&l);
    }
    mem_free(r.data);
    assert_true(linear >= 200 && conv >= 200 && depthwise >= 20);
}

static double x_float(const layer *l, int64_t i) {
    return number_at((uint32_t)l->seed + 7000, 1, (uint64_t)i);
}
static double w_float(const layer *l, int64_t i) {
    return number_at((uint32_t)l->seed + 9000, 0, (uint64_t)i);
}
static double w_real(const layer *l, int64_t i) {
    return (double)l->weights[i] * l->scales[i / l->per];
}

/* The same shapes in f32, and with activations quantized on the fly: within half a step of each input. */
static void test_floats(void **state) {
    (void)state;
    records r = records_open("layers.bin");
    for (int k = 0; records_more(&r); k++) {
        layer l = take_layer(&r);
        float *x = numbers((uint32_t)l.seed + 7000, 1, l.n_x);
        float *wf = numbers((uint32_t)l.seed + 9000, 0, l.conv.out_channels * l.per);
        float *y = exact((size_t)l.n_y, sizeof *y), *z = exact((size_t)l.n_y, sizeof *z);
        const float *bias = l.has_bias ? l.bias : NULL;
        llmq_f32_weights *w = NULL;
        assert_int_equal(l.linear ? llmq_f32_pack_linear(l.conv.out_channels, l.conv.in_channels, wf, bias, &w, NULL)
                                  : llmq_f32_pack_conv2d(&l.conv, wf, bias, &w, NULL),
                         LLMQ_OK);
        assert_true(llmq_f32_weights_bytes(w) >= 4 * l.conv.out_channels * l.per);
        assert_int_equal(llmq_f32_run(ctx[0], w, x, l.n, l.h, l.w, l.relu, y, NULL), LLMQ_OK);
        assert_int_equal(llmq_f32_run(ctx[1], w, x, l.n, l.h, l.w, l.relu, z, NULL), LLMQ_OK);
        assert_memory_equal(y, z, (size_t)l.n_y * sizeof *y);
        for (int64_t i = 0; i < l.n_y; i++) {
            double v = sum_of(&l, i, x_float, w_float) + (bias ? bias[i % l.conv.out_channels] : 0);
            v = l.relu && v < 0 ? 0 : v;
            assert_true(fabs(y[i] - v) <= 1e-6 * (20 + (double)l.per));
        }
        llmq_f32_weights_destroy(w);

        llmq_q8_weights *q = pack(&l, NULL);
        for (int per_tensor = 0; per_tensor < 2; per_tensor++) {
            assert_int_equal(llmq_q8_run_dynamic(ctx[0], q, x, l.n, l.h, l.w, per_tensor, l.relu, y, NULL), LLMQ_OK);
            assert_int_equal(llmq_q8_run_dynamic(ctx[1], q, x, l.n, l.h, l.w, per_tensor, l.relu, z, NULL), LLMQ_OK);
            assert_memory_equal(y, z, (size_t)l.n_y * sizeof *y);
            for (int64_t i = 0; i < l.n_y; i++) {
                int64_t c = i % l.conv.out_channels;
                double v = sum_of(&l, i, x_float, w_real) + (bias ? bias[c] : 0), step = 8.0 / 255, abs_w = 0;
                for (int64_t j = 0; j < l.per; j++) abs_w += fabs(w_real(&l, c * l.per + j));
                v = l.relu && v < 0 ? 0 : v; /* at most half a step, and as much again where zero was rounded */
                assert_true(fabs(y[i] - v) <= step * abs_w + 1e-5);
            }
        }
        llmq_q8_weights_destroy(q);
        free(x);
        free(wf);
        free(y);
        free(z);
        drop_layer(&l);
    }
    mem_free(r.data);
}

/* A row's own range: a row of small numbers beside one of large ones keeps its precision. */
static void test_rows(void **state) {
    (void)state;
    enum { K = 67, N = 5 };
    int8_t w[N * K];
    float scales[N], x[2 * K], y[2 * N], one[2 * N];
    for (int i = 0; i < N * K; i++) w[i] = (int8_t)(word_at(3, (uint64_t)i) >> 56);
    for (int i = 0; i < N; i++) scales[i] = 0.01f;
    for (int i = 0; i < K; i++) x[i] = number_at(4, 0, (uint64_t)i), x[K + i] = 1000 * number_at(5, 0, (uint64_t)i);
    llmq_q8_weights *q = NULL;
    assert_int_equal(llmq_q8_pack_linear(N, K, &(llmq_q8_pack){w, scales, NULL, NULL}, &q, NULL), LLMQ_OK);
    assert_int_equal(llmq_q8_run_dynamic(ctx[0], q, x, 2, 1, 1, false, false, y, NULL), LLMQ_OK);
    for (int r = 0; r < 2; r++) /* alone */
        assert_int_equal(llmq_q8_run_dynamic(ctx[0], q, x + r * K, 1, 1, 1, true, false, one + r * N, NULL), LLMQ_OK);
    for (int i = 0; i < 2 * N; i++) assert_true(fabsf(y[i] - one[i]) <= 1e-6f * (1 + fabsf(one[i])));
    x[3] = NAN;
    REFUSES(LLMQ_E_NUMERIC, llmq_q8_run_dynamic(ctx[0], q, x, 2, 1, 1, false, false, y, err));
    REFUSES(LLMQ_E_NUMERIC, llmq_q8_run_dynamic(ctx[0], q, x, 2, 1, 1, true, false, y, err));
    x[3] = -INFINITY;
    REFUSES(LLMQ_E_NUMERIC, llmq_q8_run_dynamic(ctx[1], q, x, 2, 1, 1, false, false, y, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_run_dynamic(ctx[0], q, x, 1, 2, 1, false, false, y, err));
    llmq_q8_weights_destroy(q);
}

static void test_pool(void **state) {
    (void)state;
    for (uint32_t seed = 1; seed <= 60; seed++) {
        int64_t n = 1 + seed % 2, h = 2 + seed % 6, w = 2 + seed % 7, c = 1 + seed % 35, k = 1 + seed % 3;
        int64_t out_h = h / k, out_w = w / k, n_x = n * h * w * c, n_y = n * out_h * out_w * c;
        float *x = numbers(seed, 1, n_x), *y = exact((size_t)n_y, sizeof *y);
        uint8_t *q = exact((size_t)n_x, 1), *u = exact((size_t)n_y, 1), *s = exact((size_t)n_y, 1);
        for (int64_t i = 0; i < n_x; i++) q[i] = (uint8_t)(word_at(seed, (uint64_t)i) >> 56);
        assert_int_equal(llmq_f32_maxpool(ctx[0], x, n, h, w, c, k, y, NULL), LLMQ_OK);
        assert_int_equal(llmq_q8_maxpool(ctx[1], q, LLMQ_Q8_UNSIGNED, n, h, w, c, k, u, NULL), LLMQ_OK);
        assert_int_equal(llmq_q8_maxpool(ctx[0], q, LLMQ_Q8_SIGNED, n, h, w, c, k, s, NULL), LLMQ_OK);
        for (int64_t o = 0; o < n_y; o++) {
            int64_t ch = o % c, ox = o / c % out_w, oy = o / c / out_w % out_h, img = o / c / out_w / out_h;
            float f = -INFINITY;
            int a = 0, b = -128;
            for (int64_t i = 0; i < k * k; i++) {
                int64_t at = ((img * h + oy * k + i / k) * w + ox * k + i % k) * c + ch;
                f = fmaxf(f, x[at]);
                a = q[at] > a ? q[at] : a;
                b = (int8_t)q[at] > b ? (int8_t)q[at] : b;
            }
            assert_true(y[o] == f && u[o] == a && (int8_t)s[o] == b);
        }
        free(x);
        free(y);
        free(q);
        free(u);
        free(s);
    }
    REFUSES(LLMQ_E_ARG, llmq_f32_maxpool(ctx[0], NULL, 1, 4, 4, 1, 2, NULL, err));
    REFUSES(LLMQ_E_ARG, llmq_f32_maxpool(ctx[0], NULL, -1, 4, 4, 1, 2, NULL, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_maxpool(ctx[0], NULL, LLMQ_Q8_SIGNED, 1LL << 40, 1LL << 40, 4, 1, 2, NULL, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_maxpool(ctx[0], NULL, 5, 1, 4, 4, 1, 2, NULL, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_maxpool(ctx[0], NULL, LLMQ_Q8_SIGNED, 1, 4, 4, 1, 0, NULL, err));
}

static void test_refusals(void **state) {
    (void)state;
    llmq_conv2d good = llmq_conv2d_same(4, 4, 3), c;
    int8_t weights[4 * 9 * 4] = {0};
    float scales[4] = {1, 1, 1, 1}, bias[4] = {0}, f[64];
    int32_t b32[4] = {0};
    int64_t h, w;
    llmq_q8_weights *q = NULL;
    llmq_f32_weights *wf = NULL;
    llmq_q8_pack p = {weights, scales, bias, NULL};
#define BAD(field, value)                                                                                              \
    (c = good, c.field = value);                                                                                       \
    REFUSES(LLMQ_E_ARG, llmq_conv2d_out(&c, 8, 8, &h, &w, err));                                                       \
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_conv2d(&c, &p, &q, err))
    BAD(in_channels, 0);
    BAD(in_channels, -4);
    BAD(in_channels, 1LL << 40);
    BAD(out_channels, 0);
    BAD(groups, 3);
    BAD(groups, 0);
    BAD(kernel_h, 0);
    BAD(kernel_w, 1LL << 30);
    BAD(stride_h, 0);
    BAD(pad_w, -1);
    BAD(dilation_h, 0);
    c = good, c.kernel_h = c.kernel_w = 1 << 20;
    REFUSES(LLMQ_E_ARG,
            llmq_q8_pack_conv2d(&c, &p, &q, err)); /* a sum that int32 might not hold, before any allocation */
    REFUSES(LLMQ_E_ARG, llmq_conv2d_out(&good, -1, 8, &h, &w, err));
    c = good, c.pad_h = 0;
    REFUSES(LLMQ_E_ARG, llmq_conv2d_out(&c, 2, 8, &h, &w, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_linear(4, 65537, &p, &q, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_linear(0, 5, &p, &q, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_conv2d(NULL, &p, &q, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_conv2d(&good, NULL, &q, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_conv2d(&good, &p, NULL, err));
    REFUSES(LLMQ_E_ARG, llmq_f32_pack_linear(4, 4, NULL, NULL, &wf, err));
    p.bias_i32 = b32;
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_conv2d(&good, &p, &q, err));
    p.bias_i32 = NULL;
    scales[2] = 0;
    REFUSES(LLMQ_E_ARG, llmq_q8_pack_conv2d(&good, &p, &q, err));
    scales[2] = 1, bias[1] = NAN;
    REFUSES(LLMQ_E_NUMERIC, llmq_q8_pack_conv2d(&good, &p, &q, err));
    bias[1] = 0;
    assert_int_equal(llmq_q8_pack_conv2d(&good, &p, &q, NULL), LLMQ_OK);
    uint8_t x[64] = {0}, y[64];
    const llmq_q8_args fine = {
        .x = x, .n = 1, .in_h = 4, .in_w = 4, .x_params = {1, 3}, .output = LLMQ_OUT_Q8, .y_params = {1, 0}, .y = y};
    llmq_q8_args a = fine;
    assert_int_equal(llmq_q8_run(ctx[0], q, &a, NULL), LLMQ_OK);
#define REFUSED(field, value)                                                                                          \
    (a = fine, a.field = value);                                                                                       \
    REFUSES(LLMQ_E_ARG, llmq_q8_run(ctx[0], q, &a, err))
    REFUSED(x, NULL);
    REFUSED(y, NULL);
    REFUSED(n, -1);
    REFUSED(n, INT64_MAX);
    REFUSED(in_h, -1);
    REFUSED(in_w, 1LL << 40);
    REFUSED(x_type, 7);
    REFUSED(x_params.scale, 0);
    REFUSED(x_params.scale, NAN);
    REFUSED(x_params.zero_point, 256);
    REFUSED(y_params.scale, INFINITY);
    REFUSED(y_params.scale, 1e-45f); /* a multiplier that is not finite */
    REFUSED(y_params.zero_point, -1);
    REFUSED(output, 9);
    REFUSED(requant, 9);
    REFUSED(y_spec.quant_min, 5);
    a = fine, a.output = LLMQ_OUT_I32, a.relu = true;
    REFUSES(LLMQ_E_ARG, llmq_q8_run(ctx[0], q, &a, err));
    a = fine, a.n = 0, a.x = a.y = NULL;
    assert_int_equal(llmq_q8_run(ctx[0], q, &a, NULL), LLMQ_OK);
    REFUSES(LLMQ_E_ARG, llmq_q8_run(NULL, q, &fine, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_run(ctx[0], NULL, &fine, err));
    REFUSES(LLMQ_E_ARG, llmq_q8_run_dynamic(ctx[0], q, NULL, 1, 4, 4, true, false, f, err));
    REFUSES(LLMQ_E_ARG, llmq_f32_run(ctx[0], NULL, f, 1, 4, 4, false, f, err));
    llmq_q8_weights_destroy(q);
    p.bias = NULL, p.bias_i32 = b32;
    assert_int_equal(llmq_q8_pack_conv2d(&good, &p, &q, NULL), LLMQ_OK);
    REFUSES(LLMQ_E_ARG, llmq_q8_run_dynamic(ctx[0], q, f, 1, 4, 4, true, false, f, err));
    llmq_q8_weights_destroy(q);
    REFUSES(LLMQ_E_ARG, llmq_q8_context_create(100000, &ctx[0], err));
    REFUSES(LLMQ_E_ARG, llmq_q8_quantize(ctx[0], NULL, 4, &(llmq_affine_spec){0}, (llmq_affine_params){1, 0}, y, err));
    llmq_q8_weights_destroy(NULL);
    llmq_f32_weights_destroy(NULL);
    llmq_q8_context_destroy(NULL);
    assert_int_equal(llmq_q8_weights_bytes(NULL), 0);
    for (long n = 1; n < 14; n++) { /* every allocation that fails */
        llmq_q8_context *t = NULL;
        q = NULL, wf = NULL;
        mem_fail_after(n);
        llmq_status s = llmq_q8_context_create(1, &t, NULL);
        if (!s) s = llmq_q8_pack_conv2d(&good, &p, &q, NULL);
        if (!s) s = llmq_f32_pack_linear(4, 4, f, NULL, &wf, NULL);
        if (!s) s = llmq_q8_run(t, q, &fine, NULL);
        mem_fail_after(0);
        assert_true(s == LLMQ_OK || s == LLMQ_E_MEMORY);
        llmq_q8_weights_destroy(q);
        llmq_f32_weights_destroy(wf);
        llmq_q8_context_destroy(t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_torch), cmocka_unit_test(test_floats),
                                       cmocka_unit_test(test_rows), cmocka_unit_test(test_pool),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, make_contexts, drop_contexts);
}
