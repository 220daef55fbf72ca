/* Makes the interleaved weight layouts (layout.h) from native rows. Baseline code: SIMD backends of any ISA share it.
 */
#include "cpu/layout.h"

#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "cpu/nf4.h"
#include "types/blocks.h"
#include "types/type.h"

#define PACK_COLS 256 /* a multiple of every block */

const cpu_layout *cpu_layout_of(int layout) {
    static const cpu_layout table[LAYOUT_BF16] = {
#define X(type, bits, group, two_level, mins, codebook, zero)                                                          \
    [LAYOUT_##type] = {LLMQ_TYPE_##type, bits, group, two_level, mins, codebook, zero},
        CPU_LAYOUTS(X)
#undef X
    };
    return layout > LAYOUT_NATIVE && layout < LAYOUT_BF16 ? &table[layout] : NULL;
}

static int layout_for(llmq_type type) {
    for (int i = LAYOUT_NATIVE + 1; i < LAYOUT_BF16; i++)
        if (cpu_layout_of(i)->type == type) return i;
    return LAYOUT_NATIVE;
}

llmq_status cpu_weight_init(llmq_weight *w, const llmq_tensor *t, llmq_err *err) {
    const llmq_type_info *info = type_info(t->type);
    int64_t rows = tensor_rows(t), cols = tensor_cols(t), row_bytes, bytes;
    if (!info)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "tensor %s: type %d has no kernels; quantize it to another type",
                         t->name, (int)t->type);
    if (rows <= 0 || cols <= 0 || (row_bytes = type_row_bytes(t->type, cols)) < 0)
        return llmq_fail(err, LLMQ_E_FORMAT,
                         "tensor %s: %lld columns are not whole blocks of %s; quantize it to another type", t->name,
                         (long long)cols, info->name);
    if (!t->data || !i64_mul(row_bytes, rows, &bytes) || bytes > t->bytes)
        return llmq_fail(err, LLMQ_E_FORMAT, "tensor %s: its data is missing or too short; download the file again",
                         t->name);
    *w = (llmq_weight){.native = *t,
                       .rows = rows,
                       .cols = cols,
                       .act = type_is_float(info) || is_nf4(t->type) ? ACT_F32 : ACT_Q8,
                       .layout = LAYOUT_NATIVE};
    return LLMQ_OK;
}

/* ---- codes and scales of one row */

