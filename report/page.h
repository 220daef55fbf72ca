/* The parts of the page. */
#ifndef LLMQ_REPORT_PAGE_H
#define LLMQ_REPORT_PAGE_H

#include "report/report.h"
#include "report/text.h"

/* curves.c */
void page_curves(report_text *t, const llmq_report_facts *facts);
/* ranges.c: nothing where the model's inputs are not of 8 bits. */
void page_ranges(report_text *t, const llmq_report_facts *facts);

#endif
