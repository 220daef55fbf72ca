/* -128 is a level, since any byte may come in a file; the search itself aims at the symmetric -127..127. */
#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {
    .levels = BITS_RAMP(-127), .n_levels = 255, .uniform = true, .fan_from = 0.9f, .fan_to = 1.004f, .n_fan = 16};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q8_0 *b = block;
    grid_single(grid, f16_to_f32(b->d), 0.0f);
    for (int i = 0; i < QK; i++) codes[i] = (uint8_t)(b->qs[i] + 128);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q8_0 *b = block;
    b->d = f32_to_f16(grid->d);
    for (int i = 0; i < QK; i++) b->qs[i] = (int8_t)(codes[i] - 128);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_scaled(&search, x, importance, grid);
}

const llmq_type_info type_q8_0 = {
    .id = LLMQ_TYPE_Q8_0,
    .name = "q8_0",
    .ftype = 7,
    .bits = 8,
    .block_len = QK,
    .block_bytes = sizeof(block_q8_0),
    .group_len = QK,
    .levels = BITS_RAMP(-128),
    .n_levels = 256,
    .uniform = true,
    .form = GRID_SCALE,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
