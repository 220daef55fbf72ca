#include "types/bits.h"

#define RAMP4(n) (n), (n) + 1, (n) + 2, (n) + 3
#define RAMP16(n) RAMP4(n), RAMP4((n) + 4), RAMP4((n) + 8), RAMP4((n) + 12)
#define RAMP64(n) RAMP16(n), RAMP16((n) + 16), RAMP16((n) + 32), RAMP16((n) + 48)

const float bits_ramp[384] = {RAMP64(-128), RAMP64(-64), RAMP64(0), RAMP64(64), RAMP64(128), RAMP64(192)};
const float bits_iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
