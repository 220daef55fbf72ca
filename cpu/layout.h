/* What the CPU's matmul files share: the form of int8 activations, and the interleaved weight layouts that the SIMD
 * kernels read.
 *
 * Activations (ACT_Q8). Groups of 32 inputs: q = round(x / d), d = absmax / 127 rounded up to four bits, so that few
 * different fractions occur (matmul_avx512.c adds exponents instead of multiplying). An input far above the others of
 * its group is its outlier: q is 0 there, and x is kept beside the codes. act_q8.h says which. Tokens are kept in
 * blocks, so that a register tile of tokens walks memory linearly: a block holds, for each group, 32 bytes of each of
 * its tokens. ACT_Q8_SPLIT has two rows of codes a token, the second of what rounding the first left: a block holds the
 * first rows of its tokens, then their second rows, and products add up the two.
 *
 * Weights. A tile is 16 rows x all columns. Codes come in groups of 32 columns; the vector word (r, j) of a group holds
 * columns 4j..4j+3 of row r in its 4 bytes, so that one dot-product instruction takes 4 columns of 16 rows against one
 * broadcast word of activations. A code of `bits` bits is split over planes:
 *     8      8 vectors of 64 bytes: byte = code
 *     4,5,6  4 vectors: vector j has the low 4 bits of words j (low nibble) and j + 4 (high nibble);
 *            5: 1 vector more, bit j of a byte is bit 4 of word j; 6: 2 vectors more, as for 2, holding bits 4 and 5
 *     2,3    2 vectors: vector i holds words i, i+2, i+4, i+6 at bits 0, 2, 4, 6; 3: 1 vector more with bit 2
 * Scales and codes take turns in runs of 64 columns (of two-level types 256), whole cache lines each, so that
 * whoever multiplies a row reads memory upwards: first the scales of the run's groups, for each 32 columns f16
 * scale[16] (and f16 offset[16]), of two-level types f16 d[16] (and dmin[16]) and then for every `group` columns
 * int8 sc[16] (and mn[16]); then, from the next cache line on, the codes. The last run of a tile may be half used.
 * The weight is scale * (code - zero) + offset, or d*sc * (code - zero) - dmin*mn, or with a codebook scale *
 * level[code]. Nothing is rounded on the way from the file: a repacked weight has exactly the file's values.
 *
 * But the panels of AVX-512 for many tokens have one scale for 32 columns, as to scale a sum costs as much as half of
 * its products. Of Q2_K and Q3_K that is -d, as sc * (code - zero) fits a byte if its sign is turned (it is -124 to
 * 128). Of Q6_K it is the larger of the two halves' / LAYOUT_FINER: weights of that half are exact, those of the other
 * are rounded to steps so much finer than the larger half's own. */
#ifndef LLMQ_CPU_LAYOUT_H
#define LLMQ_CPU_LAYOUT_H

#include <string.h>

#include "core/backend.h"
#include "cpu/inline.h"

/* ---- activations */

typedef struct act_group {
    float d;          /* x = d * q */
    int32_t start;    /* -128 * sum of the 32 q: start value of a dot product with codes that are 128 too large */
    float dsum;       /* d * sum */
    int16_t sum[2];   /* of q, of the first 16 and of the last */
} act_group;

#define ACT_SCALES 8 /* fractions that d may have: 1 + i / 8 */
#define ACT_NO_OUTLIER 0xff

#define ACT_FEW 16  /* up to so many rows form one block */
#define ACT_BLOCK 6 /* rows of a block otherwise: the width of the GEMM register tile */

typedef struct act_block {
    const int8_t *q;           /* (groups, n, 32) */
    const act_group *group;    /* (groups, n) */
    const float *outlier;      /* (groups, n), 0 where there is none */
    const uint8_t *outlier_at; /* (groups, n), its column of the 32 or ACT_NO_OUTLIER */
    int n;                     /* rows */
} act_block;

/* Rows of a token. */
static inline int act_parts(llmq_act_form form) {
    return form == ACT_Q8_SPLIT ? 2 : 1;
}

static inline int64_t act_groups(int64_t cols) {
    return (cols + 31) / 32;
}
static inline int64_t act_block_len(int64_t rows) {
    return rows <= ACT_FEW ? rows : ACT_BLOCK;
}
static inline size_t act_group_offset(int64_t rows, int64_t cols) {
    return ((size_t)(rows * act_groups(cols)) * 32 + 63) / 64 * 64;
}
static inline size_t act_outlier_offset(int64_t rows, int64_t cols) {
    return act_group_offset(rows, cols) + (size_t)(rows * act_groups(cols)) * sizeof(act_group);
}
static inline size_t act_outlier_at_offset(int64_t rows, int64_t cols) {
    return act_outlier_offset(rows, cols) + (size_t)(rows * act_groups(cols)) * sizeof(float);
}
static inline size_t act_q8_bytes(int64_t rows, int64_t cols) {
    return act_outlier_at_offset(rows, cols) + (size_t)(rows * act_groups(cols)) + 64; /* vectors run over the end */
}

