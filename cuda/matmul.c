/* Which kernels multiply how many tokens (cuda/matmul.h). */
#include "cuda/matmul.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/gemm.h"
#include "cuda/layout.h"

#define SLAB_BYTES (64LL << 20) /* of f16 weights at once */

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Decode: the 8-bit form, then the f16 form. */
static size_t f16_offset(int64_t cols) {
    return (cuda_acts_q8_bytes(ACT_TOKENS, cols) + 255) / 256 * 256;
}

size_t cuda_input_bytes(int64_t n_tok, int64_t cols) {
    size_t decode = f16_offset(cols) + cuda_acts_f16_bytes(ACT_TOKENS, cols);
    return n_tok <= ACT_TOKENS ? decode : larger(decode, cuda_acts_rows_bytes(n_tok, cols));
}

cuda_input cuda_input_of(cuda_source source, float *values, int64_t n_tok, int64_t cols, cuda_acts acts, void *forms) {
    return (cuda_input){.source = source, .values = values, .n_tok = n_tok, .cols = cols, .acts = acts, .forms = forms};
}

cuda_acts cuda_acts_chosen(void) {
    const char *name = getenv("LLMQ_CUDA_ACTS");
    if (!name || !*name || strcmp(name, "f16") == 0) return CUDA_ACTS_F16;
    if (strcmp(name, "q8") == 0) return CUDA_ACTS_Q8;
    llmq_log(LLMQ_LOG_WARN, "LLMQ_CUDA_ACTS=%s is unknown and ignored; use f16 or q8", name);
    return CUDA_ACTS_F16;
}

static int64_t row_bytes(int64_t cols) {
    return cuda_acts_rows_ld(cols) * (int64_t)sizeof(uint16_t);
}

size_t cuda_scratch_bytes(int64_t n_tok, int64_t rows, int64_t cols) {
    if (n_tok <= ACT_TOKENS) return 0;
    size_t gemm = cuda_gemm_bytes(n_tok, rows, cols);
    if (n_tok <= CUDA_GEMM_TOKENS) return gemm;
    int64_t all = rows * row_bytes(cols), one_tile = TILE_ROWS * row_bytes(cols), most = SLAB_BYTES;
    if (most < one_tile) most = one_tile;
    return larger(gemm, (size_t)(all < most ? all : most));
}

static bool has_codes(llmq_type packed) {
    return packed != LLMQ_TYPE_F16 && packed != LLMQ_TYPE_NF4 && packed != LLMQ_TYPE_FP4;
}

/* The input in f32. */
static const float *values_of(gpu_stream *stream, cuda_input *in) {
    const cuda_source s = in->source;
    if (!s.gain && !s.up) return s.x;
    if (s.gain)
        cuda_rms_norm(stream, s.x, s.gain, s.eps, in->values, in->n_tok, in->cols, in->cols);
    else
        cuda_silu_mul(stream, s.x, s.up, in->values, in->n_tok * in->cols);
    in->source = (cuda_source){.x = in->values};
    return in->values;
}

static void decode(gpu_stream *stream, const cuda_matrix *w, cuda_input *in, float *y, int64_t ldy) {
    const int n_tok = (int)in->n_tok;
    if (in->acts == CUDA_ACTS_Q8 && has_codes(w->type)) {
        if (!in->has_q8) cuda_acts_q8(stream, values_of(stream, in), n_tok, in->cols, in->forms);
        in->has_q8 = true;
        cuda_matvec_q8(stream, w, in->forms, n_tok, y, ldy);
        return;
    }
    void *halves = (uint8_t *)in->forms + f16_offset(in->cols);
    if (!in->has_f16) cuda_acts_f16(stream, &in->source, n_tok, in->cols, halves);
    in->has_f16 = true;
    cuda_matvec_f16(stream, w, halves, n_tok, y, ldy);
}

static void make_rows(gpu_stream *stream, cuda_input *in) {
    if (!in->has_rows) cuda_acts_rows(stream, values_of(stream, in), (int)in->n_tok, in->cols, in->forms);
    in->has_rows = true;
}

/* Rows whose f16 weights fit into the scratch: all, or whole tiles. */
static int64_t slab_rows(const cuda_matrix *w, const cuda_scratch *s) {
    const int64_t fit = (int64_t)s->bytes / row_bytes(w->cols);
    return fit < w->rows ? fit - fit % TILE_ROWS : w->rows;
}

llmq_status cuda_matmul_unpacked(gpu_stream *stream, const cuda_matrix *w, cuda_input *in, float *y, int64_t ldy,
                                 const cuda_scratch *s, llmq_err *err) {
    const int64_t ld = cuda_acts_rows_ld(w->cols), cols = (w->cols + 15) / 16 * 16; /* 16 columns change places */
    const int64_t slab = slab_rows(w, s);
    const size_t tile_row = cuda_pack_bytes(w->type, w->group, TILE_ROWS, w->cols);
    LLMQ_ASSERT(slab > 0);
    make_rows(stream, in);
    for (int64_t row = 0; row < w->rows; row += slab) {
        cuda_matrix part = *w;
        part.rows = slab < w->rows - row ? slab : w->rows - row;
        part.packed = (const uint8_t *)w->packed + (size_t)(row / TILE_ROWS) * tile_row;
        cuda_unpack_rows(stream, &part, s->memory);
        LLMQ_TRY(cuda_blas_gemm_f16(s->blas, stream, part.rows, in->n_tok, cols, s->memory, ld, in->forms, ld, y + row,
                                    ldy, err));
    }
    cuda_bring_back(stream, w, in->forms, (int)in->n_tok, y, ldy);
    return LLMQ_OK;
}

llmq_status cuda_matmul(gpu_stream *stream, const cuda_matrix *w, cuda_input *in, float *y, int64_t ldy,
                        cuda_scratch *scratch, llmq_err *err) {
    if (in->n_tok <= ACT_TOKENS) {
        decode(stream, w, in, y, ldy);
        return LLMQ_OK;
    }
    if (in->n_tok > CUDA_GEMM_TOKENS && scratch->blas && !scratch->blas_failed && slab_rows(w, scratch) > 0) {
        llmq_err why;
        const llmq_status status = cuda_matmul_unpacked(stream, w, in, y, ldy, scratch, &why);
        if (status == LLMQ_OK) return LLMQ_OK;
        if (status != LLMQ_E_MEMORY) return llmq_fail(err, status, "%s", why.msg);
        scratch->blas_failed = true; /* it takes memory of its own, gemm none */
        llmq_log(LLMQ_LOG_WARN, "%s: prompts go on without it, which is slower", why.msg);
    }
    make_rows(stream, in);
    cuda_gemm(stream, w, in->forms, (int)in->n_tok, y, ldy, scratch->memory, scratch->bytes);
    return LLMQ_OK;
}
