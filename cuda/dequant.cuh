/* The weight types inside a kernel: one struct each, loading what a lane needs of a tile (cuda/layout.h) and taking it
 * apart. All have
 *
 * - columns, bytes: of a tile
 * - tile: a lane's part of it, in registers
 * - load(p, lane): p is the tile's first byte
 * - codes(tile, j, a), if has_codes, for products with 8-bit activations: the four words of operand A for group j of 32
 *   columns, signed bytes, `unit` times the level, so that no zero point is left to subtract
 * - scales(tile, j, s): s[0], s[1] of rows g and g + 8; mins(tile, j, m), if has_mins
 * - group: columns that share a scale, 32, or 16 (then scales takes 16-column halves as j), or all of a tile's, 64 or
 *   128: then scales and mins take no notice of j
 * - stage_bytes: of 128 columns in shared memory (cuda/gemm.cu), two tiles of 64 columns, one, or half a tile of 256
 * - stage_source(chunk, half), tiles of 256 columns: where in the tile 16 bytes of such a half lie
 * - load_part(p, part, lane): 64 of those 128 columns, as a tile of which groups 0 and 1 are there
 * - halves(tile, j, a): operand A of the two f16 mmas of group j, `unit_f16` times the level
 * - is_halves: the weights are stored so (F16) */
#ifndef LLMQ_CUDA_DEQUANT_CUH
#define LLMQ_CUDA_DEQUANT_CUH

#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/ptx.cuh"

/* A byte as a float without the slow conversion unit: 2^23 + byte, minus 2^23. */
__device__ __forceinline__ float byte_to_float(uint32_t word, int byte) {
    return __uint_as_float(prmt(word, 0x4b000000u, 0x7540u | static_cast<uint32_t>(byte))) - 8388608.0f;
}
/* A signed one: 128 is added first. */
__device__ __forceinline__ float sbyte_to_float(uint32_t word, int byte) {
    return __uint_as_float(prmt(word ^ 0x80808080u, 0x4b000000u, 0x7540u | static_cast<uint32_t>(byte))) - 8388736.0f;
}

/* Unsigned nibbles of rows g and g + 8. */
__device__ __forceinline__ void nibbles_to_bytes(uint32_t row0, uint32_t row8, uint32_t (&a)[4]) {
    a[0] = row0 & 0x0f0f0f0fu;
    a[1] = row8 & 0x0f0f0f0fu;
    a[2] = row0 >> 4 & 0x0f0f0f0fu;
    a[3] = row8 >> 4 & 0x0f0f0f0fu;
}

/* Two nibbles at a time become f16 (ptx.md 6): 0x6400 | n is 1024 + n, and 0x6400 | 16 n is 1024 + 16 n. FLIP 8 turns
 * the nibbles' upper bit over: two's complement becomes level + 8. */
template <int FLIP>
__device__ __forceinline__ void nibbles_to_halves(uint32_t row0, uint32_t row8, uint32_t (&a)[2][4]) {
    constexpr uint32_t low = 0x64006400u + FLIP * 0x10001u, high = 0x64006400u + FLIP * 0x100010u;
    constexpr uint32_t low_bias = low, high_bias = FLIP ? 0xd480d480u : 0xd400d400u; /* 1024 + FLIP; -(64 + FLIP) */
    constexpr uint32_t sixteenth = 0x2c002c00u;
    UNROLL
    for (int row = 0; row < 2; row++) {
        const uint32_t q = row ? row8 : row0, odd = q >> 8;
        a[0][row] = h2_sub(lop3<0x6a>(q, 0x000f000fu, low), low_bias);
        a[1][row] = h2_fma(lop3<0x6a>(q, 0x00f000f0u, high), sixteenth, high_bias);
        a[0][row + 2] = h2_sub(lop3<0x6a>(odd, 0x000f000fu, low), low_bias);
        a[1][row + 2] = h2_fma(lop3<0x6a>(odd, 0x00f000f0u, high), sixteenth, high_bias);
    }
}

