#!/usr/bin/env bash
# Builds what a choice of tests takes and nothing else: llmq and the programs that ctest would run with these options. The folder is
# one of Ninja, whose targets are files. usage: scripts/build_tests.sh BUILD-FOLDER [CTEST-OPTION ...]
set -euo pipefail
build=$(cd "$1" && pwd)
shift
names=$(ctest --test-dir "$build" -N "$@" | sed -n 's/^ *Test *#[0-9]*: //p')
if [ -z "$names" ]; then
    echo "build_tests: $build has no such tests: $*" >&2
    exit 1
fi
# ctest does not tell the path of a program that is not built yet; the files do that it reads. Names with a dot are scripts or objects.
mapfile -t programs < <(awk -v build="$build/" 'NR == FNR { chosen["add_test([=[" $0 "]=]"] = 1; next }
    $1 in chosen { n = split($0, part, "\""); for (i = 2; i <= n; i += 2) if (index(part[i], build) == 1) print substr(part[i], length(build) + 1) }' \
    <(printf '%s\n' "$names") "$build/CTestTestfile.cmake" "$build/tests/CTestTestfile.cmake" | grep -v '\.' | sort -u)
cmake --build "$build" -j "$(nproc)" --target llmq "${programs[@]}"
