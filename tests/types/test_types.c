/* Storage types: one loop over the table for every property, golden blocks of gguf-py, hand vectors of the layouts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/half.h"
#include "core/mem.h"
#include "types/blocks.h"
#include "types/search_rests.h"
#include "types/type.h"

#define N_TYPES 17
#define N_GGUF 15
#define MAX_BYTES 512

/* ---- random numbers ---- */

static uint64_t seed = 1;

static uint32_t random_u32(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_unit(void) { return ((float)(random_u32() >> 8) + 0.5f) / 16777216.0f; }

static float gaussian(void) { return sqrtf(-2.0f * logf(random_unit())) * cosf(6.2831853f * random_unit()); }

/* Student's t with 4 degrees of freedom: trained weights have such tails. */
static float heavy(void) {
    float a = gaussian(), b = gaussian(), c = gaussian(), d = gaussian();
    return gaussian() / sqrtf((a * a + b * b + c * c + d * d) / 4.0f);
}

/* ---- f16 fields of a block, so that random blocks can be kept free of NaN ---- */

static int f16_fields(llmq_type type, int offset[2]) {
    switch (type) {
    case LLMQ_TYPE_Q4_1: case LLMQ_TYPE_Q5_1: case LLMQ_TYPE_Q4_K: case LLMQ_TYPE_Q5_K:
        offset[0] = 0, offset[1] = 2;
        return 2;
    case LLMQ_TYPE_Q2_K: offset[0] = offsetof(block_q2_k, d), offset[1] = offsetof(block_q2_k, dmin); return 2;
    case LLMQ_TYPE_Q3_K: offset[0] = offsetof(block_q3_k, d); return 1;
    case LLMQ_TYPE_Q6_K: offset[0] = offsetof(block_q6_k, d); return 1;
    default: offset[0] = 0; return 1;
    }
}

static void put_f16(uint8_t *block, int at, float x) {
    uint16_t h = f32_to_f16(x);
    memcpy(block + at, &h, 2);
}

/* ---- tests ---- */

static void test_table(void **state) {
    (void)state;
    size_t n = 0;
    for (const llmq_type_info *t; (t = type_at(n)); n++) {
        assert_ptr_equal(type_info(t->id), t);
        assert_string_equal(llmq_type_name(t->id), t->name);
        assert_int_equal(llmq_type_from_name(t->name), t->id);
        assert_true(type_can_encode(t) != t->in_memory);
        assert_int_equal(type_row_bytes(t->id, 3 * t->block_len), 3 * t->block_bytes);
        assert_int_equal(type_row_bytes(t->id, -t->block_len), -1);
        if (t->block_len > 1) assert_int_equal(type_row_bytes(t->id, t->block_len + 1), -1);
        if (t->block_bytes > t->block_len)
            assert_int_equal(type_row_bytes(t->id, INT64_MAX / t->block_len * t->block_len), -1);
        if (type_is_float(t)) {
            assert_non_null(t->to_f32);
            assert_non_null(t->from_f32);
            continue;
        }
        assert_non_null(t->unpack);
        assert_non_null(t->pack);
        assert_int_equal(t->block_len % t->group_len, 0);
        assert_true(t->block_len <= TYPE_MAX_BLOCK && t->block_len / t->group_len <= TYPE_MAX_GROUPS);
        assert_int_equal(t->n_levels, t->id == LLMQ_TYPE_FP4 ? 15 : 1 << t->bits); /* its two zeros are one level */
        for (int k = 1; k < t->n_levels; k++) {
            if (t->uniform) assert_true(t->levels[k] == t->levels[k - 1] + 1);
            else assert_true(t->levels[k] > t->levels[k - 1]);
        }
    }
    assert_int_equal(n, N_TYPES);
    assert_int_equal(llmq_type_from_name("Q4_k"), LLMQ_TYPE_Q4_K);
    assert_int_equal(llmq_type_from_name("q4_"), LLMQ_TYPE_NONE);
    assert_int_equal(llmq_type_from_name("q4_kk"), LLMQ_TYPE_NONE);
    assert_int_equal(llmq_type_from_name(NULL), LLMQ_TYPE_NONE);
    assert_string_equal(llmq_type_name((llmq_type)4), "?");
    assert_null(type_info(LLMQ_TYPE_NONE));
    assert_null(type_info((llmq_type)1000));
    assert_int_equal(type_row_bytes((llmq_type)5, 32), -1);
}

/* Block byte i = (7 i + 3) & 255, d = 1, m or dmin = 0.5; values by index, and the sum. */
static void test_vectors(void **state) {
    (void)state;
    static const struct {
        llmq_type type;
        double sum;
        struct { int index; float value; } at[10];
    } rows[] = {
        {LLMQ_TYPE_Q4_0, -74, {{0, -7}, {1, 0}, {15, 2}, {16, -7}, {17, -7}, {31, -1}, {-1, 0}}},
        {LLMQ_TYPE_Q4_1, 212, {{0, 15.5f}, {1, 6.5f}, {15, 8.5f}, {16, 1.5f}, {17, 2.5f}, {31, 8.5f}, {-1, 0}}},
        {LLMQ_TYPE_Q5_0, -110, {{0, 13}, {1, -12}, {15, -10}, {16, 2}, {17, 3}, {31, -7}, {-1, 0}}},
        {LLMQ_TYPE_Q5_1, 480, {{0, 27.5f}, {1, 18.5f}, {15, 4.5f}, {16, 19.5f}, {17, 4.5f}, {31, 10.5f}, {-1, 0}}},
        {LLMQ_TYPE_Q8_0, -80, {{0, 17}, {1, 24}, {15, 122}, {16, -127}, {17, -120}, {31, -22}, {-1, 0}}},
        {LLMQ_TYPE_IQ4_NL, -969, {{0, -104}, {1, 1}, {15, 25}, {16, -104}, {17, -104}, {31, -10}, {-1, 0}}},
        {LLMQ_TYPE_IQ4_XS, 4227,
         {{0, -38}, {1, 83}, {16, 65}, {33, 2573}, {100, 300}, {127, -3390}, {128, -722}, {200, 780}, {255, -1102}, {-1, 0}}},
        {LLMQ_TYPE_Q2_K, 2588,
         {{0, 9}, {1, 6}, {16, 30}, {33, 1.5f}, {100, 25}, {127, 2.5f}, {128, 31.5f}, {200, -2.5f}, {255, -3}, {-1, 0}}},
        {LLMQ_TYPE_Q3_K, -2112,
         {{0, 57}, {1, -38}, {16, 30}, {33, -30}, {100, 39}, {127, -56}, {128, 6}, {200, -27}, {255, 58}, {-1, 0}}},
        {LLMQ_TYPE_Q4_K, 48352,
         {{0, 63.5f}, {1, 280.5f}, {16, 63.5f}, {33, 265}, {100, 304}, {127, 96}, {128, 18.5f}, {200, 44}, {255, 157}, {-1, 0}}},
        {LLMQ_TYPE_Q5_K, 100992,
         {{0, 559.5f}, {1, 280.5f}, {16, 559.5f}, {33, 797}, {100, 1032}, {127, 824}, {128, 130.5f}, {200, 44}, {255, 133}, {-1, 0}}},
        {LLMQ_TYPE_Q6_K, -31104,
         {{0, 1273}, {1, 670}, {16, 1406}, {33, 810}, {100, 1635}, {127, -580}, {128, 2337}, {200, 105}, {255, 2100}, {-1, 0}}},
    };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const llmq_type_info *t = type_info(rows[r].type);
        _Alignas(8) uint8_t block[MAX_BYTES];
        float x[TYPE_MAX_BLOCK];
        int fields[2], n_fields = f16_fields(t->id, fields);
        for (int i = 0; i < t->block_bytes; i++) block[i] = (uint8_t)(7 * i + 3);
        for (int i = 0; i < n_fields; i++) put_f16(block, fields[i], i ? 0.5f : 1.0f);
        type_to_f32(t->id, block, x, t->block_len);
        double sum = 0;
        for (int i = 0; i < t->block_len; i++) sum += x[i];
        assert_float_equal(sum, rows[r].sum, 0);
        for (int i = 0; rows[r].at[i].index >= 0; i++)
            assert_float_equal(x[rows[r].at[i].index], rows[r].at[i].value, 0);
    }
}

