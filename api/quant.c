#include "llmq_quant.h"

#include "core/err.h"
#include "core/mem.h"
#include "engine/jobs.h"
#include "train/tune.h"

void llmq_quant_params_default(llmq_quant_params *params) {
    *params = (llmq_quant_params){.method = "gptq",

                                  .shard_bytes = 5000000000,
                                  .asym = -1,
                                  .act_order = -1,
                                  .damp = -1,
                                  .calib_tokens = 65536,
                                  .calib_ctx = 512};
}

llmq_status llmq_quantize(const char *path, const llmq_quant_params *params, llmq_quant_result *result, llmq_err *err) {
    llmq_quant_params defaults;
    llmq_quant_params_default(&defaults);
    if (!path || !result)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_quantize: the model's path and the result must be given");
    return job_quantize_with(path, params ? params : &defaults, tune_tuner(), result, err);
}

void llmq_quant_result_clear(llmq_quant_result *result) {
    if (!result) return;
    mem_free(result->rows);
    mem_free(result->inputs);
    *result = (llmq_quant_result){0};
}

const char *llmq_quant_stage_name(llmq_quant_stage stage) {
    static const char *const names[LLMQ_STAGE_COUNT] = {[LLMQ_STAGE_OPEN] = "opening",
                                                        [LLMQ_STAGE_CHOOSE] = "choosing types",
                                                        [LLMQ_STAGE_CALIBRATION] = "calibration",
                                                        [LLMQ_STAGE_GRAM] = "gram matrices",
                                                        [LLMQ_STAGE_SOLVE] = "solving",
                                                        [LLMQ_STAGE_WRITE] = "writing",
                                                        [LLMQ_STAGE_TUNE] = "tuning"};
    return (unsigned)stage < LLMQ_STAGE_COUNT ? names[stage] : "?";
}

void llmq_convert_params_default(llmq_convert_params *params) {
    *params = (llmq_convert_params){.shard_bytes = 5000000000};
}

llmq_status llmq_convert(const char *path, const char *out, const llmq_convert_params *params,
                         llmq_convert_result *result, llmq_err *err) {
    llmq_convert_params defaults;
    llmq_convert_result unused;
    llmq_convert_params_default(&defaults);
    if (!path || !out)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_convert: the paths of the model and of the output must be given");
    return job_convert(path, out, params ? params : &defaults, result ? result : &unused, err);
}
