/* mma and ldmatrix: which lane holds what (ptx.md 1.1, 2) and how floats are summed (1.3).
 *
 * One rule serves all shapes: cut a row of A and a column of B into 32-bit words of w elements, lowest k in the low
 * bits. With g = lane / 4 and t = lane % 4, element e of A register r   is  row g + 8 (r & 1),  k = (t + 4 (r >> 1)) w
 * + e B register r   is  column g,           k = (t + 4 r) w + e C register i   is  row g + 8 (i >> 1), column 2 t + (i
 * & 1) tests/cuda/test_ptx.cu holds this against the vectors of ptx.md 10, which were made elsewhere. */
#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "cuda/emu/ptx.h"

namespace emu {

static emu_tensor_core tensor_core = EMU_GROUPS_OF_16;

/* ---- fragments */

namespace {
struct mma_operands {
    const uint32_t *a, *b;
    void *d; /* float or int32_t [4] */
};

/* One tile as raw elements of BITS, K of them a row. */
template <int BITS, int K> struct tile {
    static constexpr int per_word = 32 / BITS, registers_b = K / per_word / 4, registers_a = 2 * registers_b;
    uint32_t a[16][K], b[8][K];

    static uint32_t element(uint32_t word, int e) { return word >> BITS * e & ((1u << BITS) - 1); }

    void gather(const warp_lanes &lanes) {
        for (int lane = 0; lane < 32; lane++) {
            const auto *o = lanes.get<mma_operands>(lane);
            int g = lane >> 2, t = lane & 3;
            for (int r = 0; r < registers_a; r++)
                for (int e = 0; e < per_word; e++)
                    a[g + 8 * (r & 1)][(t + 4 * (r >> 1)) * per_word + e] = element(o->a[r], e);
            for (int r = 0; r < registers_b; r++)
                for (int e = 0; e < per_word; e++) b[g][(t + 4 * r) * per_word + e] = element(o->b[r], e);
        }
    }
};
} // namespace

/* of(row, column, d): the new element. */
template <class T, class F> static void each_result(warp_lanes &lanes, F of) {
    for (int lane = 0; lane < 32; lane++) {
        auto *d = static_cast<T *>(lanes.get<mma_operands>(lane)->d);
        for (int i = 0; i < 4; i++) d[i] = of((lane >> 2) + 8 * (i >> 1), 2 * (lane & 3) + (i & 1), d[i]);
    }
}

/* ---- floats */

namespace {
/* value = significand * 2^exponent, the significand with its hidden bit; not normalized where it is subnormal. */
struct parts {
    int32_t significand;
    int exponent; /* of the hidden bit: the value is significand * 2^(exponent - bits) */
    bool finite;
    float value;
};

/* A 16-bit format with EXPONENT bits of exponent. */
template <int EXPONENT> struct format {
    static constexpr int bits = 15 - EXPONENT, top = (1 << EXPONENT) - 1;
    static parts split(uint32_t h) {
        int e = h >> bits & top;
        auto s = static_cast<int32_t>((h & ((1u << bits) - 1)) | (e ? 1u << bits : 0u));
        auto raw = static_cast<uint16_t>(h);
        return {h & 0x8000 ? -s : s, (e ? e : 1) - top / 2, e != top, bits == 10 ? f16_to_f32(raw) : bf16_to_f32(raw)};
    }
};
using half_format = format<5>;
using bfloat_format = format<8>;
} // namespace

/* significand * 2^exponent cut toward zero to a whole number of units of 2^unit. */
static int64_t cut(int64_t significand, int exponent, int unit) {
    if (significand == 0) return 0; /* its exponent says nothing */
    int shift = exponent - unit;
    if (shift >= 0) return significand * (int64_t{1} << shift);
    if (shift <= -63) return 0;
    int64_t magnitude = significand < 0 ? -significand : significand;
    magnitude >>= -shift;
    return significand < 0 ? -magnitude : magnitude;
}

/* sum * 2^unit to float, toward zero. */
static float toward_zero(int64_t sum, int unit) {
    if (sum == 0) return 0;
    uint64_t magnitude = static_cast<uint64_t>(sum < 0 ? -sum : sum);
    int top = 63 - __builtin_clzll(magnitude), drop = std::max(top - 23, -149 - unit);
    if (drop > 0) magnitude = drop < 64 ? magnitude >> drop << drop : 0;
    double x = std::ldexp(static_cast<double>(magnitude), unit);
    auto f = static_cast<float>(std::min(x, 3.4028234663852886e38)); /* the cut makes the conversion exact */
    return sum < 0 ? -f : f;
}

static parts split_float(float x) {
    uint32_t u = __float_as_uint(x);
    int e = u >> 23 & 255;
    auto s = static_cast<int32_t>((u & 0x7fffff) | (e ? 0x800000u : 0u));
    return {u >> 31 ? -s : s, (e ? e : 1) - 127, e != 255, x};
}

/* c and n products added at once: each cut to a multiple of 2^(E - F), E the largest exponent among them. */
template <class FORMAT> static float add_group(float c, const parts *a, const parts *b, int n, int f_bits) {
    parts pc = split_float(c);
    bool finite = pc.finite;
    int top = pc.significand ? pc.exponent : -1000;
    for (int i = 0; i < n; i++) {
        finite = finite && a[i].finite && b[i].finite;
        if (a[i].significand && b[i].significand) top = std::max(top, a[i].exponent + b[i].exponent);
    }
    if (!finite) {
        for (int i = 0; i < n; i++) c += a[i].value * b[i].value;
        return c;
    }
    if (top == -1000) return c; /* nothing but zeros */
    int unit = top - f_bits;
    int64_t sum = cut(pc.significand, pc.exponent - 23, unit);
    for (int i = 0; i < n; i++)
        sum +=
            cut(int64_t{a[i].significand} * b[i].significand, a[i].exponent + b[i].exponent - 2 * FORMAT::bits, unit);
    return toward_zero(sum, unit);
}

template <class FORMAT> static void mma_float_execute(warp_lanes &lanes) {
    static tile<16, 16> t;
    static parts a[16][16], b[8][16];
    t.gather(lanes);
    for (int k = 0; k < 16; k++) {
        for (int row = 0; row < 16; row++) a[row][k] = FORMAT::split(t.a[row][k]);
        for (int column = 0; column < 8; column++) b[column][k] = FORMAT::split(t.b[column][k]);
    }
    int group = tensor_core == EMU_GROUPS_OF_8 ? 8 : 16, f_bits = tensor_core == EMU_GROUPS_OF_8 ? 24 : 25;
    each_result<float>(lanes, [=](int row, int column, float d) {
        for (int k = 0; k < 16; k += group) d = add_group<FORMAT>(d, a[row] + k, b[column] + k, group, f_bits);
        return d;
    });
}

/* ---- integers: exact, sums wrap */

template <int K> static void mma_s8_execute(warp_lanes &lanes) {
    static tile<8, K> t;
    t.gather(lanes);
    each_result<int32_t>(lanes, [](int row, int column, int32_t d) {
        auto sum = static_cast<uint32_t>(d);
        for (int k = 0; k < K; k++)
            sum += static_cast<uint32_t>(static_cast<int8_t>(t.a[row][k]) * static_cast<int8_t>(t.b[column][k]));
        return static_cast<int32_t>(sum);
    });
}

/* ---- ldmatrix */

namespace {
struct ldmatrix_operands {
    sptr<const void> row;
    uint32_t *r;
};
} // namespace

template <bool TRANS> static void ldmatrix_execute(warp_lanes &lanes) {
    uint64_t rows[32];
    for (int lane = 0; lane < 32; lane++) {
        const sptr<const void> &row = lanes.get<ldmatrix_operands>(lane)->row;
        rows[lane] = row.b ? row.b->address + static_cast<uint64_t>(row.offset) : 0;
    }
    auto half = [&](int matrix, int row, int column) {
        const sptr<const void> &p = lanes.get<ldmatrix_operands>(8 * matrix + row)->row;
        uint16_t value;
        memcpy(&value, p.b->data + p.offset + 2 * column, sizeof value);
        return uint32_t{value};
    };
    for (int lane = 0; lane < 32; lane++) {
        int g = lane >> 2, t = lane & 3;
        for (int m = 0; m < 4; m++)
            lanes.get<ldmatrix_operands>(lane)->r[m] = TRANS ? half(m, 2 * t, g) | half(m, 2 * t + 1, g) << 16
                                                             : half(m, g, 2 * t) | half(m, g, 2 * t + 1) << 16;
    }
    if (counting) traffic_note_rows(rows, 32, lanes.at);
}

/* Each lane reads its own row under the checks of any access before the warp meets, so that a fault is this lane's. */
static void ldmatrix(const warp_op &op, uint32_t *r, sptr<const void> row, site at) {
    bool was_counting = counting;
    counting = false; /* as a whole, in ldmatrix_execute */
    memory_access(row.b, row.offset, 16, access::read, at);
    counting = was_counting;
    ldmatrix_operands o = {row, r};
    warp_meet(op, 0xffffffffu, &o, at);
}

static void mma(const warp_op &op, void *d, const uint32_t *a, const uint32_t *b, site at) {
    mma_operands o = {a, b, d};
    warp_meet(op, 0xffffffffu, &o, at);
}

} // namespace emu

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emu::site at) {
    static const emu::warp_op op = {"mma f16", false, true, emu::mma_float_execute<emu::half_format>};
    emu::mma(op, d, a, b, at);
}
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emu::site at) {
    static const emu::warp_op op = {"mma bf16", false, true, emu::mma_float_execute<emu::bfloat_format>};
    emu::mma(op, d, a, b, at);
}
void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emu::site at) {
    static const emu::warp_op op = {"mma s8", false, true, emu::mma_s8_execute<32>};
    emu::mma(op, d, a, b, at);
}
void mma_s8_k16(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b, emu::site at) {
    static const emu::warp_op op = {"mma s8 k16", false, true, emu::mma_s8_execute<16>};
    emu::mma(op, d, a, &b, at);
}
void ldmatrix_x4(uint32_t (&r)[4], sptr<const void> row, emu::site at) {
    static const emu::warp_op op = {"ldmatrix.x4", false, true, emu::ldmatrix_execute<false>};
    emu::ldmatrix(op, r, row, at);
}
void ldmatrix_x4_trans(uint32_t (&r)[4], sptr<const void> row, emu::site at) {
    static const emu::warp_op op = {"ldmatrix.x4.trans", false, true, emu::ldmatrix_execute<true>};
    emu::ldmatrix(op, r, row, at);
}

void emu_set_tensor_core(emu_tensor_core model) {
    emu::tensor_core = model;
}