/* Signed bytes to f16: bytes 0 and 2, bytes 1 and 3 of each word. 128 is added, and 1024 + 128 subtracted. */
__device__ __forceinline__ void bytes_to_halves(const uint32_t (&bytes)[4], uint32_t (&a)[2][4]) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        const uint32_t b = bytes[i] ^ 0x80808080u;
        a[i / 2][i % 2] = h2_sub(prmt(b, 0x64646464u, 0x4240u), 0x64806480u);
        a[i / 2][i % 2 + 2] = h2_sub(prmt(b, 0x64646464u, 0x4341u), 0x64806480u);
    }
}

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ uint32_t word_of(const uint2 &v, int i) {
    return i == 0 ? v.x : v.y;
}

/* Two scales of a word of f16. */
__device__ __forceinline__ void pair_to_floats(uint32_t pair, float (&s)[2]) {
    s[0] = h2_low(pair);
    s[1] = h2_high(pair);
}

/* What the types with one f16 scale for 32 columns share; `tile` has it as d. */
struct scale_of_32 {
    static constexpr int columns = 64, group = 32;
    static constexpr bool has_mins = false, is_halves = false, has_codes = true;
    template <class T> __device__ static __forceinline__ void scales(const T &w, int j, float (&s)[2]) {
        pair_to_floats(word_of(w.d, j), s);
    }
};

/* `halves` of types whose codes are bytes to begin with. */
template <class W> struct halves_from_bytes {
    template <class T> __device__ static __forceinline__ void halves(const T &w, int j, uint32_t (&a)[2][4]) {
        uint32_t bytes[4];
        W::codes(w, j, bytes);
        bytes_to_halves(bytes, a);
    }
};

struct weights_q4_0
    : scale_of_32 { /* nibbles in two's complement: in the upper half of a byte they are 16 times the level */
    static constexpr int bytes = 576, stage_bytes = 2 * bytes, unit = 16, unit_f16 = 1;
    struct tile {
        uint4 q;
        uint2 d;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        return {load_once(as<const uint4>(p) + lane), load_once(as<const uint2>(p + 512) + lane / 4)};
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        p += part * bytes;
        return {as<const uint4>(p)[lane], as<const uint2>(p + 512)[lane / 4]};
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        const uint32_t row0 = word_of(w.q, 2 * j), row8 = word_of(w.q, 2 * j + 1);
        a[0] = row0 << 4 & 0xf0f0f0f0u;
        a[1] = row8 << 4 & 0xf0f0f0f0u;
        a[2] = row0 & 0xf0f0f0f0u;
        a[3] = row8 & 0xf0f0f0f0u;
    }
    __device__ static __forceinline__ void halves(const tile &w, int j, uint32_t (&a)[2][4]) {
        nibbles_to_halves<8>(word_of(w.q, 2 * j), word_of(w.q, 2 * j + 1), a);
    }
};

struct weights_q4_1 {
    static constexpr int columns = 64, bytes = 640, stage_bytes = 2 * bytes, unit = 1, unit_f16 = 1, group = 32;
    static constexpr bool has_mins = true, is_halves = false, has_codes = true;
    struct tile {
        uint4 q, dm;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        return {load_once(as<const uint4>(p) + lane), load_once(as<const uint4>(p + 512) + lane / 4)};
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        p += part * bytes;
        return {as<const uint4>(p)[lane], as<const uint4>(p + 512)[lane / 4]};
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        nibbles_to_bytes(word_of(w.q, 2 * j), word_of(w.q, 2 * j + 1), a);
    }
    __device__ static __forceinline__ void halves(const tile &w, int j, uint32_t (&a)[2][4]) {
        nibbles_to_halves<0>(word_of(w.q, 2 * j), word_of(w.q, 2 * j + 1), a);
    }
    __device__ static __forceinline__ void scales(const tile &w, int j, float (&s)[2]) {
        pair_to_floats(word_of(w.dm, 2 * j), s);
    }
    __device__ static __forceinline__ void mins(const tile &w, int j, float (&m)[2]) {
        pair_to_floats(word_of(w.dm, 2 * j + 1), m);
    }
};

