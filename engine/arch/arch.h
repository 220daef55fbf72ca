/* Architectures as table rows over one shared decoder: names of weights, where they read from, flags. One file an
 * architecture, one line in arch.def. */
#ifndef LLMQ_ENGINE_ARCH_H
#define LLMQ_ENGINE_ARCH_H

#include "core/meta.h"

typedef enum llmq_role {
    /* of the model */
    ROLE_TOKEN_EMBD,
    ROLE_OUTPUT_NORM,
    ROLE_OUTPUT,
    ROLE_ROPE_FREQS,
    /* of a layer */
    ROLE_ATTN_NORM,
    ROLE_Q,
    ROLE_K,
    ROLE_V,
    ROLE_O,
    ROLE_Q_BIAS,
    ROLE_K_BIAS,
    ROLE_V_BIAS,
    ROLE_O_BIAS,
    ROLE_Q_NORM,
    ROLE_K_NORM,
    ROLE_FFN_NORM,
    ROLE_GATE,
    ROLE_UP,
    ROLE_DOWN,
    ROLE_COUNT
} llmq_role;

/* The distinct inputs of a layer's matrices, in the order of the forward pass. Weights of one site share one Gram
 * matrix. */
typedef enum llmq_site_id { SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN, SITE_COUNT, SITE_NONE = -1 } llmq_site_id;

typedef struct llmq_arch_rule {
    llmq_role role;
    const char *hf, *gguf; /* names; "%d" stands for the layer */
    llmq_site_id site;     /* of a matrix inside a layer, else SITE_NONE */
    bool optional;
    int permute; /* GGUF stores these rows interleaved: 1 by n_head, 2 by n_head_kv, 0 not (see NAMING_GGUF) */
} llmq_arch_rule;

/* The op before a site takes up a scale of the site's inputs: the columns of all matrices of the site times s and this
 * op's outputs over s mean what they meant before. */
typedef struct llmq_arch_fold {
    llmq_role into; /* a norm's gain, or a matrix whose rows (with its bias) are divided; ROLE_COUNT: none */
    bool heads;     /* its rows are kv heads and the site's columns the query heads that read them: a kv channel's scale
                       is shared by the queries of its group */
} llmq_arch_fold;

typedef struct llmq_arch {
    const char *name;            /* general.architecture */
    const llmq_arch_rule *rules; /* ends with role ROLE_COUNT */
    const llmq_arch_fold *folds; /* [SITE_COUNT] */
    bool gguf_neox;              /* rope order of q/k rows in GGUF files: NeoX (two halves) or interleaved pairs */
} llmq_arch;

const llmq_arch *arch_find(const char *name);                           /* NULL if llmq does not know it */
const llmq_arch *arch_at(size_t index);                                 /* NULL past the end */
const llmq_arch_rule *arch_rule(const llmq_arch *arch, llmq_role role); /* NULL if the architecture lacks it */
/* The site whose scale the role takes up; SITE_NONE: of none. The bias of a matrix goes with it. */
llmq_site_id arch_fold_site(const llmq_arch *arch, llmq_role role);
bool arch_role_is_matrix(llmq_role role); /* embedding, head and what multiplies; the others are vectors */
/* The name of a role's tensor in a naming (formats/format.h's llmq_naming: 0 GGUF, 1 HF) into out. */
void arch_tensor_name(const llmq_arch_rule *rule, int naming, int layer, char out[128]);

#endif