/* tests/data/make_types.py: random blocks and gguf-py's floats, bit for bit (but for the sign of zero). */
static void test_gguf_py(void **state) {
    (void)state;
    char *data;
    size_t len;
    llmq_err err;
    assert_int_equal(file_read(LLMQ_TEST_DATA "/types/blocks.bin", 1 << 20, &data, &len, &err), LLMQ_OK);
    int n_records = 0;
    for (size_t at = 0; at < len; n_records++) {
        int32_t head[4];
        _Alignas(8) uint8_t block[MAX_BYTES];
        float x[TYPE_MAX_BLOCK], want[TYPE_MAX_BLOCK];
        memcpy(head, data + at, sizeof head);
        at += sizeof head;
        const llmq_type_info *t = type_info((llmq_type)head[0]);
        assert_non_null(t);
        assert_int_equal(t->block_bytes, head[1]);
        assert_int_equal(t->block_len, head[2]);
        const char *blocks = data + at, *floats = blocks + (size_t)head[1] * (size_t)head[3];
        for (int b = 0; b < head[3]; b++) {
            memcpy(block, blocks + b * t->block_bytes, (size_t)t->block_bytes);
            memcpy(want, floats + (size_t)b * (size_t)t->block_len * 4, (size_t)t->block_len * 4);
            type_to_f32(t->id, block, x, t->block_len);
            for (int i = 0; i < t->block_len; i++) assert_true(x[i] == want[i]);
        }
        at += (size_t)head[3] * ((size_t)head[1] + (size_t)head[2] * 4);
        assert_true(at <= len);
    }
    assert_int_equal(n_records, N_GGUF - 1);
    mem_free(data);
}

