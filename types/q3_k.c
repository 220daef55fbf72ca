#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {.levels = BITS_RAMP(-4),
                                   .n_levels = 8,
                                   .uniform = true,
                                   .fan_from = 0.65f,
                                   .fan_to = 2.2f,
                                   .n_fan = 12,
                                   .sc_min = -32,
                                   .sc_max = 31};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q3_k *b = block;
    grid->d = f16_to_f32(b->d);
    grid->dmin = 0.0f;
    memset(grid->mn, 0, sizeof grid->mn);
    for (int s = 0; s < 16; s++) {
        int low = s < 8 ? b->scales[s] & 15 : b->scales[s - 8] >> 4;
        grid->sc[s] = (int8_t)((low | (b->scales[8 + s % 4] >> 2 * (s / 4) & 3) << 4) - 32);
    }
    pairs_get(b->qs, codes);
    for (int c = 0; c < 8; c++)
        for (int l = 0; l < 32; l++) codes[32 * c + l] |= (uint8_t)((b->hmask[l] >> c & 1) << 2);
    grid_expand(grid, 16, false);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q3_k *b = block;
    b->d = f32_to_f16(grid->d);
    memset(b->scales, 0, sizeof b->scales);
    for (int s = 0; s < 16; s++) {
        unsigned v = (unsigned)(grid->sc[s] + 32) & 63u;
        b->scales[s % 8] |= (uint8_t)((v & 15) << (s < 8 ? 0 : 4));
        b->scales[8 + s % 4] |= (uint8_t)((v >> 4) << 2 * (s / 4));
    }
    pairs_set(codes, b->qs);
    memset(b->hmask, 0, sizeof b->hmask);
    for (int c = 0; c < 8; c++)
        for (int l = 0; l < 32; l++) b->hmask[l] |= (uint8_t)((codes[32 * c + l] >> 2 & 1) << c);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_super_scaled(&search, 16, x, importance, grid);
}

const llmq_type_info type_q3_k = {
    .id = LLMQ_TYPE_Q3_K,
    .name = "q3_k",
    .ftype = 11,
    .bits = 3,
    .block_len = QK_K,
    .block_bytes = sizeof(block_q3_k),
    .group_len = 16,
    .levels = BITS_RAMP(-4),
    .n_levels = 8,
    .uniform = true,
    .form = GRID_SUPER,
    .search = &search,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
