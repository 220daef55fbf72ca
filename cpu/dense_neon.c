#include "cpu/dense_simd.h"
