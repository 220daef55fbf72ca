# Cross-compiles for 64-bit ARM with Debian's gcc-aarch64-linux-gnu and the libraries below LLMQ_ARM_ROOT, which
# scripts/test_neon.sh fetches.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER "") # none: CUDA's emulator has nothing of ARM's to test

set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES LLMQ_ARM_ROOT)
set(lib ${LLMQ_ARM_ROOT}/usr/lib/aarch64-linux-gnu)
set(blas ${lib}/openblas-serial)
set(ENV{PKG_CONFIG_LIBDIR} ${lib}/pkgconfig:${blas}/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${LLMQ_ARM_ROOT})
set(CMAKE_EXE_LINKER_FLAGS_INIT -Wl,-rpath-link,${lib}:${blas})
set(CMAKE_SHARED_LINKER_FLAGS_INIT -Wl,-rpath-link,${lib}:${blas})
