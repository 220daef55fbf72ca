/* In the programs that run the AVX-512 kernels emulated (linked with --wrap=cpu_detect) a machine with AVX2 has AVX-512
 * too. */
#include "cpu/cpu.h"

cpu_isa __real_cpu_detect(void);
cpu_isa __wrap_cpu_detect(void);

cpu_isa __wrap_cpu_detect(void) {
    return __real_cpu_detect() >= CPU_ISA_AVX2 ? CPU_ISA_AVX512 : CPU_ISA_C;
}
