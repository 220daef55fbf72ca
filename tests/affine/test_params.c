/* Affine parameters and elements: PyTorch's integers and floats, Python's integers for fixed-point multipliers, and
 * what is refused. */
#include "cases.h"

static void test_elements(void **state) {
    (void)state;
    records r = records_open("elements.bin");
    int cases = 0, grouped = 0;
    for (; records_more(&r); cases++) {
        uint32_t seed = (uint32_t)take_int(&r);
        int dist = take_int(&r);
        llmq_affine_spec spec = {.type = take_int(&r) ? LLMQ_Q8_SIGNED : LLMQ_Q8_UNSIGNED};
        spec.quant_min = take_int(&r), spec.quant_max = take_int(&r);
        llmq_affine_layout l = {0};
        l.outer = take_int(&r), l.channels = take_int(&r), l.inner = take_int(&r), l.group = take_int(&r);
        grouped += l.group > 0;
        int64_t n = llmq_affine_elements(&l), k = llmq_affine_n_params(&l);
        llmq_affine_params *p = exact((size_t)k, sizeof *p);
        for (int64_t i = 0; i < k; i++) p[i].scale = take_float(&r), p[i].zero_point = take_int(&r);
        const uint8_t *want = take(&r, (size_t)n);
        float *x = numbers(seed, dist, n), *back = exact((size_t)n, sizeof *back);
        uint8_t *q = exact((size_t)n, 1);
        assert_int_equal(llmq_affine_quantize(x, &l, &spec, p, q, NULL), LLMQ_OK);
        assert_memory_equal(q, want, (size_t)n);
        assert_int_equal(llmq_affine_dequantize(q, spec.type, &l, p, back, NULL), LLMQ_OK);
        const void *floats = take(&r, (size_t)n * 4);
        for (int64_t i = 0; i < n; i++) assert_true(back[i] == ((float *)memcpy(x, floats, (size_t)n * 4))[i]);
        free(p);
        free(x);
        free(back);
        free(q);
    }
    assert_true(cases >= 200 && grouped >= 50);
    mem_free(r.data);
}

static void test_fixed(void **state) {
    (void)state;
    records r = records_open("fixed.bin");
    int cases = 0;
    for (; records_more(&r); cases++) {
        double real = take_double(&r);
        llmq_fixed_multiplier m = {0};
        assert_int_equal(llmq_fixed_from_real(real, &m, NULL), LLMQ_OK);
        assert_int_equal(m.multiplier, take_int(&r));
        assert_int_equal(m.shift, take_int(&r));
        for (int i = 0; i < 8; i++) {
            int32_t x = take_int(&r);
            assert_int_equal(llmq_fixed_multiply(x, m), take_int(&r));
        }
    }
    assert_true(cases >= 200);
    mem_free(r.data);
    llmq_fixed_multiplier m;
    REFUSES(LLMQ_E_ARG, llmq_fixed_from_real(-1, &m, err));
    REFUSES(LLMQ_E_ARG, llmq_fixed_from_real(NAN, &m, err));
    REFUSES(LLMQ_E_ARG, llmq_fixed_from_real(2147483648.0, &m, err));
    REFUSES(LLMQ_E_ARG, llmq_fixed_from_real(INFINITY, &m, err));
    REFUSES(LLMQ_E_ARG, llmq_fixed_from_real(1, NULL, err));
    assert_int_equal(llmq_fixed_from_real(0, &m, NULL), LLMQ_OK);
    assert_int_equal(llmq_fixed_multiply(INT32_MAX, m), 0);
    assert_int_equal(llmq_fixed_from_real(1e-300, &m, NULL), LLMQ_OK);
    assert_int_equal(m.multiplier, 0);
    assert_int_equal(llmq_fixed_multiply(7, (llmq_fixed_multiplier){1 << 30, 99}), 0);
    assert_int_equal(llmq_fixed_multiply(7, (llmq_fixed_multiplier){-1, 0}), 0);
}

/* Float and fixed-point requantization of the same accumulators: the float one by its definition, the fixed one by
 * 64-bit integers, and the two within 1 of each other. */
