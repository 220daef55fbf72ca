/* The list of methods. */
#include "quant/quant.h"

#include <string.h>

#include "quant/hessian.h"
#include "quant/methods/methods.h"

#define METHOD(name) extern const llmq_method method_##name;
#include "quant/methods/methods.def"
#undef METHOD

static const llmq_method *const methods[] = {
#define METHOD(name) &method_##name,
#include "quant/methods/methods.def"
#undef METHOD
};

const llmq_method *method_at(size_t index) {
    return index < sizeof methods / sizeof *methods ? methods[index] : NULL;
}

const llmq_method *method_find(const char *name) {
    const llmq_method *m;
    for (size_t i = 0; (m = method_at(i)) != NULL; i++)
        if (!strcmp(m->name, name)) return m;
    return NULL;
}

double method_work(const llmq_method *m, const llmq_quant_problem *p) {
    double rows = (double)p->rows, cols = (double)p->cols, workers = team_size(p->team);
    double measured = p->gram ? rows < HESSIAN_ERROR_ROWS ? rows : HESSIAN_ERROR_ROWS : 0;
    return (m->work ? m->work(p) : rows * cols * WORK_FIT / workers) +
           1.5 * measured * cols * cols * WORK_MAC / workers; /* three triangles a row */
}
