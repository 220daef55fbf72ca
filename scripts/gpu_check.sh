#!/usr/bin/env bash
# A machine with an NVIDIA GPU turned into figures, in at most 8 minutes: builds llmq with CUDA, runs the kernels' tests on
# the device against the CPU's oracle and under compute-sanitizer, compares greedy text, times decode products as a share of
# the memory bandwidth measured in the same run, products of prefill beside cuBLAS with f16 weights, and models, and quantizes with and without the GPU. It writes
# OUT/gpu_check.md and OUT/gpu_check.json, which say of every part whether it passed, failed or did not run, and keeps each
# part's output in OUT. After a failure the rest stays unrun. Exit status: 0 nothing failed, 1 something did, 2 bad usage.
#
# usage: scripts/gpu_check.sh [--out DIR] [--build DIR] [--no-build] [--model FILE]... [--emulated [--short]]
#   --out DIR      where the results go (default gpu-check)
#   --build DIR    build there (default build-gpu; build with --emulated)
#   --no-build     the programs are there (scripts/gpu_bundle.sh packs them for machines without a package registry)
#   --model FILE   also time this model (GGUF or folder), and compare its text with the CPU's
#   --emulated     without a GPU: the same tests under the emulator; what only a device can tell is unrun. --short: fewer
set -uo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
limit=${GPU_CHECK_SECONDS:-480}
out=gpu-check build= make=1 emulated=0 short=0
models=()
usage() { sed -n '/^# usage/,/^set/p' "$0" | sed '$d; s/^# //' >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --out | --build | --model)
        [ $# -ge 2 ] || usage
        case $1 in --out) out=$2 ;; --build) build=$2 ;; --model) models+=("$2") ;; esac
        shift ;;
    --no-build) make=0 ;;
    --emulated) emulated=1 ;;
    --short) short=1 ;;
    *) usage ;;
    esac
    shift
