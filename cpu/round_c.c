#define LANES 4
#define ROUND_FN cpu_round_block_c
#include "cpu/cpu.h"
#include "cpu/round.h"
