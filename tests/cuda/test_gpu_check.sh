#!/usr/bin/env bash
# scripts/gpu_check.sh: its emulated form to its end, and its decisions with programs that pass, fail, skip or hang.
# usage: test_gpu_check.sh PATH_TO_LLMQ DATA_FOLDER
set -u
build=$(dirname "$1")
check=$(dirname "$0")/../../scripts/gpu_check.sh
[ -x "$build/tests/emulated_bench" ] || { echo "skipped: no emulator in this build"; exit 77; }
command -v python3 >/dev/null || { echo "skipped: python3 reads the JSON"; exit 77; }
work=$(mktemp -d --suffix=-Q4) # a folder's name says nothing of whether a model in it is quantized
trap 'rm -rf "$work"' EXIT
faults=0 checks=0
fault() { faults=$((faults + 1)); echo "FAULT: $1"; sed 's/^/    /' "$work/log" | tail -n 30; }
# run STATUS ARGS...
run() {
    local want=$1 got
    shift
    checks=$((checks + 1))
    bash "$check" --no-build --out "$work/out" "$@" >"$work/log" 2>&1
    got=$?
    [ $got -eq "$want" ] || fault "gpu_check $*: exit status $got instead of $want"
}
# says PART STATUS [NOTE]: in both results
says() {
    checks=$((checks + 1))
    python3 - "$work/out/gpu_check.json" "$@" <<'PY' || fault "not in the JSON: $*"
import json, sys
doc = json.load(open(sys.argv[1]))
part = [p for p in doc["parts"] if p["part"] == sys.argv[2]]
sys.exit(0 if len(part) == 1 and part[0]["status"] == sys.argv[3] and (len(sys.argv) < 5 or sys.argv[4] in part[0]["note"]) else 1)
PY
    grep -qF "| $1 | $2 |" "$work/out/gpu_check.md" || fault "not in the table: $*"
}

echo "-- emulated"
run 0 --emulated --short --build "$build"
says "test device (emulated)" passed
says "test model (emulated)" unrun --short
says products unrun "measured nothing"
says "the same in PyTorch" unrun --emulated
says "sanitizer racecheck" unrun --emulated
says "text tiny" unrun
says "quantize tiny" unrun
says "bench model" unrun "no --model"
grep -q 'without a GPU' "$work/out/gpu_check.md" || fault "the table does not say that there was no GPU"
grep -Eq '[0-9] %|GB/s: [0-9]' "$work/out/gpu_check.md" && fault "figures of a device that is not there"
python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert d["emulated"]; b = d["bench"]; assert b["read_gb_per_s"] is None and len(b["products"]) > 40 and len(b["prefill"]) > 30 and not any("us" in p for p in b["products"] + b["prefill"]); assert {p["way"] for p in b["prefill"]} == {"gemm", "unpacked, cuBLAS", "cuBLAS alone"}' \
    "$work/out/gpu_check.json" || fault "the emulated JSON"