done
[ $short -eq 0 ] || [ $emulated -eq 1 ] || usage
[ -n "$build" ] || { [ $emulated -eq 1 ] && build=build || build=build-gpu; }
mkdir -p "$out" || exit 2
rm -f "$out"/*.log "$out"/gpu_check.* "$out"/products.json "$out"/torch.json "$out"/models-*.json "$out"/quantize-*.json

# ---- parts: name, status, seconds, note
names=() states=() times=() notes=()
failed=
record() { names+=("$1") states+=("$2") times+=("$3") notes+=("$4"); printf '%-8s %s%s\n' "$2" "$1" "${4:+: $4}"; }
left() { echo $((limit - (SECONDS - start))); }
unrun() { record "$1" unrun 0 "$2"; }
# part NAME SECONDS COMMAND...: passed if it exits 0, unrun if 77
part() {
    local name=$1 seconds=$2 began=$SECONDS rc note
    local log=$out/${name//[^a-zA-Z0-9._-]/_}.log
    shift 2
    [ -z "$failed" ] || { unrun "$name" "stopped after the failure of $failed"; return; }
    [ "$(left)" -ge 5 ] || { unrun "$name" "no time left of $limit s"; return; }
    [ "$seconds" -le "$(left)" ] || seconds=$(left)
    timeout -k 5 "$seconds" "$@" >"$log" 2>&1
    rc=$?
    note=$(grep -v '^ *$' "$log" | tail -n 1 | cut -c 1-160)
    case $rc in
    0) record "$name" passed $((SECONDS - began)) "" ;;
    77) record "$name" unrun $((SECONDS - began)) "$note" ;;
    124 | 137) failed=$name; record "$name" failed $((SECONDS - began)) "more than $seconds s; see $log" ;;
    *) failed=$name; record "$name" failed $((SECONDS - began)) "exit status $rc: $note; see $log" ;;
    esac
}

# ---- results
text() { # JSON string; control characters become blanks
    printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/"&"/'
}
quote() { if [ -n "$1" ]; then text "$1"; else printf '""'; fi; }
facts=()
fact() { facts+=("$1" "$2"); }
write_json() {
    local i kind sep=
    printf '{\n "emulated": %s,\n "machine": {' "$([ $emulated -eq 1 ] && echo true || echo false)"
    for ((i = 0; i < ${#facts[@]}; i += 2)); do printf '%s%s: %s' "$sep" "$(quote "${facts[i]}")" "$(quote "${facts[i + 1]}")"; sep=', '; done
    printf '},\n "parts": ['
    sep=
    for i in "${!names[@]}"; do
        printf '%s\n  {"part": %s, "status": "%s", "seconds": %d, "note": %s}' "$sep" "$(quote "${names[i]}")" "${states[i]}" "${times[i]}" "$(quote "${notes[i]}")"
        sep=,
    done
    printf '\n ],\n "bench": '
    if [ -s "$out/products.json" ]; then cat "$out/products.json"; else echo null; fi
    printf ',\n "torch": '
    if [ -s "$out/torch.json" ]; then cat "$out/torch.json"; else echo null; fi
    for kind in models models-q8; do
        printf ',\n "%s": [' "${kind//-/_}"
        sep=
        for i in "${!models[@]}"; do [ -s "$out/$kind-$i.json" ] && { printf '%s' "$sep"; cat "$out/$kind-$i.json"; sep=,; }; done
        printf ']'
    done
    printf ',\n "quantize": {'
    sep=
    for i in tiny "${!models[@]}"; do [ -s "$out/quantize-$i.json" ] && { printf '%s"%s": ' "$sep" "$i"; cat "$out/quantize-$i.json"; sep=,; }; done
    printf '}\n}\n'
}
write_md() {
    local i
    echo "# gpu_check"
    echo
    [ $emulated -eq 0 ] || printf '**Under the emulator, without a GPU: no figure here is of a device.**\n\n'
    for ((i = 0; i < ${#facts[@]}; i += 2)); do echo "* ${facts[i]}: ${facts[i + 1]}"; done
    printf '\n| part | result | s | note |\n|---|---|--:|---|\n'
    for i in "${!names[@]}"; do echo "| ${names[i]} | ${states[i]} | ${times[i]} | ${notes[i]//|//} |"; done
    if [ -s "$out/products.log" ]; then
        printf '\n## Decode products\n\n'
        grep -E '^\||^plain|^prefill' "$out/products.log" | sed '/^plain/G; s/^prefill/\n## Prefill/; /## Prefill/G'
    fi
    if [ -s "$out/torch.json" ]; then
        printf '\n## The same in PyTorch\n\n'
        grep -E '^\||^PyTorch' "$out/the_same_in_PyTorch.log" | sed '/^PyTorch/G'
    fi
    for i in "${!models[@]}"; do
        [ -s "$out/bench_model_$i.log" ] || continue
        printf '\n## %s\n\n' "${models[i]}"
        grep '^|' "$out/bench_model_$i.log"
    done
    for i in tiny "${!models[@]}"; do
        [ -s "$out/quantize-$i.json" ] || continue
        [ "$i" = tiny ] && printf '\n## Quantizing data/tiny\n\n' || printf '\n## Quantizing %s\n\n' "${models[i]}"
        grep '^|' "$out/quantize_$([ "$i" = tiny ] || echo model_)$i.log"
    done
}
finish() {
    fact "seconds" "$((SECONDS - start))"
    write_json >"$out/gpu_check.json"
    write_md >"$out/gpu_check.md"
    echo "results: $out/gpu_check.md, $out/gpu_check.json"
    [ -z "$failed" ] || { echo "gpu_check: FAILED at $failed; what came after it did not run" >&2; exit 1; }
    exit 0
}
trap 'failed=${failed:-"an interrupt"}; finish' INT TERM

# ---- the machine
fact "date" "$(date -u +%Y-%m-%dT%H:%MZ)"
fact "processors" "$(nproc)"
gpu=
command -v nvidia-smi >/dev/null && gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader 2>/dev/null | head -n 1)
fact "GPU" "${gpu:-none}"
nvcc=$(command -v nvcc || ls "${CUDA_PATH:-/usr/local/cuda}/bin/nvcc" 2>/dev/null)
fact "nvcc" "$([ -n "$nvcc" ] && "$nvcc" --version | sed -n 's/.*release \([^,]*\).*/\1/p' || echo none)"

# ---- build
build_all() {
    local flags=(-DCMAKE_BUILD_TYPE=Release) target=()
    [ "$emulated" -eq 1 ] || { flags+=(-DLLMQ_CUDA=ON -DLLMQ_EXAMPLES=OFF); target=(--target gpu_programs); }
    cmake -B "$build" "${flags[@]}" && cmake --build "$build" -j "$(nproc)" "${target[@]}"
}
export build emulated
export -f build_all
if [ $make -eq 1 ]; then part build 300 bash -c build_all; else unrun build "--no-build"; fi
llmq=$build/llmq
export llmq out
fact "llmq" "$("$llmq" --version 2>/dev/null || echo unknown)"
if [ -z "$failed" ] && [ ! -x "$llmq" ]; then failed=programs; record programs failed 0 "there is no $llmq"; fi

