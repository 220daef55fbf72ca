/* Plain C weights, activations and matmul: the oracle. Weights stay native rows. Quantized rows are taken apart by
 * their type's own unpack and multiplied with the int8 activations in integers, one exact sum for each group; float
 * rows, and those whose levels are no integers (NF4, FP4), in f32. Readable before fast: one row at a time, taken apart
 * once for all tokens. */
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/mem.h"
#include "cpu/act_q8.h"
#include "cpu/cpu.h"
#include "cpu/int8.h"
#include "cpu/layout.h"
#include "cpu/nf4.h"
#include "types/type.h"

/* ---- weights */

static llmq_status weight_prepare(llmq_weight *w, const llmq_tensor *t, int flags, llmq_team *team, llmq_err *err) {
    (void)flags, (void)team;
    return cpu_weight_init(w, t, err);
}

/* ---- activations */

size_t cpu_acts_bytes(llmq_act_form form, int64_t n_tok, int64_t cols) {
    if (form == ACT_Q8 || form == ACT_Q8_SPLIT) return act_q8_bytes(act_parts(form) * n_tok, cols);
    if (form == ACT_BF16) return (size_t)(n_tok * act_bf16_stride(cols)) * 2;
    if (form == ACT_INT8) return int8_acts_bytes(n_tok, cols);
    if (form == ACT_Q16) return act16_bytes(n_tok, cols);
    return 0;
}

static uint32_t peak(const float *x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = act_magnitude(x[i]);
        if (bits > most) most = bits;
    }
    return most;
}

static void round_group(const float *x, int64_t n, float inverse, int8_t *q, int32_t sum[2]) {
    sum[0] = sum[1] = 0;
    for (int64_t i = 0; i < 32; i++) {
        q[i] = i < n ? (int8_t)nearbyintf(x[i] * inverse) : 0;
        sum[i / 16] += q[i];
    }
}

