#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {
    .levels = bits_iq4_nl, .n_levels = 16, .uniform = false, .fan_from = 0.7f, .fan_to = 1.6f, .n_fan = 12};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_iq4_nl *b = block;
    grid_single(grid, f16_to_f32(b->d), 0.0f);
    nibbles_get(b->qs, QK / 2, codes);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_iq4_nl *b = block;
    b->d = f32_to_f16(grid->d);
    nibbles_set(codes, QK / 2, b->qs);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_scaled(&search, x, importance, grid);
}

const llmq_type_info type_iq4_nl = {
    .id = LLMQ_TYPE_IQ4_NL,
    .name = "iq4_nl",
    .ftype = 25,
    .bits = 4,
    .block_len = QK,
    .block_bytes = sizeof(block_iq4_nl),
    .group_len = QK,
    .levels = bits_iq4_nl,
    .n_levels = 16,
    .uniform = false,
    .form = GRID_SCALE,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
