#define LANES 4
#define REFINE_FN cpu_refine_block_neon
#include "cpu/cpu.h"
#include "cpu/refine.h"
