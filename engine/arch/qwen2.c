/* "qwen2": Qwen 1.5, 2 and 2.5: as Llama, with biases on q, k and v. Rows are never interleaved. */
#include "engine/arch/rules.h"

static const llmq_arch_rule rules[] = {
    RULES_MODEL, RULES_MATRICES(0, 0), RULES_QKV_BIAS(false, 0, 0), RULES_O_BIAS, RULES_END,
};

static const llmq_arch_fold folds[SITE_COUNT] = RULES_FOLDS;

extern const llmq_arch arch_qwen2;
const llmq_arch arch_qwen2 = {.name = "qwen2", .rules = rules, .folds = folds, .gguf_neox = true};