/* The block that starts at row first (a multiple of act_block_len) of all rows. */
static inline act_block act_block_at(const llmq_acts *a, int64_t rows, int64_t first) {
    int64_t len = act_block_len(rows), groups = act_groups(a->cols), left = rows - first;
    const char *base = a->q8;
    return (act_block){(const int8_t *)base + first * groups * 32,
                       (const act_group *)(base + act_group_offset(rows, a->cols)) + first * groups,
                       (const float *)(base + act_outlier_offset(rows, a->cols)) + first * groups,
                       (const uint8_t *)base + act_outlier_at_offset(rows, a->cols) + first * groups,
                       (int)(left < len ? left : len)};
}

/* The block from column k on, a multiple of 32. */
static inline act_block act_block_from(act_block b, int64_t k) {
    int64_t at = k / 32 * b.n;
    return (act_block){b.q + at * 32, b.group + at, b.outlier + at, b.outlier_at + at, b.n};
}

/* The first outlier of a block from place i on (group * n + row), end if there is none before that. */
static inline int64_t act_next_outlier(const act_block *b, int64_t i, int64_t end) {
    for (uint64_t eight; i + 8 <= end; i += 8) {
        memcpy(&eight, b->outlier_at + i, 8);
        if (eight != UINT64_MAX) break;
    }
    while (i < end && b->outlier_at[i] == ACT_NO_OUTLIER) i++;
    return i;
}

/* 32 inputs: x, or of fewer a copy with zeros after them. Not an initializer, which would be stored for every x. */
INLINE const float *act_whole(const float *x, int64_t n, float padded[32]) {
    if (n >= 32) return x;
    memset(padded, 0, 32 * sizeof *padded);
    return memcpy(padded, x, (size_t)n * sizeof *x);
}

/* Whether workers have whole tokens each (core/backend.h). */
static inline bool act_whole_tokens(const llmq_worker *worker, int64_t n_tok) {
    return n_tok >= ACT_WHOLE * worker->n;
}

/* A worker's share of the groups of all tokens, t * groups + g. */
static inline void act_share(const llmq_worker *worker, const llmq_acts *a, int64_t *begin, int64_t *end) {
    int64_t groups = act_groups(a->cols);
    bool whole = act_whole_tokens(worker, a->n_tok);
    worker_range(worker, whole ? a->n_tok : a->n_tok * groups, 1, begin, end);
    if (whole) *begin *= groups, *end *= groups;
}

/* bf16 activations: (n_tok, act_bf16_stride) with zeros after cols. An odd number of cache lines: the tokens of a
 * register tile would otherwise compete for the same few sets of the L1 cache. */
static inline int64_t act_bf16_stride(int64_t cols) {
    return ((cols + 31) / 32 | 1) * 32;
}

void cpu_fill_bf16(const llmq_worker *worker, llmq_acts *a); /* plain C */
size_t cpu_acts_bytes(llmq_act_form form, int64_t n_tok, int64_t cols);

/* ---- weights */

/*        type    bits group two_level mins codebook zero */
#define CPU_LAYOUTS(X)                                                                                                 \
    X(Q4_0, 4, 32, 0, 0, 0, 8)                                                                                         \
    X(Q4_1, 4, 32, 0, 1, 0, 0)                                                                                         \
    X(Q5_0, 5, 32, 0, 0, 0, 16)                                                                                        \
    X(Q5_1, 5, 32, 0, 1, 0, 0)                                                                                         \
    X(Q8_0, 8, 32, 0, 0, 0, 128)                                                                                       \
    X(Q2_K, 2, 16, 1, 1, 0, 0)                                                                                         \
    X(Q3_K, 3, 16, 1, 0, 0, 4)                                                                                         \
    X(Q4_K, 4, 32, 1, 1, 0, 0)                                                                                         \
    X(Q5_K, 5, 32, 1, 1, 0, 0)                                                                                         \
    X(Q6_K, 6, 16, 1, 0, 0, 32)                                                                                        \
    X(IQ4_NL, 4, 32, 0, 0, 1, 128)                                                                                     \
    X(IQ4_XS, 4, 32, 1, 0, 1, 128)

enum {
    LAYOUT_NATIVE, /* rows as stored */
#define X(type, bits, group, two_level, mins, codebook, zero) LAYOUT_##type,
    CPU_LAYOUTS(X)
#undef X
        LAYOUT_BF16, /* (tiles of 16 rows, pairs of columns): a word is two bf16 of one row */
    LAYOUT_INT8,     /* int8.h */
    LAYOUT_NF4       /* nf4.h: NF4 and FP4 */
};

typedef struct cpu_layout {
    llmq_type type;
    int bits, group;
    bool two_level, mins, codebook;
    int zero; /* subtracted from codes (codebook: added to levels to make them unsigned) */
} cpu_layout;

