/* How the numbers of a grid are stored, as far as those who change them must know. A grid turns the codes of a group
 * into weights: value = scale * level[code] + offset (types/type.h). */
#ifndef LLMQ_CORE_GRID_H
#define LLMQ_CORE_GRID_H

typedef enum llmq_grid_form {
    GRID_FIXED,       /* as the fit left it: not to be changed number by number */
    GRID_SCALE,       /* scale is an f16, offset 0 */
    GRID_ZERO,        /* scale is an f16, offset = -scale * zero with an integer zero, which is left as it is */
    GRID_AFFINE,      /* scale and offset are f16 */
    GRID_SUPER,       /* scale = d * sc: an f16 of the super-block, an integer of the group; offset 0 */
    GRID_SUPER_AFFINE /* scale = d * sc, offset = -(dmin * mn) with mn from 0 to sc_max; d and dmin not negative */
} llmq_grid_form;

#endif
