/* The emulator's instructions against the vectors of ptx.md 10: literals, made from the descriptions in the PTX manual
 * by a script of their own, not by this code. Left out is what ptx.cuh does not wrap (4-bit mma, .satfinite, dp2a,
 * shf). */
#include "emu.h"

#include <cmath>

#include "core/half.h"

static const int vector_lanes[3] = {0, 5, 31};

/* ---- fragments. A tile goes into registers through shared memory and ldmatrix, whose layout has vectors of its own.
 */

/* Registers of A (16 x 16 halves) by the rule of ptx.md 1.1, written out here once more. */
static void a_registers(int lane, const std::function<uint16_t(int, int)> &of, uint32_t (&a)[4]) {
    int g = lane / 4, t = lane % 4;
    const int rows[4] = {g, g + 8, g, g + 8}, ks[4] = {2 * t, 2 * t, 2 * t + 8, 2 * t + 8};
    for (int r = 0; r < 4; r++) a[r] = of(rows[r], ks[r]) | uint32_t{of(rows[r], ks[r] + 1)} << 16;
}
static void b_registers(int lane, const std::function<uint16_t(int, int)> &of, uint32_t (&b)[2]) {
    int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 2; r++) b[r] = of(2 * t + 8 * r, g) | uint32_t{of(2 * t + 8 * r + 1, g)} << 16;
}
static void a_registers_s8(int lane, const std::function<int(int, int)> &of, uint32_t (&a)[4]) {
    int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; r++) {
        a[r] = 0;
        for (int e = 0; e < 4; e++)
            a[r] |= (static_cast<uint32_t>(of(g + 8 * (r & 1), 4 * t + 16 * (r >> 1) + e)) & 255) << 8 * e;
    }
}
static void b_registers_s8(int lane, const std::function<int(int, int)> &of, uint32_t (&b)[2]) {
    int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 2; r++) {
        b[r] = 0;
        for (int e = 0; e < 4; e++) b[r] |= (static_cast<uint32_t>(of(4 * t + 16 * r + e, g)) & 255) << 8 * e;
    }
}

static uint16_t half_of(double x) {
    return f32_to_f16(static_cast<float>(x));
}
static uint16_t bfloat_of(double x) {
    return f32_to_bf16(static_cast<float>(x));
}

static void test_fragments(void **) { /* vectors 1, 2, 6: what a tile looks like in registers */
    static const uint32_t f16[3][4] = {{0x3c000000, 0x58085800, 0x48804800, 0x58485840},
                                       {0x4cc04c80, 0x58985890, 0x4ec04e80, 0x58d858d0},
                                       {0x57705760, 0x5bb85bb0, 0x57f057e0, 0x5bf85bf0}};
    static const uint32_t bf16[3] = {0x43094308, 0x431b431a, 0x437f437e};
    static const uint32_t s8[3][4] = {{0x03020100, 0x03020100, 0x13121110, 0x13121110},
                                      {0x17161514, 0x17161514, 0x27262524, 0x27262524},
                                      {0x7f7e7d7c, 0x7f7e7d7c, 0x0f0e0d0c, 0x0f0e0d0c}};
    for (int i = 0; i < 3; i++) {
        uint32_t a[4];
        a_registers(
            vector_lanes[i], [](int m, int k) { return half_of(16 * m + k); }, a);
        for (int r = 0; r < 4; r++) assert_int_equal(a[r], f16[i][r]);
        a_registers(
            vector_lanes[i], [](int m, int k) { return bfloat_of(16 * m + k); }, a);
        assert_int_equal(a[3], bf16[i]);
        a_registers_s8(
            vector_lanes[i], [](int m, int k) { return (16 * m + k) & 127; }, a);
        for (int r = 0; r < 4; r++) assert_int_equal(a[r], s8[i][r]);
    }
}

static void test_mma_layout(void **) { /* vectors 3, 4 for f16 and bf16 */
    static const float identity[3][4] = {{0, 1, 128, 129}, {18, 19, 146, 147}, {118, 119, 246, 247}};
    static const float shifted[3][4] = {{3, 19, 11, 27}, {36, 52, 44, 60}, {106, 122, 98, 114}};
    float d[32][4][4];
    warp([&](int lane) {
        for (int test = 0; test < 4; test++) {
            auto number = test & 1 ? bfloat_of : half_of;
            uint32_t a[4], b[2];
            for (float &x : d[lane][test]) x = 0;
            if (test < 2) {
                a_registers(
                    lane, [=](int m, int k) { return number(16 * m + k); }, a);
                b_registers(
                    lane, [=](int k, int n) { return number(k == n); }, b);
            } else {
                a_registers(
                    lane, [=](int m, int k) { return number(k == (m + 3) % 16); }, a);
                b_registers(
                    lane, [=](int k, int n) { return number(16 * n + k); }, b);
            }
            if (test & 1)
                mma_bf16(d[lane][test], a, b);
            else
                mma_f16(d[lane][test], a, b);
        }
    });
    for (int i = 0; i < 3; i++)
        for (int c = 0; c < 4; c++)
            for (int test = 0; test < 4; test++)
                assert_true(d[vector_lanes[i]][test][c] == (test < 2 ? identity : shifted)[i][c]);
}

