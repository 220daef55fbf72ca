#define DOTPROD 1
#include "cpu/affine_neon.h"

void cpu_fill_affine_dotprod(affine_ops *ops) {
    fill_dotprod(ops);
    ops->gemm_q8 = gemm_q8_dotprod;
}
