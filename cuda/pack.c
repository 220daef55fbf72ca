/* Native rows to the tiles of cuda/layout.h, type by type, through unpack of types/: codes and scales are the file's.
 */
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "types/type.h"

#define BLOCK_BYTES_MOST 256 /* of a type with a layout: Q6_K has 210 */

typedef struct tile_layout {
    llmq_type type;
    int group, columns, bytes;
} tile_layout;

static const tile_layout *layout_of(llmq_type type, int group) {
    static const tile_layout layouts[] = {
#define X(type, group, columns, bytes) {LLMQ_TYPE_##type, group, columns, bytes},
        CUDA_LAYOUTS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].type == type && layouts[i].group == group) return &layouts[i];
    return NULL;
}

static int64_t tiles_of(int64_t n, int64_t each) {
    return (n + each - 1) / each;
}

llmq_type cuda_packed_type(llmq_type native) {
    return layout_of(native, 0) ? native : LLMQ_TYPE_F16;
}

size_t cuda_pack_bytes(llmq_type packed_type, int group, int64_t rows, int64_t cols) {
    const tile_layout *l = layout_of(packed_type, group);
    if (!l || rows < 1 || cols < 1) return 0;
    if (packed_type != LLMQ_TYPE_F16 && cols % type_info(packed_type)->block_len) return 0;
    return (size_t)(tiles_of(rows, TILE_ROWS) * tiles_of(cols, l->columns) * l->bytes);
}

int cuda_group_of(llmq_type native, int64_t shared, int64_t cols) {
    static const int groups[] = {32, 64, 128};
    size_t least = cuda_pack_bytes(cuda_packed_type(native), 0, TILE_ROWS, cols);
    int best = 0;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        const size_t bytes = cuda_pack_bytes(native, groups[i], TILE_ROWS, cols);
        if (!bytes || bytes > least || shared < 1 || (shared < cols && shared % groups[i])) continue;
        best = groups[i];
        least = bytes;
    }
    return best;
}

/* A block at any address: a file says where tensors begin. */
static void unpack_block(const llmq_type_info *info, const uint8_t *block, llmq_grid *grid, uint8_t *codes) {
    _Alignas(8) uint8_t copy[BLOCK_BYTES_MOST];
    LLMQ_ASSERT(info->block_bytes <= BLOCK_BYTES_MOST);
    info->unpack(memcpy(copy, block, (size_t)info->block_bytes), grid, codes);
}

/* Have n blocks the same numbers, to the bit, and no more than 16 neighbouring levels? */
static bool are_group(const llmq_type_info *info, const uint8_t *block, int64_t n) {
    llmq_grid first, grid;
    uint8_t codes[TYPE_MAX_BLOCK];
    int low = UINT8_MAX, high = 0;
    for (int64_t b = 0; b < n; b++, block += info->block_bytes) {
        unpack_block(info, block, &grid, codes);
        if (b == 0) first = grid;
        if (memcmp(&grid.d, &first.d, sizeof grid.d) || memcmp(grid.offset, first.offset, sizeof *grid.offset))
            return false;
        for (int i = 0; i < info->block_len; i++) {
            low = codes[i] < low ? codes[i] : low;
            high = codes[i] > high ? codes[i] : high;
        }
    }
    return high - low < 16;
}

static bool all_in_groups(const llmq_type_info *info, int64_t rows, int64_t cols, int group, const uint8_t *block) {
    const int64_t row_blocks = cols / info->block_len, each = group / info->block_len;
    for (int64_t r = 0; r < rows; r++, block += row_blocks * info->block_bytes)
        for (int64_t b = 0; b < row_blocks; b += each)
            if (!are_group(info, block + b * info->block_bytes, row_blocks - b < each ? row_blocks - b : each))
                return false;
    return true;
}

