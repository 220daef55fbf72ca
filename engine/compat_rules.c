/* The rules: one row is one thing that an engine's loader refuses or stumbles over. Sources: the loaders of llama.cpp
 * (as of llama-cpp-python 0.3.36), vLLM 0.24, transformers 5, SGLang 0.5.11; docs/compatibility.md says what was read.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/compat.h"
#include "formats/json.h"
#include "types/type.h"

#define L ENGINE_LLAMA_CPP
#define V ENGINE_VLLM
#define T ENGINE_TRANSFORMERS
#define S ENGINE_SGLANG
#define WARNS false
#define REFUSES true

/* Text of files goes to terminals: control characters become '?'. Always true, so that a rule can end with it. */
LLMQ_PRINTF(2, 3) static bool say(char detail[COMPAT_DETAIL], const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(detail, COMPAT_DETAIL, fmt, args);
    va_end(args);
    for (char *c = detail; *c; c++)
        if (iscntrl((unsigned char)*c)) *c = '?';
    return true;
}

static bool one_of(const char *word, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(word, list[i])) return true;
    return false;
}
#define ONE_OF(word, list) one_of(word, list, sizeof list / sizeof *(list))

/* The same for words of a text between single spaces. */
static bool listed(const char *word, const char *words) {
    size_t n = strlen(word);
    for (const char *at = words; n && (at = strstr(at, word)); at += n)
        if ((at == words || at[-1] == ' ') && (at[n] == ' ' || !at[n])) return !strchr(word, ' ');
    return false;
}

static bool is_llama2c(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_llama2c;
}

static bool is_gguf(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_gguf;
}

/* ---- GGUF ---- */

/* src/llama-arch.cpp, LLM_ARCH_NAMES */
static const char llama_cpp_archs[] =
    "clip llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bert modern-bert "
    "nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe "
    "qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe qwen4exp phi2 phi3 phimoe plamo "
    "plamo2 plamo3 codeshell orion internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 "
    "gemma4-assistant gemma-embedding starcoder2 mamba mamba2 maple jamba falcon-h1 xverse command-r cohere2 "
    "cohere2moe dbrx olmo olmo2 olmoe muse-glimmer openelm arctic deepseek deepseek2 deepseek2-ocr deepseek32 "
    "deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2 nemotron nemotron_h nemotron_h_moe "
    "exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe granitehybrid graniteswitch "
    "granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2 bailingmoe3 dots1 dots3note arcee "
    "afmoe laguna ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss lfm2 "
    "lfm2moe dream smallthinker llada llada-moe seed_oss grovemoe apertus minimax-01 hrm_text minimax-m2 "
    "minimax-m3 cogvlm rnd1 pangu-embedded mistral3 eagle3 dflash mistral4 paddleocr mimo2 step35 spark2_5 "
    "llama-embed maincoder kimi-linear kimi-k3 glm5-next talkie mellum nanbeige qwen3tts pockettts";

/* src/llama-vocab.cpp, every name that tokenizer_pre is compared with */
static const char llama_cpp_pres[] =
    "kimi-k2 default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano "
    "deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de "
    "gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m "
    "sarvam-moe jina-v1-en jina-v2-code roberta-bpe whitespace refact command-r qwen2 deepseek-r1-qwen kormo "
    "f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat chatglm-bpe glm4 glm5 viking jais tekken smollm "
    "codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 "
    "talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe "
    "bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm ufakzeka grok-2 afmoe laguna "
    "minimax-m2 solar-open mellum2";

/* src/llama-vocab.cpp, every name that tokenizer_model is compared with */
static const char llama_cpp_tokenizers[] = "llama gpt2 bert t5 rwkv plamo2 gemma4 hybriddna whitespace none no_vocab";

static const char *gguf_str(const compat_facts *f, const char *key) {
    return f->is_gguf ? meta_get_str(f->source->meta, key) : NULL;
}

static bool gguf_has(const compat_facts *f, const char *key) {
    return meta_find(f->source->meta, key) != NULL;
}

static bool gguf_is_bpe(const compat_facts *f) {
    const char *model = gguf_str(f, "tokenizer.ggml.model");
    return model && !strcmp(model, "gpt2");
}

