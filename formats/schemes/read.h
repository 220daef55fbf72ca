/* Reading folders whose matrices are quantized: every P.qweight, P.scales, ... becomes one tensor P.weight of a storage
 * type that llmq runs, made when it is first asked for. */
#ifndef LLMQ_FORMATS_SCHEMES_READ_H
#define LLMQ_FORMATS_SCHEMES_READ_H

#include "formats/format.h"

/* Before the weights: looks for a quantization_config (dir/config.json, dir/quantize_config.json). One that llmq cannot
 * read is LLMQ_E_UNSUPPORTED. */
llmq_status schemes_begin(llmq_source *src, const char *dir, llmq_err *err);
/* After them: replaces members of matrices among src's tensors; src->quant is set if there are any. Element types that
 * only members have must not be left over: LLMQ_E_UNSUPPORTED names the tensor. */
llmq_status schemes_attach(llmq_source *src, llmq_err *err);
/* The format's load, release and close (format.h). */
llmq_status schemes_load(llmq_source *src, const llmq_tensor *t, bool keep, llmq_err *err);
void schemes_release(const llmq_source *src, const llmq_tensor *t);
/* False where the values were rounded. */
bool schemes_exact(const llmq_source *src, const llmq_tensor *t);
bool schemes_input(const llmq_source *src, const llmq_tensor *t, llmq_act_range *out); /* the format's input */
void schemes_close(llmq_source *src);

#endif