int cuda_shared_columns(llmq_type native, int64_t rows, int64_t cols, const void *data) {
    for (int group = 128; group >= 32; group /= 2)
        if (layout_of(native, group) && all_in_groups(type_info(native), rows, cols, group, data)) return group;
    return 0;
}

/* One tile taken apart: up to 16 rows of up to 256 columns. */
typedef struct open_tile {
    uint8_t codes[TILE_ROWS][256];
    llmq_grid grid[TILE_ROWS][4]; /* by block: 2 or 4 of 32 columns, or 1 of 256. Of a group the first counts */
} open_tile;

static void open_row(const llmq_type_info *info, const uint8_t *block, int64_t blocks, open_tile *t, int row) {
    for (int64_t b = 0; b < blocks; b++)
        unpack_block(info, block + b * info->block_bytes, &t->grid[row][b], t->codes[row] + b * info->block_len);
}

/* The code that byte e of a[i] holds for a lane, in group j. */
static uint8_t code_at(const open_tile *t, int lane, int j, int i, int e) {
    int row = lane / 4 + 8 * (i & 1), column = 32 * j + 4 * (lane % 4) + 16 * (i >> 1) + e;
    return t->codes[row][column];
}

/* flip: 8 makes two's complement of codes that mean code - 8. */
static void put_nibbles(const open_tile *t, int columns, bool in_order, uint32_t flip, uint8_t *out) {
    for (int lane = 0; lane < 32; lane++) {
        for (int j = 0; j < columns / 32; j++) {
            for (int row = 0; row < 2; row++) {
                uint32_t word = 0;
                for (int e = 0; e < 4; e++) {
                    uint32_t low = (code_at(t, lane, j, row, e) & 15) ^ flip;
                    uint32_t high = (code_at(t, lane, j, row + 2, e) & 15) ^ flip;
                    word |= low << (in_order ? 4 * e : 8 * e) | high << (in_order ? 16 + 4 * e : 8 * e + 4);
                }
                memcpy(out + j / 2 * 512 + lane * 16 + j % 2 * 8 + row * 4, &word, 4);
            }
        }
    }
}

static void put_pairs(const open_tile *t, uint8_t *out) {
    for (int lane = 0; lane < 32; lane++) {
        for (int j = 0; j < 8; j++) {
            uint32_t word = 0;
            for (int i = 0; i < 4; i++)
                for (int e = 0; e < 4; e++)
                    word |= ((uint32_t)(code_at(t, lane, j, i, e) >> 4 & 3) ^ 2) << (8 * e + 2 * i);
            memcpy(out + j / 2 * 256 + lane * 8 + j % 2 * 4, &word, 4);
        }
    }
}

static void put_bytes(const open_tile *t, uint8_t *out) {
    for (int lane = 0; lane < 32; lane++)
        for (int j = 0; j < 2; j++)
            for (int i = 0; i < 4; i++)
                for (int e = 0; e < 4; e++)
                    out[j * 512 + lane * 16 + i * 4 + e] = (uint8_t)(code_at(t, lane, j, i, e) - 128);
}

static void put_f16(float x, uint8_t *out) {
    uint16_t half = f32_to_f16(x);
    memcpy(out, &half, sizeof half);
}

/* Of n groups: d of rows g and g + 8, and m where there is one. */
static void put_scales(const open_tile *t, int n, bool mins, uint8_t *out) {
    for (int g = 0; g < 8; g++)
        for (int j = 0; j < n; j++)
            for (int high = 0; high < 2; high++) {
                const llmq_grid *grid = &t->grid[g + 8 * high][j];
                uint8_t *at = out + (g * n + j) * (mins ? 8 : 4) + high * 2;
                put_f16(grid->d, at);
                if (mins) put_f16(grid->offset[0], at + 4);
            }
}

