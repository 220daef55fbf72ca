/* The tile registers of tiles.h against formulas for one element: products of every shape, memory, what must fail.
 * Compiled twice, as intrinsics.c: on the emulation, and for the hardware, where the processor has tiles and the system
 * lets a process use them. */
#include "tests/emu512/check.h"

#include <stdlib.h>

#include "cpu/cpu.h"

#ifdef LLMQ_TESTS_EMU512_H
#define NEEDED CPU_ISA_AVX2
#else
#define NEEDED CPU_ISA_AMX
#endif
#define ROUNDS 600

typedef union tile {
    vec row[16];
    uint8_t bytes[1024];
} tile;

/* Shapes of tiles, as memory has them. */
typedef struct config {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} config;

/* The compiler may not know what a tile is loaded from. */
static void load_config(const config *c) {
    __asm__ volatile("" : : "r"(c) : "memory");
    _tile_loadconfig(c);
}
#define LOAD(n, from, stride)                                                                                          \
    do {                                                                                                               \
        __asm__ volatile("" : : : "memory");                                                                           \
        _tile_loadd(n, from, stride);                                                                                  \
    } while (0)

/* Sums in tile 0 (m x n words), factors in 1 (m x k words) and 2 (k x n words). */
typedef struct shape {
    int m, k, n;
} shape;

static shape any_shape(void) {
    shape s = {1 + (int)(rng() % 16), 1 + (int)(rng() % 16), 1 + (int)(rng() % 16)};
    return rng() % 4 ? s : (shape){16, 16, 16};
}
static void configure(shape s) {
    config c = {.palette = 1,
                .bytes = {(uint16_t)(4 * s.n), (uint16_t)(4 * s.k), (uint16_t)(4 * s.n)},
                .rows = {(uint8_t)s.m, (uint8_t)s.m, (uint8_t)s.k}};
    load_config(&c);
}
static tile any_tile(void) {
    tile t;
    for (int r = 0; r < 16; r++) t.row[r] = any();
    return t;
}