static void test_mma_s8(void **) { /* vectors 5 and 8 */
    static const int32_t want[3][4] = {{-1, 7, -17, -9}, {13, 21, -3, 5}, {33, 41, 17, 25}};
    int32_t d[32][4], wrapped[32][4];
    warp([&](int lane) {
        uint32_t a[4], b[2];
        a_registers_s8(
            lane, [](int m, int k) { return k == 2 * m + 1 ? -1 : 0; }, a);
        b_registers_s8(
            lane, [](int k, int n) { return k - 8 * n; }, b);
        for (int32_t &x : d[lane]) x = 0;
        mma_s8(d[lane], a, b);
        a_registers_s8(
            lane, [](int, int k) { return k == 9; }, a);
        b_registers_s8(
            lane, [](int k, int) { return k == 9; }, b);
        for (int32_t &x : wrapped[lane]) x = 0x7fffffff;
        mma_s8(wrapped[lane], a, b);
    });
    for (int i = 0; i < 3; i++)
        for (int c = 0; c < 4; c++) {
            assert_int_equal(d[vector_lanes[i]][c], want[i][c]);
            assert_int_equal(static_cast<uint32_t>(wrapped[vector_lanes[i]][c]), 0x80000000u);
        }
}

static void test_mma_s8_k16(void **) { /* the k32 form with its upper half empty is the k16 form (rule 1.1) */
    int32_t wide[32][4] = {}, narrow[32][4] = {};
    auto weight = [](int m, int k) { return (7 * m + 3 * k) % 251 - 125; };
    auto input = [](int k, int n) { return (11 * k + 5 * n) % 253 - 126; };
    warp([&](int lane) {
        uint32_t a[4], b[2];
        a_registers_s8(
            lane, [=](int m, int k) { return k < 16 ? weight(m, k) : 0; }, a);
        b_registers_s8(
            lane, [=](int k, int n) { return k < 16 ? input(k, n) : 0; }, b);
        const uint32_t low[2] = {a[0], a[1]};
        mma_s8(wide[lane], a, b);
        mma_s8_k16(narrow[lane], low, b[0]);
    });
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2, sum = 0;
            for (int k = 0; k < 16; k++) sum += weight(row, k) * input(k, column);
            assert_int_equal(narrow[lane][i], sum);
            assert_int_equal(wide[lane][i], sum);
        }
}

/* One row of products a[k] * b[k] and c, in every element. */
static float sum_of(emu_tensor_core model, float c, const std::function<double(int)> &a,
                    const std::function<double(int)> &b) {
    float d[32][4];
    emu_set_tensor_core(model);
    warp([&](int lane) {
        uint32_t fa[4], fb[2];
        a_registers(
            lane, [&](int, int k) { return half_of(a(k)); }, fa);
        b_registers(
            lane, [&](int k, int) { return half_of(b(k)); }, fb);
        for (float &x : d[lane]) x = c;
        mma_f16(d[lane], fa, fb);
    });
    emu_set_tensor_core(EMU_GROUPS_OF_16);
    for (auto &lane : d)
        for (float x : lane) assert_memory_equal(&x, &d[0][0], sizeof x);
    return d[0][0];
}

static void test_mma_sums(void **) { /* vectors 9, 10, 11 */
    auto one = [](int) { return 1.0; };
    auto halves = [](int) { return 0.5; };
    assert_true(sum_of(EMU_GROUPS_OF_8, 16777216, one, halves) == 16777216);
    assert_true(sum_of(EMU_GROUPS_OF_16, 16777216, one, halves) == 16777224);
    for (emu_tensor_core model : {EMU_GROUPS_OF_8, EMU_GROUPS_OF_16}) {
        assert_true(sum_of(model, 16777216, one, [](int k) { return k == 0 ? 3.0 : 0.0; }) == 16777218);
        assert_true(sum_of(model, -16777216, one, [](int k) { return k == 0 ? -3.0 : 0.0; }) == -16777218);
    }
    auto big = [](int k) { return k < 2 ? 4096.0 : 0.5; };
    auto signs = [](int k) { return k == 0 ? 4096.0 : k == 1 ? -4096.0 : 0.5; };
    assert_true(sum_of(EMU_GROUPS_OF_8, 0, big, signs) == 2.0f);
    assert_true(sum_of(EMU_GROUPS_OF_16, 0, big, signs) == 0.0f);
}

