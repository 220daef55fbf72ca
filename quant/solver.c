/* The pieces of gptq by name. */
#include <stdlib.h>
#include <string.h>

#include "quant/quant.h"

#define DEFAULT_SWEEPS 3
#define MAX_SWEEPS 100
#define DEFAULT_MEAN 2.0
#define MAX_MEAN 1000

static bool is(const char *text, size_t len, const char *word) {
    return strlen(word) == len && memcmp(text, word, len) == 0;
}

static bool set_item(const char *key, size_t key_len, const char *value, size_t len, llmq_solver *s) {
    bool off = is(value, len, "0"), on = is(value, len, "1");
    if (is(key, key_len, "sweeps")) {
        char *end;
        long n = strtol(value, &end, 10);
        if (len == 0 || end != value + len || n < 0 || n > MAX_SWEEPS) return false;
        s->sweeps = (int)n;
    } else if (is(key, key_len, "acts")) {
        s->q8 = is(value, len, "q8");
        return s->q8 || is(value, len, "f32");
    } else if (is(key, key_len, "mean")) {
        char *end;
        s->mean = strtod(value, &end);
        return len > 0 && end == value + len && s->mean >= 0 && s->mean <= MAX_MEAN;
    } else if (is(key, key_len, "refit")) {
        s->refit = on;
        return on || off;
    } else if (is(key, key_len, "grid")) {
        s->corrected = is(value, len, "corrected");
        return s->corrected || is(value, len, "original");
    } else if (is(key, key_len, "weight")) {
        s->pivots = is(value, len, "pivot");
        return s->pivots || is(value, len, "diag");
    } else if (is(key, key_len, "order")) {
        s->order = is(value, len, "group") ? ORDER_GROUP : is(value, len, "none") ? ORDER_NONE : ORDER_STATIC;
        return s->order != ORDER_STATIC || is(value, len, "static");
    } else {
        return false;
    }
    return true;
}

llmq_status solver_parse(const char *list, bool act_order, llmq_solver *out, llmq_err *err) {
    /* By the models' KL on held-out texts (docs/quantization.md); the layers' own errors prefer other pieces. */
    *out = (llmq_solver){.order = act_order ? ORDER_STATIC : ORDER_NONE,
                         .refit = true,
                         .sweeps = DEFAULT_SWEEPS,
                         .mean = DEFAULT_MEAN,
                         .q8 = true};
    for (const char *item = list; item && *item;) {
        size_t len = strcspn(item, ","), key_len = strcspn(item, "=");
        if (key_len >= len || !set_item(item, key_len, item + key_len + 1, len - key_len - 1, out))
            return llmq_fail(err, LLMQ_E_ARG,
                             "--solver: '%.*s' is none of sweeps=N, mean=X, refit=0|1, grid=original|corrected, "
                             "weight=diag|pivot, order=static|group|none, acts=q8|f32",
                             (int)len, item);
        item += len + (item[len] == ',');
    }
    if (out->order == ORDER_STATIC) out->corrected = false;
    return LLMQ_OK;
}
