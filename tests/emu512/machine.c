/* In the programs that run the AVX-VNNI, AVX-512 and AMX kernels emulated (linked with --wrap) a machine has them all.
 * Without the AVX2 that the emulation is made of they are skipped tests. */
#include <stdio.h>
#include <stdlib.h>

#include "cpu/cpu.h"

cpu_isa __real_cpu_detect(void);
cpu_isa __wrap_cpu_detect(void);
cpu_isa __wrap_cpu_fastest(void);
bool __wrap_cpu_has_avxvnni(void);

bool __wrap_cpu_has_avxvnni(void) {
    return true;
}

cpu_isa __wrap_cpu_detect(void) {
    if (__real_cpu_detect() >= CPU_ISA_AVX2) return CPU_ISA_AMX;
    printf("the emulation of AVX-VNNI, AVX-512 and AMX takes AVX2, which this machine lacks\n");
    exit(77);
}

cpu_isa __wrap_cpu_fastest(void) {
    return __wrap_cpu_detect();
}