static void test_requantize(void **state) {
    (void)state;
    for (uint32_t seed = 1; seed <= 200; seed++) {
        int64_t rows = 1 + seed % 5, channels = 1 + seed % 37, n = rows * channels;
        llmq_affine_spec spec = {.type = seed % 2 ? LLMQ_Q8_SIGNED : LLMQ_Q8_UNSIGNED};
        if (seed % 3 == 0) spec.quant_max = 100, spec.quant_min = seed % 2 ? -100 : 0;
        llmq_affine_params out = {1, (int32_t)(seed % 60)};
        bool relu = seed % 4 == 0;
        int lo = relu            ? out.zero_point
                 : seed % 3 == 0 ? spec.quant_min
                 : seed % 2      ? -128
                                 : 0,
            hi = seed % 3 == 0 ? 100
                 : seed % 2    ? 127
                               : 255;
        int32_t acc[5 * 37];
        double real[37];
        uint8_t a[5 * 37], b[5 * 37];
        for (int64_t c = 0; c < channels; c++)
            real[c] = ldexp(1 + fabs(unit_at(seed + 500, (uint64_t)c)), -9 - (int)(c % 5));
        for (int64_t i = 0; i < n; i++) acc[i] = (int32_t)(unit_at(seed, (uint64_t)i) * (i % 11 ? 3e5 : 2e9));
        for (int fixed = 0; fixed < 2; fixed++)
            assert_int_equal(llmq_affine_requantize(acc, rows, channels, real,
                                                    fixed ? LLMQ_REQUANT_FIXED : LLMQ_REQUANT_FLOAT, &spec, &out, relu,
                                                    fixed ? b : a, NULL),
                             LLMQ_OK);
        for (int64_t i = 0; i < n; i++) {
            float f = rintf((float)acc[i] * (float)real[i % channels]) + (float)out.zero_point;
            int want = f < (float)lo ? lo : f > (float)hi ? hi : (int)f;
            int got = seed % 2 ? (int8_t)a[i] : a[i], other = seed % 2 ? (int8_t)b[i] : b[i];
            assert_int_equal(got, want);
            assert_in_range(other - got + 1, 0, 2);
            llmq_fixed_multiplier m;
            assert_int_equal(llmq_fixed_from_real(real[i % channels], &m, NULL), LLMQ_OK);
            int64_t y = (int64_t)llmq_fixed_multiply(acc[i], m) + out.zero_point;
            assert_int_equal(other, y < lo ? lo : y > hi ? hi : y);
        }
    }
}