static void test_mma_special(void **) { /* 1.3: subnormal inputs count; NaN and infinities come through */
    auto first = [](double x) { return [=](int k) { return k == 0 ? x : 0.0; }; };
    auto one = [](int) { return 1.0; };
    const double tiny = std::ldexp(1.0, -24);
    assert_true(sum_of(EMU_GROUPS_OF_16, 0, first(tiny), one) == static_cast<float>(tiny));
    assert_true(sum_of(EMU_GROUPS_OF_8, 0, first(tiny), first(tiny)) == static_cast<float>(tiny * tiny));
    assert_true(std::isinf(sum_of(EMU_GROUPS_OF_8, 1, first(INFINITY), one)));
    assert_true(std::isnan(sum_of(EMU_GROUPS_OF_16, -INFINITY, first(INFINITY), one)));
    assert_true(std::isnan(sum_of(EMU_GROUPS_OF_16, 0, first(NAN), one)));
    assert_true(std::isnan(sum_of(EMU_GROUPS_OF_16, 0, first(INFINITY), first(0))));
}

/* ---- ldmatrix: vectors 12 and 13, and the recipes of ptx.md 2 */

static void test_ldmatrix(void **) {
    static const uint32_t plain[3][4] = {{0x00010000, 0x02010200, 0x00090008, 0x02090208},
                                         {0x00430042, 0x02430242, 0x004b004a, 0x024b024a},
                                         {0x01c701c6, 0x03c703c6, 0x01cf01ce, 0x03cf03ce}};
    static const uint32_t trans[3][4] = {{0x00400000, 0x02400200, 0x00480008, 0x02480208},
                                         {0x00c10081, 0x02c10281, 0x00c90089, 0x02c90289},
                                         {0x01c70187, 0x03c70387, 0x01cf018f, 0x03cf038f}};
    uint32_t r[32][4], rt[32][4];
    warp([&](int lane) {
        SHARED(uint16_t, tile, 16 * 64);
        for (int i = lane; i < 16 * 64; i += 32) tile[i] = static_cast<uint16_t>(i);
        __syncwarp();
        ldmatrix_x4(r[lane], tile + (lane % 16 * 64 + lane / 16 * 8));
        ldmatrix_x4_trans(rt[lane], tile + (lane % 16 * 64 + lane / 16 * 8));
    });
    for (int i = 0; i < 3; i++)
        for (int m = 0; m < 4; m++) {
            assert_int_equal(r[vector_lanes[i]][m], plain[i][m]);
            assert_int_equal(rt[vector_lanes[i]][m], trans[i][m]);
        }
}

/* ---- shuffles: vectors 14 and 15 */

static void test_shuffles(void **) {
    const struct {
        int mode, lane, b, width, want;
    } cases[] = {
        {emu::SHFL_UP, 8, 1, 8, 8},     {emu::SHFL_UP, 5, 33, 32, 4},    {emu::SHFL_DOWN, 7, 1, 8, 7},
        {emu::SHFL_DOWN, 5, 32, 32, 5}, {emu::SHFL_XOR, 0, 8, 8, 0},     {emu::SHFL_XOR, 8, 8, 8, 0},
        {emu::SHFL_XOR, 31, 8, 8, 23},  {emu::SHFL_IDX, 0, 9, 8, 1},     {emu::SHFL_IDX, 17, 9, 8, 17},
        {emu::SHFL_IDX, 3, -1, 8, 7},   {emu::SHFL_IDX, 4, 35, 32, 3},   {emu::SHFL_XOR, 3, 33, 32, 2},
        {emu::SHFL_UP, 0, 1, 32, 0},    {emu::SHFL_DOWN, 31, 1, 32, 31},
    };
    for (auto &c : cases) {
        int got = -1;
        warp([&](int lane) {
            int v = c.mode == emu::SHFL_UP     ? __shfl_up_sync(WARP_ALL, lane, static_cast<unsigned>(c.b), c.width)
                    : c.mode == emu::SHFL_DOWN ? __shfl_down_sync(WARP_ALL, lane, static_cast<unsigned>(c.b), c.width)
                    : c.mode == emu::SHFL_XOR  ? __shfl_xor_sync(WARP_ALL, lane, c.b, c.width)
                                               : __shfl_sync(WARP_ALL, lane, c.b, c.width);
            if (lane == c.lane) got = v;
        });
        if (got != c.want) fail_msg("mode %d lane %d b %d width %d: %d", c.mode, c.lane, c.b, c.width, got);
    }
}

