/* llmq: what every part of the public API and every room of the library shares: status codes, the error
 * record, logging, progress, storage type ids. Nothing here allocates. */
#ifndef LLMQ_BASE_H
#define LLMQ_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LLMQ_API __attribute__((visibility("default")))
#define LLMQ_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define LLMQ_API
#define LLMQ_PRINTF(fmt, args)
#endif

/* Every fallible function returns one of these; 0 is the only success. */
typedef enum llmq_status {
    LLMQ_OK = 0,
    LLMQ_E_ARG,         /* the caller asked for something that makes no sense */
    LLMQ_E_IO,          /* the operating system refused: open, read, write, rename, no space */
    LLMQ_E_FORMAT,      /* a file is damaged or is not what it claims to be */
    LLMQ_E_UNSUPPORTED, /* a file is sound, but llmq does not know this architecture, type, tokenizer, ... */
    LLMQ_E_MEMORY,      /* an allocation failed */
    LLMQ_E_CONTEXT,     /* the context is full */
    LLMQ_E_EXISTS,      /* the output is there already */
    LLMQ_E_INTERRUPTED, /* the caller's cancel callback said stop */
    LLMQ_E_NUMERIC      /* non-finite numbers, a factorization that cannot be saved */
} llmq_status;

/* One clear line about what went wrong: it names the file, the field and the cure. Written once, by the function that
 * found the fault; callers pass it on. A NULL llmq_err * is always allowed. */
typedef struct llmq_err {
    llmq_status status;
    char msg[768];
} llmq_err;

typedef enum llmq_log_level {
    LLMQ_LOG_DEBUG,
    LLMQ_LOG_INFO,
    LLMQ_LOG_NOTE,
    LLMQ_LOG_WARN,
    LLMQ_LOG_ERROR
} llmq_log_level;

/* Receives log lines (no trailing newline). May be called from any thread, one call at a time. */
typedef void llmq_log_fn(void *user, llmq_log_level level, const char *line);

/* Sets the process-wide log receiver; NULL (the default) drops all lines. */
LLMQ_API void llmq_log_set(llmq_log_fn *fn, void *user);

/* n_threads of whatever computes: 0 for the physical cores this process may use, or up to so many. An explicit number
 * is obeyed even where there are fewer processors. */
#define LLMQ_THREADS_MAX 512

/* Progress of long work: done of total units (total 0: unknown), what is being done, seconds left (< 0: unknown).
 * Returns true to go on, false to stop at the next safe point (the job then ends with LLMQ_E_INTERRUPTED). */
typedef bool llmq_progress_fn(void *user, double done, double total, const char *what, double seconds_left);

/* Storage types of tensors. The numbers are GGUF's (ggml_type). */
typedef enum llmq_type {
    LLMQ_TYPE_F32 = 0,
    LLMQ_TYPE_F16 = 1,
    LLMQ_TYPE_Q4_0 = 2,
    LLMQ_TYPE_Q4_1 = 3,
    LLMQ_TYPE_Q5_0 = 6,
    LLMQ_TYPE_Q5_1 = 7,
    LLMQ_TYPE_Q8_0 = 8,
    LLMQ_TYPE_Q2_K = 10,
    LLMQ_TYPE_Q3_K = 11,
    LLMQ_TYPE_Q4_K = 12,
    LLMQ_TYPE_Q5_K = 13,
    LLMQ_TYPE_Q6_K = 14,
    LLMQ_TYPE_IQ4_NL = 20,
    LLMQ_TYPE_IQ4_XS = 23,
    LLMQ_TYPE_BF16 = 30,
    /* No types of GGUF: how 4-bit matrices of bitsandbytes folders are held in memory. */
    LLMQ_TYPE_NF4 = 62,
    LLMQ_TYPE_FP4 = 63,
    LLMQ_TYPE_COUNT = 64, /* one past the largest id that a table indexed by type needs */
    LLMQ_TYPE_NONE = -1
} llmq_type;

/* "q4_0" for LLMQ_TYPE_Q4_0; "?" for an unknown id. Static string. */
LLMQ_API const char *llmq_type_name(llmq_type type);
/* The type of a name, without regard to case; LLMQ_TYPE_NONE if there is none. */
LLMQ_API llmq_type llmq_type_from_name(const char *name);

/* "0.1.0 (abcdef0)". Static string. */
LLMQ_API const char *llmq_version(void);
/* A few words for a status: "file format error". Static string. */
LLMQ_API const char *llmq_status_name(llmq_status status);

#ifdef __cplusplus
}
#endif
#endif