static void test_pack_inverts_unpack(void **state) {
    (void)state;
    const llmq_type_info *t;
    for (size_t k = 0; (t = type_at(k)); k++) {
        for (int trial = 0; trial < 500 && !type_is_float(t); trial++) {
            _Alignas(8) uint8_t block[MAX_BYTES], again[MAX_BYTES];
            uint8_t codes[TYPE_MAX_BLOCK];
            llmq_grid grid;
            int fields[2], n_fields = f16_fields(t->id, fields);
            for (int i = 0; i < t->block_bytes; i++) block[i] = (uint8_t)random_u32();
            for (int i = 0; i < n_fields; i++)
                if ((block[fields[i] + 1] & 0x7c) == 0x7c) block[fields[i] + 1] ^= 4; /* no NaN */
            memset(again, 0xaa, sizeof again);
            t->unpack(block, &grid, codes);
            for (int i = 0; i < t->block_len; i++) assert_true(codes[i] < 1 << t->bits);
            t->pack(&grid, codes, again);
            assert_memory_equal(block, again, (size_t)t->block_bytes);
            assert_int_equal(again[t->block_bytes], 0xaa);
        }
    }
}

/* type_code against the definition (nearest of all levels, ties to the lower), and type_codes against type_code. */
static void test_codes_are_nearest(void **state) {
    (void)state;
    const llmq_type_info *t;
    for (size_t k = 0; (t = type_at(k)); k++) {
        if (type_is_float(t) || !type_can_encode(t)) continue;
        for (int trial = 0; trial < 20; trial++) {
            float x[TYPE_MAX_BLOCK], y[TYPE_MAX_BLOCK];
            uint8_t codes[TYPE_MAX_BLOCK];
            llmq_grid grid;
            for (int i = 0; i < t->block_len; i++) x[i] = heavy();
            t->fit(x, NULL, &grid);
            type_codes(t, &grid, x, t->block_len, codes);
            type_values(t, &grid, codes, t->block_len, y);
            for (int i = 0; i < t->block_len; i++) {
                int g = i / t->group_len;
                double best = INFINITY;
                for (int c = 0; c < t->n_levels; c++)
                    best = fmin(best, fabs((double)x[i] - type_value(t, &grid, g, (uint8_t)c)));
                double mine = fabs((double)x[i] - type_value(t, &grid, g, codes[i]));
                assert_true(mine <= best * (1 + 1e-5) + 1e-6 * fabs(x[i]));
                assert_int_equal(type_code(t, &grid, g, x[i]), codes[i]);
                assert_true(y[i] == type_value(t, &grid, g, codes[i]));
            }
        }
    }
}