static inline uint32_t load_word(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline void store_word(uint8_t *p, uint32_t v) {
    memcpy(p, &v, 4);
}
static inline void store_half(uint8_t *p, float x) {
    uint16_t h = f32_to_f16(x);
    memcpy(p, &h, 2);
}

/* Puts 32 codes of row r into their group at out. */
static void put_codes(int bits, const uint8_t *codes, uint8_t *out, int r) {
    uint32_t u[8], plane;
    for (int j = 0; j < 8; j++) u[j] = load_word(codes + 4 * j);
    out += 4 * r;
    if (bits == 8) {
        for (int j = 0; j < 8; j++) store_word(out + 64 * j, u[j]);
        return;
    }
    if (bits >= 4) {
        for (int j = 0; j < 4; j++) store_word(out + 64 * j, (u[j] & 0x0f0f0f0fu) | (u[j + 4] & 0x0f0f0f0fu) << 4);
        for (int j = 0; j < 8; j++) u[j] = u[j] >> 4 & 0x0f0f0f0fu;
        out += 256;
    }
    if (bits == 2 || bits == 3 || bits == 6) {
        for (int i = 0; i < 2; i++, out += 64) {
            plane = 0;
            for (int t = 0; t < 4; t++) plane |= (u[i + 2 * t] & 0x03030303u) << 2 * t;
            store_word(out, plane);
        }
        for (int j = 0; j < 8; j++) u[j] = u[j] >> 2 & 0x03030303u;
    }
    if (bits == 3 || bits == 5) {
        plane = 0;
        for (int j = 0; j < 8; j++) plane |= (u[j] & 0x01010101u) << j;
        store_word(out, plane);
    }
}

/* The scales of a block of n groups (as the layout has them), which begins with the tile's group `first` of 32
 * columns. */
static void put_scales(const cpu_layout *l, const llmq_grid *grid, int64_t first, int n, uint8_t *tile, int r) {
    if (l->two_level) {
        uint8_t *out = tile + layout_place_of(l, first).super;
        store_half(out + 2 * r, grid->d);
        out += 32;
        if (l->mins) {
            store_half(out + 2 * r, grid->dmin);
            out += 32;
        }
        for (int g = 0; g < n; g++) {
            *(out + r) = (uint8_t)grid->sc[g];
            out += 16;
            if (!l->mins) continue;
            *(out + r) = grid->mn[g];
            out += 16;
        }
        return;
    }
    for (int g = 0; g < n; g++) {
        uint8_t *out = tile + layout_place_of(l, first + g).scale + 2 * r;
        store_half(out, grid->scale[g]);
        if (l->mins) store_half(out + 32, grid->offset[g]);
    }
}

/* The following put n columns, from column k on, of row r into a tile. n is a multiple of the block. */

/* Through the type's own unpack. */
static void pack_blocks(const cpu_layout *l, const llmq_type_info *info, const uint8_t *block, int64_t k, int64_t n,
                        uint8_t *tile, int r) {
    uint8_t codes[TYPE_MAX_BLOCK];
    int shift =
        l->codebook ? 0 : (int)info->levels[0] + l->zero; /* 0 for every type whose codes start at its lowest level */
    for (int64_t end = k + n; k < end; k += info->block_len, block += info->block_bytes) {
        llmq_grid grid;
        info->unpack(block, &grid, codes);
        for (int i = 0; shift && i < info->block_len; i++) codes[i] = (uint8_t)(codes[i] + shift);
        for (int i = 0; i < info->block_len; i += 32)
            put_codes(l->bits, codes + i, tile + layout_place_of(l, (k + i) / 32).code, r);
        put_scales(l, &grid, k / 32, info->block_len / l->group, tile, r);
    }
}

/* Q4_0 and IQ4_NL (d, qs), Q4_1 (d, m, qs): qs is a group of the 4-bit plane already. */
static void pack_nibbles(const cpu_layout *l, const uint8_t *block, int64_t k, int64_t n, uint8_t *tile, int r) {
    int head = l->mins ? (int)offsetof(block_q4_1, qs) : (int)offsetof(block_q4_0, qs);
    for (int64_t g = k / 32; g < (k + n) / 32; g++, block += head + QK / 2) {
        const layout_place at = layout_place_of(l, g);
        uint8_t *scale = tile + at.scale + 2 * r, *out = tile + at.code + 4 * r;
        memcpy(scale, block, 2);
        if (l->mins) memcpy(scale + 32, block + 2, 2);
        for (int j = 0; j < 4; j++) store_word(out + 64 * j, load_word(block + head + 4 * j));
    }
}

static void pack_q8_0(const cpu_layout *l, const uint8_t *block, int64_t k, int64_t n, uint8_t *tile, int r) {
    for (int64_t g = k / 32; g < (k + n) / 32; g++, block += sizeof(block_q8_0)) {
        const layout_place at = layout_place_of(l, g);
        uint8_t *out = tile + at.code + 4 * r;
        memcpy(tile + at.scale + 2 * r, block, 2);
        for (int j = 0; j < 8; j++) store_word(out + 64 * j, load_word(block + 2 + 4 * j) ^ 0x80808080u);
    }
}

/* The words of a block are those of a tile's. */
static void pack_nf4(const block_nf4 *from, int64_t n, nf4_tile_block *to, int r) {
    for (int64_t b = 0; b < n / QK_NF4; b++, from++, to++) {
        memcpy(&to->scale[r], from->d, sizeof from->d);
        for (int j = 0; j < QK_NF4 / 8; j++) to->code[j][r] = load_word(from->qs + 4 * j);
    }
}

static void pack_bf16(cpu_to_bf16_fn *to_bf16, llmq_type type, const uint8_t *row, int64_t k, int64_t n, uint8_t *tile,
                      int r) {
    uint16_t h[PACK_COLS + 1];
    to_bf16(type, row + k * (type == LLMQ_TYPE_F32 ? 4 : 2), h, n);
    h[n] = 0; /* the partner of an odd last column */
    for (int64_t i = 0; i < n; i += 2) memcpy(tile + (k + i) * 32 + 4 * r, h + i, 4);
}

/* ---- the job */

typedef struct pack_job {
    llmq_weight *w;
    const llmq_type_info *info;
    int64_t row_bytes, tile_bytes;
    cpu_to_bf16_fn *to_bf16;
} pack_job;

static void pack_part(const pack_job *job, int64_t row, int64_t k, int64_t n, uint8_t *tile, int r) {
    const llmq_weight *w = job->w;
    const llmq_type_info *info = job->info;
    const cpu_layout *l = cpu_layout_of(w->layout);
    const uint8_t *data = (const uint8_t *)w->native.data + row * job->row_bytes;
    const uint8_t *block = data + k / info->block_len * info->block_bytes;
    switch (info->id) {
    case LLMQ_TYPE_Q4_0:
    case LLMQ_TYPE_Q4_1:
    case LLMQ_TYPE_IQ4_NL: pack_nibbles(l, block, k, n, tile, r); break;
    case LLMQ_TYPE_Q8_0: pack_q8_0(l, block, k, n, tile, r); break;
    case LLMQ_TYPE_NF4:
    case LLMQ_TYPE_FP4: pack_nf4((const block_nf4 *)block, n, (nf4_tile_block *)(void *)tile + k / QK_NF4, r); break;
    default:
        if (l)
            pack_blocks(l, info, block, k, n, tile, r);
        else
            pack_bf16(job->to_bf16, info->id, data, k, n, tile, r);
    }
}

/* Some columns of 16 rows at a time: what they fill stays in the L1 cache until it is full. */
static void pack_worker(const llmq_worker *worker, void *arg) {
    const pack_job *job = arg;
    const llmq_weight *w = job->w;
    int64_t begin, end;
    worker_range(worker, (w->rows + 15) / 16, 1, &begin, &end);
    for (int64_t tile = begin; tile < end; tile++) {
        uint8_t *out = (uint8_t *)w->packed + tile * job->tile_bytes;
        for (int64_t k = 0; k < w->cols; k += PACK_COLS) {
            int64_t n = w->cols - k < PACK_COLS ? w->cols - k : PACK_COLS;
            for (int r = 0; r < 16 && tile * 16 + r < w->rows; r++) pack_part(job, tile * 16 + r, k, n, out, r);
        }
    }
}

llmq_status cpu_weight_pack(llmq_weight *w, const llmq_tensor *t, cpu_to_bf16_fn *to_bf16, llmq_team *team,
                            llmq_err *err) {
    LLMQ_TRY(cpu_weight_init(w, t, err));
    pack_job job = {w, type_info(t->type), type_row_bytes(t->type, w->cols), 0, to_bf16};
    if (type_is_float(job.info)) {
        if (!to_bf16) return LLMQ_OK;
        w->layout = LAYOUT_BF16;
        w->act = ACT_BF16;
        job.tile_bytes = layout_bf16_tile_bytes(w->cols);
    } else if (is_nf4(t->type)) {
        w->layout = LAYOUT_NF4;
        w->act = ACT_Q16;
        job.tile_bytes = nf4_tile_bytes(w->cols);
    } else {
        w->layout = layout_for(t->type);
        if (w->layout == LAYOUT_NATIVE)
            return llmq_fail(err, LLMQ_E_UNSUPPORTED, "tensor %s: type %s has no kernels; quantize it to another type",
                             t->name, job.info->name);
        job.tile_bytes = layout_tile_bytes(cpu_layout_of(w->layout), w->cols);
    }
    if (!size_mul((size_t)((w->rows + 15) / 16), (size_t)job.tile_bytes, &w->packed_bytes))
        return mem_error(err, SIZE_MAX, t->name);
    /* Fresh pages are zero: rows past the last one have scale 0. */
    w->packed = mem_alloc_big(w->packed_bytes);
    if (!w->packed) return mem_error(err, w->packed_bytes, t->name);
    if (team)
        team_run(team, pack_worker, &job);
    else
        pack_worker(&(llmq_worker){0, 1, NULL}, &job);
    return LLMQ_OK;
}

void cpu_weight_release(llmq_weight *w) {
    if (!w) return;
    mem_free_big(w->packed, w->packed_bytes);
    *w = (llmq_weight){.packed = NULL};
}
