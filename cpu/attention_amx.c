#define VF_HAS_TILES 1
#define ATTN_TILE_ROWS 192 /* keys and values are taken apart once for all of them */
#include "cpu/attention_simd.h"
