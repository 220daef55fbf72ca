/* The names that the Llama family shares: a decoder layer of two RMS norms, attention of q, k, v and o, and a gated MLP.
 * An architecture's file puts its rows together from these. */
#ifndef LLMQ_ENGINE_ARCH_RULES_H
#define LLMQ_ENGINE_ARCH_RULES_H

#include "engine/arch/arch.h"

/* role, HF name, GGUF name, site, optional, rows that GGUF interleaves for "llama" (1: by n_head, 2: by n_head_kv) */
/* clang-format off */
#define RULES_MODEL                                                                                                    \
    {ROLE_TOKEN_EMBD, "model.embed_tokens.weight", "token_embd.weight", SITE_NONE, false, 0},                          \
        {ROLE_OUTPUT_NORM, "model.norm.weight", "output_norm.weight", SITE_NONE, false, 0},                            \
        {ROLE_OUTPUT, "lm_head.weight", "output.weight", SITE_NONE, true, 0},                                          \
        {ROLE_ROPE_FREQS, "rope_freqs.weight", "rope_freqs.weight", SITE_NONE, true, 0}

#define HF_LAYER(name) "model.layers.%d." name
#define GGUF_LAYER(name) "blk.%d." name

#define RULES_MATRICES(q_permute, k_permute)                                                                           \
    {ROLE_ATTN_NORM, HF_LAYER("input_layernorm.weight"), GGUF_LAYER("attn_norm.weight"), SITE_NONE, false, 0},         \
        {ROLE_Q, HF_LAYER("self_attn.q_proj.weight"), GGUF_LAYER("attn_q.weight"), SITE_QKV, false, q_permute},        \
        {ROLE_K, HF_LAYER("self_attn.k_proj.weight"), GGUF_LAYER("attn_k.weight"), SITE_QKV, false, k_permute},        \
        {ROLE_V, HF_LAYER("self_attn.v_proj.weight"), GGUF_LAYER("attn_v.weight"), SITE_QKV, false, 0},                \
        {ROLE_O, HF_LAYER("self_attn.o_proj.weight"), GGUF_LAYER("attn_output.weight"), SITE_O, false, 0},             \
        {ROLE_FFN_NORM, HF_LAYER("post_attention_layernorm.weight"), GGUF_LAYER("ffn_norm.weight"), SITE_NONE, false, 0}, \
        {ROLE_GATE, HF_LAYER("mlp.gate_proj.weight"), GGUF_LAYER("ffn_gate.weight"), SITE_GATE_UP, false, 0},          \
        {ROLE_UP, HF_LAYER("mlp.up_proj.weight"), GGUF_LAYER("ffn_up.weight"), SITE_GATE_UP, false, 0},                \
        {ROLE_DOWN, HF_LAYER("mlp.down_proj.weight"), GGUF_LAYER("ffn_down.weight"), SITE_DOWN, false, 0}

#define RULES_QKV_BIAS(is_optional, q_permute, k_permute)                                                              \
    {ROLE_Q_BIAS, HF_LAYER("self_attn.q_proj.bias"), GGUF_LAYER("attn_q.bias"), SITE_NONE, is_optional, q_permute},    \
        {ROLE_K_BIAS, HF_LAYER("self_attn.k_proj.bias"), GGUF_LAYER("attn_k.bias"), SITE_NONE, is_optional, k_permute}, \
        {ROLE_V_BIAS, HF_LAYER("self_attn.v_proj.bias"), GGUF_LAYER("attn_v.bias"), SITE_NONE, is_optional, 0}

#define RULES_O_BIAS                                                                                                   \
    {ROLE_O_BIAS, HF_LAYER("self_attn.o_proj.bias"), GGUF_LAYER("attn_output.bias"), SITE_NONE, true, 0}

#define RULES_QK_NORM                                                                                                  \
    {ROLE_Q_NORM, HF_LAYER("self_attn.q_norm.weight"), GGUF_LAYER("attn_q_norm.weight"), SITE_NONE, false, 0},         \
        {ROLE_K_NORM, HF_LAYER("self_attn.k_norm.weight"), GGUF_LAYER("attn_k_norm.weight"), SITE_NONE, false, 0}

#define RULES_FOLDS                                                                                                    \
    {                                                                                                                  \
        [SITE_QKV] = {ROLE_ATTN_NORM, false}, [SITE_O] = {ROLE_V, true}, [SITE_GATE_UP] = {ROLE_FFN_NORM, false},      \
        [SITE_DOWN] = {ROLE_UP, false},                                                                                \
    }

#define RULES_END {ROLE_COUNT, NULL, NULL, SITE_NONE, true, 0}
/* clang-format on */

#endif