echo "-- programs that do as they are told"
fake=$work/build
mkdir -p "$fake/tests"
stub() { printf '#!/bin/sh\n%s\n' "$2" >"$fake/$1" && chmod +x "$fake/$1"; }
stub llmq 'case $1 in quantize) for a; do [ "${last-}" != --report-json ] || echo "{\"stage_seconds\": {\"solving\": 2}, \"seconds\": 3, \"mean_error\": 1}" >"$a"; last=$a; done ;; bench) case "${LLMQ_CUDA_ACTS-} $*" in q8*json*) echo "[{\"n_gen\": 129}]" ;; *json*) echo "[{\"n_gen\": 128}]" ;; q8*) echo "| tg128 | 7.50 |" ;; *) echo "| tg128 | 7.00 |" ;; esac ;; *) echo "Once \"upon\" a\\time" ;; esac'
stub tests/gpu_bench 'echo "{\"measured\": true}" >"$1"; echo "plain read loop: 3000 GB/s"; echo "| q4_0 x q8 | 1 | 7 | 2900 | 97 % |"; echo "prefill, beside it"; echo "| q4_0, gemm | 16 | 9 | 90 | 1.25 |"'
stub tests/gpu_ops 'exit 0'
stub tests/gpu_matvec 'echo "no \"device\" | here"; exit 77'
run 0 --build "$fake" --model "$work/a model.gguf" --model "$work/a model-Q4_0.gguf"
says device passed
says "test ops" passed
says "test matvec" unrun 'no "device"'
says "text tiny" passed
says products passed
says "the same in PyTorch" unrun # a stub's products are none
says "bench model 0" passed
says "text model 0" passed
says "quantize tiny" passed
says "quantize model 0" passed
says "quantize model 1" unrun "it is quantized"
grep -q '| solving | 2.00 | 2.00 |' "$work/out/gpu_check.md" || fault "the times of quantizing are not in the table"
grep -q '2900 | 97 %' "$work/out/gpu_check.md" || fault "the figures are not in the table"
grep -A2 '^## Prefill, beside it' "$work/out/gpu_check.md" | grep -q '| 1.25 |' || fault "the figures of prefill are not in the table"
grep -q 'tg128 | 7.00' "$work/out/gpu_check.md" || fault "the model's figures are not in the table"
grep -q 'tg128, 8-bit activations | 7.50' "$work/out/gpu_check.md" || fault "the model's figures with 8-bit activations are not in the table"
python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert d["models"] == 2 * [[{"n_gen": 128}]] and d["models_q8"] == 2 * [[{"n_gen": 129}]]' \
    "$work/out/gpu_check.json" || fault "the models in the JSON"
# A sanitizer that finds nothing, that is too slow for one program, and that finds something.
mkdir -p "$work/bin"
sanitizer() { printf '#!/bin/sh\n%s\n' "$1" >"$work/bin/compute-sanitizer" && chmod +x "$work/bin/compute-sanitizer"; }
sanitizer 'exit 0'
PATH=$work/bin:$PATH run 0 --build "$fake"
says "sanitizer memcheck" passed
sanitizer 'case "$*" in *gpu_ops) exec sleep 9 ;; esac'
GPU_CHECK_SANITIZER_SECONDS=1 PATH=$work/bin:$PATH run 0 --build "$fake"
says "sanitizer memcheck" unrun "not done in time: ops"
sanitizer 'case "$*" in *gpu_matvec) echo "a race"; exit 9 ;; esac'
PATH=$work/bin:$PATH run 1 --build "$fake"
says "sanitizer memcheck" failed "a race"
stub tests/gpu_ops 'echo "row 3 is 7, expected 8"; exit 1'
run 1 --build "$fake"
says "test matvec" unrun
says "test ops" failed "row 3 is 7"
says "text tiny" unrun "stopped after the failure of test ops"
says products unrun "stopped after"
grep -q 'FAILED at test ops' "$work/log" || fault "it does not say where it failed"
stub tests/gpu_ops 'exec sleep 90'
checks=$((checks + 1))
for seconds in 7 20 60; do # more where what comes before, nvidia-smi's start and all, leaves this part no 5 s
    GPU_CHECK_SECONDS=$seconds bash "$check" --no-build --out "$work/out" --build "$fake" >"$work/log" 2>&1
    got=$?
    grep -q 'test ops: no time left' "$work/log" || break
done
[ $got -eq 1 ] || fault "gpu_check with a program that hangs: exit status $got instead of 1"
says "test ops" failed "more than"
stub tests/gpu_ops 'exit 0'
GPU_CHECK_SECONDS=4 run 0 --build "$fake"
says "test ops" unrun "no time left"
stub llmq 'case $1 in quantize) for a; do [ "${last-}" != --report-json ] || case "$*" in *cuda*) e=2 ;; *) e=1 ;; esac; [ "${last-}" != --report-json ] || echo "{\"stage_seconds\": {\"solving\": 2}, \"seconds\": 3, \"mean_error\": $e}" >"$a"; last=$a; done ;; bench) echo "[]" ;; *) echo text ;; esac'
run 1 --build "$fake"
says "quantize tiny" failed "differ by more than"
stub llmq 'case "$*" in *cuda*) echo other ;; *) echo text ;; esac'
run 1 --build "$fake"
says "text stories260K" failed differ
rm "$fake/llmq"
run 1 --build "$fake"
says programs failed "there is no"
says device unrun "stopped after the failure of programs"
run 2 --nonsense
echo "$checks checks, $faults faults"
[ $faults -eq 0 ]
