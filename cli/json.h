/* JSON output by jansson: one document to stdout. */
#ifndef LLMQ_CLI_JSON_H
#define LLMQ_CLI_JSON_H

#include <jansson.h>

/* Prints and releases the document; 0, or 1 after a message. */
int cli_json_print(json_t *doc, size_t flags);
/* A number, or null where it is not finite: JSON has no NaN. */
json_t *cli_json_real(double v);

#endif
