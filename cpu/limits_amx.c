/* The probe of AMX: tdpbf16ps, 8192 multiply-adds each, on numbers that are not 0, for what is multiplied decides about
 * the power that the clock has to be lowered for. Reading is AVX-512's. */
#include "cpu/amx_square.h"
#include "cpu/cpu.h"

enum { SUMS = 4 }; /* as the kernels have; each waits for its own */

/* Of both signs, around 1. */
static void fill(uint16_t *tile, uint32_t state) {
    for (int i = 0; i < AMX_TILE / 2; i++) {
        state = state * 1664525 + 1013904223;
        tile[i] = (uint16_t)((state >> 16 & 0x80ff) | 0x3f00);
    }
}

static double products_amx(int64_t rounds, uint64_t *sum_out) {
    _Alignas(64) uint16_t factors[4][AMX_TILE / 2];
    _Alignas(64) uint64_t sums[AMX_TILE / 8];
    for (int i = 0; i < 4; i++) fill(factors[i], (uint32_t)i);
    amx_fence();
    amx_begin();
    zero_sums();
    _tile_loadd(4, factors[0], 64);
    _tile_loadd(5, factors[1], 64);
    _tile_loadd(6, factors[2], 64);
    _tile_loadd(7, factors[3], 64);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    amx_end();
    *sum_out = sums[0];
    return (double)rounds * SUMS * AMX_SIDE * AMX_SIDE * AMX_DEPTH;
}

void cpu_fill_limits_amx(llmq_backend_ops *ops) {
    ops->probe_products = products_amx;
    ops->product = "tdpbf16ps";
}
