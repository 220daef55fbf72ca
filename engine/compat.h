/* What other engines refuse: facts about a model on the disk, and the rules that read them. compat.c gathers,
 * compat_rules.c judges. */
#ifndef LLMQ_ENGINE_COMPAT_H
#define LLMQ_ENGINE_COMPAT_H

#include <jansson.h>

#include "formats/format.h"
#include "formats/safetensors_list.h"
#include "llmq.h"

enum { ENGINE_LLAMA_CPP = 1, ENGINE_VLLM = 2, ENGINE_TRANSFORMERS = 4, ENGINE_SGLANG = 8, N_ENGINES = 4 };

typedef enum compat_method { METHOD_NONE, METHOD_GPTQ, METHOD_AWQ, METHOD_CT, METHOD_BNB, METHOD_OTHER } compat_method;

/* A matrix of a Hugging Face folder. */
typedef struct compat_matrix {
    const char *name; /* of the tensor that says what it is: "P.weight", "P.qweight", "P.weight_packed" */
    size_t stem;      /* length of P */
    bool quantized;
    int64_t rows, cols; /* outputs and inputs; 0: not known */
    int64_t groups;     /* scales of a row; 0: not known */
} compat_matrix;

typedef struct compat_facts {
    const char *path;
    /* one of these containers: */
    bool is_gguf, is_llama2c, is_hf;
    const llmq_source *source; /* GGUF only */
    /* a folder's: */
    json_t *config;
    const json_t *quant;             /* quantization_config, NULL: none */
    const json_t *ct;                /* of compressed-tensors: "weights" of the first group */
    const char *method_name, *dtype; /* quant_method, torch_dtype */
    compat_method method;
    int64_t bits, group; /* 0: not given; group -1: rows */
    bool sym, tied, has_tokenizer;
    llmq_safetensors_list list;
    compat_matrix *matrices; /* n_matrices, sorted by name */
    size_t n_matrices;
} compat_facts;

#define COMPAT_DETAIL 192

/* A rule holds: the engine refuses, or loads with a warning. */
typedef struct compat_rule {
    unsigned engines;
    bool refuses;
    bool (*holds)(const compat_facts *f, char detail[COMPAT_DETAIL]); /* detail: set where the text needs one */
    const char *field, *reason, *cure;
} compat_rule;

extern const compat_rule compat_rules[];
extern const size_t compat_n_rules;

llmq_status compat_check(const char *path, const char *engines, llmq_compat_report *out, llmq_err *err);

#endif
