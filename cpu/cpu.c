/* The tables of the kernels that this machine can run, built once. */
#include "cpu/cpu.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/affine.h"
#include "cpu/ops.h"

#if defined(__aarch64__)
#define ISA_NAMES "c", "neon", "dotprod"
#else
#define ISA_NAMES "c", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"
#endif
static const char *const isa_names[CPU_ISA_COUNT] = {ISA_NAMES};

static affine_ops affine_tables[CPU_ISA_COUNT];
static llmq_backend_ops tables[CPU_ISA_COUNT]; /* resolved once by tables_build, read-only afterwards */
static cpu_isa isa_machine, isa_chosen;
static bool isa_has[CPU_ISA_COUNT];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static cpu_isa isa_limit(void) {
    const char *name = getenv("LLMQ_ISA");
    if (!name || !*name) return cpu_fastest();
    for (int i = 0; i < CPU_ISA_COUNT; i++)
        if (strcmp(name, isa_names[i]) == 0) return (cpu_isa)i;
    char known[64] = "";
    for (int i = 0; i < CPU_ISA_COUNT; i++) {
        if (i > 0) strcat(known, i < CPU_ISA_COUNT - 1 ? ", " : " or ");
        strcat(known, isa_names[i]);
    }
    llmq_log(LLMQ_LOG_WARN, "LLMQ_ISA=%s is unknown and ignored; use %s", name, known);
    return cpu_fastest();
}

static void tables_build(void) {
    isa_machine = cpu_detect();
    for (int i = 0; i <= (int)isa_machine; i++) {
        llmq_backend_ops *ops = &tables[i];
        isa_has[i] = true;
        cpu_fill_matmul_c(ops);
        cpu_fill_ops_c(ops);
        cpu_fill_grad_c(ops);
        cpu_fill_limits_c(ops);
        cpu_fill_affine_c(&affine_tables[i]);
        ops->round_block = cpu_round_block_c;
        ops->refine_block = cpu_refine_block_c;
#if defined(__x86_64__)
        if (i >= CPU_ISA_AVX2) {
            cpu_fill_matmul_avx2(ops);
            cpu_fill_ops_avx2(ops);
            cpu_fill_grad_avx2(ops);
            cpu_fill_limits_avx2(ops);
            cpu_fill_affine_avx2(&affine_tables[i]);
            ops->round_block = cpu_round_block_avx2;
            ops->refine_block = cpu_refine_block_avx2;
        }
        if (i == CPU_ISA_AVXVNNI) {
            isa_has[i] = cpu_has_avxvnni();
            cpu_fill_matmul_avxvnni(ops);
            cpu_fill_limits_avxvnni(ops);
        }
        if (i >= CPU_ISA_AVX512) {
            cpu_fill_matmul_avx512(ops);
            cpu_fill_ops_avx512(ops);
            cpu_fill_grad_avx512(ops);
            cpu_fill_limits_avx512(ops);
            cpu_fill_affine_avx512(&affine_tables[i]);
            ops->round_block = cpu_round_block_avx512;
            ops->refine_block = cpu_refine_block_avx512;
        }
        if (i >= CPU_ISA_AVX512BF16) cpu_fill_matmul_avx512bf16(ops);
        if (i == CPU_ISA_AVX512BF16) { /* AMX has its own, or rather floats */
            attention_fill_avx512bf16(ops);
            cpu_fill_grad_avx512bf16(ops);
        }
        if (i >= CPU_ISA_AMX) {
            cpu_fill_matmul_amx(ops);
            attention_fill_amx(ops);
            cpu_fill_limits_amx(ops);
            cpu_fill_gram_amx(ops);
            cpu_fill_int8_amx(ops);
            cpu_fill_grad_amx(ops);
            cpu_fill_causal_amx(ops);
        }
#elif defined(__aarch64__)
        if (i >= CPU_ISA_NEON) {
            cpu_fill_matmul_neon(ops);
            cpu_fill_ops_neon(ops);
            cpu_fill_grad_neon(ops);
            cpu_fill_limits_neon(ops);
            cpu_fill_affine_neon(&affine_tables[i]);
            ops->round_block = cpu_round_block_neon;
            ops->refine_block = cpu_refine_block_neon;
        }
        if (i >= CPU_ISA_DOTPROD) {
            cpu_fill_matmul_dotprod(ops);
            cpu_fill_limits_dotprod(ops);
            cpu_fill_affine_dotprod(&affine_tables[i]);
        }
#endif
        ops->affine = &affine_tables[i];
        ops->isa = isa_names[i];
    }
    cpu_isa limit = isa_limit();
    isa_chosen = limit <= isa_machine ? limit : cpu_fastest();
    while (!isa_has[isa_chosen]) isa_chosen--;
}

const llmq_backend_ops *backend_cpu(void) {
    pthread_once(&tables_once, tables_build);
    return &tables[isa_chosen];
}

const llmq_backend_ops *backend_cpu_isa(const char *name) {
    pthread_once(&tables_once, tables_build);
    for (int i = 0; i <= (int)isa_machine; i++)
        if (isa_has[i] && strcmp(name, isa_names[i]) == 0) return &tables[i];
    return NULL;
}