/* Q, which is Q4_0 or Q4_1, with one scale (and minimum) for all 64 or 128 columns of a tile. D: both rows' of them. */
template <class Q, class D, int COLUMNS> struct weights_of_group {
    static constexpr int columns = COLUMNS, group = COLUMNS, nibbles = COLUMNS / 2 * TILE_ROWS;
    static constexpr int bytes = nibbles + 8 * sizeof(D), stage_bytes = 128 / COLUMNS * bytes;
    static constexpr int unit = Q::unit, unit_f16 = Q::unit_f16;
    static constexpr bool has_mins = Q::has_mins, is_halves = false, has_codes = true;
    struct tile {
        uint4 q[COLUMNS / 64];
        D d;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        tile w;
        UNROLL
        for (int i = 0; i < COLUMNS / 64; i++) w.q[i] = load_once(as<const uint4>(p) + (32 * i + lane));
        w.d = load_once(as<const D>(p + nibbles) + lane / 4);
        return w;
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        tile w = {};
        if (COLUMNS == 64) p += part * bytes;
        w.q[0] = as<const uint4>(p)[(COLUMNS == 64 ? 0 : 32 * part) + lane];
        w.d = as<const D>(p + nibbles)[lane / 4];
        return w;
    }
    __device__ static __forceinline__ typename Q::tile pair_of(const tile &w, int j) { /* group j and its neighbour */
        typename Q::tile two = {};
        two.q = w.q[j / 2];
        return two;
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        Q::codes(pair_of(w, j), j % 2, a);
    }
    __device__ static __forceinline__ void halves(const tile &w, int j, uint32_t (&a)[2][4]) {
        Q::halves(pair_of(w, j), j % 2, a);
    }
    __device__ static __forceinline__ void scales(const tile &w, int, float (&s)[2]) {
        if constexpr (has_mins)
            pair_to_floats(w.d.x, s);
        else
            pair_to_floats(w.d, s);
    }
    __device__ static __forceinline__ void mins(const tile &w, int, float (&m)[2]) { pair_to_floats(w.d.y, m); }
};
/* Q5_0 with no more than 16 levels in a group is Q4_1 with the lowest level in place of the minimum. */
__device__ __forceinline__ void level_mins(uint32_t scales, uint32_t levels, float (&m)[2]) {
    m[0] = h2_low(scales) * h2_low(levels);
    m[1] = h2_high(scales) * h2_high(levels);
}
template <int COLUMNS> struct weights_of_levels : weights_of_group<weights_q4_1, uint2, COLUMNS> {
    using typename weights_of_group<weights_q4_1, uint2, COLUMNS>::tile;
    __device__ static __forceinline__ void mins(const tile &w, int, float (&m)[2]) { level_mins(w.d.x, w.d.y, m); }
};
struct weights_q5_0_32 : weights_q4_1 {
    __device__ static __forceinline__ void mins(const tile &w, int j, float (&m)[2]) {
        level_mins(word_of(w.dm, 2 * j), word_of(w.dm, 2 * j + 1), m);
    }
};
struct weights_q4_0_64 : weights_of_group<weights_q4_0, uint32_t, 64> {};
struct weights_q4_0_128 : weights_of_group<weights_q4_0, uint32_t, 128> {};
struct weights_q4_1_64 : weights_of_group<weights_q4_1, uint2, 64> {};
struct weights_q4_1_128 : weights_of_group<weights_q4_1, uint2, 128> {};
struct weights_q5_0_64 : weights_of_levels<64> {};
struct weights_q5_0_128 : weights_of_levels<128> {};

/* Sixteen bytes in four words, looked up by four nibbles; eight of them are one prmt away, and bit 3 of each nibble
 * picks from the two results. (prmt would take bit 3 as "repeat the sign", so `nibbles` have it masked off.) */
__device__ __forceinline__ uint32_t byte_of_16(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, uint32_t nibbles,
                                               uint32_t pick) {
    return prmt(prmt(w0, w1, nibbles), prmt(w2, w3, nibbles), pick);
}

struct weights_iq4_nl : scale_of_32, halves_from_bytes<weights_iq4_nl> {
    static constexpr int bytes = 576, stage_bytes = 2 * bytes, unit = 1, unit_f16 = 1;
    using tile = weights_q4_0::tile;
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) { return weights_q4_0::load(p, lane); }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        return weights_q4_0::load_part(p, part, lane);
    }
    __device__ static __forceinline__ uint32_t levels(uint32_t nibbles, uint32_t pick) {
        /* -127 -104 -83 -65 -49 -35 -22 -10 | 1 13 25 38 53 69 89 113 */
        return byte_of_16(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u, nibbles, pick);
    }
    __device__ static __forceinline__ void look_up(uint32_t row0, uint32_t row8, uint32_t (&a)[4]) {
        UNROLL
        for (int row = 0; row < 2; row++) {
            const uint32_t q = row ? row8 : row0, nibbles = q & 0x77777777u;
            const uint32_t pick = (q & 0x88888888u) >> 1 | 0x32103210u;
            a[row] = levels(nibbles, pick);
            a[row + 2] = levels(nibbles >> 16, pick >> 16);
        }
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        look_up(word_of(w.q, 2 * j), word_of(w.q, 2 * j + 1), a);
    }
};

