#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifndef LLMQ_VERSION
#define LLMQ_VERSION "0.1.0"
#endif

llmq_status llmq_fail(llmq_err *err, llmq_status status, const char *fmt, ...) {
    if (!err) return status;
    /* An argument may point into err->msg itself ("%s: %s" around an inner message): format beside it first. */
    char msg[sizeof err->msg];
    va_list args;
    va_start(args, fmt);
    vsnprintf(msg, sizeof msg, fmt, args);
    va_end(args);
    memcpy(err->msg, msg, sizeof msg);
    err->status = status;
    return status;
}

static llmq_log_fn *log_fn;
static void *log_user;

void llmq_log_set(llmq_log_fn *fn, void *user) {
    log_fn = fn;
    log_user = user;
}

void llmq_log(llmq_log_level level, const char *fmt, ...) {
    if (!log_fn) return;
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    log_fn(log_user, level, line);
}

const char *llmq_version(void) {
    return LLMQ_VERSION;
}

const char *llmq_status_name(llmq_status status) {
    switch (status) {
    case LLMQ_OK: return "ok";
    case LLMQ_E_ARG: return "bad argument";
    case LLMQ_E_IO: return "input/output error";
    case LLMQ_E_FORMAT: return "file format error";
    case LLMQ_E_UNSUPPORTED: return "not supported";
    case LLMQ_E_MEMORY: return "out of memory";
    case LLMQ_E_CONTEXT: return "context is full";
    case LLMQ_E_EXISTS: return "output exists";
    case LLMQ_E_INTERRUPTED: return "interrupted";
    case LLMQ_E_NUMERIC: return "numeric failure";
    }
    return "unknown status";
}
