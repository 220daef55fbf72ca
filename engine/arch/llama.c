/* "llama": Llama 1 to 3, Mistral, SmolLM2, TinyLlama, Yi, llama2.c. GGUF files hold q and k rows (and their biases)
 * interleaved, so that RoPE turns neighbours; Hugging Face files hold each head's two halves one after the other. */
#include "engine/arch/rules.h"

static const llmq_arch_rule rules[] = {
    RULES_MODEL, RULES_MATRICES(1, 2), RULES_QKV_BIAS(true, 1, 2), RULES_O_BIAS, RULES_END,
};

static const llmq_arch_fold folds[SITE_COUNT] = RULES_FOLDS;

extern const llmq_arch arch_llama;
const llmq_arch arch_llama = {.name = "llama", .rules = rules, .folds = folds, .gguf_neox = false};