const cpu_layout *cpu_layout_of(int layout); /* NULL for LAYOUT_NATIVE and from LAYOUT_BF16 on */

#define LAYOUT_FINER 4

/* A layout's properties as kernels take them, which inline what they call with constants. */
#define LAYOUT_PARAMS int bits, int group, bool two_level, bool mins, bool codebook, int zero
#define LAYOUT_ARGS bits, group, two_level, mins, codebook, zero

#define LAYOUT_RUN(two_level) ((two_level) ? 8 : 2) /* groups of 32 columns */
#define LAYOUT_SUPER_BYTES(two_level, mins) ((two_level) ? 32 * (1 + (mins)) : 0)
#define LAYOUT_SCALE_BYTES(group, two_level, mins) ((1 + (mins)) * ((two_level) ? 32 / (group) * 16 : 32)) /* a group */
#define LAYOUT_HEAD_BYTES(group, two_level, mins) /* of a run, before its codes */                                     \
    ((LAYOUT_SUPER_BYTES(two_level, mins) + LAYOUT_RUN(two_level) * LAYOUT_SCALE_BYTES(group, two_level, mins) + 63) / \
     64 * 64)
#define LAYOUT_RUN_BYTES(bits, group, two_level, mins)                                                                 \
    (LAYOUT_HEAD_BYTES(group, two_level, mins) + LAYOUT_RUN(two_level) * (bits) * 64)
#define LAYOUT_GROUP_BYTES(bits, group, two_level, mins) /* on average */                                              \
    (LAYOUT_RUN_BYTES(bits, group, two_level, mins) / LAYOUT_RUN(two_level))

/* Where a group of 32 columns has its parts, in bytes from the beginning of its tile. */
typedef struct layout_place {
    int64_t super; /* d (and dmin) of the run, of two-level types */
    int64_t scale; /* LAYOUT_SCALE_BYTES */
    int64_t code;  /* bits * 64 bytes */
    bool first;    /* of its run */
} layout_place;

INLINE layout_place layout_at(int bits, int group, bool two_level, bool mins, int64_t g) {
    const int64_t n = LAYOUT_RUN(two_level), run = (int64_t)((uint64_t)g / n), i = (int64_t)((uint64_t)g % n);
    const int64_t begin = run * LAYOUT_RUN_BYTES(bits, group, two_level, mins);
    return (layout_place){
        .super = begin,
        .scale = begin + LAYOUT_SUPER_BYTES(two_level, mins) + i * LAYOUT_SCALE_BYTES(group, two_level, mins),
        .code = begin + LAYOUT_HEAD_BYTES(group, two_level, mins) + i * bits * 64,
        .first = i == 0};
}
static inline layout_place layout_place_of(const cpu_layout *l, int64_t g) {
    return layout_at(l->bits, l->group, l->two_level, l->mins, g);
}
static inline int64_t layout_tile_bytes(const cpu_layout *l, int64_t cols) {
    const int64_t run = 32 * LAYOUT_RUN(l->two_level);
    return (cols + run - 1) / run * LAYOUT_RUN_BYTES(l->bits, l->group, l->two_level, l->mins);
}
/* Bytes of a tile from the run of column k on to the last code of columns k .. k+n, multiples of 32. */
static inline int64_t layout_span(const cpu_layout *l, int64_t k, int64_t n) {
    return layout_place_of(l, (k + n) / 32 - 1).code + l->bits * 64 - layout_place_of(l, k / 32).super;
}
/* Columns of a GEMM panel: as even a division of cols as whole units allow, at most most (a unit or more). */
static inline int64_t panel_step(int64_t cols, int64_t unit, int64_t most) {
    most = most / unit * unit;
    int64_t parts = (cols + most - 1) / most, n = (cols + parts - 1) / parts;
    return (n + unit - 1) / unit * unit;
}
static inline int64_t layout_panel_cols(const cpu_layout *l, int64_t cols, int64_t most) {
    return panel_step(cols, l->two_level ? 256 : 32, most);
}
static inline int64_t layout_bf16_tile_bytes(int64_t cols) {
    return (cols + 31) / 32 * 1024;
}

/* n elements of a float type (src at any address) rounded to bf16. */
typedef void cpu_to_bf16_fn(llmq_type type, const void *src, uint16_t *dst, int64_t n);

/* weight_prepare and weight_release of the SIMD backends: quantized types are repacked, float types stay native or, if
 * to_bf16 is given, are rounded to LAYOUT_BF16. */
llmq_status cpu_weight_pack(llmq_weight *w, const llmq_tensor *t, cpu_to_bf16_fn *to_bf16, llmq_team *team,
                            llmq_err *err);
void cpu_weight_release(llmq_weight *w);
/* Checks t and fills the fields of w that every layout has. */
llmq_status cpu_weight_init(llmq_weight *w, const llmq_tensor *t, llmq_err *err);

#endif
