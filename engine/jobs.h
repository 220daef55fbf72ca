/* The two jobs behind llmq_quant.h. */
#ifndef LLMQ_ENGINE_JOBS_H
#define LLMQ_ENGINE_JOBS_H

#include "formats/format.h"
#include "llmq_quant.h"

/* pipeline.c. *result is zeroed; on failure its rows are freed. */
llmq_status job_quantize(const char *path, const llmq_quant_params *params, llmq_quant_result *result, llmq_err *err);
/* convert.c */
llmq_status job_convert(const char *path, const char *out, const llmq_convert_params *params,
                        llmq_convert_result *result, llmq_err *err);

/* convert_hf.c: params->emit of Hugging Face folders. */
struct llmq_export;
struct llmq_team;
llmq_status convert_to_folders(const struct llmq_export *ex, const char *out, const llmq_convert_params *params,
                               struct llmq_team *team, llmq_convert_result *result, llmq_err *err);

/* Refuses to write over what is being read, and over anything else without force (LLMQ_E_EXISTS). option: what named
 * out, for the message. */
llmq_status job_check_output(const llmq_source *source, const char *out, const char *option, bool force, llmq_err *err);

#endif
