/* Plain C products of 8-bit rows, the oracle, and the packed layout of the others. */
#include "cpu/int8_simd.h"

#include "core/mem.h"
#include "cpu/layout.h"
#include "types/blocks.h"
#include "types/type.h"

static const block_q8_0 *row_blocks(const llmq_weight *w, int64_t row) {
    return (const block_q8_0 *)w->native.data + row * (w->cols / QK);
}

/* Every block of a row carries the same scale. */
static bool rows_have_one_scale(const llmq_weight *w) {
    for (int64_t r = 0; r < w->rows; r++) {
        const block_q8_0 *b = row_blocks(w, r);
        for (int64_t i = 1; i < w->cols / QK; i++)
            if (b[i].d != b[0].d) return false;
    }
    return true;
}

llmq_status int8_prepare_c(llmq_weight *w, const llmq_tensor *t, llmq_act_range range, llmq_team *team, llmq_err *err) {
    (void)team;
    LLMQ_TRY(cpu_weight_init(w, t, err));
    if (t->type != LLMQ_TYPE_Q8_0 || w->cols > INT8_MAX_COLS || !rows_have_one_scale(w))
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "tensor %s: its rows are not of 8 bits with one scale each", t->name);
    w->act = ACT_INT8;
    w->range = range;
    return LLMQ_OK;
}

/* ---- packing */

static void pack_row(const llmq_weight *w, int64_t row, uint8_t *tile, int8_tile_end *end) {
    const block_q8_0 *b = row_blocks(w, row);
    int64_t r = row % 16;
    int32_t sum = 0;
    for (int64_t i = 0; i < w->cols; i += 4) {
        uint8_t *word = tile + i * 16 + r * 4;
        for (int64_t j = i; j < i + 4; j++) {
            int32_t q = b[j / QK].qs[j % QK];
            sum += q;
            word[j - i] = (uint8_t)(q + 128);
        }
    }
    end->start[r] = -w->range.zero * sum;
    end->scale[r] = f16_to_f32(b->d);
}

static void pack_worker(const llmq_worker *worker, void *arg) {
    const llmq_weight *w = arg;
    int64_t tile_bytes = int8_tile_bytes(w->cols), begin, end;
    worker_range(worker, w->rows, 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        uint8_t *tile = (uint8_t *)w->packed + r / 16 * tile_bytes;
        pack_row(w, r, tile, (int8_tile_end *)(void *)(tile + w->cols * 16));
    }
}

llmq_status int8_pack(llmq_weight *w, const llmq_tensor *t, llmq_act_range range, llmq_team *team, llmq_err *err) {
    LLMQ_TRY(int8_prepare_c(w, t, range, team, err));
    w->layout = LAYOUT_INT8;
    w->packed_bytes = (size_t)((w->rows + 15) / 16 * int8_tile_bytes(w->cols));
    w->packed = mem_alloc_big(w->packed_bytes); /* zeros: rows past the last have scale 0 */
    if (!w->packed) return mem_error(err, w->packed_bytes, t->name);
    if (team)
        team_run(team, pack_worker, w);
    else
        pack_worker(&(llmq_worker){0, 1, NULL}, w);
    return LLMQ_OK;
}

/* ---- plain C */

void int8_fill_c(const llmq_worker *worker, llmq_acts *a) {
    fill_tokens(worker, a);
}

void int8_matmul_c(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy) {
    int64_t stride = int8_stride(w->cols), begin, end;
    worker_range(worker, w->rows, 16, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const block_q8_0 *b = row_blocks(w, r);
        float scale = f16_to_f32(b->d);
        for (int64_t t = 0; t < a->n_tok; t++) {
            const int8_t *q = (const int8_t *)a->int8 + t * stride;
            int32_t sum = 0;
            for (int64_t i = 0; i < w->cols; i++) sum += b[i / QK].qs[i % QK] * (q[i] - w->range.zero);
            y[t * ldy + r] = (float)sum * (scale * int8_tokens(a)[t].d) + (w->bias ? w->bias[r] : 0.0f);
        }
    }
}
