/* The ops of core/affine.h: every instruction set against plain C, shapes with tails of every kind, teams of 1 to 3,
 * between canaries. */
#include "cases.h"
#include "tests/isas.h"

static llmq_team *teams[4];

static int make_teams(void **state) {
    (void)state;
    isas_say();
    for (int n = 1; n <= 3; n++)
        if (team_create(n, &teams[n], NULL) != LLMQ_OK) return -1;
    return 0;
}
static int drop_teams(void **state) {
    (void)state;
    for (int n = 1; n <= 3; n++) team_destroy(teams[n]);
    return 0;
}

#define GUARD 64
static uint8_t *guarded(size_t bytes) {
    uint8_t *p = mem_alloc(bytes + 2 * GUARD, 1);
    memset(p, 0xa5, bytes + 2 * GUARD);
    return p + GUARD;
}
static void guarded_free(uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++) assert_true(p[-1 - (ptrdiff_t)i] == 0xa5 && p[bytes + i] == 0xa5);
    mem_free(p - GUARD);
}

static uint32_t seed = 1;
static int64_t pick(int64_t lo, int64_t hi) {
    return lo + (int64_t)(word_at(77, seed++) % (uint64_t)(hi - lo + 1));
}

/* A gemm of random shape, with everything that it reads. */
typedef struct gemm_case {
    affine_gemm g;
    affine_epilogue e;
    int64_t off[12], n_rows, padded;
    void *x, *w;
    int32_t offset[96], wsum[96], fix[96], shift[96], row_zero[300];
    float mult[96], add[96], row_scale[300];
} gemm_case;

static gemm_case *gemm_make(bool q8, int k) {
    gemm_case *c = mem_zalloc(1, sizeof *c);
    affine_rows *m = &c->g.rows;
    int64_t elem = q8 ? 1 : 4, line = pick(40, 90);
    *m = (affine_rows){.n_img = pick(1, 3), .out_h = pick(1, 4), .out_w = pick(1, k % 7 == 0 ? 24 : 6)};
    m->step_w = pick(1, 5), m->step_h = pick(1, 2) * line, m->img = 6 * line;
    m->n_seg = pick(1, 9), m->seg_len = pick(1, 37), m->seg_off = c->off;
    for (int64_t s = 0; s < m->n_seg; s++) c->off[s] = s / 3 * line + s % 3 * 2;
    c->n_rows = m->n_img * m->out_h * m->out_w;
    c->g.channels = pick(1, 75);
    c->padded = (c->g.channels + 15) / 16 * 16;
    int64_t seg = q8 ? (m->seg_len + 3) / 4 * 4 : m->seg_len, n_w = c->padded * m->n_seg * seg;
    int64_t n_x = m->n_img * m->img + 10 * line + 300;
    c->x = mem_alloc((size_t)(n_x * elem + AFFINE_SLACK), 1);
    c->w = mem_zalloc((size_t)n_w, (size_t)elem);
    for (int64_t i = 0; i < n_x; i++) {
        if (q8)
            ((uint8_t *)c->x)[i] = (uint8_t)(k % 5 == 0 ? 255 : word_at((uint32_t)k, (uint64_t)i) >> 56);
        else
            ((float *)c->x)[i] = number_at((uint32_t)k, 0, (uint64_t)i);
    }
    for (int64_t i = 0; i < n_w; i++) {
        if (!q8)
            ((float *)c->w)[i] = number_at((uint32_t)k + 5000, 0, (uint64_t)i);
        else if (i / 64 % (seg / 4) * 4 + i % 4 < m->seg_len) /* what is behind a piece stays 0 */
            ((int8_t *)c->w)[i] = (int8_t)(k % 5 == 0 ? 128 : word_at((uint32_t)k + 5000, (uint64_t)i) >> 56);
    }
    m->x = c->x;
    c->g.w = c->w;
    c->g.ldy = c->g.channels + pick(0, 5);
    c->g.relu = k % 2;
    c->g.bias = c->add;
    c->g.epi = &c->e;
    for (int64_t i = 0; i < 96; i++) {
        c->offset[i] = (int32_t)pick(-100000, 100000), c->wsum[i] = (int32_t)pick(-3000, 3000);
        c->mult[i] = (float)pick(1, 1000) / 4e6f, c->add[i] = (float)pick(-1000, 1000) / 3.0f;
        c->fix[i] = (int32_t)pick(1 << 30, INT32_MAX), c->shift[i] = (int32_t)pick(-20, k % 3 ? -5 : 3);
    }
    for (int64_t i = 0; i < 300; i++) c->row_zero[i] = (int32_t)pick(0, 255), c->row_scale[i] = (float)pick(1, 9) / 7;
    bool is_signed = k % 3 == 0;
    c->e = (affine_epilogue){.output = (llmq_q8_output)(k % 3),
                             .fixed = k / 3 % 2,
                             .relu = k % 4 == 1,
                             .offset = c->offset,
                             .row_zero = k % 4 == 1 ? c->row_zero : NULL,
                             .wsum = c->wsum,
                             .row_scale = k % 4 == 1 ? c->row_scale : NULL,
                             .mult = c->mult,
                             .add = c->add,
                             .fix = c->fix,
                             .shift = c->shift,
                             .zero = is_signed ? -5 : 100,
                             .lo = is_signed ? -128
                                   : k % 4   ? 0
                                             : 100,
                             .hi = is_signed ? 127 : 255};
    return c;
}

