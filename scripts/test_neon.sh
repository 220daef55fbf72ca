#!/usr/bin/env bash
# The ARM kernels, tested on an x86-64 machine: llmq cross-compiled for 64-bit ARM, its tests of kernels, the golden models
# and a tiny model run through qemu-user. Whether results are right, that is; qemu says nothing of speed.
#
# Takes what `scripts/setup.sh --arm` installs. ARM's own libraries are fetched with apt into build-arm/root, nothing of the
# system's is touched. Exit status: 0 passed, 1 something failed, 77 skipped, and it says why.
#
# usage: scripts/test_neon.sh [--all]     --all: also training, refinement, storage types and more of the engine
set -euo pipefail
cd "$(dirname "$0")/.."
build=build-arm root=$PWD/build-arm/root
libraries=$root/usr/lib/aarch64-linux-gnu
emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=$libraries:$libraries/openblas-serial")
skip() { echo "test_neon: SKIPPED, nothing was run on ARM: $1"; exit 77; }

# What every change has to pass: three minutes on two cores. Kernels of training and refinement, which are left out, are
# texts that have been compiled for other instruction sets too.
tests='^ops/test_(attention|matmul|ops|int8|linalg|round)$|^affine/test_kernels$|^engine/test_goldens$|^isa/'
case ${1-} in
--all) tests='^(ops|types|isa|affine)/|^engine/test_(goldens|quantized_folders|batch)$|^train/test_net$' ;;
?*) sed -n '/^# usage/s/^# //p' "$0" >&2; exit 2 ;;
esac

case $(uname -m) in
x86_64) ;;
aarch64) skip "this machine is one: ctest runs its kernels" ;;
*) skip "it takes an x86-64 machine" ;;
esac
for tool in aarch64-linux-gnu-gcc qemu-aarch64 apt-get dpkg; do
    command -v $tool >/dev/null || skip "there is no $tool; on Debian scripts/setup.sh --arm installs what it takes"
done

# The newest packages of ARM, unpacked once.
if [ ! -e "$root/complete" ]; then
    rm -rf "$root" $build/apt
    mkdir -p "$root" $build/apt/state/lists/partial $build/apt/cache/archives/partial $build/apt/debs
    : >$build/apt/state/status
    apt=(-q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$PWD/$build/apt/state"
        -o Dir::State::status="$PWD/$build/apt/state/status" -o Dir::Cache="$PWD/$build/apt/cache" -o APT::Sandbox::User="$(id -un)")
    apt-get "${apt[@]}" update >/dev/null || skip "apt-get update for arm64 failed"
    dev=(libjansson-dev libpcre2-dev libutf8proc-dev libcmocka-dev libopenblas-serial-dev)
    own=$(apt-cache "${apt[@]}" show "${dev[@]}" | sed -n 's/^Depends: //p' | tr ',' '\n' | sed -n 's/ *\([^ ]*\) (= .*/\1/p' | sort -u) ||
        skip "apt knows no arm64 packages here"
    # shellcheck disable=SC2086
    (cd $build/apt/debs && apt-get "${apt[@]}" download "${dev[@]}" $own libgfortran5 >/dev/null) ||
        skip "ARM's libraries could not be fetched"
    for deb in "$build"/apt/debs/*.deb; do dpkg -x "$deb" "$root"; done
    rm -rf $build/apt
    touch "$root/complete"
fi

cmake -S . -B $build -G Ninja --toolchain scripts/aarch64.cmake -DCMAKE_BUILD_TYPE=Release -DLLMQ_WERROR=ON -DLLMQ_CUDA=OFF \
    -DLLMQ_EXAMPLES=OFF -DLLMQ_ARM_ROOT="$root" "-DCMAKE_CROSSCOMPILING_EMULATOR=$(IFS=';' && echo "${emulator[*]}")" >/dev/null
scripts/build_tests.sh $build -R "$tests"
ctest --test-dir $build --output-on-failure -j "$(nproc)" -R "$tests"

export OMP_WAIT_POLICY=passive # as ctest has it
# The program as a user has it: the same greedy text on every instruction set, and on a processor without sdot (which
# ends at the first instruction that it has not).
run=(run tests/data/stories260K/stories260K.bin --tokenizer tests/data/stories260K/tok512.bin -p "Once upon a time" -n 40 --temp 0)
first=
for how in LLMQ_ISA=c LLMQ_ISA=neon LLMQ_ISA=dotprod QEMU_CPU=cortex-a72; do
    text=$(env "$how" "${emulator[@]}" $build/llmq "${run[@]}")
    if [ -z "$text" ] || [ "${first:=$text}" != "$text" ]; then
        echo "test_neon: llmq run writes other text with $how: $text" >&2
        exit 1
    fi
done
QEMU_CPU=cortex-a72 "${emulator[@]}" $build/tests/isas | grep 'neon: native, dotprod: NOT RUN'
echo "test_neon: llmq run with c, neon, dotprod and on a Cortex-A72: $first"