static void test_edges(void **state) {
    (void)state;
    float x[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 0, -0.0f, 0.25f, 0.75f, 1.25f, -0.25f};
    int8_t q[11];
    llmq_affine_layout all = {1, 1, 11, 0};
    llmq_affine_spec s = {.type = LLMQ_Q8_SIGNED};
    assert_int_equal(llmq_affine_quantize(x, &all, &s, &(llmq_affine_params){0.5f, 3}, q, NULL), LLMQ_OK);
    const int8_t want[] = {3, 127, -128, 127, -128, 3, 3, 3, 5, 5, 3}; /* halves go to even */
    assert_memory_equal(q, want, sizeof want);
    /* A scale whose reciprocal is infinite: still the same ends, and 0 stays 0. */
    assert_int_equal(llmq_affine_quantize(x, &all, &s, &(llmq_affine_params){1e-45f, 3}, q, NULL), LLMQ_OK);
    const int8_t ends[] = {3, 127, -128, 127, -128, 3, 3, 127, 127, 127, -128};
    assert_memory_equal(q, ends, sizeof ends);

    float lo = 0, hi = 0;
    llmq_affine_params p;
    llmq_affine_spec u = {.type = LLMQ_Q8_UNSIGNED};
    assert_int_equal(llmq_affine_from_ranges(&u, 1, &lo, &hi, &p, NULL), LLMQ_OK);
    assert_true(p.scale == 0x1p-23f && p.zero_point == 0);
    for (int k = 0; k < 200; k++) { /* 0.0 is an integer's value whatever the range */
        lo = number_at(900, k % 6, (uint64_t)k), hi = lo + fabsf(number_at(901, k % 6, (uint64_t)k));
        llmq_affine_spec v = {
            .type = k % 2, .symmetric = k % 3 == 0, .quant_min = k % 2 ? -64 : 0, .quant_max = 63 + k % 2};
        assert_int_equal(llmq_affine_from_ranges(&v, 1, &lo, &hi, &p, NULL), LLMQ_OK);
        assert_in_range(p.zero_point - v.quant_min, 0, v.quant_max - v.quant_min);
    }
    float nan = NAN, inf = INFINITY, one = 1, big = 3e38f, small = -3e38f;
    REFUSES(LLMQ_E_NUMERIC, llmq_affine_from_ranges(&u, 1, &nan, &one, &p, err));
    REFUSES(LLMQ_E_NUMERIC, llmq_affine_from_ranges(&u, 1, &one, &inf, &p, err));
    REFUSES(LLMQ_E_NUMERIC, llmq_affine_from_ranges(&u, 1, &small, &big, &p, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_from_ranges(&u, 1, &big, &one, &p, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_from_ranges(NULL, 1, &one, &one, &p, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_from_ranges(&u, -1, &one, &one, &p, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_from_ranges(&u, 1, &one, NULL, &p, err));
    assert_int_equal(llmq_affine_from_ranges(&u, 0, NULL, NULL, NULL, NULL), LLMQ_OK);
    static const llmq_affine_spec bad[] = {{.type = 7},
                                           {.quant_min = -1, .quant_max = 5},
                                           {.quant_min = 1, .quant_max = 5},
                                           {.quant_max = 256},
                                           {.type = LLMQ_Q8_SIGNED, .quant_min = -3, .quant_max = -1},
                                           {.eps = -1},
                                           {.eps = NAN},
                                           {.eps = INFINITY}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        REFUSES(LLMQ_E_ARG, llmq_affine_from_ranges(&bad[i], 1, &one, &one, &p, err));

    p = (llmq_affine_params){1, 0};
    REFUSES(LLMQ_E_ARG, llmq_affine_quantize(NULL, &all, &s, &p, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_quantize(x, &all, &s, NULL, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_quantize(x, NULL, &s, &p, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_quantize(x, &all, &s, &(llmq_affine_params){0, 0}, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_quantize(x, &all, &s, &(llmq_affine_params){NAN, 0}, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_quantize(x, &all, &s, &(llmq_affine_params){1, 128}, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_dequantize(q, 9, &all, &p, x, err));
    static const llmq_affine_layout odd[] = {
        {-1, 1, 1, 0},           {1, 0, 1, 0}, {1, 1, -1, 0}, {2, 1, 4, 2}, {1, 1, 1, -1}, {1LL << 40, 1LL << 40, 1, 0},
        {1, 3, INT64_MAX / 2, 0}};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        assert_int_equal(llmq_affine_elements(&odd[i]), -1);
        REFUSES(LLMQ_E_ARG, llmq_affine_quantize(x, &odd[i], &s, &p, q, err));
        REFUSES(LLMQ_E_ARG, llmq_affine_ranges(x, &odd[i], &lo, &hi, err));
    }
    REFUSES(LLMQ_E_NUMERIC, llmq_affine_ranges(x, &all, &lo, &hi, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_ranges(x, &(llmq_affine_layout){1, 1, 0, 0}, &lo, &hi, err));
    assert_int_equal(llmq_affine_quantize(NULL, &(llmq_affine_layout){0, 1, 5, 0}, &s, &p, NULL, NULL), LLMQ_OK);
    int32_t acc = 0;
    double real = 1;
    REFUSES(LLMQ_E_ARG, llmq_affine_requantize(&acc, 1, 1, &real, 5, &s, &p, false, q, err));
    REFUSES(LLMQ_E_ARG, llmq_affine_requantize(&acc, 1, 0, &real, LLMQ_REQUANT_FLOAT, &s, &p, false, q, err));
    real = NAN;
    REFUSES(LLMQ_E_ARG, llmq_affine_requantize(&acc, 1, 1, &real, LLMQ_REQUANT_FLOAT, &s, &p, false, q, err));
}

static void test_ranges(void **state) {
    (void)state;
    for (uint32_t seed = 1; seed <= 60; seed++) {
        llmq_affine_layout l = {1 + seed % 3, 1 + seed % 4, 1 + seed % 50, 0};
        if (seed % 5 == 0) l.outer = 1, l.group = 1 + seed % 7;
        int64_t n = llmq_affine_elements(&l), k = llmq_affine_n_params(&l), groups = k / l.channels;
        float *x = numbers(seed, (int)(seed % 6), n), lo[4 * 50], hi[4 * 50];
        assert_int_equal(llmq_affine_ranges(x, &l, lo, hi, NULL), LLMQ_OK);
        for (int64_t c = 0; c < k; c++) {
            float a = INFINITY, b = -INFINITY;
            for (int64_t i = 0; i < n; i++) {
                int64_t at = i % l.inner;
                if (i / l.inner % l.channels * groups + (l.group ? at / l.group : 0) != c) continue;
                a = fminf(a, x[i]), b = fmaxf(b, x[i]);
            }
            assert_true(lo[c] == a && hi[c] == b);
        }
        free(x);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_elements), cmocka_unit_test(test_fixed),
                                       cmocka_unit_test(test_requantize), cmocka_unit_test(test_ranges),
                                       cmocka_unit_test(test_edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