struct weights_q8_0 : scale_of_32, halves_from_bytes<weights_q8_0> {
    static constexpr int bytes = 1088, stage_bytes = 2 * bytes, unit = 1, unit_f16 = 1;
    struct tile {
        uint4 q[2];
        uint2 d;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        gptr<const uint4> q = as<const uint4>(p) + lane;
        return {{load_once(q), load_once(q + 32)}, load_once(as<const uint2>(p + 1024) + lane / 4)};
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        p += part * bytes;
        sptr<const uint4> q = as<const uint4>(p) + lane;
        return {{q[0], q[32]}, as<const uint2>(p + 1024)[lane / 4]};
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        a[0] = w.q[j].x;
        a[1] = w.q[j].y;
        a[2] = w.q[j].z;
        a[3] = w.q[j].w;
    }
};

struct weights_q4_k {
    static constexpr int columns = 256, bytes = 2368, unit = 1, unit_f16 = 1, group = 32;
    static constexpr bool has_mins = true, is_halves = false, has_codes = true;
    struct tile {
        uint4 q[4], sc[2]; /* sc: a word a group */
        uint2 d;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        gptr<const uint4> q = as<const uint4>(p) + lane, sc = as<const uint4>(p + 2048) + lane / 4;
        return {{load_once(q), load_once(q + 32), load_once(q + 64), load_once(q + 96)},
                {load_once(sc), load_once(sc + 8)},
                load_once(as<const uint2>(p + 2304) + lane / 4)};
    }
    static constexpr int stage_bytes = 1024 + 128 + 64;
    __device__ static __forceinline__ int stage_source(int chunk, int half) {
        return 16 * chunk + (chunk < 64 ? 1024 * half : chunk < 72 ? 1024 + 128 * half : 1024 + 128);
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        tile w = {};
        w.q[0] = as<const uint4>(p + 512 * part)[lane];
        const uint2 sc = as<const uint2>(p + 1024 + 8 * part)[lane / 4 * 2];
        w.sc[0] = {sc.x, sc.y, 0, 0};
        w.d = as<const uint2>(p + 1152)[lane / 4];
        return w;
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        nibbles_to_bytes(word_of(w.q[j / 2], j % 2 * 2), word_of(w.q[j / 2], j % 2 * 2 + 1), a);
    }
    __device__ static __forceinline__ void halves(const tile &w, int j, uint32_t (&a)[2][4]) {
        nibbles_to_halves<0>(word_of(w.q[j / 2], j % 2 * 2), word_of(w.q[j / 2], j % 2 * 2 + 1), a);
    }
    __device__ static __forceinline__ void scales(const tile &w, int j, float (&s)[2]) {
        uint32_t sc = word_of(w.sc[j / 4], j % 4);
        s[0] = h2_low(w.d.x) * byte_to_float(sc, 0);
        s[1] = h2_high(w.d.x) * byte_to_float(sc, 1);
    }
    __device__ static __forceinline__ void mins(const tile &w, int j, float (&m)[2]) {
        uint32_t sc = word_of(w.sc[j / 4], j % 4);
        m[0] = -h2_low(w.d.y) * byte_to_float(sc, 2);
        m[1] = -h2_high(w.d.y) * byte_to_float(sc, 3);
    }
};

