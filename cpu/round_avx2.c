#define LANES 8
#define ROUND_FN cpu_round_block_avx2
#include "cpu/cpu.h"
#include "cpu/round.h"
