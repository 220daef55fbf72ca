/* A site of a layer (the matrices that read one input) with its full-precision weights: what is measured before
 * anything is quantized works on these. */
#ifndef LLMQ_ENGINE_SITE_H
#define LLMQ_ENGINE_SITE_H

#include "engine/calib_run.h"
#include "engine/export.h"

/* The site that a role's matrix reads, SITE_NONE for what is none. */
llmq_site_id site_of_role(const llmq_model *model, llmq_role role);
/* The site's inputs may get scales: one of its matrices will be rounded (to grid(user, entry of ex), NULL: not), and
 * nothing would be rounded only because of the scales: what is quantized already and copied stays out of it. Floats
 * that are kept are scaled as well as their type can. Entries [first, last) are the layer's. */
bool site_may_scale(const llmq_export *ex, size_t first, size_t last, llmq_site_id site,
                    const llmq_type_info *(*grid)(void *user, size_t index), void *user);
/* n evenly spaced rows of a matrix as floats, by mem_alloc; they are finite. */
llmq_status site_sample_rows(const llmq_model *model, const llmq_tensor *src, int64_t n, llmq_team *team, float **out,
                             llmq_err *err);
/* The site's weights for the next pass of run, into ready [ROLE_COUNT], which is zeroed before. */
llmq_status site_prepare(const llmq_model *model, int layer, llmq_site_id site, llmq_calib_run *run, llmq_weight *ready,
                         llmq_team *team, llmq_err *err);
void site_release(const llmq_model *model, llmq_weight *ready); /* and zeroes */

#endif
