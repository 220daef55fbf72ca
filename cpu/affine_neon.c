#define DOTPROD 0
#include "cpu/affine_neon.h"

#include "cpu/affine_f32.h"

void cpu_fill_affine_neon(affine_ops *ops) {
    fill_neon(ops);
    ops->gemm_q8 = gemm_q8_neon;
    ops->gemm_f32 = gemm_f32_neon;
}
