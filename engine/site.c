#include "engine/site.h"

#include <string.h>

#include "quant/hessian.h"

llmq_site_id site_of_role(const llmq_model *model, llmq_role role) {
    const llmq_arch_rule *rule = arch_rule(model->arch, role);
    return rule ? rule->site : SITE_NONE;
}

bool site_may_scale(const llmq_export *ex, size_t first, size_t last, llmq_site_id site,
                    const llmq_type_info *(*grid)(void *user, size_t index), void *user) {
    bool wanted = false;
    for (size_t i = first; i < last; i++) {
        llmq_role role = ex->entries[i].role;
        bool reads = site_of_role(ex->model, role) == site, solved = grid(user, i) != NULL;
        if (!reads && arch_fold_site(ex->model->arch, role) != site) continue;
        if (!solved && !type_is_float(type_info(ex->tensors[i].type))) return false;
        wanted = wanted || (reads && solved);
    }
    return wanted && ex->model->arch->folds[site].into != ROLE_COUNT;
}

llmq_status site_sample_rows(const llmq_model *model, const llmq_tensor *src, int64_t n, llmq_team *team, float **out,
                             llmq_err *err) {
    int64_t rows = tensor_rows(src), cols = tensor_cols(src), row_bytes = type_row_bytes(src->type, cols);
    *out = NULL;
    LLMQ_TRY(source_load(model->source, src, false, err));
    float *w = *out = mem_alloc((size_t)(n * cols), sizeof *w);
    if (!w) return mem_error(err, (size_t)(n * cols) * sizeof *w, src->name);
    for (int64_t i = 0; i < n; i++)
        type_to_f32(src->type, (const uint8_t *)src->data + i * rows / n * row_bytes, w + i * cols, cols);
    llmq_quant_problem check = {.name = src->name, .w = w, .rows = n, .cols = cols, .team = team};
    return hessian_check_weights(&check, err);
}

llmq_status site_prepare(const llmq_model *model, int layer, llmq_site_id site, llmq_calib_run *run, llmq_weight *ready,
                         llmq_team *team, llmq_err *err) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        const llmq_tensor *src = model->layer_tensors[layer].by_role[role];
        if (!src || site_of_role(model, (llmq_role)role) != site) continue;
        LLMQ_TRY(source_load(model->source, src, false, err));
        LLMQ_TRY(model->ops->weight_prepare(&ready[role], src, PREP_BF16, team, err));
        calib_run_weight(run, (llmq_role)role, &ready[role]);
    }
    return LLMQ_OK;
}

void site_release(const llmq_model *model, llmq_weight *ready) {
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (ready[role].rows) model->ops->weight_release(&ready[role]);
        memset(&ready[role], 0, sizeof ready[role]);
    }
}
