#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {.levels = BITS_RAMP(0),
                                   .n_levels = 16,
                                   .uniform = true,
                                   .fan_from = 0.9f,
                                   .fan_to = 1.3f,
                                   .n_fan = 5,
                                   .sc_max = 63};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q4_k *b = block;
    grid->d = f16_to_f32(b->d);
    grid->dmin = f16_to_f32(b->dmin);
    bits6_get(b->scales, grid->sc, grid->mn);
    for (int c = 0; c < 4; c++) nibbles_get(b->qs + 32 * c, 32, codes + 64 * c);
    grid_expand(grid, 8, true);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q4_k *b = block;
    b->d = f32_to_f16(grid->d);
    b->dmin = f32_to_f16(grid->dmin);
    bits6_set(grid->sc, grid->mn, b->scales);
    for (int c = 0; c < 4; c++) nibbles_set(codes + 64 * c, 32, b->qs + 32 * c);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_super_affine(&search, 8, x, importance, grid);
}

const llmq_type_info type_q4_k = {
    .id = LLMQ_TYPE_Q4_K,
    .name = "q4_k",
    .ftype = 14,
    .bits = 4,
    .block_len = QK_K,
    .block_bytes = sizeof(block_q4_k),
    .group_len = 32,
    .levels = BITS_RAMP(0),
    .n_levels = 16,
    .uniform = true,
    .form = GRID_SUPER_AFFINE,
    .search = &search,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