static void put_scales_q4_k(const open_tile *t, uint8_t *out) {
    for (int g = 0; g < 8; g++)
        for (int high = 0; high < 2; high++) {
            const llmq_grid *grid = &t->grid[g + 8 * high][0];
            for (int j = 0; j < 8; j++) {
                uint8_t *at = out + j / 4 * 128 + g * 16 + j % 4 * 4 + high;
                at[0] = (uint8_t)grid->sc[j];
                at[2] = grid->mn[j];
            }
            put_f16(grid->d, out + 256 + g * 8 + high * 2);
            put_f16(grid->dmin, out + 256 + g * 8 + 4 + high * 2);
        }
}

/* Signed bytes of a super-block, `half` groups of each row and then the others; after them d. */
static void put_scales_signed(const open_tile *t, int half, uint8_t *out) {
    for (int g = 0; g < 8; g++)
        for (int high = 0; high < 2; high++) {
            const llmq_grid *grid = &t->grid[g + 8 * high][0];
            for (int j = 0; j < 2 * half; j++)
                out[j / half * 16 * half + g * 2 * half + j % half * 2 + high] = (uint8_t)grid->sc[j];
            put_f16(grid->d, out + 32 * half + g * 4 + high * 2);
        }
}

static void put_scales_f32(const open_tile *t, uint8_t *out) {
    for (int row = 0; row < TILE_ROWS; row++)
        memcpy(out + row % 8 * 8 + row / 8 * 4, &t->grid[row][0].scale[0], sizeof(float));
}

static void close_tile(const open_tile *t, const tile_layout *l, uint8_t *out) {
    switch (l->type) {
    case LLMQ_TYPE_Q8_0:
        put_bytes(t, out);
        put_scales(t, 2, false, out + 1024);
        break;
    case LLMQ_TYPE_Q4_K:
        put_nibbles(t, 256, false, 0, out);
        put_scales_q4_k(t, out + 2048);
        break;
    case LLMQ_TYPE_Q6_K:
        put_nibbles(t, 256, false, 0, out);
        put_pairs(t, out + 2048);
        put_scales_signed(t, 8, out + 3072);
        break;
    case LLMQ_TYPE_IQ4_XS:
        put_nibbles(t, 256, true, 0, out);
        put_scales_signed(t, 4, out + 2048);
        break;
    case LLMQ_TYPE_NF4:
    case LLMQ_TYPE_FP4:
        put_nibbles(t, 64, true, 0, out);
        put_scales_f32(t, out + 512);
        break;
    default:
        put_nibbles(t, l->columns, l->type == LLMQ_TYPE_IQ4_NL, l->type == LLMQ_TYPE_Q4_0 ? 8 : 0, out);
        put_scales(t, l->group ? l->columns / l->group : 2, l->type == LLMQ_TYPE_Q4_1 || l->type == LLMQ_TYPE_Q5_0,
                   out + l->columns / 2 * TILE_ROWS);
        break;
    }
}

/* The codes of n blocks of a row that are one group become nibbles above the lowest of them; its level goes where a
 * minimum would be. */
static void lower_codes(open_tile *t, int row, int64_t block, int64_t n, const llmq_type_info *info) {
    uint8_t *codes = t->codes[row] + block * info->block_len, low = UINT8_MAX;
    for (int64_t i = 0; i < n * info->block_len; i++) low = codes[i] < low ? codes[i] : low;
    for (int64_t i = 0; i < n * info->block_len; i++) codes[i] = (uint8_t)(codes[i] - low);
    t->grid[row][block].offset[0] = info->levels[low];
}

