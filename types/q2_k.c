#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {
    .levels = BITS_RAMP(0), .n_levels = 4, .uniform = true, .fan_from = 0.8f, .fan_to = 2.5f, .n_fan = 5, .sc_max = 15};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q2_k *b = block;
    grid->d = f16_to_f32(b->d);
    grid->dmin = f16_to_f32(b->dmin);
    for (int g = 0; g < 16; g++) {
        grid->sc[g] = (int8_t)(b->scales[g] & 15);
        grid->mn[g] = b->scales[g] >> 4;
    }
    pairs_get(b->qs, codes);
    grid_expand(grid, 16, true);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q2_k *b = block;
    b->d = f32_to_f16(grid->d);
    b->dmin = f32_to_f16(grid->dmin);
    for (int g = 0; g < 16; g++) b->scales[g] = (uint8_t)((grid->sc[g] & 15) | (grid->mn[g] & 15) << 4);
    pairs_set(codes, b->qs);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_super_affine(&search, 16, x, importance, grid);
}

const llmq_type_info type_q2_k = {
    .id = LLMQ_TYPE_Q2_K,
    .name = "q2_k",
    .ftype = 10,
    .bits = 2,
    .block_len = QK_K,
    .block_bytes = sizeof(block_q2_k),
    .group_len = 16,
    .levels = BITS_RAMP(0),
    .n_levels = 4,
    .uniform = true,
    .form = GRID_SUPER_AFFINE,
    .search = &search,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