static bool gguf_arch_unknown(const compat_facts *f, char *detail) {
    const char *arch = gguf_str(f, "general.architecture");
    return arch && !listed(arch, llama_cpp_archs) && say(detail, "'%.60s'", arch);
}

static bool gguf_key_missing(const compat_facts *f, char *detail) {
    static const char *const keys[] = {"context_length", "embedding_length", "block_count",
                                       "attention.layer_norm_rms_epsilon"};
    char key[128];
    const char *arch = gguf_str(f, "general.architecture");
    for (size_t i = 0; arch && i < sizeof keys / sizeof *keys; i++)
        if (!gguf_has(f, meta_key(key, "%s.%s", arch, keys[i]))) return say(detail, "%s", key);
    return false;
}

static bool gguf_rope_dim(const compat_facts *f, char *detail) {
    int64_t rot = 0, width = 0, heads = 0, dim = 0;
    const char *arch = gguf_str(f, "general.architecture");
    if (!arch || strcmp(arch, "llama") != 0 || !meta_get_i64(f->source->meta, "llama.rope.dimension_count", &rot) ||
        !meta_get_i64(f->source->meta, "llama.embedding_length", &width) ||
        !meta_get_i64(f->source->meta, "llama.attention.head_count", &heads) || heads < 1)
        return false;
    dim = width / heads;
    meta_get_i64(f->source->meta, "llama.attention.key_length", &dim);
    return rot != dim && say(detail, "%lld, heads have %lld", (long long)rot, (long long)dim);
}

static bool gguf_tokenizer_unknown(const compat_facts *f, char *detail) {
    const char *model = gguf_str(f, "tokenizer.ggml.model");
    if (!f->is_gguf || (model && listed(model, llama_cpp_tokenizers))) return false;
    return say(detail, model ? "'%.60s'" : "%s", model ? model : "the key is missing");
}

static bool gguf_no_tokenizer(const compat_facts *f, char *detail) {
    (void)detail;
    const char *model = gguf_str(f, "tokenizer.ggml.model");
    return model && (!strcmp(model, "none") || !strcmp(model, "no_vocab"));
}

static bool gguf_pre_unknown(const compat_facts *f, char *detail) {
    const char *pre = gguf_str(f, "tokenizer.ggml.pre");
    return pre && gguf_is_bpe(f) && !listed(pre, llama_cpp_pres) && say(detail, "'%.60s'", pre);
}

static bool gguf_pre_missing(const compat_facts *f, char *detail) {
    (void)detail;
    return gguf_is_bpe(f) && !gguf_str(f, "tokenizer.ggml.pre");
}

static bool gguf_tokens_missing(const compat_facts *f, char *detail) {
    return f->is_gguf && !gguf_no_tokenizer(f, detail) && gguf_str(f, "tokenizer.ggml.model") &&
           !gguf_has(f, "tokenizer.ggml.tokens");
}

static bool gguf_merges_missing(const compat_facts *f, char *detail) {
    (void)detail;
    return gguf_is_bpe(f) && !gguf_has(f, "tokenizer.ggml.merges");
}

static bool gguf_ids_missing(const compat_facts *f, char *detail) {
    static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"};
    for (size_t i = 0; gguf_is_bpe(f) && i < 2; i++)
        if (!gguf_has(f, keys[i])) return say(detail, "%s", keys[i]);
    return false;
}

static bool gguf_vocab_differs(const compat_facts *f, char *detail) {
    if (!f->is_gguf) return false;
    const llmq_meta_value *tokens = meta_find(f->source->meta, "tokenizer.ggml.tokens");
    const llmq_tensor *table = source_find(f->source, "token_embd.weight");
    return tokens && tokens->type == META_ARRAY && table && (int64_t)tokens->arr.n != table->dims[1] &&
           say(detail, "%zu tokens, %lld rows", tokens->arr.n, (long long)table->dims[1]);
}

static bool gguf_name_too_long(const compat_facts *f, char *detail) {
    for (size_t i = 0; f->is_gguf && i < f->source->n_tensors; i++)
        if (strlen(f->source->tensors[i].name) >= 64) return say(detail, "%.100s", f->source->tensors[i].name);
    return false;
}