static void pack_quantized(const tile_layout *l, int64_t rows, int64_t cols, const uint8_t *data, uint8_t *out) {
    const llmq_type_info *info = type_info(l->type);
    int64_t row_bytes = type_row_bytes(l->type, cols);
    for (int64_t r = 0; r < rows; r += TILE_ROWS) {
        for (int64_t c = 0; c < cols; c += l->columns, out += l->bytes) {
            int64_t left = cols - c < l->columns ? cols - c : l->columns;
            open_tile t;
            memset(&t, 0, sizeof t);
            for (int row = 0; row < TILE_ROWS && r + row < rows; row++) {
                open_row(info, data + (r + row) * row_bytes + c / info->block_len * info->block_bytes,
                         left / info->block_len, &t, row);
                for (int64_t at = 0; l->type == LLMQ_TYPE_Q5_0 && at < left; at += l->group)
                    lower_codes(&t, row, at / info->block_len,
                                (left - at < l->group ? left - at : l->group) / info->block_len, info);
            }
            close_tile(&t, l, out);
        }
    }
}

/* Rows as f16, cols padded to tiles with zeros: x (TILE_ROWS, padded). */
static llmq_status rows_to_f16(llmq_type type, int64_t rows, int64_t cols, const uint8_t *data, int64_t padded,
                               void *native, float *wide, uint16_t *x, llmq_err *err) {
    int64_t row_bytes = type_row_bytes(type, cols);
    memset(x, 0, (size_t)(TILE_ROWS * padded) * sizeof *x);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(native, data + r * row_bytes, (size_t)row_bytes); /* rows of a file lie at any address */
        type_to_f32(type, native, wide, cols);
        for (int64_t c = 0; c < cols; c++) {
            x[r * padded + c] = f32_to_f16(wide[c]);
            if (isfinite(wide[c]) && fabsf(wide[c]) >= 65520.0f)
                return llmq_fail(err, LLMQ_E_NUMERIC,
                                 "a weight of %g is too large for f16, which the GPU multiplies with; use --device cpu",
                                 (double)wide[c]);
        }
    }
    return LLMQ_OK;
}

static void put_halves(const uint16_t *x, int64_t padded, int64_t column, uint8_t *out) {
    static const int first[4] = {0, 0, 1, 1}; /* of the column pairs of a[0..3]: 0 and 2, or 1 and 3 */
    for (int part = 0; part < 4; part++)
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                const uint16_t *row = x + (lane / 4 + 8 * (i & 1)) * padded + column + 16 * part + lane % 4 * 4;
                memcpy(out + part * 512 + lane * 16 + i * 4, row + first[i], 2);
                memcpy(out + part * 512 + lane * 16 + i * 4 + 2, row + first[i] + 2, 2);
            }
}

static llmq_status pack_f16(llmq_type type, int64_t rows, int64_t cols, const uint8_t *data, uint8_t *out,
                            llmq_err *err) {
    const tile_layout *l = layout_of(LLMQ_TYPE_F16, 0);
    int64_t padded = tiles_of(cols, l->columns) * l->columns, row_bytes = type_row_bytes(type, cols);
    llmq_status status = LLMQ_OK;
    uint16_t *x = mem_alloc((size_t)padded, TILE_ROWS * sizeof *x);
    float *wide = mem_alloc((size_t)cols, sizeof *wide);
    void *native = mem_alloc((size_t)row_bytes, 1);
    if (!x || !wide || !native) LLMQ_TRY_GOTO(mem_error(err, (size_t)padded * 40, "packing weights for the GPU"));
    for (int64_t r = 0; r < rows; r += TILE_ROWS) {
        int64_t n = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        LLMQ_TRY_GOTO(rows_to_f16(type, n, cols, data + r * row_bytes, padded, native, wide, x, err));
        for (int64_t c = 0; c < padded; c += l->columns, out += l->bytes) put_halves(x, padded, c, out);
    }
done:
    mem_free(x);
    mem_free(wide);
    mem_free(native);
    return status;
}

llmq_status cuda_pack(llmq_type native, int group, int64_t rows, int64_t cols, const void *data, void *packed,
                      llmq_err *err) {
    if (!group && cuda_packed_type(native) == LLMQ_TYPE_F16) return pack_f16(native, rows, cols, data, packed, err);
    pack_quantized(layout_of(native, group), rows, cols, data, packed);
    return LLMQ_OK;
}