static void test_code_ties_and_oddities(void **state) {
    (void)state;
    const llmq_type_info *t = type_info(LLMQ_TYPE_Q4_0), *n = type_info(LLMQ_TYPE_IQ4_NL);
    llmq_grid grid = {.scale = {2.0f}}, flipped = {.scale = {-2.0f}}, zero = {.scale = {0.0f}};
    assert_int_equal(type_code(t, &grid, 0, 1.0f), 8); /* between levels 0 and 1 */
    assert_int_equal(type_code(t, &grid, 0, -1.0f), 7);
    assert_int_equal(type_code(t, &flipped, 0, -1.0f), 8);
    assert_int_equal(type_code(t, &grid, 0, 1e30f), 15);
    assert_int_equal(type_code(t, &grid, 0, -1e30f), 0);
    assert_int_equal(type_code(t, &flipped, 0, -1e30f), 15);
    assert_int_equal(type_code(n, &grid, 0, 14.0f), 8); /* 7 is between levels 1 and 13 */
    assert_int_equal(type_code(n, &grid, 0, 14.1f), 9);
    assert_int_equal(type_code(n, &grid, 0, FLT_MAX), 15);
    const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(type_code(t, &grid, 0, odd[i]), 8);
        assert_int_equal(type_code(n, &grid, 0, odd[i]), 8); /* level 1 is nearest to 0 */
    }
    assert_int_equal(type_code(t, &zero, 0, 3.0f), 8);
    uint8_t codes[QK];
    float x[QK];
    for (int i = 0; i < QK; i++) x[i] = i % 5 ? (float)i : odd[i % 3];
    type_codes(t, &grid, x, t->block_len, codes);
    for (int i = 0; i < QK; i++) assert_int_equal(codes[i], type_code(t, &grid, 0, x[i]));
}

/* ---- quality ---- */

static double block_error(const llmq_type_info *t, const llmq_grid *grid, const float *x, const float *w) {
    uint8_t codes[TYPE_MAX_BLOCK];
    float y[TYPE_MAX_BLOCK];
    double sum = 0;
    type_codes(t, grid, x, t->block_len, codes);
    type_values(t, grid, codes, t->block_len, y);
    for (int i = 0; i < t->block_len; i++) sum += (w ? w[i] : 1.0) * ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sum;
}

/* What plain rounding does: the range of each group, without second-level rounding (a favour to it). */
static void naive_grid(const llmq_type_info *t, const float *x, llmq_grid *grid) {
    bool affine = t->levels[0] == 0;
    memset(grid, 0, sizeof *grid);
    for (int g = 0; g < t->block_len / t->group_len; g++, x += t->group_len) {
        float lo = 0, hi = 0;
        for (int i = 0; i < t->group_len; i++) {
            lo = fminf(lo, x[i]);
            hi = fmaxf(hi, x[i]);
        }
        float largest = -lo > hi ? lo : hi;
        grid->scale[g] = affine ? (hi - lo) / (float)(t->n_levels - 1) : largest / t->levels[0];
        grid->offset[g] = affine ? lo : 0.0f;
    }
}

typedef float draw_fn(void);

/* Sums over blocks: error of fit, of plain rounding, with importance w by a fit that knows w and by one that does not. */
typedef struct errors {
    double fit, naive, informed, uninformed, power;
} errors;

