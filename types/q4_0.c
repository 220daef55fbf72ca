#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {
    .levels = BITS_RAMP(-8), .n_levels = 16, .uniform = true, .fan_from = 0.75f, .fan_to = 1.7f, .n_fan = 12};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q4_0 *b = block;
    grid_single(grid, f16_to_f32(b->d), 0.0f);
    nibbles_get(b->qs, QK / 2, codes);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q4_0 *b = block;
    b->d = f32_to_f16(grid->d);
    nibbles_set(codes, QK / 2, b->qs);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_scaled(&search, x, importance, grid);
}

const llmq_type_info type_q4_0 = {
    .id = LLMQ_TYPE_Q4_0,
    .name = "q4_0",
    .ftype = 2,
    .bits = 4,
    .block_len = QK,
    .block_bytes = sizeof(block_q4_0),
    .group_len = QK,
    .levels = BITS_RAMP(-8),
    .n_levels = 16,
    .uniform = true,
    .form = GRID_SCALE,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
