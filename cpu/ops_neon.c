#include "cpu/ops_simd.h"
