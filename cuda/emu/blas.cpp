/* cuda/blas.h on the emulator: a plain loop in place of cuBLAS, over emulated memory that has to be there. */
#include "cuda/blas.h"

#include <cmath>
#include <cstring>

#include "core/half.h"
#include "cuda/emu/block.h"
#include "cuda/emu/control.h"

struct cuda_blas {
    int unused;
};

llmq_status cuda_blas_create(cuda_blas **out, llmq_err *) {
    *out = new cuda_blas();
    return LLMQ_OK;
}

void cuda_blas_destroy(cuda_blas *blas) {
    delete blas;
}

int cuda_blas_version(const cuda_blas *) {
    return 0;
}

/* The bytes from `at` on are there; and written, if they are to be read. */
static bool usable(const void *at, int64_t bytes, bool written) {
    const emu::buffer *b = emu::memory_find(at);
    if (!b) return false;
    const int64_t offset = static_cast<const uint8_t *>(at) - b->data;
    if (offset + bytes > static_cast<int64_t>(b->bytes)) return false;
    for (int64_t i = 0; written && i < bytes; i++)
        if (!(b->state[static_cast<size_t>(offset + i)] & emu::WRITTEN)) return false;
    return true;
}

static bool rows_usable(const void *at, int64_t rows, int64_t cols, int64_t ld, int64_t element, bool written) {
    for (int64_t i = 0; i < rows; i++)
        if (!usable(static_cast<const uint8_t *>(at) + i * ld * element, cols * element, written)) return false;
    return true;
}

static llmq_status fail_place(llmq_err *err) {
    return llmq_fail(err, LLMQ_E_IO, "a product reads or writes what is not there");
}

/* Products are not among the launches that are recorded. */
static llmq_status not_recorded(llmq_err *err) {
    return emu::recording_on() ? llmq_fail(err, LLMQ_E_IO, "GPU: no products while launches are recorded") : LLMQ_OK;
}

static void put(float *at, double value) {
    emu::buffer *b = emu::memory_find(at);
    *at = static_cast<float>(value);
    memset(b->state.data() + (reinterpret_cast<uint8_t *>(at) - b->data), emu::WRITTEN, 4);
}

static int64_t products;
static bool failing;
int64_t emu_products(void) {
    return products;
}
void emu_fail_product(void) {
    failing = true;
}

llmq_status cuda_blas_gemm_f16(cuda_blas *, gpu_stream *, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                               int64_t lda, const uint16_t *b, int64_t ldb, float *y, int64_t ldy, llmq_err *err) {
    products++;
    if (failing) {
        failing = false;
        return llmq_fail(err, LLMQ_E_MEMORY, "GPU: cuBLAS: no memory");
    }
    LLMQ_TRY(not_recorded(err));
    if (!rows_usable(y, n, m, ldy, 4, false) || !rows_usable(a, m, k, lda, 2, true) ||
        !rows_usable(b, n, k, ldb, 2, true))
        return fail_place(err);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t c = 0; c < k; c++)
                sum +=
                    static_cast<double>(f16_to_f32(a[i * lda + c])) * static_cast<double>(f16_to_f32(b[j * ldb + c]));
            put(y + j * ldy + i, sum);
        }
    return LLMQ_OK;
}

llmq_status cuda_blas_gemm_sub(cuda_blas *, gpu_stream *, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                               const float *b, int64_t ldb, float *c, int64_t ldc, llmq_err *err) {
    LLMQ_TRY(not_recorded(err));
    if (!rows_usable(c, m, n, ldc, 4, true) || !rows_usable(a, m, k, lda, 4, true) ||
        !rows_usable(b, k, n, ldb, 4, true))
        return fail_place(err);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = static_cast<double>(c[i * ldc + j]);
            for (int64_t l = 0; l < k; l++)
                sum -= static_cast<double>(a[i * lda + l]) * static_cast<double>(b[l * ldb + j]);
            put(c + i * ldc + j, sum);
        }
    return LLMQ_OK;
}

llmq_status cuda_blas_gram(cuda_blas *, gpu_stream *, const uint16_t *x, int64_t n_tok, int64_t cols, bool add,
                           float *gram, llmq_err *err) {
    LLMQ_TRY(not_recorded(err));
    if (!rows_usable(gram, cols, cols, cols, 4, add) || !rows_usable(x, n_tok, cols, cols, 2, true))
        return fail_place(err);
    for (int64_t i = 0; i < cols; i++)
        for (int64_t j = 0; j < cols; j++) {
            double sum = add ? static_cast<double>(gram[i * cols + j]) : 0;
            for (int64_t t = 0; t < n_tok; t++)
                sum += static_cast<double>(bf16_to_f32(x[t * cols + i])) *
                       static_cast<double>(bf16_to_f32(x[t * cols + j]));
            put(gram + i * cols + j, sum);
        }
    return LLMQ_OK;
}

llmq_status cuda_blas_cholesky(cuda_blas *, gpu_stream *, int64_t n, float *a, int64_t lda, llmq_err *err) {
    LLMQ_TRY(not_recorded(err));
    for (int64_t i = 0; i < n; i++)
        if (!usable(a + i * lda, (i + 1) * 4, true)) return fail_place(err);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = static_cast<double>(a[i * lda + j]);
            for (int64_t c = 0; c < j; c++)
                sum -= static_cast<double>(a[i * lda + c]) * static_cast<double>(a[j * lda + c]);
            if (i == j && !(sum > 0)) return llmq_fail(err, LLMQ_E_NUMERIC, "not positive definite");
            a[i * lda + j] = static_cast<float>(i == j ? sqrt(sum) : sum / static_cast<double>(a[j * lda + j]));
        }
    return LLMQ_OK;
}
