/* The report of a quantization as one self-contained HTML page: no script, nothing from a network, light and dark. */
#ifndef LLMQ_REPORT_REPORT_H
#define LLMQ_REPORT_REPORT_H

#include "core/file.h"
#include "llmq_quant.h"

typedef struct llmq_report_facts {
    const char *source; /* path of the model */
    const llmq_quant_params *params;
    const llmq_quant_result *result;
    const char *settings; /* lines "NAME VALUE" that decide about the result's bytes; NULL: none */
} llmq_report_facts;

/* The page; *out by mem_alloc, NUL-terminated. Whatever comes from files is escaped. */
llmq_status report_html(const llmq_report_facts *facts, char **out, size_t *len_out, llmq_err *err);
/* The page into out, which is taken, also on failure. */
llmq_status report_html_write(const llmq_report_facts *facts, llmq_out *out, llmq_err *err);

#endif
