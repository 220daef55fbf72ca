#include "cpu/attention_simd.h"
