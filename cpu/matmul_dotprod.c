/* Kernels for the interleaved quantized layouts by sdot: ARMv8.2 processors with the dotprod extension. */
#define DOTPROD 1
#include "cpu/matmul_neon.h"

void cpu_fill_matmul_dotprod(llmq_backend_ops *ops) {
    ops->matmul = matmul;
}
