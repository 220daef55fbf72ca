#define LANES 16
#define REFINE_FN cpu_refine_block_avx512
#include "cpu/cpu.h"
#include "cpu/refine.h"
