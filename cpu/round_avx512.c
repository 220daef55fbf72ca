#define LANES 16
#define ROUND_FN cpu_round_block_avx512
#include "cpu/cpu.h"
#include "cpu/round.h"