# ---- the device
if [ $emulated -eq 1 ]; then
    unrun device "--emulated"
else
    part device 60 "$llmq" score tests/data/stories260K/stories260K.bin --tokens 1,2 --device cuda
fi

# ---- tests, each program a part
prefix=gpu_
[ $emulated -eq 0 ] || prefix=cuda_test_
found=0
for program in "$build/tests/$prefix"*; do
    name=${program##*/"$prefix"}
    [ -x "$program" ] && [ -f "$program" ] && [ "$name" != bench ] || continue
    found=1
    if [ $short -eq 1 ] && [ "$name" != device ]; then unrun "test $name (emulated)" "--short"; continue; fi
    part "test $name$([ $emulated -eq 1 ] && echo ' (emulated)')" 120 "$program"
done
[ -n "$failed" ] || [ $found -eq 1 ] || { failed=tests; record tests failed 0 "there are no $build/tests/$prefix*"; }

# ---- compute-sanitizer; it says so where it cannot work with a device, and then nothing was found out
sanitize() { # a program that is not done in its time is named, and the tool unrun
    local rc program unfinished=
    for program in ops sample matvec gemm prompt_attention; do
        [ -x "$build/tests/gpu_$program" ] || continue
        timeout -k 2 "${GPU_CHECK_SANITIZER_SECONDS:-14}" compute-sanitizer --tool "$1" --error-exitcode 9 "$build/tests/gpu_$program" >"$out/sanitizer.tmp" 2>&1
        rc=$?
        cat "$out/sanitizer.tmp"
        [ $rc -ne 0 ] || continue
        [ $rc -ne 124 ] && [ $rc -ne 137 ] || { unfinished+=" $program"; continue; }
        ! grep -qiE 'not supported|unsupported|Unable to find|Internal Sanitizer Error' "$out/sanitizer.tmp" || exit 77
        exit $rc
    done
    [ -z "$unfinished" ] || { echo "not done in time:$unfinished; nothing found in the rest"; exit 77; }
}
export -f sanitize
[ -x "${CUDA_PATH:-/usr/local/cuda}/bin/compute-sanitizer" ] && PATH=$PATH:${CUDA_PATH:-/usr/local/cuda}/bin
for tool in memcheck racecheck synccheck initcheck; do
    if [ $emulated -eq 1 ]; then
        unrun "sanitizer $tool" "--emulated"
    elif ! command -v compute-sanitizer >/dev/null; then
        unrun "sanitizer $tool" "there is no compute-sanitizer"
    else
        part "sanitizer $tool" 60 bash -c "sanitize $tool"
    fi
done

# ---- greedy text, word for word
same_text() { # same_text MODEL [OPTION...]
    "$llmq" run "$1" "${@:2}" -p "Once upon a time" -n 80 --temp 0 --raw -q >"$out/text.cpu" || exit 1
    "$llmq" run "$1" "${@:2}" -p "Once upon a time" -n 80 --temp 0 --raw -q --device cuda >"$out/text.cuda" || exit 1
    [ -s "$out/text.cuda" ] || { echo "the GPU wrote nothing"; exit 1; }
    cmp "$out/text.cpu" "$out/text.cuda" && echo "the same $(wc -c <"$out/text.cpu") bytes"
}
export -f same_text
for what in stories260K tiny; do
    if [ $emulated -eq 1 ]; then
        unrun "text $what" "--emulated; test model has it"
    elif [ $what = tiny ]; then
        part "text $what" 60 bash -c 'same_text data/tiny'
    else
        part "text $what" 60 bash -c 'same_text tests/data/stories260K/stories260K.bin --tokenizer tests/data/stories260K/tok512.bin'
    fi
done

# ---- figures
bench=$build/tests/gpu_bench
[ $emulated -eq 0 ] || bench=$build/tests/emulated_bench
part "products" 120 "$bench" "$out/products.json"
if [ $emulated -eq 1 ]; then
    unrun "the same in PyTorch" "--emulated"
elif [ -s "$out/products.json" ]; then
    part "the same in PyTorch" 60 bash -c 'python3 scripts/gpu_torch.py "$out/products.json" "$out/torch.json" || exit 77' # no failure of ours
else
    unrun "the same in PyTorch" "there are no products to stand beside"
fi

time_model() { # time_model MODEL N: and its decode steps with 8-bit activations
    "$llmq" bench "$1" --device cuda -p 512 -n 128 -r 3 -q --json >"$out/models-$2.json" || exit 1
    LLMQ_CUDA_ACTS=q8 "$llmq" bench "$1" --device cuda -p 0 -n 128 -r 3 -q --json >"$out/models-q8-$2.json" || exit 1
    "$llmq" bench "$1" --device cuda -p 512 -n 128 -r 3 -q || exit 1
    LLMQ_CUDA_ACTS=q8 "$llmq" bench "$1" --device cuda -p 0 -n 128 -r 3 -q | sed -n 's/| tg\([0-9]*\) |/| tg\1, 8-bit activations |/p'
}
long_text() { # texts of large models part at a rounding some time; that is said, and no failure
    (same_text "$1") && exit 0
    [ -s "$out/text.cpu" ] && [ -s "$out/text.cuda" ] || exit 1
    echo "the same up to byte $(cmp "$out/text.cpu" "$out/text.cuda" | sed 's/.*byte \([0-9]*\).*/\1/') of $(wc -c <"$out/text.cpu")"
}
export -f time_model long_text
[ ${#models[@]} -gt 0 ] || unrun "bench model" "no --model"
for i in "${!models[@]}"; do
    if [ $emulated -eq 1 ]; then
        unrun "bench model $i" "--emulated"
    else
        part "bench model $i" 150 bash -c 'time_model "$1" "$2"' _ "${models[i]}" "$i"
        part "text model $i" 90 bash -c 'long_text "$1"' _ "${models[i]}"
    fi
done

# ---- quantizing there and here: as good, and how long each stage takes
quantize_both() { # quantize_both MODEL TOKENS NAME SECONDS
    local device
    trap 'rm -f "$out"/quantized.gguf*' EXIT
    for device in cpu cuda; do
        timeout --foreground -k 5 "$4" "$llmq" quantize "$1" --gptq --type q4_0 --tokens "$2" --device $device -o "$out/quantized.gguf" --force --no-resume -q \
            --report-json "$out/report-$device.json" >/dev/null
        case $? in 0) ;; 124 | 137) echo "more than $4 s with --device $device"; exit 77 ;; *) exit 1 ;; esac
    done
    python3 - "$out/report-cpu.json" "$out/report-cuda.json" "$out/quantize-$3.json" <<'PY'
import json, sys
cpu, cuda = (json.load(open(path)) for path in sys.argv[1:3])
keys = ("seconds", "mean_error", "stage_seconds")
with open(sys.argv[3], "w") as f: json.dump({name: {k: d[k] for k in keys} for name, d in (("cpu", cpu), ("cuda", cuda))}, f)
print("| stage | the CPU alone, s | with the GPU, s |\n|---|--:|--:|")
for stage, seconds in cpu["stage_seconds"].items():
    if seconds > 0: print(f"| {stage} | {seconds:.2f} | {cuda['stage_seconds'].get(stage, 0):.2f} |")
print(f"| all | {cpu['seconds']:.2f} | {cuda['seconds']:.2f} |\n| mean error of a layer | {cpu['mean_error']:.6f} | {cuda['mean_error']:.6f} |")
if not abs(cuda["mean_error"] / cpu["mean_error"] - 1) < 0.05: sys.exit("the errors differ by more than 5 %")
PY
}
export -f quantize_both
if [ $emulated -eq 1 ]; then
    unrun "quantize tiny" "--emulated; test quantize has it"
else
    share() { local half=$((($(left) - 15) / 2)); echo $((half < $1 ? half : $1)); } # of the time left, for each of two jobs
    quantize_part() { # quantize_part NAME SECONDS MODEL TOKENS KEY
        local each
        each=$(share "$2")
        if [ "$each" -lt 5 ]; then unrun "$1" "no time left of $limit s"; return; fi
        part "$1" $((2 * each + 12)) bash -c 'quantize_both "$@"' _ "$3" "$4" "$5" "$each"
    }
    quantize_part "quantize tiny" 40 data/tiny 65536 tiny
    for i in "${!models[@]}"; do # a model that is quantized already is no source; its folder's name says nothing
        case $(basename "${models[i]}") in
        *q4* | *q8* | *Q4* | *Q8*) unrun "quantize model $i" "it is quantized" ;;
        *) quantize_part "quantize model $i" 110 "${models[i]}" 16384 "$i" ;;
        esac
    done
fi
finish
