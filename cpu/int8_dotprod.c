#define DOTPROD 1
#include "cpu/int8_neon.h"
