/* Did the tests run the kernels of an instruction set on the processor itself? isas NAME: exits with 77, a skipped
 * test, if this machine has none of it. */
#include <string.h>

#include "tests/isas.h"

int main(int argc, char **argv) {
    isas_say();
    if (argc < 2 || backend_cpu_isa(argv[1])) return 0;
    if (strcmp(argv[1], "avxvnni") == 0 || strncmp(argv[1], "avx512", 6) == 0 || strcmp(argv[1], "amx") == 0)
        printf("ctest -R emulated runs its kernels emulated\n");
    return 77;
}
