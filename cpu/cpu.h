/* The CPU backend's own header: each ISA's files fill the entries that they improve over those filled before. */
#ifndef LLMQ_CPU_CPU_H
#define LLMQ_CPU_CPU_H

#include "core/backend.h"

typedef enum cpu_isa {
    CPU_ISA_C,
#if defined(__aarch64__)
    CPU_ISA_NEON,    /* every such processor has it */
    CPU_ISA_DOTPROD, /* sdot */
#else
    CPU_ISA_AVX2,
    CPU_ISA_AVXVNNI,    /* vpdpbusd of 256 bits, without AVX-512: desktops */
    CPU_ISA_AVX512,     /* with VNNI and VBMI */
    CPU_ISA_AVX512BF16, /* and vdpbf16ps */
    CPU_ISA_AMX,
#endif
    CPU_ISA_COUNT
} cpu_isa;
cpu_isa cpu_detect(void); /* the last that the processor and the operating system have, all those before it too, */
#if defined(__x86_64__)
bool cpu_has_avxvnni(void); /* but for this one */
#endif
/* The fastest of them: Intel's processors take twice as long for vdpbf16ps as for two FMAs of floats, which multiply no
 * less, and are better off without (docs/benchmarks.md). */
cpu_isa cpu_fastest(void);
#if defined(__x86_64__)
/* Whether long streams come faster by what the processor fetches by itself than if they are asked for. Measured on
 * Zen 4: a request holds one of the few miss buffers of the L1 cache until memory answers, as it seems, and what
 * the processor fetches by itself holds none (docs/benchmarks.md). Taken to be so of AMD's others, too; not of Intel's,
 * where one with AMX read 23 GB/s alone and 28 to 37 asked for. */
bool cpu_streams_alone(void);
void cpu_set_streams_alone(int alone); /* for tests: 1, 0; -1: as above */
#endif

void cpu_fill_matmul_c(llmq_backend_ops *ops); /* weight_*, acts_*, matmul */
void cpu_fill_ops_c(llmq_backend_ops *ops);    /* everything else but what follows */
void cpu_fill_grad_c(llmq_backend_ops *ops);   /* training */
void cpu_fill_limits_c(llmq_backend_ops *ops); /* probe_* */
void cpu_round_block_c(const llmq_round_block *b);
void cpu_refine_block_c(const llmq_refine_block *b);
#if defined(__x86_64__)
void cpu_round_block_avx2(const llmq_round_block *b);
void cpu_refine_block_avx2(const llmq_refine_block *b);
void cpu_round_block_avx512(const llmq_round_block *b);
void cpu_refine_block_avx512(const llmq_refine_block *b);
void cpu_fill_matmul_avx2(llmq_backend_ops *ops);
void cpu_fill_matmul_avxvnni(llmq_backend_ops *ops);
void cpu_fill_matmul_avx512(llmq_backend_ops *ops);
void cpu_fill_matmul_avx512bf16(llmq_backend_ops *ops);
void cpu_fill_ops_avx2(llmq_backend_ops *ops);
void cpu_fill_ops_avx512(llmq_backend_ops *ops);
void cpu_fill_grad_avx2(llmq_backend_ops *ops);
void cpu_fill_grad_avx512(llmq_backend_ops *ops);
void cpu_fill_grad_avx512bf16(llmq_backend_ops *ops);
void cpu_fill_limits_avx2(llmq_backend_ops *ops);
void cpu_fill_limits_avxvnni(llmq_backend_ops *ops);
void cpu_fill_limits_avx512(llmq_backend_ops *ops);
void cpu_fill_matmul_amx(llmq_backend_ops *ops);
/* Packed weights (layout.h) times at most ACT_FEW rows of activations: the bits of AVX-512. */
void few_matmul_amx(const llmq_worker *worker, const llmq_weight *w, const llmq_acts *a, float *y, int64_t ldy);
void cpu_fill_limits_amx(llmq_backend_ops *ops);
void cpu_fill_gram_amx(llmq_backend_ops *ops);
void cpu_fill_int8_amx(llmq_backend_ops *ops);
void cpu_fill_grad_amx(llmq_backend_ops *ops);
void cpu_fill_causal_amx(llmq_backend_ops *ops);
#elif defined(__aarch64__)
void cpu_round_block_neon(const llmq_round_block *b);
void cpu_refine_block_neon(const llmq_refine_block *b);
void cpu_fill_matmul_neon(llmq_backend_ops *ops);
void cpu_fill_matmul_dotprod(llmq_backend_ops *ops);
void cpu_fill_ops_neon(llmq_backend_ops *ops);
void cpu_fill_grad_neon(llmq_backend_ops *ops);
void cpu_fill_limits_neon(llmq_backend_ops *ops);
void cpu_fill_limits_dotprod(llmq_backend_ops *ops);
#endif

#endif