static errors measure(const llmq_type_info *t, draw_fn *draw, int n_blocks) {
    errors e = {0};
    for (int b = 0; b < n_blocks; b++) {
        float x[TYPE_MAX_BLOCK], w[TYPE_MAX_BLOCK];
        llmq_grid plain, informed, naive;
        for (int i = 0; i < t->block_len; i++) {
            x[i] = 0.02f * draw();
            float a = gaussian();
            w[i] = expf(2.0f * a);
            e.power += (double)x[i] * x[i];
        }
        t->fit(x, NULL, &plain);
        t->fit(x, w, &informed);
        naive_grid(t, x, &naive);
        e.fit += block_error(t, &plain, x, NULL);
        e.naive += block_error(t, &naive, x, NULL);
        e.informed += block_error(t, &informed, x, w);
        e.uninformed += block_error(t, &plain, x, w);
    }
    return e;
}

static void test_fit_quality(void **state) {
    (void)state;
    /* Relative squared error of gaussian blocks that each width must reach (rate-distortion halves the amplitude a bit). */
    static const double bound[9] = {0, 0, 0.09, 0.03, 0.0085, 0.0023, 0.0006, 0, 4.5e-5};
    const llmq_type_info *t;
    for (size_t k = 0; (t = type_at(k)); k++) {
        if (type_is_float(t) || !type_can_encode(t)) continue;
        int n_blocks = 16384 / t->block_len;
        errors e = measure(t, gaussian, n_blocks), h = measure(t, heavy, n_blocks);
        print_message("%-7s gaussian %.3e (plain %.3e) heavy %.3e (plain %.3e); weighted %.3f of unweighted\n", t->name,
                      e.fit / e.power, e.naive / e.power, h.fit / h.power, h.naive / h.power, e.informed / e.uninformed);
        assert_true(e.fit / e.power < bound[t->bits]);
        /* 6 and 8 bits: plain rounding is near the optimum, and here it has no second-level rounding. */
        double slack = t->bits >= 6 ? 1.05 : 0.95;
        assert_true(e.fit < slack * e.naive);
        assert_true(h.fit < slack * h.naive);
        assert_true(e.informed < e.uninformed);
        assert_true(h.informed < h.uninformed);
    }
}

/* The least error of a block of type t over very many scales. */
static double exhaustive(const llmq_type_info *t, const float *x, const float *w) {
    float amax = 0;
    double best = INFINITY;
    for (int i = 0; i < QK; i++) amax = fmaxf(amax, fabsf(x[i]));
    for (int k = -1500; k <= 1500; k++) {
        llmq_grid grid = {.scale = {f16_to_f32(f32_to_f16(amax / -t->levels[0] * 1.5f * (float)k / 1500))}};
        if (grid.scale[0] != 0.0f) best = fmin(best, block_error(t, &grid, x, w));
    }
    return best;
}

static void test_fit_is_near_the_optimum(void **state) {
    (void)state;
    static const llmq_type types[] = {LLMQ_TYPE_Q4_0, LLMQ_TYPE_Q5_0, LLMQ_TYPE_IQ4_NL};
    for (int k = 0; k < 3; k++) {
        const llmq_type_info *t = type_info(types[k]);
        double mine = 0, best = 0;
        for (int b = 0; b < 60; b++) {
            float x[QK], w[QK];
            llmq_grid grid;
            for (int i = 0; i < QK; i++) {
                x[i] = heavy();
                w[i] = expf(gaussian());
            }
            t->fit(x, w, &grid);
            mine += block_error(t, &grid, x, w);
            best += exhaustive(t, x, w);
        }
        print_message("%s: error %.4f of the optimum\n", t->name, mine / best);
        assert_true(mine < 1.02 * best);
    }
}

static void check_degenerate(const llmq_type_info *t, const float *x, const float *w) {
    llmq_grid grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    _Alignas(8) uint8_t block[MAX_BYTES];
    float y[TYPE_MAX_BLOCK];
    memset(&grid, 0xff, sizeof grid);
    t->fit(x, w, &grid);
    for (int g = 0; g < t->block_len / t->group_len; g++) {
        assert_true(isfinite(grid.scale[g]));
        assert_true(isfinite(grid.offset[g]));
    }
    type_codes(t, &grid, x, t->block_len, codes);
    t->pack(&grid, codes, block);
    type_to_f32(t->id, block, y, t->block_len);
    for (int i = 0; i < t->block_len; i++) {
        int g = i / t->group_len;
        /* The grid is as stored. */
        assert_true(y[i] == type_value(t, &grid, g, codes[i]));
        assert_true(isfinite(y[i]));
        if (x[i] == 0.0f) assert_true(fabsf(y[i]) <= 1e9f);
    }
}

