/* AVX-VNNI kernels for the interleaved quantized layouts: for processors with vpdpbusd of 256 bits and no AVX-512. */
#define VNNI 1
#include "cpu/matmul_256.h"

void cpu_fill_matmul_avxvnni(llmq_backend_ops *ops) {
    ops->matmul = matmul;
}
