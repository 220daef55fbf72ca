/* The instruction sets that tests of kernels go through, and what a run says of them. Programs linked with the emulated
 * AVX-VNNI, AVX-512 and AMX (tests/emu512, -DLLMQ_EMULATED) leave AVX2 to the native ones; plain C is the oracle of
 * all. */
#ifndef LLMQ_TESTS_ISAS_H
#define LLMQ_TESTS_ISAS_H

#include <stdio.h>

#include "core/backend.h"

#ifdef LLMQ_EMULATED
static const char *const all_isas[] = {"c", "avxvnni", "avx512", "avx512bf16", "amx"};
#define VECTORS_RUN "emulated"
#elif defined(__aarch64__)
static const char *const all_isas[] = {"c", "neon", "dotprod"};
#define VECTORS_RUN "native"
#else
static const char *const all_isas[] = {"c", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"};
#define VECTORS_RUN "native"
#endif
#define N_ISAS (int)(sizeof all_isas / sizeof *all_isas)

/* To be called once, before the tests. */
static inline void isas_say(void) {
    printf("[   ISAS   ]");
    for (int i = 0; i < N_ISAS; i++)
        printf("%s %s: %s", i ? "," : "", all_isas[i],
               !backend_cpu_isa(all_isas[i]) ? "NOT RUN, this machine has none"
               : i                           ? VECTORS_RUN
                                             : "native");
    printf("\n");
}

#endif