static bool gguf_norm_not_f32(const compat_facts *f, char *detail) {
    for (size_t i = 0; f->is_gguf && i < f->source->n_tensors; i++) {
        const llmq_tensor *t = &f->source->tensors[i];
        if (t->n_dims == 1 && t->type != LLMQ_TYPE_F32)
            return say(detail, "%.100s is %s", t->name, llmq_type_name(t->type));
    }
    return false;
}

/* ---- Hugging Face folders of any scheme ---- */

static bool is_plain_folder(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_hf && f->method == METHOD_NONE;
}

static bool hf_architectures_missing(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_hf && json_array_size(json_get(f->config, "architectures")) == 0;
}

static bool hf_tokenizer_missing(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_hf && !f->has_tokenizer;
}

static bool hf_format_missing(const compat_facts *f, char *detail) {
    return f->is_hf && f->list.n_without_format &&
           say(detail, "%zu of %zu files", f->list.n_without_format, f->list.n_files);
}

static bool has_tensor(const compat_facts *f, const char *name) {
    return safetensors_list_find(&f->list, name) != NULL;
}

static bool head_is_quantized(const compat_facts *f) {
    return has_tensor(f, "lm_head.qweight") || has_tensor(f, "lm_head.weight_packed") ||
           has_tensor(f, "lm_head.weight.absmax");
}

static bool hf_tied_twice(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_hf && f->tied && has_tensor(f, "lm_head.weight");
}

static bool hf_tied_quantized_head(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_hf && f->tied && head_is_quantized(f);
}

static bool hf_rows_not_256(const compat_facts *f, char *detail) {
    for (size_t i = 0; f->is_hf && f->method == METHOD_NONE && i < f->n_matrices; i++)
        if (f->matrices[i].cols % 256)
            return say(detail, "%.100s has rows of %lld", f->matrices[i].name, (long long)f->matrices[i].cols);
    return false;
}

