#include "cpu/grad_simd.h"
