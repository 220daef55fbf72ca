/* JSON files through jansson: duplicates of keys are refused, messages name file and key. */
#ifndef LLMQ_FORMATS_JSON_H
#define LLMQ_FORMATS_JSON_H

#include <jansson.h>

#include "core/err.h"

/* An object from text; freed by json_decref. file: for messages. */
llmq_status json_parse_object(const char *text, size_t len, const char *file, json_t **out, llmq_err *err);
/* The same from a whole file of at most max bytes. */
llmq_status json_read_object(const char *path, size_t max, json_t **out, llmq_err *err);

/* Optional members: *out stays as it was when the key is absent or null; a value of another kind or outside [min, max]
 * is LLMQ_E_FORMAT. Whole numbers written as 32.0 count as integers. */
llmq_status json_get_i64(const json_t *obj, const char *key, int64_t min, int64_t max, const char *file, int64_t *out,
                         llmq_err *err);
llmq_status json_get_f64(const json_t *obj, const char *key, double min, double max, const char *file, double *out,
                         llmq_err *err);
llmq_status json_get_bool(const json_t *obj, const char *key, const char *file, bool *out, llmq_err *err);
/* *out is borrowed from obj. */
llmq_status json_get_str(const json_t *obj, const char *key, const char *file, const char **out, llmq_err *err);
/* The value unless absent or null: NULL then. */
json_t *json_get(const json_t *obj, const char *key);

#endif