struct weights_q6_k : halves_from_bytes<weights_q6_k> { /* six bits in two's complement, in the upper part of a byte */
    static constexpr int columns = 256, bytes = 3360, unit = 4, unit_f16 = 4, group = 16;
    static constexpr bool has_mins = false, is_halves = false, has_codes = true;
    struct tile {
        uint4 q[4];
        uint2 high[4];
        uint4 sc[2]; /* two bytes a group of 16 */
        uint32_t d;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        gptr<const uint4> q = as<const uint4>(p) + lane, sc = as<const uint4>(p + 3072) + lane / 4;
        gptr<const uint2> high = as<const uint2>(p + 2048) + lane;
        return {{load_once(q), load_once(q + 32), load_once(q + 64), load_once(q + 96)},
                {load_once(high), load_once(high + 32), load_once(high + 64), load_once(high + 96)},
                {load_once(sc), load_once(sc + 8)},
                load_once(as<const uint32_t>(p + 3328) + lane / 4)};
    }
    static constexpr int stage_bytes = 1024 + 512 + 128 + 32;
    __device__ static __forceinline__ int stage_source(int chunk, int half) {
        const int from = chunk < 64    ? 1024 * half
                         : chunk < 96  ? 1024 + 512 * half
                         : chunk < 104 ? 1536 + 128 * half
                                       : 1664;
        return 16 * chunk + from;
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        tile w = {};
        w.q[0] = as<const uint4>(p + 512 * part)[lane];
        w.high[0] = as<const uint2>(p + 1024 + 256 * part)[lane];
        const uint2 sc = as<const uint2>(p + 1536 + 8 * part)[lane / 4 * 2];
        w.sc[0] = {sc.x, sc.y, 0, 0};
        w.d = as<const uint32_t>(p + 1664)[lane / 4];
        return w;
    }
    /* bits 2..5: the nibble, bits 6 and 7: the pair */
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        const uint32_t row0 = word_of(w.q[j / 2], j % 2 * 2), row8 = word_of(w.q[j / 2], j % 2 * 2 + 1);
        const uint32_t high = word_of(w.high[j / 2], j % 2);
        a[0] = (row0 << 2 & 0x3c3c3c3cu) | (high << 6 & 0xc0c0c0c0u);
        a[1] = (row8 << 2 & 0x3c3c3c3cu) | (high << 4 & 0xc0c0c0c0u);
        a[2] = (row0 >> 2 & 0x3c3c3c3cu) | (high << 2 & 0xc0c0c0c0u);
        a[3] = (row8 >> 2 & 0x3c3c3c3cu) | (high & 0xc0c0c0c0u);
    }
    __device__ static __forceinline__ void scales(const tile &w, int half, float (&s)[2]) {
        uint32_t sc = word_of(w.sc[half / 8], half % 8 / 2);
        s[0] = h2_low(w.d) * sbyte_to_float(sc, half % 2 * 2);
        s[1] = h2_high(w.d) * sbyte_to_float(sc, half % 2 * 2 + 1);
    }
};

/* The levels of IQ4_NL under the scales of a super-block. */
struct weights_iq4_xs : halves_from_bytes<weights_iq4_xs> {
    static constexpr int columns = 256, bytes = 2208, unit = 1, unit_f16 = 1, group = 32;
    static constexpr bool has_mins = false, is_halves = false, has_codes = true;
    struct tile {
        uint4 q[4];
        uint2 sc[2]; /* two bytes a group */
        uint32_t d;
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        gptr<const uint4> q = as<const uint4>(p) + lane;
        gptr<const uint2> sc = as<const uint2>(p + 2048) + lane / 4;
        return {{load_once(q), load_once(q + 32), load_once(q + 64), load_once(q + 96)},
                {load_once(sc), load_once(sc + 8)},
                load_once(as<const uint32_t>(p + 2176) + lane / 4)};
    }
    static constexpr int stage_bytes = 1024 + 64 + 32;
    __device__ static __forceinline__ int stage_source(int chunk, int half) {
        return 16 * chunk + (chunk < 64 ? 1024 * half : chunk < 68 ? 1024 + 64 * half : 1024 + 64);
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        tile w = {};
        w.q[0] = as<const uint4>(p + 512 * part)[lane];
        w.sc[0] = {as<const uint32_t>(p + 1024 + 4 * part)[lane / 4 * 2], 0};
        w.d = as<const uint32_t>(p + 1088)[lane / 4];
        return w;
    }
    __device__ static __forceinline__ void codes(const tile &w, int j, uint32_t (&a)[4]) {
        weights_iq4_nl::look_up(word_of(w.q[j / 2], j % 2 * 2), word_of(w.q[j / 2], j % 2 * 2 + 1), a);
    }
    __device__ static __forceinline__ void scales(const tile &w, int j, float (&s)[2]) {
        const uint32_t sc = word_of(w.sc[j / 4], j % 4 / 2);
        s[0] = h2_low(w.d) * sbyte_to_float(sc, j % 2 * 2);
        s[1] = h2_high(w.d) * sbyte_to_float(sc, j % 2 * 2 + 1);
    }
};

