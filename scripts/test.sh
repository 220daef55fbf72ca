#!/usr/bin/env bash
# Everything a change must pass: packages, layers, a build with warnings as errors, the parsers under AddressSanitizer, the
# whole test set. The output ends with ctest's own summary of the whole set. usage: scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
step() { printf '\n== %s (%d s)\n' "$1" "$((SECONDS - start))"; }
jobs=$(nproc)

step "packages"
scripts/setup.sh

step "layers"
scripts/check_layers.sh

step "build, warnings as errors"
cmake --preset ci
cmake --build build -j "$jobs"

# Files are untrusted: whatever parses them runs under AddressSanitizer and UBSan, every truncation included. Only those rooms'
# test programs are built, for the whole tree with sanitizers would double the time.
step "parsers and types under AddressSanitizer"
cmake --preset asan
targets=()
for source in tests/core/test_*.c tests/formats/test_*.c tests/tokenizer/test_*.c tests/types/test_*.c; do
    [ -e "$source" ] || continue
    room=$(basename "$(dirname "$source")")
    targets+=("${room}_$(basename "$source" .c)")
done
cmake --build build-asan -j "$jobs" --target "${targets[@]}"
ctest --test-dir build-asan --output-on-failure -R '^(core|formats|tokenizer|types)/test_' -E '\.sh$'

step "the whole test set"
ctest --test-dir build --output-on-failure
