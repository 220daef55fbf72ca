/* Observers against torch.ao (min-max, moving average: exactly; MSE: squared error of its HistogramObserver) and NumPy
 * (percentiles, brute force over KL divergences); the order of batches; what is refused. */
#include "cases.h"

typedef struct record {
    int kind, seed, dist;
    llmq_affine_spec spec;
    int64_t batches, channels, outer, inner;
    float constant;
} record;

static record take_record(records *r) {
    record c = {.kind = take_int(r), .seed = take_int(r), .dist = take_int(r)};
    c.spec.type = take_int(r) ? LLMQ_Q8_SIGNED : LLMQ_Q8_UNSIGNED;
    c.spec.symmetric = take_int(r);
    c.spec.quant_min = take_int(r), c.spec.quant_max = take_int(r);
    c.batches = take_int(r), c.channels = take_int(r), c.outer = take_int(r), c.inner = take_int(r);
    c.constant = take_float(r);
    return c;
}

static llmq_observer *observer_of(const record *c) {
    static const llmq_observer_kind kinds[] = {LLMQ_OBSERVE_MINMAX, LLMQ_OBSERVE_MOVING_AVERAGE,
                                               LLMQ_OBSERVE_PERCENTILE, LLMQ_OBSERVE_MSE, LLMQ_OBSERVE_ENTROPY};
    llmq_observer_params p;
    llmq_observer_params_default(&p, kinds[c->kind]);
    p.spec = c->spec;
    p.channels = c->channels;
    if (c->kind == 1) p.averaging = c->constant;
    if (c->kind == 2) p.percentile = c->constant;
    if (c->kind == 4) p.bins = 1024;
    llmq_observer *o = NULL;
    assert_int_equal(llmq_observer_create(&p, &o, NULL), LLMQ_OK);
    return o;
}

/* Squared error of all values after quantizing and back. */
static double error_of(const float *x, int64_t n, const llmq_affine_spec *spec, llmq_affine_params p) {
    llmq_affine_layout l = {1, 1, n, 0};
    uint8_t *q = exact((size_t)n, 1);
    float *y = exact((size_t)n, sizeof *y);
    double sum = 0;
    assert_int_equal(llmq_affine_quantize(x, &l, spec, &p, q, NULL), LLMQ_OK);
    assert_int_equal(llmq_affine_dequantize(q, spec->type, &l, &p, y, NULL), LLMQ_OK);
    for (int64_t i = 0; i < n; i++) sum += ((double)y[i] - x[i]) * ((double)y[i] - x[i]);
    free(q);
    free(y);
    return sum;
}

static void test_oracles(void **state) {
    (void)state;
    records r = records_open("observers.bin");
    int cases[5] = {0};
    double gain = 0;
    while (records_more(&r)) {
        record c = take_record(&r);
        cases[c.kind]++;
        int64_t batch = c.outer * c.channels * c.inner;
        float *x = numbers((uint32_t)c.seed, c.dist, c.batches * batch), lo[8], hi[8];
        llmq_affine_params p[8];
        llmq_observer *o = observer_of(&c);
        for (int64_t b = 0; b < c.batches; b++)
            assert_int_equal(llmq_observer_observe(o, x + b * batch, c.outer, c.inner, NULL), LLMQ_OK);
        assert_int_equal(llmq_observer_result(o, lo, hi, p, NULL), LLMQ_OK);
        for (int64_t i = 0; i < c.channels; i++) {
            float min = take_float(&r), max = take_float(&r), scale = take_float(&r);
            int32_t zero = take_int(&r);
            if (c.kind == 3) {
                double ours = error_of(x, c.batches * batch, &c.spec, p[0]);
                double theirs = error_of(x, c.batches * batch, &c.spec, (llmq_affine_params){scale, zero});
                if (ours > theirs) fail_msg("case %d: squared error %g, HistogramObserver's %g", c.seed, ours, theirs);
                gain += theirs > 0 ? ours / theirs : 1;
                continue;
            }
            if (lo[i] != min || hi[i] != max || p[i].scale != scale || p[i].zero_point != zero)
                fail_msg("case %d kind %d channel %d: %.9g..%.9g %.9g %d, expected %.9g..%.9g %.9g %d", c.seed, c.kind,
                         (int)i, (double)lo[i], (double)hi[i], (double)p[i].scale, p[i].zero_point, (double)min,
                         (double)max, (double)scale, zero);
        }
        llmq_observer_destroy(o);
        free(x);
    }
    mem_free(r.data);
    assert_true(cases[0] + cases[1] + cases[2] + cases[3] + cases[4] >= 200);
    for (int k = 0; k < 5; k++) assert_true(cases[k] >= 60);
    print_message("MSE search: %.3f of HistogramObserver's squared error on average\n", gain / cases[3]);
    assert_true(gain / cases[3] < 1);
}

