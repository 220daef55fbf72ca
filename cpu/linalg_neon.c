#include "cpu/linalg_simd.h"
