#!/usr/bin/env bash
# Builds what a choice of tests takes and nothing else: llmq and the programs that ctest would run with these options.
# usage: scripts/build_tests.sh BUILD-FOLDER [CTEST-OPTION ...]
set -euo pipefail
build=$(cd "$1" && pwd)
shift
# Of a program that is not built yet ctest itself knows no path, but the files have it that it reads. Objects and scripts have a dot.
programs=$(ctest --test-dir "$build" -N "$@" | sed -n 's/^ *Test *#[0-9]*: \(.*\)/add_test([=[\1]=]/p' |
    grep -hFf - "$build/CTestTestfile.cmake" "$build/tests/CTestTestfile.cmake" |
    grep -o "\"$build/[^\"]*\"" | tr -d '"' | sed "s|^$build/||" | grep -v "\." | sort -u)
# shellcheck disable=SC2086
cmake --build "$build" -j "$(nproc)" --target llmq $programs