static void test_votes(void **) { /* ptx.md 4.2 */
    unsigned ballot[32], some[32], match[32], sum[32];
    int most[32];
    bool any[32], all[32];
    warp([&](int lane) {
        auto u = static_cast<unsigned>(lane);
        ballot[lane] = __ballot_sync(WARP_ALL, lane % 3 == 0);
        match[lane] = __match_any_sync(WARP_ALL, u / 8);
        sum[lane] = __reduce_add_sync(WARP_ALL, u);
        most[lane] = __reduce_max_sync(WARP_ALL, -lane);
        any[lane] = __any_sync(WARP_ALL, lane == 40);
        all[lane] = __all_sync(WARP_ALL, lane < 32);
        some[lane] = lane < 8 ? __ballot_sync(0xffu, lane != 3) : 0;
    });
    assert_int_equal(ballot[7], 0x49249249u);
    assert_int_equal(match[9], 0x0000ff00u);
    assert_int_equal(sum[31], 496);
    assert_int_equal(most[5], 0);
    assert_false(any[0]);
    assert_true(all[0]);
    assert_int_equal(some[2], 0xf7);
}

/* ---- bits and halves: vectors 16 to 20 */

static void test_bits(void **) {
    const uint32_t q = 0x89abcdef;
    assert_int_equal(lop3<0xea>(q, 0x000f000f, 0x64006400), 0x640b640f);
    assert_int_equal(lop3<0xea>(q, 0x00f000f0, 0x64006400), 0x64a064e0);
    assert_int_equal(lop3<0xea>(q >> 8, 0x000f000f, 0x64006400), 0x6409640d);
    assert_int_equal(lop3<0xea>(q >> 8, 0x00f000f0, 0x64006400), 0x648064c0);
    assert_int_equal(lop3<0xea>(q, 0x000f000f, 0x43004300), 0x430b430f);
    assert_int_equal(h2_sub(0x640b640f, 0x64086408), half_of(3) << 16 | half_of(7));
    assert_int_equal(h2_fma(0x64a064e0, 0x2c002c00, 0xd480d480), half_of(2) << 16 | half_of(6));
    const struct {
        uint32_t a, b, s, want;
    } prmts[] = {{0x33221100, 0x77665544, 0x5410, 0x55441100}, {0x33221100, 0x77665544, 0x7632, 0x77663322},
                 {0x33221100, 0x77665544, 0x0123, 0x00112233}, {0x33221100, 0x77665544, 0x6420, 0x66442200},
                 {0x80ff7f01, 0, 0xba98, 0xffff0000},          {0x00000009, 0x64646464, 0x4140, 0x64006409}};
    for (auto &p : prmts) assert_int_equal(prmt(p.a, p.b, p.s), p.want);
    assert_int_equal(dp4a_s8(0x80ff017f, 0x02030405, 10), 0x186);
    assert_int_equal(dp4a_u8(0x80ff017f, 0xff030405, 10), 0x506);
}

static void test_halves(void **) {
    assert_int_equal(h2_from_floats(2.0f, 1.0f), 0x3c004000);
    assert_int_equal(h2_from_floats(65519.0f, 65520.0f), 0x7c007bff);
    assert_int_equal(h2_from_floats(std::ldexp(1.0f, -25), 0), 0);
    assert_int_equal(b2_from_floats(1.0f, 2.0f), 0x40003f80);
    /* One rounding: 1 + 2^-11 + 2^-22 lies above the middle of two halves by less than a float can show beside 1. */
    uint32_t a = half_of(1 + std::ldexp(1.0, -10)), b = half_of(std::ldexp(1.0, -11)), c = half_of(1);
    assert_int_equal(h2_fma(a, b, c) & 0xffff, 0x3c01);
    assert_int_equal(h2_mul(half_of(3), half_of(-0.5)) & 0xffff, half_of(-1.5));
    for (uint32_t h = 0; h < 0x7c00; h++) assert_true(f32_to_f16(h_to_float(static_cast<uint16_t>(h))) == h);
    assert_int_equal(__float2int_rn(2.5f), 2);
    assert_int_equal(__float2int_rn(-0.5f), 0);
    assert_int_equal(__float2int_rn(1e30f), 0x7fffffff);
    assert_int_equal(__float2int_rn(NAN), 0);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_fragments),  cmocka_unit_test(test_mma_layout), cmocka_unit_test(test_mma_s8),
        cmocka_unit_test(test_mma_s8_k16), cmocka_unit_test(test_mma_sums),   cmocka_unit_test(test_mma_special),
        cmocka_unit_test(test_ldmatrix),   cmocka_unit_test(test_shuffles),   cmocka_unit_test(test_votes),
        cmocka_unit_test(test_bits),       cmocka_unit_test(test_halves),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