/* A histogram does not depend on the order in which batches come, however much its bins must widen. */
static void test_order(void **state) {
    (void)state;
    for (int kind = LLMQ_OBSERVE_MSE; kind <= LLMQ_OBSERVE_ENTROPY; kind++)
        for (uint32_t seed = 1; seed <= 40; seed++) {
            llmq_observer_params p;
            llmq_observer_params_default(&p, kind);
            p.bins = 512;
            p.spec = (llmq_affine_spec){seed % 2, seed % 3 == 0, 0, 0, 0};
            llmq_observer *a = NULL, *b = NULL;
            assert_int_equal(llmq_observer_create(&p, &a, NULL), LLMQ_OK);
            assert_int_equal(llmq_observer_create(&p, &b, NULL), LLMQ_OK);
            static const int dists[] = {4, 0, 5, 2, 3};
            for (int k = 0; k < 5; k++) { /* from 2^-30 to 1600, and back */
                float *up = numbers(seed, dists[k], 700), *down = numbers(seed, dists[4 - k], 700);
                assert_int_equal(llmq_observer_observe(a, up, 1, 700, NULL), LLMQ_OK);
                assert_int_equal(llmq_observer_observe(b, down, 7, 100, NULL), LLMQ_OK);
                free(up);
                free(down);
            }
            float lo[2], hi[2];
            assert_int_equal(llmq_observer_result(a, &lo[0], &hi[0], NULL, NULL), LLMQ_OK);
            assert_int_equal(llmq_observer_result(b, &lo[1], &hi[1], NULL, NULL), LLMQ_OK);
            assert_true(lo[0] == lo[1] && hi[0] == hi[1] && hi[0] > 0);
            llmq_observer_destroy(a);
            llmq_observer_destroy(b);
        }
}

/* Channels side by side give what an observer of each alone gives. */
static void test_channels(void **state) {
    (void)state;
    for (int kind = 0; kind <= LLMQ_OBSERVE_ENTROPY; kind++) {
        llmq_observer_params p;
        llmq_observer_params_default(&p, kind);
        p.channels = 3;
        llmq_observer *all = NULL, *one = NULL;
        assert_int_equal(llmq_observer_create(&p, &all, NULL), LLMQ_OK);
        p.channels = 1;
        assert_int_equal(llmq_observer_create(&p, &one, NULL), LLMQ_OK);
        float *x = numbers(5, 2, 2 * 600 * 3), lo[3], hi[3], a, b;
        for (int k = 0; k < 2; k++) assert_int_equal(llmq_observer_observe(all, x + k * 1800, 600, 1, NULL), LLMQ_OK);
        assert_int_equal(llmq_observer_result(all, lo, hi, NULL, NULL), LLMQ_OK);
        for (int c = 0; c < 3; c++) {
            llmq_observer_reset(one);
            for (int k = 0; k < 2; k++) {
                float y[600];
                for (int i = 0; i < 600; i++) y[i] = x[k * 1800 + i * 3 + c];
                assert_int_equal(llmq_observer_observe(one, y, 1, 600, NULL), LLMQ_OK);
            }
            assert_int_equal(llmq_observer_result(one, &a, &b, NULL, NULL), LLMQ_OK);
            assert_true(lo[c] == a && hi[c] == b);
        }
        free(x);
        llmq_observer_destroy(all);
        llmq_observer_destroy(one);
    }
}