static void test_degenerate_blocks(void **state) {
    (void)state;
    const float specials[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-7f, 6e-8f, 1e-40f, 3e38f, -3e38f, 1e5f, -70000.0f, 1.0f, NAN,
                              INFINITY, -INFINITY};
    const int n = (int)(sizeof specials / sizeof *specials);
    const llmq_type_info *t;
    for (size_t k = 0; (t = type_at(k)); k++) {
        if (type_is_float(t) || !type_can_encode(t)) continue;
        float x[TYPE_MAX_BLOCK], w[TYPE_MAX_BLOCK];
        for (int s = 0; s < n; s++) { /* constant blocks */
            for (int i = 0; i < t->block_len; i++) x[i] = specials[s];
            check_degenerate(t, x, NULL);
            for (int i = 0; i < t->block_len; i++) x[i] = i == 3 ? specials[s] : 0.01f * gaussian();
            check_degenerate(t, x, NULL);
        }
        for (int trial = 0; trial < 200; trial++) {
            int few = 1 + (int)(random_u32() % 15);
            for (int i = 0; i < t->block_len; i++) {
                x[i] = random_u32() % 3 ? specials[random_u32() % (uint32_t)few] : gaussian();
                w[i] = random_u32() % 2 ? specials[random_u32() % 15] : random_unit();
            }
            check_degenerate(t, x, w);
        }
    }
}

static void test_zero_weights_stay_zero(void **state) {
    (void)state;
    const llmq_type_info *t;
    for (size_t k = 0; (t = type_at(k)); k++) {
        if (!type_can_encode(t)) continue;
        _Alignas(8) uint8_t row[4 * MAX_BYTES];
        float x[TYPE_MAX_BLOCK] = {0}, y[TYPE_MAX_BLOCK];
        assert_int_equal(type_from_f32(t->id, x, NULL, row, TYPE_MAX_BLOCK, NULL), LLMQ_OK);
        type_to_f32(t->id, row, y, TYPE_MAX_BLOCK);
        for (int i = 0; i < TYPE_MAX_BLOCK; i++) assert_true(y[i] == 0.0f);
    }
}

static void test_importance_without_meaning(void **state) {
    (void)state;
    const llmq_type_info *t;
    for (size_t k = 0; (t = type_at(k)); k++) { /* all-zero importance counts as none */
        if (type_is_float(t) || !type_can_encode(t)) continue;
        float x[TYPE_MAX_BLOCK], w[TYPE_MAX_BLOCK] = {0};
        llmq_grid a, b;
        for (int i = 0; i < t->block_len; i++) x[i] = gaussian();
        t->fit(x, NULL, &a);
        t->fit(x, w, &b);
        assert_memory_equal(a.scale, b.scale, sizeof(float) * (size_t)(t->block_len / t->group_len));
        for (int i = 0; i < t->block_len; i++) w[i] = 1e20f; /* a constant factor changes nothing */
        t->fit(x, w, &b);
        assert_memory_equal(a.scale, b.scale, sizeof(float) * (size_t)(t->block_len / t->group_len));
    }
}