/* Levels of bitsandbytes' types as f16 (rounded; FP4's thirds, too), their lower and upper bytes by code, and the f32
 * scale of 64 columns. */
struct nf4_table {
    static constexpr uint32_t low0 = 0x52339200u, low1 = 0x00d4ea8du, low2 = 0x68e02618u, low3 = 0x00c9800du;
    static constexpr uint32_t high0 = 0xb6b8b9bcu, high1 = 0x00adb1b4u, high2 = 0x3533312du, high3 = 0x3c393837u;
};
struct fp4_table { /* the last one is not in use */
    static constexpr uint32_t low0 = 0x55005500u, low1 = 0x00555500u, low2 = 0x55005555u, low3 = 0x00005500u;
    static constexpr uint32_t high0 = 0xb5b8b9bcu, high1 = 0x009db1b4u, high2 = 0x3534311du, high3 = 0x003c3938u;
};

template <class TABLE> struct weights_fractions {
    static constexpr int columns = 64, bytes = 576, stage_bytes = 2 * bytes, unit_f16 = 1, group = 64;
    static constexpr bool has_mins = false, is_halves = false, has_codes = false;
    using tile = weights_q4_0::tile; /* d: the bits of both floats */
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) { return weights_q4_0::load(p, lane); }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        return weights_q4_0::load_part(p, part, lane);
    }
    __device__ static __forceinline__ void halves(const tile &w, int j, uint32_t (&a)[2][4]) {
        UNROLL
        for (int i = 0; i < 4; i++) { /* rows g and g + 8 of the first 16 columns, then of the others */
            const uint32_t q = word_of(w.q, 2 * j + i % 2) >> (i / 2 * 16), nibbles = q & 0x7777u;
            const uint32_t pick = (q & 0x8888u) >> 1 | 0x3210u;
            const uint32_t low = byte_of_16(TABLE::low0, TABLE::low1, TABLE::low2, TABLE::low3, nibbles, pick);
            const uint32_t high = byte_of_16(TABLE::high0, TABLE::high1, TABLE::high2, TABLE::high3, nibbles, pick);
            a[i / 2][i % 2] = prmt(low, high, 0x6240u);
            a[i / 2][i % 2 + 2] = prmt(low, high, 0x7351u);
        }
    }
    __device__ static __forceinline__ void scales(const tile &w, int, float (&s)[2]) {
        s[0] = __uint_as_float(w.d.x);
        s[1] = __uint_as_float(w.d.y);
    }
};
struct weights_nf4 : weights_fractions<nf4_table> {};
struct weights_fp4 : weights_fractions<fp4_table> {};

struct weights_f16 {
    static constexpr int columns = 64, bytes = 2048, stage_bytes = 2 * bytes, unit_f16 = 1, group = 32;
    static constexpr bool has_mins = false, is_halves = true, has_codes = false;
    struct tile {
        uint4 a[4]; /* of both halves of both groups */
    };
    __device__ static __forceinline__ tile load(gptr<const uint8_t> p, int lane) {
        gptr<const uint4> a = as<const uint4>(p) + lane;
        return {{load_once(a), load_once(a + 32), load_once(a + 64), load_once(a + 96)}};
    }
    __device__ static __forceinline__ tile load_part(sptr<const uint8_t> p, int part, int lane) {
        sptr<const uint4> a = as<const uint4>(p + part * bytes) + lane;
        return {{a[0], a[32], a[64], a[96]}};
    }
    __device__ static __forceinline__ void halves(const tile &w, int j, uint32_t (&a)[2][4]) {
        UNROLL
        for (int i = 0; i < 8; i++) a[i / 4][i % 4] = word_of(w.a[2 * j + i / 4], i % 4);
    }
    __device__ static __forceinline__ void scales(const tile &, int, float (&s)[2]) { s[0] = s[1] = 1.0f; }
};

