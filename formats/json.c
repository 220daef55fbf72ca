#include "formats/json.h"

#include <math.h>

#include "core/file.h"
#include "core/mem.h"

/* Whole numbers that were read as real ones: integers again, where a double holds them exactly. Depth: jansson reads no
 * more than 2,048 levels. */
static json_t *whole_again(json_t *v) {
    const char *key;
    json_t *item;
    void *next;
    size_t i;
    double x = json_number_value(v);
    if (json_is_real(v) && x == floor(x) && fabs(x) < 9e15) return json_integer((json_int_t)x);
    json_object_foreach_safe(v, next, key, item) json_object_set_new(v, key, whole_again(item));
    json_array_foreach(v, i, item) json_array_set_new(v, i, whole_again(item));
    return json_incref(v);
}

llmq_status json_parse_object(const char *text, size_t len, const char *file, json_t **out, llmq_err *err) {
    json_error_t fault;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &fault);
    *out = NULL;
    /* Some writers put 10^30 where there is no limit. */
    if (!root && json_error_code(&fault) == json_error_numeric_overflow) {
        root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &fault);
        if (root) json_decref(whole_again(root));
    }
    if (!root)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: not valid JSON, line %d column %d: %s; get the file again", file,
                         fault.line, fault.column, fault.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: its JSON is not an object {...}", file);
    }
    *out = root;
    return LLMQ_OK;
}

llmq_status json_read_object(const char *path, size_t max, json_t **out, llmq_err *err) {
    char *text = NULL;
    size_t len = 0;
    *out = NULL;
    LLMQ_TRY(file_read(path, max, &text, &len, err));
    llmq_status status = json_parse_object(text, len, path, out, err);
    mem_free(text);
    return status;
}

json_t *json_get(const json_t *obj, const char *key) {
    json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

llmq_status json_get_i64(const json_t *obj, const char *key, int64_t min, int64_t max, const char *file, int64_t *out,
                         llmq_err *err) {
    const json_t *v = json_get(obj, key);
    if (!v) return LLMQ_OK;
    double real = json_number_value(v);
    int64_t x = json_is_integer(v) ? json_integer_value(v) : 0;
    bool whole = json_is_integer(v);
    if (json_is_real(v) && real == floor(real) && fabs(real) < 9e15) {
        x = (int64_t)real;
        whole = true;
    }
    if (!whole || x < min || x > max)
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s must be a whole number from %lld to %lld", file, key,
                         (long long)min, (long long)max);
    *out = x;
    return LLMQ_OK;
}

llmq_status json_get_f64(const json_t *obj, const char *key, double min, double max, const char *file, double *out,
                         llmq_err *err) {
    const json_t *v = json_get(obj, key);
    if (!v) return LLMQ_OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= min && x <= max))
        return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s must be a number from %g to %g", file, key, min, max);
    *out = x;
    return LLMQ_OK;
}

llmq_status json_get_bool(const json_t *obj, const char *key, const char *file, bool *out, llmq_err *err) {
    const json_t *v = json_get(obj, key);
    if (!v) return LLMQ_OK;
    if (!json_is_boolean(v)) return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s must be true or false", file, key);
    *out = json_is_true(v);
    return LLMQ_OK;
}

llmq_status json_get_str(const json_t *obj, const char *key, const char *file, const char **out, llmq_err *err) {
    const json_t *v = json_get(obj, key);
    if (!v) return LLMQ_OK;
    if (!json_is_string(v)) return llmq_fail(err, LLMQ_E_FORMAT, "%s: %s must be a string", file, key);
    *out = json_string_value(v);
    return LLMQ_OK;
}
