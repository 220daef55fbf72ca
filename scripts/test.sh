#!/usr/bin/env bash
# Everything a change must pass: packages, layers, a build with warnings as errors, the tests under sanitizers, the
# whole test set. The output ends with ctest's own summary of the whole set. usage: scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
step() { printf '\n== %s (%d s)\n' "$1" "$((SECONDS - start))"; }
jobs=$(nproc)
at_once=$((jobs < 8 ? jobs : 8)) # tests: each takes all cores for itself, and more of them would wait for each other

step "packages"
scripts/setup.sh

step "layers"
scripts/check_layers.sh

step "build, warnings as errors"
cmake --preset ci
cmake --build build -j "$jobs"

# Files are untrusted and kernels run close to the edges of buffers: the tests run under ASan and UBSan too, but for the command
# line's, and of what takes minutes there only one case does (the CNN by one observer, tuning of the smallest model, kernels not
# emulated; of the emulated GPU, whose emulator checks a kernel's accesses by itself, neither prefill nor whole models).
step "AddressSanitizer and UBSan"
sanitized=(-E '^(cli|house)/|train/test_few_bits|tinycnn-[^m]|tinycnn-mse|-emulated|gpu_check|cuda/test_(model|gemm)')
cmake --preset asan
scripts/build_tests.sh build-asan "${sanitized[@]}"
ctest --test-dir build-asan --output-on-failure -j "$at_once" "${sanitized[@]}"

step "ARM's instruction sets, under qemu"
status=0
scripts/setup.sh --arm || true # without, the tests are skipped and say so
scripts/test_neon.sh || status=$?
[ $status -eq 0 ] || [ $status -eq 77 ] || exit $status

step "instruction sets"
build/tests/isas

step "the whole test set"
ctest --test-dir build --output-on-failure -j "$at_once"
