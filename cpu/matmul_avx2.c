/* AVX2 kernels for the interleaved quantized layouts. */
#define VNNI 0
#include "cpu/matmul_256.h"

void cpu_fill_matmul_avx2(llmq_backend_ops *ops) {
    fill_matmul(ops);
}