void cpu_fill_bf16(const llmq_worker *worker, llmq_acts *a) {
    int64_t stride = act_bf16_stride(a->cols), begin, end;
    worker_range(worker, a->n_tok, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        for (int64_t c = 0; c < stride; c++)
            ((uint16_t *)a->bf16)[t * stride + c] = c < a->cols ? f32_to_bf16(a->x[t * a->cols + c]) : 0;
}

static void acts_fill(const llmq_worker *worker, llmq_acts *a, llmq_act_form form) {
    if (form == ACT_Q8 || form == ACT_Q8_SPLIT) act_fill_q8(worker, a, form, peak, round_group);
    if (form == ACT_BF16) cpu_fill_bf16(worker, a);
    if (form == ACT_INT8) int8_fill_c(worker, a);
}

/* ---- matmul */

#define SEGMENT 1024 /* columns taken apart at a time; a multiple of every block */

/* w . x of n floats: 16 running sums, so that the compiler may use vectors without changing any rounding. */
static double dot_f32(const float *w, const float *x, int64_t n) {
    float lane[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) lane[l] += w[i + l] * x[i + l];
    double sum = 0;
    for (int l = 0; l < 16; l++) sum += (double)lane[l];
    for (; i < n; i++) sum += (double)w[i] * (double)x[i];
    return sum;
}

static void row_float(const llmq_weight *w, const llmq_type_info *info, const char *row, int64_t r, const llmq_acts *a,
                      float *y, int64_t ldy) {
    float seg[SEGMENT],
        stored[SEGMENT]; /* rows of a file may lie at any address: copied before they are read as numbers */
    for (int64_t k = 0; k < w->cols; k += SEGMENT) {
        int64_t n = w->cols - k < SEGMENT ? w->cols - k : SEGMENT;
        memcpy(stored, row + type_row_bytes(info->id, k), (size_t)type_row_bytes(info->id, n));
        type_to_f32(info->id, stored, seg, n);
        for (int64_t t = 0; t < a->n_tok; t++) y[t * ldy + r] += (float)dot_f32(seg, a->x + t * a->cols + k, n);
    }
}

/* The levels of n columns and their grids, ready for integer products. */
typedef struct row_segment {
    int8_t level[SEGMENT];
    float scale[SEGMENT / 16], offset[SEGMENT / 16]; /* per group of the type */
} row_segment;

static void unpack_segment(const llmq_type_info *info, const uint8_t *block, int64_t n, row_segment *s) {
    uint8_t codes[TYPE_MAX_BLOCK];
    llmq_grid grid;
    int groups = info->block_len / info->group_len;
    for (int64_t k = 0; k < n; k += info->block_len, block += info->block_bytes) {
        info->unpack(block, &grid, codes);
        for (int i = 0; i < info->block_len; i++) s->level[k + i] = (int8_t)info->levels[codes[i]];
        for (int g = 0; g < groups; g++) {
            s->scale[k / info->group_len + g] = grid.scale[g];
            s->offset[k / info->group_len + g] = grid.offset[g];
        }
    }
}

/* sum of weight * activation over n columns starting at column k, for row t of the block. */
static double dot_segment(const row_segment *s, int group_len, act_block b, int t, int64_t k, int64_t n) {
    double sum = 0;
    int step = group_len < 32 ? group_len : 32; /* the finer of the two groupings */
    for (int64_t c = 0; c < n; c += step) {
        int64_t at = (k + c) / 32 * b.n + t;
        const int8_t *q = b.q + at * 32 + (k + c) % 32;
        int32_t dot = 0, total = 0;
        for (int i = 0; i < step; i++) {
            dot += s->level[c + i] * q[i];
            total += q[i];
        }
        sum +=
            (double)b.group[at].d * ((double)s->scale[c / group_len] * dot + (double)s->offset[c / group_len] * total);
        int64_t out = b.outlier_at[at] - (k + c) % 32; /* counted from c */
        if (b.outlier_at[at] == ACT_NO_OUTLIER || out < 0 || out >= step) continue;
        sum += (double)b.outlier[at] *
               ((double)s->scale[c / group_len] * s->level[c + out] + (double)s->offset[c / group_len]);
    }
    return sum;
}

static void row_quantized(const llmq_weight *w, const llmq_type_info *info, const char *row, int64_t r,
                          const llmq_acts *a, float *y, int64_t ldy) {
    const int parts = act_parts(w->act);
    const int64_t rows = parts * a->n_tok;
    row_segment s;
    for (int64_t k = 0; k < w->cols; k += SEGMENT) {
        int64_t n = w->cols - k < SEGMENT ? w->cols - k : SEGMENT;
        unpack_segment(info, (const uint8_t *)row + k / info->block_len * info->block_bytes, n, &s);
        for (int64_t i = 0; i < rows; i += act_block_len(rows)) {
            act_block b = act_block_at(a, rows, i);
            for (int t = 0; t < b.n; t++)
                y[(i / parts + t % (b.n / parts)) * ldy + r] += (float)dot_segment(&s, info->group_len, b, t, k, n);
        }
    }
}

static void matmul(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    const llmq_type_info *info = type_info(w->native.type);
    int64_t row_bytes = type_row_bytes(w->native.type, w->cols), begin, end;
    if (w->act == ACT_INT8) {
        int8_matmul_c(worker, w, a, y, ldy);
        return;
    }
    worker_range(worker, w->rows, 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const char *row = (const char *)w->native.data + r * row_bytes;
        for (int64_t t = 0; t < a->n_tok; t++) y[t * ldy + r] = w->bias ? w->bias[r] : 0.0f;
        if (w->act == ACT_F32)
            row_float(w, info, row, r, a, y, ldy);
        else
            row_quantized(w, info, row, r, a, y, ldy);
    }
}

void cpu_fill_matmul_c(llmq_backend_ops *ops) {
    ops->weight_prepare = weight_prepare;
    ops->weight_prepare_int8 = int8_prepare_c;
    ops->weight_release = cpu_weight_release;
    ops->acts_bytes = cpu_acts_bytes;
    ops->acts_fill = acts_fill;
    ops->matmul = matmul;
}
