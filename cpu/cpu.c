/* Which kernels this machine can run, and the tables of them, built once. */
#include "cpu/cpu.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/affine.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

typedef enum isa { ISA_C, ISA_AVX2, ISA_AVX512, ISA_COUNT } isa;
static const char *const isa_names[ISA_COUNT] = {"c", "avx2", "avx512"};

static affine_ops affine_tables[ISA_COUNT];
static llmq_backend_ops tables[ISA_COUNT]; /* resolved once by tables_build, read-only afterwards */
static isa isa_machine, isa_chosen;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* Bits of XCR0: the registers that the operating system saves when it switches threads. */
static uint32_t os_saved_state(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

/* The flags here are those that CMakeLists.txt gives to the files of each ISA. */
static isa isa_detect(void) {
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const uint32_t avx2 = 1u << 5, bmi2 = 1u << 8, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F DQ BW VL */
    const uint32_t vbmi = 1u << 1, vnni = 1u << 11, bf16 = 1u << 5;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return ISA_C;
    const uint32_t need1 = fma | osxsave | avx | f16c;
    if ((c & need1) != need1) return ISA_C;
    uint32_t saved = os_saved_state();
    if ((saved & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return ISA_C; /* xmm, ymm */
    if ((b & (avx2 | bmi2)) != (avx2 | bmi2)) return ISA_C;
    if ((saved & 0xe0) != 0xe0) return ISA_AVX2; /* mask registers, upper halves and upper 16 of zmm */
    if ((b & avx512) != avx512 || (c & (vbmi | vnni)) != (vbmi | vnni)) return ISA_AVX2;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & bf16)) return ISA_AVX2;
    return ISA_AVX512;
}
#else
static isa isa_detect(void) {
    return ISA_C;
}
#endif

static isa isa_limit(void) {
    const char *name = getenv("LLMQ_ISA");
    if (!name || !*name) return ISA_AVX512;
    for (int i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, isa_names[i]) == 0) return (isa)i;
    llmq_log(LLMQ_LOG_WARN, "LLMQ_ISA=%s is unknown and ignored; use c, avx2 or avx512", name);
    return ISA_AVX512;
}

static void tables_build(void) {
    isa_machine = isa_detect();
    for (int i = 0; i <= (int)isa_machine; i++) {
        llmq_backend_ops *ops = &tables[i];
        cpu_fill_matmul_c(ops);
        cpu_fill_ops_c(ops);
        cpu_fill_grad_c(ops);
        cpu_fill_limits_c(ops);
        cpu_fill_affine_c(&affine_tables[i]);
        ops->round_block = cpu_round_block_c;
        ops->refine_block = cpu_refine_block_c;
#if defined(__x86_64__)
        if (i >= ISA_AVX2) {
            cpu_fill_matmul_avx2(ops);
            cpu_fill_ops_avx2(ops);
            cpu_fill_grad_avx2(ops);
            cpu_fill_limits_avx2(ops);
            cpu_fill_affine_avx2(&affine_tables[i]);
            ops->round_block = cpu_round_block_avx2;
            ops->refine_block = cpu_refine_block_avx2;
        }
        if (i >= ISA_AVX512) {
            cpu_fill_matmul_avx512(ops);
            cpu_fill_ops_avx512(ops);
            cpu_fill_grad_avx512(ops);
            cpu_fill_limits_avx512(ops);
            cpu_fill_affine_avx512(&affine_tables[i]);
            ops->round_block = cpu_round_block_avx512;
            ops->refine_block = cpu_refine_block_avx512;
        }
#endif
        ops->affine = &affine_tables[i];
        ops->isa = isa_names[i];
    }
    isa limit = isa_limit();
    isa_chosen = limit < isa_machine ? limit : isa_machine;
}

const llmq_backend_ops *backend_cpu(void) {
    pthread_once(&tables_once, tables_build);
    return &tables[isa_chosen];
}

const llmq_backend_ops *backend_cpu_isa(const char *name) {
    pthread_once(&tables_once, tables_build);
    for (int i = 0; i <= (int)isa_machine; i++)
        if (strcmp(name, isa_names[i]) == 0) return &tables[i];
    return NULL;
}
