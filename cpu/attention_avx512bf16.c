#define VF_HAS_BF16 1
#include "cpu/attention_simd.h"