typedef struct gemm_run {
    void (*fn)(const llmq_worker *, const affine_gemm *);
    affine_gemm *g;
} gemm_run;
static void gemm_worker(const llmq_worker *w, void *arg) {
    gemm_run *r = arg;
    r->fn(w, r->g);
}

static void test_gemm(void **state) {
    (void)state;
    for (int k = 0; k < 400; k++) {
        bool q8 = k % 4 != 3;
        gemm_case *c = gemm_make(q8, q8 ? k : k / 4);
        size_t elem = q8 && c->e.output == LLMQ_OUT_Q8 ? 1 : 4, bytes = (size_t)(c->n_rows * c->g.ldy) * elem;
        uint8_t *want = NULL;
        for (int i = 0; i < N_ISAS; i++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
            for (int n = 1; n <= 3 && ops; n++) {
                uint8_t *y = guarded(bytes);
                c->g.y = y;
                team_run(teams[n], gemm_worker, &(gemm_run){q8 ? ops->affine->gemm_q8 : ops->affine->gemm_f32, &c->g});
                if (!want) {
                    want = y;
                    continue;
                }
                for (size_t j = 0; j < bytes / elem; j++) { /* gaps between rows included */
                    float a, b;
                    memcpy(&a, y + j * elem, elem), memcpy(&b, want + j * elem, elem);
                    bool exact = q8 && c->e.output != LLMQ_OUT_F32;
                    bool same = memcmp(y + j * elem, want + j * elem, elem) == 0;
                    if (!same && (exact || !(fabsf(a - b) <= 2e-6f * (1000 + fabsf(b)))))
                        fail_msg("%s, %d workers, case %d: element %zu differs", all_isas[i], n, k, j);
                }
                guarded_free(y, bytes);
            }
        }
        guarded_free(want, bytes);
        mem_free(c->x);
        mem_free(c->w);
        mem_free(c);
    }
}

typedef struct depthwise_run {
    void (*fn)(const llmq_worker *, const affine_depthwise *);
    affine_depthwise *d;
} depthwise_run;
static void depthwise_worker(const llmq_worker *w, void *arg) {
    depthwise_run *r = arg;
    r->fn(w, r->d);
}

