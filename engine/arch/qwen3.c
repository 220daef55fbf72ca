/* "qwen3": Qwen 3 (dense): an RMS norm over each head of q and k before RoPE, head_dim apart from n_embd / n_head, and
 * biases only where attention_bias asks for them. Rows are never interleaved. */
#include "engine/arch/rules.h"

static const llmq_arch_rule rules[] = {
    RULES_MODEL, RULES_MATRICES(0, 0), RULES_QKV_BIAS(true, 0, 0), RULES_O_BIAS, RULES_QK_NORM, RULES_END,
};

static const llmq_arch_fold folds[SITE_COUNT] = RULES_FOLDS;

extern const llmq_arch arch_qwen3;
const llmq_arch arch_qwen3 = {.name = "qwen3", .rules = rules, .folds = folds, .gguf_neox = true};
