#include "types/bits.h"
#include "types/search.h"

static const llmq_search search = {
    .levels = BITS_RAMP(0), .n_levels = 32, .uniform = true, .fan_from = 0.88f, .fan_to = 1.08f, .n_fan = 6};

static void unpack(const void *block, llmq_grid *grid, uint8_t *codes) {
    const block_q5_1 *b = block;
    grid_single(grid, f16_to_f32(b->d), f16_to_f32(b->m));
    nibbles_get(b->qs, QK / 2, codes);
    fifth_get(b->qh, codes);
}

static void pack(const llmq_grid *grid, const uint8_t *codes, void *block) {
    block_q5_1 *b = block;
    b->d = f32_to_f16(grid->d);
    b->m = f32_to_f16(grid->offset[0]);
    nibbles_set(codes, QK / 2, b->qs);
    fifth_set(codes, b->qh);
}

static void fit(const float *x, const float *importance, llmq_grid *grid) {
    search_fit_affine(&search, x, importance, grid);
}

const llmq_type_info type_q5_1 = {
    .id = LLMQ_TYPE_Q5_1,
    .name = "q5_1",
    .ftype = 9,
    .bits = 5,
    .block_len = QK,
    .block_bytes = sizeof(block_q5_1),
    .group_len = QK,
    .levels = BITS_RAMP(0),
    .n_levels = 32,
    .uniform = true,
    .form = GRID_AFFINE,
    .unpack = unpack,
    .pack = pack,
    .fit = fit,
};
