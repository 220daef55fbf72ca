#define LANES 4
#define ROUND_FN cpu_round_block_neon
#include "cpu/cpu.h"
#include "cpu/round.h"
