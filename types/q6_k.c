#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {.levels = BITS_RAMP(-32),
                                   .n_levels = 64,
                                   .uniform = true,
                                   .fan_from = 0.74f,
                                   .fan_to = 1.08f,
                                   .n_fan = 16,
                                   .sc_min = -128,
                                   .sc_max = 127};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q6_k *b = block;
    grid->d = f16_to_f32(b->d);
    grid->dmin = 0.0f;
    memset(grid->mn, 0, sizeof grid->mn);
    memcpy(grid->sc, b->scales, sizeof b->scales);
    for (int h = 0; h < 2; h++) {
        uint8_t *c = codes + 128 * h;
        nibbles_get(b->ql + 64 * h, 64, c);
        for (int l = 0; l < 32; l++) {
            unsigned high = b->qh[32 * h + l];
            for (int j = 0; j < 4; j++) c[32 * j + l] |= (uint8_t)((high >> 2 * j & 3) << 4);
        }
    }
    grid_expand(grid, 16, false);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q6_k *b = block;
    b->d = f32_to_f16(grid->d);
    memcpy(b->scales, grid->sc, sizeof b->scales);
    for (int h = 0; h < 2; h++) {
        const uint8_t *c = codes + 128 * h;
        nibbles_set(c, 64, b->ql + 64 * h);
        for (int l = 0; l < 32; l++) {
            unsigned high = 0;
            for (int j = 0; j < 4; j++) high |= (c[32 * j + l] >> 4 & 3u) << 2 * j;
            b->qh[32 * h + l] = (uint8_t)high;
        }
    }
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_super_scaled(&search, 16, x, importance, grid);
}

const llmq_type_info type_q6_k = {
    .id = LLMQ_TYPE_Q6_K,
    .name = "q6_k",
    .ftype = 18,
    .bits = 6,
    .block_len = QK_K,
    .block_bytes = sizeof(block_q6_k),
    .group_len = 16,
    .levels = BITS_RAMP(-32),
    .n_levels = 64,
    .uniform = true,
    .form = GRID_SUPER,
    .search = &search,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
