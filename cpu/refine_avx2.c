#define LANES 8
#define REFINE_FN cpu_refine_block_avx2
#include "cpu/cpu.h"
#include "cpu/refine.h"
