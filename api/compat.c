/* Public functions about other engines. */
#include "engine/compat.h"
#include "core/mem.h"

llmq_status llmq_compat_check(const char *path, const char *engines, llmq_compat_report *out, llmq_err *err) {
    if (!path || !out)
        return llmq_fail(err, LLMQ_E_ARG, "llmq_compat_check: the model's path and the report must be given");
    return compat_check(path, engines, out, err);
}

void llmq_compat_report_clear(llmq_compat_report *report) {
    if (!report) return;
    mem_free(report->findings);
    *report = (llmq_compat_report){0};
}

const char *llmq_compat_verdict_name(llmq_compat_verdict verdict) {
    static const char *const names[] = {"loads", "loads with a warning", "refuses"};
    return (unsigned)verdict < 3 ? names[verdict] : "?";
}