/* The members of a fused layer: engines that run q, k, v (gate, up) as one matrix need one setting for all. */
static const char *const fused[][3] = {{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                       {"mlp.gate_proj", "mlp.up_proj", NULL}};

static int by_name(const void *pa, const void *pb) {
    return strcmp(((const compat_matrix *)pa)->name, ((const compat_matrix *)pb)->name);
}

/* The matrix P, however it is stored. */
static const compat_matrix *find_matrix(const compat_facts *f, const char *stem) {
    static const char *const suffixes[] = {".qweight", ".weight_packed", ".weight"};
    char name[512];
    for (size_t i = 0; i < 3; i++) {
        const compat_matrix key = {.name = name}, *m;
        if ((size_t)snprintf(name, sizeof name, "%s%s", stem, suffixes[i]) >= sizeof name) return NULL;
        if ((m = bsearch(&key, f->matrices, f->n_matrices, sizeof key, by_name))) return m;
    }
    return NULL;
}

static bool differs(const compat_facts *f, const compat_matrix *first, const char *suffix, const char *other) {
    char name[512];
    int len = snprintf(name, sizeof name, "%.*s%s", (int)(first->stem - strlen(suffix)), first->name, other);
    if (len < 0 || (size_t)len >= sizeof name) return false;
    const compat_matrix *m = find_matrix(f, name);
    return m && (m->quantized != first->quantized || m->groups != first->groups);
}

static bool fused_differ(const compat_facts *f, char *detail) {
    if (!f->is_hf || f->method == METHOD_NONE) return false;
    for (size_t i = 0; i < f->n_matrices; i++) {
        const compat_matrix *m = &f->matrices[i];
        for (size_t k = 0; k < sizeof fused / sizeof *fused; k++) {
            size_t len = strlen(fused[k][0]);
            if (m->stem < len || strncmp(m->name + m->stem - len, fused[k][0], len) != 0) continue;
            for (int other = 1; other < 3 && fused[k][other]; other++)
                if (differs(f, m, fused[k][0], fused[k][other]))
                    return say(detail, "%.*s and its %s", (int)m->stem, m->name, fused[k][other]);
        }
    }
    return false;
}

/* ---- quantized folders ---- */

static bool is_gptq(const compat_facts *f) {
    return f->method == METHOD_GPTQ;
}

static bool needs_gptqmodel(const compat_facts *f, char *detail) {
    return (is_gptq(f) || f->method == METHOD_AWQ) && say(detail, "%s", f->method_name);
}

static bool needs_compressed_tensors(const compat_facts *f, char *detail) {
    (void)detail;
    return f->method == METHOD_CT;
}

static bool is_bnb(const compat_facts *f, char *detail) {
    (void)detail;
    return f->method == METHOD_BNB;
}

static bool is_awq_or_bnb(const compat_facts *f, char *detail) {
    return (f->method == METHOD_AWQ || f->method == METHOD_BNB) && say(detail, "%s", f->method_name);
}

static bool method_unknown(const compat_facts *f, char *detail) {
    return f->method == METHOD_OTHER && say(detail, "'%.60s'", f->method_name ? f->method_name : "(none)");
}

/* Schemes that the converter of llama.cpp takes apart, where no other rule objects. */
static bool is_convertible_scheme(const compat_facts *f, char *detail) {
    return (is_gptq(f) || f->method == METHOD_CT) && say(detail, "%s", f->method_name);
}

static bool other_than_4_or_8_bits(const compat_facts *f) {
    return f->bits != 4 && f->bits != 8;
}

static bool gptq_bits(const compat_facts *f, char *detail) {
    return is_gptq(f) && other_than_4_or_8_bits(f) && say(detail, "%lld bits", (long long)f->bits);
}

static bool gptq_3_bits(const compat_facts *f, char *detail) {
    (void)detail;
    return is_gptq(f) && f->bits == 3;
}

static bool gptq_asymmetric(const compat_facts *f, char *detail) {
    (void)detail;
    return is_gptq(f) && !f->sym;
}

static bool group_not_of_marlin(const compat_facts *f, char *detail) {
    if (!is_gptq(f) && f->method != METHOD_AWQ && f->method != METHOD_CT) return false;
    int64_t g = f->group;
    bool fits = g == -1 || g == 32 || g == 64 || g == 128 || (g == 0 && f->method == METHOD_CT);
    return !fits && say(detail, "groups of %lld", (long long)g);
}

/* A group that ends behind the row: one scale too many for cols / group. */
static bool partial_group(const compat_facts *f, char *detail) {
    for (size_t i = 0; f->group > 0 && i < f->n_matrices; i++) {
        const compat_matrix *m = &f->matrices[i];
        if (m->quantized && m->cols > 0 && m->cols % f->group)
            return say(detail, "%.*s: rows of %lld, groups of %lld", m->stem < 100 ? (int)m->stem : 100, m->name,
                       (long long)m->cols, (long long)f->group);
    }
    return false;
}

static bool gptq_key_missing(const compat_facts *f, char *detail) {
    static const char *const keys[] = {"bits", "group_size", "desc_act", "sym"};
    for (size_t i = 0; is_gptq(f) && i < sizeof keys / sizeof *keys; i++)
        if (!json_get(f->quant, keys[i])) return say(detail, "'%s'", keys[i]);
    return false;
}

static const char *checkpoint_format(const compat_facts *f) {
    const char *s = json_string_value(json_get(f->quant, "checkpoint_format"));
    if (!s) s = json_string_value(json_get(f->quant, "format"));
    return is_gptq(f) && s ? s : "gptq";
}

static bool gptq_v2(const compat_facts *f, char *detail) {
    (void)detail;
    return is_gptq(f) && !strcmp(checkpoint_format(f), "gptq_v2");
}

static bool gptq_other_format(const compat_facts *f, char *detail) {
    const char *s = checkpoint_format(f);
    return is_gptq(f) && strcmp(s, "gptq") != 0 && strcmp(s, "gptq_v2") != 0 && say(detail, "'%.60s'", s);
}

static bool gptq_desc_act(const compat_facts *f, char *detail) {
    (void)detail;
    return is_gptq(f) && json_is_true(json_get(f->quant, "desc_act"));
}

static bool gptq_g_idx_missing(const compat_facts *f, char *detail) {
    char name[512];
    for (size_t i = 0; is_gptq(f) && i < f->n_matrices; i++) {
        const compat_matrix *m = &f->matrices[i];
        if (!m->quantized) continue;
        snprintf(name, sizeof name, "%.*s.g_idx", (int)m->stem, m->name);
        if (!has_tensor(f, name)) return say(detail, "%.*s", m->stem < 100 ? (int)m->stem : 100, m->name);
    }
    return false;
}

static bool gptq_head_not_declared(const compat_facts *f, char *detail) {
    (void)detail;
    return is_gptq(f) && has_tensor(f, "lm_head.qweight") && !json_is_true(json_get(f->quant, "lm_head"));
}

static bool quantized_head(const compat_facts *f, char *detail) {
    (void)detail;
    return f->is_hf && head_is_quantized(f);
}

static bool ct_quantized_head(const compat_facts *f, char *detail) {
    (void)detail;
    return f->method == METHOD_CT && has_tensor(f, "lm_head.weight_packed");
}

static bool awq_bits(const compat_facts *f, char *detail) {
    return f->method == METHOD_AWQ && f->bits != 4 && say(detail, "%lld bits", (long long)f->bits);
}

static bool awq_version(const compat_facts *f, char *detail) {
    const char *version = json_string_value(json_get(f->quant, "version"));
    return f->method == METHOD_AWQ && version && strcmp(version, "gemm") != 0 && strcmp(version, "GEMM") != 0 &&
           say(detail, "'%.60s'", version);
}

static bool awq_no_zeros(const compat_facts *f, char *detail) {
    (void)detail;
    return f->method == METHOD_AWQ && json_is_false(json_get(f->quant, "zero_point"));
}

static bool awq_bf16(const compat_facts *f, char *detail) {
    (void)detail;
    return f->method == METHOD_AWQ && f->dtype && !strcmp(f->dtype, "bfloat16");
}

static bool gptq_bf16(const compat_facts *f, char *detail) {
    (void)detail;
    return is_gptq(f) && f->dtype && !strcmp(f->dtype, "bfloat16");
}

static const char *ct_format(const compat_facts *f) {
    const char *format = json_string_value(json_get(f->quant, "format"));
    return f->method == METHOD_CT && format ? format : "";
}

static bool ct_format_unknown(const compat_facts *f, char *detail) {
    static const char *const known[] = {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized"};
    return f->method == METHOD_CT && !ONE_OF(ct_format(f), known) && say(detail, "'%.60s'", ct_format(f));
}

static bool ct_many_groups(const compat_facts *f, char *detail) {
    size_t n = json_object_size(json_get(f->quant, "config_groups"));
    return f->method == METHOD_CT && n > 1 && say(detail, "%zu groups", n);
}

static bool ct_strategy(const compat_facts *f, char *detail) {
    const char *strategy = json_string_value(json_get(f->ct, "strategy"));
    if (f->method != METHOD_CT || !strategy) return false;
    bool packed = !strcmp(ct_format(f), "pack-quantized");
    bool fits = packed ? !strcmp(strategy, "group") : !strcmp(strategy, "channel") || !strcmp(strategy, "block");
    return !fits && say(detail, "'%.60s'", strategy);
}

static bool ct_asymmetric(const compat_facts *f, char *detail) {
    (void)detail;
    return f->method == METHOD_CT && !f->sym;
}

static bool ct_bits(const compat_facts *f, char *detail) {
    return f->method == METHOD_CT && other_than_4_or_8_bits(f) && say(detail, "%lld bits", (long long)f->bits);
}

static bool ct_g_idx(const compat_facts *f, char *detail) {
    size_t n;
    for (size_t i = 0; f->method == METHOD_CT && i < f->list.n; i++) {
        n = strlen(f->list.tensors[i].name);
        if (n > 13 && !strcmp(f->list.tensors[i].name + n - 13, ".weight_g_idx"))
            return say(detail, "%.100s", f->list.tensors[i].name);
    }
    return false;
}

static bool bnb_storage(const compat_facts *f, char *detail) {
    const char *storage = json_string_value(json_get(f->quant, "bnb_4bit_quant_storage"));
    return f->method == METHOD_BNB && storage && strcmp(storage, "uint8") != 0 && say(detail, "'%.60s'", storage);
}

static bool bnb_state_missing(const compat_facts *f, char *detail) {
    char nf4[512], fp4[512];
    for (size_t i = 0; f->method == METHOD_BNB && i < f->n_matrices; i++) {
        const compat_matrix *m = &f->matrices[i];
        const llmq_listed_tensor *t = safetensors_list_find(&f->list, m->name);
        if (!m->quantized || !t || strcmp(t->dtype, "U8") != 0) continue;
        snprintf(nf4, sizeof nf4, "%s.quant_state.bitsandbytes__nf4", m->name);
        snprintf(fp4, sizeof fp4, "%s.quant_state.bitsandbytes__fp4", m->name);
        if (!has_tensor(f, nf4) && !has_tensor(f, fp4)) return say(detail, "%.100s", m->name);
    }
    return false;
}

/* ---- the table ---- */

#define QC "config.json: quantization_config."

const compat_rule compat_rules[] = {
    /* containers */
    {L | V | T | S, REFUSES, is_llama2c, "container", "llama2.c files are read by llama2.c and llmq only",
     "llmq convert MODEL -o OUT.gguf (or llmq quantize)"},
    {V, REFUSES, is_gguf, "container", "GGUF left vLLM's tree in 0.24 and needs a plugin",
     "give vLLM a folder: llmq quantize --emit gptq or ct"},
    {T, WARNS, is_gguf, "container",
     "GGUF is read by from_pretrained(..., gguf_file=...) for some architectures and becomes float weights",
     "give transformers a folder: llmq quantize --emit ct or bnb"},
    {S, WARNS, is_gguf, "container", "GGUF is not among the formats that SGLang is known to serve well (GPTQ, AWQ, CT)",
     "give SGLang a folder: llmq quantize --emit gptq"},
    {L, WARNS, is_plain_folder, "container", "llama.cpp loads GGUF only: the folder has to be converted first",
     "llmq convert MODEL -o OUT.gguf, or llama.cpp's convert_hf_to_gguf.py"},
    {L, WARNS, is_convertible_scheme, "container",
     "llama.cpp loads GGUF only; its converter turns this scheme back into float weights",
     "llmq convert MODEL -o OUT.gguf, or quantize the original with --emit gguf"},
    {L, REFUSES, is_awq_or_bnb, "container",
     "llama.cpp loads GGUF only, and its converter ends with NotImplementedError on this scheme",
     "quantize the original model with llmq quantize --emit gguf"},
    /* GGUF */
    {L, REFUSES, gguf_arch_unknown, "general.architecture", "no architecture that llama.cpp knows",
     "update llama.cpp, or write the architecture's GGUF name"},
    {L, REFUSES, gguf_key_missing, "metadata", "llama.cpp needs this key", "write the file again: llmq convert"},
    {L, REFUSES, gguf_rope_dim, "llama.rope.dimension_count", "llama.cpp wants it equal to the head's size",
     "write the file again: llmq convert"},
    {L, REFUSES, gguf_tokenizer_unknown, "tokenizer.ggml.model", "no tokenizer that llama.cpp knows",
     "convert again with the model's tokenizer.json"},
    {L, WARNS, gguf_no_tokenizer, "tokenizer.ggml.model", "the file has no tokenizer: it takes token ids only",
     "convert again with --tokenizer FILE"},
    {L, REFUSES, gguf_pre_unknown, "tokenizer.ggml.pre", "llama.cpp does not know this pre-tokenizer and stops",
     "use the name of a pre-tokenizer that splits alike, or update llama.cpp"},
    {L, WARNS, gguf_pre_missing, "tokenizer.ggml.pre",
     "without it llama.cpp falls back to 'default', which may split text in another way",
     "convert again with the model's tokenizer.json"},
    {L, REFUSES, gguf_tokens_missing, "tokenizer.ggml.tokens", "llama.cpp cannot find the vocabulary",
     "convert again with the model's tokenizer.json"},
    {L, REFUSES, gguf_merges_missing, "tokenizer.ggml.merges", "llama.cpp cannot find the tokenizer's merges",
     "convert again with the model's tokenizer.json"},
    {L, WARNS, gguf_ids_missing, "tokenizer.ggml", "llama.cpp then takes token 11 for the begin and end of text",
     "convert again with config.json beside the weights"},
    {L, REFUSES, gguf_vocab_differs, "tokenizer.ggml.tokens",
     "llama.cpp wants one token for each row of token_embd.weight", "convert again: llmq fills the vocabulary up"},
    {L, REFUSES, gguf_name_too_long, "tensor", "names in GGUF are shorter than 64 bytes", "rename the tensor"},
    {L, WARNS, gguf_norm_not_f32, "tensor", "llama.cpp expects norms and biases in F32",
     "write the file again: llmq convert"},
    /* any folder */
    {V | S, REFUSES, hf_architectures_missing, "config.json: architectures", "the engine picks its model class by it",
     "add it, e.g. [\"LlamaForCausalLM\"]"},
    {L | V | T | S, WARNS, hf_tokenizer_missing, "tokenizer.json", "the folder has no tokenizer",
     "copy tokenizer.json and tokenizer_config.json from the original model"},
    {T, WARNS, hf_format_missing, "*.safetensors: __metadata__.format",
     "older transformers refuse files that do not say {\"format\": \"pt\"}",
     "write the files again: llmq quantize --emit"},
    {S, REFUSES, hf_tied_twice, "config.json: tie_word_embeddings",
     "the head is tied, yet lm_head.weight is stored too (sglang#2935)",
     "drop lm_head.weight, or set tie_word_embeddings to false"},
    {V | T, WARNS, hf_tied_twice, "config.json: tie_word_embeddings",
     "the head is tied, yet lm_head.weight is stored too: it is ignored", "drop lm_head.weight"},
    {V | T | S, REFUSES, hf_tied_quantized_head, "config.json: tie_word_embeddings",
     "a quantized lm_head cannot be tied to the embedding", "set tie_word_embeddings to false"},
    {L, WARNS, hf_rows_not_256, "tensor",
     "256 does not divide the rows: K types and IQ4_XS fall back to wider types there",
     "choose q4_0, q4_1, iq4_nl, q5_0, q5_1 or q8_0"},
    {V | S, REFUSES, fused_differ, "quantized layers",
     "q, k, v (gate, up) run as one matrix and must be quantized alike", "quantize all of them, with one group size"},
    /* schemes */
    {L | V | T | S, REFUSES, method_unknown, QC "quant_method", "not a scheme that is known to load",
     "gptq, awq, compressed-tensors and bitsandbytes are known"},
    {T, WARNS, needs_gptqmodel, QC "quant_method", "transformers 5 needs the package gptqmodel for it",
     "pip install gptqmodel, or write --emit ct"},
    {T, WARNS, needs_compressed_tensors, QC "quant_method", "transformers needs the package compressed-tensors for it",
     "pip install compressed-tensors"},
    {T, WARNS, is_bnb, QC "quant_method", "transformers needs the package bitsandbytes for it",
     "pip install bitsandbytes"},
    {V, WARNS, is_bnb, QC "quant_method",
     "not with tensor parallelism, and vLLM means to drop bitsandbytes (RFC vllm#39583)", "write --emit gptq or ct"},
    {S, WARNS, is_bnb, QC "quant_method", "not among the formats that SGLang is known to serve well (GPTQ, AWQ, CT)",
     "write --emit gptq or ct"},
    {V, REFUSES, gptq_key_missing, QC "*", "vLLM needs this field", "add it; quantize_config.json may have it"},
    {V, REFUSES, gptq_bits, QC "bits", "vLLM takes GPTQ with 4 or 8 bits only (vllm#45051)",
     "quantize to 4 or 8 bits, or use GGUF"},
    {S, REFUSES, gptq_bits, QC "bits", "SGLang takes GPTQ with 4 or 8 bits only", "quantize to 4 or 8 bits"},
    {L, REFUSES, gptq_3_bits, QC "bits", "llama.cpp's converter does not take 3-bit GPTQ apart",
     "llmq convert MODEL -o OUT.gguf"},
    {V, REFUSES, gptq_asymmetric, QC "sym", "vLLM takes symmetric GPTQ only and ignores qzeros (PR vllm#38288)",
     "quantize with --sym, or write --emit awq"},
    {V, REFUSES, group_not_of_marlin, "group_size", "vLLM's kernels take groups of 32, 64, 128 or whole rows (-1)",
     "quantize with --group 32, 64, 128 or -1"},
    {V | S, REFUSES, partial_group, "group_size", "the last group of a row is cut off, which kernels cannot read",
     "choose a group that divides the rows"},
    {V, WARNS, gptq_v2, QC "checkpoint_format",
     "older vLLM ignored it and printed '!!!!' (vllm#26343); newer ignores the zeros (harmless if symmetric)",
     "write version 1 (checkpoint_format gptq)"},
    {L | V | S, REFUSES, gptq_other_format, QC "checkpoint_format", "a layout that only GPTQModel reads",
     "write version 1 (checkpoint_format gptq)"},
    {V | S, WARNS, gptq_desc_act, QC "desc_act", "groups in the order of activations make kernels slow",
     "quantize with static groups: llmq does, desc_act is false then"},
    {L, REFUSES, gptq_g_idx_missing, "tensor", "llama.cpp's converter stops without .g_idx",
     "write it: llmq always does"},
    {V | T | S, REFUSES, gptq_head_not_declared, QC "lm_head", "lm_head.qweight is there, yet lm_head is not true",
     "set lm_head to true, or leave the head in F16"},
    {V, REFUSES, ct_quantized_head, "lm_head.weight_packed",
     "vLLM refuses a quantized head in compressed-tensors (llm-compressor#1820)", "put lm_head into ignore"},
    {T | S, WARNS, quantized_head, "lm_head", "few loaders are tested with a quantized head (transformers#31474)",
     "leave the head in F16"},
    {V | T | S, REFUSES, awq_bits, QC "bits", "AWQ is 4-bit", "quantize to 4 bits"},
    {V | T | S, REFUSES, awq_version, QC "version", "only the gemm layout is read everywhere", "write version gemm"},
    {V | T, WARNS, awq_no_zeros, QC "zero_point", "AWQ's own packer asserts zero points",
     "write zero_point true (a symmetric grid has 8 everywhere)"},
    {V, WARNS, awq_bf16, "config.json: torch_dtype", "vLLM's plain AWQ kernel takes float16 only",
     "set torch_dtype to float16, or start with --dtype float16"},
    {V, WARNS, gptq_bf16, "config.json: torch_dtype", "scales are stored in F16 and cast to bfloat16: 3 bits less",
     "set torch_dtype to float16"},
    {L | V | T | S, REFUSES, ct_format_unknown, QC "format", "not a format that is known to load",
     "pack-quantized and int-quantized are"},
    {L, REFUSES, ct_many_groups, QC "config_groups", "llama.cpp's converter takes one group",
     "quantize all layers alike"},
    {L, REFUSES, ct_strategy, QC "config_groups", "a strategy that llama.cpp's converter does not take apart",
     "use groups (pack-quantized) or channels (int-quantized)"},
    {L, REFUSES, ct_g_idx, "tensor", "llama.cpp's converter cannot map this tensor", "quantize with static groups"},
    {S, REFUSES, ct_asymmetric, QC "config_groups", "SGLang 0.5.11 refuses asymmetric weights (sglang#25291)",
     "quantize with --sym"},
    {S, REFUSES, ct_bits, QC "config_groups", "SGLang takes 4 or 8 bits", "quantize to 4 or 8 bits"},
    {V, WARNS, ct_bits, QC "config_groups", "only the newest vLLM takes other than 4 or 8 bits (vllm#46528)",
     "quantize to 4 or 8 bits"},
    {V, REFUSES, bnb_storage, QC "bnb_4bit_quant_storage", "vLLM takes uint8 only", "write it as uint8"},
    {V | T, REFUSES, bnb_state_missing, "tensor", "a 4-bit weight without its quant_state", "write the folder again"},
};
const size_t compat_n_rules = sizeof compat_rules / sizeof *compat_rules;
