/* Status and errors: the function that finds a fault writes the message once; callers pass it on with LLMQ_TRY. */
#ifndef LLMQ_CORE_ERR_H
#define LLMQ_CORE_ERR_H

#include "llmq_base.h"

/* Fills err (may be NULL) and returns status, so that `return llmq_fail(err, LLMQ_E_FORMAT, "...")` is one line. */
llmq_status llmq_fail(llmq_err *err, llmq_status status, const char *fmt, ...) LLMQ_PRINTF(3, 4);

#define LLMQ_TRY(expr)                                                                                                 \
    do {                                                                                                               \
        llmq_status try_status_ = (expr);                                                                              \
        if (try_status_ != LLMQ_OK) return try_status_;                                                                \
    } while (0)

/* As LLMQ_TRY inside a function that cleans up at its label `done` and returns `status`. */
#define LLMQ_TRY_GOTO(expr)                                                                                            \
    do {                                                                                                               \
        status = (expr);                                                                                               \
        if (status != LLMQ_OK) goto done;                                                                              \
    } while (0)

/* Programmer errors only, never file contents or arguments of a user. Off in release builds. */
#ifdef LLMQ_CHECKS
#include <stdlib.h>
#define LLMQ_ASSERT(cond) ((cond) ? (void)0 : abort())
#else
#define LLMQ_ASSERT(cond) ((void)0)
#endif

void llmq_log(llmq_log_level level, const char *fmt, ...) LLMQ_PRINTF(2, 3);

#endif
