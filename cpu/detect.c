/* Which kernels this machine can run. */
#define _DEFAULT_SOURCE /* syscall */
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Bits of XCR0: the registers that the operating system saves when it switches threads. */
static uint32_t os_saved_state(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

/* Linux gives a process the state of its tile registers on request only; its threads inherit it. */
static bool tiles_allowed(void) {
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18L /* XFEATURE_XTILEDATA */) == 0;
}

bool cpu_has_avxvnni(void) {
    uint32_t a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

/* The flags here are those that CMakeLists.txt gives to the files of each ISA. */
cpu_isa cpu_detect(void) {
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const uint32_t avx2 = 1u << 5, bmi2 = 1u << 8, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F DQ BW VL */
    const uint32_t vbmi = 1u << 1, vnni = 1u << 11, bf16 = 1u << 5;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return CPU_ISA_C;
    const uint32_t need1 = fma | osxsave | avx | f16c;
    if ((c & need1) != need1) return CPU_ISA_C;
    uint32_t saved = os_saved_state();
    if ((saved & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return CPU_ISA_C; /* xmm, ymm */
    if ((b & (avx2 | bmi2)) != (avx2 | bmi2)) return CPU_ISA_C;
    const cpu_isa narrow = cpu_has_avxvnni() ? CPU_ISA_AVXVNNI : CPU_ISA_AVX2;
    if ((saved & 0xe0) != 0xe0) return narrow; /* mask registers, upper halves and upper 16 of zmm */
    if ((b & avx512) != avx512 || (c & (vbmi | vnni)) != (vbmi | vnni)) return narrow;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & bf16)) return CPU_ISA_AVX512;
    const uint32_t amx = 1u << 22 | 1u << 24 | 1u << 25; /* BF16 TILE INT8 */
    bool tiles = (saved & 0x60000) == 0x60000 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx) == amx;
    return tiles && tiles_allowed() ? CPU_ISA_AMX : CPU_ISA_AVX512BF16;
}

cpu_isa cpu_fastest(void) {
    cpu_isa isa = cpu_detect();
    return isa == CPU_ISA_AVX512BF16 && __builtin_cpu_is("intel") ? CPU_ISA_AVX512 : isa;
}

static int streams_alone = -1;

bool cpu_streams_alone(void) {
    return streams_alone < 0 ? __builtin_cpu_is("amd") : streams_alone;
}

void cpu_set_streams_alone(int alone) {
    streams_alone = alone;
}
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

cpu_isa cpu_detect(void) {
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? CPU_ISA_DOTPROD : CPU_ISA_NEON;
}
#else
cpu_isa cpu_detect(void) {
    return CPU_ISA_C;
}
#endif

#if !defined(__x86_64__)
cpu_isa cpu_fastest(void) {
    return cpu_detect();
}
#endif