/* acc[i] += c[i] * s[row]; i: rows g, g, g + 8, g + 8, tokens 2t, 2t + 1, 2t, 2t + 1. */
__device__ __forceinline__ void add_scaled(float (&acc)[4], const float (&c)[4], const float (&s)[2]) {
    acc[0] = fmaf(c[0], s[0], acc[0]);
    acc[1] = fmaf(c[1], s[0], acc[1]);
    acc[2] = fmaf(c[2], s[1], acc[2]);
    acc[3] = fmaf(c[3], s[1], acc[3]);
}

/* An element of 32 columns of activations that a warp has, as f16, and the sum of all 32. */
struct half_of_group {
    uint16_t half;
    float sum;
};
__device__ __forceinline__ half_of_group round_group(float v) {
    const uint16_t half = static_cast<uint16_t>(h2_from_floats(v, 0.0f));
    float sum = h_to_float(half);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(WARP_ALL, sum, step);
    return {half, sum};
}

/* Is a scale for more than the 32 columns of a `multiply`? Then that leaves products as they are; when all are summed
 * the sums are scaled, once. */
template <class W> constexpr bool scaled_later = W::group > 32;

/* Group j of a tile times f16 activations: a as `halves` made it, b operand B of both mmas. f32 sums of `group`
 * products each, which are scaled (or not: scaled_later) and added to acc. */
template <class W>
__device__ __forceinline__ void multiply(const typename W::tile &w, int j, const uint32_t (&a)[2][4],
                                         const uint32_t (&b)[4], float (&acc)[4]) {
    float s[2], c[4] = {0, 0, 0, 0};
    if constexpr (scaled_later<W>) {
        mma_f16(acc, a[0], {b[0], b[1]});
        mma_f16(acc, a[1], {b[2], b[3]});
    } else if constexpr (W::group == 32) {
        mma_f16(c, a[0], {b[0], b[1]});
        mma_f16(c, a[1], {b[2], b[3]});
        W::scales(w, j, s);
        add_scaled(acc, c, s);
    } else {
        mma_f16(c, a[0], {b[0], b[1]});
        float e[4] = {0, 0, 0, 0};
        mma_f16(e, a[1], {b[2], b[3]});
        W::scales(w, 2 * j, s);
        add_scaled(acc, c, s);
        W::scales(w, 2 * j + 1, s);
        add_scaled(acc, e, s);
    }
}

/* acc[i] += m[row] * sum[token] */
__device__ __forceinline__ void add_mins(float (&acc)[4], const float (&m)[2], float2 sums) {
    acc[0] = fmaf(m[0], sums.x, acc[0]);
    acc[1] = fmaf(m[0], sums.y, acc[1]);
    acc[2] = fmaf(m[1], sums.x, acc[2]);
    acc[3] = fmaf(m[1], sums.y, acc[3]);
}

/* f of the struct of a matrix's layout; nothing if there is none (cuda_pack_bytes is 0 then, so nobody has such a
 * matrix). */
template <class F> void with_weights(const cuda_matrix *w, F f) {
    switch (w->type) {
    case LLMQ_TYPE_Q4_0:
        return w->group == 128 ? f(weights_q4_0_128()) : w->group == 64 ? f(weights_q4_0_64()) : f(weights_q4_0());
    case LLMQ_TYPE_Q4_1:
        return w->group == 128 ? f(weights_q4_1_128()) : w->group == 64 ? f(weights_q4_1_64()) : f(weights_q4_1());
    case LLMQ_TYPE_Q5_0:
        return w->group == 128 ? f(weights_q5_0_128()) : w->group == 64 ? f(weights_q5_0_64()) : f(weights_q5_0_32());
    case LLMQ_TYPE_IQ4_NL: return f(weights_iq4_nl());
    case LLMQ_TYPE_Q8_0: return f(weights_q8_0());
    case LLMQ_TYPE_F16: return f(weights_f16());
    case LLMQ_TYPE_Q4_K: return f(weights_q4_k());
    case LLMQ_TYPE_Q6_K: return f(weights_q6_k());
    case LLMQ_TYPE_IQ4_XS: return f(weights_iq4_xs());
    case LLMQ_TYPE_NF4: return f(weights_nf4());
    case LLMQ_TYPE_FP4: return f(weights_fp4());
    default: return;
    }
}

#endif