static void test_edges(void **state) {
    (void)state;
    for (int kind = 0; kind <= LLMQ_OBSERVE_ENTROPY; kind++) {
        llmq_observer_params p;
        llmq_observer_params_default(&p, kind);
        llmq_observer *o = NULL;
        assert_int_equal(llmq_observer_create(&p, &o, NULL), LLMQ_OK);
        float lo = 5, hi = 5, x[4] = {0}, bad[2][4] = {{1, NAN, 2, 3}, {1, 2, 3, -INFINITY}};
        llmq_affine_params q;
        assert_int_equal(llmq_observer_result(o, &lo, &hi, &q, NULL), LLMQ_OK); /* nothing seen */
        assert_true(lo == 0 && hi == 0 && q.scale == 1 && q.zero_point == 0);
        assert_int_equal(llmq_observer_observe(o, NULL, 0, 4, NULL), LLMQ_OK);
        for (int k = 0; k < 2; k++) REFUSES(LLMQ_E_NUMERIC, llmq_observer_observe(o, bad[k], 1, 4, err));
        REFUSES(LLMQ_E_ARG, llmq_observer_observe(o, NULL, 1, 4, err));
        REFUSES(LLMQ_E_ARG, llmq_observer_observe(o, x, -1, 4, err));
        REFUSES(LLMQ_E_ARG, llmq_observer_observe(o, x, INT64_MAX, 4, err));
        REFUSES(LLMQ_E_ARG, llmq_observer_observe(NULL, x, 1, 4, err));
        assert_int_equal(llmq_observer_result(o, &lo, &hi, &q, NULL), LLMQ_OK);
        assert_true(lo == 0 && hi == 0 && q.scale == 1);                    /* as it was */
        assert_int_equal(llmq_observer_observe(o, x, 1, 4, NULL), LLMQ_OK); /* zeros only */
        assert_int_equal(llmq_observer_result(o, &lo, &hi, &q, NULL), LLMQ_OK);
        assert_true(lo == 0 && hi == 0 && q.scale == 0x1p-23f);
        float wide[4] = {3e38f, -1e38f, 1e-45f, 0};
        assert_int_equal(llmq_observer_observe(o, wide, 1, 4, NULL), LLMQ_OK);
        llmq_status s = llmq_observer_result(o, &lo, &hi, &q, NULL);
        assert_true(s == LLMQ_OK || s == LLMQ_E_NUMERIC);
        assert_true(lo <= 0 && hi >= 0);
        llmq_observer_destroy(o);
    }
    llmq_observer_params good, p;
    llmq_observer *o = NULL;
    llmq_observer_params_default(&good, LLMQ_OBSERVE_MSE);
#define BAD(field, value)                                                                                              \
    (p = good, p.field = value);                                                                                       \
    REFUSES(LLMQ_E_ARG, llmq_observer_create(&p, &o, err))
    BAD(kind, 9);
    BAD(channels, 0);
    BAD(channels, INT64_MAX);
    BAD(bins, 3);
    BAD(bins, 1 << 20);
    BAD(spec.eps, -1);
    good.kind = LLMQ_OBSERVE_MOVING_AVERAGE;
    BAD(averaging, 0);
    BAD(averaging, NAN);
    good.kind = LLMQ_OBSERVE_PERCENTILE;
    BAD(percentile, 50);
    BAD(percentile, 101);
    BAD(max_values, 0);
    REFUSES(LLMQ_E_ARG, llmq_observer_create(NULL, &o, err));
    REFUSES(LLMQ_E_ARG, llmq_observer_create(&good, NULL, err));
    llmq_observer_destroy(NULL);
    llmq_observer_reset(NULL);
    /* Of more values than are kept, a sample: the median of 0..999999 within what 10,000 of them tell. */
    llmq_observer_params_default(&good, LLMQ_OBSERVE_PERCENTILE);
    good.max_values = 10000;
    good.percentile = 75;
    assert_int_equal(llmq_observer_create(&good, &o, NULL), LLMQ_OK);
    for (int k = 0; k < 1000; k++) {
        float x[1000], lo, hi;
        for (int i = 0; i < 1000; i++) x[i] = (float)(k * 1000 + i);
        assert_int_equal(llmq_observer_observe(o, x, 1, 1000, NULL), LLMQ_OK);
        if (k % 300 == 0) assert_int_equal(llmq_observer_result(o, &lo, &hi, NULL, NULL), LLMQ_OK);
    }
    float lo, hi;
    assert_int_equal(llmq_observer_result(o, &lo, &hi, NULL, NULL), LLMQ_OK);
    assert_true(fabsf(lo - 250000) < 20000 && fabsf(hi - 750000) < 20000);
    llmq_observer_destroy(o);
    /* Every allocation that fails is an error, and nothing is lost. */
    for (int kind = 0; kind <= LLMQ_OBSERVE_ENTROPY; kind++)
        for (long n = 1; n < 12; n++) {
            float x[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
            llmq_observer_params_default(&good, kind);
            good.channels = 2;
            o = NULL;
            mem_fail_after(n);
            llmq_status s = llmq_observer_create(&good, &o, NULL);
            if (s == LLMQ_OK) s = llmq_observer_observe(o, x, 3, 2, NULL);
            if (s == LLMQ_OK) s = llmq_observer_result(o, NULL, NULL, NULL, NULL);
            mem_fail_after(0);
            assert_true(s == LLMQ_OK || s == LLMQ_E_MEMORY);
            llmq_observer_destroy(o);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oracles), cmocka_unit_test(test_order),
                                       cmocka_unit_test(test_channels), cmocka_unit_test(test_edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
