/* Bits and half precision (ptx.md 6). */
#include <cmath>

#include "core/half.h"
#include "cuda/emu/ptx.h"

uint32_t emu_lop3(int table, uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
    for (int bit = 0; bit < 32; bit++) {
        uint32_t row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1);
        d |= (static_cast<uint32_t>(table) >> row & 1) << bit;
    }
    return d;
}

uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) {
    uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t pick = s >> 4 * i & 15, byte = bytes >> 8 * (pick & 7) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        d |= byte << 8 * i;
    }
    return d;
}

template <class A> static int32_t dp4a(uint32_t a, uint32_t b, int32_t c) {
    auto sum = static_cast<uint32_t>(c);
    for (int i = 0; i < 4; i++)
        sum += static_cast<uint32_t>(static_cast<A>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i));
    return static_cast<int32_t>(sum);
}
int32_t dp4a_s8(uint32_t a, uint32_t b, int32_t c) {
    return dp4a<int8_t>(a, b, c);
}
int32_t dp4a_u8(uint32_t a, uint32_t b, int32_t c) {
    return dp4a<uint8_t>(a, b, c);
}

/* A double, which holds any product and most sums exactly, to f16 with one rounding. By way of float, ties would be
 * made where there were none: the last bit of the float remembers ("round to odd") whether anything was cut off. */
static uint16_t half_from_double(double x) {
    auto f = static_cast<float>(x);
    if (std::isfinite(f) && static_cast<double>(f) != x) {
        if (std::fabs(static_cast<double>(f)) > std::fabs(x)) f = std::nextafterf(f, 0.0f);
        f = __uint_as_float(__float_as_uint(f) | 1);
    }
    return f32_to_f16(f);
}

float h_to_float(uint16_t h) {
    return f16_to_f32(h);
}

template <class F> static uint32_t both(F of) {
    return static_cast<uint32_t>(of(0)) | static_cast<uint32_t>(of(16)) << 16;
}
static double half_at(uint32_t h2, int shift) {
    return h_to_float(static_cast<uint16_t>(h2 >> shift));
}

uint32_t h2_sub(uint32_t a, uint32_t b) {
    return both([=](int s) { return half_from_double(half_at(a, s) - half_at(b, s)); });
}
uint32_t h2_mul(uint32_t a, uint32_t b) {
    return both([=](int s) { return half_from_double(half_at(a, s) * half_at(b, s)); });
}
/* The product is exact in a double (22 bits); the sum may not be where its terms are far apart, but then the small one
 * only decides the direction of a rounding that the double's 53 bits still show. */
uint32_t h2_fma(uint32_t a, uint32_t b, uint32_t c) {
    return both([=](int s) { return half_from_double(half_at(a, s) * half_at(b, s) + half_at(c, s)); });
}
uint32_t h2_from_floats(float low, float high) {
    return both([=](int s) { return f32_to_f16(s ? high : low); });
}
uint32_t b2_from_floats(float low, float high) {
    return both([=](int s) { return f32_to_bf16(s ? high : low); });
}
