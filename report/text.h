/* Growing text for pages. A failed allocation is remembered and told at the end, so that writing needs no checks. */
#ifndef LLMQ_REPORT_TEXT_H
#define LLMQ_REPORT_TEXT_H

#include "core/err.h"

typedef struct report_text {
    char *s; /* by mem_alloc, NUL-terminated */
    size_t len, cap;
    bool failed;
} report_text;

/* As printf; what goes in is markup. */
void text_add(report_text *t, const char *fmt, ...) LLMQ_PRINTF(2, 3);
/* Text of any origin: & < > " ' become entities, control characters and broken UTF-8 become U+FFFD. NULL: nothing. */
void text_escape(report_text *t, const char *s);
/* "91.7 MB" */
void text_bytes(report_text *t, double bytes);

#endif
