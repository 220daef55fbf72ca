#include "engine/arch/arch.h"

#include <stdio.h>
#include <string.h>

#define ARCH(name) extern const llmq_arch arch_##name;
#include "engine/arch/arch.def"
#undef ARCH

static const llmq_arch *const archs[] = {
#define ARCH(name) &arch_##name,
#include "engine/arch/arch.def"
#undef ARCH
};

const llmq_arch *arch_at(size_t index) {
    return index < sizeof archs / sizeof *archs ? archs[index] : NULL;
}

const llmq_arch *arch_find(const char *name) {
    const llmq_arch *arch;
    for (size_t i = 0; (arch = arch_at(i)); i++)
        if (strcmp(arch->name, name) == 0) return arch;
    return NULL;
}

const llmq_arch_rule *arch_rule(const llmq_arch *arch, llmq_role role) {
    for (const llmq_arch_rule *r = arch->rules; r->role != ROLE_COUNT; r++)
        if (r->role == role) return r;
    return NULL;
}

llmq_site_id arch_fold_site(const llmq_arch *arch, llmq_role role) {
    if (role >= ROLE_Q_BIAS && role <= ROLE_O_BIAS) role = (llmq_role)(ROLE_Q + (role - ROLE_Q_BIAS));
    for (int site = 0; site < SITE_COUNT; site++)
        if (arch->folds[site].into == role) return (llmq_site_id)site;
    return SITE_NONE;
}

bool arch_role_is_matrix(llmq_role role) {
    return role == ROLE_TOKEN_EMBD || role == ROLE_OUTPUT || (role >= ROLE_Q && role <= ROLE_O) ||
           (role >= ROLE_GATE && role <= ROLE_DOWN);
}

void arch_tensor_name(const llmq_arch_rule *rule, int naming, int layer, char out[128]) {
    const char *pattern = naming == 0 ? rule->gguf : rule->hf, *mark = strstr(pattern, "%d");
    if (mark)
        snprintf(out, 128, "%.*s%d%s", (int)(mark - pattern), pattern, layer, mark + 2);
    else
        snprintf(out, 128, "%s", pattern);
}
