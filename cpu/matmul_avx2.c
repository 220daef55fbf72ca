#include "cpu/cpu.h"

void cpu_fill_matmul_avx2(llmq_backend_ops *ops) { (void)ops; }
