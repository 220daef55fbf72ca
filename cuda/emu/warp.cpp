/* Warp operations other than the tensor cores' (ptx.md 4). */
#include <cmath>

#include "cuda/emu/simt.h"

namespace emu {

static const warp_op op_syncwarp = {"__syncwarp", true, false, nullptr};

/* ---- shuffles */

namespace {
struct shuffle_operands {
    int mode, b, width;
    uint32_t value, result;
};
} // namespace

/* The lane that `lane` reads, as PTX defines it; its own where the other is out of range. */
static int shuffle_source(int mode, int lane, int b, int width) {
    int b5 = b & 31, segment = (32 - width) & 31, low = lane & segment, high = low | (31 & ~segment), j;
    switch (mode) {
    case SHFL_UP: j = lane - b5; return j >= low ? j : lane;
    case SHFL_DOWN: j = lane + b5; return j <= high ? j : lane;
    case SHFL_XOR: j = lane ^ b5; return j <= high ? j : lane;
    default: return low | (b5 & ~segment & 31);
    }
}

static void shuffle_execute(warp_lanes &lanes) {
    for (int lane = 0; lane < 32; lane++) {
        auto *o = lanes.get<shuffle_operands>(lane);
        if (!o) continue;
        int from = shuffle_source(o->mode, lane, o->b, o->width);
        if (!lanes.operands[from])
            return fail_lane(lanes, lane, EMU_MASK, "a shuffle reads lane %d, which is outside the mask or has left",
                             from);
        o->result = lanes.get<shuffle_operands>(from)->value;
    }
}

uint32_t shuffle(int mode, unsigned mask, uint32_t value, int b, int width, site at) {
    static const warp_op ops[4] = {{"__shfl_up_sync", false, false, shuffle_execute},
                                   {"__shfl_down_sync", false, false, shuffle_execute},
                                   {"__shfl_xor_sync", false, false, shuffle_execute},
                                   {"__shfl_sync", false, false, shuffle_execute}};
    if (width < 1 || width > 32 || (width & (width - 1)))
        stop(EMU_ARGUMENT, at, {}, "the width is a power of two up to 32");
    shuffle_operands o = {mode, b, width, value, 0};
    warp_meet(ops[mode], mask, &o, at);
    return o.result;
}

/* ---- votes, match, reduce */

namespace {
struct vote_operands {
    unsigned value, result;
};
} // namespace

static void ballot_execute(warp_lanes &lanes) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++)
        if (lanes.operands[lane] && lanes.get<vote_operands>(lane)->value) bits |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (lanes.operands[lane]) lanes.get<vote_operands>(lane)->result = bits;
}

unsigned vote(int mode, unsigned mask, bool predicate, site at) {
    static const warp_op ops[3] = {{"__ballot_sync", false, false, ballot_execute},
                                   {"__any_sync", false, false, ballot_execute},
                                   {"__all_sync", false, false, ballot_execute}};
    vote_operands o = {mode == VOTE_ALL ? !predicate : predicate, 0}; /* all: nobody says no */
    warp_meet(ops[mode], mask, &o, at);
    return mode == VOTE_BALLOT ? o.result : mode == VOTE_ANY ? o.result != 0 : o.result == 0;
}

static void match_execute(warp_lanes &lanes) {
    for (int lane = 0; lane < 32; lane++) {
        auto *o = lanes.get<vote_operands>(lane);
        if (!o) continue;
        o->result = 0;
        for (int other = 0; other < 32; other++)
            if (lanes.operands[other] && lanes.get<vote_operands>(other)->value == o->value) o->result |= 1u << other;
    }
}

unsigned match(unsigned mask, uint32_t value, site at) {
    static const warp_op op = {"__match_any_sync", false, false, match_execute};
    vote_operands o = {value, 0};
    warp_meet(op, mask, &o, at);
    return o.result;
}

static unsigned combine(int mode, unsigned a, unsigned b) {
    auto x = static_cast<int>(a), y = static_cast<int>(b);
    switch (mode) {
    case REDUCE_ADD: return a + b;
    case REDUCE_MIN: return x < y ? a : b;
    case REDUCE_MAX: return x > y ? a : b;
    case REDUCE_AND: return a & b;
    case REDUCE_OR: return a | b;
    default: return a ^ b;
    }
}

template <int MODE> static void reduce_execute(warp_lanes &lanes) {
    bool any = false;
    unsigned result = 0;
    for (int lane = 0; lane < 32; lane++) {
        if (!lanes.operands[lane]) continue;
        unsigned value = lanes.get<vote_operands>(lane)->value;
        result = any ? combine(MODE, result, value) : value;
        any = true;
    }
    for (int lane = 0; lane < 32; lane++)
        if (lanes.operands[lane]) lanes.get<vote_operands>(lane)->result = result;
}

unsigned reduce(int mode, unsigned mask, unsigned value, site at) {
    static const warp_op ops[6] = {{"__reduce_add_sync", false, false, reduce_execute<REDUCE_ADD>},
                                   {"__reduce_min_sync", false, false, reduce_execute<REDUCE_MIN>},
                                   {"__reduce_max_sync", false, false, reduce_execute<REDUCE_MAX>},
                                   {"__reduce_and_sync", false, false, reduce_execute<REDUCE_AND>},
                                   {"__reduce_or_sync", false, false, reduce_execute<REDUCE_OR>},
                                   {"__reduce_xor_sync", false, false, reduce_execute<REDUCE_XOR>}};
    vote_operands o = {value, 0};
    warp_meet(ops[mode], mask, &o, at);
    return o.result;
}

} // namespace emu

void __syncwarp(unsigned mask, emu::site at) {
    emu::warp_meet(emu::op_syncwarp, mask, nullptr, at);
}

int __float2int_rn(float x) {
    if (x != x) return 0;
    if (x >= 2147483648.0f) return 0x7fffffff;
    if (x <= -2147483648.0f) return -0x7fffffff - 1;
    return static_cast<int>(nearbyintf(x));
}