/* got: sums, where there are any; what is behind them stays as it was. */
#define PRODUCT(name, begin, make, field, formula)                                                                     \
    static void name(void **state) {                                                                                   \
        (void)state;                                                                                                   \
        for (int round = 0; round < ROUNDS; round++) {                                                                 \
            shape s = any_shape();                                                                                     \
            tile sum = begin(round), a = make(round), b = make(round), got = sum;                                      \
            configure(s);                                                                                              \
            LOAD(0, &sum, 64);                                                                                         \
            LOAD(1, &a, 64);                                                                                           \
            LOAD(2, &b, 64);                                                                                           \
            _tile_##name(0, 1, 2);                                                                                     \
            _tile_stored(0, &got, 64);                                                                                 \
            _tile_release();                                                                                           \
            for (int m = 0; m < 16; m++)                                                                               \
                for (int n = 0; n < 16; n++) {                                                                         \
                    vec want = {.u = {sum.row[m].u[n]}}, is = {.u = {got.row[m].u[n]}};                                \
                    if (m < s.m && n < s.n) want.field[0] = formula(sum.row[m].field[n], &a.row[m], &b, n, s.k);       \
                    if (!same_##field(&want.field[0], &is.field[0]))                                                   \
                        fail_msg(#name ": row %d of %d, word %d of %d, depth %d differs: %08x, not %08x, round %d", m, \
                                 s.m, n, s.n, s.k, is.u[0], want.u[0], round);                                         \
                }                                                                                                      \
        }                                                                                                              \
    }

/* ---- bf16 */

/* Anything; numbers around 1; numbers whose products are around the least normal one. */
static tile floats(int round) {
    tile t = any_tile();
    uint32_t lowest = round % 3 == 1 ? 120 : 55;
    for (int r = 0; round % 3 && r < 16; r++)
        for (int j = 0; j < 32; j++) {
            uint16_t *x = &t.row[r].uh[j];
            *x = (uint16_t)((*x & 0x807f) | (lowest + rng() % 12) << 7);
        }
    return t;
}
static tile float_sums(int round) {
    tile t = any_tile();
    for (int r = 0; round % 3 && r < 16; r++)
        for (int j = 0; j < 16; j++)
            t.row[r].u[j] = (t.row[r].u[j] & 0x807fffff) | (rng() % 12 + (round % 3 == 1 ? 120 : 0)) << 23;
    return t;
}
static float dot_bf16(float sum, const vec *a, const tile *b, int n, int depth) {
    float part[2] = {0, 0};
    for (int k = 0; k < depth; k++)
        for (int l = 0; l < 2; l++)
            part[l] =
                flush(fmaf(flush(from_bf16(a->uh[2 * k + l])), flush(from_bf16(b->row[k].uh[2 * n + l])), part[l]));
    return flush(flush(sum) + flush(part[0] + part[1]));
}
PRODUCT(dpbf16ps, float_sums, floats, f, dot_bf16)

/* ---- bytes */

static bool same_u(const uint32_t *a, const uint32_t *b) {
    return *a == *b;
}
static tile bytes(int round) {
    (void)round;
    return any_tile();
}
#define BYTES(name, of_a, of_b)                                                                                        \
    static uint32_t dot_##name(uint32_t sum, const vec *a, const tile *b, int n, int depth) {                          \
        for (int k = 0; k < 4 * depth; k++)                                                                            \
            sum += (uint32_t)((int)a->of_a[k] * (int)b->row[k / 4].of_b[4 * n + k % 4]);                               \
        return sum;                                                                                                    \
    }                                                                                                                  \
    PRODUCT(name, bytes, bytes, u, dot_##name)
BYTES(dpbssd, b, b)
BYTES(dpbsud, b, ub)
BYTES(dpbusd, ub, b)
BYTES(dpbuud, ub, ub)

/* ---- memory: rows with gaps or without, to the very end of a page; a stride of 0 repeats a row */

static void check_memory(char *end, shape s, bool stream) {
    int64_t bytes = 4 * s.n, stride = rng() % 5 ? bytes + (int64_t)(rng() % 100) : 0;
    char *p = end - (s.m - 1) * stride - bytes, before[16 * 200];
    size_t span = (size_t)(end - p);
    for (size_t i = 0; i < span; i++) before[i] = p[i] = (char)rng();
    tile got;
    memset(&got, 0xa5, sizeof got);
    configure(s);
    if (stream) {
        __asm__ volatile("" : : : "memory");
        _tile_stream_loadd(0, p, stride);
    } else {
        LOAD(0, p, stride);
    }
    _tile_stored(0, &got, 64);
    for (int r = 0; r < 16; r++)
        for (int j = 0; j < 64; j++)
            assert_int_equal(got.row[r].ub[j], r < s.m && j < bytes ? (uint8_t)p[r * stride + j] : 0xa5);
    tile other = any_tile();
    LOAD(0, &other, 64);
    _tile_stored(0, p, stride);
    _tile_release();
    for (int r = 0; r < s.m; r++)
        for (int64_t j = 0; j < bytes || j < stride; j++) {
            if (stride == 0 && r < s.m - 1) continue; /* the last row lies over it */
            if (r == s.m - 1 && j >= bytes) continue;
            char want = j < bytes ? (char)other.row[r].b[j] : before[r * stride + j];
            assert_int_equal(p[r * stride + j], want);
        }
}

static void loadd_stored(void **state) {
    for (int round = 0; round < ROUNDS; round++) check_memory(*state, any_shape(), round % 2);
}

static void zero(void **state) {
    (void)state;
    tile t = any_tile();
    configure((shape){16, 16, 16});
    LOAD(0, &t, 64);
    _tile_zero(0);
    _tile_stored(0, &t, 64);
    _tile_release();
    for (int i = 0; i < 1024; i++) assert_int_equal(t.bytes[i], 0);
}

/* A configuration begins with zeros. */
static void loadconfig(void **state) {
    (void)state;
    tile t = any_tile();
    configure((shape){16, 16, 16});
    LOAD(0, &t, 64);
    configure((shape){16, 16, 16});
    _tile_stored(0, &t, 64);
    _tile_release();
    for (int i = 0; i < 1024; i++) assert_int_equal(t.bytes[i], 0);
}

/* ---- what must fail */

#ifdef LLMQ_TESTS_EMU512_H
enum { FAULTS = 15 };
#else
enum { FAULTS = 14 };
#endif
static void misuse(int what) {
    static tile t;
    config c = {.palette = 1, .bytes = {64, 64, 64}, .rows = {16, 16, 16}};
    if (what == 0) c.palette = 2;
    if (what == 1) c.rows[1] = 17;
    if (what == 2) c.bytes[1] = 68;
    if (what == 3) c.reserved[5] = 1;
    if (what == 4) c.rows[1] = 0;
    if (what == 5) c.bytes[1] = 0;
    if (what == 6) c.rows[8] = 16, c.bytes[8] = 64;
    if (what == 7) c.palette = 0;
    if (what == 8) c.rows[1] = 15;
    if (what == 9) c.bytes[1] = 60;
    if (what == 10) c.bytes[2] = 60;
    if (what == 11) c.bytes[0] = c.bytes[2] = 62;
    if (what == 12) c.rows[3] = c.bytes[3] = 0;
    load_config(&c);
    if (what == 13) _tile_release();
    if (what == 12) LOAD(3, &t, 64);
    if (what == 7) _tile_zero(0);
#ifdef LLMQ_TESTS_EMU512_H
    if (what == 14) _tile_dpbssd(0, 1, 1); /* no text for an assembler */
#endif
    _tile_dpbssd(0, 1, 2);
    _tile_release();
}
static void release(void **state) {
    (void)state;
    assert_false(dies(misuse, -1));
    for (int what = 0; what < FAULTS; what++)
        if (!dies(misuse, what)) fail_msg("misuse %d works", what);
}

/* Apart from main, which must run where this would not. */
static __attribute__((noinline)) int run(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dpbf16ps), cmocka_unit_test(dpbssd),     cmocka_unit_test(dpbsud),
        cmocka_unit_test(dpbusd),   cmocka_unit_test(dpbuud),     cmocka_unit_test(loadd_stored),
        cmocka_unit_test(zero),     cmocka_unit_test(loadconfig), cmocka_unit_test(release),
    };
    return cmocka_run_group_tests(tests, page_make, NULL);
}

int main(void) {
    if (cpu_detect() >= NEEDED) return run();
    printf("this machine lacks the instructions, or its system does not grant them\n");
    return 77;
}
