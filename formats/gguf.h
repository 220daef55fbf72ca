/* Facts of GGUF that reader and writer share. */
#ifndef LLMQ_FORMATS_GGUF_H
#define LLMQ_FORMATS_GGUF_H

#include <stdint.h>

#define GGUF_MAGIC 0x46554747u /* "GGUF" */
#define GGUF_VERSION 3
#define GGUF_ALIGNMENT 32
#define GGUF_MAX_NAME 64 /* with the NUL that readers in C add */
#define GGUF_MAX_KEY 256
#define GGUF_MAX_KEYS 16384

#endif