static void test_depthwise(void **state) {
    (void)state;
    for (int k = 0; k < 120; k++) {
        bool q8 = k % 4 != 3; /* against k % 3: every kind of output */
        gemm_case *c = gemm_make(q8, k);
        affine_rows *m = &c->g.rows;
        if (k % 10 == 0) m->seg_len = 300; /* more than a block; the arrays of channels are not that long */
        if (q8 && m->seg_len > 90) m->seg_len = 90;
        int64_t ldw = (m->seg_len + 15) / 16 * 16, n_x = m->n_img * m->img + 4000;
        size_t elem = q8 && c->e.output == LLMQ_OUT_Q8 ? 1 : 4, bytes = (size_t)(c->n_rows * m->seg_len) * elem;
        float *bias = mem_zalloc((size_t)ldw, sizeof *bias);
        uint8_t *x = exact((size_t)n_x, q8 ? 1 : 4);
        void *w = mem_alloc((size_t)(m->n_seg * ldw), 4);
        for (int64_t i = 0; i < m->n_seg * ldw; i++) {
            if (q8)
                ((int8_t *)w)[i] = (int8_t)pick(-128, 127);
            else
                ((float *)w)[i] = number_at((uint32_t)k, 0, (uint64_t)i);
        }
        for (int64_t i = 0; i < n_x; i++) {
            if (q8)
                x[i] = (uint8_t)pick(0, 255);
            else
                ((float *)(void *)x)[i] = number_at((uint32_t)k + 50, 0, (uint64_t)i);
        }
        m->x = x;
        affine_depthwise d = {.rows = *m, .w8 = w, .w32 = w, .ldw = ldw, .ldy = m->seg_len, .epi = &c->e, .bias = bias};
        uint8_t *want = NULL;
        for (int i = 0; i < N_ISAS; i++) {
            const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
            for (int n = 1; n <= 3 && ops; n++) {
                uint8_t *y = guarded(bytes);
                d.y = y;
                team_run(teams[n], depthwise_worker,
                         &(depthwise_run){q8 ? ops->affine->depthwise_q8 : ops->affine->depthwise_f32, &d});
                if (!want) {
                    want = y;
                    continue;
                }
                for (size_t j = 0; j < bytes / elem; j++) {
                    float a, b;
                    memcpy(&a, y + j * elem, elem), memcpy(&b, want + j * elem, elem);
                    bool exact = q8 && c->e.output != LLMQ_OUT_F32;
                    bool same = memcmp(y + j * elem, want + j * elem, elem) == 0;
                    assert_true(same || (!exact && fabsf(a - b) <= 2e-6f * (100 + fabsf(b))));
                }
                guarded_free(y, bytes);
            }
        }
        guarded_free(want, bytes);
        mem_free(bias);
        free(x);
        mem_free(w);
        mem_free(c->x);
        mem_free(c->w);
        mem_free(c);
    }
}

/* quantize, dequantize, range, finish and max of every length up to three vectors. */
static void test_elements(void **state) {
    (void)state;
    const affine_ops *plain = backend_cpu_isa("c")->affine;
    for (int i = 1; i < N_ISAS; i++) {
        const llmq_backend_ops *ops = backend_cpu_isa(all_isas[i]);
        for (int64_t n = 1; n <= 200 && ops; n++) {
            const affine_ops *fast = ops->affine;
            float *x = numbers((uint32_t)n, (int)(n % 6), n), lo[2], hi[2];
            uint8_t *q = guarded((size_t)n), *p = guarded((size_t)n);
            uint8_t *back = guarded((size_t)n * 4), *want = guarded((size_t)n * 4);
            assert_true(plain->range(x, n, &lo[0], &hi[0]) && fast->range(x, n, &lo[1], &hi[1]));
            assert_true(lo[0] == lo[1] && hi[0] == hi[1]);
            float keep = x[n / 2];
            for (int k = 0; k < 3; k++) {
                x[n / 2] = k == 0 ? NAN : k == 1 ? INFINITY : -INFINITY;
                assert_false(plain->range(x, n, &lo[0], &hi[0]) || fast->range(x, n, &lo[1], &hi[1]));
                for (int j = 0; j < 2; j++)
                    (j ? plain : fast)
                        ->quantize(x, n, 130, n % 2 ? -3 : 9, n % 2 ? -128 : 0, n % 2 ? 127 : 255, j ? p : q);
                assert_memory_equal(p, q, (size_t)n);
            }
            x[n / 2] = keep;
            plain->dequantize(q, n % 2, n, 0.37f, 5, (float *)(void *)want);
            fast->dequantize(q, n % 2, n, 0.37f, 5, (float *)(void *)back);
            assert_memory_equal(back, want, (size_t)n * 4);
            if (n >= 9) {
                int64_t c = n / 9;
                for (int s = 0; s < 2; s++) {
                    fast->max_u8(q, 3 * c, 3, c, s, back);
                    plain->max_u8(q, 3 * c, 3, c, s, want);
                    assert_memory_equal(back, want, (size_t)c);
                }
                fast->max_f32(x, 3 * c, 3, c, (float *)(void *)back);
                plain->max_f32(x, 3 * c, 3, c, (float *)(void *)want);
                assert_memory_equal(back, want, (size_t)c * 4);
            }
            guarded_free(q, (size_t)n);
            guarded_free(p, (size_t)n);
            guarded_free(back, (size_t)n * 4);
            guarded_free(want, (size_t)n * 4);
            free(x);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gemm), cmocka_unit_test(test_depthwise),
                                       cmocka_unit_test(test_elements)};
    return cmocka_run_group_tests(tests, make_teams, drop_teams);
}