static void test_rows(void **state) {
    (void)state;
    enum { N = 1024 };
    const llmq_type_info *t;
    float *x = mem_alloc(N, sizeof *x), *y = mem_alloc(N, sizeof *y);
    uint8_t *row = mem_alloc(N, 4), *again = mem_alloc(N, 4);
    llmq_err err;
    for (int i = 0; i < N; i++) x[i] = 0.02f * gaussian();
    for (size_t k = 0; (t = type_at(k)); k++) {
        if (t->in_memory) {
            assert_int_equal(type_from_f32(t->id, x, NULL, row, N, &err), LLMQ_E_UNSUPPORTED);
            continue;
        }
        assert_int_equal(type_from_f32(t->id, x, NULL, row, N, &err), LLMQ_OK);
        type_to_f32(t->id, row, y, N);
        double error = 0, power = 0;
        for (int i = 0; i < N; i++) {
            error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
            power += (double)x[i] * x[i];
        }
        if (t->id == LLMQ_TYPE_F32) assert_memory_equal(x, y, N * sizeof *x);
        if (type_is_float(t)) { /* a second trip changes nothing */
            assert_true(error / power < 1e-5);
            assert_int_equal(type_from_f32(t->id, y, NULL, again, N, &err), LLMQ_OK);
            assert_memory_equal(row, again, (size_t)type_row_bytes(t->id, N));
        } else {
            assert_true(error / power < 0.1);
        }
    }
    assert_int_equal(type_from_f32(LLMQ_TYPE_Q4_0, x, NULL, row, 33, &err), LLMQ_E_ARG);
    assert_non_null(strstr(err.msg, "q4_0"));
    assert_int_equal(type_from_f32((llmq_type)9, x, NULL, row, 32, &err), LLMQ_E_UNSUPPORTED);
    mem_free(x);
    mem_free(y);
    mem_free(row);
    mem_free(again);
}

/* The sums of four guesses against double precision, and the same bits on every machine. */
static void test_search_rests(void **state) {
    (void)state;
    enum { N = 64 };
    static const char *const isas[] = {"c", "avx2", "avx512"};
    const float levels[] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    const llmq_search s = {.levels = levels, .n_levels = 16, .uniform = true};
    float x[N], w[N], xs[SEARCH_GUESSES * N], ws[SEARCH_GUESSES * N];
    for (int i = 0; i < N; i++) x[i] = heavy(), w[i] = random_unit();
    search_repeat(x, N, xs);
    search_repeat(w, N, ws);
    assert_null(search_rests_isa("sse9"));
    for (int n = 16; n <= N; n += 16)
        for (int offsets = 0; offsets < 2; offsets++) {
            search_guesses first = {0};
            for (int k = 0; k < SEARCH_GUESSES; k++) {
                first.scale[k] = (k % 2 ? -0.1f : 0.1f) * (float)(k + 1);
                first.inv[k] = 1.0f / first.scale[k];
                first.offset[k] = offsets ? gaussian() : 0;
            }
            for (int isa = 0; isa < 3; isa++) {
                search_rests_fn *fn = search_rests_isa(isas[isa]);
                search_guesses g = first;
                if (!fn) continue;
                fn(&s, offsets, xs, ws, n, &g);
                if (isa > 0) assert_memory_equal(&g, &first, sizeof g);
                first = g;
            }
            for (int k = 0; k < SEARCH_GUESSES; k++) {
                double q = 0, qq = 0, r = 0, rq = 0, rr = 0;
                for (int i = 0; i < n; i++) {
                    float v = x[i] * first.inv[k] - first.offset[k] * first.inv[k];
                    double level = rintf(v < -8 ? -8 : v > 7 ? 7 : v);
                    double rest = (double)x[i] - level * first.scale[k] - first.offset[k];
                    q += w[i] * level, qq += w[i] * level * level;
                    r += w[i] * rest, rq += w[i] * rest * level, rr += w[i] * rest * rest;
                }
                const search_rests *got = &first.rests[k];
                assert_true(fabs(got->qq - qq) < 1e-4 * (1 + qq) && fabs(got->rr - rr) < 1e-4 * (1 + rr));
                assert_true(fabs(got->rq - rq) < 1e-4 * (1 + sqrt(qq * rr)));
                if (offsets) assert_true(fabs(got->q - q) < 1e-3 && fabs(got->r - r) < 1e-3);
            }
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_gguf_py),
        cmocka_unit_test(test_pack_inverts_unpack),
        cmocka_unit_test(test_codes_are_nearest),
        cmocka_unit_test(test_code_ties_and_oddities),
        cmocka_unit_test(test_fit_quality),
        cmocka_unit_test(test_fit_is_near_the_optimum),
        cmocka_unit_test(test_degenerate_blocks),
        cmocka_unit_test(test_zero_weights_stay_zero),
        cmocka_unit_test(test_importance_without_meaning),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_search_rests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
