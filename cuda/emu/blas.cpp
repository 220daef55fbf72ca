/* cuda/blas.h on the emulator: a plain loop in place of cuBLAS, over emulated memory that has to be there. */
#include "cuda/blas.h"

#include <cstring>

#include "core/half.h"
#include "cuda/emu/block.h"

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

llmq_status cuda_blas_gemm_f16(cuda_blas *, gpu_stream *, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                               int64_t lda, const uint16_t *b, int64_t ldb, float *y, int64_t ldy, llmq_err *err) {
    bool good = usable(y, ((n - 1) * ldy + m) * 4, false);
    for (int64_t i = 0; i < m && good; i++) good = usable(a + i * lda, k * 2, true);
    for (int64_t j = 0; j < n && good; j++) good = usable(b + j * ldb, k * 2, true);
    if (!good) return llmq_fail(err, LLMQ_E_IO, "a product reads or writes what is not there");
    emu::buffer *out = emu::memory_find(y);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t c = 0; c < k; c++)
                sum += static_cast<double>(f16_to_f32(a[i * lda + c])) * static_cast<double>(f16_to_f32(b[j * ldb + c]));
            y[j * ldy + i] = static_cast<float>(sum);
            memset(out->state.data() + (reinterpret_cast<uint8_t *>(y + j * ldy + i) - out->data), emu::WRITTEN, 4);
        }
    return LLMQ_OK;
}
