#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {.levels = bits_iq4_nl,
                                   .n_levels = 16,
                                   .uniform = false,
                                   .fan_from = 0.7f,
                                   .fan_to = 1.6f,
                                   .n_fan = 12,
                                   .sc_min = -32,
                                   .sc_max = 31};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_iq4_xs *b = block;
    grid->d = f16_to_f32(b->d);
    grid->dmin = 0.0f;
    memset(grid->mn, 0, sizeof grid->mn);
    for (int g = 0; g < 8; g++) {
        int low = b->scales_l[g / 2] >> 4 * (g % 2) & 15;
        grid->sc[g] = (int8_t)((low | (b->scales_h >> 2 * g & 3) << 4) - 32);
        nibbles_get(b->qs + 16 * g, 16, codes + 32 * g);
    }
    grid_expand(grid, 8, false);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_iq4_xs *b = block;
    b->d = f32_to_f16(grid->d);
    unsigned scales_h = 0;
    memset(b->scales_l, 0, sizeof b->scales_l);
    for (int g = 0; g < 8; g++) {
        unsigned v = (unsigned)(grid->sc[g] + 32) & 63u;
        b->scales_l[g / 2] |= (uint8_t)((v & 15) << 4 * (g % 2));
        scales_h |= (v >> 4) << 2 * g;
        nibbles_set(codes + 32 * g, 16, b->qs + 16 * g);
    }
    b->scales_h = (uint16_t)scales_h;
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_super_scaled(&search, 8, x, importance, grid);
}

const llmq_type_info type_iq4_xs = {
    .id = LLMQ_TYPE_IQ4_XS,
    .name = "iq4_xs",
    .ftype = 30,
    .bits = 4,
    .block_len = QK_K,
    .block_bytes = sizeof(block_iq4_xs),
    .group_len = 32,
    .levels = bits_iq4_nl,
    .n_levels = 16,
    .uniform = false,
    .form = GRID_SUPER,
    .search = &search,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
