/* The per-tensor report of a quantization as JSON. */
#ifndef LLMQ_ENGINE_QUANT_REPORT_H
#define LLMQ_ENGINE_QUANT_REPORT_H

#include "core/file.h"
#include "llmq_quant.h"

/* Takes out, also on failure. */
llmq_status quant_report_write(const char *source, const llmq_quant_params *params, const llmq_quant_result *result,
                               llmq_out *out, llmq_err *err);

#endif
