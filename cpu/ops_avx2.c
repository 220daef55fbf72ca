#include "cpu/ops.h"

void cpu_fill_ops_avx2(llmq_backend_ops *ops) { (void)ops; }
